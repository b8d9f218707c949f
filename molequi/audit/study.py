"""Data that all checks share: the model in both precisions, the structures, the scale of each quantity."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral

import torch
from torch import Tensor

from molequi.audit.foreign import Auditable, BlackBox
from molequi.audit.images import near_cutoff, rattled, with_field
from molequi.audit.layers import Chain
from molequi.audit.report import Tolerances
from molequi.domain import read_as_trained, totals_taken
from molequi.errors import ConfigError, DataError
from molequi.features import Features
from molequi.gradients import POSITIONS, STRAIN
from molequi.graph import Graph, collate, own_fields
from molequi.heads import Dipole, DipoleMagnitude
from molequi.models import Backbone, Inputs
from molequi.neighbors import connect
from molequi.output_scales import output_scale
from molequi.quantities import KNOWN, Quantity
from molequi.symmetry import Group, group

NODES_AT_ONCE = 250  # larger batches cost more in memory traffic than they save in calls
FIELD = "electric_field"
EPSILON = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Case:
    """One copy of a structure: as given in even draws, rattled in odd ones."""

    structure: int
    draw: int
    graph: Graph


class Subject:
    """A copy of a model in one precision, or the model itself, evaluated for lists of structures."""

    def __init__(self, model: Auditable, dtype: torch.dtype | None) -> None:
        self.model = model if dtype is None else copy.deepcopy(model).to(dtype).eval()
        self.sees_edges = getattr(model, "sees_edges", True)
        self.device = next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def connected(self, graphs: Sequence[Graph]) -> Graph:
        """One batch. Neighbors of structures without edges are searched, unless the model takes no edges."""
        if not self.sees_edges:
            return collate([g.without("edge") for g in graphs]).to(self.device)
        return collate(
            [
                g
                if g.edge_index is not None
                else connect(g, self.model.cutoff, getattr(self.model, "k", None))
                for g in graphs
            ]
        ).to(self.device)

    def __call__(
        self, graphs: Sequence[Graph], quantities: Mapping[str, Quantity]
    ) -> list[dict[str, Tensor]]:
        """Quantities of each structure, float64 on the CPU: (…) per graph, (N, …) per node."""
        out: list[dict[str, Tensor]] = []
        for part in chunks(graphs):
            batch = self.connected(part)
            result = {
                name: v.detach().to("cpu", torch.float64)
                for name, v in self.model(batch).items()
                if name in quantities
            }
            counts = batch.counts.tolist()
            rows = {
                n: v.split(counts) if quantities[n].per == "node" else v.unbind() for n, v in result.items()
            }
            out += [{name: row[k] for name, row in rows.items()} for k in range(len(part))]
        return out

    def features(self, graphs: Sequence[Graph]) -> list[Features]:
        """Features of each structure, float64 on the CPU."""
        out = []
        for part in chunks(graphs):
            batch = self.connected(part)
            with torch.no_grad():
                features = self.model.backbone(batch)
            blocks = {
                i: b.to("cpu", torch.float64).split(batch.counts.tolist()) for i, b in features.blocks.items()
            }
            seen = features.coordination.to("cpu", torch.float64).split(batch.counts.tolist())
            out += [
                Features(blocks={i: b[k] for i, b in blocks.items()}, coordination=seen[k])
                for k in range(len(part))
            ]
        return out

    def states(self, graphs: Sequence[Graph]) -> list[dict[tuple[str, str], Tensor]]:
        """What the layers of the backbone return for each structure: (nodes, channels, components) by layer
        and irrep, in the order of calls.

        Empty for a backbone that does not declare its layers.
        """
        out = []
        for graph in graphs:
            batch = self.connected([graph])
            with Chain(self.model, None, batch.dim) as chain, torch.no_grad():
                chain.start(None, keep=True)
                self.model.backbone(batch)
            found: dict[tuple[str, str], Tensor] = {}
            for name, tensors in zip(chain.names, chain.kept):
                if chain.states[name.split(", call ")[0]] is None:
                    continue  # a whole backbone: its features are a check of their own
                for kept in tensors:
                    for irrep, part in kept.split(kept.value.detach().to("cpu", torch.float64)):
                        if part.shape[0] == batch.num_nodes:
                            key = (name.split("backbone.")[-1], irrep)
                            found[key] = torch.cat([found[key], part], dim=1) if key in found else part
            out.append(found)
        return out


def chunks(graphs: Sequence[Graph]) -> list[list[Graph]]:
    """Parts of at most NODES_AT_ONCE nodes (or one structure), in order."""
    parts: list[list[Graph]] = [[]]
    nodes = 0
    for g in graphs:
        if parts[-1] and nodes + g.num_nodes > NODES_AT_ONCE:
            parts.append([])
            nodes = 0
        parts[-1].append(g)
        nodes += g.num_nodes
    return parts


def check_draws(draws: int, least: int = 2) -> None:
    """Raises ConfigError if there are too few draws, or if it is not a number."""
    if not isinstance(draws, Integral) or draws < least:
        wanted = "1, the structure as given" if least == 1 else "2, one as given and one rattled"
        raise ConfigError(f"draws={draws!r}: wanted at least {wanted}")


def structures_of(structures: object, limit: int, model: object = None) -> tuple[list[Graph], int]:
    """Single unconnected Graphs, at most `limit` spread evenly over those given, and how many were given.

    Takes whatever `data.load_dataset` takes, and reads it as the training data of the model were read.
    """
    if limit < 1:
        raise ConfigError(f"limit={limit}: wanted at least one structure")
    if isinstance(structures, (list, tuple)) and not len(structures):
        raise DataError("no structures to audit the model on; wanted at least one")
    if isinstance(structures, (list, tuple)) and all(isinstance(g, Graph) for g in structures):
        structures = [g.replace(targets={}) for g in structures]
    given = list(read_as_trained(model, structures, {}, only=totals_taken(model)))  # without labels
    count = len(given)
    if count > limit:
        given = [given[(k * count) // limit] for k in range(limit)]
    plain = []
    for k, g in enumerate(given):
        if g.edge_attr is not None and g.pair_attr is None:
            raise DataError(
                f"structure {k} has features of given edges; the audit searches neighbors again and cannot "
                "keep them"
            )
        plain.append(g.to("cpu").without("edge").replace(targets={}))
    return plain, count


def _declared(model: Auditable, given: str | Group | None, structures: Sequence[Graph]) -> Group:
    """The group by which the model is judged: the given one, otherwise the one that it declares."""
    dim = structures[0].dim
    if isinstance(given, Group):
        if given.dim != dim:
            raise ConfigError(f"group {given} is one of {given.dim} dimensions; the structures have {dim}")
        return given
    axis = getattr(model, "axis", None)
    if given is not None:
        found = group(given, dim)
        if found.name in ("O(n-1)", "SO(n-1)") and found.axis is None and axis is not None:
            return group(given, dim, axis=axis.tolist())  # the axis that the model declares
        return found
    return group(
        model.group,
        dim,
        translations=getattr(model, "translations", True),
        axis=None if axis is None else axis.tolist(),
    )


def reads_field(model: Auditable) -> bool:
    """Whether the model reads the electric field of a structure."""
    inputs = getattr(getattr(model, "backbone", None), "inputs", None)
    return isinstance(inputs, Inputs) and inputs.electric_field


def lineage(known: Mapping[str, Quantity], q: Quantity) -> list[Quantity]:
    """A quantity, its parent (the quantity that it is declared to be a gradient of), the parent of that, and
    so on, as far as they are known.
    """
    found = [q]
    while (parent := known.get(found[-1].gradient_of or "")) is not None and parent not in found:
        found.append(parent)
    return found


def cannot_have(model: Auditable, q: Quantity, graph: Graph | None) -> bool:
    """Whether a structure cannot have a quantity: a stress without a volume, the dipole of a periodic
    structure as a moment of charges, and gradients of both.
    """
    if graph is None or graph.cell is None or graph.pbc is None or graph.dim != 3:
        return _needs_volume(model, q)
    return (_needs_volume(model, q) and not bool(torch.linalg.det(graph.cell[0]).abs() > 0)) or (
        _undefined_if_periodic(model, q) and bool(graph.pbc.any())
    )


def _undefined_if_periodic(model: Auditable, q: Quantity) -> bool:
    heads = dict(getattr(model, "heads", {}))
    return any(isinstance(heads.get(p.name), (Dipole, DipoleMagnitude)) for p in lineage(model.quantities, q))


def _needs_volume(model: Auditable, q: Quantity) -> bool:
    return any(p.wrt == STRAIN and p.gradient_of is not None for p in lineage(model.quantities, q))


class Study:
    """Data that all checks share: the model in both precisions, copies of the structures with their outputs,
    and the scale of each quantity.
    """

    def __init__(
        self,
        model: Auditable,
        structures: Sequence[Graph],
        *,
        draws: int,
        seed: int,
        tolerance: Tolerances,
        declared: str | Group | None = None,
        as_it_is: bool = False,
    ) -> None:
        self.double = Subject(model, None if as_it_is else torch.float64)
        # the precision of a model without weights is not known
        self.single = (
            None if as_it_is or next(model.parameters(), None) is None else Subject(model, torch.float32)
        )
        self.black_box = isinstance(model, BlackBox)
        self.rough = isinstance(model, BlackBox) and model.precision == "float32"
        self.cutoff, self.k = model.cutoff, getattr(model, "k", None)
        self.group = _declared(model, declared, structures)
        self.sees_edges = self.double.sees_edges
        self.in_field = reads_field(model)
        if self.in_field:
            structures = [with_field(g) for g in structures]
        self.structures, self.draws, self.tolerance = structures, draws, tolerance
        self.generator = torch.Generator().manual_seed(seed)
        self.cases = [Case(k, d, self._copy(g, d)) for k, g in enumerate(structures) for d in range(draws)]
        # those of an ensemble include standard deviations
        self.quantities = dict(getattr(model, "outputs", model.quantities))
        self.parents = {q.name: model.quantities[name] for name, q in getattr(model, "stds", {}).items()}
        if "energy" in self.quantities:
            self.quantities.setdefault("energies", KNOWN["energies"])
        graphs = [c.graph for c in self.cases]
        self.values = self.double(graphs, self.quantities)
        self.values32 = self.in_float32(graphs)
        self.quantities = {n: q for n, q in self.quantities.items() if n in self.values[0]}
        self.largest = {
            name: torch.stack([v[q.name].nan_to_num(0.0).abs().max() for v in self.values]).max()
            for name, q in self.parents.items()
        }
        self.scale = {name: self._scale(q) for name, q in self.quantities.items()}

    def in_float32(self, graphs: Sequence[Graph]) -> list[dict[str, Tensor] | None]:
        """Outputs in float32; None for each structure if the model has a precision of its own."""
        if self.single is None:
            return [None for _ in graphs]
        return [*self.single(graphs, self.quantities)]

    def _copy(self, graph: Graph, draw: int) -> Graph:
        copied = graph if draw % 2 == 0 else rattled(graph, self.generator)
        for _ in range(20):
            if not near_cutoff(copied, self.cutoff):
                break
            copied = rattled(graph, self.generator)
        return with_field(copied, self.generator) if self.in_field and draw % 2 else copied

    def _scale(self, q: Quantity) -> float:
        """Root mean square over the cases. For a scalar, the standard deviation over the draws of one
        structure, per atom if it is extensive.
        """
        if q.rank:
            return self.rms(q.name)
        squares, largest = [], 0.0
        for k, graph in enumerate(self.structures):
            rows = torch.stack([v[q.name] for c, v in zip(self.cases, self.values) if c.structure == k])
            rows = rows / graph.num_nodes if q.extensive else rows
            if self.needs_volume(q):
                rows = rows[torch.isfinite(rows)]
            if not rows.numel():
                continue
            squares.append((rows - rows.mean(0)).square().flatten())
            largest = max(largest, float(rows.abs().max()))
        spread = float(torch.cat(squares).mean().sqrt()) if squares else 0.0
        return spread if spread > 64 * EPSILON * largest else 0.0  # false, so zero, for NaN too

    def vanishes(self, name: str) -> bool:
        """Whether an output is always zero, or a scalar constant, so that nothing can be measured."""
        zero = 1e-13 * output_scale(self.double.model, name) if self.quantities[name].rank else 0.0
        return not self.scale[name] > zero

    @cached_property
    def measurable(self) -> dict[str, Quantity]:
        """Quantities for which something can be measured."""
        return {n: q for n, q in self.quantities.items() if not self.vanishes(n)}

    def error(
        self,
        name: str,
        found: Tensor,
        wanted: Tensor,
        nodes: int,
        copies: int = 1,
    ) -> float:
        """The largest difference, divided by the scale; infinite if the difference is not finite.

        `nodes` is the number of nodes of the structure and `copies` how often the compared structure contains
        it.
        """
        q = self.quantities[name]
        difference = (found - wanted).abs()
        worst = float(difference.max()) if bool(torch.isfinite(difference).all()) else torch.inf
        share = nodes if q.extensive and q.rank == 0 else 1
        return worst / max(
            self.scale[name] * share,
            self.resolution_of_float32(wanted),
            self.resolution(self.total(name, wanted, copies), self.tolerance.batching),
        )

    def both_undefined(self, name: str, found: Tensor, wanted: Tensor, graph: Graph) -> bool:
        """Whether the structure cannot have the quantity, and both values are NaN as they must be."""
        return (
            self.cannot_have(self.quantities[name], graph)
            and bool(torch.isnan(wanted).all())
            and bool(torch.isnan(found).all())
        )

    def cannot_have(self, q: Quantity, graph: Graph | None) -> bool:
        """Whether the structure cannot have the quantity, so that NaN is right. For a standard deviation, its
        quantity counts.
        """
        return cannot_have(self.double.model, self.parents.get(q.name, q), graph)

    def needs_volume(self, q: Quantity) -> bool:
        """Whether it is a derivative by strain, or the standard deviation of one. A structure without a
        volume does not have it.
        """
        return _needs_volume(self.double.model, self.parents.get(q.name, q))

    def undefined_if_periodic(self, q: Quantity) -> bool:
        """Whether it is a moment of charges, a gradient of one, or the standard deviation of these. A
        periodic structure does not have it.
        """
        return _undefined_if_periodic(self.double.model, self.parents.get(q.name, q))

    @staticmethod
    def zero_by_symmetry(q: Quantity, nodes: int) -> bool:
        """Whether it may be zero by symmetry in a structure of so few nodes, as the dipole of two equal atoms
        is.
        """
        return (
            (nodes == 1 and q.rank == 0)
            or (q.rank == 1 and nodes <= (1 if q.per == "node" else 2))
            or (q.pseudo and nodes < 5)
        )

    def total(self, name: str, value: Tensor, copies: int = 1) -> Tensor:
        """The number whose round-off counts: the value itself, for a standard deviation the largest value of
        its quantity.
        """
        return self.largest[name] * copies if name in self.largest else value

    @staticmethod
    def resolution(total: Tensor, tolerance: float) -> float:
        """The scale at which round-off of a total just passes: 1e-16 of -1e6 eV is no error of the model."""
        return 8 * EPSILON * float(total.abs().max()) / tolerance

    def resolution_of_float32(self, total: Tensor) -> float:
        """The same for a calculator that computes in float32, 0 otherwise."""
        if not self.rough:
            return 0.0
        return 8 * torch.finfo(torch.float32).eps * float(total.abs().max()) / self.tolerance.symmetry

    def is_gradient(self, q: Quantity) -> bool:
        """Whether the quantity declares that it is the derivative of another one that the model predicts."""
        return q.gradient_of is not None and q.gradient_of in self.quantities

    def lineage(self, q: Quantity) -> list[Quantity]:
        """The quantity, its parent, the parent of that, and so on."""
        return lineage(self.quantities, q)

    def is_extensive(self, q: Quantity) -> bool:
        """Whether it doubles with the system: it is declared so, or is the derivative of such a quantity by a
        variable of the whole structure, not divided by the volume.
        """
        if q.extensive:
            return True
        above = self.lineage(q)[1:]
        return bool(above) and q.per == "graph" and not q.per_volume and self.is_extensive(above[0])

    def is_force(self, q: Quantity) -> bool:
        """Whether it is, like forces, the derivative by positions of a scalar or of a derivative of a scalar.
        It is zero for an atom without neighbors.

        Born charges, the derivative of a dipole, are not: an atom without neighbors may have some.
        """
        return self.has_known_sum(q) and not self.pushed(self.structures)

    def has_known_sum(self, q: Quantity) -> bool:
        """Whether it is like forces, in an electric field, too: its sum over the nodes follows from
        `shifts`.
        """
        root = self.lineage(q)[-1]
        return (
            q.wrt == POSITIONS
            and self.is_gradient(q)
            and root.rank == 0
            and not self._is_moment(root)
            and not any(p.wrt == FIELD for p in self.lineage(q))
        )

    def pushed(self, graphs: Sequence[Graph]) -> bool:
        """Whether the field pushes the net charge of some structure, so that forces do not add up to zero."""
        return any(bool(shift.any()) for g in graphs for shift in self.shifts(g, g.pos[0] * 0 + 1).values())

    def shifts(self, graph: Graph, step: Tensor) -> dict[str, Tensor]:
        """What a translation adds to outputs because of the net charge Q in a field F: -Q F · t to the energy
        and Q t to the dipole, see `models.inputs.net_charge_in_field`.
        """
        charge, field = graph.charge, graph.electric_field
        if not self.in_field or graph.pbc is not None or charge is None or field is None:
            return {}
        if not self.takes("charge"):
            return {}
        energy = -charge[0] * (field[0] * step).sum()
        found = {"energy": energy, "energies": energy / graph.num_nodes}
        for q in self.quantities.values():
            if q.gradient_of == "energy" and q.wrt == FIELD and not self.predicted_directly(q):
                found[q.name] = -charge[0] * step * (1.0 if q.factor is None else q.factor)
        return {name: value for name, value in found.items() if name in self.quantities}

    def _is_moment(self, q: Quantity) -> bool:
        return isinstance(dict(getattr(self.double.model, "heads", {})).get(q.name), DipoleMagnitude)

    def predicted_directly(self, q: Quantity) -> bool:
        """Whether a head predicts the quantity, so that it need not be the gradient of anything."""
        return q.name in getattr(self.double.model, "heads", {})

    def gradients(self, wrt: str) -> list[Quantity]:
        """Declared derivatives of predicted quantities by one variable."""
        return [q for q in self.measurable.values() if q.wrt == wrt and self.is_gradient(q)]

    def rms(self, name: str) -> float:
        """Root mean square of all components of an output over the cases that have it."""
        flat = torch.cat([v[name].flatten() for v in self.values])
        flat = flat[torch.isfinite(flat)]
        return float(flat.square().mean().sqrt()) if len(flat) else 0.0

    def has_edges(self, graph: Graph) -> bool:
        """Whether the model sees a pair of nodes in the structure; always so if it takes no edges."""
        if not self.sees_edges:
            return True
        index = connect(graph, self.cutoff, self.k).edge_index
        return index is not None and index.shape[1] > 0

    def turning_inputs(self) -> list[str]:
        """Vectors and tensors that the model may use besides positions: velocities, vectors of nodes, and
        fields that users declare. Because of them, outputs may change if positions alone are rotated.
        """
        backbone = getattr(self.double.model, "backbone", None)
        known = isinstance(backbone, Backbone) and backbone.inputs is not None
        fields = {n: f for n, f in own_fields().items() if n != FIELD} if not known else {}
        own = [n for n, f in fields.items() if f.rank and getattr(self.structures[0], n) is not None]
        return [*self.takes("vel", "vec", FIELD), *own]

    def takes(self, *names: str) -> list[str]:
        """Those of charge, spin, vel, vec and the electric field that the model uses. A backbone of another
        package, or one that does not declare its inputs, is taken to use all that the structures have.
        """
        backbone = getattr(self.double.model, "backbone", None)
        inputs = {"vel": "velocity", "vec": "node_vectors"}
        return [
            n
            for n in names
            if getattr(self.structures[0], n) is not None
            and (not isinstance(backbone, Backbone) or backbone.reads(inputs.get(n, n)))
        ]
