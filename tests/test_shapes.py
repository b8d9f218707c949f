"""Shapes written in signatures are true: a run with every one of them checked, in a process of its own."""

import subprocess
import sys

CHECKED = """
from jaxtyping import install_import_hook
rooms = ["ops", "graph", "features", "symmetry", "neighbors", "nn", "models", "heads", "model"]
with install_import_hook([f"molequi.{room}" for room in rooms], "beartype.beartype"):
    import torch
    from molequi.graph import Graph, collate
    from molequi.model import Model
    from molequi.models import BACKBONES
    from molequi.neighbors import connect
BODY
"""
SOUND = """
torch.manual_seed(0)
molecule = Graph.single(torch.rand(5, 3) * 2, [1, 6, 8, 1, 6])
crystal = Graph.single(torch.rand(2, 3) * 2, [6, 8], cell=3 * torch.eye(3), pbc=True)
atom = Graph.single(torch.zeros(1, 3), [1])
batch = collate([connect(g, 3.0) for g in (molecule, crystal, atom)])
for kind in (k for k in BACKBONES.values() if not k.clouds_alone):
    model = Model(kind(elements=["H", "C", "O"], cutoff=3.0, channels=4, layers=2), ["energy", "forces", "stress", "polarizability"])
    model(batch)
    Model(kind(elements=["H", "C", "O"], cutoff=3.0, channels=4, layers=2), ["dipole", "charges"])(connect(molecule, 3.0))
print("sound")
"""
BROKEN = "Graph.single(torch.zeros(2, 3), [1, 1]).replace(pos=torch.zeros(3, 3, dtype=torch.float64))"


def run(body: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", CHECKED.replace("BODY", body)], capture_output=True, text=True
    )


def test_shapes_hold():
    result = run(SOUND)
    assert result.returncode == 0 and "sound" in result.stdout, result.stderr[-2000:]


def test_the_check_can_fail():
    result = run(BROKEN)
    assert result.returncode != 0 and "TypeCheckError" in result.stderr
