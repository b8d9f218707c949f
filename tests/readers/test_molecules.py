"""Molecules by RDKit: geometries that are functions of the molecule and the seed, what is recorded of them, what they are given."""

import csv
import gzip
import os
import signal

import numpy as np
import pytest
import torch

from molequi.data import DataWarning
from molequi.data.splits import choose
from molequi.errors import ConfigError, DataError
from molequi.quantities import Quantity
from molequi.readers import read_sdf, read_smiles
from molequi.readers.conformers import BOND_FEATURES, NODE_FEATURES, Refused, geometry
from molequi.readers.embedder import Embedder

OPTIONS = dict(
    kind="smiles",
    conformers=1,
    seed=0,
    optimize="mmff",
    fragments="refuse",
    embed=False,
    features=False,
    spin=True,
)


def distances(pos, z):
    far = np.linalg.norm(pos[:, None] - pos, axis=-1)
    return {(int(z[i]), int(z[j])): far[i, j] for i in range(len(z)) for j in range(i) if far[i, j] < 1.7}


def test_hydrogens_and_bond_lengths():
    graph = read_smiles(["CCO"])[0]
    assert sorted(graph.z.tolist()) == [1] * 6 + [6, 6, 8]
    found = distances(graph.pos.numpy(), graph.z.numpy())
    # gas-phase ethanol (microwave): C-C 1.51, C-O 1.43, O-H 0.97 Å
    for pair, length in {(6, 6): 1.51, (8, 6): 1.43, (1, 8): 0.97}.items():
        assert found[pair] == pytest.approx(length, abs=0.03)


def test_a_geometry_is_a_function_of_molecule_and_seed():
    company = ["CCO", "c1ccccc1O", "CC(C)CN", "OCC(O)CO", "CCCC"]
    whole = read_smiles(company, conformers=2, workers=1)
    spread = read_smiles(company, conformers=2, workers=2)
    alone = read_smiles([company[3]], conformers=2)
    for a, b in zip(whole, spread):
        assert torch.equal(a.pos, b.pos)
    for a, b in zip(whole[6:8], alone):
        assert torch.equal(a.pos, b.pos)
    assert not torch.allclose(whole[6].pos, whole[7].pos, atol=1e-2)  # two conformers are two geometries
    for seed in (1, 2):
        other = read_smiles([company[3]], conformers=2, seed=seed)
        for a in alone:
            for b in other:
                assert not torch.allclose(a.pos, b.pos, atol=1e-2)


def test_relaxed_or_not():
    from rdkit import Chem
    from rdkit.Chem import rdForceFieldHelpers

    mol = Chem.AddHs(Chem.MolFromSmiles("OCC(O)CO"))
    mol.AddConformer(Chem.Conformer(mol.GetNumAtoms()))

    def energy(pos):
        for k, xyz in enumerate(pos):
            mol.GetConformer().SetAtomPosition(k, xyz)
        return rdForceFieldHelpers.MMFFGetMoleculeForceField(
            mol, rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
        ).CalcEnergy()

    raw, mmff, uff = (
        geometry("OCC(O)CO", OPTIONS | {"optimize": how})["pos"][0] for how in (None, "mmff", "uff")
    )
    assert (
        energy(mmff) < energy(raw) - 1
        and not np.allclose(uff, mmff, atol=1e-2)
        and not np.allclose(uff, raw, atol=1e-2)
    )


@pytest.mark.parametrize(
    "smiles,charge,spin",
    [
        ("CCO", 0, 1),
        ("[NH4+]", 1, 1),
        ("CC(=O)[O-]", -1, 1),
        ("C[N+](C)(C)CC(=O)[O-]", 0, 1),
        ("[CH3]", 0, 2),
        ("[CH2]", 0, 3),
        ("O=[N]", 0, 2),
        ("[2H]C([2H])[2H]", 0, 1),
        ("[13CH4]", 0, 1),
    ],
)
def test_a41_charge_and_multiplicity(smiles, charge, spin):
    found = geometry(smiles, OPTIONS)
    assert (found["charge"], found["spin"]) == (charge, spin)


