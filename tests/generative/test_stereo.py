"""The molecular graph as a condition: stereochemistry, bonds, and conformers measured against references."""

import pytest
import torch

import molequi as mq
from molequi.errors import DataError
from molequi.generative import conformer_quality
from molequi.generative.flow import Flow
from molequi.generative.paths import alike_of
from molequi.generative.samples import Samples
from molequi.generative.stereo import (
    COLUMNS,
    graph_of,
    graphs_of,
    mols_of,
    right_handed,
    volumes,
    with_positions,
)

from .flow_kit import conformers

CENTERS = ["C[C@H](F)O", "C[C@@H](F)O", "F[C@](Cl)(Br)I", "C[C@H]1CC[C@@H](O)CO1", "N[C@@H](C)C(=O)O"]


@pytest.mark.parametrize("smiles", CENTERS)
def test_volumes_are_positive_for_the_given_chirality_alone(smiles):
    mol = conformers(smiles)
    plain = graph_of(mol)
    number = int(plain.x[:, 0].abs().sum())
    assert number == smiles.replace("@@", "@").count("@")
    for k in range(3):
        pos = torch.as_tensor(mol.GetConformer(k).GetPositions())
        right, growth = volumes(plain.replace(pos=pos))
        wrong, _ = volumes(plain.replace(pos=-pos))
        assert (right > 0).sum() == (wrong < 0).sum() == number
        step = volumes(plain.replace(pos=pos + 1e-3 * growth))[0]
        assert bool((step >= right).all()) and float(step.sum()) > float(right.sum())


def test_chirality_does_not_depend_on_the_order_of_atoms():
    from rdkit import Chem

    mol = conformers("C[C@H]1CC[C@@H](O)CO1", 1)
    order = torch.randperm(mol.GetNumAtoms(), generator=torch.Generator().manual_seed(0)).tolist()
    one, other = graph_of(mol, 0), graph_of(Chem.RenumberAtoms(mol, order), 0)
    assert torch.equal(one.x[order][:, 0] != 0, other.x[:, 0] != 0)
    assert torch.allclose(volumes(one)[0][order], volumes(other)[0], atol=1e-12)


PAIRS = [
    ("C[S@](=O)CC", "C[S@@](=O)CC"),  # a lone pair
    ("CC[P@](C)c1ccccc1", "CC[P@@](C)c1ccccc1"),
    ("C[C@H]1C[C@@H](C)C1", "C[C@H]1C[C@H](C)C1"),  # neighbors of one rank
    ("C[C@H]1CC[C@@H](C)CC1", "C[C@H]1CC[C@H](C)CC1"),
    ("C/C=C/C", "C/C=C\\C"),
    ("F/C(Cl)=C(F)/Cl", "F/C(Cl)=C(F)\\Cl"),
]
REFUSED = [("F[S@OH1](F)(F)(F)(F)Cl", "CHI_OCTAHEDRAL")]


@pytest.mark.parametrize("pair", PAIRS)
def test_positions_of_one_isomer_are_right_for_its_graph_alone(pair):
    from molequi.generative.conformers import _kept

    for smiles, others in (pair, pair[::-1]):
        mol, other = conformers(smiles, 2), conformers(others, 2)
        for k in range(2):
            own, foreign = (torch.as_tensor(m.GetConformer(k).GetPositions()) for m in (mol, other))
            assert right_handed(graph_of(mol).replace(pos=own)) and _kept(with_positions(mol, own))
            assert not right_handed(graph_of(mol).replace(pos=foreign))
            assert not _kept(with_positions(mol, foreign))
        again = mols_of(mq.read_mols([mol], features=True))  # stereochemistry of the positions
        assert all(right_handed(graph_of(m, 0)) for m in again)
        assert not any(right_handed(graph_of(m).replace(pos=foreign)) for m in again)


def test_lone_pairs_and_ties_do_not_depend_on_the_order_of_atoms():
    from rdkit import Chem

    for smiles in ("C[S@](=O)CC", "C[C@H]1C[C@@H](C)C1"):
        mol = conformers(smiles, 1)
        order = torch.randperm(mol.GetNumAtoms(), generator=torch.Generator().manual_seed(0)).tolist()
        one, other = graph_of(mol, 0), graph_of(Chem.RenumberAtoms(mol, order), 0)
        for found, wanted in zip(volumes(other), volumes(one)):
            assert torch.allclose(found, wanted[order], atol=1e-12) and bool(found.any())


