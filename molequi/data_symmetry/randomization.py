"""Randomization tests of a symmetry: scores of the data against scores of randomly transformed data.

A score is a tensor of one structure that transforms with the structure, such as its residual times a vector
of the structure. If the joint distribution of structures and labels has the symmetry, the mean of every score
that is not invariant is zero, and the distribution does not change if each structure is transformed by its
own random group element. The norm of the sum over structures is therefore compared with its norm after such
random transforms. This is an exact test for any number of structures (Lehmann and Romano, Testing Statistical
Hypotheses, chapter 17).

Elements are drawn from a finite subgroup that has no invariants of its own up to degree 4 (the icosahedral
group for rotations). The test is exact for the whole group too, because the subgroup belongs to it.
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

# Rotations about an axis: no invariants of their own up to degree L_MAX, nor of products of two such degrees.
N_ROTATIONS = 2 * L_MAX + 3
MAX_BATCHES = 256  # consecutive structures are rotated together, so that there are at most this many batches
TIE = 1e-9  # sums that differ by a smaller relative amount are called equal


@dataclass(frozen=True)
class ScoreBlock:
    """Scores of one kind, summed over each structure and whitened.

    Attributes
    ----------
    name : str
        What was multiplied and how, such as ``forces × 1o → 2e``.
    irrep : tuple of int
        Degree and parity.
    scores : Tensor, shape (G, k, 2l+1)
        k channels of each of G structures.
    """

    name: str
    irrep: Irrep
    scores: Float[Tensor, "G k m"]

    @property
    def projections(self) -> dict[str, Float[Tensor, "m v"]]:
        """Components of the sum to test: all; for degree 4 also the one with cubic symmetry."""
        everything = {self.name: torch.eye(self.scores.shape[2], dtype=torch.float64)}
        return everything | {f"{self.name}, cubic": cubic_harmonic()} if self.irrep == (4, 1) else everything


@dataclass(frozen=True)
class RandomizationResult:
    """Result of a test that combines several scores by their largest z-score.

    Attributes
    ----------
    p_value : float
        Share of random data with an equal or larger statistic, the observed data included.
    statistic : float
        Largest z-score of the observed data.
    null_distribution : Tensor, shape (draws,)
        The statistic of randomly transformed data.
    z_scores : dict
        z-score of each score, in standard deviations of the null distribution.
    """

    p_value: float
    statistic: float
    null_distribution: Float[Tensor, "draws"]
    z_scores: dict[str, float]


@lru_cache
def cubic_harmonic() -> Float[Tensor, "9 1"]:
    """Harmonic of degree 4 that is invariant under the symmetry of a cube along x, y, z."""
    return torch.linalg.eigh(wigner_matrices((4, 1), _finite_group("Oh")).mean(0)).eigenvectors[:, -1:]


def whitened_block(name: str, irrep: Irrep, scores: Float[Tensor, "G k m"]) -> ScoreBlock | None:
    """Scores with uncorrelated channels of equal variance; None if all scores are zero.

    The whitening does not depend on orientations.
    """
    size = scores.square().mean((0, 2)).sqrt()
    scores = scores[:, size > 1e-12 * float(size.max() if len(size) else 0.0)]
    if not scores.shape[1]:
        return None
    scores = scores / scores.square().mean((0, 2)).sqrt()[:, None]
    covariance = torch.einsum("gam,gbm->ab", scores, scores) / (scores.shape[0] * scores.shape[2])
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > 1e-3 * values[-1]
    whitening = vectors[:, kept] / values[kept].sqrt()
    return ScoreBlock(name, irrep, torch.einsum("gam,ab->gbm", scores, whitening))


def wigner_matrices(irrep: Irrep, rotations: Float[Tensor, "h 3 3"]) -> Float[Tensor, "h m m"]:
    """D(g) of each orthogonal matrix; see `ops.irreps.wigner`."""
    l, parity = irrep
    det = torch.linalg.det(rotations).sign()[:, None, None]
    proper = rotations * det
    out = torch.ones(len(rotations), 1, 1, dtype=torch.float64)
    for k in range(1, l + 1):
        coupling = ir.clebsch_gordan(k - 1, 1, k) * math.sqrt(2 * k + 1)
        left = torch.einsum("ijk,hia->hajk", coupling, out)
        out = torch.einsum("hajk,hjb,abc->hkc", left, proper, coupling) if k > 1 else proper
    return out * det if parity < 0 else out


def finite_subgroup(group: Group, generator: torch.Generator) -> Float[Tensor, "h 3 3"]:
    """A finite subgroup of `group` with the same invariants up to degree L_MAX; finite groups as they are."""
    if group.name in ("O(n)", "SO(n)"):
        frame = random_orthogonal(3, proper=True, generator=generator)
        found = frame @ _finite_group("I") @ frame.T
        return torch.cat([found, -found]) if group.name == "O(n)" else found
    if group.name not in ("O(n-1)", "SO(n-1)"):
        return _finite_group(group.name)
    axis = torch.tensor(group.axis or (0.0, 0.0, 1.0), dtype=torch.float64)
    frame = torch.linalg.qr(
        torch.cat([(axis / axis.norm())[:, None], torch.eye(3, dtype=torch.float64)], 1)
    ).Q[:, [1, 2, 0]]
    frame[:, 2] = axis / axis.norm()
    angle = 2 * math.pi / N_ROTATIONS * torch.arange(N_ROTATIONS, dtype=torch.float64)
    turns = torch.eye(3, dtype=torch.float64).repeat(N_ROTATIONS, 1, 1)
    turns[:, 0, 0], turns[:, 0, 1] = angle.cos(), -angle.sin()
    turns[:, 1, 0], turns[:, 1, 1] = angle.sin(), angle.cos()
    mirrored = turns @ torch.diag(torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64))
    return frame @ (torch.cat([turns, mirrored]) if group.improper else turns) @ frame.T


@lru_cache
def _finite_group(name: str) -> Float[Tensor, "h 3 3"]:
    """All elements of a finite group, sampled until all are found."""
    size = {"T": 12, "Td": 24, "Th": 24, "O": 24, "Oh": 48, "I": 60, "Ih": 120, "C1": 1}[name]
    group, generator = Group(name=name), torch.Generator().manual_seed(0)
    found: list[Tensor] = []
    while len(found) < size:
        for proper in (True, False)[: 1 + group.improper]:
            g = group.sample(proper=proper, generator=generator)
            if not any(float((g - f).abs().max()) < 1e-6 for f in found):
                found.append(g)
    return torch.stack(found)


def rotation_sums(
    blocks: Sequence[ScoreBlock], turns: Float[Tensor, "h 3 3"], draws: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Squared norm of the sum of scores, observed and with structures rotated at random.

    Rotations are elements of `turns`. Only the component that `turns` change is counted. Consecutive
    structures are rotated together if there are many. Such rotations form a subgroup, so the test stays
    exact, and consecutive frames may be correlated.

    Returns
    -------
    dict
        For each projection of each block a Tensor (draws + 1,), the observed value first.
    """
    if not blocks:
        return {}
    count = len(blocks[0].scores)
    batch = torch.arange(count) * min(count, MAX_BATCHES) // count
    batches = int(batch[-1]) + 1
    random = torch.randint(len(turns), (draws, batches), generator=generator)
    chosen = random * batches + torch.arange(batches)
    found: dict[str, Tensor] = {}
    for b in blocks:
        D = wigner_matrices(b.irrep, turns)
        complement = torch.eye(D.shape[1], dtype=torch.float64) - D.mean(0)  # projects the invariants out
        sums = torch.zeros(batches, *b.scores.shape[1:], dtype=torch.float64).index_add(0, batch, b.scores)
        part = sums @ complement.T
        table = torch.einsum("gkm,hnm->hgkn", part, D).flatten(0, 1).flatten(1)
        turned = torch.nn.functional.embedding_bag(chosen, table, mode="sum")
        found |= _squared_norms(b, torch.cat([part.sum(0).flatten()[None], turned]))
    return found