def test_charge_and_spin_are_in_the_graph():
    data = read_smiles(["[NH4+]", "[CH3]"])
    assert [float(g.charge) for g in data] == [1, 0] and [float(g.spin) for g in data] == [1, 2]
    assert data.found["charge"] == "formal charges"
    plain = read_smiles(["[NH4+]"], keys={"charge": None, "spin": None})[0]
    assert plain.charge is None and plain.spin is None


@pytest.mark.parametrize(
    "smiles,words",
    [
        ("*CC", "dummy"),
        ("[Na+].[Cl-]", "2 fragments"),
        ("CC.O", "2 fragments"),
        ("C[Zn]C", "Zn: no embedding"),
        ("[Fe]", "Fe: no embedding"),
        ("[He]", "He: no embedding"),
        ("B(O)O", "MMFF has no parameters"),
        ("C1#CC1", "no geometry"),
    ],
)
def test_a41_policy(smiles, words):
    with pytest.raises(Refused, match=words):
        geometry(smiles, OPTIONS)


def test_a41_what_the_caller_may_ask_for():
    assert geometry("CC(=O)[O-].[Na+]", OPTIONS | {"fragments": "largest"})["charge"] == -1
    assert len(geometry("B(O)O", OPTIONS | {"optimize": "uff"})["z"]) == 6
    assert geometry("[2H]C([2H])[2H]", OPTIONS)["z"].count(1) == 4  # deuterium is hydrogen


def test_features_of_bonds():
    benzene = read_smiles(["Oc1ccccc1"], features=True)[0]
    kinds = dict(zip(BOND_FEATURES, benzene.pair_attr.T))
    assert benzene.pair_index.shape == (2, 26)
    assert {name: int(column.sum()) for name, column in kinds.items()} == {
        "single": 14,
        "double": 0,
        "triple": 0,
        "aromatic": 12,
        "conjugated": 14,
        "ring": 12,
    }
    assert set(map(tuple, benzene.pair_index.T.tolist())) == {
        (j, i) for i, j in benzene.pair_index.T.tolist()
    }
    atoms = dict(zip(NODE_FEATURES, benzene.x.T))
    assert atoms["aromatic"].tolist() == [0] + [1] * 6 + [0] * 6 and int(atoms["sp2"].sum()) == 7
    nitrile = geometry("C#N", OPTIONS | {"features": True})
    assert (
        nitrile["pair_attr"][0][BOND_FEATURES.index("triple")] == 1
        and nitrile["x"][0][0][NODE_FEATURES.index("sp")] == 1
    )
    ion = geometry("[NH4+]", OPTIONS | {"features": True})
    assert ion["x"][0][0][NODE_FEATURES.index("formal_charge")] == 1


def test_chirality_is_that_of_the_geometry_and_changes_its_sign_in_a_mirror():
    def handed(smiles):
        found = geometry(smiles, OPTIONS | {"features": True})
        pos, z = np.array(found["pos"][0]), found["z"]
        f, cl, br = (pos[z.index(n)] - pos[z.index(6)] for n in (9, 17, 35))
        return found["x"][0][z.index(6)][NODE_FEATURES.index("chirality")], np.sign(
            np.dot(br, np.cross(cl, f))
        )

    # seen with H behind, Br, Cl, F (falling priority) run clockwise in R: a negative triple product
    (r, turn_r), (s, turn_s) = handed("F[C@](Br)(Cl)[H]"), handed("F[C@@](Br)(Cl)[H]")
    assert {r, s} == {1, -1} and (r, s) == (-turn_r, -turn_s)
    assert handed("[H][C@](F)(Br)Cl")[0] != handed("[H][C@@](F)(Br)Cl")[0]
    assert geometry("CC", OPTIONS | {"features": True})["x"][0][0][NODE_FEATURES.index("chirality")] == 0


