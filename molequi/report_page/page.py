"""Write the report page of a run."""

import os
from collections.abc import Mapping
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from molequi.data.dataset import Dataset
from molequi.ensemble import Ensemble
from molequi.errors import DataError
from molequi.model import Model
from molequi.report_page import sections
from molequi.report_page.finished import FinishedRun
from molequi.report_page.sample import Sample, sample
from molequi.util.files import write_file

if TYPE_CHECKING:
    from markupsafe import Markup


def samples_of(model: Model | Ensemble, parts: Mapping[str, Dataset]) -> dict[str, Sample]:
    """Structures of each part that are drawn and grouped, with their predictions.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    parts : mapping of str to Dataset
        The data by part; parts without any label are left out.

    Raises
    ------
    DataError
        If no part has labels of what the model predicts.
    """
    found = {
        name: sample(model, data)
        for name, data in parts.items()
        if any(data.labelled(quantity) for quantity in model.quantities)
    }
    if not found:
        raise DataError(
            f"no part of the data ({', '.join(parts)}) has labels of what the model predicts "
            f"({', '.join(model.quantities)}), so there are no errors to report; name labels with keys=…"
        )
    return found


def write_page(
    path: str | os.PathLike[str], run: FinishedRun, samples: Mapping[str, Sample] | None = None
) -> Path:
    """Write the report page of a run.

    Parameters
    ----------
    path : path
        The file, such as ``report.html``.
    run : FinishedRun
        The run.
    samples : mapping of str to Sample, optional
        What `samples_of` returned; by default it is computed here.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    DataError
        If no part has labels of what the model predicts.
    """
    from jinja2 import Environment, StrictUndefined

    from molequi import __version__

    samples = samples if samples is not None else samples_of(run.model, run.parts)
    source = files("molequi.report_page").joinpath("page.html.jinja").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["code"] = _with_code
    page = environment.from_string(source).render(
        name=run.name,
        subtitle=sections.subtitle(run.model),
        sections=sections.all_sections(run, samples),
        version=__version__,
        date=datetime.now().strftime("%Y-%m-%d %H:%M"),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, page)
    return path


def _with_code(text: str) -> "Markup":
    """Text as HTML, with what stands between backticks in a fixed font."""
    from markupsafe import Markup, escape

    pieces = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if k % 2 else escape(piece) for k, piece in enumerate(pieces)
    )
