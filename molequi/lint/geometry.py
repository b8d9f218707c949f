"""Atoms that are too close, too far, or without a neighbor within the cutoff."""

import numpy as np

from molequi.data.checks import COINCIDENT, TOO_CLOSE, short_pairs
from molequi.lint.frames import NOBLE, Frames
from molequi.lint.report import Finding, finding


def close_atoms(frames: Frames) -> list[Finding]:
    """Atoms closer than in every bond.

    Parameters
    ----------
    frames : Frames
        The structures.
    """
    nearest = np.minimum.reduceat(frames.near_length, frames.starts)
    found = []
    equal = np.flatnonzero(nearest < COINCIDENT).tolist()
    if equal:
        length, j, i = short_pairs([frames.graph(equal[0])])[0]
        text = f"atoms {j} and {i} are {length:.4f} Å apart; wanted every atom once"
        found.append(finding("coincident-atoms", "error", text, frames.origins, equal))
    close = np.flatnonzero((nearest < TOO_CLOSE) & (nearest >= COINCIDENT)).tolist()
    if close:
        text = (
            f"in {len(close)} of {len(frames)} structures atoms are closer than {TOO_CLOSE} Å, which no "
            f"bond is (H-H has 0.74); the closest have {nearest[close].min():.3f} Å. A wrong unit of length, "
            "or a repulsive wall that is wanted: then allow close-atoms"
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
    several = np.repeat(frames.counts > 1, frames.counts)
    total = int((several & ~np.isnan(frames.near_length)).sum())
    lost = several & np.isinf(frames.near_length) & ~np.isin(frames.z, NOBLE)
    far = np.flatnonzero(np.logical_or.reduceat(lost, frames.starts)).tolist()
    outside = several & (frames.near_length >= cutoff)
    atoms = int(outside.sum())
    alone = np.flatnonzero(np.logical_or.reduceat(outside, frames.starts)).tolist()
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
