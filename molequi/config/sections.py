"""The sections of a run, read from a file, a recipe or a mapping, with the settings that replace them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from molequi.config.names import Names
from molequi.config.overrides import Known, apply_overrides
from molequi.config.places import register_places
from molequi.config.plain import as_plain
from molequi.config.start import SECTION
from molequi.config.terms import TERMS
from molequi.datasets import shipped_like
from molequi.errors import ConfigError, MolequiError
from molequi.weights.files import READERS as NETWORK_READERS

SECTIONS = ("data", "backbone", "predict", "train")
OPTIONAL = ("pretrain", SECTION, *TERMS)
NETWORKS = "WeightModel"  # the model of networks, in the place of a backbone
RECIPES = Path(__file__).resolve().parent / "recipes"


def read_sections(
    config: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Sequence[str] = (),
    names: Names | None = None,
    more: Names | None = None,
) -> dict[str, Any]:
    """Read the sections of a run with its overrides, unchecked.

    Parameters
    ----------
    config, overrides, names
        As in `read_config`.
    more : Names, optional
        Further readers and backbones that overrides may name.

    Returns
    -------
    dict
        The sections as plain values.

    Raises
    ------
    ConfigError
        If the file or an override cannot be read.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    register_places()
    where: str | Path = "config"
    try:
        if isinstance(config, Mapping):
            tree = OmegaConf.create(as_plain(config))
        else:
            where = find_config(config)
            tree = OmegaConf.load(where)
        if not isinstance(tree, DictConfig):
            raise ConfigError(
                f"{where}: wanted the sections {', '.join(SECTIONS)}; found a"
                f" {type(OmegaConf.to_container(tree)).__name__}"
            )
        recipe = where.stem if isinstance(where, Path) and where.parent == RECIPES else ""
        if recipe and any(item.startswith((f"{SECTION}=", f"{SECTION}.")) for item in overrides):
            for section in ("backbone", "predict"):  # those of the model
                tree.pop(section, None)
        first = names or Names()
        known = Known(
            {**first.readers, **(more.readers if more else {})},
            {**first.backbones, **(more.backbones if more else {})},
        )
        apply_overrides(tree, overrides, known, recipe)
        for part in ("valid", "test"):
            if isinstance(tree.get("data"), DictConfig) and part in tree.data and tree.data.get(part) is None:
                del tree.data[part]  # data.test=null leaves out the test of a recipe
        for section in OPTIONAL:
            if section in tree and tree.get(section) is None:
                del tree[section]
        return cast(dict[str, Any], OmegaConf.to_container(tree, resolve=True, throw_on_missing=True))
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError, ValueError) as error:
        if isinstance(error, MolequiError):
            raise
        reason: BaseException | None = error
        while reason is not None and not isinstance(reason, MolequiError):
            reason = reason.__context__
        if reason is not None:  # of ${shipped:…}, which OmegaConf wraps
            raise ConfigError(f"{where}: {reason}") from reason
        raise ConfigError(f"{where}: cannot be read: {' '.join(str(error).split())}") from error


def recipes() -> list[str]:
    """List the names of the recipes in the package.

    Examples
    --------
    >>> "demo" in recipes()
    True
    """
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_config(config: str | os.PathLike[str]) -> Path:
    """The file of a path or of the name of a recipe.

    Parameters
    ----------
    config : path or str
        A YAML file, or the name of a recipe.

    Raises
    ------
    ConfigError
        If there is neither.
    """
    path = Path(config)
    if path.exists():
        return path
    recipe = RECIPES / f"{config}.yaml"
    if path.name == str(config) and recipe.exists():
        return recipe
    raise ConfigError(
        f"{config}: no such file, and no recipe of this name; recipes: {', '.join(recipes()) or 'none'}"
        f"{shipped_like(path)}"
    )


def of_networks(config: Mapping[str, Any]) -> bool:
    """Whether a run trains a model of networks, see `molequi.config.networks`.

    Parameters
    ----------
    config : mapping
        The sections as plain values.

    Examples
    --------
    >>> of_networks({"backbone": {"WeightModel": {"channels": 16}}}), of_networks({"backbone": "PaiNN"})
    (True, False)
    """
    backbone, data = config.get("backbone"), config.get("data")
    reads = isinstance(data, Mapping) and any(name in NETWORK_READERS for name in data)
    return reads or backbone == NETWORKS or (isinstance(backbone, Mapping) and NETWORKS in backbone)
