"""`mq.view`: what is shown of each kind of input, to scale; pages that work without network; pictures elsewhere."""

import importlib
import json
import shutil
import subprocess

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from matplotlib.quiver import Quiver
from nbclient import NotebookClient

import molequi as mq
from molequi.errors import ConfigError, DataError, MissingPackageError

WATER = [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]
FORCES = [[3.0, 0, 0], [0, 4.0, 0], [0, 0, 0]]
module = importlib.import_module("molequi.view.view")


def water(**results):
    return mq.Graph.single(WATER, ["O", "H", "H"], targets={k: torch.tensor(v) for k, v in results.items()})


def test_numbers_and_vectors_are_sorted_by_what_they_are():
    view = mq.view(water(energy=[-1.5], forces=FORCES, dipole=[[0.0, 3.0, 4.0]], charges=[-0.8, 0.4, 0.4]))
    scene = view.scene
    assert {**scene.scalars} == {"energy": np.array([-1.5])}
    assert [*scene.node_scalars] == ["charges"] and [*scene.vectors] == ["forces", "dipole"]
    # The longest force, 4 eV/Å, has 2 Å; the dipole of 5 e Å too.
    assert scene.scale == {"forces": 0.5, "dipole": 0.4}
    assert scene.arrows == ("forces",) and scene.color is None
    assert scene.caption == "1 structure; arrows: forces, 1 Å is 2 eV/Å"
    assert scene.title == "forces, 1 Å is 2 eV/Å" and mq.view(water()).scene.title == "1 structure"
    starts, vectors = scene.arrow("dipole", 0)
    np.testing.assert_allclose(starts, np.mean(WATER, axis=0)[None])
    np.testing.assert_allclose(vectors, [[0, 1.2, 1.6]])


def test_values_replace_those_of_the_structures():
    data = mq.Dataset([water(forces=FORCES)] * 2)
    values = [{"forces": -np.array(FORCES), "site": np.array(["b", "a", "a"])}] * 2
    scene = mq.view(data, values, color="site").scene
    np.testing.assert_array_equal(scene.vectors["forces"][1], -np.array(FORCES))
    assert scene.classes == {"site": ("a", "b")} and scene.node_scalars["site"][0].tolist() == [1, 0, 0]
    assert scene.caption.endswith("colors: site (0 a, 1 b)")


def test_predictions_of_a_model_are_shown():
    model = mq.Model(mq.PaiNN(elements=["O", "H"], channels=4, layers=1), ["energy", "forces", "dipole"])
    found = mq.predict(model, [water()], progress=False)
    scene = mq.view(water(), found, arrows=["dipole", "forces"]).scene
    np.testing.assert_allclose(scene.vectors["forces"][0], found[0]["forces"])
    np.testing.assert_allclose(scene.vectors["dipole"][0][0], found[0]["dipole"])
    assert scene.arrows == ("dipole", "forces")


def test_every_kind_of_input(tmp_path):
    atoms = [Atoms("OH2", np.array(WATER) + k, info={"step": k}) for k in range(5)]
    for k, one in enumerate(atoms):
        one.calc = SinglePointCalculator(one, energy=float(k), forces=np.array(FORCES))
    write(tmp_path / "run.xyz", atoms)
    for given in (atoms, iter(atoms), tmp_path / "run.xyz", str(tmp_path / "run.xyz")):
        scene = mq.view(given).scene
        assert len(scene.frames) == 5 and scene.arrows == ("forces",)
        assert scene.scalars["energy"].tolist() == [0, 1, 2, 3, 4] == scene.scalars["step"].tolist()
    assert len(mq.view(atoms[0]).scene.frames) == len(mq.view(["CCO"]).scene.frames) == 1
    batch = mq.view(mq.collate([water(forces=FORCES), water(forces=FORCES)])).scene
    assert len(batch.frames) == 2 and batch.vectors["forces"][1].tolist() == FORCES
    crystal = bulk("NaCl", "rocksalt", a=5.6)
    (frame,) = mq.view(mq.from_atoms([crystal])).scene.frames
    np.testing.assert_allclose(frame.cell.array, crystal.cell.array)
    assert frame.pbc.all() and not mq.view(Atoms("H", cell=[9, 9, 9])).scene.frames[0].pbc.any()


def test_results_of_simulations(tmp_path):
    model = mq.Model(mq.PaiNN(elements=["O", "H"], channels=4, layers=1), ["energy", "forces"])
    run = mq.md(Atoms("OH2", WATER), model, steps=4, every=2, progress=False, out=tmp_path / "md")
    scene = mq.view(run).scene
    assert len(scene.frames) == 3
    np.testing.assert_allclose(scene.frames[-1].positions, run.atoms.positions, atol=1e-6)
    alone = mq.md(Atoms("OH2", WATER), model, steps=1, progress=False)
    np.testing.assert_allclose(mq.view(alone).scene.frames[0].positions, alone.atoms.positions)
    several = mq.view([run, alone]).scene
    assert len(several.frames) == 2
    np.testing.assert_allclose(several.frames[0].positions, run.atoms.positions)


