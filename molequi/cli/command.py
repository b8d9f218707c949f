"""A command of the command line: its name, its arguments and what it does."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass


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
        Declares the arguments of a parser.
    run : callable
        Runs with the parsed arguments; returns the exit status, None for 0.
    """

    name: str
    text: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]
