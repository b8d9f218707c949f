"""What an editor or a notebook offers after `mq.`: the public names, with their types and arguments."""

import ast
from pathlib import Path

import pytest

import molequi as mq
from molequi.models import BACKBONES

PUBLIC = {*mq.__all__, *mq.PUBLIC_MODULES, *BACKBONES}


def test_dir_has_public_names_only():
    names = [name for name in dir(mq) if not name.startswith("__")]
    assert set(names) == PUBLIC
    assert all(getattr(mq, name) is not None for name in names)


def test_editors_see_the_same_names():
    """The imports for type checkers name everything that is imported on first use."""
    tree = ast.parse(Path(mq.__file__).read_text("utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = [alias.name for node in block.body for alias in node.names]
    assert set(seen) == PUBLIC and len(seen) == len(PUBLIC)


@pytest.mark.parametrize(
    "code, names",
    [
        ("mq.data.", ["Dataset", "Statistics"]),
        ("mq.fit(", ["batch_size=", "max_minutes="]),
        ("mq.md(", ["temperature=", "timestep="]),
        ("mq.read_npz(", ["units="]),
        ("mq.read_npz('x').", ["split", "summary"]),
        ("mq.load('x').", ["symmetry_report"]),
        ("mq.Model.", ["from_hparams"]),
        ("mq.Graph.", ["single"]),
        ("mq.plotting.", ["parity"]),
    ],
)
def test_an_editor_completes(code, names):
    jedi = pytest.importorskip("jedi")
    project = jedi.Project(Path(mq.__file__).parent.parent)
    found = jedi.Script(f"import molequi as mq\n{code}", project=project).complete()
    assert {*names} <= {one.name for one in found}


def test_an_editor_offers_no_helpers():
    jedi = pytest.importorskip("jedi")
    project = jedi.Project(Path(mq.__file__).parent.parent)
    found = {one.name for one in jedi.Script("import molequi as mq\nmq.", project=project).complete()}
    assert found > PUBLIC
    files = {path.stem for path in Path(mq.__file__).parent.iterdir()}
    rest = {name for name in found - PUBLIC - files if not name.startswith("_")}
    assert rest == {"PUBLIC_MODULES"}


def test_a_notebook_completes():
    pytest.importorskip("jedi")
    completer = pytest.importorskip("IPython.core.completer")
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell(user_ns={"mq": mq})

    def offered(code):
        with completer.provisionalcompleter():
            return {one.text for one in shell.Completer.completions(code, len(code))}

    assert {"channels=", "cutoff="} <= offered("mq.PaiNN(") and {"batch_size="} <= offered("mq.fit(")
    assert "Dataset" in offered("mq.data.") and not {"Any", "importlib", "sys", "torch"} & offered("mq.")
