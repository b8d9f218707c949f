"""NequIP models become ours: the same energies, forces and stress as the package nequip gives (make_nequip.py)."""

import copy
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import molequi as mq
from molequi.errors import CheckpointError
from molequi.foreign.archive import Archive
from molequi.foreign.nequip import from_nequip, is_nequip
from molequi.heads import LinearScalar, ZBLEnergy
from molequi.ops.irreps import clebsch_gordan

FOLDER = Path(__file__).parent
NAMES = ("nequip_o3", "nequip_natural", "nequip_so3")
FILES = [f"{name}.{end}" for name in NAMES for end in ("ckpt", "nequip.zip")]
ROWS = [(file, k) for file in FILES for k in range(5)]
REFERENCE = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in NAMES}


@pytest.fixture(scope="module")
def models():
    return {file: mq.convert(FOLDER / file, dtype="float64") for file in FILES}


@pytest.mark.parametrize("file, k", ROWS)
def test_values_are_those_of_the_package(models, file, k):
    model, row = models[file], REFERENCE[file.partition(".")[0]][k]
    box = {} if row["cell"] is None else {"cell": row["cell"], "pbc": row["pbc"]}
    found = model(mq.connect(mq.Graph.single(row["positions"], row["symbols"], **box), model.cutoff))
    assert float(found["energy"]) == pytest.approx(row["energy"], rel=1e-12, abs=1e-12)
    np.testing.assert_allclose(found["forces"].detach(), row["forces"], atol=1e-12)
    if row["stress"] is not None:
        np.testing.assert_allclose(found["stress"].detach()[0], row["stress"], atol=1e-12)


def test_a_checkpoint_and_its_package_are_one_model(models):
    for name in NAMES:
        one, other = (models[f"{name}.{end}"] for end in ("ckpt", "nequip.zip"))
        options, others = dict(one.backbone.hparams), dict(other.backbone.hparams)
        # A package has the inverse of the root of each number.
        counts, inverted = options.pop("neighbors") or {}, others.pop("neighbors") or {}
        assert counts == pytest.approx(inverted, rel=1e-14)
        assert options == others and one.heads["energy"].hparams == other.heads["energy"].hparams
        for (key, a), b in zip(one.state_dict().items(), other.state_dict().values()):
            np.testing.assert_allclose(a, b, rtol=1e-14, err_msg=key)


def test_what_the_models_are(models):
    """Neighbors, exponents, cutoffs and readouts of the file are options of the model."""
    backbone = models["nequip_o3.ckpt"].backbone
    assert backbone.group == "O(3)" and backbone.exponent == 5
    assert backbone.hparams["neighbors"] == {"H": 11.0, "O": 14.5, "C": 12.25}
    assert backbone.layouts[3] == {"0o": 4, "0e": 4, "1o": 3, "1e": 3, "2o": 1, "2e": 1}
    assert [i.own.outputs == {} for i in backbone.interactions] == [True, False, False, False]
    natural = models["nequip_natural.ckpt"]
    assert natural.backbone.group == "O(3)" and natural.backbone.layouts[1] == {
        "0e": 4,
        "1o": 4,
        "2e": 4,
        "3o": 4,
    }
    assert natural.backbone.hparams["pair_cutoffs"]["C"] == {"H": 4.0, "O": 3.0, "C": 4.0}
    head = natural.heads["energy"]
    assert isinstance(head, ZBLEnergy) and (head.hidden, head.activation) == ((6,), "silu")
    other = models["nequip_so3.ckpt"]
    assert other.backbone.group == "SO(3)" and all(i.own.outputs for i in other.backbone.interactions)
    head = other.heads["energy"]
    assert type(head) is LinearScalar and (head.hidden, head.activation) == ((3, 3), None)


