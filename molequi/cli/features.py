"""``molequi features``."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from molequi.cli.advice import EXAMPLES
from molequi.cli.command import Command
from molequi.cli.flags import add_flags, check_flags, flags_of, given_flags
from molequi.errors import ConfigError
from molequi.util.describe import Option

# Flags of molecules without geometry.
_MOLECULES = ("column", "conformers", "seed", "optimize", "fragments", "skip", "workers")


@dataclass(frozen=True)
class _OfCommand:
    """Flags of the command beside those of the function.

    Parameters
    ----------
    out : str, optional
        The file: .npz for all irreps, .csv or .parquet for a table of invariants. What was interrupted is
        continued.
    index : str
        Structures to use: one number or start:stop:step, such as :100 or ::10.
    overwrite : bool
        Replace the file if it exists.
    """

    out: str | None = None
    index: str = ":"
    overwrite: bool = False


def _flags() -> dict[str, Option]:
    from molequi.inference import descriptors

    return flags_of(_OfCommand) | flags_of(descriptors, ("as_frame",))


def _molecule_flags() -> dict[str, Option]:
    from molequi.inference import predict_table
    from molequi.readers import read_sdf, read_smiles

    flags = flags_of(predict_table, like=(read_smiles, read_sdf))
    return {name: flags[name] for name in _MOLECULES}


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model.safetensors, or the folder of a run")
    parser.add_argument(
        "data", help="a file that ASE reads, a table or list of SMILES, an SDF, arrays (.npz), a store"
    )
    add_flags(parser, _flags())
    add_flags(parser, _molecule_flags(), "options of molecules (SMILES, SDF)")


def _features(given: argparse.Namespace) -> None:
    from molequi.inference import descriptors, write_descriptors
    from molequi.util.files import check_new_target

    options = given_flags(given, _flags())
    out, overwrite = options.pop("out", None), options.pop("overwrite", False)
    if out is None:
        raise ConfigError(
            "features: --out is missing; wanted a file for the descriptors, for example\n  "
            + EXAMPLES["features"]
        )
    index = options.pop("index", ":")
    check_flags("features", descriptors, options, ("as_frame",))
    check_new_target(Path(out), overwrite=overwrite)
    options |= {} if index == ":" else {"index": index}
    print(write_descriptors(given.model, given.data, out, **options, **given_flags(given, _molecule_flags())))


COMMANDS = (
    Command(
        "features",
        "Descriptors of atoms or structures by irrep, as a model computes them, in a file.",
        _add,
        _features,
    ),
)
