"""Labels that are missing, invented, repeated or far from all others."""

import numpy as np
import torch

from molequi.lint.frames import Frames
from molequi.lint.report import Finding, finding

_RUN = 3  # structures in a row
_PER_ATOM = 0.2  # eV per atom
_LARGEST = 50.0  # eV/Å; a C-C bond breaks at 7
_PRESSED = 0.8  # of the sum of the covalent radii: nearer atoms repel each other


def missing_labels(frames: Frames) -> list[Finding]:
    """Labels that some structures have and others have not, or that no structure of a part has.

    Parameters
    ----------
    frames : Frames
        The structures.
    """
    found = []
    names = dict.fromkeys(n for data in frames.parts.values() for n in data.quantities)
    for name in names:
        # A part without a quantity is one whose structures all lack it.
        values = [g.targets.get(name) for g in frames.graphs]
        lacking = [k for k, v in enumerate(values) if v is None or bool(torch.isnan(v).any())]
        if lacking:
            some = sum(1 for k in lacking if (v := values[k]) is not None and not bool(torch.isnan(v).all()))
            text = f"{name}: {len(lacking)} of {len(frames)} structures lack it" + (
                f", {some} of them in part" if some else ""
            )
            found.append(finding("missing-labels", "info", text, frames.origins, lacking))
    return found


def zero_labels(frames: Frames) -> list[Finding]:
    """Energies and forces of exactly zero, as programs write where they computed nothing.

    An energy of zero is invented if all others are far from zero, or if it lies between others of the same
    atoms. So the lowest of energies that are counted from it is none, nor is the energy of a single atom.
    Forces in a crystal may vanish by symmetry, and those between distant atoms may vanish, too.

    Parameters
    ----------
    frames : Frames
        The structures.
    """
    found = []
    known = np.isfinite(frames.energy) & (frames.counts > 1)
    zero = np.flatnonzero(known & (frames.energy == 0.0))
    others = np.flatnonzero(known & (frames.energy != 0.0))
    if len(zero) and len(others) > 2:
        size = np.abs(frames.energy[others]) / frames.counts[others]
        if np.quantile(size, 0.01) < 0.5 * np.median(size):  # energies that are counted from one among them
            zero = _between(frames, zero, others)
    if len(zero) and len(others) > 2:
        text = (
            f"the energy is exactly 0 in {len(zero)} of {int(known.sum())} structures, and "
            f"{np.median(frames.energy[others]):.6g} eV is usual: no calculation gives that; leave them "
            "out, or read them as unknown (NaN with partial=['energy'])"
        )
        found.append(finding("zero-labels", "error", text, frames.origins, zero.tolist()))
    resting = [k for k, f in enumerate(frames.forces) if f is not None and len(f) > 1 and not f.any()]
    moving = any(f is not None and f.any() for f in frames.forces)
    bound = [k for k in resting if frames.graphs[k].pbc is None and float(frames.near(k)[1].min()) < 1.3]
    if moving and bound:
        text = (
            f"all forces are exactly 0 in {len(bound)} of {len(frames)} structures, and other structures "
            "have forces: were they computed? Leave them out, or read them as unknown (NaN with "
            "partial=['forces'])"
        )
        found.append(finding("zero-labels", "error", text, frames.origins, bound))
    return found


