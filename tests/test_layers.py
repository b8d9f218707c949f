"""Imports go down: a room knows only rooms on lower rows, and outsiders live in the rooms that are named for them."""

import ast
import subprocess
import sys
from pathlib import Path

import molequi

ROOT = Path(molequi.__file__).parent
ROWS = {
    -1: ["errors"],
    0: ["quantities", "files", "ops", "check", "table"],
    1: ["graph", "features"],
    2: ["symmetry", "neighbors", "nn"],
    3: ["models", "heads", "card"],
    4: ["model"],
    5: ["data", "ensemble"],
    6: ["checkpoint", "accelerate"],
    7: ["audit", "calculator"],
    8: ["training", "learned", "breaking"],
    9: ["plotting", "simulation"],
    10: ["run"],
    11: ["cli"],
    12: ["__init__"],
}
ROW = {room: row for row, rooms in ROWS.items() for room in rooms}
OUTSIDERS = {
    "e3nn": {"ops"}, "rdkit": {"data"}, "torch_geometric": {"data"}, "trimesh": {"data"}, "ase": {"data", "calculator", "simulation", "plotting"},
    "lightning": {"training"}, "torch_scatter": {"ops"}, "matplotlib": {"plotting"}, "vesin": {"neighbors"},
    "safetensors": {"checkpoint", "data", "training"}, "omegaconf": {"training"}, "pydantic": {"check", "training"}, "tensorboard": {"training"},
}
# What may be used from a room on a higher row, and why.
EXCEPTIONS = {("checkpoint", "__init__"), ("data", "__init__"), ("audit", "__init__"), ("cli", "__init__"), ("training", "__init__"),
              ("run", "__init__"), ("breaking", "__init__")}      # `from molequi import __version__`


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
        for name, line in imports(path):
            where = f"{path.relative_to(root)}:{line} imports {name}"
            head, *rest = name.split(".")
            if head in OUTSIDERS and room not in OUTSIDERS[head]:
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
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_public_names_exist():
    for name in molequi.__all__:
        assert getattr(molequi, name) is not None, name


def test_rooms_do_not_hide_the_functions_of_their_names():
    code = "import molequi as mq; from molequi.audit import audit; from molequi.run import run; import molequi.audit, molequi.run; " \
           "print(mq.audit is audit and mq.run is run and callable(mq.audit))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "True"
