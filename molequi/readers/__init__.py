"""Readers that make a Dataset from files, SMILES, ase.Atoms, torch_geometric, points or simulations."""

from molequi.readers.arrays import read_npz
from molequi.readers.ase import from_atoms, read_ase, read_extxyz, to_atoms
from molequi.readers.download import fetch, unpack
from molequi.readers.hdf5 import read_hdf5
from molequi.readers.load import load_dataset
from molequi.readers.molecules import read_sdf, read_smiles
from molequi.readers.mols import read_mols
from molequi.readers.nbody import nbody
from molequi.readers.npz_writer import write_npz
from molequi.readers.points import read_points
from molequi.readers.pyg import from_pyg, to_pyg
from molequi.readers.pyg_datasets import read_pyg
from molequi.readers.store import read_store

# Readers by the name under which a run file knows them.
READERS = {
    "ase": read_ase,
    "extxyz": read_extxyz,
    "hdf5": read_hdf5,
    "nbody": nbody,
    "npz": read_npz,
    "points": read_points,
    "pyg": read_pyg,
    "sdf": read_sdf,
    "smiles": read_smiles,
    "store": read_store,
}

__all__ = [
    "READERS",
    "fetch",
    "from_atoms",
    "from_pyg",
    "load_dataset",
    "nbody",
    "read_ase",
    "read_extxyz",
    "read_hdf5",
    "read_mols",
    "read_npz",
    "read_points",
    "read_pyg",
    "read_sdf",
    "read_smiles",
    "read_store",
    "to_atoms",
    "to_pyg",
    "unpack",
    "write_npz",
]
