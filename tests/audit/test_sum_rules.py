"""Sum rules of responses in the audit: they hold, and each planted violation is found by its rule."""

import pytest
import torch

import molequi as mq
from molequi.audit import audit
from molequi.heads import Dipole, Vector

from .kit import ELEMENTS, crystal, molecule

RULES = {"acoustic": "born_charges", "rotation": "born_charges", "symmetry": "polarizability"}


def model(*, charge=False, predict=None, **options):
    torch.manual_seed(0)
    inputs = mq.Inputs(electric_field=True, charge=charge)
    net = mq.PaiNN(elements=ELEMENTS, cutoff=3.5, channels=8, layers=1, inputs=inputs)
    return mq.Model(net, predict or ["energy", "forces", *mq.response("dipole", "polarizability")], **options)


def rules(net, structures, draws=2):
    report = audit(net, structures, draws=draws, checks=["sum rules"])
    return {row.element: row for row in report.rows}


@pytest.mark.parametrize("charge", [None, -2])
def test_an_energy_in_a_field_passes_the_audit(charge):
    given = {} if charge is None else {"charge": charge}
    net = model(charge=charge is not None)
    # all checks of an ion, those of responses of a neutral molecule
    names = None if charge else ["translation", "rotation", "momentum", "finite differences", "sum rules"]
    report = audit(net, [molecule(1, 4, **given)], draws=2, checks=names)
    assert report.passed, str(report)
    rows = {row.element: row for row in report.rows if row.check == "sum rules"}
    assert {name: row.quantity for name, row in rows.items()} == RULES
    assert all(row.maximum < 1e-12 for row in rows.values())
    checked = {(row.check, row.quantity) for row in report.rows if row.verdict == "pass"}
    assert ("finite differences", "dipole") in checked and ("translation", "dipole") in checked
    assert ("momentum", "forces") in checked  # of the ion they add up to Q F


def test_forces_of_an_ion_that_do_not_add_up_to_the_force_on_its_charge(monkeypatch):
    monkeypatch.setattr("molequi.models.inputs.net_charge_in_field", lambda out, graph, inputs: {})
    report = audit(model(charge=True), [molecule(1, 4, charge=-2)], draws=2, checks=["momentum"])
    assert [(row.element, row.verdict) for row in report.rows][0] == ("net force", "fail")


def test_crystals_in_a_field_pass():
    net = model(predict=["energy", "forces", "stress", *mq.response()])
    names = ["rotation", "lattice", "supercell", "finite differences", "sum rules"]
    assert audit(net, [crystal()], draws=2, checks=names).passed
    found = rules(net, [crystal()])
    assert found["acoustic"].verdict == "pass" and "every structure is periodic" in found["rotation"].reason


class Moved(Dipole):
    """A dipole that depends on where the structure is, or that does not turn with it."""

    fault = ""

    def forward(self, graph, features):
        dipole = super().forward(graph, features)
        if self.fault == "acoustic":
            return dipole + 0.1 * graph.pos.sum(0)
        if self.fault == "rotation":
            return dipole * torch.tensor([1.0, 1.0, 1.1]).to(dipole)
        if self.fault == "symmetry":  # not the derivative of any energy
            field = graph.electric_field
            return dipole + 0.1 * torch.stack([field[:, 1], 0 * field[:, 1], 0 * field[:, 1]], dim=1)
        return dipole


@pytest.mark.parametrize("fault", ["", "acoustic", "rotation", "symmetry"])
def test_planted_violations(fault):
    class Planted(Moved):
        pass

    Planted.fault = fault
    found = rules(model(predict=[Planted("dipole")]), [molecule(0), molecule(1, 5)])
    failed = {name for name, row in found.items() if row.verdict == "fail"}
    if fault in ("", "rotation"):
        # a head may depend on the field so that α is not symmetric: no energy is behind it
        assert failed - {"symmetry"} == ({fault} if fault else set())
    else:
        assert fault in failed


def test_dipoles_of_ions_by_a_head_are_about_the_mean_of_the_positions():
    net = mq.Model(mq.PaiNN(elements=ELEMENTS, cutoff=3.5, channels=8), ["dipole"])
    row = rules(net, [molecule(0, charge=1)])["acoustic"]
    assert row.verdict == "pass" and "add Q/N" in row.reason
    direct = mq.Quantity("born_charges", per="node", rank=2, unit="e")
    backbone = mq.NequIP(elements=ELEMENTS, cutoff=3.5, channels=8)
    row = rules(mq.Model(backbone, ["dipole", direct]), [molecule(0)])["acoustic"]
    assert row.verdict == "fail" and row.maximum > 1e-3  # a head predicts them, and nothing makes them add up


def test_models_without_responses_have_no_sum_rules():
    net = mq.Model(mq.PaiNN(elements=ELEMENTS, channels=8), ["energy", Vector("forces")])
    assert rules(net, [molecule(0)]) == {}
