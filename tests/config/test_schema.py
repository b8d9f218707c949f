"""Settings from YAML: every mistake is named with its path and the nearest right word, before data is read."""

import copy
import inspect
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

import molequi as mq
from molequi import Hook, Quantity, fit
from molequi.approximate import TERMS
from molequi.config import schema, sections
from molequi.config.names import Names
from molequi.config.networks import check_networks, names_of_networks
from molequi.config.schema import build_model, read_config, read_data
from molequi.config.sections import of_networks, read_sections, recipes
from molequi.errors import ConfigError, DataError
from molequi.heads import Vector
from molequi.models import BACKBONES
from molequi.readers import READERS
from molequi.training.options import GROUPS
from molequi.training.renamed import RENAMED
from molequi.util.signature import check_call

GOOD = {
    "data": {"extxyz": {"path": "nowhere.xyz", "split": {"train": 10, "valid": 5}}},
    "backbone": {"EGNN": {"channels": 8, "layers": 2}},
    "predict": ["energy", "forces"],
    "train": {"epochs": 2, "lr": 1e-3, "loss": {"energy": 1, "forces": 100}},
}


def changed(path, value):
    """GOOD with one leaf changed; a value of None takes it away."""
    config = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    section = config
    for name in parents:
        section = section.setdefault(name, {})
    if value is None:
        section.pop(last)
    else:
        section[last] = value
    return config


def refuses(config, words, error=ConfigError):
    with pytest.raises(error, match=words):
        read_config(config)


def test_the_good_one_is_good():
    assert read_config(GOOD) == GOOD


@pytest.mark.parametrize(
    "path,words",
    [
        ("train.learing_rate", r"^train\.learing_rate: no such option of fit"),
        ("train.ephocs", r"^train\.ephocs: no such option of fit; did you mean 'epochs'\?"),
        (
            "backbone.EGNN.chanels",
            r"^backbone\.EGNN\.chanels: no such option of EGNN; did you mean 'channels'\?",
        ),
        ("data.extxyz.pth", r"^data\.extxyz\.pth: no such option of read_extxyz; did you mean 'path'\?"),
        ("data.extxyz.splt", r"did you mean 'split'\?"),
        ("data.extxyz.split.vlid", r"^data\.extxyz\.split\.vlid: no such part; did you mean 'valid'\?"),
    ],
)
def test_b1_typos_are_named_with_the_nearest_word(path, words):
    refuses(changed(path, 1), words)


@pytest.mark.parametrize(
    "path,words",
    [
        ("trian", r"^trian: no such section; did you mean 'train'\?"),
        ("data.extxzy", r"^data\.extxzy: no such reader; did you mean 'extxyz'\?"),
        ("data.tset", r"^data\.tset: no such reader; did you mean 'test'\?"),
        ("train.xyz", r"^train\.xyz: no such option of fit"),
        ("train.config", r"^train\.config: no such option"),  # a parameter of `fit` that is none of a run
    ],
)
def test_b2_unknown_keys_and_sections_are_errors(path, words):
    refuses(changed(path, {"path": "a.xyz"}), words)


def test_b2_unknown_names_in_closed_tables():
    refuses(
        changed("backbone", {"NeqIP": {}}), r"^backbone\.NeqIP: no such backbone; did you mean 'NequIP'\?"
    )
    refuses(
        changed("backbone", {"os.system": {}}),
        r"^backbone\.os\.system: no such backbone; known: EGNN, Equiformer, GauntACE, GroupConvNet, MACE",
    )
    refuses(changed("backbone", {"EGNN": {}, "NequIP": {}}), "found EGNN and NequIP; wanted one")
    refuses(
        changed("predict", ["enrgy"]), r"^predict\.0: quantity 'enrgy' is not known; did you mean 'energy'\?"
    )
    refuses(
        changed("predict", ["energy", {"Vectr": "forces"}]),
        r"^predict\.1: 'Vectr' is not a head; did you mean 'Vector'\?",
    )
    refuses(
        changed("predict", [{"name": "a", "rnk": 1}]),
        r"^predict\.0\.rnk: no such option of Quantity; did you mean 'rank'\?",
    )
    refuses(changed("predict", [3]), r"^predict\.0: found 3 \(int\)")


