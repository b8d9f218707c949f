"""How equivariant a relaxed model should be, learned from data: one precision for each free path, by layer and irrep.

Constraints never lower the training loss, so that the training loss alone always ends without them. Two ways that do
not:

evidence: the free weights of group g have the prior N(0, 1/α_g). Every few epochs the network is linearised at its
weights w,

    y - f(w) + Σ_g J_g w_g = J_strict δ + Σ_g J_g w_g' + noise,

the generalised Gauss-Newton form of Laplace's approximation (MacKay 1992; Immer et al. 2021, arXiv 2104.04975), and α_g
and the noise go to the maximum of the marginal likelihood of this linear model, exactly and in the space of labels
(`evidence.maximum_evidence`). The strict weights stay where they are; what small changes δ of them could explain, with
the free paths closed, counts for them. A precision that goes to infinity prunes its group: exactly zero weights. By
layer and irrep: van der Ouderaa et al. 2023 (arXiv 2310.06131). The equivariant weights are those of the training, so
that a strict network that has memorised its data leaves nothing for free paths to explain. The noise of a quantity is
taken to be independent from component to component: errors that the components of a structure share (a drift in its
forces) are no such noise, and a few dozen structures of them can pass for broken symmetry.

hypergradient: a step on L + Σ_g λ_g |w_g|² moves w_g by -2 η λ_g w_g, so that the validation loss after it has the
gradient -2 η λ_g ⟨∂L_valid/∂w_g, w_g⟩ in ln λ_g (one step, Luketina et al. 2016, arXiv 1511.06727). It costs one
gradient on the validation data and needs many updates, one an epoch; it uses these data for more than the choice of
weights, and closes a path only once that does next to nothing.
"""

import inspect
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from molequi.approximate.annealing import ConstraintAnnealing
from molequi.approximate.laplace import FEWEST, LABELS, LEAST, gates, linearised, shares
from molequi.approximate.regularizers import EquivarianceRegularizer
from molequi.data.batches import Loader
from molequi.data.dataset import Dataset
from molequi.errors import ConfigError, TrainingWarning, did_you_mean
from molequi.graph import collate
from molequi.hooks import Hook, Plan, Run
from molequi.inference.evaluate import with_labels
from molequi.losses import Loss, Objective
from molequi.model import Model
from molequi.nn.relaxed import free_groups, relaxed_layers
from molequi.readers import READERS
from molequi.util.options import Options
from molequi.util.signature import check_call

Method = Literal["evidence", "hypergradient"]
SYMMETRIC, WEAK = 1e-5, 5e-3  # shares up to which a path counts as closed, and as open only a little
SETTLED = 0.8  # part of the training after which degrees stay, so that weights settle
RATE = 1.0  # of ln λ, a hypergradient being normalised to [-1, 1]
CLOSED = 1e-8  # share: a hypergradient has closed a path whose weights do less
EVERY = 10  # epochs from one update to the next, unless told
ENOUGH = {"evidence": 2, "hypergradient": 10}  # updates; one of the latter moves λ by a factor of e at most
FALLING, FALLEN = (
    1 / 3,
    1 / 2,
)  # of the training loss: what must be left of it over the time before the last update, and since then
UNFITTED = 4.0  # times the loss that the noise alone makes


@dataclass(frozen=True)
class FreePath:
    """One group of free weights: irrep `irrep` of layer `layer`.

    precision: of the prior of its weights, infinite if it was pruned (of a hypergradient: λ). share: mean square of
    what the outputs change without it, over the squared size of the outputs for the training data: variance of scalars (of
    extensive ones per atom and without what the composition says) and of the log-probabilities of classes, mean square
    of vectors, of points that of how far they move; NaN where they do not vary. gain: nats of evidence that it earns,
    NaN where none was asked for.
    """

    layer: str
    irrep: str
    weights: int
    precision: float
    share: float
    gain: float

    @property
    def verdict(self) -> str:
        return verdict(self.share)


