"""Training, errors, predictions; and settings from YAML."""

from molequi.training.calibration import Calibration, calibration
from molequi.training.degree import Degree, FreePath, degree
from molequi.training.evaluate import evaluate, predict
from molequi.training.fit import fit
from molequi.training.folder import TrainingWarning
from molequi.training.loop import Result
from molequi.training.metrics import Errors
from molequi.training.poses import PoseErrors, pose_errors
from molequi.training.screen import Screened, screen
from molequi.training.seeds import EnsembleResult

__all__ = ["Calibration", "Degree", "EnsembleResult", "Errors", "FreePath", "PoseErrors", "Result", "Screened",
           "TrainingWarning", "calibration", "degree", "evaluate", "fit", "pose_errors", "predict", "screen"]
