"""What the files around the package say agrees with each other."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import molequi

from . import lower_bounds

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
# What the first page of the repository shows, beside names that begin with a dot.
TOP_LEVEL = {
    *("README.md", "CHANGELOG.md", "LICENSE", "CITATION.cff"),
    *("pyproject.toml", "Makefile", "train.py"),
    *("molequi", "data", "docs", "notebooks", "tests"),
}


def test_each_dependency_has_one_lower_bound_and_torch_is_tested_at_or_above_it():
    found = lower_bounds.bounds()
    assert set(found) >= {Requirement(line).name for line in PROJECT["dependencies"]}
    tested = Requirement((ROOT / ".constraints.txt").read_text("utf-8").strip())
    assert tested.name == "torch" and next(iter(tested.specifier)).version >= found["torch"]
    lines = lower_bounds.constraints().splitlines()
    assert lines[0] == str(tested) and f"numpy=={found['numpy']}" in lines


def test_a_dependency_without_a_lower_bound_is_refused(tmp_path, monkeypatch):
    text = (ROOT / "pyproject.toml").read_text("utf-8").replace('"numpy>=1.26"', '"numpy"')
    (tmp_path / "pyproject.toml").write_text(text, "utf-8")
    monkeypatch.setattr(lower_bounds, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="'numpy' has no single lower bound"):
        lower_bounds.bounds()


def test_tools_of_pre_commit_are_those_of_the_extra_dev():
    """The hooks run the installed tools; the extra pins one version of each."""
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    assert set(re.findall(r"entry: (\w+)", hooks)) == {"ruff", "mypy"}
    pinned = {Requirement(line).name for line in PROJECT["optional-dependencies"]["dev"] if "==" in line}
    assert pinned == {"ruff", "mypy"}


def test_the_version_is_the_same_everywhere():
    assert f"\nversion: {molequi.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"## {molequi.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def top_level(folder: Path) -> set[str]:
    """Names at the top of a clone that git tracks, without those that begin with a dot."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=folder, capture_output=True, text=True, check=True)
    names = {name.partition("/")[0] for name in listed.stdout.split("\0")}
    return {name for name in names if name and not name.startswith(".")}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git lists the files, and this is not a clone")
def test_the_top_level_has_no_other_files():
    assert top_level(ROOT) == TOP_LEVEL


def test_another_file_at_the_top_level_is_seen(tmp_path):
    for name in ("setup.py", "molequi/setup.py", ".ci/run", "untracked.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for words in (["init", "--quiet"], ["add", "setup.py", "molequi", ".ci"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    assert top_level(tmp_path) - TOP_LEVEL == {"setup.py"}
