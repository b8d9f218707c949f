"""Do the data break the symmetry? Structures and labels alone against random poses: `print(breaking("data.xyz"))`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.breaking.report import AXIS, BreakingReport, Check, Verdict
from molequi.breaking.descriptors import L_MAX, Described, choose_cutoff, describe
from molequi.breaking.frames import clusters, frames
from molequi.breaking.nulls import Block, Outcome, block, by_exchange, by_turning, elements, outcome, shifts
from molequi.breaking.scores import FOLDS, Residual, cross_fitted, gain, gain_of_place, pose_blocks, residuals, score_blocks
from molequi.breaking.orbit import orbit
from molequi.breaking.stabilizers import asymmetric
from molequi.data.coerce import as_dataset
from molequi.data.dataset import Dataset
from molequi.errors import ConfigError, DataError, did_you_mean
from molequi.graph import Graph
from molequi.ops import irreps as ir
from molequi.ops.sphere import quadrature
from molequi.quantities import Quantity
from molequi.symmetry import Group, group

GROUPS = ("O(3)", "SO(3)", "Oh", "O(2)", "T(3)")
ENOUGH = 30                   # structures, below which nothing is said
NODES = 36_000                # at most so many are in memory
PLACED = 0.02                 # of the rms of a label: less, by the place, is not called a break, as places of one origin tell of shapes
STANDS_OUT = 3.0              # views that do so by more than this are what the break is made of
Oracle = Callable[[Sequence[Graph]], Sequence[Mapping[str, Tensor]]]


def breaking(data: Any, *, quantities: Sequence[str] | None = None, groups: Sequence[str] = GROUPS, axis: Sequence[float] | None = None,
             seed: int = 0, draws: int = 999, alpha: float = 0.01, cutoff: float | None = None, limit: int = 5000,
             oracle: Oracle | None = None, progress: bool = True) -> BreakingReport:
    """Whether labelled structures break a symmetry, which is left, and what to do: with p-values, from the data alone.

    An equivariant ridge regression on fixed descriptors, cross-fitted, leaves residuals; if the data are symmetric, products of these
    with what a field could act on have no preferred direction in the lab. How far they have one is compared with `draws` worlds in which
    each structure, with its labels, is turned at random: an exact test if the structures are uniformly oriented. As they often are
    not, the law is called broken only if the same is found when like structures exchange their poses instead, which assumes no more than
    that among like structures the pose does not depend on the shape, for poses told by each of several frames; p is the largest of all.
    Structures are taken as independent; more than 256 are turned in batches of neighbours, which bears dependence within a batch.

    data: whatever `data.as_dataset` takes, in three dimensions, with labels. quantities: names; None is all that have labels.
    groups: "O(3)", "SO(3)", "T(3)" (translations) and, asked if rotations are broken or if these are not in the list, subgroups: "O(2)",
        "SO(2)" about `axis` (None: found in the data, which makes the test cautious), "T", "Td", "Th", "O", "Oh", "I", "Ih".
    alpha: level of each verdict; p-values of several quantities are multiplied by their number. cutoff: of the descriptors, Å; None
        chooses one. limit: structures, spread evenly over those given.
    oracle: labels a list of Graphs (one mapping from names to values each); then the error of the law itself is measured, and the
        orbit variance, the mean square error that no equivariant model can beat.
    Raises ConfigError for unknown groups and settings out of range, DataError for data without labels, not in three dimensions, or with
    fewer than 30 labelled structures.
    """
    from molequi import __version__

    rungs = _rungs(groups, axis)
    if not 0 < alpha < 1 or draws < 1 / alpha:
        raise ConfigError(f"draws={draws}, alpha={alpha}: wanted alpha between 0 and 1, and at least 1/alpha draws, or no p can be "
                          "below it")
    if limit < ENOUGH:
        raise ConfigError(f"limit={limit}: wanted at least {ENOUGH} structures")
    whole = as_dataset(data)
    names = _quantities(whole, quantities)
    used = _some(whole, names, limit)
    generator = torch.Generator().manual_seed(seed)
    from tqdm import tqdm

    with tqdm(total=3 + 4 * len(names), desc="breaking", unit="test", delay=3, leave=False, disable=None if progress else True) as bar:
        study = _Study(used, describe(used, choose_cutoff(used) if cutoff is None else cutoff), rungs, draws, alpha, generator, len(names))
        bar.update()
        checks = study.poses()
        bar.update()
        sizes, axes = {}, {}
        for name in names:
            found, sizes[name], axes[name] = study.quantity(used.quantities[name], bar)
            checks += found
        checks += asymmetric(used, [used.quantities[n] for n in names])
        bar.update()
        floors = orbit(used, [used.quantities[n] for n in names], oracle, generator) if oracle else ()
    return BreakingReport(
        checks=tuple(checks), verdicts=tuple(_verdicts(checks)), size=sizes, axis={k: v for k, v in axes.items() if v is not None},
        oracle=tuple(floors), structures=len(used), given=len(whole), draws=draws, seed=seed, alpha=alpha, version=__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"))


@dataclass(frozen=True)
class _Rungs:
    rotations: bool
    reflections: bool
    translations: bool
    below: tuple[str, ...]
    axis: tuple[float, ...] | None


def _rungs(groups: Sequence[str], axis: Sequence[float] | None) -> _Rungs:
    if isinstance(groups, str) or not len(groups):
        raise ConfigError(f"groups={groups!r}: wanted a list of names such as {list(GROUPS)}")
    known = ("O(3)", "SO(3)", "E(3)", "SE(3)", "T(3)", "O(2)", "SO(2)", "T", "Td", "Th", "O", "Oh", "I", "Ih")
    for name in groups:
        if name not in known:
            raise ConfigError(f"group {name!r} is not known{did_you_mean(str(name), known)}")
    group("O(2)", axis=axis)              # raises for an axis that is none
    return _Rungs(
        rotations=bool({"O(3)", "SO(3)", "E(3)", "SE(3)"} & set(groups)), reflections=bool({"O(3)", "E(3)"} & set(groups)),
        translations=bool({"E(3)", "SE(3)", "T(3)"} & set(groups)), below=tuple(n for n in groups if n in known[5:]),
        axis=None if axis is None else tuple(float(a) for a in axis))


def _quantities(data: Dataset, wanted: Sequence[str] | None) -> list[str]:
    labelled = [n for n in data.quantities if data.labelled(n)]
    if not labelled:
        raise DataError("no labels in these data: whether a law is broken is seen in what the structures are labelled with"
                        + (f"; not read: {', '.join(data.unused)}" if data.unused else ""))
    if isinstance(wanted, str) or (wanted is not None and not len(wanted)):
        raise ConfigError(f"quantities={wanted!r}: wanted a list of names from {', '.join(labelled)}")
    for name in wanted or ():
        if name not in labelled:
            raise DataError(f"quantity {name!r} has no labels in these data{did_you_mean(name, labelled)}")
    return list(wanted or labelled)


def _some(data: Dataset, names: Sequence[str], limit: int) -> Dataset:
    """Structures in use: those with a label, at most `limit`, spread evenly, and not more nodes than fit."""
    if data.graphs[0].dim != 3:
        raise DataError(f"structures in {data.graphs[0].dim} dimensions; the test knows three")
    kept = [k for k, g in enumerate(data) if any(not bool(torch.isnan(g.targets[n]).all()) for n in names)]
    most = min(limit, max(ENOUGH, int(NODES / data.counts[kept].mean())), len(kept))
    if len(kept) < ENOUGH:
        raise DataError(f"{len(kept)} structures with labels; wanted at least {ENOUGH}, and hundreds to see a break of a few per cent")
    chosen = data[[kept[(k * len(kept)) // most] for k in range(most)]]
    return Dataset([g.replace(edge_index=None, shift=None, edge_attr=None, cutoff=None, k=None) for g in chosen],
                   quantities=chosen.quantities, origins=chosen.origins)


class _Study:
    """Descriptors, frames and clusters, which all tests share."""

    def __init__(self, data: Dataset, described: Described, rungs: _Rungs, draws: int, alpha: float, generator, quantities: int):
        self.data, self.described, self.rungs, self.draws, self.alpha = data, described, rungs, draws, alpha
        self.generator, self.many = generator, quantities
        self.frames = {proper: list(frames(data, described, proper=proper)) for proper in (True, False)}
        self.posed = [b for b in pose_blocks(described) if b.irrep[0]]
        self.inversion = torch.stack([torch.eye(3, dtype=torch.float64), -torch.eye(3, dtype=torch.float64)])

    def check(self, name: str, quantity: str, worlds: Mapping[str, Outcome]) -> Check:
        """The largest p of several nulls; each under its own assumption."""
        assumption = max(worlds, key=lambda a: worlds[a].p)
        o = worlds[assumption]
        found = max(o.each, key=o.each.get, default="")
        many = self.many if quantity else 1
        return Check(name=name, quantity=quantity, p=min(1.0, many * o.p), p_uniform=min(1.0, many * worlds["uniform poses"].p)
                     if "uniform poses" in worlds else None, assumption=assumption, found=found, observed=o.observed,
                     null=tuple(o.null.tolist()), stands_out={k: v for k, v in o.each.items() if v > STANDS_OUT},
                     broken=many * o.p < self.alpha)

    def poses(self) -> list[Check]:
        """Whether the structures, without their labels, are oriented uniformly, and of both hands alike."""
        out = []
        if self.rungs.rotations and self.posed:
            sums = by_turning(self.posed, elements(group("SO(3)"), self.generator), self.draws, self.generator)
            out.append(self.check("poses", "", {"uniform poses": outcome(sums, self.draws)}))
        handed = [b for b in pose_blocks(self.described) if not b.irrep[0]]
        if self.rungs.reflections and handed:
            sums = by_turning(handed, self.inversion, self.draws, self.generator)
            out.append(self.check("handedness", "", {"uniform poses": outcome(sums, self.draws)}))
        return out

    def quantity(self, q: Quantity, bar) -> tuple[list[Check], float | None, tuple[float, ...] | None]:
        """Checks of one quantity, the size of the break and the axis, if there is one."""
        if q.pseudo and q.rank == 2:
            bar.update(4)
            return [Check(name="SO(3)", quantity=q.name, reason="pseudotensors of rank 2 are not tested")], None, None
        parts = residuals(self.data, self.described, q, self.generator)
        bar.update()
        blocks = [b for part in parts for b in score_blocks(part, self.described)]
        turned, handed = [b for b in blocks if b.irrep[0]], [b for b in blocks if not b.irrep[0]]
        out, size, found = [], None, None
        if self.rungs.rotations:
            out.append(self.check("SO(3)", q.name, self.worlds(turned, elements(group("SO(3)"), self.generator), True)))
        bar.update()
        if self.rungs.reflections:
            if handed:
                out.append(self.check("reflections", q.name, self.worlds(handed, self.inversion, False)))
            both = min((c for c in out), key=lambda c: c.p)
            out.insert(0, replace(both, name="O(3)", p=min(1.0, len(out) * both.p), broken=any(c.broken for c in out)))
        bar.update()
        broken = [c for c in out if c.broken]
        if broken or not self.rungs.rotations:
            below, found = self.subgroups(q, turned)
            out += below if not broken or any(c.name == "SO(3)" for c in broken) else []
        if broken:
            views = {v for c in broken for v, z in (c.stands_out or {c.found: 0}).items()}
            size = max(gain(part, self.described, views, self.generator) for part in parts) or None
        if self.rungs.translations:
            out.append(self.translations(q, parts))
        bar.update()
        return out, size, found

    def worlds(self, blocks: Sequence[Block], turns: Tensor, proper: bool) -> dict[str, Outcome]:
        """The test under each assumption on the poses."""
        found = {"uniform poses": outcome(by_turning(blocks, turns, self.draws, self.generator), self.draws)}
        for what, turn, alike in self.frames[proper]:
            sums = by_exchange(blocks, turn, alike, self.draws, self.generator)
            found[f"poses, told by {what}, that do not depend on the shape"] = outcome(sums, self.draws)
        return found

    def subgroups(self, q: Quantity, blocks: Sequence[Block]) -> tuple[list[Check], tuple[float, ...] | None]:
        """What is left of the rotations."""
        out, used = [], None
        for name in self.rungs.below:
            chosen = Group(name=name) if not name.endswith("(2)") else None
            if chosen is None:
                used = self.rungs.axis or best_axis(blocks)
                chosen = group(name, axis=used)
                name = f"{name} {AXIS} ({', '.join(f'{a:.3f}' for a in used)})"
            turns = elements(chosen, self.generator)
            check = self.check(name, q.name, {"uniform poses": outcome(by_turning(blocks, turns, self.draws, self.generator), self.draws)})
            poses = outcome(by_turning(self.posed, turns, self.draws, self.generator), self.draws)
            if check.broken and poses.p < self.alpha:
                check = Check(name=name, quantity=q.name, reason="cannot be told: the poses are not uniform under it either")
            out.append(check)
        return out, used

    def translations(self, q: Quantity, parts: Sequence[Residual]) -> Check:
        """Whether residuals know where in space the structure is; places are exchanged among like structures."""
        if any(g.pbc is not None for g in self.data):
            return Check(name="T(3)", quantity=q.name, reason="a periodic structure has no place")
        place = torch.stack([g.pos.mean(0) for g in self.data])
        extent = float(self.described.own[:, 0].square().sum(1).mean().sqrt())
        first = torch.stack([g.pos[0] - g.pos.mean(0) for g in self.data])
        known = torch.cat([self.described.sum(self.described.strict((1, -1))), first[:, None]], 1)
        fold = torch.randperm(len(place), generator=self.generator) % FOLDS
        place = cross_fitted(known, place - place.mean(0), fold)             # a centre of masses is no place of its own
        spread = float(place.square().mean().sqrt())
        if spread <= 1e-3 * extent:
            return Check(name="T(3)", quantity=q.name, reason="all structures are at one place, or where their shape says")
        x = (place - place.mean(0)) / spread
        i, j = torch.triu_indices(3, 3)
        squares = x[:, i] * x[:, j]
        # how far out a structure is may well depend on its shape, the direction hardly: a vector is asked for the direction alone
        columns = {"its place": x, "its place squared": squares - squares.mean(0)}
        looks = self.described.sum(self.described.probes[0, 1][..., 0])
        alike = clusters(looks, [torch.arange(len(place))])
        chosen = [torch.randint(len(m), (self.draws,), generator=self.generator) for m in alike]
        sums = {}
        for part in parts:
            for name, told in part.amounts(self.described).items():
                white = block(name, (0, 1), told.flatten(1)[:, :, None])
                for what, column in columns.items():
                    if white is None or (part.irrep[0] and what != "its place"):
                        continue
                    t = white.scores[..., 0]
                    worlds = torch.einsum("gt,gc->tc", t, column).flatten()[None]
                    random = torch.zeros(self.draws, worlds.shape[1], dtype=torch.float64)
                    for members, pick in zip(alike, chosen):
                        random += torch.einsum("ct,scx->stx", t[members], column[members[shifts(len(members))]]).flatten(1)[pick]
                    sums[f"{name} × {what}"] = torch.cat([worlds, random]).square().sum(1)
        check = self.check("T(3)", q.name, {"places that do not depend on shape and pose": outcome(sums, self.draws)})
        if not check.broken:
            return check
        size = max(gain_of_place(part, self.described, x, self.generator) for part in parts)
        return replace(check, broken=size > PLACED, reason=f"to know the place is worth {100 * size:.2g} % of the rms" + (
            "" if size > PLACED else ", so little that places may as well depend a little on shapes"))


def best_axis(blocks: Sequence[Block]) -> tuple[float, ...]:
    """The direction about which the summed scores are most nearly round: where their m = 0 parts are largest. A unit vector."""
    sums = [(b.irrep[0], b.scores.sum(0)) for b in blocks if b.irrep[1] == (-1) ** b.irrep[0]]
    noise = [(b.scores.square().sum((0, 2)) / b.scores.shape[2]).mean().sqrt() for b in blocks if b.irrep[1] == (-1) ** b.irrep[0]]

    def along(n: Float[Tensor, "P 3"]) -> Float[Tensor, "P"]:
        y = ir.spherical_harmonics(L_MAX, n)
        parts = ((y[l] @ (s / size).T).square().sum(1) / (2 * l + 1) for (l, s), size in zip(sums, noise))
        return sum(parts, torch.zeros(len(n), dtype=n.dtype))

    points = quadrature(59)[0]
    best = points[int(along(points).argmax())]
    generator, step = torch.Generator().manual_seed(0), 0.1
    for _ in range(40):                   # ever nearer tries around the best
        near = torch.nn.functional.normalize(best + step * torch.randn(64, 3, generator=generator, dtype=torch.float64), dim=1)
        near = torch.cat([best[None], near])
        best, step = near[int(along(near).argmax())], 0.8 * step
    largest = best[best.abs().argmax()].sign()
    return tuple((best * largest).tolist())


def _verdicts(checks: Sequence[Check]) -> list[Verdict]:
    broken = {c.name for c in checks if c.broken}
    law = "SO(3)" in broken or (not any(c.name == "SO(3)" for c in checks) and any(c.broken and c.subgroup for c in checks))
    out: list[Verdict] = []
    if law:
        out.append("broken law")
    if "reflections" in broken and not law:
        out.append("chirality")
    if "T(3)" in broken:
        out.append("broken translations")
    if "stabilizers" in broken and not law:
        out.append("spontaneous breaking")
    if "poses" in broken:
        out.append("anisotropic poses")
    if "handedness" in broken:
        out.append("one hand")
    return out or ["no broken symmetry found"]
