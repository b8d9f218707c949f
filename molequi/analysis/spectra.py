"""Infrared and Raman spectra, of normal modes or of a trajectory.

Normal modes (Wilson, Decius and Cross, Molecular Vibrations, 1955): with the dipole μ, the polarizability α
as a volume, and a normal coordinate q (mass-weighted, in Å √u),

    infrared intensity   A = N_A / (12 ε₀ c²) ‖∂μ/∂q‖²,
    Raman activity       S = 45 ā'² + 7 γ'²,   ā = tr α / 3,   γ² = 3/2 ‖α - ā‖².

A trajectory at the temperature T: a classical harmonic mode has ⟨q̇²⟩ = k T, so that the one-sided power
spectrum of μ̇ over k T takes the place of ‖∂μ/∂q‖². Both spectra then have the same integrals, those of
quantum harmonic oscillators.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from scipy.integrate import trapezoid
from scipy.signal import find_peaks, welch

from molequi.analysis.frames import Frames, frame_spacing, read_frames
from molequi.analysis.free_motion import check_spacing, continuous, free_velocities
from molequi.analysis.normal_modes import NormalModes, vibrations
from molequi.analysis.relaxed import AnyCalculator
from molequi.checkpoint import load
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, DataError
from molequi.inference.predict import predict
from molequi.interfaces import Calculator
from molequi.model import Model
from molequi.quantities import KNOWN, Quantity
from molequi.simulation.inputs import XTB
from molequi.util.html import html_table, html_text
from molequi.util.signature import check_keywords
from molequi.util.tables import text_table

PER_CM = 1e12 / (units._c * 100)  # wavenumber in 1/cm of one THz
# km/mol of (e Å / (Å √u))² = e²/u, N_A e² / (12 ε₀ c² u); 1 (D/Å)²/u has 42.26.
KM_PER_MOL = units._Nav * units._e**2 / (12 * units._eps0 * units._c**2 * units._amu) / 1e3
_VOLUME = units.Hartree * units.Bohr  # e²/(4πε₀) in eV Å: Å^3 of e^2 Å^2/eV
_WIDTH = 10.0  # 1/cm
_FINEST = 0.1  # 1/cm, of a Lorentzian
_FEWEST = 16
_UNITS = {"infrared": "km/mol", "raman": "Å^4/u"}
_GRADIENT = Quantity("polarizability_gradient", per="node", rank=3, gradient_of="polarizability")


@dataclass(frozen=True)
class Spectrum:
    """Result of `infrared` and `raman`; printed, a table of the lines or peaks.

    Parameters
    ----------
    kind : {"infrared", "raman"}
        What it is.
    wavenumber : array, shape (F,)
        Wavenumbers of the curve in 1/cm.
    intensity : array, shape (F,)
        The curve: infrared in km/mol, Raman activity in Å^4/u, both per 1/cm. Its integral is the sum of the
        lines.
    lines : array, shape (M,)
        Wavenumbers of the vibrations in 1/cm; empty for a trajectory.
    strength : array, shape (M,)
        Their intensities in km/mol, or activities in Å^4/u.
    depolarization : array, shape (M,)
        Depolarization ratio 3 γ'² / (45 ā'² + 4 γ'²) of each Raman line, polarized light; otherwise empty.
    source : str
        What it was computed from.
    """

    kind: str
    wavenumber: np.ndarray
    intensity: np.ndarray
    lines: np.ndarray
    strength: np.ndarray
    depolarization: np.ndarray
    source: str

    @property
    def unit(self) -> str:
        """Unit of the lines and of integrals: km/mol or Å^4/u."""
        return _UNITS[self.kind]

    @property
    def total(self) -> float:
        """Sum of the lines; for a trajectory the integral of the curve."""
        return float(self.strength.sum() if len(self.lines) else trapezoid(self.intensity, self.wavenumber))

    def integral(self, low: float, high: float) -> float:
        """Intensity of a band.

        Parameters
        ----------
        low, high : float
            Its ends in 1/cm. For normal modes the lines between them are added.
        """
        if len(self.lines):
            return float(self.strength[(self.lines >= low) & (self.lines < high)].sum())
        inside = (self.wavenumber >= low) & (self.wavenumber < high)
        return float(trapezoid(self.intensity[inside], self.wavenumber[inside]))

    def tables(self) -> dict[str, dict[str, np.ndarray]]:
        """The curve, a table of the name of the kind, and the lines, "infrared_lines" or "raman_lines"."""
        name = {"infrared": "intensity_km/mol", "raman": "activity_A4/u"}[self.kind]
        curve = {"wavenumber_cm-1": self.wavenumber, f"{name}_per_cm-1": self.intensity}
        if not len(self.lines):
            return {self.kind: curve}
        lines = {"wavenumber_cm-1": self.lines, name: self.strength}
        ratio = {"depolarization": self.depolarization} if len(self.depolarization) else {}
        return {self.kind: curve, f"{self.kind}_lines": lines | ratio}

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        if not len(self.lines):
            heights = self.intensity
            peaks, _ = find_peaks(heights, height=0.02 * heights.max(), distance=3)
            chosen = sorted(sorted(peaks, key=lambda k: -heights[k])[:8])
            rows = [[f"{self.wavenumber[k]:.0f}", f"{heights[k]:.3g}"] for k in chosen]
            return ["peak at cm⁻¹", f"{self.unit} per cm⁻¹"], rows
        columns = [[f"{x:.1f}" for x in self.lines], [f"{x:.2f}" for x in self.strength]]
        if len(self.depolarization):
            columns.append([f"{x:.3f}" for x in self.depolarization])
        head = ["cm⁻¹", self.unit, "depolarization"][: len(columns)]
        return head, [list(row) for row in zip(*columns)]

    def _note(self) -> str:
        return f"{self.kind} spectrum of {self.source}; in total {self.total:.4g} {self.unit}"

    def __str__(self) -> str:
        return "\n".join([*text_table(*self._rows()), self._note()])

    def _repr_html_(self) -> str:
        return html_table(*self._rows()) + html_text(self._note())

    __repr__ = __str__


@check_keywords()
def infrared(
    structures: Frames | Atoms | NormalModes,
    calculator: AnyCalculator | None = None,
    *,
    spacing: float | None = None,
    temperature: float | None = None,
    width: float | None = None,
) -> Spectrum:
    """Infrared spectrum: of the normal modes of one structure, or of a trajectory.

    Of normal modes the intensities are those of the double harmonic approximation, from Born charges Z:
    ∂μ/∂q = Σ_n Z_n ∂r_n/∂q. Of a trajectory it is the power spectrum of the dipole's rate
    μ̇ = Σ_n Z_n v_n, which exists in periodic cells too; without velocities, or without a model, that of the
    differences of dipoles. A steady translation of the whole adds nothing; its rotation stays in the
    spectrum.

    Parameters
    ----------
    structures : ase.Atoms, NormalModes, str, Path or sequence of ase.Atoms
        One structure, which is relaxed first, or the result of `vibrations`; or the frames of a trajectory,
        the folder of a simulation, or a file of it. Its frames must be at most half a period of the fastest
        vibration apart, and best come from dynamics at constant energy.
    calculator : Model, Ensemble, Calculator, str or Path, optional
        A model that predicts dipoles or Born charges. It may be left out for a trajectory whose frames have
        dipoles.
    spacing : float, optional
        Time between two frames in fs, for frames that do not say it.
    temperature : float, optional
        Temperature of a trajectory in K; by default that of its velocities.
    width : float, optional
        Width of lines in 1/cm: of the Lorentzian for normal modes (10 by default), the resolution for a
        trajectory (by default that of a quarter of it).

    Returns
    -------
    Spectrum
        The spectrum of one mole of the structure. For a cell, intensities are those of the whole cell.

    Raises
    ------
    ConfigError
        If the model predicts no dipoles, or a setting is out of range or does not apply.
    DataError
        If frames have no dipoles, or there are too few of them.

    Notes
    -----
    For an ion, Born charges have to add up to its charge, as those of the energy in a field do; those of a
    head add up to zero, which `Spectrum.source` then says. In a periodic cell a head has no dipole. Dipoles
    of periodic frames that jump by charges times lattice vectors are made continuous.

    Examples
    --------
    >>> import molequi as mq
    >>> from ase.build import molecule
    >>> inputs = mq.Inputs(electric_field=True)
    >>> model = mq.Model(mq.PaiNN(elements=["H", "O"], inputs=inputs), ["energy", *mq.response()]).eval()
    >>> spectrum = infrared(vibrations(molecule("H2O"), model, relax=False), model)  # of an untrained model
    >>> spectrum.kind, spectrum.unit
    ('infrared', 'km/mol')
    """
    calculator, model = _known(calculator)
    source = _source(structures, "infrared", calculator, spacing, temperature, width)
    if isinstance(source, NormalModes):
        born = _predicted(model, source.start.atoms, "born_charges", "infrared")
        along = np.einsum("nab,knb->ka", born, _normal(source))
        note = _sum_note(born, source.start.atoms)
        return _of_modes(source, "infrared", KM_PER_MOL * (along**2).sum(1), width, note)
    motion = _Motion.of(source, spacing, temperature, width)
    if model is not None and motion.velocities is not None:
        born = np.stack(_predicted_all(model, source, "born_charges", "infrared"))
        power = motion.power(np.einsum("tnab,tnb->ta", born, motion.velocities))
        text = "Born charges" + _sum_note(born[0], source[0])
    else:
        series = continuous(_series(model, source, "dipole", "infrared"), source)
        power, text = motion.power(series, rate=True), "dipoles"
    return motion.spectrum("infrared", KM_PER_MOL * power.sum(1), text)


@check_keywords()
def raman(
    structures: Frames | Atoms | NormalModes,
    calculator: AnyCalculator | None = None,
    *,
    spacing: float | None = None,
    temperature: float | None = None,
    width: float | None = None,
) -> Spectrum:
    """Raman spectrum: of the normal modes of one structure, or of a trajectory.

    Activities do not depend on the frequency of the laser. Of normal modes they come from the derivative of
    the polarizability by the positions, which is taken by differentiation; of a trajectory, from the power
    spectrum of its rate, from differences.

    Parameters
    ----------
    structures : ase.Atoms, NormalModes, str, Path or sequence of ase.Atoms
        As for `infrared`.
    calculator : Model, Ensemble, Calculator, str or Path, optional
        A model that predicts polarizabilities. It may be left out for a trajectory whose frames have them.
    spacing : float, optional
        Time between two frames in fs, for frames that do not say it.
    temperature : float, optional
        Temperature of a trajectory in K; by default that of its velocities.
    width : float, optional
        Width of lines in 1/cm, as for `infrared`.

    Returns
    -------
    Spectrum
        Activities 45 ā'² + 7 γ'² in Å^4/u, and depolarization ratios of normal modes.

    Raises
    ------
    ConfigError
        If the model predicts no polarizabilities, or a setting is out of range or does not apply.
    DataError
        If frames have no polarizabilities, or there are too few of them.
    """
    calculator, model = _known(calculator)
    source = _source(structures, "raman", calculator, spacing, temperature, width)
    if isinstance(source, NormalModes):
        slope = _predicted(model, source.start.atoms, _GRADIENT.name, "raman")
        along = _VOLUME * np.einsum("nabc,knc->kab", slope, _normal(source))
        mean, squared = _invariants(along)
        found = _of_modes(source, "raman", 45 * mean**2 + 7 * squared, width)
        kept = _kept(source)
        with np.errstate(invalid="ignore"):
            ratio = (3 * squared / (45 * mean**2 + 4 * squared))[kept]
        return Spectrum(**{**vars(found), "depolarization": ratio})
    motion = _Motion.of(source, spacing, temperature, width)
    series = _VOLUME * _series(model, source, "polarizability", "raman")
    trace = series.trace(axis1=1, axis2=2)[:, None] / 3
    rest = series - trace[:, :, None] * np.eye(3)
    power = 45 * motion.power(trace, rate=True)[:, 0]
    power += 7 * 1.5 * motion.power(rest.reshape(len(rest), 9), rate=True).sum(1)
    return motion.spectrum("raman", power, "polarizabilities")


def _source(
    structures: Frames | Atoms | NormalModes,
    name: str,
    calculator: AnyCalculator | None,
    spacing: float | None,
    temperature: float | None,
    width: float | None,
) -> NormalModes | list[Atoms]:
    """Normal modes, or the frames of a trajectory. Raises ConfigError for settings that do not apply."""
    for option, value in (("spacing", spacing), ("temperature", temperature), ("width", width)):
        number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if value is not None and not (number and math.isfinite(value) and value > 0):
            raise ConfigError(f"{option}={value!r}: wanted a number above zero")
    frames = [] if isinstance(structures, NormalModes) else read_frames(structures)  # type: ignore[arg-type]
    if len(frames) > 1:
        return frames
    if width is not None and width < _FINEST:
        raise ConfigError(f"width={width!r}: wanted {_FINEST} cm⁻¹ or more")
    for option, value in (("spacing", spacing), ("temperature", temperature)):
        if value is not None:
            raise ConfigError(
                f"{option}={value!r} is for a trajectory; found one structure, whose normal modes are taken: "
                f"leave {option} out"
            )
    if calculator is None:
        raise ConfigError(f"{name} of one structure needs a model: mq.{name}(structure, model)")
    if isinstance(structures, NormalModes):
        return structures
    _check_predicts(_known(calculator)[1], "born_charges" if name == "infrared" else _GRADIENT.name, name)
    return vibrations(frames[0], calculator)


def _known(calculator: AnyCalculator | None) -> tuple[AnyCalculator | None, Model | Ensemble | None]:
    """A calculator, read from its file if it is one, and its model. Raises ConfigError if it has none."""
    if isinstance(calculator, (str, os.PathLike)) and calculator not in XTB:
        calculator = load(calculator)
    if calculator is None or isinstance(calculator, (Model, Ensemble)):
        return calculator, calculator
    if isinstance(calculator, Calculator):
        return calculator, calculator.model
    name = calculator if isinstance(calculator, str) else type(calculator).__name__
    raise ConfigError(
        f"found the calculator {name}; wanted a model of molequi that predicts dipoles or polarizabilities; "
        "a trajectory whose frames have them needs none"
    )


def _check_predicts(model: Model | Ensemble | None, name: str, kind: str) -> Model | Ensemble:
    """The model with one more derivative, if it needs it. Raises ConfigError if it cannot have it."""
    assert model is not None  # checked where one is needed
    parent = {"born_charges": "dipole", _GRADIENT.name: "polarizability"}.get(name, name)
    if name in model.quantities:
        return model.predicting([name])
    if parent not in model.quantities:
        raise ConfigError(
            f"{kind}: the model predicts {', '.join(model.quantities)}; wanted {parent!r} too. Train it with "
            f"predict=[…, {parent!r}], or with mq.response('dipole', 'polarizability')"
        )
    return model.predicting([_GRADIENT if name == _GRADIENT.name else KNOWN[name]])


def _predicted_all(
    model: Model | Ensemble | None, frames: Sequence[Atoms], name: str, kind: str
) -> list[np.ndarray]:
    view = _check_predicts(model, name, kind)
    values = [found[name] for found in predict(view, list(frames), progress=False)]
    for k, value in enumerate(values):
        if not np.isfinite(value).all():
            raise DataError(
                f"{kind}: the {name} of frame {k} is not finite. The dipole of a head, and so its Born "
                "charges, is not defined in a cell; train mq.response('dipole') with "
                "Inputs(electric_field=True)"
                if frames[k].pbc.any()
                else f"{kind}: the {name} of frame {k} is not finite; check the model on this structure"
            )
    return values


def _predicted(model: Model | Ensemble | None, atoms: Atoms, name: str, kind: str) -> np.ndarray:
    return _predicted_all(model, [atoms], name, kind)[0]


def _series(model: Model | Ensemble | None, frames: Sequence[Atoms], name: str, kind: str) -> np.ndarray:
    """A quantity of each frame, predicted or read. Raises DataError if a frame does not have it."""
    if model is not None:
        values = _predicted_all(model, frames, name, kind)
    else:
        values = [_of_frame(frame, name, kind, k) for k, frame in enumerate(frames)]
    series = np.stack([np.reshape(value, (3,) * KNOWN[name].rank) for value in values])
    if not np.isfinite(series).all():
        k = int((~np.isfinite(series.reshape(len(series), -1))).any(1).argmax())
        raise DataError(
            f"{kind}: the {name} of frame {k} is not finite; that of a periodic cell is not defined: take a "
            "model and frames with velocities, so that Born charges are used"
        )
    return series


def _of_frame(frame: Atoms, name: str, kind: str, k: int) -> np.ndarray:
    results: Mapping[str, object] = {} if frame.calc is None else frame.calc.results
    found = results.get(name, frame.info.get(name))
    if found is None:
        raise DataError(f"frame {k} has no {name}; give a model that predicts it: mq.{kind}(frames, model)")
    try:
        value = np.asarray(found, dtype=float)
    except (TypeError, ValueError):
        raise DataError(f"the {name} of frame {k} is {found!r}; wanted numbers") from None
    size = 3 ** KNOWN[name].rank
    if value.size != size:
        raise DataError(f"the {name} of frame {k} has the shape {value.shape}; wanted {size} numbers")
    return value


def _sum_note(born: np.ndarray, atoms: Atoms) -> str:
    """What is to be known of Born charges, shape (N, 3, 3), that do not add up to the charge."""
    charge = atoms.info.get("charge", 0)
    found = born.sum(0).trace() / 3
    if not charge or abs(found - charge) < 0.01:
        return ""
    return f" that add up to {found:.2f} e, not to the charge {charge:g},"


def _normal(modes: NormalModes) -> np.ndarray:
    """∂r/∂q of each mode, shape (M, N, 3), in 1/√u."""
    masses = modes.start.atoms.get_masses()
    norm = np.sqrt(np.einsum("n,knd,knd->k", masses, modes.modes, modes.modes))
    return modes.modes / norm[:, None, None]


def _invariants(tensors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ā and γ² of symmetric tensors, shape (M, 3, 3)."""
    mean = tensors.trace(axis1=1, axis2=2) / 3
    rest = tensors - mean[:, None, None] * np.eye(3)
    return mean, 1.5 * (rest**2).sum((1, 2))