def test_it_is_an_ordinary_model(models, tmp_path):
    """Symmetry report, file, calculator, descriptors, a few steps of fine-tuning, and LoRA."""
    from ase import Atoms

    for file, reflections in (
        ("nequip_o3.ckpt", True),
        ("nequip_natural.nequip.zip", True),
        ("nequip_so3.ckpt", False),
    ):
        report = models[file].symmetry_report
        assert report.passed and ("reflection" in str(report)) == reflections, file
    model = models["nequip_o3.nequip.zip"]
    assert model.metadata["origin"]["family"] == "NequIP"
    assert model.metadata["origin"]["package"] == "nequip 0.19.1"
    again = mq.load(mq.save(model, tmp_path / "n.safetensors"))
    atoms = Atoms("OHH", [[0, 0, 0], [0.96, 0, 0.1], [-0.24, 0.93, 0]])
    atoms.calc = mq.Calculator(again)
    assert atoms.get_potential_energy() == pytest.approx(REFERENCE["nequip_o3"][0]["energy"], rel=1e-12)
    assert set(mq.descriptors(again, [atoms]).blocks) == {"0e"}


def test_it_trains_further(tmp_path):
    data = mq.read_extxyz(mq.shipped("ethanol_300K.xyz"))
    for method in ("all", "lora"):
        model = mq.convert(FOLDER / "nequip_o3.ckpt")
        before = copy.deepcopy(model.state_dict())
        done = mq.fit(
            model, data[:8], data[8:12], epochs=1, batch_size=4, finetune=method, out=tmp_path / method
        )
        changed = [k for k, v in done.model.state_dict().items() if not torch.equal(v, before[k])]
        assert any(name.startswith("backbone.interactions") for name in changed)


def test_nothing_of_the_package_is_imported():
    """In a process of its own, in which importing it fails."""
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("nequip", "allegro", "lightning", "hydra", "omegaconf"):
            raise RuntimeError(name + " is imported")
sys.meta_path.insert(0, Refuse())
import molequi as mq
for end in ("ckpt", "nequip.zip"):
    print(mq.convert({str(FOLDER / "nequip_o3.")!r} + end).elements)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "(1, 6, 8)\n(1, 6, 8)\n", done.stderr


def content(file: str) -> dict:
    with Archive(FOLDER / file) as archive:
        return archive.value()


def changed(name: str, **options) -> dict:
    value = content(f"{name}.ckpt")
    given = value["hyper_parameters"]["model"]
    value["hyper_parameters"]["model"] = {k: v for k, v in (given | options).items() if v != "leave out"}
    return value


