"""The report page of a run, written again from its folder."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from molequi.checkpoint import load
from molequi.config.levels import run_of_each
from molequi.config.names import Names
from molequi.config.pretraining import FOLDER
from molequi.config.schema import read_config, read_data
from molequi.data.dataset import Dataset
from molequi.ensemble import Ensemble
from molequi.errors import CheckpointError, ConfigError, DataError
from molequi.inference.evaluate import final_errors, with_labels
from molequi.inference.learning_curves import LearningCurve
from molequi.inference.metrics import Errors
from molequi.model import Model
from molequi.report_page import FinishedRun, write_page
from molequi.training.ensembles import EnsembleResult
from molequi.training.history import mean_history, read_history
from molequi.training.result import Result
from molequi.util.level_records import split_level
from molequi.util.signature import check_keywords

PAGE = "report.html"


@check_keywords()
def report(
    run: str | os.PathLike[str] | Result | EnsembleResult,
    data: Any = None,
    *,
    out: str | os.PathLike[str] | None = None,
    device: str | torch.device = "auto",
    backbones: Mapping[str, Any] | None = None,
    heads: Mapping[str, Any] | None = None,
    readers: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report page of a run: one HTML file that says whether the model is good.

    It has the data, the errors by element and by each column of the data, predicted against given values, the
    learning curve, the calibration of an ensemble, the symmetry, the configuration, times and versions. It
    needs no server and no network. `molequi.run` and ``molequi train`` write it at their end.

    At most 1,000 structures and 50,000 atoms of each part are drawn and grouped, evenly spaced; the table of
    errors is of all structures.

    Parameters
    ----------
    run : path, Result or EnsembleResult
        The folder of a run, of a level of theory as ``"runs/both@pbe"``; or what `molequi.fit` returned.
    data : mapping of str to data, Dataset, path, optional
        The data by part, such as ``{"train": train, "valid": valid, "test": "new.xyz"}``, each a Dataset or
        what `molequi.load_dataset` takes; one alone is the part "data". Without it the data are read again as
        the run describes it. A run of `molequi.fit` needs it, because its data came from Python.
    out : path, optional
        The file; by default ``report.html`` in the folder of the run. Of several levels of theory each has a
        page of its own, such as ``report-pbe.html``.
    device : {"auto", "cpu", "cuda", "cuda:1"}
        Where the model of a folder runs; "auto" is CUDA if this machine has it.
    backbones, heads, readers : mapping, optional
        Your own objects by the names that the files use, as in `molequi.run`.

    Returns
    -------
    Path
        The file; of several levels the first.

    Raises
    ------
    ConfigError
        If there is no run in the folder, or if the data or the file have to be given.
    DataError
        If the data have no labels of what the model predicts.

    Examples
    --------
    >>> import tempfile, torch
    >>> from molequi import EGNN, Graph, Model, fit
    >>> waters = [
    ...     Graph.single(torch.tensor([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, y, 0.0]]), ["O", "H", "H"],
    ...                  targets={"energy": torch.tensor([-14.0 + y], dtype=torch.float64)})
    ...     for y in (0.90, 0.92, 0.94, 0.96)
    ... ]
    >>> model = Model(EGNN(elements=["H", "O"], channels=4, layers=1), ["energy"])
    >>> result = fit(model, waters[:3], waters[3:], epochs=2, logging={"progress": False})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = report(result, {"train": waters[:3], "valid": waters[3:]}, out=f"{folder}/report.html")
    ...     page.name, "Learning curve" in page.read_text()
    ('report.html', True)
    """
    names = Names.of(backbones=backbones, heads=heads, readers=readers)
    if isinstance(run, (Model, Ensemble)):
        raise ConfigError(
            f"report: found a {type(run).__name__}, which knows neither its training nor its data; wanted "
            "the folder of a run or what mq.fit returned: mq.report('runs/NAME'). Of a model alone: "
            "print(mq.evaluate(model, data)), plotting.parity(model, data)"
        )
    level: str | None = None
    if isinstance(run, (Result, EnsembleResult)):
        folder, model = run.out, run.model
    else:
        path, level = split_level(run)
        folder = _folder(path)
        model = load(folder / "model.safetensors", backbones=backbones, heads=heads, device=device)
    if out is None and folder is None:
        raise ConfigError("report: the result has no folder, so give the file: out='report.html'")
    config = dict((getattr(model, "metadata", None) or {}).get("run") or {})
    config = _in_order(config, folder)
    parts = _parts(data, config, folder, model, names)
    if isinstance(run, (Result, EnsembleResult)):
        finished = finished_run(run, parts, config)
    else:
        assert folder is not None
        finished = _from_folder(folder, model, parts, config)
    target = Path(out) if out is not None else Path(str(folder)) / PAGE
    runs = run_of_each(finished, level)
    pages = [write_page(target.with_stem(target.stem + name), one) for name, one in runs.items()]
    return pages[0]


