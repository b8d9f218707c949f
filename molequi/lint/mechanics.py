"""Forces on a whole structure: they add up to zero, and those on a molecule do not turn it."""

import numpy as np

from molequi.lint.frames import Frames
from molequi.lint.report import Finding, finding

_RELATIVE = 0.02  # of the sum of the absolute values; converged calculations have 1e-9 to 5e-4
_NET = 0.05  # eV/Å and atom: grids of plane-wave codes give up to 0.01
_TORQUE = 0.05  # eV and atom


def sums_of_forces(frames: Frames) -> list[Finding]:
    """Net force and net torque, which are zero for an energy that does not change if all atoms move together.

    That holds for every isolated or periodic structure. Exceptions are external fields, fixed atoms whose
    forces were set to zero, and atoms that are not in the file.

    Parameters
    ----------
    frames : Frames
        The structures.
    """
    pushed, turned = np.zeros(len(frames), bool), np.zeros(len(frames), bool)
    tried = isolated = 0
    for block in frames.blocks(frames.known("forces") & (frames.counts > 1)):
        force, n = block.forces, block.z.shape[1]
        if force is None or force.shape[2] != 3:
            continue
        size = np.linalg.norm(force, axis=2)
        net = np.linalg.norm(force.sum(1), axis=1)
        own = (net > _RELATIVE * size.sum(1)) & (net / n > _NET)
        pushed[block.numbers] = own
        alone = ~block.periodic & ~own
        arm = block.pos - block.pos.mean(1, keepdims=True)
        torque = np.linalg.norm(np.cross(arm, force).sum(1), axis=1)
        lever = (np.linalg.norm(arm, axis=2) * size).sum(1)
        turned[block.numbers] = alone & (torque > _RELATIVE * lever) & (torque / n > _TORQUE)
        tried, isolated = tried + len(force), isolated + int(alone.sum())
    found = []
    if pushed.any():
        few = pushed.sum() < 0.5 * tried
        text = (
            f"forces of {pushed.sum()} of {tried} structures do not add up to zero, as those of an isolated "
            "or periodic structure do: "
            + ("forces of another structure" if few else "an external field, fixed atoms")
            + ", or atoms that are missing in the file"
        )
        found.append(finding("net-force", "warning", text, frames.origins, np.flatnonzero(pushed).tolist()))
    if turned.any():
        few = turned.sum() < 0.5 * isolated
        why = (
            "forces of another structure"
            if few
            else "forces in another orientation than the positions (as in Gaussian's standard orientation), "
            "forces of other structures, an external field, or a lost periodic cell"
        )
        text = (
            f"forces of {turned.sum()} of {isolated} structures would turn the whole molecule, which no "
            f"forces between its atoms do: {why}"
        )
        severity = "error" if few else "warning"
        numbers = np.flatnonzero(turned).tolist()
        found.append(finding("net-torque", severity, text, frames.origins, numbers))  # type: ignore[arg-type]
    return found
