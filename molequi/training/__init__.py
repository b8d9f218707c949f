"""Training, errors, predictions; and settings from YAML."""

from molequi.training.evaluate import evaluate, predict
from molequi.training.fit import Result, fit
from molequi.training.folder import TrainingWarning
from molequi.training.metrics import Errors

__all__ = ["Errors", "Result", "TrainingWarning", "evaluate", "fit", "predict"]
