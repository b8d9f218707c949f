"""Learned symmetry of a function that has none built in: what it does along the orbit of a structure, by exact quadrature over rotations.

The spectrum says how much of a function is invariant, turns as a vector, and so on. The hidden action says whether features that declare
nothing turn by a linear representation all the same, and by which.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molequi.discovery.probe import CONSTANT, Probe, probe
from molequi.errors import ConfigError, DataError
from molequi.graph import Graph
from molequi.ops import irreps as ir
from molequi.ops.sphere import quadrature
from molequi.symmetry import random_orthogonal
from molequi.util import tables as table

EXACT, NEAR = 1e-8, 0.1  # 1 - R² on held-out structures: of an action; of one that holds nearly
HOMOMORPHISM = 1e-6  # relative defect |M(R1 R2) - M(R1) M(R2)| of an action
FINEST = 130  # degree of a quadrature; that above it is the last one that is known
FINE = 0.01  # what two quadratures of a function may differ by, as a share of it
INTEGER = 0.05  # how far a multiplicity may be from a whole number


@lru_cache
def rotations(dim: int, degree: int) -> tuple[Float[Tensor, "Q D D"], Float[Tensor, "Q"]]:
    """Rotations and weights, which add up to one, whose sum is the Haar mean of every polynomial up to `degree` in the entries of the matrix.

    In the plane equal angles; in space the points of a sphere rule (Lebedev), each with equal turns about it: a sum over the turns leaves
    of D^l only what is a spherical harmonic of degree l of the point. Raises ConfigError for other dimensions.
    """
    angles = 2 * math.pi * torch.arange(degree + 1, dtype=torch.float64) / (degree + 1)
    if dim == 2:
        return _about(angles)[:, :2, :2], torch.full((degree + 1,), 1 / (degree + 1), dtype=torch.float64)
    if dim != 3:
        raise ConfigError(f"orbits are followed in two and three dimensions; the structures have {dim}")
    points, weights = next(
        rule for rule in map(quadrature, range(degree, degree + 8)) if bool((rule[1] > 0).all())
    )  # a mean of squares is none below zero
    cosine = points[:, 2].clamp(-1, 1)
    tilt = torch.zeros(len(points), 3, 3, dtype=torch.float64)
    tilt[:, 0, 0] = tilt[:, 2, 2] = cosine
    tilt[:, 0, 2] = (1 - cosine.square()).sqrt()
    tilt[:, 2, 0], tilt[:, 1, 1] = -tilt[:, 0, 2], 1.0
    frames = _about(torch.atan2(points[:, 1], points[:, 0])) @ tilt
    every = (frames[:, None] @ _about(angles)[None]).flatten(0, 1)
    return every, weights.repeat_interleave(degree + 1) / (degree + 1)


def _about(angle: Float[Tensor, "Q"]) -> Float[Tensor, "Q 3 3"]:
    """Turns about z."""
    out = torch.zeros(len(angle), 3, 3, dtype=torch.float64)
    out[:, 0, 0] = out[:, 1, 1] = angle.cos()
    out[:, 1, 0] = angle.sin()
    out[:, 0, 1], out[:, 2, 2] = -out[:, 1, 0], 1.0
    return out


def representations(l_max: int, turns: Float[Tensor, "Q D D"]) -> list[Float[Tensor, "Q m m"]]:
    """D^l of proper rotations for l = 0 … l_max; in the plane the rotations by l times the angle."""
    one = torch.ones(len(turns), 1, 1, dtype=torch.float64)
    if turns.shape[1] == 2:
        return [one, *[torch.linalg.matrix_power(turns, l) for l in range(1, l_max + 1)]]
    found = [one, turns]
    for l in range(2, l_max + 1):
        coupling = ir.clebsch_gordan(l - 1, 1, l) * math.sqrt(2 * l + 1)
        left = torch.einsum("ijk,qia->qajk", coupling, found[-1])
        left = torch.einsum("qajk,qjb->qabk", left, turns)
        found.append(torch.einsum("qabk,abc->qkc", left, coupling))
    return found[: l_max + 1]


def _label(l: int, parity: int | None) -> str:
    return str(l) if parity is None else ir.name(l, parity)


def _cosets(dim: int, parity: bool) -> list[int]:
    """Signs s of the elements s R that are sampled: with the inversion, or without."""
    if parity and dim != 3:
        raise ConfigError(
            f"parity=True with structures of {dim} dimensions: the inversion is a reflection in three only; leave it out"
        )
    return [1, -1] if parity else [1]


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Shares of a function by degree, over the orbits of structures; `print(spectrum)` shows them.

    shares: S_0, S_1, … by degree, with parity if the inversion was sampled ("0e", "1o"). rest: one minus their sum, of higher degrees.
    error: how far another quadrature gives other shares of the structure that counts most, or other components to them; round-off if the
    function is resolved, and large if higher degrees pass for lower ones. spread: standard deviation of each share over the structures.
    control: relative change of the function under a deformation, which is no symmetry. degree: of the quadrature; rotations: of each orbit.
    """

    name: str
    shares: dict[str, float]
    rest: float
    error: float
    spread: dict[str, float]
    control: float
    structures: int
    degree: int
    rotations: int

    @property
    def summary(self) -> str:
        """The verdict in words."""
        label, largest = max(self.shares.items(), key=lambda item: item[1])
        if self.error > FINE:
            return f"not resolved: another quadrature than this, of degree {self.degree}, differs by {self.error:.1e}; take a higher degree"
        if self.rest > largest:
            return f"mostly, {self.rest:.3f}, of degrees above {max(int(name.rstrip('eo')) for name in self.shares)}"
        what = {
            "0": "invariant",
            "0e": "invariant",
            "0o": "a pseudoscalar",
            "1": "a vector, or components of one",
            "1o": "a vector, or components of one",
            "1e": "a pseudovector, or components of one",
        }.get(label, f"of degree {label} alone")
        missing = max(1 - largest, self.error)
        if missing <= 1e-10:
            return what
        return (
            f"{what} but for {missing:.1e}"
            if missing <= 0.05
            else f"a mixture of degrees; most, {largest:.3f}, of {label}"
        )

    @property
    def title(self) -> str:
        return (
            f"orbit spectrum of {self.name}; {self.structures} structures, {self.rotations} rotations each (degree {self.degree}), error "
            f"{self.error:.1e}; change under a deformation {self.control:.1e}"
        )

    def _rows(self) -> list[tuple[str, str, str]]:
        rows = [
            (k, f"{v:.6f}" if abs(v) >= 1e-6 or v == 0 else f"{v:.1e}", f"{self.spread[k]:.1e}")
            for k, v in self.shares.items()
        ]
        return [*rows, ("higher", f"{self.rest:.6f}" if abs(self.rest) >= 1e-6 else f"{self.rest:.1e}", "")]

    def __str__(self) -> str:
        return "\n".join([self.title, *table.text_table(_HEAD, self._rows()), self.summary])

    def _repr_html_(self) -> str:
        return table.html_heading(self.title, self.summary) + table.html_table(_HEAD, self._rows())

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "summary": self.summary}, indent=1, allow_nan=False)


