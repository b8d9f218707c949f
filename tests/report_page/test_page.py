"""The report page of a run: what stands in it, and that it needs no network."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.io import write as ase_write

import molequi as mq
from molequi import EGNN, Dataset, Ensemble, Graph, Model, Quantity
from molequi.cli import main
from molequi.errors import ConfigError, DataError
from molequi.inference.metrics import Error, Errors
from molequi.report_page.sample import columns, errors_of, sample
from molequi.report_page.words import findings
from molequi.training.history import read_history

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECTIONS = [
    "summary",
    "data",
    "errors",
    "parity",
    "learning",
    "groups",
    "worst",
    "calibration",
    "symmetry",
    "size",
    "configuration",
    "timing",
]


class Page(HTMLParser):
    """Sections, texts and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.first: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.section, self.open = "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action", "poster")]
        if tag == "section":
            self.section = found["id"]
            self.ids.append(self.section)
        if tag in ("p", "table", "ul"):
            self.open = tag == "p" and self.section not in self.first

    def handle_endtag(self, tag):
        if tag == "p":
            self.open = False
        if tag == "section":
            self.section = ""

    def handle_data(self, data):
        if self.open:
            self.first[self.section] = self.first.get(self.section, "") + data
        self.texts[self.section] = self.texts.get(self.section, "") + data + " "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs over small files of water: one of a single model, one of an ensemble."""
    path = tmp_path_factory.mktemp("report")
    frames = []
    for k in range(24):
        atoms = molecule("H2O")
        atoms.rattle(0.05, seed=k)
        atoms.info |= {
            "energy": -10 + np.linalg.norm(atoms.positions[1]),
            "config_type": "warm" if k % 3 else "<cold>",
        }
        atoms.info["temperature"] = 100.0 + k
        frames.append(atoms)
    ase_write(path / "water.xyz", frames[:20], format="extxyz")
    ase_write(path / "new.xyz", frames[20:], format="extxyz")
    (path / "single.yaml").write_text(
        f"data: {{extxyz: {{path: {path}/water.xyz, split: {{train: 14, valid: 6}}, seed: 3}}, test: {{extxyz: {{path: {path}/new.xyz}}}}}}\n"
        "backbone: {EGNN: {channels: 4, layers: 1, cutoff: 4.0}}\npredict: [energy, forces]\n"
        f"train: {{epochs: 6, loss: {{energy: 1}}, out: {path}/runs/single, logging: {{progress: false}}}}\n"
    )
    mq.run(path / "single.yaml")
    mq.run(path / "single.yaml", ["train.seed=[0,1]", f"train.out={path}/runs/two", "train.epochs=2"])
    return path


def page(path):
    return Page(path.read_text("utf-8"))


def test_a_run_writes_its_page_with_every_section(folder):
    for name in ("single", "two"):
        found = page(folder / "runs" / name / "report.html")
        assert found.ids == SECTIONS
        # Each section begins with one sentence that says what to look for.
        assert set(found.first) >= set(SECTIONS) and all(
            found.first[name].strip().endswith(".") for name in SECTIONS
        )


def test_the_page_fetches_nothing(folder):
    text = (folder / "runs" / "single" / "report.html").read_text("utf-8")
    found = Page(text)
    assert found.addresses and all(a.startswith(("data:image/png;base64,", "#")) for a in found.addresses)
    assert not {"script", "link", "iframe", "object", "embed"} & set(found.tags)
    assert "url(" not in text and "@import" not in text
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome, to open the page")
def test_the_page_in_a_browser(folder, tmp_path):
    """All pictures are drawn, nothing is fetched, and no text is wider than the page."""
    text = (folder / "runs" / "two" / "report.html").read_text("utf-8")
    probe = """<script>window.onload = () => { document.title = JSON.stringify({
        fetched: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
        pictures: [...document.images].map(i => i.complete && i.naturalWidth),
        sections: [...document.querySelectorAll("section")].filter(s => s.offsetHeight > 40).map(s => s.id),
        wide: document.documentElement.scrollWidth > window.innerWidth,
    }) }</script>"""

    def look(source):
        (tmp_path / "probe.html").write_text(source, "utf-8")
        out = subprocess.run(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                f"--user-data-dir={tmp_path / 'profile'}",
            ]
            + ["--window-size=1100,900", "--dump-dom", f"file://{tmp_path / 'probe.html'}"],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", out, re.DOTALL).group(1)))

    without = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)  # it forbids the script
    found = look(without.replace("</body>", probe + "</body>"))
    assert found["fetched"] == [] and found["sections"] == SECTIONS and not found["wide"]
    assert len(found["pictures"]) >= 3 and all(width > 300 for width in found["pictures"])
    other = '<img src="file:///nowhere.png">'
    control = look(without.replace("</body>", other + probe + "</body>"))
    assert control["fetched"] == ["file:///nowhere.png"] or 0 in control["pictures"]


def test_numbers_of_the_page_are_those_of_the_run(folder):
    run = folder / "runs" / "single"
    found = page(run / "report.html").texts
    errors = json.loads((run / "errors.json").read_text())
    row = next(r for r in errors["test"] if r["quantity"] == "energy_per_atom")
    assert f"{row['rmse'] * 1000:.4g}" in found["errors"] and "meV/atom" in found["errors"]
    assert "14" in found["data"] and "(train 14, valid 6; seed 3)" in found["data"]
    assert "The test data are separate" in found["data"] and "No structure is in two parts" in found["data"]
    assert "O(3): all rotations and reflections" in found["symmetry"]
    assert "A single model gives no uncertainty" in found["calibration"]
    assert "molequi curve" in found["size"] and "channels: 4" in found["configuration"]
    assert torch.__version__ in found["timing"]
    two = page(folder / "runs" / "two" / "report.html").texts
    assert "within 1 std" in two["calibration"] and "2 members" in two["timing"]


def energy_errors(train, valid, unit="eV"):
    def one(rmse):
        return Errors((Error("gap", "", unit, 10, rmse, rmse, 0.9),))

    return {"train": one(train), "valid": one(valid)}


def test_findings_do_not_contradict_each_other():
    """What is said about the length of a training fits to what is said about its errors."""
    flat = [{"valid_loss": v} for v in (5, 2, 1, 1, 1, 1)]
    falling = [{"valid_loss": v} for v in (5, 4, 3, 2, 1.5, 1)]

    def sentences(errors, history):
        return " ".join(found.text for found in findings(errors, history, None))

    under = sentences(energy_errors(1.0, 1.1), flat)
    assert "does not overfit" in under and "train longer or take a larger model" in under
    assert "A new training with more epochs can still reach a lower one" in under
    assert "long enough" not in under and "will not help much." not in under.split("validations")[1]
    over = sentences(energy_errors(1.0, 4.0), flat)
    assert "4.0 times the training error: the model overfits" in over
    assert "more epochs alone will not help" in over and "longer" not in over
    unfinished = sentences(energy_errors(1.0, 2.0), falling)
    assert "still fell by 50% in the last 2 of 6 validations: train longer" in unfinished


def test_quantities_that_agree_share_one_sentence():
    rows = tuple(Error(name, "", "eV", 10, 0.1, 0.1, 0.99) for name in ("gap", "homo"))
    found = findings({"train": Errors(rows), "valid": Errors(rows)}, [], None)
    assert [f.text for f in found if f.text.startswith("gap, homo: the validation error")]


def test_all_tables_have_one_unit_for_a_quantity(folder):
    """The tables of groups and of the largest errors have the unit of the table of errors."""
    run = folder / "runs" / "single"
    units = {"energy": "meV/atom", "forces": "meV/Å"}
    largest = {}
    for row in (row for part in json.loads((run / "errors.json").read_text()).values() for row in part):
        name = row["quantity"].removesuffix("_per_atom")
        if row["quantity"] == "energy_per_atom" or name == "forces":
            largest[name] = max(largest.get(name, 0), row["rmse"])
    assert largest["energy"] < 1
    found = page(run / "report.html").texts
    assert f"MAE ({units['energy']})" in found["groups"] and f"RMSE ({units['energy']})" in found["worst"]
    assert "(eV/atom)" not in found["groups"] + found["worst"]
    model, test = (
        mq.load(run / "model.safetensors"),
        mq.read_extxyz(folder / "new.xyz", keys={"forces": None}),
    )
    by_hand = [
        abs(float(result["energy"]) - float(graph.targets["energy"])) / 3
        for graph, result in zip(test, mq.predict(model, test, progress=False))
    ]
    assert f"{max(by_hand) * 1000:.4g}" in found["worst"]


def test_the_title_is_no_word_of_its_own(folder):
    text = (folder / "runs" / "single" / "report.html").read_text("utf-8")
    title = re.search(r"<h1>(.*?)</h1>", text).group(1)
    assert title.startswith("Report: ") and title.lower().count("run ") <= 1 and "single" in title


def test_errors_by_column(folder):
    """Groups of a table are means over the structures of the group, computed here by hand."""
    run = folder / "runs" / "single"
    model = mq.load(run / "model.safetensors")
    test = mq.read_extxyz(folder / "new.xyz", keys={"forces": None})
    found = sample(model, test)
    made, left = columns(found, mq.read_extxyz(folder / "water.xyz", keys={"forces": None})[:14])
    assert [column.name for column in made] == ["config_type"] and left == ["temperature", "number of atoms"]
    kinds = made[0]
    assert list(kinds.labels) == ["<cold>", "warm"]
    one = errors_of(test.quantities["energy"], found)
    by_hand = [
        abs(float(result["energy"]) - float(graph.targets["energy"])) / 3
        for graph, result in zip(test, mq.predict(model, test, progress=False))
    ]
    assert np.allclose(one.absolute, by_hand) and (one.count == 1).all()
    cold = np.mean([e for e, kind in zip(by_hand, test.info["config_type"]) if kind == "<cold>"])
    text = page(run / "report.html").texts["groups"]
    assert f"{cold * 1000:.4g}" in text and "<cold>" in text  # it is escaped in the file
    assert "<cold>" not in (run / "report.html").read_text("utf-8")


def dataset(count, **info):
    energy = torch.zeros(1, dtype=torch.float64)
    graphs = [
        Graph.single(torch.eye(2, 3) * (k + 1), ["H", "H"], targets={"energy": energy}) for k in range(count)
    ]
    return Dataset(graphs, info=info)


class Stub:
    """A sample without a model."""

    def __init__(self, data):
        self.data = data


def test_columns_that_group_and_those_that_do_not():
    data = dataset(
        40,
        kind=["a", "b"] * 20,
        id=[f"x{k}" for k in range(40)],
        step=list(range(40)),
        same=[1] * 40,
        box=[[1, 2]] * 40,
        half=[None, "a"] * 20,
    )
    made, left = columns(Stub(data), data[:10])
    by_name = {column.name: column for column in made}
    assert set(by_name) == {"kind", "step", "half"} and left == ["id", "same", "box", "number of atoms"]
    assert list(by_name["half"].labels) == ["a", "not given"]
    steps = by_name["step"]
    assert list(steps.labels) == ["0 to 7", "8 to 15", "16 to 23", "24 to 31", "32 to 39"]
    assert np.bincount(steps.groups).tolist() == [8] * 5 and steps.trained.tolist() == [8, 2, 0, 0, 0]
    names = [f"c{min(k, 15)}" for k in range(40)]
    (rare, *_), _ = columns(Stub(dataset(40, name=names)), dataset(40, name=names))
    assert rare.labels[-1] == "4 others" and len(rare.labels) == 13 and rare.trained.sum() == 40


def test_scaffolds_group_molecules():
    data = dataset(4, smiles=["CCO", "c1ccccc1O", "c1ccccc1N", "CC"])
    made, left = columns(Stub(data), data)
    assert [(c.name, list(c.labels)) for c in made] == [("scaffold", ["c1ccccc1", "no ring"])]
    assert "smiles" in left
    numbers = dataset(40, smiles=["CCO"] * 40, molecule=list(range(40)), conformer=[0, 1] * 20)
    made, left = columns(Stub(numbers), numbers)
    assert made == [] and {"molecule", "conformer"} <= set(left)
    made, _ = columns(Stub(dataset(2, smiles=["no", "smiles"])), data)
    assert made == []


def test_what_is_evaluated_is_capped(monkeypatch, folder):
    import molequi.report_page.sample as module

    model = mq.load(folder / "runs" / "single" / "model.safetensors")
    data = mq.read_extxyz(folder / "water.xyz", keys={"forces": None})
    monkeypatch.setattr(module, "STRUCTURES", 7)
    assert len(sample(model, data).data) == 7
    monkeypatch.setattr(module, "ATOMS", 12)
    assert len(sample(model, data).data) == 4 and sample(model, data).total == 20
    monkeypatch.setattr(module, "ATOMS", 1)
    assert len(sample(model, data).data) == 1


def test_the_command_writes_the_page_again(folder, capsys, monkeypatch, tmp_path):
    run = folder / "runs" / "single"
    before = (run / "report.html").read_text("utf-8")
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0 and capsys.readouterr().out.strip() == str(run / "report.html")
    stamp = re.compile(r" on \d{4}-[^<]*")
    again = (run / "report.html").read_text("utf-8")
    assert page(run / "report.html").ids == SECTIONS
    assert stamp.sub("", Page(again).texts["errors"]) == Page(before).texts["errors"]
    out = tmp_path / "sub" / "other.html"
    assert main(["report", str(run), "--data", f"hot={folder / 'new.xyz'}", "--out", str(out)]) == 0
    assert "hot" in page(out).texts["errors"] and "train" not in page(out).texts["errors"]
    capsys.readouterr()
    assert main(["report", str(run), "--out", str(out)]) == 2  # that of the run itself is written anew
    assert f"--out {out}: this file exists" in capsys.readouterr().err


def in_alphabetical_order(value):
    if isinstance(value, dict):
        return {name: in_alphabetical_order(value[name]) for name in sorted(value)}
    return value


def test_a_page_that_is_written_again_has_the_same_split(folder, tmp_path):
    """A split depends on the order of its parts: "test" before "train" would draw other structures."""
    run = tmp_path / "three"
    text = (folder / "single.yaml").read_text().split("\n", 1)[1]
    split = "split: {train: 12, valid: 4, test: 4}, seed: 3"
    (tmp_path / "three.yaml").write_text(f"data: {{extxyz: {{path: {folder}/water.xyz, {split}}}}}\n{text}")
    mq.run(tmp_path / "three.yaml", [f"train.out={run}", "train.epochs=1"])
    sections = ("data", "errors", "groups", "worst", "configuration")

    def texts():
        found = page(run / "report.html").texts
        return {name: found[name] for name in sections}

    before = texts()
    mq.report(run)
    assert texts() == before
    # Files of earlier versions have sorted names; config.yaml beside them has not.
    model = mq.load(run / "model.safetensors")
    assert list(model.metadata["run"]["data"]["extxyz"]["split"]) == ["train", "valid", "test"]
    mq.save(model, run / "model.safetensors", metadata=in_alphabetical_order(model.metadata))
    mq.report(run)
    assert {name: texts()[name] for name in ("data", "groups", "worst")} == {
        name: before[name] for name in ("data", "groups", "worst")
    }
    (run / "config.yaml").unlink()
    mq.report(run)
    assert texts()["data"] != before["data"]  # the control: the order matters


def test_pages_of_fit_from_python(folder, tmp_path):
    data = mq.read_extxyz(folder / "water.xyz", keys={"forces": None})
    train, valid = data.split([14, 6])
    model = Model(EGNN(elements=["H", "O"], channels=4, layers=1), ["energy"])
    result = mq.fit(model, train, valid, epochs=1, logging={"progress": False})
    path = mq.report(result, {"train": train, "valid": valid}, out=tmp_path / "a.html")
    assert page(path).ids == SECTIONS and "handed over from Python" in page(path).texts["data"]
    with pytest.raises(ConfigError, match="out='report.html'"):
        mq.report(result, {"valid": valid})
    with pytest.raises(ConfigError, match="was made by fit.*give them: mq.report"):
        mq.report(result, out=tmp_path / "b.html")
    with pytest.raises(DataError, match="no part of the data .* has labels of what the model predicts"):
        bare = Dataset([g.replace(targets={}) for g in valid])
        mq.report(result, {"valid": bare}, out=tmp_path / "b.html")


@pytest.mark.parametrize(
    "words,message",
    [
        (["report", "runs/nowhere"], "runs/nowhere: no such folder; wanted the folder of a run"),
        (["report", "runs"], "there is no model.safetensors in it; .*there are runs/single, runs/two"),
        (["report", "runs/single", "--data", "test=no.xyz"], "--data test=no.xyz: no such file: no.xyz"),
        (["report", "runs/single", "--data", "new.xyz", "new.xyz"], "the part 'data' is given twice"),
    ],
)
def test_mistakes(folder, monkeypatch, capsys, words, message):
    monkeypatch.chdir(folder)
    assert main(words) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_training_does_not_end_with_an_error_of_its_page(folder, monkeypatch, tmp_path):
    import molequi.report_page

    def broken(*arguments):
        raise RuntimeError("no disk")

    monkeypatch.setattr(molequi.report_page, "write_page", broken)
    with pytest.warns(match="the model is trained and saved, but .*RuntimeError: no disk.*molequi report"):
        result = mq.run(folder / "single.yaml", [f"train.out={tmp_path}/run", "train.epochs=1"])
    assert (result.out / "model.safetensors").exists() and (result.out / "parity.png").exists()


def test_classes_and_a_broken_symmetry(tmp_path):
    from dataclasses import replace

    kind = Quantity("kind", classes=("near", "far"))
    graphs = [
        Graph.single(
            torch.tensor([[0.0, 0, 0], [0, 0, 1.0 + k % 2]]),
            ["H", "H"],
            targets={"kind": torch.tensor([float(k % 2)], dtype=torch.float64)},
        )
        for k in range(16)
    ]
    with pytest.warns(match="occur in more than one part"):
        data = Dataset(graphs, quantities={"kind": kind}).split(
            {"train": list(range(8)), "valid": list(range(8, 16))}
        )
    model = Model(EGNN(elements=["H"], channels=4, layers=1, cutoff=4.0), [kind])
    result = mq.fit(model, **data, epochs=30, lr=0.05, logging={"progress": False})
    report = replace(result.symmetry_report, failed=["rotation"])
    model.metadata = {**model.metadata, "symmetry_report": report.to_dict()}
    found = page(mq.report(result, data, out=tmp_path / "a.html")).texts
    assert "classified correctly" in found["summary"] and "right for 50.0%" in found["summary"]
    assert "The symmetry is broken: rotation" in found["summary"]
    assert "This does not hold: the outputs rotate with the structure." in found["symmetry"]
    assert "confidence" in found["calibration"] and "near 4" in found["data"]
    assert "structures are in two parts" in found["data"]


def test_history_of_a_damaged_file(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,loss\n1,abc\n")
    with pytest.raises(DataError, match="metrics.csv: not a table of metrics"):
        read_history(tmp_path / "metrics.csv")


def test_an_ensemble_whose_members_agree(folder, tmp_path):
    model = mq.load(folder / "runs" / "single" / "model.safetensors")
    twins = Ensemble([model, model])
    twins.metadata = dict(model.metadata)
    mq.save(twins, tmp_path / "model.safetensors", metadata=model.metadata)
    path = mq.report(tmp_path)
    assert "all members of the ensemble predict the same" in page(path).texts["calibration"]
