"""The README runs as written: its scripts in order, its run file, its commands."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A copy of what a user has beside him after cloning."""
    place = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "data", place / "data")
    shutil.copy(ROOT / "train.py", place)
    return place


def call(command: list[str], folder: Path) -> str:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONWARNINGS": "default",
    }
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{' '.join(command)[:300]}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_scripts_and_commands_run_as_written(folder):
    kinds = [kind for kind, _ in BLOCKS]
    assert kinds.count("python") >= 4 and kinds.count("yaml") == 1, "the README lost its scripts"
    ran = 0
    for kind, text in BLOCKS:
        if kind == "python":
            longest = 25 if "class " in text else 12  # layers of one's own are no script
            assert len(text.strip().splitlines()) <= longest, f"a script of ten lines has grown:\n{text}"
            assert call([sys.executable, "-c", text], folder).strip(), f"prints nothing:\n{text}"
            ran += 1
        elif kind == "yaml":
            (folder / "run.yaml").write_text(text, encoding="utf-8")
        elif kind == "sh" and "make " not in text:
            for line in text.splitlines():
                call(
                    [
                        sys.executable if word == "python" else word
                        for word in shlex.split(line, comments=True)
                    ],
                    folder,
                )
                ran += 1
    assert ran >= 7
    assert (folder / "runs/run/parity.png").stat().st_size > 10_000 and (folder / "predicted.xyz").is_file()


TRAINED = """
torch.manual_seed(0)
model = mq.Model(SchNet(elements=data.elements), ["energy", "forces"])
result = mq.fit(model, data[:2], data[2:], epochs=1, batch_size=1, out="runs/own")
loaded = mq.load("runs/own/model.safetensors", backbones={"SchNet": SchNet})
before, after = mq.predict(result.model, data), mq.predict(loaded, data)
for a, b in zip(before, after):
    for name in ("energy", "forces"):
        assert (a[name] == b[name]).all(), name
print(len(after), "predictions are the same")
"""


def test_the_backbone_of_your_own_is_trained_saved_and_loaded(folder):
    """Layers of torch_geometric have one weight under two names."""
    (own,) = [text for kind, text in BLOCKS if kind == "python" and "(mq.Backbone)" in text]
    assert "3 predictions are the same" in call([sys.executable, "-c", own + TRAINED], folder)


def test_files_that_the_readme_names_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"(?:data|notebooks|molequi|tests)/[\w./]*\w", text)):
        assert (ROOT / name).exists(), f"README names {name}, which is not there"
