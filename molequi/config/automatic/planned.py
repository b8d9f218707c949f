"""From a file to the settings of a run, its folder, and what is printed of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from molequi.config.automatic.asked import Asked, Plan
from molequi.config.automatic.choose import plan_of, settings_of
from molequi.config.schema import check_config, read_config
from molequi.errors import ConfigError

_FOLDERS = 1000  # of runs with one name


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
    plan = plan_of(path, asked)
    settings = read_config(settings_of(plan), overrides)
    check_config(settings)
    return plan, settings


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
    ((name, options),) = settings["backbone"].items()
    return {
        "data": settings["data"],
        "predict": settings["predict"],
        "backbone": {name: {k: v for k, v in options.items() if k != "inputs"}},
        "train": {k: v for k, v in settings["train"].items() if k not in ("out", "resume")},
    }


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
    ((backbone, options),) = settings["backbone"].items()
    sizes = ", ".join(f"{k} {v}" for k, v in options.items() if isinstance(v, (int, float)))
    train = settings["train"]
    until = [f"{train['epochs']} epochs"] if train.get("epochs") else []
    until += [f"{train['max_minutes']} minutes"] if train.get("max_minutes") else []
    notes = plan.notes | {
        "recipe": f"{plan.recipe}: {backbone}, {sizes}",
        "training": f"{' or '.join(until)} at lr {train.get('lr', 'by default')}",
        "folder": str(folder),
    }
    width = max(map(len, notes))
    print(*(f"{name:{width}}  {text}" for name, text in notes.items()), sep="\n", flush=True)
