"""Checks of declared gradients, such as forces, stress and Born charges, in float64. They are compared with
finite differences of their parents.

A quantity q with ``gradient_of="P"`` and ``wrt="x"`` is declared as factor · ∂P/∂x (over the volume if
``per_volume``). So along a random direction u of x

    d/ds P(x + s u) at s = 0, times factor (over the volume),  must be  Σ q · u,

where the sum runs over the nodes and the components of x. P may have any rank, and may be a gradient itself.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from molequi.audit.foreign import Auditable
from molequi.audit.report import Deviation, Row, measured, skipped
from molequi.audit.study import Case, Study
from molequi.ensemble import Ensemble
from molequi.errors import ModelError
from molequi.gradients import POSITIONS, STRAIN, in_order
from molequi.graph import Graph
from molequi.model import Model
from molequi.quantities import Quantity

Displace = Callable[[Graph, Tensor, float], Graph]
# Step in Å, as a strain, or in units of a field. It balances two errors in float64. The five points leave
# (STEP / length)⁴, where outputs change over a length of 0.1 Å or more: below 1e-11, more for derivatives of
# gradients. Round-off of the parent, 1e-16 to 1e-15, is divided by the step: 1e-12 to 1e-11. Measured for
# EGNN: 1e-11 for forces, 1e-9 or less for second and third derivatives; 1e-5 and 1e-3 are both worse. The
# tolerance of 1e-6 lies far above, and a wrong sign, factor or path far above that.
STEP = 1e-4
_WEIGHTS = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}


def five_points(values: Sequence[Tensor], step: float) -> Tensor:
    """Derivative from values at -2, -1, 1 and 2 steps; its error is of fourth order in the step."""
    terms = [weight * value for weight, value in zip(_WEIGHTS.values(), values)]
    return torch.stack(terms).sum(0) / step


def _slopes(
    study: Study,
    name: str,
    graphs: Sequence[Graph],
    directions: Sequence[Tensor],
    along: Displace,
    step: float,
) -> list[Tensor]:
    """d/ds of a quantity of each graph along `along(graph, direction, s)` at s = 0."""
    points = [along(g, u, k * step) for g, u in zip(graphs, directions) for k in _WEIGHTS]
    values = [v[name] for v in study.double(points, study.quantities)]
    return [five_points(values[n : n + 4], step) for n in range(0, len(values), 4)]


def _moved(graph: Graph, direction: Tensor, s: float) -> Graph:
    return graph.replace(pos=graph.pos + s * direction)


def _strained(graph: Graph, strain: Tensor, s: float) -> Graph:
    return graph.strained(s * strain)


def _in_field(name: str, graph: Graph, direction: Tensor, s: float) -> Graph:
    return graph.replace(**{name: graph.values()[name] + s * direction})


@dataclass(frozen=True)
class _Variable:
    """What a gradient is taken with respect to, and how structures are displaced along it."""

    name: str
    step: float
    displaced: Displace

    def direction(self, study: Study, graph: Graph) -> Tensor:
        """A random direction, of the shape of the variable; symmetric for a strain."""
        if self.name == STRAIN:
            strain = _normal(study, (1, graph.dim, graph.dim))
            return (strain + strain.transpose(1, 2)) / 2
        value = graph.pos if self.name == POSITIONS else graph.values()[self.name]
        return _normal(study, tuple(value.shape))


def contracted(value: Tensor, direction: Tensor) -> Tensor:
    """Σ value · direction over the rows (nodes, or one structure) and over the components of the variable.

    Rows are the first axis of both, and the components are the last axes. The axes of the parent remain.
    """
    rank = direction.ndim - 1
    own = direction.reshape(direction.shape[0], *[1] * (value.ndim - direction.ndim), *direction.shape[1:])
    return (value * own).sum([0, *range(value.ndim - rank, value.ndim)])


def _normal(study: Study, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=study.generator, dtype=torch.float64)


def variable(study: Study, name: str) -> _Variable:
    """A variable of the structures by its name in `Quantity(wrt=…)`.

    The values of a field may have any size (300 K, 0.01 V/Å). Its step is in proportion to them if they are
    above 1, and at most 0.5 % of them: where a model bends on the scale of these values, the error of the
    five points is still below 1e-7.
    """
    if name == POSITIONS:
        return _Variable(name, STEP, _moved)
    if name == STRAIN:
        return _Variable(name, STEP, _strained)
    values = torch.cat([g.values()[name].flatten() for g in study.structures])
    size = float(values.square().mean().sqrt())
    step = min(STEP * max(1.0, size), size / 200) if size else STEP
    return _Variable(name, step, partial(_in_field, name))


def coefficient(q: Quantity, graph: Graph) -> float:
    """What the derivative of the parent is multiplied by to give the quantity; NaN without a volume."""
    factor = 1.0 if q.factor is None else float(q.factor)
    if not q.per_volume:
        return factor
    volume = 0.0 if graph.cell is None else float(torch.linalg.det(graph.cell[0]).abs())
    return factor / volume if volume else math.nan


def finite_differences(study: Study) -> Iterator[Row]:
    """Each declared gradient along a random direction of its variable (all positions, a strain, a field)
    against finite differences of its parent.
    """
    for q in study.quantities.values():
        if not study.is_gradient(q):
            continue
        try:
            in_order([q], study.quantities)
        except ModelError as error:
            yield Row(
                check="finite differences", quantity=q.name, element=q.wrt, verdict="fail", reason=str(error)
            )
            continue
        if q.wrt not in (POSITIONS, STRAIN) and any(q.wrt not in g.values() for g in study.structures):
            yield skipped("finite differences", q.name, f"the structures have no {q.wrt!r}", q.wrt)
            continue
        row = _compared(study, q)
        # A gradient that is always zero is right where its parent is constant; nothing is measured then.
        if row is not None and not (row.verdict == "pass" and study.vanishes(q.name)):
            yield _mark_direct(study, q, row)


def _compared(study: Study, q: Quantity) -> Row | None:
    """The row of one gradient; None if no structure has it."""
    known = [
        (c, v)
        for c, v in zip(study.cases, study.values)
        if not (study.cannot_have(q, c.graph) and bool(torch.isnan(v[q.name]).all()))
    ]
    if not known:
        return None
    tolerance = study.tolerance.finite_difference
    strains = _strain_links(study, q)
    if strains is not None:
        errors = _second_strains(study, q, strains, known)
        if errors is None:
            why = f"{strains.base.name!r} is not differentiable, so its second derivatives cannot be compared"
            return skipped("finite differences", q.name, why, q.wrt)
    else:
        errors = _first(study, q, known)
    return measured("finite differences", q.name, errors, tolerance, element=q.wrt)


def _first(study: Study, q: Quantity, known: Sequence[tuple[Case, dict[str, Tensor]]]) -> list[Deviation]:
    """Relative errors of a gradient of what the model itself gives for displaced structures."""
    x, parent = variable(study, q.wrt), str(q.gradient_of)
    graphs = [c.graph for c, _ in known]
    directions = [x.direction(study, g) for g in graphs]
    slopes = _slopes(study, parent, graphs, directions, x.displaced, x.step)
    size, size_of_parent = study.rms(q.name), torch.tensor(study.rms(parent))
    errors = []
    for (c, v), u, slope in zip(known, directions, slopes):
        scale = coefficient(q, c.graph)
        found = contracted(v[q.name] if q.per == "node" else v[q.name][None], u)
        gap = float((slope * scale - found).abs().max())
        # what float64 leaves of the parent, whose own round-off is that of its typical size, not of a zero
        total = torch.maximum(v[parent].abs().max(), size_of_parent)
        lost = study.resolution(total, study.tolerance.finite_difference) / x.step * abs(scale)
        errors.append((_ratio(gap, max(float(u.norm()) * size, lost)), c.structure, c.draw))
    return errors


def _ratio(gap: float, size: float) -> float:
    return gap / size if size else 0.0 if gap == 0 else math.inf


@dataclass(frozen=True)
class _StrainLinks:
    """A second derivative by strain: `base` is no derivative by strain, and `links` are the derivatives that
    lead from it to the parent of the gradient, in order.
    """

    base: Quantity
    links: tuple[Quantity, ...]


def _strain_links(study: Study, q: Quantity) -> _StrainLinks | None:
    """The links if the parent of a derivative by strain is, or follows from, a derivative by strain."""
    if q.wrt != STRAIN:
        return None
    above = study.lineage(q)[1:]
    first = max((k for k, p in enumerate(above) if p.wrt == STRAIN and study.is_gradient(p)), default=None)
    return None if first is None else _StrainLinks(above[first + 1], tuple(reversed(above[: first + 1])))


def _second_strains(
    study: Study, q: Quantity, chain: _StrainLinks, known: Sequence[tuple[Case, dict[str, Tensor]]]
) -> list[Deviation] | None:
    """Relative errors of a second derivative by strain, such as elastic constants ∂²E/∂ε∂ε / V; None if the
    base is not differentiable.

    Both derivatives refer to the given cell: E(x (1 + ε)) is differentiated twice by the same ε. The stress
    that the model gives for a strained structure refers to the strained cell, so its finite differences are
    another quantity. Therefore the base is differentiated here, at strains ±ε and ±2ε of the given cell, and
    finite differences of this derivative are compared, for one random combination of components.
    """
    x = variable(study, STRAIN)
    errors = []
    for c, v in known:
        weights = _normal(study, chain.base.shape(c.graph.dim))
        ways = [variable(study, link.wrt) for link in chain.links]
        directions = [way.direction(study, c.graph) for way in ways]
        u = x.direction(study, c.graph)
        values = [
            _linked(study, chain, c.graph, k * x.step * u, weights, list(zip(ways, directions)))
            for k in _WEIGHTS
        ]
        plain = [value for value in values if value is not None]
        if len(plain) < len(values):
            return None
        scale = coefficient(q, c.graph) * math.prod(coefficient(link, c.graph) for link in chain.links)
        found = v[q.name]
        for direction in (u, *reversed(directions)):
            found = contracted(found[None], direction)
        gap = float((five_points(plain, x.step) * scale - (found * weights).sum()).abs())
        norms = [float(t.norm()) for t in (weights, *directions, u)]
        errors.append((_ratio(gap, study.rms(q.name) * math.prod(norms)), c.structure, c.draw))
    return errors


def _linked(
    study: Study,
    chain: _StrainLinks,
    graph: Graph,
    strain: Tensor,
    weights: Tensor,
    along: Sequence[tuple[_Variable, Tensor]],
) -> Tensor | None:
    """The derivatives of the base along directions of the links, at a strain of the structure."""
    subject = study.double
    batch = subject.connected([graph.strained(strain)])
    further = torch.zeros_like(strain, device=subject.device).requires_grad_()
    start = graph.to(subject.device).strained(strain.to(subject.device) + further)
    batch = batch.replace(pos=start.pos, cell=start.cell)
    own: dict[str, Tensor] = {STRAIN: further}
    for way, _ in along:
        if way.name != STRAIN:
            own[way.name] = batch.values()[way.name].clone().requires_grad_()
            batch = batch.replace(**{way.name: own[way.name]})
    value = _only(subject.model, chain.base.name)(batch, create_graph=True)[chain.base.name]
    if not value.requires_grad:
        return None
    total = (value[0] * weights.to(value)).sum()
    for way, direction in along:
        if not total.requires_grad:
            return torch.zeros((), dtype=torch.float64)
        (slope,) = torch.autograd.grad(total, own[way.name], create_graph=True, materialize_grads=True)
        total = (slope * direction.to(slope)).sum()
    return total.detach().to("cpu", torch.float64)


def _only(model: Auditable, name: str) -> nn.Module:
    """A view of the model that computes no more than one quantity, unless a subclass changes its results."""
    forward = type(model).forward
    if isinstance(model, Model) and forward is Model.forward:
        return model.predicting([name])
    if isinstance(model, Ensemble) and forward is Ensemble.forward:
        return model.predicting([name])
    return model


def _mark_direct(study: Study, q: Quantity, row: Row) -> Row:
    if row.verdict != "fail" or not study.predicted_directly(q):
        return row
    return replace(
        row, reason=f"predicted directly, not conservative; declared gradient_of={q.gradient_of!r}"
    )


def conservative(study: Study) -> Iterator[Row]:
    """Direct forces: u · ∂F/∂v - v · ∂F/∂u is zero for two directions u and v if F is the gradient of an
    energy.

    It has a verdict only if the quantity declares that it is a gradient. Otherwise the row says what was
    found.
    """
    x = variable(study, POSITIONS)
    for q in study.measurable.values():
        forces = (
            q.per == "node"
            and q.rank == 1
            and q.wrt == POSITIONS
            and (q.gradient_of is not None or q.unit == "eV/Å")
        )
        if not forces or (study.is_gradient(q) and not study.predicted_directly(q)):
            continue
        graphs = [c.graph for c in study.cases]
        us, vs = ([x.direction(study, g) for g in graphs] for _ in range(2))
        slopes = [_slopes(study, q.name, graphs, along, x.displaced, x.step) for along in (vs, us)]
        errors = []
        for c, u, v, along_v, along_u in zip(study.cases, us, vs, *slopes):
            uv, vu = (u * along_v).sum(), (v * along_u).sum()
            size = float(torch.maximum(along_v.norm() * u.norm(), along_u.norm() * v.norm()))
            errors.append((float((uv - vu).abs()) / size if size else 0.0, c.structure, c.draw))
        tolerance = study.tolerance.finite_difference
        row = measured("conservative", q.name, errors, tolerance, element="curl")
        if row.verdict == "pass":
            yield row
        elif q.gradient_of is None:
            yield replace(
                row,
                verdict="not applicable",
                reason="not conservative: predicted directly, and declared so",
            )
        else:
            yield replace(
                row,
                reason=f"not conservative: predicted directly, but declared gradient_of={q.gradient_of!r}",
            )
