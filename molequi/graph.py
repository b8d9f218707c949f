"""Graph: a typed batch of structures. One structure is a batch of one."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from molequi.errors import DataError
from molequi.ops.regular import gather
from molequi.quantities import atomic_number

FAR = 1000.0  # Å in each direction: the length of edges that only fill up


@dataclass(frozen=True, kw_only=True)
class Graph:
    """N nodes, E edges, G graphs, in D dimensions.

    Edges: row 0 of `edge_index` sends (j), row 1 receives (i), sorted by receiver. `edge_index` is None until
    `molequi.neighbors.connect` has searched the neighbours; `cutoff` remembers how far it looked (inf: all pairs).
    Positions and cells are float64 and stay so: a model casts *differences* of positions to its own precision.
    """

    pos: Float[Tensor, "N D"]  # Å for molecules
    z: Int[Tensor, "N"]  # atomic number; 0 is a plain point
    batch: Int[Tensor, "N"]  # graph of each node, ascending
    num_graphs: int
    edge_index: Int[Tensor, "2 E"] | None = None
    shift: Float[Tensor, "E D"] | None = None  # lattice steps added to the sender; None without periodicity
    cutoff: float | None = None
    k: int | None = None  # edges are those to the k nearest; None: to all within the cutoff
    cell: Float[Tensor, "G D D"] | None = None  # rows are lattice vectors, as in ASE
    pbc: Bool[Tensor, "G D"] | None = None  # periodic directions; None: none
    vel: Float[Tensor, "N D"] | None = None  # velocities
    vec: Float[Tensor, "N V D"] | None = None  # given vectors of each node, such as surface normals
    x: Float[Tensor, "N F"] | None = None  # given invariant node features
    pair_index: Int[Tensor, "2 B"] | None = (
        None  # pairs of nodes of which something is given, in both directions
    )
    pair_attr: Float[Tensor, "B A"] | None = None  # given invariants of these pairs, such as the kind of bond
    edge_attr: Float[Tensor, "E A"] | None = (
        None  # the same on the edges, put there by `connect`; 0 for other pairs
    )
    real: Bool[Tensor, "N degree"] | None = (
        None  # of a regular graph, see `neighbors.regular`: False for edges that only fill up
    )
    reverse: Int[Tensor, "N degree"] | None = (
        None  # of a regular graph: the edge in the other direction; a filling one is its own
    )
    charge: Float[Tensor, "G"] | None = None  # total charge, e
    spin: Float[Tensor, "G"] | None = None  # spin multiplicity as given
    targets: dict[str, Tensor] = field(default_factory=dict)  # by quantity name; NaN where unknown

    @classmethod
    def single(cls, pos, z=None, *, cell=None, pbc=None, **given) -> "Graph":
        """One structure from array-likes: pos (N, D), z (N,) symbols or numbers or None for plain points, cell (D, D), pbc bool or (D,).

        Raises DataError on wrong shapes, non-finite coordinates, or a periodic direction without a lattice vector.
        """
        pos = torch.as_tensor(pos, dtype=torch.float64)
        if pos.ndim != 2 or pos.shape[1] == 0:
            raise DataError(f"positions of shape {tuple(pos.shape)}; wanted (N, D)")
        n, dim = pos.shape
        if n == 0:
            raise DataError("a structure without atoms; wanted at least one")
        if isinstance(z, (list, tuple)):
            z = [atomic_number(element) for element in z]
        z = torch.zeros(n, dtype=torch.int64) if z is None else torch.as_tensor(z, dtype=torch.int64)
        if z.shape != (n,):
            raise DataError(f"atomic numbers of shape {tuple(z.shape)} for {n} positions; wanted ({n},)")
        bad = (~torch.isfinite(pos)).any(1).nonzero().flatten()
        if len(bad):
            raise DataError(
                f"position of atom {int(bad[0])} is {pos[bad[0]].tolist()}; wanted finite numbers"
            )
        periodic = torch.as_tensor(False if pbc is None else pbc, dtype=torch.bool).expand(dim).clone()
        if cell is not None:
            cell = torch.as_tensor(cell, dtype=torch.float64)
            if cell.shape != (dim, dim):
                raise DataError(
                    f"cell of shape {tuple(cell.shape)}; wanted ({dim}, {dim}), rows are lattice vectors"
                )
            if not torch.isfinite(cell).all():
                raise DataError(f"cell {cell.tolist()} has non-finite entries")
        if periodic.any():
            rows = torch.zeros(dim, dim, dtype=torch.float64) if cell is None else cell
            used = rows[periodic]
            lengths = used.norm(dim=1)
            if bool((lengths < 1e-8).any()) or float(torch.linalg.matrix_rank(used / lengths[:, None])) < len(
                used
            ):
                raise DataError(
                    f"periodic in {periodic.tolist()} but the cell is {rows.tolist()}: a periodic direction needs a lattice "
                    "vector of its own. Give the cell, or say pbc=False"
                )
        _check_given(given, n, dim)
        batched = {
            "charge": None
            if given.get("charge") is None
            else torch.as_tensor(given.pop("charge"), dtype=torch.float64).reshape(1),
            "spin": None
            if given.get("spin") is None
            else torch.as_tensor(given.pop("spin"), dtype=torch.float64).reshape(1),
        }
        given = {k: v for k, v in given.items() if k not in batched}
        return cls(
            pos=pos,
            z=z,
            batch=torch.zeros(n, dtype=torch.int64),
            num_graphs=1,
            cell=cell[None] if periodic.any() else None,
            pbc=periodic[None] if periodic.any() else None,
            **batched,
            **given,
        )

    @property
    def num_nodes(self) -> int:
        return self.pos.shape[0]

    @property
    def dim(self) -> int:
        return self.pos.shape[1]

    @property
    def counts(self) -> Int[Tensor, "G"]:
        """Nodes of each graph."""
        return torch.zeros(self.num_graphs, dtype=torch.int64, device=self.z.device).index_add(
            0, self.batch, torch.ones_like(self.batch)
        )

    def edge_vectors(self) -> Float[Tensor, "E D"]:
        """r_ij = x_j + S_ij h - x_i: from the receiver i to (the image of) the sender j, in Å."""
        if self.edge_index is None:
            raise DataError("this graph has no edges yet; call connect(graph, cutoff) first")
        if self.real is not None:
            return self._regular_vectors()
        j, i = self.edge_index
        vec = self.pos[j] - self.pos[i]
        if self.shift is not None and self.cell is not None:
            vec = vec + torch.einsum("ed,edk->ek", self.shift, self.cell[self.batch[i]])
        return vec

    def _regular_vectors(self) -> Float[Tensor, "E D"]:
        """The same of a regular graph; edges that only fill up are longer than any cutoff."""
        sent = gather(self.pos, self.edge_index[0], self.reverse)
        vec = sent.reshape(*self.real.shape, self.dim) - self.pos[:, None]
        if self.shift is not None and self.cell is not None:
            vec = vec + self.shift.reshape(vec.shape) @ self.cell[self.batch]
        return torch.where(self.real[:, :, None], vec, FAR).flatten(0, 1)

    def replace(self, **changes) -> "Graph":
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to(self, device: "str | torch.device") -> "Graph":
        """A copy on another device."""
        moved = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                moved[f.name] = value.to(device)
            elif isinstance(value, dict):
                moved[f.name] = {k: v.to(device) for k, v in value.items()}
        return replace(self, **moved)

    def strained(self, strain: Float[Tensor, "G D D"]) -> "Graph":
        """Positions and cells under x → x (1 + ε); its derivative at ε = 0 over the volume is the stress."""
        pos = self.pos + torch.einsum("nd,ndk->nk", self.pos, strain[self.batch])
        cell = None if self.cell is None else self.cell + self.cell @ strain
        return replace(self, pos=pos, cell=cell)


def _check_given(given: dict, n: int, dim: int) -> None:
    """Casts what is given about nodes and pairs, in place; raises DataError where its shape is not one for n nodes."""
    for name, wanted in (("vel", (n, dim)), ("vec", (n, None, dim)), ("x", (n, None))):
        if given.get(name) is not None:
            value = given[name] = torch.as_tensor(given[name], dtype=torch.float64)
            if value.ndim != len(wanted) or any(
                w not in (None, size) for w, size in zip(wanted, value.shape)
            ):
                text = ", ".join("any" if w is None else str(w) for w in wanted)
                raise DataError(
                    f"{name} of shape {tuple(value.shape)} for {n} nodes in {dim} dimensions; wanted ({text})"
                )
            if not torch.isfinite(value).all():
                raise DataError(f"{name} has entries that are not finite; wanted finite numbers")
    index, attr = given.get("pair_index"), given.get("pair_attr")
    if (index is None) != (attr is None):
        raise DataError(
            "pair_index and pair_attr belong together: the pairs, and what is given of each; one of them is missing"
        )
    if index is None:
        return
    index = given["pair_index"] = torch.as_tensor(index, dtype=torch.int64)
    attr = given["pair_attr"] = torch.as_tensor(attr, dtype=torch.float64)
    if index.ndim != 2 or len(index) != 2 or attr.ndim != 2 or len(attr) != index.shape[1]:
        raise DataError(
            f"pair_index of shape {tuple(index.shape)} and pair_attr of shape {tuple(attr.shape)}; wanted (2, B) and (B, A)"
        )
    if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < n):
        raise DataError(
            f"pair_index names the nodes {int(index.min())} to {int(index.max())}; there are {n}, counted from 0"
        )
    code = index[0] * n + index[1]
    back = index[1] * n + index[0]
    order, other = code.argsort(), back.argsort()
    if len(code.unique()) != len(code) or bool((index[0] == index[1]).any()):
        raise DataError(
            "pair_index lists a pair twice, or a node with itself; wanted each pair once in each direction"
        )
    if not torch.equal(code[order], back[other]) or not torch.equal(attr[order], attr[other]):
        raise DataError(
            "pair_index and pair_attr: a pair is listed in one direction only, or with other values in the other; wanted "
            "both directions with the same values, for what is given of a pair belongs to neither of its ends"
        )


_NODE = ("pos", "z", "vel", "vec", "x")
_GRAPH = ("cell", "pbc", "charge", "spin")
_EDGE = ("shift", "edge_attr")
_GIVEN = ("vel", "vec", "x", "pair_attr", "edge_attr", "charge", "spin")  # all graphs of a batch, or none


def collate(graphs: Sequence[Graph]) -> Graph:
    """One batch of several graphs.

    A target is concatenated as it is; every graph must have the same names (a value that is not known is NaN). Cells and shifts
    of structures that are not periodic become zero when others of the batch are. Charge and spin: all or none.
    Raises DataError if the graphs do not fit together.
    """
    if not graphs:
        raise DataError("nothing to batch: the list of graphs is empty")
    first = graphs[0]
    for k, g in enumerate(graphs):
        if g.dim != first.dim:
            raise DataError(f"graph {k} has {g.dim} dimensions, graph 0 has {first.dim}")
        if (g.edge_index is None) != (first.edge_index is None):
            raise DataError(f"graph {k} and graph 0: one is connected and the other is not")
        if g.k != first.k:
            raise DataError(
                f"graph {k} is connected with k={g.k} and graph 0 with k={first.k}; connect both in the same way"
            )
        if set(g.targets) != set(first.targets):
            raise DataError(
                f"graph {k} has the targets {sorted(g.targets)}, graph 0 has {sorted(first.targets)}"
            )
        for name in _GIVEN:
            if (getattr(g, name) is None) != (getattr(first, name) is None):
                raise DataError(f"graph {k} and graph 0: one has '{name}' and the other has not")
    if len(graphs) == 1:
        return first
    device, dim = first.pos.device, first.dim
    nodes = torch.tensor([g.num_nodes for g in graphs])
    offsets = (nodes.cumsum(0) - nodes).tolist()
    steps = torch.tensor([g.num_graphs for g in graphs])
    graph_offsets = (steps.cumsum(0) - steps).tolist()
    periodic = any(g.pbc is not None for g in graphs)

    def filled(g: Graph, name: str) -> Tensor | None:
        value = getattr(g, name)
        if value is None and periodic and name == "cell":
            return torch.zeros(g.num_graphs, dim, dim, dtype=g.pos.dtype, device=device)
        if value is None and periodic and name == "pbc":
            return torch.zeros(g.num_graphs, dim, dtype=torch.bool, device=device)
        if value is None and periodic and name == "shift" and g.edge_index is not None:
            return torch.zeros(g.edge_index.shape[1], dim, dtype=g.pos.dtype, device=device)
        return value

    joined = {}
    for name in (*_NODE, *_GRAPH, *_EDGE, "pair_attr"):
        values = [filled(g, name) for g in graphs]
        joined[name] = None if values[0] is None else torch.cat(values)
    connected = first.edge_index is not None
    cutoffs = [g.cutoff for g in graphs]
    paired = first.pair_index is not None
    return Graph(
        batch=torch.cat([g.batch + o for g, o in zip(graphs, graph_offsets)]),
        num_graphs=sum(steps.tolist()),
        edge_index=torch.cat([g.edge_index + o for g, o in zip(graphs, offsets)], dim=1)
        if connected
        else None,
        cutoff=None if None in cutoffs else min(cutoffs),
        k=first.k,
        pair_index=torch.cat([g.pair_index + o for g, o in zip(graphs, offsets)], dim=1) if paired else None,
        targets={name: torch.cat([g.targets[name] for g in graphs]) for name in first.targets},
        **joined,
    )


def separate(graph: Graph, per_node: Sequence[str] = ()) -> list[Graph]:
    """The structures of a batch, each a batch of one. `per_node` names the targets that have one row a node."""
    out = []
    ends = graph.counts.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    owner = None if graph.edge_index is None else graph.batch[graph.edge_index[1]]
    pairs = None if graph.pair_index is None else graph.batch[graph.pair_index[1]]
    for k, (a, b) in enumerate(zip(starts, ends)):
        part = {name: None if getattr(graph, name) is None else getattr(graph, name)[a:b] for name in _NODE}
        part |= {
            name: None if getattr(graph, name) is None else getattr(graph, name)[k : k + 1] for name in _GRAPH
        }
        edges = slice(0) if owner is None else owner == k
        part |= {
            name: None if getattr(graph, name) is None else getattr(graph, name)[edges] for name in _EDGE
        }
        if pairs is not None:
            part |= {
                "pair_index": graph.pair_index[:, pairs == k] - a,
                "pair_attr": graph.pair_attr[pairs == k],
            }
        out.append(
            Graph(
                batch=torch.zeros(b - a, dtype=torch.int64, device=graph.z.device),
                num_graphs=1,
                cutoff=graph.cutoff,
                k=graph.k,
                edge_index=None if owner is None else graph.edge_index[:, edges] - a,
                targets={n: t[a:b] if n in per_node else t[k : k + 1] for n, t in graph.targets.items()},
                **part,
            )
        )
    return out
