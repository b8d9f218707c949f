"""``molequi prepare``."""

import argparse

from molequi.cli.command import Command
from molequi.cli.flags import add_flags, check_flags, flags_of, given_flags
from molequi.cli.parser import Parser
from molequi.util.describe import Option

_FORMS = (
    "molequi prepare FILE [FILE ...] --out FOLDER [--cutoff 5] [--processes 4]",
    "molequi prepare 'data/*.xyz' --out FOLDER --keys forces=REF_forces",
)
_GROUP = "options of the reader"


def _own() -> dict[str, Option]:
    from molequi.preparation import prepare

    return flags_of(prepare)


def _of_readers() -> dict[str, Option]:
    from molequi.readers import read_ase, read_hdf5, read_npz, read_points, read_sdf, read_smiles

    own = _own()
    found: dict[str, Option] = {}
    for reader in (read_ase, read_npz, read_hdf5, read_sdf, read_smiles, read_points):
        found |= {n: o for n, o in flags_of(reader, like=(read_ase,)).items() if n not in {*own, *found}}
    return found


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    assert isinstance(parser, Parser)
    parser.forms = _FORMS
    parser.add_argument("files", nargs="+", metavar="FILE", help="files of structures, or patterns")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder of the store")
    add_flags(parser, _own())
    add_flags(parser, _of_readers(), _GROUP)


def _prepare(given: argparse.Namespace) -> None:
    from molequi.preparation import prepare

    options = given_flags(given, _own())
    check_flags("prepare", prepare, options, leave_out=("what", "out"))
    options |= given_flags(given, _of_readers())
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
