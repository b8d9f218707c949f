"""Outputs of models, and of their layers, as functions that are evaluated on transformed structures."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molequi.audit.foreign import as_auditable
from molequi.audit.study import NODES_AT_ONCE, structures_of
from molequi.errors import ConfigError, DataError, ModelError, did_you_mean
from molequi.graph import Graph, collate
from molequi.model import Model
from molequi.neighbors import connect

NO_CHANGE = 1e-12  # relative to the value


@dataclass(frozen=True, kw_only=True)
class StructureFunction:
    """A function of structures in float64, and the structures on which it is evaluated.

    Attributes
    ----------
    name : str
        Name for reports.
    function : callable
        Takes a Graph with several structures; returns a tensor with equally many rows for each of them: one
        for each node or edge, or one in all.
    graphs : tuple of Graph
        Single structures, connected if the function needs edges.
    """

    name: str
    function: Callable[[Graph], Tensor]
    graphs: tuple[Graph, ...]

    @property
    def dim(self) -> int:
        """Number of dimensions of space."""
        return self.graphs[0].dim

    @torch.no_grad()
    def on_orbit(self, graph: Graph, matrices: Float[Tensor, "Q D D"]) -> Float[Tensor, "Q rows width"]:
        """Values for a structure under each of Q linear maps of space, with unchanged edges.

        Parameters
        ----------
        graph : Graph
            One structure.
        matrices : Tensor, shape (Q, D, D)
            Linear maps of space.

        Returns
        -------
        Tensor, shape (Q, rows, width)
            The values in float64.

        Raises
        ------
        ModelError
            If values are not finite, or have the wrong number of rows.
        """
        found = []
        for part in matrices.split(max(1, NODES_AT_ONCE // graph.num_nodes)):
            value = self.function(_mapped(graph, part)).detach().to("cpu", torch.float64)
            if value.ndim == 0 or value.shape[0] % len(part):
                raise ModelError(
                    f"{self.name}: a batch of {len(part)} structures gave a tensor of shape "
                    f"{tuple(value.shape)}; wanted the same number of rows for each: one for each node or "
                    "edge, or one in all"
                )
            found.append(value.reshape(len(part), value.shape[0] // len(part), value[0].numel()))
        out = torch.cat(found)
        if not bool(torch.isfinite(out).all()):
            raise ModelError(f"{self.name}: not finite for a transformed structure; wanted finite numbers")
        return out

    def deformation_change(self, seed: int = 0) -> float:
        """Relative RMS change under a random deformation, which is no symmetry of space.

        This is the control of all measures: every symmetry of a constant function holds.

        Parameters
        ----------
        seed : int
            Seed of the deformation.

        Returns
        -------
        float
            RMS change over RMS value.

        Raises
        ------
        DataError
            If the function does not change.
        """
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(self.dim, self.dim, generator=generator, dtype=torch.float64)
        identity = torch.eye(self.dim, dtype=torch.float64)
        both = torch.stack([identity, identity + 0.2 * direction / direction.norm()])
        values = [self.on_orbit(g, both) for g in self.graphs]
        size = float(torch.cat([v.flatten() for v in values]).square().mean().sqrt())
        change = float(torch.cat([(v[1] - v[0]).flatten() for v in values]).square().mean().sqrt())
        if not change > NO_CHANGE * size:
            raise DataError(
                f"{self.name}: {'zero' if size == 0 else 'the same'} for all deformations of the "
                "structures, so "
                "that every symmetry holds trivially; wanted a function that depends on the positions"
            )
        return change / size


def _mapped(graph: Graph, matrices: Float[Tensor, "Q D D"]) -> Graph:
    """A batch of one structure under several linear maps; they act on cells and all vectors too."""
    batch = collate([graph] * len(matrices))
    each = matrices.to(graph.pos)
    per_node = each[batch.batch]

    def image(value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        return torch.einsum("nij,n...j->n...i", per_node, value.to(per_node.dtype))

    cell = None if batch.cell is None else batch.cell @ each.transpose(1, 2)
    return batch.replace(
        pos=image(batch.pos), vel=image(batch.vel), vec=image(batch.vec), cell=cell, targets={}
    )


def structure_function(
    model: Any, structures: Any, output: str | None = None, *, limit: int = 64
) -> StructureFunction:
    """An output of a model, or a plain function, together with structures.

    Parameters
    ----------
    model : torch.nn.Module, ASE calculator or callable
        A model (a float64 copy in eval mode is used), a calculator, a `Declared` module, or a function from a
        Graph with several structures to a tensor with rows for each node, edge or structure. A function gets
        Graphs as they are given, with their edges.
    structures : Graph, list of Graph, Dataset, path, …
        Whatever `audit` accepts.
    output : str, optional
        A quantity that the model predicts, "features" for all output features of its backbone, an irrep of
        these ("0e", "1o"), or the name of a module as in `named_modules`, whose output is recorded. None for
        a function.
    limit : int
        Largest number of structures, evenly spaced.

    Returns
    -------
    StructureFunction
        The function and the structures.

    Raises
    ------
    ConfigError
        If the model has no such output.
    """
    if hasattr(model, "implemented_properties"):
        model = as_auditable(model)
    if not isinstance(model, nn.Module):
        if output is not None or not callable(model):
            raise ConfigError(
                f"output={output!r} of a {type(model).__name__}: only models have named outputs; leave "
                "`output` "
                "out for a function"
            )
        name = getattr(model, "__name__", "function")
        graphs = structures_of_function(structures, limit)
        return StructureFunction(name=name, function=model, graphs=tuple(graphs))
    copied, graphs = reference_copy(model, structures, limit)
    name = output or "features"
    return StructureFunction(name=name, function=_output_function(copied, name), graphs=tuple(graphs))


def structures_of_function(structures: Any, limit: int) -> list[Graph]:
    """Structures for a plain function: Graphs with the edges they have; other formats are read."""
    structures = [structures] if isinstance(structures, Graph) else structures
    if not (
        isinstance(structures, Sequence) and len(structures) and all(isinstance(g, Graph) for g in structures)
    ):
        return structures_of(structures, limit)[0]
    if limit < 1:
        raise ConfigError(f"limit={limit}: wanted at least one structure")
    count = len(structures)
    return [
        structures[(k * count) // limit if count > limit else k].replace(targets={})
        for k in range(min(count, limit))
    ]


def reference_copy(model: nn.Module, structures: Any, limit: int) -> tuple[nn.Module, list[Graph]]:
    """A float64 copy of a model on the CPU, in eval mode and not compiled, and connected structures."""
    if not hasattr(model, "cutoff"):
        as_auditable(model)  # raises an error that says what is missing
    model = copy.deepcopy(model).cpu().double().eval()
    for module in model.modules():
        if isinstance(module, Model):  # also the members of an ensemble
            module.use_program(None)  # the layers of compiled code cannot be recorded
    graphs = structures_of(structures, limit, model)[0]
    if getattr(model, "sees_edges", True):
        cutoff: Any = model.cutoff
        graphs = [connect(g, cutoff, getattr(model, "k", None)) for g in graphs]
    return model, graphs


def _output_function(model: nn.Module, output: str) -> Callable[[Graph], Tensor]:
    quantities = dict(getattr(model, "quantities", {}))
    backbone = getattr(model, "backbone", model)
    blocks = dict(getattr(backbone, "out", {}))
    modules = {name: module for name, module in model.named_modules() if name}
    if output in quantities:
        return lambda graph: model(graph)[output]
    if output == "features" and blocks:
        return lambda graph: backbone(graph).flat()
    if output in blocks:
        return lambda graph: backbone(graph).blocks[output]
    if output in modules:
        return lambda graph: _module_output(model, modules[output], output, graph)
    known = [*quantities, *(["features", *blocks] if blocks else []), *modules]
    raise ConfigError(
        f"output={output!r}: the model has no such quantity, irrep or module{did_you_mean(output, known)}"
    )


def _module_output(model: nn.Module, module: nn.Module, name: str, graph: Graph) -> Tensor:
    """Output of a module in its last call while the model runs; several tensors are concatenated."""
    with record_outputs([module]) as recorded:
        model(graph)
    if not recorded:
        raise ModelError(
            f"output={name!r}: the module was not called; name one that runs when the model does"
        )
    value = recorded[-1]
    parts = [v for v in (value if isinstance(value, (tuple, list)) else [value]) if isinstance(v, Tensor)]
    parts = list(value.blocks.values()) if not parts and hasattr(value, "blocks") else parts
    if not parts or any(p.ndim == 0 or len(p) != len(parts[0]) for p in parts):
        raise ModelError(
            f"output={name!r}: the module returns {type(value).__name__}; wanted a tensor, or tensors with "
            "the "
            "same number of rows"
        )
    return torch.cat([p.flatten(1) if p.ndim > 1 else p[:, None] for p in parts], dim=1)


@contextmanager
def record_outputs(modules: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """Record what these modules return while the context is open, in the order of the calls."""
    recorded: list[Any] = []
    handles = [m.register_forward_hook(lambda module, args, out: recorded.append(out)) for m in modules]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
