"""A reader of your own: a folder of Turbomole's coordinate files, each with the energy of its structure in a file beside it."""

import os
from pathlib import Path

import torch
from ase.units import Bohr, Hartree

from molequi import Dataset, Graph
from molequi.errors import DataError


def read_turbomole(folder: str | os.PathLike) -> Dataset:
    """Read ``<name>.coord`` (``$coord``, x y z symbol, Bohr) and ``<name>.energy`` (Hartree).

    Raises
    ------
    DataError
        For a folder without coordinate files, and for a line that is no atom.
    """
    paths = sorted(Path(folder).glob("*.coord"))
    if not paths:
        raise DataError(f"{folder}: no file ends in .coord")
    graphs = []
    for path in paths:
        symbols, pos = [], []
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if line.startswith("$"):
                continue
            try:
                x, y, z, symbol = line.split()
                pos.append([float(x) * Bohr, float(y) * Bohr, float(z) * Bohr])
            except ValueError as error:
                raise DataError(f"{path}, line {number}: found {line!r}; wanted x y z symbol") from error
            symbols.append(symbol.capitalize())
        energy = float(path.with_suffix(".energy").read_text()) * Hartree
        targets = {"energy": torch.tensor([energy], dtype=torch.float64)}
        graphs.append(Graph.single(torch.tensor(pos, dtype=torch.float64), symbols, targets=targets))
    return Dataset(graphs)