def exchange_sums(
    blocks: Sequence[ScoreBlock],
    frames: Float[Tensor, "G 3 3"],
    strata: Sequence[Int[Tensor, "c"]],
    draws: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Squared norm of the sum of scores, observed and with orientations exchanged within strata.

    In each stratum the orientations are permuted cyclically: structure i, seen from its own frame, gets the
    orientation of another one. Orientations need not be uniform, but within a stratum they must not depend on
    the shape. Structures in no stratum stay as they are.

    Parameters
    ----------
    blocks : sequence of ScoreBlock
        Scores of G structures.
    frames : Tensor, shape (G, 3, 3)
        g_i with x_i = g_i x̃_i, where x̃_i does not depend on the orientation.
    strata : sequence of int Tensor
        Sets of similar structures.
    draws : int
        Number of random permutations.
    generator : torch.Generator
        Source of random numbers.

    Returns
    -------
    dict
        For each projection of each block a Tensor (draws + 1,), the observed value first.
    """
    chosen = [torch.randint(len(members), (draws,), generator=generator) for members in strata]
    found: dict[str, Tensor] = {}
    for b in blocks:
        D = wigner_matrices(b.irrep, frames)
        body_fixed = torch.einsum("gnm,gkn->gkm", D, b.scores)
        fixed = b.scores.sum(0) - sum(b.scores[members].sum(0) for members in strata)
        sums = fixed.flatten().repeat(draws, 1)
        for members, pick in zip(strata, chosen):
            orientations = D[members[cyclic_shifts(len(members))]]
            shifted = torch.einsum("scnm,ckm->skn", orientations, body_fixed[members])
            sums += shifted.flatten(1)[pick]
        found |= _squared_norms(b, torch.cat([b.scores.sum(0).flatten()[None], sums]))
    return found


def cyclic_shifts(size: int) -> Int[Tensor, "s c"]:
    """All cyclic shifts of `size` indices, one in each row."""
    return (torch.arange(size)[:, None] + torch.arange(size)) % size


def _squared_norms(b: ScoreBlock, sums: Float[Tensor, "d km"]) -> dict[str, Float[Tensor, "d"]]:
    sums = sums.unflatten(1, b.scores.shape[1:])
    return {name: (sums @ matrix).square().sum((1, 2)) for name, matrix in b.projections.items()}


def largest_z_score(sums: dict[str, Float[Tensor, "d"]], draws: int) -> RandomizationResult:
    """Combine all scores by the largest z-score of the cube roots of their squared norms.

    Cube roots are nearly normal (Wilson and Hilferty 1931). Mean and standard deviation are taken over all
    data, the observed ones included, so that p = (1 + #{null ≥ observed}) / (1 + draws) is exact.
    """
    if not sums:
        return RandomizationResult(1.0, 0.0, torch.zeros(draws, dtype=torch.float64), {})
    roots = torch.stack(list(sums.values()), 1) ** (1 / 3)
    deviation = roots.std(0)
    constant = deviation <= TIE * roots.amax(0)
    z = torch.where(constant, 0.0, (roots - roots.mean(0)) / torch.where(constant, 1.0, deviation))
    largest = z.amax(1)
    p = (1 + int((largest[1:] >= largest[0] - TIE).sum())) / len(largest)
    return RandomizationResult(p, float(largest[0]), largest[1:], dict(zip(sums, z[0].tolist())))


def best_axis(blocks: Sequence[ScoreBlock]) -> tuple[float, ...]:
    """Unit vector about which the summed scores are most nearly symmetric.

    It maximizes the m = 0 components about the axis.
    """
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
    for _ in range(40):  # random search around the best point, with smaller and smaller steps
        near = torch.nn.functional.normalize(
            best + step * torch.randn(64, 3, generator=generator, dtype=torch.float64), dim=1
        )
        near = torch.cat([best[None], near])
        best, step = near[int(along(near).argmax())], 0.8 * step
    largest = best[best.abs().argmax()].sign()
    return tuple((best * largest).tolist())
