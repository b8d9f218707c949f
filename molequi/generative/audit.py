"""The symmetry of a flow: of its samples for given noise, and of their density."""

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt
from jaxtyping import Float
from torch import Tensor

from molequi.checkpoint import load
from molequi.errors import ConfigError
from molequi.generative.coupling import centered
from molequi.generative.flow import Flow
from molequi.generative.integrate import Sampler, own_draws
from molequi.generative.samples import Samples
from molequi.generative.sampling import sample, wanted_structures
from molequi.graph import Graph, collate
from molequi.model import Model
from molequi.symmetry.groups import random_orthogonal
from molequi.util.html import FAILS, HOLDS, html_heading, html_table
from molequi.util.signature import check_call, check_keywords
from molequi.util.tables import text_table

EQUIVARIANCE = 1e-6  # largest relative error; a sample of many steps enlarges the round-off of one
SHORTEST = 1e-6  # Å: a way far above the round-off of positions
SIGNIFICANCE = 1e-3


@dataclass(frozen=True)
class FlowCheck:
    """One property of a flow.

    Parameters
    ----------
    name : str
        What is measured.
    value : float
        A relative error, or the p-value of a hypothesis test.
    limit : float
        Largest error, or smallest p-value, that passes.
    passed : bool
        Whether the flow has the property.
    least : bool
        Whether the limit is the smallest value that passes.
    """

    name: str
    value: float
    limit: float
    passed: bool
    least: bool = False


