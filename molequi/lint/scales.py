"""Units that energies, forces and positions show by themselves, without each other."""

import numpy as np

from molequi.data.checks import implausible_labels
from molequi.data.units import factor
from molequi.lint.fits import medians_of
from molequi.lint.frames import NOBLE, Frames
from molequi.lint.report import Finding, finding

_BOHR, _NM = (1.6, 2.2), (0.06, 0.17)  # of nearest distances over covalent radii
_STRETCHED = 1.4  # no shorter one is a bond in Bohr
_BONDS, _OF_SOME = (0.7, 1.25), (1.45, 2.3)  # of single structures, in Å and in Bohr
_LIGHT = 18  # heavier atoms have relativistic energies


def unit_of_length(frames: Frames) -> list[Finding]:
    """Positions in Bohr or nm, from nearest neighbors over the sum of their covalent radii.

    That is 0.9 to 1.2 in molecules, metals and ionic crystals alike, and 1.9 times as much in Bohr. Noble
    gases have no bonds and are left out. Of data that contain bonds and dissociated atoms, the shortest
    tenth are bonds.

    Parameters
    ----------
    frames : Frames
        The structures.
    """
    near = frames.near_ratio[_with_bonds(frames)]
    if len(near) < 10 or np.isfinite(near).mean() <= 0.5:
        return []
    low, middle = np.quantile(near[np.isfinite(near)], [0.1, 0.5])
    unit = ""
    if _BOHR[0] < middle < _BOHR[1] and low > _STRETCHED:
        unit = "Bohr"
    elif _NM[0] < middle < _NM[1] and (near < _NM[1]).mean() > 0.9:
        unit = "nm"
    if not unit:
        return []
    text = (
        f"atoms are {middle:.2g} times the sum of their covalent radii from their nearest neighbors, where "
        f"bonds have 0.9 to 1.2. That fits positions in {unit}: say units={{'positions': {unit!r}}}"
    )
    return [finding("length-unit", "error", text, frames.origins, range(len(frames)))]


def unit_of_some_lengths(frames: Frames) -> tuple[list[Finding], np.ndarray]:
    """Structures with positions in Bohr or nm among others in Å.

    In each of them, the median of the distances is that of the other unit, and no bond is as short as usual.
    Nearly no structure may lie between, as in a scan of distances.

    Parameters
    ----------
    frames : Frames
        The structures.

    Returns
    -------
    (list of Finding, array of bool)
        And the structures that are meant.
    """
    rows = np.flatnonzero(_with_bonds(frames) & ~np.isnan(frames.near_ratio))
    owner = np.repeat(np.arange(len(frames)), frames.counts)[rows]
    middle = medians_of(frames.near_ratio[rows], owner, len(frames))
    usual = (middle > _BONDS[0]) & (middle < _BONDS[1])
    found, foreign = [], np.zeros(len(frames), bool)
    large = (frames.counts > 2) | frames.periodic
    bohr = large & (middle > _OF_SOME[0]) & (middle < _OF_SOME[1]) & (frames.tightest > _BONDS[1])
    between = large & (middle >= _BONDS[1]) & (middle <= _OF_SOME[0])
    nm = (middle > _NM[0]) & (middle < _NM[1])
    for unit, those, least in (("Bohr", bohr, 3), ("nm", nm, 1)):
        if those.sum() < least or usual.sum() < 3 or (unit == "Bohr" and between.sum() > 0.1 * those.sum()):
            continue
        foreign |= those
        text = (
            f"in {those.sum()} of {len(frames)} structures atoms are {np.median(middle[those]):.2g} times "
            "the sum of their covalent radii from their nearest neighbors, and in the others "
            f"{np.median(middle[usual]):.2g} times. That fits positions in {unit} among others in Å: read "
            f"these structures by themselves, with units={{'positions': {unit!r}}}"
        )
        found.append(finding("length-unit", "error", text, frames.origins, np.flatnonzero(those).tolist()))
    return found, foreign


def _with_bonds(frames: Frames) -> np.ndarray:
    """Which atoms have bonds, shape (atoms,)."""
    several = np.repeat((frames.counts > 1) | frames.periodic, frames.counts)
    return several & ~np.isin(frames.z, NOBLE)


def unit_of_energies(frames: Frames) -> list[Finding]:
    """Total energies of all electrons in a unit that is not eV.

    The total energy of an atom is known to 1 % without a table (Englert and Schwinger 1985,
    doi:10.1103/PhysRevA.32.26): -0.768745 Z^(7/3) + Z²/2 - 0.269900 Z^(5/3) Hartree. Bonds add up to 7 eV per
    atom. An energy that meets this in Hartree, kcal/mol or kJ/mol for every structure is of that unit.
    Energies of valence electrons or of atomization do not meet it in any unit.

    Parameters
    ----------
    frames : Frames
        The structures.
    """
    several = np.flatnonzero(np.isfinite(frames.energy) & (frames.counts > 1))
    if len(several) < 3 or max(frames.elements) > _LIGHT:
        return []
    total = np.add.reduceat(_atoms(frames.z), frames.starts)[several]
    low, high = 1.012 * total - 7 * frames.counts[several], 0.99 * total + frames.counts[several]
    if (high >= 0.5 * total).any():
        return []  # little else than hydrogen, whose bonds are as large as its energy
    for unit in ("eV", "Hartree", "kcal/mol", "kJ/mol", "meV"):
        energy = frames.energy[several] * factor(unit, "eV")
        if ((energy > low) & (energy < high)).mean() > 0.95:
            if unit == "eV":
                return []
            ratio = float(np.median(energy / total))
            text = (
                f"energies are {ratio:.3g} times the total energies of the atoms if they are in {unit}, and "
                f"{float(np.median(frames.energy[several] / total)):.3g} times if they are in eV: say "
                f"units={{'energy': {unit!r}}}"
            )
            multiplied = frames.energy[several] * frames.counts[several]
            if ((multiplied > low) & (multiplied < high)).mean() > 0.95:
                text += ". Or they are energies per atom in eV, which these sizes cannot tell"
            return [finding("energy-unit", "error", text, frames.origins, several.tolist())]
    return []


def _atoms(z: np.ndarray) -> np.ndarray:
    """Total energies of atoms in eV."""
    charge = z.astype(float)
    statistical = -0.768745 * charge ** (7 / 3) + charge**2 / 2 - 0.2699 * charge ** (5 / 3)
    return np.where(z == 1, -0.5, statistical) * factor("Hartree", "eV")


def unusual_scales(frames: Frames) -> list[Finding]:
    """What the readers warn of, see `molequi.data.checks.implausible_labels`.

    Parameters
    ----------
    frames : Frames
        The structures.
    """
    found = []
    for data in frames.parts.values():
        for name, sentence in implausible_labels(data).items():
            found.append(finding(name, "warning", sentence, data.origins, range(len(data))))
    return found