def _between(frames: Frames, zero: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Structures of zero energy that lie between others of the same atoms with many different energies."""
    chosen: list[int] = []
    for members in frames.same:
        energy = frames.energy[np.intersect1d(members, others)]
        different = len(np.unique(energy)) > max(10, 0.9 * len(energy))
        if different and energy.min() < 0 < energy.max():
            chosen += np.intersect1d(members, zero).tolist()
    return np.array(sorted(chosen), dtype=int)


def repeated_labels(frames: Frames) -> list[Finding]:
    """Structures in a row with the same labels to the last digit, as a calculation that was not done again
    gives.

    Two structures with all the same forces count, and three or more with the same energy.

    Parameters
    ----------
    frames : Frames
        The structures.
    """
    numbers = []
    stays = 0
    for k in range(1, len(frames)):
        a, b = frames.graphs[k - 1], frames.graphs[k]
        moved = a.pos.shape == b.pos.shape and float((a.pos - b.pos).abs().max()) > 1e-3
        if not moved or frames.part[k] != frames.part[k - 1]:
            stays = 0
            continue
        one, two = frames.forces[k - 1], frames.forces[k]
        if one is not None and two is not None and len(one) > 1 and one.any() and np.array_equal(one, two):
            numbers.append(k)
        same = frames.energy[k] == frames.energy[k - 1] and frames.energy[k] != 0.0
        stays = stays + 1 if same else 0
        if stays >= _RUN - 1 and not _alike(a.pos.numpy(), b.pos.numpy()):
            numbers.append(k)
    numbers = sorted(set(numbers))
    if not numbers:
        return []
    text = (
        f"labels of {len(numbers)} of {len(frames)} structures are those of the structure before to the "
        "last digit, and other positions: a calculation that was not done again; compute them anew or "
        "leave them out"
    )
    return [finding("repeated-labels", "error", text, frames.origins, numbers)]


def _alike(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two structures have the same distances between atoms, so that their energies may be equal."""
    own = [np.sort(np.linalg.norm(p[:, None] - p[None], axis=2).ravel()) for p in (first, second)]
    return bool(np.abs(own[0] - own[1]).max() < 1e-3)


def outliers(frames: Frames) -> list[Finding]:
    """Energies and forces far from all others, which the geometry does not explain.

    Energies of the same atoms count as outliers if they are 1 % of them or fewer, and if a gap separates
    them from the others that is three times as wide as the range of all others, and 0.2 eV per atom or more.
    A force is large above 50 eV/Å. Structures in which atoms are closer than 0.8 of the sum of their
    covalent radii may have any energy and any force.

    Parameters
    ----------
    frames : Frames
        The structures.
    """
    found = []
    far: list[int] = []
    for members in frames.same:
        known = members[np.isfinite(frames.energy[members]) & (frames.energy[members] != 0.0)]
        if len(known) >= 50:
            apart = _apart(frames.energy[known], _PER_ATOM * float(frames.counts[known[0]]))
            far += [k for k in known[apart].tolist() if frames.near(k)[1].min() > _PRESSED]
    if far:
        text = (
            f"the energy of {len(far)} of {len(frames)} structures is separated from all others of the same "
            "atoms by a gap wider than three times their range: another electronic state, a calculation "
            "that did not converge, or a reaction; look at them"
        )
        found.append(finding("energy-outliers", "warning", text, frames.origins, far))
    strong = [
        k
        for k, f in enumerate(frames.forces)
        if f is not None and np.abs(f).max(initial=0.0) > _LARGEST and frames.near(k)[1].min() > _PRESSED
    ]
    if strong:
        text = (
            f"in {len(strong)} of {len(frames)} structures a force is above {_LARGEST:g} eV/Å, and no atoms "
            f"are closer than {_PRESSED:g} of the sum of their covalent radii: no bond bears that"
        )
        found.append(finding("force-outliers", "warning", text, frames.origins, strong))
    return found


def _apart(energy: np.ndarray, least: float) -> np.ndarray:
    """Which energies, 1 % at most, are separated from all others by a wide gap."""
    order = np.argsort(energy)
    sorted_energy = energy[order]
    most = max(1, len(energy) // 100)
    apart = np.zeros(len(energy), dtype=bool)
    for low in range(most + 1):
        for high in range(most + 1 - low):
            inner = sorted_energy[low : len(energy) - high]
            gaps = [inner[0] - sorted_energy[low - 1]] if low else []
            gaps += [sorted_energy[len(energy) - high] - inner[-1]] if high else []
            if gaps and min(gaps) > max(3 * np.ptp(inner), least):
                apart[order[:low]] = True
                apart[order[len(energy) - high :]] = True
                return apart
    return apart
