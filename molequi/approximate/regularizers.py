"""Equivariance regularizer: L = L_task + Σ_s β_s R_s, with a weight β_s for each symmetry s, in one of four forms of R_s.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor

from molequi.approximate.transforms import Draws, check_symmetries, draws_of, group_with, scales, squares
from molequi.data.batches import Batches, Loader
from molequi.data.dataset import Dataset
from molequi.errors import ConfigError, TrainingWarning
from molequi.graph import Graph, collate
from molequi.hooks import Batch, Hook, Penalty, Plan, Run
from molequi.losses import Objective
from molequi.model import Model
from molequi.nn.relaxed import relaxed_layers
from molequi.quantities import SYMBOLS
from molequi.readers.load import load_dataset
from molequi.symmetry import FINITE
from molequi.util.options import Options

Form = Literal["functional", "anchored", "lie", "weights"]
STEP = 0.01  # of the central difference, in radians and parts of `shift`: float32 leaves 1e-5 of |f|, third derivatives 2e-5
EXACT = 1e-10  # of |f|, rms in float64: a model that is no further from a symmetry has it


@dataclass(frozen=True)
class EquivarianceRegularizer(Hook, Options):
    """A term of a training that penalises how far the model is from symmetries that it does not have exactly.

    L = L_task + Σ_s β_s R_s, with R_s in one of four forms, see the head of this module. The history has R_s in training and on
    the validation data, ``train_equivariance_rotation`` and ``valid_equivariance_rotation``; the latter under elements of the group that
    training does not see, for "weights" in the functional form. Choose β_s by these and by `pose_errors` on validation data. For a
    model that has a symmetry exactly R_s is zero, which a warning says.

    Parameters
    ----------
    weights : mapping of str to float >= 0
        β_s of "rotation", "reflection", "translation", "permutation"; one of them is positive.
    form : {"functional", "anchored", "lie", "weights"}
        Each symmetry costs another evaluation of the model in each step, two for "lie", none for "weights", which is for
        rotations of relaxed backbones alone.
    structures : Dataset or what `load_dataset` takes, optional
        Structures without labels, of which each step takes a random batch in place of that of the task.
    group : str
        The group of the rotations and reflections, as of `molequi.symmetry.group`: "O(n)", "O(n-1)" for those about the last
        axis, "Oh".
    shift : float, > 0, optional
        Standard deviation of translations, Å; by default the rms distance of nodes from the middle of their structure.
    name : str
        What the log calls the term. Two regularizers of one training need two names.
    """

    weights: Mapping[str, Annotated[float, Ge(0)]]
    form: Form = "functional"
    structures: Any = None
    group: str = "O(n)"
    shift: Annotated[float, Gt(0)] | None = None
    name: str = "equivariance"

    shorthand: ClassVar[str] = ""

    def problem(self) -> str:
        """What can be known to be wrong before there is a model."""
        weights, form = self.weights, self.form
        check_symmetries(list(weights), "weights")
        if not any(weights.values()):
            return f"weights is {dict(weights)}: wanted a positive weight of one symmetry at least"
        for symmetry in self.symmetries:
            if form == "lie" and symmetry in ("reflection", "permutation"):
                return (
                    f"weights.{symmetry} with form='lie': there is no small {symmetry}, and so no derivative; take 'functional' or "
                    "'anchored'"
                )
            if form == "weights" and symmetry != "rotation":
                return (
                    f"weights.{symmetry} with form='weights': the free paths of relaxed layers break rotations, and mirrors with them, all "
                    "at once, and nothing else; wanted weights={'rotation': …}, or form='functional'"
                )
        if self.shift is not None and not weights.get("translation"):
            return f"shift={self.shift} is for translations, and weights has none; give weights={{'translation': …}} or leave shift out"
        if self.group != "O(n)" and form == "weights":
            return f"group={self.group!r} has no effect on form='weights', which is about all rotations and mirrors; leave group out"
        if self.group != "O(n)" and not (weights.get("rotation") or weights.get("reflection")):
            return f"group={self.group!r} has no effect, since weights has neither rotation nor reflection; leave group out"
        if self.structures is not None and form in ("anchored", "weights"):
            why = "compares with labels" if form == "anchored" else "is about weights alone"
            return f"structures with form={form!r}, which {why}: structures without labels are for 'functional' and 'lie'"
        return ""

    @property
    def symmetries(self) -> list[str]:
        """Those with a positive weight."""
        return [symmetry for symmetry, weight in self.weights.items() if weight > 0]

    def check(self, model: Model, plan: Plan, where: str) -> None:
        """Raise ConfigError where the model has no free paths for the form "weights", and for a group that does not fit."""
        if self.form == "weights" and not any(layer.free_groups() for _, layer in relaxed_layers(model)):
            raise ConfigError(
                f"{where}.form='weights': {type(model.backbone).__name__} has no free paths; take a relaxed backbone, such as "
                "RelaxedEGNN, or form='functional', which serves any"
            )
        dim = getattr(model.backbone, "dim", None)
        self._check_group([3, 2] if dim is None else [dim], where)  # most backbones take any dimension

    def _check_group(self, dims: Sequence[int], where: str) -> None:
        """Raise ConfigError unless the group fits in one of these dimensions of space."""
        refusals: list[ConfigError] = []
        for dim in dims:
            try:
                chosen = group_with(self.group, dim, self.symmetries, f"{where}.group")
                break
            except ConfigError as error:
                refusals.append(error)
        else:
            raise refusals[0]
        if self.form == "lie" and self.weights.get("rotation") and chosen.name in FINITE:
            raise ConfigError(
                f"{where}.weights.rotation with form='lie': the group {chosen} is finite and has no small rotations; take "
                "'functional' or 'anchored', or group='O(n)'"
            )

    def start(self, run: Run) -> Hook:
        """The penalties of one training."""
        model, train, objective = run.model, run.parts["train"], run.objective.supervised
        self._check_group([train[0].dim], self.name)
        structures = None
        if self.structures is not None:
            structures = load_dataset(self.structures, only=("charge", "spin"))
            _check_elements(model, structures, self.name)
            structures = run.connected(structures)
        draws = draws_of(self.group, train, run.seed, self.shift, self.symmetries, self.name)
        warn_of_exact_symmetries(self, model, train, draws, objective)
        scale = scales({name: model.quantities[name] for name in objective.weights}, train)
        return Regularization(self, draws, objective, scale, structures, run.batch_limits, run.share)


class Regularization(Hook):
    """The penalties R_s of a training.

    Which elements of the group and which structures a step takes is a function of the seed and the number of the step.

    Parameters
    ----------
    term : EquivarianceRegularizer
        Weights and form.
    draws : Draws
        Random elements of the group.
    objective : Objective
        The loss of the task, without functions of the user.
    scale : Mapping
        Size of each quantity.
    structures : Dataset, optional
        Connected ones without labels; None takes the batch of the task, for which f(x) is known already.
    limits : Mapping
        Of a batch of `structures`, as of `Batches`.
    share : (int, int)
        Rank of this device and number of devices.
    """

    def __init__(
        self,
        term: EquivarianceRegularizer,
        draws: Draws,
        objective: Objective,
        scale: Mapping[str, float],
        structures: Dataset | None,
        limits: Mapping[str, int],
        share: tuple[int, int],
    ) -> None:
        self.term, self.name, self.kind = term, term.name, term.form
        self.weights = {symmetry: term.weights[symmetry] for symmetry in term.symmetries}
        self.draws, self.loss, self.scale, self.share = draws, objective, scale, share
        self.quantities = {name: objective.quantities[name] for name in objective.weights}
        self.batches: Batches | None = None
        self.graphs: list[Graph] = []
        self.digest = None if structures is None else structures.digest
        if structures is not None:
            self.batches = Batches(structures, **limits, seed=draws.seed + 1)
            self.graphs = Loader(structures, []).graphs

    def record(self) -> dict[str, Any]:
        """All options, with the digest of the structures."""
        term = self.term
        return {
            "weights": dict(term.weights),
            "form": term.form,
            "structures": self.digest,
            "group": term.group,
            "shift": term.shift,
        }

    def penalty(self, run: Run, batch: Batch) -> Penalty:
        """Σ_s β_s R_s, and each R_s for the log."""
        values = self.values(run.model, batch, run.add_up)
        return Penalty(self.total(values), dict(zip(self.weights, values)))

    def validation_sums(self, run: Run, model: Model, batch: Batch) -> Tensor:
        """Sums and numbers of components, (S, 2, Q)."""
        if batch.graph is None or batch.predictions is None:
            return torch.zeros(
                len(self.weights), 2, len(self.quantities), dtype=torch.float64, device=model.device
            )
        return self.sums(model, batch.graph, batch.predictions, batch.counts, batch.number)

    def validation_values(self, sums: Tensor) -> dict[str, float]:
        """R_s of each symmetry."""
        return dict(zip(self.weights, self.mean(sums).tolist()))

    def total(self, values: Float[Tensor, "S"]) -> Tensor:
        """Σ_s β_s R_s."""
        return (values.new_tensor(list(self.weights.values())) * values).sum()

    def values(self, model: Model, batch: Batch, add_up: Callable[[Tensor], Tensor]) -> Float[Tensor, "S"]:
        """R_s in a step of the training, of which this device has a share."""
        if self.kind == "weights":
            return free_squares(model)[None] / self.share[1]
        graph, out, counts = batch.graph, batch.predictions, batch.counts
        if self.batches is not None:
            chosen = self.batches.first(batch.number)
            counts, mine = [self.graphs[k].num_nodes for k in chosen], chosen[self.share[0] :: self.share[1]]
            graph = collate([self.graphs[k] for k in mine]).to(model.device) if mine else None
            out = model(graph) if graph is not None else None
        return self._values(model, graph, out, counts, ("train", batch.number), add_up)

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

    def _values(
        self,
        model: Model,
        graph: Graph | None,
        out: Mapping[str, Tensor] | None,
        counts: Sequence[int],
        key: tuple,
        add_up: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "S"]:
        sums = torch.zeros(
            len(self.weights), 2, len(self.quantities), dtype=torch.float64, device=model.device
        )
        if graph is not None and out is not None:
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


def warn_of_exact_symmetries(
    term: EquivarianceRegularizer, model: Model, data: Dataset, draws: Draws, objective: Objective
) -> None:
    """Warn (TrainingWarning) of symmetries that the model has exactly, as measured on a few structures with its weights shaken: the penalty
    has no effect and costs time.
    """
    if term.form == "weights":
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
    functional = replace(term, form="functional", structures=None)
    ones = dict.fromkeys(objective.weights, 1.0)
    probe = Regularization(functional, draws, objective, ones, None, {}, (0, 1))
    few = sorted(data, key=lambda g: -g.num_nodes)[:4]
    graph = collate(few).replace(targets={}).to(model.device)
    out = twin(graph)
    measured = probe.sums(twin, graph, out, [g.num_nodes for g in few], 0)
    size = torch.stack(
        [out[name].double().nan_to_num(0.0).square().mean() for name in objective.weights]
    ).mean()
    exact = [
        name
        for name, value in zip(probe.weights, probe.mean(measured).tolist())
        if value <= EXACT**2 * float(size)
    ]
    if exact:
        what = "the loss once more" if term.form == "anchored" else "zero"
        warnings.warn(
            f"{term.name} regularizer of {', '.join(exact)}: {type(model.backbone).__name__} has this symmetry exactly (to {EXACT:g}), so "
            f"that the penalty is {what} and only costs time; leave it out of weights",
            TrainingWarning,
            stacklevel=3,
        )


def _check_elements(model: Model, structures: Dataset, where: str) -> None:
    """Raise ConfigError for elements that the model does not know."""
    unknown = [SYMBOLS[z] for z in structures.elements if z not in model.elements]
    if unknown:
        raise ConfigError(
            f"the structures of the {where} regularizer have {', '.join(unknown)} and the model knows only "
            f"{', '.join(SYMBOLS[z] for z in model.elements)}; name all elements when the backbone is made"
        )
