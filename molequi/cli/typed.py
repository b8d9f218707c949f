"""Messages of the library as one types their advice: on the command line, or in the YAML file of a run.

The library says ``units={'energy': 'kcal/mol'}``, as in Python. All that a command prints about errors,
warnings and findings passes `as_typed`.
"""

import ast
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

# Options of readers, which stand below the reader in a YAML file, and groups of options of a training.
OF_READERS = ("units", "keys", "allow", "partial", "quantities", "skip", "column")
_OF_TRAINING = ("normalization", "seed", "batch_size", "validation", "compute", "optimizer", "logging")
_START = re.compile(r"(?<![\w.'\"-])(\w+)=(?=[{\[]|(?:True|False)\b)")
_BARE = re.compile(r"(?<!['\w.])(?:…|\.\.\.)(?!['\w.])")


@dataclass(frozen=True)
class Typing:
    """How a command takes options.

    Parameters
    ----------
    command : str
        Its name.
    flags : collection of str
        Its options on the command line.
    settings : bool
        Whether it takes settings of a run, ``train.lr=1e-3``.
    yaml : bool
        Whether options of readers stand in a YAML file.
    """

    command: str
    flags: Collection[str] = field(default_factory=tuple)
    settings: bool = False
    yaml: bool = False


def as_typed(message: str, how: Typing) -> str:
    """A message about options with the words that one types.

    Parameters
    ----------
    message : str
        With advice such as ``units={'energy': 'kcal/mol'}``, ``restart=True``, ``ensemble='npt'``, or
        ``md.max_force`` of the command ``md``.
    how : Typing
        The command. Options that it does not have stay as they are.

    Examples
    --------
    >>> lint = Typing("lint", ["units", "allow", "keys", "overwrite"])
    >>> as_typed("say units={'energy': 'kcal/mol'}, or allow=['close-atoms']", lint)
    'say --units energy=kcal/mol, or --allow close-atoms'
    >>> as_typed("read it with keys={'stress': {'key': …, 'sign': -1}}", lint)
    "read it with --keys '{stress: {key: NAME, sign: -1}}'"
    >>> as_typed("say allow=['close-atoms']", Typing("train", yaml=True))
    'say allow: [close-atoms] below the reader'
    >>> as_typed("write device='cpu', data=<file>", Typing("md", ["device", "data"]))
    'write --device cpu, --data FILE'
    """
    found, place = [], 0
    for start in _START.finditer(message):
        if start.start() < place or _in_call(message[: start.start()]):
            continue
        end = _end(message, start.end())
        text = message[start.end() : end]
        typed = _typed(start[1], text, how)
        if typed is not None:
            found += [message[place : start.start()], typed]
            place = end
    message = "".join([*found, message[place:]])
    # "restart=True (--restart)" says both already.
    message = re.sub(r"(--[\w-]+) \(\1\)", r"\1", message)
    return _flags(message, how)


def _flags(message: str, how: Typing) -> str:
    """Names and texts of options as flags: ``md.max_force``, ``ensemble='npt'``, ``data=<file>``."""

    def flag(found: re.Match[str]) -> str:
        return f"--{found[1].replace('_', '-')}" if found[1] in how.flags else found[0]

    def value(found: re.Match[str]) -> str:
        return f"{flag(found)} {found[2]}" if found[1] in how.flags else found[0]

    message = re.sub(rf"(?<![\w/.-]){how.command}\.(\w+)", flag, message)
    message = re.sub(
        r"\b(\w+)=<\w+>", lambda found: f"{flag(found)} FILE" if found[1] in how.flags else found[0], message
    )
    return re.sub(r"\b(\w+)='([\w:.-]*)'", value, message)


def _in_call(before: str) -> bool:
    """Whether a text ends within the parentheses of a call, as in ``inputs=Inputs(``."""
    depth = 0
    for k in range(len(before) - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(before[k], 0)
        if depth < 0:
            return k > 0 and (before[k - 1].isalnum() or before[k - 1] == "_")
    return False


def _end(message: str, start: int) -> int:
    """Where a value ends that begins at a place."""
    if message[start] not in "{[":
        return start + len(re.match(r"\w+", message[start:])[0])  # type: ignore[index]  # True or False
    depth = 0
    for k in range(start, len(message)):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(message[k], 0)
        if depth == 0:
            return k + 1
    return len(message)


def _typed(name: str, text: str, how: Typing) -> str | None:
    """What one types for a value; None if the message has something else, or the command no such option."""
    word = "UNIT" if name == "units" else "NAME"
    text = re.sub(r"^\{(?:…|\.\.\.)\}$", "{'QUANTITY': …}", text)
    text = re.sub(r"\{(?:…|\.\.\.), ", "{'key': …, ", text)
    try:
        value = ast.literal_eval(_BARE.sub(repr(word), text))
    except (ValueError, SyntaxError):
        return None
    if name in how.flags:
        return _flag(name, value)
    if how.yaml and name in OF_READERS:
        return f"{name}: {_flow(value)} below the reader"
    if how.settings and name in _OF_TRAINING:
        inner = list(value.items()) if isinstance(value, dict) else []
        if len(inner) == 1:
            return f"train.{name}.{inner[0][0]}={_flow(inner[0][1])}"
        return f"train.{name}={_flow(value).replace(' ', '')}"
    return None


def _flag(name: str, value: Any) -> str:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return flag if value else f"--no-{flag[2:]}"
    if isinstance(value, dict) and all(isinstance(one, str) for one in value.values()):
        return f"{flag} {' '.join(f'{key}={one}' for key, one in value.items())}"
    if isinstance(value, list):
        return f"{flag} {' '.join(map(str, value))}"
    return f"{flag} '{_flow(value)}'"


def _flow(value: Any) -> str:
    """A value in YAML, in one line."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_flow(one)}' for key, one in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, str) and re.search(r"[:#{}\[\],&*?|<>=!%@`']", value):
        return f'"{value}"'
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
