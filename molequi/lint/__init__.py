"""A lint of data: faults that can be found before a training, each under a name by which it can be
overruled.
"""

from molequi.data.heuristics import HEURISTICS
from molequi.lint.report import Finding, LintReport
from molequi.lint.run import lint

__all__ = ["HEURISTICS", "Finding", "LintReport", "lint"]
