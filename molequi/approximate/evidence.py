"""Evidence of Bayesian linear regression with a Gaussian prior for each group of weights.

The model is y = Σ_g J_g w_g + noise, with w_g ~ N(0, v_g) and noise ~ N(0, σ²). Its evidence (marginal
likelihood) in the space of labels is::

    log p(y | v, σ²) = log N(y; 0, C)    with    C = Σ_g v_g K_g + σ²,    K_g = J_g J_gᵀ.

It is maximised over the variances v_g of the priors and the variance σ² of the noise (type-II maximum
likelihood). A group whose variance goes to zero is pruned: the data do not need it.

| symbol | variable | meaning |
|---|---|---|
| y | target | (n,) labels, or what a linearised network has to explain |
| J_g | – | (n, P_g) derivatives of the labels by the weights of group g |
| K_g | grams | (n, n) J_g J_gᵀ, whose size does not depend on the number of weights |
| v_g | variance | variance of the prior of each weight of the group, 1 / precision |
| σ² | noise | variance of the noise, one for each kind of label |
| C⁻¹ | inverse | (n, n) inverse covariance of the labels |
| C⁻¹ y | dual | (n,) from it the posterior mean of the weights is v_g J_gᵀ C⁻¹ y |

The fixed point for the precisions is that of MacKay, "Bayesian interpolation", Neural Computation 4, 415
(1992): ``α_g = γ_g / |w_g|²``, with the precision α_g = 1 / v_g, the posterior mean w_g and the effective
number of parameters γ_g. In the space of labels ``|w_g|² = v_g² yᵀ C⁻¹ K_g C⁻¹ y`` and γ_g = v_g tr(C⁻¹ K_g),
so that::

    v_g ← v_g (yᵀ C⁻¹ K_g C⁻¹ y) / tr(C⁻¹ K_g).

The evidence may decrease in such a step. It never does with the square root of the factor: this is the
minorisation-maximisation algorithm for variance components of Zhou et al., J. Comput. Graph. Stat. 28, 350
(2019).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molequi.errors import ConfigError, DataError, did_you_mean

MIN_GAIN = 1.0  # nats: by Akaike's criterion the price of one more parameter
# The smallest variance of the noise, relative to the mean square of the labels: a perfect fit has finite
# evidence.
_NOISE_FLOOR = 1e-6
_MAX_STEPS = 500
_TOLERANCE = 1e-6  # nats: a step that gains less ends the maximisation


@dataclass(frozen=True)
class Evidence:
    """The maximum of log p(y | precisions, noise).

    Parameters
    ----------
    precision : dict of str to float
        1 / v_g of each group; infinite for a group that was pruned.
    noise : tuple of float
        Variance of the noise of each kind of label.
    log_evidence : float
        log p(y | precisions, noise), in nats.
    gain : dict of str to float
        Nats that would be lost without the group, with all other numbers optimised again. For a pruned group
        the nats that were lost by pruning it; infinite for a group in `keep`.
    effective : dict of str to float
        γ_g, the effective number of weights: how many the labels determine.
    dual : Tensor, shape (n,)
        C⁻¹ y. The posterior mean of the weights is J_gᵀ C⁻¹ y / precision_g.
    """

    precision: dict[str, float]
    noise: tuple[float, ...]
    log_evidence: float
    gain: dict[str, float]
    effective: dict[str, float]
    dual: Float[Tensor, "n"]


@dataclass(frozen=True)
class LinearEvidence(Evidence):
    """Evidence of a linear model, with the posterior mean of its weights.

    Parameters
    ----------
    precision, noise, log_evidence, gain, effective, dual
        As in `Evidence`.
    fixed : Tensor, shape (F,)
        Weights with a flat prior.
    free : dict of str to Tensor, shape (P,)
        Weights of each group.
    """

    fixed: Float[Tensor, "F"]
    free: dict[str, Float[Tensor, "P"]]


def evidence_linear(
    target: Float[Tensor, "n"],
    fixed: Float[Tensor, "n F"],
    free: Mapping[str, Float[Tensor, "n P"]],
    *,
    min_gain: float = MIN_GAIN,
) -> LinearEvidence:
    """Evidence of a linear model with fixed weights and groups of weights that may be pruned.

    The model is y = fixed · w + Σ_g free_g · w_g + noise, with w_g ~ N(0, 1/precision_g) and a flat prior on
    w. The fixed weights are integrated out: y and free_g are projected on the orthogonal complement of the
    columns of `fixed`. So what both could explain is attributed to `fixed`, and the variance of the noise is
    not underestimated (restricted maximum likelihood, REML).

    Parameters
    ----------
    target : Tensor, shape (n,)
        Labels y.
    fixed : Tensor, shape (n, F)
        Inputs of the weights that are always there, such as those of the equivariant maps.
    free : mapping of str to Tensor, shape (n, P)
        Inputs of the groups of weights that may be pruned.
    min_gain : float
        Nats that a group has to gain to stay.

    Returns
    -------
    LinearEvidence
        Precisions, noise, and weights.

    Raises
    ------
    DataError
        If there are fewer than F + 2 labels, or for numbers that are not finite and shapes that do not fit.

    Examples
    --------
    The second column explains nothing of y = x and is pruned.

    >>> x = torch.linspace(-1, 1, 20, dtype=torch.float64)
    >>> noise = 0.01 * torch.cos(40 * x)
    >>> found = evidence_linear(x + noise, x[:, None], {"square": (x**2)[:, None]})
    >>> found.precision
    {'square': inf}
    """
    y = target.double()
    _check("evidence_linear", y, {"fixed": fixed, **free})
    n, count = fixed.shape
    if n <= count + 1:
        raise DataError(
            f"evidence_linear: {n} labels and {count} fixed weights; wanted at least {count + 2} labels, "
            "because the noise is estimated from the labels that remain"
        )
    rank = torch.linalg.matrix_rank(fixed.double())
    complement = torch.linalg.qr(fixed.double(), mode="complete").Q[:, rank:]  # (n, n - rank)
    projected = {name: complement.T @ x.double() for name, x in free.items()}
    grams = {name: x @ x.T for name, x in projected.items()}
    found = maximum_evidence(complement.T @ y, grams, min_gain=min_gain)
    weights = {name: x.T @ found.dual / found.precision[name] for name, x in projected.items()}
    remainder = y - sum((free[name].double() @ w for name, w in weights.items()), torch.zeros_like(y))
    solved = torch.linalg.lstsq(fixed.double(), remainder[:, None], driver="gelsd").solution[:, 0]
    return LinearEvidence(**vars(found), fixed=solved, free=weights)


def maximum_evidence(
    target: Float[Tensor, "n"],
    grams: Mapping[str, Float[Tensor, "n n"]],
    *,
    kinds: Int[Tensor, "n"] | None = None,
    keep: Sequence[str] = (),
    min_gain: float = MIN_GAIN,
) -> Evidence:
    """Maximum of log N(y; 0, Σ_g v_g K_g + σ²) over the precisions and the noise, with pruning of groups.

    Groups are pruned by backward elimination, the one with the smallest gain first, as long as this loses no
    more than `min_gain` nats. Such a threshold is needed: if the true variance of a group is zero, its
    estimate is above zero for half of all data sets.

    Parameters
    ----------
    target : Tensor, shape (n,)
        Labels y.
    grams : mapping of str to Tensor, shape (n, n)
        K_g = J_g J_gᵀ of each group.
    kinds : Tensor, shape (n,), optional
        Kind 0, 1, … of each label. Each kind has its own variance of the noise. By default all labels are of
        one kind.
    keep : sequence of str
        Groups that are never pruned.
    min_gain : float
        Nats that a group has to gain to stay.

    Returns
    -------
    Evidence
        Precisions, noise and gains.

    Raises
    ------
    DataError
        For numbers that are not finite, shapes that do not fit, and a kind without labels.
    ConfigError
        If `keep` names a group that is not there.
    """
    y = target.double()
    _check("maximum_evidence", y, grams, square=True)
    for name in keep:
        if name not in grams:
            raise ConfigError(
                f"maximum_evidence: keep names {name!r} and the groups are {', '.join(grams) or 'none'}"
                f"{did_you_mean(name, grams)}"
            )
    kinds = torch.zeros(len(y), dtype=torch.long, device=y.device) if kinds is None else kinds
    _check_kinds(kinds, len(y))
    likelihood = _MarginalLikelihood(y, grams, kinds)
    best, lost = _pruned(likelihood, likelihood.maximum(likelihood.start()), keep, min_gain)
    _, dual, inverse = likelihood.solve(best)
    return Evidence(
        precision={name: 1 / v if v > 0 else math.inf for name, v in best.variance.items()},
        noise=tuple(best.noise.tolist()),
        log_evidence=best.value,
        gain={name: math.inf if name in keep else lost.get(name, 0.0) for name in grams},
        effective={
            name: best.variance[name] * float((inverse * likelihood.grams[name]).sum()) for name in grams
        },
        dual=dual,
    )


def _check(where: str, y: Tensor, parts: Mapping[str, Tensor], square: bool = False) -> None:
    """Raise DataError if labels and inputs do not fit together or are not finite."""
    if y.ndim != 1 or not len(y) or not bool(torch.isfinite(y).all()):
        raise DataError(
            f"{where}: labels of shape {tuple(y.shape)}, {int((~torch.isfinite(y)).sum())} of them not "
            "finite; wanted a vector of finite numbers; leave out labels that are not known"
        )
    for name, part in parts.items():
        wanted = (len(y), len(y) if square else part.shape[-1] if part.ndim else 0)
        if tuple(part.shape) != wanted or not bool(torch.isfinite(part).all()):
            raise DataError(
                f"{where}: {name} has the shape {tuple(part.shape)} and {int((~torch.isfinite(part)).sum())} "
                f"numbers that are not finite; wanted ({len(y)}, {len(y) if square else '…'}) finite ones, "
                f"as there are {len(y)} labels"
            )


def _check_kinds(kinds: Tensor, n: int) -> None:
    """Raise DataError if there is not one kind for each label, or a kind has no label."""
    if len(kinds) != n or int(kinds.min()) < 0 or 0 in torch.bincount(kinds).tolist():
        raise DataError(
            f"maximum_evidence: {n} labels and kinds {sorted(set(kinds.tolist()))} of {len(kinds)}; wanted a "
            "kind for each label, and kinds 0, 1, … with at least one label each, because each has its own "
            "noise"
        )


@dataclass(frozen=True)
class _Point:
    """Variances of the priors and of the noise, and the log evidence there."""

    variance: dict[str, float]
    noise: Float[Tensor, "K"]
    value: float = -math.inf


def _pruned(
    likelihood: "_MarginalLikelihood", best: _Point, keep: Sequence[str], min_gain: float
) -> tuple[_Point, dict[str, float]]:
    """Backward elimination of groups, and the nats that each group gains or gained."""
    pruned: dict[str, float] = {}
    while True:
        present = [name for name, v in best.variance.items() if v > 0 and name not in keep]
        # With the other variances as they are, the loss is overestimated. This is cheap and often enough to
        # prune.
        points = {name: likelihood.without(best, name) for name in present}
        lost = {name: best.value - point.value for name, point in points.items()}
        weakest = min(lost, key=lost.__getitem__, default=None)
        if weakest is not None and lost[weakest] <= min_gain:
            pruned[weakest], best = lost[weakest], likelihood.maximum(points[weakest])
            continue
        points = {name: likelihood.maximum(point) for name, point in points.items()}
        lost = {name: best.value - point.value for name, point in points.items()}
        weakest = min(lost, key=lost.__getitem__, default=None)
        if weakest is None or lost[weakest] > min_gain:
            return best, lost | pruned
        pruned[weakest], best = lost[weakest], points[weakest]


class _MarginalLikelihood:
    """log N(y; 0, Σ_g v_g K_g + σ²) as a function of v and σ², and its maximisation."""

    def __init__(self, y: Tensor, grams: Mapping[str, Tensor], kinds: Tensor) -> None:
        self.y, self.kinds = y, kinds
        self.grams = {name: gram.double() for name, gram in grams.items()}
        self.size = {name: float(gram.diagonal().mean()) for name, gram in self.grams.items()}
        self.counts = torch.bincount(kinds).double()
        tiny = torch.finfo(y.dtype).tiny ** 0.5
        self.mean_square = (self._by_kind(y.square()) / self.counts).clamp(min=tiny)  # (K,)

    def _by_kind(self, values: Tensor) -> Tensor:
        return torch.zeros_like(self.counts).index_add_(0, self.kinds, values)

    def start(self) -> _Point:
        """Half of the variance of the labels is noise; the groups explain the other half in equal parts."""
        half = float(self.mean_square.mean()) / 2
        variance = {
            name: half / (len(self.grams) * size) if size > 0 else 0.0 for name, size in self.size.items()
        }
        return _Point(variance, self.mean_square / 2)

    def solve(self, point: _Point) -> tuple[float, Tensor, Tensor]:
        """Log evidence, C⁻¹ y and C⁻¹."""
        covariance = torch.diag(point.noise[self.kinds])
        for name, v in point.variance.items():
            if v > 0:
                covariance = covariance + v * self.grams[name]
        factor = torch.linalg.cholesky(covariance)
        inverse = torch.cholesky_inverse(factor)
        dual = inverse @ self.y
        value = (
            -0.5 * float(self.y @ dual)
            - float(factor.diagonal().log().sum())
            - 0.5 * len(self.y) * math.log(2 * math.pi)
        )
        return value, dual, inverse

    def without(self, point: _Point, name: str) -> _Point:
        """The same point with one variance set to zero."""
        point = replace(point, variance=point.variance | {name: 0.0})
        return replace(point, value=self.solve(point)[0])

    def maximum(self, point: _Point) -> _Point:
        """The maximum that is reached from a point. Variances that are zero stay zero."""
        value, dual, inverse = self.solve(point)
        power = 1.0
        for _ in range(_MAX_STEPS):
            proposed = self.step(point, dual, inverse, power)
            solved = self.solve(proposed)
            if solved[0] < value + _TOLERANCE:
                if power < 1:
                    break
                power = 0.5  # MacKay's step failed: take the one of Zhou et al.
                continue
            point, (value, dual, inverse), power = proposed, solved, 1.0
        return replace(point, value=value)

    def step(self, point: _Point, dual: Tensor, inverse: Tensor, power: float) -> _Point:
        """One step v ← v · [(yᵀ C⁻¹ K C⁻¹ y) / tr(C⁻¹ K)]^power, and the same for the noise."""
        variance = dict(point.variance)
        for name, v in point.variance.items():
            if v > 0:
                gram = self.grams[name]
                variance[name] = v * (float(dual @ gram @ dual) / float((inverse * gram).sum())) ** power
        noise = point.noise * (self._by_kind(dual.square()) / self._by_kind(inverse.diagonal())) ** power
        noise = torch.minimum(torch.maximum(noise, _NOISE_FLOOR * self.mean_square), self.mean_square)
        return _Point(variance, noise)
