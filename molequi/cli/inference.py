"""``molequi evaluate`` and ``molequi predict``."""

import argparse
import json
from pathlib import Path
from typing import Any

from molequi.cli.command import Command
from molequi.cli.flags import read_pairs
from molequi.errors import ConfigError

# Flags of molecules without geometry; those that are not given have the defaults of `read_smiles`.
_MOLECULES = ("column", "conformers", "seed", "optimize", "fragments", "embed", "skip", "workers")
_USAGE = (
    "molequi predict MODEL STRUCTURES OUT.xyz [options]\n"
    "       molequi predict MODEL [--smiles] MOLECULES.csv|.smi|.sdf|.mol OUT.csv|OUT.xyz [options]\n"
    "       molequi predict MODEL --smiles SMILES [SMILES ...] [options]"
)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", help="model.safetensors")
    add("data", help="a file that ASE reads, a table of SMILES (.csv), an SDF (.sdf), arrays (.npz)")
    add("--keys", nargs="+", default=[], metavar="NAME=KEY", help="forces=REF_forces")
    add("--units", nargs="+", default=[], metavar="NAME=UNIT", help="energy=kcal/mol")
    add(
        "--partial",
        nargs="+",
        default=[],
        metavar="NAME",
        help="labels that may be missing in some structures",
    )
    _add_molecules(parser)
    add("--out", help="a .json or .csv file for the table")
    add("--device", default="cpu")


def _add_predict(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.usage = _USAGE
    add("model", help="model.safetensors")
    add(
        "structures",
        nargs="?",
        help="a file that ASE reads, a table or list of SMILES, an SDF; labels are not read",
    )
    add(
        "out",
        nargs="?",
        help="extended XYZ with the predictions. For molecules also a table (.csv), which is continued if it "
        "was interrupted",
    )
    add(
        "--smiles",
        nargs="+",
        metavar="SMILES",
        help="SMILES whose predictions are printed; or a file of SMILES, and OUT",
    )
    _add_molecules(parser)
    add("--device", default="cpu")


def _add_molecules(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("molecules (SMILES, SDF, MOL)").add_argument
    add("--column", help="the column with the SMILES (smiles)")
    add(
        "--conformers",
        type=int,
        metavar="N",
        help="geometries of each molecule, over which predictions are averaged (1)",
    )
    add("--seed", type=int, help="seed of the geometries (0)")
    add("--optimize", choices=("mmff", "uff", "none"), help="force field that relaxes the geometries (mmff)")
    add("--fragments", choices=("refuse", "largest"), help="what to do with salts and mixtures (refuse)")
    add(
        "--embed",
        action="store_true",
        default=None,
        help="make geometries for records of an SDF that have no coordinates in space",
    )
    add(
        "--skip",
        action="store_true",
        default=None,
        help="leave molecules that cannot be used without a prediction",
    )
    add("--workers", type=int, metavar="N", help="processes that make geometries (as many as processors)")


def _molecules(given: argparse.Namespace) -> dict[str, Any]:
    """The flags of molecules that were given."""
    found = {name: value for name in _MOLECULES if (value := getattr(given, name)) is not None}
    if found.get("optimize") == "none":
        found["optimize"] = None
    return found


def _evaluate(given: argparse.Namespace) -> None:
    from molequi.inference import evaluate
    from molequi.inference.metrics import as_csv
    from molequi.util.files import write_file

    out = Path(given.out) if given.out else None
    if out and out.suffix not in (".json", ".csv"):
        raise ConfigError(f"--out {out}: wanted a name that ends in .json or .csv")
    errors = evaluate(
        given.model,
        given.data,
        keys=read_pairs("--keys", given.keys),
        units=read_pairs("--units", given.units),
        partial=given.partial,
        device=given.device,
        **_molecules(given),
    )
    print(errors)
    if out:
        json_text = json.dumps(errors.records(), indent=1) + "\n"
        write_file(out, json_text if out.suffix == ".json" else as_csv({str(given.data): errors}))


def _predict(given: argparse.Namespace) -> None:
    from molequi.readers.molecule_files import CSV, SDF, SMI, suffix

    files, smiles = [name for name in (given.structures, given.out) if name is not None], given.smiles
    if smiles and suffix(Path(smiles[0])) in CSV + SMI + SDF:
        files, smiles = smiles + files, None
    if smiles and files:
        raise ConfigError(
            f"{files[0]}: SMILES of the command line are shown, not written; give a file, and OUT, or SMILES "
            "only"
        )
    if smiles:
        _print_predictions(given, smiles)
        return
    if len(files) != 2:
        raise ConfigError(
            f"found {' '.join(files) or 'no structures'}; wanted a file of structures and OUT, or --smiles "
            "SMILES"
        )
    _write_predictions(given, *files, table=suffix(Path(files[0])) in CSV + SMI + SDF)


def _print_predictions(given: argparse.Namespace, smiles: list[str]) -> None:
    """Predictions for SMILES of the command line."""
    from molequi.inference import predict

    results = predict(given.model, smiles, device=given.device, **_molecules(given))
    for one, result in zip(smiles, results):
        shown = [
            f"{name} {value:.6g}" if value.ndim == 0 else f"{name} {' '.join(f'{v:.6g}' for v in value)}"
            for name, value in result.items()
            if value.ndim < 2
        ]
        print(f"{one}: {', '.join(shown) if shown else 'no prediction'}")


def _write_predictions(given: argparse.Namespace, structures: str, out: str, *, table: bool) -> None:
    """Predictions for a file, as structures or, if it has molecules, as a table."""
    from molequi.inference import predict, predict_table

    if out.endswith(".csv") and table:
        print(predict_table(given.model, structures, out, device=given.device, **_molecules(given)))
        return
    results = predict(given.model, structures, out=out, device=given.device, **_molecules(given))
    print(f"{len(results)} structures: {out}")


COMMANDS = (
    Command("evaluate", "Errors of a model on labelled structures.", _add_evaluate, _evaluate),
    Command(
        "predict",
        "Predictions for the structures or molecules of a file, or for SMILES.",
        _add_predict,
        _predict,
    ),
)
