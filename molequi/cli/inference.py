"""``molequi evaluate`` and ``molequi predict``."""

import argparse
import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from molequi.cli.command import Command
from molequi.cli.flags import add_flags, check_flags, flags_of, given_flags
from molequi.cli.parser import Parser
from molequi.errors import ConfigError, DataError
from molequi.util.describe import Option

# Flags of molecules without geometry.
_MOLECULES = ("column", "conformers", "seed", "optimize", "fragments", "embed", "skip", "workers")
_FORMS = (
    "molequi predict MODEL STRUCTURES OUT.xyz [--option value ...]",
    "molequi predict MODEL MOLECULES.csv|.smi|.sdf|.mol OUT.csv|OUT.xyz [--option value ...]",
    "molequi predict MODEL --smiles SMILES [SMILES ...] [--option value ...]",
)
_GROUP = "options of molecules (SMILES, SDF, MOL)"


@dataclass(frozen=True)
class _OfEvaluate:
    """Flags of the command beside those of the function.

    Parameters
    ----------
    out : str, optional
        A .json or .csv file for the table.
    index : str
        Structures to use: one number or start:stop:step, such as :100 or ::10.
    overwrite : bool
        Replace the file if it exists.
    """

    out: str | None = None
    index: str = ":"
    overwrite: bool = False


@dataclass(frozen=True)
class _OfPredict:
    """Flags of the command beside those of the function.

    Parameters
    ----------
    smiles : list of str
        SMILES whose predictions are printed; or a file of SMILES, and OUT.
    overwrite : bool
        Replace OUT if it exists.
    """

    smiles: list[str] = ()  # type: ignore[assignment]
    overwrite: bool = False


def _molecule_flags() -> dict[str, Option]:
    from molequi.inference import predict_table
    from molequi.readers import read_sdf, read_smiles

    flags = flags_of(predict_table, like=(read_smiles, read_sdf))
    return {name: flags[name] for name in _MOLECULES}


def _evaluate_flags() -> dict[str, Option]:
    from molequi.inference import evaluate
    from molequi.readers import read_ase

    return flags_of(evaluate, ("fabric",), like=(read_ase,)) | flags_of(_OfEvaluate)


def _predict_flags() -> dict[str, Option]:
    from molequi.inference import predict

    flags = flags_of(predict, ("out", "as_frame"))
    flags["calibration"] = replace(flags["calibration"], kind="path")
    return flags | flags_of(_OfPredict)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model.safetensors, or the folder of a run")
    parser.add_argument(
        "data", help="a file that ASE reads, a table of SMILES (.csv), an SDF (.sdf), arrays (.npz)"
    )
    add_flags(parser, _evaluate_flags())
    add_flags(parser, _molecule_flags(), _GROUP)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    assert isinstance(parser, Parser)
    parser.forms = _FORMS
    parser.add_argument("model", help="model.safetensors, or the folder of a run")
    parser.add_argument(
        "structures",
        nargs="?",
        help="a file that ASE reads, a table or list of SMILES, an SDF; labels are not read",
    )
    parser.add_argument(
        "out",
        nargs="?",
        help="extended XYZ with the predictions; for molecules also a table (.csv), which is continued if it "
        "was interrupted",
    )
    add_flags(parser, _predict_flags())
    add_flags(parser, _molecule_flags(), _GROUP)


def _evaluate(given: argparse.Namespace) -> None:
    from molequi.inference import evaluate
    from molequi.inference.metrics import as_csv
    from molequi.util.files import check_new_target, write_results

    options = given_flags(given, _evaluate_flags())
    out, index = options.pop("out", None), options.pop("index", ":")
    overwrite = options.pop("overwrite", False)
    path = Path(out) if out else None
    if path and path.suffix not in (".json", ".csv"):
        raise ConfigError(f"--out {path}: wanted a name that ends in .json or .csv")
    check_flags("evaluate", evaluate, options, ("fabric",))
    if path:
        check_new_target(path, overwrite=overwrite)
    if index != ":":
        options["index"] = index
    errors = evaluate(given.model, given.data, **options, **given_flags(given, _molecule_flags()))
    print(errors)
    if path:
        json_text = json.dumps(errors.records(), indent=1) + "\n"
        text = json_text if path.suffix == ".json" else as_csv({str(given.data): errors})
        write_results(path, lambda file: file.write_text(text, encoding="utf-8"))


