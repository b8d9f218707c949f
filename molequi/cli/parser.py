"""The parser of one command: mistakes are one line that names the right word, help is a table."""

import argparse
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from molequi.cli.advice import EXAMPLES, advice
from molequi.errors import ConfigError, did_you_mean
from molequi.util.common_names import common_way
from molequi.util.describe import Option
from molequi.util.tables import text_table

_TRUTH = ("true", "false", "yes", "no", "on", "off")
_HEAD = ("option", "type or choices", "default", "unit", "meaning")
_HELP = ("-h", "--help")
# Widths of columns: type, default, the least for the meaning (it has what is left), the least for types.
_TYPE, _DEFAULT, _LEAST, _NARROW = 30, 24, 30, 14


class Parser(argparse.ArgumentParser):
    """A parser that raises ConfigError with one line.

    Flags come from signatures, see `molequi.cli.flags.add_flags`, or from ``add_argument``.

    Attributes
    ----------
    tables : list of (str, dict)
        Title and flags of each table of the help.
    forms : tuple of str
        How the command is typed, if there is more than one way.
    renamed : dict of str to str
        What to write now in place of a flag of an earlier version, by its name without dashes.
    advice : callable
        What to type in place of a flag that the command does not have, from its name and value; an empty
        string for no advice.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"add_help": False, "allow_abbrev": False, **options})
        self.tables: list[tuple[str, dict[str, Option]]] = []
        self.forms: tuple[str, ...] = ()
        self.renamed: dict[str, str] = {}
        self.advice: Callable[[str, str], str] = lambda name, value: ""

    @property
    def flags(self) -> dict[str, Option]:
        """All flags that come from signatures."""
        return {name: flag for _, flags in self.tables for name, flag in flags.items()}

    @property
    def positionals(self) -> list[argparse.Action]:
        """The arguments without a name."""
        return [action for action in self._actions if not action.option_strings]

    def read(self, words: Sequence[str]) -> argparse.Namespace | None:
        """The arguments of a command line; None if help was asked for, which is printed.

        Parameters
        ----------
        words : sequence of str
            Words after the name of the command.

        Raises
        ------
        ConfigError
            For what the command does not take, and for what it lacks.
        """
        if {*_HELP} & {*words}:
            print(self.format_help(), end="")
            return None
        words = self._normal(words)
        unknown = [word for word in words if word.startswith("--") and not self._known(word)]
        if unknown:
            raise ConfigError("\n".join(self._unknown(word, words) for word in dict.fromkeys(unknown)))
        given, more = self.parse_known_intermixed_args(words)
        if more:
            raise ConfigError(f"{self._name}: {' '.join(more)} is too much; wanted {self.line}")
        return given

    @property
    def _name(self) -> str:
        return self.prog.rpartition(" ")[2]

    @property
    def line(self) -> str:
        """How the command is typed."""
        if self.forms:
            return " or ".join(self.forms)
        words = []
        for action in self.positionals:
            word = _metavar(action)
            many = action.nargs in ("*", "+")
            word += f" [{word} ...]" if action.nargs == "+" else " ..." if many else ""
            words.append(f"[{word}]" if action.nargs in ("?", "*") else word)
        options = ["[--option value ...]"] if any(a.option_strings for a in self._actions) else []
        return " ".join([self.prog, *words, *options])

    @property
    def _first_form(self) -> str:
        return self.forms[0] if self.forms else self.line

    def error(self, message: str) -> Any:
        """Raise ConfigError with one line.

        Parameters
        ----------
        message : str
            What argparse found.
        """
        value = re.match(r"argument (--[\w-]+): expected .*", message)
        if value:
            flag = self.flags.get(value[1][2:].replace("-", "_"))
            kind = f": {flag.kind}" if flag else ""
            raise ConfigError(f"{value[1]}: a value is missing{kind}")
        missing = re.match(r"the following arguments are required: (.*)", message)
        if missing:
            names = {action.dest: _metavar(action) for action in self.positionals}
            found = ", ".join(names.get(word, word) for word in missing[1].split(", "))
            be = "are" if ", " in found else "is"
            example = f"; for example\n  {EXAMPLES[self._name]}" if self._name in EXAMPLES else ""
            raise ConfigError(f"{self._name}: {found} {be} missing; wanted {self.line}{example}")
        raise ConfigError(f"{self._name}: {message}; {self.prog} --help lists what there is")

    def format_help(self) -> str:
        """What the command does, how it is typed, and a table of its options."""
        forms = "\n       ".join(self.forms or [self.line])
        parts = [f"usage: {forms}", textwrap.fill(self.description or "", _width())]
        positional = [(_metavar(action), action.help or "") for action in self.positionals]
        if positional:
            parts.append(_pairs("arguments", positional))
        listed = {name for _, flags in self.tables for name in flags}
        own = [
            a
            for a in self._actions
            if a.option_strings and a.dest not in listed and a.help != argparse.SUPPRESS
        ]
        if own:
            parts.append(_table("options", [_row(action) for action in own]))
        for title, flags in self.tables:
            rows = [[f"--{n.replace('_', '-')}", *flag.row()[1:]] for n, flag in flags.items()]
            parts.append(_table(title, rows))
        if any(self._is_switch(action) for action in self._actions):
            parts.append("A truth value: --NAME is true, --no-NAME is false.")
        return "\n\n".join(parts) + "\n"

    def _is_switch(self, action: argparse.Action) -> bool:
        """Whether a flag is a truth value that may stand alone."""
        return action.nargs == "?" and action.dest in self.flags

    def _known(self, word: str) -> bool:
        return word.partition("=")[0] in self._option_string_actions

    def _normal(self, words: Sequence[str]) -> list[str]:
        """Words with the names of flags as they are declared, and with values joined that look like flags."""
        out: list[str] = []
        names: set[str] = set()
        queue = list(words)
        while queue:
            word = queue.pop(0)
            if not word.startswith("--") or len(word) == 2:
                out.append(word)
                continue
            name, equals, value = word.partition("=")
            name = name.replace("_", "-")
            negated = self._option_string_actions.get(f"--{name[5:]}") if name.startswith("--no-") else None
            if negated is not None and self._is_switch(negated) and not equals:
                name, equals, value = f"--{name[5:]}", "=", "false"
            action = self._option_string_actions.get(name)
            collects = action is not None and isinstance(action.default, list) and action.nargs is None
            if action is not None and name in names and not collects:
                raise ConfigError(f"{name} is given twice")
            names.add(name)
            if action is not None and not equals:
                if self._is_switch(action):
                    follows = bool(queue) and queue[0].lower() in _TRUTH
                    equals, value = "=", queue.pop(0) if follows else "true"
                elif queue and re.match(r"-[^-]", queue[0]) and action.nargs is None:
                    equals, value = "=", queue.pop(0)  # a negative number
            out.append(f"{name}{equals}{value}")
        return out

    def _unknown(self, word: str, words: Sequence[str]) -> str:
        """The line about a flag that the command does not have."""
        flag, equals, value = word.partition("=")
        if not equals:
            after = words[words.index(word) + 1 :]
            value = after[0] if after and not after[0].startswith("--") else ""
        name = flag[2:].replace("-", "_")
        said = f"{flag}: {self.prog} has no such option"
        if name in self.renamed:
            return f"{said}; it is now {self.renamed[name]}"
        places = {action.dest: _metavar(action) for action in self.positionals}
        if name in places:
            return f"{said}; {places[name]} stands without a name: {self._first_form}"
        known = [text[2:].replace("-", "_") for text in self._option_string_actions]
        way = common_way(name, known, flags=True) if not advice(self._name, name) else None
        if way is not None:
            note = f" ({way.note})" if way.note else ""
            shown = way.given(float(value) if _is_number(value) and way.factor != 1 else value)
            right = way.flag(known)
            if right == way.head != way.argument:  # an entry of a mapping
                shown = f"{way.last}={shown}"
            return f"{said}; write --{right.replace('_', '-')} {shown}".rstrip() + note
        place = common_way(name, [*places])
        if place is not None:
            return f"{said}; {places[place.argument]} stands without a name: {self._first_form}"
        known_way = advice(self._name, name) or self.advice(name, value)
        if known_way:
            return f"{said}; {known_way}"
        near = re.match(r"; did you mean '(.*)'", did_you_mean(name, known))
        if near:
            return f"{said}; did you mean '--{near[1].replace('_', '-')}'?"
        return f"{said}; {self.prog} --help lists them"


def _is_number(word: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", word) is not None


def _metavar(action: argparse.Action) -> str:
    found = action.metavar if isinstance(action.metavar, str) else action.dest
    return found.upper()


def _row(action: argparse.Action) -> list[str]:
    """The row of a flag that comes from no signature."""
    choices = " | ".join(map(str, action.choices)) if action.choices else ""
    name = action.type.__name__ if isinstance(action.type, type) else "text"
    kind = choices or ("true | false" if action.nargs == 0 else {"str": "text"}.get(name, name))
    default = "" if action.default in (None, False, argparse.SUPPRESS, []) else str(action.default)
    many = " ..." if action.nargs in ("+", "*") else ""
    return [action.option_strings[0], kind + many, default, "", action.help or ""]


def _pairs(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """Names and what they mean."""
    lines = text_table(("", ""), rows, left=(0, 1))[1:]
    return "\n".join([f"{title}:", *(f"  {line}" for line in lines)])


def _table(title: str, rows: Sequence[Sequence[str]]) -> str:
    """A table of options below a title."""
    name, unit = (max(len(row[k]) for row in [_HEAD, *rows]) for k in (0, 3))
    lines = table_of_cells(_HEAD, rows, (name, _TYPE, _DEFAULT, unit, 200)).splitlines()
    return "\n".join([f"{title}:", *(f"  {line}" for line in lines)])


def table_of_cells(head: Sequence[str], rows: Sequence[Sequence[str]], most: Sequence[int]) -> str:
    """A table whose wide cells are continued on the next line.

    Parameters
    ----------
    head : sequence of str
        Names of the columns.
    rows : sequence of sequences of str
        Cells.
    most : sequence of int
        The largest width of each column; the last one takes what is left of the line.
    """
    widths = [min(max(len(row[k]) for row in [head, *rows]), most[k]) for k in range(len(head))]
    left = _width() - sum(widths[:-1]) - 2 * len(widths)
    wanted = min(max(len(row[-1]) for row in [head, *rows]), _LEAST)
    if left < wanted:  # on a narrow terminal the second column gives way
        widths[1] = max(widths[1] - (wanted - left), _NARROW)
    widths[-1] = max(_width() - sum(widths[:-1]) - 2 * len(widths), wanted)
    lines = []
    for row in rows:
        cells = [textwrap.wrap(cell, w, break_long_words=False) or [""] for cell, w in zip(row, widths)]
        for k in range(max(map(len, cells))):
            lines.append([cell[k] if k < len(cell) else "" for cell in cells])
    return "\n".join(text_table(head, lines, left=range(len(head))))


def _width() -> int:
    """Characters of a line of the terminal."""
    return min(max(shutil.get_terminal_size((110, 24)).columns, 80), 140)


def table_of_options(title: str, options: Mapping[str, Option], prefix: str = "") -> str:
    """A table of options: name, type or choices, default, unit, meaning.

    Parameters
    ----------
    title : str
        What stands above it.
    options : mapping of str to Option
        The options by name.
    prefix : str
        Text before each name.
    """
    return _table(title, [option.row(prefix) for option in options.values()])
