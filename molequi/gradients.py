"""Quantities that are derivatives of others: their variables, their order, and their computation."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from molequi.errors import ModelError, did_you_mean
from molequi.graph import FIELDS, Field, Graph
from molequi.ops.indices import symmetrize
from molequi.quantities import Quantity

POSITIONS, STRAIN, DISPLACEMENT = "positions", "strain", "displacement"
DIRECTIONS = "hessian_vectors"  # field of the directions of a displacement
PRODUCTS = "hessian_products"  # quantity: Hessian times direction


def variables() -> dict[str, Field]:
    """What a quantity may be differentiated by: positions, strain, a displacement along given directions,
    and numbers, vectors or tensors of a node or graph.
    """
    fields = {
        name: field
        for name, field in FIELDS.items()
        if field.per in ("node", "graph")
        and field.dtype.is_floating_point
        and not field.channels
        and not field.point
    }
    own = {STRAIN: Field(per="graph", rank=2), DISPLACEMENT: Field(per="graph")}
    return {POSITIONS: FIELDS["pos"], **own, **fields}


def in_order(declared: Sequence[Quantity], predicted: Mapping[str, Quantity]) -> list[Quantity]:
    """Check declared derivatives, and sort them so that each follows the one it is a derivative of.

    Parameters
    ----------
    declared : sequence of Quantity
        Quantities with `gradient_of` that no head predicts.
    predicted : mapping of str to Quantity
        All quantities of the model, these included.

    Returns
    -------
    list of Quantity
        The declared ones, parents first.

    Raises
    ------
    ModelError
        If a parent is missing or has no derivative, or if per, rank or parity are not those of the
        derivative.
    """
    for what in declared:
        _check(what, predicted)
    waiting, done = list(declared), []
    while waiting:
        names = {q.name for q in waiting}
        ready = [q for q in waiting if q.gradient_of not in names]
        if not ready:
            raise ModelError(
                f"{', '.join(map(repr, sorted(names)))}: each is declared as a gradient of another of them; "
                "one of them needs a head"
            )
        done += ready
        waiting = [q for q in waiting if q not in ready]
    return done


def _check(what: Quantity, predicted: Mapping[str, Quantity]) -> None:
    parent = predicted.get(what.gradient_of or "")
    if parent is None:
        raise ModelError(
            f"{what.name!r} is the gradient of {what.gradient_of!r}, which is not predicted; "
            f"predict both: [{what.gradient_of!r}, {what.name!r}]"
        )
    if parent.per != "graph":
        raise ModelError(
            f"{what.name!r} is the gradient of {parent.name!r}, which has one value per node. Each of them "
            "depends on all nodes "
            "nearby, so that the derivative has a value for each pair of nodes; declare the gradient of a "
            "quantity with per='graph'"
        )
    if parent.classes:
        raise ModelError(
            f"{what.name!r} is the gradient of {parent.name!r}, which has classes; wanted a number or tensor"
        )
    known = variables()
    if what.wrt not in known:
        kind = f"per={what.per!r}, rank={what.rank - parent.rank}"
        kind += ", pseudo=True" * (what.pseudo != parent.pseudo)
        raise ModelError(
            f"{what.name!r}: wrt={what.wrt!r} is no variable of a derivative{did_you_mean(what.wrt, known)} "
            f"Wanted one of {', '.join(known)}. If it is a field of your own, declare it first, in every "
            f"script that uses it: mq.add_field({what.wrt!r}, {kind}, unit='…')"
        )
    variable = known[what.wrt]
    wanted = (variable.per, parent.rank + variable.rank, parent.pseudo != variable.pseudo)
    if (what.per, what.rank, what.pseudo) != wanted:
        per, rank, pseudo = wanted
        raise ModelError(
            f"{what.name!r} is declared with per={what.per!r}, rank={what.rank}, pseudo={what.pseudo}; the "
            "gradient of "
            f"{parent.name!r} with respect to {what.wrt} has per={per!r}, rank={rank}, pseudo={pseudo}"
        )


def with_variables(graph: Graph, names: Sequence[str]) -> tuple[Graph, Graph, dict[str, Tensor]]:
    """Make what derivatives are taken by differentiable.

    Parameters
    ----------
    graph : Graph
        A batch of structures.
    names : sequence of str
        Names of variables, see `variables`.

    Returns
    -------
    graph, strained, tensors : Graph, Graph, dict of str to Tensor
        The batch with differentiable positions and fields; the same under a displacement and a strain that
        are zero; the variables by name.

    Raises
    ------
    ModelError
        If the structures lack a field.
    """
    found: dict[str, Tensor] = {}
    for name in names:
        if name in (STRAIN, DISPLACEMENT):
            continue
        field = "pos" if name == POSITIONS else name
        value = getattr(graph, field)
        if value is None and FIELDS[field].default is not None:  # what graphs without the field have
            rows = graph.num_nodes if FIELDS[field].per == "node" else graph.num_graphs
            shape = (rows, *[graph.dim] * FIELDS[field].rank)
            value = graph.pos.new_full(shape, float(FIELDS[field].default or 0))
        if value is None:
            raise ModelError(
                f"the model differentiates by {name!r}, and the structures have no {name!r}; give it to "
                "each of them"
            )
        found[name] = value if value.requires_grad else value.detach().requires_grad_()
        graph = graph.replace(**{field: found[name]})
    strained = graph
    if DISPLACEMENT in names:
        found[DISPLACEMENT], strained = _displaced(graph)
    if STRAIN not in names:
        return graph, strained, found
    half = torch.zeros(graph.num_graphs, graph.dim, graph.dim, dtype=graph.pos.dtype, device=graph.pos.device)
    found[STRAIN] = half.requires_grad_()
    return graph, strained.strained((half + half.transpose(1, 2)) / 2), found


def _displaced(graph: Graph) -> tuple[Tensor, Graph]:
    """A displacement s of each structure, which is zero, and the positions x + s v for its directions v."""
    along = getattr(graph, DIRECTIONS)
    if along is None:
        raise ModelError(
            f"the model differentiates along the directions {DIRECTIONS!r}, and the structures have none; "
            "mq.add_hessian_products(data, calculator) makes them with their labels"
        )
    size = graph.pos.new_zeros(graph.num_graphs, requires_grad=True)
    return size, graph.replace(pos=graph.pos + size[graph.batch, None] * along.to(graph.pos.dtype))


def differentiate(
    out: Mapping[str, Tensor],
    ordered: Sequence[Quantity],
    variables: Mapping[str, Tensor],
    graph: Graph,
    *,
    always_finite: Collection[str],
    create_graph: bool,
    retain_graph: bool = False,
) -> dict[str, Tensor]:
    """Compute declared derivatives.

    All derivatives of one scalar take one backward pass together, those of a tensor one pass for each of its
    components. Where all directions of a batch are zero, as those of structures without labels are, the
    products of the Hessian are zero and take none.

    Parameters
    ----------
    out : mapping of str to Tensor
        What the heads predict.
    ordered : sequence of Quantity
        Derivatives, parents first, see `in_order`.
    variables : mapping of str to Tensor
        See `with_variables`.
    graph : Graph
        The batch, not strained.
    always_finite : collection of str
        Outputs that every structure has. A derivative of another output is NaN where that is not finite, as
        the dipole of a periodic structure is.
    create_graph : bool
        Whether the results can be differentiated again.
    retain_graph : bool
        Whether other outputs of the same computation are differentiated afterwards.

    Returns
    -------
    dict of str to Tensor
        The derivatives by name.

    Raises
    ------
    ModelError
        If the output of a head does not depend on a field that it is differentiated by.
    """
    values = dict(out) | _still(out, ordered, variables, graph)
    asked = [q for q in ordered if q.name not in values]
    parents = list(dict.fromkeys(str(q.gradient_of) for q in asked))
    for k, parent in enumerate(parents):
        children = [q for q in asked if q.gradient_of == parent]
        again = create_graph or any(q.name in parents for q in children)
        slopes = _slopes(
            values[parent],
            [variables[q.wrt] for q in children],
            create_graph=again,
            retain_graph=retain_graph or again or k + 1 < len(parents),
        )
        for child, slope in zip(children, slopes):
            if slope is None and parent in out and child.wrt not in (POSITIONS, STRAIN, DISPLACEMENT):
                raise ModelError(
                    f"{child.name!r} is the gradient of {parent!r} with respect to {child.wrt!r}, on which "
                    "neither the backbone nor "
                    f"the head depends; choose a backbone that uses {child.wrt!r}"
                    + ", such as PaiNN(inputs=Inputs(electric_field=True), …)"
                    * (child.wrt == "electric_field")
                )
            if slope is None:
                variable = variables[child.wrt]
                slope = variable.new_zeros(variable.shape[0], *values[parent].shape[1:], *variable.shape[1:])
            slope = _converted(child, slope, graph)
            values[child.name] = (
                slope if parent in always_finite else _where_finite(child, slope, values[parent], graph)
            )
    return {q.name: values[q.name] for q in ordered}


def _still(
    out: Mapping[str, Tensor], ordered: Sequence[Quantity], variables: Mapping[str, Tensor], graph: Graph
) -> dict[str, Tensor]:
    """Zeros for derivatives of a slope along directions that are all zero; NaN as the derivatives have it.

    They keep a gradient (of zero) for a loss that has no other term.
    """
    if DISPLACEMENT not in variables or bool(getattr(graph, DIRECTIONS).any()):
        return {}
    slopes = {
        q.name: out[str(q.gradient_of)] for q in ordered if q.wrt == DISPLACEMENT and q.gradient_of in out
    }
    found = {}
    for q in ordered:
        if q.gradient_of in slopes:
            value, variable = slopes[q.gradient_of], variables[q.wrt]
            zero = variable.new_zeros(variable.shape[0], *value.shape[1:], *variable.shape[1:])
            zero = zero + 0 * value.nan_to_num(0.0, 0.0, 0.0).sum()
            found[q.name] = _where_finite(q, _converted(q, zero, graph), value, graph)
    return found


def _slopes(
    value: Tensor, variables: Sequence[Tensor], *, create_graph: bool, retain_graph: bool
) -> list[Tensor | None]:
    """Derivatives of a value per graph by each variable, axes of the value first; None where it does not
    depend on the variable.
    """
    if not value.requires_grad:
        return [None] * len(variables)
    components = [value] if value.ndim == 1 else value.flatten(1).unbind(1)
    found = [
        torch.autograd.grad(
            component.sum(),
            variables,
            create_graph=create_graph,
            retain_graph=retain_graph or k + 1 < len(components),
            allow_unused=True,
        )
        for k, component in enumerate(components)
    ]
    if value.ndim == 1:
        return list(found[0])
    out: list[Tensor | None] = []
    for variable, slopes in zip(variables, zip(*found)):
        if all(slope is None for slope in slopes):
            out.append(None)
            continue
        rows = torch.stack([torch.zeros_like(variable) if s is None else s for s in slopes], dim=1)
        out.append(rows.reshape(variable.shape[0], *value.shape[1:], *variable.shape[1:]))
    return out


def _converted(what: Quantity, slope: Tensor, graph: Graph) -> Tensor:
    """The quantity from the derivative of its parent: times the factor, over the volume, symmetric as
    declared.
    """
    if what.factor is not None and what.factor != 1:
        slope = slope * what.factor
    if what.per_volume:
        slope = _per_volume(what, slope, graph)
    # A scalar's derivative by the symmetric strain is symmetric, bit for bit.
    if what.symmetry and not (what.wrt == STRAIN and what.symmetric):
        slope = symmetrize(slope, what.symmetry, what.rank)
    return slope


def _where_finite(what: Quantity, slope: Tensor, parent: Tensor, graph: Graph) -> Tensor:
    """NaN for structures whose parent is not finite: its derivative would be that of a constant, which is
    zero.
    """
    finite = torch.isfinite(parent).reshape(parent.shape[0], -1).all(1)
    rows = finite[graph.batch] if what.per == "node" else finite
    return torch.where(rows.reshape(-1, *[1] * (slope.ndim - 1)), slope, float("nan"))


def _per_volume(what: Quantity, slope: Tensor, graph: Graph) -> Tensor:
    """Over the volume of the cell; NaN where there is none."""
    if graph.cell is None:
        return torch.full_like(slope, float("nan"))
    volume = torch.linalg.det(graph.cell).abs()
    volume = volume[graph.batch] if what.per == "node" else volume
    volume = volume.reshape(-1, *[1] * (slope.ndim - 1))
    return torch.where(volume > 0, slope / torch.where(volume > 0, volume, 1.0), float("nan"))
