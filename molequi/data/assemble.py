"""From raw records to a Dataset, with all checks of content. All readers use it.

A reader of your own is a function that makes a `Record` of each structure and calls `assemble`::

    def read_mine(path, *, quantities=(), keys=None, units=None, partial=()):
        request = Request(quantities=quantities, keys=keys, units=units, partial=partial)
        records = (
            Record(
                where=f"{path}, frame {k}",
                pos=frame.positions,
                z=frame.numbers,
                values=request.pick(frame.columns),
                keys=tuple(frame.columns),
            )
            for k, frame in enumerate(parse(path))
        )
        return assemble(records, request)
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from molequi.data.checks import (
    check_distances,
    check_geometry,
    implausible_labels,
    without_stress_of_molecules,
)
from molequi.data.dataset import Dataset
from molequi.data.labels import check_complete, field_values, label_values, total_values
from molequi.data.record import Record
from molequi.data.request import Request
from molequi.data.sources import Source
from molequi.errors import DataError, DataWarning
from molequi.graph import Graph


def assemble(
    records: Iterable[Record],
    request: Request | None = None,
    *,
    sources: Sequence[Source] = (),
    found: Mapping[str, str] | None = None,
    reading: Mapping[str, object] | None = None,
) -> Dataset:
    """A checked Dataset of all records.

    Parameters
    ----------
    records : iterable of Record
        The structures as a reader found them.
    request : Request, optional
        What is to be read; by default every known quantity, in our units.
    sources : sequence of Source
        The files that were read.
    found : mapping of str to str, optional
        For the summary: where a quantity comes from, if it is not read under its key.
    reading : mapping, optional
        Options of the reader that change what a model sees, see `molequi.data.reading`.

    Returns
    -------
    Dataset
        Structures, labels in our units, columns of info, and which keys were not read.

    Raises
    ------
    DataError
        If something is missing, of a wrong shape, not finite, contradictory or impossible; the message begins
        with `Record.where`.

    Warns
    -----
    DataWarning
        If labels look like another unit or another quantity.

    Examples
    --------
    >>> from molequi.data import Record, Request, assemble
    >>> water = Record(
    ...     where="first", pos=[[0.0, 0, 0.12], [0, 0.76, -0.48], [0, -0.76, -0.48]], z=[8, 1, 1],
    ...     values={"energy": -76.0}, keys=("energy",),
    ... )
    >>> data = assemble([water], Request(units={"energy": "Hartree"}))
    >>> round(data.values("energy").item(), 3)
    -2068.065
    """
    request = Request() if request is None else request
    records = [_as_arrays(r) for r in records]
    if not records:
        raise DataError("no structures were selected; wanted at least one")
    check_geometry(records)
    records = _without_other_quantities(records, request)
    absent = request.partial if request.of_block else ()
    names = [n for n in request.candidates if n in absent or any(n in r.values for r in records)]
    for name in request.candidates:
        if name in request.named or name in names:
            check_complete(name, records, request)
    has_forces = any("forces" in r.values for r in records)
    if has_forces and request.units.get("energy") and "forces" not in request.units:
        raise DataError(
            f"units gives energy in {request.units['energy']} but no unit for forces; say it too, for "
            f"instance units={{'energy': 'kcal/mol', 'forces': 'kcal/mol/Å'}}, or 'eV/Å' if that is what "
            "the file has"
        )
    totals = total_values(records, request)
    fields = field_values(records, request)
    given: dict[str, Sequence[float] | Sequence[np.ndarray]] = {**totals, **fields}
    graphs = _graphs(records, request, given, {name: label_values(name, records, request) for name in names})
    wheres = [r.where for r in records]
    check_distances(graphs, wheres, request.allow)
    if "stress" in names:
        graphs = without_stress_of_molecules(graphs, wheres)
    used = {request.keys[n].key for n in names} | {k for n in totals for k in request.invariants[n]}
    used |= {request.field_keys[n] for n in fields}
    used |= {"velocities", "momenta"} if request.velocities else set()
    notes = {n: request.note(n) for n in names} | {
        n: f"{request.totals[n]:g} for all, by keys"
        if n in request.totals
        else f"from {'/'.join(request.invariants[n])}"
        for n in totals
    }
    notes |= {n: f"from {request.field_keys[n]!r}" for n in fields}
    data = Dataset(
        graphs,
        quantities={n: request.candidates[n] for n in names},
        info={name: column for name, column in _columns(records).items() if name not in used},
        origins=[r.origin or r.where for r in records],
        sources=sources,
        found=notes | {n: note for n, note in (found or {}).items() if n in notes},
        unused=_count(key for r in records for key in r.keys if key not in used),
        reading=reading,
        allow=request.allow,
    )
    for name, sentence in implausible_labels(data).items():
        if name not in request.allow:
            warnings.warn(sentence, DataWarning, stacklevel=4)
    return data


def _as_arrays(record: Record) -> Record:
    """The same record with arrays in place of lists. Raises DataError if positions have a wrong shape."""
    pos, z = np.asarray(record.pos), None if record.z is None else np.asarray(record.z)
    if pos.ndim != 2 or pos.dtype.kind not in "iuf":
        raise DataError(
            f"{record.where}: positions of shape {pos.shape} ({pos.dtype}); wanted numbers (N, D)"
        )
    return record if pos is record.pos and z is record.z else replace(record, pos=pos, z=z)


def _graphs(
    records: Sequence[Record],
    request: Request,
    given: Mapping[str, Sequence[float] | Sequence[np.ndarray]],
    values: Mapping[str, Sequence[torch.Tensor]],
) -> list[Graph]:
    """A Graph of each record."""
    out = []
    for k, r in enumerate(records):
        pos = r.pos * request.length if r.centre is None else (r.pos * request.length - r.centre) / r.scale
        vel = None if r.vel is None else torch.as_tensor(r.vel, dtype=torch.float64)
        try:
            graph = Graph.single(
                pos,
                r.z,
                cell=None if r.cell is None else r.cell * request.length,
                pbc=r.pbc,
                targets={name: column[k] for name, column in values.items()},
                vel=vel if r.centre is None or vel is None else vel / r.scale,
                **r.fields,
                **{name: column[k] for name, column in given.items()},
            )
        except DataError as error:
            raise DataError(f"{r.where}: {error}") from None
        out.append(graph)
    return out


def _without_other_quantities(records: Sequence[Record], request: Request) -> list[Record]:
    """The records without values that were found by their name alone and are another quantity.

    That is so where the caller reads the key as something else, or where a single number has several
    components: `mu` and `alpha` are a vector and a tensor in some files. The summary lists the key as not
    read.
    """
    taken = {request.keys[name].key for name in request.named}
    guessed = {name: q for name, q in request.candidates.items() if name not in request.named}
    other = {name for name in guessed if request.keys[name].key in taken}
    single = {name for name, q in guessed.items() if q.per == "graph" and q.rank == 0}
    out = []
    for r in records:
        wrong = [n for n, v in r.values.items() if n in other or (n in single and np.size(np.asarray(v)) > 1)]
        out.append(replace(r, values={n: v for n, v in r.values.items() if n not in wrong}) if wrong else r)
    return out


def _columns(records: Sequence[Record]) -> dict[str, list[object]]:
    """Columns of info, None where a structure has no entry."""
    columns: dict[str, list[object]] = {}
    for k, r in enumerate(records):
        for key, value in r.info.items():
            columns.setdefault(key, [None] * len(records))[k] = value
    return columns


def _count(keys: Iterable[str]) -> dict[str, int]:
    out: dict[str, int] = {}
    for key in keys:
        out[key] = out.get(key, 0) + 1
    return out
