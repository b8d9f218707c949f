"""Digests of structures: of their exact content, and of their content with rounded positions."""

from collections.abc import Iterable, Iterator

from torch import Tensor

from molequi.graph import Graph, fields_per
from molequi.quantities import Quantity
from molequi.util.files import sha256


def _content(graph: Graph) -> Iterator[tuple[bytes, Tensor | None]]:
    """What a model sees of a structure: labels and values, in the order of the table of fields.

    The label of a field that a user declares is its name; other labels are empty.
    """
    for name, spec in fields_per("node", "graph", "pair").items():
        value = getattr(graph, name)
        if value is not None and spec.per == "pair":
            yield b"", graph.pair_index
        if value is not None or spec.digested:
            yield f"{name}:".encode() if name in graph.more else b"", value


def structure_bytes(graph: Graph) -> bytes:
    """Everything that a model sees of a structure, as bytes. Labels and neighbors are left out.

    Parameters
    ----------
    graph : Graph
        A single structure.
    """
    return b"|".join(
        label + (b"-" if p is None else repr(tuple(p.shape)).encode() + p.contiguous().numpy().tobytes())
        for label, p in _content(graph)
    )


def fingerprint(graph: Graph) -> str:
    """SHA-256 of a structure whose positions are rounded to 1e-5 Å. Labels and neighbors are left out.

    Two structures with the same fingerprint are equal up to rounding, in the same frame and order of atoms.

    Parameters
    ----------
    graph : Graph
        A single structure.
    """
    # Adding 0.0 turns a negative zero into zero.
    rounded = (
        label + (b"-" if p is None else (p.double() * 1e5).round().add(0.0).numpy().tobytes())
        for label, p in _content(graph)
    )
    return sha256([b"|".join(rounded)])


def fingerprint_number(graph: Graph) -> int:
    """The first 64 bits of the fingerprint of a structure, as a signed integer.

    Different structures may have the same number, though that is rare: compare their fingerprints.

    Parameters
    ----------
    graph : Graph
        A single structure.
    """
    return int.from_bytes(bytes.fromhex(fingerprint(graph)[:16]), "big", signed=True)


def content_digest(graphs: Iterable[Graph], quantities: Iterable[Quantity]) -> str:
    """SHA-256 of structures, labels and what the labels are.

    Parameters
    ----------
    graphs : iterable of Graph
        Single structures with labels.
    quantities : iterable of Quantity
        What the labels are.
    """

    def parts() -> Iterator[bytes | str]:
        yield repr(sorted(map(repr, quantities)))
        for graph in graphs:
            yield structure_bytes(graph)
            for name in sorted(graph.targets):
                yield graph.targets[name].contiguous().numpy().tobytes()

    return sha256(parts())
