"""Tables and words of comparisons whose answer is known."""

import csv
import io
import math

import numpy as np
import pytest

from molequi import plotting
from molequi.errors import ConfigError, DataError
from molequi.inference.comparisons import Comparison, Network, Trial

KINDS = {"Strict": "strict", "Relaxed": "approximate", "Free": "unconstrained"}
ROTATED = {"strict": 1e-15, "approximate": 0.02, "unconstrained": 0.1}


def trial(network, error, *, seed=0, size=100, other=None, failed="", step=0.01, drift=None, epochs=20.0):
    """A training with this error in eV/Å on 50 structures that are all alike."""
    if failed:
        return Trial(network, size, seed, 1e-3, failed)
    found = {"valid": error, "test": error, "train": error} | ({} if other is None else {"other": other})
    return Trial(
        network,
        size,
        seed,
        1e-3,
        errors={part: {"forces": value} for part, value in found.items()},
        sums={part: [[3 * v, 3.0]] * 50 for part, v in found.items() if part in ("test", "other")},
        curve=[[15.0, 2 * error], [58.0, error]],
        seconds=60.0,
        steps=1000,
        epochs=epochs,
        step=step,
        memory=5e7,
        symmetry={"rotation": ROTATED[KINDS[network]], "reflection": 0.0},
        drift=drift,
    )


def comparison(*trials, left_out=None, part="test"):
    names = dict.fromkeys(one.network for one in trials)
    networks = [Network(n, KINDS[n], "O(n)", f"{n}, channels 8; adam, lr 0.001", 1234) for n in names]
    return Comparison(
        networks, list(trials), "forces", {"forces": "eV/Å"}, [], part, 1.0, left_out=left_out or {}
    )


def pairs(strict, free, **more):
    return [
        trial(name, error * (1 + d), seed=seed, **more)
        for name, error in (("Strict", strict), ("Free", free))
        for seed, d in ((0, 0.01), (1, -0.01))
    ]


def test_a_strict_network_that_wins():
    found = comparison(*pairs(0.02, 0.05))
    assert found.recommendation == "Strict"
    text = str(found)
    assert "Recommended: Strict, test forces MAE 20 ± 0.3 meV/Å, 10 ms a step." in text
    assert "errors: Free (2.50)." in text
    assert (
        "the error of Strict, the best strict network, is 0.40 times that of Free, the best unconstrained"
        in text
    )
    assert (
        "Strict is symmetric by construction: a rotation changes its forces by 1.0e-15 of their size." in text
    )
    assert "not certain" not in text.lower() and "All this holds for 1 processor minutes" in text


def test_an_unconstrained_network_that_wins_is_recommended():
    text = str(comparison(*pairs(0.05, 0.02)))
    assert "Recommended: Free" in text and "is 2.50 times that of Free" in text
    assert "Free is not symmetric: a rotation changes its forces by 1.0e-01 of their size." in text


def test_a_tie_is_called_so():
    found = comparison(*pairs(0.0205, 0.02, step=0.01))
    assert found.ranking().tied == ["Free", "Strict"]
    text = str(found)
    assert "A tie: these data cannot tell it from Strict" in text
    assert "(which of the two is better is not certain)" in text


def test_two_networks_are_told_apart_though_both_are_tied_with_the_best():
    wild = [trial("Relaxed", e, seed=k) for k, e in enumerate((0.005, 0.015))]
    rest = [trial(n, e + k * 1e-5, seed=k) for n, e in (("Strict", 0.02), ("Free", 0.0252)) for k in range(2)]
    found = comparison(*wild, *rest)
    assert found.ranking().tied == ["Relaxed", "Strict", "Free"]
    said = next(line for line in found.words() if "of Free, the best unconstrained one" in line)
    assert "0.79 times" in said and "not certain" not in said


def test_the_cheaper_one_of_a_tie():
    slow = [trial("Free", e, seed=k, step=0.05) for k, e in enumerate((0.0198, 0.0202))]
    fast = [trial("Strict", e, seed=k, step=0.01) for k, e in enumerate((0.0203, 0.0207))]
    assert comparison(*slow, *fast).recommendation == "Strict"


def test_other_data_may_have_another_order():
    inside = [trial("Free", 0.02, other=0.5), trial("Strict", 0.08, other=0.1)]
    text = str(comparison(*inside))
    assert "Recommended: Free" in text
    assert "On the other data Strict is better (100 meV/Å, Free has 500 meV/Å): take Strict if" in text
    same = str(comparison(trial("Free", 0.02, other=0.1), trial("Strict", 0.08, other=0.5)))
    assert "On the other data Free is among the best too: 100 meV/Å." in same


