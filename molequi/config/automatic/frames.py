"""Choices for frames with energies and forces, and for other structures that ASE or .npz files hold."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molequi.config.automatic.asked import (
    Asked,
    Plan,
    described,
    epochs_for,
    missing_target,
    scalar_quantity,
)
from molequi.config.automatic.molecules import molecule_split, training
from molequi.config.automatic.parts import parts_of_npz
from molequi.data.dataset import Dataset
from molequi.data.request import INVARIANTS, stated_total
from molequi.errors import ConfigError, DataError, did_you_mean
from molequi.graph import Graph
from molequi.quantities import KNOWN, Quantity
from molequi.readers import READERS
from molequi.readers.hdf5_file import HDF5
from molequi.readers.molecule_files import suffix
from molequi.readers.tables import quoted
from molequi.store.manifest import is_store

# About two minutes on one core for small structures.
STEPS, MOST_EPOCHS, BATCH = 2500, 60, 5
_LEAST = 10  # frames
_TRAJECTORY = ("trajectory", "traj", "traj_id", "trajectory_id", "replica", "run", "run_id", "md_id", "group")
_FORCE_FIELD = ("energy", "forces", "stress")
# Beginnings and ends by which codes mark a reference label.
_MARKS = ("ref", "dft", "qm", "total", "tot", "mace", "target", "free", "potential")


def plan_frames(path: str, asked: Asked) -> Plan:
    """Choose a run for structures with labels.

    Parameters
    ----------
    path, asked
        As in `molequi.config.automatic.choose.plan_of`.

    Returns
    -------
    Plan

    Raises
    ------
    ConfigError
        If the labels that are wanted are not there.
    DataError
        If the file cannot be read.
    """
    asked.refuse("structures", "column", "skip")
    reader = _reader(path)
    options: dict[str, Any] = {"path": path}
    if asked.keys:
        options["keys"] = dict(asked.keys)
    if asked.allow:
        options["allow"] = list(asked.allow)
    if reader in ("npz", "hdf5") and asked.units:
        options["units"] = {name: unit for name, unit in asked.units.items() if name}
    read: Callable[..., Dataset] = READERS[reader]  # type: ignore[assignment]  # one of several
    data = read(**options)
    if not set(asked.keys) - set(INVARIANTS) and reader not in ("npz", "store"):
        keys = _keys(data, path)
        if keys:
            options["keys"] = keys | dict(asked.keys)
            data = read(**options)
    if len(data) < _LEAST:
        raise DataError(
            f"{path}: {len(data)} structures; wanted at least {_LEAST}, of which some are for validation"
        )
    notes = {"structures": data.summary().splitlines()[0]}
    if options.get("keys"):
        notes["keys"] = ", ".join(
            f"{name} {key} of all"
            if name in INVARIANTS and stated_total(key) is not None
            else f"{name} from {key!r}"
            for name, key in options["keys"].items()
        )
    if asked.target and not set(asked.target) <= set(_FORCE_FIELD):
        return _property(reader, options, data, asked, notes)
    others = [name for name in data.quantities if data.labelled(name) and name not in _FORCE_FIELD]
    lone = data.labelled("energy") and (data.labelled("forces") or not others)
    if not lone and not asked.target:
        raise ConfigError(_nothing(path, data, asked.command))
    return _force_field(reader, options, data, asked, notes)


def _reader(path: str) -> str:
    """The reader of a file of structures."""
    kind = suffix(Path(path))
    if is_store(Path(path)):
        return "store"
    known = {".npz": "npz", ".xyz": "extxyz", ".extxyz": "extxyz", **dict.fromkeys(HDF5, "hdf5")}
    return known.get(kind, "ase")


def _keys(data: Dataset, path: str) -> dict[str, str]:
    """Names of energy, forces and stress in the file, where each has one that is like it."""
    found = {}
    for name in _FORCE_FIELD:
        if data.labelled(name):
            continue
        similar = [key for key in data.unused if _is_like(key, name)]
        if len(similar) > 1 and name != "stress":
            raise ConfigError(
                f"{path}: no {name!r}, and {' and '.join(map(repr, similar))} are like it; say which: "
                f"--keys {name}={quoted(similar[0])}"
            )
        if len(similar) == 1:
            found[name] = similar[0]
    return found


def _is_like(key: str, name: str) -> bool:
    """Whether a key is the name of a quantity with a mark before or after it: REF_energy, forces_dft."""
    words = key.lower().replace("-", "_").split("_")
    singular = {name, name.removesuffix("s")}
    return any(word in singular for word in words) and all(word in (*singular, *_MARKS) for word in words)


def _nothing(path: str, data: Dataset, command: str) -> str:
    """The message that a file has no energies, with what it has."""
    have = [n for n in data.quantities if data.labelled(n)]
    if have:
        return missing_target(
            path, "quantities", [n for n in have if not KNOWN[n].rank], [], command
        ) + "".join(f"\n  molequi {command} {quoted(path)} --target {n}" for n in have if KNOWN[n].rank)
    columns = [n for n, column in data.info.items() if _numbers(column)]
    unread = (
        f" Not read: {', '.join(data.unused)}; if one of them is the energy: --keys energy=NAME."
        if data.unused
        else ""
    )
    listed = "".join(f"\n  molequi {command} {quoted(path)} --target {quoted(n)}" for n in columns[:20])
    return f"{path}: no energies.{unread}" + (f" Or learn a column of numbers:{listed}" if columns else "")


def _force_field(
    reader: str, options: dict[str, Any], data: Dataset, asked: Asked, notes: dict[str, str]
) -> Plan:
    """Energy, forces and perhaps stress."""
    path = options["path"]
    predict = [n for n in ("energy", "forces") if data.labelled(n)]
    for name in asked.target:
        if not data.labelled(name):
            raise ConfigError(f"{path}: no labels of {name!r}{_unread(data, name)}")
    if asked.target:
        predict = [n for n in _FORCE_FIELD if n in asked.target]
    has = data.labelled("stress")
    if asked.stress and not has:
        raise ConfigError(f"--stress: {path} has no stress{_unread(data, 'stress')}")
    if has and asked.stress is not False and "forces" in predict and "stress" not in predict:
        predict.append("stress")
        notes["stress"] = "in the file, so it is learnt too; --no-stress leaves it out"
    if "forces" not in predict and "energy" in predict:
        notes["forces"] = "none in the file: energies alone make a poor force field"
    if "energy" not in predict:
        raise ConfigError(
            f"{path}: forces and stress are derivatives of the energy: --target energy --target forces"
        )
    asked.check_units(predict)
    units = {name: unit for name, unit in asked.units.items() if name}
    if "" in asked.units:
        raise ConfigError(
            f"--units {asked.units['']}: say of which quantity: --units energy={quoted(asked.units[''])}"
        )
    partial = [n for n in predict if not data.known(n).all()]
    if reader == "store":  # what may be missing was said when it was made
        partial = []
    section = options | {name: value for name, value in (("units", units), ("partial", partial)) if value}
    split, note, count = _split(path, reader, data)
    notes |= {"target": ", ".join(predict), "split": note}
    epochs = epochs_for(count, BATCH, STEPS, MOST_EPOCHS)
    train: dict[str, Any] = {
        "epochs": epochs,
        "max_minutes": None,
        "batch_size": BATCH,
        "compute": {"accelerate": False},
        "loss": _weights(predict, data),
    }
    if asked.members and asked.members > 1:
        train["seed"] = list(range(asked.members))
    return Plan(_sections(reader, section, split), predict, asked.recipe or "small", {}, train, notes)


def _unread(data: Dataset, name: str) -> str:
    """What the file has in place of a quantity."""
    known = [n for n in data.quantities if data.labelled(n)]
    unread = f"; not read: {', '.join(data.unused)}; name it: --keys {name}=NAME" if data.unused else ""
    return f" (it has {', '.join(known) or 'no labels'}{unread})"


def _weights(predict: Sequence[str], data: Dataset) -> dict[str, Any]:
    """Weights of the loss: 100 for forces, 1 for the energy; a tenth of the forces' share for the stress."""
    weights: dict[str, Any] = {"energy": 1, "forces": 100, "stress": 1}
    if "stress" in predict and "forces" in predict:
        scale = {n: float(torch.nan_to_num(data.values(n)).std()) for n in ("forces", "stress")}
        weights["stress"] = float(f"{10 * (scale['forces'] / max(scale['stress'], 1e-9)) ** 2:.0e}")
    return {name: weights[name] for name in predict}


