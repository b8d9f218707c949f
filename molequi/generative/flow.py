"""What a flow is: the task, the noise, and what its network reads and predicts, as a model file keeps it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt
from jaxtyping import Float
from torch import Tensor

from molequi.errors import ConfigError, ModelError
from molequi.graph import Graph
from molequi.heads.velocity import FLOW_VELOCITY
from molequi.model import Model
from molequi.quantities import SYMBOLS, Quantity
from molequi.util.options import Options, as_options

Task = Literal["molecules", "conformers", "relaxation"]
VELOCITY, ELEMENT = FLOW_VELOCITY.name, "flow_element"
HIDDEN = 0  # atomic number of an atom whose element is not decided yet
FARTHEST = 5.0  # Å: bound of an estimated way, so that a wild estimate cannot grow from step to step
Seed = Annotated[int, Ge(0), Lt(2**32)]
READING = "flow"  # name of the declaration in `Dataset.reading` and in model files


@dataclass(frozen=True, kw_only=True)
class Flow(Options):
    """The declaration of a flow. `paths` makes it from data; the model file keeps it.

    Parameters
    ----------
    task : {"molecules", "conformers", "relaxation"}
        What is generated: molecules without any condition; geometries of a molecular graph; or relaxed
        structures from unrelaxed ones.
    scale : float, >= 0
        Standard deviation of the noise at time 0 in Å, for each component. Of "relaxation" it is that of the
        noise around the unrelaxed structure.
    self_conditioning : bool
        Whether the network reads its own earlier estimate of the end (Chen et al. 2022, arXiv 2208.04202).
    end : float, between 0 and 1
        Largest time at which the network is trained. The last step of a sample leads from there to 1.
    elements : sequence of int
        For "molecules": atomic numbers of the classes of atoms.
    sizes : mapping of int to int
        For "molecules": how many training structures have so many atoms.

    Raises
    ------
    ConfigError
        For "molecules" and "conformers" without noise, and for "molecules" of one element.
    """

    task: Task
    scale: Annotated[float, Ge(0)]
    self_conditioning: bool = True
    end: Annotated[float, Gt(0), Lt(1)] = 0.98
    elements: tuple[int, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)

    def problem(self) -> str:
        """What is wrong with the values together."""
        if self.task != "relaxation" and self.scale == 0:
            return (
                f"scale=0: {self.task} begin with noise; wanted a standard deviation in Å, such as that of "
                "the centered positions (scale=None), and structures with more than one atom"
            )
        if self.task == "molecules" and len(self.elements) < 2:
            found = ", ".join(SYMBOLS[z] for z in self.elements) or "none"
            return (
                f"elements: found {found}; 'molecules' generates the elements, a choice between at least "
                "two; wanted data with more elements"
            )
        return ""

    @property
    def quantities(self) -> dict[str, Quantity]:
        """What the network predicts: the velocity, and for "molecules" the element of each atom."""
        found = {VELOCITY: FLOW_VELOCITY}
        if self.task == "molecules":
            found[ELEMENT] = element_quantity(self.elements)
        return found

    def record(self) -> dict[str, Any]:
        """Plain values, from which `Flow.of` makes it again."""
        return asdict(self) | {"elements": list(self.elements), "sizes": dict(self.sizes)}

    @classmethod
    def of(cls, found: "Model | Mapping[str, Any]", where: str = "model") -> "Flow":
        """The declaration that a trained model or `Dataset.reading` has.

        Parameters
        ----------
        found : Model or mapping
            A model of a training on `paths`, or the ``reading`` of such data.
        where : str
            What the message of an error puts first.

        Raises
        ------
        ModelError
            If there is none.
        """
        reading = found
        if not isinstance(found, Mapping):
            reading = (getattr(found, "metadata", None) or {}).get("reading") or {}
        assert isinstance(reading, Mapping)
        if READING not in reading:
            raise ModelError(
                f"{where}: found no declaration of a flow; wanted a model that was trained on paths: "
                "data = mq.generative.paths(data, task='molecules'), then "
                "mq.fit(model, **parts, terms=[mq.generative.FlowMatching()])"
            )
        values = dict(reading[READING])
        return as_options(cls, values | {"elements": tuple(values.get("elements", ()))}, where)


def check_alike(wanted: Flow, found: Flow, what: str) -> None:
    """Check that data are paths of the flow of the training; numbers of atoms may be others.

    Parameters
    ----------
    wanted : Flow
        The flow of the training data.
    found : Flow
        That of other data.
    what : str
        The other data in the message, in the plural.

    Raises
    ------
    ConfigError
        With what differs.
    """
    one, other = wanted.record(), found.record()
    differing = [name for name in one if name != "sizes" and one[name] != other[name]]
    if differing:
        here, there = (", ".join(f"{n}={flow[n]}" for n in differing) for flow in (other, one))
        raise ConfigError(
            f"{what} are paths with {here}, and the training data with {there}; make them with "
            "paths(…, like=train), or in a run file with the same scale in both"
        )


def element_quantity(elements: tuple[int, ...]) -> Quantity:
    """The quantity of an atom's element, with the symbols as classes.

    Parameters
    ----------
    elements : tuple of int
        Atomic numbers, ascending.
    """
    return Quantity(ELEMENT, per="node", classes=tuple(SYMBOLS[z] for z in elements))


def inputs_of(
    flow: Flow,
    graph: Graph,
    time: Float[Tensor, "G"],
    *,
    start: Float[Tensor, "N D"] | None = None,
    estimate: Mapping[str, Tensor] | None = None,
) -> Graph:
    """A batch of states with everything that the network reads.

    ``x`` has the time, then for "molecules" the estimated probabilities of the elements, for "conformers" the
    `volumes` of stereocenters, and the columns of `stereo.OF_NODES`, which stay. ``vec`` has the estimated
    way to the end, then for "conformers" the directions in which these volumes grow, for "relaxation" the way
    back to the unrelaxed structure.

    Parameters
    ----------
    flow : Flow
        The declaration.
    graph : Graph
        Positions and elements of the states; for "conformers" with the pairs of `with_graphs`.
    time : Tensor, shape (G,)
        The time of each structure.
    start : Tensor, shape (N, D), optional
        Positions of the unrelaxed structures.
    estimate : mapping of str to Tensor, optional
        ``"way"`` (N, D) and ``"elements"`` (N, K): where the network expected the end before
        (self-conditioning, arXiv 2208.04202). None: zeros.
    """
    pos, estimate = graph.pos, estimate or {}
    columns = [time.to(pos.dtype)[graph.batch, None]]
    vectors: list[Tensor] = []
    if flow.self_conditioning:
        way = estimate.get("way", torch.zeros_like(pos)).to(pos.dtype)
        vectors.append(way * torch.rsqrt(1 + way.square().sum(1, keepdim=True) / FARTHEST**2))
    if flow.task == "molecules" and flow.self_conditioning:
        blank = pos.new_zeros(graph.num_nodes, len(flow.elements))
        columns.append(estimate.get("elements", blank).to(pos.dtype))
    elif flow.task == "conformers":
        from molequi.generative.stereo import OF_NODES, volumes

        volume, growth = volumes(graph)
        assert graph.x is not None
        columns += [volume[:, None], graph.x[:, -len(OF_NODES) :]]
        vectors.append(growth)
    elif start is not None:
        vectors.append(start - pos)
    return graph.replace(x=torch.cat(columns, 1), vec=torch.stack(vectors, 1) if vectors else None)


def estimate_of(flow: Flow, graph: Graph, out: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the network expects at the end, for the next evaluation.

    Parameters
    ----------
    flow : Flow
        The declaration.
    graph : Graph
        The states, with their inputs.
    out : mapping of str to Tensor
        Predictions for them.
    """
    found = {"way": out[VELOCITY].double() * (1 - times_of(graph))[graph.batch, None]}
    if flow.task == "molecules":
        found["elements"] = torch.softmax(out[ELEMENT].double(), 1)
    return found


def times_of(graph: Graph) -> Float[Tensor, "G"]:
    """The time of each structure of a batch.

    Parameters
    ----------
    graph : Graph
        States with their inputs.
    """
    assert graph.x is not None
    time = graph.x.new_zeros(graph.num_graphs)
    time[graph.batch] = graph.x[:, 0]
    return time