def test_of_many_structures_some_are_shown():
    scene = mq.view([water(energy=[float(k)]) for k in range(11)], limit=3).scene
    assert scene.index == (0, 5, 10) and scene.scalars["energy"].tolist() == [0, 5, 10]
    assert scene.caption == "3 of 11 structures, evenly spaced"
    # One structure with huge forces does not make the arrows of the others invisible.
    many = [water(forces=FORCES), water(forces=FORCES), water(forces=(1000 * np.array(FORCES)).tolist())]
    assert mq.view(many).scene.scale == {"forces": 0.5}


def test_clouds_are_enlarged_and_flat_ones_lie_in_a_plane():
    square = mq.Graph.single([[0.0, 0], [0.1, 0], [0, 0.1], [0.1, 0.1]], targets={"push": torch.ones(4, 2)})
    scene = mq.view(square).scene
    np.testing.assert_allclose(
        scene.frames[0].positions, 6 * np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0], [0.1, 0.1, 0]])
    )
    assert scene.vectors["push"][0].tolist() == [[1, 1, 0]] * 4 and scene.arrows == ("push",)
    _, vectors = scene.arrow("push", 0)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 0.25 * 0.6)
    kind = mq.Quantity("part", per="node", classes=["leg", "seat"])
    cloud = mq.Graph.single(np.eye(3), targets={"part": torch.tensor([0.0, 1.0, 1.0])})
    scene = mq.view(mq.Dataset([cloud], quantities={"part": kind})).scene
    assert scene.color == "part" and scene.caption == "1 cloud; colors: part (0 leg, 1 seat)"
    assert mq.view(mq.Graph.single([[0.0, 0, 0]])).scene.caption == "1 cloud"


def test_what_is_not_known_has_no_arrow_and_no_color():
    scene = mq.view(
        water(forces=[[float("nan")] * 3, [0, 2.0, 0], [0, 0, 0]], charges=[float("nan"), 0, 0])
    ).scene
    np.testing.assert_array_equal(scene.arrow("forces", 0)[1], [[0, 0, 0], [0, 2, 0], [0, 0, 0]])
    assert "charges" not in scene.node_scalars
    some = mq.view([Atoms("H", info={"a": 1.0}), Atoms("H", info={"a": 2.0, "b": 1.0})]).scene
    assert [*some.scalars] == ["a"]


@pytest.mark.parametrize(
    "options, kind, message",
    [
        (
            {"arrows": "force"},
            DataError,
            r"view\(arrows='force'\): no such vectors.*'forces'.*there are forces",
        ),
        (
            {"color": "charge"},
            DataError,
            r"view\(color='charge'\): no such numbers of the atoms.*there are none",
        ),
        ({"limit": 0}, ConfigError, r"view\(limit=0\): wanted the largest number of structures, 1 or more"),
        ({"values": [{}, {}]}, DataError, "2 values for 1 structures; wanted a mapping for each structure"),
        ({"values": 3.0}, DataError, r"view\(values=float\): wanted what mq.predict returns"),
        ({"html": "page.txt"}, ConfigError, "page.txt: wanted a name that ends in .html"),
    ],
)
def test_messages(options, kind, message):
    with pytest.raises(kind, match=message):
        mq.view(water(forces=FORCES), **options)


def test_messages_about_structures(tmp_path):
    with pytest.raises(DataError, match=r"none\.xyz: no such file"):
        mq.view(tmp_path / "none.xyz")
    (tmp_path / "bad.cif").write_text("nothing")
    with pytest.raises(DataError, match=r"bad\.cif: ase\.io cannot read it"):
        mq.view(tmp_path / "bad.cif")
    with pytest.raises(DataError, match="4 dimensions; wanted 3 or fewer"):
        mq.view(mq.Graph.single(torch.eye(4)))
    with pytest.raises(DataError, match="wanted a Dataset, a Graph"):
        mq.view(3)
    with pytest.raises(mq.errors.UnknownKeywordError, match="did you mean 'arrows'"):
        mq.view(water(), arrow="forces")


def test_without_chemiscope_there_is_a_picture_and_a_word(monkeypatch, capsys, tmp_path):
    for where in ("molequi.view.view", "molequi.util.optional"):
        monkeypatch.setattr(importlib.import_module(where), "find_spec", lambda name: None)
    monkeypatch.setattr(module, "_said", [])
    view = mq.view(water(forces=FORCES))
    assert view._repr_mimebundle_().keys() == {"text/plain", "image/png"}
    assert capsys.readouterr().out == "a picture; for interactive views: pip install 'molequi[view]'\n"
    view._repr_mimebundle_()
    assert capsys.readouterr().out == ""  # said once
    for what in (lambda: view.widget, lambda: view.save(tmp_path / "a.html")):
        with pytest.raises(MissingPackageError, match=r"needs chemiscope.*pip install 'molequi\[view\]'"):
            what()
    assert not (tmp_path / "a.html").exists()


