"""The program ``molequi``: all commands, and one message and exit status for every end."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from molequi.cli import analyze, audit, inference, info, simulate, train
from molequi.errors import ConfigError, MolequiError

COMMANDS = (
    *train.COMMANDS,
    *inference.COMMANDS,
    *info.COMMANDS,
    *simulate.COMMANDS,
    *analyze.COMMANDS,
    *audit.COMMANDS,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Words of the command line; by default those of the process.

    Returns
    -------
    int
        Exit status: 0, 1 for an audit that fails, 2 for an error (one message), 130 after Ctrl-C.
    """
    given = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            _check_order(given)
            return given.run(given) or 0
        except (MolequiError, OSError) as error:
            print(f"molequi: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("molequi: interrupted", file=sys.stderr)
            return 130


def _parser() -> argparse.ArgumentParser:
    from molequi import __version__

    parser = argparse.ArgumentParser(
        prog="molequi",
        description="E(n)-equivariant graph networks for molecules, whose symmetry is measured.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"molequi {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name, help=command.text, description=command.text, allow_abbrev=False
        )
        sub.set_defaults(run=command.run)
        command.add_arguments(sub)
    return parser


def _check_order(given: argparse.Namespace) -> None:
    """Raise ConfigError if the model comes after the structures."""
    model, second = getattr(given, "model", None), getattr(given, "structures", getattr(given, "data", None))
    if model is None or second is None:
        return
    if Path(second).suffix == ".safetensors" != Path(model).suffix:
        raise ConfigError(
            f"{model} comes first and {second} comes second, which is a model by its name; wanted first the "
            f"model, then the structures: {second} {model}"
        )


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning without its place in the code, which means nothing to users."""
    print(f"molequi: warning: {message}", file=sys.stderr)
