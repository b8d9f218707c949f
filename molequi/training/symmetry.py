"""The symmetry report at the end of every training."""

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

STRUCTURES = 24  # of the validation data, from which those of the report are chosen


class MeasureSymmetry(Hook):
    """Measures the symmetry of the best model on validation structures and keeps the report in the model file."""

    name = "symmetry_report"

    def report(self, run: Run) -> SymmetryReport | None:
        """The symmetry report, on the first device."""
        return measure_symmetry(run.model, run.parts["valid"]) if run.share[0] == 0 else None

    def metadata(self, report: object) -> Mapping[str, Any]:
        """The report as JSON."""
        return {"symmetry_report": report.to_dict()} if isinstance(report, SymmetryReport) else {}


def measure_symmetry(model: Model | Ensemble, data: Dataset) -> SymmetryReport | None:
    """The symmetry report on structures that were not learnt from; None, with a warning, where it cannot be measured."""
    chosen = sorted({k * len(data) // STRUCTURES for k in range(STRUCTURES)})
    try:
        report = symmetry_report(model, [data[k] for k in chosen])
    except (
        Exception
    ) as error:  # a backbone of the user may raise anything, and the training must not be lost to it
        kind = "" if isinstance(error, MolequiError) else f"{type(error).__name__}: "
        warnings.warn(
            f"the model has no symmetry report, since the audit of it ended with {kind}{error}",
            DataWarning,
            stacklevel=2,
        )
        return None
    model.metadata = {**getattr(model, "metadata", {}), "symmetry_report": report.to_dict()}
    return report
