"""``molequi report``."""

import argparse
from pathlib import Path

from molequi.cli.command import Command
from molequi.errors import ConfigError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="RUN", help="the folder of a run, such as runs/demo")
    add(
        "--data",
        nargs="+",
        default=[],
        metavar="PART=FILE",
        help="data in place of those of the run, such as test=new.xyz; a run of mq.fit needs it",
    )
    add("--out", help="the file (report.html in the folder of the run)")
    add("--device", default="cpu", help="where the model runs (cpu)")


def _report(given: argparse.Namespace) -> None:
    from molequi.config.report import report

    data = _data(given.data)
    print(report(given.folder, data, out=given.out, device=given.device))


def _data(words: list[str]) -> dict[str, str] | None:
    """``test=new.xyz`` as a mapping; a file alone is the part "data". None for no words."""
    found: dict[str, str] = {}
    for word in words:
        part, equals, file = word.partition("=")
        if not equals:
            part, file = "data", word
        if part in found:
            raise ConfigError(f"--data {word}: the part {part!r} is given twice; wanted PART=FILE")
        if not Path(file).exists():
            raise ConfigError(f"--data {word}: no such file: {file}; wanted PART=FILE, such as test=new.xyz")
        found[part] = file
    return found or None


COMMANDS = (
    Command(
        "report",
        "Write the report page of a run (HTML): is the model good?",
        _add_arguments,
        _report,
    ),
)
