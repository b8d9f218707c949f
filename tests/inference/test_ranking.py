"""Which networks are tied and which is chosen: tables whose answer is known."""

import numpy as np
import pytest

from molequi.errors import DataError
from molequi.inference.ranking import ASSUMED, Scores, largest_spread, rank, structure_variance


def scores(name, errors, cost=1.0, scatter=0.0, structures=400, seed=0):
    """A network with these errors by seed; structures scatter about them, and their mean stays."""
    noise = np.random.RandomState(seed).standard_normal(structures)
    noise = scatter * (noise - noise.mean())
    sums = [[(error * 3 + e * 3, 3.0) for e in noise] for error in errors]
    return Scores(name, np.array(sums), cost)


def test_a_clear_winner_is_chosen_though_it_costs_more():
    found = rank([scores("cheap", [2.0, 2.02], 1.0), scores("good", [1.0, 1.01], 9.0)])
    assert found.order == ["good", "cheap"] and found.tied == ["good"] and found.chosen == "good"
    assert found.worse == ["cheap"] and found.errors == pytest.approx({"good": 1.005, "cheap": 2.01})


def test_a_tie_within_the_seeds_goes_to_the_cheaper():
    noisy = [
        scores("cheap", [1.1, 1.0], 1.0),
        scores("best", [0.9, 1.1], 9.0),
        scores("far", [5.0, 5.3], 0.1),
    ]
    found = rank(noisy)
    assert found.order[0] == "best" and set(found.tied) == {"best", "cheap"} and found.chosen == "cheap"
    # Control: the same means without scatter are no tie.
    assert rank([scores("cheap", [1.05] * 2, 1.0), scores("best", [1.0] * 2, 9.0)]).chosen == "best"


def test_equal_costs_are_decided_by_the_error():
    tied = [scores("a", [1.1, 1.0], 1.0), scores("b", [0.9, 1.1], 1.09)]
    assert rank(tied).chosen == "b"
    assert rank([tied[0], scores("b", [0.9, 1.1], 1.2)]).chosen == "a"


def test_structures_that_differ_make_a_tie():
    """One error on 400 structures; another that is 2 % larger, in the same structures or in others."""
    base = scores("a", [1.0] * 3, scatter=0.8)
    together = scores("b", [1.02] * 3, scatter=0.8)
    apart = scores("b", [1.02] * 3, scatter=0.8, seed=1)
    assert rank([base, together]).tied == ["a"]
    assert rank([base, apart]).tied == ["a", "b"]


def test_variance_of_structures_is_that_of_a_bootstrap():
    random = np.random.RandomState(0)
    count = random.randint(1, 5, 300).astype(float)
    one, other = (count * random.gamma(2.0, 1.0, 300) for _ in range(2))
    a, b = (Scores(n, np.stack([e, count], 1)[None], 1.0) for n, e in (("a", one), ("b", other)))
    draws = random.randint(0, 300, (4000, 300))
    boot = np.log(other[draws].sum(1) / one[draws].sum(1)).var()
    assert structure_variance(a, b) == pytest.approx(boot, rel=0.1)


def test_the_largest_spread_counts_for_all():
    three = [scores("a", [0.99, 1.01]), scores("b", [1.96, 2.04]), scores("c", [1.0, 9.0])]
    assert largest_spread(three) == (pytest.approx(np.sqrt(2) * 4.0 / 5.0), 2.0)
    assert largest_spread(three[:1]) == (pytest.approx(np.sqrt(2) * 0.01), 1.0)
    assert largest_spread([scores("a", [1.0])]) == (ASSUMED, np.inf)


def test_a_network_that_scatters_does_not_hide_the_others():
    tight = [scores("a", [1.0, 1.02]), scores("b", [9.0, 9.1]), scores("c", [6.0, 6.1])]
    found = rank([*tight, scores("wild", [2.0, 60.0])])
    assert found.tied == ["a", "wild"] and found.worse == ["c", "b"]


