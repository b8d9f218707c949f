"""Strain: the energy that structures lose when they are relaxed."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from molequi.errors import MolequiError
from molequi.graph import Graph
from molequi.readers.ase import to_atoms
from molequi.simulation.inputs import as_calculator
from molequi.simulation.relaxation import relax

STEPS = 500


@dataclass(frozen=True, repr=False)
class Strain:
    """Change of energy on relaxation.

    Parameters
    ----------
    mean, median : float
        Of the structures that were relaxed, in eV per structure.
    count : int
        Number of structures that were relaxed.
    failed : int
        Number of structures whose energy could not be computed or that did not relax in 500 steps.
    method : str
        What computed energies.
    """

    mean: float
    median: float
    count: int
    failed: int
    method: str

    def __str__(self) -> str:
        if not self.count:
            return f"none of {self.failed} structures could be relaxed ({self.method})"
        failed = f", {self.failed} failed" if self.failed else ""
        of = f"{self.method}, {self.count} structures{failed}"
        return f"mean {self.mean:.3f} eV, median {self.median:.3f} eV ({of})"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from molequi.util.html import html_facts

        return html_facts({"strain": str(self)})


def strain_of(graphs: Sequence[Graph], energies: Any, *, fmax: float = 0.05) -> Strain:
    """Relax structures and measure the energies that they lose.

    Parameters
    ----------
    graphs : sequence of Graph
        Single structures.
    energies : str, Model, path or ASE calculator
        ``"gfn2-xtb"`` (tblite, ``pip install 'molequi[xtb]'``), ``"gfn1-xtb"``, or a model of energies.
    fmax : float
        Largest force in eV/Å at the end.

    Returns
    -------
    Strain
    """
    lost: list[float] = []
    failed = 0
    for graph in graphs:
        atoms = to_atoms(graph, {})
        calculator = as_calculator(energies)
        try:
            atoms.calc = calculator
            before = float(atoms.get_potential_energy())
            found = relax(atoms, calculator, fmax=fmax, steps=STEPS, progress=False)
        except (MolequiError, RuntimeError):
            failed += 1
            continue
        if not found.converged:
            failed += 1
            continue
        lost.append(before - float(found.energy))
    method = energies if isinstance(energies, str) else type(energies).__name__
    if not lost:
        return Strain(math.nan, math.nan, 0, failed, method)
    return Strain(statistics.fmean(lost), statistics.median(lost), len(lost), failed, method)
