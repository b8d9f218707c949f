"""Hypothesis tests of the symmetry of labelled data, and point groups of structures."""

from molequi.data_symmetry.hypothesis_test import symmetry_test
from molequi.data_symmetry.point_groups import (
    add_symmetry_breaking_vector,
    point_group,
    symmetry_breaking_set,
)
from molequi.data_symmetry.report import HypothesisTest, OracleError, SymmetryTestReport

__all__ = [
    "HypothesisTest",
    "OracleError",
    "SymmetryTestReport",
    "add_symmetry_breaking_vector",
    "point_group",
    "symmetry_breaking_set",
    "symmetry_test",
]
