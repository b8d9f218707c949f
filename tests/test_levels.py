"""Models of several levels of theory: which heads a structure gets, and what a consumer without a choice is told."""

import importlib

import pytest
import torch

import molequi as mq
from molequi.errors import CheckpointError, ConfigError, DataError, ModelError
from molequi.graph import collate, separate
from molequi.heads import ByLevel, Scalar
from molequi.levels import with_numbers
from molequi.quantities import Quantity

from .morse_kit import ELEMENTS, morse

LEVELS = ["pbe", "r2scan", "ccsd"]
SIZES = dict(elements=ELEMENTS, channels=8, layers=2, cutoff=4.0)
GAP = Quantity("gap", unit="eV")
KIND = Quantity("kind", classes=("a", "b"))
# Quantities per graph and node, with vectors, classes, attention and derivatives.
PREDICT = ["energy", "forces", "stress", "dipole", Scalar(GAP, pool="attention"), KIND]


def build(predict=PREDICT, levels=LEVELS, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = mq.Model(mq.PaiNN(**SIZES), predict, levels=levels).double().eval()
        for level in model.levels:  # scales and reference energies that differ
            head = model.at(level).heads["energy"]
            head.standardize(
                scale=1.0 + torch.rand(()).item(),
                shift=0.3,
                reference_energies={1: torch.rand(()).item(), 8: -2.0},
            )
    return model


def batch(numbers, count=6):
    graphs = [mq.connect(g.replace(targets={}), 4.0) for g in morse(count)]
    levels = torch.tensor(numbers)
    return collate([g.replace(level=levels[k : k + 1]) for k, g in enumerate(graphs)])


def same(a, b):
    """The same outputs bit for bit; NaN counts as equal."""
    assert a.keys() == b.keys()
    return all(torch.equal(torch.nan_to_num(a[n], 7.0), torch.nan_to_num(b[n], 7.0)) for n in a)


def test_one_level_is_the_model_of_today():
    plain, named = build(levels=None), build(levels=["pbe"])
    named.at("pbe").load_state_dict(plain.state_dict())
    graph = batch([0] * 6)
    assert same(plain(graph), named(graph)) and same(plain(graph), named.at("pbe")(graph))
    with torch.random.fork_rng():  # the same seed draws the same weights
        torch.manual_seed(3)
        first = mq.Model(mq.PaiNN(**SIZES), ["energy"])
        torch.manual_seed(3)
        second = mq.Model(mq.PaiNN(**SIZES), ["energy"], levels=["pbe"])
    again = second.at("pbe").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.state_dict().items())
    assert sum(p.numel() for p in first.parameters()) == sum(p.numel() for p in second.parameters())


def test_a_level_is_a_plain_model_that_shares_the_weights():
    model = build()
    for k, level in enumerate(LEVELS):
        one, graph = model.at(level), batch([k] * 6)
        assert one.levels == () and same(one(graph), model(graph))
        assert one.backbone is model.backbone and one.metadata["level"] == level
    energies = [model.at(level)(batch([0] * 6))["energy"] for level in LEVELS]
    assert not torch.equal(energies[0], energies[1])  # the control: levels differ


def test_mixed_batches_are_single_structures():
    model, numbers = build(), [0, 2, 1, 1, 0, 2]
    whole = batch(numbers)
    out = model(whole)
    for k, graph in enumerate(separate(whole)):
        alone = model.at(LEVELS[numbers[k]])(graph)
        nodes = whole.batch == k
        for name, value in alone.items():
            per_node = name == "energies" or model.quantities[name].per == "node"
            found = out[name][nodes] if per_node else out[name][k : k + 1]
            torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_gradients_reach_the_heads_of_the_level_alone():
    model = build(["energy", "forces", "dipole"])
    out = model(batch([1] * 6), create_graph=True)
    (out["energy"].sum() + out["forces"].square().sum() + out["dipole"].square().sum()).backward()
    for name, p in model.named_parameters():
        zero = p.grad is None or not bool(p.grad.any())
        if name.startswith("heads."):
            # Not the last bias of the energy: the tanh of the coordination is its only factor, which is not zero.
            assert zero == (".heads.1." not in name), name
    assert all(bool(p.grad.any()) for n, p in model.named_parameters() if n.startswith("backbone.embedding"))


