"""``molequi export``, ``molequi drive`` and ``molequi check-engines``."""

import argparse
from dataclasses import dataclass
from typing import Literal

from molequi.cli.command import Command
from molequi.cli.flags import add_flags, check_flags, flags_of, given_flags
from molequi.errors import ConfigError
from molequi.util.describe import Option


@dataclass(frozen=True)
class _Export:
    """Flags of ``molequi export``.

    Parameters
    ----------
    aot : str, optional
        The file of a model compiled ahead of time, NAME.pt2, which torch loads without molequi.
    engine : {"lammps"}, optional
        Write the files of a simulation with this engine into the folder OUT.
    out : str, optional
        The folder for --engine.
    like : str, optional
        A file with the structure.
    """

    aot: str | None = None
    engine: Literal["lammps"] | None = None
    out: str | None = None
    like: str | None = None


def _export_flags() -> dict[str, Option]:
    from molequi.engines.aot import export_aot
    from molequi.engines.lammps_files import export_lammps

    return flags_of(_Export) | flags_of(export_aot) | flags_of(export_lammps)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model.safetensors, or the folder of a run")
    add_flags(parser, _export_flags())


def _export(given: argparse.Namespace) -> None:
    from molequi.engines.aot import export_aot
    from molequi.engines.lammps_files import export_lammps

    options = given_flags(given, _export_flags())
    own = {name: options.pop(name) for name in flags_of(_Export) if name in options}
    check_flags("export", _Export, own)
    flags = _Export(**own)
    if (flags.aot is None) == (flags.engine is None):
        raise ConfigError("export: wanted one of --aot NAME.pt2 and --engine lammps --out FOLDER")
    if flags.like is None:
        raise ConfigError("export: --like is missing; wanted a file with a structure of the simulation")
    function = export_aot if flags.aot is not None else export_lammps
    known = flags_of(function)
    for name in options:
        if name not in known:
            kind = "--aot" if flags.aot is not None else "--engine lammps"
            raise ConfigError(f"--{name.replace('_', '-')} is no option of {kind}")
    check_flags("export", function, options)
    if flags.aot is not None:
        print("compiling, which takes a minute or more")
        print(f"written: {export_aot(given.model, flags.aot, flags.like, **options)}")
        return
    if flags.out is None:
        raise ConfigError("export: --out is missing; wanted the folder for the files of LAMMPS")
    print(f"written: {export_lammps(given.model, flags.out, flags.like, **options)}")
    print(f"type\n  cd {flags.out} && python run.py")


def _add_drive(parser: argparse.ArgumentParser) -> None:
    from molequi.engines import Evaluator, drive

    parser.add_argument("model", help="model.safetensors, or the folder of a run")
    parser.add_argument("structure", help="a file with the atoms in the order of i-PI's")
    add_flags(parser, flags_of(drive) | flags_of(Evaluator))  # with what the second says of its options


def _drive(given: argparse.Namespace) -> None:
    from molequi.engines import drive

    options = given_flags(given, flags_of(drive))
    check_flags("drive", drive, options)
    print(f"{drive(given.model, given.structure, **options)} structures computed; i-PI has ended")


def _add_check(parser: argparse.ArgumentParser) -> None:
    from molequi.engines.checking import check_engines

    parser.add_argument("model", help="model.safetensors, or the folder of a run")
    parser.add_argument("structures", nargs="?", help="a file that ASE reads; by default small ones are made")
    add_flags(parser, flags_of(check_engines, ("structures",)))


def _check(given: argparse.Namespace) -> int:
    from molequi.engines.checking import check_engines

    options = given_flags(given, flags_of(check_engines, ("structures",)))
    check_flags("check-engines", check_engines, options, ("structures",))
    report = check_engines(given.model, given.structures, **options)
    print(report)
    return 0 if report.passed else 1


COMMANDS = (
    Command(
        "export",
        "Write a model for another engine: compiled ahead of time, or as the files of a LAMMPS simulation.",
        _add_export,
        _export,
    ),
    Command("drive", "Compute forces for i-PI over a socket.", _add_drive, _drive),
    Command(
        "check-engines",
        "Run the same checks through every installed engine. The status is 1 if one fails.",
        _add_check,
        _check,
    ),
)
