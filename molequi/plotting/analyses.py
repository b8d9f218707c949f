"""Pictures of the results of `molequi.analysis`."""

from collections.abc import Mapping
from functools import singledispatch
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes

from molequi.analysis import (
    Displacement,
    Distributions,
    ElasticConstants,
    EnergyVolume,
    NormalModes,
    Phonons,
    RadialDistribution,
    Spectrum,
    VibrationalDensity,
)
from molequi.errors import ConfigError
from molequi.plotting.figure import Figure
from molequi.simulation.bands import Band

_ALL = "#444444"
_SHOWN = 0.99  # of the vibrational density of states; what lies above is noise
_STYLES = ("-", "--", "-.", ":")  # so that a curve below another one of the same shape is seen
_FORMS = {
    "birchmurnaghan": "Birch–Murnaghan",
    "murnaghan": "Murnaghan",
    "vinet": "Vinet",
    "pouriertarantola": "Poirier–Tarantola",
}
_LINES = ("#2f6db3", "#c4472b", "#2e7d32", "#8e44ad", "#b8860b", "#008b8b")


@singledispatch
def analysis(result: object) -> Figure:
    """The picture of a result of `molequi.analysis`, or of `molequi.neb`.

    Parameters
    ----------
    result : object
        A result, such as that of `molequi.analysis.rdf`.

    Raises
    ------
    ConfigError
        If there is no picture of such an object.
    """
    raise ConfigError(
        f"found {type(result).__name__}; wanted a result of molequi.analysis, such as that of rdf()"
    )


def _curves(axis: Axes, x: np.ndarray, curves: Mapping[str, np.ndarray]) -> None:
    """Curves with a legend; that of all atoms is grey, and left out if there is one other only."""
    names = [name for name in curves if name != "all"]
    if "all" in curves and len(names) != 1:
        axis.plot(x, curves["all"], color=_ALL, linewidth=1, label="all")
    for k, name in enumerate(names):
        colour, style = _LINES[k % len(_LINES)], _STYLES[k % len(_STYLES)]
        axis.plot(x, curves[name], color=colour, linestyle=style, linewidth=1.4, label=name)
    if curves:
        axis.legend(frameon=False)


def _wide() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.0), dpi=120, layout="constrained")
    return figure, figure.subplots()


@analysis.register
def _(result: RadialDistribution) -> Figure:
    figure, axis = _wide()
    axis.axhline(1, color="#bbbbbb", linewidth=0.8)
    _curves(axis, result.r, result.g)
    axis.set(
        xlabel="r (Å)",
        ylabel="g(r)",
        xlim=(0, result.r[-1]),
        title=f"radial distribution, {result.frames} frames",
    )
    axis.set_ylim(bottom=0)
    return figure


@analysis.register
def _(result: Displacement) -> Figure:
    figure, axis = _wide()
    _curves(axis, result.lag, result.msd)
    axis.axvspan(*result.window, color="#eeeeee", zorder=0)
    axis.set(
        xlabel="time (ps)",
        ylabel="mean squared displacement (Å²)",
        title="mean squared displacement (grey: range of the fit)",
    )
    axis.set_xlim(0, result.lag[-1])
    axis.set_ylim(bottom=0)
    return figure


@analysis.register
def _(result: VibrationalDensity) -> Figure:
    figure, axis = _wide()
    _curves(axis, result.frequency, result.density)
    share = np.cumsum(result.density["all"]) / max(result.density["all"].sum(), 1e-300)
    last = int(np.searchsorted(share, _SHOWN).clip(max=len(share) - 1))
    axis.set_xlim(0, min(1.15 * result.frequency[last], result.frequency[-1]))
    axis.set(xlabel="frequency (THz)", ylabel="vibrational density of states (1/THz)")
    axis.set_ylim(bottom=0)
    scale = result.wavenumber[-1] / result.frequency[-1]
    top = axis.secondary_xaxis("top", functions=(lambda x: x * scale, lambda x: x / scale))
    top.set_xlabel("wavenumber (cm⁻¹)")
    return figure


@analysis.register
def _(result: Distributions) -> Figure:
    figure, axis = _wide()
    _curves(axis, result.x, result.density)
    name = {"bonds": "bond length", "angles": "bond angle"}[result.what]
    axis.set(xlabel=f"{name} ({result.unit})", ylabel=f"probability density (1/{result.unit})")
    used = result.x[np.sum([*result.density.values(), np.zeros(len(result.x))], axis=0) > 0]
    if len(used):
        width = max(np.ptp(used), 0.05 * used.max())
        axis.set_xlim(used.min() - 0.1 * width, used.max() + 0.1 * width)
    axis.set_ylim(bottom=0)
    return figure


