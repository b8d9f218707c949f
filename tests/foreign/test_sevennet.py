"""SevenNet models become ours: the same energies, forces and stress as the package sevenn gives (make_sevennet.py)."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import molequi as mq
from molequi.errors import CheckpointError
from molequi.foreign.archive import Archive
from molequi.foreign.pickles import plain
from molequi.foreign.sevennet import from_sevennet
from molequi.models import SevenNet
from molequi.ops.irreps import clebsch_gordan

FOLDER = Path(__file__).parent
ROWS = [
    (name, row)
    for name in ("sevennet_o3", "sevennet_levels")
    for row in json.loads((FOLDER / f"{name}.json").read_text())
]


@pytest.fixture(scope="module")
def models():
    return {
        (name, level): mq.convert(FOLDER / f"{name}.pth", level=level, dtype="float64")
        for name, level in {(name, row["level"]) for name, row in ROWS}
    }


@pytest.mark.parametrize("k", range(len(ROWS)))
def test_values_are_those_of_the_package(models, k):
    name, row = ROWS[k]
    model = models[name, row["level"]]
    box = {} if row["cell"] is None else {"cell": row["cell"], "pbc": True}
    graph = mq.connect(mq.Graph.single(row["positions"], row["symbols"], **box), model.cutoff)
    found = model(graph)
    assert float(found["energy"]) == pytest.approx(row["energy"], rel=1e-12)
    np.testing.assert_allclose(found["forces"].detach(), row["forces"], atol=1e-12)
    if row["stress"] is not None:  # six numbers in ASE's order
        six = found["stress"].detach()[0].numpy()[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        np.testing.assert_allclose(six, row["stress"], atol=1e-12)


def test_a_level_of_theory_is_chosen(models):
    assert models["sevennet_levels", "PBE"].metadata["origin"] == {
        "family": "SevenNet",
        "package": "sevenn 0.13.0",
        "citation": "Park, Kim, Hwang, Han, J. Chem. Theory Comput. 20, 4857 (2024), arXiv 2402.03789",
        "level": "PBE",
        "other_levels": ("R2SCAN",),
        "file": "sevennet_levels.pth",
        "sha256": models["sevennet_levels", "R2SCAN"].metadata["origin"]["sha256"],
    }
    with pytest.raises(
        CheckpointError, match=r"several levels of theory; choose one of PBE, R2SCAN with level='PBE'"
    ):
        mq.convert(FOLDER / "sevennet_levels.pth")
    with pytest.raises(CheckpointError, match=r"level='PBE'; this model has one level of theory"):
        mq.convert(FOLDER / "sevennet_o3.pth", level="PBE")


def test_it_is_an_ordinary_model(models, tmp_path):
    model = models["sevennet_o3", None]
    assert model.symmetry_report.passed and "reflection" in str(model.symmetry_report)
    path = mq.save(model, tmp_path / "seven.safetensors")
    again = mq.load(path)
    assert again.metadata["origin"]["family"] == "SevenNet" and again.metadata["trained_on"]["elements"] == [
        "H",
        "C",
        "O",
    ]
    for one, other in zip(model.state_dict().values(), again.state_dict().values()):
        assert torch.equal(one, other)


def test_the_whole_audit(models):
    """An isolated atom has the energy that the network gives it, which the head says."""
    water = mq.Graph.single([[0, 0, 0], [0.96, 0, 0.1], [-0.24, 0.93, 0]], ["O", "H", "H"])
    report = mq.audit(models["sevennet_o3", None], [water], draws=2).raise_if_failed()
    (row,) = [r for r in report.rows if (r.check, r.quantity) == ("one atom", "energy")]
    assert row.verdict == "pass" and row.reason == "finite"
    assert not models["sevennet_o3", None].heads["energy"].isolated and mq.heads.Scalar.isolated


def test_float32_rounds_the_same_weights(models):
    rounded = mq.convert(FOLDER / "sevennet_o3.pth")
    assert rounded.dtype == torch.float32
    wanted = models["sevennet_o3", None].float().state_dict()
    for name, value in rounded.state_dict().items():
        assert torch.equal(value, wanted[name].to(value.dtype)), name


def test_nothing_of_the_package_is_imported():
    """In a process of its own, in which importing it fails."""
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("sevenn", "mace", "nequip", "so3krates_torch", "chgnet"):
            raise RuntimeError(name + " is imported")
sys.meta_path.insert(0, Refuse())
import molequi as mq
print(mq.convert({str(FOLDER / "sevennet_o3.pth")!r}).elements)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "(1, 6, 8)\n", done.stderr


def changed(name: str, **config) -> dict:
    with Archive(FOLDER / f"{name}.pth") as archive:
        value = plain(archive.value())
    value["config"] |= config
    return value


@pytest.mark.parametrize(
    "config, told",
    [
        ({"readout_as_fcn": True}, "readout_as_fcn is True; this version reads False"),
        ({"use_bias_in_linear": True}, "use_bias_in_linear is True; this version reads False"),
        ({"act_radial": "ssp"}, "act_radial is 'ssp'; this version reads silu"),
        ({"interaction_type": "mace"}, "interaction_type is 'mace'; this version reads nequip"),
        (
            {"self_connection_type": "none"},
            "self_connection_type is 'none'; this version reads nequip and linear",
        ),
        (
            {"act_gate": {"e": "ssp", "o": "tanh"}},
            "act_gate is .*; this version reads silu for even and tanh",
        ),
        (
            {"cutoff_function": {"cutoff_function_name": "poly_cut", "poly_cut_p_value": 5}},
            "with the exponent 6",
        ),
        (
            {"num_convolution_layer": 10**9},
            "num_convolution_layer is 1000000000; this version reads whole numbers",
        ),
        ({"lmax": 10**9}, "lmax is 1000000000; this version reads whole numbers from 0 to 12"),
        ({"channel": "many"}, "channel is 'many'; this version reads whole numbers"),
        ({"is_parity": "abc"}, "is_parity is 'abc'; this version reads True and False"),
        ({"_type_map": {1: 0, 6: 0, 8: 0}}, "_type_map is .*; this version reads rows from 0 on"),
        ({"channel": 5}, "has the shape .*; wanted"),
        ({"num_convolution_layer": 4}, "is missing|has the shape"),
        ({"use_modality": True, "_modal_map": {"PBE": 0}}, "several levels of theory"),
    ],
)
def test_what_is_not_known_is_refused(config, told):
    with pytest.raises(CheckpointError, match=told):
        from_sevennet("file.pth", changed("sevennet_o3", **config), None)


def test_a_missing_tensor_and_a_strange_coupling_are_refused():
    value = changed("sevennet_o3")
    value["model_state_dict"].pop("1_self_interaction_2.linear.weight")
    with pytest.raises(CheckpointError, match=r"1_self_interaction_2.linear.weight' is missing"):
        from_sevennet("file.pth", value, None)
    value = changed("sevennet_o3")
    value["model_state_dict"]["1_self_interaction_2.linear.weight"][0] = torch.nan
    with pytest.raises(CheckpointError, match="has values that are not finite"):
        from_sevennet("file.pth", value, None)
    value = changed("sevennet_o3")
    value["model_state_dict"]["2_convolution.extra"] = torch.ones(3)
    with pytest.raises(CheckpointError, match="1 tensors have no place in SevenNet .*: 2_convolution.extra"):
        from_sevennet("file.pth", value, None)


def test_couplings_of_the_other_sign_turn_the_weights():
    """Older versions of e3nn have other signs; the file has its couplings, so that this is seen."""
    name = "1_convolution.convolution._compiled_main_left_right._w3j_1_1_2"
    outputs = []
    for factor in (1.0, -1.0, 1.5):
        value = changed("sevennet_o3")
        value["model_state_dict"][name] = clebsch_gordan(1, 1, 2) * factor
        if factor == 1.5:
            with pytest.raises(CheckpointError, match="is no Clebsch-Gordan tensor"):
                from_sevennet("file.pth", value, None)
            return
        layer = from_sevennet("file.pth", value, None).model.backbone.interactions[1]
        widths = [layer.inputs[source] for source, _, _ in layer.paths]
        outputs.append(layer.radial[-1].weight.detach().split(widths))
    turned = [p for p, a, b in zip(layer.paths, *outputs) if torch.equal(a, -b) and not torch.equal(a, b)]
    assert turned and all((int(s[0]), l, int(t[0])) == (1, 1, 2) for s, l, t in turned)


def test_it_trains_from_scratch_with_the_variance_of_its_inputs():
    """At the start, features are of order one in each irrep."""
    torch.manual_seed(0)
    backbone = SevenNet(elements=["C", "H", "O"], cutoff=4.0)
    data = mq.read_extxyz(mq.shipped("ethanol_300K.xyz"))[:20]
    backbone.mean_neighbors.fill_(8.0)
    graph = mq.connect(data.graphs.batch(range(20)), 4.0)
    size = backbone(graph).scalars.detach().square().mean().sqrt()
    assert 0.2 < float(size) < 5
