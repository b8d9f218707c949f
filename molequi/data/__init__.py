"""Structures with labels: reading, splitting, statistics, neighbour lists."""

from molequi.data.arrays import read_npz, write_npz
from molequi.data.atoms import from_atoms, read_ase, read_extxyz, to_atoms
from molequi.data.coerce import as_dataset
from molequi.data.dataset import Dataset, DataWarning, Source, duplicates
from molequi.data.download import fetch, unpack
from molequi.data.labels import Key
from molequi.data.molecules import read_sdf, read_smiles
from molequi.data.nbody import nbody
from molequi.data.points import read_points
from molequi.data.pyg import from_pyg, read_pyg, to_pyg
from molequi.data.stabilizer import breaking_set, broken, stabilizer
from molequi.data.statistics import Statistics

READERS = {"ase": read_ase, "extxyz": read_extxyz, "nbody": nbody, "npz": read_npz, "points": read_points, "pyg": read_pyg,
           "sdf": read_sdf, "smiles": read_smiles}

__all__ = [
    "READERS",
    "DataWarning",
    "Dataset",
    "Key",
    "Source",
    "Statistics",
    "as_dataset",
    "breaking_set",
    "broken",
    "duplicates",
    "fetch",
    "from_atoms",
    "from_pyg",
    "nbody",
    "read_ase",
    "read_extxyz",
    "read_npz",
    "read_points",
    "read_pyg",
    "read_sdf",
    "read_smiles",
    "stabilizer",
    "to_atoms",
    "to_pyg",
    "unpack",
    "write_npz",
]
