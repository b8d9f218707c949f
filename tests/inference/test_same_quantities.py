"""Labels of other classes or in another unit are refused wherever a model meets labels, not compared by number."""

import pytest
import torch

from molequi import EGNN, Dataset, Ensemble, Graph, Model, Quantity, evaluate, fit, predict
from molequi.approximate import equivariance_errors
from molequi.errors import ConfigError
from molequi.inference import calibration
from molequi.inference.metrics import Metrics
from molequi.plotting import parity

KIND = Quantity("kind", classes=["a", "b", "c"])
GAP = Quantity("gap", unit="eV")


def labelled(quantity, count=6):
    graphs = [
        Graph.single(
            [[0, 0, 0], [0.9 + 0.01 * k, 0, 0]],
            ["O", "H"],
            targets={quantity.name: torch.tensor([float(k % 2)], dtype=torch.float64)},
        )
        for k in range(count)
    ]
    return Dataset(graphs, quantities={quantity.name: quantity})


def model(quantity):
    torch.manual_seed(0)
    return Model(EGNN(elements=["H", "O"], channels=8, layers=1, cutoff=3.0), [quantity])


@pytest.mark.parametrize(
    ("own", "other", "said"),
    [
        (
            KIND,
            Quantity("kind", classes=["a", "c"]),
            r"classes=\['a', 'b', 'c'\] in the model and classes=\['a', 'c'\]",
        ),
        (KIND, Quantity("kind", classes=["c", "b", "a"]), r"classes=\['c', 'b', 'a'\] in these data"),
        (GAP, Quantity("gap", unit="kcal/mol"), "unit='eV' in the model and unit='kcal/mol' in these data"),
        (GAP, Quantity("gap", unit="eV", extensive=True), "extensive=False in the model"),
    ],
)
def test_other_labels_are_refused_by_evaluate(own, other, said):
    evaluate(model(own), labelled(own))  # the control
    with pytest.raises(ConfigError, match=said):
        evaluate(model(own), labelled(other))


def test_the_message_says_what_to_type():
    with pytest.raises(ConfigError, match=r"quantities=\[model.quantities\['gap'\]\].*units=\{'gap': …\}"):
        evaluate(model(GAP), labelled(Quantity("gap", unit="kcal/mol")))


def test_other_entry_points_refuse_them_too():
    other = labelled(Quantity("gap", unit="kcal/mol"))
    one = model(GAP)
    both = Ensemble([model(GAP), model(GAP)])
    for way in (
        lambda: fit(one, labelled(GAP), other, epochs=1, logging={"progress": False}),
        lambda: calibration(both, other),
        lambda: equivariance_errors(one, other),
        lambda: predict(one, labelled(GAP), interval=0.5, calibration=other, progress=False),
        lambda: Metrics({"gap": GAP}, other),
        lambda: parity(one, {"valid": other}),
    ):
        with pytest.raises(ConfigError, match=r"'gap' has unit='eV' in the model and unit='kcal/mol' in the"):
            way()


def test_labels_that_are_not_predicted_or_not_known_do_not_matter():
    data = labelled(GAP)
    unknown = torch.tensor([float("nan")], dtype=torch.float64)
    graphs = [g.replace(targets={**g.targets, "kind": unknown}) for g in data]
    more = Dataset(graphs, quantities={"gap": GAP, "kind": Quantity("kind", classes=["x", "y"])})
    assert evaluate(model(GAP), more)["gap_mae"] >= 0
    two = Model(EGNN(elements=["H", "O"], channels=8, layers=1, cutoff=3.0), [GAP, KIND])
    assert evaluate(two, more)["gap_mae"] >= 0
