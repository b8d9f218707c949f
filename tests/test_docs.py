"""The examples in docstrings run, and the reference lists every public name."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import molequi

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(info.name for info in pkgutil.walk_packages(molequi.__path__, "molequi."))


@pytest.mark.parametrize("name", ["molequi", *MODULES])
def test_examples_of_docstrings_run(name, tmp_path, monkeypatch):
    """Each example starts in a folder that holds the shipped data and nothing else."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    report: list[str] = []
    for test in finder.find(importlib.import_module(name)):
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


def test_the_reference_lists_every_public_name():
    """The tables of other modules are written by docs/conf.py from `__all__`."""
    text = (ROOT / "docs/reference/index.md").read_text("utf-8")
    listed = re.findall(r"^   (\w+)$", text, flags=re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == {*molequi.__all__, *molequi.models.BACKBONES}


def test_links_between_pages_and_files_exist():
    """What a page includes is there. Links between pages are checked by Sphinx."""
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text("utf-8")
        for target in re.findall(r"```\{(?:literalinclude|include|image|figure)\} (\S+)", text):
            assert (page.parent / target).resolve().is_file(), f"{page}: {target}"


def test_examples_of_pages_are_executed():
    """Sphinx runs code cells. Code of another kind would stand on a page without being tested."""
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for language in re.findall(r"^ *```([^\s`]+)", page.read_text("utf-8"), flags=re.MULTILINE):
            assert language in (
                "{code-cell}",
                "{toctree}",
                "{eval-rst}",
                "{literalinclude}",
                "{include}",
                "{image}",
                "sh",
            ), f"{page}: a block of {language}; wanted a {{code-cell}}, which `make docs` executes"
        installing = re.findall(r"```sh\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)
        for line in "".join(installing).splitlines():
            assert line.startswith(("make ", "pip ", ".venv/bin/pre-commit")), (
                f"{page}: {line}; wanted a {{code-cell}} with %%bash"
            )