def test_the_order_of_levels_means_nothing():
    model, turned = build(), build(levels=LEVELS[::-1], seed=5)
    turned.backbone.load_state_dict(model.backbone.state_dict())
    for level in LEVELS:
        turned.at(level).heads.load_state_dict(model.at(level).heads.state_dict())
    names = ["r2scan", "pbe", "pbe", "ccsd", "pbe", "r2scan"]
    data = mq.Dataset(list(morse(6)), info={"level": names})
    out = [m(with_numbers(m, data).connected(4.0).graphs.batch(range(6))) for m in (model, turned)]
    assert same(*out)


def test_files(tmp_path):
    model, graph = build(), batch([0, 1, 2, 0, 1, 2])
    path = mq.save(model, tmp_path / "model.safetensors")
    again = mq.load(path)
    assert again.levels == tuple(LEVELS) and same(again(graph), model(graph))
    for one in (mq.load(path, level="ccsd"), mq.load(f"{path}@ccsd"), mq.load(f"{tmp_path}@ccsd")):
        assert one.levels == () and same(one(graph), model.at("ccsd")(graph))
    single = mq.load(mq.save(model.at("pbe"), tmp_path / "single.safetensors"))
    assert same(single(graph), model.at("pbe")(graph)) and "levels      pbe" in str(single).replace(
        "   ", "    "
    )
    with pytest.raises(
        ModelError, match="level 'mp2': this model has no such level .* it has 'pbe', 'r2scan', 'ccsd'"
    ):
        mq.load(f"{path}@mp2")
    with pytest.raises(ModelError, match=r"single\.safetensors: level 'pbe': this model has a single level"):
        mq.load(tmp_path / "single.safetensors", level="pbe")
    with pytest.raises(ModelError, match=r"level=0: wanted the name of a level"):
        mq.load(path, level=0)
    with pytest.raises(ModelError, match="level '': this model has no such level"):
        mq.load(path, level="")
    with pytest.raises(ModelError, match="the path names the level 'pbe' and level='r2scan'; give one"):
        mq.load(f"{path}@pbe", level="r2scan")
    assert mq.load(f"{path}@pbe", level="pbe").metadata["level"] == "pbe"
    (tmp_path / "at@300K").mkdir()
    mq.save(model, tmp_path / "at@300K" / "model.safetensors")
    assert mq.load(tmp_path / "at@300K").levels == tuple(LEVELS)  # a folder of this name, and no level
    with pytest.raises(CheckpointError, match="no such file"):
        mq.load(tmp_path / "missing@pbe")


def test_who_does_not_choose_is_told(tmp_path):
    """Every consumer of a model refuses several levels, and takes one."""
    model, data = build(["energy", "forces"]), morse(3)
    atoms = mq.to_atoms(data[0])
    path, xyz = mq.save(model, tmp_path / "model.safetensors"), tmp_path / "three.xyz"
    atoms.write(xyz)
    consumers = {
        "forward": lambda m: m(mq.connect(data[0], 4.0)),
        "predict": lambda m: mq.predict(m, data, progress=False),
        "evaluate": lambda m: mq.evaluate(m, data, progress=False),
        "calculator": mq.Calculator,
        "relax": lambda m: mq.relax(atoms, m, steps=1),
        "audit": lambda m: mq.audit(m, data[:1], draws=2),
        "descriptors": lambda m: mq.descriptors(m, data, progress=False),
        "screen": lambda m: mq.screen(m, [xyz], out=tmp_path / "screen", progress=False),
        "standardize": lambda m: m.standardize(data.statistics(4.0)),
    }
    for name, use in consumers.items():
        with pytest.raises(
            ModelError, match="several levels of theory, 'pbe', 'r2scan', 'ccsd', .* model.at"
        ) as error:
            use(model)
        assert "FILE@pbe" in str(error.value), name
    for given in (path, str(path)):
        with pytest.raises(ModelError, match="several levels"):
            mq.predict(given, data)
    chosen = [consumers[n](one) for n in ("predict", "evaluate") for one in (model.at("pbe"), f"{path}@pbe")]
    assert float(chosen[0][0]["energy"]) == float(chosen[1][0]["energy"])
    assert consumers["screen"](f"{path}@pbe").predicted == 1
    assert consumers["audit"](model.at("r2scan")).passed
    with pytest.raises(ModelError, match=r"Ensemble\(\[m.at\('pbe'\) for m in models\]\)"):
        mq.Ensemble([model, model])
    assert mq.Ensemble([model.at("pbe"), build(["energy", "forces"], seed=1).at("pbe")]).quantities
    with pytest.raises(ModelError, match="several levels"):
        mq.merge([path, path])


