"""Apply trained models: errors, predictions, descriptors, tables of molecules, calibration of ensembles."""

from molequi.inference.calibration import Calibration, calibration
from molequi.inference.conformal import Coverage, coverage
from molequi.inference.descriptor_files import WrittenDescriptors, read_descriptors, write_descriptors
from molequi.inference.descriptors import Descriptors, descriptors
from molequi.inference.evaluate import evaluate
from molequi.inference.laplace import laplace
from molequi.inference.metrics import Errors
from molequi.inference.molecule_tables import PredictedTable, predict_table
from molequi.inference.predict import predict
from molequi.inference.selection import Selection, select

__all__ = [
    "Calibration",
    "Coverage",
    "Descriptors",
    "Errors",
    "PredictedTable",
    "Selection",
    "WrittenDescriptors",
    "calibration",
    "coverage",
    "descriptors",
    "evaluate",
    "laplace",
    "predict",
    "predict_table",
    "read_descriptors",
    "select",
    "write_descriptors",
]