@pytest.mark.parametrize(
    "options, told",
    [
        ({"_target_": "allegro.model.AllegroModel"}, r"allegro.model.AllegroModel; .* and not Allegro"),
        (
            {"_target_": "nequip.model.ZBLPairPotential"},
            "a model of nequip.model.ZBLPairPotential; this version",
        ),
        (
            {"_target_": "nequip.model.ModelFromPackage"},
            "from another file .ModelFromPackage.*nequip-package build",
        ),
        ({"_target_": "nequip.model.modify"}, "from another file .modify"),
        (
            {"categorical_graph_field_embed": [{"field": "charge"}]},
            "categorical_graph_field_embed is .* None",
        ),
        ({"convnet_resnet": True}, "convnet_resnet is True; this version reads False"),
        (
            {"convnet_nonlinearity_type": "norm"},
            "convnet_nonlinearity_type is 'norm'; this version reads gate",
        ),
        (
            {"convnet_nonlinearity_scalars": {"e": "ssp", "o": "tanh"}},
            "convnet_nonlinearity_scalars is .*silu",
        ),
        ({"convnet_nonlinearity_gates": {"e": "abs"}}, "convnet_nonlinearity_gates is .* silu for even ones"),
        (
            {"readout_mlp_hidden_layers_depth": 1, "readout_mlp_nonlinearity": "mish"},
            "'mish'; .* silu and null",
        ),
        ({"new_option": 3}, "new_option is 3; this version reads models without this option"),
        ({"num_layers": 10**9}, "num_layers is 1000000000; this version reads whole numbers from 1 to 100"),
        ({"l_max": "many"}, "l_max is 'many'; this version reads whole numbers"),
        ({"parity": "yes"}, "parity is 'yes'; this version reads True and False"),
        ({"num_features": [4, 3]}, "num_features is .4, 3.; this version reads a number of channels, or one"),
        ({"polynomial_cutoff_p": 5.5}, "exponent polynomial_cutoff_p is 5.5; .* whole numbers"),
        ({"avg_num_neighbors": -3.0}, "avg_num_neighbors is -3.0; this version reads numbers above zero"),
        ({"type_names": ["H", "O", "Cs1"]}, "type names H, O, Cs1 are no symbols of elements .Cs1."),
        ({"type_names": ["H", "H", "C"]}, "avg_num_neighbors|pair_potential|type_names"),
        ({"r_max": 5.0}, r"edge_norm._rmax_recip is 0.25; this version reads the inverse of 5.0"),
        (
            {"pair_potential": {"_target_": "nequip.nn.pair_potential.LennardJones"}},
            "reads nequip.nn.pair.*ZBL",
        ),
        (
            {"pair_potential": {"_target_": "nequip.nn.pair_potential.ZBL", "units": "real"}},
            "ZBL in the units 'metal', eV and Å",
        ),
        ({"pair_potential": None}, "2 tensors have no place in NequIP .*: pair_potential.atomic_numbers"),
        ({"polynomial_cutoff_p": 1e30}, "polynomial_cutoff_p is 1e.30; .* from 2 to 1000"),
        ({"r_max": float("nan")}, "r_max is nan; this version reads a distance above zero"),
        ({"avg_num_neighbors": float("nan")}, "avg_num_neighbors is nan; this version reads numbers above"),
        ({"type_embed_num_features": 10**9}, "type_embed_num_features is 1000000000; .* whole numbers"),
        ({"num_bessels": 6}, "has the shape .*; wanted"),
        ({"num_layers": 5}, "is missing|has the shape"),
        ({"num_layers": 3}, "has the shape"),
        ({"radial_mlp_width": 7}, "has the shape .*; wanted"),
        (
            {"per_type_energy_shifts_trainable": False},
            "averaged tensors .ema_weight. for .* parameters; the file",
        ),
    ],
)
def test_what_is_not_known_is_refused(options, told):
    with pytest.raises(CheckpointError, match=told):
        from_nequip("file.ckpt", changed("nequip_o3", **options), None)


@pytest.mark.parametrize("version", ["0.6.2", "0.20.0", "1.0", "99.1", "dev", None])
def test_checkpoints_of_other_versions_are_refused(version):
    value = content("nequip_o3.ckpt")
    value["hyper_parameters"]["info_dict"]["versions"]["nequip"] = version
    with pytest.raises(CheckpointError, match=f"of nequip {version}; this version reads .* 0.7 to 0.19"):
        from_nequip("file.ckpt", value, None)


def test_irreps_that_are_not_known_are_refused():
    for options, told in (
        ({"irreps_edge_sh": "0e+2e"}, "irreps_edge_sh is 0e.2e; this version reads .* without gaps"),
        ({"irreps_edge_sh": 1_000_000}, "irreps_edge_sh is 1000000; .* whole numbers from 0 to 6"),
        ({"radial_mlp_depth": [3 * 10**8] * 3}, "radial_mlp_depth is .*; .* whole numbers from 0 to 100"),
        ({"feature_irreps_hidden": ["4x7e", "4x0e", "4x0e"]}, "of degrees up to 7; .* degrees up to 6"),
        ({"irreps_edge_sh": "0e+a"}, "irreps '0e.a'; wanted such as"),
        ({"feature_irreps_hidden": ["4x0e+4x0e", "4x0e", "4x0e"]}, "each irrep once"),
        (
            {"feature_irreps_hidden": ["4x0e", "4x0e", "4x0e+1x1e"]},
            "the last of feature_irreps_hidden is .* inv",
        ),
        (
            {"radial_mlp_width": [7, 7, 8]},
            "radial_mlp_width is .*; this version reads the same for all layers",
        ),
    ):
        with pytest.raises(CheckpointError, match=told):
            from_nequip("file.ckpt", changed("nequip_so3", **options), None)


