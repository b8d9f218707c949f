"""``molequi screen``."""

import argparse
from dataclasses import dataclass

from molequi.cli.advice import EXAMPLES
from molequi.cli.command import Command
from molequi.cli.flags import add_flags, check_flags, flags_of, given_flags
from molequi.errors import ConfigError
from molequi.util.describe import Option, options_of

_MOLECULES = ("column", "conformers", "seed", "optimize", "fragments", "embed", "workers")


def _flags() -> dict[str, Option]:
    from molequi.screening import screen

    return {"out": options_of(screen)["out"], **flags_of(screen)}


@dataclass(frozen=True)
class _OfStructures:
    """Flags of structures beside those of the reader.

    Parameters
    ----------
    errors : bool
        Read the labels that the files have, and measure the errors on them.
    """

    errors: bool = False


def _structure_flags() -> dict[str, Option]:
    from molequi.readers import from_atoms, read_ase

    flags = flags_of(from_atoms, like=(read_ase,))
    return flags_of(_OfStructures) | {name: flags[name] for name in ("keys", "units")}


def _molecule_flags() -> dict[str, Option]:
    from molequi.inference import predict_table
    from molequi.readers import read_sdf, read_smiles

    flags = flags_of(predict_table, like=(read_smiles, read_sdf))
    return {name: flags[name] for name in _MOLECULES}


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model.safetensors, or the folder of a run")
    parser.add_argument(
        "inputs",
        nargs="+",
        help="files: extended XYZ, .db, .aselmdb, .npz, .h5, stores; tables or lists of SMILES, SDF (texts "
        "also .gz); patterns: 'lib/*.smi'",
    )
    add_flags(parser, _flags())
    add_flags(parser, _structure_flags(), "options of structures")
    add_flags(parser, _molecule_flags(), "options of molecules (SMILES, SDF)")


def _screen(given: argparse.Namespace) -> None:
    from molequi.screening import screen

    options = given_flags(given, _flags())
    if "out" not in options:
        raise ConfigError(
            "screen: --out is missing; wanted a folder for the results, for example\n  " + EXAMPLES["screen"]
        )
    check_flags("screen", screen, options, ("out",))
    options |= given_flags(given, _structure_flags()) | given_flags(given, _molecule_flags())
    print(screen(given.model, given.inputs, **options))


COMMANDS = (
    Command(
        "screen",
        "Predictions for any number of structures or molecules, in parts, restartable, also on a cluster.",
        _add,
        _screen,
    ),
)
