"""Digests of structures: of their exact content, and of what is left after positions are rounded."""

from collections.abc import Iterator

from torch import Tensor

from molequi.graph import Graph, fields_per
from molequi.util.files import sha256


def _content(graph: Graph) -> Iterator[tuple[bytes, Tensor | None]]:
    """What a model sees of a structure, in the order of the table of fields: a label and values.

    The label is empty for built-in fields; of fields that users declare it is the name.
    """
    for name, spec in fields_per("node", "graph", "pair").items():
        value = getattr(graph, name)
        if value is not None and spec.per == "pair":
            yield b"", graph.pair_index
        if value is not None or spec.digested:
            yield f"{name}:".encode() if name in graph.more else b"", value


def structure_bytes(graph: Graph) -> bytes:
    """Everything of a structure that a model sees, as bytes; labels and neighbors are left out."""
    return b"|".join(
        label + (b"-" if p is None else repr(tuple(p.shape)).encode() + p.contiguous().numpy().tobytes())
        for label, p in _content(graph)
    )


def fingerprint(graph: Graph) -> str:
    """SHA-256 of a structure whose positions are rounded to 1e-5 Å; labels and neighbors are left out.

    Two structures with the same fingerprint are the same up to rounding, in the same frame and order of
    atoms.
    """
    # Adding 0.0 turns a negative zero into zero.
    rounded = (
        label + (b"-" if p is None else (p.double() * 1e5).round().add(0.0).numpy().tobytes())
        for label, p in _content(graph)
    )
    return sha256([b"|".join(rounded)])
