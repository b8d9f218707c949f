"""Groups of options: frozen dataclasses that check themselves, in Python and from a YAML file."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, ClassVar, TypeVar, cast

from molequi.errors import ConfigError
from molequi.util.signature import as_plain, check_call, with_floats

Made = TypeVar("Made", bound="Options")


class Options:
    """Base of frozen dataclasses of options: types, ranges and contradictions are checked when one is made.

    A subclass says in ``problem`` which values contradict each other. A whole number becomes a float in a
    field that is a float.

    Attributes
    ----------
    shorthand : str
        The field that a plain value stands for: ``optimizer="adamw"`` is ``Optimizer(name="adamw")``.
    """

    shorthand: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Raise ConfigError for wrong types, values out of range and contradictions."""
        name = type(self).__name__
        given = {f.name: getattr(self, f.name) for f in _fields(type(self))}
        check_call(type(self), given, where=name)
        for field, value in with_floats(type(self), given).items():
            object.__setattr__(self, field, value)
        problem = self.problem()
        if problem:
            raise ConfigError(f"{name}: {problem}")

    def problem(self) -> str:
        """What is wrong with the values together, and what to do; an empty string if nothing is."""
        return ""

    def changed(self) -> dict[str, Any]:
        """The fields that differ from their defaults, as plain values where they are options too."""
        return {
            f.name: getattr(self, f.name)
            for f in _fields(type(self))
            if f.default is MISSING or getattr(self, f.name) != f.default
        }


def as_options(kind: type[Made], value: Any, where: str, **more: Any) -> Made:
    """An object of the class `kind` from an object, a mapping or a shorthand.

    Parameters
    ----------
    kind : type
        A subclass of Options.
    value : object, Mapping, str or number
        An object is returned as it is. A mapping has the fields by name. Anything else is the value of the
        field ``kind.shorthand``.
    where : str
        What error messages put before the name of a field, such as ``"train.optimizer"``.
    **more
        Fields that are known already.

    Raises
    ------
    ConfigError
        For unknown names, wrong types, values out of range and contradictions.
    """
    if isinstance(value, kind):
        return value
    value = as_plain(value)
    short = kind.shorthand if not isinstance(value, Mapping) else ""
    given = {kind.shorthand: value} if short and isinstance(value, (str, int, float)) else value
    for name in more:
        if isinstance(given, Mapping) and name in given:
            raise ConfigError(f"{where}.{name}: this is {more[name]!r} already; leave it out")
    try:
        check_call(kind, more | dict(given) if isinstance(given, Mapping) else given, where=where)
        return kind(**more, **given)
    except ConfigError as error:
        text = str(error).removeprefix(f"{kind.__name__}: ")
        text = text if text.startswith(where) else f"{where}: {text}"
        raise ConfigError(text.replace(f"{where}.{short}:", f"{where}:") if short else text) from error


def collect(*checks: Callable[[], Any]) -> list[Any]:
    """Call all functions and return their results; report the mistakes of all of them at once.

    Parameters
    ----------
    *checks : callable
        Functions without arguments.

    Raises
    ------
    ConfigError
        With the messages of all ConfigErrors that the functions raised.
    """
    found, lines = [], []
    for check in checks:
        try:
            found.append(check())
        except ConfigError as error:
            lines.append(str(error))
    if lines:
        raise ConfigError("\n".join(lines))
    return found


def _fields(kind: type) -> tuple[Field[Any], ...]:
    return tuple(f for f in fields(cast(Any, kind)) if f.init)
