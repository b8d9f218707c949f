"""Equivariance regularizer: L = L_task + Σ_s β_s R_s, with a weight β_s for each symmetry s.

The penalty R_s has one of four forms::

    functional   |f(gx) - ρ(g) f(x)|² / |f|²       random g in each step; needs no labels
    anchored     L_task of f(gx) against ρ(g) y    random g in each step; needs labels that follow the
    symmetry lie          Σ_k |L_k f|² / |f|²               generators k of rotations or translations; needs
    no labels weights      Σ |(1 - P) W|²                    weights W of relaxed layers; needs no labels

L_k is the Lie derivative along generator k, and P is the projection on the equivariant maps. The form
"weights" needs a backbone with relaxed layers; the others need no more than the outputs and serve any
backbone. ``|f|`` is the scale of the labels (`molequi.approximate.scales`), so that a model cannot reduce R_s
by scaling its outputs.

Sources: an equivariance loss beside that of the task, Elhag et al. 2024 (arXiv 2410.17878); one regularizer
for each type of symmetry, Kim et al. 2023 (arXiv 2306.00356); Lie derivatives of a network, Gruver et al.
2023 (arXiv 2210.02984); a prior on the weights that break the symmetry, Finzi et al. 2021 (arXiv 2112.01388).
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor

from molequi.approximate.penalties import (
    EXACT,
    EquivariancePenalty,
    Form,
    exact_symmetries,
    squared_free_weights,
)
from molequi.approximate.scales import quantity_scales
from molequi.approximate.transforms import (
    Key,
    RandomTransforms,
    check_symmetries,
    group_with,
    random_transforms,
)
from molequi.data.batches import Batches
from molequi.data.dataset import Dataset
from molequi.domain import totals_taken
from molequi.errors import ConfigError, TrainingWarning
from molequi.graph import Graph
from molequi.hooks import Batch, Hook, Penalty, Plan, Run
from molequi.losses import Objective
from molequi.model import Model
from molequi.nn.relaxed import relaxed_layers
from molequi.quantities import SYMBOLS
from molequi.readers.load import load_dataset
from molequi.symmetry import FINITE
from molequi.util.options import Options
from molequi.util.signature import check_keywords


@check_keywords()
@dataclass(frozen=True)
class EquivarianceRegularizer(Hook, Options):
    """A term of a training that penalises how far the model is from symmetries that it does not have exactly.

    L = L_task + Σ_s β_s R_s, with R_s in one of four forms, see `molequi.approximate.regularizers`. The
    history has R_s on the training and the validation data, for instance ``train_equivariance_rotation`` and
    ``valid_equivariance_rotation``. Validation uses other elements of the group than training, and for
    "weights" the functional form. Choose β_s by these numbers, and by
    `molequi.approximate.equivariance_errors` on validation data. If the model has a symmetry exactly, R_s is
    zero; a `TrainingWarning` says so.

    Parameters
    ----------
    weights : mapping of str to float >= 0
        β_s of "rotation", "reflection", "translation", "permutation"; at least one is positive.
    form : {"functional", "anchored", "lie", "weights"}
        In each step a symmetry costs one more evaluation of the model, two for "lie", none for "weights". The
        form "weights" is for rotations and relaxed backbones only.
    structures : Dataset or what `load_dataset` takes, optional
        Structures without labels. Each step then uses a random batch of them for the penalty, not that of the
        task.
    group : str
        The group of the rotations and reflections, as in `molequi.symmetry.group`: "O(n)", "O(n-1)" for those
        that keep the last axis, "Oh" for those of a cube.
    shift : float, > 0, optional
        Standard deviation of each component of a translation, in Å. By default the root mean square distance
        of the nodes from the centroid of their structure.
    name : str
        What the log calls the term. Two regularizers of one training need two names.

    Raises
    ------
    ConfigError
        For values out of range, and for options that contradict each other.

    Examples
    --------
    >>> EquivarianceRegularizer({"rotation": 0.1, "permutation": 0.0}).symmetries
    ['rotation']
    """

    weights: Mapping[str, Annotated[float, Ge(0)]]
    form: Form = "functional"
    structures: Any = None
    group: str = "O(n)"
    shift: Annotated[float, Gt(0)] | None = None
    name: str = "equivariance"

    shorthand: ClassVar[str] = ""

    def problem(self) -> str:
        """What is wrong with the options, without a model; an empty string if nothing is."""
        check_symmetries(list(self.weights), "weights")
        if not any(self.weights.values()):
            return f"weights is {dict(self.weights)}: wanted a positive weight of one symmetry at least"
        return self._problem_of_form() or self._problem_of_elements()

    def _problem_of_form(self) -> str:
        form = self.form
        for symmetry in self.symmetries:
            if form == "lie" and symmetry in ("reflection", "permutation"):
                return (
                    f"weights.{symmetry} with form='lie': there is no infinitesimal {symmetry}, and so no "
                    "derivative; take 'functional' or 'anchored'"
                )
            if form == "weights" and symmetry != "rotation":
                return (
                    f"weights.{symmetry} with form='weights': the free paths of relaxed layers break "
                    "rotations and "
                    "reflections, all at once, and nothing else; wanted weights={'rotation': …}, or "
                    "form='functional'"
                )
        return ""

    def _problem_of_elements(self) -> str:
        weights, form = self.weights, self.form
        if self.shift is not None and not weights.get("translation"):
            return (
                f"shift={self.shift} is for translations, and weights has none; give "
                f"weights={{'translation': …}} or leave shift out"
            )
        if self.group != "O(n)" and form == "weights":
            return (
                f"group={self.group!r} has no effect on form='weights', which is about all rotations and "
                "reflections; leave group out"
            )
        if self.group != "O(n)" and not (weights.get("rotation") or weights.get("reflection")):
            return (
                f"group={self.group!r} has no effect, since weights has neither rotation nor reflection; "
                "leave group out"
            )
        if self.structures is not None and form in ("anchored", "weights"):
            why = "compares with labels" if form == "anchored" else "depends on the weights alone"
            return (
                f"structures with form={form!r}, which {why}: structures without labels are for 'functional' "
                "and 'lie'"
            )
        return ""

    @property
    def symmetries(self) -> list[str]:
        """The symmetries with a positive weight."""
        return [symmetry for symmetry, weight in self.weights.items() if weight > 0]

    def check(self, model: Model, plan: Plan, where: str) -> None:
        """Check that the form and the group fit the model.

        Parameters
        ----------
        model : Model
            The model.
        plan : Plan
            Options of the training.
        where : str
            Beginning of error messages.

        Raises
        ------
        ConfigError
            If the form is "weights" and the model has no free paths, or if the group is unknown, does not
            exist in the dimension of the model, or lacks a symmetry.
        """
        if self.form == "weights" and not any(layer.free_groups() for _, layer in relaxed_layers(model)):
            raise ConfigError(
                f"{where}.form='weights': {type(model.backbone).__name__} has no free paths; take a relaxed "
                "backbone, such as RelaxedEGNN, or form='functional', which serves any"
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
                f"{where}.weights.rotation with form='lie': the group {chosen} is finite and has no "
                "infinitesimal rotations; take 'functional' or 'anchored', or group='O(n)'"
            )

    def start(self, run: Run) -> Hook:
        """The penalties of one training, as a hook with a state.

        Parameters
        ----------
        run : Run
            The training.

        Returns
        -------
        Hook
            A `molequi.approximate.penalties.Regularization`.
        """
        model, train, objective = run.model, run.parts["train"], run.objective.supervised
        self._check_group([train[0].dim], self.name)
        structures = None
        if self.structures is not None:
            structures = load_dataset(self.structures, only=totals_taken(model))
            _check_elements(model, structures, self.name)
            structures = run.connected(structures)
        transforms = random_transforms(self.group, train, run.seed, self.shift, self.symmetries, self.name)
        self._warn_of_exact_symmetries(model, train, transforms, objective)
        scales = quantity_scales({name: model.quantities[name] for name in objective.weights}, train)
        return Regularization(self, transforms, objective, scales, structures, run.batch_limits, run.share)

    def _warn_of_exact_symmetries(
        self, model: Model, data: Dataset, transforms: RandomTransforms, objective: Objective
    ) -> None:
        """Warn (TrainingWarning) of symmetries that the model has exactly: their penalty only costs time."""
        if self.form == "weights":
            return
        exact = exact_symmetries(self.symmetries, model, data, transforms, objective)
        if exact:
            what = "the loss once more" if self.form == "anchored" else "zero"
            warnings.warn(
                f"{self.name} regularizer of {', '.join(exact)}: {type(model.backbone).__name__} has this "
                f"symmetry exactly (to {EXACT:g}), so that the penalty is {what} and only costs time; leave "
                "it out of weights",
                TrainingWarning,
                stacklevel=3,
            )


class Regularization(Hook):
    """The penalties R_s of one training.

    Which elements of the group and which structures a step uses is a function of the seed and the number of
    the step.

    Parameters
    ----------
    term : EquivarianceRegularizer
        Weights and form.
    transforms : RandomTransforms
        Random elements of the group.
    objective : Objective
        The loss of the task, without the user's own functions.
    scales : mapping of str to float
        Scale of each quantity.
    structures : Dataset, optional
        Structures with edges and without labels. By default the batch of the task, whose f(x) is already
        known.
    limits : mapping of str to int
        The limit of a batch of `structures`, as in `Batches`.
    share : (int, int)
        Rank of this device and number of devices.
    """

    def __init__(
        self,
        term: EquivarianceRegularizer,
        transforms: RandomTransforms,
        objective: Objective,
        scales: Mapping[str, float],
        structures: Dataset | None,
        limits: Mapping[str, int],
        share: tuple[int, int],
    ) -> None:
        self.term, self.name, self.share = term, term.name, share
        self.weights = {symmetry: term.weights[symmetry] for symmetry in term.symmetries}
        self.penalties = EquivariancePenalty(term.form, transforms, objective, scales, share)
        self.batches: Batches | None = None
        self.digest = None if structures is None else structures.digest
        if structures is not None:
            self.batches = Batches(
                structures,
                batch_size=limits.get("batch_size"),
                batch_atoms=limits.get("batch_atoms"),
                batch_edges=limits.get("batch_edges"),
                seed=transforms.seed + 1,
            )
            self.graphs = structures.graphs.with_targets(())

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

    def validation_sums(self, run: Run, model: Model, batch: Batch) -> Float[Tensor, "S 2 Q"]:
        """Sums over components and their numbers; zero if this device has no part of the batch."""
        if batch.graph is None or batch.predictions is None:
            return self._nothing(model)
        return self.sums(model, batch.graph, batch.predictions, batch.counts, ("valid", batch.number))

    def validation_values(self, sums: Tensor) -> dict[str, float]:
        """R_s of each symmetry."""
        return dict(zip(self.weights, self.penalties.mean(sums).tolist()))

    def total(self, values: Float[Tensor, "S"]) -> Float[Tensor, ""]:
        """Σ_s β_s R_s."""
        return (values.new_tensor(list(self.weights.values())) * values).sum()

    def values(self, model: Model, batch: Batch, add_up: Callable[[Tensor], Tensor]) -> Float[Tensor, "S"]:
        """The part of R_s of this device in a step of the training.

        Parameters
        ----------
        model : Model
            The model that is trained.
        batch : Batch
            The batch of the task.
        add_up : callable
            The sum of a tensor over all devices.
        """
        if self.term.form == "weights":
            return squared_free_weights(model)[None] / self.share[1]
        graph, out, counts = batch.graph, batch.predictions, batch.counts
        if self.batches is not None:
            rank, devices = self.share
            chosen = self.batches.first(batch.number)
            counts = self.graphs.counts[chosen].tolist()
            mine = chosen[rank::devices]
            graph = self.graphs.batch(mine).to(model.device) if mine else None
            out = model(graph) if graph is not None else None
        sums = self._nothing(model)
        if graph is not None and out is not None:
            sums = self.sums(model, graph, out, counts, ("train", batch.number))
        # The number of components is that of all devices, so that the parts of the devices add up to the
        # mean.
        return self.penalties.mean(torch.stack([sums[:, 0], add_up(sums[:, 1].detach())], dim=1))

    def sums(
        self, model: Model, graph: Graph, out: Mapping[str, Tensor], counts: Sequence[int], key: Key
    ) -> Float[Tensor, "S 2 Q"]:
        """`EquivariancePenalty.sums` of each symmetry."""
        return torch.stack([self.penalties.sums(s, model, graph, out, counts, key) for s in self.weights])

    def _nothing(self, model: Model) -> Float[Tensor, "S 2 Q"]:
        shape = len(self.weights), 2, len(self.penalties.quantities)
        return torch.zeros(shape, dtype=torch.float64, device=model.device)


def _check_elements(model: Model, structures: Dataset, where: str) -> None:
    """Raise ConfigError for elements that the model does not know."""
    unknown = [SYMBOLS[z] for z in structures.elements if z not in model.elements]
    if unknown:
        raise ConfigError(
            f"the structures of the {where} regularizer have {', '.join(unknown)} and the model knows only "
            f"{', '.join(SYMBOLS[z] for z in model.elements)}; name all elements when the backbone is made"
        )
