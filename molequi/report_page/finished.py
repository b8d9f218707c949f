"""What a report page is about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from molequi.data.dataset import Dataset
from molequi.ensemble import Ensemble
from molequi.inference.learning_curves import LearningCurve
from molequi.inference.metrics import Errors
from molequi.model import Model


@dataclass(frozen=True)
class FinishedRun:
    """What a report page is about.

    Parameters
    ----------
    name : str
        Title of the page.
    model : Model or Ensemble
        The trained model.
    parts : mapping of str to Dataset
        The data by part.
    history : sequence of mapping
        A row for each epoch; it may be empty.
    errors : mapping of str to Errors
        Errors of all structures, by part.
    config : mapping
        The description of the run.
    seconds : float
        Time of the training, of all members of an ensemble together.
    curve : LearningCurve or None
        Errors against the number of training structures, if they were measured.
    """

    name: str
    model: Model | Ensemble
    parts: Mapping[str, Dataset]
    history: Sequence[Mapping[str, Any]]
    errors: Mapping[str, Errors]
    config: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    curve: LearningCurve | None = None
