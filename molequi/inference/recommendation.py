"""The recommendation of a comparison in sentences.

Each sentence follows from a rule; the rules of ties and of the choice are those of
`molequi.inference.ranking`. What is not certain is said: ties, one seed alone, other data with another order,
and networks that saw each structure only a few times.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from molequi.errors import DataError
from molequi.inference.ranking import ASSUMED, OTHER, Kind, Ranking

if TYPE_CHECKING:
    from molequi.inference.comparisons import Comparison

_FEW = 5.0  # epochs below which a training is called short
_SYMMETRIC = 1e-6  # relative error, in float64, up to which a network is called symmetric
_DRIFT = 1.0  # meV/atom/ps up to which the energy of a short simulation is called conserved
_FEMTOSECONDS = 0.5  # of a step of it


def sentences(found: "Comparison") -> list[str]:
    """The recommendation, what it gains and costs, and what is not certain.

    Parameters
    ----------
    found : Comparison
        The comparison.
    """
    failed = _failed(found)
    try:
        ranking = found.ranking()
    except DataError:
        return ["No network can be recommended: none has a result.", *failed]
    return [
        _choice(found, ranking),
        *_order(found, ranking),
        *_gain(found),
        _symmetry(found, ranking.chosen),
        *_conservation(found, ranking.chosen),
        *_other(found, ranking),
        *_sizes(found),
        *failed,
        *_doubts(found, ranking),
    ]


def _value(found: "Comparison", name: str, part: str, structures: int | None = None) -> str:
    """The error of a network with its unit."""
    _, unit = found.shown(found.quantity)
    return f"{found.error(name, part, found.quantity, structures)} {unit}".rstrip()


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _choice(found: "Comparison", ranking: Ranking) -> str:
    """The network, its error and its cost."""
    name = ranking.chosen
    steps = [trial.step for trial in found.of(name) if trial.step is not None]
    cost = f", {1000 * float(np.median(steps)):.3g} ms a step" if steps else ""
    what = f"{found.quantity.replace('_', ' ')} {found.kind(found.quantity)}"
    return f"Recommended: {name}, {found.part} {what} {_value(found, name, found.part)}{cost}."


def _order(found: "Comparison", ranking: Ranking) -> list[str]:
    """Who is tied with the best, and who is certainly worse."""
    lines = []
    others = [name for name in ranking.tied if name != ranking.chosen]
    if others:
        values = [f"{name} ({_value(found, name, found.part)})" for name in others]
        lines.append(
            f"A tie: these data cannot tell it from {_listed(values)}. Of the tied networks it has the "
            "shortest step, or the smallest error among equally short ones."
        )
    if ranking.worse:
        values = [
            f"{name} ({ranking.errors[name] / ranking.errors[ranking.order[0]]:.2f})"
            for name in ranking.worse
        ]
        lines.append(
            "Worse than the best, with 95 % confidence for all together, in brackets the ratio of the "
            f"errors: {_listed(values)}."
        )
    return lines


def _best_of(found: "Comparison", ranking: Ranking, *kinds: Kind) -> str | None:
    kind_of = {network.name: network.kind for network in found.networks}
    return next((name for name in ranking.order if kind_of[name] in kinds), None)


def _gain(found: "Comparison") -> list[str]:
    """The best strict network beside the best of the others, in all parts."""
    lines = []
    for part in (found.part, OTHER):
        try:
            ranking = found.ranking(part)
        except DataError:
            continue
        strict = _best_of(found, ranking, "strict")
        for kind in ("approximate", "unconstrained"):
            rival = _best_of(found, ranking, kind)
            if strict is None or rival is None:
                continue
            ratio = ranking.errors[strict] / max(ranking.errors[rival], 1e-300)
            verdict = f"{ratio:.2f} times that" if ratio < 1e6 else "larger than that"
            apart = _certainly_apart(ranking, strict, rival)
            certain = "" if apart else " (which of the two is better is not certain)"
            lines.append(
                f"Equivariance, {part} data: the error of {strict}, the best strict network, is {verdict} of "
                f"{rival}, the best {kind} one{certain}."
            )
    return lines


def _certainly_apart(ranking: Ranking, one: str, other: str) -> bool:
    """Whether these two are apart by the tests of `molequi.inference.ranking`."""
    return (one, other) in ranking.apart or (other, one) in ranking.apart


def _symmetry(found: "Comparison", name: str) -> str:
    """What a rotated structure changes."""
    network = next(one for one in found.networks if one.name == name)
    measured = [trial.symmetry for trial in found.of(name) if trial.symmetry]
    what = found.quantity.replace("_", " ")
    if not measured:
        return f"The symmetry of {name} could not be measured."
    error = max(one["rotation"] for one in measured)
    if found.quantity in found.classes:
        changed = f"a rotation changes its log-odds of {what} by {error:.1e}"
    else:
        changed = f"a rotation changes its {what} by {error:.1e} of their size"
    if error <= _SYMMETRIC:
        built = " by construction" if network.kind == "strict" else ""
        return f"{name} is symmetric{built}: {changed}."
    return f"{name} is not symmetric: {changed}."


def _conservation(found: "Comparison", name: str) -> list[str]:
    """Short simulations."""
    drifts = [trial.drift for trial in found.of(name) if trial.drift is not None]
    if not drifts:
        return []
    stopped = [one["stopped"] for one in drifts if one["stopped"]]
    if stopped:
        return [f"Simulations: {len(stopped)} of {len(drifts)} with {name} were stopped: {stopped[0]}."]
    worst = max(drifts, key=lambda one: abs(one["slope"]))
    time = 1e-3 * _FEMTOSECONDS * worst["steps"]
    change = f"by {abs(worst['slope']):.2g} meV/atom/ps in {time:.2g} ps at 300 K"
    if abs(worst["slope"]) <= _DRIFT:
        return [f"{name} conserves energy: it drifts {change}."]
    if abs(worst["slope"]) * time <= worst["rms"]:
        return [
            f"Whether {name} conserves energy is not certain: it drifts {change}, less than it fluctuates "
            f"({worst['rms']:.2g} meV/atom). Simulate longer."
        ]
    return [f"{name} does not conserve energy: it drifts {change}."]


def _other(found: "Comparison", ranking: Ranking) -> list[str]:
    """The order on data of other conditions."""
    try:
        there = found.ranking(OTHER)
    except DataError:
        return []
    name, best = ranking.chosen, there.order[0]
    value = _value(found, name, OTHER)
    if name in there.tied:
        also = "" if there.tied == [name] else f", tied with {_listed([n for n in there.tied if n != name])}"
        return [f"On the other data {name} is among the best too: {value}{also}."]
    return [
        f"On the other data {best} is better ({_value(found, best, OTHER)}, {name} has {value}): take "
        f"{there.chosen} if those matter more."
    ]


def _sizes(found: "Comparison") -> list[str]:
    """The best networks with fewer structures."""
    lines = []
    for size in found.sizes[:-1]:
        try:
            ranking = found.ranking(structures=size)
        except DataError:
            continue
        tied = "" if len(ranking.tied) == 1 else f" (tied: {_listed(ranking.tied)})"
        best = ranking.order[0]
        lines.append(f"With {size:,} structures: {best}, {_value(found, best, found.part, size)}{tied}.")
    return lines


def _failed(found: "Comparison") -> list[str]:
    """Networks with a failed training."""
    lines = []
    for size in found.sizes:
        names = dict.fromkeys(t.network for t in found.trials if t.failed and t.structures == size)
        where = f" with {size:,} structures" if len(found.sizes) > 1 else ""
        if names:
            lines.append(f"Not ranked{where}, since a training failed: {_listed([*names])}.")
    return lines


def _doubts(found: "Comparison", ranking: Ranking) -> list[str]:
    """What is not certain."""
    lines = []
    if ranking.seeds < 2:
        lines.append(
            f"Not certain: there is one seed. A relative standard deviation of {ASSUMED:.0%} over the seeds "
            "is assumed; more seeds measure it."
        )
    short = [
        one.name
        for one in found.networks
        if any(0 < trial.epochs < _FEW for trial in found.of(one.name)) and one.name in ranking.order
    ]
    less = [name for name in short if any(0 < trial.epochs < 1 for trial in found.of(name))]
    if less:
        lines.append(
            f"Not certain: for {_listed(less)} the time was not enough to see each structure once. Give more "
            "minutes."
        )
    if short:
        lines.append(
            f"Not certain: {_listed(short)} saw each structure fewer than {_FEW:g} times, and may gain more "
            "than others from a longer training."
        )
    for edge in ("lowest", "highest"):
        names = [one.name for one in found.networks if one.edge == edge and one.name in ranking.order]
        if names:
            lines.append(
                f"Not certain: the {edge} learning rate that was tried was the best of {_listed(names)}; "
                f"{'lower' if edge == 'lowest' else 'higher'} ones may be better (--rates)."
            )
    if found.part == "valid":
        lines.append(
            "Not certain: the errors are those of the validation data, which also chose epochs and learning "
            "rates. Give a test part."
        )
    lines.append(
        f"All this holds for {found.minutes:g} {found.clock} minutes a training. A longer time or more data "
        "may change the order."
    )
    return lines