@pytest.mark.parametrize(
    "path,value,words",
    [
        ("train.lr", "1e-3", r"^train\.lr: found '1e-3' \(str\); wanted number"),
        ("train.lr", True, r"^train\.lr: found True \(bool\); wanted number"),
        ("train.epochs", 2.5, r"^train\.epochs: found 2\.5 \(float\); wanted integer"),
        ("train.loss.forces", "100", r"^train\.loss\.forces: found '100' \(str\)"),
        ("train.loss", 3, r"^train\.loss: found 3 \(int\)"),
        (
            "train.compute.precision",
            "double",
            r"^train\.compute\.precision: found 'double' \(str\); wanted 'float32' or 'float64'",
        ),
        ("backbone.EGNN.attention", 1, r"^backbone\.EGNN\.attention: found 1 \(int\); wanted boolean"),
        ("backbone.EGNN.cutoff", "5", r"^backbone\.EGNN\.cutoff: found '5' \(str\); wanted number"),
        ("data.extxyz.path", 3, r"^data\.extxyz\.path: found 3 \(int\)"),
        ("data.extxyz.split", [10, 5], r"^data\.extxyz\.split: found \[10, 5\] \(list\)"),
        ("data", "file.xyz", r"^data: found 'file\.xyz'; wanted a reader"),
        ("train", "fast", r"^train: found 'fast' \(str\); wanted options"),
    ],
)
def test_b3_wrong_types(path, value, words):
    refuses(changed(path, value), words)


def test_b3_null_where_a_number_is_wanted():
    config = changed("train.lr", 1.0)
    config["train"]["lr"] = None
    refuses(config, r"^train\.lr: found None \(NoneType\); wanted number")


@pytest.mark.parametrize(
    "path,value,words",
    [
        ("backbone.EGNN.cutoff", 0, r"^backbone\.EGNN\.cutoff: found 0 \(int\); wanted greater than 0"),
        ("backbone.EGNN.layers", 0, r"^backbone\.EGNN\.layers: found 0"),
        ("train.batch_size", 0, r"^train\.batch_size: found 0"),
        ("train.lr", -1e-3, r"^train\.lr: found -0\.001 \(float\); wanted greater than 0"),
        ("train.epochs", 0, r"^train\.epochs: found 0"),
        ("train.optimizer.ema", 1.0, r"^train\.optimizer\.ema: found 1\.0 \(float\); wanted less than 1"),
        ("train.loss.energy", -1, r"^train\.loss\.energy: found -1"),
        ("data.extxyz.split.valid", 0, r"^data\.extxyz\.split\.valid: found 0"),
        ("data.extxyz.split.valid", 1.5, r"^data\.extxyz\.split\.valid: found 1\.5"),
    ],
)
def test_b4_values_out_of_range(path, value, words):
    refuses(changed(path, value), words)


def test_b4_degree_out_of_range():
    refuses(
        changed("backbone", {"NequIP": {"l_max": 50}}),
        r"^backbone\.NequIP\.l_max: found 50 \(int\); wanted less than or equal to 6",
    )


def test_b4_all_mistakes_are_told_at_once():
    config = changed("train.lr", -1.0)
    config["train"]["ephocs"] = 3
    with pytest.raises(ConfigError) as info:
        read_config(config)
    assert len(str(info.value).splitlines()) == 2


def test_b5_contradictory_keys_are_both_named():
    refuses(changed("predict", ["energy"]), r"train\.loss\.forces is 100 and predict is \[energy\]")
    refuses(changed("predict", ["forces"]), "predict both: .'energy', 'forces'")
    both = changed("train.batch_size", {"structures": 2, "atoms": 9})
    refuses(both, r"train\.batch_size: found structures and atoms; give one of")
    twice = changed("data.valid", {"extxyz": {"path": "b.xyz"}})
    refuses(twice, r"data\.valid and data\.extxyz\.split\.valid: give only one")
    refuses(changed("data.npz", {"path": "b.npz"}), "found extxyz and npz; wanted one")
    flat = changed("backbone", {"NequIP": {"l_max": 0, "channels": 4}})
    flat["predict"] = ["dipole"]
    flat["train"]["loss"] = {"dipole": 1}
    refuses(flat, r"backbone\.NequIP with predict.*reads '1o' features")


