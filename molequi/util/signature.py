"""Check options against the signature of the function that takes them.

The signature says names, types and ranges of all options, and nothing else has to repeat them.
"""

import dataclasses
import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic_core import ErrorDetails

from molequi.errors import ConfigError, UnknownKeywordError, did_you_mean
from molequi.util.common_names import common_value, common_way, owner, value_note
from molequi.util.typed_values import meant_by, share_meant_by

# A decorated function or class is of the same type as before, for editors and type checkers.
Decorated = TypeVar("Decorated", bound=Callable[..., Any])
_PLACED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def check_keywords(
    renamed: Mapping[str, str] | None = None,
) -> Callable[[Decorated], Decorated]:
    """Make a decorator that explains unknown keyword arguments of a public function.

    The decorated function keeps its signature, types and docstring. For an argument that it does not have, it
    raises an error that names the new way (for a name of an earlier version), the name here (for one of
    another package) or the most similar argument. Of a class the constructor is decorated.

    Parameters
    ----------
    renamed : mapping of str to str, optional
        What to write now in place of each old argument. The character ``…`` stands for the value that the
        caller gave, if it is a number, a text, a truth value or None.

    Raises
    ------
    UnknownKeywordError
        By the decorated function, with a line for each unknown argument; and if arguments are missing or too
        many.

    Examples
    --------
    >>> @check_keywords({"patience": 'validation={"patience": …}'})
    ... def fit(*, epochs: int, validation: dict = {}) -> int:
    ...     return epochs
    >>> fit(epochs=3)
    3
    >>> fit(epochs=3, patience=20)
    Traceback (most recent call last):
        ...
    molequi.errors.UnknownKeywordError: fit(patience=20): now validation={"patience": 20}
    >>> fit(max_epochs=3)
    Traceback (most recent call last):
        ...
    molequi.errors.UnknownKeywordError: fit(max_epochs=3): the name here is 'epochs'; write epochs=3
    """
    renamed = dict(renamed or {})

    def decorate(function: Decorated) -> Decorated:
        if inspect.isclass(function):
            made: Any = function
            made.__init__ = decorate(vars(function)["__init__"])
            return function
        parameters = inspect.signature(function).parameters
        known = [n for n, p in parameters.items() if n != "self" and p.kind not in _VARIABLE]
        name = function.__qualname__.rpartition("<locals>.")[2].removesuffix(".__init__")
        kinds = {p.kind for p in parameters.values()}
        places = [n for n, p in parameters.items() if p.kind in _PLACED]
        most = sys.maxsize if inspect.Parameter.VAR_POSITIONAL in kinds else len(places)
        without = [n for n, p in parameters.items() if p.default is p.empty and p.kind not in _VARIABLE]
        needed = [n for n in places if n in without]
        needed_by_name = [n for n in without if n not in places]

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            unknown = {k: v for k, v in kwargs.items() if k not in known}
            if unknown and inspect.Parameter.VAR_KEYWORD not in kinds:
                lines = [_unknown_keyword(name, k, v, renamed, known) for k, v in unknown.items()]
                raise UnknownKeywordError("\n".join(lines))
            if len(args) > most or any(n not in kwargs for n in (*needed[len(args) :], *needed_by_name)):
                _check_number(name, parameters, len(args), kwargs)
            return function(*args, **kwargs)

        return cast(Decorated, checked)

    return decorate


def _check_number(
    name: str, parameters: Mapping[str, inspect.Parameter], given: int, named: Collection[str]
) -> None:
    """Raise UnknownKeywordError if arguments are missing, or if too many stand without a name."""
    own = {n: p for n, p in parameters.items() if n != "self"}
    given -= len(parameters) - len(own)
    places = [n for n, p in own.items() if p.kind in _PLACED]
    rest = [n for n, p in own.items() if p.kind is p.KEYWORD_ONLY]
    form = ", ".join(places)
    if given > len(places):
        also = f", {rest[0]}=…, …" if rest else ""
        raise UnknownKeywordError(
            f"{name}: takes {len(places)} positional argument{'s' * (len(places) != 1)} and {given} were "
            f"given; the others have names: {name}({form}{also})"
        )
    missing = [
        n
        for n, p in own.items()
        if p.default is p.empty and p.kind not in _VARIABLE and n not in named and n not in places[:given]
    ]
    if missing:
        kind = "positional " if missing[0] in places else ""
        many = "s" * (len(missing) != 1)
        names = " and ".join(map(repr, missing))
        needed = [f"{n}=…" for n in rest if own[n].default is inspect.Parameter.empty]
        form = ", ".join([*places, *needed, "…"])
        raise UnknownKeywordError(
            f"{name}: missing {len(missing)} required {kind}argument{many}: {names}; wanted {name}({form})"
        )


