"""Measure the symmetry of a model and whether it obeys physics: `print(audit(model, structures))`."""

from molequi.audit.audits import audit, audit_files, labelled, unlabelled
from molequi.audit.checks import CHECKS
from molequi.audit.foreign import BlackBox, Declared
from molequi.audit.groups import Symmetries, symmetries
from molequi.audit.lie import lie_errors
from molequi.audit.lie_report import LieReport, LieRow, Share, StateRow
from molequi.audit.report import Report, Row, Tolerances
from molequi.audit.symmetry_reports import Comparison, compare, compare_models, symmetry_report, verify

__all__ = [
    "CHECKS",
    "BlackBox",
    "Comparison",
    "Declared",
    "LieReport",
    "LieRow",
    "Report",
    "Row",
    "Share",
    "StateRow",
    "Symmetries",
    "Tolerances",
    "audit",
    "audit_files",
    "compare",
    "compare_models",
    "labelled",
    "lie_errors",
    "symmetries",
    "symmetry_report",
    "unlabelled",
    "verify",
]
