"""Unrelaxed structures that are made of relaxed ones, and the recipe that learns the way back."""

import pytest
import torch

import molequi as mq
from molequi.errors import ConfigError, DataError
from molequi.generative import Flow, read_paths, unrelaxed
from molequi.generative.unrelaxed import laid_on
from molequi.symmetry import random_orthogonal

from .flow_kit import conformers


def rmsd(graph):
    return float((graph.pos - graph.targets["relaxed"]).square().sum(1).mean().sqrt())


def test_distortions_have_their_size_and_no_turn():
    given = mq.Graph.single(torch.randn(400, 3, dtype=torch.float64) * 8, ["C"] * 400)
    data = mq.Dataset([given], allow=["close-atoms"])
    (pair,) = unrelaxed(data, size=0.2, seed=3)
    assert torch.equal(pair.targets["relaxed"], given.pos)
    assert rmsd(pair) == pytest.approx(0.2 * 3**0.5, rel=0.06)  # 3σ of 1,200 normal numbers
    assert torch.allclose(laid_on(pair.pos, given.pos), pair.pos, atol=1e-9)
    assert torch.equal(unrelaxed(data, size=0.2, seed=3)[0].pos, pair.pos)
    assert not torch.equal(unrelaxed(data, size=0.2, seed=4)[0].pos, pair.pos)


def test_turned_positions_lie_on_the_others():
    pos = torch.randn(5, 3, dtype=torch.float64)
    turn = random_orthogonal(3, generator=torch.Generator().manual_seed(1))
    turn = turn * torch.sign(torch.linalg.det(turn))
    assert torch.allclose(laid_on(pos @ turn.T + 3, pos), pos, atol=1e-12)
    mirrored = pos * torch.tensor([-1.0, 1, 1])
    assert (laid_on(mirrored, pos) - pos).abs().max() > 0.1  # control: no mirror


def test_cells_stay():
    cell = 4.0 * torch.eye(3, dtype=torch.float64)
    given = mq.Graph.single([[0.0, 0, 0], [2.0, 2.0, 2.0]], ["B", "N"], cell=cell, pbc=True)
    (pair,) = unrelaxed([given], size=0.1)
    assert torch.equal(pair.cell[0], cell) and bool(pair.pbc.all()) and 0 < rmsd(pair) < 0.6
    data = mq.generative.paths(unrelaxed([given] * 4), "relaxation")
    assert Flow.of(data.reading).scale == 0


def test_mmff_is_at_the_minimum_of_rdkit():
    from rdkit.Chem import rdForceFieldHelpers

    mol = conformers("CCO", 1)
    (pair,) = unrelaxed([mol], "mmff")
    assert torch.allclose(pair.targets["relaxed"], torch.as_tensor(mol.GetConformer().GetPositions()))
    assert 0.01 < rmsd(pair) < 1.0
    wanted = conformers("CCO", 1)
    rdForceFieldHelpers.MMFFOptimizeMolecule(wanted, maxIters=2000)
    near = torch.pdist(torch.as_tensor(wanted.GetConformer().GetPositions()))
    assert torch.allclose(torch.pdist(pair.pos), near, atol=1e-9)


def test_errors():
    water = mq.Graph.single([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
    with pytest.raises(ConfigError, match=r"unrelaxed\.by: found 'uff'"):
        unrelaxed([water], "uff")
    with pytest.raises(ConfigError, match=r"unrelaxed\.size"):
        unrelaxed([water], size=0.0)
    with pytest.raises(DataError, match="no bonds"):
        unrelaxed([water], "mmff")
    with pytest.raises(DataError, match="MMFF94 lacks an atom type"):
        unrelaxed([conformers("CB(O)O", 1)], "mmff")
    file = mq.shipped("molecules.npz")
    with pytest.raises(ConfigError, match="paths.start='mmff' has no effect: the task is 'molecules'"):
        read_paths(file, "molecules", start="mmff")
    with pytest.raises(ConfigError, match="paths.relaxed='final' has no effect with start='distorted'"):
        read_paths(file, "relaxation", start="distorted", relaxed="final")
    with pytest.raises(ConfigError, match="paths.size=0.2 has no effect without start='distorted'"):
        read_paths(file, "relaxation", start="mmff", size=0.2)


def test_the_reader_hands_the_size_on():
    file = mq.shipped("molecules.npz")
    small, large = (read_paths(file, "relaxation", start="distorted", size=s, index=":9") for s in (0.1, 0.3))
    sizes = [data.graphs.target("flow_velocity").square().mean().sqrt() for data in (small, large)]
    assert 2.0 < float(sizes[1] / sizes[0]) < 3.1  # 3, less what a molecule's own turn takes away


def test_the_recipe_trains_samples_and_loads(tmp_path):
    small = ["data.paths.index=:40", "backbone.EGNN.channels=8", "backbone.EGNN.layers=1", "train.epochs=1"]
    out = tmp_path / "run"
    result = mq.run("relaxation", [*small, f"train.out={out}", "train.logging.progress=false"])
    pairs = unrelaxed(mq.shipped("molecules.npz"), index=":3")
    found = [mq.sample(model, pairs, steps=2, progress=False) for model in (result.model, out)]
    assert all(torch.equal(a.pos, b.pos) for a, b in zip(*found))
    assert Flow.of(result.model).task == "relaxation"
