"""The command line: one message and a status for every end."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from ase.build import molecule
from ase.io import read
from ase.io import write as ase_write

import molequi as mq
from molequi import EGNN, Model, __version__, save
from molequi.audit import symmetry_report
from molequi.cli import main
from molequi.symmetry import random_orthogonal


def run(line: str) -> int:
    """The status of a command line."""
    return main(line.split())


AUDIT = "audit model.safetensors frames.xyz --draws 2"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A model for water and labelled frames of it."""
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(EGNN(elements=["H", "O"], channels=8, layers=1, cutoff=4.0))
    save(model, "model.safetensors")
    frames = []
    for k in range(6):
        atoms = molecule("H2O")
        atoms.rattle(0.05, seed=k)
        atoms.info["energy"] = -1.0 * k
        atoms.set_array("REF_forces", atoms.positions * 0.1)
        frames.append(atoms)
    ase_write("frames.xyz", frames, format="extxyz")
    return tmp_path


def test_train_from_end_to_end(files, capsys):
    (files / "run.yaml").write_text(
        "data: {extxyz: {path: frames.xyz, keys: {forces: REF_forces}, split: {train: 4, valid: 2}}}\n"
        "backbone: {EGNN: {channels: 8, layers: 1}}\npredict: [energy, forces]\ntrain: {epochs: 1, logging: {progress: false}}\n"
    )
    assert main(["train", "run.yaml", "train.lr=1e-3", "train.out=here"]) == 0
    out = capsys.readouterr().out
    assert "forces" in out and "parity.png" in out and (files / "here" / "model.safetensors").exists()
    assert main(["info", "here/model.safetensors"]) == 0
    assert (
        "elements H O" in (told := capsys.readouterr().out)
        and "predicts: forces" in told
        and '"lr": 0.001' in told
    )


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["train", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["train", "frames.xyz"], "6 structures; wanted at least 10"),
        (["evaluate", "model.safetensors", "nowhere.xyz"], "nowhere.xyz: no such file"),
        (["evaluate", "frames.xyz", "frames.xyz"], "not a readable model file"),
        (
            ["evaluate", "model.safetensors", "frames.xyz", "--keys", "forces"],
            "--keys forces: wanted name=value",
        ),
        (
            ["evaluate", "model.safetensors", "frames.xyz", "--out", "a.txt"],
            "wanted a name that ends in .json or .csv",
        ),
        (
            ["predict", "model.safetensors", "frames.xyz", "no/where/out.xyz"],
            "there is no folder no/where; make it with",
        ),
        (
            ["predict", "model.safetensors", "frames.xyz", "out.xyz", "--device", "quantum"],
            "--device quantum: PyTorch knows no such device",
        ),
        (
            ["audit", "model.safetensors", "frames.xyz", "--drws", "4"],
            r"^molequi: --drws: molequi audit has no such option; did you mean '--draws'\?\n$",
        ),
        (
            ["audit", "model.safetensors", "frames.xyz", "4"],
            "audit: 4 is too much; wanted molequi audit MODEL STRUCTURES",
        ),
        (["info", "nowhere.safetensors"], "no such file"),
        (
            ["predict", "model.safetensors", "frames.xyz"],
            "and no file to write; type\n  molequi predict model.safetensors frames.xyz predicted.xyz",
        ),
        (
            ["predict", "model.safetensors", "frames.xyz", "--smiles", "C"],
            "frames.xyz: SMILES of the command line are shown",
        ),
        (
            ["predict", "model.safetensors", "frames.xyz", "o.xyz", "--conformers", "3"],
            "conformers: no such option of read_ase",
        ),
        (
            ["predict", "model.safetensors", "frames.xyz", "o.csv"],
            "ends in .xyz or .extxyz, or, for molecules, in .csv",
        ),
        *[
            (
                [command, "frames.xyz", "model.safetensors", *more],
                "model.safetensors comes second, .* wanted first the model, then the structures",
            )
            for command, *more in (["evaluate"], ["predict", "o.xyz"], ["md"], ["relax"], ["audit"])
        ],
        (
            ["md", "model.safetensors", "frames.xyz", "--steps", "1", "--index", "9999999"],
            "frames.xyz: no frame 9999999; the file has 6",
        ),
        (
            ["audit", "model.safetensors", "frames.xyz", "--index", "6"],
            "frames.xyz: no frame 6; the file has 6",
        ),
        (["audit", "model.safetensors", "frames.xyz", "--index"], "--index: a value is missing: text"),
    ],
)
def test_errors_are_one_message_and_status_2(files, capsys, arguments, words):
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert re.search(words, told.err) and told.err.startswith("molequi: ") and "Traceback" not in told.err


