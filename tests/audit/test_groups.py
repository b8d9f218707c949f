"""What is asked of a model depends on the group that it declares, and on no more."""

import pytest
import torch

from molequi import Model
from molequi.audit import audit
from molequi.errors import ConfigError
from molequi.features import Features
from molequi.symmetry import Group

from .kit import crystal, molecule
from .test_faults import Planted

CHECKS = [
    "not zero",
    "rotation",
    "reflection",
    "translation",
    "permutation",
    "features",
    "momentum",
    "lattice",
    "fragments",
]
AXIS = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)


class InField(Planted):
    """Sees a direction of space: invariants of bonds with it, so that O(2) about it is left."""

    axis = AXIS

    def __init__(self):
        super().__init__()
        self.group = "O(n-1)"

    def forward(self, graph):
        features = super().forward(graph)
        along = torch.zeros_like(graph.pos[:, 0]).index_add(
            0, graph.edge_index[1], (graph.edge_vectors() @ AXIS.to(graph.pos)).square()
        )
        return Features(
            blocks=features.blocks
            | {"0e": features.blocks["0e"] + 0.1 * along[:, None, None].to(features.blocks["0e"])},
            coordination=features.coordination,
        )


def rows(report, check):
    return [r for r in report.rows if r.check == check and r.maximum is not None]


def model(kind=InField, **attributes):
    torch.manual_seed(0)
    backbone = kind()
    for name, value in attributes.items():
        setattr(backbone, name, value)
    return Model(backbone, ["energy", "forces", "dipole"])


def test_an_axis_is_kept_and_no_more():
    report = audit(model(), [molecule(0), crystal()], draws=6, checks=CHECKS)
    assert report.passed and report.group == "O(2) about (0.6, 0, 0.8)"
    own = [r for c in ("rotation", "reflection") for r in rows(report, c) if r.element.endswith("O(n-1)")]
    every = [
        r for c in ("rotation", "reflection") for r in rows(report, c) if not r.element.endswith("O(n-1)")
    ]
    assert len(own) == len(every) > 3 and all(r.verdict == "pass" for r in own)
    assert all(r.verdict == "not applicable" for r in every)
    assert max(r.maximum for r in every if r.quantity == "energy") > 1e-3 and any(
        "do not hold" in r.explanation for r in every
    )
    assert "torque" not in {r.element for r in rows(report, "momentum")}


def test_a_wrong_axis_or_a_larger_group_is_found():
    assert {"rotation", "reflection", "features"} <= {
        r.check for r in audit(model(axis=AXIS.flip(0)), [molecule(0)], draws=4, checks=CHECKS).failed
    }
    assert {"rotation", "features"} <= {
        r.check for r in audit(model(), [molecule(0)], group="E(3)", draws=4, checks=CHECKS).failed
    }


class Somewhere(Planted):
    """Knows where the origin is."""

    translations = False

    def forward(self, graph):
        features = super().forward(graph)
        blocks = features.blocks | {
            "0e": features.blocks["0e"]
            + 0.01 * graph.pos.square().sum(1)[:, None, None].to(features.blocks["0e"])
        }
        return Features(blocks=blocks, coordination=features.coordination)


def test_translations_may_be_left_out():
    report = audit(model(Somewhere), [molecule(0), crystal()], draws=6, checks=CHECKS)
    assert report.passed and "without translations" in report.group
    assert max(r.maximum for r in rows(report, "translation")) > 1e-3
    assert {
        r.check
        for r in audit(model(Somewhere, translations=True), [molecule(0)], draws=6, checks=CHECKS).failed
    } >= {"translation", "fragments"}


@pytest.mark.parametrize("name", ["SE(3)", "T", "Ih", "SO(2)", "C1", "T(3)", "S_N"])
def test_a_sound_model_passes_by_any_subgroup(name):
    report = audit(model(Planted), [molecule(0)], group=name, draws=4, checks=CHECKS)
    assert report.passed
    beyond = [
        r
        for r in report.rows
        if r.maximum is not None and r.verdict == "not applicable" and "hold" in r.explanation
    ]
    assert beyond and all("do not hold" not in r.explanation for r in beyond)


def test_a_group_by_name_takes_the_axis_of_the_model():
    assert audit(model(), [molecule(0)], group="O(2)", draws=4, checks=CHECKS).passed
    assert not audit(model(), [molecule(0)], group="O(2) about (0, 0, 1)", draws=4, checks=CHECKS).passed


def test_errors():
    with pytest.raises(ConfigError, match="2 dimensions; the structures have 3"):
        audit(model(), [molecule(0)], group=Group(name="O(n)", dim=2))
    with pytest.raises(ConfigError, match="'Ohh' is not known"):
        audit(model(), [molecule(0)], group="Ohh")


def test_a_dipole_of_molecules_beside_crystals():
    """A periodic structure has none; a molecule without one is a fault still."""
    sound = model(Planted)
    assert audit(sound, [molecule(0), crystal()], draws=4).passed
    only = audit(sound, [crystal()], draws=4)
    assert only.passed and not [r for r in only.rows if r.quantity == "dipole" and r.verdict == "pass"]

    class Nowhere(Model):
        def forward(self, graph, *, create_graph=None):
            out = super().forward(graph, create_graph=create_graph)
            return out | {
                "dipole": out["dipole"] * torch.where(graph.counts == 7, float("nan"), 1.0)[:, None]
            }

    broken = Nowhere(sound.backbone, ["energy", "forces", "dipole"])
    assert "rotation" in {
        r.check for r in audit(broken, [molecule(0), molecule(1, 5), crystal()], draws=4).failed
    }
