"""Which structures depend on each other: near-duplicates, and correlated frames of a trajectory.

A randomization test that rotates structures one by one treats them as independent samples. Structures that
depend on each other are therefore joined to sampling units, and all structures of a unit are rotated
together. The test then remains exact, with fewer units.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.data_symmetry.randomization import ScoreBlock
from molequi.graph import fields_per

# Distances, relative to the median distance of two structures, below which structures may be duplicates.
DUPLICATE_DISTANCES = tuple(0.2 * 2.0**-k for k in range(12))
# Pairs within twice a distance over pairs within it. A smaller ratio means a gap, which only duplicates have.
GAP_RATIO = 1.25
CORRELATED = 3.5  # z-score of neighboring sums above which they are called correlated
MIN_UNITS = 20  # with fewer units no correlation can be detected
CHUNK = 500


def sampling_units(data: Dataset, *, with_positions: bool = False) -> Int[Tensor, "G"]:
    """Index of the sampling unit of each structure: near-duplicates in the same orientation are one unit.

    Two structures of the same atoms are near-duplicates if they are much closer to each other, in orientation
    and in all given fields, than chance explains: there is a gap between their distance and the next larger
    ones. Copies in other orientations are not duplicates.

    Parameters
    ----------
    data : Dataset
        Structures. If ``data.info`` has a column ``trajectory``, units are numbered trajectory by trajectory.
    with_positions : bool
        Whether duplicates must also have the same center in space.

    Returns
    -------
    int Tensor, shape (G,)
        Units are numbered in the order of the data.
    """
    root = list(range(len(data)))

    def find(k: int) -> int:
        while root[k] != k:
            root[k] = root[root[k]]
            k = root[k]
        return k

    same_atoms: dict[tuple, list[int]] = {}
    for k, graph in enumerate(data):
        same_atoms.setdefault(tuple(graph.z.tolist()), []).append(k)
    for members in same_atoms.values():
        if len(members) > 2:
            for i, j in _duplicates(_coordinates(data, members, with_positions)).tolist():
                root[max(find(members[i]), find(members[j]))] = min(find(members[i]), find(members[j]))
    trajectory = [str(name) for name in data.info.get("trajectory", ("",) * len(data))]
    number: dict[int, int] = {}
    first = {name: k for k, name in reversed(list(enumerate(trajectory)))}
    for k in sorted(range(len(data)), key=lambda k: (first[trajectory[k]], k)):
        number.setdefault(find(k), len(number))
    return torch.tensor([number[find(k)] for k in range(len(data))])


def _coordinates(data: Dataset, members: Sequence[int], with_positions: bool) -> list[Float[Tensor, "c F"]]:
    """Positions relative to the center (in a crystal to the first atom), cells and given fields."""
    graphs = [data.graphs[k] for k in members]
    parts = [
        torch.stack([(g.pos - (g.pos.mean(0) if g.pbc is None else g.pos[0])).flatten() for g in graphs])
    ]
    if with_positions:
        parts.append(torch.stack([g.pos.mean(0) for g in graphs]))
    given_fields = fields_per("node", "graph", "pair").items()
    for name in [
        n for n, s in given_fields if s.dtype.is_floating_point and (s.rank or s.channels) and not s.point
    ]:
        given = [getattr(g, name) for g in graphs]
        if all(v is not None and v.shape == given[0].shape for v in given):
            parts.append(torch.stack([v.to(torch.float64).flatten() for v in given]))
    return parts


def _duplicates(parts: Sequence[Float[Tensor, "c F"]]) -> Int[Tensor, "p 2"]:
    """Pairs that are close in every part, if there is a gap to the next larger distances."""
    count = len(parts[0])
    some = torch.arange(0, count, max(1, count // CHUNK))
    scaled = []
    for part in parts:
        distances = torch.cdist(part[some], part[some])
        i, j = torch.triu_indices(len(some), len(some), 1)
        median = float(distances[i, j].median())
        if median > 1e-9 * float(part.abs().max()):  # a part that is the same everywhere has no information
            scaled.append(part / median)
    close_pairs: list[Tensor] = []
    close_distances: list[Tensor] = []
    for start in range(0, count if scaled else 0, CHUNK):
        rows = torch.arange(start, min(start + CHUNK, count))
        distance = torch.stack([torch.cdist(part[rows], part) for part in scaled]).amax(0)
        close = (distance < 2 * DUPLICATE_DISTANCES[0]) & (torch.arange(count) > rows[:, None])
        i, j = close.nonzero().T
        close_pairs.append(torch.stack([rows[i], j], 1))
        close_distances.append(distance[i, j])
    if not close_pairs:
        return torch.empty(0, 2, dtype=torch.long)
    pairs, distance = torch.cat(close_pairs), torch.cat(close_distances)
    for threshold in DUPLICATE_DISTANCES:
        inside = int((distance < threshold).sum())
        if inside and int((distance < 2 * threshold).sum()) <= GAP_RATIO * inside:
            return pairs[distance < threshold]
    return pairs[:0]


def block_length(blocks: Sequence[ScoreBlock], unit: Int[Tensor, "G"]) -> int:
    """Number of consecutive units to join so that sums of scores are uncorrelated; at least 1.

    The scores are summed over 1, 2, 4, … units (blocking; Flyvbjerg and Petersen, J. Chem. Phys. 91, 461,
    1989) until neighboring sums, minus their mean, are uncorrelated. The result is four times the largest
    correlated size, twice the minimum, because correlation below the detection limit may remain.
    """
    found, size, scores = 1, 1, [sum_over_units(b.scores, unit) for b in blocks]
    while scores and len(scores[0]) >= MIN_UNITS:
        products = []
        for s in scores:
            deviation = (s - s.mean(0)).flatten(1)
            variance = deviation.square().sum(1).mean().clamp(min=1e-300)
            products.append((deviation[1:] * deviation[:-1]).sum(1) / variance)
        products.append(torch.stack(products).sum(0))
        # A self-normalized sum of products of independent scores is nearly normal, whatever their
        # distribution.
        z = [float(p.sum() / p.square().sum().sqrt().clamp(min=1e-300)) for p in products]
        if max(z) > CORRELATED:
            found = 4 * size
        size *= 2
        scores = [sum_over_units(s, torch.arange(len(s)) // 2) for s in scores]
    return found


def sum_over_units(scores: Float[Tensor, "G ..."], unit: Int[Tensor, "G"]) -> Float[Tensor, "u ..."]:
    """Sum over the structures of each unit."""
    return scores.new_zeros(int(unit.max()) + 1, *scores.shape[1:]).index_add(0, unit, scores)


def blocks_of_units(blocks: Sequence[ScoreBlock], unit: Int[Tensor, "G"]) -> list[ScoreBlock]:
    """Score blocks with one row for each unit."""
    return [replace(b, scores=sum_over_units(b.scores, unit)) for b in blocks]


def mean_over_units(columns: Float[Tensor, "G k"], unit: Int[Tensor, "G"]) -> Float[Tensor, "u k"]:
    """Mean over the structures of each unit."""
    return sum_over_units(columns, unit) / torch.bincount(unit)[:, None]


def representatives(unit: Int[Tensor, "G"]) -> Int[Tensor, "u"]:
    """Index of one structure of each unit, the middle one in the order of the data."""
    counts = torch.bincount(unit)
    return unit.argsort(stable=True)[counts.cumsum(0) - counts + counts // 2]


def units_of_sets(
    sets: Sequence[Int[Tensor, "c"]], representative: Int[Tensor, "u"]
) -> list[Int[Tensor, "v"]]:
    """For each set of structures, the units whose representative belongs to it; empty sets are left out."""
    found = (torch.isin(representative, s).nonzero().flatten() for s in sets)
    return [members for members in found if len(members)]
