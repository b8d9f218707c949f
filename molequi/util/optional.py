"""Packages that only some functions need, and that `pip install molequi` leaves out."""

from importlib.util import find_spec

from molequi.errors import MissingPackageError


def require(package: str, extra: str, purpose: str) -> None:
    """Check that an optional package is installed.

    Parameters
    ----------
    package : str
        Name of the package.
    extra : str
        The extra of molequi that installs it.
    purpose : str
        What needs the package; the message begins with it.

    Raises
    ------
    MissingPackageError
        If the package is missing; the message says what to install.
    """
    if find_spec(package) is None:
        raise MissingPackageError(
            f"{purpose} needs {package}, which is not installed: pip install 'molequi[{extra}]'"
        )
