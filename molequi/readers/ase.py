"""Structures from and to ASE: all that ase.io reads, extended XYZ with exact places of errors, lists of Atoms."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from molequi.data.assemble import assemble
from molequi.data.dataset import Dataset
from molequi.data.record import Record
from molequi.data.request import INVARIANTS, Request
from molequi.data.sources import Source
from molequi.data.units import factor
from molequi.errors import DataError, DataWarning
from molequi.graph import FIELDS, Graph
from molequi.quantities import KNOWN, Quantity
from molequi.readers import extxyz
from molequi.readers.extxyz import Frame
from molequi.readers.files import Paths, expand_paths, select, source_of

_GEOMETRY = {"numbers", "positions", "momenta", "tags", "masses", "initial_charges", "initial_magmoms"}


def read_ase(
    path: Paths,
    *,
    format: str | None = None,
    index: str | int | slice = ":",
    keys: Mapping | None = None,
    units: Mapping[str, str] | None = None,
    partial: Sequence[str] = (),
    quantities: Sequence[str | Quantity] = (),
) -> Dataset:
    """Labelled structures from any file that ase.io reads.

    path: a file, a list of files, or a pattern ("data/*.xyz"); extended XYZ (.xyz, .extxyz, also .gz) goes to
        `read_extxyz`.
    index: which frames of each file, as in ASE (":", "::10", 0).
    quantities: names or Quantity objects to read; without it all known ones that the files have.
    keys: where a quantity has another name there, `{"forces": "REF_forces"}`, or is meant otherwise (see `Key`):
        `{"stress": {"key": "raw", "sign": -1, "order": "vasp"}}`; `{"stress": {"key": "virials", "virial": True}}` for
        a virial, which is -V times the stress. "charge" and "spin" name given invariants (found as `charge`,
        `total_charge`, `spin`, `spin_multiplicity` by themselves); "velocities" is read only where named here; None
        reads nothing of that name.
    units: of the file, by quantity and for "positions": `{"energy": "kcal/mol", "forces": "kcal/mol/Å"}`; eV and Å
        otherwise. Stress has ASE's sign: positive where the structure wants to contract.
    partial: names that may be missing in some structures; they are NaN there.
    Labels are taken from info, arrays and attached calculators alike. Raises DataError, with file and frame, for what
    is missing, not finite, contradictory or impossible, ConfigError for names that do not exist.
    """
    request = Request(quantities=quantities, keys=keys, units=units, partial=partial)
    sources: list[Source] = []

    def frames() -> Iterator[Frame]:
        for file in expand_paths(path):
            reader = _extxyz_frames if _is_extxyz(file, format) else _ase_frames
            yield from reader(file, format, index, sources)

    return assemble((_record(f, request) for f in frames()), request, sources=sources)


def read_extxyz(
    path: Paths,
    *,
    index: str | int | slice = ":",
    keys: Mapping | None = None,
    units: Mapping[str, str] | None = None,
    partial: Sequence[str] = (),
    quantities: Sequence[str | Quantity] = (),
) -> Dataset:
    """Labelled structures from extended XYZ, plain or .gz; arguments and errors are those of `read_ase`, and errors
    name the line.
    """
    return read_ase(
        path, format="extxyz", index=index, keys=keys, units=units, partial=partial, quantities=quantities
    )


def from_atoms(
    structures: Iterable,
    *,
    keys: Mapping | None = None,
    units: Mapping[str, str] | None = None,
    partial: Sequence[str] = (),
    quantities: Sequence[str | Quantity] = (),
) -> Dataset:
    """Labelled structures from ase.Atoms objects; arguments and errors are those of `read_ase`. Calculators are not
    run.
    """
    request = Request(quantities=quantities, keys=keys, units=units, partial=partial)
    return assemble((_record(Frame(atoms, "", k), request) for k, atoms in enumerate(structures)), request)


def to_atoms(
    graph: Graph,
    results: Mapping[str, object] | None = None,
    quantities: Mapping[str, Quantity] | None = None,
):
    """An ase.Atoms of a single structure, its results in a calculator, or in info and arrays where ASE has no name.

    results: by name, shaped as a model returns them (default: the targets of the graph); NaN is left out. Stress goes
    to ASE's six components (xx, yy, zz, yz, xz, xy).
    quantities: what results of names that are not known are.
    """
    from ase import Atoms
    from ase.calculators.calculator import all_properties
    from ase.calculators.singlepoint import SinglePointCalculator

    if graph.num_graphs != 1 or graph.dim != 3:
        raise DataError(
            f"{graph.num_graphs} structures in {graph.dim} dimensions; wanted one in 3 (molequi.graph.separate)"
        )
    atoms = Atoms(graph.z.numpy(), positions=graph.pos.numpy())
    if graph.cell is not None:
        atoms.set_cell(graph.cell[0].numpy())
        atoms.set_pbc(graph.pbc[0].numpy())
    if graph.vel is not None:
        atoms.set_velocities(graph.vel.numpy())
    for name in INVARIANTS:
        if getattr(graph, name) is not None:
            atoms.info[name] = float(getattr(graph, name)[0])
    for name, value in graph.more.items():
        array = value.detach().cpu().numpy()
        if FIELDS[name].per == "node":
            atoms.set_array(name, array)
        else:
            atoms.info[name] = array[0] if array.ndim > 1 else array[0].item()
    found = {}
    known = dict(KNOWN) | dict(quantities or {})
    for name, value in (graph.targets if results is None else results).items():
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        of_each = name.removesuffix("_probability")
        name_known = of_each if of_each in known and known[of_each].classes else name
        per_node = (
            known[name_known].per == "node"
            if name_known in known
            else array.shape[:1] == (len(atoms),) and array.ndim > 0 and len(atoms) > 1
        )
        if not per_node:
            array = array.reshape(array.shape[1:]) if array.ndim and array.shape[0] == 1 else array
        if array.dtype.kind == "U":  # names of classes
            if per_node:
                atoms.set_array(name, array)
            else:
                atoms.info[name] = str(array)
            continue
        if np.isnan(array).any():
            continue
        if name == "stress":
            array = array.reshape(9)[[0, 4, 8, 5, 2, 1]]
        value = float(array) if array.ndim == 0 else array.copy()
        if name in all_properties:
            found[name] = value
        elif per_node:
            # nine columns for a tensor, as extended XYZ can hold and `read_ase` takes
            atoms.set_array(name, value.reshape(len(atoms), -1) if value.ndim > 2 else value)
        else:
            atoms.info[name] = value
    if found:
        atoms.calc = SinglePointCalculator(atoms, **found)
    return atoms


def _is_extxyz(file: Path, format: str | None) -> bool:
    suffixes = [s for s in file.suffixes if s != ".gz"]
    return format in ("extxyz", "xyz") or (
        format is None and bool(suffixes) and suffixes[-1] in (".xyz", ".extxyz")
    )


def _extxyz_frames(file: Path, format, index, sources: list[Source]) -> Iterator[Frame]:
    frames, whole = extxyz.scan(file)
    sources.append(source_of(file, len(frames)))
    yield from extxyz.iterate(file, frames, select(index, len(frames), file))
    if not whole:
        warnings.warn(
            f"{file}: the last line does not end; if the file was cut off there, its last number is wrong",
            DataWarning,
            stacklevel=5,
        )


def _ase_frames(file: Path, format, index, sources: list[Source]) -> Iterator[Frame]:
    from ase.io import read
    from ase.io.formats import UnknownFileTypeError

    if file.stat().st_size == 0:
        raise DataError(f"{file}: no frames in this file (it is empty)")
    try:
        found = read(file, index=":", format=format, do_not_split_by_at_sign=True)
    except UnknownFileTypeError as error:
        raise DataError(
            f"{file}: ase.io does not know this type of file ({error}); name one with format="
        ) from error
    except Exception as error:  # any parser of ase.io, with any exception; the user is told which file
        raise DataError(
            f"{file}: ase.io cannot read it, {type(error).__name__}: {error}; is it truncated?"
        ) from error
    if not found:
        raise DataError(f"{file}: no frames in this file")
    sources.append(source_of(file, len(found)))
    yield from (Frame(found[k], str(file), k) for k in select(index, len(found), file))


def _record(frame: Frame, request: Request) -> Record:
    """Geometry and raw labels of one ase.Atoms."""
    atoms, where = frame.atoms, frame.where
    results = (
        {}
        if atoms.calc is None
        else {k: v for k, v in getattr(atoms.calc, "results", {}).items() if v is not None}
    )
    stores = (atoms.info, results, atoms.arrays)
    values = {}
    for name in request.candidates:
        value = _lookup(stores, request.keys[name].key, where)
        if value is not None:
            values[name] = value
    for name, key in request.field_keys.items():
        value = _lookup((atoms.info, atoms.arrays), key, where)
        if value is not None:
            values[name] = value
    for name, keys in request.invariants.items():
        found = [(key, value) for key in keys if (value := _lookup((atoms.info,), key, where)) is not None]
        if len({str(value) for _, value in found}) > 1:
            raise DataError(
                f"{where}: {' and '.join(f'{k} = {v}' for k, v in found)}; say which with keys={{{name!r}: ...}}"
            )
        if found:
            values[name] = found[0][1]
    offered = sorted((set(atoms.info) | set(results) | set(atoms.arrays)) - _GEOMETRY)
    return Record(
        where=where,
        origin=f"{frame.file}, frame {frame.index}" if frame.file else f"structure {frame.index}",
        pos=atoms.positions,
        z=np.asarray(atoms.numbers),
        cell=np.asarray(atoms.cell[:]),
        pbc=np.asarray(atoms.pbc),
        vel=_velocities(atoms, request, where),
        values=values,
        info={
            k: v.item() if isinstance(v, np.generic) else v
            for k, v in atoms.info.items()
            if isinstance(v, (str, int, float, bool, np.generic))
        },
        keys=tuple(offered),
    )


def _lookup(stores, key: str, where: str):
    found = [store[key] for store in stores if key in store]
    if len(found) > 1 and not all(
        np.shape(v) == np.shape(found[0]) and np.allclose(v, found[0], equal_nan=True) for v in found[1:]
    ):
        raise DataError(
            f"{where}: {key!r} has different values in info, arrays and calculator; keep one of them"
        )
    return found[0] if found else None


def _velocities(atoms, request: Request, where: str) -> np.ndarray | None:
    """Velocities, where asked for: in the unit of ASE, Å sqrt(eV/u), unless another is named."""
    if request.velocities is None:
        return None
    if request.velocities == "momenta" and "momenta" in atoms.arrays:
        return atoms.get_velocities()
    if request.velocities not in atoms.arrays:
        raise DataError(
            f"{where}: no velocities {request.velocities!r}; found {', '.join(map(repr, atoms.arrays))}"
        )
    unit = request.units.get("velocities")
    from ase.units import fs

    return atoms.arrays[request.velocities] * (1.0 if unit is None else factor(unit, "Å/fs") / fs)
