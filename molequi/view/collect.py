"""From anything that holds structures to a Scene: structures, numbers and vectors by name."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from scipy.spatial import cKDTree

from molequi.data import Dataset
from molequi.errors import ConfigError, DataError, did_you_mean
from molequi.graph import FIELDS, Graph, separate
from molequi.plotting.scenes import Scene
from molequi.quantities import KNOWN, Quantity
from molequi.readers import load_dataset, read_ase
from molequi.readers.atoms import read_frames
from molequi.readers.load import reader_of

_DISTANCE = 0.6  # Å between neighboring points of a cloud, as wide as a ball
_ARROW = 2.0  # Å, the longest arrow in a typical molecule or crystal
_ARROW_IN_CLOUD = 0.25  # the same in a cloud, as a fraction of its width
# Entries of ase.Atoms that are structure, not results.
_GEOMETRY = ("numbers", "positions", "tags", "masses")


@dataclass
class _Frame:
    """A structure, and its values by name."""

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray | None = None
    pbc: np.ndarray | None = None
    values: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class _Named:
    """Values of all frames by name, sorted by what they are."""

    scalars: dict[str, np.ndarray] = field(default_factory=dict)
    node_scalars: dict[str, tuple[np.ndarray, ...]] = field(default_factory=dict)
    vectors: dict[str, tuple[np.ndarray, ...]] = field(default_factory=dict)
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)


def scene_of(
    structures: object,
    values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
    *,
    arrows: str | Sequence[str] | None,
    color: str | None,
    limit: int,
) -> Scene:
    """Collect what is to be shown; the arguments are those of `view`.

    Parameters
    ----------
    structures : object
        The structures.
    values : mapping, or sequence of mappings, optional
        Numbers and vectors by name.
    arrows : str, sequence of str, or None
        Names of vectors; "auto" chooses.
    color : str, optional
        Name of a number of the atoms; "auto" chooses.
    limit : int
        Largest number of structures.

    Returns
    -------
    Scene
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ConfigError(f"view(limit={limit!r}): wanted the largest number of structures, 1 or more")
    items, declared = _items(structures)
    given = _given(values, len(items))
    index = np.unique(np.linspace(0, len(items) - 1, min(limit, len(items))).round().astype(int)).tolist()
    frames = [_frame(items[k]) for k in index]
    for frame, k in zip(frames, index):
        frame.values |= {name: np.asarray(value) for name, value in given[k].items()} if given else {}
    named = _sorted(frames, declared)
    clouds = not any(f.numbers.any() for f in frames)
    factor = _enlargement(frames) if clouds else 1.0
    shown = _chosen_arrows(arrows, named)
    atoms = tuple(_atoms(f, factor) for f in frames)
    width = max(float(np.ptp(a.positions, axis=0).max()) for a in atoms)
    longest = _ARROW_IN_CLOUD * width if clouds and width else _ARROW
    return Scene(
        frames=atoms,
        index=tuple(index),
        total=len(items),
        scalars=named.scalars,
        node_scalars=named.node_scalars,
        vectors=named.vectors,
        units={name: q.unit for name, q in declared.items() if q.unit},
        classes=named.classes,
        arrows=shown,
        color=_chosen_color(color, named, clouds),
        scale={name: longest / _usual_length(vectors) for name, vectors in named.vectors.items()},
    )


def _items(structures: object) -> tuple[Sequence[Any], dict[str, Quantity]]:
    """Graphs or Atoms, and what their values are."""
    if _is_simulation(structures):
        result: Any = structures
        structures = [result.atoms] if result.out is None else Path(result.out) / "trajectory.xyz"
    if isinstance(structures, (str, os.PathLike)) and reader_of(structures)[0] is read_ase:
        structures = read_frames(os.fspath(structures))
    if isinstance(structures, (Atoms, Graph)):
        structures = [structures]
    if not isinstance(structures, (Dataset, str, os.PathLike)) and isinstance(structures, Iterable):
        structures = [one.atoms if _is_simulation(one) else one for one in structures]
    if isinstance(structures, list) and structures and all(isinstance(s, Atoms) for s in structures):
        return structures, dict(KNOWN)
    if isinstance(structures, list) and structures and all(isinstance(s, Graph) for s in structures):
        return [one for graph in structures for one in separate(graph)], dict(KNOWN)
    data = load_dataset(structures)
    return list(data), KNOWN | data.quantities


def _is_simulation(value: object) -> bool:
    """Whether it is a result of `md` or `relax`."""
    return all(hasattr(value, name) for name in ("atoms", "history", "out"))


def _given(values: object, count: int) -> Sequence[Mapping[str, Any]]:
    """A mapping for each structure; empty if there are no values."""
    if values is None:
        return []
    if isinstance(values, Mapping):
        values = [values]
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise DataError(
            f"view(values={type(values).__name__}): wanted what mq.predict returns, a list of mappings with "
            "one for each structure"
        )
    found = list(values)
    if len(found) != count or not all(isinstance(one, Mapping) for one in found):
        raise DataError(
            f"view: {len(found)} values for {count} structures; wanted a mapping for each structure, as "
            "mq.predict returns them"
        )
    return found