def _property(
    reader: str, options: dict[str, Any], data: Dataset, asked: Asked, notes: dict[str, str]
) -> Plan:
    """Other quantities of the structures: labels that are known, or columns of numbers."""
    path = str(options["path"])
    predict: list[Any] = []
    units: dict[str, str] = {}
    keys: dict[str, str] = dict(options.get("keys", {}))
    learnt, partial = [], []
    for name in asked.target:
        q, unit = _structure_quantity(name, data, asked, path)
        predict.append(described(q))
        units |= {} if unit is None else {q.name: unit}
        keys |= {} if q.name == name or q.name in keys else {q.name: name}
        known = (
            data.known(name)
            if name in data.quantities
            else np.array([v is not None for v in data.info[name]])
        )
        partial += [] if known.all() else [q.name]
        learnt.append(f"{q.name}{f' in {unit}' if unit else ''}")
    asked.refuse("a property of structures", "stress")
    asked.check_units([*asked.target, *(q if isinstance(q, str) else q["name"] for q in predict)])
    section = options | {"units": options.get("units", {}) | units, "keys": keys, "partial": partial}
    section = {name: value for name, value in section.items() if value not in ({}, [])}
    if reader == "store":
        section.pop("partial", None)
    section["quantities"] = predict
    if partial:
        section["labelled"] = True
    split, note, _ = _split(path, reader, data)
    train, more = training(len(data), asked, path)
    notes |= {"target": ", ".join(learnt), "split": note} | more
    return Plan(_sections(reader, section, split), predict, asked.recipe or "property", {}, train, notes)


