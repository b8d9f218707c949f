"""Advice of the library is said as one types it, in errors, warnings and reports of every command."""

import warnings

import ase
import numpy as np
import pytest
from ase.io import read, write

import molequi as mq
from molequi.cli import main
from molequi.cli.typed import Typing, as_typed

FLAGS = ("units", "keys", "allow", "partial", "quantities", "restart", "append", "seed", "skip", "ensemble")


@pytest.mark.parametrize(
    "said, typed",
    [
        ("say units={'energy': 'kcal/mol'}", "say --units energy=kcal/mol"),
        (
            "units={'energy': 'kcal/mol', 'forces': 'kcal/mol/Å'}, or",
            "--units energy=kcal/mol forces=kcal/mol/Å, or",
        ),
        ("units={…}", "--units QUANTITY=UNIT"),
        ("units={'forces': …}", "--units forces=UNIT"),
        ("keys={'forces': ...}", "--keys forces=NAME"),
        ("keys={'forces': 'REF_forces'}", "--keys forces=REF_forces"),
        ("keys={'spin': None} does", "--keys '{spin: null}' does"),
        (
            "keys={'stress': {'key': 'virial', 'virial': True}}",
            "--keys '{stress: {key: virial, virial: true}}'",
        ),
        ("keys={'forces': {…, 'sign': -1}}", "--keys '{forces: {key: NAME, sign: -1}}'"),
        ("allow=['close-atoms', 'duplicates']", "--allow close-atoms duplicates"),
        ("(NaN with partial=['energy'])", "(NaN with --partial energy)"),
        ("with restart=True (--restart)", "with --restart"),
        ("with --restart (restart=True)", "with --restart"),
        ("append=True (--append), or", "--append, or"),
        ("ensemble='npt'", "--ensemble npt"),
        # No options of this command, and no advice.
        ("md.pbc=[True, True, False]", "md.pbc=[True, True, False]"),
        ("fit(..., seed=[0, 1, 2])", "fit(..., seed=[0, 1, 2])"),
        ("Inputs(skip=True)", "Inputs(skip=True)"),
        ("keys={'a': b + c}", "keys={'a': b + c}"),
    ],
)
def test_as_flags(said, typed):
    assert as_typed(said, Typing("lint", FLAGS)) == typed


@pytest.mark.parametrize(
    "said, typed",
    [
        ("say units={'energy': 'kcal/mol'}", "say units: {energy: kcal/mol} below the reader"),
        ("allow=['close-atoms']", "allow: [close-atoms] below the reader"),
        ("give normalization={'reference_energies': …}", "give train.normalization.reference_energies=NAME"),
        ("seed=[0, 1, 2]", "train.seed=[0,1,2]"),
    ],
)
def test_in_a_yaml_file(said, typed):
    assert as_typed(said, Typing("train", settings=True, yaml=True)) == typed


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = read(mq.shipped("ethanol_300K.xyz"), ":60")
    write("good.xyz", frames, format="extxyz")
    scan = [
        ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.35 + 0.02 * k]], info={"energy": -30.0 - k}) for k in range(12)
    ]
    write("wall.xyz", scan, format="extxyz")
    return tmp_path


def test_an_error_of_a_reader(folder, capsys):
    assert main(["prepare", "wall.xyz", "--out", "store"]) == 2
    said = capsys.readouterr().err
    assert "--units positions=nm" in said and "--allow close-atoms" in said and "={" not in said
    assert main(["prepare", "wall.xyz", "--out", "store", "--allow", "close-atoms"]) == 0


def test_a_store_that_is_there(folder, capsys):
    assert main(["prepare", "good.xyz", "--out", "store"]) == 0
    assert main(["prepare", "wall.xyz", "--out", "store", "--allow", "close-atoms", "--no-progress"]) == 2
    said = capsys.readouterr().err
    assert "replace it with --restart" in said and "True" not in said


def test_a_warning_of_a_training(folder, capsys):
    frames = read("good.xyz", ":")
    for atoms in frames:
        atoms.calc.results["forces"] = -atoms.calc.results["forces"]
    write("gradients.xyz", frames, format="extxyz")
    (folder / "run.yaml").write_text(
        "data: {extxyz: {path: gradients.xyz, split: {train: 40, valid: 10}}}\n"
        "backbone: {EGNN: {channels: 4, layers: 1}}\npredict: [energy, forces]\n"
        "train: {epochs: 1, logging: {progress: false}}\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["train", "run.yaml"]) == 0
    said = capsys.readouterr().err
    assert "allow: [force-unit] below the reader" in said and "allow=[" not in said


def test_a_report(folder, capsys):
    frames = read("good.xyz", ":")
    for atoms in frames[48:]:
        atoms.calc.results["forces"] = -atoms.calc.results["forces"]
    write("some.xyz", frames, format="extxyz")
    assert main(["lint", "some.xyz", "--no-costs"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "--keys '{forces: {key: NAME, sign: -1}}'" in said and "keys={" not in said


def test_the_words_are_understood(folder, capsys):
    """What is said is typed, and does what it says."""
    frames = read("good.xyz", ":")
    for atoms in frames:
        atoms.calc.results["forces"] = -atoms.calc.results["forces"]
    write("gradients.xyz", frames, format="extxyz")
    words = ["lint", "gradients.xyz", "--no-costs"]
    assert main(words) == 1
    assert main([*words, "--keys", "{forces: {key: forces, sign: -1}}"]) == 0


def test_a_folder_above_stores(folder, capsys):
    for name in ("a", "b"):
        assert main(["prepare", "good.xyz", "--out", f"all/{name}", "--no-progress"]) == 0
    capsys.readouterr()
    for command in (["train", "all"], ["lint", "all"]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "a folder above 2 stores" in said and "all/a, all/b" in said.replace(str(folder) + "/", "")


def test_another_cutoff_of_a_store_is_said_once(folder):
    mq.prepare("good.xyz", "store", cutoff=4.0, progress=False)
    parts = mq.read_store("store").split([40, 10])
    with pytest.warns(mq.errors.DataWarning) as caught:
        lists = [part.connected(3.0) for part in parts]
    assert len([w for w in caught if "neighbor lists are stored" in str(w.message)]) == 1
    assert all(np.isfinite(part[0].edge_index.shape[1]) for part in lists)
    with pytest.warns(mq.errors.DataWarning, match="cutoff=2.0"):
        parts[0].connected(2.0)


def test_options_of_prepare_are_grouped_by_reader(capsys):
    assert main(["prepare", "--help"]) == 0
    said = capsys.readouterr().out
    titles = ["options:", "options of most readers:", "options of tables of SMILES:"]
    places = [said.index(f"\n{title}") for title in titles]
    assert places == sorted(places) and places[1] < said.index("  --keys ") < places[2]
    assert main(["prepare", "a.xyz", "--out", "b", "--overwrite"]) == 2
    assert "--overwrite: molequi prepare has no such option; write --restart" in capsys.readouterr().err