def test_a33_no_traceback_and_status_2_of_the_program_itself(files):
    done = subprocess.run(
        [sys.executable, "-m", "molequi.cli", "train", "nowhere"], capture_output=True, text=True, timeout=60
    )
    assert (
        done.returncode == 2
        and done.stderr.startswith("molequi: nowhere: no such file")
        and "Traceback" not in done.stderr
    )


def test_evaluate_with_keys_and_units(files, capsys):
    command = "evaluate model.safetensors frames.xyz --keys forces=REF_forces"
    assert run(f"{command} --units energy=kcal/mol forces=eV/Å --out table.json") == 0
    rows = {(r["quantity"], r["element"]): r for r in json.loads((files / "table.json").read_text())}
    assert rows["forces", ""]["count"] == 54 and "forces" in capsys.readouterr().out
    assert run(f"{command} --out table.csv") == 0
    assert (files / "table.csv").read_text().startswith("part,quantity")


def test_predict_writes_structures(files, capsys):
    assert main(["predict", "model.safetensors", "frames.xyz", "out.xyz"]) == 0
    written = read("out.xyz", ":")
    assert len(written) == 6 and written[0].get_forces().shape == (3, 3)
    assert "6 structures: out.xyz" in capsys.readouterr().out


def test_commands_do_not_replace_files(files, capsys):
    other = files / "other.xyz"
    other.write_text("mine")
    assert main(["predict", "model.safetensors", "frames.xyz", "other.xyz"]) == 2
    assert "out=other.xyz: this file exists; choose another name, or replace it with --overwrite" in (
        capsys.readouterr().err
    )
    assert other.read_text() == "mine"
    assert main(["predict", "model.safetensors", "frames.xyz", "other.xyz", "--overwrite"]) == 0
    assert len(read("other.xyz", ":")) == 6
    for name in ("a.json", "a.png", "b.layers.png"):
        (files / name).write_text("mine")
    capsys.readouterr()
    commands = {
        "evaluate model.safetensors frames.xyz --out a.json": "a.json",
        f"{AUDIT} --checks rotation --out a.png": "a.png",
        f"{AUDIT} --checks rotation --layers --out b.png": "b.layers.png",
    }
    for command, name in commands.items():
        assert run(command) == 2 and f"--out {name}: this file exists" in capsys.readouterr().err
        assert (files / name).read_text() == "mine"
    command = "evaluate model.safetensors frames.xyz --keys forces=REF_forces --out a.json --overwrite"
    assert run(f"{command} --units energy=kcal/mol forces=eV/Å") == 0
    assert json.loads((files / "a.json").read_text())


def test_predict_molecules(files, capsys):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save(
            Model(
                EGNN(elements=["H", "C", "O"], channels=8, layers=1, cutoff=4.0), ["gap", "forces", "energy"]
            ),
            "gaps.safetensors",
        )
    (files / "in.csv").write_text("id;smi\na;CCO\nb;CC(\n")
    options = "--column smi --conformers 2"
    assert run(f"predict gaps.safetensors --smiles in.csv out.csv {options}") == 2
    assert (
        "row 1 (line 3) 'CC(': syntax error" in (told := capsys.readouterr().err)
        and "--skip" in told
        and not (files / "out.csv").exists()
    )
    assert run(f"predict gaps.safetensors in.csv out.csv {options} --skip") == 0
    assert "2 molecules, 1 of them without a prediction: out.csv" in capsys.readouterr().out
    header, first, second = (files / "out.csv").read_text().splitlines()
    assert header.startswith("id;smi;gap (eV);gap_conformer_std (eV);energy (eV)") and second.startswith(
        "b;CC(;;;;;;"
    )
    assert main(["predict", "gaps.safetensors", "--smiles", "CCO", "C", "--conformers", "2"]) == 0
    one, two = capsys.readouterr().out.splitlines()
    assert one.startswith(f"CCO: gap {float(first.split(';')[2]):.6g}, gap_conformer_std") and two.startswith(
        "C: gap"
    )