@pytest.mark.parametrize(
    "tensors, told",
    [
        (
            {"model.sole_model.model.func.layer1_convnet.conv.linear_2.weight": None},
            "linear_2.weight' is missing",
        ),
        (
            {"model.sole_model.model.func.layer1_convnet.extra": torch.ones(3)},
            "no place .* layer1_convnet.extra",
        ),
        (
            {"model.sole_model.model.func.layer0_convnet.conv.linear_1.weight": torch.ones(16) * 1j},
            "linear_1.weight' has complex numbers; wanted real ones",
        ),
        ({"other.weight": torch.ones(3)}, "'other.weight' is no part of a model that is known"),
        ({"ema.ema_weight_3": None}, "averaged tensors .ema_weight. for .* parameters"),
        ({"ema.ema_weight_3": torch.ones(2)}, "the averaged tensor of .* has another shape"),
        ({"ema.ema_weight_0": torch.full((3, 5), torch.nan)}, "has values that are not finite"),
        ({"ema._extra_state": {"is_holding_ema_weights": False}}, "was written during a validation"),
        ({"model.two.type_embed.embed_module.weight": torch.ones(3)}, "2 models; this version reads"),
        (
            {"model.sole_model.model.func.pair_potential._qqr2exesquare": torch.tensor(166.03)},
            "_qqr2exesquare is 166.*units: metal",
        ),
    ],
)
def test_strange_tensors_are_refused(tensors, told):
    averaged = any("ema" in name or "_qqr2exesquare" in name for name in tensors)
    value = content("nequip_o3.ckpt" if averaged else "nequip_so3.ckpt")
    state = value["state_dict"] | tensors
    value["state_dict"] = {name: tensor for name, tensor in state.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=told):
        from_nequip("file.ckpt", value, None)


def test_couplings_are_compared():
    """Some versions write the Clebsch-Gordan tensors of e3nn into the state."""
    name = (
        "model.sole_model.model.func.layer1_convnet.conv.tp_scatter.tp._compiled_main_left_right._w3j_1_1_2"
    )
    for tensor, told in (
        (clebsch_gordan(1, 1, 2), None),
        (-clebsch_gordan(1, 1, 2), "the Clebsch-Gordan tensors of e3nn 0.5"),
        (torch.ones(2, 3), "this version reads Clebsch-Gordan tensors"),
    ):
        value = content("nequip_so3.ckpt")
        value["state_dict"][name] = tensor
        if told is None:
            from_nequip("file.ckpt", value, None)
            continue
        with pytest.raises(CheckpointError, match=told):
            from_nequip("file.ckpt", value, None)


def test_other_trainings_and_files_are_refused():
    value = content("nequip_natural.ckpt")
    value["hyper_parameters"]["info_dict"]["training_module"]["_target_"] = (
        "nequip.train.ScheduleFreeLightningModule"
    )
    with pytest.raises(
        CheckpointError, match=r"trained with nequip.train.ScheduleFree.*nequip-package build"
    ):
        from_nequip("file.ckpt", value, None)
    with pytest.raises(CheckpointError, match="level='PBE'; this model has one level of theory"):
        from_nequip("file.ckpt", content("nequip_natural.ckpt"), "PBE")
    state = content("nequip_natural.ckpt")["state_dict"]
    assert is_nequip(state) and not is_nequip({"state_dict": {}}) and not is_nequip([1])
    with pytest.raises(
        CheckpointError, match=r"a state dictionary alone, such as best_model.pth .*wanted a check"
    ):
        from_nequip("best_model.pth", state, None)


@pytest.mark.parametrize(
    "names", [["m/data.pkl", "m/constants.pkl", "m/code/__torch__.py"], ["m/archive_format"]]
)
def test_compiled_programs_are_refused(names, tmp_path):
    with zipfile.ZipFile(tmp_path / "m.nequip.pt2", "w") as file:
        for name in names:
            file.writestr(name, b"")
    with pytest.raises(
        CheckpointError, match="a compiled program .*; wanted the checkpoint, model or package"
    ):
        mq.convert(tmp_path / "m.nequip.pt2")


def module(value: dict, path: str):
    found = value["eager_model.pkl"]
    for name in ["sole_model", "model", "func", *path.split("/")]:
        found = found.state["_modules"][name]
    return found


