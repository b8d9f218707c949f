"""Results of molecular dynamics: the last frame, the log, averages, drift and speed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms

from molequi.errors import DataError
from molequi.simulation.files import FILES
from molequi.simulation.known import energy_note
from molequi.simulation.statistics import Average, block_average, equilibration
from molequi.util.html import html_heading, html_table, html_text

# Columns whose averages are reported, with their units.
AVERAGED = {"T": "K", "E_pot": "eV", "pressure": "bar", "volume": "Å³"}
# A temperature this far above the one asked for is not a fluctuation but heat of an unrelaxed start; one as
# far below shows that the thermostat has not heated a relaxed start yet.
_HOT = 1.2


class Drift(NamedTuple):
    """How well a simulation conserves its total energy.

    Parameters
    ----------
    slope : float
        Slope of a straight line through the energies, in meV/atom/ps.
    rms : float
        Root mean square deviation of the energies from that line, in meV/atom.
    """

    slope: float
    rms: float


def drift(times: Sequence[float] | np.ndarray, energies: Sequence[float] | np.ndarray, n_atoms: int) -> Drift:
    """Slope and fluctuation of the total energy of a simulation.

    Parameters
    ----------
    times : array, shape (T,), T >= 3
        Times in ps.
    energies : array, shape (T,)
        Total energies in eV.
    n_atoms : int
        Number of atoms.

    Returns
    -------
    Drift
        ``slope`` in meV/atom/ps and ``rms`` around the line in meV/atom.

    Raises
    ------
    DataError
        If the series have different lengths or fewer than three points, or if there is no atom.

    Examples
    --------
    >>> round(drift([0.0, 1.0, 2.0], [5.0, 5.001, 5.002], n_atoms=2).slope, 9)
    0.5
    """
    t, e = np.asarray(times, dtype=float), np.asarray(energies, dtype=float)
    if t.ndim != 1 or t.shape != e.shape or len(t) < 3 or n_atoms < 1:
        raise DataError(
            f"times {t.shape}, energies {e.shape}, {n_atoms} atoms: wanted two series of the same length, "
            "three or more, and at least one atom"
        )
    # Total energies are large, so both series are centred.
    t, e = t - t.mean(), (e - e.mean()) * 1e3 / n_atoms
    slope = (t @ e) / (t @ t)
    return Drift(float(slope), float(np.sqrt(np.mean((e - slope * t) ** 2))))


@dataclass(frozen=True)
class Dynamics:
    """Result of `md`; printed, a summary.

    Parameters
    ----------
    atoms : ase.Atoms
        The last frame, with velocities and calculator.
    steps : int
        Number of steps, those of earlier calls included.
    time : float
        Simulated time in ps.
    ensemble : str
        The ensemble: "nve", "nvt" or "npt".
    history : dict of str to array
        Columns of ``log.csv``: ``step``, ``time_ps``, ``E_pot``, ``E_kin``, ``E_tot`` (eV), ``T`` (K). The
        thermostats "bussi" and "nose-hoover" add ``E_conserved`` (eV). A structure that is periodic in three
        directions has ``volume`` (Å³) and ``pressure`` (bar), and an `Ensemble` has ``forces_std`` (eV/Å),
        the largest of all atoms. A guard has what it watches: ``forces_std``, or the largest ``distance``.
    out : Path or None
        Folder of the files.
    thermostat : str
        Kind of the thermostat; empty for "nve".
    temperature : float or None
        The temperature that was asked for in K.
    ns_per_day : float or None
        Simulated nanoseconds per day of this call; None if it made no step.
    """

    atoms: Atoms
    steps: int
    time: float
    ensemble: str
    history: dict[str, np.ndarray]
    out: Path | None
    thermostat: str = ""
    temperature: float | None = None
    ns_per_day: float | None = None

    @property
    def drift(self) -> Drift:
        """Slope and fluctuation of the conserved quantity, or of the total energy where there is none.

        ``ensemble="nve"`` conserves the total energy. The thermostats "bussi" and "nose-hoover" conserve it
        together with the energy that they have exchanged. "langevin" conserves nothing.
        """
        energies = self.history.get("E_conserved", self.history["E_tot"])
        return drift(self.history["time_ps"], energies, len(self.atoms))

    @property
    def discarded(self) -> int:
        """Number of frames at the beginning that are not in equilibrium and that the averages leave out.

        The largest number that `molequi.simulation.equilibration` finds for temperature, potential energy and
        volume.
        """
        return max(
            equilibration(self.history[name]) for name in ("T", "E_pot", "volume") if name in self.history
        )

    @property
    def averages(self) -> dict[str, Average]:
        """Averages with statistical errors after the equilibration, by column of the log.

        ``T`` (K), ``E_pot`` (eV) and, for periodic structures, ``volume`` (Å³) and ``pressure`` (bar).
        """
        first = self.discarded
        return {name: block_average(self.history[name][first:]) for name in AVERAGED if name in self.history}

    @property
    def unknown(self) -> str:
        """Where the energy is far below that of all training structures of the model, in words; otherwise an
        empty string.
        """
        return energy_note(self.atoms, self.history["E_pot"], self.history["time_ps"])

    @property
    def hint(self) -> str:
        """What to do if the simulation is much hotter or colder than asked for; otherwise an empty string."""
        wanted, found = self.temperature, float(self.history["T"].mean())
        # Standard deviation of the kinetic energy of a canonical ensemble of about 3 N degrees of freedom.
        noise = 1 + 3 * np.sqrt(2 / (3 * len(self.atoms)) / len(self.history["T"]))
        if not wanted or abs(found - wanted) <= wanted * (max(_HOT, noise) - 1):
            return ""
        if found < wanted and self.ensemble == "nve":  # half of the kinetic energy of a relaxed start
            return ""
        if found < wanted:
            return (
                f"the mean temperature of the whole simulation is {found:.0f} K where {wanted:g} K was asked "
                "for: the thermostat has not heated the structure yet, and the averages are not those of "
                "equilibrium. Simulate longer: the same call with a larger time= (--time)"
            )
        return (
            f"the mean temperature of the whole simulation is {found:.0f} K where {wanted:g} K was asked "
            "for: the structure was not relaxed, and its potential energy became heat. Relax it first: "
            "mq.relax(atoms, calculator), or `molequi relax MODEL STRUCTURE`"
        )

    def _repr_html_(self) -> str:
        first, *lines = str(self).splitlines()
        rows = [(name, str(average), AVERAGED[name]) for name, average in self.averages.items()]
        averages = tuple(f"  {name:8} " for name in AVERAGED)  # these lines are the table
        rest = "\n".join(line.strip() for line in lines if not line.startswith(averages))
        return (
            html_heading(first) + html_table(("average of", "", "unit"), rows, left=(0, 2)) + html_text(rest)
        )

    def __str__(self) -> str:
        kind = f" ({self.thermostat})" if self.thermostat else ""
        lines = [f"{self.ensemble}{kind}: {self.steps} steps, {self.time:g} ps"]
        if self.ns_per_day is not None:
            lines[0] += f", {self.ns_per_day:.3g} ns/day"
        left_out = self.discarded
        kept, until = len(self.history["T"]) - left_out, self.history["time_ps"][left_out]
        lines += [f"  {name:8} {average} {AVERAGED[name]}" for name, average in self.averages.items()]
        known = any(np.isfinite(average.error) for average in self.averages.values())
        lines.append(
            f"  means of {kept} frames"
            + (", with standard errors" if known else "; standard errors need more: 16 in equilibrium")
            + (f"; the first {until:g} ps are left out as equilibration" if left_out else "")
        )
        if len(self.history["time_ps"]) >= 3 and (self.ensemble == "nve" or "E_conserved" in self.history):
            what = "total energy" if self.ensemble == "nve" else "conserved quantity"
            slope, rms = self.drift
            lines.append(f"  {what} {slope:+.2e} meV/atom/ps, rms {rms:.2e} meV/atom")
        if len(self.history["T"]) >= 16 and left_out >= len(self.history["T"]) // 2:
            lines.append(
                "note: half of the simulation is left out, and it may still not be in equilibrium: run "
                "it longer"
            )
        lines += [f"note: {note}" for note in (self.unknown, self.hint) if note]
        return "\n".join([*lines, *([f"{self.out}: {', '.join(FILES)}"] if self.out else [])])

    __repr__ = __str__