def test_warnings_are_one_line(files, capsys, recwarn):
    text = (files / "frames.xyz").read_text()
    (files / "twice.xyz").write_text(text + text)
    (files / "run.yaml").write_text(
        "data: {extxyz: {path: twice.xyz, keys: {forces: REF_forces}, split: {train: 8, valid: 4}}}\nbackbone: {EGNN:"
        " {channels: 8, layers: 1}}\npredict: [energy, forces]\ntrain: {epochs: 1, logging: {progress: false}, out: here}\n"
    )
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["train", "run.yaml"]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert line.startswith("molequi: warning: ") and "more than one part" in line


def test_audit_tells_by_its_status(files, capsys):
    passed = run(f"{AUDIT} --limit 1 --checks rotation --out audit.json")
    assert passed in (0, 1) and json.loads((files / "audit.json").read_text())
    assert "rotation" in capsys.readouterr().out


def test_audit_beside_an_older_model(files, capsys):
    words = ["audit", "model.safetensors", "frames.xyz", "--draws", "2", "--limit", "2"]
    assert main([*words, "--against", "model.safetensors", "--out", "compared.json"]) == 0
    assert (
        "nothing grew" in capsys.readouterr().out
        and json.loads((files / "compared.json").read_text())["passed"]
    )
    rounded = mq.load(files / "model.safetensors").to(torch.bfloat16)
    mq.save(rounded, files / "rounded.safetensors")
    assert main([words[0], "rounded.safetensors", *words[2:], "--against", "model.safetensors"]) == 2
    assert "is bfloat16; wanted float32 or float64" in capsys.readouterr().err


def test_audit_of_layers_and_of_the_ladder(files, capsys):
    command = f"{AUDIT} --limit 2 --checks rotation --layers"
    run(f"{command} --ladder --out audit.json")
    out = capsys.readouterr().out
    assert {"rows", "layers", "ladder"} <= set(json.loads((files / "audit.json").read_text()))
    assert "largest group that holds: O(3); translations and permutations" in out and "LEE" in out
    run(f"{command} --ladder --out audit.html")
    run(f"{command} --out audit.png")
    page = (files / "audit.html").read_text()
    assert page.count("<b>") == 3 and "largest group that holds" in page and "Lie derivatives" in page
    assert all((files / name).read_bytes()[:4] == b"\x89PNG" for name in ("audit.png", "audit.layers.png"))


def test_audit_with_other_tolerances(files, capsys):
    assert main([*AUDIT.split(), "--checks", "rotation", "--tolerance", "{symmetry: 1e-30}"]) == 1
    assert "1.0e-30" in capsys.readouterr().out
    assert main([*AUDIT.split(), "--tolerance", "{symetry: 1}"]) == 2
    assert "--tolerance.symetry: no such option" in capsys.readouterr().err


