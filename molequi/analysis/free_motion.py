"""What moves freely in a trajectory: velocities and their degrees of freedom, frames dense enough in time."""

import warnings
from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.constraints import FixCom

from molequi.errors import DataWarning


def check_spacing(atoms: Atoms, step: float, per_cm: float) -> None:
    """Warn if vibrations to be expected are faster than frames resolve.

    Parameters
    ----------
    atoms : ase.Atoms
        One of them.
    step : float
        The time between two in ps.
    per_cm : float
        Wavenumber in 1/cm of one THz.
    """
    # 1/cm: H-F has 4138, N≡N 2359
    highest = 4000 if 1 in atoms.numbers else 2400 if np.isin(atoms.numbers, [6, 7, 8]).any() else 0
    if 2 * step * highest > per_cm:
        most = 1e3 * per_cm / (2 * highest)
        warnings.warn(
            f"frames {1e3 * step:g} fs apart resolve {per_cm / (2 * step):.0f} cm⁻¹, and {atoms.symbols} may "
            f"vibrate at up to {highest}: faster vibrations appear at wrong wavenumbers. Wanted frames at "
            f"most {most:.1f} fs apart, of mq.md with every={int(most / 0.5)} at a time step of 0.5 fs",
            DataWarning,
            stacklevel=4,
        )


def free_velocities(frames: Sequence[Atoms]) -> tuple[np.ndarray | None, int]:
    """Velocities without that of the whole, and how many of them are free.

    Parameters
    ----------
    frames : sequence of ase.Atoms
        Frames of one simulation.

    Returns
    -------
    velocities : array, shape (T, N, 3), or None
        In ASE's units; None if the frames have none.
    free : int
        Number of degrees of freedom that share the thermal energy: without what is held, the translation of
        the whole, and in vacuum its rotation if no frame rotates.
    """
    momenta = np.stack([frame.get_momenta() for frame in frames])
    if not momenta.any() or not all(frame.has("momenta") for frame in frames):
        return None, 0
    first, masses = frames[0], frames[0].get_masses()
    velocities = momenta / masses[:, None]
    free, moving = first.get_number_of_degrees_of_freedom(), momenta.any((0, 2))
    if not moving.all():  # what is held does not move as a whole
        return velocities, min(free, 3 * int(moving.sum()))
    velocities -= np.einsum("n,tnd->td", masses, velocities)[:, None] / masses.sum()
    free -= 0 if any(isinstance(c, FixCom) for c in first.constraints) else 3
    if not first.pbc.any():
        free -= _without_rotation(frames, velocities)
    return velocities, free


def _without_rotation(frames: Sequence[Atoms], velocities: np.ndarray) -> int:
    """Number of rotations if no frame rotates, otherwise 0."""
    masses = frames[0].get_masses()
    places = np.stack([frame.positions - frame.get_center_of_mass() for frame in frames])
    squares = np.einsum("n,tna,tnb->tab", masses, places, places)
    inertia = squares.trace(axis1=1, axis2=2)[:, None, None] * np.eye(3) - squares
    momentum = np.einsum("n,tna->ta", masses, np.cross(places, velocities))
    turning = np.einsum("ta,tab,tb->t", momentum, np.linalg.pinv(inertia, rcond=1e-6), momentum).mean()
    if turning > 1e-3 * np.einsum("n,tnd->t", masses, velocities**2).mean():
        return 0
    moments = np.linalg.eigvalsh(inertia.mean(0))
    return int((moments > 0.02 * moments[-1]).sum())  # two of a linear molecule


def continuous(dipoles: np.ndarray, frames: Sequence[Atoms]) -> np.ndarray:
    """Dipoles of periodic frames without jumps by charges times lattice vectors.

    Parameters
    ----------
    dipoles : array, shape (T, 3)
        Dipoles in e Å.
    frames : sequence of ase.Atoms
        The frames.

    Returns
    -------
    array, shape (T, 3)
        Dipoles that change by less than half of such a jump from frame to frame.
    """
    steps = np.diff(dipoles, axis=0)
    for step, frame in zip(steps, frames[1:]):
        if frame.pbc.any():
            cell = frame.cell.complete()
            step -= (np.round(cell.scaled_positions(step)) * frame.pbc) @ cell.array
    return np.concatenate([dipoles[:1], dipoles[0] + steps.cumsum(0)])
