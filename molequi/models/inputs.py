"""What backbones read of a graph besides elements and positions, and how they see an electric field."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from molequi.errors import ModelError
from molequi.graph import Graph
from molequi.ops.segment import segment_sum
from molequi.util.signature import check_call, check_keywords

if TYPE_CHECKING:
    from molequi.models.base import Backbone


@check_keywords()
@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a backbone reads of a `Graph` besides elements and positions.

    Parameters
    ----------
    charge, spin : bool
        Read the total charge (in e) and the spin multiplicity of each graph, ``Graph.charge`` and
        ``Graph.spin``.
    velocity : bool
        Read the velocity of each node, ``Graph.vel``. Only EGNN, RelaxedEGNN and Transformer can.
    node_features : int
        Number of invariant features of each node, the columns of ``Graph.x``.
    edge_features : int
        Number of invariant features of each edge, the columns of ``Graph.edge_attr``.
    node_vectors : int
        Number of vectors of each node, such as surface normals: ``Graph.vec`` has shape (N, node_vectors, D).
    electric_field : bool
        Read the uniform electric field of each graph in V/Å, ``Graph.electric_field``, as one more vector of
        each node. It is zero for graphs without one.

    Raises
    ------
    ConfigError
        If a value has the wrong type or is out of range.

    Examples
    --------
    >>> Inputs(charge=True, node_features=2).used
    ('charge', 'node_features')
    """

    charge: bool = False
    spin: bool = False
    velocity: bool = False
    node_features: Annotated[int, Ge(0)] = 0
    edge_features: Annotated[int, Ge(0)] = 0
    node_vectors: Annotated[int, Ge(0)] = 0
    electric_field: bool = False

    def __post_init__(self) -> None:
        check_call(Inputs, asdict(self), where="Inputs")

    @property
    def used(self) -> tuple[str, ...]:
        """Names of the inputs that are read."""
        return tuple(name for name, value in asdict(self).items() if value)

    @property
    def vectors(self) -> int:
        """Number of vectors of each node that layers get: node vectors, and the electric field."""
        return self.node_vectors + self.electric_field


def see_field(backbone: "Backbone", graph: Graph) -> Graph:
    """Put the electric field in front of a backbone that reads it, as the last vector of each node.

    Every call of a backbone goes through it, so that whatever reads node vectors reads the field.

    Parameters
    ----------
    backbone : Backbone
        The backbone.
    graph : Graph
        Its argument.

    Returns
    -------
    Graph
        The graph whose ``vec`` has one more vector; the graph itself if the backbone reads no field.

    Raises
    ------
    ModelError
        If the graph has another number of node vectors than the backbone reads.
    """
    if backbone.inputs is None or not backbone.inputs.electric_field:
        return graph
    wanted = backbone.inputs.node_vectors
    found = 0 if graph.vec is None else graph.vec.shape[1]
    if found != wanted:
        raise ModelError(
            f"this {type(backbone).__name__} takes {wanted} vectors of each node (Graph.vec) besides the "
            f"electric field; found {found}; build it with "
            f"inputs=Inputs(node_vectors={found}, electric_field=True)"
        )
    field = graph.electric_field
    if field is None:
        field = graph.pos.new_zeros(graph.num_graphs, graph.dim)
    rows = field[graph.batch][:, None]
    return graph.replace(vec=rows if graph.vec is None else torch.cat([graph.vec, rows], dim=1))


def check_field(backbone: "Backbone", graph: Graph) -> None:
    """Check that an electric field acts on the model, if structures are in one, and on their net charges.

    Parameters
    ----------
    backbone : Backbone
        The backbone. One that does not declare its inputs is not judged.
    graph : Graph
        A batch of structures.

    Raises
    ------
    ModelError
        If a field other than zero would be ignored, or its force on the net charge of a molecule.
    """
    field = graph.electric_field
    reads, charge = backbone.reads("electric_field"), graph.charge
    if field is None or (reads and (charge is None or backbone.reads("charge"))) or is_fake(field):
        return
    acts = field.flatten(1).any(1)
    if reads and charge is not None:
        acts = acts & (charge != 0)
        acts = acts if graph.pbc is None else acts & ~graph.pbc.any(1)
    if not bool(acts.any()):
        return
    row = int(acts.nonzero()[0])
    where = f"structure {row} of the batch"
    if reads and charge is not None:
        raise ModelError(
            f"{where} has the charge {float(charge[row]):g} and is in an electric field of "
            f"{field[row].tolist()} V/Å, which pushes it; this {type(backbone).__name__} does not read the "
            "charge: remove the field, or train a model with inputs=Inputs(charge=True, electric_field=True)"
        )
    raise ModelError(
        f"{where} is in an electric field of {field[row].tolist()} V/Å, which this "
        f"{type(backbone).__name__} does not read; remove the field, or train a model with "
        "inputs=Inputs(electric_field=True)"
    )


def net_charge_in_field(out: Mapping[str, Tensor], graph: Graph, inputs: Inputs | None) -> dict[str, Tensor]:
    """Energies with that of the net charge Q in the electric field F, which no network can learn:

        E = E_net(r, F) - Q F · r̄,   r̄ = Σ_n r_n / N.

    The potential is zero at the origin. Forces then add up to Q F, dipoles -∂E/∂F are about the origin, and
    Born charges add up to Q. Structures that are periodic, where r̄ is not defined, are left as they are.

    Parameters
    ----------
    out : mapping of str to Tensor
        What the heads predict.
    graph : Graph
        The batch.
    inputs : Inputs or None
        What the backbone reads; nothing is added unless it reads the charge and the field.

    Returns
    -------
    dict of str to Tensor
        New values of "energy" and, if it is there, of "energies", which add up to it.
    """
    charge, field = graph.charge, graph.electric_field
    reads: Any = inputs is not None and inputs.charge and inputs.electric_field
    if not reads or charge is None or field is None or "energy" not in out:
        return {}
    share = charge.to(graph.pos.dtype) / graph.counts  # Q / N
    if graph.pbc is not None:
        share = share.masked_fill(graph.pbc.any(1), 0.0)
    each = -(share[:, None] * field)[graph.batch].mul(graph.pos).sum(1)
    new = {"energy": out["energy"] + segment_sum(each, graph.batch, graph.num_graphs)}
    return new | ({"energies": out["energies"] + each} if "energies" in out else {})
