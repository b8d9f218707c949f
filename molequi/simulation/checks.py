"""Checks of the settings of a simulation, before its first step."""

from collections.abc import Mapping
from typing import Any, Literal, cast

from ase import Atoms

from molequi.errors import ConfigError
from molequi.simulation.inputs import checked_numbers, properties_of
from molequi.simulation.integrators import Settings, conserves_momentum
from molequi.simulation.options import Barostat, Limits, Thermostat
from molequi.util.options import as_options


def checked_settings(
    ensemble: str,
    temperature: float | None,
    timestep: float,
    thermostat: Thermostat | Mapping[str, Any] | str,
    barostat: Barostat | Mapping[str, Any],
    seed: int,
    every: int,
) -> Settings:
    """The settings of a trajectory.

    Parameters
    ----------
    ensemble, temperature, timestep, thermostat, barostat, seed, every
        Arguments of `molequi.md`.

    Raises
    ------
    ConfigError
        For what is out of range, and for settings that contradict each other.
    """
    if isinstance(temperature, (list, tuple)):
        raise ConfigError(
            f"temperature={temperature!r}: one simulation has one temperature; several run together with "
            f"mq.md_many(atoms, calculator, temperature={temperature!r}, …)"
        )
    numbers = checked_numbers(temperature=temperature, timestep=timestep, seed=seed, every=every)
    if ensemble not in ("nve", "nvt", "npt", "langevin"):
        raise ConfigError(
            f"ensemble={ensemble!r}: wanted 'nve' (constant energy), 'nvt' (constant temperature) or 'npt' "
            "(constant temperature and pressure)"
        )
    if temperature is None and ensemble != "nve":
        raise ConfigError(f"temperature=None: ensemble={ensemble!r} needs one in K")
    bath = as_options(Thermostat, thermostat, "md.thermostat")
    piston = as_options(Barostat, barostat, "md.barostat")
    if ensemble == "langevin" and bath.kind != "langevin":
        raise ConfigError(f"ensemble='langevin' with thermostat {bath.kind!r}: wanted ensemble='nvt'")
    name = cast(Literal["nve", "nvt", "npt"], "nvt" if ensemble == "langevin" else ensemble)
    if temperature == 0 and (name == "npt" or (name == "nvt" and bath.kind != "langevin")):
        raise ConfigError(
            f"temperature=0: ensemble={name!r} with the thermostat {bath.kind!r} needs a temperature above "
            "zero; take ensemble='nve'"
        )
    if name == "nve" and bath != Thermostat():
        raise ConfigError(
            f"ensemble='nve' with thermostat={bath.changed()}: constant energy has no thermostat; leave "
            "thermostat out, or take ensemble='nvt'"
        )
    if name != "npt" and piston != Barostat():
        raise ConfigError(
            f"ensemble={ensemble!r} with barostat={piston.changed()}: the volume is constant; leave barostat "
            "out, or take ensemble='npt'"
        )
    if name == "npt":
        _check_barostat(bath, piston)
    return Settings(ensemble=name, thermostat=bath, barostat=piston, **numbers)


def _check_barostat(bath: Thermostat, piston: Barostat) -> None:
    """Raise ConfigError if there is no barostat for the thermostat."""
    if bath.kind == "bussi":
        raise ConfigError(
            "ensemble='npt' with thermostat 'bussi': there is no barostat for it; wanted 'langevin' or "
            "'nose-hoover'"
        )
    if piston.cell == "anisotropic" and bath.kind != "nose-hoover":
        raise ConfigError(
            f"barostat={{'cell': 'anisotropic'}} with thermostat {bath.kind!r}: cells that change their "
            "shape need thermostat='nose-hoover'"
        )


def check_ensemble(atoms: Atoms, settings: Settings, limits: Limits) -> bool:
    """Check that calculator and structure have what the ensemble and the limits need.

    Parameters
    ----------
    atoms : ase.Atoms
        The structure with its calculator.
    settings : Settings
        What decides the trajectory.
    limits : Limits
        What stops it.

    Returns
    -------
    bool
        Whether the velocities begin without drift and rotation of the whole.

    Raises
    ------
    ConfigError
        If something is missing.
    """
    stds = getattr(getattr(atoms.calc, "model", None), "stds", {})
    if limits.max_std is not None and "forces" not in stds:
        raise ConfigError(
            f"limits.max_std={limits.max_std:g}: the calculator gives no standard deviation of the forces; "
            "wanted an Ensemble, its file, or a Calculator of one"
        )
    kinds = ", ".join(type(constraint).__name__ for constraint in atoms.constraints)
    if settings.ensemble == "npt":
        known = properties_of(atoms.calc)
        if not (atoms.pbc.all() and atoms.cell.volume > 0 and "stress" in known):
            raise ConfigError(
                f"ensemble='npt' with pbc={atoms.pbc.tolist()}, a cell of {atoms.cell.volume:g} Å^3 and a "
                f"calculator of {', '.join(known)}: wanted a structure periodic in three directions, and "
                "stress"
            )
        if kinds:
            raise ConfigError(
                f"ensemble='npt' with {kinds}: a change of the volume would move constrained atoms; wanted a "
                "structure without constraints, remove them with atoms.set_constraint() or choose 'nvt'"
            )
    if not settings.scales_velocities:
        return settings.ensemble == "nve"
    if kinds and settings.thermostat.kind == "nose-hoover":
        raise ConfigError(
            f"thermostat 'nose-hoover' with {kinds}: it does not count constraints; wanted 'langevin' or "
            "'bussi', or a structure without constraints"
        )
    still = not kinds and conserves_momentum(atoms)
    if still and len(atoms) == 1:
        raise ConfigError(
            f"thermostat {settings.thermostat.kind!r} with one atom: without forces it keeps its velocity; "
            "wanted thermostat='langevin'"
        )
    return still
