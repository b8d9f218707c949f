"""The report in all its forms, the command line with its status, and names by which heuristics are overruled."""

import json
import warnings

import pytest
import torch
from ase import Atoms
from ase.io import read, write

import molequi as mq
from molequi.cli import main
from molequi.data.heuristics import HEURISTICS, checked_allow
from molequi.errors import ConfigError, DataError, DataWarning
from molequi.lint.report import Finding, LintReport


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Good frames, frames with gradients in place of forces, and dimers at 0.35 Å."""
    monkeypatch.chdir(tmp_path)
    frames = read(mq.shipped("ethanol_300K.xyz"), ":120")
    write("good.xyz", frames, format="extxyz")
    for atoms in frames:
        atoms.calc.results["forces"] = -atoms.calc.results["forces"]
    write("gradients.xyz", frames, format="extxyz")
    dimers = []
    for k in range(12):
        atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.35 + 0.1 * k]])
        atoms.info["energy"] = 5.0 / (1 + k) - 31.0
        dimers.append(atoms)
    write("dimers.xyz", dimers, format="extxyz")
    return tmp_path


def test_status_and_table(files, capsys):
    assert main(["lint", "good.xyz", "--no-costs"]) == 0
    out = capsys.readouterr().out
    assert "120 structures: 1 note" in out and "good.xyz: 120 structures of 9 atoms" in out
    assert main(["lint", "gradients.xyz", "--no-costs"]) == 1
    out = capsys.readouterr().out
    assert (
        "2 errors" in out and "wrong sign" in out and "gradients.xyz, frame 0, 1, 2, 3, 4 and 115 more" in out
    )
    assert max(map(len, out.splitlines())) <= 114
    assert main(["lint", "nothing.xyz"]) == 2 and "no such file" in capsys.readouterr().err


def test_json_and_page(files, capsys):
    assert main(["lint", "gradients.xyz", "--no-costs", "--out", "report.json"]) == 1
    found = json.loads((files / "report.json").read_text())
    assert not found["passed"] and found["structures"] == 120
    first = found["findings"][0]
    assert first["name"] in HEURISTICS and first["severity"] == "error" and first["count"] == 120
    assert first["origins"][0] == "gradients.xyz, frame 0"
    assert main(["lint", "gradients.xyz", "--no-costs", "--out", "report.html"]) == 1
    page = (files / "report.html").read_text()
    assert page.startswith("<!doctype html>") and "wrong sign" in page and "<script" not in page
    assert main(["lint", "good.xyz", "--no-costs", "--out", "report.html"]) == 2
    assert (
        "report.html: this file exists; choose another name, or replace it with --overwrite"
        in capsys.readouterr().err
    )
    assert main(["lint", "good.xyz", "--no-costs", "--out", "report.html", "--overwrite"]) == 0
    assert main(["lint", "good.xyz", "--out", "report.txt"]) == 2
    assert "wanted a name that ends in .json or .html" in capsys.readouterr().err


def test_a_warning_can_fail(files):
    atoms = read("good.xyz", ":")
    atoms[3].positions[8] += 30.0
    write("far.xyz", atoms, format="extxyz")
    assert main(["lint", "far.xyz", "--no-costs", "--allow", "net-torque", "inconsistent-frames"]) == 0
    words = ["lint", "far.xyz", "--no-costs", "--allow", "net-torque", "inconsistent-frames"]
    assert main([*words, "--fail-on", "warning"]) == 1


def test_parts_have_names(files, capsys):
    assert main(["lint", "train=good.xyz", "valid=good.xyz", "--no-costs"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "equal structures in two parts (120 of 240)" in out and "in valid is" in out
    assert main(["lint", "a=good.xyz", "a=good.xyz"]) == 2
    assert "given twice" in capsys.readouterr().err


def test_advice_is_what_one_types(files, capsys):
    write("nm.xyz", [Atoms(a.symbols, 0.1 * a.positions) for a in read("good.xyz", ":")], format="extxyz")
    assert main(["lint", "nm.xyz", "--no-costs"]) == 1
    assert "--units positions=nm" in capsys.readouterr().out
    assert main(["lint", "nm.xyz", "--no-costs", "--units", "positions=nm"]) == 0


def test_a_file_that_cannot_be_read_is_a_finding(files):
    (files / "cut.xyz").write_text("\n".join((files / "good.xyz").read_text().splitlines()[:-3]))
    report = mq.lint({"cut": "cut.xyz", "good": "good.xyz"}, costs=False)
    (found,) = report.errors
    assert found.name == "unreadable" and "cut.xyz" in found.message and report.structures == 120
    (files / "nan.xyz").write_text(
        (files / "good.xyz").read_text().replace("energy=-309", "energy=nan -309", 1)
    )
    assert [f.name for f in mq.lint("nan.xyz", costs=False).errors] == ["unreadable"]


def test_what_a_reader_warns_of_is_a_finding(files):
    text = (files / "good.xyz").read_text()
    (files / "end.xyz").write_text(text)
    report = mq.lint("end.xyz", costs=False)
    assert "reader-warnings" not in [f.name for f in report.findings]


def test_wanted_dimers_are_allowed_by_name(files, capsys):
    assert main(["lint", "dimers.xyz", "--no-costs"]) == 1
    assert "close-atoms" in capsys.readouterr().out
    assert main(["lint", "dimers.xyz", "--no-costs", "--allow", "close-atoms"]) == 0
    assert "allowed: close-atoms" in capsys.readouterr().out
    report = mq.lint("dimers.xyz", allow=["close-atoms"], costs=False)
    assert report.passed and report.allowed == ("close-atoms",)
    with pytest.raises(DataError, match=r"allow=\['close-atoms'\]"):
        mq.read_extxyz("dimers.xyz")
    data = mq.read_extxyz("dimers.xyz", allow="close-atoms")
    assert data.allow == data[:3].allow == (data + data).allow == ("close-atoms",)
    assert mq.lint(data, costs=False).passed


def test_wanted_dimers_in_a_run_file(files):
    run = {
        "data": {
            "extxyz": {"path": "dimers.xyz", "allow": ["close-atoms"], "split": {"train": 8, "valid": 4}}
        },
        "backbone": {"EGNN": {"channels": 4, "layers": 1}},
        "predict": ["energy"],
        "train": {"epochs": 1, "logging": {"progress": False}},
    }
    assert mq.run(run).history
    run["data"]["extxyz"].pop("allow")
    with pytest.raises(DataError, match="close-atoms"):
        mq.run(run)
    run["data"]["extxyz"]["allow"] = ["close-atom"]
    with pytest.raises(ConfigError, match="did you mean 'close-atoms'"):
        mq.run(run)


def test_coincident_atoms_have_a_name_of_their_own():
    frames = [Atoms("H2", [[0, 0, 0], [0, 0, d]], info={"energy": -1.0 * d}) for d in (0.05, 0.7, 0.8, 0.9)]
    with pytest.raises(DataError, match="wanted every atom once"):
        mq.from_atoms(frames, allow="close-atoms")
    data = mq.from_atoms(frames, allow=["close-atoms", "coincident-atoms"])
    assert len(data) == 4
    bare = mq.Dataset(list(data))
    assert [f.name for f in mq.lint(bare, costs=False).errors] == ["coincident-atoms"]


def test_reader_warnings_are_allowed_by_name():
    frames = [Atoms("H2", [[0, 0, 0], [0, 0, 0.7 + 0.01 * k]], info={"energy": -31.0}) for k in range(3)]
    for atoms in frames:
        atoms.set_array("forces", 40.0 * (atoms.positions - atoms.positions.mean(0)) / 0.35)
    with pytest.warns(DataWarning, match="root mean square"):
        mq.from_atoms(frames)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mq.from_atoms(frames, allow="force-scale")


def test_unknown_names_say_the_nearest_one():
    for call in (lambda: mq.lint([], allow=["close-atom"]), lambda: checked_allow("close-atom")):
        with pytest.raises(ConfigError, match="did you mean 'close-atoms'"):
            call()
    with pytest.raises(ConfigError, match="no heuristic"):
        mq.Dataset([mq.Graph.single([[0, 0, 0]], ["H"])], allow=["?"])
    with pytest.raises(DataError, match="no parts"):
        mq.lint({})


def test_findings_of_a_report():
    one = Finding(name="net-force", severity="error", message="<b>", origins=("a.xyz, frame 1", "b"), count=4)
    note = Finding(name="duplicates", severity="info", message="twice")
    report = LintReport(findings=(one, note), structures=9)
    assert not report.passed and report.errors == (one,) and report.of("info") == (note,)
    assert "9 structures: 1 error, 1 note" in str(report) and "a.xyz, frame 1, b and 2 more" in str(report)
    assert "&lt;b&gt;" in report._repr_html_() and "<b></b>" not in report.to_html()
    with pytest.raises(DataError, match="error net-force"):
        report.raise_if_failed()
    LintReport(findings=(note,)).raise_if_failed()
    assert json.loads(report.to_json())["findings"][1]["name"] == "duplicates"


def test_every_name_of_the_checks_is_in_the_table():
    """The names in the code are those that can be overruled."""
    import re
    from pathlib import Path

    from molequi.lint import report

    code = "".join(p.read_text("utf-8") for p in Path(report.__file__).parent.glob("*.py"))
    used = set(re.findall(r'finding\(\s*"([a-z-]+)"', code)) | {"unreadable", "reader-warnings"}
    assert used | {"force-scale", "energy-scale"} == set(HEURISTICS)


def test_costs_are_those_of_the_sample():
    """Edges by hand: in ethanol within 5 Å every atom sees the eight others."""
    report = mq.lint(mq.shipped("ethanol_300K.xyz"), index=":20")
    assert report.costs["edges"].startswith(
        "72 per structure and 8.0 per atom within 5 Å, about 1,440 in all"
    )
    assert (
        set(report.costs) == {"edges", "epoch", "memory"} and "PaiNN of 64 channels" in report.costs["epoch"]
    )
    model = mq.Model(mq.EGNN(elements=["C", "H", "O"], channels=4, layers=1, cutoff=1.2), ["energy"])
    own = mq.lint(mq.shipped("ethanol_300K.xyz"), index=":20", model=model).costs
    assert "EGNN" in own["epoch"] and "within 1.2 Å" in own["edges"]
    assert not any(p.grad is not None for p in model.parameters())


def test_clouds_and_labels_without_energy():
    report = mq.lint(mq.shipped("shapes.npz"))
    assert report.passed and "plain points" in report.skipped["units and forces"] and not report.costs
    graph = mq.Graph.single([[0, 0, 0], [0, 0, 0.74]], ["H", "H"], targets={"energy": torch.tensor([-31.7])})
    assert mq.lint(graph, costs=False).passed
