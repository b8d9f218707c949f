"""Inequalities between sizes as plain lists, for files. Reading them evaluates no text."""

from collections.abc import Mapping
from typing import Any, cast

import sympy
from torch.utils._sympy import functions

_KNOWN = (
    sympy.Add,
    sympy.Mul,
    sympy.Pow,
    sympy.Rational,
    sympy.Eq,
    sympy.Ne,
    sympy.Lt,
    sympy.Le,
    sympy.Gt,
    sympy.Ge,
    sympy.And,
    sympy.Or,
    sympy.Not,
    functions.CleanDiv,
    functions.FloorDiv,
    functions.Max,
    functions.Min,
    functions.Mod,
    functions.ModularIndexing,
    functions.PythonMod,
)
_BY_NAME = {kind.__name__: kind for kind in _KNOWN}


def to_list(expression: sympy.Basic, names: Mapping[sympy.Expr, str]) -> Any:
    """An expression as nested lists ``[name, argument, …]``, numbers and names of symbols.

    Parameters
    ----------
    expression : sympy.Basic
        The expression.
    names : mapping of sympy.Symbol to str
        Names of its symbols.

    Returns
    -------
    list, int, bool or str
        It can be written as JSON.

    Raises
    ------
    ValueError
        If it has a symbol without a name or an operation that is not known here.

    Examples
    --------
    >>> import sympy
    >>> n = sympy.Symbol("s0", integer=True)
    >>> to_list(3 * n < 20, {n: "nodes"})
    ['StrictLessThan', ['Mul', 3, 'nodes'], 20]
    """
    if expression in names:
        return names[cast(sympy.Expr, expression)]
    if isinstance(expression, sympy.Integer):
        return int(expression)
    if isinstance(expression, sympy.Rational):
        return ["Rational", int(expression.p), int(expression.q)]
    if expression in (sympy.true, sympy.false):
        return expression == sympy.true
    name = type(expression).__name__
    if _BY_NAME.get(name) is not type(expression):
        raise ValueError(f"{expression}: {name} is not known")
    return [name, *(to_list(part, names) for part in expression.args)]


def from_list(given: Any, symbols: Mapping[str, sympy.Expr]) -> sympy.Basic:
    """The expression of which `to_list` made this.

    Parameters
    ----------
    given : list, int, bool or str
        What `to_list` returned.
    symbols : mapping of str to sympy.Symbol
        The symbols by name.

    Raises
    ------
    ValueError
        If it is no such list.

    Examples
    --------
    >>> import sympy
    >>> from_list(["StrictLessThan", ["Mul", 3, "nodes"], 20], {"nodes": sympy.Symbol("n")})
    3*n < 20
    """
    if isinstance(given, bool):
        return sympy.true if given else sympy.false
    if isinstance(given, int):
        return sympy.Integer(given)
    if isinstance(given, str) and given in symbols:
        return symbols[given]
    if isinstance(given, list) and given and isinstance(given[0], str) and given[0] in _BY_NAME:
        return cast(sympy.Basic, _BY_NAME[given[0]](*(from_list(part, symbols) for part in given[1:])))
    raise ValueError(f"{given!r} is no expression")
