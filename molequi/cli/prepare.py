"""``molequi prepare``."""

import argparse
from collections import Counter
from collections.abc import Callable

from molequi.cli.command import Command
from molequi.cli.flags import add_flags, check_flags, flags_of, given_flags
from molequi.cli.parser import Parser
from molequi.util.describe import Option

_FORMS = (
    "molequi prepare FILE [FILE ...] --out FOLDER [--cutoff 5] [--processes 4]",
    "molequi prepare 'data/*.xyz' --out FOLDER --keys forces=REF_forces",
)


def _own() -> dict[str, Option]:
    from molequi.preparation import prepare

    return flags_of(prepare)


def _of_readers() -> dict[str, dict[str, Option]]:
    """Options of readers by the title of their table: those of most of them first."""
    from molequi.readers import read_ase, read_hdf5, read_npz, read_points, read_sdf, read_smiles

    readers: dict[str, Callable] = {
        "of frames (extended XYZ, and other files that ASE reads)": read_ase,
        "of .npz files": read_npz,
        "of HDF5 files": read_hdf5,
        "of SDF files": read_sdf,
        "of tables of SMILES": read_smiles,
        "of point clouds": read_points,
    }
    own = _own()
    flags = {
        title: {n: o for n, o in flags_of(reader, like=(read_ase,)).items() if n not in own}
        for title, reader in readers.items()
    }
    counts = Counter(name for options in flags.values() for name in options)
    frames = next(iter(flags.values()))
    general = {n: o for n, o in frames.items() if counts[n] >= len(readers) / 2}
    tables = {"of most readers": general}
    for title, options in flags.items():
        tables[title] = {n: o for n, o in options.items() if n not in general}
    return {title: options for title, options in tables.items() if options}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    assert isinstance(parser, Parser)
    parser.forms = _FORMS
    parser.add_argument("files", nargs="+", metavar="FILE", help="files of structures, or patterns")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder of the store")
    add_flags(parser, _own())
    for title, options in _of_readers().items():
        add_flags(parser, options, f"options {title}")


def _prepare(given: argparse.Namespace) -> None:
    from molequi.preparation import prepare

    options = given_flags(given, _own())
    check_flags("prepare", prepare, options, leave_out=("what", "out"))
    for flags in reversed(_of_readers().values()):  # the first table decides what a value is
        options |= given_flags(given, flags)
    what = given.files[0] if len(given.files) == 1 else given.files
    data = prepare(what, given.out, **options)
    print(data.summary())
    if data.quantities:
        print(f"Check it, and train on it:\n  molequi lint {given.out}\n  molequi train {given.out}")
    else:
        print(
            "No labels were read, so that nothing can be trained on it. Say what they are called:\n"
            f"  molequi prepare {' '.join(given.files)} --out {given.out} --keys energy=NAME --restart"
        )


COMMANDS = (
    Command(
        "prepare",
        "Read and check structures once, and store them for trainings of any size.",
        _add_arguments,
        _prepare,
    ),
)
