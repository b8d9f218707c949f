"""Thermochemistry of molecules and fixed structures from their vibrations, by ASE."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.thermochemistry import HarmonicThermo, IdealGasThermo

from molequi.data.request import INVARIANTS
from molequi.data_symmetry.point_groups import point_group, symmetry_operations
from molequi.errors import ConfigError, DataError
from molequi.graph import Graph
from molequi.util.html import html_table, html_text
from molequi.util.tables import text_table

_PRESSURE = 101325.0  # Pa
_FREE = 1e-3  # 1/cm; below it a vibration has no harmonic entropy
_SOFT = 100.0  # 1/cm; below it a rotor describes many modes better (Grimme, Chem. Eur. J. 18, 9955, 2012)
_HEAD = ("K", "U, eV", "H, eV", "S, meV/K", "G, eV")


@dataclass(frozen=True)
class Thermochemistry:
    """Result of `NormalModes.thermochemistry`; printed, a row for each temperature.

    Energies contain the potential energy of the structure.

    Parameters
    ----------
    temperature : array, shape (T,)
        Temperatures in K.
    internal_energy : array, shape (T,)
        U in eV.
    enthalpy : array, shape (T,)
        H in eV. Without a gas, p V is left out: H is U.
    entropy : array, shape (T,)
        S in eV/K.
    gibbs_energy : array, shape (T,)
        G = H - T S in eV; without a gas, the Helmholtz energy.
    note : str
        What was assumed.
    """

    temperature: np.ndarray
    internal_energy: np.ndarray
    enthalpy: np.ndarray
    entropy: np.ndarray
    gibbs_energy: np.ndarray
    note: str

    def tables(self) -> dict[str, dict[str, np.ndarray]]:
        """The table "thermochemistry": temperature in K, energies in eV and the entropy in eV/K."""
        columns = {
            "temperature_K": self.temperature,
            "internal_energy_eV": self.internal_energy,
            "enthalpy_eV": self.enthalpy,
            "entropy_eV_per_K": self.entropy,
            "gibbs_energy_eV": self.gibbs_energy,
        }
        return {"thermochemistry": columns}

    def _rows(self) -> list[list[str]]:
        columns = (self.internal_energy, self.enthalpy, 1e3 * self.entropy, self.gibbs_energy)
        return [[f"{t:g}", *(f"{value:.4f}" for value in row)] for t, *row in zip(self.temperature, *columns)]

    def __str__(self) -> str:
        return "\n".join([*text_table(_HEAD, self._rows(), left=()), self.note])

    def _repr_html_(self) -> str:
        return html_table(_HEAD, self._rows(), left=()) + html_text(self.note)

    __repr__ = __str__


def thermochemistry_of(
    atoms: Atoms,
    wavenumbers: np.ndarray,
    rigid: int,
    *,
    temperature: float | Sequence[float],
    transition_state: bool,
    unit: float,
    **gas: Any,
) -> Thermochemistry:
    """See `NormalModes.thermochemistry`.

    Parameters
    ----------
    atoms : ase.Atoms
        The structure with its calculator.
    wavenumbers : array
        Wavenumbers of the vibrations in 1/cm; imaginary ones are negative.
    rigid : int
        Number of motions of the whole.
    temperature, transition_state
        As there.
    unit : float
        1/cm in eV.
    **gas
        Pressure, symmetry number and spin; None where they were not said.
    """
    kelvin = _temperatures(temperature)
    real = _real(wavenumbers, transition_state)
    free = not (atoms.constraints or atoms.pbc.any())
    energy: float = atoms.get_potential_energy()
    quanta = list(real * unit)
    if free:
        pressure, symmetry, spin = _gas(atoms, rigid, gas)
        geometry: Any = "monatomic" if len(atoms) == 1 else "linear" if rigid == 5 else "nonlinear"
        plain = Atoms(atoms.numbers, atoms.positions, masses=atoms.get_masses())
        ideal = IdealGasThermo(quanta, geometry, energy, plain, symmetry, (spin - 1) / 2, vib_selection="all")
        inner = np.array([ideal.get_internal_energy(t, verbose=False) for t in kelvin])
        outer = np.array([ideal.get_enthalpy(t, verbose=False) for t in kelvin])
        entropy = np.array([ideal.get_entropy(t, pressure, verbose=False) for t in kelvin])
        note = (
            f"ideal gas at {pressure:g} Pa, {geometry}, symmetry number {symmetry}, multiplicity {spin}"
            if len(atoms) > 1
            else f"ideal gas of atoms at {pressure:g} Pa, multiplicity {spin}"
        )
    else:
        for name, value in gas.items():
            if value is not None:
                raise ConfigError(
                    f"{name}={value!r} has no effect: a structure that is periodic or has fixed atoms is no "
                    "gas; leave it out"
                )
        if rigid and not atoms.pbc.any():
            raise ConfigError(
                f"thermochemistry with fixed atoms about which the others turn freely ({rigid} such "
                "motions): wanted none, or so many that nothing turns"
            )
        harmonic = HarmonicThermo(quanta, energy)
        inner = outer = np.array([harmonic.get_internal_energy(t, verbose=False) for t in kelvin])
        entropy = np.array([harmonic.get_entropy(t, verbose=False) for t in kelvin])
        note = "vibrations only, without p V"
    soft = int((real < _SOFT).sum())
    note += f"; {soft} below {_SOFT:g} cm⁻¹, whose entropy is uncertain" if soft else ""
    note += "; without the imaginary mode of the transition state" if transition_state else ""
    return Thermochemistry(kelvin, inner, outer, entropy, outer - kelvin * entropy, note)


def _temperatures(given: object) -> np.ndarray:
    try:
        found = np.atleast_1d(np.asarray(given, dtype=np.float64))
    except (TypeError, ValueError):
        found = np.zeros(1)
    if (
        found.ndim != 1
        or found.size == 0
        or isinstance(given, bool)
        or not (np.isfinite(found) & (found > 0)).all()
    ):
        raise ConfigError(f"temperature={given!r}: wanted K, above zero, or several")
    return found


def _real(wavenumbers: np.ndarray, transition_state: object) -> np.ndarray:
    """The real vibrations. Raises DataError if others are not what was said."""
    if not isinstance(transition_state, bool):
        raise ConfigError(f"transition_state={transition_state!r}: wanted True or False")
    negative = int((wavenumbers < -_FREE).sum())
    if negative != transition_state:
        raise DataError(
            f"thermochemistry: {negative} imaginary vibrations; wanted "
            + ("one of a transition state" if transition_state else "none: relax the structure")
            + ("; with transition_state=True it is left out" if negative == 1 else "")
        )
    real = wavenumbers[wavenumbers >= -_FREE]
    if (real < _FREE).any():
        count = int((real < _FREE).sum())
        raise DataError(
            f"thermochemistry: {count} vibrations cost nothing (below {_FREE:g} cm⁻¹), as "
            "of parts that do not feel each other; calculate these one by one"
        )
    return real


def _gas(atoms: Atoms, rigid: int, given: dict[str, Any]) -> tuple[float, int, int]:
    """Pressure, symmetry number and multiplicity. Raises ConfigError for impossible ones."""
    pressure = _PRESSURE if given["pressure"] is None else given["pressure"]
    if isinstance(pressure, bool) or not isinstance(pressure, (int, float)) or not 0 < pressure < np.inf:
        raise ConfigError(f"pressure={pressure!r}: wanted Pa, above zero")
    for name in ("symmetry_number", "spin"):
        value = given[name]
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if value is not None and not (whole and value >= 1):
            raise ConfigError(f"{name}={value!r}: wanted a whole number, 1 or more")
    electrons = int(atoms.numbers.sum()) - round(_info(atoms, "charge", 0))
    spin = given["spin"] or round(_info(atoms, "spin", electrons % 2 + 1))
    if (electrons + spin) % 2 == 0 or spin - 1 > electrons:
        raise ConfigError(
            f"spin={spin} of {electrons} electrons: the multiplicity 2S + 1 is "
            + ("even" if electrons % 2 else "odd")
            + " here; atoms.info['charge'] is the total charge"
        )
    return float(pressure), given["symmetry_number"] or _symmetry_number(atoms, rigid), spin


def _info(atoms: Atoms, name: str, default: float) -> float:
    """The total charge or the multiplicity of a structure."""
    return float(next((atoms.info[key] for key in INVARIANTS[name] if key in atoms.info), default))


def _symmetry_number(atoms: Atoms, rigid: int) -> int:
    """Number of rotations that map the molecule onto itself; isotopes differ."""
    if len(atoms) == 1:
        return 1
    kinds = np.unique(np.stack([atoms.numbers, atoms.get_masses()], 1), axis=0, return_inverse=True)[1]
    graph = Graph.single(atoms.positions, kinds.ravel() + 1)
    if rigid == 5:
        moved = [list(places) != list(range(len(atoms))) for _, places in symmetry_operations(graph)]
        return 2 if any(moved) else 1
    return int((point_group(graph).det() > 0).sum())
