"""Unit and sign of forces from bonds to hydrogen, of all structures and of some.

A hydrogen with one neighbor is a spring: the force along the bond is -k (d - d₀). The frequencies of the
stretching vibrations, 3000 cm⁻¹ of C-H, 3530 of N-H and 3600 of O-H, give k = μ ω² = 31, 43 and 45 eV/Å²,
whatever the molecule. A unit that is wrong by 23 or more cannot hide in that.
"""

from dataclasses import dataclass

import numpy as np
from ase.data import covalent_radii

from molequi.data.units import factor
from molequi.lint.fits import absolute_fit, medians_of
from molequi.lint.foreign import FORCES
from molequi.lint.frames import Block, Frames
from molequi.lint.report import Finding, finding
from molequi.quantities import SYMBOLS

_STIFFNESS = {6: 31.0, 7: 43.0, 8: 45.0}  # eV/Å², of bonds to hydrogen
_TOLERANCE = 4.0  # hydrogen bonds and temperature change the stiffness by a half at most
_BOND = 1.3  # times the sum of the covalent radii
_ATOMS = 200  # of a molecule, at most
_LEAST = 30  # bonds
_FITTED = 20_000  # bonds of a fit


@dataclass(frozen=True)
class Springs:
    """Bonds to hydrogen, B of them.

    Parameters
    ----------
    owner : array of int, shape (B,)
        Number of the structure.
    element : array of int, shape (B,)
        Atomic number of the other atom.
    length : array, shape (B,)
        Length in Å.
    pull : array, shape (B,)
        Force on the hydrogen along the bond in eV/Å, positive away from the other atom.
    """

    owner: np.ndarray
    element: np.ndarray
    length: np.ndarray
    pull: np.ndarray


@dataclass(frozen=True)
class Line:
    """The force of a bond, ``-stiffness * (length - rest)``.

    Parameters
    ----------
    stiffness : float
        In eV/Å².
    rest : float
        Length without a force in Å.
    """

    stiffness: float
    rest: float


def springs_of(frames: Frames) -> Springs:
    """All hydrogens with one bond, to C, N or O, in molecules.

    Parameters
    ----------
    frames : Frames
        The structures.
    """
    small = frames.known("forces") & ~frames.periodic & (frames.counts >= 2) & (frames.counts <= _ATOMS)
    found = [_of_block(block) for block in frames.blocks(small)]
    if not found:
        none = np.zeros(0)
        return Springs(none.astype(int), none.astype(int), none, none)
    return Springs(*(np.concatenate(column) for column in zip(*found)))


def _of_block(block: Block) -> tuple[np.ndarray, ...]:
    z, pos, forces = block.z, block.pos, block.forces
    assert forces is not None
    n = z.shape[1]
    length = np.linalg.norm(pos[:, :, None] - pos[:, None], axis=3)
    length[:, np.arange(n), np.arange(n)] = np.inf
    ratio = length / (covalent_radii[1] + covalent_radii[z])[:, None]
    first = ratio.argmin(2)
    other = np.take_along_axis(z, first, 1)
    single = (z == 1) & ((ratio < _BOND).sum(2) == 1) & np.isin(other, list(_STIFFNESS))
    row, h = np.nonzero(single)
    step = pos[row, h] - pos[row, first[row, h]]
    d = np.linalg.norm(step, axis=1)
    return block.numbers[row], other[row, h], d, (forces[row, h] * step).sum(1) / d


def lines_of(springs: Springs) -> dict[int, Line]:
    """The force over the length of bonds by element, where it is a line; the majority decides.

    Parameters
    ----------
    springs : Springs
        The bonds.
    """
    found = {}
    for element in _STIFFNESS:
        rows = np.flatnonzero(springs.element == element)
        rows = rows[:: len(rows) // _FITTED + 1]
        d, f = springs.length[rows], springs.pull[rows]
        if len(d) < _LEAST or d.std() < 0.003:
            continue
        slope, start = absolute_fit(np.stack([d - d.mean(), np.ones(len(d))], axis=1), f)
        rest = np.median(np.abs(f - slope * (d - d.mean()) - start))
        if slope and rest < 0.7 * np.median(np.abs(f - np.median(f))):
            found[element] = Line(-float(slope), float(d.mean() - start / slope))
    return found


def unit_of_forces(frames: Frames) -> list[Finding]:
    """Unit and sign of the forces of all structures.

    Parameters
    ----------
    frames : Frames
        The structures.
    """
    springs = springs_of(frames)
    lines = lines_of(springs)
    if not lines:
        return []
    element = max(lines, key=lambda e: int((springs.element == e).sum()))
    off = lines[element].stiffness / _STIFFNESS[element]
    if 1 / _TOLERANCE < off < _TOLERANCE:
        return []
    said = (
        f"{SYMBOLS[element]}-H bonds have a stiffness of {lines[element].stiffness:.3g} eV/Å²; about "
        f"{_STIFFNESS[element]:g} is known"
    )
    if 1 / _TOLERANCE < -off < _TOLERANCE:
        text = f"{said}: the forces have the wrong sign (gradients); read them with 'sign': -1 in keys"
    else:
        near = {u: abs(np.log(abs(off) * factor(u, "eV/Å"))) for u in FORCES}
        fits = ", or ".join(u for u, by in sorted(near.items(), key=lambda item: item[1]) if by < 0.4)
        text = (
            f"{said}. That fits forces in {fits}: say units={{'forces': …}}" if fits else f"{said}, in eV/Å"
        )
        text += ", and 'sign': -1 in keys" if off < 0 else ""
    return [finding("force-unit", "error", text, frames.origins, np.unique(springs.owner).tolist())]


def stiff_frames(frames: Frames, factors: dict[str, float]) -> tuple[str, np.ndarray]:
    """Structures whose bonds to hydrogen fit those of the majority if the forces are multiplied by a factor.

    Parameters
    ----------
    frames : Frames
        The structures.
    factors : dict of str to float
        Factors by what they mean.

    Returns
    -------
    (str, array of int)
        The factor that fits most structures, and their numbers, none if there are fewer than three.
    """
    springs = springs_of(frames)
    lines = lines_of(springs)
    known = np.isin(springs.element, list(lines))
    if not known.any():
        return "", np.zeros(0, dtype=int)
    owner, d, pull = springs.owner[known], springs.length[known], springs.pull[known]
    element = springs.element[known]
    wanted = np.zeros(len(d))
    for e, line in lines.items():
        wanted[element == e] = -line.stiffness * (d[element == e] - line.rest)
    several = np.bincount(owner, minlength=len(frames)) >= 3
    own = medians_of(np.abs(pull - wanted), owner, len(frames))
    usual = float(np.median(own[several])) if several.any() else np.inf
    best, chosen = "", np.zeros(0, dtype=int)
    for name, value in factors.items():
        other = medians_of(np.abs(value * pull - wanted), owner, len(frames))
        numbers = np.flatnonzero(several & (other < own / 3) & (own > 3 * usual))
        rows = np.isin(owner, numbers)
        if len(numbers) < max(3, len(chosen) + 1):
            continue
        slope = float(absolute_fit(wanted[rows, None], value * pull[rows])[0])
        if 0.7 < slope < 1.4:
            best, chosen = name, numbers
    return best, chosen
