"""Checks of what one structure is made of: lattice, fields and pairs, from arrays to tensors of the right
dtype.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from molequi.errors import DataError, did_you_mean
from molequi.graph.fields import FIELDS, Field


def checked_lattice(cell: object, pbc: object, dim: int) -> dict[str, Tensor]:
    """Cell (1, D, D) and periodic directions (1, D) of one structure; nothing if it is not periodic. Raises
    DataError.
    """
    if cell is None and pbc is None:
        return {}  # most molecules: no tensors are made for nothing
    given = as_tensor(False if pbc is None else pbc, torch.bool, "pbc")
    if tuple(given.shape) not in ((), (1,), (dim,)):
        raise DataError(f"pbc of shape {tuple(given.shape)}; wanted one truth value, or {dim}")
    periodic = given.expand(dim).clone()
    rows = torch.zeros(dim, dim, dtype=torch.float64)
    if cell is not None:
        rows = as_tensor(cell, torch.float64, "cell")
        if rows.shape != (dim, dim):
            raise DataError(
                f"cell of shape {tuple(rows.shape)}; wanted ({dim}, {dim}), rows are lattice vectors"
            )
        if not torch.isfinite(rows).all():
            raise DataError(f"cell {rows.tolist()} has non-finite entries")
    if not periodic.any():
        return {}
    used = rows[periodic]
    lengths = used.norm(dim=1)
    if bool((lengths < 1e-8).any()) or float(torch.linalg.matrix_rank(used / lengths[:, None])) < len(used):
        raise DataError(
            f"periodic in {periodic.tolist()} but the cell is {rows.tolist()}: a periodic direction needs a "
            "lattice "
            "vector of its own. Give the cell, or say pbc=False"
        )
    return {"cell": rows[None], "pbc": periodic[None]}


def as_tensor(raw: object, dtype: torch.dtype | None, name: str) -> Tensor:
    """A value as a tensor.

    Parameters
    ----------
    raw : object
        The value.
    dtype : torch.dtype or None
        Its type; None keeps that of the value.
    name : str
        What it is, for messages.

    Raises
    ------
    DataError
        If it has no numbers, or rows of different lengths.
    """
    try:
        return torch.as_tensor(raw, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name} is {str(raw)[:60]} ({type(raw).__name__}); wanted numbers") from error


def checked_fields(values: Mapping[str, object], n: int, dim: int) -> dict[str, Tensor]:
    """Fields of one structure, cast and checked; those per graph get an axis of graphs. Raises DataError."""
    out = {}
    for name, raw in values.items():
        spec = FIELDS.get(name)
        if spec is None or spec.per == "edge":
            known = [n for n, s in FIELDS.items() if s.per != "edge"]
            raise DataError(
                f"{name!r} is no field of a structure{did_you_mean(name, known)} "
                f"Declare a new one with mq.add_field({name!r}, per='graph', rank=0, unit='…')"
            )
        if raw is None or spec.per == "pair":
            continue
        value = as_tensor(raw, spec.dtype, name)
        found = tuple(value.shape)
        wanted = spec.shape(dim)
        if spec.per == "graph" and value.ndim == len(wanted):
            value = value[None]
        if spec.per == "node" and value.ndim == 2 < 1 + len(wanted):
            value = _unflattened(value, spec, dim)
        wanted = (n if spec.per == "node" else 1, *wanted)
        if value.ndim != len(wanted) or any(w not in (None, size) for w, size in zip(wanted, value.shape)):
            sizes = wanted[1:] if spec.per == "graph" else wanted
            text = ", ".join("any" if w is None else str(w) for w in sizes)
            raise DataError(f"{name} of shape {found} for {n} nodes in {dim} dimensions; wanted ({text})")
        if not torch.isfinite(value).all():
            raise DataError(f"{name} has entries that are not finite; wanted finite numbers")
        out[name] = value
    return out


def _unflattened(value: Tensor, spec: Field, dim: int) -> Tensor:
    """Rows that a file holds flat: nine columns of a tensor, 3 C columns of vectors in C channels."""
    size, columns = dim**spec.rank, value.shape[1]
    channels = [columns // size] if spec.channels else []
    fits = columns % size == 0 if spec.channels else columns == size
    return value.reshape(len(value), *channels, *[dim] * spec.rank) if fits else value


def checked_rows(name: str, raw: object, like: Tensor, n: int) -> Tensor:
    """A declared field of a batch of `n` nodes or graphs, cast and checked. Raises DataError.

    Its rows have the shape of the declaration in the dimensions of `like`, whose device it takes.
    """
    spec = FIELDS[name]
    try:
        value = as_tensor(raw, None, name).to(like.device, spec.dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{name}: found {raw!r:.60} ({type(raw).__name__}); wanted numbers: {error}"
        ) from error
    row = spec.shape(like.shape[-1])
    if n == 1 and spec.per == "graph" and value.ndim == len(row):
        value = value[None]
    wanted = (n, *row)
    if value.ndim != len(wanted) or any(w not in (None, size) for w, size in zip(wanted, value.shape)):
        text = ", ".join("any" if w is None else str(w) for w in wanted)
        raise DataError(
            f"{name} of shape {tuple(value.shape)}; wanted ({text}): a row for each {spec.per}, declared "
            f"with rank={spec.rank} in {like.shape[-1]} dimensions"
        )
    return value


def checked_pairs(index: object, values: Mapping[str, object], n: int) -> dict[str, Tensor]:
    """Pairs of one structure and their features, cast and checked. Raises DataError."""
    attr = values.get("pair_attr")
    if (index is None) != (attr is None):
        raise DataError(
            "pair_index and pair_attr belong together: the pairs, and the features of each; one of them is "
            "missing"
        )
    if index is None:
        return {}
    pairs = as_tensor(index, torch.int64, "pair_index")
    given = as_tensor(attr, FIELDS["pair_attr"].dtype, "pair_attr")
    if pairs.ndim != 2 or len(pairs) != 2 or given.ndim != 2 or len(given) != pairs.shape[1]:
        raise DataError(
            f"pair_index of shape {tuple(pairs.shape)} and pair_attr of shape {tuple(given.shape)}; wanted "
            "(2, B) and (B, A)"
        )
    if pairs.numel() and not (int(pairs.min()) >= 0 and int(pairs.max()) < n):
        raise DataError(
            f"pair_index names the nodes {int(pairs.min())} to {int(pairs.max())}; there are {n}, counted "
            "from 0"
        )
    code = pairs[0] * n + pairs[1]
    back = pairs[1] * n + pairs[0]
    order, other = code.argsort(), back.argsort()
    if len(code.unique()) != len(code) or bool((pairs[0] == pairs[1]).any()):
        raise DataError(
            "pair_index lists a pair twice, or a node with itself; wanted each pair once in each direction"
        )
    if not torch.equal(code[order], back[other]) or not torch.equal(given[order], given[other]):
        raise DataError(
            "pair_index and pair_attr: a pair is listed in one direction only, or with other values in the "
            "other; wanted "
            "both directions with the same values, because the features of a pair do not depend on its "
            "direction"
        )
    return {"pair_index": pairs, "pair_attr": given}