@dataclass(frozen=True)
class Degree:
    """How far a model is from its symmetry: all free paths one by one, and `share` of all of them together, as of `FreePath`.

    noise: standard deviation that is left to each quantity, extensive scalars per atom, in eV and Å; empty where
    none was estimated. updates, epoch: from how many updates of a training it comes, and the epochs that were over at the last; None if
    it was measured afterwards. caveat: why these may not be enough.
    """

    method: Method
    paths: tuple[FreePath, ...]
    share: float
    noise: dict[str, float]
    updates: int | None = None
    epoch: int | None = None
    caveat: str = ""

    @property
    def verdict(self) -> str:
        """Of the weights as they are, in words: "symmetric", "weakly broken", "broken", or "not known"."""
        return verdict(self.share)

    @property
    def pruned(self) -> tuple[str, ...]:
        """Paths that were closed, or that the evidence would close."""
        return tuple(f"{p.layer}/{p.irrep}" for p in self.paths if math.isinf(p.precision))

    @property
    def would_close(self) -> tuple[str, ...]:
        """Paths that the evidence would close and that do something as the weights are."""
        return tuple(f"{p.layer}/{p.irrep}" for p in self.paths if math.isinf(p.precision) and p.share != 0)

    def __str__(self) -> str:
        wide = max([len(p.layer) for p in self.paths] + [5])
        lines = [f"{'layer':{wide}}  irrep  weights  precision     gain     share  verdict"]
        lines += [
            f"{p.layer:{wide}}  {p.irrep:5}  {p.weights:7d}  {p.precision:9.3g}  {p.gain:7.1f}  {p.share:8.1e}  {p.verdict}"
            for p in self.paths
        ]
        how = self.method
        if self.updates is not None:
            how += (
                f", {self.updates} update{'s' * (self.updates != 1)}"
                + f", the last after {self.epoch} epoch{'s' * (self.epoch != 1)}" * (self.updates > 0)
            )
        whole = f"{self.verdict}: the free paths make {self.share:.1e} of the outputs' variance ({how})"
        if math.isnan(self.share):
            whole = f"{self.verdict}: what the model says is the same for all training data, so that there is no size to measure the free paths by ({how})"
        closing = self.would_close
        if closing:
            whole += f"; so the model is, and the evidence would close {'all its free paths' if len(closing) == len(self.paths) else ', '.join(closing)}"
        whole += "".join(f"; noise of {name} {value:.3g}" for name, value in self.noise.items())
        return "\n".join([*lines, whole, *([f"caution: {self.caveat}"] if self.caveat else [])])

    def to_json(self) -> str:
        """As JSON; an infinite precision is null, and so are gains and shares that are not known."""
        paths = [
            asdict(p)
            | {"verdict": p.verdict}
            | {name: _finite(getattr(p, name)) for name in ("precision", "share", "gain")}
            for p in self.paths
        ]
        whole = {
            "method": self.method,
            "verdict": self.verdict,
            "share": _finite(self.share),
            "noise": self.noise,
            "updates": self.updates,
            "epoch": self.epoch,
            "caveat": self.caveat,
            "would_close": self.would_close,
            "paths": paths,
        }
        return json.dumps(whole, indent=1, allow_nan=False)


def verdict(share: float) -> str:
    return (
        "not known"
        if math.isnan(share)
        else "symmetric"
        if share <= SYMMETRIC
        else "weakly broken"
        if share <= WEAK
        else "broken"
    )


def degree(
    model: Any,
    train: Any,
    valid: Any = None,
    *,
    seed: Annotated[int, Ge(0)] = 0,
    labels: Annotated[int, Ge(FEWEST)] = LABELS,
    **options: Any,
) -> Degree:
    """How far a trained model is from its symmetry, and the degree that the evidence would give it; it stays as it is.

    Shares and verdicts are of its weights as they are. Precisions and gains are of the evidence, which may well close paths that a plain
    training has left open: `Degree.would_close`.

    model: a relaxed Model or its file. train: what it was trained on. valid: where shares are measured, by default
    there too.
    labels: so many at most, drawn by `seed`; of each quantity some, and those with fewer than 8 are left out (a TrainingWarning tells).
    options: of the reader, as of `evaluate`.
    Raises ConfigError for a model without free paths, or with closed gates, and for data without labels of what it
    predicts.
    """
    check_call(
        degree, {"seed": seed, "labels": labels}, where="degree", leave_out=("model", "train", "valid")
    )
    known = {
        "keys",
        "units",
        "partial",
        "device",
        *(name for reader in READERS.values() for name in inspect.signature(reader).parameters),
    }
    for name in options:
        if name not in known:
            raise ConfigError(
                f"degree.{name}: no such option, of degree or of a reader{did_you_mean(name, ['seed', 'labels', 'valid', *known])}"
            )
    model, train = with_labels(model, train, **options)
    groups = open_groups(model)
    names = [name for name, q in model.quantities.items() if not q.classes and train.labelled(name)]
    if not names:
        raise ConfigError(
            f"degree: the model predicts {', '.join(model.quantities)} and the data have labels of "
            f"{', '.join(train.quantities) or 'nothing'}; there is nothing to learn a degree from"
        )
    loss = Objective([Loss(name) for name in names], model.quantities)
    train = train.connected(model.cutoff, k=model.k)
    shown = (
        train if valid is None else with_labels(model, valid, **options)[1].connected(model.cutoff, k=model.k)
    )
    was = model.training
    try:
        random = torch.Generator().manual_seed(seed)
        found, noise = linearised(model.eval(), groups, Loader(train, names).graphs, loss, random, labels)
        parts, whole = shares(model, Loader(shown, []).graphs, loss, train)
    finally:
        model.train(was)
    _tell_left_out(loss, noise, 3)
    paths = tuple(
        _path(name, group, found.precision[name], parts[name], found.gain[name])
        for name, group in groups.items()
    )
    return Degree("evidence", paths, whole, {name: math.sqrt(value) for name, value in noise.items()})


