"""Structures from arrays in .npz files: frames of one molecule (MD17), or molecules of any size."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from molequi.data.assemble import assemble
from molequi.data.dataset import Dataset
from molequi.data.record import Record
from molequi.data.request import INVARIANTS, Request, WhereFound
from molequi.errors import DataError
from molequi.graph import FIELDS, Per, own_fields
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
from molequi.util.signature import check_keywords

Z, POS = ("nuclear_charges", "z"), ("coords", "R")
LABELS = {"energy": ("energies", "E"), "forces": ("forces", "F")}
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
# A level of theory is a name in a file, and a number only among those of one model.
_INPUTS = {n: s for n, s in FIELDS.items() if n not in ("pos", "z", "level", *INVARIANTS, *own_fields())}
_PER_ATOM = tuple(n for n, s in _INPUTS.items() if s.per == "node")
_PER_STRUCTURE = tuple(n for n, s in _INPUTS.items() if s.per == "graph")
INFO = "info."  # before the names of texts that have another meaning without it
PAIRS = ("n_pairs", "pair_index", "pair_attr")
RESERVED = (
    "n_atoms",
    "z",
    "pos",
    *_PER_ATOM,
    *_PER_STRUCTURE,
    *PAIRS,
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
    options = dict(keys=keys, units=units, partial=partial, quantities=quantities, allow=allow)
    with opened(path) as arrays:
        records, request, total = npz_records(path, arrays, options, index=index, part=part)
    return assemble(records, request, sources=[source_of(path, total)])


def npz_records(
    path: Path,
    arrays: Arrays,
    options: Mapping[str, Any],
    *,
    index: Index | Sequence[int] = ":",
    part: str | None = None,
) -> tuple[list[Record], Request, int]:
    """Records of some structures of a file, the request with its names and units, and how many there are.

    Parameters
    ----------
    path : Path
        The file.
    arrays : Arrays
        Its arrays, or those of some of its structures.
    options : mapping
        ``keys``, ``units``, ``partial``, ``quantities``, ``allow`` and ``of_block`` of `Request`.
    index, part
        As `read_npz` takes them.

    Raises
    ------
    DataError
        As `read_npz`.
    """
    options = {"keys": None, "units": None, "partial": (), "quantities": (), "allow": (), **options}
    options["keys"] = dict(options["keys"] or {})
    read = _molecules if "n_atoms" in arrays else _frames
    records, request, total = read(path, arrays, index, part, options)
    texts = {n: arrays[n].item() for n in arrays if arrays.header(n) == ((), "U")}
    check_stated_units(texts, records[0].values if records else {}, request, str(path))
    return records, request, total


def _frames(
    path: Path, arrays: Arrays, index: Index | Sequence[int], part: str | None, options: dict
) -> tuple[list[Record], Request, int]:
    """Records of the selected frames of one molecule, the request, and the number of frames."""
    keys, quantities = options["keys"], options["quantities"]
    z_names, pos_names = (
        (keys.pop(n),) if n in keys else names for n, names in (("z", Z), ("positions", POS))
    )
    for name, layout in LABELS.items():
        if name not in keys and name not in arrays and is_wanted(name, quantities):
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
        any_shape = name in request.named_invariants
        for key in names:
            if key in arrays and (any_shape or arrays[key].shape in ((total,), (total, 1))):
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
    headers = {k: arrays.header(k) for k in offered}
    columns = {k: arrays[k] for k, (shape, kind) in headers.items() if shape == (total,) and kind in "iufUb"}
    records = [
        Record(
            where=f"{path}, frame {arrays.first + k}",
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
    columns = [*(n for n in arrays if n not in RESERVED and n != part), *props]
    request = _request(path, arrays, columns, options)
    declared = _declared(path, arrays["quantities"]) if "quantities" in arrays else {}
    classes = {name: tuple(q.classes) for name, (q, _) in declared.items() if q.classes}

    def column(name: str) -> np.ndarray:
        return required(path, arrays, ["props"])[:, props[name]] if name in props else arrays[name]

    stored = {key: column(key) for key in _keys(request) if key in columns}
    per_atom = _per_atom(path, request, stored, len(z), total)
    headers = {n: arrays.header(n) for n in columns if n not in _keys(request) and n not in props}
    columns_of_info = [n for n, (shape, kind) in headers.items() if shape == (total,) and kind in "iubU"]
    info = {n.removeprefix(INFO): arrays[n] for n in columns_of_info}
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
                where=f"{path}, structure {arrays.first + k}",
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
    check_counts(path, counts)
    atoms = int(counts.sum(dtype=np.int64))
    if z.shape != (atoms,) or z.dtype.kind not in "iu" or pos.shape != (atoms, 3) or pos.dtype.kind != "f":
        raise DataError(
            f"{path}: n_atoms adds up to {atoms} atoms, but z has the shape {z.shape} ({z.dtype}) and pos "
            f"{pos.shape} ({pos.dtype}); wanted integers ({atoms},) and real numbers ({atoms}, 3)"
        )
    return counts, z, pos


def check_counts(path: Path, counts: np.ndarray) -> None:
    """Raise DataError for numbers of atoms that are none.

    Parameters
    ----------
    path : Path
        The file, for the message.
    counts : array
        Its array ``n_atoms``.
    """
    if counts.ndim != 1 or not len(counts) or counts.dtype.kind not in "iu" or counts.min() < 1:
        raise DataError(
            f"{path}: n_atoms of shape {counts.shape} ({counts.dtype}); wanted integers (G,) from 1, G > 0"
        )


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
        if theirs in columns and name not in columns and name not in keys and is_wanted(name, quantities):
            keys[name] = theirs
    by_column = dict(_QM9.values())
    for name, given in keys.items():
        column = given.get("key", name) if isinstance(given, Mapping) else getattr(given, "key", given)
        if column in by_column:
            units.setdefault(name, by_column[column])
    if isinstance(options["quantities"], WhereFound):
        quantities = WhereFound(quantities)
    return Request(**options | {"keys": keys, "units": units, "partial": partial, "quantities": quantities})


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
    found = [name for name in PAIRS if name in arrays]
    if not found:
        return None
    counts, index, attr = (required(path, arrays, [name]) for name in PAIRS)
    ends = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    if counts.shape != (total,) or index.shape != (2, ends[-1]) or attr.ndim != 2 or len(attr) != ends[-1]:
        raise DataError(
            f"{path}: n_pairs of shape {counts.shape}, which adds up to {ends[-1]}, pair_index "
            f"{index.shape}, pair_attr {attr.shape}; wanted ({total},), (2, B) and (B, A)"
        )
    return ends, index, attr


def is_wanted(name: str, quantities: str | Quantity | Sequence[str | Quantity]) -> bool:
    """Whether a quantity is to be read: it is named, or none is."""
    names = [
        q.name if isinstance(q, Quantity) else q
        for q in ([quantities] if isinstance(quantities, (str, Quantity)) else quantities)
    ]
    return not names or name in names