def _unknown_keyword(
    function: str, name: str, value: object, renamed: Mapping[str, str], known: Sequence[str]
) -> str:
    given = _short(value)
    where = f"{function}({name}={given})"
    if name in renamed:
        return f"{where}: now {renamed[name].replace('…', given)}"
    way = common_way(name, known)
    if way is not None:
        note = f" ({way.note})" if way.note else ""
        return (
            f"{where}: the name here is {way.argument!r}{note}; write {way.python(_short(way.given(value)))}"
        )
    belongs = owner(name, given)
    if belongs:
        return f"{where}: {function} has no such argument; it is {belongs}"
    return f"{where}: {function} has no such argument{did_you_mean(name, known)}"


def _short(value: object) -> str:
    """A plain value as code, anything else as ``…``."""
    plain = value is None or (isinstance(value, (str, int, float, dict)) and len(repr(value)) < 60)
    return repr(value) if plain else "…"


def check_call(
    function: Callable[..., Any],
    options: Mapping[str, Any],
    *,
    where: str,
    leave_out: Sequence[str] = (),
    more: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
) -> None:
    """Check that options are keyword arguments of a function, of the right types and in their ranges.

    If the type of an argument is a dataclass, a mapping is checked against the fields of the dataclass.

    Parameters
    ----------
    function : callable
        A function or a class.
    options : mapping
        Options by name.
    where : str
        What messages put before the name of an option, such as ``"train"``.
    leave_out : sequence of str
        Parameters that are not options, or that get their values later.
    more : sequence of str
        Names that something else takes; they are among the suggestions for a misspelt name.
    renamed : mapping of str to str, optional
        What to write now in place of options of earlier versions.

    Raises
    ------
    ConfigError
        With a line for each mistake.
    """
    schema = _schema(function, tuple(leave_out))
    if not isinstance(options, Mapping):
        raise ConfigError(
            f"{where}: found {options!r} ({type(options).__name__}); wanted options, one of"
            f" {', '.join(schema.model_fields)}"
        )
    known = [*schema.model_fields, *more]
    required = [name for name, f in schema.model_fields.items() if f.is_required()]
    lines = [
        f"{where}.{name}: missing; {function.__name__} needs it" for name in required if name not in options
    ]
    for name in options:
        if name in (renamed or {}) and name not in known:
            lines.append(f"{where}.{name}: now {(renamed or {})[name]}")
        elif name not in schema.model_fields and not _takes_any(function):
            lines.append(_unknown_option(function.__name__, where, str(name), options[name], known))
    nested = {
        name: kind
        for name, kind in _dataclasses(function).items()
        if name in schema.model_fields and isinstance(options.get(name), Mapping)
    }
    for name, kind in nested.items():
        try:
            check_call(kind, options[name], where=f"{where}.{name}")
        except ConfigError as error:
            lines.append(str(error))
    plain = {k: as_plain(v) for k, v in options.items() if k in schema.model_fields and k not in nested}
    lines += _wrong_values(schema, plain, where)
    if lines:
        raise ConfigError("\n".join(lines))


