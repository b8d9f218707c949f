"""What a user of a wheel has: commands, shipped data and recipes in an empty folder, without the repository."""

import os
import re
import subprocess
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
