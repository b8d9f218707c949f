"""Digests of structures: of their exact content, and of what is left after positions are rounded."""

from molequi.graph import Graph
from molequi.util.files import sha256


def structure_bytes(graph: Graph) -> bytes:
    """Everything of a structure that a model sees, as bytes; labels and neighbors are left out."""
    parts = [graph.z, graph.pos, graph.cell, graph.pbc, graph.charge, graph.spin, graph.vel, graph.x]
    parts += [p for p in (graph.vec, graph.pair_index, graph.pair_attr) if p is not None]
    return b"|".join(
        b"-" if p is None else repr(tuple(p.shape)).encode() + p.contiguous().numpy().tobytes() for p in parts
    )


def fingerprint(graph: Graph) -> str:
    """SHA-256 of a structure whose positions are rounded to 1e-5 Å; labels and neighbors are left out.

    Two structures with the same fingerprint are the same up to rounding, in the same frame and order of atoms.
    """
    parts = [graph.z, graph.pos, graph.cell, graph.pbc, graph.charge, graph.spin]
    parts += [p for p in (graph.vel, graph.vec, graph.x, graph.pair_index, graph.pair_attr) if p is not None]
    # Adding 0.0 turns a negative zero into zero.
    rounded = (b"-" if p is None else (p.double() * 1e5).round().add(0.0).numpy().tobytes() for p in parts)
    return sha256([b"|".join(rounded)])
