"""Do the data break the symmetry? Structures and labels alone against random poses: `print(breaking("data.xyz"))`."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.data_symmetry.dependence import added, joined, length, means, middle, units, within
from molequi.data_symmetry.descriptors import Described, choose_cutoff, describe
from molequi.data_symmetry.frames import clusters, frames, looks, told_by_shape
from molequi.data_symmetry.invariant_structures import asymmetric, symmetric
from molequi.data_symmetry.nulls import (
    Block,
    Outcome,
    best_axis,
    block,
    by_exchange,
    by_turning,
    elements,
    outcome,
    shifts,
)
from molequi.data_symmetry.orbit import orbit
from molequi.data_symmetry.report import AXIS, Check, SymmetryTestReport, Verdict
from molequi.data_symmetry.scores import (
    FOLDS,
    Residual,
    cross_fitted,
    gain,
    gain_of_place,
    pose_blocks,
    residuals,
    score_blocks,
)
from molequi.errors import ConfigError, DataError, did_you_mean
from molequi.graph import Graph
from molequi.quantities import Quantity
from molequi.readers.load import load_dataset
from molequi.symmetry import Group, group

GROUPS = ("O(3)", "SO(3)", "Oh", "O(2)", "T(3)")
ENOUGH = 30  # structures, below which nothing is said
NODES = 36_000  # at most so many are in memory
PLACED = 0.02  # of the rms of a label: less, by the place, is not called a break, as places of one origin tell of shapes
SAME = 1e-12  # of the largest label: labels that vary by less are the same
UNIFORM = "uniform poses"
STANDS_OUT = 3.0  # views that do so by more than this are what the break is made of
Oracle = Callable[[Sequence[Graph]], Sequence[Mapping[str, Tensor]]]


def symmetry_test(
    data: Any,
    *,
    quantities: Sequence[str] | None = None,
    groups: Sequence[str] = GROUPS,
    axis: Sequence[float] | None = None,
    seed: int = 0,
    draws: int | None = None,
    alpha: float = 0.01,
    cutoff: float | None = None,
    limit: int = 5000,
    oracle: Oracle | None = None,
    progress: bool = True,
) -> SymmetryTestReport:
    """Whether labelled structures break a symmetry, which is left, and what to do: with p-values, from the data alone.

    An equivariant ridge regression on fixed descriptors, cross-fitted, leaves residuals; if the data are symmetric, products of these
    with what a field could act on have no preferred direction in the lab. How far they have one is compared with `draws` worlds in which
    each structure, with its labels, is turned at random: an exact test if the structures are uniformly oriented. As they often are
    not, the law is called broken only if the same is found when like structures exchange their poses instead, which assumes no more than
    that among like structures the pose does not depend on the shape, for poses told by each of several frames; p is the largest of all.
    Where poses are not uniform that assumption is printed, and nothing is told if poses plainly follow from shapes, as by a convention.
    Structures that depend on each other, near-duplicates and frames correlated in the order of the data (of each `trajectory` that `info`
    names), are turned and exchanged as one, and nothing is told with fewer than 30 that do not; correlated frames in random order are not
    found. Of translations, labels are seen to depend on the place linearly, and scalars quadratically too: not as a fast wave.

    data: whatever `data.load_dataset` takes, in three dimensions, with labels. quantities: names; None is all that have labels.
    groups: "O(3)", "SO(3)", "T(3)" (translations) and, asked if rotations are broken or if these are not in the list, subgroups: "O(2)",
        "SO(2)" about `axis` (None: found in the data, which makes the test cautious), "T", "Td", "Th", "O", "Oh", "I", "Ih".
    draws: of random worlds; None is 999, or as many as it takes for a p-value, corrected, below half of alpha.
    alpha: level of each verdict; p-values of several quantities are multiplied by their number, that of reflections, which are asked after
        the rotations, by two besides. cutoff: of the descriptors, Å; None chooses one. limit: structures, spread evenly over those given.
    oracle: labels a list of Graphs (one mapping from names to values each); then the error of the law itself is measured, and the
        orbit variance, the mean square error that no equivariant model can beat if all poses are equally frequent.
    Raises ConfigError for unknown groups and settings out of range, too few draws for any p below alpha among them; DataError for data
    without labels, with infinite ones, not in three dimensions, or with fewer than 30 labelled structures.
    """
    from molequi import __version__

    rungs = _rungs(groups, axis)
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha={alpha}: wanted a level between 0 and 1")
    if limit < ENOUGH:
        raise ConfigError(f"limit={limit}: wanted at least {ENOUGH} structures")
    whole = load_dataset(data)
    names = _quantities(whole, quantities)
    draws = _draws(draws, alpha, len(names), 2 if rungs.rotations and rungs.reflections else 1)
    used = _some(whole, names, limit)
    generator = torch.Generator().manual_seed(seed)
    from tqdm import tqdm

    with tqdm(
        total=3 + 4 * len(names),
        desc="breaking",
        unit="test",
        delay=3,
        leave=False,
        disable=None if progress else True,
    ) as bar:
        study = _Study(
            used,
            describe(used, choose_cutoff(used) if cutoff is None else cutoff),
            rungs,
            draws,
            alpha,
            generator,
            len(names),
        )
        bar.update()
        checks = study.poses()
        bar.update()
        sizes, axes, last = {}, {}, []
        for name in names:
            found, sizes[name], axes[name] = study.quantity(used.quantities[name], bar)
            checks += [c for c in found if c.name != "stabilizers"]
            last += [c for c in found if c.name == "stabilizers"]
        checks += last
        bar.update()
        floors = orbit(used, [used.quantities[n] for n in names], oracle, generator) if oracle else ()
    return SymmetryTestReport(
        checks=tuple(checks),
        verdicts=tuple(_verdicts(checks, rungs)),
        size=sizes,
        axis={k: v for k, v in axes.items() if v is not None},
        oracle=tuple(floors),
        structures=len(used),
        given=len(whole),
        draws=draws,
        seed=seed,
        alpha=alpha,
        version=__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


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
    group("O(2)", axis=axis)  # raises for an axis that is none
    return _Rungs(
        rotations=bool({"O(3)", "SO(3)", "E(3)", "SE(3)"} & set(groups)),
        reflections=bool({"O(3)", "E(3)"} & set(groups)),
        translations=bool({"E(3)", "SE(3)", "T(3)"} & set(groups)),
        below=tuple(n for n in groups if n in known[5:]),
        axis=None if axis is None else tuple(float(a) for a in axis),
    )


def _draws(draws: int | None, alpha: float, quantities: int, rows: int) -> int:
    """As given, if a p-value times the number of quantities can be below alpha; or for half of alpha, in a row of several tests too."""
    if draws is None:
        return max(999, math.ceil(2 * quantities * rows / alpha))
    if not isinstance(draws, int) or isinstance(draws, bool):
        raise ConfigError(f"draws={draws!r}: wanted a whole number, or None for as many as it takes")
    if quantities / (1 + draws) >= alpha:
        raise ConfigError(
            f"draws={draws}: no p, times {quantities} for the quantities, can be below alpha={alpha:g}; wanted at least "
            f"{math.floor(quantities / alpha)} draws, or None"
        )
    return draws


def _quantities(data: Dataset, wanted: Sequence[str] | None) -> list[str]:
    labelled = [n for n in data.quantities if data.labelled(n)]
    if not labelled:
        raise DataError(
            "no labels in these data: whether a law is broken is seen in what the structures are labelled with"
            + (f"; not read: {', '.join(data.unused)}" if data.unused else "")
        )
    if isinstance(wanted, str) or (wanted is not None and not len(wanted)):
        raise ConfigError(f"quantities={wanted!r}: wanted a list of names from {', '.join(labelled)}")
    for name in wanted or ():
        if name not in labelled:
            raise DataError(f"quantity {name!r} has no labels in these data{did_you_mean(name, labelled)}")
    for name in wanted or labelled:
        for graph, origin in zip(data.graphs, data.origins):
            if bool(torch.isinf(graph.targets[name]).any()):
                raise DataError(
                    f"{origin}: {name} is infinite; wanted numbers, or NaN where a label is not known"
                )
    return list(wanted or labelled)


def _some(data: Dataset, names: Sequence[str], limit: int) -> Dataset:
    """Structures in use: those with a label, at most `limit`, spread evenly, and not more nodes than fit."""
    if data.graphs[0].dim != 3:
        raise DataError(f"structures in {data.graphs[0].dim} dimensions; the test knows three")
    kept = [k for k, g in enumerate(data) if any(not bool(torch.isnan(g.targets[n]).all()) for n in names)]
    most = min(limit, max(ENOUGH, int(NODES / data.counts[kept].mean())), len(kept))
    if len(kept) < ENOUGH:
        raise DataError(
            f"{len(kept)} structures with labels; wanted at least {ENOUGH}, and hundreds to see a break of a few per cent"
        )
    chosen = data[[kept[(k * len(kept)) // most] for k in range(most)]]
    return Dataset(
        [g.replace(edge_index=None, shift=None, edge_attr=None, cutoff=None, k=None) for g in chosen],
        quantities=chosen.quantities,
        info=chosen.info,
        origins=chosen.origins,
    )


class _Study:
    """Descriptors, frames and units, which all tests share."""

    def __init__(
        self,
        data: Dataset,
        described: Described,
        rungs: _Rungs,
        draws: int,
        alpha: float,
        generator,
        quantities: int,
    ):
        self.data, self.described, self.rungs, self.draws, self.alpha = data, described, rungs, draws, alpha
        self.generator, self.many = generator, quantities
        self.frames = {proper: list(frames(data, described, proper=proper)) for proper in (True, False)}
        self.unit, self.looks = units(data), looks(described)
        blocks = pose_blocks(described)
        self.posed, self.handed = [b for b in blocks if b.irrep[0]], [b for b in blocks if not b.irrep[0]]
        self.uneven = {
            True: False,
            False: False,
        }  # of poses, of hands: whether the null of uniform poses is refuted
        self.symmetric = symmetric(data)
        self.inversion = torch.stack([torch.eye(3, dtype=torch.float64), -torch.eye(3, dtype=torch.float64)])

    @cached_property
    def placed_units(self) -> Int[Tensor, "G"]:
        return units(self.data, placed=True)

    def units(self, *correlated: Sequence[Block], alike: Int[Tensor, "G"] | None = None) -> Int[Tensor, "G"]:
        """Units that do not depend on each other, if it takes all of these to be correlated for a test to be wrong.

        alike: units of near-duplicates; None is of those in one pose.
        """
        unit = self.unit if alike is None else alike
        return unit // min((length(blocks, unit) for blocks in correlated if blocks), default=1)

    def check(
        self,
        name: str,
        quantity: str,
        worlds: Callable[[], Mapping[str, Outcome]],
        unit: Int[Tensor, "G"],
        labelled: Int[Tensor, "s"] | None = None,
        proper: bool | None = None,
        times: int = 1,
    ) -> Check:
        """The largest p of several nulls; each under its own assumption. Of `labelled` structures. times: more tests that p counts for."""
        count = len(self.data) if labelled is None else len(labelled)
        independent = len((unit if labelled is None else unit[labelled]).unique())
        about = dict(name=name, quantity=quantity, structures=count, independent=independent)
        if independent < ENOUGH:
            return Check(
                **about,
                untold=True,
                reason=f"the structures depend on each other (about {independent} independent ones of "
                f"{count}; wanted {ENOUGH})",
            )
        every = worlds()
        found = {
            a: o for a, o in every.items() if float(o.null.max()) > float(o.null.min())
        }  # worlds that are all alike refute nothing
        if not found:
            return Check(**about, reason="nothing of these structures and labels changes under it")
        assumption = max(found, key=lambda a: found[a].p)
        o = found[assumption]
        many = times * self.many if quantity else 1
        p_uniform = min(1.0, many * found[UNIFORM].p) if UNIFORM in found else None
        broken, uneven = (
            many * o.p < self.alpha,
            len(found) > 1 and proper is not None and self.uneven[proper],
        )
        if broken and len(found) < len(every):
            mute = next(a for a in every if a not in found)
            return Check(
                **about,
                p_uniform=p_uniform,
                untold=True,
                reason=f"of {mute}, no structure has one like it in another",
            )
        if (
            broken
            and uneven
            and any(told_by_shape(self.data, self.described, turn) for _, turn, _ in self.frames[proper])
        ):
            return Check(**about, p_uniform=p_uniform, untold=True, reason="poses may follow from the shapes")
        if uneven:
            assumption = max((a for a in found if a != UNIFORM), key=lambda a: found[a].p)
        return Check(
            **about,
            p=min(1.0, many * o.p),
            p_uniform=p_uniform,
            assumption=assumption,
            found=max(o.each, key=o.each.get, default=""),
            observed=o.observed,
            null=tuple(o.null.tolist()),
            stands_out={k: v for k, v in o.each.items() if v > STANDS_OUT},
            broken=broken,
            assumed=uneven,
        )

    def poses(self) -> list[Check]:
        """Whether the structures, without their labels, are oriented uniformly, and of both hands alike."""
        out = []
        if self.rungs.rotations and self.posed:
            out.append(self.uniform("poses", self.posed, elements(group("SO(3)"), self.generator)))
            self.uneven[True] = out[-1].broken or out[-1].p is None
        if self.rungs.reflections and self.handed:
            out.append(self.uniform("handedness", self.handed, self.inversion))
            self.uneven[False] = out[-1].broken or out[-1].p is None
        return out

    def uniform(self, name: str, blocks: Sequence[Block], turns: Tensor) -> Check:
        unit = self.units(blocks)
        return self.check(name, "", lambda: {UNIFORM: self.turned(blocks, turns, unit)}, unit)

    def turned(self, blocks: Sequence[Block], turns: Tensor, unit: Int[Tensor, "G"]) -> Outcome:
        return outcome(by_turning(joined(blocks, unit), turns, self.draws, self.generator), self.draws)

    def quantity(self, q: Quantity, bar) -> tuple[list[Check], float | None, tuple[float, ...] | None]:
        """Checks of one quantity, the size of the break and the axis, if there is one."""
        parts = [] if q.pseudo and q.rank == 2 else residuals(self.data, self.described, q, self.generator)
        labelled = parts[0].owner.unique() if parts else torch.arange(0)
        reason = self.untestable(q, parts, len(labelled))
        bar.update(4 if reason else 1)
        if reason:
            asked = [
                *(["SO(3)"] if self.rungs.rotations else self.rungs.below),
                *["T(3)"] * self.rungs.translations,
            ]
            return (
                [
                    Check(name=name, quantity=q.name, reason=reason, structures=len(labelled))
                    for name in asked
                ],
                None,
                None,
            )
        blocks = [b for part in parts for b in score_blocks(part, self.described)]
        turned, handed = [b for b in blocks if b.irrep[0]], [b for b in blocks if not b.irrep[0]]
        unit = self.units(turned, self.posed)
        out, size, found = [], None, None
        if self.rungs.rotations:
            turns = elements(group("SO(3)"), self.generator)
            out.append(
                self.check(
                    "SO(3)", q.name, lambda: self.worlds(turned, turns, True, unit), unit, labelled, True
                )
                if turned
                else Check(
                    name="SO(3)",
                    quantity=q.name,
                    reason="nothing of these structures and labels has a direction",
                    structures=len(labelled),
                )
            )
        bar.update()
        if self.rungs.reflections:
            if handed:
                of_hands = self.units(handed, self.handed)
                out.append(
                    self.check(
                        "reflections",
                        q.name,
                        lambda: self.worlds(handed, self.inversion, False, of_hands),
                        of_hands,
                        labelled,
                        False,
                        times=1 + len(out),
                    )
                )  # asked besides the rotations: two chances to be wrong
            out.insert(0, self.both(out))
        bar.update()
        broken = [c for c in out if c.broken]
        if broken or not self.rungs.rotations:
            below, found = self.subgroups(q, turned, unit, labelled)
            out += below if not broken or any(c.name == "SO(3)" for c in broken) else []
        if broken:
            views = {v for c in broken for v, z in (c.stands_out or {c.found: 0}).items()}
            size = max(gain(part, self.described, views, unit, self.generator) for part in parts) or None
        if self.rungs.translations:
            out.append(self.translations(q, parts, labelled))
        bar.update()
        return [*out, asymmetric(self.data, parts, *self.symmetric)], size, found

    def untestable(self, q: Quantity, parts: Sequence[Residual], labelled: int) -> str:
        """Why nothing can be said of a quantity; "" if something can."""
        if not parts:
            return "pseudotensors of rank 2 are not tested"
        if labelled < ENOUGH:
            return f"{labelled} structures labelled; wanted {ENOUGH}"
        largest = float(self.data.values(q.name).to(torch.float64).nan_to_num().abs().max())
        if all(float(part.label.abs().max()) <= SAME * largest for part in parts):
            return "all labels are zero" if not largest else "all labels are the same"
        return ""

    def both(self, rows: Sequence[Check]) -> Check:
        """O(3), of rotations and reflections: the smaller p, times their number, as that of reflections is already."""
        told = [c for c in rows if c.p is not None]
        least = min(told or rows, key=lambda c: 0 if c.p is None else c.p)
        times = [1 if c.name == "reflections" else len(rows) for c in rows]
        p, p_uniform = (
            min((min(1.0, n * v) for n, v in zip(times, values) if v is not None), default=None)
            for values in ([c.p for c in rows], [c.p_uniform for c in rows])
        )
        broken = p is not None and p < self.alpha
        if len(told) < len(rows) and not broken:
            why = next(c.reason for c in rows if c.p is None)
            return replace(next(c for c in rows if c.p is None), name="O(3)", p_uniform=p_uniform, reason=why)
        return replace(least, name="O(3)", p=p, p_uniform=p_uniform, broken=broken)

    def worlds(
        self, blocks: Sequence[Block], turns: Tensor, proper: bool, unit: Int[Tensor, "G"]
    ) -> dict[str, Outcome]:
        """The test under each assumption on the poses; units in the pose of the structure in their middle."""
        found = {UNIFORM: self.turned(blocks, turns, unit)}
        inside = middle(unit)
        for what, turn, sets in self.frames[proper]:
            alike = clusters(means(self.looks, unit), within(sets, inside))
            sums = by_exchange(joined(blocks, unit), turn[inside], alike, self.draws, self.generator)
            found[f"poses, told by {what}, that do not depend on the shape"] = outcome(sums, self.draws)
        return found

    def subgroups(
        self, q: Quantity, blocks: Sequence[Block], unit: Int[Tensor, "G"], labelled: Int[Tensor, "s"]
    ) -> tuple[list[Check], tuple[float, ...] | None]:
        """What is left of the rotations."""
        out, used = [], None
        for name in self.rungs.below:
            chosen = Group(name=name) if not name.endswith("(2)") else None
            if chosen is None:
                used = self.rungs.axis or best_axis(blocks)
                chosen = group(name, axis=used)
                name = f"{name} {AXIS} ({', '.join(f'{a:.3f}' for a in used)})"
            turns = elements(chosen, self.generator)
            if not blocks:
                out.append(
                    Check(
                        name=name,
                        quantity=q.name,
                        reason="nothing of these structures and labels has a direction",
                    )
                )
                continue
            check = self.check(
                name, q.name, lambda: {UNIFORM: self.turned(blocks, turns, unit)}, unit, labelled
            )
            if check.broken and self.turned(self.posed, turns, self.units(self.posed)).p < self.alpha:
                check = Check(
                    name=name,
                    quantity=q.name,
                    untold=True,
                    reason="the poses are not uniform under it either",
                    structures=check.structures,
                    independent=check.independent,
                )
            out.append(check)
        return out, used

    def translations(self, q: Quantity, parts: Sequence[Residual], labelled: Int[Tensor, "s"]) -> Check:
        """Whether residuals know where in space the structure is; places are exchanged among like structures."""
        about = dict(name="T(3)", quantity=q.name, structures=len(labelled))
        if any(g.pbc is not None for g in self.data):
            return Check(**about, reason="a periodic structure has no place")
        place = torch.stack([g.pos.mean(0) for g in self.data])
        extent = float(self.described.own[:, 0].square().sum(1).mean().sqrt())
        first = torch.stack([g.pos[0] - g.pos.mean(0) for g in self.data])
        known = torch.cat([self.described.sum(self.described.strict((1, -1))), first[:, None]], 1)
        fold = torch.randperm(len(place), generator=self.generator) % FOLDS
        place = cross_fitted(known, place - place.mean(0), fold)  # a centre of masses is no place of its own
        spread = float(place.square().mean().sqrt())
        if spread <= 1e-3 * extent:
            return Check(**about, reason="all structures are at one place, or where their shape says")
        x = (place - place.mean(0)) / spread
        i, j = torch.triu_indices(3, 3)
        squares = x[:, i] * x[:, j]
        # how far out a structure is may well depend on its shape, the direction hardly: a vector is asked for the direction alone
        columns = {"its place": x, "its place squared": squares - squares.mean(0)}
        told = [
            (part, block(name, (0, 1), amount.flatten(1)[:, :, None]))
            for part in parts
            for name, amount in part.amounts(self.described).items()
        ]
        told = [(part, white) for part, white in told if white is not None]
        unit = self.units(
            [white for _, white in told], [Block("place", (0, 1), x[:, :, None])], alike=self.placed_units
        )
        check = self.check(
            "T(3)",
            q.name,
            lambda: {"places that do not depend on shape and pose": self.placed(told, columns, unit)},
            unit,
            labelled,
        )
        if check.p is None:
            return check
        if not check.broken:
            quadratic = any(not part.irrep[0] for part in parts)
            return replace(
                check, reason=f"as far as it is linear{' or quadratic' if quadratic else ''} in the place"
            )
        size = max(gain_of_place(part, self.described, x, unit, self.generator) for part in parts)
        return replace(
            check,
            broken=size > PLACED,
            reason=f"to know the place is worth {100 * size:.2g} % of the rms"
            + ("" if size > PLACED else ", so little that places may as well depend a little on shapes"),
        )

    def placed(
        self, told: Sequence[tuple[Residual, Block]], columns: Mapping[str, Tensor], unit: Int[Tensor, "G"]
    ) -> Outcome:
        """Residuals of units times their places, against those in the places of like units."""
        alike = clusters(means(self.looks, unit), [torch.arange(int(unit.max()) + 1)])
        chosen = [torch.randint(len(m), (self.draws,), generator=self.generator) for m in alike]
        sums = {}
        for part, white in told:
            t = added(white.scores[..., 0], unit)
            for what, column in columns.items():
                if part.irrep[0] and what != "its place":
                    continue
                column = means(column, unit)
                worlds = torch.einsum("gt,gc->tc", t, column).flatten()[None]
                random = torch.zeros(self.draws, worlds.shape[1], dtype=torch.float64)
                for members, pick in zip(alike, chosen):
                    random += torch.einsum(
                        "ct,scx->stx", t[members], column[members[shifts(len(members))]]
                    ).flatten(1)[pick]
                sums[f"{white.name} × {what}"] = torch.cat([worlds, random]).square().sum(1)
        return outcome(sums, self.draws)


def _verdicts(checks: Sequence[Check], rungs: _Rungs) -> list[Verdict]:
    turned = rungs.rotations or rungs.below
    asked = [
        c
        for c in checks
        if c.quantity and (c.name in ("SO(3)", "reflections") or c.subgroup if turned else c.name == "T(3)")
    ]
    broken = {c.name for c in checks if c.broken}
    law = "SO(3)" in broken or (
        not any(c.name == "SO(3)" for c in checks) and any(c.broken and c.subgroup for c in checks)
    )
    out: list[Verdict] = []
    if law:
        out.append("broken law")
    if "reflections" in broken and not law:
        out.append("chirality")
    if "T(3)" in broken:
        out.append("broken translations")
    if "stabilizers" in broken and not law:
        out.append("spontaneous breaking")
    if not out and (all(c.p is None for c in asked) or any(c.untold for c in asked)):
        out.append("cannot be told")
    if "poses" in broken:
        out.append("anisotropic poses")
    if "handedness" in broken:
        out.append("one hand")
    return out or ["no broken symmetry found"]
