"""Checks of physics in float64: net force and torque, locality, and the limits of one atom and of no
neighbors.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from molequi.audit.images import cluster, dimer, dimers, joined, nodes_of, unpaired, without_edges
from molequi.audit.report import Deviation, Row, measured, skipped
from molequi.audit.study import Study
from molequi.graph import Graph
from molequi.neighbors import connect
from molequi.quantities import Quantity

Outputs = dict[str, Tensor]


def momentum(study: Study) -> Iterator[Row]:
    """The net force is zero, or that of an electric field on the net charge; and so is the net torque on a
    structure that is not periodic.
    """
    for q in study.gradients("positions"):
        if q.rank != 1 or not study.has_known_sum(q):
            continue
        net, torque = _net(study, q)
        direct = study.predicted_directly(q)
        turning = study.turning_inputs()
        for element, errors in (("net force", net), ("torque", torque)):
            if direct:
                yield skipped("momentum", q.name, "predicted directly: nothing makes it zero", element)
            elif not study.group.translations or (
                element == "torque" and study.group.name not in ("O(n)", "SO(n)")
            ):
                why = f"the model declares {study.group}, so that nothing makes it zero"
                yield skipped("momentum", q.name, why, element)
            elif element == "torque" and turning:
                why = f"the energy may depend on {turning[0]} too, which does not rotate with the positions"
                yield skipped("momentum", q.name, why, element)
            elif errors:
                yield measured("momentum", q.name, errors, study.tolerance.momentum, element=element)


def _net(study: Study, q: Quantity) -> tuple[list[Deviation], list[Deviation]]:
    """Net force without that on the net charge, and net torque of each case, relative to the sums of the
    absolute values.
    """
    net, torque = [], []
    for c, v in zip(study.cases, study.values):
        if c.graph.num_nodes == 1:
            continue  # judged exactly under "one atom"
        force = v[q.name]
        # against the rms of all forces where those of a perfect crystal are zero by symmetry
        usual = study.scale[q.name] * c.graph.num_nodes
        parts = max(float(force.norm(dim=1).sum()), usual)
        rest = force.sum(0) - _known_sum(study, q, c.graph)
        net.append((float(rest.norm()) / parts if parts else 0.0, c.structure, c.draw))
        if c.graph.pbc is None:
            arm = c.graph.pos - c.graph.pos.mean(0)
            moment = arm.T @ force
            parts = max(
                float((arm.norm(dim=1) * force.norm(dim=1)).sum()), usual * float(arm.norm(dim=1).mean())
            )
            torque.append((float((moment - moment.T).norm()) / parts if parts else 0.0, c.structure, c.draw))
    return net, torque


def _known_sum(study: Study, q: Quantity, graph: Graph) -> Tensor:
    """What forces add up to: Q F for a net charge Q in a field F, otherwise zero."""
    zero, steps = graph.pos.new_zeros(()), torch.eye(graph.dim, dtype=graph.pos.dtype)
    slope = torch.stack([study.shifts(graph, step).get(q.gradient_of or "", zero) for step in steps])
    return slope * (1.0 if q.factor is None else q.factor)


def cutoff(study: Study) -> Iterator[Row]:
    """Two atoms at the cutoff and beyond, with an edge between them: outputs are those without the edge, and
    forces are exactly zero, unless the model has terms that act beyond the cutoff. As a control, outputs must
    change inside the cutoff.
    """
    pairs_of = dimers(study.structures)
    if study.cutoff is None or study.k is not None or not pairs_of:
        why = "no two atoms" if study.cutoff is not None else "the model has no cutoff: all atoms interact"
        if study.k is not None:
            why = "the model has k nearest neighbors, which change abruptly"
        yield skipped("cutoff", "", why)
        return
    errors: dict[str, list[Deviation]] = {n: [] for n in study.measurable}
    control: dict[str, float] = dict.fromkeys(study.measurable, 0.0)
    far = bool(_long_ranged(study))
    for graph, nodes in pairs_of:
        outside, inside = _pairs_at_the_cutoff(study, study.cutoff, graph, nodes)
        for name, q in study.measurable.items():
            if study.needs_volume(q):
                continue
            for found, isolated in outside:
                exact = study.is_force(q) and not far
                gap = (
                    float(found[name].abs().max())
                    if exact
                    else study.error(name, found[name], isolated[name], 2)
                )
                errors[name].append((gap, 0, 0))
            changes = [float((found[name] - isolated[name]).abs().max()) for found, isolated in inside]
            control[name] = max(control[name], *changes)
    for name, e in errors.items():
        if e:
            exact = study.is_force(study.quantities[name]) and not far
            tolerance = study.tolerance.exact if exact else study.tolerance.extensivity
            row = measured("cutoff", name, e, tolerance, element="at and beyond")
            # vectors of a whole pair of equal atoms, for one, are zero by symmetry at any distance
            if control[name] == 0 and (exact or study.quantities[name].rank == 0):
                row = replace(row, verdict="fail", reason="nothing changes inside the cutoff either")
            yield replace(row, worst=None)


def _pairs_at_the_cutoff(
    study: Study, cutoff: float, graph: Graph, nodes: list[int]
) -> tuple[list[tuple[Outputs, Outputs]], list[tuple[Outputs, Outputs]]]:
    """Outputs of two atoms, and of the same without an edge, at and beyond the cutoff; and inside of it."""
    far = [connect(dimer(graph, nodes, cutoff + more), cutoff + 0.5) for more in (0.0, 0.01, 0.4)]
    near = [dimer(graph, nodes, cutoff * f) for f in (0.3, 0.5, 0.7, 0.9)]
    values = study.double(
        [*far, *map(without_edges, far), *near, *map(without_edges, near)], study.quantities
    )
    return list(zip(values[:3], values[3:6])), list(zip(values[6:10], values[10:]))


def _local(study: Study, q: Quantity) -> bool:
    """Whether parts that do not see each other add up, or keep their values per node.

    They do not for means, for moments of charges that share one total, for positions, and for gradients of
    these.
    """
    root = study.lineage(q)[-1]
    if root is not q:
        return root.extensive and root.rank != 1 and (q.per == "node" or study.is_extensive(q))
    return (q.per == "node" and not q.point) or (q.extensive and q.rank != 1)


def _inseparable(study: Study) -> str:
    """Why distant parts may differ from what they are alone; empty if they must not."""
    used = study.takes("charge", "spin")
    if used:
        return f"the model takes the total {used[0]}, which belongs to the whole structure"
    if study.cutoff is None:
        return "the model has no cutoff: all atoms interact"
    if terms := _long_ranged(study):
        return f"the model has a {terms}: distant atoms interact"
    return (
        ""
        if study.group.translations
        else f"the model declares {study.group}: its outputs depend on the position in space"
    )


def _long_ranged(study: Study) -> str:
    """Terms of the energy that act beyond the cutoff, in words; empty if there are none."""
    terms = getattr(study.double.model, "energy_terms", {})
    return " and a ".join(n.replace("_", " ") for n in ("long_range", "dispersion") if n in terms)


def _local_quantities(study: Study) -> dict[str, Quantity]:
    """Quantities for which distant parts are compared with parts alone."""
    return {n: q for n, q in study.measurable.items() if _local(study, q) and not study.needs_volume(q)}


def _parts_together(q: Quantity, parts: list[Tensor]) -> Tensor:
    """The values of parts one after another for a quantity per node, otherwise their sum."""
    return torch.cat(parts) if q.per == "node" else torch.stack(parts).sum(0)


def fragments(study: Study) -> Iterator[Row]:
    """Two distant structures are evaluated as one. Extensive quantities add up, and quantities per node stay
    the same.
    """
    why = _inseparable(study)
    if why or study.cutoff is None:
        yield skipped("fragments", "", why)
        return
    local = _local_quantities(study)
    errors: dict[str, list[Deviation]] = {n: [] for n in local}
    graphs = [cluster(g) for g in study.structures]
    for k, a in enumerate(graphs):
        b = graphs[(k + 1) % len(graphs)].replace(**a.values("graph"))  # both in the same field
        both, one, two = study.double([joined(a, b, study.cutoff + 5.0), a, b], study.quantities)
        for name, q in local.items():
            wanted = _parts_together(q, [one[name], two[name]])
            errors[name].append((study.error(name, both[name], wanted, a.num_nodes + b.num_nodes), k, 0))
    for name, e in errors.items():
        if e:
            yield measured("fragments", name, e, study.tolerance.extensivity, element="far apart")


def one_atom(study: Study) -> Iterator[Row]:
    """Each element alone: outputs are finite, forces exactly zero, and the energy is the atomic reference
    energy (E0) where the model has one.
    """
    isolated = {z: nodes_of(g, [k]) for g in study.structures for k, z in enumerate(g.z.tolist())}
    values = study.double(list(isolated.values()), study.quantities)
    for name, q in study.measurable.items():
        if study.needs_volume(q):
            continue
        table = _reference_energies(study, name)
        if study.is_force(q) and not study.predicted_directly(q):
            errors = [(float(v[name].abs().max()), 0, 0) for v in values]
            yield _isolated_row(name, errors, study.tolerance.exact, "must be exactly zero")
        elif table is not None and q.extensive:
            errors = [(study.error(name, v[name], table[z], 1), 0, 0) for z, v in zip(isolated, values)]
            wanted = "must be the energy of the isolated atom"
            yield _isolated_row(name, errors, study.tolerance.extensivity, wanted)
        else:
            finite = all(bool(torch.isfinite(v[name]).all()) for v in values)
            yield Row(
                check="one atom",
                quantity=name,
                element="alone",
                verdict="pass" if finite else "fail",
                reason="finite" if finite else "the output is not finite",
            )


def _reference_energies(study: Study, name: str) -> Tensor | None:
    """Atomic reference energies of a quantity by atomic number, the mean over members; None
    if the head leaves the energy of an isolated atom to the network.
    """
    members = getattr(study.double.model, "members", [study.double.model])
    heads = [dict(getattr(m, "heads", {})).get(name) for m in members]
    terms = [term for m in members for term in getattr(m, "terms", {}).values()]
    if not all(getattr(part, "isolated", True) for part in [*heads, *terms]):
        return None
    tables = [t.cpu() for h in heads if isinstance(t := getattr(h, "reference_energies", None), Tensor)]
    return torch.stack(tables).mean(0) if tables else None


def _isolated_row(name: str, errors: list[Deviation], tolerance: float, wanted: str) -> Row:
    row = measured("one atom", name, errors, tolerance, element="alone", reason=wanted)
    return replace(row, worst=None, reason=row.reason if row.verdict == "fail" else "")


def no_edges(study: Study) -> Iterator[Row]:
    """A structure whose atoms have no neighbors gives the sum of its single atoms, and no forces."""
    why = _inseparable(study)
    if why or study.cutoff is None:
        yield skipped("no edges", "", why)
        return
    local = _local_quantities(study)
    errors: dict[str, list[Deviation]] = {n: [] for n in local}
    for k, graph in enumerate(study.structures):
        pos = torch.zeros_like(graph.pos)
        pos[:, 0] = torch.arange(graph.num_nodes) * (study.cutoff + 2.0)
        graph = unpaired(graph)
        apart = nodes_of(graph, list(range(graph.num_nodes)), pos)
        whole, *parts = study.double(
            [apart, *[nodes_of(graph, [n]) for n in range(graph.num_nodes)]], study.quantities
        )
        for name, q in local.items():
            if study.is_force(q):
                errors[name].append((float(whole[name].abs().max()), k, 0))
            else:
                wanted = _parts_together(q, [p[name] for p in parts])
                errors[name].append((study.error(name, whole[name], wanted, graph.num_nodes), k, 0))
    for name, e in errors.items():
        if e:
            exact = study.is_force(study.quantities[name])
            tolerance = study.tolerance.exact if exact else study.tolerance.extensivity
            yield measured("no edges", name, e, tolerance, element="atoms apart")


def across_graphs(study: Study) -> Iterator[Row]:
    """In a batch, the output of one structure has exactly no gradient by the positions of another one. As a
    control, its gradient by its own positions is not zero.
    """
    if study.black_box:
        yield skipped("across graphs", "", "a calculator is asked for one structure after the other")
        return
    candidates = _with_gradients(study)
    b, model = study.cases[-1].graph, study.double.model
    for name, q in study.measurable.items():
        if study.is_gradient(q) or study.needs_volume(q) or q.name == "energies":
            continue  # they follow from the parent
        able = [
            g
            for g in candidates
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
        if inside == 0 and able:
            row = replace(row, verdict="fail", reason="no gradient by its own positions either")
        yield replace(row, worst=None)


def _with_gradients(study: Study) -> list[Graph]:
    """Copies of the structures whose outputs have a gradient: not atoms without neighbors, or with images of
    themselves alone. Rattled copies come first, because the gradient is zero in a perfect crystal.
    """
    return [
        c.graph
        for c in sorted(study.cases, key=lambda c: c.draw % 2 == 0)
        if c.graph.num_nodes > 1 and study.has_edges(c.graph)
    ]