@pytest.mark.parametrize(
    "smiles", ["CCP(C)c1ccccc1", "CN1CC1F", "OC12CC(C1)C2", "N1(CC2)CCC2CC1", "CC1CC(C)C1"]
)
def test_samples_have_the_centers_of_data(smiles):
    (data,) = mols_of(mq.read_mols([conformers(smiles, 1)], features=True))
    for graph, _, _ in graphs_of(smiles, 4):
        assert torch.equal(graph.x[:, 0] != 0, graph_of(data).x[:, 0] != 0)


@pytest.mark.parametrize(("smiles", "said"), REFUSED)
def test_stereochemistry_that_cannot_be_given_is_refused(smiles, said):
    from rdkit import Chem

    with pytest.raises(DataError, match=f"{said}, which conformers cannot be given"):
        graph_of(Chem.AddHs(Chem.MolFromSmiles(smiles, sanitize=True)))


def test_double_bonds_and_equivalent_atoms():
    column = COLUMNS.index("cis")
    for smiles, sign in (("F/C=C/F", -1), ("F/C=C\\F", 1), ("FC=C", 0)):
        attr = graph_of(conformers(smiles, 1)).pair_attr[:, column]
        assert attr.sum() == 2 * sign
    graph = graph_of(conformers("CCO", 1))
    alike = alike_of(Flow(task="conformers", scale=1.0), graph)
    groups = sorted((alike == number).sum().item() for number in alike.unique())
    assert groups == [1, 1, 1, 1, 2, 3]  # the hydroxyl, three heavy atoms, CH2, CH3


def test_open_stereochemistry_is_sampled_in_turn():
    found = graphs_of("CC(F)O", 4)
    assert [float(g.x[:, 0].sum()) for g, _, _ in found] in ([1, -1, 1, -1], [-1, 1, -1, 1])
    assert len({float(g.x[:, 0].sum()) for g, _, _ in graphs_of("C[C@H](F)O", 4)}) == 1


def test_smiles_in_another_order_and_impossible_bonds_are_refused():
    data = mq.read_npz(mq.shipped("molecules.npz"), index=":2", keys=dict.fromkeys(["energy"]))
    assert [m.GetNumAtoms() for m in mols_of(data)] == data.counts.tolist()
    data.info["smiles"] = ("CC", "CC")
    with pytest.raises(DataError, match="atoms are not in the order of its SMILES 'CC'"):
        mols_of(data)
    far = mq.Graph.single([[0, 0, 0], [3.0, 0, 0], [0.9, 0, 0], [3.9, 0, 0]], ["O", "O", "H", "H"])
    with pytest.raises(DataError, match="atoms 0 and 1 are bonded and 3.00 Å apart"):
        mols_of(mq.Dataset([far], info={"smiles": ["OO"]}))
    iodine = mq.Graph.single([[0, 0, 0], [2.666, 0, 0]], ["I", "I"])  # the length in the gas
    assert len(mols_of(mq.Dataset([iodine], info={"smiles": ["II"]}))) == 1


def test_references_themselves_are_covered_and_their_mirror_images_are_not_right(embedded):
    references = mq.read_mols([embedded], features=True)
    mols = mols_of(references)

    def scores(factor):
        graphs = [mq.Graph.single(factor * g.pos, g.z) for g in references]
        found = Samples(tuple(graphs), task="conformers", names=("",) * len(mols), mols=tuple(mols))
        return conformer_quality(found, references).scores

    right, mirror = scores(1.0), scores(-1.0)["model"]
    assert right["model"].matching == pytest.approx((0, 0), abs=1e-4) and right["model"].chirality == 1.0
    assert right["model"].coverage == {0.5: (1.0, 1.0), 1.25: (1.0, 1.0)}
    assert right["ETKDG + MMFF"].chirality == 1.0 and mirror.chirality == 0.0
    assert mirror.matching[0] > right["ETKDG + MMFF"].matching[0]
    assert with_positions(mols[0], references[0].pos).GetNumConformers() == 1


def test_conformers_of_a_model(chiral):
    from rdkit import Chem

    model = chiral[1]
    found = mq.sample(model, "C[C@H](F)O", each=2, steps=3, progress=False)
    assert found.names == (Chem.CanonSmiles("C[C@H](F)O"),) * 2
    many = mq.sample(model, "C[C@H](F)O", each=20, steps=3, progress=False)
    found_volumes = [volumes(graph_of(mol).replace(pos=g.pos))[0] for mol, g in zip(many.mols, many)]
    assert all(float(v.sum()) > 0 for v in found_volumes)  # of the only center
    assert len(found.to_mols()) == 2 and "conformers" in found._repr_html_()
    with pytest.raises(DataError, match="no molecule in common"):
        conformer_quality(
            mq.sample(model, "CO", steps=1, progress=False), mq.read_smiles(["CCO"], features=True)
        )