def _structure_quantity(name: str, data: Dataset, asked: Asked, path: str) -> tuple[Quantity, str | None]:
    """A label or a column of numbers of the structures, and its unit in the file."""
    if name in data.quantities:
        return data.quantities[name], asked.unit(name)
    if name in data.info and _numbers(data.info[name]):
        return scalar_quantity(name, asked.unit(name), path)
    offered = [
        *(n for n in data.quantities if data.labelled(n)),
        *(n for n, c in data.info.items() if _numbers(c)),
    ]
    raise ConfigError(f"{path}: no {name!r} to learn{did_you_mean(name, offered)}")


def _numbers(column: Sequence[Any]) -> bool:
    known = [v for v in column if v is not None]
    return bool(known) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in known)


def _sections(reader: str, section: dict[str, Any], split: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The section ``data``: the reader with its split, and readers of other parts."""
    return {reader: section | split[""]} | {
        part: {reader: section | options} for part, options in split.items() if part
    }


def _split(path: str, reader: str, data: Dataset) -> tuple[dict[str, dict[str, Any]], str, int]:
    """Split options by part that is read on its own ("" is the first), a note, and frames for training."""
    if reader == "npz":
        found = parts_of_npz(path)
        if found:
            return found
    if "smiles" in data.info:
        texts = [text if isinstance(text, str) else "" for text in data.info["smiles"]]
        options, note = molecule_split(reader, texts, "smiles")
        return {"": options}, note, int(0.8 * len(data))
    share = {"train": 0.8, "valid": 0.1, "test": 0.1} if len(data) >= 50 else {"train": 0.8, "valid": 0.2}
    text = ", ".join(f"{value:.0%} {part}" for part, value in share.items())
    count = int(0.8 * len(data))
    for name in _TRAJECTORY:
        column = data.info.get(name)
        if column is not None and len(share) < len(set(column)) < len(data) / 2:
            what = "groups" if name == "group" else "trajectories"
            note = f"{text} by the column {name!r}: whole {what} stay together"
            return {"": {"split": share, "by": name}}, note, count
    if _is_trajectory(data.graphs):
        note = f"{text} in blocks of successive frames, because neighboring frames are alike"
        return {"": {"split": share, "by": "blocks"}}, note, count
    return {"": {"split": share}}, f"{text} at random: successive frames are not alike", count


def _is_trajectory(graphs: Sequence[Graph], pairs: int = 200) -> bool:
    """Whether successive frames are more alike than others: the median of their distances is half of it."""
    random = np.random.RandomState(0)
    numbers = np.arange(len(graphs) - 1)
    chosen = random.permutation(numbers)[:pairs]
    near = [_distance(graphs[k], graphs[k + 1]) for k in chosen]
    far = [_distance(graphs[k], graphs[j]) for k, j in zip(chosen, random.permutation(len(graphs)))]
    alike, others = ([d for d in found if d is not None] for found in (near, far))
    enough = len(alike) > len(chosen) / 2 and len(others) > 5
    return bool(enough and np.median(alike) < 0.5 * np.median(others))


def _distance(one: Graph, other: Graph) -> float | None:
    """Root mean square distance of the atoms about their centroids; None for other compositions."""
    if one.z.shape != other.z.shape or not torch.equal(one.z, other.z):
        return None
    a, b = (g.pos - g.pos.mean(0) for g in (one, other))
    return float((a - b).square().sum(1).mean().sqrt())
