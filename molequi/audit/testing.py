"""The audit as an assertion, for the tests of other projects."""

from typing import Unpack

from molequi.audit.audits import AuditOptions, audit
from molequi.errors import MolequiError


def assert_symmetric(model: object, structures: object, **options: Unpack[AuditOptions]) -> None:
    """Run `audit` and fail with the table of the checks that failed.

    Parameters
    ----------
    model : Model, Declared module or ASE calculator
        Whatever `audit` takes.
    structures : Dataset, Graphs, ase.Atoms or path
        Whatever `audit` takes.
    **options
        Options of `audit`.

    Raises
    ------
    AssertionError
        If a check failed. The message has the rows.

    Examples
    --------
    >>> import molequi as mq
    >>> from molequi.audit.testing import assert_symmetric
    >>> water = mq.Graph.single([[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]], ["O", "H", "H"])
    >>> model = mq.Model(mq.EGNN(elements=["H", "O"], channels=8, layers=1), ["energy", "forces"])
    >>> assert_symmetric(model, [water], draws=2, checks=["rotation", "permutation"])
    """
    report = audit(model, structures, **options)
    try:
        report.raise_if_failed()
    except MolequiError as error:
        raise AssertionError(str(error)) from None
