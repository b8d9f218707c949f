"""Options of a function as tables: name, type or choices, default, unit and meaning.

All of it is read from the signature and the docstring, so that nothing is said twice.
"""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import annotated_types

from molequi.util.options import Options

# Units that may follow the word "in" in a description; longer ones first.
_UNITS = (
    *("eV/Å³", "eV/Å^3", "eV/Å", "meV/Å", "meV/atom", "eV", "meV", "1/fs", "fs", "ps", "K/ps", "K", "bar"),
    *("GPa", "Å³", "Å", "rad", "degrees", "minutes", "seconds", "epochs", "validations", "steps"),
)
_UNIT = re.compile(rf"\b[Ii]n ({'|'.join(map(re.escape, _UNITS))})(?![\w/])")
_SIGNS = {"Gt": ">", "Ge": ">=", "Lt": "<", "Le": "<="}
REQUIRED = "required"


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of a function.

    Parameters
    ----------
    name : str
        Its name.
    kind : str
        Its type, or its choices.
    default : object
        Its default; `REQUIRED` if there is none.
    unit : str
        The unit that the description names; empty for none.
    text : str
        What it means.
    hint : object
        Its annotation.
    """

    name: str
    kind: str
    default: Any
    unit: str = ""
    text: str = ""
    hint: Any = None

    @property
    def meaning(self) -> str:
        """The first sentence of the description; all of a short one that explains choices."""
        if len(self.choices) > 2 and len(self.text) < 160:
            return self.text.rstrip(".")
        sentence = re.split(r"[.] (?=[A-Z\"])", self.text, maxsplit=1)[0].rstrip(".")
        clause = sentence.partition("; ")[0]
        return clause if clause.count("(") == clause.count(")") else sentence

    @property
    def shown_default(self) -> str:
        """The default as a user types it."""
        return shown(self.default)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that it takes, if these are texts or a truth value."""
        found = [value for part in parts_of(self.hint) for value in literals(part)]
        if bool in parts_of(self.hint):
            found += ["true", "false"]
        return tuple(str(value) for value in found)

    def row(self, prefix: str = "") -> list[str]:
        """Cells of a table: name, type, default, unit, meaning.

        Parameters
        ----------
        prefix : str
            Text before the name.
        """
        return [prefix + self.name, self.kind, self.shown_default, self.unit, self.meaning]


def options_of(
    function: Callable[..., Any],
    leave_out: Collection[str] = (),
    like: Sequence[Callable[..., Any]] = (),
) -> dict[str, Option]:
    """The options of a function or a class, by name.

    Parameters
    ----------
    function : callable
        With a docstring in NumPy style.
    leave_out : collection of str
        Parameters that are no options.
    like : sequence of callable
        Functions that describe the parameters of which the docstring only says "As in …".

    Examples
    --------
    >>> def wait(*, time: float = 2.0) -> None:
    ...     '''Wait.
    ...
    ...     Parameters
    ...     ----------
    ...     time : float, > 0
    ...         How long, in ps. Zero is allowed.
    ...     '''
    >>> options_of(wait)["time"].row()
    ['time', 'float', '2.0', 'ps', 'How long, in ps']
    """
    texts = descriptions(function)
    for other in like:
        for name, found in descriptions(other).items():
            if texts.get(name, ("", ""))[1].startswith("As in "):
                texts[name] = found
    called = function.__init__ if inspect.isclass(function) else function
    hints = typing.get_type_hints(called, include_extras=True)
    out = {}
    for p in inspect.signature(function).parameters.values():
        if p.name in leave_out or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        said, text = texts.get(p.name, ("", ""))
        hint = hints.get(p.name, Any)
        default = REQUIRED if p.default is p.empty else p.default
        unit = _UNIT.search(text)
        out[p.name] = Option(
            p.name, kind_of(hint, said, p.default), default, unit[1] if unit else "", text, hint
        )
    return out


