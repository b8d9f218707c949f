"""Structures from and to arrays in .npz files: frames of one molecule (MD17), or molecules of any size."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molequi.data.assemble import assemble
from molequi.data.dataset import Dataset
from molequi.data.record import Record
from molequi.data.request import INVARIANTS, Request, WhereFound
from molequi.errors import DataError
from molequi.graph import FIELDS, Per, fields_per, own_fields
from molequi.quantities import Quantity
from molequi.readers.files import Index, source_of
from molequi.readers.npz import (
    Arrays,
    cells_of_frames,
    check_no_other_cell,
    opened,
    required,
    select_structures,
    stated_units,
)
from molequi.readers.stated import VIRIALS, check_stated_units, check_virial
from molequi.upgrades import upgrade_quantity
from molequi.util.files import write_file
from molequi.util.signature import check_keywords

_Z, _POS = ("nuclear_charges", "z"), ("coords", "R")
_LABELS = {"energy": ("energies", "E"), "forces": ("forces", "F")}
# Names of the QM9 file of the package qm9pack: what they are here, and in which unit.
_QM9 = {
    "mu": ("Dipole_debye", "D"),
    "alpha": ("Polarizability_bohr3", "Bohr^3"),
    "homo": ("HOMO_au", "Hartree"),
    "lumo": ("LUMO_au", "Hartree"),
    "gap": ("HOMO_LUMO_gap_au", "Hartree"),
    "r2": ("R2_bohr2", "Bohr^2"),
    "zpve": ("ZPVE_au", "Hartree"),
    "u0": ("InternalEnergy_0K_au", "Hartree"),
    "u298": ("InternalEnergy_298K_au", "Hartree"),
    "h298": ("Enthalphy_298K_au", "Hartree"),
    "g298": ("GibbsFreeEnergy_298K_au", "Hartree"),
    "cv": ("Heatcapacity_Cv_cal_mol_K", "cal/mol/K"),
}
_INPUTS = {n: s for n, s in FIELDS.items() if n not in ("pos", "z", *INVARIANTS, *own_fields())}
_PER_ATOM = tuple(n for n, s in _INPUTS.items() if s.per == "node")
_PER_STRUCTURE = tuple(n for n, s in _INPUTS.items() if s.per == "graph")
_INFO = "info."  # before the names of texts that have another meaning without it
_PAIRS = ("n_pairs", "pair_index", "pair_attr")
_RESERVED = (
    "n_atoms",
    "z",
    "pos",
    *_PER_ATOM,
    *_PER_STRUCTURE,
    *_PAIRS,
    "props",
    "prop_names",
    "quantities",
    "fields",
)


@check_keywords()
def read_npz(
    path: str | Path,
    *,
    index: str | int | slice | Sequence[int] = ":",
    part: str | None = None,
    keys: Mapping | None = None,
    units: Mapping[str, str] | None = None,
    partial: Sequence[str] = (),
    quantities: Sequence[str | Quantity] = (),
    allow: str | Sequence[str] = (),
) -> Dataset:
    """Read labelled structures from an .npz file, in one of two layouts.

    Molecules of any size (the file has an array ``n_atoms``): G structures of N atoms in all, their atoms one
    after another.

    - ``n_atoms`` (G,), ``z`` (N,) and ``pos`` (N, 3) are needed.
    - ``charge`` and ``spin`` (G,), ``vel`` (N, 3), ``vec`` (N, V, 3), ``x`` (N, F), ``cell`` (G, 3, 3),
      ``pbc`` (G, 3), and ``n_pairs`` (G,) with ``pair_index`` (2, B), counted within each structure, and
      ``pair_attr`` (B, A) are the fields of Graph.
    - Every other array is a column with one entry per structure or per atom, under the name of a quantity or
      another that `keys` names. Text, whole numbers and booleans (G,), such as ``smiles``, become columns of
      `info`. Only what is needed is read from the disk.
    - ``props`` (G, K) with ``prop_names`` (K,) are K columns. Those of the QM9 file of qm9pack are known with
      their units: mu, alpha, homo, lumo, gap, r2, zpve, u0, u298, h298, g298 and cv.

    Frames of one molecule ((revised) MD17): ``nuclear_charges`` or ``z`` (N,) or (F, N); ``coords`` or ``R``
    (F, N, 3); ``energies`` or ``E`` (F,) or (F, 1); ``forces`` or ``F`` (F, N, 3); anything else that `keys`
    names, one entry per frame. ``lattice`` (3, 3) has lattice vectors in columns as sGDML writes them;
    ``cell`` or ``cells`` (3, 3) or (F, 3, 3) has them in rows; ``pbc`` says which are periodic (default all).
    ``r_unit`` and ``e_unit`` of sGDML are the units. `keys` may name "z", "positions" and "cell" too.

    Parameters
    ----------
    path : str or Path
        The file.
    index : str, int, slice or sequence of int
        Structures in ASE's manner (":", "::10", 0), or a list of positions from 0.
    part : str, optional
        An array such as ``train`` with the members of a part, by their number in the array ``index``, or by
        position if there is no such array. `index` then counts within the part.
    keys, partial, quantities, allow
        As in `read_ase`.
    units : mapping of str to str
        As in `read_ase`. Each label needs a unit, because these files do not contain it (MD17 has kcal/mol
        and kcal/mol/Å). Units are known only for QM9 files and files of sGDML and `write_npz`.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        If the file is damaged, has another layout, or has pickled objects, which are never loaded.
    """
    path = Path(path)
    options: dict[str, Any] = dict(
        keys=dict(keys or {}), units=units, partial=partial, quantities=quantities, allow=allow
    )
    with opened(path) as arrays:
        read = _molecules if "n_atoms" in arrays else _frames
        records, request, total = read(path, arrays, index, part, options)
        texts = {n: arrays[n].item() for n in arrays if arrays.header(n) == ((), "U")}
    check_stated_units(texts, records[0].values if records else {}, request, str(path))
    return assemble(records, request, sources=[source_of(path, total)])


def _frames(
    path: Path, arrays: Arrays, index: Index | Sequence[int], part: str | None, options: dict
) -> tuple[list[Record], Request, int]:
    """Records of the selected frames of one molecule, the request, and the number of frames."""
    keys, quantities = options["keys"], options["quantities"]
    z_names, pos_names = (
        (keys.pop(n),) if n in keys else names for n, names in (("z", _Z), ("positions", _POS))
    )
    for name, layout in _LABELS.items():
        if name not in keys and name not in arrays and _wanted(name, quantities):
            key = next((key for key in reversed(layout) if key in arrays), None)
            keys |= {} if key is None else {name: key}
    if keys.get("energy") == "energies":
        keys.setdefault("energies", None)  # in this layout a plural of frames, not energies of atoms
    cell_name = keys.pop("cell", None)
    request = Request(**options | {"units": stated_units(path, arrays, options["units"])})
    z, pos = required(path, arrays, z_names), required(path, arrays, pos_names)
    if (
        pos.ndim != 3
        or pos.shape[2] != 3
        or z.shape not in (pos.shape[1:2], pos.shape[:2])
        or z.dtype.kind not in "iu"
    ):
        raise DataError(
            f"{path}: positions of shape {pos.shape} and atomic numbers of shape {z.shape} ({z.dtype}); "
            "wanted (F, N, 3) and integers (N,) or (F, N)"
        )
    total = len(pos)
    if not total:
        raise DataError(f"{path}: no frames in this file")
    z = np.broadcast_to(z, pos.shape[:2]).astype(np.int64)
    cells, pbc = cells_of_frames(path, arrays, total, cell_name)
    frames = select_structures(path, arrays, index, part, total)
    labels = {name: arrays[key.key] for name, key in request.keys.items() if key.key in arrays}
    for name, names in request.invariants.items():
        for key in names:
            if key in arrays and (name in keys or arrays[key].shape in ((total,), (total, 1))):
                labels[name] = arrays[key]
    for name, array in labels.items():
        if array.shape[:1] != (total,):
            raise DataError(
                f"{path}: {name} has the shape {array.shape} for {total} frames; wanted one entry a frame"
            )
    advice = "; MD17 and revised MD17 have units={'energy': 'kcal/mol', 'forces': 'kcal/mol/Å'}"
    request.check_units(list(labels), f"{path}: this layout", advice)
    read = (*z_names, *pos_names, part, cell_name, "cell", "cells", "lattice", "pbc", "r_unit", "e_unit")
    offered = tuple(k for k in arrays if k not in read)
    columns = {k: a for k in offered if (a := arrays[k]).shape == (total,) and a.dtype.kind in "iufUb"}
    records = [
        Record(
            where=f"{path}, frame {k}",
            origin=f"{path}, frame {k}",
            pos=pos[k],
            z=z[k],
            cell=None if cells is None else cells[k],
            pbc=None if pbc is None else pbc[k],
            values={n: a[k] for n, a in labels.items()},
            info={n: a[k].item() for n, a in columns.items()},
            keys=offered,
        )
        for k in frames
    ]
    return records, request, total


def _molecules(
    path: Path, arrays: Arrays, index: Index | Sequence[int], part: str | None, options: dict
) -> tuple[list[Record], Request, int]:
    """Records of the selected molecules of any size, the request, and the number of molecules."""
    counts, z, pos = _atoms(path, arrays)
    check_no_other_cell(path, {name: z for name in arrays if name != "cell"})
    options = options | {"units": stated_units(path, arrays, options["units"])}
    total, ends = len(counts), np.cumsum(counts, dtype=np.int64)
    chosen = select_structures(path, arrays, index, part, total)
    props = {str(n): k for k, n in enumerate(arrays["prop_names"])} if "prop_names" in arrays else {}
    columns = [*(n for n in arrays if n not in _RESERVED and n != part), *props]
    request = _request(path, arrays, columns, options)
    declared = _declared(path, arrays["quantities"]) if "quantities" in arrays else {}
    classes = {name: tuple(q.classes) for name, (q, _) in declared.items() if q.classes}

    def column(name: str) -> np.ndarray:
        return required(path, arrays, ["props"])[:, props[name]] if name in props else arrays[name]

    stored = {key: column(key) for key in _keys(request) if key in columns}
    per_atom = _per_atom(path, request, stored, len(z), total)
    headers = {n: arrays.header(n) for n in columns if n not in _keys(request) and n not in props}
    columns_of_info = [n for n, (shape, kind) in headers.items() if shape == (total,) and kind in "iubU"]
    info = {n.removeprefix(_INFO): arrays[n] for n in columns_of_info}
    geometry = _geometry(path, arrays, len(z), total)
    pairs = _pairs(path, arrays, total)
    offered = tuple(n for n in columns if n not in columns_of_info)
    virials = {n: arrays[n] for n in VIRIALS if n in columns}
    records = []
    for k in map(int, chosen):
        a, b = ends[k] - counts[k], ends[k]
        row = {n: g[a:b] if n in _PER_ATOM else g[k] for n, g in geometry.items()}
        fields = {n: v for n, v in row.items() if n not in ("vel", "cell", "pbc")}
        values = request.pick({n: v[a:b] if n in per_atom else v[k] for n, v in stored.items()})
        if virials and row.get("cell") is not None:
            where = f"{path}, structure {k}"
            check_virial({n: v[k] for n, v in virials.items()}, values, request, row["cell"], where)
        if pairs is not None:
            rows = slice(pairs[0][k], pairs[0][k + 1])
            fields |= {"pair_index": pairs[1][:, rows], "pair_attr": pairs[2][rows]}
        records.append(
            Record(
                where=f"{path}, structure {k}",
                pos=pos[a:b].astype(np.float64),
                z=z[a:b].astype(np.int64),
                cell=row.get("cell"),
                pbc=_directions(row),
                vel=row.get("vel"),
                fields=fields,
                values=values,
                info={n: array[k].item() for n, array in info.items()},
                keys=offered,
                classes=classes,
            )
        )
    return records, request, total


def _directions(row: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The periodic directions of a structure; all of them if the file has a cell alone, as for frames."""
    if "pbc" in row or "cell" not in row:
        return row.get("pbc")
    return np.full(3, bool(np.any(row["cell"])))