def test_conformers_of_open_centres_have_their_own_chirality():
    data = read_smiles(["FC(Cl)Br"], conformers=12, features=True)
    column = NODE_FEATURES.index("chirality")
    assert {float(g.x[1, column]) for g in data} == {1.0, -1.0}


def test_info_and_repeated_labels(tmp_path):
    (tmp_path / "m.csv").write_text("name;SMILES;gap;note\nx1;CCO;1.5;\nx2;c1ccc(CC)cc1;2.5;two words\n")
    data = read_smiles(tmp_path / "m.csv", conformers=2, units={"gap": "Hartree"})
    assert data.info["smiles"] == ("CCO", "CCO", "c1ccc(CC)cc1", "c1ccc(CC)cc1")
    assert data.info["canonical"][2] == "CCc1ccccc1" and data.info["scaffold"] == (
        "",
        "",
        "c1ccccc1",
        "c1ccccc1",
    )
    assert data.info["molecule"] == (0, 0, 1, 1) and data.info["conformer"] == (0, 1, 0, 1)
    assert data.info["name"] == ("x1", "x1", "x2", "x2") and data.info["note"][2] == "two words"
    assert data.values("gap").tolist() == pytest.approx(
        [1.5 * 27.211386] * 2 + [2.5 * 27.211386] * 2, rel=1e-6
    )
    assert data.origins[3].endswith("row 1 (line 3), conformer 1") and data.sources[0].frames == 2


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_and_quotes(tmp_path, separator):
    with open(tmp_path / "m.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=separator).writerows(
            [["id", "mol", "what, or; else"], ["1", "CCO", "a,b;c\td\ne"], ["2", "C", "x"]]
        )
    data = read_smiles(tmp_path / "m.csv", column="mol")
    assert data.info["id"] == ("1", "2") and data.info["what, or; else"][0] == "a,b;c\td\ne"


def test_smi_gz_and_index(tmp_path):
    (tmp_path / "m.smi").write_text("CCO ethanol\n\nC\nc1ccccc1\tbenzene ring\n")
    data = read_smiles(tmp_path / "m.smi")
    assert data.info["name"] == ("ethanol", None, "benzene ring")
    with gzip.open(tmp_path / "n.csv.gz", "wt") as file:
        file.write("smiles\nC\nCC\nCCC\n")
    assert read_smiles(tmp_path / "n.csv.gz", index="1:").info["molecule"] == (1, 2)
    with pytest.raises(DataError, match="wanted a table"):
        (tmp_path / "n.dat").write_text("C")
        read_smiles(tmp_path / "n.dat")


def test_quantities_of_ones_own_and_classes(tmp_path):
    (tmp_path / "m.csv").write_text("smiles,logS,taste\nC,-1.5,sweet\nCC,,1\n")
    logs, taste = Quantity(name="logS"), Quantity(name="taste", classes=("sour", "sweet"))
    data = read_smiles(tmp_path / "m.csv", quantities=[logs, taste], partial=["logS"])
    assert data.values("taste").tolist() == [1, 1] and torch.isnan(data.values("logS")).tolist() == [
        False,
        True,
    ]
    assert "logS" not in data.info
    with pytest.raises(
        DataError, match="row 1.*'logS' is empty, or has no value for each structure.*partial="
    ):
        read_smiles(tmp_path / "m.csv", quantities=[logs])
    with pytest.raises(ConfigError, match="dipole belongs to the atoms or axes"):
        read_smiles(tmp_path / "m.csv", quantities=["dipole"])
    with pytest.raises(DataError, match="taste is 'sweet', which is no class; known: bitter, salty"):
        read_smiles(tmp_path / "m.csv", quantities=[Quantity(name="taste", classes=("bitter", "salty"))])


