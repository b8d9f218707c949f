"""Apply trained models: errors, predictions, tables of molecules, calibration of ensembles."""

from molequi.inference.calibration import Calibration, calibration
from molequi.inference.evaluate import evaluate
from molequi.inference.metrics import Errors
from molequi.inference.molecule_tables import PredictedTable, predict_table
from molequi.inference.predict import predict

__all__ = ["Calibration", "Errors", "PredictedTable", "calibration", "evaluate", "predict", "predict_table"]
