"""In a notebook progress is a widget where there are widgets, lines where there are none, and nothing else."""

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

SETUP = "from molequi.util import progress\nfrom molequi.util.progress import ProgressBar"
DONE = """
with ProgressBar("outer", 2, unit="file", keep=True) as outer:
    for _ in range(2):
        with ProgressBar("inner", 3) as inner:
            for _ in range(3):
                inner.advance(text="T 300 K")
        outer.advance()
"""
EARLY = """
with ProgressBar("relax", 500, keep=True) as bar:
    bar.update(5)
    bar.update(23)
    bar.finish()
"""
BROKEN = """
with ProgressBar("md", 10, keep=True) as bar:
    bar.update(4)
    raise KeyboardInterrupt
"""


def executed(tmp_path, *cells):
    """A notebook after its cells were run; an interrupt goes on with the next cell."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    with pytest.MonkeyPatch.context() as patch:
        # Qt in the environment would make tqdm believe in a console.
        patch.delenv("QT_API", raising=False)
        NotebookClient(
            notebook, timeout=60, allow_errors=True, resources={"metadata": {"path": str(tmp_path)}}
        ).execute()
    for cell in notebook.cells:
        wrong = [o for o in cell.outputs if o.output_type == "error" and o.ename != "KeyboardInterrupt"]
        if wrong:
            raise CellExecutionError("\n".join(wrong[0].traceback), wrong[0].ename, wrong[0].evalue)
    return notebook


def streams(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


@pytest.mark.filterwarnings("default")  # of the kernel's own packages
def test_with_widgets(tmp_path):
    pytest.importorskip("ipywidgets")
    notebook = executed(tmp_path, SETUP, DONE, EARLY, BROKEN)
    states = [
        s["state"]
        for s in notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values()
    ]
    bars = [s for s in states if s["_model_name"] == "FloatProgressModel"]
    texts = [s["value"] for s in states if s["_model_name"] == "HTMLModel"]
    # The inner bars are closed; the others are complete, complete and interrupted.
    shown = {s["max"]: (s["value"], s["bar_style"]) for s in bars if s["max"] != 3}
    assert shown == {2.0: (2.0, "success"), 23.0: (23.0, "success"), 10.0: (4.0, "danger")}
    assert any("relax" in text and "100%" in text for text in texts)
    assert all(streams(cell) == "" for cell in notebook.cells)


@pytest.mark.filterwarnings("default")
def test_without_widgets(tmp_path):
    nothing = "import sys\nsys.modules['ipywidgets'] = None\n"
    notebook = executed(tmp_path, nothing + SETUP, DONE, EARLY, BROKEN)
    assert streams(notebook.cells[0]) == ""
    assert streams(notebook.cells[1]).splitlines() == [
        "inner: 1/3 step, 0:00 left, T 300 K",
        "outer: 1/2 file, 0:00 left",
        "inner: 1/3 step, 0:00 left, T 300 K",
        "outer: 2/2 file, 0:00 left",
    ]
    assert streams(notebook.cells[2]).splitlines()[-1] == "relax: 23/23 step, 0:00 left"
    assert streams(notebook.cells[3]).splitlines()[-1].startswith("md: 4/10 step")
    outputs = [o for cell in notebook.cells for o in cell.outputs if o.output_type == "display_data"]
    assert not outputs
