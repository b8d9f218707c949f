"""Structures from and to arrays in .npz files: frames of one molecule (MD17), or molecules of all sizes, laid end to end."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from molequi.data.assemble import assemble
from molequi.data.dataset import Dataset
from molequi.data.record import Record
from molequi.data.request import INVARIANTS, Request
from molequi.errors import DataError
from molequi.graph import FIELDS, fields_per, own_fields
from molequi.quantities import Quantity
from molequi.readers.files import source_of
from molequi.readers.npz import Arrays, opened, required, select_structures
from molequi.upgrades import upgrade_quantity
from molequi.util.files import write_file

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


def read_npz(
    path: str | Path,
    *,
    index: str | int | slice | Sequence[int] = ":",
    part: str | None = None,
    keys: Mapping | None = None,
    units: Mapping[str, str] | None = None,
    partial: Sequence[str] = (),
    quantities: Sequence[str | Quantity] = (),
) -> Dataset:
    """Labelled structures from arrays, in one of two layouts.

    *Molecules of any size* (an array `n_atoms` is there), G structures of N atoms in all, their atoms one after another:
    `n_atoms` (G,), `z` (N,), `pos` (N, 3); every other array is a column with one entry a structure, (G,) or (G, …), or
    one an atom, (N,) or (N, …), under the name of a quantity or another that `keys` gives. Text, whole numbers and
    booleans (G,), such as `smiles`, become columns of `info`. `charge` and `spin` (G,), `vel` (N, 3), `vec` (N, V, 3),
    `x` (N, F), `cell` (G, 3, 3), `pbc` (G, 3), and `n_pairs` (G,) with `pair_index` (2, B) counted within each
    structure and `pair_attr` (B, A) are as in Graph. Only what is asked for is read from the disk: `quantities=["gap"]`.
    `props` (G, K) with `prop_names` (K,) are K columns; those of the QM9 file of qm9pack are known, with their units,
    as mu, alpha, homo, lumo, gap, r2, zpve, u0, u298, h298, g298 and cv. Files of `write_npz` say their units too.

    *Frames of one molecule* ((revised) MD17): `nuclear_charges` or `z` (N,) or (F, N); `coords` or `R` (F, N, 3);
    `energies` or `E` (F,) or (F, 1); `forces` or `F` (F, N, 3); anything else named in `keys`, one entry a frame. "z"
    and "positions" may be named in `keys` too.

    index: which structures, as in ASE (":", "::10", 0), or a list of positions, from 0.
    part: an array such as `train` with the values that the column `index` has for the structures of this part (positions,
        from 0, where there is no such column); `index` then counts within it.
    units: these files do not say their units (MD17 has kcal/mol and kcal/mol/Å), so every label that is read needs one,
        but for those named above: `units={"energy": "kcal/mol", "forces": "kcal/mol/Å"}`. Other arguments are those of
        `read_ase`.
    Raises DataError for files that are damaged, of another layout or with pickled objects (which are never loaded).
    """
    path = Path(path)
    options = dict(keys=dict(keys or {}), units=units, partial=partial, quantities=quantities)
    with opened(path) as arrays:
        read = _molecules if "n_atoms" in arrays else _frames
        records, request, total = read(path, arrays, index, part, options)
    return assemble(records, request, sources=[source_of(path, total)])


def _frames(path: Path, arrays: Arrays, index, part, options: dict) -> tuple[list[Record], Request, int]:
    keys, quantities = options["keys"], options["quantities"]
    z_names, pos_names = (
        (keys.pop(n),) if n in keys else names for n, names in (("z", _Z), ("positions", _POS))
    )
    for name, layout in _LABELS.items():
        if name not in keys and name not in arrays and _wanted(name, quantities):
            keys |= {name: key for key in layout if key in arrays}
    if keys.get("energy") == "energies":
        keys.setdefault("energies", None)  # in this layout a plural of frames, not energies of atoms
    request = Request(**options)
    z, pos = required(path, arrays, z_names), required(path, arrays, pos_names)
    if (
        pos.ndim != 3
        or pos.shape[2] != 3
        or z.shape not in (pos.shape[1:2], pos.shape[:2])
        or z.dtype.kind not in "iu"
    ):
        raise DataError(
            f"{path}: positions of shape {pos.shape} and atomic numbers of shape {z.shape} ({z.dtype}); wanted (F, N, "
            f"3) and integers (N,) or (F, N)"
        )
    total = len(pos)
    if not total:
        raise DataError(f"{path}: no frames in this file")
    z = np.broadcast_to(z, pos.shape[:2]).astype(np.int64)
    frames = select_structures(path, arrays, index, part, total)
    labels = {name: arrays[key.key] for name, key in request.keys.items() if key.key in arrays}
    labels |= {
        name: arrays[keys[name]] for name in request.invariants if name in keys and keys[name] in arrays
    }
    for name, array in labels.items():
        if array.shape[:1] != (total,):
            raise DataError(
                f"{path}: {name} has the shape {array.shape} for {total} frames; wanted one entry a frame"
            )
    advice = "; MD17 and revised MD17 have units={'energy': 'kcal/mol', 'forces': 'kcal/mol/Å'}"
    request.check_units(list(labels), f"{path}: this layout", advice)
    offered = tuple(k for k in arrays if k not in (*z_names, *pos_names, part))
    columns = {k: a for k in offered if (a := arrays[k]).shape == (total,) and a.dtype.kind in "iufUb"}
    records = [
        Record(
            where=f"{path}, frame {k}",
            origin=f"{path}, frame {k}",
            pos=pos[k],
            z=z[k],
            values={n: a[k] for n, a in labels.items()},
            info={n: a[k].item() for n, a in columns.items()},
            keys=offered,
        )
        for k in frames
    ]
    return records, request, total


def _molecules(path: Path, arrays: Arrays, index, part, options: dict) -> tuple[list[Record], Request, int]:
    counts, z, pos = (required(path, arrays, [name]) for name in ("n_atoms", "z", "pos"))
    if counts.ndim != 1 or not len(counts) or counts.dtype.kind not in "iu" or counts.min() < 1:
        raise DataError(
            f"{path}: n_atoms of shape {counts.shape} ({counts.dtype}); wanted integers (G,) from 1, G > 0"
        )
    total, atoms = len(counts), int(counts.sum(dtype=np.int64))
    if z.shape != (atoms,) or z.dtype.kind not in "iu" or pos.shape != (atoms, 3) or pos.dtype.kind != "f":
        raise DataError(
            f"{path}: n_atoms adds up to {atoms} atoms, but z has the shape {z.shape} ({z.dtype}) and pos {pos.shape} "
            f"({pos.dtype}); wanted integers ({atoms},) and real numbers ({atoms}, 3)"
        )
    chosen = select_structures(path, arrays, index, part, total)
    ends = np.cumsum(counts, dtype=np.int64)
    props = {str(n): k for k, n in enumerate(arrays["prop_names"])} if "prop_names" in arrays else {}
    columns = [*(n for n in arrays if n not in _RESERVED and n != part), *props]
    request = _request(path, arrays, columns, options)

    def column(name: str) -> np.ndarray:
        return required(path, arrays, ["props"])[:, props[name]] if name in props else arrays[name]

    labels = {name: column(key.key) for name, key in request.keys.items() if key.key in columns}
    for name, array in labels.items():
        size = (atoms,) if request.candidates[name].per == "node" else (total,)
        if array.shape[:1] != size:
            per = "an atom" if size == (atoms,) else "a structure"
            raise DataError(
                f"{path}: {name} has the shape {array.shape}; wanted one entry {per}, {size[0]} in all"
            )
    request.check_units(list(labels), f"{path}: this layout")
    given = {
        n: next((column(k) for k in names if k in columns), None) for n, names in request.invariants.items()
    }
    own = {n: column(key) for n, key in request.field_keys.items() if key in columns}
    for name, array in own.items():
        size = atoms if request.fields[name].per == "node" else total
        if array.shape[:1] != (size,):
            raise DataError(f"{path}: {name} has the shape {array.shape}; wanted {size} entries")
    request.check_units(list(own), f"{path}: this layout")
    used = (
        {request.keys[n].key for n in labels}
        | {request.field_keys[n] for n in own}
        | {k for names in request.invariants.values() for k in names}
    )
    headers = {n: arrays.header(n) for n in columns if n not in used and n not in props}
    info = {n: arrays[n] for n, (shape, kind) in headers.items() if shape == (total,) and kind in "iubU"}
    geometry = {n: arrays[n] for n in (*_PER_ATOM, *_PER_STRUCTURE) if n in arrays}
    wanted = dict.fromkeys(_PER_STRUCTURE, total) | dict.fromkeys(_PER_ATOM, atoms)
    for name, array in geometry.items():
        if array.shape[:1] != (wanted[name],):
            raise DataError(f"{path}: {name} has the shape {array.shape}; wanted {wanted[name]} entries")
    pairs = _pairs(path, arrays, total)
    per_node = {name: request.candidates[name].per == "node" for name in labels}
    offered = tuple(n for n in columns if n not in info)
    records = []
    for k in chosen:
        k = int(k)
        a, b = ends[k] - counts[k], ends[k]
        extra = {n: geometry[n][a:b] for n in _PER_ATOM if n in geometry and n != "vel"}
        if pairs is not None:
            rows = slice(pairs[0][k], pairs[0][k + 1])
            extra |= {"pair_index": pairs[1][:, rows], "pair_attr": pairs[2][rows]}
        where = f"{path}, structure {k}"
        records.append(
            Record(
                where=where,
                origin=where,
                pos=pos[a:b].astype(np.float64),
                z=z[a:b].astype(np.int64),
                cell=geometry["cell"][k] if "cell" in geometry else None,
                pbc=geometry["pbc"][k] if "pbc" in geometry else None,
                vel=geometry["vel"][a:b] if "vel" in geometry else None,
                fields=extra,
                values={n: array[a:b] if per_node[n] else array[k] for n, array in labels.items()}
                | {n: array[k] for n, array in given.items() if array is not None}
                | {
                    n: array[a:b] if request.fields[n].per == "node" else array[k] for n, array in own.items()
                },
                info={n: array[k].item() for n, array in info.items()},
                keys=offered,
            )
        )
    return records, request, total


def _request(path: Path, arrays: Arrays, columns: Sequence[str], options: dict) -> Request:
    """What is to be read, with the names and units that the file itself says where the caller does not."""
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
    by_column = {theirs: unit for theirs, unit in _QM9.values()}
    for name, given in keys.items():
        column = given.get("key", name) if isinstance(given, Mapping) else getattr(given, "key", given)
        if column in by_column:
            units.setdefault(name, by_column[column])
    return Request(keys=keys, units=units, partial=partial, quantities=quantities)


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
            f"{path}: its array 'quantities' is not what write_npz writes ({error}); leave it out, or write it again"
        ) from error


def _declared_fields(path: Path, array: np.ndarray, keys: dict) -> dict[str, str]:
    """Units of the fields that a file says users have declared. Raises DataError for one that is not declared here."""
    try:
        entries = [dict(entry) for entry in json.loads(array.item())]
        stated = {entry.pop("name"): entry for entry in entries}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path}: its array 'fields' is not what write_npz writes ({error}); leave it out, or write it again"
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
                f"{path}: the file has the field {name!r}, which is {'not declared' if known is None else 'declared in another way'} "
                f"here; declare it first: mq.add_field({name!r}, {call}), or leave it out with keys={{{name!r}: None}}"
            )
    return {name: spec.unit for name, spec in own_fields().items() if name in stated and spec.unit}


def _pairs(path: Path, arrays: Arrays, total: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Ends of the pairs of each structure (G + 1), their atoms (2, B), what is given of them (B, A)."""
    found = [name for name in _PAIRS if name in arrays]
    if not found:
        return None
    counts, index, attr = (required(path, arrays, [name]) for name in _PAIRS)
    ends = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    if counts.shape != (total,) or index.shape != (2, ends[-1]) or attr.ndim != 2 or len(attr) != ends[-1]:
        raise DataError(
            f"{path}: n_pairs of shape {counts.shape}, which adds up to {ends[-1]}, pair_index {index.shape}, pair_attr "
            f"{attr.shape}; wanted ({total},), (2, B) and (B, A)"
        )
    return ends, index, attr


