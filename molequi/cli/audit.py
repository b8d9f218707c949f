"""``molequi audit``."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from molequi.cli.command import Command
from molequi.cli.flags import flags_of, help_text, read_flags, wants_help, with_lists
from molequi.errors import ConfigError

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
    """

    out: str | None = None
    index: str = ":"
    against: str | None = None
    layers: bool = False
    ladder: bool = False

    @property
    def path(self) -> Path | None:
        """The file for the report."""
        return None if self.out is None else Path(self.out)


class _Report(Protocol):
    def to_json(self) -> str:
        """Everything as JSON."""

    def _repr_html_(self) -> str: ...


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model.safetensors; or labelled structures alone")
    parser.add_argument("structures", nargs="?", help="a file that ASE reads")
    parser.add_argument(
        "options",
        nargs=argparse.REMAINDER,
        metavar="--option value",
        help="options of the checks; `molequi audit MODEL STRUCTURES --help` lists them",
    ).required = False


def _audit(given: argparse.Namespace) -> int:
    from molequi.audit import audit
    from molequi.data_symmetry import symmetry_test

    data_only = given.structures is None
    is_model = Path(given.model).suffix == ".safetensors"
    function: Callable[..., Any] = symmetry_test if data_only and not is_model else audit
    if wants_help(given.options):
        flags = flags_of(function, leave_out=("oracle",)) | flags_of(_Own)
        print(help_text("audit", flags.values(), _TEXT))
        return 0
    words = read_flags(given.options, as_text=("index",))
    own = _own({name: words.pop(name) for name in flags_of(_Own) if name in words})
    options = with_lists(function, words)
    if data_only:
        if is_model:
            raise ConfigError(
                f"{given.model} is a model; wanted structures after it to measure it on, or labelled "
                "structures alone"
            )
        return _audit_data(given.model, own, options)
    if own.against is not None:
        return _compare(given.model, own.against, given.structures, own, options)
    return _audit_model(given.model, given.structures, own, options)


def _own(given: Mapping[str, Any]) -> _Own:
    """The flags of the command itself. Raises ConfigError for wrong values."""
    from molequi.util.signature import check_call

    if not isinstance(given.get("index", ":"), str):
        raise ConfigError(
            f"--index: wanted one number or start:stop:step such as :100 or ::10, found {given['index']!r}"
        )
    check_call(_Own, given, where="audit")
    own = _Own(**given)
    if own.path is not None and own.path.suffix not in (".json", ".html", ".png"):
        raise ConfigError(f"--out {own.path}: wanted a name that ends in .json, .html or .png")
    return own


def _audit_data(structures: str, own: _Own, options: dict[str, Any]) -> int:
    """Test the symmetry of labelled structures alone."""
    from molequi import plotting
    from molequi.audit import labelled
    from molequi.data_symmetry import symmetry_test
    from molequi.util.signature import check_call

    for name in ("against", "layers", "ladder"):
        if getattr(own, name):
            raise ConfigError(f"--{name} is for a model; found labelled structures alone")
    check_call(symmetry_test, options, where="audit", leave_out=("data", "oracle"))
    report = symmetry_test(labelled(structures, own.index), **options)
    print(report)
    _write(own.path, [report], {}, lambda: plotting.symmetry_test(report))
    return 0


def _compare(new: str, old: str, structures: str, own: _Own, options: dict[str, Any]) -> int:
    """Compare a model with an older one."""
    from molequi.audit import compare_models, unlabelled
    from molequi.util.files import write_file
    from molequi.util.signature import check_call

    check_call(compare_models, options, where="audit", leave_out=("structures", "new", "old"))
    if own.layers or own.ladder:
        raise ConfigError("--against compares symmetries; ask for --layers and --ladder without it")
    if own.path is not None and own.path.suffix != ".json":
        raise ConfigError(f"--out {own.path}: wanted a name that ends in .json for a comparison")
    comparison = compare_models(new, old, unlabelled(structures, own.index), **options)
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
    from molequi.util.signature import check_call, with_dataclasses

    check_call(audit, options, where="audit", leave_out=("model", "structures"))
    out = own.path
    if out is not None and out.suffix == ".png" and own.ladder:
        raise ConfigError(f"--out {out}: --ladder is a table; wanted a name that ends in .json or .html")
    report = audit_files(model, structures, index=own.index, **with_dataclasses(audit, options))
    shared = {name: options[name] for name in ("seed", "limit") if name in options}
    layers = lie_errors(load(model), unlabelled(structures, own.index), **shared) if own.layers else None
    ladder = symmetries(load(model), unlabelled(structures, own.index), **shared) if own.ladder else None
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
