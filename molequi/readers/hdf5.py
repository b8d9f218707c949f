"""HDF5 files of structures: a group for each molecule (ANI-1x, SPICE) or for each structure (MACE)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from molequi.data.assemble import assemble
from molequi.data.dataset import Dataset
from molequi.data.record import Record
from molequi.data.request import Key, Request
from molequi.data.units import is_same, is_unit
from molequi.errors import DataError, did_you_mean
from molequi.quantities import Quantity
from molequi.readers.arrays import is_wanted
from molequi.readers.files import Paths, expand_paths, select, source_of
from molequi.readers.hdf5_file import (
    PROPERTIES,
    WEIGHTS,
    Span,
    arrays_of,
    as_text,
    base_name,
    elements_of,
    names_of,
    one_of,
    opened,
    place,
    spans_of,
    unit_of,
    value_of,
    values_of,
)
from molequi.readers.npz import check_no_other_cell
from molequi.util.signature import check_keywords

if TYPE_CHECKING:
    import h5py

# Names of SPICE; a gradient is minus the forces.
_LABELS = {"energy": Key("dft_total_energy"), "forces": Key("dft_total_gradient", sign=-1)}
_MISSING = "None"  # what MACE writes for a label that is not there
_ADVICE = (
    "; ANI-1x has units={'energy': 'Hartree', 'forces': 'Hartree/Å'}, and what MACE prepared has the units "
    "of the files it was made from, mostly eV and eV/Å"
)


@check_keywords()
def read_hdf5(
    path: Paths,
    *,
    index: str | int | slice = ":",
    keys: Mapping | None = None,
    units: Mapping[str, str] | None = None,
    partial: Sequence[str] = (),
    quantities: Sequence[str | Quantity] = (),
    allow: str | Sequence[str] = (),
) -> Dataset:
    """Read labelled structures from HDF5 files (.h5, .hdf5), such as ANI-1x, SPICE, or what MACE prepared.

    Each group with positions and atomic numbers has structures, at any depth:

    - positions (S, N, 3) of S structures with the same atoms, or (N, 3) of a single one: ``coordinates``,
      ``conformations``, ``positions``, ``pos``, ``coords``, ``coord`` or ``R``;
    - atomic numbers or symbols (N,) or (S, N): ``atomic_numbers``, ``numbers``, ``species``,
      ``nuclear_charges`` or ``z``;
    - ``cell`` (3, 3) or (S, 3, 3) with lattice vectors in rows, and ``pbc`` (default all);
    - labels under the name of a quantity, or another that `keys` names, with one entry per structure (S, …).
      Those of MACE may be in a group ``properties``; one whose weight is zero is missing.

    Of SPICE, energies and forces are found by themselves: forces are minus the gradient. Text and single
    numbers become columns of `info`, which also has the ``group`` of each structure: ``by="group"`` splits by
    molecule. Groups are in the order of their names, numbers in them by value.

    Parameters
    ----------
    path : str, Path or sequence of them
        A file, a list of files, or a pattern such as ``"data/*.h5"``.
    index : str, int or slice
        Structures of each file in ASE's manner: ":", "::10", 0.
    keys : mapping, optional
        As in `read_ase`; "z", "positions" and "cell" may be named, too. ANI-1x needs
        ``{"energy": "wb97x_dz.energy", "forces": "wb97x_dz.forces"}``.
    units : mapping of str to str, optional
        As in `read_ase`. Each label needs a unit, unless its attribute ``units`` states one. Positions are in
        Å, unless they state another unit.
    partial, quantities, allow
        As in `read_ase`. Labels that are NaN are missing: name them in `partial`.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        With file and group, if the file is damaged, has another layout, or states another unit.
    MissingPackageError
        If h5py is not installed.

    Examples
    --------
    >>> import tempfile, h5py
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with h5py.File(folder + "/h2.h5", "w") as file:
    ...         file["H2/atomic_numbers"] = [1, 1]
    ...         file["H2/coordinates"] = [[[0, 0, 0], [0, 0, 0.7]], [[0, 0, 0], [0, 0, 0.8]]]
    ...         file["H2/energy"] = [-1.17, -1.16]
    ...     data = read_hdf5(folder + "/h2.h5", units={"energy": "Hartree"})
    >>> len(data), data.info["group"]
    (2, ('H2', 'H2'))
    """
    records: list[Record] = []
    requests = []
    sources = []
    options = dict(keys=keys, units=units, partial=partial, quantities=quantities, allow=allow)
    for file in expand_paths(path):
        spans = list(spans_of(file, keys))
        total = spans[-1].offset + spans[-1].stop
        chosen = select(index, total, file)
        found, request = hdf5_records(file, _selected(spans, chosen), options)
        records += found if chosen.step > 0 else found[::-1]
        requests.append(request)
        sources.append(source_of(file, total))
    for request, source in zip(requests, sources):
        if (request.factors, request.length) != (requests[0].factors, requests[0].length):
            raise DataError(
                f"{source.file} and {sources[0].file} state different units or names of labels; read each "
                "one, and add the data sets: first + second"
            )
    return assemble(records, requests[0], sources=sources)


def _selected(spans: Sequence[Span], chosen: range) -> list[Span]:
    """The spans of these structures, in the order of the file."""
    if chosen.step < 0:
        chosen = chosen[::-1]
    out = []
    for span in spans:
        first, last = span.offset + span.start, span.offset + span.stop
        begin = max(0, -(-(first - chosen.start) // chosen.step))
        own = chosen[begin : max(begin, -(-(last - chosen.start) // chosen.step))]
        if chosen.step == 1 and len(own):
            out.append(Span(span.group, own[0] - span.offset, own[-1] + 1 - span.offset, span.offset))
        else:
            out += [Span(span.group, k - span.offset, k + 1 - span.offset, span.offset) for k in own]
    return out


def hdf5_records(
    path: Path, spans: Iterable[Span], options: Mapping[str, Any]
) -> tuple[list[Record], Request]:
    """Records of some structures of a file, and the request with the names and units of the file.

    Parameters
    ----------
    path : Path
        The file.
    spans : iterable of Span
        Which structures.
    options : mapping
        ``keys``, ``units``, ``partial``, ``quantities``, ``allow`` and ``of_block`` of `Request`.

    Raises
    ------
    DataError
        As `read_hdf5`.
    """
    spans = list(spans)
    keys = dict(options.get("keys") or {})
    names = names_of(keys)
    cell_name = {name: keys.pop(name, None) for name in ("positions", "z", "cell")}["cell"]
    with opened(path) as file:
        groups = {span.group: _Group(path, file[span.group or "/"], *names, cell_name) for span in spans}
        request = _request(path, list(groups.values()), {**options, "keys": keys})
        records = [r for span in spans for r in groups[span.group].records(span, request)]
    found = [name for name in request.keys if any(name in r.values for r in records)]
    request.check_units(found, f"{path}: the file", _ADVICE)
    return records, request


class _Group:
    """A group with structures: its arrays by name."""

    def __init__(
        self, path: Path, group: "h5py.Group", pos: Sequence[str], z: Sequence[str], cell: str | None
    ) -> None:
        self.path, self.name = path, group.name.strip("/")
        self.where = place(path, group)
        self.pos, self.z = (
            one_of(group, pos, self.where, "positions"),
            one_of(group, z, self.where, "atomic numbers"),
        )
        self.count = len(self.pos) if self.pos.ndim == 3 else 1
        self.arrays = dict(arrays_of(group))
        self.arrays |= dict(arrays_of(group, PROPERTIES))
        self.weights = dict(arrays_of(group, WEIGHTS))
        for name in [n for n in self.arrays if n.endswith("_weight")]:  # of earlier versions
            self.weights.setdefault(name.removesuffix("_weight"), self.arrays[name])
        check_no_other_cell(self.path, {n: np.empty(0) for n in self.arrays if n not in ("cell", cell)})
        self.cell = cell or ("cell" if "cell" in self.arrays else None)
        geometry = {base_name(self.pos), base_name(self.z), self.cell, "pbc"}
        self.offered = tuple(n for n in self.arrays if n not in geometry)

    def unit(self, name: str) -> str | None:
        """The unit that an array states."""
        array = self.pos if name == "positions" else self.arrays.get(name)
        return None if array is None else unit_of(array)

    def records(self, span: Span, request: Request) -> Iterator[Record]:
        """Records of some of its structures."""
        start, stop = span.start, span.stop
        many = self.pos.ndim == 3
        pos = self.pos[start:stop] if many else self.pos[()][None]
        n = pos.shape[1]
        z = elements_of(self.z[start:stop] if self.z.ndim == 2 else self.z[()], self.where)
        if z.shape not in ((n,), (len(pos), n)):
            raise DataError(
                f"{self.where}: positions of shape {self.pos.shape} and atomic numbers of shape "
                f"{self.z.shape}; wanted (S, N, 3) and (N,) or (S, N)"
            )
        z = np.broadcast_to(z, pos.shape[:2]).copy()
        cells, pbc = self._cells(start, stop)
        wanted = {key.key for key in request.keys.values()} | set(request.field_keys.values())
        stored = {name: self._rows(name, start, stop) for name in self.offered if name in wanted}
        stored = {name: rows for name, rows in stored.items() if rows is not None}
        info, totals = {}, {key for names in request.invariants.values() for key in names}
        for name in self.offered:
            if self.arrays[name].shape in ((), (1,), (self.count,)) and name not in stored:
                column = self._column(name, start, stop)
                if column is not None:
                    info[name] = column
        for name in totals & {*self.offered} - stored.keys():
            stored[name] = info[name] if name in info else self._rows(name, start, stop)
        for k in range(len(pos)):
            where = f"{self.where}, structure {start + k}" if many else self.where
            values = request.pick({n: rows[k] for n, rows in stored.items() if rows is not None})
            values = {n: v for n, v in values.items() if self._has_weight(n, request, start + k)}
            yield Record(
                where=where,
                pos=pos[k].astype(np.float64),
                z=z[k],
                cell=None if cells is None else cells[k],
                pbc=None if pbc is None else pbc[k],
                values=values,
                info={"group": self.name} | {n: column[k] for n, column in info.items()},
                keys=self.offered,
            )

    def _has_weight(self, quantity: str, request: Request, number: int) -> bool:
        """Whether a label counts: MACE writes zeros with the weight zero for one that is missing."""
        key = request.keys[quantity].key if quantity in request.keys else quantity
        weight = self.weights.get(key)
        if weight is None:
            return True
        found = np.ravel(weight[number] if weight.shape[:1] == (self.count,) else weight[()])
        return found.dtype.kind not in "iuf" or bool(np.any(found != 0))

    def _rows(self, name: str, start: int, stop: int) -> Sequence[Any] | np.ndarray | None:
        """The values of an array for some structures; None if it says that it has none."""
        array = self.arrays[name]
        if self.pos.ndim == 2:
            value = value_of(array[()])
            return None if isinstance(value, str) and value == _MISSING else [value]
        if array.shape[:1] == (self.count,):
            return values_of(array[start:stop])
        if array.size == 1:
            return [value_of(array[()])] * (stop - start)
        raise DataError(
            f"{self.where}: {name!r} has the shape {array.shape} for {self.count} structures; wanted one "
            "entry a structure"
        )

    def _column(self, name: str, start: int, stop: int) -> list[Any] | None:
        """Texts or numbers of some structures, for `info`; None if the array has something else."""
        array = self.arrays[name]
        per_structure = array.shape == (self.count,) and self.pos.ndim == 3
        found = array[start:stop] if per_structure else np.ravel(array[()])
        column = [as_text(v.item() if isinstance(v, np.generic) else v) for v in found]
        if not all(isinstance(v, (str, bool, int, float)) for v in column):
            return None
        return column if per_structure else column * (stop - start)

    def _cells(self, start: int, stop: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        number = stop - start
        rows = None if self.cell is None else self._geometry(self.cell, (3, 3), start, stop)
        if rows is None:
            return None, None
        cells = np.broadcast_to(rows.astype(np.float64), (number, 3, 3)).copy()
        flags = self._geometry("pbc", (3,), start, stop) if "pbc" in self.arrays else None
        if flags is None:  # a cell alone: the structure is periodic
            return cells, np.repeat(np.any(cells, axis=(1, 2), keepdims=True)[:, 0], 3, 1)
        if not np.isin(flags, (0, 1)).all():
            raise DataError(f"{self.where}: 'pbc' is {flags.tolist()}; wanted three flags, 0 or 1")
        return cells, np.broadcast_to(flags != 0, (number, 3)).copy()

    def _geometry(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> np.ndarray | None:
        if name not in self.arrays:
            raise DataError(
                f"{self.where}: no array {name!r}; found {', '.join(map(repr, self.arrays))}"
                f"{did_you_mean(name, self.arrays)}"
            )
        array = self.arrays[name]
        if array.shape == () and value_of(array[()]) == _MISSING:
            return None
        if array.shape not in (shape, (self.count, *shape)) or array.dtype.kind not in "iufb":
            raise DataError(
                f"{self.where}: {name!r} has the shape {array.shape} ({array.dtype}); wanted {shape} or "
                f"{(self.count, *shape)}"
            )
        found: np.ndarray = array[()] if array.shape == shape else array[start:stop]
        return found


def _request(path: Path, groups: Sequence[_Group], options: Mapping[str, Any]) -> Request:
    """The request with the names of SPICE and the units that the arrays state."""
    keys = dict(options["keys"])
    for name, key in _LABELS.items():
        found = any(key.key in group.arrays for group in groups)
        own = any(name in group.arrays for group in groups)
        if found and not own and name not in keys and is_wanted(name, options.get("quantities") or ()):
            keys[name] = key
    options = {**options, "keys": keys}
    request = Request(**options)
    units = dict(options.get("units") or {})
    wanted = {name: key.key for name, key in request.keys.items()} | {"positions": "positions"}
    for name, array in wanted.items():
        stated = {unit: group for group in groups if (unit := group.unit(array)) is not None}
        silent = [g for g in groups if array in g.arrays and g.unit(array) is None]
        if stated and silent and name not in units:
            unit, group = next(iter(stated.items()))
            raise DataError(
                f"{silent[0].where}: {array!r} states no unit, and that of {group.where} {unit!r}; say it "
                f"with units={{{name!r}: ...}}"
            )
        for unit, group in stated.items():
            own_unit = units.setdefault(name, unit) if is_unit(unit) or name in units else None
            if own_unit is None:
                raise DataError(
                    f"{group.where}: {array!r} states the unit {unit!r}, which is not known; say the unit "
                    f"with units={{{name!r}: ...}}"
                )
            if is_unit(unit) and is_unit(own_unit) and not _same(unit, own_unit):
                given = (options.get("units") or {}).get(name)
                how = f"units= says {given!r}" if given else f"others of these groups state {own_unit!r}"
                raise DataError(
                    f"{group.where}: {array!r} states the unit {unit!r}, and {how}; leave {name!r} out of "
                    "units, or correct the file"
                )
    return Request(**{**options, "units": units})


def _same(unit: str, other: str) -> bool:
    try:
        return is_same(unit, other)
    except DataError:
        return False  # they measure different things