def _predict(given: argparse.Namespace) -> None:
    from molequi.inference import predict
    from molequi.readers.molecule_files import CSV, SDF, SMI, suffix
    from molequi.util.files import check_new_target

    options = given_flags(given, _predict_flags())
    files = [name for name in (given.structures, given.out) if name is not None]
    smiles, overwrite = options.pop("smiles", None), options.pop("overwrite", False)
    check_flags("predict", predict, options)
    options |= given_flags(given, _molecule_flags())
    if smiles and suffix(Path(smiles[0])) in CSV + SMI + SDF:
        files, smiles = smiles + files, None
    if smiles and files:
        raise ConfigError(
            f"{files[0]}: SMILES of the command line are shown, not written; give a file, and OUT, or SMILES "
            "only"
        )
    if smiles:
        _print_predictions(given.model, smiles, options)
        return
    if files and not suffix(Path(files[0])) and not Path(files[0]).exists():
        raise ConfigError(
            f"predict: {files[0]}: no such file; the predictions of SMILES are printed with\n"
            f"  molequi predict {given.model} --smiles {shlex.quote(files[0])}"
        )
    molecules = bool(files) and suffix(Path(files[0])) in CSV + SMI + SDF
    if len(files) == 1:
        out = "predicted.csv" if molecules else "predicted.xyz"
        raise ConfigError(
            f"predict: found {files[0]}, and no file to write; type\n"
            f"  molequi predict {given.model} {files[0]} {out}"
        )
    if len(files) != 2:
        raise ConfigError(
            f"predict: found {' '.join(files) or 'no structures'}; wanted a file of structures and a file to "
            f"write, or SMILES; type\n  molequi predict {given.model} STRUCTURES predicted.xyz\n"
            f"  molequi predict {given.model} --smiles CCO"
        )
    given_file, out_file = map(Path, files)
    if not (given_file.exists() and out_file.exists() and out_file.samefile(given_file)):  # refused below
        check_new_target(out_file, overwrite=overwrite, name="out=")
    _write_predictions(given.model, files[0], files[1], molecules, options)


def _print_predictions(model: str, smiles: list[str], options: dict[str, Any]) -> None:
    """Predictions for SMILES of the command line."""
    from molequi.inference import predict

    for one, result in zip(smiles, predict(model, smiles, **options)):
        shown = [
            f"{name} {value:.6g}" if value.ndim == 0 else f"{name} {' '.join(f'{v:.6g}' for v in value)}"
            for name, value in result.items()
            if value.ndim < 2
        ]
        print(f"{one}: {', '.join(shown) if shown else 'no prediction'}")


def _write_predictions(
    model: str, structures: str, out: str, molecules: bool, options: dict[str, Any]
) -> None:
    """Predictions for a file, as structures or, if it has molecules, as a table."""
    from molequi.inference import predict_table
    from molequi.inference.predict import predict_file
    from molequi.inference.predictions import loaded

    if out.endswith(".csv") and molecules and "calibration" not in options:
        trained = loaded(model, options.pop("device", None), options.pop("dtype", None))
        print(predict_table(trained, structures, out, **options))
        return
    try:
        number = predict_file(model, structures, out, **options)
    except DataError as error:
        if not Path(structures).is_dir():
            raise
        line = shlex.join(["molequi", "predict", model, f"{structures}/*.xyz", out])
        raise DataError(f"{error}; for the structures in the files of a folder type\n  {line}") from error
    print(f"{number} structures: {out}")


COMMANDS = (
    Command("evaluate", "Errors of a model on labelled structures.", _add_evaluate, _evaluate),
    Command(
        "predict",
        "Predictions for the structures or molecules of a file, or for SMILES.",
        _add_predict,
        _predict,
    ),
)
