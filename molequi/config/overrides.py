"""Settings of the command line that replace those of a run file: ``train.lr=1e-3``."""

import inspect
import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from molequi.config.pretraining import FOLDER, Pretraining
from molequi.config.start import SECTION, StartFrom
from molequi.errors import ConfigError, DataWarning
from molequi.finetuning.options import Finetuning
from molequi.terms import NAMES as TERMS
from molequi.training.fit import fit
from molequi.training.options import GROUPS
from molequi.util.common_names import COMMON_VALUES, common_way
from molequi.util.typed_values import meant_by

if TYPE_CHECKING:
    from omegaconf import DictConfig

_PARTS = ("valid", "test")
_SECTIONS = ("data", "backbone", "predict", "train", "pretrain", SECTION, *TERMS)


@dataclass(frozen=True)
class Known:
    """Names that stand below a section.

    Parameters
    ----------
    readers, backbones : Mapping
        Readers and backbones by name.
    """

    readers: Mapping[str, Any]
    backbones: Mapping[str, Any]


def apply_overrides(tree: "DictConfig", overrides: Sequence[str], known: Known, recipe: str = "") -> None:
    """Replace settings.

    A reader or backbone that is not the one of the file takes its place. The new reader keeps `split` and
    `seed`. If a recipe gets data of the user, what belongs to its own data is left out: other parts of the
    data, the column of the split, reference energies.

    Parameters
    ----------
    tree : DictConfig
        The sections; they are changed.
    overrides : Sequence of str
        Such as ``"train.lr=1e-3"``.
    known : Known
        Names of readers and backbones.
    recipe : str
        Name of the recipe, if it is one.

    Raises
    ------
    ConfigError
        For an override that cannot be read, with the line to write.

    Warns
    -----
    DataWarning
        If settings of a recipe are left out.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(overrides, str):
        raise ConfigError(f"overrides={overrides!r}: wanted a list; write overrides=[{overrides!r}]")
    for override in overrides:
        _check(override, tree, known)
    keys = [override.partition("=")[0].strip() for override in overrides]
    _replace(tree, "backbone", keys, known.backbones, ())
    _replace(tree, "data", keys, known.readers, ("split", "seed"))
    if recipe:
        _leave_out(tree, keys, known.readers, recipe)
    for override in overrides:
        key = override.partition("=")[0]
        _spell_out(tree, key)
        try:
            value = OmegaConf.select(OmegaConf.from_dotlist([override]), key)
            OmegaConf.update(tree, key, value, merge=False, force_add=True)
        except (OmegaConfBaseException, YAMLError, ValueError) as error:
            text = " ".join(str(error).split())
            raise ConfigError(f"override {override!r}: cannot be read: {text}") from error
        except TypeError as error:
            raise ConfigError(
                f"override {override!r}: a setting above {key.rpartition('.')[2]!r} is a list in the file; "
                "wanted options by name there"
            ) from error


def _spell_out(tree: "DictConfig", key: str) -> None:
    """Make a mapping of a shorthand that gets an option: ``train.optimizer=soap train.optimizer.clip=1``."""
    from omegaconf import OmegaConf

    groups = {f"train.{name}": kind for name, kind in GROUPS.items()}
    groups |= {FOLDER: Pretraining, SECTION: StartFrom}
    group, _, option = key.strip().rpartition(".")
    if not option or group not in groups or not groups[group].shorthand:
        return
    value = OmegaConf.select(tree, group)
    if value is not None and not OmegaConf.is_config(value):
        OmegaConf.update(tree, group, {groups[group].shorthand: value}, merge=False)


def check_sections(overrides: Sequence[str], known: Known) -> None:
    """Raise ConfigError for an option without its section, with the line to write.

    Parameters
    ----------
    overrides : sequence of str
        Such as ``"lr=1e-3"``, which is ``train.lr=1e-3``.
    known : Known
        Names of readers and backbones.
    """
    for override in overrides:
        name, equals, value = override.partition("=")
        right = _full_name(name, "", "", known) if equals and "." not in name else ""
        if right and name not in _SECTIONS:
            raise _without_section(override, name, right, value)


def _without_section(override: str, name: str, right: str, value: str) -> ConfigError:
    shown = _value_here(name, right, value)
    return ConfigError(f"override {override!r}: the full name is {right}; write {right}={shown}")


def _check(override: str, tree: "DictConfig", known: Known) -> None:
    """Raise ConfigError for an override without a value or without its section."""
    key, equals, value = override.partition("=")
    where = f"override {override!r}"
    if not equals or not key.strip():
        hint = f"; for data of your own: data.extxyz.path={override}" if Path(override).exists() else ""
        raise ConfigError(f"{where}: wanted key=value, such as train.lr=1e-3{hint}")
    path = key.strip().split(".")
    reader, backbone = _one(tree, "data", known.readers), _one(tree, "backbone", known.backbones)
    right = ""
    if len(path) == 1 and path[0] not in _SECTIONS:
        right = _full_name(path[0], reader, backbone, known)
    elif path[0] == "data" and reader and len(path) == 2 and path[1] not in (*known.readers, *_PARTS):
        right = f"data.{reader}.{path[1]}" if path[1] in _options(known.readers[reader]) else ""
    elif path[0] == "backbone" and backbone and len(path) == 2 and path[1] not in known.backbones:
        right = _full_name(path[1], "", backbone, known)
    if right:
        raise _without_section(override, path[-1], right, value)


def _full_name(name: str, reader: str, backbone: str, known: Known) -> str:
    """The path of an option, by its name or by that of another package; empty if it is not known."""
    options = {f"train.{n}": n for n in inspect.signature(fit).parameters if n not in ("model", *_PARTS)}
    for section, chosen, table in (("backbone", backbone, known.backbones), ("data", reader, known.readers)):
        if chosen:
            options |= {f"{section}.{chosen}.{n}": n for n in _options(table[chosen])}
    for path, option in options.items():
        if option == name:
            return path
    for path, option in options.items():
        way = common_way(name, [option])
        if way is not None:
            return path + way.argument.removeprefix(option)
    groups = {n: p.default for n, p in inspect.signature(fit).parameters.items() if is_dataclass(p.default)}
    inside = [f"train.{n}.{name}" for n, one in groups.items() if name in (f.name for f in fields(one))]
    if not inside and name in (f.name for f in fields(Finetuning)):
        inside = [f"train.finetune.{name}"]
    return inside[0] if len(inside) == 1 else ""


def option_of_a_run(name: str, value: str, known: Known) -> str:
    """The setting of a run for a flag that ``molequi train`` does not have; empty if it is not known.

    Parameters
    ----------
    name, value : str
        The flag and its value.
    known : Known
        Names of readers and backbones.
    """
    found = _full_name(name, "", "", known)
    for section, table in (("backbone", known.backbones), ("data", known.readers)):
        for one in table.values():
            if not found and name in inspect.signature(one).parameters:
                found = f"{section}.NAME.{name}"
            way = common_way(name, [*inspect.signature(one).parameters])
            if not found and way is not None:
                found = f"{section}.NAME.{way.argument}"
    return f"write {found}={_value_here(name, found, value) or '…'}" if found else ""


def _value_here(name: str, path: str, value: str) -> str:
    """The value of an option as it is called here, from what the user typed."""
    option = path.rpartition(".")[2]
    way = common_way(name, [option])
    given = value if way is None or way.value is None else str(way.value)
    number = re.match(r"; write (\S+) \(in", meant_by(option, given))
    return COMMON_VALUES.get(option, {}).get(given.lower(), number[1] if number else given)


def _options(function: Any) -> list[str]:
    return [*inspect.signature(function).parameters, "split", "seed", "by"]


def _one(tree: "DictConfig", section: str, known: Collection[str]) -> str:
    """The name of the reader or backbone of a file; empty if there is none or more than one."""
    found = tree.get(section)
    if isinstance(found, str):
        return found if found in known else ""
    names = [str(name) for name in found if name in known] if hasattr(found, "keys") else []
    return names[0] if len(names) == 1 else ""


def _replace(
    tree: "DictConfig", section: str, keys: Iterable[str], known: Collection[str], kept: Sequence[str]
) -> None:
    """Put the reader or backbone that the overrides name in the place of the one of the file."""
    from omegaconf import OmegaConf

    old = _one(tree, section, known)
    named = {key.split(".")[1] for key in keys if key.startswith(f"{section}.")} & {*known}
    if not old or len(named) != 1 or old in named:
        return
    (new,) = named
    before = tree[section]
    if isinstance(before, str):
        tree[section] = {new: {}}
        return
    options = OmegaConf.to_container(before, resolve=False)
    assert isinstance(options, dict)
    own = options.pop(old) or {}
    tree[section] = {new: {name: own[name] for name in kept if name in own}, **options}


def _leave_out(tree: "DictConfig", keys: Sequence[str], readers: Collection[str], recipe: str) -> None:
    """Take away what belongs to the data of a recipe, if others are read."""
    reader = _one(tree, "data", readers)
    if f"data.{reader}.path" not in keys:
        return
    normalization = tree.get("train", {}).get("normalization") or {}
    belongs = [f"data.{part}" for part in _PARTS if part in tree.data]
    belongs += [f"data.{reader}.{name}" for name in ("by", "part", "index") if name in tree.data[reader]]
    belongs += ["train.normalization.reference_energies"] if "reference_energies" in normalization else []
    left = [path for path in belongs if not any(key == path or key.startswith(f"{path}.") for key in keys)]
    for path in left:
        *parents, name = path.split(".")
        node: Any = tree
        for parent in parents:
            node = node[parent]
        del node[name]
    if left:
        warnings.warn(
            f"recipe {recipe}: {', '.join(left)} belong{'s' if len(left) == 1 else ''} to its own data and "
            f"{'is' if len(left) == 1 else 'are'} left out for yours",
            DataWarning,
            stacklevel=4,
        )