_HEAD = ("degree", "share", "spread")


def spectrum(
    subject: nn.Module | Callable[[Graph], Tensor],
    structures,
    of: str | None = None,
    *,
    l_max: int = 4,
    degree: int = 16,
    parity: bool = False,
    centred: bool = True,
    limit: int = 8,
) -> Spectrum:
    """Shares S_λ = (2λ + 1) |∫ D^λ(R) ⊗ h(Rx) dR|² / ∫ |h(Rx)|² dR of a function h, summed over its components and over structures.

    An invariant has (1, 0, …), a vector (0, 1, 0, …); they add up to one by the theorem of Peter and Weyl. In the plane λ counts the
    turns and each |λ| is one share. Rotations are about the origin, which matters for functions that are not invariant to translations.

    subject, structures, of, limit: see `probe`. l_max: highest degree that is told apart. degree: of the quadrature, exact for functions of
    degrees up to degree / 2. parity: split each share by the parity under the inversion, with twice as many calls. centred: without the mean
    over all structures and their orbits, for beside the total energy of an atom everything else is nothing; an invariant is then seen by
    what differs between structures. Raises ConfigError, and DataError for a function that is constant.
    """
    found = probe(subject, structures, of, limit=limit)
    if not 0 <= l_max <= degree // 2 or degree > FINEST:
        raise ConfigError(
            f"l_max={l_max} with degree={degree}: wanted a degree up to {FINEST}, and l_max from 0 to half of it"
        )
    signs = _cosets(found.dim, parity)
    turns, weights = rotations(found.dim, degree)
    control = found.control()
    labels = [
        _label(l, s if parity else None)
        for l in range(l_max + 1)
        for s in ([(-1) ** l, -((-1) ** l)] if parity else [1])
    ]
    orbits = [_components(found, graph, signs, turns, weights, labels) for graph in found.graphs]
    mean = (
        torch.cat([parts[0] for parts, _ in orbits]).mean(0) if centred else torch.zeros(())
    )  # of each column
    for parts, _ in orbits:
        parts[0] -= mean
    rows = torch.stack(
        [_powers(parts, vary, len(signs)) for parts, vary in orbits]
    )  # of each structure: shares times its whole, and the whole
    total = rows.sum(0)
    if centred and not float(total[-1]) > CONSTANT**2 * float(mean.square().sum()):
        raise DataError(
            f"{found.name}: the same for all {len(found.graphs)} structures and all their turns, so that an invariant cannot be told "
            "from a constant; give structures that differ, or centred=False"
        )
    shares = (total[:-1] / total[-1]).tolist()
    spread = (
        (rows[:, :-1] / rows[:, -1:].clamp(min=torch.finfo(torch.float64).tiny)).std(0, correction=0).tolist()
    )
    most = int(rows[:, -1].argmax())
    tilt = random_orthogonal(found.dim, proper=True, generator=torch.Generator().manual_seed(0))
    finer, others = rotations(
        found.dim, degree + 1
    )  # higher degrees that the one takes for lower ones are others to it
    parts, vary = _components(found, found.graphs[most], signs, tilt @ finer, others, labels)
    parts[0] -= mean
    apart = _powers([a - b for a, b in zip(orbits[most][0], parts)], 0.0, len(signs))
    error = _difference(rows[most], _powers(parts, vary, len(signs)), apart)
    return Spectrum(
        name=found.name,
        shares=dict(zip(labels, shares)),
        rest=1 - sum(shares),
        error=error,
        spread=dict(zip(labels, spread)),
        control=control,
        structures=len(found.graphs),
        degree=degree,
        rotations=len(signs) * len(turns),
    )


