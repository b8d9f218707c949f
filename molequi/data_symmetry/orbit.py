"""The law itself, asked in many poses: how far it is from equivariant, and what that costs every equivariant model."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.data_symmetry.report import Floor
from molequi.errors import ConfigError
from molequi.graph import Graph
from molequi.quantities import Quantity
from molequi.symmetry import Element, random_orthogonal

POSES = 8
KINDS = ("rotations", "reflections", "translations")
FAR = 10.0  # Å


def orbit(
    data: Dataset,
    quantities: Sequence[Quantity],
    oracle: Callable[[Sequence[Graph]], Sequence[Mapping[str, Tensor]]],
    generator: torch.Generator,
    poses: int = POSES,
) -> Iterator[Floor]:
    """Of each symmetry and quantity: error and orbit variance of what the oracle says of structures in `poses` random poses.

    With y_k = g_k⁻¹ f(g_k x), the variance over k is the least mean square error of a function that gives one y for the whole orbit,
    if all of its poses are equally frequent. It is that of a component, unbiased: over all rotations, or over all rotations and
    reflections. The error of reflections is of mirror images alone. No two places are equally frequent, so of translations there is an
    error and no such floor. Raises ConfigError for an oracle that leaves quantities out or gives other shapes.
    """
    graphs = [g.replace(targets={}) for g in data]
    plain = _asked(oracle, graphs, quantities)
    for kind in KINDS:
        back = {q.name: [[v] for v in plain[q.name]] for q in quantities}
        asked: list[list[bool]] = [
            [] for _ in graphs
        ]  # whether the image says something of this symmetry itself
        for _ in range(poses - 1):
            images = [_element(kind, generator) for _ in graphs]
            for k, e in enumerate(images):
                asked[k].append(kind != "reflections" or not e.proper)
            # pairs of nodes and what is given of them stay as they are
            found = _asked(oracle, [e.graph(g) for e, g in zip(images, graphs)], quantities)
            for q in quantities:
                for k, (e, value) in enumerate(zip(images, found[q.name])):
                    back[q.name][k].append(_inverse(e).value(q, value))
        for q in quantities:
            stacks = [torch.stack(values) for values in back[q.name]]
            size = torch.cat(
                [
                    (s[0] - _start(q, g)).flatten() if q.point else s[0].flatten()
                    for s, g in zip(stacks, graphs)
                ]
            )
            size = size - size.mean() if q.rank == 0 else size
            wrong = torch.cat(
                [
                    (s[1:] - s[0])[torch.tensor(told)].square().mean(0).flatten()
                    for s, told in zip(stacks, asked)
                    if any(told)
                ]
            )
            variance = (
                None
                if kind == "translations"
                else float(torch.cat([s.var(0).flatten() for s in stacks]).mean())
            )
            yield Floor(
                name=kind,
                quantity=q.name,
                error=float(wrong.mean().sqrt() / size.square().mean().sqrt().clamp(min=1e-300)),
                variance=variance,
                unit=q.unit,
            )


def _start(q: Quantity, graph: Graph) -> Tensor:
    return graph.pos if q.per == "node" else graph.pos.mean(0)


def _element(kind: str, generator: torch.Generator) -> Element:
    if kind == "translations":
        step = FAR * torch.randn(3, generator=generator, dtype=torch.float64)
        return Element(rotation=torch.eye(3, dtype=torch.float64), translation=step)
    proper = kind == "rotations" or float(torch.rand((), generator=generator)) < 0.5
    return Element(rotation=random_orthogonal(3, proper=proper, generator=generator))


def _inverse(e: Element) -> Element:
    R = e.rotation.T
    return Element(rotation=R, translation=None if e.translation is None else -R @ e.translation)


def _asked(oracle, graphs: Sequence[Graph], quantities: Sequence[Quantity]) -> dict[str, list[Tensor]]:
    answers = list(oracle(graphs))
    if len(answers) != len(graphs):
        raise ConfigError(
            f"the oracle gave {len(answers)} answers for {len(graphs)} structures; wanted one mapping for each"
        )
    out: dict[str, list[Tensor]] = {}
    for q in quantities:
        for k, (answer, graph) in enumerate(zip(answers, graphs)):
            if q.name not in answer:
                raise ConfigError(
                    f"the oracle says nothing of {q.name} of structure {k}, only of {', '.join(answer)}; give it, or "
                    "name the quantities to test"
                )
            value = torch.as_tensor(answer[q.name], dtype=torch.float64)
            wanted = ((graph.num_nodes,) if q.per == "node" else ()) + q.shape(3)
            if tuple(value.shape) != wanted:
                raise ConfigError(
                    f"the oracle gives {q.name} of shape {tuple(value.shape)} for structure {k}; wanted {wanted}"
                )
            out.setdefault(q.name, []).append(value)
    return out