def open_groups(model: nn.Module, where: str = "degree") -> dict[str, list[nn.Parameter]]:
    """`free_groups`. Raises ConfigError if there are none, or if a gate is closed, behind which nothing can be learned."""
    groups = free_groups(model)
    if not any(groups.values()):
        kind = type(getattr(model, "backbone", model)).__name__
        raise ConfigError(
            f"{where}: {kind} has no free paths, so that its degree of equivariance is settled; take a relaxed "
            "backbone, such as RelaxedEGNN or RelaxedNequIP"
        )
    for name, layer in relaxed_layers(model):
        if float(layer.free.detach()) == 0:
            raise ConfigError(
                f"{where}: the free path of {name} is closed (c = {float(layer.c.detach()):g}, theta = {float(layer.theta):g}), and "
                "nothing can be learned behind it; open it with c above zero and set_theta(model, 1.0)"
            )
    return {name: group for name, group in groups.items() if group}


@dataclass(frozen=True)
class EquivarianceSelection(Hook, Options):
    """A term of a training that learns how equivariant a relaxed backbone should be, layer by layer and irrep by irrep.

    One precision for the free path of each layer and irrep is updated in the first four fifths of the training, see the
    head of this module. The gates c stay where they are. ``result.reports["equivariance_selection"]`` says what was found, and so
    does ``equivariance_selection.json``, with a caution where the updates were few or the training was still far from
    its end at the last.

    Parameters
    ----------
    method : {"evidence", "hypergradient"}
        By the marginal likelihood of the training data, or, cheaper, by the gradient of the validation loss.
    every : int, > 0
        Epochs from one update to the next.
    """

    method: Method
    every: Annotated[int, Gt(0)] = EVERY

    shorthand: ClassVar[str] = "method"

    def check(self, model: Model, plan: Plan, where: str) -> None:
        """Raise ConfigError where the options of the training leave nothing to be learned."""
        method = self.method
        frozen = [
            name
            for name, group in open_groups(model, where).items()
            if not all(p.requires_grad for p in group)
        ]
        if frozen:
            raise ConfigError(
                f"{where}: free weights of {', '.join(frozen)} are frozen (requires_grad is False), and their precision cannot be "
                "learned; set requires_grad, or leave EquivarianceSelection out"
            )
        for term in plan.terms:
            if isinstance(term, ConstraintAnnealing):
                raise ConfigError(
                    f"{where}: EquivarianceSelection and ConstraintAnnealing: annealing ends strictly equivariant, whatever the data say; "
                    "take one of the two"
                )
            if isinstance(term, EquivarianceRegularizer) and term.form == "weights":
                raise ConfigError(
                    f"{where}: EquivarianceSelection and EquivarianceRegularizer(form='weights'): both penalise the free weights, with "
                    "learned and with given strength; take one of the two"
                )
        if plan.epochs is not None and self.every > SETTLED * plan.epochs:
            raise ConfigError(
                f"{where}.every is {self.every} and epochs {plan.epochs}: precisions are updated in the first {SETTLED:.0%} of the "
                "training, and so never; train longer, or lower every"
            )
        if method == "evidence":
            self._check_noise(model, plan, where)

    def _check_noise(self, model: Model, plan: Plan, where: str) -> None:
        """Raise ConfigError for losses that are not those of labels with normal noise."""
        for term in plan.losses:
            if term.weight and (term.function is not None or (term.kind or "mse") != "mse"):
                what = "a function" if term.function is not None else f"kind={term.kind!r}"
                raise ConfigError(
                    f"{where}: method='evidence' and loss.{term.label} with {what}: the evidence is of labels with normal noise, which "
                    "is kind='mse'; take this, or method='hypergradient'"
                )
        classes = [name for name, q in model.quantities.items() if q.classes]
        if classes:
            raise ConfigError(
                f"{where}: method='evidence' and classes ({', '.join(classes)}): the evidence is of labels with normal noise; take "
                "method='hypergradient'"
            )

    def start(self, run: Run) -> Hook:
        """The selection of one training."""
        return Selection(self, run.model, run.objective, run.parts["train"], run.seed)


