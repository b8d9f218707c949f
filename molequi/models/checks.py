"""Checks of backbones that are not the package's: what they declare, and what they return."""

import inspect
import json
from collections.abc import Mapping

from torch import Tensor

from molequi.errors import ConfigError, ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.models.base import Backbone
from molequi.ops import irreps as ir
from molequi.quantities import Quantity
from molequi.symmetry import group


def check_extensive(backbone: Backbone, quantity: Quantity) -> None:
    """Check that a backbone for point clouds alone is not asked for an extensive quantity.

    Parameters
    ----------
    backbone : Backbone
        Computes the features.
    quantity : Quantity
        What is predicted from them.

    Raises
    ------
    ModelError
        If it is extensive, and the backbone sees whole clouds.
    """
    if backbone.clouds_alone and quantity.extensive:
        name = type(backbone).__name__
        raise ModelError(
            f"predict: {quantity.name!r} is extensive, and {name} sees whole clouds; "
            "take a backbone for atoms, such as PaiNN, or declare a quantity without extensive"
        )


def check_declarations(backbone: Backbone) -> None:
    """Check that a backbone declares its symmetry group and the channels of its features.

    Parameters
    ----------
    backbone : Backbone
        An object of a subclass.

    Raises
    ------
    ModelError
        If `out` or `group` is missing or is nothing that molequi knows.
    """
    name = type(backbone).__name__
    out = getattr(backbone, "out", None)
    if not isinstance(out, Mapping) or not out:
        raise ModelError(
            f"{name}.out: found {out!r}; wanted the number of channels of each irrep that forward "
            'returns, such as self.out = {"0e": 32, "1o": 16} in the constructor'
        )
    for irrep, channels in out.items():
        try:
            ir.parse(irrep)
        except (ValueError, TypeError) as error:
            raise ModelError(
                f"{name}.out: found the key {irrep!r}; wanted a degree and a parity, such as '0e' for "
                "invariants or '1o' for vectors"
            ) from error
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
            raise ModelError(
                f"{name}.out[{irrep!r}]: found {channels!r}; wanted a number of channels, 1 or more"
            )
    declared = getattr(backbone, "group", None)
    try:
        if not isinstance(declared, str):
            raise ConfigError(f"found {declared!r}")
        group(declared, 3)
    except ConfigError as error:
        raise ModelError(
            f"{name}.group: {error}; wanted the name of the symmetry group of the features, such as "
            "group = 'O(n)' for rotations and reflections, in the body of the class"
        ) from error


def check_features(backbone: Backbone, features: object, graph: Graph) -> None:
    """Check that features are what the backbone declares.

    Parameters
    ----------
    backbone : Backbone
        The backbone that returned them.
    features : Features
        What it returned.
    graph : Graph
        Its input.

    Raises
    ------
    ModelError
        If a block of `out` is missing, or has another shape or type.
    """
    name = f"{type(backbone).__name__}.forward"
    if not isinstance(features, Features):
        raise ModelError(
            f"{name}: returned {type(features).__name__}; wanted mq.Features(blocks={{…}}, coordination=…)"
        )
    nodes, dim = graph.num_nodes, graph.pos.shape[-1]
    for irrep, channels in backbone.out.items():
        block = features.blocks.get(irrep)
        if block is None:
            raise ModelError(
                f"{name}: returned blocks {', '.join(features.blocks) or 'none'}; wanted {irrep!r} "
                "too, since out declares it"
            )
        l = ir.parse(irrep)[0]
        wanted = (nodes, channels, 2 * l + 1 if dim == 3 or l == 0 else dim)
        if tuple(block.shape) != wanted or block.dtype != backbone.dtype:
            raise ModelError(
                f"{name}: the block {irrep!r} has the shape {tuple(block.shape)} and the type "
                f"{block.dtype}; wanted (nodes, channels, components) = {wanted} and {backbone.dtype}"
            )
    extra = [irrep for irrep in features.blocks if irrep not in backbone.out]
    if extra:
        raise ModelError(
            f"{name}: returned the block {extra[0]!r}, which out does not declare; add it to self.out"
        )
    coordination = features.coordination
    if not isinstance(coordination, Tensor) or tuple(coordination.shape) != (nodes,):
        found = tuple(coordination.shape) if isinstance(coordination, Tensor) else coordination
        raise ModelError(
            f"{name}: coordination is {found}; wanted the smooth number of neighbors of each node, "
            f"shape ({nodes},), such as edges.coordination"
        )


def check_rebuilding(backbone: Backbone, name: str) -> None:
    """Check that the constructor of a backbone takes its own options as a file holds them.

    Parameters
    ----------
    backbone : Backbone
        An object of a subclass.
    name : str
        Name of its class, for messages.

    Raises
    ------
    ModelError
        If it would refuse them.
    """
    parameters = inspect.signature(type(backbone)).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return  # only the constructor of its parent knows the other options
    try:
        type(backbone).check_options(json.loads(json.dumps(backbone.hparams)))
    except ConfigError as error:
        raise ModelError(
            f"{name} could not be built again from its file, which holds numbers, text, lists and "
            f"mappings: {error}; annotate this argument of the constructor so that it takes what a file "
            "holds, such as Sequence[int] in place of tuple[int, int]"
        ) from error


def check_edges(graph: Graph, cutoff: float | None, k: int | None) -> None:
    """Check that a graph is connected as a model needs it.

    Parameters
    ----------
    graph : Graph
        A batch of structures.
    cutoff : float or None
        Distance in Å up to which the model looks; None: all pairs.
    k : int or None
        Number of nearest neighbors that it sees; None: all within the cutoff.

    Raises
    ------
    ModelError
        If it has no edges, or was connected with a shorter cutoff or another k.
    """
    how = f"{cutoff}" if k is None else f"{cutoff}, k={k}"
    if graph.edge_index is None:
        raise ModelError(f"the graph has no edges yet; call connect(graph, {how}) first")
    if graph.cutoff is not None and graph.k != k:
        raise ModelError(
            f"the graph was connected with k={graph.k} and this model has k={k}; call connect(graph, {how})"
        )
    reach = float("inf") if cutoff is None else cutoff
    if graph.cutoff is not None and graph.cutoff < reach - 1e-9:
        raise ModelError(
            f"the graph was connected up to {graph.cutoff} Å and this model looks up to {reach} Å; "
            f"call connect(graph, {how})"
        )
