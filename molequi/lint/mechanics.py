"""Forces on a whole structure: they add up to zero, and those on a molecule do not turn it."""

import numpy as np

from molequi.lint.frames import Frames
from molequi.lint.report import Finding, finding

_RELATIVE = 0.02  # of the sum of the absolute values; converged calculations have 1e-9 to 5e-4
_NET = 0.05  # eV/Å and atom: grids of plane-wave codes give up to 0.01
_TORQUE = 0.05  # eV and atom
_CLOSE = 3.0  # Å: an atom without a neighbor so near may feel other things


def sums_of_forces(frames: Frames) -> list[Finding]:
    """Net force and net torque, which are zero for an energy that does not change if all atoms move together.

    That holds for every isolated or periodic structure. Exceptions are external fields, fixed atoms whose
    forces were set to zero, and atoms that are not in the file.

    Parameters
    ----------
    frames : Frames
        The structures.
    """
    pushed, turned, tried, isolated = [], [], 0, 0
    for k, force in enumerate(frames.forces):
        graph = frames.graphs[k]
        if force is None or len(force) < 2 or graph.dim != 3:
            continue
        size = float(np.linalg.norm(force, axis=1).sum())
        tried += 1
        net = float(np.linalg.norm(force.sum(0)))
        if net > _RELATIVE * size and net / len(force) > _NET:
            pushed.append(k)
            continue
        if graph.pbc is not None:
            continue
        isolated += 1
        arm = graph.pos.numpy() - graph.pos.numpy().mean(0)
        torque = float(np.linalg.norm(np.cross(arm, force).sum(0)))
        lever = float((np.linalg.norm(arm, axis=1) * np.linalg.norm(force, axis=1)).sum())
        if torque > _RELATIVE * lever and torque / len(force) > _TORQUE:
            turned.append(k)
    found = []
    if pushed:
        few = len(pushed) < 0.5 * tried
        text = (
            f"forces of {len(pushed)} of {tried} structures do not add up to zero, as those of an isolated "
            "or periodic structure do: "
            + ("forces of another structure" if few else "an external field, fixed atoms")
            + ", or atoms that are missing in the file"
        )
        found.append(finding("net-force", "warning", text, frames.origins, pushed))
    if turned:
        few = len(turned) < 0.5 * isolated
        why = (
            "forces of another structure"
            if few
            else "forces in another orientation than the positions (as in Gaussian's standard orientation), "
            "forces of other structures, an external field, or a lost periodic cell"
        )
        text = (
            f"forces of {len(turned)} of {isolated} structures would turn the whole molecule, which no "
            f"forces between its atoms do: {why}"
        )
        severity = "error" if few else "warning"
        found.append(finding("net-torque", severity, text, frames.origins, turned))  # type: ignore[arg-type]
    return found
