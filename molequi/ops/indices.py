"""Symmetry of tensors under exchange of their indices, declared by a formula such as "ij=ji" (as in e3nn's
ReducedTensorProducts).
"""

from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

Permutations = dict[tuple[int, ...], int]


@lru_cache
def index_permutations(formula: str, rank: int) -> Permutations:
    """All permutations of the indices, with their signs, that follow from a formula.

    Parameters
    ----------
    formula : str
        Terms joined by ``=``: ``"ij=ji"`` (symmetric), ``"ij=-ji"`` (antisymmetric), ``"ijk=jik=ikj"`` (fully
        symmetric). The empty formula declares no symmetry.
    rank : int
        Number of indices.

    Returns
    -------
    dict of tuple of int to int
        ``T.permute(p) == sign * T`` for each permutation ``p`` and its sign; the identity is one of them.

    Raises
    ------
    ValueError
        If the formula does not fit the rank, or leaves only the zero tensor.

    Examples
    --------
    >>> index_permutations("ij=-ji", 2)
    {(0, 1): 1, (1, 0): -1}
    """
    found: Permutations = {tuple(range(rank)): 1}
    if not formula:
        return found
    first, *others = [term.strip() for term in formula.split("=")]
    if len(first) != rank or not others or not first.isalpha() or len(set(first)) < rank:
        raise ValueError(f"wanted {rank} different letters and their permutations, such as {_example(rank)}")
    generators: list[tuple[tuple[int, ...], int]] = []
    for term in others:
        letters, sign = term.removeprefix("-"), -1 if term.startswith("-") else 1
        if sorted(letters) != sorted(first):
            raise ValueError(
                f"{term!r} is not a permutation of {first!r}; wanted one such as {_example(rank)}"
            )
        generators.append((tuple(letters.index(letter) for letter in first), sign))
    new = dict(found)
    while new:
        products = {tuple(p[k] for k in q): s * t for (p, s), (q, t) in product(new.items(), generators)}
        if any(found.get(p, s) != s for p, s in products.items()):
            raise ValueError("only the zero tensor has this symmetry; check the signs")
        new = {p: s for p, s in products.items() if p not in found}
        found |= new
    return found


def _example(rank: int) -> str:
    letters = "ijklmnopqrstuvwxyz"[:rank]
    return repr(f"{letters}={letters[1::-1]}{letters[2:]}") if rank > 1 else "none for a rank below 2"


def symmetrize(value: Tensor, formula: str, rank: int) -> Tensor:
    """Mean over all index permutations of a formula, signs included, over the last `rank` axes; equal
    components are bitwise equal.

    Parameters
    ----------
    value : Tensor, shape (..., D, ..., D)
        Tensors in their last `rank` axes.
    formula : str
        See `index_permutations`; of an empty one `value` itself is returned.
    rank : int
        Number of tensor axes.

    Returns
    -------
    Tensor
        Of the same shape.
    """
    permutations = index_permutations(formula, rank)
    if len(permutations) == 1:
        return value
    lead = value.ndim - rank
    axes = list(range(lead))
    terms = [sign * value.permute(axes + [lead + k for k in p]) for p, sign in permutations.items()]
    mean = torch.stack(terms).sum(0) / len(terms)
    if len(permutations) == 2:  # a + b is b + a; longer sums depend on their order
        return mean
    source, signs = _representatives(formula, rank, value.shape[-1], value.dtype, value.device)
    return (mean.flatten(lead)[..., source] * signs).reshape(value.shape)


@lru_cache
def _representatives(
    formula: str, rank: int, dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """For each component, flattened: the component of its orbit that stands for all, and their relative sign
    (0: it vanishes).
    """
    source, signs = [], []
    for index in product(range(dim), repeat=rank):
        images = [(tuple(index[k] for k in p), sign) for p, sign in index_permutations(formula, rank).items()]
        least = min(image for image, _ in images)
        found = {sign for image, sign in images if image == least}
        position = 0
        for k in least:
            position = position * dim + k
        source.append(position)
        signs.append(found.pop() if len(found) == 1 else 0)
    with torch.inference_mode(False):
        return torch.tensor(source, device=device), torch.tensor(signs, dtype=dtype, device=device)
