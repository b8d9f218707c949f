"""Hypothesis tests of orientations, and of rotations, reflections, subgroups and translations of labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.data_symmetry.dependence import (
    block_length,
    blocks_of_units,
    mean_over_units,
    representatives,
    sampling_units,
    sum_over_units,
    units_of_sets,
)
from molequi.data_symmetry.descriptors import Descriptors
from molequi.data_symmetry.groups import GroupSelection
from molequi.data_symmetry.randomization import (
    RandomizationResult,
    ScoreBlock,
    best_axis,
    cyclic_shifts,
    exchange_sums,
    finite_subgroup,
    largest_z_score,
    rotation_sums,
    whitened_block,
)
from molequi.data_symmetry.reference_frames import (
    orientation_follows_shape,
    reference_frames,
    strata,
    structure_invariants,
)
from molequi.data_symmetry.report import ABOUT, HypothesisTest
from molequi.data_symmetry.residuals import (
    FOLDS,
    Residual,
    cross_fit_residual,
    effect_size,
    equivariant_residuals,
    label_scores,
    orientation_scores,
    translation_effect_size,
)
from molequi.data_symmetry.symmetric_structures import find_symmetric_structures, spontaneous_breaking
from molequi.quantities import Quantity
from molequi.symmetry import Group, group

MIN_STRUCTURES = 30  # fewer independent structures are not tested
# Smaller effects of the position, relative to the RMS of a label, do not count as broken symmetry: the
# positions in a data set may depend slightly on the shapes.
MIN_TRANSLATION_EFFECT = 0.02
CONSTANT = 1e-12  # labels that vary by less, relative to the largest one, are constant
SIGNIFICANT_Z = 3.0
UNIFORM = "uniform orientations"
NO_DIRECTION = "nothing in these structures and labels has a direction"


class SymmetryTester:
    """Tests of one data set; descriptors, frames and sampling units are computed once.

    Parameters
    ----------
    data : Dataset
        Labelled structures.
    descriptors : Descriptors
        Descriptors of `data`.
    groups : GroupSelection
        The symmetries to test.
    draws : int
        Random data sets for each test.
    alpha : float
        Significance level.
    generator : torch.Generator
        Source of random numbers.
    n_quantities : int
        Number of quantities, by which p-values of labels are multiplied (Bonferroni correction).
    """

    def __init__(
        self,
        data: Dataset,
        descriptors: Descriptors,
        groups: GroupSelection,
        *,
        draws: int,
        alpha: float,
        generator: torch.Generator,
        n_quantities: int,
    ) -> None:
        self.data, self.descriptors, self.groups = data, descriptors, groups
        self.draws, self.alpha, self.generator = draws, alpha, generator
        self.n_quantities = n_quantities
        self.frames = {
            proper: list(reference_frames(data, descriptors, proper=proper)) for proper in (True, False)
        }
        self.unit, self.invariants = sampling_units(data), structure_invariants(descriptors)
        blocks = orientation_scores(descriptors)
        self.orientation_blocks = [b for b in blocks if b.irrep[0]]
        self.handedness_blocks = [b for b in blocks if not b.irrep[0]]
        # Whether the test of orientations (True) and of handedness (False) rejects a uniform distribution.
        self.not_uniform = {True: False, False: False}
        self.symmetric_structures = find_symmetric_structures(data)
        identity = torch.eye(3, dtype=torch.float64)
        self.inversion = torch.stack([identity, -identity])

    @cached_property
    def _units_with_positions(self) -> Int[Tensor, "G"]:
        return sampling_units(self.data, with_positions=True)

    def _independent_units(
        self, *correlated: Sequence[ScoreBlock], unit: Int[Tensor, "G"] | None = None
    ) -> Int[Tensor, "G"]:
        """Join units until at least one of these sets of scores is uncorrelated.

        One is enough for the test to be valid.
        """
        unit = self.unit if unit is None else unit
        return unit // min((block_length(blocks, unit) for blocks in correlated if blocks), default=1)

    def decide(
        self,
        name: str,
        quantity: str,
        null_hypotheses: Callable[[], Mapping[str, RandomizationResult]],
        unit: Int[Tensor, "G"],
        labelled: Int[Tensor, "s"] | None = None,
        proper: bool | None = None,
        n_tests: int = 1,
    ) -> HypothesisTest:
        """The largest p-value over several null hypotheses.

        Parameters
        ----------
        name, quantity : str
            Symmetry and quantity; "" for the structures alone.
        null_hypotheses : callable
            Returns the result under each assumption; not called if there are too few units.
        unit : int Tensor, shape (G,)
            Sampling unit of each structure.
        labelled : int Tensor, optional
            Indices of labelled structures; all by default.
        proper : bool, optional
            True for tests of rotations, False for reflections, None for tests without frames.
        n_tests : int
            Number of tests of this quantity, by which the p-value is multiplied.

        Returns
        -------
        HypothesisTest
            With a p-value, or with the reason why there is none.
        """
        count = len(self.data) if labelled is None else len(labelled)
        independent = len((unit if labelled is None else unit[labelled]).unique())
        test = HypothesisTest(name=name, quantity=quantity, n_structures=count, n_independent=independent)
        if independent < MIN_STRUCTURES:
            reason = (
                f"the structures depend on each other (about {independent} independent ones of {count}; "
                f"wanted {MIN_STRUCTURES})"
            )
            return replace(test, inconclusive=True, reason=reason)
        every = null_hypotheses()
        # A null distribution without variance cannot reject anything.
        found = {
            a: r
            for a, r in every.items()
            if float(r.null_distribution.max()) > float(r.null_distribution.min())
        }
        if not found:
            return replace(test, reason="these structures and labels do not change under it")
        assumption = max(found, key=lambda a: found[a].p_value)
        result = found[assumption]
        factor = n_tests * self.n_quantities if quantity else 1
        uniform = min(1.0, factor * found[UNIFORM].p_value) if UNIFORM in found else None
        test = replace(test, p_value_uniform=uniform)
        broken = factor * result.p_value < self.alpha
        if broken and len(found) < len(every):
            missing = next(a for a in every if a not in found)
            reason = f"no two similar structures have different {missing}"
            return replace(test, inconclusive=True, reason=reason)
        assumed = len(found) > 1 and proper is not None and self.not_uniform[proper]
        if broken and assumed and self._orientations_follow_shapes(bool(proper)):
            return replace(test, inconclusive=True, reason="the orientations may depend on the shapes")
        if assumed:
            assumption = max((a for a in found if a != UNIFORM), key=lambda a: found[a].p_value)
        return replace(
            test,
            p_value=min(1.0, factor * result.p_value),
            assumption=assumption,
            strongest_score=max(result.z_scores, key=lambda s: result.z_scores[s], default=""),
            z_score=result.statistic,
            null_distribution=tuple(result.null_distribution.tolist()),
            significant_scores={s: z for s, z in result.z_scores.items() if z > SIGNIFICANT_Z},
            broken=broken,
            assumed=assumed,
        )

    def _orientations_follow_shapes(self, proper: bool) -> bool:
        return any(
            orientation_follows_shape(self.data, self.descriptors, frames)
            for _, frames, _ in self.frames[proper]
        )

    def orientation_tests(self) -> list[HypothesisTest]:
        """Whether orientations are uniform and both hands equally frequent, without labels."""
        out = []
        if self.groups.rotations and self.orientation_blocks:
            turns = finite_subgroup(group("SO(3)"), self.generator)
            out.append(self._uniformity("orientations", self.orientation_blocks, turns))
            self.not_uniform[True] = out[-1].broken or out[-1].p_value is None
        if self.groups.reflections and self.handedness_blocks:
            out.append(self._uniformity("handedness", self.handedness_blocks, self.inversion))
            self.not_uniform[False] = out[-1].broken or out[-1].p_value is None
        return out

    def _uniformity(self, name: str, blocks: Sequence[ScoreBlock], turns: Tensor) -> HypothesisTest:
        unit = self._independent_units(blocks)
        return self.decide(name, "", lambda: {UNIFORM: self._rotated(blocks, turns, unit)}, unit)

    def _rotated(
        self, blocks: Sequence[ScoreBlock], turns: Tensor, unit: Int[Tensor, "G"]
    ) -> RandomizationResult:
        sums = rotation_sums(blocks_of_units(blocks, unit), turns, self.draws, self.generator)
        return largest_z_score(sums, self.draws)

    def quantity_tests(
        self, q: Quantity, progress: Callable[[int], object]
    ) -> tuple[list[HypothesisTest], float | None, tuple[float, ...] | None]:
        """All tests of one quantity, its effect size and axis; calls `progress` for four steps in all."""
        parts = (
            []
            if q.pseudo and q.rank == 2
            else equivariant_residuals(self.data, self.descriptors, q, self.generator)
        )
        labelled = parts[0].structure.unique() if parts else torch.arange(0)
        reason = self._not_testable(q, parts, len(labelled))
        progress(4 if reason else 1)
        if reason:
            return self._untested(q, reason, len(labelled)), None, None
        blocks = [b for part in parts for b in label_scores(part, self.descriptors)]
        rotational = [b for b in blocks if b.irrep[0]]
        unit = self._independent_units(rotational, self.orientation_blocks)
        out: list[HypothesisTest] = []
        size, axis = None, None
        if self.groups.rotations:
            out.append(self._rotation_test(q, rotational, unit, labelled))
        progress(1)
        if self.groups.reflections:
            handed = [b for b in blocks if not b.irrep[0]]
            if handed:
                out.append(self._reflection_test(q, handed, labelled, n_tests=1 + len(out)))
            out.insert(0, self._combined(out))
        progress(1)
        broken = [t for t in out if t.broken]
        if broken or not self.groups.rotations:
            subgroups, axis = self._subgroup_tests(q, rotational, unit, labelled)
            out += subgroups if not broken or any(t.name == "SO(3)" for t in broken) else []
        if broken:
            names = {s for t in broken for s in (t.significant_scores or {t.strongest_score: 0.0})}
            sizes = (effect_size(part, self.descriptors, names, unit, self.generator) for part in parts)
            size = max(sizes) or None
        if self.groups.translations:
            out.append(self._translation_test(q, parts, labelled))
        progress(1)
        return [*out, spontaneous_breaking(self.data, parts, *self.symmetric_structures)], size, axis

    def _not_testable(self, q: Quantity, parts: Sequence[Residual], labelled: int) -> str:
        """Why a quantity cannot be tested; "" if it can."""
        if not parts:
            return "pseudotensors of rank 2 are not tested"
        if labelled < MIN_STRUCTURES:
            return f"{labelled} structures labelled; wanted {MIN_STRUCTURES}"
        largest = float(self.data.values(q.name).to(torch.float64).nan_to_num().abs().max())
        if all(float(part.label.abs().max()) <= CONSTANT * largest for part in parts):
            return "all labels are equal" if largest else "all labels are zero"
        return ""

    def _untested(self, q: Quantity, reason: str, labelled: int) -> list[HypothesisTest]:
        names = ["SO(3)"] if self.groups.rotations else list(self.groups.subgroups)
        names += ["T(3)"] * self.groups.translations
        return [
            HypothesisTest(name=name, quantity=q.name, reason=reason, n_structures=labelled) for name in names
        ]

    def _rotation_test(
        self,
        q: Quantity,
        blocks: Sequence[ScoreBlock],
        unit: Int[Tensor, "G"],
        labelled: Int[Tensor, "s"],
    ) -> HypothesisTest:
        turns = finite_subgroup(group("SO(3)"), self.generator)
        if not blocks:
            return HypothesisTest(
                name="SO(3)", quantity=q.name, reason=NO_DIRECTION, n_structures=len(labelled)
            )
        return self.decide(
            "SO(3)", q.name, lambda: self._null_hypotheses(blocks, turns, True, unit), unit, labelled, True
        )

    def _reflection_test(
        self, q: Quantity, blocks: Sequence[ScoreBlock], labelled: Int[Tensor, "s"], n_tests: int
    ) -> HypothesisTest:
        """n_tests: 2 after a test of rotations, because there are two chances to reject."""
        unit = self._independent_units(blocks, self.handedness_blocks)
        return self.decide(
            "reflections",
            q.name,
            lambda: self._null_hypotheses(blocks, self.inversion, False, unit),
            unit,
            labelled,
            False,
            n_tests,
        )

    def _combined(self, rows: Sequence[HypothesisTest]) -> HypothesisTest:
        """O(3): the smaller of the p-values of rotations and reflections, corrected for two tests."""
        tested = [t for t in rows if t.p_value is not None]
        least = min(tested or rows, key=lambda t: 0 if t.p_value is None else t.p_value)
        factors = [
            1 if t.name == "reflections" else len(rows) for t in rows
        ]  # reflections are corrected already
        p, uniform = (
            min((min(1.0, n * v) for n, v in zip(factors, values) if v is not None), default=None)
            for values in ([t.p_value for t in rows], [t.p_value_uniform for t in rows])
        )
        broken = p is not None and p < self.alpha
        if len(tested) < len(rows) and not broken:
            untested = next(t for t in rows if t.p_value is None)
            return replace(untested, name="O(3)", p_value_uniform=uniform)
        return replace(least, name="O(3)", p_value=p, p_value_uniform=uniform, broken=broken)

    def _null_hypotheses(
        self, blocks: Sequence[ScoreBlock], turns: Tensor, proper: bool, unit: Int[Tensor, "G"]
    ) -> dict[str, RandomizationResult]:
        """The test under each assumption on orientations.

        A unit has the orientation of its representative.
        """
        found = {UNIFORM: self._rotated(blocks, turns, unit)}
        chosen = representatives(unit)
        joined = blocks_of_units(blocks, unit)
        for name, frames, sets in self.frames[proper]:
            similar = strata(mean_over_units(self.invariants, unit), units_of_sets(sets, chosen))
            sums = exchange_sums(joined, frames[chosen], similar, self.draws, self.generator)
            assumption = f"orientations (from {name}) that do not depend on the shape"
            found[assumption] = largest_z_score(sums, self.draws)
        return found

    def _subgroup_tests(
        self,
        q: Quantity,
        blocks: Sequence[ScoreBlock],
        unit: Int[Tensor, "G"],
        labelled: Int[Tensor, "s"],
    ) -> tuple[list[HypothesisTest], tuple[float, ...] | None]:
        """Tests of subgroups of the rotations, and the axis in use."""
        out, axis = [], None
        for name in self.groups.subgroups:
            if name.endswith("(2)"):
                axis = self.groups.axis or best_axis(blocks)
                chosen = group(name, axis=axis)
                name = f"{name} {ABOUT} ({', '.join(f'{a:.3f}' for a in axis)})"
            else:
                chosen = Group(name=name)
            turns = finite_subgroup(chosen, self.generator)
            out.append(self._subgroup_test(name, q, blocks, turns, unit, labelled))
        return out, axis

    def _subgroup_test(
        self,
        name: str,
        q: Quantity,
        blocks: Sequence[ScoreBlock],
        turns: Tensor,
        unit: Int[Tensor, "G"],
        labelled: Int[Tensor, "s"],
    ) -> HypothesisTest:
        if not blocks:
            return HypothesisTest(name=name, quantity=q.name, reason=NO_DIRECTION)
        test = self.decide(
            name, q.name, lambda: {UNIFORM: self._rotated(blocks, turns, unit)}, unit, labelled
        )
        if not test.broken:
            return test
        blocks = self.orientation_blocks
        if self._rotated(blocks, turns, self._independent_units(blocks)).p_value >= self.alpha:
            return test
        return HypothesisTest(
            name=name,
            quantity=q.name,
            inconclusive=True,
            reason="the orientations are not uniform under this subgroup either",
            n_structures=test.n_structures,
            n_independent=test.n_independent,
        )

    def _translation_test(
        self, q: Quantity, parts: Sequence[Residual], labelled: Int[Tensor, "s"]
    ) -> HypothesisTest:
        """Whether residuals depend on the position of the structure.

        In the random data, each structure has the position of a similar structure.
        """
        test = HypothesisTest(name="T(3)", quantity=q.name, n_structures=len(labelled))
        if any(g.pbc is not None for g in self.data):
            return replace(test, reason="periodic structures have no position")
        x = self._free_positions()
        if x is None:
            return replace(
                test, reason="all structures have the same position, or one that the shape defines"
            )
        i, j = torch.triu_indices(3, 3)
        squares = x[:, i] * x[:, j]
        # The distance from the origin may depend on the shape, the direction hardly: vectors are tested
        # against the direction only.
        columns = {"position": x, "position squared": squares - squares.mean(0)}
        totals = [
            (part, whitened_block(name, (0, 1), total.flatten(1)[:, :, None]))
            for part in parts
            for name, total in part.totals(self.descriptors).items()
        ]
        white = [(part, block) for part, block in totals if block is not None]
        unit = self._independent_units(
            [block for _, block in white],
            [ScoreBlock("position", (0, 1), x[:, :, None])],
            unit=self._units_with_positions,
        )
        assumption = "positions that do not depend on shape and orientation"
        test = self.decide(
            "T(3)", q.name, lambda: {assumption: self._exchanged(white, columns, unit)}, unit, labelled
        )
        if test.p_value is None:
            return test
        if not test.broken:
            quadratic = " or quadratic" if any(not part.irrep[0] for part in parts) else ""
            return replace(test, reason=f"tested for a linear{quadratic} dependence on the position")
        size = max(translation_effect_size(part, self.descriptors, x, unit, self.generator) for part in parts)
        broken = size > MIN_TRANSLATION_EFFECT
        reason = f"the position explains {100 * size:.2g} % of the RMS"
        if not broken:
            reason += ", so little that a slight dependence of positions on shapes can explain it"
        return replace(test, broken=broken, reason=reason)

    def _free_positions(self) -> Tensor | None:
        """Positions of structures in standard deviations, minus the part that shapes explain; None if nothing
        is left.

            A center of mass, for example, is defined by the shape.
        """
        position = torch.stack([g.pos.mean(0) for g in self.data])
        radius = float(self.descriptors.node_vectors[:, 0].square().sum(1).mean().sqrt())
        first = torch.stack([g.pos[0] - g.pos.mean(0) for g in self.data])
        vectors = self.descriptors.sum_over_nodes(self.descriptors.equivariant_features((1, -1)))
        fold = torch.randperm(len(position), generator=self.generator) % FOLDS
        features = torch.cat([vectors, first[:, None]], 1)
        position = cross_fit_residual(features, position - position.mean(0), fold)
        deviation = float(position.square().mean().sqrt())
        if deviation <= 1e-3 * radius:
            return None
        return (position - position.mean(0)) / deviation

    def _exchanged(
        self,
        totals: Sequence[tuple[Residual, ScoreBlock]],
        columns: Mapping[str, Tensor],
        unit: Int[Tensor, "G"],
    ) -> RandomizationResult:
        """Correlation of residuals of units with their positions, and with the positions of similar units."""
        similar = strata(mean_over_units(self.invariants, unit), [torch.arange(int(unit.max()) + 1)])
        chosen = [torch.randint(len(m), (self.draws,), generator=self.generator) for m in similar]
        sums = {}
        for part, block in totals:
            t = sum_over_units(block.scores[..., 0], unit)
            for name, column in columns.items():
                if part.irrep[0] and name != "position":
                    continue
                c = mean_over_units(column, unit)
                observed = torch.einsum("gt,gc->tc", t, c).flatten()[None]
                random = torch.zeros(self.draws, observed.shape[1], dtype=torch.float64)
                for members, pick in zip(similar, chosen):
                    shifted = c[members[cyclic_shifts(len(members))]]
                    random += torch.einsum("ct,scx->stx", t[members], shifted).flatten(1)[pick]
                sums[f"{block.name} × {name}"] = torch.cat([observed, random]).square().sum(1)
        return largest_z_score(sums, self.draws)
