"""Which choices belong to which file, and what the run is."""

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from molequi.config.automatic.asked import Asked, Plan
from molequi.config.automatic.clouds import plan_clouds
from molequi.config.automatic.frames import plan_frames
from molequi.config.automatic.molecules import plan_sdf, plan_table
from molequi.config.sections import RECIPES, recipes
from molequi.errors import ConfigError, did_you_mean
from molequi.readers.files import check_file
from molequi.readers.molecule_files import CSV, SDF, SMI, suffix
from molequi.readers.npz import opened
from molequi.readers.point_files import MESHES
from molequi.store.manifest import check_no_stores_inside, is_store

YAML = (".yaml", ".yml")


def is_data(name: str) -> bool:
    """Whether a word of the command line names data, and not a YAML file or a recipe.

    Parameters
    ----------
    name : str
        The word.
    """
    path = Path(name)
    if path.suffix in YAML or (name in recipes() and not path.is_file()):
        return False
    return path.exists() or glob.has_magic(name) or bool(path.suffix)


def plan_of(path: str, asked: Asked) -> Plan:
    """Choose a run for a file, a folder or a pattern.

    Parameters
    ----------
    path : str
        The data.
    asked : Asked
        What the user says.

    Returns
    -------
    Plan

    Raises
    ------
    ConfigError, DataError
        If the data are not there, cannot be read, or say too little; the message has the next command.
    """
    kind = suffix(Path(path))
    if not glob.has_magic(path) and not Path(path).is_dir():
        check_file(Path(path))
    if asked.recipe is not None and asked.recipe not in recipes():
        raise ConfigError(f"--recipe {asked.recipe}: no such recipe{did_you_mean(asked.recipe, recipes())}")
    if is_store(Path(path)):
        return plan_frames(path, asked)
    if kind in CSV + SMI:
        return plan_table(path, asked)
    if kind in SDF:
        return plan_sdf(path, asked)
    check_no_stores_inside(Path(path))
    if Path(path).is_dir():
        pattern = _frames_in(Path(path))
        return plan_clouds(path, asked) if pattern is None else plan_frames(pattern, asked)
    if kind == ".npz":
        with opened(Path(path)) as arrays:
            atoms = bool({"z", "nuclear_charges"} & set(arrays))
        return plan_frames(path, asked) if atoms else plan_clouds(path, asked)
    if kind == ".npy" or kind in MESHES:
        return plan_clouds(path, asked)
    return plan_frames(path, asked)


def _frames_in(folder: Path) -> str | None:
    """The pattern of the files of a folder of structures of atoms; None for another folder."""
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith(".")]
    kinds = {p.suffix.lower() for p in files}
    if not files or len(kinds) > 1:
        return None
    (kind,) = kinds
    if kind in (".xyz", ".extxyz"):
        with open(files[0], encoding="utf-8", errors="replace") as file:
            return f"{folder}/*{kind}" if file.readline().strip().isdigit() else None
    return f"{folder}/*{kind}" if kind in (".cif", ".traj", ".vasp", ".out", ".json") else None


def settings_of(plan: Plan) -> dict[str, Any]:
    """The four sections of a run: the recipe with what was chosen.

    Parameters
    ----------
    plan : Plan
        The choices.

    Returns
    -------
    dict
        Plain values.

    Raises
    ------
    ConfigError
        If the recipe has no single backbone.
    """
    from omegaconf import OmegaConf

    recipe: Any = OmegaConf.to_container(OmegaConf.load(RECIPES / f"{plan.recipe}.yaml"), resolve=False)
    ((name, options),) = recipe["backbone"].items()
    options = {k: v for k, v in options.items() if k != "inputs"} | plan.backbone
    train = _merged(recipe["train"], plan.train)
    for option in ("normalization", "out"):  # of the data of the recipe
        train.pop(option, None)
    if "loss" not in plan.train and isinstance(train.get("loss"), Mapping):
        del train["loss"]  # names quantities of the recipe
    train = {k: v for k, v in train.items() if v is not None}
    return {"data": plan.data, "backbone": {name: options}, "predict": plan.predict, "train": train}


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The options of both; those of the second win."""
    return {**first, **second}
