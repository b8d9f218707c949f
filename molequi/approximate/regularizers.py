"""Symmetry as a prior: L = L_task + Σ_s β_s R_s, with a weight β_s for each symmetry s, in one of four forms of R_s.

    functional  |f(gx) - ρ(g) f(x)|² / |f|²         g at random, another one for each structure and step; needs no labels
    anchored    L_task of f(gx) against ρ(g) y      g at random; needs labels, and holds where labels turn
    lie         Σ_k |L_k f|² / |f|²                 the generators of rotations and translations; needs no labels
    weights     Σ |(1 - P) W|²                      the free paths of relaxed layers, by their distance from equivariant maps

All but the last ask the model alone, so that they serve any backbone. |f| is the size of the labels (`poses.size`), which f comes to have:
a model cannot make R_s small by growing. Forms: Elhag et al. 2024 (arXiv 2410.17878), Kim et al. 2023 (arXiv 2306.00356), Gruver et al.
2023 (arXiv 2210.02984), Finzi et al. 2021 (arXiv 2112.01388).
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.approximate.transforms import Draws, check_symmetries, group_with, squares
from molequi.data.batches import Batches, Loader
from molequi.data.dataset import Dataset
from molequi.errors import ConfigError, TrainingWarning
from molequi.graph import Graph, collate
from molequi.losses import Loss
from molequi.model import Model
from molequi.nn.relaxed import relaxed_layers
from molequi.symmetry import FINITE

Kind = Literal["functional", "anchored", "lie", "weights"]
KIND: Kind = "functional"
GROUP = "O(n)"
STEP = 0.01  # of the central difference, in radians and parts of `shift`: float32 leaves 1e-5 of |f|, third derivatives 2e-5
EXACT = 1e-10  # of |f|, rms in float64: a model that is no further from a symmetry has it


def check_prior(
    prior: Mapping[str, float] | None,
    kind: Kind = KIND,
    structures: Any = None,
    shift: float | None = None,
    group: str = GROUP,
    where: str = "prior",
) -> None:
    """All that can be known of a prior before there is a model. Raises ConfigError."""
    if prior is None:
        for name, given in (
            ("kind", kind != KIND),
            ("structures", structures is not None),
            ("shift", shift is not None),
            ("group", group != GROUP),
        ):
            if given:
                raise ConfigError(
                    f"{where}_{name} is given and {where} is not: say for which symmetries, such as "
                    f"{where}={{'rotation': 0.1}}"
                )
        return
    check_symmetries(list(prior), where)
    if not any(prior.values()):
        raise ConfigError(
            f"{where} is {dict(prior)}: wanted a positive weight of one symmetry at least, or no prior at all"
        )
    for name in (name for name, weight in prior.items() if weight > 0):
        if kind == "lie" and name in ("reflection", "permutation"):
            raise ConfigError(
                f"{where}.{name} with {where}_kind='lie': there is no small {name}, and so no derivative; take "
                "'functional' or 'anchored'"
            )
        if kind == "weights" and name != "rotation":
            raise ConfigError(
                f"{where}.{name} with {where}_kind='weights': the free paths of relaxed layers break rotations, and mirrors "
                f"with them, all at once, and nothing else; wanted {where}={{'rotation': …}}, or {where}_kind='functional'"
            )
    if shift is not None and not prior.get("translation"):
        raise ConfigError(
            f"{where}_shift={shift}: how far translations go, and {where} has none; give {where}={{'translation': …}} or "
            "leave it out"
        )
    if group != GROUP and (kind == "weights" or not (prior.get("rotation") or prior.get("reflection"))):
        why = (
            f"and {where}_kind='weights', which is about all rotations and mirrors"
            if kind == "weights"
            else f"and {where} has neither rotation nor reflection"
        )
        raise ConfigError(f"{where}_group={group!r} {why}: leave {where}_group out")
    if structures is not None and kind in ("anchored", "weights"):
        why = "compares with labels" if kind == "anchored" else "looks at weights alone"
        raise ConfigError(
            f"{where}_structures with {where}_kind={kind!r}, which {why}: structures without labels are for 'functional' "
            "and 'lie'"
        )


class Prior:
    """The penalties R_s of a training.

    weights: β_s; symmetries of weight zero are left out. structures: connected ones without labels, of which each step takes a random
    batch; None: the batch of the task, whose f(x) is known already. limits: of a batch, as of `Batches`.
    Which elements and structures a step takes is a function of the seed and the number of the step.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        kind: Kind,
        draws: Draws,
        loss: Loss,
        scale: Mapping[str, float],
        structures: Dataset | None,
        limits: Mapping[str, int | None],
        share: tuple[int, int],
    ):
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.kind, self.draws, self.loss, self.scale, self.share = kind, draws, loss, scale, share
        self.quantities = {name: loss.quantities[name] for name in loss.weights}
        self.batches = self.graphs = None
        if structures is not None:
            self.batches = Batches(structures, **limits, seed=draws.seed + 1)
            self.graphs = Loader(structures, []).graphs

    @property
    def names(self) -> list[str]:
        return list(self.weights)

    def total(self, values: Float[Tensor, "S"]) -> Tensor:
        """Σ_s β_s R_s."""
        return (values.new_tensor(list(self.weights.values())) * values).sum()

    def __call__(
        self,
        model: Model,
        graph: Graph | None,
        out: Mapping[str, Tensor] | None,
        counts: Sequence[int],
        step: int,
        add_up,
    ) -> Float[Tensor, "S"]:
        """R_s in a step of the training, of which this device has a share.

        graph, out: its share of the batch of the task, and what the model says of it. counts: nodes of each structure of the whole batch.
        add_up: the sum over the devices.
        """
        if self.kind == "weights":
            return free_squares(model)[None] / self.share[1]
        if self.batches is not None:
            chosen = self.batches.first(step)
            counts, mine = [self.graphs[k].num_nodes for k in chosen], chosen[self.share[0] :: self.share[1]]
            graph = collate([self.graphs[k] for k in mine]).to(model.device) if mine else None
            out = model(graph) if graph is not None else None
        return self._values(model, graph, out, counts, ("train", step), add_up)

    def sums(
        self, model: Model, graph: Graph, out: Mapping[str, Tensor], counts: Sequence[int], number: int
    ) -> Float[Tensor, "S 2 Q"]:
        """For validation: sums and numbers of components on batch `number`, in poses that training does not see but are always the same.

        Free weights are judged by what they do, in the functional form.
        """
        return torch.stack(
            [
                torch.stack(self._compared(s, model, graph, out, counts, ("valid", number)))
                for s in self.weights
            ]
        )

    def mean(self, sums: Float[Tensor, "S 2 Q"]) -> Float[Tensor, "S"]:
        """R_s of sums over batches and devices."""
        if self.kind == "anchored":
            return torch.stack([self.loss.total(*one) for one in sums])
        return (sums[:, 0] / sums[:, 1].clamp(min=1)).mean(1)

    def _values(self, model, graph, out, counts, key, add_up) -> Float[Tensor, "S"]:
        sums = torch.zeros(
            len(self.weights), 2, len(self.quantities), dtype=torch.float64, device=model.device
        )
        if graph is not None:
            sums = torch.stack(
                [torch.stack(self._compared(s, model, graph, out, counts, key)) for s in self.weights]
            )
        return self.mean(torch.stack([sums[:, 0], add_up(sums[:, 1].detach())], dim=1))

    def _compared(
        self,
        symmetry: str,
        model: Model,
        graph: Graph,
        out: Mapping[str, Tensor],
        counts: Sequence[int],
        key: tuple,
    ) -> tuple[Float[Tensor, "Q"], Float[Tensor, "Q"]]:
        """Sum over the components of each quantity, and their number."""
        if self.kind == "lie":
            here, back, dimension = self.draws.generators(symmetry, counts, key, STEP, self.share)
            ahead, behind = (
                (poses, model(poses.graph(graph, {})))
                for poses in (here.to(model.device), back.to(model.device))
            )
            # ρ(-h) f(exp(hξ) x) - ρ(h) f(exp(-hξ) x) is 2h L f to third order, and exactly zero for an equivariant f
            found, wanted = (
                {n: other[0].value(q, one[1][n], graph) for n, q in self.quantities.items()}
                for one, other in ((ahead, behind), (behind, ahead))
            )
            sums, known = squares(self.quantities, found, wanted, self.scale, graph)
            return sums * (dimension / (2 * STEP) ** 2), known
        poses = self.draws(symmetry, counts, key, self.share).to(model.device)
        image = poses.graph(graph, self.quantities)
        found = model(image)
        if self.kind == "anchored":
            return self.loss.sums(found, image), self.loss.known(image).double()
        wanted = {name: poses.value(q, out[name], graph) for name, q in self.quantities.items()}
        return squares(self.quantities, found, wanted, self.scale, graph)