def test_a_compiled_model_of_several_levels(monkeypatch, tmp_path):
    """What is traced runs as it is: padding, levels of other batches, and the program of one level."""
    program = importlib.import_module("molequi.accelerate")
    monkeypatch.setattr(program, "BACKEND", lambda traced, inputs: traced)
    monkeypatch.setenv("MOLEQUI_CACHE", str(tmp_path))
    model = build(["energy", "forces"])
    numbers = [0, 2, 1, 1, 0, 2]
    plain = model(batch(numbers))
    mq.accelerate(model)
    assert model.at("pbe").program is None
    for name, value in model(batch(numbers)).items():
        torch.testing.assert_close(value, plain[name], rtol=1e-10, atol=1e-10)
    other = model(batch(numbers[::-1]))["energy"]
    torch.testing.assert_close(other, model.plain()(batch(numbers[::-1]))["energy"], rtol=1e-10, atol=1e-10)


def test_fewer_quantities_of_several_levels():
    model, graph = build(), batch([2, 1, 0, 0, 1, 2])
    lean = model.predicting(["forces"])
    assert lean.levels == model.levels and torch.equal(lean(graph)["forces"], model(graph)["forces"])


@pytest.mark.parametrize(
    "levels, message",
    [
        ("pbe", r"levels='pbe': wanted the names"),
        ([], r"levels=\[\]: wanted the names"),
        (["pbe", 3], "found 3; wanted the name of a level of theory"),
        (["pbe", "a@b"], "found 'a@b'; wanted a name without @, slashes"),
        (["pbe/d3"], "found 'pbe/d3'; wanted a name without @, slashes"),
        (["pbe", "pbe"], "'pbe' is there twice"),
    ],
)
def test_wrong_names(levels, message):
    with pytest.raises(ModelError, match=message):
        mq.Model(mq.PaiNN(**SIZES), ["energy"], levels=levels)


def test_heads_of_different_levels():
    heads = [ByLevel(Scalar("energy"), ["pbe"]), ByLevel(Scalar(GAP), ["pbe", "r2scan"])]
    with pytest.raises(ModelError, match="the heads have different levels of theory"):
        mq.Model(mq.PaiNN(**SIZES), heads)


def test_numbers_of_no_level():
    with pytest.raises(ModelError, match=r"graph.level has the number 3; this model has 'pbe' \(0\)"):
        build()(batch([0, 3, 0, 0, 0, 0]))
    with pytest.raises(ModelError, match="number -1"):
        build()(batch([0, -1, 0, 0, 0, 0]))
    with pytest.raises(ModelError, match="level 'pbe': this model has a single level"):
        build(levels=None).at("pbe")


@pytest.mark.parametrize(
    "level, found",
    [
        (torch.tensor([0.5, 1.0]), r"float32 of shape \(2,\)"),
        (torch.tensor([True, False]), r"bool of shape \(2,\)"),
        (torch.tensor([0, 1, 1]), r"int64 of shape \(3,\)"),
        (torch.tensor([[0, 1]]), r"int64 of shape \(1, 2\)"),
        (torch.tensor(0), r"int64 of shape \(\)"),
        (torch.tensor([], dtype=torch.int64), r"int64 of shape \(0,\)"),
        ("pbe", r"'pbe' \(str\)"),
        (1, r"1 \(int\)"),
    ],
)
def test_levels_that_are_no_number_for_each_structure(level, found):
    graph = batch([0, 1], count=2).replace(level=level)
    with pytest.raises(
        ModelError, match=rf"graph.level: found {found}; wanted .* integers of shape \(2,\), .*'pbe' \(0\)"
    ):
        build()(graph)
    assert len(build()(graph.replace(level=torch.tensor([0, 1], dtype=torch.int32)))["energy"]) == 2


def test_own_heads_of_each_level(tmp_path):
    """A class of the user's own is built, checked, saved and loaded as any other."""

    class Twice(Scalar):
        def forward(self, graph, features):
            return 2 * super().forward(graph, features)

    model = build([Twice(GAP), "energy"])
    path = mq.save(model, tmp_path / "own.safetensors")
    graph = batch([0, 1, 2, 0, 1, 2])
    assert same(mq.load(path, heads={"Twice": Twice})(graph), model(graph))
    assert isinstance(model.heads["gap"], ByLevel) and isinstance(model.at("pbe").heads["gap"], Twice)


# Data.


