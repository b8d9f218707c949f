"""Make the page of all options of a run from the signatures and docstrings of the package."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from molequi.approximate import TERMS
from molequi.heads import HEADS
from molequi.losses import Loss
from molequi.models import BACKBONES, Inputs
from molequi.readers import READERS, read_ase
from molequi.training.fit import fit
from molequi.training.options import GROUPS
from molequi.util.describe import options_of

_HEAD = """# All options of a run

A run has four sections, in a YAML file, on the command line (`molequi train run.yaml train.lr=1e-3`)
and in Python. This page is made from the signatures of the package; `molequi options NAME` shows a
part of it.

| section | what it holds |
|---|---|
| `data` | a [reader](#readers) with its options, and `split`, `seed`, `by` |
| `backbone` | a [backbone](#backbones) with its options |
| `predict` | names of quantities, declarations, or [heads](#heads) |
| `train` | the [options of fit](#training) |
"""


def _table(function: Callable[..., Any], leave_out: Collection[str] = ()) -> str:
    rows = options_of(function, leave_out, like=(read_ase,)).values()
    lines = ["| option | type or choices | default | unit | meaning |", "|---|---|---|---|---|"]
    for o in rows:
        cells = map(_escaped, (o.kind, o.shown_default, o.unit, o.meaning))
        lines.append("| " + " | ".join([f"`{o.name}`", *cells]) + " |")
    return "\n".join(lines) if len(lines) > 2 else "No options."


def _escaped(text: str) -> str:
    return (
        text.replace("|", "\\|")
        .replace("<", "&lt;")
        .replace("*", "\\*")
        .replace("$", "\\$")
        .replace("_", "\\_")
    )


def _section(title: str, kinds: Mapping[str, Any], leave_out: Collection[str] = ()) -> list[str]:
    parts = [f"## {title}"]
    for name, kind in kinds.items():
        summary = (
            " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split()).replace("``", "`").rstrip(":")
        )
        parts += [f"### {name}", summary, _table(kind, leave_out)]
    return parts


def page() -> str:
    """The page in Markdown."""
    parts = [_HEAD, "## Training", _table(fit, ("model", "train", "valid", "test"))]
    parts += _section("Groups of options of a training", GROUPS)
    parts += _section("Terms of the loss", {"loss": Loss}, ("quantity",))
    parts += _section("Terms beside the loss", TERMS)
    parts += _section("Readers", READERS)
    parts += _section("Backbones", BACKBONES, ("elements",))
    parts += _section("Inputs of a backbone", {"inputs": Inputs})
    parts += _section("Heads", HEADS, ("item",))
    return "\n\n".join(parts) + "\n"