def free_squares(model: Model) -> Tensor:
    """|(1 - P) W|² summed over the relaxed layers: the squares of the weights of their free paths, gates included.

    What a layer projects away of its own free weights counts too: it has no effect and only falls to zero.
    """
    squared = [
        (layer.free * p).double().square().sum()
        for _, layer in relaxed_layers(model)
        for group in layer.free_groups().values()
        for p in group
    ]
    return torch.stack(squared).sum()


def check_form(
    prior: Mapping[str, float] | None,
    kind: Kind,
    group: str,
    model: Model,
    dims: Sequence[int],
    where: str = "prior",
) -> None:
    """What is known of a prior once there is a model, and before there are data. dims: dimensions of space that these may have.

    Raises ConfigError for the weights form where there are no free paths, for groups that are not known or lack the symmetries, and for
    derivatives of finite groups.
    """
    if prior is None:
        return
    if kind == "weights" and not any(layer.free_groups() for _, layer in relaxed_layers(model)):
        raise ConfigError(
            f"{where}_kind='weights': {type(model.backbone).__name__} has no free paths; take a relaxed backbone, such as "
            f"RelaxedEGNN, or {where}_kind='functional', which serves any"
        )
    refusals: list[ConfigError] = []
    for dim in dims:
        try:
            chosen = group_with(group, dim, [s for s, weight in prior.items() if weight], where)
            break
        except ConfigError as error:
            refusals.append(error)
    else:
        raise refusals[0]
    if kind == "lie" and prior.get("rotation") and chosen.name in FINITE:
        raise ConfigError(
            f"{where}.rotation with {where}_kind='lie': the group {chosen} is finite and has no small rotations; take "
            f"'functional' or 'anchored', or {where}_group='O(n)'"
        )


