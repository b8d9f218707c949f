"""Energies against the work of forces and stress: units, signs, order, and structures with foreign labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from molequi.data.units import factor
from molequi.lint.fits import absolute_fit
from molequi.lint.frames import Frames
from molequi.lint.pairs import Pairs, similar_pairs
from molequi.lint.report import Finding, finding

_NEAR = 0.5  # Å: largest displacement of an atom between structures that are compared
_LEAST = 12  # pairs
_FAR_OFF = (0.7, 1.4)  # slopes between them are one within the error of the trapezoidal rule


@dataclass(frozen=True)
class Fit:
    """A fit of energy differences by columns of work.

    Parameters
    ----------
    slopes : array, shape (columns,)
        Factor of each column; 1 for consistent labels.
    errors : array, shape (columns,)
        Standard errors, by bootstrap over pairs.
    explained : float
        Part of the absolute energy differences that the fit explains, 0 to 1.
    """

    slopes: np.ndarray
    errors: np.ndarray
    explained: float


def fitted(columns: np.ndarray, difference: np.ndarray, draws: int = 30) -> Fit:
    """Fit with the smallest sum of absolute deviations, by reweighted least squares.

    Absolute deviations are taken because a part of the pairs may have foreign labels.

    Parameters
    ----------
    columns : array, shape (P, columns)
        Work of the forces and of the stress.
    difference : array, shape (P,)
        Energy differences.
    draws : int
        Bootstrap samples.

    Returns
    -------
    Fit

    Examples
    --------
    >>> x = np.linspace(-1, 1, 20)[:, None]
    >>> fitted(x, 2 * x[:, 0]).slopes.round(6).tolist()
    [2.0]
    """
    best = absolute_fit(columns, difference)
    random = np.random.default_rng(0)
    chosen = random.integers(len(difference), size=(draws, len(difference)))
    again = np.array([absolute_fit(columns[rows], difference[rows]) for rows in chosen])
    size = np.abs(difference)
    usual = size <= 20 * np.median(size)  # invented energies must not decide
    total, rest = size[usual].sum(), np.abs(difference - columns @ best)[usual].sum()
    return Fit(best, again.std(0), float(1 - rest / total) if total > 0 else 0.0)


def usable(pairs: Pairs, with_stress: bool = True) -> Pairs:
    """Pairs that are close enough, differ, and have all labels that their comparison needs.

    Parameters
    ----------
    pairs : Pairs
        Pairs of similar structures.
    with_stress : bool
        Take pairs with different cells, which need a stress, too.
    """
    there = np.isfinite(pairs.by_stress).all((1, 2))
    cells = (~pairs.strained | there) if with_stress else ~pairs.strained
    different = (pairs.moved > 1e-6) | pairs.strained
    return pairs.where(cells & different & (pairs.moved < _NEAR))


def _factors(atoms: float) -> dict[str, float]:
    """What the slope of energies against the work of forces is in wrong units."""
    kcal, kj, hartree = (factor(unit, "eV") for unit in ("kcal/mol", "kJ/mol", "Hartree"))
    bohr = factor("Bohr", "Å")
    return {
        "energies in kcal/mol with forces in eV/Å": 1 / kcal,
        "energies in kJ/mol with forces in eV/Å": 1 / kj,
        "energies in Hartree with forces in eV/Å": 1 / hartree,
        "energies in Rydberg with forces in eV/Å": 2 / hartree,
        "energies in meV with forces in eV/Å": 1000.0,
        "energies in eV with forces in kcal/mol/Å": kcal,
        "energies in eV with forces in kJ/mol/Å": kj,
        "energies in eV with forces in Hartree/Å": hartree,
        "energies in eV with forces in Hartree/Bohr": hartree / bohr,
        "energies in eV with forces in meV/Å": 0.001,
        "energies in Hartree with forces in Hartree/Bohr (or eV with eV/Bohr) and positions in Å": 1 / bohr,
        "positions in Bohr with forces in eV/Å": bohr,
        "positions in nm with forces in eV/Å, or kJ/mol with kJ/mol/nm": 10.0,
        "energies per atom with forces in eV/Å": 1 / atoms,
    }


def named_factor(value: float, known: Mapping[str, float]) -> str:
    """The known factors that are within 12 % of a value, in words; empty for none.

    Parameters
    ----------
    value : float
        The value.
    known : mapping of str to float
        Factors by their meaning.

    Examples
    --------
    >>> named_factor(23.5, {"kcal/mol": 23.06, "kJ/mol": 96.5})
    'kcal/mol'
    """
    off = {text: abs(np.log(value / one)) for text, one in known.items() if value / one > 0}
    return ", or ".join(text for text, by in sorted(off.items(), key=lambda item: item[1]) if by < 0.12)


def energies_against_forces(frames: Frames, pairs: Pairs) -> list[Finding]:
    """Unit and sign of the forces from the slope of energy differences against their work.

    In consistent units it is 1 and for gradients -1. Other values are found for other units.

    Parameters
    ----------
    frames : Frames
        The structures.
    pairs : Pairs
        Pairs of similar structures.
    """
    chosen = usable(pairs, with_stress=False)
    if len(chosen) < _LEAST:
        chosen = usable(pairs)
    if len(chosen) < _LEAST:
        return []
    columns = chosen.work[:, None]
    if chosen.strained.any():
        columns = np.stack([chosen.work, chosen.by_stress.sum((1, 2))], axis=1)
    if not np.abs(chosen.work).max() > 0:
        return []
    fit = fitted(columns, chosen.difference)
    slope, error = float(fit.slopes[0]), float(fit.errors[0])
    if fit.explained < 0.5 or error > 0.1 * abs(slope) or _FAR_OFF[0] < slope < _FAR_OFF[1]:
        return []
    numbers = np.unique(np.concatenate([chosen.first, chosen.second]))
    said = (
        f"energy differences of {len(chosen)} pairs of similar structures are {slope:.3g} ± {error:.1g} "
        "times the work of the forces; wanted 1"
    )
    sign = "the forces have the wrong sign (gradients): read them with keys={'forces': {…, 'sign': -1}}"
    cause = named_factor(abs(slope), _factors(float(np.median(frames.counts[numbers]))))
    if _FAR_OFF[0] < -slope < _FAR_OFF[1]:
        text = f"{said}: {sign}"
    elif cause:
        text = f"{said}. That fits {cause}: say the units of the file with units={{…}}"
        text += f"; and {sign}" if slope < 0 else ""
    else:
        text = f"{said}: energies and forces are of different units or of different calculations"
    return [finding("energy-force-scale", "error", text, frames.origins, numbers.tolist())]


def shifted_forces(frames: Frames, pairs: Pairs) -> list[Finding]:
    """Forces that fit the structure before or after far better than their own.

    Parameters
    ----------
    frames : Frames
        The structures.
    pairs : Pairs
        Pairs of similar structures.
    """
    own = usable(pairs)
    if len(own) < _LEAST or _left(own) < 0.3:
        return []
    for shift in (1, -1):
        other = usable(similar_pairs(frames, shift))
        if len(other) < _LEAST:
            continue
        if _left(other) < 0.5 and _left(other) < 0.4 * _left(own):
            word = "after" if shift > 0 else "before"
            numbers = np.unique(np.concatenate([own.first, own.second])).tolist()
            text = (
                f"energies follow from the forces of the structure {word} it in the file far better than "
                f"from its own: {1 - _left(other):.0%} of the differences, against "
                f"{max(1 - _left(own), 0):.0%}. Forces were written to the wrong structure; pair positions "
                "and forces again"
            )
            return [finding("shifted-forces", "error", text, frames.origins, numbers)]
    return []


def _left(pairs: Pairs) -> float:
    """The part of the energy differences that the work does not explain."""
    total = np.abs(pairs.difference).sum()
    return float(rest_of(pairs).sum() / total) if total > 0 else 0.0


def rest_of(pairs: Pairs) -> np.ndarray:
    """Absolute energy differences (eV) beyond the work of the forces and of the stress.

    Parameters
    ----------
    pairs : Pairs
        Pairs of similar structures with all labels.
    """
    work = pairs.work + np.nan_to_num(pairs.by_stress).sum((1, 2))
    rest: np.ndarray = np.abs(pairs.difference - work)
    return rest


_AXES = ((1, 2), (0, 2), (0, 1))  # yz, xz, xy
_WORDS = ("yz", "xz", "xy")


def stress_against_energies(frames: Frames, pairs: Pairs) -> list[Finding]:
    """Sign, unit and order of the stress from energies of structures with different cells.

    Parameters
    ----------
    frames : Frames
        The structures.
    pairs : Pairs
        Pairs of similar structures.
    """
    chosen = usable(pairs)
    chosen = chosen.where(chosen.strained)
    if len(chosen) < _LEAST or not np.abs(chosen.pull).max() > 0:
        return []
    tried = {order: _reordered(chosen, order) for order in permutations(range(3))}
    errors = {order: _errors(chosen, work) for order, work in tried.items()}
    found = []
    own, best = (0, 1, 2), min(errors, key=lambda order: float(errors[order].sum()))
    if _clearly_less(errors[best], errors[own]):
        numbers = np.unique(np.concatenate([chosen.first, chosen.second])).tolist()
        said = " ".join(_WORDS[k] for k in best)
        text = (
            "energies of sheared cells follow from the stress if its off-diagonal components are "
            f"exchanged: what is read as yz xz xy is {said}. Say the order of the file, for instance "
            "keys={'stress': {'key': …, 'order': 'vasp'}}"
        )
        found.append(finding("stress-order", "error", text, frames.origins, numbers))
    else:
        best = own
    return found + _scale_of_stress(frames, chosen, tried[best])


def _reordered(pairs: Pairs, order: tuple[int, ...]) -> np.ndarray:
    """Work of the stress in eV with its off-diagonal components exchanged; the strain stays."""
    work = np.einsum("paa,paa->p", pairs.pull, pairs.strain)
    for place, (a, b) in enumerate(_AXES):
        c, d = _AXES[order.index(place)]
        work = work + 2 * pairs.pull[:, c, d] * pairs.strain[:, a, b]
    return work


def _errors(pairs: Pairs, work: np.ndarray) -> np.ndarray:
    """Absolute energy differences that the work of forces and stress does not explain."""
    columns = np.stack([pairs.work, work], axis=1)
    rest: np.ndarray = np.abs(pairs.difference - columns @ fitted(columns, pairs.difference, 1).slopes)
    return rest


def _clearly_less(errors: np.ndarray, others: np.ndarray) -> bool:
    """Whether errors are smaller by 10 %, and by four standard errors of the sum (bootstrap)."""
    gain = others - errors
    if gain.sum() < 0.1 * others.sum():
        return False
    random = np.random.default_rng(0)
    again = [gain[random.integers(len(gain), size=len(gain))].sum() for _ in range(200)]
    return bool(gain.sum() > 4 * np.std(again))


def _scale_of_stress(frames: Frames, pairs: Pairs, work: np.ndarray) -> list[Finding]:
    """Findings about sign and unit of the stress."""
    fit = fitted(np.stack([pairs.work, work], axis=1), pairs.difference)
    alone = fitted(pairs.work[:, None], pairs.difference, 1)
    slope, error = float(fit.slopes[1]), float(fit.errors[1])
    gain = (fit.explained - alone.explained) / max(1 - alone.explained, 1e-9)
    if (
        fit.explained < 0.5
        or gain < 0.2
        or error > 0.2 * abs(slope)
        or _FAR_OFF[0] - 0.2 < slope < _FAR_OFF[1] + 0.2
    ):
        return []
    numbers = np.unique(np.concatenate([pairs.first, pairs.second])).tolist()
    said = (
        f"energy differences of {len(pairs)} pairs of cells are {slope:.3g} ± {error:.1g} times the work of "
        "the stress; wanted 1"
    )
    if _FAR_OFF[0] - 0.2 < -slope < _FAR_OFF[1] + 0.2:
        text = f"{said}: it has the opposite sign. Read it with keys={{'stress': {{'key': …, 'sign': -1}}}}"
        return [finding("stress-sign", "error", text, frames.origins, numbers)]
    size = float(np.median(pairs.volume))
    known = {"a virial in eV (keys={'stress': {'key': …, 'virial': True}})": 1 / size}
    known |= {
        f"a stress in {unit} (units={{'stress': {unit!r}}})": factor(unit, "eV/Å^3")
        for unit in ("GPa", "kbar", "MPa", "bar", "Pa", "Hartree/Bohr^3")
    }
    known |= {
        f"energies in {unit} with a stress in eV/Å³": 1 / factor(unit, "eV")
        for unit in ("kcal/mol", "Hartree")
    }
    cause = _cause(abs(slope), known)
    if cause:
        sign = "" if (slope > 0) != ("virial" in cause) else ", of the opposite sign ('sign': -1)"
        text = f"{said}. That fits {cause}{sign}"
    else:
        text = f"{said}: it is of another unit or of another calculation"
    return [finding("stress-unit", "error", text, frames.origins, numbers)]


def _cause(value: float, known: Mapping[str, float]) -> str:
    """As `named_factor`, and a little coarser, for volumes of different cells."""
    off = {text: abs(np.log(value / one)) for text, one in known.items()}
    return ", or ".join(text for text, by in sorted(off.items(), key=lambda item: item[1]) if by < 0.3)
