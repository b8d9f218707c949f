"""Atoms that are too close, too far, or without a neighbor within the cutoff."""

import numpy as np

from molequi.data.checks import COINCIDENT, TOO_CLOSE
from molequi.lint.frames import NOBLE, Frames
from molequi.lint.report import Finding, finding


def close_atoms(frames: Frames) -> list[Finding]:
    """Atoms closer than in every bond.

    Parameters
    ----------
    frames : Frames
        The structures.
    """
    found = []
    equal = [k for k, (length, _, _) in frames.short.items() if length < COINCIDENT]
    if equal:
        length, j, i = frames.short[equal[0]]
        text = f"atoms {j} and {i} are {length:.4f} Å apart; wanted every atom once"
        found.append(finding("coincident-atoms", "error", text, frames.origins, equal))
    close = [k for k in frames.short if k not in equal]
    if close:
        length, j, i = min(frames.short[k] for k in close)
        text = (
            f"in {len(close)} of {len(frames)} structures atoms are closer than {TOO_CLOSE} Å, which no "
            f"bond is (H-H has 0.74); the closest have {length:.3f} Å. A wrong unit of length, or a "
            "repulsive wall that is wanted: then allow close-atoms"
        )
        few = len(close) <= max(0.01 * len(frames), 1)
        found.append(finding("close-atoms", "warning" if few else "error", text, frames.origins, close))
    return found


def lonely_atoms(frames: Frames, cutoff: float) -> list[Finding]:
    """Atoms without a neighbor within the cutoff, and those that are far from every other atom.

    Parameters
    ----------
    frames : Frames
        The structures.
    cutoff : float
        Cutoff of the model in Å.
    """
    alone, atoms, far = [], 0, []
    total = int(frames.counts[frames.counts > 1].sum())
    for k in np.flatnonzero(frames.counts > 1).tolist():
        length, _ = frames.near(k)
        lost = np.isinf(length) & ~np.isin(frames.graphs[k].z.numpy(), NOBLE)
        if lost.any():
            far.append(k)
        outside = int((length >= cutoff).sum())
        atoms += outside
        if outside:
            alone.append(k)
    found = []
    if far:
        text = (
            f"in {len(far)} of {len(frames)} structures an atom has no other within 8 Å, which no usual "
            "cutoff reaches: atoms that left, molecules cut by a cell that is not in the file, or a "
            "dissociation"
        )
        found.append(finding("far-atoms", "warning", text, frames.origins, far))
    if alone:
        share = atoms / total
        text = (
            f"{atoms} of {total} atoms have no neighbor within {cutoff:g} Å, so that a model with this "
            "cutoff sees their element alone"
        )
        found.append(
            finding("no-neighbors", "warning" if share >= 0.1 else "info", text, frames.origins, alone)
        )
    return found