@analysis.register
def _(result: EnergyVolume) -> Figure:
    from ase.eos import EquationOfState

    figure, axis = _wide()
    fit = EquationOfState(result.volumes, result.energies, eos=result.form)
    fit.fit()
    _, _, _, _, x, y, _, _ = fit.getplotdata()
    atoms = len(result.start.atoms)
    label = f"fit of {_FORMS[result.form]}"
    axis.plot(x / atoms, (y - result.energy) * 1e3 / atoms, color=_LINES[0], linewidth=1.2, label=label)
    axis.plot(
        result.volumes / atoms,
        (result.energies - result.energy) * 1e3 / atoms,
        "o",
        color=_LINES[1],
        label="model",
    )
    axis.axvline(result.volume / atoms, color="#bbbbbb", linewidth=0.8)
    axis.set(xlabel="volume per atom (Å³)", ylabel="energy above the minimum (meV/atom)")
    axis.set_title(f"bulk modulus {result.bulk_modulus:.1f} GPa")
    axis.legend(frameon=False)
    return figure


@analysis.register
def _(result: ElasticConstants) -> Figure:
    from molequi.analysis.elasticity import VOIGT

    figure = Figure(figsize=(4.8, 4.2), dpi=120, layout="constrained")
    axis = figure.subplots()
    size = np.abs(result.matrix).max()
    axis.imshow(result.matrix, cmap="RdBu_r", vmin=-size, vmax=size)
    for i in range(6):
        for j in range(6):
            dark = abs(result.matrix[i, j]) > 0.6 * size
            colour = "white" if dark else "black"
            axis.text(j, i, f"{round(result.matrix[i, j]) + 0:d}", ha="center", va="center", color=colour)
    axis.set_xticks(range(6), VOIGT)
    axis.set_yticks(range(6), VOIGT)
    axis.set(xlabel="strain", ylabel="stress")
    axis.set_title(f"elastic constants (GPa), bulk modulus {result.bulk_modulus:.0f} GPa")
    return figure


@analysis.register
def _(result: NormalModes) -> Figure:
    figure, axis = _wide()
    values = result.wavenumber[result.internal]
    axis.vlines(values, 0, 1, color=[_LINES[1] if v < 0 else _LINES[0] for v in values], linewidth=1.4)
    low = min(0.0, 1.1 * values.min()) if len(values) else 0.0
    red = f", {result.imaginary} imaginary (red, below 0)" if result.imaginary else ""
    axis.set(xlim=(low, 1.05 * max(values.max(), 100.0) if len(values) else 100.0), ylim=(0, 1.1), yticks=[])
    axis.set(xlabel="wavenumber (cm⁻¹)", title=f"{len(values)} vibrations{red}")
    return figure


@analysis.register
def _(result: Spectrum) -> Figure:
    figure, axis = _wide()
    axis.plot(result.wavenumber, result.intensity, color=_LINES[0], linewidth=1.2)
    if len(result.lines):
        height = result.intensity.max() / max(result.strength.max(), 1e-300)
        axis.vlines(
            result.lines,
            0,
            height * result.strength,
            color=_LINES[1],
            linewidth=1,
            label="intensities of modes",
        )
        axis.lines[0].set_label("broadened")
        axis.legend(frameon=False)
    names = {"infrared": "infrared intensity (km/mol per cm⁻¹)", "raman": "Raman activity (Å⁴/u per cm⁻¹)"}
    share = np.cumsum(result.intensity) / max(result.intensity.sum(), 1e-300)
    last = int(np.searchsorted(share, _SHOWN).clip(max=len(share) - 1))
    axis.set(xlabel="wavenumber (cm⁻¹)", ylabel=names[result.kind])
    axis.set_xlim(0, min(1.15 * result.wavenumber[last], result.wavenumber[-1]))
    axis.set_ylim(bottom=0)
    axis.set_title(result.source, fontsize="small")
    return figure


@analysis.register
def _(result: Band) -> Figure:
    figure, axis = _wide()
    energies = result.energies - result.energies[0]
    axis.axhline(0, color="#bbbbbb", linewidth=0.8)
    axis.plot(result.path, energies, "o-", color=_LINES[0], linewidth=1.2)
    axis.plot(result.path[result.top], energies[result.top], "o", color=_LINES[1])
    axis.set(xlabel="length of the path (Å)", ylabel="energy above the start (eV)")
    axis.set_title(f"barrier {result.barrier:.3f} eV, backwards {result.reverse_barrier:.3f} eV")
    return figure


@analysis.register
def _(result: Phonons) -> Figure:
    figure = Figure(figsize=(7.6, 4.4), dpi=120, layout="constrained")
    bands, dos = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
    places = [place for place, _ in result.labels]
    jumps = [0, *np.flatnonzero(np.diff(result.distance) < 1e-9) + 1, len(result.distance)]
    for a, b in pairwise(jumps):  # no line where the path jumps
        bands.plot(result.distance[a:b], result.bands[a:b], color=_LINES[0], linewidth=1)
    for place in places:
        bands.axvline(place, color="#bbbbbb", linewidth=0.8)
    bands.axhline(0, color="#bbbbbb", linewidth=0.8)
    bands.set_xticks(places, [name for _, name in result.labels])
    bands.set(ylabel="frequency (THz), imaginary below 0", xlim=(result.distance[0], result.distance[-1]))
    low = min(result.lowest * 1.1, -0.03 * result.bands.max())
    bands.set_ylim(low, 1.05 * max(result.bands.max(), result.frequency.max()))
    dos.plot(result.density, result.frequency, color=_LINES[0], linewidth=1)
    dos.set(xlabel="density of states (1/THz)")
    dos.set_xlim(left=0)
    return figure