def test_what_is_missing():
    for name in GOOD:
        refuses(changed(name, None), f"^{name}: this section is missing")
    refuses(changed("data.extxyz.path", None), r"^data\.extxyz\.path: missing; read_extxyz needs it")
    refuses(changed("data.extxyz.split", None), "^data: no validation set")
    refuses(changed("data.extxyz.split.train", None), "wanted train too")
    refuses(changed("train.epochs", None), r"^train\.epochs: missing; how long")


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


TEXT = """
data:     {extxyz: {path: a.xyz, split: {train: 950, valid: 50}}}
backbone: {EGNN: {channels: 8, layers: 1}}
predict:  [energy, forces]
train:    {epochs: 500, lr: 5e-4, loss: {energy: 1, forces: 100}}
"""


def test_yaml_and_overrides(tmp_path):
    path = write(tmp_path, TEXT)
    assert read_config(path)["train"]["lr"] == 5e-4
    found = read_config(
        path,
        [
            "train.lr=1e-3",
            "train.optimizer.clip=null",
            "predict=[energy]",
            "train.loss={energy: 2}",
            "data.extxyz.split.valid=7",
        ],
    )
    assert found["train"] == {"epochs": 500, "lr": 1e-3, "loss": {"energy": 2}, "optimizer": {"clip": None}}
    assert found["predict"] == ["energy"] and found["data"]["extxyz"]["split"] == {"train": 950, "valid": 7}
    assert read_config(path, ["backbone=NequIP"])["backbone"] == "NequIP"  # replaced, not mixed


def test_null_leaves_out_the_test_of_a_recipe(tmp_path):
    """Its file need not exist."""
    text = TEXT.replace("data:     {", "data:     {test: {extxyz: {path: '${published:nowhere/b.xyz}'}}, ")
    assert [*read_config(write(tmp_path, text), ["data.test=null"])["data"]] == ["extxyz"]


@pytest.mark.parametrize(
    "override,words",
    [
        ("train.lr", "wanted key=value"),
        ("=3", "wanted key=value"),
        ("train.lr=[1", "override 'train.lr=\\[1': cannot be read"),
        (
            "predict.energy.unit=eV",
            "override 'predict.energy.unit=eV': a setting above 'unit' is a list in the file",
        ),
        ("train.lrr=3", r"train\.lrr: no such option of fit; did you mean 'lr'"),
        ("train.lr='1e-3'", r"train\.lr: found '1e-3' \(str\)"),
    ],
)
def test_wrong_overrides(tmp_path, override, words):
    with pytest.raises(ConfigError, match=words):
        read_config(write(tmp_path, TEXT), [override])


@pytest.mark.parametrize(
    "text,words",
    [
        ("data: [", "cannot be read"),
        ("- a\n- b", "wanted the sections.*found a list"),
        ("a: 1\na: 2", "cannot be read.*duplicate"),
        ("", "data: this section is missing"),
        (TEXT.replace("500", "'???'"), "cannot be read.*epochs"),
        (TEXT.replace("500", "'${nothing.here}'"), "cannot be read.*nothing"),
        (TEXT.replace("5e-4", "!!python/object/apply:os.getcwd []"), "cannot be read.*python"),
    ],
)
def test_files_that_are_no_runs(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        read_config(write(tmp_path, text))


def test_binary_file_and_missing_file(tmp_path):
    (tmp_path / "a.yaml").write_bytes(bytes(range(128, 256)))
    with pytest.raises(ConfigError, match="a.yaml: cannot be read"):
        read_config(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="nope: no such file, and no recipe of this name; recipes: "):
        read_config("nope")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path)


def test_recipes_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "RECIPES", tmp_path)
    (tmp_path / "mine.yaml").write_text(TEXT)
    assert recipes() == ["mine"] and read_config("mine")["train"]["epochs"] == 500
    with pytest.raises(ConfigError, match="recipes: mine"):
        read_config("other")


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_of_the_package_is_well_formed(name):
    sections = read_sections(name)
    if of_networks(sections):
        check_networks(read_sections(name, (), None, names_of_networks(Names())), Names())
    else:
        assert read_config(name)


