"""Units against their definitions and against ASE's own table."""

import ase.units
import pytest

from molequi.data.units import factor
from molequi.errors import DataError

# ASE 3.29 uses CODATA 2014; the two editions agree to this.
EDITIONS = 1e-7


@pytest.mark.parametrize(
    "unit, wanted, expected",
    [
        ("kcal/mol", "eV", ase.units.kcal / ase.units.mol),
        ("kJ/mol", "eV", ase.units.kJ / ase.units.mol),
        ("kcal/mol/Å", "eV/Å", ase.units.kcal / ase.units.mol),
        ("Hartree", "eV", ase.units.Hartree),
        ("Ha/Bohr", "eV/Å", ase.units.Hartree / ase.units.Bohr),
        ("eV/Bohr", "eV/Å", 1 / ase.units.Bohr),
        ("meV", "eV", 1e-3),
        ("GPa", "eV/Å^3", ase.units.GPa),
        ("kbar", "eV/Å³", 0.1 * ase.units.GPa),
        ("Debye", "e Å", ase.units.Debye),
        ("e Bohr", "e*Å", ase.units.Bohr),
        ("e^2 Bohr^2/Hartree", "e^2 Å^2/eV", ase.units.Bohr**2 / ase.units.Hartree),
        ("Hartree/Bohr^3", "eV/Å^3", ase.units.Hartree / ase.units.Bohr**3),
        ("Å/fs", "Å/ps", 1e3),
        ("nm", "\u212b", 10.0),
        ("D", "e Å", ase.units.Debye),
        ("bohr^3", "Å^3", ase.units.Bohr**3),
        ("bohr²", "Å^2", ase.units.Bohr**2),
        ("Ha", "eV", ase.units.Ha),
        ("cal/mol/K", "eV/K", 1e-3 * ase.units.kcal / ase.units.mol),
        ("kJ/mol/K", "meV/K", 1e3 * ase.units.kJ / ase.units.mol),
        ("GHz", "1/ps", 1e-3),
    ],
)
def test_known_conversions(unit, wanted, expected):
    assert factor(unit, wanted) == pytest.approx(expected, rel=EDITIONS)
    assert factor(unit, wanted) * factor(wanted, unit) == pytest.approx(1, rel=1e-14)


@pytest.mark.parametrize(
    "unit, wanted, sentence",
    [
        ("a.u.", "eV", "say which"),
        ("kcal/mole", "eV", "did you mean 'mol'"),
        ("kcal/mol", "eV/Å", "measure different things"),
        ("cal/mol", "eV/K", "measure different things"),
        ("au", "eV", "say which"),
        ("__import__('os')", "eV", "is not known"),
        ("", "eV", "is not known"),
        (None, "eV", "wanted the name of a unit"),
    ],
)
def test_refused(unit, wanted, sentence):
    with pytest.raises(DataError, match=sentence):
        factor(unit, wanted)
