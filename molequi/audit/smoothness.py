"""Checks of smoothness in float64: paths in small steps across the cutoff and through structures."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from molequi.audit.gradients import coefficient, contracted
from molequi.audit.images import dimer, dimers
from molequi.audit.report import Deviation, Row, measured, skipped
from molequi.audit.study import Study
from molequi.graph import Graph
from molequi.quantities import Quantity

STEP = 0.005  # Å
FINEST = 1e-6  # Å


@dataclass
class Path:
    """A structure, how its nodes move, in how many steps."""

    kind: str
    structure: int
    graph: Graph
    direction: Tensor
    steps: int

    def at(self, s: float) -> Graph:
        """The structure after s Å."""
        return self.graph.replace(pos=self.graph.pos + s * self.direction)


@dataclass
class Interval:
    """The part of a path where a quantity bends most, with the values at both ends. Halving it finds a
    jump.
    """

    path: Path
    name: str
    size: float
    low: float
    high: float
    left: Tensor
    right: Tensor

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2

    def halve(self, between: Tensor) -> None:
        """Keep the half that changes more."""
        if _gap(self.left, between) > _gap(between, self.right):
            self.high, self.right = self.middle, between
        else:
            self.low, self.left = self.middle, between


def smoothness(study: Study) -> Iterator[Row]:
    """Outputs along paths in steps of 0.005 Å: two atoms are pulled apart across the cutoff, and all atoms of
    a structure move by 0.4 Å in random directions, so that neighbors enter and leave.

    The energy must be the integral of the force (Simpson's rule, in finer steps where it fails), and so for
    every other gradient by positions. Where a quantity bends most, the step is refined to 1e-6 Å: a smooth
    change goes to zero with the step, a jump stays.
    """
    if study.k is not None:
        yield skipped("smoothness", "", f"the model has k={study.k} nearest neighbors, which change abruptly")
        return
    paths = _paths(study)
    if not paths:
        return
    ends = [0]
    for path in paths:
        ends.append(ends[-1] + path.steps + 1)
    values = study.double([p.at(k * STEP) for p in paths for k in range(p.steps + 1)], study.quantities)
    along = [values[a:b] for a, b in pairwise(ends)]
    yield from _energy_against_force(study, paths, along)
    intervals = [i for path, points in zip(paths, along) for i in _intervals(study, path, points)]
    while intervals and intervals[0].high - intervals[0].low > FINEST:
        graphs = {(id(i.path), i.middle): i.path.at(i.middle) for i in intervals}
        between = dict(zip(graphs, study.double(list(graphs.values()), study.quantities)))
        for i in intervals:
            i.halve(between[id(i.path), i.middle][i.name])
    errors: dict[tuple[str, str], list[Deviation]] = {}
    for i in intervals:
        errors.setdefault((i.path.kind, i.name), []).append(
            (_gap(i.left, i.right) / i.size, i.path.structure, 0)
        )
    for (kind, name), found in errors.items():
        yield measured("smoothness", name, found, study.tolerance.jump, element=kind)


def _paths(study: Study) -> list[Path]:
    paths = []
    if study.cutoff is not None and study.k is None:
        start = study.cutoff - min(1.0, study.cutoff / 2)
        for graph, nodes in dimers(study.structures):
            unit = torch.zeros(2, graph.dim, dtype=torch.float64)
            unit[1, 0] = 1.0
            paths.append(
                Path(
                    "across the cutoff",
                    0,
                    dimer(graph, nodes, start),
                    unit,
                    int((study.cutoff + 0.1 - start) / STEP),
                )
            )
    for k, graph in enumerate(study.structures[:4]):
        if graph.num_nodes > 1:
            unit = torch.randn(graph.pos.shape, generator=study.generator, dtype=torch.float64)
            paths.append(Path("atoms moving", k, graph, torch.nn.functional.normalize(unit, dim=1), 80))
    return paths


def _energy_against_force(
    study: Study, paths: list[Path], along: list[list[dict[str, Tensor]]]
) -> Iterator[Row]:
    errors: dict[tuple[str, str], list[Deviation]] = {}
    for path, points in zip(paths, along):
        for q in study.gradients("positions"):
            if study.predicted_directly(q) or study.cannot_have(q, path.graph):
                continue  # direct ones are judged under "conservative"
            parent = str(q.gradient_of)
            scale = abs(coefficient(q, path.graph))
            gap, at = _simpson(q, path, points, STEP)
            largest = max(float(v[q.name].abs().max()) for v in points) * float(path.direction.norm())
            total = points[0][parent].abs().max()
            if parent in (g.name for g in study.gradients(study.quantities[parent].wrt)):
                # its round-off is that of values which cancel, also where the gradient itself is zero
                total = total.clamp(min=study.scale[parent])
            lost = study.resolution(total, study.tolerance.path) / STEP
            size = max(largest / scale, lost)
            if gap > 0.1 * study.tolerance.path * size:
                # where atoms nearly touch, the force may turn within a step; finer steps tell that from a
                # jump or a wrong force
                fine = STEP / 16
                near = [path.at((at - 1) * STEP + k * fine) for k in range(33)]
                gap, _ = _simpson(q, path, study.double(near, study.quantities), fine)
            errors.setdefault((path.kind, q.name), []).append(
                (gap / size if size else 0.0, path.structure, 0)
            )
    for (kind, name), found in errors.items():
        yield measured("energy against force", name, found, study.tolerance.path, element=kind)


def _simpson(q: Quantity, path: Path, points: list[dict[str, Tensor]], step: float) -> tuple[float, int]:
    """Largest gap between the slope of the parent and the mean of the declared gradient over two steps, and
    the point in the middle of them.
    """
    values = torch.stack([v[str(q.gradient_of)] for v in points])
    scale = coefficient(q, path.graph)
    slopes = torch.stack([contracted(v[q.name], path.direction) / scale for v in points])
    means = (slopes[:-2] + 4 * slopes[1:-1] + slopes[2:]) / 6
    gaps = ((values[2:] - values[:-2]) / (2 * step) - means).abs().reshape(len(means), -1).amax(1)
    return float(gaps.max()), int(gaps.argmax()) + 1


def _intervals(study: Study, path: Path, points: list[dict[str, Tensor]]) -> Iterator[Interval]:
    """For each quantity that changes along the path, the two steps with the largest second difference."""
    for name in study.measurable:
        rows = torch.stack([v[name].nan_to_num(0.0).flatten() for v in points])
        reach = float((rows - rows[-1]).abs().max())
        if reach > 1e-6 * study.scale[name]:
            bend = (rows[:-2] - 2 * rows[1:-1] + rows[2:]).abs().amax(1)
            k = int(bend.argmax())
            size = max(reach, study.resolution(study.total(name, rows[-1]), study.tolerance.jump))
            yield Interval(path, name, size, k * STEP, (k + 2) * STEP, points[k][name], points[k + 2][name])


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).nan_to_num(0.0).abs().max())