def test_objects_of_python_are_taken_too():
    config = changed("predict", ["energy", Vector("forces"), Quantity(name="shape", rank=2, unit="Å^2")])
    config["data"]["extxyz"]["path"] = Path("a.xyz")
    found = read_config(config)
    json.dumps(found)  # plain values, as they go to config.yaml
    model = build_model(found, ["H", "O"])
    assert isinstance(model.heads["forces"], Vector) and model.quantities["shape"] == Quantity(
        name="shape", rank=2, unit="Å^2"
    )
    assert model.elements == (1, 8)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_is_built_from_its_name_alone(name):
    config = changed("backbone", name)
    if BACKBONES[name].clouds_alone:
        config["predict"] = [{"name": "shape", "classes": ["ball", "rod"]}]
        config["train"].pop("loss")
    assert type(build_model(read_config(config), ["C"]).backbone) is BACKBONES[name]


@pytest.fixture
def files(tmp_path, make, monkeypatch):
    from ase.io import write as ase_write

    from molequi.readers import to_atoms

    monkeypatch.chdir(tmp_path)
    for name, count, seed in (("a.xyz", 20, 0), ("b.xyz", 6, 1)):
        ase_write(name, [to_atoms(g) for g in make.morse(count, seed=seed)])


def test_parts_from_one_file_or_several(files):
    one = read_data(
        read_config(
            changed(
                "data",
                {"extxyz": {"path": "a.xyz", "split": {"train": 12, "valid": 3, "test": 5}, "seed": 3}},
            )
        )
    )
    assert [(k, len(v)) for k, v in one.items()] == [("train", 12), ("valid", 3), ("test", 5)]
    several = read_data(
        read_config(
            changed(
                "data",
                {
                    "ase": {"path": "a.xyz", "split": {"train": 0.5, "valid": 0.25}},
                    "test": {"extxyz": {"path": "b.xyz", "index": ":4"}},
                },
            )
        )
    )
    assert [len(v) for v in several.values()] == [10, 5, 4]
    whole = read_data(
        read_config(changed("data", {"extxyz": {"path": "a.xyz"}, "valid": {"extxyz": {"path": "b.xyz"}}}))
    )
    assert [len(v) for v in whole.values()] == [20, 6]


def test_b6_a_split_larger_than_the_data_gives_the_numbers(files):
    config = read_config(changed("data", {"extxyz": {"path": "a.xyz", "split": {"train": 18, "valid": 5}}}))
    with pytest.raises(DataError, match="wants 23 structures; there are 20"):
        read_data(config)


def test_b6_an_empty_validation_set(files):
    config = read_config(
        changed("data", {"extxyz": {"path": "a.xyz", "split": {"train": 0.9, "valid": 0.01}}})
    )
    with pytest.raises(DataError, match="valid is 0.01 of 20 structures, which is none"):
        read_data(config)


def test_a_new_quantity_is_asked_of_the_reader(files):
    config = changed("predict", ["energy", {"name": "shape", "rank": 2}])
    config["data"] = {"extxyz": {"path": "a.xyz", "split": {"train": 10, "valid": 5}}}
    config["train"]["loss"] = {"energy": 1, "shape": 1}
    with pytest.raises(DataError, match="no 'shape'"):
        read_data(read_config(config))
    config["train"]["loss"] = {"energy": 1}
    assert list(read_data(read_config(config))["train"].quantities) == ["energy"]
    config["data"]["extxyz"]["quantities"] = ["forces"]
    assert list(read_data(read_config(config))["train"].quantities) == ["forces"]


@pytest.mark.parametrize("name", RENAMED)
def test_each_old_key_of_train_names_the_new_one(name):
    """The new path exists: its option, and the field of a group."""
    with pytest.raises(ConfigError, match=rf"^train\.{name}: now train\.") as info:
        read_config(changed(f"train.{name}", 1))
    option, _, field = re.match(r".*?: now train\.(\w+)(\.(\w+))?", str(info.value)).groups()
    assert option in inspect.signature(fit).parameters
    if option in GROUPS:
        assert field in {f.name for f in fields(GROUPS[option])}
    if option == "terms":
        assert any(f"{{{term}: {{" in str(info.value) for term in TERMS)


