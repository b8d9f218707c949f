"""Randomisation tests of symmetry: what structures say of a broken symmetry, and what they would say in other poses.

A score is a tensor of one structure that turns with it, such as its residual times a vector of its own. If the joint law of structures and
labels has the symmetry, the mean of every score that is not invariant is zero, and turning each structure by an element of its own changes
nothing. So the size of the sum over structures is compared with its size after such turns, an exact test for any number of structures
(Lehmann and Romano, Testing Statistical Hypotheses, ch. 17). Elements are drawn from a finite subgroup without invariants of its own up to
degree 4 (the icosahedral one for rotations): exact for the whole group too, since the subgroup belongs to it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molequi.data_symmetry.descriptors import L_MAX, Irrep
from molequi.ops import irreps as ir
from molequi.ops.sphere import quadrature
from molequi.symmetry import Group, random_orthogonal

TURNS = 2 * L_MAX + 3  # about an axis: no invariants of their own up to degree L_MAX, nor of their products
BATCHES = 256  # structures next to each other are turned together, so that there are no more than these
EXACT = 1e-9  # sums that differ by less than this part are equally large


@dataclass(frozen=True)
class Block:
    """Scores of one kind: (G, k, 2l+1) for k channels, the sum over each structure, whitened."""

    name: str
    irrep: Irrep
    scores: Float[Tensor, "G k m"]

    @property
    def views(self) -> dict[str, Float[Tensor, "m v"]]:
        """What of the sum is looked at: all of it, and of degree 4 also the one direction that has the symmetry of a box along x, y, z."""
        whole = {self.name: torch.eye(self.scores.shape[2], dtype=torch.float64)}
        return whole | {f"{self.name}, as of a box": cubic()} if self.irrep == (4, 1) else whole


@lru_cache
def cubic() -> Float[Tensor, "9 1"]:
    """The harmonic of degree 4 that a cube along x, y and z leaves as it is."""
    return torch.linalg.eigh(wigners((4, 1), _all("Oh")).mean(0)).eigenvectors[:, -1:]


def block(name: str, irrep: Irrep, scores: Float[Tensor, "G k m"]) -> Block | None:
    """Channels made independent and of one size, which does not depend on any pose; None where all are zero."""
    size = scores.square().mean((0, 2)).sqrt()
    scores = scores[:, size > 1e-12 * float(size.max() if len(size) else 0.0)]
    if not scores.shape[1]:
        return None
    scores = scores / scores.square().mean((0, 2)).sqrt()[:, None]
    covariance = torch.einsum("gam,gbm->ab", scores, scores) / (scores.shape[0] * scores.shape[2])
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > 1e-3 * values[-1]
    white = vectors[:, kept] / values[kept].sqrt()
    return Block(name, irrep, torch.einsum("gam,ab->gbm", scores, white))


def wigners(irrep: Irrep, rotations: Float[Tensor, "h 3 3"]) -> Float[Tensor, "h m m"]:
    """D(g) of each of many elements; see `ops.irreps.wigner`."""
    l, parity = irrep
    det = torch.linalg.det(rotations).sign()[:, None, None]
    proper = rotations * det
    out = torch.ones(len(rotations), 1, 1, dtype=torch.float64)
    for k in range(1, l + 1):
        coupling = ir.clebsch_gordan(k - 1, 1, k) * math.sqrt(2 * k + 1)
        left = torch.einsum("ijk,hia->hajk", coupling, out)
        out = torch.einsum("hajk,hjb,abc->hkc", left, proper, coupling) if k > 1 else proper
    return out * det if parity < 0 else out


def elements(group: Group, generator: torch.Generator) -> Float[Tensor, "h 3 3"]:
    """A finite subgroup of `group` (itself if it is finite) that leaves nothing more in its place up to degree L_MAX."""
    if group.name in ("O(n)", "SO(n)"):
        frame = random_orthogonal(3, proper=True, generator=generator)
        found = frame @ _all("I") @ frame.T
        return torch.cat([found, -found]) if group.name == "O(n)" else found
    if group.name in ("O(n-1)", "SO(n-1)"):
        axis = torch.tensor(group.axis or (0.0, 0.0, 1.0), dtype=torch.float64)
        frame = torch.linalg.qr(
            torch.cat([(axis / axis.norm())[:, None], torch.eye(3, dtype=torch.float64)], 1)
        ).Q[:, [1, 2, 0]]
        frame[:, 2] = axis / axis.norm()
        angle = 2 * math.pi / TURNS * torch.arange(TURNS, dtype=torch.float64)
        turns = torch.eye(3, dtype=torch.float64).repeat(TURNS, 1, 1)
        turns[:, 0, 0], turns[:, 0, 1], turns[:, 1, 0], turns[:, 1, 1] = (
            angle.cos(),
            -angle.sin(),
            angle.sin(),
            angle.cos(),
        )
        mirrored = turns @ torch.diag(torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64))
        return frame @ (torch.cat([turns, mirrored]) if group.improper else turns) @ frame.T
    return _all(group.name)


@lru_cache
def _all(name: str) -> Float[Tensor, "h 3 3"]:
    """All elements of a finite group: sampled until no more come."""
    size = {"T": 12, "Td": 24, "Th": 24, "O": 24, "Oh": 48, "I": 60, "Ih": 120, "C1": 1}[name]
    group, generator, found = Group(name=name), torch.Generator().manual_seed(0), []
    while len(found) < size:
        for proper in (True, False)[: 1 + group.improper]:
            g = group.sample(proper=proper, generator=generator)
            if not any(float((g - f).abs().max()) < 1e-6 for f in found):
                found.append(g)
    return torch.stack(found)


def by_turning(
    blocks: Sequence[Block], turns: Float[Tensor, "h 3 3"], draws: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """For each view (draws + 1,): the squared sum of what `turns` change, first as found, then with structures turned at random.

    Neighbours in the data are turned together where there are many: that is a subgroup, so the test stays exact, and structures that
    follow each other in time may depend on each other.
    """
    if not blocks:
        return {}
    count = len(blocks[0].scores)
    batch = torch.arange(count) * min(count, BATCHES) // count
    batches = int(batch[-1]) + 1
    chosen = torch.randint(len(turns), (draws, batches), generator=generator) * batches + torch.arange(
        batches
    )
    found = {}
    for b in blocks:
        D = wigners(b.irrep, turns)
        rest = torch.eye(D.shape[1], dtype=torch.float64) - D.mean(0)
        part = (
            torch.zeros(batches, *b.scores.shape[1:], dtype=torch.float64).index_add(0, batch, b.scores)
            @ rest.T
        )
        table = torch.einsum("gkm,hnm->hgkn", part, D).flatten(0, 1).flatten(1)
        turned = torch.nn.functional.embedding_bag(chosen, table, mode="sum")
        found |= _squared(b, torch.cat([part.sum(0).flatten()[None], turned]))
    return found


def by_exchange(
    blocks: Sequence[Block],
    frames: Float[Tensor, "G 3 3"],
    clusters: Sequence[Int[Tensor, "c"]],
    draws: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """The same with the poses of like structures exchanged in cycles: structure i, seen from its own frame, in the pose of another.

    frames: g_i with x_i = g_i x̃_i, where x̃_i does not depend on the pose. The poses need not be uniform; among the structures of a
    cluster they must not depend on the shape. Structures in no cluster stay as they are.
    """
    chosen = [torch.randint(len(members), (draws,), generator=generator) for members in clusters]
    found = {}
    for b in blocks:
        D = wigners(b.irrep, frames)
        inner = torch.einsum("gnm,gkn->gkm", D, b.scores)
        alone = b.scores.sum(0) - sum(b.scores[members].sum(0) for members in clusters)
        sums = alone.flatten().repeat(draws, 1)
        for members, pick in zip(clusters, chosen):
            sums += torch.einsum("scnm,ckm->skn", D[members[shifts(len(members))]], inner[members]).flatten(
                1
            )[pick]
        found |= _squared(b, torch.cat([b.scores.sum(0).flatten()[None], sums]))
    return found


def shifts(size: int) -> Int[Tensor, "s c"]:
    """All cyclic shifts of so many members."""
    return (torch.arange(size)[:, None] + torch.arange(size)) % size


def _squared(b: Block, sums: Float[Tensor, "d km"]) -> dict[str, Float[Tensor, "d"]]:
    sums = sums.unflatten(1, b.scores.shape[1:])
    return {name: (sums @ view).square().sum((1, 2)) for name, view in b.views.items()}


@dataclass(frozen=True)
class Outcome:
    """p-value over all views together; the statistic is how far the one stands out that does so most.

    each: how far each view stands out, in units of the spread of the null.
    """

    p: float
    observed: float
    null: Float[Tensor, "draws"]
    each: dict[str, float]


def outcome(sums: dict[str, Float[Tensor, "d"]], draws: int) -> Outcome:
    """Cube roots of the sums, which are nearly normal (Wilson and Hilferty 1931), in units of their spread; the largest counts.

    Mean and spread are over all worlds, the observed one included, so that p = (1 + #{null ≥ observed}) / (1 + draws) is exact.
    """
    if not sums:
        return Outcome(1.0, 0.0, torch.zeros(draws, dtype=torch.float64), {})
    roots = torch.stack(list(sums.values()), 1) ** (1 / 3)
    spread = roots.std(0)
    flat = spread <= EXACT * roots.amax(0)
    z = torch.where(flat, 0.0, (roots - roots.mean(0)) / torch.where(flat, 1.0, spread))
    largest = z.amax(1)
    p = (1 + int((largest[1:] >= largest[0] - EXACT).sum())) / len(largest)
    return Outcome(p, float(largest[0]), largest[1:], dict(zip(sums, z[0].tolist())))


def best_axis(blocks: Sequence[Block]) -> tuple[float, ...]:
    """The direction about which the summed scores are most nearly round: where their m = 0 parts are largest. A unit vector."""
    sums = [(b.irrep[0], b.scores.sum(0)) for b in blocks if b.irrep[1] == (-1) ** b.irrep[0]]
    noise = [
        (b.scores.square().sum((0, 2)) / b.scores.shape[2]).mean().sqrt()
        for b in blocks
        if b.irrep[1] == (-1) ** b.irrep[0]
    ]

    def along(n: Float[Tensor, "P 3"]) -> Float[Tensor, "P"]:
        y = ir.spherical_harmonics(L_MAX, n)
        parts = ((y[l] @ (s / size).T).square().sum(1) / (2 * l + 1) for (l, s), size in zip(sums, noise))
        return sum(parts, torch.zeros(len(n), dtype=n.dtype))

    points = quadrature(59)[0]
    best = points[int(along(points).argmax())]
    generator, step = torch.Generator().manual_seed(0), 0.1
    for _ in range(40):  # ever nearer tries around the best
        near = torch.nn.functional.normalize(
            best + step * torch.randn(64, 3, generator=generator, dtype=torch.float64), dim=1
        )
        near = torch.cat([best[None], near])
        best, step = near[int(along(near).argmax())], 0.8 * step
    largest = best[best.abs().argmax()].sign()
    return tuple((best * largest).tolist())