def _components(
    found: Probe,
    graph: Graph,
    signs: Sequence[int],
    turns: Float[Tensor, "Q D D"],
    weights: Float[Tensor, "Q"],
    labels: Sequence[str],
) -> tuple[list[Float[Tensor, "..."]], float]:
    """√(2λ + 1) ∫ D^λ(R) ⊗ h(Rx) dR of a structure, by label, and the mean square of h about its mean over the orbit (of each sign)."""
    orbit = [found.orbit(graph, s * turns) for s in signs]  # (Q, rows, width)
    means = [torch.einsum("q,qnw->nw", weights, v) for v in orbit]
    vary = [(v - m).flatten(1) for v, m in zip(orbit, means)]  # a large constant would cost digits
    both = (
        {1: lambda x: x[0]}
        if len(signs) == 1
        else {1: lambda x: (x[0] + x[1]) / 2, -1: lambda x: (x[0] - x[1]) / 2}
    )
    matrices = representations(max(int(label.rstrip("eo")) for label in labels), turns)
    parts = []
    for label in labels:
        l, p = ir.parse(label) if len(signs) > 1 else (int(label), 1)
        factor = (
            matrices[l].shape[1] if found.dim == 3 else 1
        )  # in the plane cos and sin of λ φ stand twice in D^λ
        parts.append(
            both[p](means)
            if l == 0
            else math.sqrt(factor) * (weights[:, None] * matrices[l].flatten(1)).T @ both[p](vary)
        )
    return parts, sum(float((weights[:, None] * v.square()).sum()) for v in vary) / len(vary)


