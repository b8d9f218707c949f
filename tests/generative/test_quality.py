"""Bonds from distances, and what is said of molecules."""

import math

import pytest
import torch

import molequi as mq
from molequi.errors import DataError, MissingPackageError
from molequi.generative import quality_of, strain_of
from molequi.generative.bonds import DOUBLE, SINGLE, TRIPLE, bond_orders, stable_atoms

WATER = mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])


@pytest.mark.parametrize(
    ("pair", "length", "order"),
    [
        ("HH", 0.74, 1), ("CC", 1.54, 1), ("CC", 1.34, 2), ("CC", 1.20, 3), ("CN", 1.16, 3), ("CO", 1.20, 2),
        ("NN", 1.10, 3), ("CO", 1.43, 1), ("CC", 1.70, 0), ("HF", 0.92, 1), ("HH", 0.85, 0),
    ],
)  # fmt: skip
def test_orders_of_textbook_lengths(pair, length, order):
    z = mq.Graph.single([[0, 0, 0], [0, 0, length]], list(pair)).z
    pos = torch.tensor([[0.0, 0, 0], [0, 0, length]])
    assert bond_orders(z, pos).tolist() == [[0, order], [order, 0]]


def test_tables_have_each_pair_once_and_shorter_bonds_of_higher_order():
    for table in (SINGLE, DOUBLE, TRIPLE):
        pairs = [frozenset((a, b)) for a, others in table.items() for b in others]
        assert len(pairs) == len(set(pairs))
    for longer, shorter in ((SINGLE, DOUBLE), (DOUBLE, TRIPLE)):
        for a, others in shorter.items():
            assert all(
                length < {**longer.get(b, {}), **longer[a]}[b if b in longer[a] else a]
                for b, length in others.items()
            )


def test_bonds_of_the_shipped_molecules_are_those_of_their_smiles():
    from rdkit import Chem

    data = mq.read_npz(mq.shipped("molecules.npz"), index=":200", keys=dict.fromkeys(["energy"]))
    right = total = 0
    for graph, smiles in zip(data, data.info["smiles"]):
        if {*graph.z.tolist()} <= {1, 6, 7, 8, 9} and not set("[]") & set(smiles):
            mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
            found = bond_orders(graph.z, graph.pos) > 0
            right += bool((found == torch.as_tensor(Chem.GetAdjacencyMatrix(mol)).bool()).all())
            total += 1
    assert total > 50 and right == total


def test_stable_valid_unique_and_new():
    broken = WATER.replace(pos=WATER.pos * torch.tensor([[1.0], [1.0], [3.0]]))
    found = quality_of([WATER, WATER, broken], ["CC"])
    assert stable_atoms(broken.z, bond_orders(broken.z, broken.pos)).tolist() == [False, True, False]
    assert found.atom_stability == pytest.approx(7 / 9) and found.molecule_stability == pytest.approx(2 / 3)
    assert found.validity == 1.0 and found.connected == pytest.approx(
        2 / 3
    )  # OH and H are radicals, not invalid
    assert found.uniqueness == pytest.approx(2 / 3) and found.novelty == 1.0
    assert quality_of([WATER], ["O"]).novelty == 0.0 and math.isnan(quality_of([WATER]).novelty)
    five = mq.Graph.single(
        [[0, 0, 0], *(1.09 * torch.eye(3)).tolist(), [-0.63, -0.63, 0.63], [0, -0.7, -0.8]], ["C"] + ["H"] * 5
    )
    assert quality_of([five]).validity == 0.0
    assert "molecule stability" in str(found) and "molecule stability" in found._repr_html_()
    with pytest.raises(DataError, match="no structures to judge"):
        quality_of([])


def test_posebusters_sees_an_angle_that_the_tables_do_not():
    from ase.build import molecule

    pytest.importorskip("posebusters", reason="needs posebusters: pip install 'molequi[generative]'")
    good = molecule("CH3CH2OH")
    bent = good.copy()
    bent.set_angle(0, 1, 2, 70, indices=[2, 3])  # C-C-O; a tetrahedron has 109.5 degrees
    found = quality_of([good, bent], posebusters=True)
    assert found.molecule_stability == found.validity == 1.0
    assert found.checks["bond_angles"] == 0.5 and found.checks["bond_lengths"] == 1.0
    assert "PoseBusters: bond_angles" in str(found)


def test_posebusters_where_nothing_or_not_everything_can_be_checked():
    pytest.importorskip("posebusters", reason="needs posebusters: pip install 'molequi[generative]'")
    apart = quality_of([mq.Graph.single([[0.0, 0, 0], [9, 0, 0]], ["C", "C"])], posebusters=True)
    assert apart.checks == {} and "not made" in str(apart)
    helium = mq.Graph.single([[0.0, 0, 0]], ["He"])  # UFF, of the check of energies, has no helium
    assert quality_of([WATER, helium], posebusters=True).checks["internal_energy"] <= 0.5


def test_anything_that_holds_structures_is_judged(tmp_path):
    from ase.build import molecule

    ethanol = molecule("CH3CH2OH")
    ethanol.write(tmp_path / "a.xyz")
    for given in (ethanol, [ethanol], mq.from_atoms([ethanol]), tmp_path / "a.xyz"):
        assert quality_of(given, ["CCO"]).novelty == 0.0
    with pytest.raises(DataError, match="point clouds"):
        quality_of([mq.Graph.single([[0.0, 0, 0], [1, 0, 0]])])


def test_packages_that_are_missing_are_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "posebusters", None)
    with pytest.raises(MissingPackageError, match="posebusters"):
        quality_of([WATER], posebusters=True)


def test_strain_is_the_energy_of_relaxation():
    from ase.calculators.lj import LennardJones

    pair = mq.Graph.single([[0, 0, 0], [0, 0, 1.15]], ["Ar", "Ar"])
    found = strain_of([pair], LennardJones(rc=50.0), fmax=1e-3)
    above = (
        4 * (1.15**-12 - 1.15**-6) + 1.0
    )  # the minimum of ε = σ = 1 is -1; the shift at the cutoff cancels
    assert found.count == 1 and found.mean == pytest.approx(above, abs=1e-5)
    assert "1 structures" in str(found)


def test_what_limits_the_figures_is_said():
    with pytest.raises(DataError, match=r"known='CCO': wanted several SMILES: known=\['CCO'\]"):
        quality_of([WATER], "CCO")
    with pytest.raises(DataError, match="RDKit can read none of these SMILES; the first is 'C1CC'"):
        quality_of([WATER], ["C1CC"])
    found = quality_of([WATER], ["C1CC", "O"])
    assert found.novelty == 0.0 and found.notes == {"known SMILES that RDKit cannot read": "1"}
    borane = mq.Graph.single([[0, 0, 0], [1.19, 0, 0], [-0.6, 1.03, 0], [-0.6, -1.03, 0]], list("BHHH"))
    assert "B in 1 molecules" in str(quality_of([WATER, borane])) and not quality_of([WATER]).notes
    with pytest.raises(DataError, match="periodic structures have no such quality"):
        quality_of([mq.Graph.single(WATER.pos, WATER.z, cell=9 * torch.eye(3), pbc=True)])