def _takes_any(function: Callable[..., Any]) -> bool:
    """Whether a function has ``**options``, which it hands on and which its signature does not name."""
    kinds = [p.kind for p in inspect.signature(_called(function)).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


def _unknown_option(function: str, where: str, name: str, value: object, known: Sequence[str]) -> str:
    """The line for an option that a function does not have: of another package, or misspelt."""
    way = common_way(name, known)
    if way is None:
        belongs = owner(name, _short(value))
        hint = f"; it is {belongs}" if belongs else did_you_mean(name, known)
        return f"{where}.{name}: no such option of {function}{hint}"
    given, note = way.given(value), f" ({way.note})" if way.note else ""
    if "." in where or where == "train":  # a run file
        line = f"{where}.{way.argument}={given if isinstance(given, str) else _short(given)}"
    else:
        line = way.python(_short(given))
    return f"{where}.{name}: the name here is {way.argument!r}{note}; write {line}"


def _wrong_values(schema: type[BaseModel], options: Mapping[str, Any], where: str) -> list[str]:
    """A line for each option of the wrong type or out of range."""
    try:
        schema.model_validate(dict(options))
    except ValidationError as error:
        found: dict[str, list[ErrorDetails]] = {}
        for one in error.errors(include_url=False):
            if one["type"] != "missing":
                found.setdefault(str(one["loc"][0]), []).append(one)
        return [_line(f"{where}.{name}", options[name], errors) for name, errors in found.items()]
    return []


def with_dataclasses(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a function, with each mapping that describes a dataclass replaced by this dataclass.

    Parameters
    ----------
    function : callable
        A function or a class.
    options : mapping
        Options that `check_call` accepted.

    Raises
    ------
    ConfigError
        As `check_call`, for the fields of a dataclass.
    """
    kinds = _dataclasses(function)
    return {
        name: kinds[name](**with_dataclasses(kinds[name], value))
        if name in kinds and isinstance(value, Mapping)
        else as_plain(value)
        for name, value in options.items()
    }


def with_floats(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a function, with whole numbers as floats where the signature wants a float.

    So ``lr=1`` and ``lr=1.0`` are the same in every file. Numbers of NumPy become numbers of Python.

    Parameters
    ----------
    function : callable
        A function or a class.
    options : mapping
        Options by name.

    Examples
    --------
    >>> def f(*, lr: float, epochs: int, clip: float | None = None) -> None: ...
    >>> with_floats(f, {"lr": 1, "epochs": 3, "clip": 2})
    {'lr': 1.0, 'epochs': 3, 'clip': 2.0}
    """
    wanted = _floats(function)
    plain = {name: as_plain(value) for name, value in options.items()}
    return {
        name: float(value) if name in wanted and type(value) is int else value
        for name, value in plain.items()
    }


def as_plain(value: Any) -> Any:
    """A number of NumPy as a number of Python; anything else as it is.

    Parameters
    ----------
    value : object
        The value of an option.
    """
    return value.item() if isinstance(value, np.generic) else value


def _line(path: str, value: Any, errors: Sequence[ErrorDetails]) -> str:
    for one in errors:  # a wrong leaf of a mapping is named itself
        if isinstance(value, Mapping) and len(one["loc"]) > 1 and one["loc"][1] in value:
            path, value = f"{path}.{one['loc'][1]}", value[one["loc"][1]]
            break
    said = (
        "a list"
        if one["type"] == "sequence_str"
        else one["msg"].removeprefix("Input should be ").removeprefix("a valid ")
        for one in errors
    )
    wanted = " or ".join(dict.fromkeys(said))
    choices = [one["ctx"]["expected"] for one in errors if one["type"] == "literal_error"]
    limits = [one.get("ctx", {}) for one in errors]
    most = next((limit[k] for limit in limits for k in ("lt", "le") if k in limit), None)
    starts = {"float": "float", "int": "int", "sequence": "several", "tuple": "several", "list": "several"}
    numbers = [kind for one in errors for start, kind in starts.items() if one["type"].startswith(start)]
    meant = _nearest(path, value, choices) or share_meant_by(value, most)
    meant = meant or (meant_by(path, value, numbers) if numbers else "")
    return f"{path}: found {value!r} ({type(value).__name__}); wanted {wanted}{meant}"


def _nearest(path: str, value: object, choices: Sequence[str]) -> str:
    """The end of a message about a value that is none of the choices, as pydantic writes them."""
    allowed = re.findall(r"'([^']*)'", " ".join(choices))
    for name in reversed(path.lower().split(".")):  # of "train.schedule.name", "schedule" says what it is
        meant = common_value(name, value, allowed)
        if meant:
            return " with ".join(filter(None, (f"; write {meant!r}", value_note(name, value))))
    near = did_you_mean(value, allowed) if isinstance(value, str) and allowed else ""
    return near if near.startswith("; did") else ""


def _called(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that takes the options: of a class its ``__init__``."""
    return cast(Any, function).__init__ if inspect.isclass(function) else function


@lru_cache(maxsize=64)
def _dataclasses(function: Callable[..., Any]) -> dict[str, type]:
    """The dataclass in the type of each argument that has one; ``Inputs`` and ``Inputs | None`` alike."""
    found = {}
    for name, hint in typing.get_type_hints(_called(function)).items():
        kinds = [
            kind
            for kind in (hint, *typing.get_args(hint))
            if isinstance(kind, type) and dataclasses.is_dataclass(kind)
        ]
        if len(kinds) == 1:
            found[name] = kinds[0]
    return found


@lru_cache(maxsize=64)
def _floats(function: Callable[..., Any]) -> set[str]:
    """Arguments that are a float, or a float or None."""
    found = set()
    for name, hint in typing.get_type_hints(_called(function)).items():
        union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        kinds = set(typing.get_args(hint)) if union else {hint}
        if float in kinds and kinds <= {float, type(None)}:
            found.add(name)
    return found


@lru_cache(maxsize=64)
def _schema(function: Callable[..., Any], leave_out: tuple[str, ...]) -> type[BaseModel]:
    called = _called(function)
    hints = typing.get_type_hints(called, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(called).parameters.items():
        if name == "self" or name in leave_out or parameter.kind in _VARIABLE:
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (hints.get(name, Any), default)
    config = ConfigDict(
        strict=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )
    return create_model(function.__name__, __config__=config, **fields)
