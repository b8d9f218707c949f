"""``molequi lint``."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from molequi.cli.command import Command
from molequi.cli.flags import add_flags, check_flags, flags_of, given_flags, read_pairs
from molequi.cli.parser import Parser
from molequi.cli.typed import Typing, as_typed
from molequi.errors import ConfigError
from molequi.util.describe import Option

if TYPE_CHECKING:
    from molequi.model import Model

_TEXT = (
    "Look for faults in data: units, signs, foreign labels, duplicates. The status is 1 if an error is "
    "found, 0 otherwise; 2 for a command that cannot be run."
)
_LEAVE_OUT = ("data", "model")


@dataclass(frozen=True)
class _Own:
    """Flags of the command beside those of the function.

    Parameters
    ----------
    out : str, optional
        File for the report: .json or .html.
    fail_on : {"error", "warning"}
        The least severity of a finding that makes the status 1.
    model : str, optional
        A model to measure the costs with, by default a PaiNN of 64 channels.
    units : list of str
        Unit in the files by quantity, as energy=kcal/mol forces=kcal/mol/Å.
    overwrite : bool
        Whether a file that exists is replaced by the report.
    """

    out: str | None = None
    fail_on: Literal["error", "warning"] = "error"
    model: str | None = None
    units: Sequence[str] = ()
    overwrite: bool = False


def _flags() -> dict[str, Option]:
    from molequi.lint import lint
    from molequi.readers import read_ase

    return flags_of(lint, (*_LEAVE_OUT, "units"), like=(read_ase,)) | flags_of(_Own)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    assert isinstance(parser, Parser)
    parser.forms = (
        "molequi lint FILE [FILE ...] [--option value ...]",
        "molequi lint train=FILE valid=FILE [--allow close-atoms ...] [--out report.html]",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="data; each file is a part, or PART=FILE")
    add_flags(parser, _flags())


def _lint(given: argparse.Namespace) -> int:
    from molequi.checkpoint import load
    from molequi.ensemble import Ensemble
    from molequi.lint import lint
    from molequi.util.files import check_new_target, write_file

    options = given_flags(given, _flags())
    own = _Own(**{name: options.pop(name) for name in vars(_Own()) if name in options})
    if own.units:
        options["units"] = read_pairs("--units", list(own.units))
    check_flags("lint", lint, options, ("model",))
    check_flags("lint", _Own, {"fail_on": own.fail_on})
    out = None if own.out is None else Path(own.out)
    if out is not None:
        if out.suffix not in (".json", ".html"):
            raise ConfigError(f"--out {out}: wanted a name that ends in .json or .html")
        check_new_target(out, overwrite=own.overwrite)
    loaded = None if own.model is None else load(own.model, device="cpu")
    # Each member of an ensemble costs the same.
    model = cast("Model | None", next(iter(loaded.members)) if isinstance(loaded, Ensemble) else loaded)
    report = lint(_parts(given.files), model=model, **options)
    print(as_typed(str(report), Typing("lint", tuple(_flags()))))
    if out is not None:
        write_file(out, report.to_json() + "\n" if out.suffix == ".json" else report.to_html())
    failing = report.errors if own.fail_on == "error" else (*report.errors, *report.of("warning"))
    return 1 if failing else 0


def _parts(words: Sequence[str]) -> dict[str, str]:
    """``train=a.xyz valid=b.xyz`` or plain names of files, by the name of the part."""
    found: dict[str, str] = {}
    names = [Path(word).name for word in words]
    for word in words:
        part, equals, file = word.partition("=")
        if not equals or Path(word).exists():
            part, file = (Path(word).name if names.count(Path(word).name) == 1 else word), word
        if part in found:
            raise ConfigError(f"lint {word}: the part {part!r} is given twice; wanted PART=FILE")
        found[part] = file
    return found


COMMANDS = (Command("lint", _TEXT, _add_arguments, _lint),)