def test_all_old_keys_are_told_at_once():
    config = changed("train.patience", 3)
    config["train"]["isolated"] = "atoms.xyz"
    refuses(
        config,
        r"^train\.patience: now train\.validation\.patience\n"
        r"train\.isolated: now train\.normalization\.reference_energies$",
    )


class WeightNorm(Hook):
    def __init__(self, *, strength: float = 1e-4) -> None:
        self.strength = strength


@pytest.mark.parametrize(
    "given,form",
    [
        ({"WeightNorm": {"strength": 1e-5}}, r"terms: \[\{WeightNorm: \{strength: 1e-05\}\}\]$"),
        ("WeightNorm", r"terms: \[WeightNorm\]$"),
        (3, r"terms: \[\{ConstraintAnnealing: \{weight: 0\.01\}\}\]$"),
        ([{"WeightNorm": None, "strength": 1e-5}], r"terms: \[\{WeightNorm: \{strength: 1e-05\}\}\]$"),
        (
            [{"WeightNorm": {}, "ConstraintAnnealing": {"weight": True}}],
            r"terms: \[\{WeightNorm: \{\}\}, \{ConstraintAnnealing: \{weight: true\}\}\]$",
        ),
        ([3], r"terms: \[\{ConstraintAnnealing: \{weight: 0\.01\}\}\]$"),
        ([{"WeightNorm": {"strenght": 1}}], r"no such option of WeightNorm; did you mean 'strength'\?$"),
    ],
)
def test_terms_written_wrongly_show_the_form(given, form):
    names = Names.of(hooks={"WeightNorm": WeightNorm})
    with pytest.raises(ConfigError, match=rf"^train\.terms.*{form}"):
        read_config(changed("train.terms", given), names=names)
    assert read_config(changed("train.terms", [{"WeightNorm": {"strength": 1e-5}}]), names=names)


def test_a_kind_of_loss_that_a_term_cannot_take_is_refused_before_data_are_read():
    config = changed("backbone", {"RelaxedEGNN": {"channels": 8, "layers": 1}})
    config["train"] |= {
        "loss": "mae",
        "terms": [{"EquivarianceSelection": {"method": "evidence", "every": 1}}],
    }
    refuses(config, r"^train\.terms\.0: method='evidence' and loss\.energy with kind='mae'")


@pytest.mark.parametrize("reader", ["sdf", "smiles"])
def test_old_options_of_readers_name_the_new_one(reader):
    config = changed(
        "data", {reader: {"path": "a.csv", "rejected": "bad.csv", "split": {"train": 1, "valid": 1}}}
    )
    refuses(config, rf"^data\.{reader}\.rejected: now skip: .*skip: <path of a \.csv file>")


@pytest.mark.parametrize("reader", READERS)
def test_each_reader_is_described_and_names_the_nearest_option(reader):
    described = re.search(rf"^- ``{reader}`` \(`molequi\.(\w+)`\): (.*)$", schema.__doc__, re.MULTILINE)
    assert described and getattr(mq, described[1]) is READERS[reader]
    options = re.findall(r"``(\w+)``", described[2])
    assert options and set(options) <= set(inspect.signature(READERS[reader]).parameters)
    for option in options:
        section = {reader: {option + "x": 1, "split": {"train": 1, "valid": 1}}}
        refuses(
            changed("data", section), rf"data\.{reader}\.{option}x: no such option.*did you mean '{option}'\?"
        )


def test_check_call_names_the_wrong_leaf_of_a_mapping():
    def function(*, a: dict[str, int], b: float = 1.0):
        pass

    check_call(function, {"a": {"x": 1}}, where="here")
    with pytest.raises(ConfigError, match=r"^here\.a\.y: found 'z' \(str\); wanted integer"):
        check_call(function, {"a": {"x": 1, "y": "z"}}, where="here")
    with pytest.raises(ConfigError, match=r"^here\.a: missing; function needs it"):
        check_call(function, {}, where="here")