class Selection(Hook):
    """The selection of a training under way: what it adds to the gradients, and how precisions are updated."""

    def __init__(
        self, term: EquivarianceSelection, model: Model, objective: Objective, train: Dataset, seed: int
    ) -> None:
        self.name = term.name
        self.method, self.every, self.seed = term.method, term.every, seed
        self.model, self.train = model, train
        self.whole, self.loss = objective, objective.supervised
        self.groups = open_groups(model)
        self.strength: dict[str, float] = {}  # λ_g, infinite where pruned; empty before the first update
        self.precision: dict[str, float] = {}
        self.gain: dict[str, float] = {}
        self.noise: dict[str, float] = {}
        self.epoch = 0  # of the last update
        self.updates = 0

    def record(self) -> dict[str, Any]:
        """Method and interval."""
        return {"method": self.method, "every": self.every}

    def frozen(self) -> set[int]:
        """The gates. Growing c, or shrinking b while weights of all paths grow, would undo the precisions."""
        return gates(self.model)

    def state(self) -> dict[str, Any]:
        """Precisions, and when they were found."""
        return {
            "strength": self.strength,
            "precision": self.precision,
            "gain": self.gain,
            "noise": self.noise,
            "epoch": self.epoch,
            "updates": self.updates,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        for name, value in state.items():
            setattr(self, name, dict(value) if isinstance(value, dict) else value)

    def after_gradients(self, run: Run) -> None:
        """Add the gradients of Σ λ_g |w_g|²; pruned weights get none at all."""
        for name, strength in self.strength.items():
            for p in self.groups[name]:
                if p.grad is not None:
                    p.grad.add_(p.detach(), alpha=2 * strength) if math.isfinite(strength) else p.grad.zero_()

    def before_validation(self, run: Run) -> None:
        """Update the precisions every `every` epochs until the part `SETTLED` of the training is done.

        Where another set of groups is pruned, the choice of the best model begins anew, because a model with another
        set is not comparable.
        """
        if run.epoch - self.epoch < self.every or (run.done() > SETTLED and self.strength):
            return
        self.epoch, self.updates = run.epoch, self.updates + 1
        before = {name for name, strength in self.strength.items() if math.isinf(strength)}
        (self._by_evidence if self.method == "evidence" else self._by_hypergradient)(run)
        if run.share[1] > 1:  # round-off differs between devices; precisions must not
            self.restore(run.broadcast(self.state()))
        pruned = {name for name, strength in self.strength.items() if math.isinf(strength)}
        self._close(pruned - before, run)
        if pruned != before:
            run.forget_best()

    def report(self, run: Run) -> Degree:
        """The precisions, and shares on the validation data, of the model in evaluation mode."""
        graphs, history = run.graphs("valid"), run.history
        if not self.strength:
            warnings.warn(
                f"EquivarianceSelection({self.method!r}): the training ended before the first update, after {self.every} epochs; "
                "nothing was selected. Lower every, or train longer",
                TrainingWarning,
                stacklevel=4,
            )
        elif self.noise:
            _tell_left_out(self.loss, self.noise, 5)
        parts, whole = shares(self.model, graphs, self.loss, self.train)
        paths = tuple(
            _path(name, group, self.precision.get(name, math.nan), parts[name], self.gain.get(name, math.nan))
            for name, group in self.groups.items()
        )
        return Degree(
            self.method,
            paths,
            whole,
            {name: math.sqrt(value) for name, value in self.noise.items()},
            self.updates,
            self.epoch,
            self._caveat(history),
        )

    def _caveat(self, history: Sequence[Mapping[str, float]]) -> str:
        """Why the updates may not have been enough, in words; "" if nothing speaks for that."""
        if not self.strength:
            return "the degree was never updated, so that nothing is learned of it"
        said = []
        if self.updates < ENOUGH[self.method]:
            said.append(
                f"{self.updates} update{'s' * (self.updates > 1)} of this method {'is' if self.updates == 1 else 'are'} few (wanted "
                f"{ENOUGH[self.method]} or more)"
            )
        window = max(self.every, self.epoch // 4)
        before, then, now = (
            history[k]["train_loss"] for k in (max(self.epoch - window, 1) - 1, self.epoch - 1, -1)
        )
        for left, first, last, when in (
            (FALLING, before, then, f"in the {window} epoch{'s' * (window > 1)} before"),
            (FALLEN, then, now, "after"),
        ):
            if last < left * first:
                said.append(
                    f"the training loss fell from {first:.3g} to {last:.3g} {when} the last update, which saw a network that was still learning fast"
                )
        noise = sum(self.loss.weights[name] * value for name, value in self.noise.items())
        if noise and len(self.noise) == len(self.loss.weights) and now > UNFITTED * noise:
            said.append(
                f"the training loss ended at {now:.3g} and noise alone makes {noise:.3g} of it, so that the network is far from the fit for "
                "which its degrees were found"
            )
        return "; ".join(said) + ". Train longer, or lower every" if said else ""

    def _by_evidence(self, run: Run) -> None:
        model = (run.averaged or self.model).eval()
        random = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        graphs = run.graphs("train")
        found, self.noise = linearised(model, open_groups(model), graphs, self.loss, random)
        # The loss is Σ_q w_q / N_q Σ e²: this is what turns a sum of e² / 2σ² into it, in the mean over the labels of quantities with a noise.
        counts = dict(zip(self.loss.weights, sum(self.loss.known(graph) for graph in graphs).tolist()))
        factor = sum(self.loss.weights[name] * value for name, value in self.noise.items()) / sum(
            counts[name] for name in self.noise
        )
        self.precision = {name: found.precision[name] for name in self.groups}
        self.gain = {name: found.gain[name] for name in self.groups}
        self.strength = {name: factor * value for name, value in self.precision.items()}

    def _by_hypergradient(self, run: Run) -> None:
        self.model.eval()
        graphs = [graph.to(self.model.device) for graph in run.graphs("valid")]
        known = torch.stack([self.whole.known(graph) for graph in graphs]).sum(0)
        free = [p for group in self.groups.values() for p in group]
        slope = {id(p): torch.zeros_like(p) for p in free}
        total = 0.0
        model = self.model.plain()  # compiled models give derivatives once
        for first in range(0, len(graphs), 16):
            batch = collate(graphs[first : first + 16])
            value = self.whole.total(self.whole.sums(model(batch, create_graph=True), batch), known)
            total += float(value.detach())
            for p, s in zip(free, torch.autograd.grad(value, free, materialize_grads=True)):
                slope[id(p)] += s
        parts, _ = shares(self.model, graphs, self.loss, self.train)
        for name, group in self.groups.items():
            w, g = (
                torch.cat([t.detach().double().reshape(t.numel()) for t in ts])
                for ts in (group, [slope[id(p)] for p in group])
            )
            size = float(w.square().sum())
            if math.isinf(self.strength.get(name, 0.0)) or (name in self.strength and parts[name] <= CLOSED):
                self.strength[name] = math.inf
                continue
            begin = math.log(
                1e-3 * max(total, 1e-12) / max(size, 1e-12)
            )  # the prior is a thousandth of the loss
            along = float(torch.nn.functional.cosine_similarity(w, g, dim=0))
            self.strength[name] = math.exp(
                (math.log(self.strength[name]) if name in self.strength else begin) + RATE * along
            )
        self.precision = dict(self.strength)

    def _close(self, names: set[str], run: Run) -> None:
        """Exactly zero, now and in the averaged model, and without moments in the optimizer."""
        models = [self.model, *([run.averaged] if run.averaged else [])]
        with torch.no_grad():
            for model in models:
                for name in names:
                    for p in free_groups(model)[name]:
                        p.zero_()
            for p in (p for name in names for p in self.groups[name]):
                for value in run.optimizer.state.get(p, {}).values():
                    if isinstance(value, Tensor) and value.shape == p.shape:
                        value.zero_()


def _tell_left_out(loss: Objective, noise: Mapping[str, float], level: int) -> None:
    missing = [name for name in loss.weights if name not in noise]
    if missing:
        warnings.warn(
            f"evidence: of {', '.join(missing)} there are fewer than {LEAST} labels, too few to tell their noise, so that the "
            f"evidence is that of {', '.join(noise)} alone",
            TrainingWarning,
            stacklevel=level,
        )


def _path(name: str, group: Sequence[nn.Parameter], precision: float, share: float, gain: float) -> FreePath:
    layer, _, irrep = name.rpartition("/")
    return FreePath(layer, irrep, sum(p.numel() for p in group), precision, share, gain)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
