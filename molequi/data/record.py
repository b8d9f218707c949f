"""Record: one structure as a file has it, before units are converted and anything is checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(kw_only=True)
class Labels:
    """Raw labels of one structure.

    Parameters
    ----------
    where : str
        Place of the structure, for messages: ``train.xyz, frame 17 (line 301)``.
    values : dict of str to object
        Raw values by name of the quantity, in the units of the file; also "charge" and "spin". Classes are
        given by name or number. What is missing is left out.
    keys : tuple of str
        All keys that the file offers for this structure, for messages and for the list of what was not read.
    info : dict of str to object
        Values of columns of `Dataset.info`.
    classes : mapping of str to tuple of str
        For labels of classes given by number: the names that the file has for the numbers, if it has any.
    """

    where: str
    values: dict[str, object] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    info: dict[str, object] = field(default_factory=dict)
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(kw_only=True)
class Record(Labels):
    """One structure as a reader found it; `assemble` checks and converts it.

    Parameters
    ----------
    where, values, keys, info, classes
        As in `Labels`: place of the structure, raw values by quantity, keys of the file, columns of info, and
        names of classes.
    pos : array, shape (N, D)
        Positions, in the unit of the request (Å unless the user says otherwise).
    z : array of int, shape (N,), optional
        Atomic numbers; None for plain points.
    cell : array, shape (D, D), optional
        Lattice vectors in rows.
    pbc : array of bool, shape (D,), optional
        Periodic directions.
    vel : array, shape (N, D), optional
        Velocities.
    fields : dict of str to array
        Other fields of Graph, such as `x`, `vec`, `pair_index` with `pair_attr`.
    origin : str
        Where the structure came from, kept in `Dataset.origins`; by default `where`.
    centre, scale : array (D,) and float
        Where positions were moved and scaled, x' = (x - centre) / scale: labels that are positions follow.
    """

    pos: np.ndarray
    z: np.ndarray | None = None
    cell: np.ndarray | None = None
    pbc: np.ndarray | None = None
    vel: np.ndarray | None = None
    fields: dict[str, np.ndarray] = field(default_factory=dict)
    origin: str = ""
    centre: np.ndarray | None = None
    scale: float = 1.0