def _kept(modes: NormalModes) -> np.ndarray:
    return modes.internal & (modes.wavenumber > 0)


def _of_modes(
    modes: NormalModes, kind: str, strength: np.ndarray, width: float | None, note: str = ""
) -> Spectrum:
    """Lines of all real vibrations, and a curve of Lorentzians."""
    kept, width = _kept(modes), width or _WIDTH
    lines, strength = modes.wavenumber[kept], strength[kept]
    top = 1.1 * lines.max(initial=100.0) + 20 * width
    grid = np.arange(0.0, top, width / 10)
    shapes = width / (2 * np.pi) / ((grid[:, None] - lines) ** 2 + width**2 / 4)
    text = f"{len(lines)} normal modes" + f", {modes.imaginary} imaginary left out" * bool(modes.imaginary)
    text += f", Born charges{note[:-1]}" * bool(note)
    return Spectrum(kind, grid, shapes @ strength, lines, strength, np.empty(0), text)


@dataclass(frozen=True)
class _Motion:
    """What spectra of a trajectory have in common: the time step in ps, the thermal energy in eV, velocities
    in ASE's units without that of the whole, and the number of frames of a segment.
    """

    step: float
    thermal: float
    velocities: np.ndarray | None
    length: int
    count: int

    @classmethod
    def of(
        cls, frames: Sequence[Atoms], spacing: float | None, temperature: float | None, width: float | None
    ) -> "_Motion":
        step = frame_spacing(frames, spacing) / 1e3
        if len(frames) < _FEWEST:
            raise DataError(
                f"{len(frames)} frames: wanted {_FEWEST} or more for a spectrum, or one structure; simulate "
                "longer, or write more frames, as with md(…, every=4)"
            )
        check_spacing(frames[0], step, PER_CM)
        velocities, free = free_velocities(frames)
        if temperature is not None:
            thermal = units.kB * temperature
        elif velocities is not None:
            twice = float(np.einsum("n,tnd->t", frames[0].get_masses(), velocities**2).mean())
            thermal = twice / max(free, 1)
            if not thermal > 1e-12:
                raise DataError(
                    "the atoms do not move against each other, so that the frames have no temperature; say "
                    "it in K with temperature=…"
                )
        else:
            raise ConfigError("the frames have no velocities; say their temperature in K with temperature=…")
        most = len(frames) - 1  # differences of two frames
        length = most if len(frames) < 256 else len(frames) // 4
        if width is not None:
            finest = PER_CM / (len(frames) * step)
            if width < finest:
                raise ConfigError(
                    f"width={width!r}: {len(frames) * step:g} ps resolve {finest:.3g} cm⁻¹; wanted as much "
                    "or more"
                )
            length = min(most, max(8, round(PER_CM / (width * step))))
        return cls(step, thermal, velocities, length, len(frames))

    def power(self, series: np.ndarray, *, rate: bool = False) -> np.ndarray:
        """One-sided power spectrum over k T, per 1/cm, shape (F, C): of a series (T, C), or of its rate."""
        if rate:
            series = np.diff(series, axis=0) / (self.step * 1e3 * units.fs)
        frequency, power = welch(series, fs=1 / self.step, nperseg=self.length, axis=0)
        if rate:  # a difference of two frames is the derivative times sin(x) / x, x = ω Δt / 2
            power = power / np.sinc(frequency * self.step)[:, None] ** 2
        return power / self.thermal / PER_CM

    def spectrum(self, kind: str, intensity: np.ndarray, what: str) -> Spectrum:
        grid = np.fft.rfftfreq(self.length, self.step) * PER_CM
        text = (
            f"{what} of {self.count} frames, {self.count * self.step:.3g} ps at "
            f"{self.thermal / units.kB:.0f} K, a point every {grid[1]:.3g} cm⁻¹ up to {grid[-1]:.0f}"
        )
        none = np.empty(0)
        return Spectrum(kind, grid, intensity, none, none, none, text)
