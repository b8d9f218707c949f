"""Flags that are the keyword arguments of functions: ``--draws 64`` is ``draws=64``.

Names, types, defaults and descriptions are those of the function, so that nothing is said twice.
"""

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from molequi.errors import ConfigError


@dataclass(frozen=True)
class Flag:
    """A flag as ``--help`` shows it.

    Parameters
    ----------
    name : str
        Name of the argument, with underscores.
    default : object
        Its default.
    text : str
        What it means.
    """

    name: str
    default: object
    text: str = ""

    def __str__(self) -> str:
        head = f"  --{self.name.replace('_', '-')} {self.default!r}"
        text = textwrap.fill(self.text, 100, initial_indent=" " * 8, subsequent_indent=" " * 8)
        return f"{head}\n{text}" if text else head


def flags_of(function: Callable[..., Any], leave_out: Sequence[str] = ()) -> dict[str, Flag]:
    """The keyword arguments of a function or a dataclass as flags.

    Parameters
    ----------
    function : callable
        With a docstring in NumPy style.
    leave_out : sequence of str
        Parameters that are no flags.
    """
    texts = _descriptions(function)
    return {
        p.name: Flag(p.name, p.default, texts.get(p.name, ""))
        for p in inspect.signature(function).parameters.values()
        if p.name not in leave_out and p.default is not p.empty
    }


def _descriptions(function: Callable[..., Any]) -> dict[str, str]:
    """Text of each parameter in the section Parameters of a docstring in NumPy style."""
    sections = re.split(r"^(\w[\w ]*)\n-{3,}\n", inspect.getdoc(function) or "", flags=re.MULTILINE)
    text = dict(zip(sections[1::2], sections[2::2])).get("Parameters", "")
    found = {}
    for entry in re.split(r"\n(?=\S)", text):
        head, _, body = entry.partition("\n")
        for name in head.split(":")[0].split(","):
            found[name.strip(" *")] = " ".join(body.split()).replace("`", "")
    return found


def help_text(command: str, flags: Iterable[Flag], text: str = "") -> str:
    """What ``molequi COMMAND MODEL STRUCTURES --help`` prints.

    Parameters
    ----------
    command : str
        Name of the command.
    flags : iterable of Flag
        Its flags.
    text : str
        What it does.
    """
    lines = [f"molequi {command} MODEL STRUCTURES [--option value ...]"]
    return "\n".join([*lines, *([text] if text else []), "", "options and defaults:", *map(str, flags)])


def read_flags(words: Sequence[str], as_text: Sequence[str] = ()) -> dict[str, Any]:
    """``--draws 64 --checks a b --flag`` as ``{"draws": 64, "checks": ["a", "b"], "flag": True}``.

    Parameters
    ----------
    words : sequence of str
        Words of the command line. Values are read as in YAML.
    as_text : sequence of str
        Names whose values stay text: ``1:30`` is a number in YAML.

    Raises
    ------
    ConfigError
        For a value without a flag, a flag that is given twice, and values that YAML cannot read.
    """
    from molequi.config.schema import yaml_value

    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if name in found:
                raise ConfigError(f"--{name} is given twice")
            found[name] = [value] if equals else []
        elif not found:
            raise ConfigError(f"{word}: wanted --option value")
        else:
            found[next(reversed(found))].append(word)
    plain = {
        name: values if name in as_text else [yaml_value(value) for value in values]
        for name, values in found.items()
    }
    return {
        name: True if not values else values[0] if len(values) == 1 else values
        for name, values in plain.items()
    }


def with_lists(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options in which a single word stands for a list of one, where the function takes a sequence.

    Parameters
    ----------
    function : callable
        Its annotations say what is a sequence.
    options : mapping
        Options by name.
    """
    parameters = inspect.signature(function).parameters
    return {
        name: [value]
        if name in parameters
        and "Sequence" in str(parameters[name].annotation)
        and not isinstance(value, list)
        else value
        for name, value in options.items()
    }


def read_pairs(what: str, items: Sequence[str]) -> dict[str, str] | None:
    """``forces=REF_forces energy=E`` as a dictionary; None for no items.

    Parameters
    ----------
    what : str
        The flag, for messages.
    items : sequence of str
        The values of the flag.

    Raises
    ------
    ConfigError
        For an item without ``=``.
    """
    for item in items:
        if "=" not in item:
            raise ConfigError(f"{what} {item}: wanted name=value")
    return dict(item.split("=", 1) for item in items) or None


def wants_help(words: Sequence[str]) -> bool:
    """Whether the flags of a function are asked for."""
    return bool({"-h", "--help"} & set(words))
