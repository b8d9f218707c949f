"""The arguments of a compiled function: weights of a model, and tensors of a regular graph."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from molequi.graph import Graph, fields_per

Table = dict[str, Tensor | None]


class ModelState(NamedTuple):
    """What a compiled function takes from a model, and what decides whether it may be used.

    Attributes
    ----------
    tensors : list of Tensor
        Parameters and buffers of all modules.
    training : tuple of bool
        Which modules are in training mode.
    hooked : bool
        Whether a module inside the model has hooks, which a compiled function would not call.
    """

    tensors: list[Tensor]
    training: tuple[bool, ...]
    hooked: bool


def all_modules(model: nn.Module) -> list[nn.Module]:
    """All modules, each once.

    This is faster than `named_parameters`, which would be called in each step.

    Parameters
    ----------
    model : nn.Module
        The model itself is the first of them.
    """
    found: dict[int, nn.Module] = {}
    waiting: list[nn.Module | None] = [model]
    while waiting:
        module = waiting.pop()
        if module is not None and id(module) not in found:
            found[id(module)] = module
            waiting += module._modules.values()
    return list(found.values())


def places(modules: Sequence[nn.Module]) -> list[tuple[Table, str]]:
    """Where parameters and buffers are stored: the table of a module, and the name in it.

    Parameters
    ----------
    modules : sequence of nn.Module
        As `all_modules` gives them.
    """
    return [
        (table, name)
        for module in modules
        for table in (cast(Table, module._parameters), module._buffers)
        for name, value in table.items()
        if value is not None
    ]


def state_of(model: nn.Module) -> ModelState:
    """Parameters, buffers and modes of a model.

    Parameters
    ----------
    model : nn.Module
        The model.
    """
    modules = all_modules(model)
    hooked = any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
        for m in modules[1:]
    )
    tensors = [cast(Tensor, table[name]) for table, name in places(modules)]
    return ModelState(tensors, tuple(m.training for m in modules), hooked)


def tensors_of(graph: Graph) -> dict[str, Tensor]:
    """The tensors of a regular graph by name; those of edges have the shape (N, degree, …).

    Parameters
    ----------
    graph : Graph
        A regular graph, see `molequi.regular_graphs.regular`.
    """
    assert graph.edge_index is not None and graph.real is not None
    edges = graph.real.shape
    out = graph.values("node", "graph") | {"batch": graph.batch, "real": graph.real}
    if graph.reverse is not None:
        out["reverse"] = graph.reverse
    out["sender"] = graph.edge_index[0].reshape(edges)
    out |= {n: value.reshape(*edges, *value.shape[1:]) for n, value in graph.values("edge").items()}
    return out | {"graphs": graph.pos.new_empty(graph.num_graphs)}


def graph_of(tensors: dict[str, Tensor], k: int | None) -> Graph:
    """The regular graph of these tensors, the inverse of `tensors_of`.

    Parameters
    ----------
    tensors : dict of str to Tensor
        They are taken out of the dictionary.
    k : int or None
        Number of nearest neighbors, as in `Graph`.
    """
    graphs, sender = tensors.pop("graphs"), tensors.pop("sender")
    receiver = torch.arange(sender.shape[0], device=sender.device)[:, None].expand(sender.shape)
    flat = {name: tensors.pop(name).flatten(0, 1) for name in fields_per("edge") if name in tensors}
    edge_index = torch.stack([sender.flatten(), receiver.flatten()])
    return Graph(
        pos=tensors.pop("pos"),
        z=tensors.pop("z"),
        batch=tensors.pop("batch"),
        num_graphs=graphs.shape[0],
        edge_index=edge_index,
        cutoff=float("inf"),
        k=k,
    ).replace(**tensors, **flat)
