"""The checks by name. Each takes a Study and yields rows."""

from collections.abc import Callable, Iterator

from molequi.audit import equivariance, gradients, physics, responses, smoothness
from molequi.audit.report import Row
from molequi.audit.study import Study

CHECKS: dict[str, Callable[[Study], Iterator[Row]]] = {
    "not zero": equivariance.nonzero,
    "rotation": equivariance.rotation,
    "reflection": equivariance.reflection,
    "translation": equivariance.translation,
    "permutation": equivariance.permutation,
    "edge order": equivariance.edge_order,
    "batch": equivariance.batch,
    "lattice": equivariance.lattice,
    "supercell": equivariance.supercells,
    "features": equivariance.features,
    "layers": equivariance.layers,
    "finite differences": gradients.finite_differences,
    "conservative": gradients.conservative,
    "momentum": physics.momentum,
    "sum rules": responses.sum_rules,
    "cutoff": physics.cutoff,
    "smoothness": smoothness.smoothness,
    "fragments": physics.fragments,
    "one atom": physics.one_atom,
    "no edges": physics.no_edges,
    "across graphs": physics.across_graphs,
}