@pytest.mark.parametrize(
    "path, attribute, new, told",
    [
        ("layer1_convnet/conv/edge_mlp/mlp/1", "kind", "torch.nn.modules.activation.GELU", "a torch.*GELU"),
        (
            "layer1_convnet",
            "kind",
            "allegro.nn.Allegro_Module",
            "a allegro.nn.Allegro_Module; .* not its ext",
        ),
        ("layer1_convnet", "resnet", True, "layer1_convnet.resnet is True; this version reads False"),
        ("layer1_convnet", "_forward_hooks", {0: 1}, "layer1_convnet._forward_hooks is .* models without it"),
        ("layer1_convnet", "more", 3, "layer1_convnet.more is 3; this version reads models without it"),
        (
            "spharm/sh",
            "normalization",
            "norm",
            "spharm.sh.normalization is norm; this version reads component",
        ),
        ("factor", "factor", 1.0, "factor.factor is 1.0; this version reads 2 π / r_max²"),
        ("type_embed", "do_categorical_graph_field_embed", True, "do_categorical_.* is True; .* reads False"),
        (
            "layer1_convnet/conv/tp_scatter/tp",
            "instructions",
            [],
            "tp.instructions is .*; this version reads",
        ),
        ("layer1_convnet/conv/sc", "instructions", [], "sc.instructions is"),
        ("layer1_convnet/conv/linear_2", "instructions", [], "linear_2.instructions is"),
        ("layer1_convnet/equivariant_nonlin/mul", "instructions", [], "mul.instructions is"),
        (
            "layer1_convnet/conv/edge_mlp",
            "dims",
            [5, 7, 6, 9],
            "edge_mlp.dims is .* the same hidden channels",
        ),
        ("bessel_encode/cutoff", "p", 2.5, "exponent polynomial_cutoff_p is 2.5"),
        ("total_energy_sum", "reduce", "mean", "total_energy_sum.reduce is mean; this version reads sum"),
        ("pair_potential", "kind", "nequip.nn.pair_potential.LennardJones", "LennardJones"),
        ("per_type_energy_scale_shift", "has_shifts", False, "has_shifts is False; .* True with 3 shifts"),
        ("per_type_energy_scale_shift", "has_scales", False, "has_scales is False; .* True with 3 scales"),
        ("per_type_energy_scale_shift", "scales_shortcut", True, "scales_shortcut is True; .* False with 3"),
        ("layer1_convnet/conv", "sc", None, "layer1_convnet.conv has two things of the name 'sc'"),
        ("layer1_convnet/conv/avg_num_neighbors_norm", "norm_shortcut", True, "norm_const is .* each type"),
    ],
)
def test_strange_modules_of_a_package_are_refused(path, attribute, new, told):
    value = content("nequip_o3.nequip.zip")
    one = module(value, path)
    if attribute == "kind":
        one.kind = new
    else:
        one.state[attribute] = new
    with pytest.raises(CheckpointError, match=told):
        from_nequip("file.nequip.zip", value, None)


MLP, READOUT = "layer1_convnet/conv/edge_mlp/mlp", "per_atom_energy_readout/mlp_module/mlp"


@pytest.mark.parametrize(
    "path, order, told",
    [
        (MLP, ["0", "2", "3", "4"], "edge_mlp.mlp has its parts in the order"),
        (MLP, ["1", "0", "2", "3", "4"], "edge_mlp.mlp has its parts in the order"),
        (
            MLP,
            ["0", "1", "2", "3", "4", "1"],
            "edge_mlp.mlp is 6 modules; this version reads ScalarLinearLayer",
        ),
        (MLP, ["1", "1", "2", "3", "4"], "edge_mlp.mlp is Sequential of SiLU, SiLU,"),
        (READOUT, ["0", "2"], "mlp_module.mlp has its parts in the order"),
        (READOUT, ["0", "1"], "mlp_module.mlp is 2 modules; this version reads Scalar"),
    ],
)
def test_perceptrons_of_a_package_are_compared(path, order, told):
    """A SiLU removed, added or moved, with the names that the parts had, or with new ones."""
    value = content("nequip_o3.nequip.zip" if path == MLP else "nequip_natural.nequip.zip")
    one = module(value, path)
    parts = one.state["_modules"]
    names = order if "in the order" in told else map(str, range(len(order)))
    one.state["_modules"] = {name: parts[old] for name, old in zip(names, order)}
    with pytest.raises(CheckpointError, match=told):
        from_nequip("file.nequip.zip", value, None)


