"""From a file to the settings of a run, its folder, and what is printed of it."""

import copy
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from molequi.config.automatic.asked import Asked, Plan
from molequi.config.automatic.choose import plan_of, settings_of
from molequi.config.names import Names
from molequi.config.overrides import Known, check_sections
from molequi.config.plain import yaml_value
from molequi.config.schema import check_config, read_config
from molequi.config.start import SECTION, StartFrom, quantity_of, starting_model
from molequi.errors import ConfigError

_PARTS = ("train", "valid", "test")
_FOLDERS = 1000  # of runs with one name
_METHOD = {"lr": 1e-3, "optimizer": {"name": "soap"}, "schedule": {"warmup": 1}}  # of a fine-tuning


def planned(path: str, overrides: Sequence[str], asked: Asked) -> tuple[Plan, dict[str, Any]]:
    """What is chosen for a file, and the sections of the run.

    Parameters
    ----------
    path : str
        The data.
    overrides : sequence of str
        Settings that replace those that were chosen.
    asked : Asked
        What the user says.

    Returns
    -------
    Plan
        The choices.
    dict
        The sections, checked.

    Raises
    ------
    ConfigError, DataError
        As `molequi.train_file` does.
    """
    names = Names()
    check_sections(overrides, Known(names.readers, names.backbones))  # before anything is read
    sections = {item.partition("=")[0].strip(): item.partition("=")[2] for item in overrides}
    plan = plan_of(path, asked)
    chosen = settings_of(plan)
    if SECTION in sections:
        plan, chosen = tuned(plan, chosen, sections[SECTION], names)
    settings = read_config(_for_overrides(chosen, overrides), overrides)
    check_config(settings)
    if overrides:
        plan = replace(plan, notes=_notes(plan, read_config(chosen), settings, overrides))
    return plan, settings


def tuned(plan: Plan, chosen: Mapping[str, Any], start: str, names: Names) -> tuple[Plan, dict[str, Any]]:
    """What is chosen for data on which a trained model is trained further.

    Its backbone is that of the model, and it learns what both the model predicts and the data have.

    Parameters
    ----------
    plan : Plan
        What is chosen for the data.
    chosen : mapping
        The sections of it.
    start : str
        The model.
    names : Names
        What the names of a file stand for.

    Raises
    ------
    ConfigError
        If the model predicts nothing that the data have.
    """
    model = starting_model(StartFrom(start), names)
    learnt = {quantity_of(item): item for item in chosen["predict"]}
    both = [name for name in learnt if name in model.quantities]
    if not both:
        raise ConfigError(
            f"{SECTION}: {start} predicts {', '.join(model.quantities)}, and the data have "
            f"{', '.join(learnt)}; there is nothing to learn. Say what the file calls them: "
            f"--keys {next(iter(model.quantities))}=NAME"
        )
    kind = type(model.backbone).__name__
    notes = plan.notes | {
        "start": f"{start}: {kind}, {sum(p.numel() for p in model.parameters()):,} parameters"
    }
    left = [name for name in learnt if name not in both]
    dropped = [name for name in model.quantities if name not in both]
    notes["target"] = ", ".join(both) + (f"; the model does not predict {', '.join(left)}" if left else "")
    if dropped:
        notes["target"] += f"; left out, since the data have no labels of them: {', '.join(dropped)}"
    notes = {name: text for name, text in notes.items() if name not in (*left, "ensemble", "model")}
    train = {k: v for k, v in chosen["train"].items() if k != "seed"} | _METHOD
    if isinstance(train.get("loss"), Mapping):
        train["loss"] = {name: weight for name, weight in train["loss"].items() if name in both}
    found = {name: section for name, section in chosen.items() if name != "backbone"}
    return replace(plan, notes=notes), found | {SECTION: start, "predict": both, "train": train}