def _atoms(path: Path, arrays: Arrays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of atoms, atomic numbers and positions of all structures, of shapes that fit together."""
    counts, z, pos = (required(path, arrays, [name]) for name in ("n_atoms", "z", "pos"))
    if counts.ndim != 1 or not len(counts) or counts.dtype.kind not in "iu" or counts.min() < 1:
        raise DataError(
            f"{path}: n_atoms of shape {counts.shape} ({counts.dtype}); wanted integers (G,) from 1, G > 0"
        )
    atoms = int(counts.sum(dtype=np.int64))
    if z.shape != (atoms,) or z.dtype.kind not in "iu" or pos.shape != (atoms, 3) or pos.dtype.kind != "f":
        raise DataError(
            f"{path}: n_atoms adds up to {atoms} atoms, but z has the shape {z.shape} ({z.dtype}) and pos "
            f"{pos.shape} ({pos.dtype}); wanted integers ({atoms},) and real numbers ({atoms}, 3)"
        )
    return counts, z, pos


def _keys(request: Request) -> set[str]:
    """Names of all arrays that are read if they are there."""
    totals = {key for names in request.invariants.values() for key in names}
    return {key.key for key in request.keys.values()} | set(request.field_keys.values()) | totals


def _per_atom(
    path: Path, request: Request, stored: Mapping[str, np.ndarray], atoms: int, total: int
) -> set[str]:
    """Names of the arrays with one entry per atom. Raises DataError for wrong lengths and missing units."""
    per: dict[str, tuple[str, Per]] = {
        name: (key.key, request.candidates[name].per) for name, key in request.keys.items()
    }
    per |= {name: (key, request.fields[name].per) for name, key in request.field_keys.items()}
    per = {name: (key, kind) for name, (key, kind) in per.items() if key in stored}
    for name, (key, kind) in per.items():
        size, one = (atoms, "an atom") if kind == "node" else (total, "a structure")
        if stored[key].shape[:1] != (size,):
            raise DataError(
                f"{path}: {name} has the shape {stored[key].shape}; wanted one entry {one}, {size} in all"
            )
    request.check_units(list(per), f"{path}: this layout")
    return {key for key, kind in per.values() if kind == "node"}


def _geometry(path: Path, arrays: Arrays, atoms: int, total: int) -> dict[str, np.ndarray]:
    """Fields of Graph beside positions and elements, with one entry per atom or structure."""
    out = {n: arrays[n] for n in (*_PER_ATOM, *_PER_STRUCTURE) if n in arrays}
    for name, array in out.items():
        size = atoms if name in _PER_ATOM else total
        if array.shape[:1] != (size,):
            raise DataError(f"{path}: {name} has the shape {array.shape}; wanted {size} entries")
    return out


def _request(path: Path, arrays: Arrays, columns: Sequence[str], options: dict) -> Request:
    """The request, completed with the names and units of the file."""
    keys, units, quantities = options["keys"], dict(options["units"] or {}), options["quantities"]
    partial = [options["partial"]] if isinstance(options["partial"], str) else list(options["partial"])
    quantities = [quantities] if isinstance(quantities, (str, Quantity)) else list(quantities)
    declared = _declared(path, arrays["quantities"]) if "quantities" in arrays else {}
    if declared:
        chosen = quantities or [name for name in declared if keys.get(name, "") is not None]
        quantities = [declared[q][0] if isinstance(q, str) and q in declared else q for q in chosen]
        names = [q.name if isinstance(q, Quantity) else q for q in quantities]
        partial += [
            n for n, (_, incomplete) in declared.items() if incomplete and n in names and n not in partial
        ]
        for name, (q, _) in declared.items():
            if q.unit and name in names:
                units.setdefault(name, q.unit)
    if "fields" in arrays:
        for name, unit in _declared_fields(path, arrays["fields"], keys).items():
            units.setdefault(name, unit)
    for name, (theirs, _) in _QM9.items():
        if theirs in columns and name not in columns and name not in keys and _wanted(name, quantities):
            keys[name] = theirs
    by_column = dict(_QM9.values())
    for name, given in keys.items():
        column = given.get("key", name) if isinstance(given, Mapping) else getattr(given, "key", given)
        if column in by_column:
            units.setdefault(name, by_column[column])
    if isinstance(options["quantities"], WhereFound):
        quantities = WhereFound(quantities)
    return Request(keys=keys, units=units, partial=partial, quantities=quantities, allow=options["allow"])


def _declared(path: Path, array: np.ndarray) -> dict[str, tuple[Quantity, bool]]:
    """Quantities that a file says it has, and whether labels of each are missing in some structures."""
    try:
        entries = json.loads(array.item())
        if not isinstance(entries, list):
            raise TypeError("not a list")
        partial = [bool(entry.pop("partial")) for entry in entries]
        return {
            entry["name"]: (Quantity(**upgrade_quantity(entry)), incomplete)
            for entry, incomplete in zip(entries, partial)
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path}: its array 'quantities' is not what write_npz writes ({error}); leave it out, or write "
            "it again"
        ) from error


def _declared_fields(path: Path, array: np.ndarray, keys: dict) -> dict[str, str]:
    """Units of the declared fields of a file. Raises DataError for a field that is not declared here."""
    try:
        entries = list(map(dict, json.loads(array.item())))
        stated = {entry.pop("name"): entry for entry in entries}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path}: its array 'fields' is not what write_npz writes ({error}); leave it out, or write it "
            "again"
        ) from error
    for name, entry in stated.items():
        if keys.get(name, "") is None:
            if name not in own_fields():
                del keys[name]  # a field that is not declared here and is not to be read
            continue
        known = own_fields().get(name)
        if known is None or known.declaration() != entry:
            call = ", ".join(f"{k}={v!r}" for k, v in entry.items())
            raise DataError(
                f"{path}: the file has the field {name!r}, which is "
                f"{'not declared' if known is None else 'declared in another way'} here; declare it first: "
                f"mq.add_field({name!r}, {call}), or leave it out with keys={{{name!r}: None}}"
            )
    return {name: spec.unit for name, spec in own_fields().items() if name in stated and spec.unit}


def _pairs(path: Path, arrays: Arrays, total: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Ends of the pairs of each structure (G + 1,), their atoms (2, B), and their features (B, A)."""
    found = [name for name in _PAIRS if name in arrays]
    if not found:
        return None
    counts, index, attr = (required(path, arrays, [name]) for name in _PAIRS)
    ends = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    if counts.shape != (total,) or index.shape != (2, ends[-1]) or attr.ndim != 2 or len(attr) != ends[-1]:
        raise DataError(
            f"{path}: n_pairs of shape {counts.shape}, which adds up to {ends[-1]}, pair_index "
            f"{index.shape}, pair_attr {attr.shape}; wanted ({total},), (2, B) and (B, A)"
        )
    return ends, index, attr


@check_keywords()
def write_npz(data: Dataset, path: str | Path) -> None:
    """Write a Dataset to a compressed .npz file of molecules of any size, which `read_npz` reads.

    The file has the structures, the labels with their declarations and units, declared fields, and the
    columns of `info` that are text, whole numbers or booleans. A text with a name that the file has for
    something else, such as ``spin="singlet"``, is called ``info.spin``. If writing fails, no file is left.

    Parameters
    ----------
    data : Dataset
        Structures in three dimensions.
    path : str or Path
        The file.

    Raises
    ------
    DataError
        If structures are not three-dimensional, a column has a name that is used for something else, or the
        file cannot be written.
    """
    path, first = Path(path), data.graphs[0]
    if first.dim != 3:
        raise DataError(f"{path}: structures in {first.dim} dimensions; wanted 3")
    info = {}
    for name, column in data.info.items():
        array = np.array(column) if all(isinstance(v, (str, bool, int)) for v in column) else np.zeros(0)
        if len({type(v) for v in column}) == 1 and array.dtype.kind in "iubU":
            # spin="singlet" is no multiplicity, for which the file has this name.
            taken = array.dtype.kind == "U" and (name in _RESERVED or name in INVARIANTS)
            info[f"{_INFO}{name}" if taken else name] = array
    own_names = [name for name in own_fields() if any(getattr(g, name) is not None for g in data)]
    for name in (*data.quantities, *info, *own_names):
        if (
            name in _RESERVED
            or (name in own_names and (name in info or name in data.quantities))
            or (name in info and (name in data.quantities or name in INVARIANTS))
        ):
            raise DataError(
                f"{path}: a column {name!r}, a name that has another meaning in this file; rename it"
            )
    arrays: dict[str, np.ndarray] = {
        "n_atoms": data.counts.astype(np.int32),
        "z": _joined(data, "z").astype(np.uint8),
        "pos": _joined(data, "pos"),
    }
    for name, spec in fields_per("node", "graph", "pair").items():
        needed = spec.default is None and getattr(first, name) is not None
        if name not in arrays and name not in own_names and needed:
            arrays[name] = _joined(data, name)
    if own_names:
        arrays |= {name: _joined(data, name) for name in own_names}
        declared = [{"name": name} | FIELDS[name].declaration() for name in own_names]
        arrays["fields"] = np.array(json.dumps(declared))
    pairs = [g.pair_index.numpy() for g in data if g.pair_index is not None]
    if pairs:
        arrays["pair_index"] = np.concatenate(pairs, axis=1).astype(np.int32)
        arrays["n_pairs"] = np.array([index.shape[1] for index in pairs], np.int32)
    if any(g.pbc is not None for g in data):
        arrays["cell"] = np.stack([np.zeros((3, 3)) if g.cell is None else g.cell[0].numpy() for g in data])
        arrays["pbc"] = np.stack([np.zeros(3, bool) if g.pbc is None else g.pbc[0].numpy() for g in data])
    arrays |= {name: data.values(name).numpy() for name in data.quantities} | info
    entries = [
        dataclasses.asdict(q) | {"partial": not data.known(n).all()} for n, q in data.quantities.items()
    ]
    arrays["quantities"] = np.array(json.dumps(entries, default=bool))

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as handle:
            np.savez_compressed(handle, **arrays)  # type: ignore[arg-type]  # no array is its option

    write_file(path, write, error=DataError)


def _joined(data: Dataset, name: str) -> np.ndarray:
    """The values of a field of all structures, with the default of those that lack it."""
    spec, given = FIELDS[name], [getattr(g, name) for g in data]
    like = next(value for value in given if value is not None)
    filled = [
        like.new_full((g.num_nodes if spec.per == "node" else 1, *like.shape[1:]), spec.default or 0.0)
        if value is None
        else value
        for g, value in zip(data, given)
    ]
    return torch.cat(filled).numpy()


def _wanted(name: str, quantities: str | Quantity | Sequence[str | Quantity]) -> bool:
    """Whether a quantity is to be read: it is named, or none is."""
    names = [
        q.name if isinstance(q, Quantity) else q
        for q in ([quantities] if isinstance(quantities, (str, Quantity)) else quantities)
    ]
    return not names or name in names
