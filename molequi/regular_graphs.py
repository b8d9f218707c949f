"""Regular graphs, in which every node receives equally many edges: for compiled programs and fast sums."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molequi.errors import DataError
from molequi.graph import FIELDS, Field, Graph


def regular(graph: Graph, *, nodes: int = 0, graphs: int = 0, degree: int = 1) -> Graph:
    """The same structures with equally many edges into every node, padded, and with the index of each reverse
    edge.

    Shapes then hardly change from one structure to the next, sums over edges are sums over an axis, and
    derivatives of gathers are gathers, which compilers need. The edges of a node keep their order. Targets
    and pairs of nodes are left out.

    Parameters
    ----------
    graph : Graph
        Connected structures.
    nodes : int
        Number of nodes without neighbors that are added at the end, each a graph of its own.
    graphs : int
        Number of empty graphs that are added after these.
    degree : int
        Smallest number of edges into each node.

    Returns
    -------
    Graph
        The regular graph; its fields ``real`` and ``reverse`` are set (``reverse`` where each edge has a
        reverse).

    Raises
    ------
    DataError
        If the graph has no edges yet.
    """
    return Layout(graph, nodes=nodes, degree=degree).fill(graph, graphs=graphs)


def regular_if_full(graph: Graph, least: float) -> Graph:
    """The same structures as a regular graph, if few edges of it are padding; otherwise the graph itself.

    Sums of products over edges are then matrix products. Graphs on other devices than the CPU, those with
    tensors that require gradients, and those of nearest neighbors are returned as they are.

    Parameters
    ----------
    graph : Graph
        Connected structures.
    least : float
        Smallest share of real edges; from 1 on no graph is changed.

    Examples
    --------
    >>> import molequi as mq
    >>> water = mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
    >>> regular_if_full(mq.connect(water, 3.0), 0.7).real.tolist()
    [[True, True], [True, True], [True, True]]
    """
    edges = graph.edge_index
    if least >= 1 or graph.real is not None or graph.k is not None or edges is None:
        return graph
    values = graph.values("node", "graph", "edge").values()
    # Transforms of torch.func do not know the gather of regular graphs.
    if torch._C._are_functorch_transforms_active():
        return graph
    if edges.device.type != "cpu" or any(value.requires_grad for value in values):
        return graph
    number = edges.shape[1]
    if not number or number < least * graph.num_nodes * int(torch.bincount(edges[1]).max()):
        return graph
    return regular(graph)


class Layout:
    """Where the edges of a graph are in a regular one. It can be used again as long as the edges join the
    same nodes.

    Parameters
    ----------
    graph : Graph
        Connected structures.
    nodes, degree : int
        As in `regular`.
    """

    def __init__(self, graph: Graph, *, nodes: int = 0, degree: int = 1) -> None:
        if graph.edge_index is None:
            raise DataError("this graph has no edges yet; call connect(graph, cutoff) first")
        self.edges, self.shift, self.k = _copy(graph.edge_index), _copy(graph.shift), graph.k
        self.order = _order(graph.edge_index)
        j, i = graph.edge_index if self.order is None else graph.edge_index[:, self.order]
        self.rows, n, device = graph.num_nodes, graph.num_nodes, graph.pos.device
        counts = torch.bincount(i, minlength=n)
        self.needed = int(counts.max())
        degree = max(degree, self.needed)
        self.nodes, self.degree = nodes, degree
        total = n + nodes
        slot = torch.arange(len(i), device=device) + (
            torch.arange(n, device=device) * degree - counts.cumsum(0) + counts
        ).index_select(0, i)
        sender = torch.arange(total, device=device).repeat_interleave(degree)
        receiver = sender.clone()
        sender[slot] = j
        self.slot, self.edge_index = slot, torch.stack([sender, receiver])
        real = torch.zeros(total * degree, dtype=torch.bool, device=device)
        real[slot] = True
        self.real = real.reshape(total, degree)
        back = (
            _reverse(j, i, None if graph.shift is None else self._sorted(graph.shift), n)
            if graph.k is None
            else None
        )
        self.reverse = None
        if back is not None:
            reverse = torch.arange(total * degree, device=device)
            reverse[slot] = slot[back]
            self.reverse = reverse.reshape(total, degree)

    def serves(self, graph: Graph) -> bool:
        """Whether the graph has the edges that this layout was made for."""
        return (
            graph.num_nodes == self.rows
            and graph.k == self.k
            and _same(self.edges, graph.edge_index)
            and _same(self.shift, graph.shift)
        )

    def fill(self, graph: Graph, *, graphs: int = 0) -> Graph:
        """The regular graph of a graph with these edges. Values are padded as their fields say."""
        n, total, nodes = self.rows, self.rows + self.nodes, self.nodes
        graphs += graph.num_graphs + nodes

        rows = {"node": total, "graph": graphs, "edge": total * self.degree}
        padded: dict[str, Tensor] = {}
        for name, value in graph.values("node", "graph", "edge").items():
            spec = FIELDS[name]
            if spec.per == "edge":
                padded[name] = _padded(self._sorted(value), spec, rows["edge"], self.slot)
            else:
                padded[name] = _padded(value, spec, rows[spec.per], slice(len(value)))
        batch = graph.batch.new_zeros(total)
        batch[:n] = graph.batch
        batch[n:] = torch.arange(graph.num_graphs, graph.num_graphs + nodes, device=batch.device)
        return Graph(
            pos=padded.pop("pos"),
            z=padded.pop("z"),
            batch=batch,
            num_graphs=graphs,
            edge_index=self.edge_index,
            real=self.real,
            reverse=self.reverse,
            cutoff=graph.cutoff,
            k=graph.k,
        ).replace(**padded)

    def _sorted(self, value: Tensor) -> Tensor:
        """Values of edges, by receiver."""
        return value if self.order is None else value[self.order]


def _padded(value: Tensor, spec: Field, rows: int, at: Tensor | slice) -> Tensor:
    """So many rows, with the values in the rows `at`."""
    if spec.padding is None:
        out = value[:1].repeat(rows, *[1] * (value.ndim - 1))
    else:
        out = value.new_full((rows, *value.shape[1:]), spec.padding)
    out[at] = value
    return out


def _copy(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach().clone()


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether both have the same values on the same device, or both are None."""
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and a.device == b.device and torch.equal(a, b)


def _order(edge_index: Int[Tensor, "2 E"]) -> Int[Tensor, "E"] | None:
    """Order of the edges by receiver; None if they are sorted, as `connect` sorts them."""
    receiver = edge_index[1]
    return None if bool((receiver[1:] >= receiver[:-1]).all()) else torch.argsort(receiver, stable=True)


def _reverse(
    j: Int[Tensor, "E"], i: Int[Tensor, "E"], shift: Float[Tensor, "E D"] | None, n: int
) -> Int[Tensor, "E"] | None:
    """Index of the reverse of each edge; None if an edge has no reverse."""
    here, back = i * n + j, j * n + i
    if shift is not None and len(i):
        steps = shift.to(torch.int64)
        reach = int(steps.abs().max())
        base = 2 * reach + 1
        code = torch.tensor([base**2, base, 1], device=steps.device)
        size = base**3
        here = here * size + ((steps + reach) * code).sum(1)
        back = back * size + ((reach - steps) * code).sum(1)
    order = torch.argsort(back)
    if bool((here[1:] <= here[:-1]).any()) or not torch.equal(back[order], here):
        return None
    reverse = torch.empty_like(order)
    reverse[order] = torch.arange(len(order), device=order.device)
    return reverse
