"""Symmetry errors of a labelling function (an oracle), from labels of transformed structures."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.data_symmetry.report import OracleError
from molequi.errors import ConfigError
from molequi.graph import Graph
from molequi.quantities import Quantity
from molequi.symmetry import Transform, random_orthogonal

Oracle = Callable[[Sequence[Graph]], Sequence[Mapping[str, Tensor]]]
N_TRANSFORMS = 8
SYMMETRIES = ("rotations", "reflections", "translations")
TRANSLATION = 10.0  # Å, standard deviation of random translations


def oracle_errors(
    data: Dataset,
    quantities: Sequence[Quantity],
    oracle: Oracle,
    generator: torch.Generator,
    n_transforms: int = N_TRANSFORMS,
) -> Iterator[OracleError]:
    """Symmetry error and orbit variance of an oracle for each symmetry and quantity.

    With y_k = g_k⁻¹ f(g_k x), the variance over k is the smallest mean squared error of a function that gives
    one y for the whole orbit, if all elements are equally frequent. It is the unbiased variance of one
    component, over all rotations, or over all rotations and reflections. The error of reflections is that of
    mirror images only. For translations there is an error and no variance, because no distribution of
    positions is uniform.

    Parameters
    ----------
    data : Dataset
        Structures.
    quantities : sequence of Quantity
        Quantities to compare.
    oracle : callable
        Takes a list of Graphs and returns for each a mapping from names of quantities to values.
    generator : torch.Generator
        Source of random transforms.
    n_transforms : int
        Number of labels for each structure and symmetry, the original one included.

    Yields
    ------
    OracleError
        One for each symmetry and quantity.

    Raises
    ------
    ConfigError
        If the oracle leaves out a quantity or returns values of other shapes.
    """
    graphs = [g.replace(targets={}) for g in data]
    original = _labels(oracle, graphs, quantities)
    for symmetry in SYMMETRIES:
        values = {q.name: [[v] for v in original[q.name]] for q in quantities}
        # For reflections only improper elements count towards the error.
        counted: list[list[bool]] = [[] for _ in graphs]
        for _ in range(n_transforms - 1):
            elements = [_random_element(symmetry, generator) for _ in graphs]
            for k, e in enumerate(elements):
                counted[k].append(symmetry != "reflections" or not bool(e.proper))
            found = _labels(oracle, [e.graph(g) for e, g in zip(elements, graphs)], quantities)
            for q in quantities:
                for k, (e, value) in enumerate(zip(elements, found[q.name])):
                    values[q.name][k].append(e.inverse().value(q, value))
        for q in quantities:
            yield _error(symmetry, q, graphs, [torch.stack(v) for v in values[q.name]], counted)


def _error(
    symmetry: str,
    q: Quantity,
    graphs: Sequence[Graph],
    orbits: Sequence[Tensor],
    counted: Sequence[Sequence[bool]],
) -> OracleError:
    """Error and variance of values (transforms, …) of each structure, the original value first."""
    size = torch.cat(
        [
            (v[0] - _reference_point(q, g)).flatten() if q.point else v[0].flatten()
            for v, g in zip(orbits, graphs)
        ]
    )
    size = size - size.mean() if q.rank == 0 else size
    wrong = torch.cat(
        [
            (v[1:] - v[0])[torch.tensor(use)].square().mean(0).flatten()
            for v, use in zip(orbits, counted)
            if any(use)
        ]
    )
    variance = None
    if symmetry != "translations":
        variance = float(torch.cat([v.var(0).flatten() for v in orbits]).mean())
    return OracleError(
        symmetry=symmetry,
        quantity=q.name,
        error=float(wrong.mean().sqrt() / size.square().mean().sqrt().clamp(min=1e-300)),
        orbit_variance=variance,
        unit=q.unit,
    )


def _reference_point(q: Quantity, graph: Graph) -> Tensor:
    return graph.pos if q.per == "node" else graph.pos.mean(0)


def _random_element(symmetry: str, generator: torch.Generator) -> Transform:
    if symmetry == "translations":
        step = TRANSLATION * torch.randn(3, generator=generator, dtype=torch.float64)
        return Transform.single(translation=step)
    proper = symmetry == "rotations" or float(torch.rand((), generator=generator)) < 0.5
    return Transform.single(rotation=random_orthogonal(3, proper=proper, generator=generator))


def _labels(
    oracle: Oracle, graphs: Sequence[Graph], quantities: Sequence[Quantity]
) -> dict[str, list[Tensor]]:
    answers = list(oracle(graphs))
    if len(answers) != len(graphs):
        raise ConfigError(
            f"the oracle returned {len(answers)} mappings for {len(graphs)} structures; wanted one for each"
        )
    out: dict[str, list[Tensor]] = {}
    for q in quantities:
        for k, (answer, graph) in enumerate(zip(answers, graphs)):
            if q.name not in answer:
                raise ConfigError(
                    f"the oracle returned no {q.name} for structure {k}, only {', '.join(answer)}; return "
                    "it, or "
                    "name the quantities to test"
                )
            value = torch.as_tensor(answer[q.name], dtype=torch.float64)
            wanted = ((graph.num_nodes,) if q.per == "node" else ()) + q.shape(3)
            if tuple(value.shape) != wanted:
                raise ConfigError(
                    f"the oracle returned {q.name} of shape {tuple(value.shape)} for structure {k}; "
                    f"wanted {wanted}"
                )
            out.setdefault(q.name, []).append(value)
    return out
