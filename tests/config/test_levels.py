"""Runs of several levels of theory from a file: data by level, pages, commands, and fine-tuning."""

import pytest
from ase.io import write

import molequi as mq
from molequi.cli.program import main
from molequi.config.levels import file_names, joined, sections_of
from molequi.errors import ConfigError, DataError, ModelError

from ..morse_kit import morse

TRAIN = {"epochs": 1, "logging": {"progress": False}}
SMALL = {"backbone": {"EGNN": {"channels": 4, "layers": 1, "cutoff": 4.0}}, "predict": ["energy", "forces"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two levels, with its files."""
    folder = tmp_path_factory.mktemp("levels")
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        write(folder / f"{name}.xyz", [mq.to_atoms(g) for g in morse(24, seed=seed)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("molequi.training.symmetry.measure_symmetry", lambda *_: None)
        mq.run({"data": levels_of(folder), **SMALL, "train": TRAIN | {"out": str(folder / "both")}})
    return folder


def levels_of(folder, **more):
    split = {"train": 16, "valid": 8}
    one = {"extxyz": {"path": str(folder / "a.xyz"), "split": split}}
    two = {"extxyz": {"path": str(folder / "b.xyz"), "split": {"train": 24}}}
    two["valid"] = {"extxyz": {"path": str(folder / "c.xyz"), "index": ":6"}}
    return {"levels": {"pbe": one, "r2scan": two, **more}}


def test_a_run_of_two_levels(folder):
    model = mq.load(folder / "both")
    assert model.levels == ("pbe", "r2scan")
    assert {
        "report-pbe.html",
        "report-r2scan.html",
        "parity-pbe.png",
        "errors.json",
        "learning_curve.png",
    } <= {path.name for path in (folder / "both").iterdir()}
    assert "both, level pbe" in (folder / "both" / "report-pbe.html").read_text()
    again = mq.report(f"{folder / 'both'}@r2scan", out=folder / "again.html")
    assert again.name == "again-r2scan.html" and not (folder / "again-pbe.html").exists()
    with pytest.raises(ModelError, match="level 'mp2': this model has no such level"):
        mq.report(f"{folder / 'both'}@mp2", out=folder / "again.html")


def test_commands_take_one_level(folder, capsys):
    both, new = folder / "both", str(folder / "c.xyz")
    assert main(["predict", f"{both}@pbe", new, str(folder / "out.xyz")]) == 0
    assert main(["evaluate", f"{both}@r2scan", new]) == 0
    assert "energy" in capsys.readouterr().out
    for words in (
        ["predict", str(both), new, str(folder / "no.xyz")],
        ["evaluate", str(both), new],
        ["relax", str(both), new, "--out", str(folder / "relaxed"), "--steps", "1"],
        ["md", str(both), new, "--out", str(folder / "md"), "--steps", "1"],
        ["audit", str(both), new],
        ["features", str(both), new, "--out", str(folder / "features.npz")],
        ["screen", str(both), new, "--out", str(folder / "screened")],
    ):
        assert main(words) == 2, words
        error = capsys.readouterr().err
        assert (
            "several levels of theory, 'pbe', 'r2scan', and none was chosen" in error and "FILE@pbe" in error
        )
    assert main(["info", str(both)]) == 0
    shown = capsys.readouterr().out
    assert "Scalar, levels pbe, r2scan" in shown and "level r2scan: symmetry report: none" in shown
    assert "valid pbe: " in shown
    assert main(["info", f"{both}@r2scan"]) == 0
    shown = capsys.readouterr().out
    assert (
        "Scalar, level r2scan" in shown and "valid r2scan: " in shown and "pbe" not in shown.split("run:")[0]
    )
    assert main(["info", f"{both}@mp2"]) == 2
    assert "level 'mp2': this model has no such level of theory; it has 'pbe'" in capsys.readouterr().err


def test_a_run_that_adds_a_level(folder, monkeypatch):
    monkeypatch.setattr("molequi.training.symmetry.measure_symmetry", lambda *_: None)
    replay = {"data": str(folder / "a.xyz"), "level": "pbe"}
    config = {
        "start_from": str(folder / "both"),
        "data": {"extxyz": {"path": str(folder / "c.xyz"), "split": {"train": 16, "valid": 8}}},
        "train": TRAIN
        | {
            "out": str(folder / "three"),
            "finetune": {"level": "ccsd", "from_level": "r2scan", "replay": replay, "nve": 0},
        },
    }
    result = mq.run(config)
    assert mq.load(folder / "three").levels == ("pbe", "r2scan", "ccsd") == result.model.levels
    assert list(result.errors) == ["train ccsd", "valid ccsd"]
    assert (folder / "three" / "report-ccsd.html").is_file()
    again = mq.run(config)  # nothing is left to do
    assert again.model.levels == result.model.levels


def test_what_to_type_after_a_new_level(folder, monkeypatch, capsys):
    """The commands name the level that was trained, and work."""
    monkeypatch.setattr("molequi.training.symmetry.measure_symmetry", lambda *_: None)
    out = folder / "tuned"
    words = ["finetune", str(folder / "both"), str(folder / "c.xyz"), "--out", str(out), "train.epochs=1"]
    settings = ["level=ccsd", "from_level=pbe", "nve=0"]
    words += ["train.logging.progress=false", *(f"train.finetune.{one}" for one in settings)]
    assert main(words) == 0
    shown = capsys.readouterr().out
    relax = next(line for line in shown.splitlines() if line.startswith("relax: ")).split()[2:]
    assert relax[1] == f"{out}@ccsd" and f"molequi md {out}@ccsd {out}-relaxed" in shown
    one = folder / "one.xyz"
    write(one, mq.to_atoms(morse(1)[0]))
    assert main([str(one) if word == "START.xyz" else word for word in relax] + ["--steps", "1"]) == 0


def test_wrong_sections(folder):
    config = {"data": levels_of(folder), **SMALL, "train": TRAIN | {"out": str(folder / "wrong")}}
    beside = {**config["data"], "extxyz": {"path": "a.xyz"}}
    cases = {
        r"data\.extxyz and data\.levels: each level has a reader of its own": {"data": beside},
        "data.levels: found \\[\\]; wanted a section for each level": {"data": {"levels": []}},
        "data.levels: found 1; wanted the name of a level .* a number needs quotes": {
            "data": {"levels": {1: {}}}
        },
        "data.levels: found 'a@b'; wanted a name without @": {"data": levels_of(folder, **{"a@b": {}})},
        r"data\.levels\.mp2\.exyz: no such reader": {"data": levels_of(folder, mp2={"exyz": {}})},
        r"data\.levels\.mp2: no validation set": {"data": levels_of(folder, mp2={"extxyz": {"path": "a"}})},
        "pretrain and data.levels": {"pretrain": "gfn2-xtb"},
        "start_from and data.levels: .*train.finetune.level": {"start_from": str(folder / "both")},
    }
    for message, changed in cases.items():
        with pytest.raises(ConfigError, match=message):
            mq.run(config | changed)
    with pytest.raises(ConfigError, match="learning_curve: the data are of several levels"):
        mq.learning_curve(config, out=folder / "curve")


def test_a_part_that_one_level_lacks():
    data = morse(2)
    found = joined(
        {"pbe": {"train": data, "valid": data, "test": data}, "r2scan": {"train": data, "valid": data}}
    )
    assert {part: list(one.info["level"]) for part, one in found.items()} == {
        "train": ["pbe", "pbe", "r2scan", "r2scan"],
        "valid": ["pbe", "pbe", "r2scan", "r2scan"],
        "test": ["pbe", "pbe"],
    }
    assert sections_of("x") == {"": ("data", "x")}


def test_structures_of_a_section_are_not_relabelled(tmp_path):
    named, mixed = morse(4).with_level("r2scan"), morse(2).with_level("pbe") + morse(1)
    write(
        tmp_path / "r2.xyz", [a for a in map(mq.to_atoms, morse(12)) if a.info.update(level="r2scan") is None]
    )
    one = {"extxyz": {"path": str(tmp_path / "r2.xyz"), "split": {"train": 8, "valid": 4}}}
    config = {"data": {"levels": {"pbe": one}}, **SMALL, "train": TRAIN | {"out": str(tmp_path / "run")}}
    message = r"data\.levels\.pbe, the train data of .*r2\.xyz: the structures say .* 'r2scan', .* of 'pbe'"
    with pytest.raises(ConfigError, match=message):
        mq.run(config)
    with pytest.raises(
        DataError, match=r"data\.levels\.pbe, the valid data: 1 of 3 structures have no level"
    ):
        joined({"pbe": {"train": morse(2), "valid": mixed}})
    assert list(joined({"r2scan": {"train": named}})["train"].info["level"]) == ["r2scan"] * 4


def test_report_files_of_similar_names():
    levels = ["pbe d3", "pbe_d3", "PBE", "pbe", "pbe-2"]
    names = file_names(levels)
    assert list(names) == levels and names["pbe d3"] == "-pbe_d3"
    assert len({name.casefold() for name in names.values()}) == len(levels)