def _powers(parts: Sequence[Tensor], vary: float, constants: int) -> Float[Tensor, "labels+1"]:
    """Squares of the components, of which so many are constant on the orbit, and of the whole."""
    powers = torch.stack([part.square().sum() for part in parts])
    return torch.cat([powers, powers[:constants].sum()[None] + vary])


def _difference(
    one: Float[Tensor, "labels+1"], two: Float[Tensor, "labels+1"], apart: Float[Tensor, "labels+1"]
) -> float:
    """Largest difference of the shares of two quadratures, and of their components, which may differ where the squares do not."""
    shares = [x[:-1] / x[-1] for x in (one, two)]
    change = shares[0] - shares[1]
    return float(
        torch.cat([change.abs(), change.sum().abs()[None], 2 * apart[:-1] / (one[-1] + two[-1])]).max()
    )


@dataclass(frozen=True, kw_only=True)
class Action:
    """The linear action that fits how features turn, h(Rx) ≈ M(R) h(x); `print(action)` shows the verdict.

    rank: dimensions of the features that are used of `width`; the others have no variance. r2: on held-out structures, 1 for a perfect
    action, each dimension of the features counting alike; r2_fitted: on those that it was fitted to. defect: largest
    |M(R₁R₂) − M(R₁)M(R₂)| / |M(R₁R₂)|, fitted apart. multiplicities: of each irrep, from the characters; rest: dimensions in none of them.
    """

    name: str
    width: int
    rank: int
    r2: float
    r2_fitted: float
    defect: float
    multiplicities: dict[str, float]
    rest: float
    structures: int
    rows: int
    degree: int
    fit: Callable[[Float[Tensor, "Q D D"]], Float[Tensor, "Q r r"]] = field(repr=False, compare=False)
    spread: Float[Tensor, "r w"] = field(
        repr=False, compare=False
    )  # from the features to the coordinates of the fit
    back: Float[Tensor, "w r"] = field(repr=False, compare=False)

    def matrix(self, rotation: Float[Tensor, "D D"]) -> Float[Tensor, "w w"]:
        """M(R) on the features themselves, of an orthogonal matrix; zero where they have no variance."""
        return self.back @ self.fit(rotation[None].double())[0] @ self.spread

    @property
    def whole(self) -> bool:
        """Whether the multiplicities are whole numbers, and use up all dimensions."""
        return abs(self.rest) <= INTEGER and all(
            abs(n - round(n)) <= INTEGER and n > -INTEGER for n in self.multiplicities.values()
        )

    @property
    def exact(self) -> bool:
        """Whether the features turn by a representation, to round-off."""
        return self.r2 >= 1 - EXACT and self.defect <= HOMOMORPHISM and self.whole

    @property
    def layout(self) -> str | None:
        """The representation, as "4x0e+2x1o", or "4x0+2x1" where no inversion was tried; `commutant` and `project` ask for parities, which
        `parity=True` finds. None where the fit is too poor, is no homomorphism, or the multiplicities are not whole.
        """
        if not self.whole or self.r2 < 1 - NEAR or self.defect > math.sqrt(NEAR):
            return None
        return "+".join(f"{round(n)}x{label}" for label, n in self.multiplicities.items() if round(n))

    @property
    def summary(self) -> str:
        """The verdict in words."""
        if self.exact:
            return f"an exact linear action: {self.layout}"
        if self.layout is not None:
            return f"nearly a linear action: {self.layout}, but for {1 - self.r2:.1e} of the variance on held-out structures"
        if self.r2 < 1 - NEAR:
            return f"no linear action: it explains {max(self.r2, 0.0):.2f} of how the features turn on held-out structures"
        if self.defect > math.sqrt(NEAR):
            return f"no linear action: M(R₁R₂) is not M(R₁)M(R₂), but differs by {self.defect:.1e} of it"
        return "a linear map fits, but its characters are no sum of the irreps that were tried; take a larger l_max"

    @property
    def title(self) -> str:
        return (
            f"hidden action on {self.name}: {self.rank} of {self.width} dimensions; {self.rows} rows of {self.structures} structures; held-out R² "
            f"{self.r2:.9f}, fitted {self.r2_fitted:.9f}; defect {self.defect:.1e}"
        )

    def _rows(self) -> list[tuple[str, str]]:
        return [*((k, f"{n:.6f}") for k, n in self.multiplicities.items()), ("other", f"{self.rest:.6f}")]

    def __str__(self) -> str:
        return "\n".join([self.title, *table.text_table(("irrep", "times"), self._rows()), self.summary])

    def _repr_html_(self) -> str:
        return table.html_heading(self.title, self.summary) + table.html_table(
            ("irrep", "times"), self._rows()
        )

    def to_json(self) -> str:
        names = [n for n in self.__dataclass_fields__ if n not in ("fit", "spread", "back")]
        return json.dumps(
            {
                **{n: table.json_ready(getattr(self, n)) for n in names},
                "layout": self.layout,
                "exact": self.exact,
                "summary": self.summary,
            },
            indent=1,
            allow_nan=False,
        )


