"""The README runs as written, is short, and names files that exist. Longer examples are pages of docs/, which `make docs` executes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An empty folder, as after an installation. The second script uses the model of the first."""
    return tmp_path_factory.mktemp("empty")


def test_there_is_a_short_script_for_each_user():
    assert len(SCRIPTS) == 3
    for script in SCRIPTS:
        assert len(script.strip().splitlines()) <= 12, f"a script of ten lines has grown:\n{script}"


@pytest.mark.parametrize("script", SCRIPTS, ids=["train", "simulate", "explore"])
def test_scripts_run_as_written(script, folder):
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "default"},
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    assert done.stdout.strip(), f"prints nothing:\n{script}"


def test_it_is_short():
    assert len(TEXT.split()) <= 700


def test_files_that_it_names_exist():
    named = re.findall(r"(?:data|docs|notebooks|molequi|tests)/[\w./-]*\w", TEXT)
    linked = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", TEXT)]
    assert len(linked) >= 8
    for name in {*named, *linked}:
        assert (ROOT / name).exists(), f"README names {name}, which is not there"
