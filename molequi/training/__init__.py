"""Training of models."""

from molequi.errors import TrainingWarning
from molequi.training.ensembles import EnsembleResult
from molequi.training.fit import fit
from molequi.training.trainer import Result

__all__ = ["EnsembleResult", "Result", "TrainingWarning", "fit"]
