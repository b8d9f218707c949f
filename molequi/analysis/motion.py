"""Mean squared displacement and diffusion; vibrational density of states from velocities."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from ase import units
from scipy.integrate import trapezoid
from scipy.signal import welch

from molequi.analysis.frames import Frames, elements_of, frame_spacing, read_frames, unwrapped_positions
from molequi.errors import ConfigError, DataError, DataWarning
from molequi.simulation import Average
from molequi.util.html import html_text
from molequi.util.signature import check_keywords

_PER_CM = 1e12 / (units._c * 100)  # wavenumber in 1/cm of one THz
_DIFFUSIVE = (0.7, 1.4)  # a of MSD ∝ t^a: less at sites, 2 for atoms that fly freely
_FASTEST = {True: 120.0, False: 60.0}  # THz, with and without hydrogen


@dataclass(frozen=True)
class Displacement:
    """Result of `msd`; printed, the diffusion coefficient of each element.

    Parameters
    ----------
    lag : array, shape (L,)
        Times between two frames in ps.
    msd : dict of str to array, shape (L,)
        Mean squared displacement in Å² of each element and of "all" atoms.
    diffusion : dict of str to Average
        Diffusion coefficient in Å²/ps, with the standard error over blocks of the trajectory.
    exponent : dict of str to float
        a of MSD ∝ t^a in the fitted window: 1 for diffusion, 0 for atoms that stay at their sites, 2 for
        times so short that atoms fly freely.
    window : tuple of float
        Beginning and end of the fit in ps.
    """

    lag: np.ndarray
    msd: dict[str, np.ndarray]
    diffusion: dict[str, Average]
    exponent: dict[str, float]
    window: tuple[float, float]

    def tables(self) -> dict[str, dict[str, np.ndarray]]:
        """The table "msd" with the columns ``lag_ps``, ``msd_Li_A2``, …."""
        return {"msd": {"lag_ps": self.lag} | {f"msd_{name}_A2": value for name, value in self.msd.items()}}

    def __str__(self) -> str:
        parts = []
        for name, found in self.diffusion.items():
            if name == "all" and len(self.diffusion) == 2:
                continue
            power = self.exponent[name]
            if power < _DIFFUSIVE[0]:
                parts.append(f"{name} does not diffuse (MSD ∝ t^{power:.2f})")
            elif power > _DIFFUSIVE[1]:
                parts.append(f"{name} too short a time for diffusion (MSD ∝ t^{power:.2f})")
            else:  # 1 Å²/ps = 1e-4 cm²/s
                parts.append(f"{name} D = ({found.mean * 1e-4:.2e} ± {found.error * 1e-4:.1e}) cm²/s")
        return f"msd, fitted from {self.window[0]:g} to {self.window[1]:g} ps: " + "; ".join(parts)

    def _repr_html_(self) -> str:
        return html_text(str(self))

    __repr__ = __str__


@check_keywords()
def msd(
    frames: Frames,
    *,
    spacing: float | None = None,
    blocks: int = 5,
    window: tuple[float, float] = (0.1, 0.5),
    still: bool = True,
) -> Displacement:
    """Mean squared displacement of each element, and its diffusion coefficient.

    MSD(t) is averaged over all atoms and all beginnings in time. D is a sixth of the slope of a straight
    line (Einstein), fitted in each block of the trajectory; its error is that of the mean over the blocks.

    Parameters
    ----------
    frames : str, Path or sequence of ase.Atoms
        A trajectory. Atoms may be wrapped into the cell.
    spacing : float, optional
        Time between two frames in fs, for frames that do not say it.
    blocks : int, >= 2
        Number of blocks.
    window : pair of float
        Beginning and end of the fit, as fractions of a block.
    still : bool
        Remove the motion of the centre of mass.

    Returns
    -------
    Displacement
        MSD, diffusion coefficients, and the exponent that says whether there is diffusion.

    Raises
    ------
    DataError
        If the trajectory cannot be read, or is too short for the blocks.
    ConfigError
        If the time between frames is not known, or a setting is out of range.

    Examples
    --------
    >>> from ase import Atoms
    >>> walk = np.random.default_rng(0).normal(size=(400, 50, 3)).cumsum(0)
    >>> found = msd([Atoms("Ar50", positions=x) for x in walk], spacing=1000.0, still=False)
    >>> round(found.diffusion["Ar"].mean, 1)  # σ² / (2 t) = 1 Å² / 2 ps
    0.5
    """
    frames = read_frames(frames)
    step = frame_spacing(frames, spacing) / 1e3
    if not isinstance(blocks, (int, np.integer)) or isinstance(blocks, bool) or blocks < 2:
        raise ConfigError(f"blocks={blocks!r}: wanted a whole number, two or more")
    if not 0 <= window[0] < window[1] <= 1:
        raise ConfigError(f"window={window!r}: wanted two fractions of a block, such as (0.1, 0.5)")
    length = len(frames) // blocks
    first, last = max(1, round(window[0] * length)), round(window[1] * length)
    if last - first < 2:
        raise DataError(
            f"{len(frames)} frames in {blocks} blocks: the fit has {max(last - first + 1, 0)} points, wanted "
            "three or more; simulate longer, write frames more often, or take fewer blocks"
        )
    positions = unwrapped_positions(frames, still=still)
    symbols = np.array(frames[0].get_chemical_symbols())
    groups = {name: symbols == name for name in elements_of(frames)} | {"all": symbols != ""}
    lags = np.arange(len(frames) // 2 + 1)
    curves, found, exponents = {}, {}, {}
    fit = np.arange(first, last + 1)
    for name, chosen in groups.items():
        own = positions[:, chosen]
        curves[name] = _displacements(own)[: len(lags)]
        parts = [_displacements(own[k * length : (k + 1) * length])[fit] for k in range(blocks)]
        slopes = np.array([np.polyfit(fit * step, part, 1)[0] / 6 for part in parts])
        error = float(slopes.std(ddof=1) / np.sqrt(blocks))
        found[name] = Average(float(slopes.mean()), error, float(slopes.std(ddof=1)), blocks)
        mean = np.mean(parts, axis=0)
        exponents[name] = float(np.polyfit(np.log(fit), np.log(np.maximum(mean, 1e-300)), 1)[0])
    return Displacement(lags * step, curves, found, exponents, (float(first * step), float(last * step)))


def _displacements(positions: np.ndarray) -> np.ndarray:
    """MSD of each lag, over atoms and beginnings, by Fourier transforms (Calandrini et al., 2011).

    |x(t + m) - x(t)|² = |x(t + m)|² + |x(t)|² - 2 x(t + m) · x(t); the last sum is an autocorrelation.
    """
    x = positions - positions.mean(0)
    n = len(x)
    transform = np.fft.rfft(x, 2 * n, axis=0)
    product = np.fft.irfft(np.abs(transform) ** 2, 2 * n, axis=0)[:n].sum(-1)  # (T, N)
    squares = (x**2).sum(-1)
    head = np.concatenate([np.zeros((1, x.shape[1])), squares.cumsum(0)])
    lag = np.arange(n)
    sums = head[n - lag] + head[n] - head[lag]  # Σ |x(t)|² + |x(t + m)|²
    found = (sums - 2 * product) / (n - lag)[:, None]
    return np.maximum(found, 0).mean(1)


@dataclass(frozen=True)
class VibrationalDensity:
    """Result of `vdos`; printed, the highest peak of each element.

    Parameters
    ----------
    frequency : array, shape (F,)
        Frequencies in THz.
    density : dict of str to array, shape (F,)
        Density of states in 1/THz of each element and of "all"; the elements add up to "all", whose integral
        is 1.
    highest : float
        Highest frequency in THz that the frames resolve. Faster vibrations appear at wrong, lower ones.
    """

    frequency: np.ndarray
    density: dict[str, np.ndarray]
    highest: float

    @property
    def wavenumber(self) -> np.ndarray:
        """Frequencies in 1/cm."""
        return self.frequency * _PER_CM

    def tables(self) -> dict[str, dict[str, np.ndarray]]:
        """The table "vdos" with the columns ``frequency_THz``, ``wavenumber_cm-1``, ``vdos_H``, …."""
        columns = {"frequency_THz": self.frequency, "wavenumber_cm-1": self.wavenumber}
        return {"vdos": columns | {f"vdos_{name}": value for name, value in self.density.items()}}

    def __str__(self) -> str:
        names = [name for name in self.density if name != "all" or len(self.density) > 2]
        tops = {name: int(self.density[name].argmax()) for name in names}
        parts = [
            f"{name} {self.frequency[k]:.2f} THz ({self.wavenumber[k]:.0f} cm⁻¹)" for name, k in tops.items()
        ]
        return f"vdos, highest peak: {', '.join(parts)}; resolved up to {self.highest:.3g} THz"

    def _repr_html_(self) -> str:
        return html_text(str(self))

    __repr__ = __str__


@check_keywords()
def vdos(
    frames: Frames, *, spacing: float | None = None, resolution: float | None = None
) -> VibrationalDensity:
    """Vibrational density of states: the power spectrum of the velocities, weighted by the masses.

    By the method of Welch (IEEE Trans. Audio Electroacoust. 15, 70, 1967), as SciPy has it.

    Parameters
    ----------
    frames : str, Path or sequence of ase.Atoms
        A trajectory with velocities, best at constant energy. Its frames must be close in time: at most half
        a period of the fastest vibration apart, about 4 fs with hydrogen.
    spacing : float, optional
        Time between two frames in fs, for frames that do not say it.
    resolution : float, optional
        Distance of two frequencies in THz; a coarser one has less noise. By default that of a quarter of the
        trajectory, and of all of it with fewer than 256 frames.

    Returns
    -------
    VibrationalDensity
        Density of states of each element.

    Raises
    ------
    DataError
        If the trajectory cannot be read, has no velocities or fewer than 8 frames.
    ConfigError
        If the time between frames is not known, or the resolution is finer than the trajectory allows.
    molequi.errors.DataWarning
        If the frames are too far apart for the fastest vibrations.
    """
    frames = read_frames(frames)
    step = frame_spacing(frames, spacing) / 1e3
    if len(frames) < 8:
        raise DataError(f"{len(frames)} frames: wanted 8 or more for a spectrum")
    for k, frame in enumerate(frames):
        if not frame.has("momenta") or not frame.get_momenta().any():
            raise DataError(f"frame {k} has no velocities; `molequi md` writes them into trajectory.xyz")
    highest = 0.5 / step
    hydrogen = bool((frames[0].numbers == 1).any())
    if highest < _FASTEST[hydrogen]:
        warnings.warn(
            f"frames {step * 1e3:g} fs apart resolve {highest:.3g} THz; faster vibrations, up to about "
            f"{_FASTEST[hydrogen]:g} THz, appear at wrong frequencies. Write frames more often: md with "
            "a smaller `every`",
            DataWarning,
            stacklevel=3,
        )
    length = len(frames) if len(frames) < 256 else len(frames) // 4
    if resolution is not None:
        finest = 1 / (len(frames) * step)
        if not (np.isfinite(resolution) and resolution >= finest):
            raise ConfigError(
                f"resolution={resolution!r}: {len(frames) * step:g} ps resolve {finest:.3g} THz; wanted as "
                "much or more"
            )
        length = min(len(frames), max(8, round(1 / (resolution * step))))
    momenta = np.stack([frame.get_momenta() for frame in frames])
    weighted = momenta / np.sqrt(frames[0].get_masses())[:, None]  # √m v
    frequency, power = welch(weighted, fs=1 / step, nperseg=length, axis=0)
    power = power.sum(-1)  # over x, y, z
    symbols = np.array(frames[0].get_chemical_symbols())
    norm = trapezoid(power.sum(1), frequency)
    density: Mapping[str, np.ndarray] = {
        name: power[:, symbols == name].sum(1) / norm for name in elements_of(frames)
    }
    return VibrationalDensity(frequency, {**density, "all": power.sum(1) / norm}, highest)
