"""Choices for point clouds: a folder for each class, or arrays."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from molequi.config.automatic.asked import Asked, Plan, described, epochs_for, missing_target
from molequi.config.automatic.parts import parts_of_npz
from molequi.data.dataset import Dataset
from molequi.errors import ConfigError, DataError, did_you_mean
from molequi.quantities import Quantity
from molequi.readers import read_points
from molequi.readers.molecule_files import suffix
from molequi.readers.npz import opened

# About two minutes for the shipped shapes on one core.
STEPS, MOST_EPOCHS, BATCH, NEIGHBORS = 750, 50, 16, 8
_SMALL = 32  # points; in smaller clouds all points see each other
_LEAST = 10  # clouds
_DRAWN = 256  # points on each surface


def plan_clouds(path: str, asked: Asked) -> Plan:
    """Choose a run for point clouds.

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
        If there is nothing to learn, or more than one thing.
    DataError
        If the clouds cannot be read.
    """
    asked.refuse("point clouds", "stress", "keys", "column", "units", "skip", "allow")
    options: dict[str, Any] = {"path": path, "centroid": True, "normalize": "rms", "samples": _DRAWN}
    split = None
    if suffix(Path(path)) == ".npz":
        del options["samples"]
        split = parts_of_npz(path)
    elif Path(path).is_dir():
        split = _parts_of_folder(Path(path))
    first = {} if split is None else {"part": split[0][""]["part"]}
    data = read_points(**options, **first)
    wanted = [q for name, q in data.quantities.items()]
    predict = _chosen(path, wanted, data, asked)
    if any(not q.classes for q in predict):
        options["quantities"] = [described(q) for q in predict]
    if len(data) < _LEAST:
        raise DataError(
            f"{path}: {len(data)} clouds; wanted at least {_LEAST}, of which some are for validation"
        )
    if split is None:
        split = _random(predict, len(data))
    sections = {"points": options | split[0].pop("")}
    sections |= {part: {"points": options | more} for part, more in split[0].items()}
    epochs = epochs_for(split[2], BATCH, STEPS, MOST_EPOCHS)
    few = int(data.counts.max()) <= _SMALL
    sees = "all others of its cloud" if few else f"its {NEIGHBORS} nearest neighbors"
    notes = {
        "clouds": data.summary().splitlines()[0],
        "target": ", ".join(f"{q.name} ({len(q.classes)} classes)" if q.classes else q.name for q in predict),
        "split": split[1],
        "model": f"each point sees {sees} and where it is in the cloud; clouds are centered and scaled",
    }
    others = [q.name for q in wanted if q not in predict]
    if others:
        notes["others"] = f"{', '.join(others)} can be learnt too: --target {others[0]}"
    backbone = {"k": None if few else NEIGHBORS, "cutoff": None}
    train: dict[str, Any] = {"epochs": epochs, "batch_size": BATCH}
    if asked.members and asked.members > 1:
        train["seed"] = list(range(asked.members))
    return Plan(sections, [described(q) for q in predict], asked.recipe or "classify", backbone, train, notes)


def _parts_of_folder(folder: Path) -> tuple[dict[str, dict[str, Any]], str, int] | None:
    """Parts of a folder whose classes have subfolders train and test."""
    kinds = [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    inner = [{p.name for p in kind.iterdir() if p.is_dir()} for kind in kinds]
    common = set.intersection(*inner) if inner else set()
    if "train" not in common:
        return None
    count = sum(1 for kind in kinds for _ in (kind / "train").iterdir())
    options: dict[str, dict[str, Any]] = {"": {"part": "train"}}
    text = "the folders train" + "".join(f" and {p}" for p in ("valid", "test") if p in common)
    if "valid" not in common:
        options[""] |= {"split": {"train": 0.9, "valid": 0.1}, "stratify": "shape"}
        text, count = text + "; a tenth of train, of each class, is for validation", int(0.9 * count)
    return options | {p: {"part": p} for p in ("valid", "test") if p in common}, text, count


def _random(predict: Sequence[Quantity], total: int) -> tuple[dict[str, dict[str, Any]], str, int]:
    """A random split, in which each class has its share of every part."""
    share = {"train": 0.8, "valid": 0.1, "test": 0.1} if total >= 50 else {"train": 0.8, "valid": 0.2}
    text = ", ".join(f"{value:.0%} {part}" for part, value in share.items())
    whole = [q.name for q in predict if q.classes and q.per == "graph"]
    if not whole:
        return {"": {"split": share}}, f"{text} at random", int(0.8 * total)
    return (
        {"": {"split": share, "stratify": whole[0]}},
        f"{text}, of each class of {whole[0]}",
        int(0.8 * total),
    )


def _chosen(path: str, found: Sequence[Quantity], data: Dataset, asked: Asked) -> list[Quantity]:
    """The quantities to learn."""
    if asked.target:
        by_name = {q.name: q for q in found}
        columns = _numbers(path, data)
        for name in asked.target:
            if name not in by_name and name in columns:
                by_name[name] = Quantity(name)
            if name not in by_name:
                offered = [*by_name, *columns]
                raise ConfigError(f"{path}: no {name!r} to learn{did_you_mean(name, offered)}")
        return [by_name[name] for name in asked.target]
    whole = [q for q in found if q.classes and q.per == "graph"]
    if len(whole) == 1:
        return whole
    classes = [q.name for q in found if q.classes]
    numbers = _numbers(path, data)
    if classes or numbers:
        raise ConfigError(missing_target(path, "labels", numbers, classes, asked.command))
    raise ConfigError(
        f"{path}: clouds without labels; wanted a folder with a subfolder for each class, or an .npz file "
        "with labels, such as shape (G,) and shape_classes (names); see help(mq.read_points)"
    )


def _numbers(path: str, data: Dataset) -> list[str]:
    """Names of the arrays of an .npz file with one number for each cloud."""
    if suffix(Path(path)) != ".npz":
        return []
    with opened(Path(path)) as arrays:
        clouds = arrays.header("n_points" if "n_points" in arrays else "pos")[0][0]
        return [
            name
            for name in arrays
            if name not in ("n_points", *data.quantities)
            and arrays.header(name)[0] == (clouds,)
            and arrays.header(name)[1] in "iuf"
        ]