def write_npz(data: Dataset, path: str | Path) -> None:
    """Write a Dataset as molecules of any size (see `read_npz`), compressed, whole or not at all; `read_npz` gives it back.

    Structures, given invariants, labels with what they are and their units, and those columns of `info` that are text,
    whole numbers or booleans throughout. Raises DataError for structures that are not three-dimensional, for columns
    that have the name of something else, and where the file cannot be written.
    """
    path, first = Path(path), data.graphs[0]
    if first.dim != 3:
        raise DataError(f"{path}: structures in {first.dim} dimensions; wanted 3")
    info = {}
    for name, column in data.info.items():
        array = np.array(column) if all(isinstance(v, (str, bool, int)) for v in column) else np.zeros(0)
        if len({type(v) for v in column}) == 1 and array.dtype.kind in "iubU":
            info[name] = array
    for name in (*data.quantities, *info):
        if name in (*_RESERVED, *first.more) or (
            name in info and (name in data.quantities or name in INVARIANTS)
        ):
            raise DataError(
                f"{path}: a column {name!r}, a name that has another meaning in this file; rename it"
            )
    arrays = {
        "n_atoms": data.counts.astype(np.int32),
        "z": _joined(data, "z").astype(np.uint8),
        "pos": _joined(data, "pos"),
    }
    for name, spec in fields_per("node", "graph", "pair").items():
        if name not in arrays and spec.default is None and getattr(first, name) is not None:
            arrays[name] = _joined(data, name)
    if first.more:
        declared = [{"name": name} | FIELDS[name].declaration() for name in first.more]
        arrays["fields"] = np.array(json.dumps(declared))
    if first.pair_index is not None:
        arrays["pair_index"] = np.concatenate([g.pair_index.numpy() for g in data], axis=1).astype(np.int32)
        arrays["n_pairs"] = np.array([g.pair_index.shape[1] for g in data], np.int32)
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
            np.savez_compressed(handle, **arrays)

    write_file(path, write, error=DataError)


def _joined(data: Dataset, name: str) -> np.ndarray:
    return np.concatenate([getattr(g, name).numpy() for g in data])


def _wanted(name: str, quantities) -> bool:
    names = [
        q.name if isinstance(q, Quantity) else q
        for q in ([quantities] if isinstance(quantities, (str, Quantity)) else quantities)
    ]
    return not names or name in names