def test_audit_of_labelled_structures_alone(files, capsys):
    random = torch.Generator().manual_seed(0)
    frames = []
    for _ in range(60):
        atoms = molecule("H2O")
        turn = random_orthogonal(3, generator=random).numpy()
        atoms.positions = (
            atoms.positions + 0.1 * torch.randn(3, 3, generator=random, dtype=torch.float64).numpy()
        ) @ turn
        atoms.info["energy"] = float(atoms.positions[0, 2] - atoms.positions[1:, 2].mean())  # which way is up
        frames.append(atoms)
    ase_write("up.xyz", frames, format="extxyz")
    assert main(["audit", "up.xyz", "--draws", "199", "--out", "up.json"]) == 0
    out = capsys.readouterr().out
    assert (
        "rotational symmetry broken" in out
        and "O(2) about" in out
        and json.loads((files / "up.json").read_text())
    )
    assert main(["audit", "up.xyz", "--draws", "199", "--groups", "O(3)", "--out", "up.png"]) == 0
    assert (files / "up.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["audit", "up.xyz", "--drws", "199"]) == 2
    assert "--drws: molequi audit has no such option" in capsys.readouterr().err


def test_info_shows_and_verifies_the_report(files, capsys):
    assert main(["info", "model.safetensors"]) == 0
    assert "symmetry report: none" in capsys.readouterr().out
    assert main(["info", "model.safetensors", "--verify"]) == 2
    model = mq.load(files / "model.safetensors")
    report = symmetry_report(model, files / "frames.xyz")
    mq.save(model, files / "reported.safetensors", metadata={"symmetry_report": report.to_dict()})
    assert main(["info", "reported.safetensors", "--verify"]) == 0
    out = capsys.readouterr().out
    assert "symmetry report: declared O(3); passed" in out and "nothing grew" in out


@pytest.mark.parametrize(
    "words, wanted",
    [
        (
            ["model.safetensors", "frames.xyz", "--out", "a.txt"],
            "wanted a name that ends in .json, .html or .png",
        ),
        (["model.safetensors"], "is a model; wanted structures after it"),
        (
            ["frames.xyz", "--against", "model.safetensors"],
            "--against is for a model; found labelled structures alone",
        ),
        (
            ["model.safetensors", "frames.xyz", "--against", "model.safetensors", "--out", "a.png"],
            "ends in .json for a comparison",
        ),
        (
            ["model.safetensors", "frames.xyz", "--against", "model.safetensors", "--layers"],
            "ask for --layers and --ladder without it",
        ),
        (["model.safetensors", "frames.xyz", "--out", "5"], "--out 5: wanted a name that ends in"),
        (["model.safetensors", "frames.xyz", "--layers", "some"], "audit: some is too much"),
        (
            ["model.safetensors", "frames.xyz", "--ladder", "--out", "a.png"],
            "--ladder is a table; wanted a name that ends in .json or .html",
        ),
    ],
)
def test_what_an_audit_refuses(files, capsys, words, wanted):
    assert main(["audit", *words]) == 2
    assert wanted in capsys.readouterr().err


@pytest.mark.parametrize("index, used", [("2:4", 2), ("::3", 2), ("5", 1), ("1:30", 5)])
def test_audit_of_some_frames(files, capsys, index, used):
    run(f"{AUDIT} --index {index} --checks rotation --out audit.json")
    assert json.loads((files / "audit.json").read_text())["given"] == used


def test_what_is_required_is_told(capsys):
    for words, wanted in [
        ("train", "train: CONFIG is missing; wanted molequi train mine.csv --target logS"),
        ("audit", "audit: MODEL is missing; wanted molequi audit MODEL STRUCTURES [--option value ...]"),
        (
            "md",
            "md: MODEL, STRUCTURES are missing; wanted molequi md MODEL STRUCTURES [--option value ...]; for example\n",
        ),
        ("md m.safetensors", "md: STRUCTURES is missing; wanted molequi md MODEL STRUCTURES"),
    ]:
        assert main(words.split()) == 2
        assert capsys.readouterr().err.startswith(f"molequi: {wanted}")


def test_b12_ctrl_c_is_130(files, capsys, monkeypatch):
    monkeypatch.setattr(
        importlib.import_module("molequi.config.run"),
        "read_data",
        lambda *_: (os.kill(os.getpid(), signal.SIGINT), time.sleep(30)),
    )  # the signal ends the sleep; without one Python may run on before it looks
    handler = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # which a shell takes from what it starts in the background
    (files / "run.yaml").write_text(
        "data: {extxyz: {path: frames.xyz, split: {train: 4, valid: 2}}}\nbackbone: EGNN\n"
        "predict: [energy]\ntrain: {epochs: 1}\n"
    )
    try:
        assert main(["train", "run.yaml"]) == 130
    finally:
        signal.signal(signal.SIGINT, handler)
    assert capsys.readouterr().err == "molequi: interrupted\n"


def test_what_an_interrupt_leaves_is_said(capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt("the state is saved")

    monkeypatch.setattr("molequi.checkpoint.read", interrupted)
    assert main(["info", "some"]) == 130
    assert capsys.readouterr().err == "molequi: interrupted; the state is saved\n"


def test_version_and_help(capsys):
    assert main(["--version"]) == 0 and __version__ in capsys.readouterr().out
    assert main([]) == 2 and main(["--help"]) == 0
    assert "molequi COMMAND --help describes one of them" in capsys.readouterr().out
