"""Flags that are the keyword arguments of functions: ``--draws 64`` is ``draws=64``.

Names, types, defaults and descriptions are those of the function, so that nothing is said twice.
"""

import argparse
import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from molequi.cli.parser import Parser
from molequi.errors import ConfigError
from molequi.util.describe import REQUIRED, Option, literals, options_of, parts_of

_NONE = ("none", "null")


def flags_of(
    function: Callable[..., Any],
    leave_out: Sequence[str] = (),
    like: Sequence[Callable[..., Any]] = (),
) -> dict[str, Option]:
    """The keyword arguments of a function or a dataclass as flags.

    Parameters
    ----------
    function : callable
        With a docstring in NumPy style.
    leave_out : sequence of str
        Parameters that are no flags.
    like : sequence of callable
        Functions that describe the parameters of which the docstring only says "As in …".
    """
    found = options_of(function, leave_out, like)
    return {name: option for name, option in found.items() if option.default is not REQUIRED}


def add_flags(parser: argparse.ArgumentParser, flags: Mapping[str, Option], title: str = "options") -> None:
    """Declare flags, which `given_flags` reads. Those that the parser has already are only listed again.

    Parameters
    ----------
    parser : ArgumentParser
        The parser of a command.
    flags : mapping of str to Option
        The flags by name.
    title : str
        What the help puts above them.
    """
    assert isinstance(parser, Parser)
    for name, flag in flags.items():
        if name not in parser.flags:
            several = _is_list(flag) or _is_mapping(flag)
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                dest=name,
                nargs="?" if bool in parts_of(flag.hint) else "+" if several else None,
                default=argparse.SUPPRESS,
                help=flag.meaning.replace("%", "%%"),
            )
    parser.tables.append((title, dict(flags)))


def given_flags(given: argparse.Namespace, flags: Mapping[str, Option]) -> dict[str, Any]:
    """The values of the flags that were given, read as their types say.

    Texts stay as they are. Everything else is read as in YAML. Lists and mappings are several words, ``a b``
    and ``forces=REF_forces energy=E``, or YAML.

    Parameters
    ----------
    given : Namespace
        What the parser found.
    flags : mapping of str to Option
        The flags by name.

    Raises
    ------
    ConfigError
        For values that YAML cannot read, and for a word of a mapping without ``=``.
    """
    return {name: _value(name, flag, vars(given)[name]) for name, flag in flags.items() if name in given}


def check_flags(
    command: str, function: Callable[..., Any], options: Mapping[str, Any], leave_out: Sequence[str] = ()
) -> None:
    """Check the values of flags against the function that takes them.

    Parameters
    ----------
    command : str
        Name of the command, for messages.
    function : callable
        The function.
    options : mapping
        Values by name.
    leave_out : sequence of str
        Its parameters that are no flags; those without a default never are.

    Raises
    ------
    ConfigError
        With a line for each mistake.
    """
    from molequi.util.signature import check_call

    parameters = inspect.signature(function).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty]
    check_call(function, options, where=command, leave_out=(*leave_out, *needed))


def read_pairs(what: str, items: Sequence[str]) -> dict[str, str]:
    """``forces=REF_forces energy=E`` as a dictionary.

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
            raise ConfigError(f"{what} {item}: wanted name=value, such as {what} forces=REF_forces")
    return dict(item.split("=", 1) for item in items)


def _is_list(flag: Option) -> bool:
    kinds = parts_of(flag.hint)
    return bool(kinds) and all(_origin(kind, Sequence) and not _origin(kind, Mapping) for kind in kinds)


def _is_mapping(flag: Option) -> bool:
    kinds = parts_of(flag.hint)
    return bool(kinds) and all(_origin(kind, Mapping) or is_dataclass(kind) for kind in kinds)


def _origin(hint: Any, base: type) -> bool:
    found = typing.get_origin(hint) or hint
    return isinstance(found, type) and issubclass(found, base) and found is not str


def _is_text(flag: Option) -> bool:
    """Whether all values of a flag are texts."""
    return all(
        kind in (str, Path)
        or "PathLike" in str(kind)
        or (literals(kind) and all(isinstance(value, str) for value in literals(kind)))
        for kind in parts_of(flag.hint)
    )


def _check_decimal(name: str, word: str, time: bool) -> None:
    """Raise ConfigError for a number that YAML reads otherwise than people: 0x10, 010 and 1:30."""
    from molequi.config.plain import yaml_value

    if re.fullmatch(r"[-+]?0[xXbBoO]?[0-9a-fA-F_]+" + r"|[-+]?\d+(?::[\d.]+)+" * time, word):
        number = yaml_value(word)
        if isinstance(number, (int, float)) and word.lstrip("+-0") != str(number).lstrip("-"):
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} {word}: wanted a decimal number; write {flag} {number}")


def _value(name: str, flag: Option, words: str | list[str]) -> Any:
    """The value of a flag."""
    from molequi.config.plain import yaml_value

    if "text" not in flag.kind and not _is_text(flag):
        for word in [words] if isinstance(words, str) else words:
            _check_decimal(name, word, time=slice not in parts_of(flag.hint))
    if isinstance(words, list):
        if len(words) == 1 and words[0][:1] in ("{", "["):
            return yaml_value(words[0])
        if _is_mapping(flag):
            pairs = read_pairs(f"--{name.replace('_', '-')}", words)
            texts = all(kind is Mapping or "str, str" in str(kind) for kind in parts_of(flag.hint))
            return pairs if texts else {key: yaml_value(value) for key, value in pairs.items()}
        texts = "text" in flag.kind
        return [word if texts else yaml_value(word) for word in words]
    optional = type(None) in typing.get_args(flag.hint)
    if words.lower() in _NONE and optional:
        return None
    if slice in parts_of(flag.hint):  # 1:30 is a number in YAML
        return int(words) if re.fullmatch(r"-?\d+", words) else words
    return words if _is_text(flag) else yaml_value(words)
