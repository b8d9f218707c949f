"""Graph: a batch of structures. One structure is a batch of one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.types import Device

from molequi.errors import DataError, ImmutableError, did_you_mean
from molequi.graph.checks import as_tensor, checked_fields, checked_lattice, checked_pairs, checked_rows
from molequi.graph.fields import FIELDS, Per, fields_per
from molequi.graph.summary import html, one_line
from molequi.ops.regular import gather
from molequi.quantities import SYMBOLS, atomic_number
from molequi.util.signature import check_keywords

FAR = 1000.0  # Å in each direction: length of the edges that pad a regular graph


@check_keywords()
@dataclass(frozen=True, kw_only=True)
class Graph:
    """N nodes, E edges and G graphs in D dimensions.

    An edge sends from j (row 0 of ``edge_index``) to i (row 1); edges are sorted by receiver. ``edge_index``
    is None until `molequi.neighbors.connect` has searched the neighbors. Positions and cells are float64 and
    stay so: a model casts *differences* of positions to its own precision.

    What each field means (unit, rank, padding) is in `molequi.graph.FIELDS`. Fields declared by `add_field`
    are attributes too.

    Parameters
    ----------
    pos : Tensor, shape (N, D)
        Positions, in Å for molecules.
    z : Tensor, shape (N,)
        Atomic numbers; 0 is a plain point.
    batch : Tensor, shape (N,)
        Graph of each node, ascending.
    num_graphs : int
        Number of graphs G.
    edge_index : Tensor, shape (2, E)
        Sender and receiver of each edge.
    shift : Tensor, shape (E, D)
        Lattice steps added to the sender; None without periodicity.
    cutoff : float
        Distance (Å) up to which neighbors were searched; inf for all pairs.
    k : int
        Edges come from the k nearest nodes; None: from all within the cutoff.
    cell : Tensor, shape (G, D, D)
        Lattice vectors as rows, as in ASE.
    pbc : Tensor, shape (G, D)
        Periodic directions; None for none.
    vel : Tensor, shape (N, D)
        Velocities.
    vec : Tensor, shape (N, V, D)
        Vectors of each node, such as surface normals.
    x : Tensor, shape (N, F)
        Invariant features of each node.
    pair_index : Tensor, shape (2, B)
        Pairs of nodes with features, each pair in both directions.
    pair_attr : Tensor, shape (B, A)
        Invariant features of these pairs, such as the type of a bond.
    edge_attr : Tensor, shape (E, A)
        The features of pairs on the edges, made by `connect`; 0 for other pairs.
    real : Tensor, shape (N, degree)
        In a regular graph (`molequi.regular_graphs.regular`): False for edges that are padding.
    reverse : Tensor, shape (N, degree)
        In a regular graph: the edge in the other direction. A padding edge is its own reverse.
    charge : Tensor, shape (G,)
        Total charge in e.
    spin : Tensor, shape (G,)
        Spin multiplicity.
    level : Tensor, shape (G,)
        Number of the level of theory, in the order of `Model.levels`; `fit` sets it from the names that the
        data have.
    targets : dict
        Labels by the name of their quantity; NaN where unknown.
    more : mapping
        Values of the fields declared by `add_field`, by name. Each is an attribute, too.
    """

    pos: Float[Tensor, "N D"]
    z: Int[Tensor, "N"]
    batch: Int[Tensor, "N"]
    num_graphs: int
    edge_index: Int[Tensor, "2 E"] | None = None
    shift: Float[Tensor, "E D"] | None = None
    cutoff: float | None = None
    k: int | None = None
    cell: Float[Tensor, "G D D"] | None = None
    pbc: Bool[Tensor, "G D"] | None = None
    vel: Float[Tensor, "N D"] | None = None
    vec: Float[Tensor, "N V D"] | None = None
    x: Float[Tensor, "N F"] | None = None
    pair_index: Int[Tensor, "2 B"] | None = None
    pair_attr: Float[Tensor, "B A"] | None = None
    edge_attr: Float[Tensor, "E A"] | None = None
    real: Bool[Tensor, "N degree"] | None = None
    reverse: Int[Tensor, "N degree"] | None = None
    charge: Float[Tensor, "G"] | None = None
    spin: Float[Tensor, "G"] | None = None
    level: Int[Tensor, "G"] | None = None
    targets: dict[str, Tensor] = field(default_factory=dict)
    more: Mapping[str, Tensor] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Tensor | None:
        # Called for names that are not attributes of the class: fields declared by add_field.
        if name in FIELDS:
            return self.__dict__.get("more", {}).get(name)
        known = "" if name.startswith("_") else did_you_mean(name, FIELDS)
        raise AttributeError(f"a Graph has no field {name!r}{known}")

    @classmethod
    def single(
        cls,
        pos: object,
        z: object = None,
        *,
        cell: object = None,
        pbc: object = None,
        targets: Mapping[str, Tensor] | None = None,
        pair_index: object = None,
        **values: object,
    ) -> "Graph":
        """One structure from arrays, lists or tensors.

        Parameters
        ----------
        pos : array, shape (N, D)
            Positions, N >= 1.
        z : sequence, shape (N,)
            Chemical symbols or atomic numbers. None for plain points.
        cell : array, shape (D, D)
            Lattice vectors as rows.
        pbc : bool or array, shape (D,)
            Periodic directions.
        targets : mapping
            Labels by name, used as they are: (1, …) per graph, (N, …) per node.
        pair_index : array, shape (2, B)
            Pairs of nodes whose features are given as ``pair_attr``; each pair in both directions.
        **values
            Other fields by name, without an axis of graphs: ``charge=1``, ``vel`` (N, D), ``efield`` (D,)
            after ``add_field``.

        Returns
        -------
        Graph
            A batch of one structure, without edges.

        Raises
        ------
        DataError
            If a field is unknown, a shape is wrong, a number is not finite, or a periodic direction has no
            lattice vector.

        Examples
        --------
        >>> water = Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"], charge=1)
        >>> water.num_nodes, water.charge.tolist()
        (3, [1.0])
        """
        pos = as_tensor(pos, torch.float64, "pos")
        if pos.ndim != 2 or pos.shape[1] == 0:
            raise DataError(f"positions of shape {tuple(pos.shape)}; wanted (N, D)")
        n, dim = pos.shape
        if n == 0:
            raise DataError("a structure without atoms; wanted at least one")
        if isinstance(z, np.ndarray) and z.dtype.kind in "UO":
            z = z.tolist()
        if isinstance(z, (list, tuple)):
            z = [atomic_number(element) for element in z]
        z = torch.zeros(n, dtype=torch.int64) if z is None else _whole(as_tensor(z, None, "z"))
        if z.shape != (n,):
            raise DataError(f"atomic numbers of shape {tuple(z.shape)} for {n} positions; wanted ({n},)")
        bad = (~torch.isfinite(pos)).any(1).nonzero().flatten()
        if len(bad):
            raise DataError(
                f"position of atom {int(bad[0])} is {pos[bad[0]].tolist()}; wanted finite numbers"
            )
        known: dict[str, Any] = checked_lattice(cell, pbc, dim)
        known |= checked_pairs(pair_index, values, n)
        known |= checked_fields(values, n, dim)
        more = {name: known.pop(name) for name in [*known] if name not in ATTRIBUTES}
        return cls(
            pos=pos,
            z=z,
            batch=torch.zeros(n, dtype=torch.int64),
            num_graphs=1,
            targets=_named(targets),
            more=more,
            **known,
        )

    def __repr__(self) -> str:
        return f"Graph({one_line(self)})"

    def _repr_html_(self) -> str:
        return html(self)

    @property
    def num_nodes(self) -> int:
        """Number of nodes N."""
        return self.pos.shape[0]

    @property
    def dim(self) -> int:
        """Number of spatial dimensions D."""
        return self.pos.shape[1]

    @property
    def counts(self) -> Int[Tensor, "G"]:
        """Number of nodes of each graph."""
        return torch.zeros(self.num_graphs, dtype=torch.int64, device=self.z.device).index_add(
            0, self.batch, torch.ones_like(self.batch)
        )

    def values(self, *per: Per) -> dict[str, Tensor]:
        """The fields that this graph has, by name, in the order of `FIELDS`.

        Parameters
        ----------
        *per : {"node", "graph", "pair", "edge"}
            Only fields with one value per node, graph, pair or edge; none given: all.

        Returns
        -------
        dict
            Values of the fields that are not None.
        """
        chosen = fields_per(*per) if per else FIELDS
        return {name: value for name in chosen if (value := getattr(self, name)) is not None}

    def edge_vectors(self) -> Float[Tensor, "E D"]:
        """r_ij = x_j + S_ij h - x_i: from the receiver i to (the image of) the sender j, in Å.

        Returns
        -------
        Tensor, shape (E, D)
            S_ij are the lattice steps (``shift``), h the lattice vectors (``cell``).

        Raises
        ------
        DataError
            If the graph has no edges yet.
        """
        if self.edge_index is None:
            raise DataError("this graph has no edges yet; call connect(graph, cutoff) first")
        if self.real is not None:
            return self._regular_vectors(self.edge_index, self.real)
        j, i = self.edge_index
        vec = self.pos[j] - self.pos[i]
        if self.shift is not None and self.cell is not None:
            vec = vec + torch.einsum("ed,edk->ek", self.shift, self.cell[self.batch[i]])
        return vec

    def _regular_vectors(self, edge_index: Tensor, real: Tensor) -> Float[Tensor, "E D"]:
        """Edge vectors of a regular graph; those of padding edges are longer than any cutoff."""
        sent = gather(self.pos, edge_index[0], self.reverse)
        vec = sent.reshape(*real.shape, self.dim) - self.pos[:, None]
        if self.shift is not None and self.cell is not None:
            vec = vec + self.shift.reshape(vec.shape) @ self.cell[self.batch]
        return torch.where(real[:, :, None], vec, FAR).flatten(0, 1)

    def replace(self, **changes: Any) -> "Graph":
        """A copy with some fields changed.

        Parameters
        ----------
        **changes
            New values by the name of the attribute. None removes an optional field. Values of declared fields
            are cast to the type of the declaration, and their shapes are checked.

        Returns
        -------
        Graph
            The copy; tensors that are not changed are shared.

        Raises
        ------
        DataError
            If there is no field of that name, or a declared field gets values of another shape.
        """
        own: dict[str, Any] = {}
        more = dict(self.more)
        for name, value in changes.items():
            if name in ATTRIBUTES:
                own[name] = value
            elif name not in FIELDS:
                raise DataError(
                    f"a Graph has no field {name!r}{did_you_mean(name, [*ATTRIBUTES, *FIELDS])} "
                    f"Declare a new one with mq.add_field({name!r}, per='graph', rank=0, unit='…')"
                )
            elif value is None:
                more.pop(name, None)
            else:
                more[name] = value
        copy = replace(self, **{"more": more} | own)
        for name in changes.keys() & more.keys():
            rows = copy.num_nodes if FIELDS[name].per == "node" else copy.num_graphs
            more[name] = checked_rows(name, more[name], copy.pos, rows)
        return copy

    def without(self, *per: Per) -> "Graph":
        """A copy without all fields per edge or per pair, for instance before a new search for neighbors.

        Parameters
        ----------
        *per : {"edge", "pair"}
            "edge" removes the edges, their fields, ``cutoff`` and ``k``; "pair" removes the pairs and their
            features.

        Returns
        -------
        Graph
            The copy.
        """
        structure = {
            "edge": ("edge_index", "cutoff", "k", "real", "reverse"),
            "pair": ("pair_index",),
        }
        names = [name for kind in per for name in (*structure[kind], *fields_per(kind))]
        return self.replace(**dict.fromkeys(names))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Graph":
        """A copy with `function` applied to every tensor: fields, edges, pairs and targets.

        Parameters
        ----------
        function : callable
            Takes a tensor and returns one of the same shape.

        Returns
        -------
        Graph
            The copy.
        """
        changed: dict[str, Any] = {}
        for attribute in fields(self):
            value = getattr(self, attribute.name)
            if isinstance(value, Tensor):
                changed[attribute.name] = function(value)
            elif isinstance(value, Mapping):
                changed[attribute.name] = {name: function(v) for name, v in value.items()}
        return replace(self, **changed)

    def to(self, device: Device) -> "Graph":
        """A copy on another device.

        Parameters
        ----------
        device : str or torch.device
            For instance "cpu" or "cuda:0".

        Returns
        -------
        Graph
            The copy.
        """
        return self.map(lambda value: value.to(device))

    def strained(self, strain: Float[Tensor, "G D D"]) -> "Graph":
        """Positions and cells under x → x (1 + ε). The derivative of the energy at ε = 0 over the volume is
        the stress.

        Velocities, vectors and fields declared by `add_field` stay as they are.

        Parameters
        ----------
        strain : Tensor, shape (G, D, D)
            A symmetric strain ε for each graph.

        Returns
        -------
        Graph
            The strained copy.
        """
        pos = self.pos + torch.einsum("nd,ndk->nk", self.pos, strain[self.batch])
        cell = None if self.cell is None else self.cell + self.cell @ strain
        return replace(self, pos=pos, cell=cell)


def _named(targets: object) -> dict[str, Tensor]:
    """Labels by name. Raises DataError for anything else."""
    if not isinstance(targets, Mapping | None):
        raise DataError(f"targets is {str(targets)[:60]} ({type(targets).__name__}); wanted labels by name")
    return dict(targets or {})


def _whole(z: Tensor) -> Tensor:
    """Atomic numbers as integers. Raises DataError for numbers that are no element."""
    bad = z[(z != z.round()) | (z < 0) | (z >= len(SYMBOLS))] if z.dtype != torch.bool else z
    if z.is_complex() or len(bad):
        raise DataError(f"atomic number {bad[0].item()}; wanted whole numbers from 0 (a plain point) to 118")
    return z.to(torch.int64)


ATTRIBUTES = tuple(attribute.name for attribute in fields(Graph))


def _refuse_assignment(graph: Graph, name: str, value: object) -> None:
    """Raise ImmutableError. Packages such as Lightning hide the error of a frozen dataclass."""
    raise ImmutableError(
        f"a Graph does not change, so {name} cannot be assigned; write graph = graph.replace({name}=...). "
        "The settings precision='64-true', 'bf16-true' and '16-true' of Lightning assign to batches: use "
        "precision='32-true' with model.to(torch.float64), or 'bf16-mixed'. Positions stay in float64, and a "
        "model converts their differences itself"
    )


Graph.__setattr__ = _refuse_assignment  # type: ignore[method-assign, assignment]
