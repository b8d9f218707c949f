"""Is it physics? Forces and stress against the energy, locality, and the limits of one atom and no
neighbours; all in float64.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from molequi.audit.images import cluster, dimer, dimers, joined, nodes_of, unpaired, without_edges
from molequi.audit.report import Row, measured, skipped
from molequi.audit.study import Study
from molequi.graph import Graph
from molequi.neighbors import connect
from molequi.quantities import Quantity

Displace = Callable[[Graph, Tensor, float], Graph]
STEP = 1e-4  # Å, or strain; Richardson over STEP and 2 STEP leaves an error of STEP⁴
_WEIGHTS = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}


def _derivatives(
    study: Study, name: str, graphs: Sequence[Graph], directions: Sequence[Tensor], along: Displace
) -> list[Tensor]:
    """d/ds of a quantity along `along(graph, direction, s)` at s = 0, of each graph, by Richardson's five
    points.
    """
    points = [along(g, u, k * STEP) for g, u in zip(graphs, directions) for k in _WEIGHTS]
    values = [v[name] for v in study.double(points, study.quantities)]
    return [
        sum(w * v for w, v in zip(_WEIGHTS.values(), values[n : n + 4])) / STEP
        for n in range(0, len(values), 4)
    ]


def _direction(study: Study, graph: Graph) -> Tensor:
    return torch.randn(graph.pos.shape, generator=study.generator, dtype=torch.float64)


def _moved(graph: Graph, direction: Tensor, s: float) -> Graph:
    return graph.replace(pos=graph.pos + s * direction)


def _strained(graph: Graph, strain: Tensor, s: float) -> Graph:
    return graph.strained(s * strain)


def finite_differences(study: Study) -> Iterator[Row]:
    """Forces along random directions of all atoms, and stress along random strains, against differences of
    the energy.
    """
    tolerance = study.tolerance.finite_difference
    for q in study.gradients("positions"):
        directions = [_direction(study, c.graph) for c in study.cases]
        slopes = _derivatives(study, q.gradient_of, [c.graph for c in study.cases], directions, _moved)
        errors = []
        for c, v, u, slope in zip(study.cases, study.values, directions, slopes):
            gap = float((slope + (v[q.name] * u).sum()).abs())
            size = max(
                float(u.norm()) * study.scale[q.name], study.resolution(v[q.gradient_of], tolerance) / STEP
            )
            errors.append((gap / size, c.structure, c.draw))
        yield _mark_direct(
            study, q, measured("finite differences", q.name, errors, tolerance, element="positions")
        )
    for q in study.gradients("strain"):
        known = [(c, v) for c, v in zip(study.cases, study.values) if bool(torch.isfinite(v[q.name]).all())]
        strains = [
            torch.randn(1, c.graph.dim, c.graph.dim, generator=study.generator, dtype=torch.float64)
            for c, _ in known
        ]
        strains = [(u + u.transpose(1, 2)) / 2 for u in strains]
        slopes = _derivatives(study, q.gradient_of, [c.graph for c, _ in known], strains, _strained)
        errors = []
        for (c, v), u, slope in zip(known, strains, slopes):
            volume = float(torch.linalg.det(c.graph.cell[0]).abs())
            gap = float((slope - (v[q.name] * u[0]).sum() * volume).abs())
            size = max(
                float(u.norm()) * study.scale[q.name] * volume,
                study.resolution(v[q.gradient_of], tolerance) / STEP,
            )
            errors.append((gap / size, c.structure, c.draw))
        if errors:
            yield measured("finite differences", q.name, errors, tolerance, element="strain")


def _mark_direct(study: Study, q: Quantity, row: Row) -> Row:
    if row.verdict != "fail" or not study.predicted_directly(q):
        return row
    return Row(
        **{
            **vars(row),
            "reason": f"predicted directly, not conservative; declared gradient_of={q.gradient_of!r}",
        }
    )


def conservative(study: Study) -> Iterator[Row]:
    """Direct forces: u · ∂F/∂v - v · ∂F/∂u is zero for two directions u and v if there is an energy at all.

    Judged only if the quantity declares that it is a gradient; otherwise it is said and not held against the
    model.
    """
    for q in study.measurable.values():
        forces = (
            q.per == "node"
            and q.rank == 1
            and q.wrt == "positions"
            and (q.gradient_of is not None or q.unit == "eV/Å")
        )
        if not forces or (study.gradient_of_energy(q) and not study.predicted_directly(q)):
            continue
        graphs = [c.graph for c in study.cases]
        us, vs = ([_direction(study, g) for g in graphs] for _ in range(2))
        slopes = [_derivatives(study, q.name, graphs, directions, _moved) for directions in (vs, us)]
        errors = []
        for c, u, v, along_v, along_u in zip(study.cases, us, vs, *slopes):
            uv, vu = (u * along_v).sum(), (v * along_u).sum()
            size = float(torch.maximum(along_v.norm() * u.norm(), along_u.norm() * v.norm()))
            errors.append((float((uv - vu).abs()) / size if size else 0.0, c.structure, c.draw))
        row = measured(
            "conservative",
            q.name,
            errors,
            study.tolerance.finite_difference,
            element="curl",
            reason="predicted directly; it is the gradient of nothing",
        )
        if row.verdict == "pass":
            yield Row(**{**vars(row), "reason": ""})
        elif q.gradient_of is None:
            yield Row(
                **{
                    **vars(row),
                    "verdict": "not applicable",
                    "reason": "not conservative: predicted directly, and declared so",
                }
            )
        else:
            yield Row(
                **{
                    **vars(row),
                    "reason": "not conservative: predicted directly, but declared "
                    f"gradient_of={q.gradient_of!r}",
                }
            )


def momentum(study: Study) -> Iterator[Row]:
    """No net force; no net torque on a structure that is not periodic."""
    for q in study.gradients("positions"):
        net, torque = [], []
        for c, v in zip(study.cases, study.values):
            if c.graph.num_nodes == 1:
                continue  # judged exactly under "one atom"
            force = v[q.name]
            # against the rms of all forces where those of a perfect crystal are zero by symmetry
            usual = study.scale[q.name] * c.graph.num_nodes
            parts = max(float(force.norm(dim=1).sum()), usual)
            net.append((float(force.sum(0).norm()) / parts if parts else 0.0, c.structure, c.draw))
            if c.graph.pbc is None:
                arm = c.graph.pos - c.graph.pos.mean(0)
                moment = arm.T @ force
                parts = max(
                    float((arm.norm(dim=1) * force.norm(dim=1)).sum()), usual * float(arm.norm(dim=1).mean())
                )
                torque.append(
                    (float((moment - moment.T).norm()) / parts if parts else 0.0, c.structure, c.draw)
                )
        direct = study.predicted_directly(q)
        for element, errors in (("net force", net), ("torque", torque)):
            if direct:
                yield skipped("momentum", q.name, "predicted directly: nothing makes it zero", element)
            elif not study.group.translations or (
                element == "torque" and study.group.name not in ("O(n)", "SO(n)")
            ):
                yield skipped(
                    "momentum",
                    q.name,
                    f"the model declares {study.group}, so that nothing makes it zero",
                    element,
                )
            elif element == "torque" and study.takes("vel"):
                yield skipped("momentum", q.name, "the energy depends on velocities, which turn too", element)
            elif errors:
                yield measured("momentum", q.name, errors, study.tolerance.momentum, element=element)


def cutoff(study: Study) -> Iterator[Row]:
    """Two atoms at the cutoff and beyond, though joined by an edge: as if alone, forces exactly zero; but not
    so inside.
    """
    if study.cutoff is None or study.k is not None or not (pairs_of := dimers(study.structures)):
        yield skipped(
            "cutoff",
            "",
            "the model has k nearest neighbors, which change abruptly"
            if study.k is not None
            else "the model has no cutoff: all atoms interact"
            if study.cutoff is None
            else "no two atoms",
        )
        return
    outside = [study.cutoff, study.cutoff + 0.01, study.cutoff + 0.4]
    errors: dict[str, list] = {n: [] for n in study.measurable}
    control: dict[str, float] = dict.fromkeys(study.measurable, 0.0)
    for graph, nodes in pairs_of:
        far = [connect(dimer(graph, nodes, r), study.cutoff + 0.5) for r in outside]
        near = [dimer(graph, nodes, study.cutoff * f) for f in (0.3, 0.5, 0.7, 0.9)]
        values = study.double(
            [*far, *map(without_edges, far), *near, *map(without_edges, near)], study.quantities
        )
        pairs = list(zip(values[:3] + values[6:10], values[3:6] + values[10:]))
        for name, q in study.measurable.items():
            for k, (found, isolated) in enumerate(pairs):
                if study.needs_volume(q):
                    continue
                if k >= 3:
                    control[name] = max(control[name], float((found[name] - isolated[name]).abs().max()))
                elif study.gradient_of_energy(q):
                    errors[name].append((float(found[name].abs().max()), 0, 0))
                else:
                    errors[name].append((study.error(name, found[name], isolated[name], 2), 0, 0))
    for name, e in errors.items():
        if e:
            exact = study.gradient_of_energy(study.quantities[name])
            row = measured(
                "cutoff",
                name,
                e,
                study.tolerance.exact if exact else study.tolerance.extensivity,
                element="at and beyond",
            )
            row = Row(**{**vars(row), "worst": None})
            # vectors of a whole pair of equal atoms, for one, are zero by symmetry at any distance
            if control[name] == 0 and (exact or study.quantities[name].rank == 0):
                row = Row(
                    **{**vars(row), "verdict": "fail", "reason": "nothing changes inside the cutoff either"}
                )
            yield row


def _local(study: Study, q: Quantity) -> bool:
    """Whether parts that do not see each other must add: not for means, moments of charges that share one
    total, or places.
    """
    return (q.per == "node" and not q.point) or (q.extensive and q.rank != 1)


def _inseparable(study: Study) -> str:
    """Why distant parts may differ from what they are alone; empty if they must not."""
    used = study.takes("charge", "spin")
    if used:
        return f"the model takes the total {used[0]}, which belongs to the whole structure"
    if study.cutoff is None:
        return "the model has no cutoff: all atoms interact"
    return (
        ""
        if study.group.translations
        else f"the model declares {study.group}: its outputs depend on the position in space"
    )


def fragments(study: Study) -> Iterator[Row]:
    """Two distant structures as one: extensive quantities add up, quantities of nodes stay."""
    if why := _inseparable(study):
        yield skipped("fragments", "", why)
        return
    errors: dict[str, list] = {n: [] for n, q in study.measurable.items() if _local(study, q)}
    graphs = [cluster(g) for g in study.structures]
    for k, a in enumerate(graphs):
        b = graphs[(k + 1) % len(graphs)]
        both, one, two = study.double([joined(a, b, study.cutoff + 5.0), a, b], study.quantities)
        for name in errors:
            q = study.quantities[name]
            if study.needs_volume(q):
                continue
            wanted = torch.cat([one[name], two[name]]) if q.per == "node" else one[name] + two[name]
            errors[name].append((study.error(name, both[name], wanted, a.num_nodes + b.num_nodes), k, 0))
    for name, e in errors.items():
        if e:
            yield measured("fragments", name, e, study.tolerance.extensivity, element="far apart")


def one_atom(study: Study) -> Iterator[Row]:
    """Each element alone: finite, force exactly zero, and the energy of the isolated atom where the model has
    one.
    """
    isolated = {z: nodes_of(g, [k]) for g in study.structures for k, z in enumerate(g.z.tolist())}
    values = study.double(list(isolated.values()), study.quantities)
    # of an ensemble, the isolated atoms of all members
    heads = [getattr(m, "heads", {}) for m in getattr(study.double.model, "members", [study.double.model])]
    for name, q in study.measurable.items():
        if study.needs_volume(q):
            continue
        tables = [
            h[name].reference_energies.cpu()
            for h in heads
            if name in h and hasattr(h[name], "reference_energies")
        ]
        if study.gradient_of_energy(q) and not study.predicted_directly(q):
            errors = [(float(v[name].abs().max()), 0, 0) for v in values]
            yield _isolated_row(name, errors, study.tolerance.exact, "must be exactly zero")
        elif tables and q.extensive:
            table = torch.stack(tables).mean(0)
            errors = [(study.error(name, v[name], table[z], 1), 0, 0) for z, v in zip(isolated, values)]
            yield _isolated_row(
                name, errors, study.tolerance.extensivity, "must be the energy of the isolated atom"
            )
        else:
            finite = all(bool(torch.isfinite(v[name]).all()) for v in values)
            yield Row(
                check="one atom",
                quantity=name,
                element="alone",
                verdict="pass" if finite else "fail",
                reason="finite" if finite else "the output is not finite",
            )


def _isolated_row(name: str, errors: list, tolerance: float, wanted: str) -> Row:
    row = measured("one atom", name, errors, tolerance, element="alone", reason=wanted)
    return Row(**{**vars(row), "worst": None, "reason": row.reason if row.verdict == "fail" else ""})


def no_edges(study: Study) -> Iterator[Row]:
    """A structure whose atoms have no neighbors: the sum of its atoms, and no forces."""
    if why := _inseparable(study):
        yield skipped("no edges", "", why)
        return
    errors: dict[str, list] = {n: [] for n, q in study.measurable.items() if _local(study, q)}
    for k, graph in enumerate(study.structures):
        pos = torch.zeros_like(graph.pos)
        pos[:, 0] = torch.arange(graph.num_nodes) * (study.cutoff + 2.0)
        graph = unpaired(graph)
        apart = nodes_of(graph, list(range(graph.num_nodes)), pos)
        whole, *parts = study.double(
            [apart, *[nodes_of(graph, [n]) for n in range(graph.num_nodes)]], study.quantities
        )
        for name in errors:
            q = study.quantities[name]
            if study.needs_volume(q):
                continue
            if study.gradient_of_energy(q):
                errors[name].append((float(whole[name].abs().max()), k, 0))
            else:
                wanted = (
                    torch.cat([p[name] for p in parts]) if q.per == "node" else sum(p[name] for p in parts)
                )
                errors[name].append((study.error(name, whole[name], wanted, graph.num_nodes), k, 0))
    for name, e in errors.items():
        if e:
            exact = study.gradient_of_energy(study.quantities[name])
            yield measured(
                "no edges",
                name,
                e,
                study.tolerance.exact if exact else study.tolerance.extensivity,
                element="atoms apart",
            )


def across_graphs(study: Study) -> Iterator[Row]:
    """The gradient of one structure's output by the positions of another in the batch is exactly zero, and
    not by its own.
    """
    if study.black_box:
        yield skipped("across graphs", "", "a calculator is asked for one structure after the other")
        return
    # atoms without neighbors, or with images of themselves alone, have no gradient
    connected_ones = [
        c.graph
        for c in sorted(
            study.cases, key=lambda c: c.draw % 2 == 0
        )  # rattled ones first: a perfect crystal has no gradient either
        if c.graph.num_nodes > 1
        and (not study.sees_edges or connect(c.graph, study.cutoff, study.k).edge_index.shape[1])
    ]
    b, model = study.cases[-1].graph, study.double.model
    for name, q in study.measurable.items():
        if study.gradient_of_energy(q) or study.needs_volume(q) or q.name == "energies":
            continue  # they follow from the parent
        able = [
            g
            for g in connected_ones
            if (g.pbc is None or not study.undefined_if_periodic(q))
            and not study.zero_by_symmetry(q, g.num_nodes)
        ]
        a = (able or [study.cases[0].graph])[0]
        batch = study.double.connected([a, b])
        batch = batch.replace(pos=batch.pos.clone().requires_grad_())
        value = model(batch, create_graph=True)[name]
        if not value.requires_grad:
            yield skipped("across graphs", name, "it is not differentiable")
            continue
        own = value[: a.num_nodes] if q.per == "node" else value[0]
        # a fixed projection: a sum over components could be zero by symmetry
        weights = torch.randn(own.shape, generator=study.generator, dtype=torch.float64).to(own)
        (slope,) = torch.autograd.grad((own * weights).sum(), batch.pos, materialize_grads=True)
        inside, outside = float(slope[: a.num_nodes].abs().max()), float(slope[a.num_nodes :].abs().max())
        row = measured("across graphs", name, [(outside, 0, 0)], study.tolerance.exact, element="gradient")
        row = Row(**{**vars(row), "worst": None})
        if inside == 0 and able:
            row = Row(**{**vars(row), "verdict": "fail", "reason": "no gradient by its own positions either"})
        yield row
