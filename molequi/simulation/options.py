"""Groups of options of a simulation: thermostat, barostat, and limits that stop it."""

from dataclasses import dataclass, fields
from numbers import Real
from typing import Annotated

from annotated_types import Gt

from molequi.util.options import Options
from molequi.util.signature import check_keywords


class SimulationOptions(Options):
    """Base of the groups; numbers of NumPy are accepted and become floats."""

    def __post_init__(self) -> None:
        """Raise ConfigError for wrong types and values out of range."""
        for f in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = getattr(self, f.name)
            if isinstance(value, Real) and not isinstance(value, bool):
                object.__setattr__(self, f.name, float(value))
        super().__post_init__()


@check_keywords()
@dataclass(frozen=True)
class Thermostat(SimulationOptions):
    """How strongly atoms are coupled to the heat bath, for ``ensemble="langevin"`` and ``"npt"``.

    Parameters
    ----------
    friction : float, > 0
        Friction in 1/fs. Velocities forget their past within about 1 / friction.
    """

    friction: Annotated[float, Gt(0)] = 0.01


@check_keywords()
@dataclass(frozen=True)
class Barostat(SimulationOptions):
    """The pressure, and how fast the volume follows it, for ``ensemble="npt"``.

    Parameters
    ----------
    pressure : float
        Pressure in bar. A negative one stretches.
    time : float, > 0
        Time constant of the volume in fs.
    """

    pressure: float = 1.0
    time: Annotated[float, Gt(0)] = 1000.0


@check_keywords()
@dataclass(frozen=True)
class Limits(SimulationOptions):
    """What stops a simulation, because its forces mean nothing beyond. The last good frame is kept.

    Parameters
    ----------
    max_heating : float, > 0
        How far the temperature may rise above the one that it should have, in K.
    max_force : float, > 0
        Largest force on an atom in eV/Å.
    max_std : float, > 0, optional
        Largest standard deviation of the force on an atom over the members of an `Ensemble` (``forces_std``),
        in eV/Å. Members differ where they were not trained.
    """

    max_heating: Annotated[float, Gt(0)] = 1e4
    max_force: Annotated[float, Gt(0)] = 1e3
    max_std: Annotated[float, Gt(0)] | None = None
