"""The symmetry report at the end of every training."""

import copy
import json
import warnings
from collections.abc import Mapping
from typing import Any

from molequi.audit.symmetry_reports import symmetry_report
from molequi.data.dataset import Dataset
from molequi.ensemble import Ensemble
from molequi.errors import DataWarning, MolequiError
from molequi.hooks import Hook, Run
from molequi.model import Model
from molequi.symmetry_report import SymmetryReport
from molequi.training.levels import LevelReports, of_levels
from molequi.training.products import without_products

STRUCTURES = 24  # of the validation data, from which those of the report are chosen


class SymmetryByLevel(LevelReports):
    """The symmetry reports of the levels of a model."""

    def to_json(self) -> str:
        """The reports by level as JSON."""
        found = {
            level: report.to_dict() for level, report in self.items() if isinstance(report, SymmetryReport)
        }
        return json.dumps(found, indent=2)


class MeasureSymmetry(Hook):
    """Measure the symmetry of the best model on validation structures; the model file keeps the report."""

    name = "symmetry_report"

    def report(self, run: Run) -> "SymmetryReport | SymmetryByLevel | None":
        """The symmetry report, on the first device.

        Parameters
        ----------
        run : Run
            The training at its end.
        """
        if run.share[0]:
            return None
        found = of_levels(run.model, run.parts["valid"], measure_symmetry)
        return SymmetryByLevel(found, found.records) if isinstance(found, LevelReports) else found

    def metadata(self, report: object) -> Mapping[str, Any]:
        """The report as JSON.

        Parameters
        ----------
        report : object
            What `report` returned.
        """
        if isinstance(report, LevelReports):
            return {"levels": report.records}
        return {"symmetry_report": report.to_dict()} if isinstance(report, SymmetryReport) else {}


def measure_symmetry(model: Model | Ensemble, data: Dataset) -> SymmetryReport | None:
    """Measure the symmetry of a trained model and keep the report in its metadata.

    The plain model is measured: a compiled one would need one more function, in float64, which takes longer
    to compile than the audit. Compiled functions are compared with the plain model before they are used.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    data : Dataset
        Structures that the model was not trained on; some of them are chosen.

    Returns
    -------
    SymmetryReport or None
        None, with a DataWarning, if the symmetry cannot be measured.
    """
    chosen = sorted({k * len(data) // STRUCTURES for k in range(STRUCTURES)})
    try:
        plain = copy.deepcopy(without_products(model) if isinstance(model, Model) else model)
        plain.use_program(None)
        report = symmetry_report(plain, [data[k] for k in chosen])
    except Exception as error:  # a user's backbone may raise anything, and the training must not be lost
        kind = "" if isinstance(error, MolequiError) else f"{type(error).__name__}: "
        warnings.warn(
            f"the model has no symmetry report, since the audit of it ended with {kind}{error}",
            DataWarning,
            stacklevel=2,
        )
        return None
    model.metadata = {**getattr(model, "metadata", {}), "symmetry_report": report.to_dict()}
    return report
