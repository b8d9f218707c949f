"""``molequi report``."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from molequi.cli.command import Command
from molequi.cli.flags import add_flags, check_flags, flags_of, given_flags
from molequi.errors import ConfigError
from molequi.util.describe import Option

_LEAVE_OUT = ("data", "backbones", "heads", "readers")


@dataclass(frozen=True)
class _OfReport:
    """Flags of the command beside those of the function.

    Parameters
    ----------
    data : list of str
        Data in place of those of the run, as PART=FILE, such as test=new.xyz. A run of mq.fit needs it.
    overwrite : bool
        Replace the file of --out if it exists; the page in the folder of the run is always written anew.
    """

    data: Sequence[str] = ()
    overwrite: bool = False


def _flags() -> dict[str, Option]:
    from molequi.config.report import report

    return flags_of(report, _LEAVE_OUT) | flags_of(_OfReport)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="the folder of a run, such as runs/demo")
    add_flags(parser, _flags())


def _report(given: argparse.Namespace) -> None:
    from molequi.config.report import report
    from molequi.util.files import check_new_target

    options = given_flags(given, _flags())
    data = _data(options.pop("data", ()))
    overwrite = options.pop("overwrite", False)
    check_flags("report", report, options, _LEAVE_OUT)
    if Path(options.get("out", "")).is_file():
        check_new_target(options["out"], overwrite=overwrite)
    print(report(given.folder, data, **options))


def _data(words: Sequence[str]) -> dict[str, str] | None:
    """``test=new.xyz`` as a mapping; a file alone is the part "data". None for no words."""
    found: dict[str, str] = {}
    for word in words:
        part, equals, file = str(word).partition("=")
        if not equals:
            part, file = "data", str(word)
        if part in found:
            raise ConfigError(f"--data {word}: the part {part!r} is given twice; wanted PART=FILE")
        if not Path(file).exists():
            raise ConfigError(f"--data {word}: no such file: {file}; wanted PART=FILE, such as test=new.xyz")
        found[part] = file
    return found or None


COMMANDS = (
    Command("report", "Write the report page of a run (HTML): is the model good?", _add_arguments, _report),
)
