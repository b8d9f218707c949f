"""Do labelled structures keep a symmetry? `print(breaking(data))`: p-values, the subgroup that is left, and what to do."""

from molequi.breaking.report import BreakingReport
from molequi.breaking.study import breaking

__all__ = ["BreakingReport", "breaking"]