def test_failures_are_rows_and_are_not_recommended():
    reason = (
        "step 8 (epoch 1): the loss is not finite (forces nan; norm of the gradient nan) for the batch of …"
    )
    half = trial("Free", 0.01), trial("Free", 0, seed=1, failed=reason)
    found = comparison(*half, trial("Strict", 0.02), trial("Strict", 0.02, seed=1))
    assert found.recommendation == "Strict"
    assert "Not ranked, since a training failed: Free." in str(found)
    head, rows = found.table()
    assert head[-1] == "failed" and rows[0][-1].startswith("1 of 2: step 8 (epoch 1): the loss is not finite")
    assert len(rows[0][-1]) < 80 and rows[1][-1] == ""
    assert list(csv.DictReader(io.StringIO(found.to_csv())))[1]["failed"] == reason
    small = [trial("Free", 0, size=20, failed=reason), trial("Strict", 0.1, size=20)]
    text = str(comparison(*small, trial("Free", 0.01), trial("Strict", 0.02)))
    assert "Recommended: Free" in text
    assert "Not ranked with 20 structures, since a training failed: Free." in text
    nothing = comparison(trial("Free", 0, failed=reason), trial("Strict", 0, failed=reason))
    assert "No network can be recommended: none has a result." in str(nothing)
    with pytest.raises(DataError, match="no network has errors on the test data; see the column 'failed'"):
        _ = nothing.recommendation


@pytest.mark.parametrize(
    "slope,rms,said",
    [
        (0.3, 0.1, "Strict conserves energy: it drifts by 0.3 meV/atom/ps in 0.5 ps at 300 K."),
        (-1.5, 2.0, "Whether Strict conserves energy is not certain"),
        (30.0, 2.0, "Strict does not conserve energy: it drifts by 30 meV/atom/ps"),
    ],
)
def test_conservation_of_energy(slope, rms, said):
    drift = {"structure": "x", "steps": 1000, "slope": slope, "rms": rms, "stopped": ""}
    found = comparison(trial("Strict", 0.02, drift=drift), trial("Free", 0.05, drift=drift))
    assert said in str(found) and f"{slope:+.2g}" in str(found)


def test_a_simulation_that_was_stopped():
    drift = {"structure": "x", "steps": 1000, "slope": math.nan, "rms": math.nan, "stopped": "it flew apart"}
    text = str(comparison(trial("Strict", 0.02, drift=drift), trial("Free", 0.05)))
    assert "1 of 1 with Strict were stopped: it flew apart." in text and "stopped" in text.splitlines()[1]


def test_what_is_not_certain_is_said():
    text = str(comparison(trial("Strict", 0.02, epochs=2.0), trial("Free", 0.05)))
    assert "Not certain: there is one seed. A relative standard deviation of 10% over the seeds" in text
    assert "Not certain: Strict saw each structure fewer than 5 times" in text
    trials = [trial(n, e, seed=s) for n, e in (("Strict", 0.02), ("Free", 0.05)) for s in (0, 1)]
    for one in trials:
        one.sums["valid"] = one.sums["test"]
    assert "Not certain: the errors are those of the validation data" in str(
        comparison(*trials, part="valid")
    )


def test_sizes_have_a_table_and_a_sentence_each():
    few = [trial("Free", 0.3, size=20), trial("Strict", 0.1, size=20)]
    found = comparison(*few, trial("Free", 0.02), trial("Strict", 0.08))
    head, rows = found.table_of_sizes()
    assert head[1:] == ["20 structures", "100 structures"] and rows[0] == ["Free", "300", "20"]
    assert found.recommendation == "Free" and "With 20 structures: Strict, 100 meV/Å." in str(found)
    figure = plotting.comparison(found)
    assert len(figure.axes) == 2 and figure.axes[1].get_xlabel() == "training structures"


def test_errors_against_seconds():
    head, rows = comparison(*pairs(0.02, 0.05)).table_of_seconds()
    assert head[1:] == ["15 s", "30 s", "45 s", "60 s"]
    assert rows[0] == ["Strict", "40", "40", "40", "20"]
    (axis,) = plotting.comparison(comparison(*pairs(0.02, 0.05))).axes
    assert np.allclose(axis.lines[0].get_xdata(), [15.0, 58.0])
    assert [line.get_linestyle() for line in axis.lines] == ["-", "-", ":", ":"]


def test_networks_of_a_kind_differ_without_colour(monkeypatch):
    names = [f"Free {k}" for k in range(4)]
    monkeypatch.setattr(f"{__name__}.KINDS", KINDS | dict.fromkeys(names, "unconstrained"))
    found = comparison(*(trial(name, 0.02 + 0.01 * k) for k, name in enumerate(("Strict", *names))))
    (axis,) = plotting.comparison(found).axes
    looks = [(str(line._unscaled_dash_pattern), line.get_marker()) for line in axis.lines]
    assert len({marker for _, marker in looks}) == 5
    assert len({dashes for dashes, _ in looks[1:4]}) == 3 and looks[0][0] == "(0, None)"


def test_files_hold_everything():
    found = comparison(*pairs(0.02, 0.05, other=0.1), left_out={"Relaxed": "it needs a cutoff"})
    again = Comparison.from_json(found.to_json())
    assert str(again) == str(found) and again.trials[0].curve == found.trials[0].curve
    assert "Relaxed: left out: it needs a cutoff" in str(found)
    row = next(csv.DictReader(io.StringIO(found.to_csv())))
    assert (
        row["network"] == "Strict" and float(row["forces_other"]) == 0.1 * 1 and row["parameters"] == "1234"
    )
    html = found._repr_html_()
    assert "Recommended: Strict" in html and html.count("<table>") == 2
    with pytest.raises(DataError, match="this is no comparison: .*; `molequi compare` writes one"):
        Comparison.from_json("{}")
    with pytest.raises(ConfigError, match="'Strikt' was not compared; did you mean 'Strict'"):
        found.of("Strikt")
