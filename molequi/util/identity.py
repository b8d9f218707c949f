"""Describe a user's function or object by plain values, so that a continued training can compare them."""

import functools
from collections.abc import Callable, Mapping
from typing import Any


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that are numbers, text, truth values or None, or lists and mappings of these; no others.

    Parameters
    ----------
    values : mapping
        Values by name.

    Examples
    --------
    >>> plain_values({"weight": 0.1, "sizes": (1, 2), "model": object()})
    {'weight': 0.1, 'sizes': [1, 2]}
    """
    found = {str(name): _plain(value) for name, value in values.items()}
    return {name: value for name, value in found.items() if value is not _OTHER}


_OTHER = object()


def _plain(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return _OTHER if any(item is _OTHER for item in items) else items
    if isinstance(value, Mapping):
        return plain_values(value)
    return _OTHER


def described(function: Callable[..., Any]) -> str:
    """Name of a function with the plain values that it was given before: by ``partial``, or as a closure.

    Parameters
    ----------
    function : callable
        A function, or an object that can be called.

    Examples
    --------
    >>> def penalty(predictions, graph, factor): ...
    >>> described(functools.partial(penalty, factor=2)).split(".")[-1]
    'penalty(factor=2)'
    """
    if isinstance(function, functools.partial):
        given = {str(k): v for k, v in enumerate(function.args)} | function.keywords
        return described(function.func) + _listed(given)
    cells = getattr(function, "__closure__", None)
    if cells is not None:
        names = function.__code__.co_freevars
        return _name(function) + _listed({n: c.cell_contents for n, c in zip(names, cells) if _filled(c)})
    if not hasattr(function, "__qualname__"):
        return _name(type(function)) + _listed(vars(function) if hasattr(function, "__dict__") else {})
    return _name(function)


def _name(function: Any) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _listed(values: Mapping[str, Any]) -> str:
    plain = plain_values(values)
    return "(" + ", ".join(f"{k}={v!r}" for k, v in plain.items()) + ")" if plain else ""


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None or True
    except ValueError:  # a variable that has no value yet
        return False
