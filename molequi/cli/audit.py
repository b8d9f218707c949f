"""``molequi audit``."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from molequi.cli.command import Command
from molequi.cli.flags import add_flags, check_flags, flags_of, given_flags
from molequi.cli.parser import Parser
from molequi.errors import ConfigError
from molequi.util.describe import Option

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEXT = (
    "Measure the symmetry and the physics of a model, or test the symmetry of labelled structures alone. The "
    "status is 1 if a model fails, and 0 for structures alone, whatever the result."
)


@dataclass(frozen=True)
class _Own:
    """Flags of the command beside those of the functions.

    Parameters
    ----------
    out : str, optional
        File for the report: .json, .html or .png.
    index : str
        Frames of the structures: one number or start:stop:step, such as :100 or ::10.
    against : str, optional
        An older model to compare with; status 1 if an error grew.
    layers : bool
        Also measure by Lie derivatives which layer breaks the symmetry.
    ladder : bool
        Also find the largest group of symmetries that the model has.
    overwrite : bool
        Replace the files of the report if they exist.
    """

    out: str | None = None
    index: str = ":"
    against: str | None = None
    layers: bool = False
    ladder: bool = False
    overwrite: bool = False

    @property
    def path(self) -> Path | None:
        """The file for the report."""
        return None if self.out is None else Path(self.out)


class _Report(Protocol):
    def to_json(self) -> str:
        """Everything as JSON."""

    def _repr_html_(self) -> str: ...


def _flags() -> dict[str, dict[str, Option]]:
    """The flags of the command itself, of the audit of a model, and of the test of structures alone."""
    from molequi.audit import CHECKS, audit
    from molequi.data_symmetry import symmetry_test

    model = flags_of(audit)
    names = ", ".join(f'"{name}"' if " " in name else name for name in CHECKS)
    model["checks"] = replace(model["checks"], text=f"Checks to make, by default all: {names}")
    model["tolerance"] = replace(model["tolerance"], kind="name=float ...")
    return {
        "own": flags_of(_Own),
        "model": model,
        "data": flags_of(symmetry_test, ("oracle",)),
    }


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    assert isinstance(parser, Parser)
    parser.forms = (
        "molequi audit MODEL STRUCTURES [--option value ...]",
        "molequi audit STRUCTURES [--option value ...]",
    )
    parser.add_argument(
        "model", help="model.safetensors, or the folder of a run; or labelled structures alone"
    )
    parser.add_argument("structures", nargs="?", help="a file that ASE reads")
    flags = _flags()
    add_flags(parser, flags["own"])
    add_flags(parser, flags["model"], "options for a model")
    add_flags(parser, flags["data"], "options for labelled structures alone")


def _audit(given: argparse.Namespace) -> int:
    from molequi.checkpoint import is_model

    data_only = given.structures is None
    flags = _flags()
    own = _own(given_flags(given, flags["own"]))
    kinds = ("data", "model") if data_only else ("model", "data")
    options = given_flags(given, flags[kinds[0]])
    if data_only and is_model(given.model):
        raise ConfigError(
            f"audit: {given.model} is a model; wanted structures after it to measure it on, or labelled "
            f"structures alone; type\n  molequi audit {given.model} STRUCTURES"
        )
    for name in given_flags(given, flags[kinds[1]]):
        if name not in flags[kinds[0]]:
            wanted, found = ("a model", "labelled structures alone")[:: 1 if data_only else -1]
            raise ConfigError(f"--{name.replace('_', '-')} is for {wanted}; found {found}")
    if data_only:
        return _audit_data(given.model, own, options)
    if own.against is not None:
        return _compare(given.model, own.against, given.structures, own, options)
    return _audit_model(given.model, given.structures, own, options)


def _own(given: Mapping[str, Any]) -> _Own:
    """The flags of the command itself. Raises ConfigError for wrong values."""
    from molequi.util.files import check_new_target

    check_flags("audit", _Own, given)
    own = _Own(**given)
    if own.path is not None and own.path.suffix not in (".json", ".html", ".png"):
        raise ConfigError(f"--out {own.path}: wanted a name that ends in .json, .html or .png")
    if own.path is not None:
        more = [own.path.with_suffix(".layers.png")] if own.layers and own.path.suffix == ".png" else []
        for path in (own.path, *more):
            check_new_target(path, overwrite=own.overwrite)
    return own


def _audit_data(structures: str, own: _Own, options: dict[str, Any]) -> int:
    """Test the symmetry of labelled structures alone."""
    from molequi import plotting
    from molequi.audit import labelled
    from molequi.data_symmetry import symmetry_test

    for name in ("against", "layers", "ladder"):
        if getattr(own, name):
            raise ConfigError(f"--{name} is for a model; found labelled structures alone")
    check_flags("audit", symmetry_test, options, ("oracle",))
    report = symmetry_test(labelled(structures, own.index), **options)
    print(report)
    _write(own.path, [report], {}, lambda: plotting.symmetry_test(report))
    return 0


def _compare(new: str, old: str, structures: str, own: _Own, options: dict[str, Any]) -> int:
    """Compare a model with an older one."""
    from molequi.audit import compare_models, unlabelled
    from molequi.checkpoint import load
    from molequi.util.files import write_file

    check_flags("audit", compare_models, options)
    if own.layers or own.ladder:
        raise ConfigError("--against compares symmetries; ask for --layers and --ladder without it")
    if own.path is not None and own.path.suffix != ".json":
        raise ConfigError(f"--out {own.path}: wanted a name that ends in .json for a comparison")
    comparison = compare_models(new, old, unlabelled(load(new), structures, own.index), **options)
    print(comparison)
    if own.path is not None:
        write_file(own.path, comparison.to_json() + "\n")
    return 0 if comparison.passed else 1


def _audit_model(model: str, structures: str, own: _Own, options: dict[str, Any]) -> int:
    """Measure the symmetry and the physics of a model."""
    from molequi import plotting
    from molequi.audit import audit, audit_files, lie_errors, symmetries, unlabelled
    from molequi.checkpoint import load
    from molequi.util.files import write_file
    from molequi.util.signature import with_dataclasses

    check_flags("audit", audit, options)
    out = own.path
    if out is not None and out.suffix == ".png" and own.ladder:
        raise ConfigError(f"--out {out}: --ladder is a table; wanted a name that ends in .json or .html")
    report = audit_files(model, structures, index=own.index, **with_dataclasses(audit, options))
    shared = {name: options[name] for name in ("seed", "limit") if name in options}
    again = load(model, device=options.get("device") or "auto") if own.layers or own.ladder else None
    used = unlabelled(again, structures, own.index) if again else None
    layers = lie_errors(again, used, **shared) if again and own.layers else None
    ladder = symmetries(again, used, **shared) if own.ladder else None
    extras: dict[str, _Report] = {
        name: extra for name, extra in (("layers", layers), ("ladder", ladder)) if extra is not None
    }
    print("\n\n".join(map(str, [report, *extras.values()])))
    _write(out, [report, *extras.values()], extras, lambda: plotting.audit(report))
    if layers is not None and out is not None and out.suffix == ".png":
        picture = plotting.lie_errors(layers)
        write_file(out.with_suffix(".layers.png"), lambda path: picture.savefig(path, format="png"))
    return 0 if report.passed else 1


def _write(
    out: Path | None,
    reports: Sequence[_Report],
    extras: Mapping[str, _Report],
    picture: "Callable[[], Figure]",
) -> None:
    """Write reports as JSON, HTML or, the first one, as a picture."""
    from molequi.util.files import write_file

    if out is None:
        return
    if out.suffix == ".png":
        figure = picture()
        write_file(out, lambda path: figure.savefig(path, format="png"))
        return
    if out.suffix == ".json":
        more = {name: json.loads(extra.to_json()) for name, extra in extras.items()}
        page = json.dumps(json.loads(reports[0].to_json()) | more, indent=1)
    else:
        page = "<!doctype html><meta charset='utf-8'>" + "".join(part._repr_html_() for part in reports)
    write_file(out, page + "\n")


COMMANDS = (Command("audit", _TEXT, _add_arguments, _audit),)
