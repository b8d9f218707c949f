"""Models of other packages: their files are read without running any of their code."""

from molequi.foreign.conversion import FAMILIES, convert
from molequi.foreign.installed import FOUNDATIONS, foundation, foundation_file

__all__ = ["FAMILIES", "FOUNDATIONS", "convert", "foundation", "foundation_file"]