def _frame(item: Atoms | Graph) -> _Frame:
    if isinstance(item, Atoms):
        periodic = item.pbc.any()
        frame = _Frame(
            item.numbers,
            item.positions,
            item.cell.array if periodic else None,
            item.pbc if periodic else None,
        )
        results = {} if item.calc is None else getattr(item.calc, "results", {})
        arrays = {name: value for name, value in item.arrays.items() if name not in _GEOMETRY}
        for name, value in {**item.info, **arrays, **results}.items():
            array = np.asarray(value)
            if value is not None and array.dtype.kind in "biufU":
                frame.values[name] = array
        return frame
    if item.dim > 3:
        raise DataError(f"view: structures of {item.dim} dimensions; wanted 3 or fewer")
    frame = _Frame(item.z.cpu().numpy(), item.pos.detach().cpu().numpy())
    if item.pbc is not None and item.cell is not None and item.dim == 3:
        frame.cell, frame.pbc = item.cell[0].detach().cpu().numpy(), item.pbc[0].cpu().numpy()
    fields = {
        name: value
        for name, value in item.values("node", "graph").items()
        if name not in ("z", "pos") and not FIELDS[name].channels
    }
    frame.values = {n: v.detach().cpu().numpy() for n, v in {**fields, **item.targets}.items()}
    return frame


def _sorted(frames: Sequence[_Frame], declared: Mapping[str, Quantity]) -> _Named:
    """Values by what they are; a name that a structure lacks is left out."""
    named = _Named()
    for name in frames[0].values:
        if not all(name in f.values for f in frames):
            continue
        quantity = declared.get(name)
        found = [_shaped(f.values[name], f.positions.shape, quantity) for f in frames]
        kinds = {kind for kind, _ in found}
        values = [value for _, value in found]
        if kinds == {"scalar"}:
            named.scalars[name] = _classified(np.array(values), quantity)
        elif kinds == {"vector"}:
            named.vectors[name] = tuple(values)
        elif kinds == {"node scalar"}:
            _add_node_scalar(named, name, values, quantity)
    return named


def _shaped(value: np.ndarray, shape: tuple[int, ...], quantity: Quantity | None) -> tuple[str, np.ndarray]:
    """What a value is, and in which shape it is shown; vectors get three components."""
    count, dim = shape
    per_node = value.shape[:1] == (count,) and (count > 1 or value.ndim == 2)
    rank = value.ndim - per_node
    if quantity is not None:
        per_node, rank = quantity.per == "node", quantity.rank
    if value.ndim and not per_node and value.shape[0] == 1 and value.ndim > rank:
        value = value[0]
    if not per_node and value.shape == ():
        return "scalar", value
    if per_node and value.shape == (count,):
        return "node scalar", value
    if value.dtype.kind != "U" and value.shape == ((count, dim) if per_node else (dim,)):
        rows = value.reshape(-1, dim).astype(float)
        return "vector", np.pad(rows, ((0, 0), (0, 3 - dim)))
    return "other", value


def _classified(values: np.ndarray, quantity: Quantity | None) -> np.ndarray:
    """The names of classes instead of their numbers."""
    if quantity is None or not quantity.classes or values.dtype.kind == "U":
        return values
    return np.array(["" if np.isnan(v) else quantity.classes[int(v)] for v in values])


def _add_node_scalar(named: _Named, name: str, values: list[np.ndarray], quantity: Quantity | None) -> None:
    """Numbers of the atoms; text becomes the numbers of its classes. Unknown ones cannot be coloured."""
    if values[0].dtype.kind == "U":
        known = () if quantity is None else tuple(quantity.classes)
        classes = known or tuple(sorted({str(v) for one in values for v in one}))
        values = [np.array([classes.index(str(v)) for v in one], dtype=float) for one in values]
        named.classes[name] = classes
    elif quantity is not None and quantity.classes:
        named.classes[name] = tuple(quantity.classes)
    if not any(np.isnan(one.astype(float)).any() for one in values):
        named.node_scalars[name] = tuple(one.astype(float) for one in values)


def _chosen_arrows(arrows: str | Sequence[str] | None, named: _Named) -> tuple[str, ...]:
    if arrows is None:
        return ()
    if arrows == "auto":
        return tuple(sorted(named.vectors, key=lambda name: (name != "forces", name != "dipole"))[:1])
    wanted = (arrows,) if isinstance(arrows, str) else tuple(arrows)
    for name in wanted:
        if name not in named.vectors:
            there = f"there are {', '.join(named.vectors)}" if named.vectors else "there are none"
            raise DataError(
                f"view(arrows={name!r}): no such vectors{did_you_mean(name, named.vectors)} ({there})"
            )
    return wanted


def _chosen_color(color: str | None, named: _Named, clouds: bool) -> str | None:
    if color == "auto":  # elements say most about molecules; points of a cloud have none
        return next(iter([*named.classes, *named.node_scalars]), None) if clouds else None
    if color is not None and color not in named.node_scalars:
        there = f"there are {', '.join(named.node_scalars)}" if named.node_scalars else "there are none"
        raise DataError(
            f"view(color={color!r}): no such numbers of the atoms{did_you_mean(color, named.node_scalars)} "
            f"({there})"
        )
    return color


def _usual_length(vectors: Iterable[np.ndarray]) -> float:
    """The longest vector of a typical structure: the median over structures, so that a few with extreme
    forces do not make the arrows of all others invisible.
    """
    longest = [float(np.nan_to_num(np.linalg.norm(v, axis=1)).max(initial=0.0)) for v in vectors]
    return float(np.median(longest)) or max(longest) or 1.0


def _enlargement(frames: Sequence[_Frame]) -> float:
    """The factor by which neighboring points of clouds are as far apart as balls are wide."""
    near = [d for f in frames[:20] for d in _nearest(f.positions)]
    return _DISTANCE / float(np.median(near)) if near and np.median(near) > 0 else 1.0


def _nearest(positions: np.ndarray) -> Iterator[float]:
    if len(positions) > 1:
        yield from cKDTree(positions).query(positions, k=2)[0][:, 1].tolist()


def _atoms(frame: _Frame, factor: float) -> Atoms:
    positions = np.pad(frame.positions * factor, ((0, 0), (0, 3 - frame.positions.shape[1])))
    return Atoms(frame.numbers, positions=positions, cell=frame.cell, pbc=frame.pbc)