def test_units_are_said(tmp_path):
    (tmp_path / "m.csv").write_text("smiles,gap\nC,1\n")
    with pytest.raises(
        DataError, match="does not say the unit of gap; say it, for instance units={'gap': 'eV'}"
    ):
        read_smiles(tmp_path / "m.csv")
    with pytest.raises(ConfigError, match="positions are made here"):
        read_smiles(tmp_path / "m.csv", units={"positions": "nm"})


def test_charge_in_a_column(tmp_path):
    (tmp_path / "m.csv").write_text("smiles,q,mult\n[CH2],0,1\n")
    data = read_smiles(tmp_path / "m.csv", keys={"charge": "q", "spin": "mult"})
    assert float(data[0].spin) == 1 and float(data[0].charge) == 0
    (tmp_path / "m.csv").write_text("smiles,q\n[NH4+],0\n")
    with pytest.raises(DataError, match="row 0.*q is 0, and the formal charges .* add up to 1"):
        read_smiles(tmp_path / "m.csv", keys={"charge": "q"})


MANY = [
    "c1ccccc1",
    "Cc1ccccc1",
    "CCc1ccccc1",
    "c1ccncc1",
    "Cc1ccncc1",
    "C1CCCCC1",
    "CC1CCCCC1",
    "C1CCCC1",
    "CC1CCCC1",
    "CCO",
    "CCC",
    "CCN",
]


def test_split_by_scaffold():
    data = read_smiles(MANY, conformers=2)
    parts = data.split([0.5, 0.25, 0.25], by="scaffold", seed=3)
    scaffolds = [set(part.info["scaffold"]) for part in parts]
    molecules = [set(part.info["molecule"]) for part in parts]
    assert sum(map(len, scaffolds)) == len(set().union(*scaffolds)) == 5
    assert (
        sum(map(len, molecules)) == len(set().union(*molecules)) == len(MANY)
    )  # conformers of a molecule are together too


def test_conformers_stay_together_in_any_split():
    data = read_smiles(
        [*MANY[:8], "Cc1ccccc1", "c1ccccc1C"], conformers=2
    )  # twice toluene, once from its other end
    for seed in range(5):
        train, test = data.split([0.5, 0.5], seed=seed)
        assert not set(train.info["canonical"]) & set(test.info["canonical"])
    plain, other = choose(len(data), [10, 10], ["a", "b"], seed=0, groups=None)
    assert {data.info["molecule"][k] for k in plain} & {
        data.info["molecule"][k] for k in other
    }  # alone, chance tears them apart
    with pytest.warns(DataWarning, match="molecules have conformers in more than one part"):
        data.split({"train": [0, 2, 4], "test": [1, 3]})


def block(smiles, coordinates=3, properties=None, v3000=False, remove=False):
    from rdkit import Chem
    from rdkit.Chem import rdDepictor, rdDistGeom

    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    if coordinates == 3:
        rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    elif coordinates == 2:
        rdDepictor.Compute2DCoords(mol)
    if remove:
        mol = Chem.RemoveHs(mol)
    mol.SetProp("_Name", f"name of {smiles}")
    text = Chem.MolToMolBlock(mol, forceV3000=v3000)
    return text + "".join(f"> <{k}>\n{v}\n\n" for k, v in (properties or {}).items()) + "$$$$\n", mol


@pytest.mark.parametrize("v3000", [False, True])
def test_sdf_coordinates_and_properties(tmp_path, v3000):
    (one, mol), (two, _) = (
        block("CCO", properties={"energy": "-1.5", "dipole": "0 0.1 0.2", "source": "a b"}, v3000=v3000),
        block("[NH4+]", properties={"energy": "2", "dipole": "1 2 3", "source": "c"}, v3000=v3000),
    )
    (tmp_path / "m.sdf").write_text(one + two)
    data = read_sdf(tmp_path / "m.sdf", units={"energy": "kcal/mol", "dipole": "D"})
    assert np.allclose(data[0].pos.numpy(), mol.GetConformer().GetPositions(), atol=1e-4)
    assert data.values("energy").tolist() == pytest.approx([-1.5 * 0.0433641, 2 * 0.0433641], rel=1e-5)
    assert data.values("dipole")[1].tolist() == pytest.approx([0.2081943 * k for k in (1, 2, 3)], rel=1e-6)
    assert (
        data.info["source"] == ("a b", "c")
        and data.info["name"][0] == "name of CCO"
        and data.info["smiles"] == ("CCO", "[NH4+]")
    )
    assert float(data[1].charge) == 1


