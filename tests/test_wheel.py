"""What a user of a wheel has: commands, shipped data and recipes in an empty folder, without the repository."""

import os
import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from molequi.datasets import SHIPPED

from . import wheel

ROOT = Path(__file__).resolve().parent.parent
RINGS = [
    "c1ccccc1",
    "C1CCCCC1",
    "c1ccncc1",
    "C1CCOC1",
    "c1ccoc1",
    "c1ccsc1",
    "C1CCCC1",
    "C1CCNCC1",
    "C1CC1",
    "C1CCC1",
]


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The Python of an environment that has the wheel."""
    return wheel.install(tmp_path_factory.mktemp("wheel"))


def run(folder: Path, *words: object) -> str:
    """What a program prints that knows nothing of the repository."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MOLEQUI_DATA")}
    done = subprocess.run(
        [*map(str, words)], cwd=folder, capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


# One process for all, since most of the time is that of imports.
COMMANDS = """
import sys
from molequi.cli import main

quick = ["train.epochs=1", "train.max_minutes=null", "train.logging.progress=false"]
small = ["backbone.PaiNN.channels=8", "backbone.PaiNN.layers=1"]
for words in (
    ["train", "demo", "data.extxyz.index=::10", "data.test.extxyz.index=::40", "backbone.NequIP.channels=4", *quick],
    ["train", "mine.csv", "--target", "logS", *quick, *small],
    ["predict", "runs/mine/model.safetensors", "mine.csv", "predicted.csv"],
    ["train", "bn.xyz", "data.extxyz.index=::4", "backbone.GauntACE.channels=4", *quick],
    ["train", "shapes", *quick, *small],
):
    status = main(words)
    if status:
        sys.exit(status)
"""


def test_the_demo_and_the_three_kinds_of_data_in_an_empty_folder(python, tmp_path):
    origin = run(tmp_path, python, "-c", "import molequi; print(molequi.__file__)").strip()
    assert origin.startswith(str(python.parent.parent)), "the environment has another molequi"
    assert "bn.xyz" in run(tmp_path, python.parent / "molequi", "data")
    run(tmp_path, python.parent / "molequi", "data", "bn.xyz", "--out", ".")
    rows = [f"{n}{r};{'C' * n}{ring};{n + r / 10}" for r, ring in enumerate(RINGS) for n in (1, 2, 3)]
    (tmp_path / "mine.csv").write_text("\n".join(["Compound ID;SMILES;logS", *rows]))
    random = np.random.default_rng(0)
    for kind, flat in (("ball", 1.0), ("disc", 0.05)):
        (tmp_path / "shapes" / kind).mkdir(parents=True)
        for k in range(8):
            np.save(tmp_path / "shapes" / kind / f"{k}.npy", random.normal(size=(20, 3)) * [1, 1, flat])
    out = run(tmp_path, python, "-c", COMMANDS)
    for words in (
        r"ensemble +3 models",
        r"target +energy, forces, stress",
        r"split .* of each class of shape",
    ):
        assert re.search(words, out), out
    models = sorted(path.parent.name for path in tmp_path.glob("runs/*/model.safetensors"))
    assert models == ["bn", "demo", "mine", "shapes"]
    assert "logS_std" in (tmp_path / "predicted.csv").read_text().splitlines()[0]


def test_the_wheel_holds_the_shipped_data_and_the_recipes(python):
    package = next(python.parent.parent.glob("lib/python*/site-packages/molequi"))
    assert {path.name for path in (package / "shipped").iterdir()} == {*SHIPPED, "README.md", "SHA256SUMS"}
    for path in (package / "shipped").iterdir():
        assert path.read_bytes() == (ROOT / "data" / path.name).read_bytes()
    recipes = {path.name for path in ROOT.glob("molequi/config/recipes/*")}
    assert {path.name for path in package.glob("config/recipes/*")} == recipes


def files(folder: Path) -> set[str]:
    """The files below a folder, without hidden ones and compiled modules."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {path.as_posix() for path in paths if not path.name.startswith(".") and path.suffix != ".pyc"}


def test_a_wheel_of_the_sdist_is_that_of_the_clone_and_has_every_file(tmp_path):
    source = wheel.copy(tmp_path)
    sdist = wheel.build_sdist(source, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    parts = {f"{name}/{path}" for name in ("molequi", "data") for path in files(ROOT / name)}
    parts.discard("data/molecules.jsonl")  # make_molecules.py leaves it, and git ignores it
    missing = {*parts, "pyproject.toml", "README.md", "LICENSE", ".constraints.txt"} - inside
    assert not missing, "not in the sdist"
    shipped = {*SHIPPED, "README.md", "SHA256SUMS"}
    wanted = {path for path in parts if path.startswith("molequi/")} | {
        f"molequi/shipped/{n}" for n in shipped
    }
    contents = []
    for kind, origin in (("clone", source), ("of_sdist", sdist)):
        with zipfile.ZipFile(wheel.build(origin, tmp_path / kind)) as archive:
            found = {name: archive.read(name) for name in archive.namelist()}
        packed = {name for name in found if ".dist-info/" not in name}
        assert packed == wanted, f"{kind}: too few or too many: {sorted(packed ^ wanted)}"
        contents.append({name: data for name, data in found.items() if not name.endswith("/RECORD")})
    assert contents[0] == contents[1]


def test_an_editable_install_reads_the_data_of_the_clone(tmp_path):
    """Only where the files are: the rest of an editable install is that of setuptools."""
    source = wheel.copy(tmp_path)
    link = wheel.build_editable(source, tmp_path / "editable")
    with zipfile.ZipFile(link) as archive:
        assert not [name for name in archive.namelist() if name.startswith(("molequi/", "data/"))]
    python = wheel.environment(link, tmp_path / "environment")
    words = "import molequi as mq; print(mq.__file__, mq.shipped('bn.xyz'))"
    found = run(tmp_path, python, "-c", words).split()
    assert found == [str(source / "molequi/__init__.py"), str(source / "data/bn.xyz")]
