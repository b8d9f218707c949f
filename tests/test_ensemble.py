"""Laws of an ensemble: what its mean and its std are, how they turn, and that a file keeps them."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from molequi import (
    EGNN,
    Ensemble,
    Graph,
    Model,
    NequIP,
    PaiNN,
    Quantity,
    audit,
    checkpoint,
    connect,
    evaluate,
    fit,
    load,
    predict,
    save,
)
from molequi.data import Dataset
from molequi.errors import CheckpointError, ModelError
from molequi.readers import read_smiles
from molequi.symmetry import Transform, random_orthogonal

KINDS = {"EGNN": EGNN, "NequIP": NequIP, "PaiNN": PaiNN}
TASTE = Quantity(name="taste", classes=("sweet", "sour", "bitter"))
PREDICT = ["energy", "forces", "stress", "gap", "charges", Quantity(name="shielding", rank=2), TASTE]
WATERS = [
    Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], [8, 1, 1]),
    Graph.single([[0, 0, 0], [1.02, 0.1, 0], [-0.3, 0.9, 0.2], [1.5, 1.5, 0.4]], [8, 1, 1, 8]),
    Graph.single(
        [[0, 0, 0], [1.0, 0.1, 0], [0.2, 1.3, 0.9]],
        [8, 1, 1],
        cell=[[3.4, 0, 0], [0.7, 3.6, 0], [0.3, -0.4, 3.8]],
        pbc=True,
    ),
]


def member(seed, kind="PaiNN", predict=PREDICT, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return (
            Model(KINDS[kind](elements=[1, 8], cutoff=3.5, channels=6, layers=2, **options), predict)
            .double()
            .eval()
        )


def ensemble(count=3, **options):
    return Ensemble([member(k, **options) for k in range(count)])


def batch(cutoff=3.5):
    from molequi import collate

    return collate([connect(g, cutoff) for g in WATERS])


def test_mean_and_std_by_hand():
    models, graph = [member(k) for k in range(4)], batch()
    out = Ensemble(models)(graph)
    each = {name: np.stack([m(graph)[name].numpy() for m in models]) for name in models[0](graph)}
    assert set(out) == {*each, *(f"{name}_std" for name in models[0].quantities)}
    for name in ("energy", "forces", "stress", "gap", "charges", "shielding", "energies"):
        assert np.allclose(out[name], each[name].mean(0), rtol=0, atol=1e-12, equal_nan=True), name
        if name != "energies":
            components = tuple(range(1, each[name].ndim - 1))  # behind the rows, once the members are gone
            by_hand = np.sqrt(each[name].var(0, ddof=1).mean(components))
            assert out[f"{name}_std"].shape == (each[name].shape[1],)
            assert np.allclose(out[f"{name}_std"], by_hand, rtol=1e-10, atol=0, equal_nan=True), name
            assert np.nanmin(by_hand) > 0, name
    assert torch.isnan(out["stress_std"]).tolist() == [True, True, False]
    odds = np.exp(each["taste"]) / np.exp(each["taste"]).sum(-1, keepdims=True)
    assert np.allclose(out["taste"].exp(), odds.mean(0), atol=1e-14)
    assert np.allclose(out["taste_std"], np.sqrt(odds.var(0, ddof=1).sum(-1) / 2), rtol=1e-10)


def test_of_two_classes_the_std_is_that_of_the_probability():
    coin = Quantity(name="coin", classes=("heads", "tails"))
    models = [member(k, predict=[coin]) for k in range(3)]
    heads = np.stack([torch.softmax(m(batch())["coin"], -1)[:, 0].numpy() for m in models])
    assert np.allclose(Ensemble(models)(batch())["coin_std"], heads.std(0, ddof=1), rtol=1e-10)


def test_members_that_are_equal_have_no_std_and_their_own_mean():
    one = member(0)
    one.heads["energy"].reference_energies[8] = -2041.123456789012
    many, alone = Ensemble([one] * 3), one(batch())
    out = many(batch())
    for name, value in alone.items():
        if name != "taste":
            assert torch.equal(out[name].nan_to_num(7.0), value.nan_to_num(7.0)), name
    assert torch.allclose(out["taste"].softmax(-1), alone["taste"].softmax(-1), atol=1e-15)
    for name in many.quantities:
        std = out[f"{name}_std"]
        assert float(std[torch.isfinite(std)].abs().max()) == 0, name
    graph = connect(WATERS[0], 3.5)
    pos = graph.pos.clone().requires_grad_()
    (slope,) = torch.autograd.grad(many(graph.replace(pos=pos), create_graph=True)["gap_std"].sum(), pos)
    assert torch.equal(slope, torch.zeros_like(slope))  # and not NaN, which the root of zero would give


def test_the_order_of_members_changes_nothing():
    models = [member(k) for k in range(3)]
    first, second = Ensemble(models)(batch()), Ensemble(models[::-1])(batch())
    for name, value in first.items():
        assert torch.allclose(value, second[name], rtol=1e-12, atol=1e-13, equal_nan=True), name
    other = Ensemble([member(7), *models[1:]])(batch())  # control: another member does
    assert not torch.allclose(first["energy"], other["energy"], atol=1e-6)


def test_forces_are_minus_the_gradient_of_the_mean_energy():
    both, graph = ensemble(), connect(WATERS[1], 3.5)
    pos = graph.pos.clone().requires_grad_()
    out = both(graph.replace(pos=pos), create_graph=True)
    (slope,) = torch.autograd.grad(out["energy"].sum(), pos)
    assert float(out["forces"].detach().abs().max()) > 1e-3
    assert torch.allclose(out["forces"], -slope, rtol=0, atol=1e-13)
    assert not any(value.requires_grad for value in both(graph).values())


@pytest.mark.parametrize("proper", [True, False])
def test_the_std_does_not_turn(proper):
    both, graph = ensemble(kind="NequIP", l_max=1), WATERS[1]
    element = Transform.single(
        rotation=random_orthogonal(3, proper=proper, generator=torch.Generator().manual_seed(0))
    )
    here, there = both(connect(graph, 3.5)), both(connect(element.graph(graph), 3.5))
    for name, q in both.outputs.items():
        if name not in ("stress", "stress_std", "taste"):
            assert torch.allclose(
                there[name], torch.stack([element.value(q, v) for v in here[name]]), rtol=0, atol=1e-12
            ), name
    # control: standard deviations of single components do turn
    each = [
        torch.stack([m(connect(g, 3.5))["forces"] for m in both.members]).std(0)
        for g in (graph, element.graph(graph))
    ]
    assert not torch.allclose(each[0], each[1], atol=1e-3)


def test_audit_of_mean_and_std():
    many = ensemble(predict=["energy", "forces", TASTE])
    many.members[0].heads["energy"].reference_energies[
        8
    ] = -1000.0  # members need not have the same isolated atoms
    report = audit(
        many,
        WATERS[:2],
        draws=2,
        checks=["not zero", "rotation", "reflection", "permutation", "batch", "one atom", "fragments"],
    )
    report.raise_if_failed()
    measured = {row.quantity for row in report.rows if row.check == "rotation" and row.verdict == "pass"}
    assert {"energy", "forces", "taste", "energy_std", "forces_std", "taste_std"} <= measured
    periodic = audit(
        ensemble(predict=["energy", "forces", "stress"]),
        WATERS,
        draws=2,
        checks=["not zero", "lattice", "supercell", "across graphs"],
    )
    periodic.raise_if_failed()
    assert {"energy_std", "forces_std", "stress_std"} <= {
        row.quantity for row in periodic.rows if row.check == "supercell"
    }


def test_audit_finds_a_std_that_turns(monkeypatch):
    from molequi import ensemble as module

    def slanted(values, components=None):
        return (values - values.mean(0)).square().sum(0)[..., 0].sqrt() if values.ndim == 3 else values.std(0)

    many = ensemble(predict=["energy", "forces"])
    assert audit(many, WATERS[:2], draws=2, checks=["rotation"]).passed
    monkeypatch.setattr(module, "_std", slanted)
    failed = audit(many, WATERS[:2], draws=2, checks=["rotation"]).failed
    assert [row.quantity for row in failed] == ["forces_std"]


def test_members_that_do_not_belong_together():
    one = member(0)
    with pytest.raises(ModelError, match="an ensemble of 1: .* two members or more"):
        Ensemble([one])
    with pytest.raises(ModelError, match="an ensemble of 0"):
        Ensemble([])
    with pytest.raises(
        ModelError, match="member 1 .* found str 'b.safetensors'; wanted a Model, as mq.load gives it"
    ):
        Ensemble([one, "b.safetensors"])
    with pytest.raises(ModelError, match="an ensemble of 1"):
        Ensemble(one)
    with pytest.raises(ModelError, match="member 1 .* has backbone EGNN and member 0 has PaiNN"):
        Ensemble([one, member(1, "EGNN")])
    with pytest.raises(ModelError, match=r"member 2 .* has backbone.radial 5 and member 0 has \d+"):
        Ensemble([one, member(1), member(2, radial=5)])
    with pytest.raises(ModelError, match="member 1 .* the head of shielding None"):
        Ensemble([one, member(1, predict=[q for q in PREDICT if getattr(q, "name", q) != "shielding"])])
    with pytest.raises(ModelError, match="precision torch.float32 and member 0 has torch.float64"):
        Ensemble([one, member(1).float()])
    with pytest.raises(ModelError, match="name of the standard deviation of the first; rename one"):
        Ensemble([member(k, predict=["gap", Quantity(name="gap_std")]) for k in range(2)])
    with pytest.raises(ModelError, match="scales: 'enrgy' is not predicted.*'energy'"):
        Ensemble([one, member(1)], {"enrgy": 1.0})
    for bad in (0, -1.0, float("nan"), True, "2"):
        with pytest.raises(ModelError, match="factors: energy is .* above zero"):
            ensemble().calibrated({"energy": bad})
    with pytest.raises(ModelError, match="connect"):
        ensemble()(WATERS[0])


def test_members_are_copies():
    one, two = member(0).train(), member(1)
    many = Ensemble([one, two])
    before = many(batch())["gap"]
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()
    assert torch.equal(many(batch())["gap"], before) and one.training and not many.training
    assert (many.elements, many.cutoff, many.k, many.group, many.dtype, many.device.type) == (
        (1, 8),
        3.5,
        None,
        one.group,
        torch.float64,
        "cpu",
    )


def test_scales_multiply_stds_and_leave_means():
    plain = ensemble()
    wide = plain.calibrated({"forces": 2.0}).calibrated({"forces": 1.5, "gap": 0.5})
    assert wide.scales == {"forces": 3.0, "gap": 0.5} and plain.scales == {}
    a, b = plain(batch()), wide(batch())
    for name, factor in {"forces": 3.0, "gap": 0.5, "energy": 1.0}.items():
        assert torch.allclose(b[f"{name}_std"], factor * a[f"{name}_std"], rtol=1e-15), name
        assert torch.equal(a[name], b[name])


# Files.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_is_bit_equal(kind, dtype, tmp_path):
    many = ensemble(kind=kind).calibrated({"energy": 1 / 3}).to(dtype)
    many.members[1].heads["energy"].reference_energies[8] = -2041.123456789012
    save(many, tmp_path / "e.safetensors", metadata={"note": "å"})
    again = load(tmp_path / "e.safetensors")
    assert type(again) is Ensemble and len(again.members) == 3 and again.scales == {"energy": 1 / 3}
    assert again.metadata == {"note": "å"} and again.dtype == dtype and not again.training
    for name, value in many(batch()).items():
        assert torch.equal(value.nan_to_num(7.0), again(batch())[name].nan_to_num(7.0)), name
    assert load(tmp_path / "e.safetensors", dtype="float32").dtype == torch.float32
    assert type(load(save(many.members[0], tmp_path / "m.safetensors"))) is Model


def test_a_file_that_lacks_a_member(tmp_path):
    path = save(ensemble(), tmp_path / "e.safetensors")
    header, tensors = checkpoint.read(path)

    def rewrite(header, tensors):
        text = json.dumps(header, sort_keys=True)
        save_file(tensors, path, metadata={"molequi": text, "sha256": checkpoint.digest(text, tensors)})

    rewrite(header, {name: value for name, value in tensors.items() if not name.startswith("members.1.")})
    with pytest.raises(
        CheckpointError, match=r"an ensemble of 3, and member 1 \(counted from 0\) is missing"
    ):
        load(path)
    rewrite(header | {"model": header["model"] | {"members": 1}}, tensors)
    with pytest.raises(CheckpointError, match="two members or more"):
        load(path)
    rewrite(header | {"model": header["model"] | {"scales": {"gap": -1.0}}}, tensors)
    with pytest.raises(CheckpointError, match="above zero"):
        load(path)


# In use.


def test_predict_and_evaluate_take_it(tmp_path):
    from ase.io import read

    many = ensemble(predict=["energy", "forces", TASTE])
    path = save(many, tmp_path / "e.safetensors")
    results = predict(path, WATERS[:2], out=tmp_path / "p.xyz", progress=False)
    out = many(connect(WATERS[1], 3.5))
    for name in ("energy_std", "forces_std", "taste_std"):
        assert np.allclose(
            results[1][name],
            out[name].squeeze().numpy() if "forces" not in name else out[name].numpy(),
            rtol=1e-10,
        ), name
    assert (
        results[1]["forces_std"].shape == (4,)
        and str(results[1]["taste"]) == TASTE.classes[int(out["taste"].argmax())]
    )
    written = read(tmp_path / "p.xyz", index=1)
    assert np.allclose(written.arrays["forces_std"], out["forces_std"], atol=1e-7)
    assert written.info["energy_std"] == pytest.approx(float(out["energy_std"]), abs=1e-7)
    labelled = Dataset(
        [
            g.replace(targets={"energy": torch.zeros(1).double(), "forces": torch.zeros_like(g.pos)})
            for g in WATERS[:2]
        ]
    )
    errors = evaluate(path, labelled)
    mean = np.concatenate([many(connect(g, 3.5))["forces"].numpy().ravel() for g in WATERS[:2]])
    assert errors["forces_rmse"] == pytest.approx(np.sqrt((mean**2).mean()), rel=1e-10)


def test_table_has_columns_of_both_stds(tmp_path):
    pytest.importorskip("rdkit")
    import csv

    from molequi.inference import predict_table

    models = [
        Model(EGNN(elements=["H", "C", "O"], channels=6, layers=1), ["gap", "dipole"]).double()
        for _ in range(3)
    ]
    many = Ensemble(models)
    (result,) = predict(many, ["CCO"], progress=False)
    assert float(result["gap_std"]) > 0 and result["dipole_std"].shape == ()
    predict_table(many, ["CCO"], tmp_path / "one.csv", workers=1, progress=False)
    (row,) = csv.DictReader((tmp_path / "one.csv").read_text().splitlines())
    assert float(row["gap_std (eV, not calibrated)"]) == pytest.approx(
        float(result["gap_std"]), rel=1e-8
    ) and float(row["dipole_std (e Å, not calibrated)"]) == pytest.approx(
        float(result["dipole_std"]), rel=1e-8
    )
    (several,) = predict(many, ["CCO"], conformers=3, progress=False)
    predict_table(many, ["CCO"], tmp_path / "three.csv", conformers=3, workers=1, progress=False)
    (row,) = csv.DictReader((tmp_path / "three.csv").read_text().splitlines())
    std, conformers = float(row["gap_std (eV, not calibrated)"]), float(row["gap_conformer_std (eV)"])
    assert std == pytest.approx(float(several["gap_std"]), rel=1e-8)
    assert conformers == pytest.approx(float(several["gap_conformer_std"]), rel=1e-8) != std
    assert len(several["dipole_std"]) == len(several["dipole"]) and "dipole_conformer_std" not in several
    # <name>_std is of the members with one geometry and with several, and the factor of the training is in it.
    data = read_smiles(["CCO"], conformers=3)
    each = [[float(m(connect(g, many.cutoff))["gap"]) for m in many.members] for g in data]
    assert std == pytest.approx(np.sqrt(np.mean(np.var(each, axis=1, ddof=1))), rel=1e-6)
    calibrated = many.calibrated({"gap": 2.0})
    done = predict_table(calibrated, ["CCO"], tmp_path / "three.csv", conformers=3, workers=1, progress=False)
    (row,) = csv.DictReader((tmp_path / "three.csv").read_text().splitlines())
    assert float(row["gap_std (eV)"]) == pytest.approx(2 * std, rel=1e-8)
    assert float(row["gap_conformer_std (eV)"]) == pytest.approx(conformers, rel=1e-8)
    assert "standard deviations are calibrated: gap × 2" in str(done)
    assert predict(calibrated, ["CCO"], progress=False).calibration == {"gap": 2.0}


def pairs(distances):
    """Two atoms with a Morse potential between them."""
    graphs = []
    for r in distances:
        away = 1 - np.exp(-1.3 * (r - 1.0))
        slope = 2 * 0.5 * away * 1.3 * np.exp(-1.3 * (r - 1.0))
        graphs.append(
            Graph.single(
                [[0, 0, 0], [r, 0, 0]],
                [8, 8],
                targets={
                    "energy": torch.tensor([0.5 * away**2], dtype=torch.float64),
                    "forces": torch.tensor([[slope, 0, 0], [-slope, 0, 0]], dtype=torch.float64),
                },
            )
        )
    return Dataset(graphs)


def test_where_nothing_was_trained_the_std_is_larger():
    """Trained on bonds of 0.9 to 1.5 Å; asked at 0.6 Å, where atoms nearly touch, and at 2.2 Å."""
    rng, models = np.random.default_rng(0), []
    train, valid = pairs(rng.uniform(0.9, 1.5, 40)), pairs(rng.uniform(0.9, 1.5, 12))
    for seed in range(3):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Model(EGNN(elements=[8], channels=8, layers=1, radial=8, cutoff=4.0))
        models.append(
            fit(
                model,
                train,
                valid,
                epochs=40,
                batch_size=8,
                lr=1e-2,
                seed=seed,
                normalization={"reference_energies": {"O": 0.0}},
                logging={"progress": False},
            ).model
        )
    many = Ensemble(models)
    known, close, far = (
        np.mean([r["forces_std"] for r in predict(many, pairs(d), progress=False)])
        for d in (rng.uniform(0.9, 1.5, 20), [0.6], [2.2])
    )
    assert known < 0.1 * np.abs(train.values("forces").numpy()).max()  # it did learn
    assert close > 3 * known and far > 3 * known


def test_a_copy_is_another_ensemble():
    many = ensemble()
    other = copy.deepcopy(many).predicting(["gap"])
    assert list(other.outputs) == ["gap", "gap_std"] and len(many.quantities) == len(PREDICT)
    assert all(list(m.quantities) == ["gap"] for m in other.members)


def test_axes_that_were_learned_apart_leave_no_group():
    torch.manual_seed(0)
    members = [
        Model(EGNN(elements=["H", "C", "O"], channels=4, layers=1, cutoff=4.0, axis="learned"), ["energy"])
        for _ in range(2)
    ]
    same = Ensemble([members[0], members[0]])
    assert same.group == "O(n-1)" and torch.equal(same.axis, members[0].axis)
    apart = Ensemble(members)
    assert apart.group == "C1" and apart.axis is None
