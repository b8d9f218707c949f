"""Training of models: `fit` and its options."""

from molequi.errors import TrainingWarning
from molequi.finetuning import Finetuning, FineTuningReport, Replay
from molequi.hooks import Batch, Hook, Penalty, Report, Run
from molequi.losses import Loss
from molequi.training.ensembles import EnsembleResult
from molequi.training.fit import fit, train_model
from molequi.training.options import (
    BatchSize,
    Compute,
    Logging,
    Normalization,
    Optimizer,
    Schedule,
    TrainingOptions,
    Validation,
)
from molequi.training.result import Result
from molequi.training.soap import SOAP

__all__ = [
    "SOAP",
    "Batch",
    "BatchSize",
    "Compute",
    "EnsembleResult",
    "FineTuningReport",
    "Finetuning",
    "Hook",
    "Logging",
    "Loss",
    "Normalization",
    "Optimizer",
    "Penalty",
    "Replay",
    "Report",
    "Result",
    "Run",
    "Schedule",
    "TrainingOptions",
    "TrainingWarning",
    "Validation",
    "fit",
    "train_model",
]
