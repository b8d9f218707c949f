"""Readers of files that ASE reads, of extended XYZ and of ase.Atoms; and structures as ase.Atoms."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from molequi.data.assemble import assemble
from molequi.data.dataset import Dataset
from molequi.data.record import Record
from molequi.data.request import INVARIANTS, Request
from molequi.data.sources import Source
from molequi.data.units import factor, is_unit
from molequi.errors import ConfigError, DataError
from molequi.graph import FIELDS, Graph
from molequi.quantities import KNOWN, Quantity
from molequi.readers.ase_formats import check_occupancy
from molequi.readers.atoms import is_extxyz, iterate_frames, split_frames, stated_units
from molequi.readers.extxyz import Frame
from molequi.readers.files import Paths, expand_paths
from molequi.readers.stated import check_stated_units, check_virial
from molequi.util.signature import check_keywords

if TYPE_CHECKING:
    from ase import Atoms

_GEOMETRY = {"numbers", "positions", "momenta", "tags", "masses", "initial_charges", "initial_magmoms"}


@check_keywords()
def read_ase(
    path: Paths,
    *,
    format: str | None = None,
    index: str | int | slice = ":",
    keys: Mapping | None = None,
    units: Mapping[str, str] | None = None,
    partial: Sequence[str] = (),
    quantities: Sequence[str | Quantity] = (),
    allow: str | Sequence[str] = (),
) -> Dataset:
    """Read labelled structures from any file that ase.io reads.

    Labels are taken from info, arrays and attached calculators alike; of an ASE database also from its
    key-value pairs and from ``data``, in the units that its metadata state as SchNetPack writes them. The
    stress has ASE's sign: it is positive where the structure wants to contract.

    Parameters
    ----------
    path : str, Path or sequence of them
        A file, a list of files, or a pattern such as ``"data/*.xyz"``. Extended XYZ (.xyz, .extxyz, also .gz)
        goes to `read_extxyz`. Databases of fairchem (.aselmdb) need the extra ``lmdb``. One file may name its
        frames, as in ASE: ``"frames.xyz@:100"``.
    format : str, optional
        Format by ASE's name; by default ASE guesses it.
    index : str, int or slice
        Frames of each file in ASE's manner: ":", "::10", 0.
    keys : mapping, optional
        Name in the file by quantity, where it differs: ``{"forces": "REF_forces"}``; or a mapping that also
        says the convention, see `molequi.data.Key`: ``{"stress": {"key": "raw", "sign": -1, "order":
        "vasp"}}``, or ``{"stress": {"key": "virials", "virial": True}}`` for a virial, -V times the stress.
        None instead of a name: do not read it. "charge" and "spin" name the total charge and multiplicity.
        Without a name they are searched under ``charge``, ``total_charge``, ``spin`` and
        ``spin_multiplicity``. A number in place of the name is the value of all structures, for files that
        do not say it: ``{"charge": 0, "spin": 1}``.
        "velocities" are read only if named.
    units : mapping of str to str, optional
        Unit in the file by quantity, and of "positions":
        ``{"energy": "kcal/mol", "forces": "kcal/mol/Å"}``. By default eV, Å and e.
    partial : sequence of str, optional
        Quantities that may be missing in some structures, or be NaN for some atoms, such as forces that are
        known for the mobile atoms only. They are NaN there, and neither loss nor errors count them.
    quantities : sequence of str or Quantity, optional
        What to read; by default every known quantity that the file has.
    allow : str or sequence of str, optional
        Heuristics that are overruled for these data, such as "close-atoms" for dimers at 0.35 Å that are
        wanted for a repulsive wall; see `molequi.data.heuristics`.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        With file and frame, for what is missing, not finite, contradictory or impossible.
    ConfigError
        For names that do not exist.

    Warns
    -----
    DataWarning
        If labels look like another unit, or the file seems to be cut off.
    """
    sources: list[Source] = []
    if isinstance(path, (str, Path)):
        path, frames_of_path = split_frames(path)
        if frames_of_path is not None and index != ":":
            raise DataError(
                f"{path}@{frames_of_path} with index={index!r}: two selections of frames; wanted one of them"
            )
        index = index if frames_of_path is None else frames_of_path
    files = expand_paths(path)
    request = request_of(
        files, format, quantities=quantities, keys=keys, units=units, partial=partial, allow=allow
    )

    def frames() -> Iterator[Frame]:
        for file in files:
            yield from iterate_frames(file, format=format, index=index, sources=sources)

    return of_frames(frames(), request, sources)


@check_keywords()
def read_extxyz(
    path: Paths,
    *,
    index: str | int | slice = ":",
    keys: Mapping | None = None,
    units: Mapping[str, str] | None = None,
    partial: Sequence[str] = (),
    quantities: Sequence[str | Quantity] = (),
    allow: str | Sequence[str] = (),
) -> Dataset:
    """Read labelled structures from extended XYZ, plain or .gz; errors name the line.

    Parameters
    ----------
    path : str, Path or sequence of them
        A file, a list of files, or a pattern such as ``"data/*.xyz"``.
    index : str, int or slice
        Frames of each file in ASE's manner: ":", "::10", 0.
    keys, units, partial, quantities, allow
        As in `read_ase`, and so are the errors.

    Returns
    -------
    Dataset
        Charge, spin and the known quantities that the file has.
    """
    return read_ase(
        path,
        format="extxyz",
        index=index,
        keys=keys,
        units=units,
        partial=partial,
        quantities=quantities,
        allow=allow,
    )


@check_keywords()
def from_atoms(
    structures: Iterable[Any],
    *,
    keys: Mapping | None = None,
    units: Mapping[str, str] | None = None,
    partial: Sequence[str] = (),
    quantities: Sequence[str | Quantity] = (),
    allow: str | Sequence[str] = (),
) -> Dataset:
    """Labelled structures from ase.Atoms. Attached calculators are not run.

    Parameters
    ----------
    structures : iterable of ase.Atoms
        The structures, with labels in info, arrays, or the results of a calculator.
    keys, units, partial, quantities, allow
        As in `read_ase`.

    Returns
    -------
    Dataset
        A structure for each of the given ones, in their order.

    Raises
    ------
    DataError
        With the number of the structure, for what is missing, not finite, contradictory or impossible.
    ConfigError
        For names that do not exist, and for what is no sequence of ase.Atoms, such as a single one.

    Examples
    --------
    >>> from ase import Atoms
    >>> h2 = Atoms("H2", [[0, 0, 0], [0, 0, 0.74]], info={"energy": -31.7})
    >>> from_atoms([h2]).values("energy").tolist()
    [-31.7]
    """
    request = Request(quantities=quantities, keys=keys, units=units, partial=partial, allow=allow)
    return of_frames((Frame(atoms, "", k) for k, atoms in enumerate(_several(structures))), request)


def _several(structures: Iterable[Any]) -> Iterator["Atoms"]:
    """The structures one by one. Raises ConfigError for what is no sequence of ase.Atoms."""
    from ase import Atoms

    if isinstance(structures, Atoms):
        raise ConfigError("from_atoms: one ase.Atoms; wanted a sequence of them: from_atoms([atoms])")
    if isinstance(structures, (str, Path)):
        raise ConfigError(f"from_atoms: {str(structures)!r} is a path; files are read by read_ase")
    if not isinstance(structures, Iterable):
        raise ConfigError(f"from_atoms: {type(structures).__name__}; wanted a sequence of ase.Atoms")
    for k, atoms in enumerate(structures):
        if not isinstance(atoms, Atoms):
            raise ConfigError(f"from_atoms: structure {k} is {type(atoms).__name__}; wanted ase.Atoms")
        yield atoms


def of_frames(frames: Iterable[Frame], request: Request, sources: Sequence[Source] = ()) -> Dataset:
    """Labelled structures from frames.

    Parameters
    ----------
    frames : iterable of Frame
        ase.Atoms with their places.
    request : Request
        What is to be read.
    sources : sequence of Source
        The files, complete when the last frame was taken.

    Returns
    -------
    Dataset
    """
    return assemble((record_of_frame(frame, request) for frame in frames), request, sources=sources)


def request_of(files: Sequence[Path], format: str | None = None, **options: Any) -> Request:
    """What is to be read of files, in the units that they state or the caller gives.

    Parameters
    ----------
    files : sequence of Path
        The files.
    format : str, optional
        Format by ASE's name.
    **options
        ``keys``, ``units``, ``partial``, ``quantities`` and ``allow``, as `read_ase` takes them.

    Returns
    -------
    Request
    """
    request = Request(**options)
    found = _units_of_files(files, format, request)
    if found:
        request = Request(**{**options, "units": {**found, **(options.get("units") or {})}})
    return request


@check_keywords()
def to_atoms(
    graph: Graph,
    results: Mapping[str, object] | None = None,
    quantities: Mapping[str, Quantity] | None = None,
) -> "Atoms":
    """A single structure as ase.Atoms.

    Results are in an attached calculator, or in ``info`` and ``arrays`` if ASE has no name for them. What is
    NaN as a whole is left out.

    Parameters
    ----------
    graph : Graph
        A single structure in three dimensions.
    results : mapping, optional
        Values by name, shaped as a model returns them; by default the targets of the graph. The stress is
        written as ASE's six components (xx, yy, zz, yz, xz, xy).
    quantities : mapping of str to Quantity, optional
        Declarations of results whose names molequi does not know.

    Returns
    -------
    ase.Atoms

    Raises
    ------
    DataError
        For a batch, and for structures that are not three-dimensional.
    """
    from ase import Atoms
    from ase.calculators.calculator import all_properties
    from ase.calculators.singlepoint import SinglePointCalculator

    if not isinstance(graph, Graph):
        raise DataError(f"found {type(graph).__name__}; wanted a Graph, such as data[0]")
    if graph.num_graphs != 1 or graph.dim != 3:
        raise DataError(
            f"{graph.num_graphs} structures in {graph.dim} dimensions; wanted one in 3 "
            "(molequi.graph.separate)"
        )
    atoms = Atoms(graph.z.numpy(), positions=graph.pos.numpy())
    if graph.cell is not None:
        atoms.set_cell(graph.cell[0].numpy())
    if graph.pbc is not None:
        atoms.set_pbc(graph.pbc[0].numpy())
    if graph.vel is not None:
        atoms.set_velocities(graph.vel.numpy())
    for name in INVARIANTS:
        if getattr(graph, name) is not None:
            atoms.info[name] = float(getattr(graph, name)[0])
    for name, value in graph.more.items():
        array = value.detach().cpu().numpy()
        if FIELDS[name].per == "node":
            atoms.set_array(name, array if array.ndim < 3 else array.reshape(len(array), -1))
        else:
            atoms.info[name] = array[0] if array.ndim > 1 else array[0].item()
    found = {}
    known = dict(KNOWN) | dict(quantities or {})
    for name, result in (graph.targets if results is None else results).items():
        array = result.detach().cpu().numpy() if isinstance(result, torch.Tensor) else np.asarray(result)
        per_node = _per_node(name, array, known, len(atoms))
        if not per_node and array.ndim and array.shape[0] == 1:
            array = array.reshape(array.shape[1:])
        if array.dtype.kind != "U" and np.isnan(array).any() and (not per_node or np.isnan(array).all()):
            continue  # of labels that some atoms have, the others stay NaN
        if name in all_properties:
            array = array.reshape(9)[[0, 4, 8, 5, 2, 1]] if name == "stress" else array
            found[name] = float(array) if array.ndim == 0 else array.copy()
        elif per_node:
            # A tensor takes nine columns, as extended XYZ can hold and `read_ase` reads.
            atoms.set_array(name, array.reshape(len(atoms), -1) if array.ndim > 2 else array.copy())
        else:
            text = array.dtype.kind == "U"
            atoms.info[name] = str(array) if text else float(array) if array.ndim == 0 else array.copy()
    if found:
        atoms.calc = SinglePointCalculator(atoms, **found)
    return atoms


def _units_of_files(files: Sequence[Path], format: str | None, request: Request) -> dict[str, str]:
    """Units that the files state of what is to be read; all files must state the same."""
    stated = [{} if is_extxyz(file, format) else stated_units(file, format) for file in files]
    wanted = {name: key.key for name, key in request.keys.items()} | {"positions": "positions"}
    units = {}
    for name, key in wanted.items():
        found = [one.get(key) for one in stated]
        if len(set(found)) > 1:
            raise DataError(
                f"{files[found.index(found[0])]} and others of these files state different units of {key!r}: "
                f"{', '.join(sorted({str(unit) for unit in found}))}; read each one, and add the data sets"
            )
        if found[0] is None or name in request.units:
            continue
        if not is_unit(found[0]):
            raise DataError(
                f"{files[0]}: its metadata state the unit {found[0]!r} of {key!r}, which is not known; "
                f"say the unit with units={{{name!r}: …}}"
            )
        units[name] = found[0]
    return units


def _per_node(name: str, array: np.ndarray, known: Mapping[str, Quantity], n: int) -> bool:
    """Whether a result has one row per atom."""
    of_class = name.removesuffix("_probability")
    if of_class in known and known[of_class].classes:
        name = of_class
    if name in known:
        return known[name].per == "node"
    return array.shape[:1] == (n,) and n > 1


def record_of_frame(frame: Frame, request: Request) -> Record:
    """Geometry and raw labels of one ase.Atoms.

    Parameters
    ----------
    frame : Frame
        The structure and its place.
    request : Request
        What is to be read.
    """
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
    for name in request.invariants:
        stated = list(request.stated_totals(name, atoms.info).items())
        if any(not _alike(value, stated[0][1]) for _, value in stated):
            raise DataError(
                f"{where}: {' and '.join(f'{k} = {v}' for k, v in stated)}; say which with "
                f"keys={{{name!r}: ...}}, or None to read neither"
            )
        if stated:
            values[name] = stated[0][1]
    offered = sorted((set(atoms.info) | set(results) | set(atoms.arrays)) - _GEOMETRY)
    check_stated_units(atoms.info, values, request, where)
    check_virial({**results, **atoms.info}, values, request, np.asarray(atoms.cell[:]), where)
    check_occupancy(atoms, where)
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


def _lookup(stores: Sequence[Mapping[str, Any]], key: str, where: str) -> Any:
    """The value of a key in info, arrays and calculator, which must agree; None if none has it."""
    found = [store[key] for store in stores if key in store]
    if not all(_alike(value, found[0]) for value in found[1:]):
        raise DataError(
            f"{where}: {key!r} has different values in info, arrays and calculator; keep one of them"
        )
    return found[0] if found else None


def _alike(a: Any, b: Any) -> bool:
    """Whether two values are equal up to rounding; one number may be in an array."""
    a, b = np.ravel(a), np.ravel(b)
    if {a.dtype.kind, b.dtype.kind} <= set("iufb"):
        return a.shape == b.shape and np.allclose(a, b, equal_nan=True)
    return bool(np.array_equal(a, b))


def _velocities(atoms: "Atoms", request: Request, where: str) -> np.ndarray | None:
    """Velocities if the user named them, in ASE's unit unless another is given."""
    if request.velocities is None:
        return None
    if request.velocities == "momenta" and "momenta" in atoms.arrays:
        return atoms.get_velocities()
    if request.velocities not in atoms.arrays:
        raise DataError(
            f"{where}: no velocities {request.velocities!r}; found {', '.join(map(repr, atoms.arrays))}"
        )
    from ase.units import fs

    unit = request.units.get("velocities")
    return atoms.arrays[request.velocities] * (1.0 if unit is None else factor(unit, "Å/fs") / fs)
