"""``molequi info``."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from molequi.cli.command import Command
from molequi.cli.flags import add_flags, check_flags, flags_of, given_flags
from molequi.errors import ModelError


@dataclass(frozen=True)
class _Own:
    """Flags of the command.

    Parameters
    ----------
    verify : bool
        Measure the symmetry again on the structures of the symmetry report, and compare. First it is checked
        that the report belongs to these weights. The status is 1 if an error grew or a check fails.
    """

    verify: bool = False


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model.safetensors, or the folder of a run")
    add_flags(parser, flags_of(_Own))


def _info(given: argparse.Namespace) -> int:
    from molequi.audit import verify
    from molequi.checkpoint import read
    from molequi.inference.metrics import named_part
    from molequi.symmetry_report import SymmetryReport
    from molequi.util.level_records import split_level

    own = given_flags(given, flags_of(_Own))
    check_flags("info", _Own, own)
    header, tensors = read(Path(given.model))
    metadata = header.get("metadata") or {}
    chosen = split_level(given.model)[1]
    _check_level(given.model, chosen, header["model"])
    print(f"{given.model}: format {header['format']}, molequi {header.get('molequi')}")
    _print_model(header["model"], chosen)
    if "directions" in header["model"]:
        print(f"standard deviations: Laplace approximation, {header['model']['directions']} directions")
    kinds = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}))
    print(f"numbers: {sum(t.numel() for t in tensors.values())}, {kinds}")
    for name, value in (metadata.get("origin") or {}).items():
        print(f"origin, {name.replace('_', ' ')}: {', '.join(value) if isinstance(value, list) else value}")
    training = metadata.get("training", {})
    for part, numbers in training.get("errors", {}).items():
        if chosen is not None and part.partition(" ")[2] != chosen:
            continue
        name = named_part(part, training.get("samples", {}).get(part))
        print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in numbers.items()))
    levels = metadata.get("levels") or {"": metadata}
    levels = levels if chosen is None else {chosen: levels.get(chosen, {})}
    for level, record in levels.items():
        report = record.get("symmetry_report")
        print(
            f"level {level}: " * bool(level),
            SymmetryReport.from_dict(report)
            if report
            else "symmetry report: none; `fit` writes one at its end",
            sep="",
        )
    if own.get("verify"):
        comparison = verify(given.model)
        print(comparison)
        if not comparison.passed or comparison.new.failed:
            return 1
    if "run" in metadata:
        print("run:", json.dumps(metadata["run"], ensure_ascii=False))
    return 0


def _check_level(file: str, chosen: str | None, model: Mapping[str, Any]) -> None:
    """Raise ModelError for a level after an @ that the model does not have."""
    known = dict.fromkeys(level for item in model.get("predict", ()) for level in item.get("levels", ()))
    if chosen is not None and chosen not in known:
        there = (
            f"it has {', '.join(map(repr, known))}" if known else "it has a single one; leave the level out"
        )
        raise ModelError(f"{file}: level {chosen!r}: this model has no such level of theory; {there}")


def _print_model(model: Mapping[str, Any], chosen: str | None) -> None:
    """Backbone, options and quantities of a model file; of several levels all, or the chosen one."""
    from molequi.quantities import SYMBOLS

    options = dict(model["options"])
    elements = " ".join(SYMBOLS[z] for z in options.pop("elements"))
    print(f"backbone: {model['backbone']}, elements {elements}")
    print("  " + ", ".join(f"{k}={v}" for k, v in options.items()))
    for item in model["predict"]:
        quantity = item.get("quantity", item)
        shown = (
            item.get("levels", ())
            if chosen is None
            else [one for one in item.get("levels", ()) if one == chosen]
        )
        levels = f", level{'s' * (len(shown) > 1)} {', '.join(shown)}" if shown else ""
        how = item.get("head") or f"gradient of {quantity['gradient_of']}"
        print(
            f"predicts: {quantity['name']} ({quantity['unit']}), rank {quantity['rank']}, per "
            f"{quantity['per']}, {how}{levels}"
        )


COMMANDS = (
    Command(
        "info",
        "Show what a model file holds: model, training, symmetry report.",
        _add_arguments,
        _info,
    ),
)