def _for_overrides(chosen: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """What is chosen without what contradicts the settings of the user.

    A part that the user leaves out has no share of the data either; that of the test goes to the training. A
    patience looks for the best epoch, so that the last one is not kept.
    """
    found = copy.deepcopy(dict(chosen))
    given = {key.strip(): value for key, _, value in (item.partition("=") for item in overrides)}
    for options in [one or {} for name, one in found["data"].items() if name not in _PARTS]:
        split = options.get("split") or {}
        for part in _PARTS[1:]:
            if part in split and f"data.{part}" in given and yaml_value(given[f"data.{part}"]) is None:
                share = split.pop(part)
                if part == "test" and "train" in split:
                    split["train"] = round(split["train"] + share, 6)
    if given.get("train.validation.patience") and yaml_value(given["train.validation.patience"]) is not None:
        found["train"].get("validation", {}).pop("keep", None)
    return found


def _notes(
    plan: Plan, chosen: Mapping[str, Any], settings: Mapping[str, Any], overrides: Sequence[str]
) -> dict[str, str]:
    """The notes of a plan without what the user changed, and with the settings of the user in its place."""
    notes = dict(plan.notes)
    data = settings["data"]
    if _split_of(chosen["data"]) != _split_of(data):
        notes["split"] = _split_note(data)
    if chosen["predict"] != settings["predict"]:
        names = [quantity_of(q) for q in settings["predict"]]
        notes["target"] = ", ".join(names)
        notes = {name: text for name, text in notes.items() if name not in ("stress", "forces")}
    if chosen["train"].get("seed") != settings["train"].get("seed"):
        seed = settings["train"].get("seed")
        count = len(seed) if isinstance(seed, Sequence) else 1
        notes["ensemble"] = f"{count} model{'s' * (count > 1)}, by train.seed={seed}"
    kept = [(one["train"].get("validation") or {}).get("keep", "best") for one in (chosen, settings)]
    if kept[0] != kept[1]:
        notes.pop("weights", None)
    read = [name for name in ("molecules", "structures", "clouds", "keys", "model") if name in notes]
    if _without_split(chosen["data"]) != _without_split(data):
        for name in read:
            notes[name] += ", before your settings of the data"
    return notes | {"set by you": " ".join(shlex.quote(item) for item in overrides)}


_OF_SPLIT = ("split", "by", "part", "seed", "stratify", "labelled")


def _split_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the parts, by reader, and the readers of the parts."""
    return {
        name: {k: v for k, v in (options or {}).items() if k in _OF_SPLIT or name in _PARTS}
        for name, options in data.items()
    }


def _without_split(data: Mapping[str, Any]) -> dict[str, Any]:
    """What is read."""
    return {
        name: {k: v for k, v in (options or {}).items() if k not in _OF_SPLIT}
        for name, options in data.items()
        if name not in _PARTS
    }


def _split_note(data: Mapping[str, Any]) -> str:
    """How the data are split, in words."""
    (options,) = [one or {} for name, one in data.items() if name not in _PARTS]
    shares = [
        f"{size:.0%} {part}" if isinstance(size, float) and size < 1 else f"{size} {part}"
        for part, size in (options.get("split") or {}).items()
    ]
    shares += [f"{part} from its own section" for part in _PARTS if part in data]
    text = ", ".join(shares) or "none"
    for name, way in (("by", "by"), ("stratify", "each with its share of every")):
        if options.get(name):
            return f"{text} {way} {options[name]!r}"
    return f"{text} at random" if options.get("split") else text


def free_folder(path: Path, settings: Mapping[str, Any]) -> Path:
    """The first folder that is free or holds this very run.

    Parameters
    ----------
    path : Path
        The data, which give the name.
    settings : mapping
        The sections of the run.

    Raises
    ------
    ConfigError
        If there are too many runs of this name.
    """
    name = path.resolve().name.split(".")[0] or "run"
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
    for k in range(1, _FOLDERS):
        folder = Path("runs", name if k == 1 else f"{name}-{k}")
        if not folder.exists() or _same(folder / "config.yaml", settings):
            return folder
    raise ConfigError(f"runs/{name}: {_FOLDERS} runs of this name; choose a folder: --out FOLDER")


def _same(file: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a file describes this run, but for its folder and what the data fill in."""
    if not file.exists():
        return False
    try:
        found = read_config(file)
    except ConfigError:
        return False
    return _decided(found) == _decided(settings)


def _decided(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without folder and inputs."""
    ((name, options),) = _with_options(settings["backbone"]).items()
    return {
        "data": settings["data"],
        "predict": settings["predict"],
        "pretrain": settings.get("pretrain"),
        SECTION: settings.get(SECTION),
        "backbone": {name: {k: v for k, v in options.items() if k != "inputs"}},
        "train": {k: v for k, v in settings["train"].items() if k not in ("out", "resume")},
    }


def _with_options(section: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """The section ``backbone``, which may be a name alone, with the options of its backbone."""
    return {section: {}} if isinstance(section, str) else {k: v or {} for k, v in section.items()}


def print_plan(plan: Plan, settings: Mapping[str, Any], folder: Path) -> None:
    """Print what was chosen.

    Parameters
    ----------
    plan : Plan
        The choices.
    settings : mapping
        The sections of the run.
    folder : Path
        The folder of the run.
    """
    ((backbone, options),) = _with_options(settings["backbone"]).items()
    sizes = ", ".join(f"{k} {v}" for k, v in options.items() if isinstance(v, (int, float)))
    train = settings["train"]
    until = [f"{train['epochs']} epochs"] if train.get("epochs") else []
    until += [f"{train['max_minutes']} minutes"] if train.get("max_minutes") else []
    from_file = f"{backbone}, {sizes or 'its defaults'}"
    notes = plan.notes | {
        "recipe": f"{plan.recipe}: {'the training alone' if SECTION in settings else from_file}",
        "training": f"{' or '.join(until)} at lr {train.get('lr', 'by default')}",
        "folder": str(folder),
    }
    width = max(map(len, notes))
    print(*(f"{name:{width}}  {text}" for name, text in notes.items()), sep="\n", flush=True)
