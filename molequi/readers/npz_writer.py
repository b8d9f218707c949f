"""Structures to arrays in .npz files, as molecules of any size."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch

from molequi.data.dataset import Dataset
from molequi.data.request import INVARIANTS
from molequi.errors import DataError
from molequi.graph import FIELDS, fields_per, own_fields
from molequi.readers.arrays import INFO, RESERVED
from molequi.util.files import write_file
from molequi.util.signature import check_keywords


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
            taken = array.dtype.kind == "U" and (name in RESERVED or name in INVARIANTS)
            info[f"{INFO}{name}" if taken else name] = array
    own_names = [name for name in own_fields() if any(getattr(g, name) is not None for g in data)]
    for name in (*data.quantities, *info, *own_names):
        if (
            name in RESERVED
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
