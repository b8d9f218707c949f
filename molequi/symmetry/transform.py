"""How elements of a group act on graphs, features and quantities: one implementation for all of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.types import Device

from molequi.errors import DataError
from molequi.features import Features
from molequi.graph import FIELDS, Graph
from molequi.ops.irreps import wigner
from molequi.quantities import Quantity
from molequi.symmetry.groups import Group


@runtime_checkable
class Geometric(Protocol):
    """How a value transforms: attributes of `molequi.graph.Field` and `molequi.quantities.Quantity`."""

    @property
    def per(self) -> str:
        """What has one row each: "node" or "graph"."""

    @property
    def rank(self) -> int:
        """Number of spatial axes, which are the last axes of the value."""

    @property
    def pseudo(self) -> bool:
        """Whether a reflection adds a sign."""

    @property
    def point(self) -> bool:
        """Whether the value is a position, which moves with a translation."""


@dataclass(frozen=True, kw_only=True)
class Transform:
    """Elements of a group, one for each graph of a batch or one for all of them.

    An element g = (R, t, π) moves node i to x_i → R x_i + t; then node k of the result is node π[k] of the
    original. A tensor of rank r transforms as T_ab… → R_aa' R_bb' … T_a'b'…, a pseudotensor with an
    additional factor det R. An attribute that is None is the identity.

    Parameters
    ----------
    rotations : Tensor, shape (G, D, D) or (1, D, D)
        Orthogonal matrices, proper or not. A single one acts on all graphs.
    translations : Tensor, shape (G, D) or (1, D)
        Translations in Å. A single one acts on all graphs.
    permutation : Tensor, shape (N,)
        New order of the nodes of the batch; each node stays in its graph.

    Examples
    --------
    >>> half_turn = Transform.single(torch.diag(torch.tensor([-1.0, -1.0, 1.0])))
    >>> half_turn.graph(Graph.single([[1, 2, 3]], ["H"])).pos.tolist()
    [[-1.0, -2.0, 3.0]]
    """

    rotations: Float[Tensor, "G D D"] | None = None
    translations: Float[Tensor, "G D"] | None = None
    permutation: Int[Tensor, "N"] | None = None

    @classmethod
    def single(
        cls,
        rotation: Float[Tensor, "D D"] | None = None,
        translation: Float[Tensor, "D"] | None = None,
        permutation: Int[Tensor, "N"] | None = None,
    ) -> "Transform":
        """One element that acts on all graphs of a batch.

        Parameters
        ----------
        rotation : Tensor, shape (D, D)
            Orthogonal matrix, proper or not.
        translation : Tensor, shape (D,)
            Translation in Å.
        permutation : Tensor, shape (N,)
            New order of the nodes.

        Returns
        -------
        Transform
            The element.
        """
        return cls(
            rotations=None if rotation is None else rotation[None],
            translations=None if translation is None else translation[None],
            permutation=permutation,
        )

    @classmethod
    def random(
        cls, group: Group, count: int = 1, *, proper: bool, generator: torch.Generator | None = None
    ) -> "Transform":
        """Random rotations or reflections of a group, from the uniform (Haar) measure.

        Parameters
        ----------
        group : Group
            For instance ``group("O(3)")``.
        count : int
            Number of elements: one for each graph of a batch, or 1.
        proper : bool
            True for rotations, False for elements with a reflection.
        generator : torch.Generator
            Source of random numbers.

        Returns
        -------
        Transform
            Elements without translations and permutations.

        Raises
        ------
        ConfigError
            If the group has no reflections and they are asked for.
        """
        drawn = [group.sample(proper=proper, generator=generator) for _ in range(count)]
        return cls(rotations=torch.stack(drawn))

    @property
    def proper(self) -> Bool[Tensor, "G"]:
        """Whether each element is without reflection."""
        if self.rotations is None:
            return torch.ones(1, dtype=torch.bool)
        return torch.linalg.det(self.rotations) > 0

    def to(self, device: Device) -> "Transform":
        """A copy on another device.

        Parameters
        ----------
        device : str or torch.device
            For instance "cpu" or "cuda:0".

        Returns
        -------
        Transform
            The copy.
        """
        return Transform(
            **{name: None if value is None else value.to(device) for name, value in vars(self).items()}
        )

    def inverse(self) -> "Transform":
        """The elements that undo these, x → Rᵀ (x - t). Only without a permutation.

        Returns
        -------
        Transform
            The inverse elements.

        Raises
        ------
        DataError
            If there is a permutation, because the order of the two steps then matters.
        """
        if self.permutation is not None:
            raise DataError("the inverse of a transform with a permutation; invert its parts one by one")
        back = None if self.rotations is None else self.rotations.transpose(1, 2)
        shifts = None if self.translations is None else -self.translations
        if back is not None and shifts is not None:
            shifts = (back @ shifts[..., None]).squeeze(-1)
        return Transform(rotations=back, translations=shifts)

    def graph(
        self, graph: Graph, quantities: Mapping[str, Quantity] | None = None, *, keep_edges: bool = True
    ) -> Graph:
        """The transformed batch.

        Parameters
        ----------
        graph : Graph
            With or without edges.
        quantities : mapping
            Quantities by name whose targets are transformed, too. All other targets are dropped.
        keep_edges : bool
            Whether to keep the edges, which an isometry does not change. False drops them, for a new neighbor
            search.

        Returns
        -------
        Graph
            All fields are transformed as `molequi.graph.FIELDS` says.

        Raises
        ------
        DataError
            If the number of elements is neither 1 nor that of the graphs, or if nodes of a regular graph are
            to be permuted.
        """
        if not keep_edges:
            graph = graph.without("edge")
        changed = {
            name: self._acted(FIELDS[name], value, graph)
            for name, value in graph.values("node", "graph").items()
        }
        targets = {
            name: self.value(quantities[name], value, graph)
            for name, value in graph.targets.items()
            if quantities is not None and name in quantities
        }
        moved = graph.replace(**changed, targets=targets)
        return moved if self.permutation is None else _renumbered(moved, self.permutation)

    def features(self, features: Features, graph: Graph | None = None) -> Features:
        """The features of the transformed graph, from those of the graph: D(g) acts on every irrep.

        Parameters
        ----------
        features : Features
            In D ≠ 3 dimensions "0e" and "1o" alone.
        graph : Graph
            The graph before the transform. Not needed for a single element.

        Returns
        -------
        Features
            The transformed features.
        """
        order = slice(None) if self.permutation is None else self.permutation
        blocks = {}
        for irrep, block in features.blocks.items():
            if self.rotations is not None and irrep != "0e":
                matrices = torch.stack([r if irrep == "1o" else wigner(irrep, r) for r in self.rotations])
                block = block @ self._rows(matrices.to(block), "node", graph).transpose(-1, -2)
            blocks[irrep] = block[order]
        return Features(blocks=blocks, coordination=features.coordination[order])

    def value(self, quantity: Quantity, value: Tensor, graph: Graph | None = None) -> Tensor:
        """The value of a quantity for the transformed graph, from its value for the graph.

        Parameters
        ----------
        quantity : Quantity
            Its rank, parity and place (per node or graph) say how the value transforms.
        value : Tensor, shape (rows, …, D, …, D)
            The value for `graph`. A single element needs no axis of rows for a quantity per graph.
        graph : Graph
            The graph before the transform. Not needed for a single element.

        Returns
        -------
        Tensor
            The transformed value.
        """
        return self._acted(quantity, value, graph)

    def _rows(self, elements: Tensor, per: str, graph: Graph | None) -> Tensor:
        """What belongs to each row of a value; a single element has no axis of rows."""
        if len(elements) == 1:
            return elements[0]
        if graph is None or len(elements) != graph.num_graphs:
            found = "no graph" if graph is None else f"{graph.num_graphs} graphs"
            raise DataError(f"{len(elements)} elements of a group act on {found}; wanted one for each graph")
        return elements if per == "graph" else elements[graph.batch]

    def _acted(self, what: Geometric, value: Tensor, graph: Graph | None) -> Tensor:
        """G · value, by rank, parity and place."""
        if self.rotations is not None and (what.rank or what.pseudo):
            elements = self.rotations.to(value)
            rotation = self._rows(elements, what.per, graph)
            for axis in range(value.ndim - what.rank, value.ndim):
                value = _along(rotation, value, axis)
            if what.pseudo:
                sign = self._rows(torch.linalg.det(elements).sign(), what.per, graph)
                value = value * sign.reshape(-1, *[1] * (value.ndim - 1)) if sign.ndim else value * sign
        if what.point and self.translations is not None:
            value = value + self._rows(self.translations.to(value), what.per, graph)
        return value if what.per == "graph" or self.permutation is None else value[self.permutation]


def infinitesimal(
    what: Geometric,
    value: Tensor,
    *,
    matrix: Float[Tensor, "D D"] | None = None,
    vector: Float[Tensor, "D"] | None = None,
) -> Tensor:
    """The derivative at h = 0 of the action of exp(h ξ) on a value: x → x + h (K x + t) for positions.

    Parameters
    ----------
    what : Field or Quantity
        Its rank says how the value transforms, and whether it is a position.
    value : Tensor, shape (…, D, …, D)
        The last axes are those of space.
    matrix : Tensor, shape (D, D)
        Antisymmetric matrix K of an infinitesimal rotation.
    vector : Tensor, shape (D,)
        Infinitesimal translation t.

    Returns
    -------
    Tensor
        The derivative, of the shape of the value.
    """
    change = torch.zeros_like(value)
    if matrix is not None:
        for axis in range(value.ndim - what.rank, value.ndim):
            change = change + _along(matrix.to(value), value, axis)
    if vector is not None and what.point:
        change = change + vector.to(value)
    return change


def _along(rotation: Tensor, value: Tensor, axis: int) -> Tensor:
    """A matrix (D, D), or one for each row (rows, D, D), applied to one axis of a value."""
    if rotation.ndim == 2:
        return (value.movedim(axis, -1) @ rotation.T).movedim(-1, axis)
    moved = value.movedim(axis, 1)
    columns = moved.reshape(*moved.shape[:2], math.prod(moved.shape[2:]))
    return (rotation @ columns).reshape(moved.shape).movedim(1, axis)


def _renumbered(graph: Graph, permutation: Int[Tensor, "N"]) -> Graph:
    """Pairs and edges of a graph whose nodes have been permuted; the edges in the order of a neighbor
    search.
    """
    if graph.real is not None:
        raise DataError("a permutation of a regular graph; permute it before molequi.regular_graphs.regular")
    place = permutation.argsort()
    changed: dict[str, Tensor] = {}
    if graph.pair_index is not None:
        changed["pair_index"] = place[graph.pair_index]
    if graph.edge_index is not None:
        edges = place[graph.edge_index]
        order = (edges[1] * graph.num_nodes + edges[0]).argsort(stable=True)
        changed["edge_index"] = edges[:, order]
        changed |= {name: value[order] for name, value in graph.values("edge").items()}
    return graph.replace(**changed)
