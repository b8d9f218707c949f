"""What a model says of a structure, or what passes through one of its layers, as a function that can be followed over turned copies."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molequi.audit.foreign import as_auditable
from molequi.audit.study import NODES_AT_ONCE, structures_of
from molequi.errors import ConfigError, DataError, ModelError, did_you_mean
from molequi.graph import Graph, collate
from molequi.model import Model
from molequi.neighbors import connect

CONSTANT = 1e-12  # a change relative to the value that is none


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A function of batches of structures in float64, with rows for each node, edge or graph, and the structures that it is tried on.

    call: from a Graph to a tensor of as many rows for each of its structures. graphs: single ones, connected if the function needs it.
    """

    name: str
    call: Callable[[Graph], Tensor]
    graphs: tuple[Graph, ...]

    @property
    def dim(self) -> int:
        return self.graphs[0].dim

    @torch.no_grad()
    def orbit(self, graph: Graph, matrices: Float[Tensor, "Q D D"]) -> Float[Tensor, "Q rows width"]:
        """The function of a structure under each of Q linear maps of space; the edges stay those of the structure."""
        found = []
        for part in matrices.split(max(1, NODES_AT_ONCE // graph.num_nodes)):
            value = self.call(_mapped(graph, part)).detach().to("cpu", torch.float64)
            if value.ndim == 0 or value.shape[0] % len(part):
                raise ModelError(
                    f"{self.name}: {len(part)} structures gave a tensor of shape {tuple(value.shape)}; wanted as many rows for each, "
                    "of its nodes, its edges, or one"
                )
            found.append(value.reshape(len(part), value.shape[0] // len(part), value[0].numel()))
        out = torch.cat(found)
        if not bool(torch.isfinite(out).all()):
            raise ModelError(
                f"{self.name}: not finite for turned copies of a structure; wanted finite numbers"
            )
        return out

    def control(self, seed: int = 0) -> float:
        """Relative change, in the root mean square, under a deformation of space that keeps neither lengths nor volumes; DataError where
        nothing changes: of such a function all symmetries hold and none means anything.
        """
        generator = torch.Generator().manual_seed(seed)
        change = torch.randn(self.dim, self.dim, generator=generator, dtype=torch.float64)
        still = torch.eye(self.dim, dtype=torch.float64)
        both = torch.stack([still, still + 0.2 * change / change.norm()])
        changed = [self.orbit(g, both) for g in self.graphs]
        size = float(torch.cat([c.flatten() for c in changed]).square().mean().sqrt())
        change = float(torch.cat([(c[1] - c[0]).flatten() for c in changed]).square().mean().sqrt())
        if not change > CONSTANT * size:
            raise DataError(
                f"{self.name}: {'zero' if size == 0 else 'the same'} however the structures are deformed, so that every symmetry holds "
                "and none says anything; wanted a function that depends on the positions"
            )
        return change / size


def _mapped(graph: Graph, matrices: Float[Tensor, "Q D D"]) -> Graph:
    """A batch of one structure under several linear maps, with its edges; cells, velocities and given vectors are mapped too."""
    many = collate([graph] * len(matrices))
    each = matrices.to(graph.pos)
    of_node = each[many.batch]

    def image(value):
        return None if value is None else torch.einsum("nij,n...j->n...i", of_node, value.to(of_node.dtype))

    cell = None if many.cell is None else many.cell @ each.transpose(1, 2)
    return many.replace(pos=image(many.pos), vel=image(many.vel), vec=image(many.vec), cell=cell, targets={})


def probe(
    subject: nn.Module | Callable[[Graph], Tensor], structures, of: str | None = None, *, limit: int = 64
) -> Probe:
    """The probe of a model at `of`, or of a plain function.

    subject: a model, of which a float64 copy in eval mode is asked, an ASE calculator, a `Declared` module, or any function from a Graph (a
    batch) to a tensor with rows for each node, edge or graph, which gets Graphs as they are given, with their edges. of: a quantity that
    the model predicts, "features" for all that its backbone gives, an irrep of these ("0e", "1o"), or the name of a module as in
    `named_modules`, whose output is caught; None for a function. structures: whatever `audit` takes; at most `limit` are used, spread
    evenly. Raises ConfigError for names that are not there.
    """
    if hasattr(subject, "implemented_properties"):
        subject = as_auditable(subject)
    if not isinstance(subject, nn.Module):
        if of is not None or not callable(subject):
            raise ConfigError(
                f"of={of!r} of a {type(subject).__name__}: names belong to models; a function is probed as it is, without `of`"
            )
        return Probe(
            name=getattr(subject, "__name__", "function"),
            call=subject,
            graphs=tuple(given(structures, limit)),
        )
    model, graphs = plain(subject, structures, limit)
    return Probe(name=of or "features", call=_reader(model, of or "features"), graphs=tuple(graphs))


def given(structures, limit: int) -> list[Graph]:
    """Structures for a function: Graphs as they are, with their edges, others as they are read; at most `limit`, spread evenly."""
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


def plain(model: nn.Module, structures, limit: int) -> tuple[nn.Module, list[Graph]]:
    """A float64 copy of a model on the CPU, in eval mode and not compiled, and structures connected as it sees them."""
    if not hasattr(model, "cutoff"):
        as_auditable(model)  # says what is missing
    model = copy.deepcopy(model).cpu().double().eval()
    for module in model.modules():
        if isinstance(module, Model):  # members of an ensemble too
            module.use_program(None)  # compiled code has no layers to look into
    graphs = structures_of(structures, limit)[0]
    if getattr(model, "sees_edges", True):
        graphs = [connect(g, model.cutoff, getattr(model, "k", None)) for g in graphs]
    return model, graphs


def _reader(model: nn.Module, of: str) -> Callable[[Graph], Tensor]:
    quantities = dict(getattr(model, "quantities", {}))
    backbone = getattr(model, "backbone", model)
    blocks = dict(getattr(backbone, "out", {}))
    modules = {name: module for name, module in model.named_modules() if name}
    if of in quantities:
        return lambda graph: model(graph)[of]
    if of == "features" and blocks:
        return lambda graph: backbone(graph).flat()
    if of in blocks:
        return lambda graph: backbone(graph).blocks[of]
    if of in modules:
        return lambda graph: _caught(model, modules[of], of, graph)
    known = [*quantities, *(["features", *blocks] if blocks else []), *modules]
    raise ConfigError(f"of={of!r}: the model has no such quantity, irrep or module{did_you_mean(of, known)}")


def _caught(model: nn.Module, module: nn.Module, name: str, graph: Graph) -> Tensor:
    """Output of a module while the model runs: its last one if it is called several times; of several tensors, side by side."""
    with outputs_of([module]) as seen:
        model(graph)
    if not seen:
        raise ModelError(f"of={name!r}: the module was not called; name one that runs when the model does")
    value = seen[-1]
    parts = [v for v in (value if isinstance(value, (tuple, list)) else [value]) if isinstance(v, Tensor)]
    parts = list(value.blocks.values()) if not parts and hasattr(value, "blocks") else parts
    if not parts or any(p.ndim == 0 or len(p) != len(parts[0]) for p in parts):
        raise ModelError(
            f"of={name!r}: the module returns {type(value).__name__}; wanted a tensor, or tensors with the same number of rows"
        )
    return torch.cat([p.flatten(1) if p.ndim > 1 else p[:, None] for p in parts], dim=1)


@contextmanager
def outputs_of(modules: Sequence[nn.Module]) -> Iterator[list]:
    """What these modules return while the context is open, in order."""
    seen: list = []
    handles = [m.register_forward_hook(lambda module, given, out: seen.append(out)) for m in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
