"""Which structures depend on each other: near-duplicates, and frames that follow each other in time.

Tests that turn or exchange structures one by one take them as independent. Those that are not are joined to units that are turned and
exchanged as one, so that a test of fewer units stays exact.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.data_symmetry.nulls import Block

CLOSE = tuple(
    0.2 * 2.0**-k for k in range(12)
)  # of the median distance of two structures: below which they may be duplicates
FEW = 1.25  # pairs at twice the distance, over pairs: fewer have a gap around them, as only duplicates do
CORRELATED = 3.5  # standard deviations
LEAST = 20  # units, below which no correlation can be seen
ROWS = 500


def units(data: Dataset, *, placed: bool = False) -> Int[Tensor, "G"]:
    """Of each structure, the number of the unit it belongs to: near-duplicates in one pose (and if `placed`, in one place) are one.

    Units are numbered in the order of the data, trajectory after trajectory where `info` names them.

    Two structures of the same atoms are near-duplicates if they are much nearer to each other, in pose and in all that is given, than
    structures of these data are by chance: there is a gap between their distances and the next. Copies in other poses are not.
    """
    root = list(range(len(data)))

    def find(k: int) -> int:
        while root[k] != k:
            root[k] = root[root[k]]
            k = root[k]
        return k

    kinds: dict[tuple, list[int]] = {}
    for k, graph in enumerate(data):
        kinds.setdefault(tuple(graph.z.tolist()), []).append(k)
    for members in kinds.values():
        if len(members) > 2:
            for i, j in _duplicates(_parts(data, members, placed)).tolist():
                root[max(find(members[i]), find(members[j]))] = min(find(members[i]), find(members[j]))
    runs = [str(run) for run in data.info.get("trajectory", ("",) * len(data))]
    number: dict[int, int] = {}
    first = {run: k for k, run in reversed(list(enumerate(runs)))}
    for k in sorted(range(len(data)), key=lambda k: (first[runs[k]], k)):
        number.setdefault(find(k), len(number))
    return torch.tensor([number[find(k)] for k in range(len(data))])


def _parts(data: Dataset, members: Sequence[int], placed: bool) -> list[Float[Tensor, "c F"]]:
    """What a structure is, pose included: positions from the centre (in a crystal from the first atom), cell, all that is given."""
    graphs = [data.graphs[k] for k in members]
    parts = [
        torch.stack([(g.pos - (g.pos.mean(0) if g.pbc is None else g.pos[0])).flatten() for g in graphs])
    ]
    if placed:
        parts.append(torch.stack([g.pos.mean(0) for g in graphs]))
    for name in ("cell", "vel", "vec", "x", "pair_attr"):
        given = [getattr(g, name) for g in graphs]
        if all(v is not None and v.shape == given[0].shape for v in given):
            parts.append(torch.stack([v.to(torch.float64).flatten() for v in given]))
    return parts


def _duplicates(parts: Sequence[Float[Tensor, "c F"]]) -> Int[Tensor, "p 2"]:
    """Pairs that are near in every part, with a gap."""
    count = len(parts[0])
    some = torch.arange(0, count, max(1, count // ROWS))
    scaled = []
    for part in parts:
        far = torch.cdist(part[some], part[some])
        i, j = torch.triu_indices(len(some), len(some), 1)
        middle = float(far[i, j].median())
        if middle > 1e-9 * float(part.abs().max()):  # a part that is the same everywhere tells nothing
            scaled.append(part / middle)
    near, far = [], []
    for start in range(0, count if scaled else 0, ROWS):
        rows = torch.arange(start, min(start + ROWS, count))
        distance = torch.stack([torch.cdist(part[rows], part) for part in scaled]).amax(0)
        i, j = ((distance < 2 * CLOSE[0]) & (torch.arange(count) > rows[:, None])).nonzero().T
        near.append(torch.stack([rows[i], j], 1))
        far.append(distance[i, j])
    if not near:
        return torch.empty(0, 2, dtype=torch.long)
    pairs, distance = torch.cat(near), torch.cat(far)
    for reach in CLOSE:
        inside = int((distance < reach).sum())
        if inside and int((distance < 2 * reach).sum()) <= FEW * inside:
            return pairs[distance < reach]
    return pairs[:0]


def length(blocks: Sequence[Block], unit: Int[Tensor, "G"]) -> int:
    """How many units next to each other are one, so that sums of scores do not depend on each other: 1 if units do not.

    Scores are summed over 1, 2, 4, … units (blocking; Flyvbjerg and Petersen 1989), as long as neighbouring sums, less their mean, are
    correlated; twice what that takes, since less correlation than can be seen may be left.
    """
    found, size, scores = 1, 1, [added(b.scores, unit) for b in blocks]
    while scores and len(scores[0]) >= LEAST:
        products = []
        for s in scores:
            rest = (s - s.mean(0)).flatten(1)
            products.append((rest[1:] * rest[:-1]).sum(1) / rest.square().sum(1).mean().clamp(min=1e-300))
        products.append(torch.stack(products).sum(0))
        # a sum of products of independent scores, in units of its own size, is nearly normal whatever their law is
        z = [float(p.sum() / p.square().sum().sqrt().clamp(min=1e-300)) for p in products]
        if max(z) > CORRELATED:
            found = 4 * size
        size *= 2
        scores = [added(s, torch.arange(len(s)) // 2) for s in scores]
    return found


def added(scores: Float[Tensor, "G ..."], unit: Int[Tensor, "G"]) -> Float[Tensor, "u ..."]:
    """Over the structures of each unit."""
    return scores.new_zeros(int(unit.max()) + 1, *scores.shape[1:]).index_add(0, unit, scores)


def joined(blocks: Sequence[Block], unit: Int[Tensor, "G"]) -> list[Block]:
    """Scores of units."""
    return [replace(b, scores=added(b.scores, unit)) for b in blocks]


def means(columns: Float[Tensor, "G k"], unit: Int[Tensor, "G"]) -> Float[Tensor, "u k"]:
    """Of the structures of each unit."""
    return added(columns, unit) / torch.bincount(unit)[:, None]


def middle(unit: Int[Tensor, "G"]) -> Int[Tensor, "u"]:
    """The structure in the middle of each unit."""
    counts = torch.bincount(unit)
    return unit.argsort(stable=True)[counts.cumsum(0) - counts + counts // 2]


def within(sets: Sequence[Int[Tensor, "c"]], middle: Int[Tensor, "u"]) -> list[Int[Tensor, "v"]]:
    """Of each set of structures, the units with the middle in it."""
    return [members for members in (torch.isin(middle, s).nonzero().flatten() for s in sets) if len(members)]
