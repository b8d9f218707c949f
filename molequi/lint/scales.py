"""Units that energies, forces and positions show by themselves, without each other."""

import numpy as np
from ase.data import covalent_radii

from molequi.data.checks import implausible_labels
from molequi.data.units import factor
from molequi.lint.frames import NOBLE, Frames
from molequi.lint.report import Finding, finding
from molequi.quantities import SYMBOLS

_SAMPLE = 100  # structures of which distances are taken
_BOHR, _NM = (1.6, 2.2), (0.06, 0.17)  # of nearest distances over covalent radii
_STIFFNESS = {6: 31.0, 7: 43.0, 8: 45.0}  # eV/Å², of bonds to hydrogen
_TOLERANCE = 4.0  # hydrogen bonds and temperature change the stiffness by a half at most
_BOND = 1.3  # times the sum of the covalent radii
_LIGHT = 18  # heavier atoms have relativistic energies


def unit_of_length(frames: Frames) -> list[Finding]:
    """Positions in Bohr, nm or pm, from nearest neighbors over the sum of their covalent radii.

    That is 0.9 to 1.2 in molecules, metals and ionic crystals alike, and 1.9 times as much in Bohr. Noble
    gases have no bonds and are left out. Of data that contain bonds and dissociated atoms, the shortest
    tenth are bonds.

    Parameters
    ----------
    frames : Frames
        The structures.
    """
    numbers = np.unique(np.linspace(0, len(frames) - 1, min(_SAMPLE, len(frames))).astype(int)).tolist()
    ratio = [
        frames.near(k)[1][~np.isin(frames.graphs[k].z.numpy(), NOBLE)]
        for k in numbers
        if frames.counts[k] > 1 or frames.graphs[k].pbc is not None
    ]
    near = np.concatenate(ratio) if ratio else np.zeros(0)
    if len(near) < 10:
        return []
    low, middle = (
        np.quantile(near[np.isfinite(near)], [0.1, 0.5]) if np.isfinite(near).mean() > 0.5 else (0, 0)
    )
    unit = ""
    if _BOHR[0] < middle < _BOHR[1] and low > 1.4:
        unit = "Bohr"
    elif _NM[0] < middle < _NM[1]:
        unit = "nm"
    if not unit:
        return []
    text = (
        f"atoms are {middle:.2g} times the sum of their covalent radii from their nearest neighbors, where "
        f"bonds have 0.9 to 1.2. That fits positions in {unit}: say units={{'positions': {unit!r}}}"
    )
    return [finding("length-unit", "error", text, frames.origins, range(len(frames)))]


def unit_of_forces(frames: Frames) -> list[Finding]:
    """Unit and sign of the forces, from the stiffness of bonds to hydrogen.

    A hydrogen with one neighbor is a spring: the force along the bond is -k (d - d₀). The frequencies of the
    stretching vibrations, 3000 cm⁻¹ of C-H, 3400 of N-H and 3600 of O-H, give k = μ ω² = 31, 40 and 45 eV/Å²,
    whatever the molecule. A unit that is wrong by 23 or more cannot hide in that.

    Parameters
    ----------
    frames : Frames
        The structures.
    """
    springs, owners = _springs_of(frames)
    stiffness = {}
    for element, (d, f) in springs.items():
        if len(d) >= 30 and d.std() > 0.003 and f.std() > 0 and abs(np.corrcoef(d, f)[0, 1]) > 0.7:
            stiffness[element] = -float(np.polyfit(d, f, 1)[0])
    if not stiffness:
        return []
    element = max(stiffness, key=lambda e: len(springs[e][0]))
    off = stiffness[element] / _STIFFNESS[element]
    if 1 / _TOLERANCE < off < _TOLERANCE:
        return []
    said = (
        f"{SYMBOLS[element]}-H bonds have a stiffness of {stiffness[element]:.3g} eV/Å²; about "
        f"{_STIFFNESS[element]:g} is known"
    )
    if 1 / _TOLERANCE < -off < _TOLERANCE:
        text = f"{said}: the forces have the wrong sign (gradients); read them with 'sign': -1 in keys"
    else:
        names = ("kcal/mol/Å", "kJ/mol/Å", "Hartree/Bohr", "Hartree/Å", "meV/Å")
        units = {u: 1 / factor(u, "eV/Å") for u in names}
        near = {u: abs(np.log(abs(off) / value)) for u, value in units.items()}
        fits = ", or ".join(u for u, by in sorted(near.items(), key=lambda item: item[1]) if by < 0.4)
        text = (
            f"{said}. That fits forces in {fits}: say units={{'forces': …}}" if fits else f"{said}, in eV/Å"
        )
        text += ", and 'sign': -1 in keys" if off < 0 else ""
    return [finding("force-unit", "error", text, frames.origins, owners)]


def _springs_of(frames: Frames) -> tuple[dict[int, tuple[np.ndarray, np.ndarray]], list[int]]:
    """Lengths of bonds to hydrogen and forces along them, by the element of the other atom; and the
    structures.
    """
    found: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    owners = []
    for k, force in enumerate(frames.forces):
        graph = frames.graphs[k]
        z = graph.z.numpy()
        if force is None or 1 not in z or not 2 <= len(z) <= 200 or graph.pbc is not None:
            continue
        one, other, d, along = _springs(graph.pos.numpy(), z)
        pull = (force[one] * along).sum(1)
        owners += [k] if len(one) else []
        for element in set(z[other].tolist()):
            rows = z[other] == element
            found.setdefault(element, []).append((d[rows], pull[rows]))
    joined = {
        e: (np.concatenate([d for d, _ in v]), np.concatenate([f for _, f in v])) for e, v in found.items()
    }
    return joined, owners


def _springs(pos: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Hydrogens with one bond, to C, N or O: both atoms, length and direction of the bond."""
    h = np.flatnonzero(z == 1)
    step = pos[h][:, None] - pos[None]
    length = np.linalg.norm(step, axis=2)
    length[np.arange(len(h)), h] = np.inf
    ratio = length / (covalent_radii[1] + covalent_radii[z])
    first = ratio.argmin(1)
    single = ((ratio < _BOND).sum(1) == 1) & np.isin(z[first], list(_STIFFNESS))
    rows = np.arange(len(h))[single]
    d = length[rows, first[rows]]
    return h[single], first[rows], d, step[rows, first[rows]] / d[:, None]


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
    total = np.array([_atoms(frames.graphs[k].z.numpy()).sum() for k in several])
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
