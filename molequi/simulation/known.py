"""Simulations that go where the model has learnt nothing: energies far below those of its training data."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
from ase import Atoms

from molequi.errors import SimulationWarning
from molequi.inference.known_energies import too_low

_TOLD_BY_CALLER: ContextVar[bool] = ContextVar("told_by_caller", default=False)


@contextmanager
def told_by_caller() -> Iterator[None]:
    """In the block `warn_of_energy` warns of nothing: the caller reports these energies itself."""
    token = _TOLD_BY_CALLER.set(True)
    try:
        yield
    finally:
        _TOLD_BY_CALLER.reset(token)


def energy_note(
    atoms: Atoms, energies: Sequence[float] | np.ndarray, times: Sequence[float] | np.ndarray
) -> str:
    """What is wrong with the energies of a simulation; an empty string if nothing is known to be.

    Parameters
    ----------
    atoms : ase.Atoms
        The structure, with the calculator of the simulation.
    energies : array, shape (T,)
        Potential energies in eV.
    times : array, shape (T,)
        Times in ps; empty for a structure without a time.
    """
    below = too_low(getattr(atoms.calc, "model", None), atoms.numbers, energies)
    if not below.any():
        return ""
    since = f"from {times[int(np.argmax(below > 0))]:g} ps on, " if len(times) else ""
    return (
        f"{since}the energy is up to {below.max():.2f} eV/atom below that of every training structure. The "
        "model has learnt nothing there, and the structure may be one that does not exist. Compute some of "
        "these frames with the reference method, add them to the training data, and train again; or train an "
        "ensemble (seed=[0, 1, 2], --members 3) and stop where its members disagree (Limits(max_std=…), "
        "--max-std)"
    )


def warn_of_energy(atoms: Atoms, time: float) -> bool:
    """Warn (SimulationWarning) if the energy of a frame is far below that of the training data.

    Parameters
    ----------
    atoms : ase.Atoms
        The frame, with its calculator.
    time : float
        Its time in ps.

    Returns
    -------
    bool
        Whether a warning was issued, or is left to the caller.
    """
    if _TOLD_BY_CALLER.get():
        return True
    note = energy_note(atoms, [float(atoms.get_potential_energy())], [time])
    if note:
        warnings.warn(note, SimulationWarning, stacklevel=4)
    return bool(note)