@pytest.mark.parametrize("change", [lambda t: -t, lambda t: t * 0, lambda t: t[:2], lambda t: t * torch.nan])
def test_strange_numbers_of_neighbors_of_a_package_are_refused(change):
    value = content("nequip_o3.nequip.zip")
    for k in range(4):
        norm = module(value, f"layer{k}_convnet/conv/avg_num_neighbors_norm").state["_buffers"]
        norm["norm_const"] = change(norm["norm_const"])
    with pytest.raises(CheckpointError, match="layer0_convnet.conv.avg_num_neighbors_norm.norm_const is"):
        from_nequip("file.nequip.zip", value, None)


def test_what_is_around_the_model_of_a_package_is_compared():
    for name, new, told in (
        ("_forward_hooks", {0: 1}, "sole_model._forward_hooks is .* models without it"),
        ("more", 3, "sole_model.more is 3; this version reads models without it"),
    ):
        value = content("nequip_o3.nequip.zip")
        value["eager_model.pkl"].state["_modules"]["sole_model"].state[name] = new
        with pytest.raises(CheckpointError, match=told):
            from_nequip("file.nequip.zip", value, None)
    value = content("nequip_o3.nequip.zip")
    one = module(value, "layer1_convnet")
    one.state["_modules"]["again"] = one
    with pytest.raises(CheckpointError, match="20 within one another; one of them contains itself"):
        from_nequip("file.nequip.zip", value, None)


def test_activations_factors_and_the_order_of_a_package_are_compared():
    value = content("nequip_o3.nequip.zip")
    acts = module(value, "layer2_convnet/equivariant_nonlin/act_scalars/acts").state["_modules"]
    acts["0"].state["f"], acts["1"].state["f"] = acts["1"].state["f"], acts["0"].state["f"]
    with pytest.raises(
        CheckpointError,
        match=r"act_scalars.acts.0.f is torch.tanh; this version reads torch.nn.functional.silu",
    ):
        from_nequip("file.nequip.zip", value, None)
    value = content("nequip_o3.nequip.zip")
    acts = module(value, "layer2_convnet/equivariant_nonlin/act_scalars/acts").state["_modules"]
    acts["1"].state["cst"] = 1.6
    with pytest.raises(CheckpointError, match=r"acts.1.cst is 1.6; this version reads the constant of e3nn"):
        from_nequip("file.nequip.zip", value, None)
    value = content("nequip_o3.nequip.zip")
    module(value, "layer1_convnet/conv/edge_mlp/mlp/2").state["_buffers"]["alpha"] *= 1.1
    with pytest.raises(CheckpointError, match=r"edge_mlp.mlp.2.alpha is .*; this version reads 0.577"):
        from_nequip("file.nequip.zip", value, None)
    value = content("nequip_o3.nequip.zip")
    parts = (
        value["eager_model.pkl"]
        .state["_modules"]["sole_model"]
        .state["_modules"]["model"]
        .state["_modules"]["func"]
    )
    names = list(parts.state["_modules"])
    names[-2], names[-3] = names[-3], names[-2]  # the repulsion before scales and shifts
    parts.state["_modules"] = {name: parts.state["_modules"][name] for name in names}
    with pytest.raises(CheckpointError, match="the sequence of modules is"):
        from_nequip("file.nequip.zip", value, None)
    value = content("nequip_o3.nequip.zip")
    value["eager_model.pkl"].state["_modules"]["two"] = value["eager_model.pkl"].state["_modules"][
        "sole_model"
    ]
    with pytest.raises(CheckpointError, match="2 models; this version reads packages with one"):
        from_nequip("file.nequip.zip", value, None)
