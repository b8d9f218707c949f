"""Models of so3krates-torch: small ones that the package made and evaluated (make_so3lr.py), and what is refused."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import molequi as mq
from molequi.errors import CheckpointError
from molequi.foreign import convert
from molequi.foreign.archive import Archive
from molequi.foreign.conversion import origin_of
from molequi.foreign.pickles import plain, records
from molequi.foreign.so3lr import from_so3lr

FOLDER = Path(__file__).parent
NAMES = ("so3lr", "so3krates")


@pytest.fixture(scope="module")
def models():
    """Converted in float64, where importing the package fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "so3krates_torch", None)
        return {name: convert(FOLDER / f"{name}.model", dtype="float64") for name in NAMES}


def cases(name):
    for one in json.loads((FOLDER / f"{name}.json").read_text()):
        pbc = None if one["cell"] is None else True
        totals = {"charge": one["charge"], "spin": one["spin"]}
        yield one, mq.Graph.single(one["positions"], one["symbols"], cell=one["cell"], pbc=pbc, **totals)


def agree(found, wanted, tolerance):
    wanted = np.asarray(wanted)
    assert np.abs(np.asarray(found) - wanted).max() <= tolerance * max(np.abs(wanted).max(), 1e-3)


def compare(model, name, tolerance):
    for one, graph in cases(name):
        out = {key: value.numpy() for key, value in model(mq.connect(graph, model.cutoff)).items()}
        agree(out["energy"][0], one["energy"], tolerance)
        agree(out["forces"], one["forces"], tolerance)
        if one["stress"] is not None:
            x = out["stress"][0]
            agree([x[0, 0], x[1, 1], x[2, 2], x[1, 2], x[0, 2], x[0, 1]], one["stress"], tolerance)
        if "charges" in one:
            agree(out["charges"], one["charges"], tolerance)
            assert out["charges"].sum() == pytest.approx(one["charge"], abs=1e-6)
        if "dipole" in one and one["cell"] is None and not one["charge"]:
            agree(out["dipole"][0], one["dipole"], tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_all_outputs_are_those_of_the_package(models, name):
    compare(models[name], name, 1e-10)


def test_in_float32_only_rounding_differs():
    model = convert(FOLDER / "so3lr.model")
    assert model.dtype == torch.float32
    compare(model.double(), "so3lr", 1e-5)


def test_what_the_file_says_of_itself(models):
    model = models["so3lr"]
    assert model.elements == (1, 6, 8)  # those whose energies were trained
    assert (model.cutoff, model.backbone.reach) == (6.0, 3.5) and models["so3krates"].cutoff == 3.5
    assert list(model.quantities) == ["energy", "forces", "stress", "charges", "dipole"]
    assert list(models["so3krates"].quantities) == ["energy", "forces", "stress"]
    origin = origin_of(model)
    assert (origin.family, origin.package) == ("SO3LR", "so3krates-torch") and "jacs" in origin.citation
    assert origin_of(models["so3krates"]).family == "So3krates"
    assert not model.symmetry_report.failed and model.symmetry_report.group == "O(3)"


def test_its_file_is_the_same_model(models, tmp_path):
    model = models["so3lr"]
    again = mq.load(mq.save(model, tmp_path / "so3lr.safetensors"))
    compare(again, "so3lr", 1e-10)
    # One network of partial charges, also after loading
    charges = [again.heads[name].charges for name in ("energy", "charges", "dipole")]
    assert charges[0] is charges[1] is charges[2]


@pytest.fixture
def content():
    """What the file holds, read anew, so that a test can change it."""
    with Archive(FOLDER / "so3lr.model") as archive:
        return plain(archive.value())


def part(module, path):
    """The attributes of a module within a model, by its name."""
    for name in path.split(".") if path else ():
        module = module.state["_modules"][name]
    return module.state


LAYER = "euclidean_transformers.1"


@pytest.mark.parametrize(
    ("path", "name", "new", "words"),
    [
        ("", "final_mlp_layers", 3, "final_mlp_layers is 3; this version reads 2"),
        ("", "degrees", [1, 3], r"degrees is \[1, 3\]"),
        ("", "layer_normalization_2", False, "layer_normalization_2 is False"),
        ("", "residual_mlp_2", True, "residual_mlp_2 is True"),
        ("", "use_charge_embed", False, "True for a model with electrostatics"),
        ("", "energy_regression_dim", None, "energy_regression_dim is None"),
        ("", "message_normalization", "identity", "avg_num_neighbors"),
        ("", "neighborlist_format_lr", "ordered_sparse", "this version reads sparse"),
        ("", "use_pme", True, "use_pme is True"),
        ("cutoff_fn", "r_max", 4.0, "cutoff_fn.r_max is 4.0"),
        ("atomic_energy_output_block", "final_non_linearity", True, "final_non_linearity is True"),
        (f"{LAYER}.layer_norm_inv_1", "eps", 1e-5, "eps is 1e-05"),
        ("", "avg_num_neighbors", 3.8, r"att_norm_inv is 3.7; this version reads 3.8"),
        (f"{LAYER}.euclidean_attention_block", "att_norm_inv", 4.0, "att_norm_inv is 4.0; .* reads 3.7"),
        (f"{LAYER}.euclidean_attention_block", "att_norm_ev", 4.0, "att_norm_ev is 4.0; .* reads 3.7"),
        (f"{LAYER}.mlp_1.0", "inplace", True, "mlp_1.0.inplace is True; this version reads False"),
        (LAYER, "layer_normalization_1", False, "1.layer_normalization_1 is False; this version reads True"),
        (LAYER, "layer_normalization_2", False, "1.layer_normalization_2 is False"),
        (LAYER, "residual_mlp_1", False, "1.residual_mlp_1 is False"),
        (LAYER, "residual_mlp_2", True, "1.residual_mlp_2 is True"),
        ("", "embedding_scale", 1.0, "embedding_scale is 1.0; this version reads 1.732"),
        ("spin_embedding", "sqrt_dim", 2.0, "spin_embedding.sqrt_dim is 2.0; this version reads 2.828"),
        ("spherical_harmonics", "degrees", [2, 1], r"spherical_harmonics.degrees is \[2, 1\]"),
        ("radial_embedding.radial_basis_fn", "eps", 1e-8, "eps is 1e-08; this version reads 1e-06"),
        ("ev_embedding", "initialization_to_zeros", False, "initialization_to_zeros is False"),
        ("hirshfeld_output_block.q_embedding", "max_norm", 1.0, "max_norm is 1.0; this version reads None"),
        ("zbl_repulsion", "ke", 14.4, "zbl_repulsion.ke is 14.4"),
        ("electrostatic_potential", "ke", 14.4, "electrostatic_potential.ke is 14.4"),
        ("electrostatic_potential", "neighborlist_format_lr", "ordered_sparse", "lr is ordered_sparse"),
        ("dispersion_potential", "c", 1.0, "dispersion_potential.c is 1.0; this version reads 0.5"),
        ("", "dispersion_energy_cutoff_lr_damping", 7.0, "damping is 7.0; .* at most the cutoff, 6.0"),
        ("", "solvent", "water", "solvent is water; this version reads models without it"),
        (LAYER, "dropout", 0.1, "1.dropout is 0.1; this version reads models without it"),
        (LAYER, "_forward_hooks", {0: "hook"}, "1._forward_hooks is"),
    ],
)
def test_other_options_are_refused(content, path, name, new, words):
    part(content, path)[name] = new
    with pytest.raises(CheckpointError, match=words):
        from_so3lr("a.model", content, None)


@pytest.mark.parametrize(
    ("path", "table", "name", "change", "words"),
    [
        ("", "_parameters", "extra", lambda _: torch.ones(2), "1 tensors have no place .* extra"),
        (f"{LAYER}.mlp_1.1", "_parameters", "weight", lambda _: None, "mlp_1.1.weight' is missing"),
        (f"{LAYER}.mlp_1.1", "_parameters", "bias", lambda t: t[:3], r"has the shape \(3,\); wanted \(8,\)"),
        ("radial_embedding.radial_basis_fn", "_buffers", "b", lambda t: t + 0.1, "logarithms of binomials"),
        ("radial_embedding.radial_basis_fn", "_buffers", "k", lambda t: t + 1, "exponents of Bernstein"),
        (
            f"{LAYER}.interaction_block.so3_conv_invariants",
            "_buffers",
            "cg_rep",
            lambda t: t * torch.arange(8),
            "sums over each degree",
        ),
        (
            f"{LAYER}.interaction_block.so3_conv_invariants",
            "_buffers",
            "segment_sum_matrix",
            lambda t: t * 2,
            "sums over each degree",
        ),
    ],
)
def test_other_tensors_are_refused(content, path, table, name, change, words):
    tensors = part(content, path)[table]
    tensors[name] = change(tensors.get(name))
    with pytest.raises(CheckpointError, match=words):
        from_so3lr("a.model", content, None)


def test_other_classes_and_levels_are_refused(content):
    with pytest.raises(CheckpointError, match="one level of theory"):
        from_so3lr("a.model", content, "PBE0")
    type(content).kind = "so3krates_torch.modules.models.MultiHeadSO3LR"  # each reading makes classes anew
    with pytest.raises(CheckpointError, match="MultiHeadSO3LR; this version reads So3krates and SO3LR"):
        from_so3lr("a.model", content, None)
    part(content, "")["_modules"]["cutoff_fn"] = 3
    with pytest.raises(CheckpointError, match="cutoff_fn is no module"):
        from_so3lr("a.model", content, None)


BLOCK, FILTER = f"{LAYER}.euclidean_attention_block", f"{LAYER}.filter_net_ev.mlp_ev"


@pytest.mark.parametrize(
    ("path", "name", "wanted"),
    [
        (BLOCK, "qk_non_linearity", "the identity"),
        (f"{FILTER}.mlp_ev_layer_1", "1", "the identity"),
        (FILTER, "1", "SiLU"),
        (f"{LAYER}.mlp_1", "2", "SiLU"),
        ("charge_embedding.mlp", "0", "SiLU"),
        ("atomic_energy_output_block", "non_linearity", "SiLU"),
        ("partial_charges_output_block.transform_inv_features", "1", "SiLU"),
        ("hirshfeld_output_block.transform_features", "1", "SiLU"),
    ],
)
def test_other_activation_functions_are_refused(content, path, name, wanted):
    """The file has SiLU and the identity, each in its place; here one is the other one."""
    source = (f"{LAYER}.mlp_1", "0") if wanted == "the identity" else (BLOCK, "qk_non_linearity")
    part(content, path)["_modules"][name] = part(content, source[0])["_modules"][source[1]]
    with pytest.raises(CheckpointError, match=rf"{name} is torch.*; this version reads {wanted}"):
        from_so3lr("a.model", content, None)


def test_a_model_that_was_used_before_it_was_saved(content):
    """The package keeps the last structure in the model."""
    content.state |= {"positions": torch.ones(2, 3), "is_lammps": False, "num_graphs": 1}
    assert from_so3lr("a.model", content, None).model.elements == (1, 6, 8)


@pytest.mark.parametrize(
    ("path", "name", "words"),
    [("", "num_heads", "it has no 'num_heads'"), ("cutoff_fn", "r_max", "it has no 'cutoff_fn.r_max'")],
)
def test_incomplete_models_are_refused(content, path, name, words):
    del part(content, path)[name]
    with pytest.raises(CheckpointError, match=words):
        from_so3lr("a.model", content, None)


def test_parts_that_a_model_does_not_use(content):
    """Without electrostatics the weights of the charges stay in the file and mean nothing."""
    content.state["electrostatic_energy_bool"] = False
    model = from_so3lr("a.model", content, None).model
    assert "charges" not in model.quantities and model.heads["energy"].electrostatics is None
    assert model.cutoff == 6.0 and model.heads["energy"].dispersion is not None


def test_a_file_without_a_long_cutoff_has_that_of_the_calculator(content):
    content.state["r_max_lr"] = content.state["dispersion_energy_cutoff_lr_damping"] = None
    model = from_so3lr("a.model", content, None).model
    assert model.cutoff == 12.0 and model.heads["energy"].dispersion.start == 10.0


def test_weights_that_are_not_finite_are_refused(content):
    for module in (r for r in records(content) if isinstance(r.state, dict) and r.state.get("_parameters")):
        parameters = {
            n: v for n, v in module.state["_parameters"].items() if torch.is_tensor(v) and v.numel()
        }
        if parameters:
            next(iter(parameters.values())).flatten()[0] = torch.nan
            break
    with pytest.raises(CheckpointError, match="has values that are not finite"):
        from_so3lr("file.model", content, None)
