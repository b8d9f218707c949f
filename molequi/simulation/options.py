"""Groups of options of a simulation: thermostat, barostat, and limits that stop it."""

from dataclasses import dataclass, fields
from numbers import Real
from typing import Annotated, Any, ClassVar, Literal

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
    """The heat bath of ``ensemble="nvt"`` and ``"npt"``. A name alone is its kind.

    Parameters
    ----------
    kind : "langevin", "bussi" or "nose-hoover"
        The method. "langevin" is BAOAB Langevin dynamics (Leimkuhler and Matthews, J. Chem. Phys. 138,
        174102, 2013), also safe for few atoms and stiff bonds. "bussi" scales all velocities by a random
        factor (Bussi, Donadio and Parrinello, J. Chem. Phys. 126, 014101, 2007) and disturbs diffusion and
        vibrations least. "nose-hoover" is a chain of three deterministic thermostats (Martyna, Klein and
        Tuckerman, J. Chem. Phys. 97, 2635, 1992). All three sample the canonical ensemble.
    friction : float, > 0
        Friction of "langevin" in 1/fs. Velocities forget their past within about 1 / friction.
    time : float, > 0
        Time constant of "bussi" and "nose-hoover" in fs.
    """

    kind: Literal["langevin", "bussi", "nose-hoover"] = "langevin"
    friction: Annotated[float, Gt(0)] = 0.01
    time: Annotated[float, Gt(0)] = 100.0
    shorthand: ClassVar[str] = "kind"

    def problem(self) -> str:
        """What contradicts the kind."""
        if self.kind == "langevin" and self.time != 100.0:
            others = "'bussi' and 'nose-hoover'"
            return f"time={self.time:g} is for {others}; wanted friction=… (1/fs) for 'langevin'"
        if self.kind != "langevin" and self.friction != 0.01:
            return f"friction={self.friction:g} is for 'langevin'; wanted time=… (fs) for {self.kind!r}"
        return ""


@check_keywords()
@dataclass(frozen=True)
class Barostat(SimulationOptions):
    """The pressure, and how fast the cell follows it, for ``ensemble="npt"``.

    Parameters
    ----------
    pressure : float
        Pressure in bar. A negative one stretches.
    time : float, > 0
        Time constant of the volume in fs.
    cell : "isotropic" or "anisotropic"
        What changes: the volume alone, or all lengths and angles. "anisotropic" needs the thermostat
        "nose-hoover".
    """

    pressure: float = 1.0
    time: Annotated[float, Gt(0)] = 1000.0
    cell: Literal["isotropic", "anisotropic"] = "isotropic"


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
    guard : Guard, mapping, float or "auto", optional
        Of `md`: watches the uncertainty of the forces of an `Ensemble` or of a model of `molequi.laplace`
        every few steps, and writes the frames to label; see `Guard`. A number is its ``max_std``.
    """

    max_heating: Annotated[float, Gt(0)] = 1e4
    max_force: Annotated[float, Gt(0)] = 1e3
    max_std: Annotated[float, Gt(0)] | None = None
    guard: Any = None  # a Guard or what makes one, which `md` checks
