"""Layer-wise equivariance selection: how equivariant each layer should be, learned from the data.

A training loss never increases when a model gets more freedom, so that training alone always ends without
constraints. Here the free path of each layer and irrep (group g of the weights) has a penalty λ_g ``|w_g|²``,
whose strength λ_g is updated every few epochs in one of two ways:

evidence
    The free weights have the prior w_g ~ N(0, 1/α_g). The network is linearised at its weights (Laplace
    approximation, `molequi.approximate.laplace`), and the precisions α_g and the noise are set to the maximum
    of the marginal likelihood of this linear model, exactly (`molequi.approximate.evidence`). A group whose
    precision becomes infinite is pruned: its weights are exactly zero from then on. Sources: MacKay 1992;
    Immer et al. 2021 (arXiv 2104.04975); by layer and irrep, van der Ouderaa et al. 2023 (arXiv 2310.06131).

hypergradient
    λ_g follows the gradient of the validation loss by ln λ_g (`molequi.approximate.hypergradient`; Luketina
    et al. 2016, arXiv 1511.06727). An update costs one gradient on the validation data, and many are needed,
    one in each epoch. The validation data are then used for more than the choice of the best epoch. A path is
    pruned only when it contributes next to nothing.

Limits of the evidence: if a strict network has memorised its training data, nothing is left for the free
paths to explain. The noise of a quantity is assumed to be independent from component to component. Errors
that all components of a structure share, such as a net force, are not, and a few dozen such structures can
look like broken symmetry.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Gt

from molequi.approximate.annealing import ConstraintAnnealing
from molequi.approximate.free_paths import gates, open_groups
from molequi.approximate.hypergradient import updated_strengths, validation_slopes
from molequi.approximate.laplace import linearised_evidence, warn_of_left_out
from molequi.approximate.regularizers import EquivarianceRegularizer
from molequi.approximate.report import LayerwiseEquivariance, Method, path_rows
from molequi.approximate.shares import output_shares
from molequi.data.dataset import Dataset
from molequi.errors import ConfigError, TrainingWarning
from molequi.hooks import Hook, Plan, Run
from molequi.losses import Objective
from molequi.model import Model
from molequi.nn.relaxed import free_groups
from molequi.util.options import Options
from molequi.util.signature import check_keywords

EVERY = 10  # epochs
LAST_UPDATE = 0.8  # part of the training after which the precisions stay, so that the weights can converge
# Number of updates below which a report has a caveat. A hypergradient changes λ by a factor of e at most.
ENOUGH = {"evidence": 2, "hypergradient": 10}
# The training loss still falls fast if less than this part of it is left, before and after the last update.
FALLING_BEFORE, FALLING_AFTER = 1 / 3, 1 / 2
UNFITTED = 4.0  # a training loss of so many times the noise alone is far from a fit


@check_keywords()
@dataclass(frozen=True)
class EquivarianceSelection(Hook, Options):
    """A term of a training that learns how equivariant a relaxed backbone should be, by layer and irrep.

    The free path of each layer and irrep has a precision, which is updated in the first 80 % of the training;
    see `molequi.approximate.selection` for the method and its sources. The gates c are not trained.
    ``result.reports["equivariance_selection"]`` is a `molequi.approximate.LayerwiseEquivariance`, also
    written to ``equivariance_selection.json``. It has a caveat if there were few updates, or if the last came
    too early in the training.

    Parameters
    ----------
    method : {"evidence", "hypergradient"}
        By the marginal likelihood of the training data, or, at a lower cost, by the gradient of the
        validation loss.
    every : int, > 0
        Number of epochs from one update to the next.

    Raises
    ------
    ConfigError
        For values out of range.

    Examples
    --------
    >>> EquivarianceSelection("evidence")
    EquivarianceSelection(method='evidence', every=10)
    """

    method: Method
    every: Annotated[int, Gt(0)] = EVERY

    shorthand: ClassVar[str] = "method"

    def check(self, model: Model, plan: Plan, where: str) -> None:
        """Check that the precisions can be learned with this model and these options.

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
            If the model has no free paths, or their weights are not trained; with other terms that act on the
            free paths; if the training is too short for an update; and, for the evidence, with losses other
            than the mean square error.
        """
        frozen = [
            name
            for name, group in open_groups(model, where).items()
            if not all(p.requires_grad for p in group)
        ]
        if frozen:
            raise ConfigError(
                f"{where}: free weights of {', '.join(frozen)} are frozen (requires_grad is False), and "
                "their precision cannot be learned; set requires_grad, or leave EquivarianceSelection out"
            )
        for term in plan.terms:
            if isinstance(term, ConstraintAnnealing):
                raise ConfigError(
                    f"{where}: EquivarianceSelection and ConstraintAnnealing: annealing ends strictly "
                    "equivariant, whatever the data say; take one of the two"
                )
            if isinstance(term, EquivarianceRegularizer) and term.form == "weights":
                raise ConfigError(
                    f"{where}: EquivarianceSelection and EquivarianceRegularizer(form='weights'): both "
                    "penalise the free weights, with learned and with given strength; take one of the two"
                )
        if plan.epochs is not None and self.every > LAST_UPDATE * plan.epochs:
            raise ConfigError(
                f"{where}.every is {self.every} and epochs {plan.epochs}: precisions are updated only in the "
                f"first {LAST_UPDATE:.0%} of the training, so there would be no update; train longer, or "
                "lower every"
            )
        if self.method == "evidence":
            self._check_noise(model, plan, where)

    def _check_noise(self, model: Model, plan: Plan, where: str) -> None:
        """Raise ConfigError for losses that are not the likelihood of labels with Gaussian noise."""
        for term in plan.losses:
            if term.weight and (term.function is not None or (term.kind or "mse") != "mse"):
                what = "a function" if term.function is not None else f"kind={term.kind!r}"
                raise ConfigError(
                    f"{where}: method='evidence' and loss.{term.label} with {what}: the evidence assumes "
                    "Gaussian noise, which is kind='mse'; take this, or method='hypergradient'"
                )
        classes = [name for name, q in model.quantities.items() if q.classes]
        if classes:
            raise ConfigError(
                f"{where}: method='evidence' and classes ({', '.join(classes)}): the evidence assumes labels "
                "with Gaussian noise; take method='hypergradient'"
            )

    def start(self, run: Run) -> Hook:
        """The selection of one training, as a hook with a state.

        Parameters
        ----------
        run : Run
            The training.

        Returns
        -------
        Hook
            A `Selection`.
        """
        return Selection(self, run.model, run.objective, run.parts["train"], run.seed)


class Selection(Hook):
    """The layer-wise equivariance selection of one training.

    Parameters
    ----------
    term : EquivarianceSelection
        Method and interval.
    model : Model
        The model that is trained.
    objective : Objective
        The loss.
    train : Dataset
        Training data with edges.
    seed : int
        Seed of the training.
    """

    def __init__(
        self, term: EquivarianceSelection, model: Model, objective: Objective, train: Dataset, seed: int
    ) -> None:
        self.name = term.name
        self.method, self.every, self.seed = term.method, term.every, seed
        self.model, self.train = model, train
        self.objective, self.loss = objective, objective.supervised
        self.groups = open_groups(model, term.name)
        # The names of these attributes are the keys of the saved state.
        self.strength: dict[str, float] = {}  # λ_g; infinite if pruned; empty before the first update
        self.precision: dict[str, float] = {}
        self.gain: dict[str, float] = {}
        self.noise: dict[str, float] = {}
        self.epoch = 0  # of the last update
        self.updates = 0

    def record(self) -> dict[str, Any]:
        """Method and interval."""
        return {"method": self.method, "every": self.every}

    def frozen(self) -> set[int]:
        """The gates: their growth could undo a penalty on the free weights."""
        return gates(self.model)

    def state(self) -> dict[str, Any]:
        """Strengths, precisions and gains, and when they were found."""
        return {
            "strength": self.strength,
            "precision": self.precision,
            "gain": self.gain,
            "noise": self.noise,
            "epoch": self.epoch,
            "updates": self.updates,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set what `state` gave."""
        for name, value in state.items():
            setattr(self, name, dict(value) if isinstance(value, dict) else value)

    def after_gradients(self, run: Run) -> None:
        """Add the gradients of ``Σ_g λ_g |w_g|²``; set those of pruned weights to zero."""
        for name, strength in self.strength.items():
            for p in self.groups[name]:
                if p.grad is not None and math.isfinite(strength):
                    p.grad.add_(p.detach(), alpha=2 * strength)
                elif p.grad is not None:
                    p.grad.zero_()

    def before_validation(self, run: Run) -> None:
        """Update the strengths, every `every` epochs until the part `LAST_UPDATE` of the training is done.

        If other groups are pruned than before, the choice of the best epoch begins anew, because models with
        other constraints are not comparable.
        """
        if run.epoch - self.epoch < self.every or (run.done() > LAST_UPDATE and self.strength):
            return
        self.epoch, self.updates = run.epoch, self.updates + 1
        before = {name for name, strength in self.strength.items() if math.isinf(strength)}
        if self.method == "evidence":
            self._by_evidence(run)
        else:
            self._by_hypergradient(run)
        if run.share[1] > 1:  # round-off differs between devices, and the strengths must not
            self.restore(run.broadcast(self.state()))
        pruned = {name for name, strength in self.strength.items() if math.isinf(strength)}
        self._prune(pruned - before, run)
        if pruned != before:
            run.forget_best()

    def report(self, run: Run) -> LayerwiseEquivariance:
        """Precisions and gains, and the shares of the free paths on the validation data."""
        graphs, history = run.graphs("valid"), run.history
        if not self.strength:
            warnings.warn(
                f"EquivarianceSelection({self.method!r}): the training ended before the first update, after "
                f"{self.every} epochs; nothing was selected. Lower every, or train longer",
                TrainingWarning,
                stacklevel=4,
            )
        elif self.noise:
            warn_of_left_out(self.loss, self.noise, stacklevel=5)
        shares, total = output_shares(self.model, graphs, self.loss, self.train)
        return LayerwiseEquivariance(
            self.method,
            path_rows(self.groups, self.precision, shares, self.gain),
            total,
            {name: math.sqrt(value) for name, value in self.noise.items()},
            self.updates,
            self.epoch,
            self._caveat(history),
        )

    def _by_evidence(self, run: Run) -> None:
        """Precisions at the maximum of the evidence, and the strengths that correspond to them in the loss.

        The loss is ``Σ_q (W_q / N_q) Σ e²``, with the weight W_q and N_q labels of quantity q, and the
        negative log-posterior is ``Σ_q Σ e² / (2 σ_q²) + Σ_g α_g |w_g|² / 2``. Both agree up to a factor if
        ``W_q σ_q² / N_q`` is the same for all q. Otherwise we use its mean over the labels, ``λ_g = α_g Σ_q
        W_q σ_q² / Σ_q N_q``.
        """
        model = (run.averaged or self.model).eval()
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        graphs = run.graphs("train")
        groups = open_groups(model, self.name)
        found, self.noise = linearised_evidence(model, groups, graphs, self.loss, generator)
        known = torch.stack([self.loss.known(graph) for graph in graphs]).sum(0)
        counts = dict(zip(self.loss.weights, known.tolist()))
        factor = self._loss_of_noise() / sum(counts[name] for name in self.noise)
        self.precision = {name: found.precision[name] for name in self.groups}
        self.gain = {name: found.gain[name] for name in self.groups}
        self.strength = {name: factor * value for name, value in self.precision.items()}

    def _by_hypergradient(self, run: Run) -> None:
        """Strengths after one step along the hypergradient."""
        self.model.eval()
        graphs = [graph.to(self.model.device) for graph in run.graphs("valid")]
        loss, slopes = validation_slopes(self.model, self.groups, self.objective, graphs)
        shares, _ = output_shares(self.model, graphs, self.loss, self.train)
        self.strength = updated_strengths(self.strength, self.groups, slopes, loss, shares)
        self.precision = dict(self.strength)

    def _prune(self, names: set[str], run: Run) -> None:
        """Set weights to zero, also those of the averaged model, with their moments in the optimizer."""
        models = [self.model, *([run.averaged] if run.averaged else [])]
        with torch.no_grad():
            for model in models:
                for name in names:
                    for p in free_groups(model)[name]:
                        p.zero_()
            run.forget_moments([p for name in names for p in self.groups[name]])

    def _loss_of_noise(self) -> float:
        """The training loss of a model whose only errors are the estimated noise."""
        return sum(self.loss.weights[name] * value for name, value in self.noise.items())

    def _caveat(self, history: Sequence[Mapping[str, float]]) -> str:
        """Why the updates may not have been enough; "" if there is no sign of that."""
        if not self.strength:
            return "the precisions were never updated, so that nothing was selected"
        reasons = []
        if self.updates < ENOUGH[self.method]:
            few = f"{self.updates} update{'s' * (self.updates > 1)} of this method"
            few += " is few" if self.updates == 1 else " are few"
            reasons.append(f"{few} (wanted {ENOUGH[self.method]} or more)")
        window = max(self.every, self.epoch // 4)
        epochs = max(self.epoch - window, 1) - 1, self.epoch - 1, -1
        first, at_update, last = (history[k]["train_loss"] for k in epochs)
        before = f"in the {window} epoch{'s' * (window > 1)} before"
        for limit, start, end, when in (
            (FALLING_BEFORE, first, at_update, before),
            (FALLING_AFTER, at_update, last, "after"),
        ):
            if end < limit * start:
                reasons.append(
                    f"the training loss fell from {start:.3g} to {end:.3g} {when} the last update, when the "
                    "network was still learning fast"
                )
        noise = self._loss_of_noise()
        if noise and len(self.noise) == len(self.loss.weights) and last > UNFITTED * noise:
            reasons.append(
                f"the training loss ended at {last:.3g}, of which noise alone is {noise:.3g}, so that the "
                "network is far from the fit for which the precisions were found"
            )
        return "; ".join(reasons) + ". Train longer, or lower every" if reasons else ""
