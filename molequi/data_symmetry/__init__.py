"""Hypothesis tests of the symmetry of labelled data, and point groups of structures."""

from molequi.data_symmetry.point_groups import broken, stabilizer, symmetry_breaking_set
from molequi.data_symmetry.report import SymmetryTestReport
from molequi.data_symmetry.study import symmetry_test

__all__ = ["SymmetryTestReport", "symmetry_test", "broken", "stabilizer", "symmetry_breaking_set"]
