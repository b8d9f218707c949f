"""Marginal likelihood of linear models with several Gaussian priors, maximised over the precisions of the priors and the noise.

| symbol | here | meaning |
|---|---|---|
| y | target | (n,) labels, or what a network linearised at its weights has to explain |
| J_g | – | (n, P_g) what each weight of group g does to each label |
| K_g | grams | (n, n) J_g J_gᵀ: n × n, whatever the number of weights |
| v_g | variance | 1 / precision of the prior of each weight of the group: 0 is "not there" |
| σ² | noise | variance of the noise, one for each kind of label |
| A | – | (Σ_g v_g K_g + σ²)⁻¹ |
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molequi.errors import ConfigError, DataError, did_you_mean

_FLOOR = 1e-6  # of the mean square of the labels: the least variance of the noise, so that a perfect fit stays a number
NEED = 1.0
_STEPS = 500
_TOLERANCE = 1e-6  # nats: a step that gains less ends the climb


@dataclass(frozen=True)
class Evidence:
    """The maximum of log p(y | precisions, noise).

    precision: by group; infinite where the group is not there. noise: variance of each kind of label. log_evidence:
    nats.
    gain: nats that are lost without the group, the other numbers being chosen anew; for a group that is not there,
    what was given up when it was left out; infinite for one that was to be kept. effective: γ_g, how many of its
    weights the labels determine. dual: (n,) A y, from which the weights follow.
    """

    precision: dict[str, float]
    noise: tuple[float, ...]
    log_evidence: float
    gain: dict[str, float]
    effective: dict[str, float]
    dual: Float[Tensor, "n"]


@dataclass(frozen=True)
class LinearEvidence(Evidence):
    """Evidence of a linear model, and its weights at the maximum of their posterior: `fixed` (F,), `free` by group."""

    fixed: Float[Tensor, "F"]
    free: dict[str, Float[Tensor, "P"]]


def evidence_linear(
    target: Float[Tensor, "n"],
    fixed: Float[Tensor, "n F"],
    free: Mapping[str, Float[Tensor, "n P"]],
    *,
    need: float = NEED,
) -> LinearEvidence:
    """The degree of freedom that data ask for, exactly: y = fixed · w + Σ_g free_g · w_g + noise, with flat priors on w and the prior
    N(0, 1/precision_g) on each of w_g.

    The flat priors are integrated out: what remains is y and free_g on the orthogonal complement of the columns of
    `fixed`, so that what both could explain counts for `fixed`, and the noise is not taken too small by the number
    of fixed weights (restricted maximum likelihood). A group has to earn `need` nats; see `maximum_evidence`.
    Raises DataError if there are not more labels than fixed weights, or numbers that are not finite or of another length.
    """
    y = target.double()
    _check("evidence_linear", y, {"fixed": fixed, **free})
    n, count = fixed.shape
    if n <= count + 1:
        raise DataError(
            f"evidence_linear: {n} labels and {count} fixed weights; wanted at least {count + 2} labels, for without any "
            "left over nothing is known of the noise"
        )
    basis = torch.linalg.qr(fixed.double(), mode="complete").Q[
        :, torch.linalg.matrix_rank(fixed.double()) :
    ]  # (n, n - rank)
    seen = {name: basis.T @ x.double() for name, x in free.items()}
    found = maximum_evidence(basis.T @ y, {name: x @ x.T for name, x in seen.items()}, need=need)
    weights = {name: x.T @ found.dual / found.precision[name] for name, x in seen.items()}
    rest = y - sum((free[name].double() @ w for name, w in weights.items()), torch.zeros_like(y))
    solved = torch.linalg.lstsq(fixed.double(), rest[:, None], driver="gelsd").solution[:, 0]
    return LinearEvidence(**vars(found), fixed=solved, free=weights)


def maximum_evidence(
    target: Float[Tensor, "n"],
    grams: Mapping[str, Float[Tensor, "n n"]],
    *,
    kinds: Int[Tensor, "n"] | None = None,
    keep: Sequence[str] = (),
    need: float = NEED,
) -> Evidence:
    """Precisions and noise at the maximum of log N(y; 0, Σ_g v_g K_g + σ²).

    Fixed point of MacKay (Neural Computation 4, 415, 1992), v ← v · (yᵀA K A y) / tr(A K); where it would go
    downhill, the power 1/2 of that factor, which never does (Zhou et al., J. Comput. Graph. Stat. 28, 350, 2019).
    Then groups are left out, the one that matters least first, as long as leaving it out costs no more than `need`
    nats, by default one, Akaike's price of one more number: the estimate of a variance is above zero for half of
    all data that have none.
    kinds: kind of each label, 0, 1, …, each with a noise of its own, all independent of each other. keep: groups that are never left out.
    Raises DataError for numbers that are not finite or of another length, and for a kind without labels; ConfigError for unknown `keep`.
    """
    y = target.double()
    n = len(y)
    _check("maximum_evidence", y, grams, square=True)
    for name in keep:
        if name not in grams:
            raise ConfigError(
                f"maximum_evidence: keep names {name!r} and the groups are {', '.join(grams) or 'none'}{did_you_mean(name, grams)}"
            )
    kinds = torch.zeros(n, dtype=torch.long, device=y.device) if kinds is None else kinds
    if len(kinds) != n or int(kinds.min()) < 0 or 0 in torch.bincount(kinds).tolist():
        raise DataError(
            f"maximum_evidence: {n} labels and kinds {sorted(set(kinds.tolist()))} of {len(kinds)}; wanted a kind for each label, and "
            "kinds 0, 1, … of one label at least, for without any nothing is known of their noise"
        )
    problem = _Problem(y, dict(grams), kinds)
    best = problem.climb(problem.start())
    given_up: dict[str, float] = {}
    while True:
        present = [name for name, v in best.variance.items() if v > 0 and name not in keep]
        at_once = {name: best.value - problem.without(best, name).value for name in present}
        least = min(at_once, key=at_once.get, default=None)
        if least is None or at_once[least] > need:  # the others chosen anew, leaving out costs less still
            chosen = {name: problem.climb(problem.without(best, name)) for name in at_once}
            cost = {name: best.value - other.value for name, other in chosen.items()}
            least = min(cost, key=cost.get, default=None)
            if least is None or cost[least] > need:
                break
            given_up[least], best = cost[least], chosen[least]
        else:
            given_up[least], best = at_once[least], problem.climb(problem.without(best, least))
    a, inverse = problem.solve(best)[1:]
    return Evidence(
        precision={name: 1 / v if v > 0 else math.inf for name, v in best.variance.items()},
        noise=tuple(best.noise.tolist()),
        log_evidence=best.value,
        gain={name: math.inf if name in keep else given_up.get(name, cost.get(name, 0.0)) for name in grams},
        effective={
            name: best.variance[name] * float((inverse * problem.grams[name]).sum()) for name in grams
        },
        dual=a,
    )


def _check(where: str, y: Tensor, parts: Mapping[str, Tensor], square: bool = False) -> None:
    """Raises DataError for labels and what explains them where these do not fit together or are not finite."""
    if y.ndim != 1 or not len(y) or not bool(torch.isfinite(y).all()):
        raise DataError(
            f"{where}: labels of shape {tuple(y.shape)}, {int((~torch.isfinite(y)).sum())} of them not finite; wanted a row of numbers, "
            "without those that are not known"
        )
    for name, part in parts.items():
        wanted = (len(y), len(y) if square else part.shape[-1] if part.ndim else 0)
        if tuple(part.shape) != wanted or not bool(torch.isfinite(part).all()):
            raise DataError(
                f"{where}: {name} has the shape {tuple(part.shape)} and {int((~torch.isfinite(part)).sum())} numbers that are not finite; "
                f"wanted ({len(y)}, {len(y) if square else '…'}) finite ones, as there are {len(y)} labels"
            )


@dataclass(frozen=True)
class _At:
    """A point and its log evidence."""

    variance: dict[str, float]
    noise: Float[Tensor, "K"]
    value: float = -math.inf


class _Problem:
    def __init__(self, y: Tensor, grams: dict[str, Tensor], kinds: Tensor):
        self.y, self.kinds = y, kinds
        self.grams = {name: gram.double() for name, gram in grams.items()}
        self.size = {name: float(gram.diagonal().mean()) for name, gram in self.grams.items()}
        self.counts = torch.bincount(kinds).double()
        self.scale = (self._by_kind(y.square()) / self.counts).clamp(min=torch.finfo(y.dtype).tiny ** 0.5)

    def _by_kind(self, values: Tensor) -> Tensor:
        return torch.zeros_like(self.counts).index_add_(0, self.kinds, values)

    def start(self) -> _At:
        """Half of the labels is noise, the groups share the other half."""
        half = float(self.scale.mean()) / 2
        return _At(
            {name: half / (len(self.grams) * size) if size > 0 else 0.0 for name, size in self.size.items()},
            self.scale / 2,
        )

    def solve(self, at: _At) -> tuple[float, Tensor, Tensor]:
        """Log evidence, A y and A."""
        covariance = torch.diag(at.noise[self.kinds])
        for name, v in at.variance.items():
            if v > 0:
                covariance = covariance + v * self.grams[name]
        factor = torch.linalg.cholesky(covariance)
        inverse = torch.cholesky_inverse(factor)
        a = inverse @ self.y
        value = (
            -0.5 * float(self.y @ a)
            - float(factor.diagonal().log().sum())
            - 0.5 * len(self.y) * math.log(2 * math.pi)
        )
        return value, a, inverse

    def without(self, at: _At, name: str) -> _At:
        """The same without a group."""
        at = replace(at, variance=at.variance | {name: 0.0})
        return replace(at, value=self.solve(at)[0])

    def climb(self, at: _At) -> _At:
        """To the maximum; what is zero stays so."""
        value, a, inverse = self.solve(at)
        power = 1.0
        for _ in range(_STEPS):
            step = self.step(at, a, inverse, power)
            new = self.solve(step)
            if new[0] < value + _TOLERANCE:
                if power < 1:
                    break
                power = 0.5
                continue
            at, (value, a, inverse), power = step, new, 1.0
        return replace(at, value=value)

    def step(self, at: _At, a: Tensor, inverse: Tensor, power: float) -> _At:
        """One step of the fixed point, from A y and A."""
        variance = {
            name: v * (float(a @ self.grams[name] @ a) / float((inverse * self.grams[name]).sum())) ** power
            if v > 0
            else 0.0
            for name, v in at.variance.items()
        }
        noise = at.noise * (self._by_kind(a.square()) / self._by_kind(inverse.diagonal())) ** power
        return _At(variance, torch.minimum(torch.maximum(noise, _FLOOR * self.scale), self.scale))
