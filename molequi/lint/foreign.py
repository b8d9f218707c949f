"""What may be wrong with the labels of some structures among others: another unit, another sign."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from molequi.data.units import factor
from molequi.lint.frames import Frames
from molequi.lint.report import Finding, finding

ENERGIES = ("kcal/mol", "kJ/mol", "Hartree", "Ry", "meV")
FORCES = ("kcal/mol/Å", "kJ/mol/Å", "Hartree/Bohr", "Hartree/Å", "meV/Å")
STRESSES = ("GPa", "kbar")
_WHAT = {"energy": "energies", "forces": "forces", "stress": "the stress"}


@dataclass(frozen=True)
class Case:
    """A factor by which some labels are multiplied.

    Parameters
    ----------
    quantity : str
        "energy", "forces" or "stress".
    name : str
        Name of the heuristic.
    meaning : str
        What is wrong with labels that need the factor.
    advice : str
        What to do.
    factor : float or array, shape (structures,)
        What such labels are multiplied by to become those that are wanted.
    """

    quantity: str
    name: str
    meaning: str
    advice: str
    factor: float | np.ndarray


_READ = "read these structures by themselves, with {}"


def cases_of_energies(frames: Frames) -> list[Case]:
    """Other units of energies, and energies per atom.

    Parameters
    ----------
    frames : Frames
        The structures.
    """
    found = []
    for unit in ENERGIES:
        advice = _READ.format(f"units={{'energy': {unit!r}}}")
        found.append(Case("energy", "energy-unit", f"are in {unit}", advice, factor(unit, "eV")))
    advice, counts = "multiply them by the number of atoms", frames.counts.astype(float)
    return [*found, Case("energy", "per-atom-energies", "are energies per atom", advice, counts)]


def cases_of_forces() -> list[Case]:
    """Gradients, and forces and gradients in other units."""
    sign, name = "keys={'forces': {'key': …, 'sign': -1}}", "force-unit"
    wrong = "have the wrong sign (gradients)"
    found = [Case("forces", name, wrong, _READ.format(sign), -1.0)]
    for unit in FORCES:
        value, units = factor(unit, "eV/Å"), f"units={{'forces': {unit!r}}}"
        found.append(Case("forces", name, f"are in {unit}", _READ.format(units), value))
        advice = _READ.format(f"{units} and {sign}")
        found.append(Case("forces", name, f"are gradients in {unit}", advice, -value))
    return found


def cases_of_stress(volumes: np.ndarray) -> list[Case]:
    """The opposite sign, other units, and virials.

    Parameters
    ----------
    volumes : array, shape (structures,)
        In Å³.
    """
    sign, name = "keys={'stress': {'key': …, 'sign': -1}}", "stress-unit"
    found = [Case("stress", "stress-sign", "has the opposite sign", _READ.format(sign), -1.0)]
    for unit in STRESSES:
        value, units = factor(unit, "eV/Å^3"), f"units={{'stress': {unit!r}}}"
        found.append(Case("stress", name, f"is in {unit}", _READ.format(units), value))
        advice = _READ.format(f"{units} and {sign}")
        found.append(Case("stress", name, f"is in {unit}, of the opposite sign", advice, -value))
    advice = _READ.format("keys={'stress': {'key': …, 'virial': True}}")
    return [*found, Case("stress", name, "is a virial in eV", advice, -1 / np.maximum(volumes, 1e-9))]


Told = tuple[Case, np.ndarray]


def foreign_findings(frames: Frames, told: Sequence[Told]) -> list[Finding]:
    """One finding for each case, about all structures that any check found.

    Parameters
    ----------
    frames : Frames
        The structures.
    told : sequence of (Case, array of int)
        What is wrong with which structures.
    """
    numbers: dict[str, np.ndarray] = {}
    cases = {case.meaning: case for case, _ in told}
    for case, rows in told:
        numbers[case.meaning] = np.union1d(numbers.get(case.meaning, rows), rows)
    found = []
    for meaning, case in cases.items():
        rows = numbers[meaning]
        text = (
            f"{_WHAT[case.quantity]} of {len(rows)} of {len(frames)} structures {meaning}, and not those of "
            "the others, as sums over elements, energy differences of similar structures or bonds to "
            f"hydrogen show: {case.advice}"
        )
        found.append(finding(case.name, "error", text, frames.origins, rows.tolist()))
    return found
