"""Structures from arrays in .npz files, in the layout of MD17 and revised MD17."""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from molequi.data import extxyz
from molequi.data.atoms import _range, _sha256
from molequi.data.dataset import Dataset, Source
from molequi.data.labels import Record, Request, build, check_elements
from molequi.errors import DataError, did_you_mean
from molequi.quantities import Quantity

_Z, _POS = ("nuclear_charges", "z"), ("coords", "R")
_LABELS = {"energy": ("energies", "E"), "forces": ("forces", "F")}


def read_npz(
    path: str | Path,
    *,
    index: str | int | slice = ":",
    keys: Mapping | None = None,
    units: Mapping[str, str] | None = None,
    partial: Sequence[str] = (),
    quantities: Sequence[str | Quantity] = (),
) -> Dataset:
    """Labelled structures of one molecule from an .npz file in the (revised) MD17 layout.

    Arrays: `nuclear_charges` or `z` (N,) or (F, N); `coords` or `R` (F, N, 3); `energies` or `E` (F,) or (F, 1);
    `forces` or `F` (F, N, 3); anything else named in `keys`, one entry a frame. "z" and "positions" may be named in
    `keys` too.
    units: these files do not say their units (MD17 has kcal/mol and kcal/mol/Å), so every label that is read needs one:
    `units={"energy": "kcal/mol", "forces": "kcal/mol/Å"}`. Other arguments are those of `read_ase`.
    Raises DataError for files that are damaged, of another layout or with pickled objects (which are never loaded).
    """
    path, keys = Path(path), dict(keys or {})
    z_names, pos_names = ((keys.pop(n),) if n in keys else names for n, names in (("z", _Z), ("positions", _POS)))
    arrays = _load(path)
    for name, layout in _LABELS.items():
        if name not in keys and name not in arrays and _wanted(name, quantities):
            keys |= {name: key for key in layout if key in arrays}
    if keys.get("energy") == "energies":
        keys.setdefault("energies", None)  # in this layout a plural of frames, not energies of atoms
    request = Request(quantities=quantities, keys=keys, units=units, partial=partial)
    z, pos = _required(path, arrays, z_names), _required(path, arrays, pos_names)
    if pos.ndim != 3 or pos.shape[2] != 3 or z.shape not in (pos.shape[1:2], pos.shape[:2]) or z.dtype.kind not in "iu":
        raise DataError(
            f"{path}: positions of shape {pos.shape} and atomic numbers of shape {z.shape} ({z.dtype}); wanted (F, N, "
            f"3) and "
            "integers (N,) or (F, N)"
        )
    total = len(pos)
    if not total:
        raise DataError(f"{path}: no frames in this file")
    z = np.broadcast_to(z, pos.shape[:2]).astype(np.int64)
    frames = _range(index, total, path)
    labels = {name: arrays[key.key] for name, key in request.keys.items() if key.key in arrays}
    labels |= {name: arrays[keys[name]] for name in request.invariants if name in keys and keys[name] in arrays}
    for name, array in labels.items():
        if array.shape[:1] != (total,):
            raise DataError(f"{path}: {name} has the shape {array.shape} for {total} frames; wanted one entry a frame")
        if name in request.candidates and request.candidates[name].unit and name not in request.units:
            raise DataError(
                f"{path}: this layout does not say the unit of {name}; MD17 and revised MD17 have "
                "units={'energy': 'kcal/mol', 'forces': 'kcal/mol/Å'}"
            )
    for k in np.flatnonzero((z < 1).any(1) | (z > 118).any(1))[:1]:
        check_elements(z[k], f"{path}, frame {k}")
    offered = tuple(k for k in arrays if k not in (*z_names, *pos_names))
    columns = {k: a for k, a in arrays.items() if k in offered and a.shape == (total,) and a.dtype.kind in "iufUb"}
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
    return build(records, request, lambda: [Source(str(path), total, _sha256(path))])


def _wanted(name: str, quantities) -> bool:
    names = [
        q.name if isinstance(q, Quantity) else q
        for q in ([quantities] if isinstance(quantities, (str, Quantity)) else quantities)
    ]
    return not names or name in names


def _required(path: Path, arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    for name in names:
        if name in arrays:
            return arrays[name]
    raise DataError(
        f"{path}: no array {' or '.join(map(repr, names))}; found {', '.join(map(repr, arrays)) or 'none'}"
        f"{did_you_mean(names[0], arrays)}"
    )


def _load(path: Path) -> dict[str, np.ndarray]:
    extxyz.check_file(path)
    try:
        # numpy leaves a file that it cannot parse open; a handle of our own is closed.
        with open(path, "rb") as handle:
            file = np.load(handle, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(f"{path}: a single array; wanted an .npz file with several")
            return {name: file[name] for name in file.files}
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError) as error:
        raise DataError(f"{path}: damaged or truncated .npz file ({error}); copy or download it again") from error
    except ValueError as error:
        hint = (
            "it holds pickled Python objects, which are never loaded; save plain arrays"
            if "pickle" in str(error)
            else "is it truncated?"
        )
        raise DataError(f"{path}: not a readable .npz file ({error}): {hint}") from error