def test_mol_files_and_missing_hydrogens(tmp_path):
    for name, smiles in (("a", "CCO"), ("b", "CC")):
        (tmp_path / f"{name}.mol").write_text(block(smiles)[0].removesuffix("$$$$\n"))
    data = read_sdf(str(tmp_path / "*.mol"))
    assert [g.num_nodes for g in data] == [9, 8] and data.info["molecule"] == (0, 1)
    (tmp_path / "c.mol").write_text(block("CCO", remove=True)[0].removesuffix("$$$$\n"))
    with pytest.warns(DataWarning, match="1 of 1 molecules lack hydrogens, which were placed"):
        assert read_sdf(tmp_path / "c.mol")[0].num_nodes == 9


def test_metals_and_fragments_with_coordinates(tmp_path):
    text = (
        "\n  x\n\n  2  0  0  0  0  0  0  0  0  0999 V2000\n    0.0000    0.0000    0.1000 Na  0  3\n    2.5000    0.0000    0.0000 Cl  0  5\n"
        "M  CHG  2   1   1   2  -1\nM  END\n"
    )
    (tmp_path / "salt.mol").write_text(text)
    with pytest.raises(DataError, match="multiplicity of a molecule with a metal"):
        read_sdf(tmp_path / "salt.mol")
    data = read_sdf(tmp_path / "salt.mol", keys={"spin": None})
    assert sorted(data[0].z.tolist()) == [11, 17] and float(data[0].charge) == 0 and data[0].spin is None


def test_skip_leaves_a_list(tmp_path):
    with pytest.warns(
        DataWarning,
        match="2 of 4 molecules cannot be used and are left out; all of them are listed in .*bad.csv",
    ):
        data = read_smiles(["C", "CC(", "C1#CC1", "CC"], skip=tmp_path / "bad.csv")
    assert data.info["molecule"] == (0, 3)
    with open(tmp_path / "bad.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["row"], r["molecule"]) for r in rows] == [
        ("1", "CC("),
        ("2", "C1#CC1"),
    ] and "syntax error" in rows[0]["reason"]
    with pytest.raises(DataError, match="none of its 1 molecules can be used"), pytest.warns(DataWarning):
        read_smiles(["CC("], skip=True)


def test_processes_end_with_the_work():
    with Embedder(OPTIONS, 2) as made:
        results = made.map(["C"] * 200)
        assert next(results)["z"] == [6, 1, 1, 1, 1]
    assert made._all and all(p.process.poll() is not None for p in made._all)
    with pytest.raises(KeyboardInterrupt), Embedder(OPTIONS, 2) as made:
        for _ in made.map(["CCCCCC"] * 200):
            raise KeyboardInterrupt
    assert made._all and all(p.process.poll() is not None for p in made._all)


def test_a_crash_costs_one_molecule():
    with Embedder(OPTIONS, 1) as made:
        assert list(made.map(["C"]))[0]["charge"] == 0
        os.kill(made._all[0].process.pid, signal.SIGKILL)
        made._all[0].process.wait()
        first, second = made.map(["C", "CC"])
    assert first["reason"] == "RDKit itself ended at this molecule (signal 9)" and len(second["z"]) == 8


def test_rdkit_that_cannot_start_is_told(tmp_path, monkeypatch):
    (tmp_path / "rdkit.py").write_text("raise ImportError('broken')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match="RDKit cannot be started: ImportError: broken; is it installed"):
        read_smiles(["C"])
