"""A small model, and files of structures and molecules."""

import gzip

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write

from molequi import EGNN, Model, save

FRAMES = 23


@pytest.fixture(scope="session")
def model_file(tmp_path_factory):
    """A model of energies, forces and gaps."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        backbone = EGNN(elements=["H", "C", "N", "O"], channels=4, layers=1, cutoff=4.0)
        model = Model(backbone, ["energy", "forces", "gap"]).double()
    return save(model, tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="session")
def gap_file(tmp_path_factory):
    """A model of gaps alone."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = Model(EGNN(elements=["H", "C", "N", "O"], channels=4, layers=1, cutoff=4.0), ["gap"]).double()
    return save(model, tmp_path_factory.mktemp("gaps") / "model.safetensors")


def water(k: int) -> Atoms:
    """A water molecule, of another shape for each number."""
    random = np.random.default_rng(k)
    atoms = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    atoms.positions += 0.05 * random.normal(size=(3, 3))
    return atoms


@pytest.fixture
def frames(tmp_path):
    path = tmp_path / "waters.xyz"
    write(path, [water(k) for k in range(FRAMES)])
    return path


LIST = "CCO ethanol\nCN methylamine\n\nC1CC cut off\nCC |$a;b$| named\nCS thiol\n[Na+].[Cl-] salt\nO\n"


@pytest.fixture
def smiles(tmp_path):
    path = tmp_path / "library.smi"
    path.write_text(LIST)
    return path


@pytest.fixture
def files(tmp_path, frames, smiles):
    """A file of each kind, plain and compressed."""
    table = tmp_path / "table.csv"
    table.write_bytes(
        b'\xef\xbb\xbfid;"a name\r\nin two lines";smiles\r\n1;"x\r\ny";CCO\r\n\r\n2;"with ; and ""quotes""";CN\r\n3;;C\r\n4;\xc3\xa9;O\r\n5;b;CCC\r\n'
    )
    records = tmp_path / "two.sdf"
    from rdkit import Chem

    mols = [Chem.AddHs(Chem.MolFromSmiles(text)) for text in ("CCO", "CN", "C", "O")]
    records.write_text(
        "".join(f"{Chem.MolToMolBlock(mol)}\n> <id>\n{k}\n\n$$$$\n" for k, mol in enumerate(mols))
    )
    found = [frames, smiles, table, records]
    for path in list(found):
        packed = path.with_name(path.name + ".gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        found.append(packed)
    return found
