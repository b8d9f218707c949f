"""For the tests of other people: one line that fails with the table of the audit."""

from typing import Any

from molequi.errors import MolequiError


def assert_symmetric(model, structures, **options: Any) -> None:
    """`audit(model, structures, **options)`, as an assertion: `assert_symmetric(my_model, "molecules.xyz", group="SE(3)")`.

    model: whatever `audit` takes: a Model, a `Declared` module, an ASE calculator. options: those of `audit`.
    Raises AssertionError with the rows that failed; errors of the input as `audit` does.
    """
    from molequi.audit import audit

    report = audit(model, structures, **options)
    try:
        report.raise_if_failed()
    except MolequiError as error:
        raise AssertionError(str(error)) from None
