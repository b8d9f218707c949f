"""Check and convert the labels of all structures.

They become complete, finite, of the right shape and in the units of molequi; classes become numbers.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial as partial_call

import numpy as np
import torch

from molequi.data.record import Labels, Record
from molequi.data.request import INVARIANTS, Key, Request, component_order, impossible_total
from molequi.errors import DataError, DataWarning, did_you_mean
from molequi.quantities import Quantity


def check_complete(name: str, rows: Sequence[Labels], request: Request) -> None:
    """Raise DataError if a quantity is missing in all structures, or in some where it must not be missing.

    Parameters
    ----------
    name : str
        Name of the quantity.
    rows : sequence of Labels
        Labels of all structures.
    request : Request
        What is to be read; its `partial` lists what may be missing.
    """
    found = sum(name in r.values for r in rows)
    if (found or request.of_block) and (name in request.partial or found == len(rows)):
        return
    first = next(r for r in rows if name not in r.values)
    key = request.keys[name].key
    offered = sorted(
        {k for r in rows for k in (*r.keys, *r.info)} if not found else {*first.keys, *first.info}
    )
    listed = f"found {', '.join(map(repr, offered))}" if offered else "found no keys at all"
    missing = f"(missing in {len(rows) - found} of {len(rows)} structures)"
    near = did_you_mean(key, offered)
    if request.rename is None:
        # Readers of columns with fixed names: there is nothing to be named.
        one = "point" if request.candidates[name].per == "node" else "cloud"
        hint = near if near.startswith("; did") else f"; {listed}"
        raise DataError(f"{first.where}: no {key!r} for each {one}{hint} {missing}{_allow(name, found)}")
    advice = f"; name the right key with {request.rename}={{{name!r}: ...}}"
    if near.startswith("; did"):
        advice = f"{near} Name it with {request.rename}={{{name!r}: {near.split(chr(39))[1]!r}}}"
    if key in (*first.keys, *first.info):
        what = "node" if request.candidates[name].per == "node" else "structure"
        more = _allow(name, found) if found else f"; name another key with {request.rename}={{{name!r}: ...}}"
        raise DataError(f"{first.where}: {key!r} is empty, or has no value for each {what} {missing}{more}")
    raise DataError(
        f"{first.where}: no {key!r} {missing}; {listed}{_allow(name, found) if found else advice}"
    )


def _allow(name: str, found: int | bool) -> str:
    return f"; where labels are meant to be missing say partial=[{name!r}]" if found else ""


def label_values(name: str, records: Sequence[Record], request: Request) -> list[torch.Tensor]:
    """Labels of one quantity in our unit.

    Parameters
    ----------
    name : str
        Name of the quantity.
    records : sequence of Record
        All structures.
    request : Request
        What is to be read.

    Returns
    -------
    list of Tensor
        For each structure (1, …), or (N, …) of a quantity of nodes. NaN where a label is missing.

    Raises
    ------
    DataError
        For labels of the wrong shape, and for ones that are not finite.
    """
    q, factor = request.candidates[name], request.factors[name]
    if q.classes:
        return [torch.from_numpy(_class_label(q, r, request)) for r in records]
    if q.per == "graph" and q.rank == 0 and all(isinstance(r.values.get(name), np.floating) for r in records):
        column = np.array([r.values[name] for r in records], np.float64)  # the same as below, for all at once
        if np.isfinite(column).all():
            return [torch.tensor([v], dtype=torch.float64) for v in (column * factor).tolist()]
    out, bad, unknown = [], [], name not in request.partial
    for r in records:
        array = _label(q, r, request)
        problem = _not_finite(array, q, r, request)
        if problem:
            bad.append(problem)
            unknown = unknown and bool((np.isnan(array) | np.isfinite(array)).all())
        array = array * (factor / _volume(r, request) if request.keys[name].virial else factor)
        out.append((array - r.centre) / r.scale if q.point and r.centre is not None else array)
    if bad:
        more = (
            f" (and {len(bad) - 1} more structures: {'; '.join(bad[1:5])}{' …' if len(bad) > 5 else ''})"
            if len(bad) > 1
            else ""
        )
        raise DataError(f"{bad[0]}; wanted finite numbers{more}{_allow(name, unknown)}")
    return [torch.from_numpy(a) for a in out]


def _shape(q: Quantity, r: Record) -> tuple[int, ...]:
    return (len(r.pos) if q.per == "node" else 1, *q.shape(r.pos.shape[1]))


def _label(q: Quantity, r: Record, request: Request) -> np.ndarray:
    """The label of one structure as float64, in the unit of the file."""
    shape = _shape(q, r)
    if q.name not in r.values:
        return np.full(shape, np.nan)
    key = request.keys[q.name]
    return _shaped(_numbers(r.values[q.name], key.key, r.where), shape, q, key, r.where)


def _numbers(value: object, what: str, where: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise DataError(f"{where}: {what} is {value!r}; wanted numbers")
    return array.astype(np.float64)


def _not_finite(array: np.ndarray, q: Quantity, r: Record, request: Request) -> str:
    """What is wrong with a label that is not finite; empty if nothing is."""
    wrong = ~np.isfinite(array)
    if not wrong.any() or q.name not in r.values:
        return ""
    rows = wrong.reshape(len(array), -1).any(1)
    # The label of a structure, an atom or a point is known as a whole or not at all.
    missing = bool(np.isnan(array).reshape(len(array), -1).all(1)[rows].all())
    if missing and q.name in request.partial:
        return ""
    node = f" of {'point' if r.z is None else 'atom'} {int(np.argmax(rows))}" if q.per == "node" else ""
    value = array.reshape(len(array), -1)[rows][0].squeeze().tolist()
    return f"{r.where}: {request.keys[q.name].key}{node} is {value}"


def _volume(r: Record, request: Request) -> float:
    volume = 0.0 if r.cell is None else abs(np.linalg.det(r.cell)) * request.length**3
    if volume == 0 or not np.all(r.pbc):
        raise DataError(
            f"{r.where}: a virial becomes a stress by division by the volume, but this structure has no full "
            "cell"
        )
    return volume


def _shaped(raw: np.ndarray, shape: tuple[int, ...], q: Quantity, key: Key, where: str) -> np.ndarray:
    """(n, …) from any common layout; symmetric tensors from six or nine components."""
    n = shape[0]
    if q.symmetric and shape[1] == 3:
        if raw.size == 6 * n:
            return raw.reshape(n, 6)[:, component_order(key.order)].reshape(shape)
        if raw.size == 9 * n:
            full = raw.reshape(shape)
            odd = np.abs(full - full.swapaxes(1, 2)).max()
            # Printed digits and integration grids leave a little asymmetry; more than that is another
            # quantity.
            if odd > 1e-3 * np.abs(full).max():
                raise DataError(f"{where}: {key.key} is {full[0].tolist()}; wanted a symmetric tensor")
            mean: np.ndarray = (full + full.swapaxes(1, 2)) / 2
            return mean
        raise DataError(
            f"{where}: {key.key} has {raw.size} numbers; wanted 6 or 9{' an atom' if q.per == 'node' else ''}"
        )
    if raw.size != math.prod(shape) or (q.per == "node" and raw.shape[:1] != (n,)):
        of = "" if q.per == "graph" else f" for {n} atoms"
        raise DataError(
            f"{where}: {key.key} has the shape {raw.shape}{of}; wanted "
            f"{shape if q.per == 'node' else shape[1:] or 'one number'}"
        )
    return raw.reshape(shape)


def _class_label(q: Quantity, r: Record, request: Request) -> np.ndarray:
    """Numbers of the classes of one structure; NaN where the class is not known."""
    shape = _shape(q, r)
    if q.name not in r.values:
        return np.full(shape, np.nan)
    key, raw = request.keys[q.name].key, np.asarray(r.values[q.name])
    if raw.size != math.prod(shape) or (q.per == "node" and raw.shape[:1] != shape[:1]):
        raise DataError(f"{r.where}: {key} has the shape {raw.shape}; wanted {shape}")
    node = ("point" if r.z is None else "atom") if q.per == "node" else ""
    partial = q.name in request.partial
    return class_numbers(
        raw.reshape(shape), q, f"{r.where}: {key}", names=r.classes.get(q.name), partial=partial, node=node
    )


def class_numbers(
    raw: np.ndarray,
    q: Quantity,
    where: str,
    *,
    names: Sequence[str] | None = None,
    partial: bool = False,
    node: str = "",
) -> np.ndarray:
    """Numbers of classes, in the order of the quantity.

    Parameters
    ----------
    raw : array, shape (n,)
        Names of classes, or numbers; NaN or -1 where the class is not known. If names of classes are numbers,
        such as "1" and "2", every number is a name: 1, "1" and "1.0" are the class "1".
    q : Quantity
        The quantity, with classes.
    where : str
        Place and name of the label, for messages.
    names : sequence of str, optional
        What the numbers mean, if the file has another order than the quantity.
    partial : bool
        Whether classes may be unknown.
    node : str
        "atom" or "point" for labels of nodes.

    Returns
    -------
    array of float64, shape (n,)
        NaN where the class is not known.

    Raises
    ------
    DataError
        For names and numbers of no class, and for unknown ones if `partial` is False.
    """

    def place(which: np.ndarray) -> str:
        return f"{where} of {node} {np.flatnonzero(which)[0]}" if node else where

    if raw.dtype.kind not in "iufU":
        raise DataError(f"{where} holds {raw.dtype}; wanted numbers or names of classes")
    found, inverse = np.unique(raw, return_inverse=True)
    inverse = inverse.reshape(raw.shape)
    table = np.full(len(found), np.nan)
    for k, value in enumerate(found.tolist()):
        here = (inverse == k).reshape(-1)
        number = _class_number(value, q, names, partial_call(place, here))
        if number is None and not partial:
            raise DataError(
                f"{place(here)} is not known ({value}); where labels are meant to be missing say "
                f"partial=[{q.name!r}]"
            )
        table[k] = np.nan if number is None else number
    return table[inverse]


def _class_number(
    value: float | str, q: Quantity, names: Sequence[str] | None, place: Callable[[], str]
) -> int | None:
    """The number of the class that one entry of a file means; None if it means that the class is unknown.

    A name of a class always wins over a number of one. If a class is called "1", then 1, "1" and "1.0" are
    this class, and other numbers are no class.
    """
    if names is not None and not isinstance(value, str):
        name = _at(value, names, place)
        if name is not None and name not in q.classes:
            raise DataError(f"{place()} is {name!r}, which is no class{did_you_mean(name, q.classes)}")
        return None if name is None else q.classes.index(name)
    if isinstance(value, str) and value in q.classes:
        return q.classes.index(value)
    number = _as_number(value)
    values = [_as_number(name) for name in q.classes]
    if number is not None and any(v is not None for v in values):
        same = [k for k, v in enumerate(values) if v == number]
        if len(same) == 1:
            return same[0]
        if math.isnan(number) or (number == -1 and not isinstance(value, str)):
            return None
        raise DataError(
            f"{place()} is {value}; wanted one of the classes {', '.join(q.classes)}. Their names are "
            "numbers, so a number is a name here, not a place in this list"
        )
    if number is None and isinstance(value, str):
        if not value.strip():
            return None
        raise DataError(f"{place()} is {value!r}, which is no class{did_you_mean(value, q.classes)}")
    name = _at(math.nan if number is None else number, q.classes, place)
    return None if name is None else q.classes.index(name)


def _at(value: float, names: Sequence[str], place: Callable[[], str]) -> str | None:
    """The name at a place of a list; None for NaN and -1, which mean that the class is unknown."""
    if math.isnan(value) or value == -1:
        return None
    if not (0 <= value < len(names) and value == int(value)):
        raise DataError(
            f"{place()} is {value}; wanted the number of a class, 0 to {len(names) - 1} ({', '.join(names)})"
        )
    return names[int(value)]


def _as_number(value: float | str) -> float | None:
    """A number, or a text that is one; None for other texts."""
    try:
        return float(value)
    except ValueError:
        return None


def total_values(records: Sequence[Record], request: Request) -> dict[str, list[float]]:
    """Total charge and spin multiplicity of all structures, if they are found or were named.

    Parameters
    ----------
    records : sequence of Record
        All structures.
    request : Request
        What is to be read.

    Raises
    ------
    DataError
        If only some structures have them, and for values that are no finite number.

    Warns
    -----
    DataWarning
        For a spin that is no multiplicity: some published sets count unpaired electrons.
    """
    out: dict[str, list[float]] = {}
    for name, keys in request.invariants.items():
        stated = request.totals.get(name)
        if stated is not None:
            records = [replace(r, values={name: stated} | r.values) for r in records]
        have = sum(name in r.values for r in records)
        if not have and name not in request.named_invariants:
            continue
        if have < len(records):
            first = next(r for r in records if name not in r.values)
            raise DataError(
                f"{first.where}: no {' or '.join(map(repr, keys))}, which {have} of {len(records)} "
                "structures have; wanted all or none. Found "
                f"{', '.join(map(repr, first.keys)) or 'no keys'}; keys={{{name!r}: None}} does not read it"
            )
        out[name] = []
        for r in records:
            value = _numbers(r.values[name], name, r.where)
            if value.size != 1 or not np.isfinite(value).all():
                raise DataError(
                    f"{r.where}: {name} is {r.values[name]!r}; wanted one finite number; keys={{{name!r}: "
                    "None} does not read it"
                )
            number = float(value.reshape(()))
            if stated not in (None, number):
                raise DataError(
                    f"{r.where}: {name} is {number:g} there, and keys says {stated:g} for all structures; "
                    f"leave {name} out of keys, or correct it"
                )
            out[name].append(number)
        wrong = [k for k, number in enumerate(out[name]) if impossible_total(name, number)]
        if wrong:
            number = out[name][wrong[0]]
            warnings.warn(
                f"{records[wrong[0]].where}: {name} is {number:g} (so in {len(wrong)} of {len(records)} "
                f"structures); {impossible_total(name, number)}. The numbers are taken as they are, so that "
                "a model that learns them wants the same count again; "
                f"keys={{{name!r}: None}} does not read them",
                DataWarning,
                stacklevel=5,
            )
    return out


def field_values(records: Sequence[Record], request: Request) -> dict[str, list[np.ndarray]]:
    """Values of the fields that users declared, in their units, if they are found or were named.

    Parameters
    ----------
    records : sequence of Record
        All structures.
    request : Request
        What is to be read.

    Raises
    ------
    DataError
        If only some structures have a field without a default, for values that are no numbers, and for an ion
        in an electric field whose charge is not read.
    """
    out: dict[str, list[np.ndarray]] = {}
    for name, spec in request.fields.items():
        have, key = sum(name in r.values for r in records), request.field_keys[name]
        if not have and name not in request.named_fields:
            continue
        filled = spec.default is not None and not spec.channels
        if have < len(records) and not filled:
            first = next(r for r in records if name not in r.values)
            raise DataError(
                f"{first.where}: no {key!r}, which {have} of {len(records)} structures have; wanted all or "
                f"none. Found {', '.join(map(repr, first.keys)) or 'no keys'}; keys={{{name!r}: None}} does "
                "not read it"
            )
        out[name] = []
        for r in records:
            shape = spec.shape(r.pos.shape[1])
            rows = (len(r.pos),) if spec.per == "node" else ()
            if name not in r.values:
                out[name].append(np.full((*rows, *shape), spec.default))
                continue
            value = np.asarray(r.values[name])
            if spec.dtype.is_floating_point:
                value = _numbers(value, key, r.where) * request.factors[name]
            if None not in shape and value.size == math.prod((*rows, *shape)):
                value = value.reshape((*rows, *shape))  # nine numbers of a tensor
            out[name].append(value)
    if "electric_field" in out and "charge" not in request.invariants:
        _check_ions(records, out["electric_field"])
    return out


def _check_ions(records: Sequence[Record], fields: Sequence[np.ndarray]) -> None:
    """Raise DataError for a molecule in an electric field whose net charge, which it pushes, is not read."""
    for r, value in zip(records, fields):
        stated = (r.info.get(key) for key in INVARIANTS["charge"])
        charge = next((x for x in stated if isinstance(x, (int, float, np.number)) and x), 0)
        if charge and np.any(value) and (r.pbc is None or not np.any(r.pbc)):
            raise DataError(
                f"{r.where}: the charge {charge:g} in an electric field, which pushes it, and the charge is "
                "not read; remove the field, or take a model with "
                "inputs=Inputs(charge=True, electric_field=True)"
            )
