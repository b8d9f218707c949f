"""Cards: made for weights and structures, kept in files, measured again, and compared."""

import copy
import json

import pytest
import torch

import molequi as mq
from molequi import EGNN, Model, NequIP
from molequi.audit import compare, compare_models, symmetry_report, verify
from molequi.errors import CheckpointError, ConfigError, ModelError
from molequi.models import nequip as nequip_file
from molequi.symmetry_report import SymmetryReport, record_of
from molequi.util.digests import weights_digest

from .kit import ELEMENTS, crystal, molecule


def small(**options):
    torch.manual_seed(0)
    return Model(
        NequIP(elements=ELEMENTS, cutoff=3.5, channels=4, layers=2, radial=4, **options),
        ["energy", "forces", "dipole"],
    )


def saved(model, path, structures):
    mq.save(model, path, metadata={"symmetry_report": symmetry_report(model, structures).to_dict()})
    return path


STRUCTURES = [molecule(0), molecule(1, 5), crystal()]


def test_a_card_says_what_was_measured_and_verifies(tmp_path):
    path = saved(small(), tmp_path / "a.safetensors", STRUCTURES)
    model = mq.load(path)
    report = model.symmetry_report
    assert report.passed and report.group == "O(3)" and report.verify(model) is report
    assert {"rotation", "reflection", "translation", "permutation", "batch", "lattice", "features"} == set(
        report.checks["float64"]
    )
    assert max(report.checks["float64"].values()) < 1e-9 < max(report.checks["float32"].values()) < 1e-3
    assert "declared O(3); passed" in str(report) and "float32" in str(report)
    assert report.verify(model.double()) is report  # widened, these are the same weights
    assert sorted(g.num_nodes for g in report.graphs) == [5, 5, 7]
    again = verify(path)
    assert again.passed and "nothing grew" in str(again)
    assert again.new.checks["float64"].keys() == report.checks["float64"].keys()


def test_one_edited_weight(tmp_path):
    path = saved(small(), tmp_path / "a.safetensors", STRUCTURES)
    model = mq.load(path)
    with torch.no_grad():
        next(iter(model.heads["energy"].parameters())).view(-1)[0] += 1e-3
    with pytest.raises(ModelError, match="for other weights"):
        model.symmetry_report.verify(model)
    mq.save(model, tmp_path / "b.safetensors")  # takes its metadata along
    with pytest.raises(ModelError, match="for other weights"):
        verify(tmp_path / "b.safetensors")


def test_a_model_without_a_card(tmp_path):
    mq.save(small(), tmp_path / "a.safetensors")
    assert mq.load(tmp_path / "a.safetensors").symmetry_report is None
    with pytest.raises(ModelError, match="no symmetry report"):
        verify(tmp_path / "a.safetensors")


def test_a_damaged_card(tmp_path):
    mq.save(small(), tmp_path / "a.safetensors", metadata={"symmetry_report": {"group": "O(3)"}})
    with pytest.raises(CheckpointError, match=r"report of the file has \['group'\]; wanted"):
        mq.load(tmp_path / "a.safetensors").symmetry_report


def test_a_cast_to_bfloat16_is_refused(tmp_path):
    model = small()
    old = saved(model, tmp_path / "old.safetensors", STRUCTURES)
    cast = copy.deepcopy(model).to(torch.bfloat16)
    with pytest.raises(CheckpointError, match="is bfloat16; wanted float32 or float64"):
        compare_models(mq.save(cast, tmp_path / "new.safetensors"), old, STRUCTURES)
    result = compare(symmetry_report(model, STRUCTURES), symmetry_report(cast, STRUCTURES))
    assert not result.passed and {way for way, _ in result.grown} == {"own"}
    assert "REFUSED" in str(result) and "own" in str(result)
    assert (result.new.unusable in str(result)) and (result.new.unusable != "") == (
        None in result.new.checks["own"].values()
    )
    with pytest.raises(ModelError, match="REFUSED"):
        result.raise_if_grown()
    assert compare_models(old, old, STRUCTURES).passed


def test_retrained_weights_are_accepted(tmp_path):
    old = saved(small(), tmp_path / "old.safetensors", STRUCTURES)
    other = small()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.1)
    assert compare_models(mq.save(other, tmp_path / "new.safetensors"), old, STRUCTURES).passed


