"""Models of mace-torch: small ones that the package made and evaluated (make_mace.py), and what is refused."""

import copy
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import molequi as mq
from molequi.errors import CheckpointError
from molequi.foreign.archive import Archive
from molequi.foreign.conversion import origin_of
from molequi.foreign.mace import from_mace
from molequi.foreign.pickles import plain
from molequi.ops.irreps import clebsch_gordan

FOLDER = Path(__file__).parent
TOLERANCE = {"mace_heads": 1e-10, "mace_density": 1e-10, "mace_before": 1e-7}  # the last file is in float32
CASES = [
    (name, k, one)
    for name in TOLERANCE
    for k, one in enumerate(json.loads((FOLDER / f"{name}.json").read_text()))
]


@pytest.fixture(scope="module")
def models():
    """Converted in float64, where importing the package fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "mace", None)
        return {
            (name, level): mq.convert(FOLDER / f"{name}.model", level=level, dtype="float64")
            for name, level in {(name, one["level"]) for name, _, one in CASES}
        }


def values(model, one):
    """Energy, forces and stress in the order of ASE of a structure of the package."""
    box = {} if one["cell"] is None else {"cell": one["cell"], "pbc": one["pbc"]}
    graph = mq.Graph.single(one["positions"], one["symbols"], **box)
    out = {key: value.detach().numpy() for key, value in model(mq.connect(graph, model.cutoff)).items()}
    return {
        "energy": out["energy"][0],
        "forces": out["forces"],
        "stress": out["stress"][0][[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]],
    }


def agree(found, wanted, tolerance):
    for name, value in found.items():
        if wanted[name] is not None:
            scale = max(np.abs(wanted[name]).max(), 1e-3)
            assert np.abs(value - np.asarray(wanted[name])).max() <= tolerance * scale, name


@pytest.mark.parametrize(("name", "k", "one"), CASES, ids=[f"{name}-{k}" for name, k, _ in CASES])
def test_values_are_those_of_the_package(models, name, k, one):
    agree(values(models[name, one["level"]], one), one, TOLERANCE[name])


def test_what_the_file_says_of_itself(models):
    model = models["mace_heads", "mine"]
    assert (model.elements, model.cutoff) == ((1, 6, 8), 3.5)
    assert list(model.quantities) == ["energy", "forces", "stress"]
    origin = origin_of(model)
    assert (origin.family, origin.package, origin.level) == ("MACE", "mace-torch", "mine")
    assert tuple(origin.other_levels) == ("pt_head",) and "2206.07697" in origin.citation
    assert origin_of(models["mace_density", None]).level is None
    for model in models.values():
        assert model.symmetry_report.passed and model.symmetry_report.group == "O(3)"
    options = models["mace_density", None].backbone.hparams
    assert options["correlation"] == [2, 3]
    assert options["variant"] == {
        "mix_paths": True,
        "self_connection": [False, True],
        "normalize": "density",
        "distance": "soft",
        "exponent": 6,
        "train_frequencies": True,
    }


def test_reference_energies_are_those_of_the_head(models):
    table = models["mace_heads", "mine"].heads["energy"].reference_energies
    assert table[[1, 6, 8]].tolist() == [-13.5, -1029.25, -2041.0]


def test_its_file_is_the_same_model(models, tmp_path):
    model, one = models["mace_heads", "mine"], CASES[6][2]
    assert one["level"] == "mine"
    agree(values(mq.load(mq.save(model, tmp_path / "mace.safetensors")), one), one, 1e-10)
    single = mq.convert(FOLDER / "mace_heads.model", level="mine").double()
    agree(values(single, one), one, 1e-5)


@pytest.mark.parametrize(("name", "k"), [("mace_heads", 0), ("mace_density", 8), ("mace_before", 12)])
def test_descriptors_and_calculator(models, name, k):
    """Features of both layers are those of the package, with their signs; energies would not show these."""
    from ase import Atoms

    one = CASES[k][2]
    model, wanted = models[name, one["level"]], np.array(one["features"])
    atoms = Atoms(one["symbols"], one["positions"], cell=one["cell"], pbc=one["pbc"])
    layout = model.backbone.layouts[1]
    first = mq.descriptors(model, [atoms], layer="layers.0", progress=False).of(0)
    found = np.concatenate([first[irrep].reshape(len(atoms), -1) for irrep in layout], axis=1)
    size = found.shape[1]
    agree({"features": found}, {"features": wanted[:, :size]}, TOLERANCE[name])
    last = mq.descriptors(model, [atoms], progress=False).of(0)["0e"][:, :, 0]
    channels = last.shape[1] // 2
    joined = np.concatenate([wanted[:, :channels], wanted[:, size:]], axis=1)
    agree({"features": last}, {"features": joined}, TOLERANCE[name])
    atoms.calc = mq.Calculator(model)
    found = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    agree(found, one, TOLERANCE[name])


def test_new_elements_can_be_added(models):
    """For fine-tuning: matrices of elements grow, and the energies of the known ones stay."""
    from molequi.finetuning.elements import add_elements

    for name, level in (("mace_heads", "mine"), ("mace_density", None)):
        model = copy.deepcopy(models[name, level])
        add_elements(model, [16])
        assert model.elements == (1, 6, 8, 16)
        one = next(one for other, _, one in CASES if (other, one["level"]) == (name, level))
        agree(values(model, one), one, 1e-10)


def content(name="mace_heads"):
    """What a file holds, read anew, so that a test can change it."""
    with Archive(FOLDER / f"{name}.model") as archive:
        return plain(archive.value())


def part(module, path):
    """The attributes of a module within a model, by its name."""
    for name in path.split(".") if path else ():
        module = module.state["_modules"][name]
    return module.state


INTERACTION, PRODUCT = "interactions.1", "products.0"
FIRST = f"{PRODUCT}.symmetric_contractions.contractions.0"


@pytest.mark.parametrize(
    ("path", "name", "new", "words"),
    [
        ("", "apply_cutoff", False, "apply_cutoff is False; this version reads True"),
        ("", "use_so3", True, "use_so3 is True"),
        ("", "use_agnostic_product", True, "use_agnostic_product is True"),
        ("", "use_last_readout_only", True, "use_last_readout_only is True"),
        ("", "pair_repulsion", False, "pair_repulsion is False"),
        ("", "embedding_specs", {"total_charge": {}}, "embedding_specs is .* reads models without it"),
        ("radial_embedding", "apply_cutoff", False, "radial_embedding.apply_cutoff is False"),
        (INTERACTION, "cueq_config", "cuda", "1.cueq_config is cuda; this version reads None"),
        (INTERACTION, "oeq_config", "cuda", "1.oeq_config is cuda"),
        (INTERACTION, "edge_irreps", "4x0e", r"interactions.1.edge_irreps is \[\(4, '0e'\)\]"),
        (INTERACTION, "node_feats_irreps", "4x0e", "interactions.1.node_feats_irreps is"),
        (INTERACTION, "_forward_hooks", {0: "hook"}, "1._forward_hooks is"),
        (f"{INTERACTION}.linear_up", "bias_numel", 3, "bias_numel is 3"),
        (f"{INTERACTION}.linear_up", "instructions", [], r"linear_up.instructions is \[\]"),
        (f"{INTERACTION}.skip_tp", "instructions", [], r"skip_tp.instructions is \[\]"),
        (f"{INTERACTION}.conv_tp", "instructions", [], r"conv_tp.instructions is \[\]; .* 1, '0e'"),
        (f"{INTERACTION}.conv_tp_weights", "hs", [5, 6, 28], r"hs is \[5, 6, 28\] .*; .* of 3 layers"),
        (f"{INTERACTION}.conv_tp_weights", "hs", [5, 6, 5, 28], r"layer1.weight' has the shape \(6, 4\)"),
        (f"{INTERACTION}.conv_tp_weights.layer0", "var_in", 2.0, "layer0.var_in is 2.0"),
        (f"{INTERACTION}.conv_tp_weights.layer0.act", "f", "tanh", "act.f is tanh"),
        (f"{INTERACTION}.conv_tp_weights.layer0.act", "_is_id", True, "_is_id is True"),
        ("spherical_harmonics", "normalization", "norm", "normalization is norm"),
        ("spherical_harmonics", "irreps_out", "1x0e+1x1o", "irreps_out is up to 1; .* up to 2"),
        (f"{PRODUCT}.symmetric_contractions", "irreps_out", "4x0e+4x1e", "irreps_out is 4x0e . 4x1e"),
        (f"{PRODUCT}.symmetric_contractions", "irreps_out", "4x0e+8x1o", "reads 4x0e . 4x1o"),
        (FIRST, "correlation", 3, "U_matrix_3' is missing"),
        (FIRST, "correlation", 5, "contractions.0.correlation is 5; this version reads 1, 2 and 3"),
        (INTERACTION, "avg_num_neighbors", float("nan"), "1.avg_num_neighbors is nan; .* above zero"),
        (INTERACTION, "avg_num_neighbors", -3.7, "1.avg_num_neighbors is -3.7; .* above zero"),
        ("", "heads", ["mine", "mine"], "heads is .*; this version reads a list of names, each once"),
        ("", "r_max", 3.5, "the model has two things of the name 'r_max'"),
        ("interactions.0", "target_irreps", "4x0e+4x1o+4x2e+4x3o", "irreps_out is up to 2; .* up to 3"),
        ("interactions.0.conv_tp_weights", "hs", [5, 12000, 12000, 12], r"wanted \(5, 12000\)"),
        ("readouts.1", "hidden_irreps", "100000000x0e", r"wanted \(400000000,\)"),
        (PRODUCT, "use_sc", False, "products.0.use_sc is False"),
        ("readouts.1", "num_heads", 1, "hidden_irreps is 6; .* each of 2 heads"),
        ("readouts.1.non_linearity.acts.0", "f", None, "acts.0.f is None"),
    ],
)
def test_other_options_are_refused(path, name, new, words):
    model = content()
    part(model, path)[name] = new
    with pytest.raises(CheckpointError, match=words):
        from_mace("a.model", model, "mine")


@pytest.mark.parametrize(
    ("path", "table", "name", "change", "words"),
    [
        ("", "_parameters", "extra", lambda _: torch.ones(2), "1 tensors have no place in MACE .* extra"),
        ("node_embedding.linear", "_parameters", "weight", lambda _: None, "linear.weight' is missing"),
        ("node_embedding.linear", "_parameters", "weight", lambda t: t / 0, "values that are not finite"),
        (f"{INTERACTION}.linear", "_parameters", "weight", lambda t: t[3:], r"has the shape \(109,\)"),
        (FIRST, "_parameters", "weights_max", lambda t: t[:2], r"weights_max' has the shape \(2, 3, 4\)"),
        (FIRST, "_buffers", "U_matrix_1", lambda t: t.roll(1, 0), "U_matrix_1 is no coupling of 0e"),
        (FIRST, "_buffers", "U_matrix_2", lambda t: t[:8], r"U_matrix_2 is \(8, 9, 3\)"),
        ("radial_embedding.cutoff_fn", "_buffers", "r_max", lambda t: t + 1, "cutoff_fn.r_max is 4.5"),
        (
            "radial_embedding.distance_transform",
            "_buffers",
            "covalent_radii",
            lambda t: t + 0.1,
            "covalent_radii is 0.41 for H; this version reads 0.31",
        ),
        ("pair_repulsion_fn", "_buffers", "covalent_radii", lambda t: t * 2, "is 0.62 for H"),
        ("pair_repulsion_fn", "_buffers", "c", lambda t: t[:3], r"c' has the shape \(3,\); wanted \(4,\)"),
        ("scale_shift", "_buffers", "scale", lambda t: t[:1], r"scale_shift.scale is of shape \(1,\)"),
        ("", "_buffers", "num_interactions", lambda t: t + 1, "num_interactions is 3; this version reads 2"),
        ("", "_buffers", "atomic_numbers", lambda t: t * 0 + 1, r"atomic_numbers is \[1, 1, 1\]"),
        (
            "pair_repulsion_fn",
            "_buffers",
            "p",
            lambda t: t + 0.7,
            "pair_repulsion_fn.p is 5.69.*; .* whole num",
        ),
        (
            "radial_embedding.cutoff_fn",
            "_buffers",
            "p",
            lambda t: t + 0.5,
            "cutoff_fn.p is 5.5; .* whole num",
        ),
        ("node_embedding.linear", "_buffers", "weight", lambda _: torch.ones(12), "of the name 'weight'"),
        ("node_embedding.linear", "_parameters", "weight", lambda t: t * 1j, "complex.*; .* real numbers"),
        (FIRST, "_buffers", "U_matrix_1", lambda t: t[..., :0], "U_matrix_1 is .* for each coupling"),
        ("atomic_energies_fn", "_buffers", "atomic_energies", lambda t: t[:1], r"of shape \(1, 3\)"),
    ],
)
def test_other_tensors_are_refused(path, table, name, change, words):
    model = content()
    tensors = part(model, path)[table]
    tensors[name] = change(tensors.get(name))
    with pytest.raises(CheckpointError, match=words):
        from_mace("a.model", model, "mine")


@pytest.mark.parametrize(
    ("path", "name", "kind", "words"),
    [
        ("", "", "mace.modules.models.AtomicDipolesMACE", "AtomicDipolesMACE; .* MACE and ScaleShiftMACE"),
        ("", "", "mace.modules.models.MACE", r"2 tensors have no place in MACE .* scale_shift.scale"),
        ("radial_embedding", "bessel_fn", "mace.modules.radial.GaussianBasis", "a mace.modules.radial.Gauss"),
        ("", INTERACTION, "mace.modules.blocks.RealAgnosticAttResidualInteractionBlock", "AttResidual"),
        (INTERACTION, "linear_up", "mace.modules.lora.LoRAO3Linear", "linear_up is a mace.modules.lora"),
        (
            "",
            INTERACTION,
            "mace.modules.blocks.RealAgnosticDensityResidualInteractionBlock",
            "have a density",
        ),
    ],
)
def test_other_classes_are_refused(path, name, kind, words):
    model = content()
    module = model
    for step in [*filter(None, path.split(".")), *filter(None, name.split("."))]:
        module = module.state["_modules"][step]
    other = type(module)(*module.arguments)
    other.state, other.__class__ = module.state, type("Other", (type(module),), {"kind": kind})
    if not name:
        model = other
    else:
        parent, _, last = f"{path}.{name}".strip(".").rpartition(".")
        part(model, parent)["_modules"][last] = other
    with pytest.raises(CheckpointError, match=words):
        from_mace("a.model", model, "mine")


@pytest.mark.parametrize(
    ("path", "order"),
    [
        ("interactions", "1 0"),
        ("products", "1 0"),
        (f"{PRODUCT}.symmetric_contractions.contractions", "1 0"),
        ("readouts", "1 0"),
        (f"{INTERACTION}.conv_tp_weights", "layer1 layer0 layer2"),
    ],
)
def test_parts_in_another_order_are_refused(path, order):
    model = content()
    parts = part(model, path)["_modules"]
    part(model, path)["_modules"] = {name: parts[name] for name in order.split()}
    with pytest.raises(CheckpointError, match=f"{path} has its parts in the order|{path}.hs is"):
        from_mace("a.model", model, "mine")


def test_sizes_are_compared_before_a_model_is_made(monkeypatch):
    """Options that agree with each other, but not with the tensors."""
    monkeypatch.setattr("molequi.foreign.mace.MACE", None)
    for channels in (5000, 10**8):
        model = content()
        for path, name, count in (
            ("interactions.0", "target_irreps", 3),
            ("products.0.symmetric_contractions", "irreps_out", 2),
            ("products.1.symmetric_contractions", "irreps_out", 1),
        ):
            irreps = ("0e", "1o", "2e")[:count]
            part(model, path)[name] = "+".join(f"{channels}x{irrep}" for irrep in irreps)
        with pytest.raises(CheckpointError, match=rf"node_embedding.* \(12,\); wanted \({3 * channels},\)"):
            from_mace("a.model", model, "mine")
    model = content()
    irreps = "+".join(f"4x{l}{'eo'[l % 2]}" for l in range(7))
    part(model, "interactions.0")["target_irreps"] = irreps
    part(model, "spherical_harmonics")["irreps_out"] = irreps.replace("4x", "1x")
    with pytest.raises(CheckpointError, match=r"U_matrix_1 is .*; this version reads 49 numbers for each"):
        from_mace("a.model", model, "mine")


def test_modules_without_an_end_are_refused():
    """One that contains itself, and thirty lists, each twice in the next."""
    model = content()
    part(model, INTERACTION)["_modules"]["again"] = model
    with pytest.raises(CheckpointError, match="one of them contains itself"):
        from_mace("a.model", model, "mine")
    for count in (19, 30):
        model = content()
        parts = part(model, "")["_modules"]
        inner = parts["spherical_harmonics"]
        for _ in range(count):
            outer = copy.copy(parts["interactions"])
            outer.state = {**outer.state, "_modules": {"0": inner, "1": inner}}
            inner = outer
        parts["extra"] = inner
        with pytest.raises(CheckpointError, match="more than 20000 modules, or 20 within one another"):
            from_mace("a.model", model, "mine")


def test_models_that_predict_no_numbers_are_refused(monkeypatch):
    def scaled(model):
        part(model, "scale_shift")["_buffers"]["scale"].fill_(1e39)

    def far(model):
        for path in ("", "radial_embedding.bessel_fn", "radial_embedding.cutoff_fn"):
            part(model, path)["_buffers"]["r_max"].fill_(150.0)

    def senseless(model):
        part(model, f"{INTERACTION}.conv_tp_weights.layer0.act")["cst"] = float("nan")

    for change, words in (
        (scaled, "scale has numbers beyond the range of float32; convert it with dtype='float64'"),
        (far, "its cutoff of 150.0 Å is too large to connect a crystal of four atoms"),
        (senseless, "layers.0.atomic.radial.* not finite|beyond the range"),
    ):
        model = content()
        change(model)
        with monkeypatch.context() as patch, pytest.raises(CheckpointError, match=words):
            patch.setattr(Archive, "value", lambda _, model=model: model)
            mq.convert(FOLDER / "mace_heads.model", level="mine")


def test_a_part_that_is_missing_is_named():
    model = content()
    del part(model, f"{INTERACTION}.linear_up")["irreps_in"]
    with pytest.raises(CheckpointError, match=r"it has no 'interactions.1.linear_up.irreps_in'"):
        from_mace("a.model", model, "mine")
    model = content()
    part(model, "")["_modules"]["products"] = 3
    with pytest.raises(CheckpointError, match="products is no module"):
        from_mace("a.model", model, "mine")


def test_couplings_of_the_file_with_another_sign(models):
    """They are in programs within the file; here they are where older versions of e3nn have them, with the other sign."""
    model = content()
    conv = part(model, f"{INTERACTION}.conv_tp")
    module = type(model)()
    module.set_state({"_buffers": {"_w3j_1_1_2": -clebsch_gordan(1, 1, 2)}})
    module.__class__ = type("Program", (type(module),), {"kind": "torch.fx.graph_module.reduce_graph_module"})
    conv["_modules"]["_compiled_main_left_right"] = module
    assert set(conv.pop("__codegen__")) == {"_compiled_main_left_right", "_compiled_main_right"}
    found = from_mace("a.model", model, "mine").model.state_dict()
    ours = models["mace_heads", "mine"].state_dict()
    name = "backbone.layers.1.atomic.radial.4.weight"
    paths = models["mace_heads", "mine"].backbone.layers[1].atomic.paths
    k = paths.index(("1o", 1, "2e"))
    wanted = ours[name].unflatten(0, (-1, 4)).clone()
    wanted[k] *= -1
    assert torch.equal(found[name].unflatten(0, (-1, 4)), wanted)
    module.state["_buffers"]["_w3j_1_1_2"] = 2 * clebsch_gordan(1, 1, 2)
    with pytest.raises(CheckpointError, match="conv_tp._w3j_1_1_2 is no Clebsch-Gordan tensor"):
        from_mace("a.model", model, "mine")


def test_heads_are_chosen():
    with pytest.raises(
        CheckpointError, match=r"several heads; choose one of pt_head, mine with level='mine'"
    ):
        mq.convert(FOLDER / "mace_heads.model")
    with pytest.raises(CheckpointError, match="level='PBE'; this model has one level of theory"):
        mq.convert(FOLDER / "mace_density.model", level="PBE")


def test_files_without_the_model_are_refused(tmp_path):
    state = {"node_embedding.linear.weight": torch.ones(4)}
    for value in (state, {"model": state, "optimizer": {}, "lr_scheduler": {}}):
        torch.save(value, tmp_path / "x.pt")
        with pytest.raises(CheckpointError, match=r"without the model that they belong to; .* NAME.model"):
            mq.convert(tmp_path / "x.pt")


def test_programs_of_torchscript_are_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 1)), tmp_path / "x_compiled.model")
    with pytest.raises(CheckpointError, match=r"a compiled program .* NAME.model beside NAME_compiled"):
        mq.convert(tmp_path / "x_compiled.model")
