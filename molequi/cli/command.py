"""A command of the command line: its name, its arguments and what it does."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from molequi.cli.parser import Parser


@dataclass(frozen=True)
class Command:
    """A command of ``molequi``.

    Parameters
    ----------
    name : str
        Its name: ``molequi NAME``.
    text : str
        What it does, for ``--help``.
    add_arguments : callable
        Declares the arguments of a `Parser`: those without a name by ``add_argument``, options by
        `molequi.cli.flags.add_flags`.
    run : callable
        Runs with the parsed arguments; returns the exit status, None for 0.
    """

    name: str
    text: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]


def parser_of(command: Command) -> Parser:
    """The parser of a command.

    Parameters
    ----------
    command : Command
        The command.
    """
    parser = Parser(prog=f"molequi {command.name}", description=command.text)
    command.add_arguments(parser)
    return parser
