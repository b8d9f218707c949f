"""Conversion of units, by name and with checked dimensions: `factor("kcal/mol/Å", "eV/Å")`."""

import re

from molequi.errors import DataError, did_you_mean

# CODATA 2018; those of the SI are exact by definition.
_JOULE = 1 / 1.602176634e-19
_MOL = 6.02214076e23
_HARTREE = 27.211386245988
_BOHR = 0.529177210903
_METRE = 1e10
_DEBYE = 1e-21 / 299792458 / 1.602176634e-19 * _METRE  # 1 D = 1e-21 C m / (c in m/s)

# name: (value, powers of (energy, length, charge, magnetic moment, time, temperature)); bases eV, Å, e, μB,
# fs, K
_ENERGY, _LENGTH, _CHARGE, _MOMENT, _TIME, _TEMPERATURE = (
    tuple(int(i == k) for i in range(6)) for k in range(6)
)
_PRESSURE = (1, -3, 0, 0, 0, 0)
_PER_VOLUME = (0, -3, 0, 0, 0, 0)
_MOLAR = _MOL / (1e-3 * _METRE**3)  # mol/L in molecules/Å³
_UNITS: dict[str, tuple[float, tuple[int, ...]]] = {
    "1": (1.0, (0,) * 6),
    "%": (0.01, (0,) * 6),
    "mol": (_MOL, (0,) * 6),
    "M": (_MOLAR, _PER_VOLUME),
    "mM": (1e-3 * _MOLAR, _PER_VOLUME),
    "μM": (1e-6 * _MOLAR, _PER_VOLUME),
    "nM": (1e-9 * _MOLAR, _PER_VOLUME),
    "pM": (1e-12 * _MOLAR, _PER_VOLUME),
    "L": (1e-3 * _METRE**3, (0, 3, 0, 0, 0, 0)),
    "mL": (1e-6 * _METRE**3, (0, 3, 0, 0, 0, 0)),
    "eV": (1.0, _ENERGY),
    "meV": (1e-3, _ENERGY),
    "Hartree": (_HARTREE, _ENERGY),
    "Ha": (_HARTREE, _ENERGY),
    "mHa": (1e-3 * _HARTREE, _ENERGY),
    "Ry": (_HARTREE / 2, _ENERGY),
    "J": (_JOULE, _ENERGY),
    "kJ": (1e3 * _JOULE, _ENERGY),
    "cal": (4.184 * _JOULE, _ENERGY),
    "kcal": (4184 * _JOULE, _ENERGY),
    "Å": (1.0, _LENGTH),
    "Angstrom": (1.0, _LENGTH),
    "Bohr": (_BOHR, _LENGTH),
    "nm": (10.0, _LENGTH),
    "pm": (0.01, _LENGTH),
    "Pa": (_JOULE / _METRE**3, _PRESSURE),
    "MPa": (1e6 * _JOULE / _METRE**3, _PRESSURE),
    "GPa": (1e9 * _JOULE / _METRE**3, _PRESSURE),
    "bar": (1e5 * _JOULE / _METRE**3, _PRESSURE),
    "kbar": (1e8 * _JOULE / _METRE**3, _PRESSURE),
    "e": (1.0, _CHARGE),
    "V": (1.0, (1, 0, -1, 0, 0, 0)),
    "Debye": (_DEBYE, (0, 1, 1, 0, 0, 0)),
    "D": (_DEBYE, (0, 1, 1, 0, 0, 0)),
    "μB": (1.0, _MOMENT),
    "fs": (1.0, _TIME),
    "ps": (1e3, _TIME),
    "GHz": (1e-6, tuple(-p for p in _TIME)),
    "K": (1.0, _TEMPERATURE),
}
_ALIASES = {
    "\u212b": "Å",
    "A": "Å",
    "angstrom": "Å",
    "Ang": "Å",
    "Angstroms": "Å",
    "hartree": "Hartree",
    "bohr": "Bohr",
    "debye": "Debye",
    "\u00b5B": "μB",
    "muB": "μB",
    "\u00b5M": "μM",
    "uM": "μM",
    "ev": "eV",
    "a0": "Bohr",
    "elementary_charge": "e",  # as SPICE writes it
}  # U+212B: the ångström sign
_FACTOR = re.compile(r"([^\s*·/^\d-]+|1)(?:\^?(-?\d+))?$")
_AMBIGUOUS = ("a.u.", "au", "atomic", "atomic units", "a.u")


def _parse(unit: str) -> tuple[float, tuple[int, ...]]:
    if unit.strip().lower() in _AMBIGUOUS:
        raise DataError(
            f"unit {unit!r} has a meaning for every dimension; say which, for instance 'Hartree', "
            "'Hartree/Bohr', 'e Bohr' or 'e^2 Bohr^2/Hartree'"
        )
    text = unit.strip().replace("²", "^2").replace("³", "^3").replace("**", "^")
    value, powers = 1.0, [0] * 6
    for k, part in enumerate(text.split("/")):
        for word in re.split(r"[\s*·]+", part.strip()):
            match = _FACTOR.match(word)
            name = _ALIASES.get(match[1], match[1]) if match else word
            if not match or name not in _UNITS:
                guess = did_you_mean(word, _UNITS)
                raise DataError(
                    f"unit {unit!r}: {word!r} is not known{guess}{'' if guess.endswith('?') else '.'} Wanted "
                    "products and quotients such as 'kcal/mol/Å', 'eV/Bohr', 'GPa', 'e^2 Bohr^2/Hartree'; a "
                    "pure number, such as a logarithm, has no unit"
                )
            power = int(match[2] or 1) * (-1 if k else 1)
            value *= _UNITS[name][0] ** power
            powers = [p + power * d for p, d in zip(powers, _UNITS[name][1])]
    return value, tuple(powers)


def is_unit(text: str) -> bool:
    """Whether a text is a unit that can be converted.

    Parameters
    ----------
    text : str
        For instance "kcal/mol".

    Examples
    --------
    >>> is_unit("kcal/mol"), is_unit("ppm")
    (True, False)
    """
    try:
        return bool(_parse(text))
    except DataError:
        return False


def factor(unit: str, wanted: str) -> float:
    """Number by which a value in `unit` is multiplied to be in `wanted`.

    Parameters
    ----------
    unit, wanted : str
        Products and quotients of names with integer powers, such as "kcal/mol/Å" or "e^2 Bohr^2/Hartree".
        Every "/" divides by what follows it up to the next "/".

    Raises
    ------
    DataError
        If a name is unknown or ambiguous ("a.u."), or the dimensions differ.

    Examples
    --------
    >>> round(factor("kcal/mol", "eV"), 6)
    0.043364
    """
    if not isinstance(unit, str):
        raise DataError(f"wanted the name of a unit such as 'kcal/mol', found {unit!r}")
    value, powers = _parse(unit)
    base, wanted_powers = _parse(wanted or "1")
    if powers != wanted_powers:
        raise DataError(f"unit {unit!r} cannot be converted to {wanted!r}: they measure different things")
    return value / base


def is_same(unit: str, other: str) -> bool:
    """Whether two units are one, perhaps under different names.

    Parameters
    ----------
    unit, other : str
        As `factor` takes them.

    Raises
    ------
    DataError
        As `factor`.

    Examples
    --------
    >>> is_same("Ha", "Hartree"), is_same("kcal/mol", "eV")
    (True, False)
    """
    return abs(factor(unit, other) - 1) < 1e-6