@dataclass(frozen=True, repr=False)
class FlowAudit:
    """Result of `audit_flow`; printed, a table.

    Parameters
    ----------
    checks : tuple of FlowCheck
        The properties.
    """

    checks: tuple[FlowCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether the flow has all properties."""
        return all(check.passed for check in self.checks)

    def _rows(self) -> list[list[str]]:
        return [
            [
                c.name,
                f"{c.value:.2g}",
                f"{'>' if c.least else '<'} {c.limit:g}",
                "holds" if c.passed else "FAILS",
            ]
            for c in self.checks
        ]

    def __str__(self) -> str:
        return "\n".join(text_table(["property", "found", "wanted", ""], self._rows(), left=(0, 3)))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        colours = [HOLDS if c.passed else FAILS for c in self.checks]
        table = html_table(["property", "found", "wanted", ""], self._rows(), colours)
        return html_heading("Symmetry of the flow") + table


@check_keywords()
def audit_flow(
    model: Model | str | os.PathLike[str],
    what: Any = 8,
    *,
    steps: Annotated[int, Gt(0)] = 20,
    orientations: Annotated[int, Ge(0)] = 200,
    seed: Annotated[int, Ge(0), Lt(2**32 - 1)] = 0,
) -> FlowAudit:
    """Measure the symmetry of a flow.

    - Samples must differ from their noise: a velocity of zero has every symmetry. Errors of the transforms
      are relative to the root mean square of the ways from noise to samples.
    - Transformed noise must give the transformed sample, in float64: under random rotations, under
      reflections (not for conformers, whose chirality is given), and under permutations of atoms.
    - The density of the samples must not depend on the orientation: the directions from the center to the
      farthest atom are tested for uniformity on the sphere, by their mean (Rayleigh) and by their second
      moments (Bingham); see Mardia and Jupp, Directional Statistics (2000), sections 10.4 and 10.7. The
      p-value of a uniform density is below 0.001 in one of 1000 audits. Not for "relaxation", whose samples
      have the orientation of their structures.

    `mq.audit` measures the equivariance of the velocity itself, on data of `paths`.

    Parameters
    ----------
    model : Model or path
        A model of flow matching.
    what : int or structures
        As in `sample`: a few for the transforms.
    steps : int
        Number of steps of each sample.
    orientations : int
        Number of samples for the tests of the density; 0 leaves them out.
    seed : int
        Seed of noise and transforms.

    Returns
    -------
    FlowAudit

    Raises
    ------
    ModelError, ConfigError, DataError
        As `sample`; and if all structures have one atom, whose position is the center.
    """
    given = {"steps": steps, "orientations": orientations, "seed": seed}
    check_call(audit_flow, given, where="audit_flow", leave_out=("model", "what"))
    if not isinstance(model, Model):
        found = load(model)
        if not isinstance(found, Model):
            raise ConfigError(f"audit_flow: {model} is {type(found).__name__}; wanted a single model")
        model = found
    flow = Flow.of(model, "audit_flow")
    exact = copy.deepcopy(model.plain()).to("cpu", torch.float64).eval()
    exact.metadata = model.metadata
    graph = collate(wanted_structures(exact, flow, what, seed))
    if int(graph.counts.max()) == 1:
        raise ConfigError(
            "audit_flow: all structures have one atom, which stays in the center; wanted larger ones"
        )
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(graph.num_nodes, 3, generator=generator, dtype=torch.float64)
    noise = flow.scale * centered(noise, graph.batch, graph.num_graphs)
    checks = []
    plain = _end(exact, flow, graph, noise, steps, seed)
    begin = noise + graph.pos if flow.task == "relaxation" else noise
    way = float((plain.pos - begin).square().sum(1).mean().sqrt())
    checks.append(FlowCheck("way from noise to samples (Å)", way, SHORTEST, way > SHORTEST, least=True))
    way = max(way, SHORTEST)
    for name in ("rotation",) if flow.task == "conformers" else ("rotation", "reflection"):
        turn = random_orthogonal(3, proper=name == "rotation", generator=generator)
        cell = None if graph.cell is None else graph.cell @ turn.T
        turned = graph.replace(pos=graph.pos @ turn.T, cell=cell)
        error = _error(_end(exact, flow, turned, noise @ turn.T, steps, seed), plain, turn, way)
        checks.append(FlowCheck(f"{name} of the noise", error, EQUIVARIANCE, error < EQUIVARIANCE))
    order = _order(graph, generator)
    moved = _permuted(graph, order)
    swapped = _end(exact, flow, moved, noise[order], steps, seed, order)
    unchanged = plain.replace(pos=plain.pos[order], z=plain.z[order])
    error = _error(swapped, unchanged, torch.eye(3, dtype=torch.float64), way)
    checks.append(FlowCheck("permutation of atoms", error, EQUIVARIANCE, error < EQUIVARIANCE))
    if orientations and flow.task != "relaxation":
        each = math.ceil(orientations / graph.num_graphs) if flow.task == "conformers" else 1
        asked = what if flow.task == "conformers" else orientations
        drawn = sample(model, asked, each=each, steps=steps, seed=seed + 1, progress=False)
        checks += uniformity(farthest(drawn))
    return FlowAudit(tuple(checks))


def _end(
    model: Model, flow: Flow, graph: Graph, noise: Tensor, steps: int, seed: int, order: Tensor | None = None
) -> Graph:
    """The samples of given noise. With an order of atoms, their random numbers follow it."""
    generators = [torch.Generator().manual_seed(seed + k) for k in range(graph.num_graphs)]
    draws = own_draws(graph.counts.tolist(), generators)
    start = graph.pos if flow.task == "relaxation" else None
    state = graph.replace(pos=noise if start is None else noise + start)
    sampler = Sampler(
        model,
        flow,
        state,
        steps=steps,
        integrator="euler",
        start=start,
        draws=draws if order is None else lambda: draws()[order],
    )
    while sampler.left:
        sampler.step()
    return sampler.graph


def _error(found: Graph, plain: Graph, turn: Tensor, way: float) -> float:
    """Largest error of a position relative to the way of the samples; infinite if elements differ."""
    if not torch.equal(found.z, plain.z):
        return math.inf
    return float((found.pos - plain.pos @ turn.T).norm(dim=1).max()) / way


def _order(graph: Graph, generator: torch.Generator) -> Tensor:
    """A random order of the atoms of each structure."""
    return torch.argsort(graph.batch + torch.rand(graph.num_nodes, generator=generator, dtype=torch.float64))


def _permuted(graph: Graph, order: Tensor) -> Graph:
    """The batch with its atoms in another order, and the pairs sorted again."""
    place = torch.argsort(order)
    changed: dict[str, Any] = {name: value[order] for name, value in graph.values("node").items()}
    if graph.pair_index is not None and graph.pair_attr is not None:
        pairs = place[graph.pair_index]
        by_receiver = torch.argsort(pairs[1] * graph.num_nodes + pairs[0])
        changed |= {"pair_index": pairs[:, by_receiver], "pair_attr": graph.pair_attr[by_receiver]}
    return graph.replace(**changed)


def farthest(samples: Samples | Sequence[Graph]) -> Float[Tensor, "S 3"]:
    """Direction from the center of each structure to its farthest atom; single atoms have none.

    Parameters
    ----------
    samples : sequence of Graph
        Single structures.
    """
    found = []
    for graph in samples:
        if graph.num_nodes == 1:
            continue
        away = graph.pos - graph.pos.mean(0)
        far = away[away.norm(dim=1).argmax()]
        found.append(far / far.norm())
    return torch.stack(found)


def uniformity(directions: Float[Tensor, "S 3"]) -> list[FlowCheck]:
    """Tests of the hypothesis that directions are uniform on the sphere.

    3 S ‖mean u‖² has the distribution χ²(3), and 15/2 S Σ (λ - 1/3)² of the eigenvalues λ of the mean of u uᵀ
    has χ²(5), for large S.

    Parameters
    ----------
    directions : Tensor, shape (S, 3)
        Independent unit vectors.
    """
    from scipy.stats import chi2

    n = len(directions)
    first = 3 * n * float(directions.mean(0).square().sum())
    second = torch.linalg.eigvalsh(directions.T @ directions / n) - 1 / 3
    bingham = 7.5 * n * float(second.square().sum())
    values = {
        "mean direction of the density": chi2.sf(first, 3),
        "second moments of the density": chi2.sf(bingham, 5),
    }
    return [
        FlowCheck(name, float(p), SIGNIFICANCE, bool(p > SIGNIFICANCE), least=True)
        for name, p in values.items()
    ]
