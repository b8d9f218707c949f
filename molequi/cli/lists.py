"""``molequi recipes``, ``molequi backbones`` and ``molequi options``."""

import argparse
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from molequi.cli.command import Command, parser_of
from molequi.cli.parser import table_of_cells, table_of_options
from molequi.errors import ConfigError, did_you_mean
from molequi.util.describe import options_of

_DATA = ("model", "train", "valid", "test")  # arguments of `fit` that are no options of a run


def _recipes(given: argparse.Namespace) -> None:
    from molequi.config.sections import RECIPES

    rows = [_recipe(path) for path in sorted(RECIPES.glob("*.yaml"))]
    print(table_of_cells(("recipe", "purpose", "data", "time"), rows, (12, 60, 34, 30)))
    print(
        "\nmolequi train RECIPE runs one. With data of your own: molequi train FILE, or molequi train "
        f"RECIPE data.extxyz.path=mine.xyz\nThe files are in {RECIPES}; copy one and change it."
    )


def _recipe(path: Path) -> list[str]:
    """Name, purpose, data and time of a recipe, from its comment and its settings."""
    import yaml

    text = path.read_text("utf-8")
    settings = yaml.safe_load(text)
    comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    purpose = re.split(r"[.] (?=[A-Z])", comment, maxsplit=1)[0]
    sources = {name: options for name, options in settings["data"].items() if name not in ("valid", "test")}
    ((reader, options),) = sources.items()
    where = str(options.get("path", ""))
    file = re.sub(r"^\$\{[^}]*\}/?", "", where) or re.sub(r".*[:,/]([^}]*)\}$", r"\1", where)
    shipped = "shipped" in where or where.startswith("data/")
    kind = "shipped" if shipped else "published" if where else "simulated"
    minutes = settings["train"].get("max_minutes")
    said = re.findall(r"((?:\w+ ){1,3}(?:minutes|hours?|seconds)\b[^.,;:]*)", comment)
    time = (
        f"{minutes:g} minutes" if minutes else said[-1] if said else f"{settings['train']['epochs']} epochs"
    )
    return [path.stem, purpose.partition(":")[0], f"{reader}, {kind}: {file}".rstrip(": "), time]


def _backbones(given: argparse.Namespace) -> None:
    from molequi.models import BACKBONES

    rows = []
    for name, kind in BACKBONES.items():
        found = re.search(r"\((?:after )?([A-Z]?[^()]*?\d{4},[^()]*)\)", inspect.getdoc(kind) or "")
        source = " ".join(found[1].split()) if found else ""
        rows.append([name, kind.family, kind.good_for, source])
    print(table_of_cells(("backbone", "family", "good for", "source"), rows, (14, 34, 40, 50)))
    print("\nmolequi options NAME lists the options of one; in a run file: backbone: {NAME: {cutoff: 5.0}}")


@dataclass(frozen=True)
class _Entry:
    """Something with options: what it is, its function or class, and how it is written."""

    what: str
    function: Callable[..., Any]
    written: str
    leave_out: tuple[str, ...] = ()


def _entries() -> dict[str, _Entry]:
    """Everything that a run file names, and the public functions and classes, by name."""
    import molequi
    from molequi.config.names import Names
    from molequi.config.pretraining import Pretraining
    from molequi.heads import HEADS
    from molequi.losses import Loss
    from molequi.models import BACKBONES, Inputs
    from molequi.training.fit import fit
    from molequi.training.options import GROUPS

    names = Names()
    found = {
        name: _Entry("function or class of Python", getattr(molequi, name), f"mq.{name}(…)")
        for name in molequi.__all__
        if callable(getattr(molequi, name)) and name != "Hook"
    }
    tables: tuple[tuple[str, Mapping[str, Any], str, tuple[str, ...]], ...] = (
        ("backbone", BACKBONES, "backbone: {NAME: {…}}", ("elements",)),
        ("reader", names.readers, "data: {NAME: {…}}", ()),
        ("head", HEADS, "predict: [{NAME: {quantity: …}}]", ("item",)),
        ("term of a training", names.hooks, "train: {terms: [{NAME: {…}}]}", ()),
        ("options of fit", GROUPS, "train: {NAME: {…}}", ()),
    )
    for what, table, written, leave_out in tables:
        for name, kind in table.items():
            found[name] = _Entry(what, kind, written.replace("NAME", name), leave_out)
    found["fit"] = found["train"] = _Entry("section train, and mq.fit", fit, "train: {…}", _DATA)
    found["pretrain"] = _Entry("section pretrain", Pretraining, "pretrain: {…}")
    found["loss"] = _Entry("term of the loss", Loss, "train: {loss: {forces: {…}}}", ("quantity", "name"))
    found["inputs"] = _Entry("inputs of a backbone", Inputs, "backbone: {NequIP: {inputs: {…}}}")
    return found


def _options(given: argparse.Namespace) -> None:
    entries, commands = _entries(), {command.name: command for command in given.commands}
    name = given.name
    if name is None:
        kinds: dict[str, list[str]] = {"command": sorted(commands)}
        for one, entry in entries.items():
            kinds.setdefault(entry.what, []).append(one)
        rows = [[kind, ", ".join(names)] for kind, names in kinds.items()]
        print(table_of_cells(("what", "names: molequi options NAME"), rows, (30, 100)))
        return
    lowered = {one.lower(): one for one in reversed([*entries])}
    if name in commands and name not in ("train",):
        print(parser_of(commands[name]).format_help(), end="")
        return
    found = name if name in entries else lowered.get(name.lower())
    if found is None:
        near = did_you_mean(name, [*entries, *commands])
        hint = near if near.startswith("; did") else "; molequi options lists the names"
        raise ConfigError(f"options {name}: no such name{hint}")
    print(_described(found, entries[found]))


def _described(name: str, entry: _Entry) -> str:
    """Name, purpose and options of an entry, with the fields of its groups of options."""
    from molequi.readers import read_ase
    from molequi.training.options import GROUPS

    doc = re.split(r"\n\n", inspect.getdoc(entry.function) or "", maxsplit=1)[0]
    parts = [f"{name}: {entry.what}. {' '.join(doc.split()).replace('`', '')}", f"written: {entry.written}"]
    options = options_of(entry.function, entry.leave_out, like=(read_ase,))
    parts.append(table_of_options("options", options))
    if name in ("fit", "train"):
        groups: Mapping[str, Any] = GROUPS
        parts += [table_of_options(group, options_of(kind), f"{group}.") for group, kind in groups.items()]
        parts.append("On the command line: molequi train RUN train.lr=1e-3 train.optimizer.clip=5")
    return "\n\n".join(parts)


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        nargs="?",
        help="a backbone, reader, head, term, command, or fit; without it all names are listed",
    )


def _add_nothing(parser: argparse.ArgumentParser) -> None:
    """These commands take no arguments."""


COMMANDS = (
    Command("recipes", "List the recipes: purpose, data, time.", _add_nothing, _recipes),
    Command("backbones", "List the backbones: family, what for, source.", _add_nothing, _backbones),
    Command("options", "List the options of a backbone, reader, head, fit or command.", _add_name, _options),
)
