"""Names of an earlier version: the error says what takes their place."""

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import ParamSpec, TypeVar

from molequi.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")


def check_renamed(given: Iterable[str], renamed: Mapping[str, str], where: str) -> None:
    """Raise ConfigError if options have names of an earlier version.

    Parameters
    ----------
    given : iterable of str
        The names in use.
    renamed : mapping of str to str
        What takes the place of each old name, as a user writes it.
    where : str
        What the message puts before a name: a function or a section of a file.

    Raises
    ------
    ConfigError
        With one line for each old name.

    Examples
    --------
    >>> check_renamed(["batch_atoms"], {"batch_atoms": "train.batch_size.atoms"}, "train")
    Traceback (most recent call last):
        ...
    molequi.errors.ConfigError: train.batch_atoms: now train.batch_size.atoms
    """
    lines = [f"{where}.{name}: now {renamed[name]}" for name in given if name in renamed]
    if lines:
        raise ConfigError("\n".join(lines))


def renamed_arguments(renamed: Mapping[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator of a function whose keyword arguments had other names in an earlier version.

    The signature of the function stays as it is. A call with an old name raises ConfigError, see
    `check_renamed`.

    Parameters
    ----------
    renamed : mapping of str to str
        What takes the place of each old name, as a user writes it.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            check_renamed(kwargs, renamed, function.__name__)
            return function(*args, **kwargs)

        return checked

    return decorate