def test_a_variable_makes_pictures(monkeypatch, capsys):
    monkeypatch.setenv("MOLEQUI_VIEW", "picture")
    assert mq.view(water())._repr_mimebundle_().keys() == {"text/plain", "image/png"}
    assert capsys.readouterr().out == ""


def test_the_picture_has_three_panels_arrows_and_colors(tmp_path):
    data = [water(forces=FORCES, charges=[0.1 * k, 0.0, 1.0]) for k in range(9)]
    figure = mq.view(data, color="charges").picture()
    assert [axis.get_title() for axis in figure.axes[:3]] == ["structure 0", "structure 4", "structure 8"]
    assert figure.axes[3].get_ylabel() == "charges (e)"  # the colour bar
    (arrows,) = [c for c in figure.axes[0].collections if isinstance(c, Quiver)]
    assert arrows.N == 3
    plain = mq.view(data[0], arrows=None).picture()
    assert [text.get_text() for text in plain.legends[0].get_texts()] == ["O", "H"]
    for name in ("a.png", "a.svg", "a.pdf"):
        assert mq.view(data).save(tmp_path / name).stat().st_size > 1000


def test_the_data_set_of_the_widget(tmp_path):
    pytest.importorskip("chemiscope")
    crystal = bulk("NaCl", "rocksalt", a=5.6)
    crystal.calc = SinglePointCalculator(crystal, forces=[[0.0, 0, 0.01], [0.0, 0, -2.0]])
    saved = json.loads(
        mq.view([crystal] * 2, [{"heat": np.array([1.0, 2.0])}] * 2, color="heat")
        .save(tmp_path / "a.json")
        .read_text()
    )
    first = saved["structures"][0]
    assert first["names"] == ["Na", "Cl"] and first["cell"] == crystal.cell.array.ravel().tolist()
    np.testing.assert_allclose([first["x"], first["y"], first["z"]], crystal.positions.T, atol=1e-4)
    arrows = first["shapes"]["forces"] if "shapes" in first else saved["shapes"]["forces"]
    assert (
        arrows["parameters"]["atom"][1]["vector"] == [0, 0, -2.0] and len(arrows["parameters"]["atom"]) == 4
    )
    assert arrows["parameters"]["atom"][0]["headLength"] == pytest.approx(0.005)  # half of the arrow
    assert saved["properties"]["heat"] == {"target": "atom", "values": [1.0, 2.0] * 2}
    settings = saved["settings"]["structure"][0]
    assert settings["color"]["property"] == "heat" and (
        settings["color"]["min"],
        settings["color"]["max"],
    ) == (1, 2)
    assert settings["unitCell"] and settings["shape"] == ["forces"] and settings["keepOrientation"]


@pytest.mark.filterwarnings("default")  # of the kernel's own packages
def test_a_notebook_shows_the_widget_and_keeps_a_picture(tmp_path):
    pytest.importorskip("chemiscope")
    cells = ["import molequi as mq", f"mq.view(mq.Graph.single({WATER}, ['O', 'H', 'H']))"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=100, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (output,) = notebook.cells[1].outputs
    assert {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"} <= output.data.keys()
    states = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values()
    (state,) = [s["state"] for s in states if "value" in s["state"]]
    assert json.loads(state["value"])["structures"][0]["size"] == 3


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome, to open the page")
def test_a_page_works_without_network_and_shows_names_from_files_as_text(tmp_path):
    pytest.importorskip("chemiscope")
    name = "</script><script>document.body.dataset.state='broken'</script>"
    atoms = Atoms("OH2", WATER, info={name: 1.5})
    page = mq.view(atoms, {"forces": FORCES}, html=tmp_path / "view.html") and tmp_path / "view.html"
    body = browse(page, "--dump-dom").stdout
    assert 'data-state="ready"' in body[body.rindex("<body") :][:100]
    assert "<title>1 structure; arrows: forces, 1 Å is 2 eV/Å</title>" in body
    assert "src=" not in page.read_text("utf-8").split("<script>")[0]  # nothing is loaded
    browse(page, f"--screenshot={tmp_path / 'page.png'}")
    red, green, blue = plt.imread(tmp_path / "page.png")[:, :, :3].transpose(2, 0, 1)
    assert ((red > 0.7) & (green < 0.2) & (blue < 0.2)).sum() > 300  # the oxygen
    assert ((blue > 0.4) & (red < 0.25) & (green > 0.25)).sum() > 50  # an arrow


def browse(page, *options):
    """Open a page in a browser that finds no other host."""
    return subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--enable-unsafe-swiftshader",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--virtual-time-budget=5000",
            "--window-size=500,500",
            *options,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
