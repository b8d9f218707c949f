"""Runs described by YAML files: the schema, the recipes of the package, and `run`, which carries them out.

`molequi.config.schema` describes the sections of a file.
"""

from molequi.config.automatic import compare, train_file
from molequi.config.curve import learning_curve
from molequi.config.report import report
from molequi.config.run import run
from molequi.config.schema import build_model, read_config, read_data
from molequi.config.sections import recipes

__all__ = [
    "build_model",
    "compare",
    "learning_curve",
    "read_config",
    "read_data",
    "recipes",
    "report",
    "run",
    "train_file",
]
