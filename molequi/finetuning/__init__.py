"""Fine-tuning: a trained model is trained further on new data, and what it forgets is measured."""

from molequi.finetuning.options import Finetuning, Replay
from molequi.finetuning.report import FineTuningReport

__all__ = ["FineTuningReport", "Finetuning", "Replay"]