def descriptions(function: Callable[..., Any]) -> dict[str, tuple[str, str]]:
    """Type and text of each parameter in the section Parameters of a docstring in NumPy style.

    Parameters
    ----------
    function : callable
        A function or a class.
    """
    sections = re.split(r"^(\w[\w ]*)\n-{3,}\n", inspect.getdoc(function) or "", flags=re.MULTILINE)
    text = dict(zip(sections[1::2], sections[2::2])).get("Parameters", "")
    found = {}
    for entry in re.split(r"\n(?=\S)", text):
        head, _, body = entry.partition("\n")
        names, _, said = head.partition(" : ")
        for name in names.split(","):
            found[name.strip(" *")] = (said.strip(), " ".join(body.split()).replace("`", ""))
    return found


def shown(value: object) -> str:
    """A value as a user types it on the command line or in YAML.

    Parameters
    ----------
    value : object
        A default.

    Examples
    --------
    >>> shown(None), shown(True), shown((64, 64)), shown(0.01)
    ('', 'true', '64 64', '0.01')
    """
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return " ".join(map(shown, value))
    if isinstance(value, Options):
        return shown(getattr(value, value.shorthand)) if value.shorthand else ""
    if dataclasses.is_dataclass(value) or isinstance(value, Mapping):
        return ""
    return str(value)


def parts_of(hint: Any) -> list[Any]:
    """The alternatives of an annotation, without None and without `Annotated`.

    Parameters
    ----------
    hint : object
        An annotation.
    """
    if typing.get_origin(hint) is typing.Annotated:
        return parts_of(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [part for one in typing.get_args(hint) for part in parts_of(one)]
    return [] if hint is type(None) else [hint]


def literals(hint: Any) -> tuple[Any, ...]:
    """The values of a Literal, nothing for another annotation.

    Parameters
    ----------
    hint : object
        An annotation.
    """
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


def kind_of(hint: Any, said: str = "", default: object = None) -> str:
    """Type or choices in words.

    Parameters
    ----------
    hint : object
        The annotation.
    said : str
        The type as the docstring says it, for annotations that say nothing to a user.
    default : object
        The default; None is among the choices only if it is another one.

    Examples
    --------
    >>> kind_of(typing.Literal["mse", "mae"] | None), kind_of(float | None), kind_of(Sequence[str])
    ('mse | mae', 'float', 'text ...')
    >>> kind_of(str, '{"auto", "cpu"}, optional')
    'auto | cpu'
    """
    braces = re.match(r"\{([^{}]*)\}", said)
    if braces and not any(map(literals, parts_of(hint))):
        return " | ".join(word.strip(" \"'") for word in braces[1].split(","))
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    words = list(dict.fromkeys(word for one in options if (word := _word(one)) is not None))
    if type(None) in options and any(map(literals, parts_of(hint))) and default is not None:
        words.append("none")
    if "path" in words and "text" in words:
        words.remove("text")
    if "?" in words:
        plain = said.removesuffix(", optional").replace("`", "")
        return plain if plain and len(plain) < 40 else " | ".join(w for w in words if w != "?") or "object"
    return " | ".join(words)


def _word(hint: Any) -> str | None:
    """One alternative of an annotation in words; None for None, ``?`` for what has no word."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return None
    if origin is typing.Annotated:
        limits = [
            f"{sign} {getattr(limit, name.lower()):g}"
            for limit in arguments[1:]
            for name, sign in _SIGNS.items()
            if isinstance(limit, getattr(annotated_types, name))
        ]
        return f"{kind_of(arguments[0])} {', '.join(limits)}".strip()
    if origin is typing.Literal:
        return " | ".join(map(shown, arguments))
    plain = {str: "text", int: "int", float: "float", bool: "true | false", Path: "path"}
    if hint in plain:
        return plain[hint]
    if "PathLike" in str(hint):
        return "path"
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint.__name__
    if isinstance(origin, type) and issubclass(origin, Mapping):
        inner = kind_of(arguments[1]) if len(arguments) == 2 else "text"
        return None if arguments[1:] == (Any,) else f"name={inner} ..."
    if isinstance(origin, type) and issubclass(origin, Sequence):
        inner = kind_of(arguments[0])
        return f"({inner}) ..." if " | " in inner else f"{inner} ..."
    return "name=text ..." if hint is Mapping else "?"
