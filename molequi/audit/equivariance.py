"""Checks of symmetries in float64 and float32. Neighbors are searched again in transformed structures."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from molequi.audit.images import nodes_of, rebased, supercell, with_edges_in_order, wrapped
from molequi.audit.report import Deviation, Row, measured, skipped
from molequi.audit.study import Case, Study
from molequi.features import Features
from molequi.graph import Graph
from molequi.models import Backbone
from molequi.neighbors import connect
from molequi.quantities import Quantity
from molequi.symmetry import Group, Transform

Outputs = dict[str, Tensor]
States = dict[tuple[str, str], Tensor]  # by layer and irrep
Expected = Callable[[Quantity, Tensor], Tensor]
TRANSLATIONS = (1.0, 10.0, 100.0)  # Å
LAYER_DRAWS = 2  # draws of each structure for which the layers are checked
SUPERCELLS = 2  # draws of each structure: a supercell has eight times the atoms


def unchanged(_: Quantity, value: Tensor) -> Tensor:
    """The value itself, for checks in which nothing may change."""
    return value


def by_transform(
    study: Study,
    check: str,
    label: str,
    make: Callable[[Graph], Transform],
    draws: Collection[int] | None = None,
) -> list[Row]:
    """Rows for elements that `make` draws, one for each case, or for those of some draws only."""

    def image(graph: Graph) -> tuple[Graph, Expected]:
        element = make(graph)
        return element.graph(graph), element.value

    return _compare(study, check, label, image, [c for c in study.cases if draws is None or c.draw in draws])


def _compare(
    study: Study,
    check: str,
    label: str,
    image: Callable[[Graph], tuple[Graph, Expected]],
    cases: Sequence[Case],
    tolerance: float | None = None,
) -> list[Row]:
    """One row for each quantity: f(image of x) against what is expected from f(x)."""
    pairs = [image(c.graph) for c in cases]
    place = {id(c): k for k, c in enumerate(study.cases)}
    images = [graph for graph, _ in pairs]
    precise, rough = study.double(images, study.quantities), study.in_float32(images)
    rows = []
    for name, q in study.measurable.items():
        errors: dict[bool, list[Deviation]] = {True: [], False: []}
        for c, (graph, expected), f64, f32 in zip(cases, pairs, precise, rough):
            k, nodes = place[id(c)], c.graph.num_nodes
            for is64, found, known in ((True, f64, study.values[k]), (False, f32, study.values32[k])):
                if found is None or known is None:
                    continue
                wanted = expected(q, known[name])
                if study.both_undefined(name, found[name], wanted, c.graph):
                    continue
                error = study.error(name, found[name], wanted, nodes, graph.num_nodes // nodes)
                errors[is64].append((error, c.structure, c.draw))
        rows.append(
            measured(
                check,
                name,
                errors[True],
                tolerance or study.tolerance.symmetry,
                element=label,
                float32=errors[False],
            )
            if errors[True]
            else skipped(check, name, "not defined for these structures", label)
        )
    return rows


def nonzero(study: Study) -> Iterator[Row]:
    """Fail for outputs that are always zero or constant, since every check would pass them."""
    with_edges = [g for g in study.structures if study.has_edges(g)]
    for name, q in study.quantities.items():
        values = [v[name] for v, c in zip(study.values, study.cases) if not study.cannot_have(q, c.graph)]
        largest = max((g.num_nodes for g in with_edges if not study.cannot_have(q, g)), default=0)
        if not study.vanishes(name):
            yield Row(
                check="not zero",
                quantity=name,
                verdict="pass",
                reason=f"of size {study.scale[name]:.1e} {q.unit}".rstrip(),
            )
        elif not values:
            yield skipped(
                "not zero",
                name,
                "no structure has a volume" if study.needs_volume(q) else "every structure is periodic",
            )
        elif not all(bool(torch.isfinite(v).all()) for v in values):
            yield Row(check="not zero", quantity=name, verdict="fail", reason="the output is not finite")
        elif not largest or study.zero_by_symmetry(q, largest):
            yield skipped("not zero", name, "must be zero or constant for structures so small")
        else:
            what = "zero for every structure" if q.rank else "the same for all positions of the atoms"
            yield Row(
                check="not zero",
                quantity=name,
                verdict="fail",
                reason=f"it is {what}, so no other check means anything",
            )


def rotation(study: Study) -> Iterator[Row]:
    """Proper rotations of the declared group. Cells, vectors and quantities transform as they are
    declared.
    """
    yield from _turned(study, "rotation", proper=True)


def reflection(study: Study) -> Iterator[Row]:
    """Improper rotations; reported without a verdict if the model does not declare them."""
    yield from _turned(study, "reflection", proper=False)


def _turned(study: Study, check: str, *, proper: bool) -> Iterator[Row]:
    label = "proper" if proper else "improper"
    own, every = study.group, Group(name="O(n)", dim=study.group.dim)
    if own.name in ("O(n)", "SO(n)"):
        rows = _sampled(study, check, label, every, proper)
        yield from (
            rows if proper or own.improper else (without_verdict(study, row, "reflections") for row in rows)
        )
        return
    if own.proper if proper else own.improper:
        yield from _sampled(study, check, f"{label}, {own.name}", own, proper)
    for row in _sampled(study, check, label, every, proper):
        yield without_verdict(study, row, "all rotations" if proper else "all reflections")


def _sampled(study: Study, check: str, label: str, group: Group, proper: bool) -> list[Row]:
    return by_transform(
        study,
        check,
        label,
        lambda g: Transform.random(group, proper=proper, generator=study.generator),
    )


def without_verdict(study: Study, row: Row, what: str) -> Row:
    """The row of a transform outside of the declared group, which has no verdict."""
    if row.maximum is None:
        return row
    holds = "hold" if row.verdict == "pass" else "do not hold"
    return replace(row, verdict="not applicable", reason=f"the model declares {study.group}; {what} {holds}")


def translation(study: Study) -> Iterator[Row]:
    """Translations with standard deviations of 1, 10 and 100 Å; 1 Å for a calculator in float32."""
    sizes = TRANSLATIONS[:1] * len(TRANSLATIONS) if study.rough else TRANSLATIONS
    for k, size in enumerate(reversed(sizes)):
        if k < study.draws:
            cases = [c for c in study.cases if c.draw in range(k, study.draws, len(TRANSLATIONS))]
            rows = _compare(study, "translation", f"{size:g} Å", partial(_translated, study, size), cases)
            yield from (
                rows
                if study.group.translations
                else (without_verdict(study, row, "translations") for row in rows)
            )


def _translated(study: Study, size: float, graph: Graph) -> tuple[Graph, Expected]:
    step = size * torch.randn(graph.dim, generator=study.generator, dtype=torch.float64)
    element, shifts = Transform.single(translation=step), study.shifts(graph, step)

    def expected(q: Quantity, value: Tensor) -> Tensor:
        return element.value(q, value) + shifts.get(q.name, 0.0)

    return element.graph(graph), expected


def permutation(study: Study) -> Iterator[Row]:
    """Outputs follow a new order of the nodes."""
    yield from by_transform(
        study,
        "permutation",
        "",
        lambda g: Transform.single(
            permutation=torch.randperm(g.num_nodes, generator=study.generator),
        ),
    )


def edge_order(study: Study) -> Iterator[Row]:
    """Outputs do not depend on the order of the edges."""
    if not study.sees_edges:
        yield skipped("edge order", "", "the model takes no edges")
        return

    def image(graph: Graph) -> tuple[Graph, Expected]:
        return with_edges_in_order(connect(graph, study.cutoff, study.k), study.generator), unchanged

    yield from _compare(study, "edge order", "", image, study.cases, study.tolerance.batching)


def lattice(study: Study) -> Iterator[Row]:
    """The same crystal described in another way: atoms moved by lattice vectors, other lattice vectors."""
    periodic = [c for c in study.cases if c.graph.pbc is not None]
    if not periodic:
        yield skipped("lattice", "", "no periodic structure")
        return

    def moved(graph: Graph) -> tuple[Graph, Expected]:
        return wrapped(graph, torch.randint(-2, 3, graph.pos.shape, generator=study.generator)), unchanged

    rows = _compare(study, "lattice", "wrapped", moved, periodic)
    yield from (
        rows
        if study.group.translations
        else (without_verdict(study, row, "lattice translations") for row in rows)
    )
    several = [c for c in periodic if c.graph.pbc is not None and int(c.graph.pbc.sum()) > 1]
    if several:
        yield from _compare(
            study, "lattice", "basis", lambda g: (rebased(g, study.generator), unchanged), several
        )


def supercells(study: Study) -> Iterator[Row]:
    """A supercell twice as long in each periodic direction. With three of them, extensive quantities and
    their standard deviations become eight times larger; all others stay the same.
    """
    periodic = [c for c in study.cases if c.graph.pbc is not None and c.draw < SUPERCELLS]
    used = study.takes("charge", "spin")
    if not periodic or used or not study.group.translations:
        yield skipped(
            "supercell",
            "",
            f"the model takes the total {used[0]}, which belongs to the whole structure"
            if used
            else "no periodic structure"
            if not periodic
            else f"the model declares {study.group}",
        )
        return

    def image(graph: Graph) -> tuple[Graph, Expected]:
        larger, copies = supercell(graph)

        def expected(q: Quantity, value: Tensor) -> Tensor:
            if q.per == "node":
                return torch.cat([value] * copies)
            extensive = study.is_extensive(study.parents.get(q.name, q))
            return value * copies if extensive else value  # all copies have the same error

        return larger, expected

    yield from _compare(study, "supercell", "", image, periodic, study.tolerance.symmetry)


def batch(study: Study) -> Iterator[Row]:
    """A structure in a random batch, which includes a single atom, gives the same as the structure alone."""
    if study.black_box:
        yield skipped("batch", "", "a calculator is asked for one structure after the other")
        return
    lone = nodes_of(study.structures[0], [0])
    alone: dict[int, tuple[Outputs, Outputs | None]] = {}
    precise: dict[str, list[Deviation]] = {n: [] for n in study.measurable}
    rough: dict[str, list[Deviation]] = {n: [] for n in study.measurable}
    for _ in range(min(study.draws, 4)):
        chosen = torch.randperm(len(study.cases), generator=study.generator)[:8].tolist()
        graphs = [lone, *[study.cases[k].graph for k in chosen]]
        together = study.double(graphs, study.quantities), study.in_float32(graphs)
        for n, k in enumerate(chosen, 1):
            case = study.cases[k]
            if k not in alone:
                alone[k] = study.double([case.graph], study.quantities)[0], study.in_float32([case.graph])[0]
            for errors, found, known in (
                (precise, together[0][n], alone[k][0]),
                (rough, together[1][n], alone[k][1]),
            ):
                if found is None or known is None:
                    continue
                for name, deviations in errors.items():
                    if study.both_undefined(name, found[name], known[name], case.graph):
                        continue
                    error = study.error(name, found[name], known[name], case.graph.num_nodes)
                    deviations.append((error, case.structure, case.draw))
    for name, e in precise.items():
        if e:
            yield measured(
                "batch", name, e, study.tolerance.batching, element="against single", float32=rough[name]
            )


def features(study: Study) -> Iterator[Row]:
    """Features of the backbone; each irrep transforms by its Wigner matrix."""
    if not hasattr(study.double.model, "backbone"):
        yield skipped("features", "", "the model has no backbone")
        return
    graphs = [c.graph for c in study.cases]
    subjects = [study.double] if study.single is None else [study.double, study.single]
    known = [s.features(graphs) for s in subjects]
    sizes = {
        irrep: float(torch.cat([f.blocks[irrep].flatten() for f in known[0]]).square().mean().sqrt())
        for irrep in known[0][0].blocks
    }
    for label, proper in (("proper", True), ("improper", False)):
        own = (
            study.group
            if (study.group.proper if proper else study.group.improper)
            else Group(name="O(n)", dim=study.group.dim)
        )
        elements = [Transform.random(own, proper=proper, generator=study.generator) for _ in graphs]
        images = [e.graph(g) for e, g in zip(elements, graphs)]
        turned = [s.features(images) for s in subjects]
        for irrep, size in sizes.items():
            if size < 1e-13:
                yield skipped("features", irrep, "zero for these structures", label)
                continue
            errors = [
                [
                    (_gap(t, e.features(f), irrep) / size, c.structure, c.draw)
                    for t, f, e, c in zip(ts, fs, elements, study.cases)
                ]
                for ts, fs in zip(turned, known)
            ]
            row = measured(
                "features",
                irrep,
                errors[0],
                study.tolerance.symmetry,
                element=label,
                float32=errors[1] if len(errors) > 1 else (),
            )
            yield (
                row
                if own is study.group
                else without_verdict(study, row, "rotations" if proper else "reflections")
            )


def layers(study: Study) -> Iterator[Row]:
    """Outputs of the layers; the first layer that fails, in the order of calls, loses the symmetry."""
    cases = [c for c in study.cases if c.draw < LAYER_DRAWS]
    known = (
        study.double.states([c.graph for c in cases])
        if isinstance(getattr(study.double.model, "backbone", None), Backbone)
        else [{}]
    )
    if not known[0]:
        yield skipped("layers", "", "the model does not declare its layers")
        return
    sizes = {
        key: float(torch.cat([k[key].flatten() for k in known]).square().mean().sqrt()) for key in known[0]
    }
    kinds: list[tuple[str, bool | None]] = [("permutation", None)]
    kinds += [("proper", True)] if study.group.proper else []
    kinds += [("improper", False)] if study.group.improper else []
    for label, proper in kinds:
        elements = [_element(study, c.graph, proper) for c in cases]
        images = study.double.states([e.graph(c.graph) for e, c in zip(elements, cases)])
        first = True
        for layer in dict.fromkeys(name for name, _ in sizes):
            irreps = [i for name, i in sizes if name == layer and sizes[name, i] > 1e-13]
            if not irreps:
                yield skipped("layers", layer, "zero for these structures", label)
                continue
            errors = _errors_of_layer(
                layer, {i: sizes[layer, i] for i in irreps}, cases, elements, images, known
            )
            row = measured("layers", layer, errors, study.tolerance.symmetry, element=label)
            if row.verdict == "fail":
                row = replace(row, reason="the symmetry is lost here" if first else "after it was lost")
                first = False
            yield row


def _element(study: Study, graph: Graph, proper: bool | None) -> Transform:
    """A random rotation of the declared group, or a random permutation if `proper` is None."""
    # drawn for every kind, so that each sees the same random numbers
    order = torch.randperm(graph.num_nodes, generator=study.generator)
    if proper is None:
        return Transform.single(permutation=order)
    return Transform.random(study.group, proper=proper, generator=study.generator)


def _errors_of_layer(
    layer: str,
    sizes: Mapping[str, float],
    cases: Sequence[Case],
    elements: Sequence[Transform],
    images: Sequence[States],
    known: Sequence[States],
) -> list[Deviation]:
    """Errors of what one layer returns for transformed structures, by irrep, relative to its size."""
    errors = []
    for image, value, e, c in zip(images, known, elements, cases):
        there = Features(
            blocks={irrep: value[layer, irrep] for irrep in sizes},
            coordination=torch.zeros(c.graph.num_nodes),
        )
        for irrep, wanted in e.features(there).blocks.items():
            gap = float((image[layer, irrep] - wanted).abs().max())
            errors.append((gap / sizes[irrep], c.structure, c.draw))
    return errors


def _gap(found: Features, wanted: Features, irrep: str) -> float:
    return float((found.blocks[irrep] - wanted.blocks[irrep]).abs().max())