def check_model(
    prior: Mapping[str, float], kind: Kind, model: Model, data: Dataset, draws: Draws, loss: Loss
) -> None:
    """Warns (TrainingWarning) of symmetries that the model has exactly, as measured on a few structures with its weights shaken: their
    prior says nothing and costs time.
    """
    if kind == "weights":
        return
    twin = copy.deepcopy(model).to(torch.float64).eval()
    twin.use_program(None)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in twin.parameters():
            p += (
                0.1
                * (p.square().mean().sqrt() + 0.1)
                * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
            )
    probe = Prior(
        {name: weight for name, weight in prior.items() if weight > 0},
        "functional",
        draws,
        loss,
        dict.fromkeys(loss.weights, 1.0),
        None,
        {},
        (0, 1),
    )
    few = sorted(data, key=lambda g: -g.num_nodes)[:4]
    graph = collate(few).replace(targets={}).to(model.device)
    out = twin(graph)
    measured = probe.sums(twin, graph, out, [g.num_nodes for g in few], 0)
    size = torch.stack(
        [v.double().nan_to_num(0.0).square().mean() for v in (out[name] for name in loss.weights)]
    ).mean()
    exact = [
        name
        for name, value in zip(probe.names, probe.mean(measured).tolist())
        if value <= EXACT**2 * float(size)
    ]
    if exact:
        what = "the loss once more" if kind == "anchored" else "zero"
        warnings.warn(
            f"prior of {', '.join(exact)}: {type(model.backbone).__name__} has this symmetry exactly (to {EXACT:g}), so that the penalty is "
            f"{what} and only costs time; leave it out of prior",
            TrainingWarning,
            stacklevel=3,
        )
