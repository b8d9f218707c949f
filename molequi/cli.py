"""The command line: `molequi train | evaluate | predict | md | relax | audit | info`, over functions of these names."""

import argparse
import importlib
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from molequi.errors import ConfigError, MolequiError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; status 0, 1 for an audit that fails, 2 for an error (one message), 130 after Ctrl-C."""
    given = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = _show
        try:
            _in_order(given)
            return given.command(given) or 0
        except MolequiError as error:
            print(f"molequi: {error}", file=sys.stderr)
            return 2
        except OSError as error:
            print(f"molequi: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("molequi: interrupted", file=sys.stderr)
            return 130


def _in_order(given: argparse.Namespace) -> None:
    """Raises ConfigError where the model stands after the structures."""
    model, second = getattr(given, "model", None), getattr(given, "structures", getattr(given, "data", None))
    if second is not None and Path(second).suffix == ".safetensors" != Path(model).suffix:
        raise ConfigError(
            f"{model} comes first and {second} comes second, which is a model by its name; wanted first the model, then"
            f" the structures: {second} {model}"
        )


def _show(message, category, filename, lineno, file=None, line=None) -> None:
    """A warning without the place in the code, which says nothing to who did not write it."""
    print(f"molequi: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    from molequi import __version__

    parser = argparse.ArgumentParser(
        prog="molequi",
        description="E(n)-equivariant graph networks for molecules, whose symmetry is measured.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"molequi {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, function: Callable, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(command=function)
        return sub

    train = command("train", _train, "Train a model as a YAML file or a recipe says.")
    train.add_argument("config", help="a YAML file, or the name of a recipe")
    train.add_argument("overrides", nargs="*", default=[], help="train.lr=1e-3 backbone.NequIP.channels=32")

    evaluate = command("evaluate", _evaluate, "Errors of a model on labelled structures.")
    evaluate.add_argument("model", help="model.safetensors")
    evaluate.add_argument(
        "data", help="a file that ASE reads, a table of SMILES (.csv), an SDF (.sdf), arrays (.npz)"
    )
    evaluate.add_argument("--keys", nargs="+", default=[], metavar="NAME=KEY", help="forces=REF_forces")
    evaluate.add_argument("--units", nargs="+", default=[], metavar="NAME=UNIT", help="energy=kcal/mol")
    evaluate.add_argument(
        "--partial",
        nargs="+",
        default=[],
        metavar="NAME",
        help="labels that may be missing in some structures",
    )
    _add_molecules(evaluate)
    evaluate.add_argument("--out", help="a .json or .csv file for the table")
    evaluate.add_argument("--device", default="cpu")

    predict = command(
        "predict", _predict, "Predictions for the structures or molecules of a file, or for SMILES."
    )
    predict.usage = (
        "molequi predict MODEL STRUCTURES OUT.xyz [options]\n"
        "       molequi predict MODEL [--smiles] MOLECULES.csv|.smi|.sdf|.mol OUT.csv|OUT.xyz [options]\n"
        "       molequi predict MODEL --smiles SMILES [SMILES ...] [options]"
    )
    predict.add_argument("model", help="model.safetensors")
    predict.add_argument(
        "structures",
        nargs="?",
        help="a file that ASE reads, a table or list of SMILES, an SDF; labels are not read",
    )
    predict.add_argument(
        "out",
        nargs="?",
        help="extended XYZ with the predictions; of molecules also a table (.csv), whose making goes on "
        "where it was interrupted",
    )
    predict.add_argument(
        "--smiles",
        nargs="+",
        metavar="SMILES",
        help="SMILES, whose predictions are shown; or a file of them and OUT",
    )
    _add_molecules(predict)
    predict.add_argument("--device", default="cpu")

    info = command("info", _info, "What a model file says of itself.")
    info.add_argument("model", help="model.safetensors")
    info.add_argument(
        "--verify",
        action="store_true",
        help="measure its symmetry again and compare with its report; status 1 if an error grew",
    )

    for name, (_, text) in _FUNCTIONS.items():
        sub = command(name, _over_function, text)
        sub.set_defaults(function=name)
        sub.add_argument(
            "model", help="model.safetensors" + ("; or labelled structures alone" if name == "audit" else "")
        )
        sub.add_argument(
            "structures", help="a file that ASE reads", **({"nargs": "?"} if name == "audit" else {})
        )
        sub.add_argument(
            "options",
            nargs=argparse.REMAINDER,
            metavar="--option value",
            help=f"options of the function; {_listed_by(name)}",
        ).required = False
    return parser


def _add_molecules(parser: argparse.ArgumentParser) -> None:
    """Options of molecules without geometry; they are those of `read_smiles`, whose defaults hold."""
    group = parser.add_argument_group("molecules (SMILES, SDF, MOL)")
    group.add_argument("--column", help="the column with the SMILES (smiles)")
    group.add_argument(
        "--conformers",
        type=int,
        metavar="N",
        help="geometries of each molecule, over which predictions are averaged (1)",
    )
    group.add_argument("--seed", type=int, help="of the geometries (0)")
    group.add_argument(
        "--optimize", choices=("mmff", "uff", "none"), help="the force field that relaxes them (mmff)"
    )
    group.add_argument(
        "--fragments", choices=("refuse", "largest"), help="what to do with salts and mixtures (refuse)"
    )
    group.add_argument(
        "--embed",
        action="store_true",
        default=None,
        help="give records of an SDF without coordinates in space a geometry",
    )
    group.add_argument(
        "--skip",
        action="store_true",
        default=None,
        help="leave molecules without prediction that cannot be used",
    )
    group.add_argument(
        "--workers", type=int, metavar="N", help="processes for the geometries (as many as processors)"
    )


def _molecules(given: argparse.Namespace) -> dict[str, Any]:
    names = ("column", "conformers", "seed", "optimize", "fragments", "embed", "skip", "workers")
    found = {name: value for name in names if (value := getattr(given, name)) is not None}
    if found.get("optimize") == "none":
        found["optimize"] = None
    return found


# Commands that take a model, structures, and the options of a function; the signature of the function says which.
_FUNCTIONS = {
    "md": ("simulation", "Molecular dynamics with a model."),
    "relax": ("simulation", "Relax structures with a model."),
    "audit": (
        "audit",
        "Measure the symmetry and the physics of a model, or the symmetry of labelled structures alone; status 1 if a model "
        "fails, 0 whatever the structures say.",
    ),
}
_POSITIONAL = ("model", "structures", "data", "oracle", "atoms", "calculator")
# Options of the command with another default than those of the function, or that the function does not have.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "md": {"out": "md"},
    "relax": {"out": "relax"},
    "audit": {"out": None, "index": ":", "against": None, "layers": False, "ladder": False},
}


def _listed_by(name: str) -> str:
    return f"`molequi {name} MODEL STRUCTURES --help` lists them"


def _train(given: argparse.Namespace) -> None:
    from molequi.config.run import run

    result = run(given.config, given.overrides)
    if result.main:
        print(
            f"{result}\n{result.out}: "
            + ", ".join(sorted(path.name for path in result.out.iterdir() if path.stat().st_size))
        )


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
        keys=_pairs("--keys", given.keys),
        units=_pairs("--units", given.units),
        partial=given.partial,
        device=given.device,
        **_molecules(given),
    )
    print(errors)
    if out:
        text = (
            json.dumps(errors.records(), indent=1) + "\n"
            if out.suffix == ".json"
            else as_csv({str(given.data): errors})
        )
        write_file(out, lambda path: path.write_text(text, encoding="utf-8"))


def _predict(given: argparse.Namespace) -> None:
    from molequi.inference import predict, predict_table
    from molequi.readers.molecule_files import CSV, SDF, SMI, suffix

    files, out = [name for name in (given.structures, given.out) if name is not None], None
    if given.smiles and suffix(Path(given.smiles[0])) in CSV + SMI + SDF:
        files, given.smiles = given.smiles + files, None
    if given.smiles and files:
        raise ConfigError(
            f"{files[0]}: SMILES of the command line are shown, not written; give a file, and OUT, or SMILES only"
        )
    if not given.smiles:
        if len(files) != 2:
            raise ConfigError(
                f"found {' '.join(files) or 'no structures'}; wanted a file of structures and OUT, or --smiles SMILES"
            )
        structures, out = files
        if out.endswith(".csv") and suffix(Path(structures)) in CSV + SMI + SDF:
            print(predict_table(given.model, structures, out, device=given.device, **_molecules(given)))
            return
        results = predict(given.model, structures, out=out, device=given.device, **_molecules(given))
        print(f"{len(results)} structures: {out}")
        return
    results = predict(given.model, given.smiles, device=given.device, **_molecules(given))
    for smiles, result in zip(given.smiles, results):
        shown = [
            f"{name} {value:.6g}" if value.ndim == 0 else f"{name} {' '.join(f'{v:.6g}' for v in value)}"
            for name, value in result.items()
            if value.ndim < 2
        ]
        print(f"{smiles}: {', '.join(shown) if shown else 'no prediction'}")


def _info(given: argparse.Namespace) -> int | None:
    from molequi.audit import verify
    from molequi.checkpoint import read
    from molequi.quantities import SYMBOLS
    from molequi.symmetry_report import SymmetryReport

    header, tensors = read(Path(given.model))
    model, metadata = header["model"], header.get("metadata") or {}
    print(f"{given.model}: format {header['format']}, molequi {header.get('molequi')}")
    options = dict(model["options"])
    elements = " ".join(SYMBOLS[z] for z in options.pop("elements"))
    print(f"backbone: {model['backbone']}, elements {elements}")
    print("  " + ", ".join(f"{k}={v}" for k, v in options.items()))
    for item in model["predict"]:
        quantity = item.get("quantity", item)
        how = item.get("head") or f"gradient of {quantity['gradient_of']}"
        print(
            f"predicts: {quantity['name']} ({quantity['unit']}), rank {quantity['rank']}, per {quantity['per']}, {how}"
        )
    print(
        f"numbers: {sum(t.numel() for t in tensors.values())},"
        f" {', '.join(sorted({str(t.dtype).removeprefix('torch.') for t in tensors.values()}))}"
    )
    for part, numbers in metadata.get("training", {}).get("errors", {}).items():
        print(f"{part}: " + ", ".join(f"{k} {v:.4g}" for k, v in numbers.items()))
    report = metadata.get("symmetry_report")
    print(
        SymmetryReport.from_dict(report) if report else "symmetry report: none; `fit` writes one at its end"
    )
    if given.verify:
        comparison = verify(given.model)
        print(comparison)
        if not comparison.passed or comparison.new.failed:
            return 1
    if "run" in metadata:
        print("run:", json.dumps(metadata["run"], ensure_ascii=False))


def _over_function(given: argparse.Namespace) -> int | None:
    from molequi.util.signature import check_call

    name = given.function
    room = importlib.import_module(f"molequi.{_FUNCTIONS[name][0]}")
    function = getattr(room, name)
    if name == "audit" and given.structures is None and Path(given.model).suffix != ".safetensors":
        function = importlib.import_module("molequi.data_symmetry").symmetry_test
    if {"-h", "--help"} & set(given.options):
        print(_described(name, function))
        return 0
    options = {**_DEFAULTS[name], **_options(given.options, as_text=("index",) if name == "audit" else ())}
    if name == "audit":
        return _audit(given, room, function, options)
    _listed(function, options)
    check_call(function, options, where=name, leave_out=_POSITIONAL)
    result = function(given.structures, given.model, **options)
    print(result)
    if name == "md" and result.out is not None:
        print(f"picture: {_drawn(result)}")
    return 0


def _listed(function: Callable, options: dict[str, Any]) -> None:
    """A single word for an option that takes several is a list of one."""
    for option, parameter in inspect.signature(function).parameters.items():
        if (
            option in options
            and "Sequence" in str(parameter.annotation)
            and not isinstance(options[option], list)
        ):
            options[option] = [options[option]]


def _audit(given: argparse.Namespace, room, function: Callable, options: dict[str, Any]) -> int:
    """A model on structures, or with `against` beside another model, or labelled structures alone; status 0 or 1."""
    from molequi import plotting
    from molequi.checkpoint import load
    from molequi.util.files import write_file
    from molequi.util.signature import check_call

    data_only = given.structures is None
    extra = {name: options.pop(name) for name in ("out", "against", "layers", "ladder", "index")}
    out = None if extra["out"] is None else Path(extra["out"])
    if out is not None and out.suffix not in (".json", ".html", ".png"):
        raise ConfigError(f"--out {out}: wanted a name that ends in .json, .html or .png")
    index = extra["index"]
    if not isinstance(index, str):
        raise ConfigError(
            f"--index: wanted one number or start:stop:step such as :100 or ::10, found {index!r}"
        )
    picture, passed, extras = plotting.audit, None, {}
    _listed(function, options)
    if data_only:
        if Path(given.model).suffix == ".safetensors":
            raise ConfigError(
                f"{given.model} is a model; wanted structures after it to measure it on, or labelled structures alone"
            )
        _only(extra, data_only, "index")
        check_call(function, options, where="audit", leave_out=_POSITIONAL)
        report, picture, passed = (
            function(room.labelled(given.model, index), **options),
            plotting.symmetry_test,
            True,
        )
    elif extra["against"] is not None:
        check_call(room.compare_models, options, where="audit", leave_out=(*_POSITIONAL, "new", "old"))
        if extra["layers"] or extra["ladder"]:
            raise ConfigError("--against compares symmetries; ask for --layers and --ladder without it")
        if out is not None and out.suffix != ".json":
            raise ConfigError(f"--out {out}: wanted a name that ends in .json for a comparison")
        report = room.compare_models(
            given.model, extra["against"], room.unlabelled(given.structures, index), **options
        )
    else:
        check_call(room.audit, options, where="audit", leave_out=_POSITIONAL)
        if out is not None and out.suffix == ".png" and extra["ladder"]:
            raise ConfigError(f"--out {out}: --ladder is a table; wanted a name that ends in .json or .html")
        report = room.audit_files(given.model, given.structures, index=index, **options)
        shared = {name: options[name] for name in ("seed", "limit") if name in options}
        for name, function in (("layers", room.lie_errors), ("ladder", room.symmetries)):
            if extra[name]:
                extras[name] = function(load(given.model), room.unlabelled(given.structures, index), **shared)
    print("\n\n".join(map(str, [report, *extras.values()])))
    if out is not None:
        if out.suffix == ".png":
            write_file(out, lambda path: picture(report).savefig(path, format="png"))
            if "layers" in extras:
                write_file(
                    out.with_suffix(".layers.png"),
                    lambda path: plotting.lie_errors(extras["layers"]).savefig(path, format="png"),
                )
        else:
            if out.suffix == ".json":
                page = json.dumps(
                    json.loads(report.to_json())
                    | {name: json.loads(extra.to_json()) for name, extra in extras.items()},
                    indent=1,
                )
            else:
                page = "<!doctype html><meta charset='utf-8'>" + "".join(
                    part._repr_html_() for part in (report, *extras.values())
                )
            write_file(out, lambda path: path.write_text(page + "\n", encoding="utf-8"))
    return 0 if (report.passed if passed is None else passed) else 1


def _only(extra: dict[str, Any], data_only: bool, *able: str) -> None:
    for name, value in extra.items():
        if value not in (None, False, ":") and name not in (*able, "out"):
            raise ConfigError(f"--{name} is for a model; found labelled structures alone")


def _drawn(result) -> Path:
    """Energies and temperature of a simulation, beside its trajectory."""
    from molequi import plotting

    log, path = result.history, result.out / "trajectory.png"
    total = log["E_tot"] - log["E_tot"][0]
    curves = {
        "potential_eV": log["E_pot"] - log["E_pot"][0],
        "kinetic_eV": log["E_kin"],
        "total_eV": total,
        "temperature_K": log["T"],
    }
    plotting.trajectory(log["time_ps"], title="energies against the start", **curves).savefig(path)
    return path


def _described(name: str, function: Callable) -> str:
    """The options of a function, from its signature and docstring."""
    defaults = {
        p.name: p.default
        for p in inspect.signature(function).parameters.values()
        if p.name not in _POSITIONAL and p.default is not p.empty
    } | _DEFAULTS[name]
    options = [f"  --{option.replace('_', '-')} {default!r}" for option, default in defaults.items()]
    return "\n".join(
        [
            f"molequi {name} MODEL STRUCTURES [--option value ...], with these options and defaults:",
            *options,
            "",
            inspect.getdoc(function) or "",
        ]
    )


def _options(words: Sequence[str], as_text: Sequence[str] = ()) -> dict[str, Any]:
    """`--draws 64 --checks a b --flag` → {"draws": 64, "checks": ["a", "b"], "flag": True}, values as in YAML.

    as_text: names whose values stay text: 1:30 is a number in YAML.
    """
    from molequi.config.schema import yaml_value

    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if name in found:
                raise ConfigError(f"--{name} is given twice")
            found[name] = [value] if equals else []
        elif not found:
            raise ConfigError(f"{word}: wanted --option value")
        else:
            found[next(reversed(found))].append(word)
    plain = {
        name: values if name in as_text else [yaml_value(value) for value in values]
        for name, values in found.items()
    }
    return {
        name: True if not values else values[0] if len(values) == 1 else values
        for name, values in plain.items()
    }


def _pairs(what: str, items: Sequence[str]) -> dict[str, str] | None:
    for item in items:
        if "=" not in item:
            raise ConfigError(f"{what} {item}: wanted name=value")
    return dict(item.split("=", 1) for item in items) or None


if __name__ == "__main__":
    sys.exit(main())