def test_levels_of_data(tmp_path):
    data = morse(4)
    both = data[:2].with_level("pbe") + data[2:].with_level("r2scan")
    assert both.info["level"][0] == "pbe" and len(both.at_level("r2scan")) == 2 and "level" not in data.info
    model = build(levels=["r2scan", "pbe"])
    numbered = with_numbers(model, both)
    assert numbered.graphs.batch([0, 1, 2, 3]).level.tolist() == [1, 1, 0, 0]
    assert numbered.digest != both.digest and numbered[1].level.tolist() == [1]
    assert with_numbers(model, both[[3, 0]]).graphs.field("level").tolist() == [0, 1]
    with pytest.raises(
        DataError, match="structure 0 has no level, and the model has 'r2scan', 'pbe'; .*with_level"
    ):
        with_numbers(model, data)
    with pytest.raises(
        DataError, match="structure 0 has the level 'b3lyp', which is none of the model; it has 'r2scan'"
    ):
        with_numbers(model, data.with_level("b3lyp"))
    with pytest.raises(
        DataError, match="level 'mp2': no structure of it in these data; they have 'pbe', 'r2scan'"
    ):
        both.at_level("mp2")
    with pytest.raises(DataError, match="they state no levels"):
        data.at_level("pbe")
    for name in (3, "", "pbe@d3", "pbe\\d3"):
        with pytest.raises(DataError, match="^level .*: wanted (the|a) name"):
            data.with_level(name)


def test_levels_of_files(tmp_path):
    """An extended XYZ file and a store keep the name, and worker processes get the number."""
    from ase.io import write

    frames = [mq.to_atoms(g) for g in morse(4)]
    for k, atoms in enumerate(frames):
        atoms.info["level"] = "pbe" if k % 2 else "r2scan"
    write(tmp_path / "both.xyz", frames)
    data = mq.read_extxyz(tmp_path / "both.xyz")
    assert list(data.info["level"]) == ["r2scan", "pbe"] * 2
    assert "level   4/4  r2scan 2, pbe 2" in data.summary() and "not read" not in data.summary()
    mq.prepare(tmp_path / "both.xyz", tmp_path / "store", cutoff=4.0, progress=False)
    store = mq.read_store(tmp_path / "store")
    model = build(levels=["pbe", "r2scan"])
    numbered = with_numbers(model, store)
    columns, arguments = numbered.graphs.columns.__reduce__()
    assert (
        columns(*arguments).fields["level"].tolist()
        == [1, 0, 1, 0]
        == numbered.graphs.field("level").tolist()
    )
    assert numbered.digest != with_numbers(build(levels=["r2scan", "pbe"]), store).digest


def test_labels_of_another_level_are_not_compared():
    model = build(["energy", "forces"])
    data = morse(3).with_level("r2scan")
    with pytest.raises(
        ConfigError, match=r"labels of the level 'r2scan' and the model is of the level 'pbe'"
    ):
        mq.evaluate(model.at("pbe"), data, progress=False)
    assert mq.evaluate(model.at("r2scan"), data, progress=False)["energy_mae"] > 0


def test_structures_without_a_level_inherit_none():
    model = build(["energy", "forces"]).at("pbe")
    data = morse(2).with_level("pbe") + morse(3, seed=1)
    with pytest.raises(DataError, match="these data: 3 of 5 structures have no level, .* others have 'pbe'"):
        mq.evaluate(model, data, progress=False)
    for plain in (morse(2), morse(2).with_level("pbe")):  # all of them say it, or none
        assert mq.evaluate(model, plain, progress=False)["energy_mae"] > 0


@pytest.mark.parametrize("join", [mq.Ensemble, mq.merge])
def test_models_of_different_levels_are_not_joined(join, tmp_path):
    model = build(["energy", "forces"])
    with pytest.raises(ModelError, match="is of the level of theory 'r2scan' and (member|model) 0 of 'pbe'"):
        join([model.at("pbe"), model.at("r2scan")])
    converted = build(["energy", "forces"], levels=None)
    converted.metadata = {"origin": {"level": "PBE"}}
    with pytest.raises(ModelError, match="is of the level of theory 'PBE' and (member|model) 0 of 'r2scan'"):
        join([model.at("r2scan"), converted])
    joined = join([model.at("pbe"), model.at("pbe")])
    one = joined if join is mq.Ensemble else joined.model
    assert one.metadata["level"] == "pbe"
    assert mq.load(mq.save(one, tmp_path / "joined.safetensors")).metadata["level"] == "pbe"
    with pytest.raises(ConfigError, match="of the level 'r2scan' and the model is of the level 'pbe'"):
        mq.evaluate(one, morse(2).with_level("r2scan"), progress=False)
    unnamed = model.at("pbe")
    unnamed.metadata = {}
    joined = join([model.at("pbe"), unnamed])
    assert "level" not in (joined if join is mq.Ensemble else joined.model).metadata
