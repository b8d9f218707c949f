"""Whether a model conserves energy: a short simulation of one new structure."""

import warnings
from dataclasses import dataclass

from molequi.data.dataset import Dataset
from molequi.errors import MolequiError, SimulationError
from molequi.model import Model
from molequi.readers.ase import to_atoms

MOST = 200  # atoms
TEMPERATURE, TIMESTEP = 300.0, 0.5  # K, fs


@dataclass(frozen=True)
class Conservation:
    """How well a model conserves the total energy of a structure.

    Parameters
    ----------
    structure : str
        Where the structure came from.
    steps : int
        Number of steps of 0.5 fs, from velocities of 300 K.
    slope, rms : float
        Slope of the total energy in meV/atom/ps, and root mean square deviation from the line in meV/atom;
        NaN if the simulation was stopped.
    stopped : str
        Why it was stopped; empty if it was not.
    """

    structure: str
    steps: int
    slope: float
    rms: float
    stopped: str = ""


def conservation(model: Model, data: Dataset, steps: int) -> Conservation | None:
    """Simulate the smallest structure of several atoms at constant energy.

    Parameters
    ----------
    model : Model
        The model.
    data : Dataset
        New structures.
    steps : int
        Number of time steps; 0 for none.

    Returns
    -------
    Conservation or None
        None without steps, for structures of more than 200 atoms, and for models that cannot be simulated.
    """
    several = [k for k, count in enumerate(data.counts) if 2 <= count <= MOST]
    points = model.elements == (0,) or data.graphs.dim != 3
    if not steps or not several or points or not {"energy", "forces"} <= set(model.quantities):
        return None
    from molequi.simulation.dynamics import md  # a second of imports that no other training needs

    chosen = min(several, key=lambda k: data.counts[k])
    where = data.origins[chosen]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a simulation of the starting model is expected to be odd
            found = md(
                to_atoms(data[chosen]),
                model.plain(),
                temperature=TEMPERATURE,
                timestep=TIMESTEP,
                steps=steps,
                every=max(1, steps // 50),
                progress=False,
            )
    except SimulationError as error:
        return Conservation(where, steps, float("nan"), float("nan"), str(error).splitlines()[0][:200])
    except MolequiError:  # such as a model that reads what a simulation does not have
        return None
    return Conservation(where, steps, *found.drift)
