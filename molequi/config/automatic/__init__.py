"""Runs without a YAML file: `train_file` looks at the data and chooses what a run needs.

What is chosen follows fixed rules, is printed, and is written as a YAML file that does the same again.
"""

from molequi.config.automatic.choose import is_data
from molequi.config.automatic.compare import compare
from molequi.config.automatic.curve import curve_file
from molequi.config.automatic.train import train_file

__all__ = ["compare", "curve_file", "is_data", "train_file"]
