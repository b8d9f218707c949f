"""Labels that are missing, invented, repeated or far from all others."""

import numpy as np
import torch

from molequi.lint.frames import Frames
from molequi.lint.report import Finding, finding

_RUN = 3  # structures in a row
_GAPS = 50  # that are tried at each end
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
        lacking = np.flatnonzero(~frames.known(name)).tolist()
        if lacking:
            some = int(frames.labelled(name)[lacking].sum())
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
    resting = (frames.strongest == 0.0) & (frames.counts > 1)
    bound = np.flatnonzero(resting & ~frames.periodic & (frames.tightest < 1.3)).tolist()
    if bound and (frames.strongest > 0.0).any():
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
        own = np.intersect1d(members, zero)
        # Of energies that are counted from the lowest one, one is zero in each of a few runs.
        if different and (energy.min() < 0 < energy.max() or len(own) > max(_RUN, 0.02 * len(members))):
            chosen += own.tolist()
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
    before = slice(None, -1)
    alike = (frames.counts[1:] == frames.counts[before]) & (frames.part[1:] == frames.part[before])
    strong, energy = frames.strongest, frames.energy
    forces = alike & (frames.counts[1:] > 1) & (strong[1:] == strong[before]) & (strong[1:] > 0.0)
    energies = alike & (energy[1:] == energy[before]) & (energy[1:] != 0.0)
    numbers = []
    stays, last = 0, -1
    for k in (np.flatnonzero(forces | energies) + 1).tolist():
        stays = stays if k == last + 1 else 0
        last = k
        a, b = frames.graph(k - 1), frames.graph(k)
        if float((a.pos - b.pos).abs().max()) <= 1e-3:
            stays = 0
            continue
        if forces[k - 1] and torch.equal(a.targets["forces"], b.targets["forces"]):
            numbers.append(k)
        stays = stays + 1 if energies[k - 1] else 0
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
            far += known[apart].tolist()
    far = [k for k, ratio in zip(far, frames.tightest_of(far)) if ratio > _PRESSED]
    if far:
        text = (
            f"the energy of {len(far)} of {len(frames)} structures is separated from all others of the same "
            "atoms by a gap wider than three times their range: another electronic state, a calculation "
            "that did not converge, or a reaction; look at them"
        )
        found.append(finding("energy-outliers", "warning", text, frames.origins, far))
    strong = np.flatnonzero(frames.strongest > _LARGEST).tolist()
    strong = [k for k, ratio in zip(strong, frames.tightest_of(strong)) if ratio > _PRESSED]
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
    rows, most = energy[order], max(1, len(energy) // 100)
    step = np.diff(rows)
    # No gap counts that is narrower than what is left in any case.
    least = max(3 * float(np.ptp(rows[most : len(rows) - most])), least)
    lows = [0, *(np.flatnonzero(step[:most] > least) + 1).tolist()]
    highs = [0, *(most - np.flatnonzero(step[len(step) - most :] > least)).tolist()]
    apart = np.zeros(len(energy), dtype=bool)
    for low in lows[:_GAPS]:
        for high in highs[:_GAPS]:
            inner = rows[low : len(rows) - high]
            gaps = [inner[0] - rows[low - 1]] if low else []
            gaps += [rows[len(rows) - high] - inner[-1]] if high else []
            if low + high <= most and gaps and min(gaps) > max(3 * np.ptp(inner), least):
                apart[order[:low]] = True
                apart[order[len(rows) - high :]] = True
                return apart
    return apart
