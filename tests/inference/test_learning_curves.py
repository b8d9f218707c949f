"""Power laws of errors against the number of structures: against NumPy's fit, and when they are not believed."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import t

from molequi import Dataset, Graph, plotting
from molequi.errors import ConfigError, DataError
from molequi.inference.learning_curves import LearningCurve, Point, measured
from molequi.inference.metrics import Error, Errors
from molequi.inference.power_law import Estimate, PowerLaw

SIZES = np.array([50, 100, 200, 400, 800])


def curve(errors, training=None, sizes=SIZES, unit="eV/Å", **options):
    training = [0.3 * e for e in errors] if training is None else training
    points = [Point(int(n), 0, {"forces": e}, {"forces": f}) for n, e, f in zip(sizes, errors, training)]
    return LearningCurve(points, {"forces": unit}, "valid", **options)


def noisy(exponent=0.5, scatter=0.05, seed=0):
    random = np.random.default_rng(seed)
    return 2.0 * SIZES**-exponent * np.exp(scatter * random.normal(size=len(SIZES)))


def test_the_fit_and_its_interval_are_those_of_numpy():
    errors = noisy()
    law = PowerLaw(SIZES, errors)
    (slope, intercept), covariance = np.polyfit(np.log(SIZES), np.log(errors), 1, cov=True)
    assert law.exponent == pytest.approx(-slope)
    quantile = t.ppf(0.975, len(SIZES) - 2)
    half = quantile * np.sqrt(covariance[0, 0])
    assert law.exponent_interval == pytest.approx((-slope - half, -slope + half))
    # A new training has the variance of the law and its own.
    x = np.array([np.log(3000), 1.0])
    own = np.sum((np.log(errors) - slope * np.log(SIZES) - intercept) ** 2) / (len(SIZES) - 2)
    width = quantile * np.sqrt(x @ covariance @ x + own)
    middle = intercept + slope * np.log(3000)
    assert law(3000) == pytest.approx(tuple(np.exp([middle, middle - width, middle + width])))


def test_the_number_of_structures_inverts_the_law():
    law = PowerLaw(SIZES, noisy())
    for wanted in (0.03, 0.05):
        estimate = law.structures_for(wanted)
        assert law(estimate.structures)[0] == pytest.approx(wanted)
        assert law(estimate.low)[1] == pytest.approx(wanted, rel=2e-3)
        assert law(estimate.high)[2] == pytest.approx(wanted, rel=2e-3)
        assert estimate.low < estimate.structures < estimate.high
    exact = PowerLaw(SIZES, 2 * SIZES**-0.5).structures_for(0.02)
    assert (exact.low, exact.structures, exact.high) == pytest.approx((10_000,) * 3, rel=2e-3)
    assert PowerLaw(SIZES, SIZES**0.1).structures_for(0.5).structures == math.inf


def test_intervals_hold_the_truth_as_often_as_they_say():
    inside = []
    for seed in range(300):
        law = PowerLaw(SIZES, noisy(seed=seed))
        low, high = law.exponent_interval
        estimate = law.structures_for(0.04)
        inside.append((low <= 0.5 <= high, estimate.low <= 2500 <= estimate.high))
    exponent, number = np.mean(inside, axis=0)
    # 95 %; that of the number is of a new training, whose error scatters too, and therefore wider.
    assert 0.91 < exponent < 0.98 and number > exponent


def test_a_good_law_has_no_doubts_and_says_how_many_more():
    found = curve(2 * SIZES**-0.5)
    assert found.doubts("forces") == []
    text = found.advice("forces", 0.05)
    assert "falls as n^-b with b = 0.50" in text and "needs about 1,600 structures" in text
    assert "800 more than now" in text and "50 meV/Å" in text and "Do not rely" not in text
    assert "half" not in text and "35.4 meV/Å needs about 3,200" in found.advice("forces")
    assert "0.1 eV/Å" not in found.advice("forces", 0.1) and "is reached already" in found.advice(
        "forces", 0.1
    )
    assert str(found.structures_for("forces", 0.05)).startswith(
        "about 1,600 structures (95 % interval: 1,600"
    )


@pytest.mark.parametrize(
    "found,words",
    [
        (curve(2 * SIZES[:3] ** -0.5, sizes=SIZES[:3]), "it has only 3 sizes"),
        (curve([0.5, 0.52, 0.49, 0.51, 0.5]), "which has zero inside: no effect of more structures is shown"),
        (curve(noisy(1.0, scatter=0.4)), "the errors scatter by"),
        (curve([1.0, 0.5, 0.27, 0.22, 0.21]), "level off"),
        (curve(2 * SIZES**-0.5, training=1.9 * SIZES**-0.5), "training error is 95% of the validation error"),
        (curve([0.4, 0.3, 0.2, 0.1, 0.0]), "wanted numbers above zero"),
        (curve([0.4, 0.3], sizes=SIZES[:2]), "wanted at least three trainings"),
    ],
)
def test_doubts(found, words):
    assert any(words in doubt for doubt in found.doubts("forces"))
    assert "Do not rely on it" in found.advice("forces") or "forces: a power law" in found.advice("forces")
    plotting.size_curve(found).canvas.draw()


def test_far_extrapolations_are_said():
    found = curve(2 * SIZES**-0.5)
    assert any("far beyond the data, to 10 times" in doubt for doubt in found.doubts("forces", 0.02236))
    assert "needs more than 80,000 structures by this law" in found.advice("forces", 0.001)
    flat = curve([0.5, 0.52, 0.49, 0.51, 0.5])
    assert "No number of structures can be given" in flat.advice("forces", 0.1)
    rising = curve([0.4, 0.45, 0.5, 0.55, 0.6]).advice("forces", 0.1)
    assert "it does not fall, n^-b has b = -0." in rising and "falls as" not in rising
    assert str(Estimate(math.inf, 1, math.inf)) == "no number of structures"
    assert "no upper limit" in str(Estimate(100.0, 50.0, math.inf))


def test_wrong_questions():
    found = curve(2 * SIZES**-0.5)
    with pytest.raises(ConfigError, match="'force' is not measured.*did you mean 'forces'"):
        found.structures_for("force", 0.1)
    with pytest.raises(ConfigError, match="the wanted error of forces is 0; wanted a number above zero"):
        found.structures_for("forces", 0)
    with pytest.raises(ConfigError, match="'energy' is not measured"):
        found.text({"energy": 1.0})


def test_json_and_table():
    found = curve(noisy(), same="epochs", measure="rmse")
    assert LearningCurve.from_json(found.to_json()) == LearningCurve(
        found.points, dict(found.units), "valid", "epochs", "rmse", []
    )
    with pytest.raises(DataError, match="no learning curve.*molequi curve"):
        LearningCurve.from_json("{}")
    twice = LearningCurve(
        [Point(10, 0, {"gap": 1.0}, {"gap": 0.5}), Point(10, 1, {"gap": 2.0}, {"gap": 0.7})],
        {"gap": "eV"},
        "test",
    )
    assert twice.table() == (["structures", "gap (eV), test", "training"], [["10", "1.5 ± 0.71", "0.6"]])


def test_what_is_measured():
    rows = (
        Error("energy", "", "eV", 4, 0.3, 0.4, 0.9),
        Error("energy_per_atom", "", "eV/atom", 4, 0.03, 0.04, 0.9),
        Error("forces", "", "eV/Å", 4, 0.1, 0.2, 0.9),
        Error("forces", "H", "eV/Å", 4, 0.5, 0.6, 0.9),
        Error("kind", "", "", 4, math.nan, math.nan, math.nan, 0.75, 0.2),
    )
    values, units = measured(Errors(rows), "mae")
    assert values == {"energy_per_atom": 0.03, "forces": 0.1, "kind": 0.25}
    assert units == {"energy_per_atom": "eV/atom", "forces": "eV/Å", "kind": ""}
    assert measured(Errors(rows), "rmse")[0]["forces"] == 0.2
    points = [Point(n, 0, {"kind": 1 / n}, {"kind": 0.5 / n}) for n in (10, 20, 40, 80)]
    found = LearningCurve(points, {"kind": ""}, "valid", classes=["kind"])
    assert "validation share of wrong answers 0.0125 with 80 structures" in found.advice("kind")


def test_the_picture_shows_points_law_and_interval():
    found = curve(2 * SIZES**-0.5)
    (axis,) = plotting.size_curve(found).axes
    trained, errors, law = (line.get_xydata() for line in axis.lines)
    assert np.allclose(errors, np.transpose([SIZES, 2000 * SIZES**-0.5]))
    assert np.allclose(trained[:, 1], 600 * SIZES**-0.5) and law[-1][0] == pytest.approx(3200)
    assert np.allclose(law[:, 1], 2000 * law[:, 0] ** -0.5)
    assert axis.get_xscale() == axis.get_yscale() == "log" and axis.get_ylabel() == "forces, MAE (meV/Å)"
    assert axis.get_title() == "error ∝ structures^-0.50" and axis.get_ylim()[0] < trained[:, 1].min()
    figure = plotting.size_curve(curve([0.5, 0.52, 0.49, 0.51, 0.5]))
    assert figure.axes[0].get_title().endswith("not reliable")
    figure.canvas.draw()
    box, whole = figure.legends[0].get_window_extent(), figure.bbox
    assert box.x0 >= whole.x0 and box.x1 <= whole.x1  # the legend is not cropped


def test_parts_of_the_data_are_nested_and_have_all_that_is_needed():
    import torch

    from molequi.config.trainings import random_order

    def graph(symbol, label):
        targets = {"energy": torch.tensor([label], dtype=torch.float64)}
        return Graph.single([[0.0, 0, 0], [0, 0, 1.0]], [symbol, "H"], targets=targets)

    graphs = [graph("O" if k == 17 else "C", float("nan") if k % 2 else 1.0) for k in range(40)]
    data = Dataset(graphs)
    order = random_order(data, 0)
    assert sorted(order) == list(range(40)) and 17 in order[:3]
    assert any(k % 2 == 0 for k in order[:3])
    assert random_order(data, 0) == order != random_order(data, 1)
    grouped = Dataset(graphs, info={"conformer": [0, 1] * 20, "molecule": [k // 2 for k in range(40)]})
    rest = list(random_order(grouped, 0))[4:]
    pairs = [k // 2 for k in rest]
    assert sum(a != b for a, b in itertools.pairwise(pairs)) <= 21  # conformers follow each other