def test_an_unrotated_cell_is_refused(tmp_path, monkeypatch):
    old = saved(small(), tmp_path / "old.safetensors", [crystal()])
    new = mq.save(small(), tmp_path / "new.safetensors")
    plain = nequip_file.NequIP.forward

    def forward(self, graph):
        features = plain(self, graph)
        scalars = features.blocks["0e"]
        if graph.cell is None:
            return features
        return type(features)(
            blocks=features.blocks
            | {"0e": scalars + 0.1 * graph.cell[graph.batch, 0, 0][:, None, None].to(scalars)},
            coordination=features.coordination,
        )

    monkeypatch.setattr(nequip_file.NequIP, "forward", forward)
    result = compare_models(
        new, old, [crystal()]
    )  # the old one measured now is as wrong, but its report remembers
    assert ("float64", "rotation") in result.grown and not result.passed
    assert not verify(old).passed


def test_a_weaker_group_is_refused(tmp_path):
    old, new = (
        mq.save(small(), tmp_path / "old.safetensors"),
        mq.save(small(group="SO(3)"), tmp_path / "new.safetensors"),
    )
    result = compare_models(new, old, STRUCTURES)
    assert not result.passed and "declares O(3), the new one SO(3)" in str(result)
    assert compare_models(old, new, STRUCTURES).passed  # more symmetry is no loss


def test_a_quantity_that_died_is_refused(tmp_path):
    old = saved(small(), tmp_path / "old.safetensors", STRUCTURES)
    dead = small()
    for parameter in dead.heads["dipole"].parameters():
        parameter.data.zero_()
    result = compare_models(mq.save(dead, tmp_path / "dead.safetensors"), old, STRUCTURES)
    assert (
        result.failed == ["not zero"]
        and not result.passed
        and "not zero fails" in str(result)
        and "dipole cannot be measured" in str(result)
    )
    fewer = Model(small().backbone, ["energy", "forces"])
    result = compare_models(mq.save(fewer, tmp_path / "fewer.safetensors"), old, STRUCTURES)
    assert not result.passed and "dipole cannot be measured any more" in str(result)


def test_a_card_of_nothing_has_not_passed():
    report = symmetry_report(small(), [molecule(0, 1)])
    assert not report.passed and report.quantities == [] and "nothing was measured" in str(report)
    assert symmetry_report(small(), STRUCTURES).quantities == ["energy", "forces", "dipole", "energies"]


def test_cards_of_calculators_and_of_too_few_draws():
    from ase.calculators.lj import LennardJones

    report = symmetry_report(LennardJones(rc=8.0, smooth=True), [molecule(0)])
    assert report.passed and "float32" not in str(report) and not report.checks["float32"]
    with pytest.raises(ConfigError, match="draws=1: wanted at least 2"):
        symmetry_report(small(), STRUCTURES, draws=1)


def test_growth_is_judged_above_round_off():
    report = symmetry_report(small(), [molecule(0)])

    def changed(value, way="float64"):
        return SymmetryReport(
            **{**vars(report), "checks": {**report.checks, way: report.checks[way] | {"rotation": value}}}
        )

    assert compare(changed(1e-17), changed(9e-13)).passed  # round-off
    assert compare(changed(1e-12), changed(9e-12)).passed
    assert compare(changed(1e-12), changed(1.1e-11)).grown == (("float64", "rotation"),)
    assert compare(changed(1e-7, "float32"), changed(9e-5, "float32")).passed
    assert compare(changed(1e-7, "float32"), changed(1.1e-4, "float32")).grown == (("float32", "rotation"),)
    assert (
        compare(report, changed(None)).grown == (("float64", "rotation"),)
        and compare(changed(None), changed(None)).passed
    )
    assert json.loads(json.dumps(report.to_dict()))["group"] == "O(3)"


def test_structures_are_kept_to_the_last_digit():
    given = molecule(0).replace(
        vel=torch.randn(7, 3, dtype=torch.float64),
        charge=torch.tensor([1.0]),
        pair_index=torch.tensor([[0, 1], [1, 0]]),
        pair_attr=torch.rand(1, 3, dtype=torch.float64).expand(2, 3),
    )
    for graph in (given, crystal([True, True, False])):
        report = SymmetryReport(
            **{
                **vars(symmetry_report(small(), [molecule(0)])),
                "structures": json.loads(json.dumps([record_of(graph)])),
            }
        )
        (back,) = report.graphs
        for name in ("pos", "z", "cell", "pbc", "vel", "charge", "pair_index", "pair_attr"):
            a, b = getattr(graph, name), getattr(back, name)
            assert (a is None) == (b is None) and (a is None or torch.equal(a, b.to(a.dtype))), name


def test_digests_of_weights_see_every_number():
    model = small()
    first = weights_digest(model.state_dict())
    model.backbone.mean_neighbors += 1e-5
    assert weights_digest(model.state_dict()) != first
    assert (
        weights_digest(Model(EGNN(elements=ELEMENTS, channels=4, layers=1), ["energy"]).state_dict()) != first
    )