def test_the_limit_is_that_of_student():
    """Two networks, two seeds each: 2 degrees of freedom in both tests, of 2.5 % each: t = 6.205 (tables)."""
    deviation = 0.1 / np.sqrt(2)  # the spread is 0.1
    for distance, tied in ((0.98, True), (1.02, False)):
        high = np.exp(distance * 6.2053 * 0.1)
        pair = [scores(n, [e * (1 - deviation), e * (1 + deviation)]) for n, e in (("a", 1.0), ("b", high))]
        assert largest_spread(pair) == (pytest.approx(0.1), 2.0)
        assert (rank(pair).tied == ["a", "b"]) == tied


ALIKE = [[0.08] * 2, [0.08] * 4, [0.08] * 9]
UNLIKE = [[0.01, 0.1], [0.01] * 3 + [0.1], [0.01] * 8 + [0.1], [0.01] * 5 + [0.1] * 4]


@pytest.mark.parametrize("spreads,seeds", [*((s, 2) for s in ALIKE + UNLIKE), (ALIKE[1], 4), (UNLIKE[3], 4)])
def test_equal_networks_are_rarely_told_apart(spreads, seeds):
    """In about 5 % of the cases at most; 400 cases have a standard error of 1.1 %."""
    random, alarms = np.random.RandomState(0), 0
    for _ in range(400):
        errors = 1 + np.array(spreads)[:, None] * random.standard_normal((len(spreads), seeds))
        alarms += bool(rank([scores(str(k), row, structures=2) for k, row in enumerate(errors)]).worse)
    assert alarms / 400 < 0.08


def test_pairs_that_are_not_with_the_best_are_tested_themselves():
    """The best scatters, and is tied with one that is half as good and apart from one a little worse yet."""
    found = rank([scores("a", [0.5, 1.5]), scores("b", [2.00, 2.01]), scores("c", [2.51, 2.52])])
    assert "c" in found.tied and ("b", "c") in found.apart and ("c", "b") not in found.apart
    close = rank([scores("a", [1.0] * 3, scatter=0.1), *_close_pair()])
    assert "c" in close.worse and "b" in close.tied and ("b", "c") not in close.apart


def _close_pair():
    """Two that scatter about 2 % and 3 % above the first, which the structures of one hide."""
    return [scores("b", [1.02] * 3, scatter=0.8, seed=1), scores("c", [1.03] * 3, scatter=0.1)]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_errors_that_are_not_finite_are_refused(wrong):
    for order in ((1.0, wrong), (wrong, 1.0)):
        with pytest.raises(DataError, match="errors of (a|b) are not finite"):
            rank([scores(name, [error] * 2) for name, error in zip("ab", order)])


def test_one_seed_is_not_trusted_within_the_assumed_spread():
    assert rank([scores("a", [1.0]), scores("b", [1.2])]).tied == ["a", "b"]
    assert rank([scores("a", [1.0]), scores("b", [1.5])]).tied == ["a"]
    assert rank([scores("a", [1.0])]).seeds == 1


def test_more_networks_need_more_evidence():
    """With 95 % for all comparisons together a difference counts between two networks, and not among twenty."""
    one, other = scores("a", [1.0]), scores("b", [1.33])
    assert rank([one, other]).tied == ["a"]
    assert "b" in rank([one, other, *(scores(f"c{k}", [9.0]) for k in range(18))]).tied


def test_no_error_at_all_is_a_tie_with_itself_alone():
    assert rank([scores("a", [0.0, 0.0], 2.0), scores("b", [0.0, 0.0], 1.0)]).chosen == "b"
    assert rank([scores("a", [0.0, 0.0]), scores("b", [0.5, 0.5])]).tied == ["a"]


def test_no_wrong_answer_is_tied_with_one_and_not_with_many():
    def answers(name, wrong):
        return Scores(name, np.array([[[float(k < wrong), 1.0] for k in range(200)]] * 2), 1.0)

    assert rank([answers("a", 0), answers("b", 1)]).tied == ["a", "b"]
    assert rank([answers("a", 0), answers("b", 20)]).tied == ["a"]


def test_a_large_factor_is_no_tie_though_seeds_scatter():
    errors = [scores("a", [10.5, 13.5]), scores("b", [95.0, 125.0]), scores("c", [10.0, 19.0])]
    assert rank(errors).tied == ["a", "c"]