def hidden_action(
    subject: nn.Module | Callable[[Graph], Tensor],
    structures,
    of: str | None = None,
    *,
    l_max: int = 2,
    degree: int | None = None,
    parity: bool = False,
    cut: float = 1e-6,
    pairs: int = 8,
    seed: int = 0,
    limit: int = 64,
) -> Action:
    """Whether features that declare nothing turn by a representation, and by which: h(Rx) ≈ M(R) h(x), one least-squares fit for each R.

    Every structure is first turned at random, for frames of one pose are alike and any map fits them. Features are collected at the nodes,
    put into coordinates in which their second moment over the orbits is one (there a representation is orthogonal, and small features
    count as much as large ones), without the directions whose root mean square is below `cut` of the largest. Every third structure is
    held out.

    subject, structures, of, limit: see `probe`; wanted at least twice as many rows (nodes) in the fitted structures as dimensions. l_max: the
    highest irrep that is looked for. degree: of the quadrature of characters, 2 l_max + 2 unless said, which is exact for actions of degrees
    up to l_max + 2. parity: with the inversion, so that irreps have parities. pairs: of random rotations for the defect.
    Raises ConfigError, and DataError for too few rows and for features that do not depend on the positions.
    """
    found = probe(subject, structures, of, limit=limit)
    degree = 2 * l_max + 2 if degree is None else degree
    if not 0 <= 2 * l_max <= degree <= FINEST:
        raise ConfigError(
            f"l_max={l_max} with degree={degree}: wanted a degree up to {FINEST}, and l_max from 0 to half of it"
        )
    if pairs < 1 or not 0 < cut < 1:
        raise ConfigError(
            f"pairs={pairs}, cut={cut}: wanted at least one pair of rotations, and a cut between 0 and 1"
        )
    signs = _cosets(found.dim, parity)
    if len(found.graphs) < 3:
        raise DataError(
            f"{len(found.graphs)} structures for a hidden action; wanted at least three, of which every third is held out"
        )
    found.control()
    turns, weights = rotations(found.dim, degree)
    every = torch.cat([s * turns for s in signs])
    still = torch.eye(found.dim, dtype=torch.float64)[None]
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> Tensor:
        return torch.stack(
            [
                random_orthogonal(found.dim, proper=None if parity else True, generator=generator)
                for _ in range(count)
            ]
        )

    posed = list(zip(found.graphs, draw(len(found.graphs))))
    fitted, held = [p for k, p in enumerate(posed) if k % 3 != 2], posed[2::3]

    def values(structures: Sequence[tuple[Graph, Tensor]], matrices: Tensor) -> Tensor:
        return torch.cat(
            [found.orbit(g, matrices @ pose) for g, pose in structures], dim=1
        )  # (Q, rows, width)

    orbit = values(fitted, every)
    share = torch.cat([weights] * len(signs)) / len(signs)
    moment = sum(w * o.T @ o for w, o in zip(share, orbit)) / orbit.shape[1]
    size, axes = torch.linalg.eigh(moment)
    kept = size > cut**2 * size[-1]
    spread, back = axes[:, kept].T / size[kept].sqrt()[:, None], axes[:, kept] * size[kept].sqrt()
    start = values(fitted, still)[0] @ spread.T  # (rows, rank)
    rows, rank = start.shape
    if rows < 2 * rank:
        raise DataError(
            f"{rows} rows in the fitted structures for {rank} dimensions of {found.name}: an action would fit whatever they do; "
            f"wanted at least {2 * rank}, from more or larger structures"
        )
    left = torch.linalg.svdvals(start)
    if not left[-1] > 1e-4 * left[0]:
        raise DataError(
            f"the structures are all alike: {found.name} does not fill its {rank} dimensions at the {rows} nodes of those that are fitted; "
            "wanted more structures, or such as differ more, so that an action can be told from them"
        )
    inverse = torch.linalg.pinv(start)

    def maps(orbit: Tensor) -> Tensor:
        return (inverse @ (orbit @ spread.T)).transpose(1, 2)  # (Q, rank, rank)

    matrices = maps(orbit)
    missing = _residual(share, start, orbit @ spread.T, matrices)
    unseen = _residual(share, values(held, still)[0] @ spread.T, values(held, every) @ spread.T, matrices)
    one, two = draw(pairs), draw(pairs)
    first, second, both = maps(values(fitted, torch.cat([one, two, one @ two]))).split(pairs)
    defect = float(((both - first @ second).flatten(1).norm(dim=1) / both.flatten(1).norm(dim=1)).max())
    times = _multiplicities(turns, weights, matrices.diagonal(dim1=1, dim2=2).sum(1), l_max, parity)
    dims = {
        label: 2
        if found.dim == 2 and label != "0"
        else 2 * (ir.parse(label)[0] if parity else int(label)) + 1
        if found.dim == 3
        else 1
        for label in times
    }
    return Action(
        name=found.name,
        width=orbit.shape[2],
        rank=rank,
        r2=1 - unseen,
        r2_fitted=1 - missing,
        defect=defect,
        multiplicities=times,
        rest=rank - sum(dims[k] * n for k, n in times.items()),
        structures=len(found.graphs),
        rows=rows,
        degree=degree,
        fit=lambda g: maps(values(fitted, g)),
        spread=spread,
        back=back,
    )


def _residual(share: Tensor, start: Tensor, orbit: Tensor, matrices: Tensor) -> float:
    """Part of the squares of orbit (Q, rows, rank) that M(R) h(x) does not give."""
    gap = (orbit - start @ matrices.transpose(1, 2)).square().sum((1, 2))
    return float((share * gap).sum() / (share * orbit.square().sum((1, 2))).sum())


def _multiplicities(
    turns: Tensor, weights: Tensor, trace: Tensor, l_max: int, parity: bool
) -> dict[str, float]:
    """Inner products of the character of an action, proper elements first, with those of the irreps."""
    out = {}
    for l, matrix in enumerate(representations(l_max, turns)):
        character = matrix.diagonal(dim1=1, dim2=2).sum(1)
        size = float((weights * character.square()).sum())  # 1; in the plane 2 for the pairs of l > 0
        halves = [(weights * character * t).sum() / size for t in trace.split(len(turns))]
        if parity:
            out |= {ir.name(l, p): float(halves[0] + p * halves[1]) / 2 for p in ((-1) ** l, -((-1) ** l))}
        else:
            out[str(l)] = float(halves[0])
    return out
