"""Options against the signature of what takes them: names, types and ranges are said there, once."""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from molequi.errors import ConfigError, did_you_mean


def check_call(
    function: Callable,
    options: Mapping[str, Any],
    *,
    where: str,
    leave_out: Sequence[str] = (),
    more: Sequence[str] = (),
) -> None:
    """Raises ConfigError if `options` are not keyword arguments of `function` of the right types and ranges.

    A mapping given for an argument whose type is a dataclass is checked against the fields of that dataclass.
    where: what messages put before the name of an option. leave_out: parameters that are not options, or are filled in
    later.
    more: names that others take, for the sake of a better guess at what was meant.
    """
    schema = _schema(function, tuple(leave_out))
    if not isinstance(options, Mapping):
        raise ConfigError(
            f"{where}: found {options!r} ({type(options).__name__}); wanted options, one of"
            f" {', '.join(schema.model_fields)}"
        )
    required = [name for name, f in schema.model_fields.items() if f.is_required()]
    lines = [
        f"{where}.{name}: missing; {function.__name__} needs it" for name in required if name not in options
    ]
    lines += [
        f"{where}.{name}: no such option of {function.__name__}{did_you_mean(str(name), [*schema.model_fields, *more])}"
        for name in options
        if name not in schema.model_fields
    ]
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
    try:
        schema.model_validate(
            {k: v for k, v in options.items() if k in schema.model_fields and k not in nested}
        )
    except ValidationError as error:
        told: dict[str, list] = {}
        for one in error.errors(include_url=False):
            if one["type"] != "missing":
                told.setdefault(str(one["loc"][0]), []).append(one)
        lines += [_line(f"{where}.{name}", options[name], errors) for name, errors in told.items()]
    if lines:
        raise ConfigError("\n".join(lines))


def with_dataclasses(function: Callable, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `function` with each mapping that describes a dataclass replaced by that dataclass.

    Raises ConfigError as `check_call` does; the options are checked before.
    """
    kinds = _dataclasses(function)
    return {
        name: kinds[name](**with_dataclasses(kinds[name], value))
        if name in kinds and isinstance(value, Mapping)
        else value
        for name, value in options.items()
    }


def _line(path: str, value: Any, errors: list[dict]) -> str:
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
    return f"{path}: found {value!r} ({type(value).__name__}); wanted {wanted}"


@lru_cache(maxsize=64)
def _dataclasses(function: Callable) -> dict[str, type]:
    """The dataclass that the type of an argument names, by argument; ``Inputs`` and ``Inputs | None`` alike."""
    called = function.__init__ if inspect.isclass(function) else function
    found = {}
    for name, hint in typing.get_type_hints(called).items():
        kinds = [
            kind
            for kind in (hint, *typing.get_args(hint))
            if isinstance(kind, type) and dataclasses.is_dataclass(kind)
        ]
        if len(kinds) == 1:
            found[name] = kinds[0]
    return found


@lru_cache(maxsize=64)
def _schema(function: Callable, leave_out: tuple[str, ...]) -> type[BaseModel]:
    called = function.__init__ if inspect.isclass(function) else function
    hints = typing.get_type_hints(called, include_extras=True)
    fields = {}
    for name, parameter in inspect.signature(called).parameters.items():
        if (
            name == "self"
            or name in leave_out
            or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ):
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
