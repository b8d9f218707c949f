"""Packages that only some functions need, and that `pip install molequi` leaves out."""

from importlib.util import find_spec

from molequi.errors import MissingPackageError


def require(package: str, extra: str, purpose: str) -> None:
    """Raises `MissingPackageError`, which names the extra to install, if the package is not installed."""
    if find_spec(package) is None:
        raise MissingPackageError(
            f"{purpose} needs {package}, which is not installed: pip install 'molequi[{extra}]'"
        )