def finished_run(
    result: Result | EnsembleResult, parts: Mapping[str, Dataset], config: Mapping[str, Any]
) -> FinishedRun:
    """What a report page needs of the result of a training.

    Parameters
    ----------
    result : Result or EnsembleResult
        The result.
    parts : mapping of str to Dataset
        The data by part.
    config : mapping
        The description of the run.
    """
    members = result.members.values() if isinstance(result, EnsembleResult) else [result]
    histories = [member.history for member in members]
    return FinishedRun(
        name=result.out.name if result.out else "a training",
        model=result.model,
        parts=parts,
        history=result.history,
        errors=_errors(result.model, parts, result.errors),
        config=config,
        seconds=sum(rows[-1].get("seconds", 0.0) for rows in histories if rows),
        curve=curve_of(result.out),
    )


def _from_folder(
    folder: Path, model: Model | Ensemble, parts: Mapping[str, Dataset], config: Mapping[str, Any]
) -> FinishedRun:
    """What a report page needs, from the files of a run."""
    files = sorted(folder.glob("seed*/metrics.csv")) if isinstance(model, Ensemble) else []
    if (folder / "metrics.csv").exists():
        files = [folder / "metrics.csv"]
    histories = [rows for rows in map(read_history, files) if rows]
    return FinishedRun(
        name=folder.name,
        model=model,
        parts=parts,
        history=mean_history(histories),
        errors=_errors(model, parts, _read_errors(folder / "errors.json")),
        config=config,
        seconds=sum(rows[-1].get("seconds", 0.0) for rows in histories),
        curve=curve_of(folder),
    )


def _folder(path: Path) -> Path:
    """The folder of a run. Raises ConfigError if there is none."""
    folder = path.parent if path.name == "model.safetensors" else path
    if not (folder / "model.safetensors").is_file() and (folder / FOLDER).is_dir():
        begun = any(folder.glob("state-*"))
        raise ConfigError(
            f"{path}: this run was stopped {'after' if begun else 'in'} its first training (the section "
            f"{FOLDER}) and has no model yet; start the command that began it again, which goes on where it "
            "stopped"
        )
    if not (folder / "model.safetensors").is_file():
        runs = sorted(str(found.parent) for found in folder.glob("*/model.safetensors"))
        hint = f"; there are {', '.join(runs[:8])}" if runs else ""
        kind = "there is no model.safetensors in it" if folder.is_dir() else "no such folder"
        raise ConfigError(
            f"{path}: {kind}; wanted the folder of a run that was trained, such as runs/demo{hint}"
        )
    return folder


def _in_order(config: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """The description of a run with the order of its parts, on which a split depends.

    Model files of earlier versions have sorted names; ``config.yaml`` has them as they were.
    """
    path = None if folder is None else folder / "config.yaml"
    if path is None or "data" not in config or not path.is_file():
        return config
    from omegaconf import OmegaConf

    written = OmegaConf.to_container(OmegaConf.load(path))
    if isinstance(written, dict) and written.get("data") == config["data"]:
        return {**config, "data": written["data"]}
    return config


def _parts(
    data: Any, config: Mapping[str, Any], folder: Path | None, model: Model | Ensemble, names: Names
) -> dict[str, Dataset]:
    """The data by part: those that were given, or those that the run describes."""
    if data is not None:
        given = data if isinstance(data, Mapping) else {"data": data}
        return {part: with_labels(model, one, where="report")[1] for part, one in given.items()}
    if "data" not in config:
        where = f"{folder}: the run" if folder else "report: the training"
        raise ConfigError(
            f"{where} was made by fit, which got its data from Python, so that they cannot be read again; "
            "give "
            "them: mq.report(run, {'train': train, 'valid': valid}), or on the command line "
            f"molequi report {folder or 'RUN'} --data test=FILE"
        )
    return read_data(read_config(config, (), names), names)


def _errors(
    model: Model | Ensemble, parts: Mapping[str, Dataset], known: Mapping[str, Errors]
) -> dict[str, Errors]:
    """Errors of all parts; those that the training did not measure are measured now."""
    if isinstance(model, Model) and model.levels:
        return dict(known) or final_errors(model, parts)
    with_labels = [p for p, data in parts.items() if any(data.labelled(name) for name in model.quantities)]
    if not with_labels:
        raise DataError(
            f"no part of the data ({', '.join(parts)}) has labels of what the model predicts "
            f"({', '.join(model.quantities)}), so that there are no errors to report"
        )
    made = final_errors(model, {part: parts[part] for part in with_labels if part not in known})
    return {part: known[part] if part in known else made[part] for part in with_labels}


def _read_errors(path: Path) -> dict[str, Errors]:
    """The errors that the training measured; nothing if it wrote none."""
    if not path.exists():
        return {}
    try:
        records = json.loads(path.read_text("utf-8"))
        return {part: Errors.from_records(rows) for part, rows in records.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not the errors of a run ({error}); delete the file") from error


def curve_of(folder: Path | None) -> LearningCurve | None:
    """The learning curve that ``molequi curve`` left for a run; None if there is none.

    Parameters
    ----------
    folder : Path or None
        Folder of the run.
    """
    if folder is None:
        return None
    path = folder.with_name(f"{folder.name}-curve") / "curve.json"
    return LearningCurve.from_json(path.read_text("utf-8")) if path.exists() else None
