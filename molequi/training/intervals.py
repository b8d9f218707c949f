"""Errors on the validation data, kept at the end of every training for prediction intervals."""

from collections.abc import Mapping
from typing import Any

from molequi.data.dataset import Dataset
from molequi.ensemble import Ensemble
from molequi.hooks import Hook, Run
from molequi.inference.intervals import IntervalReport, residuals_to_keep
from molequi.model import Model
from molequi.training.levels import LevelReports, of_levels


class KeepErrors(Hook):
    """Keep the errors of the best model on the validation data, for ``predict(..., interval=0.9)``."""

    name = "prediction_intervals"

    def report(self, run: Run) -> IntervalReport | LevelReports | None:
        """The errors, on the first device; None if the model predicts no single number of a structure.

        Parameters
        ----------
        run : Run
            The training at its end.
        """
        return of_levels(run.model, run.parts["valid"], keep_errors) if run.share[0] == 0 else None

    def metadata(self, report: object) -> Mapping[str, Any]:
        """The errors as JSON.

        Parameters
        ----------
        report : object
            What `report` returned.
        """
        if isinstance(report, LevelReports):
            return {"levels": report.records}
        return {"residuals": dict(report)} if isinstance(report, IntervalReport) else {}


def keep_errors(model: Model | Ensemble, data: Dataset) -> IntervalReport | None:
    """Measure the absolute errors of a trained model and keep them in its metadata.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    data : Dataset
        The validation data.

    Returns
    -------
    IntervalReport or None
        None if there is nothing that has intervals.
    """
    # Batches with other numbers of neighbors would need one more compiled program.
    errors = residuals_to_keep(model.plain(), data)
    if not errors:
        return None
    model.metadata = {**getattr(model, "metadata", {}), "residuals": errors}
    return IntervalReport(errors, model.quantities)
