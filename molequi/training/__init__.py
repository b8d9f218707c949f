"""Training, errors, predictions; and settings from YAML."""

from molequi.training.evaluate import evaluate, predict
from molequi.training.fit import fit
from molequi.training.folder import TrainingWarning
from molequi.training.loop import Result
from molequi.training.metrics import Errors
from molequi.training.screen import Screened, screen

__all__ = ["Errors", "Result", "Screened", "TrainingWarning", "evaluate", "fit", "predict", "screen"]
