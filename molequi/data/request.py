"""What is to be read from a file: quantities, their keys and units, and which may be missing."""

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from molequi.data.heuristics import checked_allow
from molequi.data.units import factor, is_unit
from molequi.errors import ConfigError, DataError, did_you_mean
from molequi.graph import own_fields
from molequi.quantities import KNOWN, Quantity, quantity

# Names under which files keep the total charge and the spin multiplicity of a structure.
INVARIANTS = {"charge": ("charge", "total_charge"), "spin": ("spin", "spin_multiplicity")}
_ORDERS = {"ase": "xx yy zz yz xz xy", "vasp": "xx yy zz xy yz zx"}


def component_order(text: str) -> list[int] | None:
    """Return where a file has each of the nine components of a symmetric matrix.

    Parameters
    ----------
    text : str
        The order of the six components in the file: "ase", "vasp", or six names such as "xx yy zz xy xz yz".

    Returns
    -------
    list of int, or None
        For each of the nine components its place among the six; None if `text` is something else.

    Examples
    --------
    >>> component_order("ase")
    [0, 5, 4, 5, 1, 3, 4, 3, 2]
    """
    names = ["".join(sorted(word)) for word in _ORDERS.get(text, text).split()]
    nine = ["xx", "xy", "xz", "xy", "yy", "yz", "xz", "yz", "zz"]
    return [names.index(n) for n in nine] if sorted(names) == sorted(set(nine)) else None


def impossible_total(name: str, value: float) -> str:
    """Why a number cannot be a total charge or a spin multiplicity; empty if it can.

    Parameters
    ----------
    name : {"charge", "spin"}
        Which of the two.
    value : float
        The number.

    Examples
    --------
    >>> impossible_total("spin", 2.0), impossible_total("charge", -1.0)
    ('', '')
    """
    wrong = name == "spin" and not (value >= 1 and value == int(value))
    return "the spin is the multiplicity 2S + 1, a whole number from 1 (1 of a singlet)" if wrong else ""


def stated_total(given: object) -> float | None:
    """The total charge or multiplicity that is given in place of a name; None if it is a name.

    Parameters
    ----------
    given : object
        A number, or its text from a command line.

    Examples
    --------
    >>> stated_total("-1"), stated_total("total_charge")
    (-1.0, None)
    """
    if isinstance(given, bool) or not isinstance(given, (numbers.Real, str)):
        return None
    try:
        return float(given)
    except ValueError:
        return None


@dataclass(frozen=True)
class Key:
    """Under which key a file keeps a quantity, and by which convention.

    Parameters
    ----------
    key : str
        Name in the file.
    sign : {1, -1}
        -1 if the file has the opposite sign.
    order : str
        Order of the six components of a symmetric tensor: "ase" (xx yy zz yz xz xy), "vasp" (xx yy zz xy yz
        zx), or six names such as "xx yy zz xy xz yz".
    virial : bool
        Whether the file has a virial, -V times the stress, in units of energy. Only for the stress.

    Raises
    ------
    ConfigError
        If a value is not one of these.
    """

    key: str
    sign: int = 1
    order: str = "ase"
    virial: bool = False

    def __post_init__(self) -> None:
        if self.sign not in (1, -1) or not isinstance(self.virial, bool):
            raise ConfigError(
                f"key {self.key!r}: sign {self.sign!r}, virial {self.virial!r}; wanted sign 1 or -1, virial "
                "True or False"
            )
        if not isinstance(self.order, str) or component_order(self.order) is None:
            raise ConfigError(
                f"key {self.key!r}: order {self.order!r}; wanted 'ase', 'vasp', or six components such as "
                "'xx yy zz xy xz yz'"
            )

    @classmethod
    def of(cls, name: str, given: "str | Mapping[str, Any] | Key") -> "Key":
        """The key of a quantity from what a user wrote.

        Parameters
        ----------
        name : str
            Name of the quantity.
        given : str, mapping or Key
            The name in the file, or a mapping with the fields of Key.
        """
        options = [f.name for f in dataclasses.fields(cls)]
        if isinstance(given, Mapping):
            for option in given:
                if option not in options:
                    raise ConfigError(
                        f"keys[{name!r}]: no option {option!r}{did_you_mean(str(option), options)}"
                    )
            given = cls(**{"key": name, **given})
        elif isinstance(given, str):
            given = cls(given)
        if not isinstance(given, Key):
            raise ConfigError(
                f"keys[{name!r}] is {given!r}; wanted a name, or "
                f"{{'key': name, 'sign': -1, 'order': 'vasp', 'virial': True}}"
            )
        if given.virial and name != "stress":
            raise ConfigError(f"keys[{name!r}]: virial=True; only a stress can be given by a virial")
        return given


class WhereFound(list[str | Quantity]):
    """Quantities that a reader reads where the file has them; one that it lacks is no error."""


class Request:
    """What is to be read. Readers take the first four arguments and hand them on.

    Parameters
    ----------
    quantities : sequence of str or Quantity, optional
        What to read; by default every known quantity that the file has. All must be there, unless this is a
        `WhereFound`.
    keys : mapping, optional
        Name in the file by quantity, where it differs; see `Key`. "charge", "spin", "velocities" and fields
        declared by `molequi.add_field` may be named too. None instead of a name: do not read it. A number
        for "charge" or "spin": the value of all structures, for files that do not say it.
    units : mapping of str to str, optional
        Unit in the file by quantity, and of "positions" and "velocities".
    partial : sequence of str, optional
        Quantities that may be missing in some structures.
    rename : str, optional
        The argument of the reader by which users name another key, for messages; None if it has none.
    of_block : bool
        Whether the structures are a part of a file, so that quantities of `partial` may be missing in all of
        them.
    allow : str or sequence of str, optional
        Heuristics that are overruled, see `molequi.data.heuristics`.

    Attributes
    ----------
    candidates : dict of str to Quantity
        What is read if it is found.
    named : tuple of str
        Those that the user named; they must be there.
    skipped : tuple of str
        Those that the user does not want to be read.
    keys : dict of str to Key
        Where each candidate is found.
    fields : dict of str to Field
        Fields declared by `molequi.add_field`; they are read where they are found, under `field_keys`.
    invariants : dict of str to tuple of str
        Where the total charge and the spin multiplicity are found.
    totals : dict of str to float
        Total charge and spin multiplicity that the user states for all structures.
    factors : dict of str to float
        What the numbers of each candidate are multiplied by.
    length : float
        What positions and cells are multiplied by.

    Raises
    ------
    ConfigError
        If a name is no quantity.
    DataError
        If a unit is unknown or measures something else.
    """

    def __init__(
        self,
        *,
        quantities: str | Quantity | Sequence[str | Quantity] = (),
        keys: Mapping[str, Any] | None = None,
        units: Mapping[str, str] | None = None,
        partial: str | Sequence[str] = (),
        rename: str | None = "keys",
        of_block: bool = False,
        allow: str | Sequence[str] = (),
    ) -> None:
        self.allow = checked_allow(allow)
        keys, units = dict(keys or {}), dict(units or {})
        if isinstance(quantities, (str, Quantity)):
            quantities = [quantities]
        partial = [partial] if isinstance(partial, str) else list(partial)
        asked = _asked(quantities, keys, partial)
        _check_units(units, asked)
        skipped = {name for name, given in keys.items() if given is None}
        self.of_block = of_block
        self.rename, self.skipped = rename, tuple(sorted(skipped))
        must = {*keys, *partial} if isinstance(quantities, WhereFound) else asked
        self.named = tuple(n for n in asked if n in must and n not in skipped)
        self.totals = {n: number for n in INVARIANTS if (number := stated_total(keys.get(n))) is not None}
        keys = {n: given for n, given in keys.items() if n not in self.totals}
        self.by_key = tuple(n for n in keys if n not in skipped)
        self.partial = tuple(partial)
        # Without a list everything known is read where it is found; with one, that and what `keys` and
        # `partial` name.
        self.candidates = {
            n: q for n, q in (asked if quantities else KNOWN | asked).items() if n not in skipped
        }
        self.keys = {n: Key.of(n, keys.get(n, n)) for n in self.candidates}
        self.invariants = {
            n: (keys[n],) if n in keys else names for n, names in INVARIANTS.items() if n not in skipped
        }
        self.named_invariants = tuple(n for n in self.invariants if n in keys)
        self.fields = {n: spec for n, spec in own_fields().items() if n not in skipped}
        self.field_keys = {n: _field_key(n, keys.get(n, n)) for n in self.fields}
        self.named_fields = tuple(n for n in self.fields if n in keys)
        self.velocities = keys.get("velocities")
        self.units = units
        self.length = factor(units.get("positions", "Å"), "Å")
        self.factors = {n: self._factor(n, q) for n, q in self.candidates.items()}
        self.factors |= {
            n: _factor_to(n, units[n], s.unit) if n in units else 1.0 for n, s in self.fields.items()
        }

    def _factor(self, name: str, q: Quantity) -> float:
        """Factor from the unit of the file to ours; for a virial, before the division by the volume."""
        key, unit = self.keys[name], self.units.get(name)
        if key.virial:
            return -factor(unit or "eV", "eV") * key.sign
        return (1.0 if unit is None else _factor_to(name, unit, q.unit)) * key.sign

    def pick(self, stored: Mapping[str, object]) -> dict[str, object]:
        """The raw labels of one structure by the names of their quantities.

        Parameters
        ----------
        stored : mapping of str to object
            What the file says of this structure, by its own keys.

        Returns
        -------
        dict of str to object
            For `Record.values`: what is there of the quantities, the total charge and the spin multiplicity.
        """
        found = {name: stored[key.key] for name, key in self.keys.items() if key.key in stored}
        found |= {name: stored[key] for name, key in self.field_keys.items() if key in stored}
        for name in self.invariants:
            stated = self.stated_totals(name, stored)
            if stated:
                found[name] = next(iter(stated.values()))
        return found

    def stated_totals(self, name: str, stored: Mapping[str, Any]) -> dict[str, Any]:
        """What a file says of the total charge or the spin multiplicity, by its own keys.

        Parameters
        ----------
        name : {"charge", "spin"}
            Which of the two.
        stored : mapping of str to object
            What the file says of a structure.

        Returns
        -------
        dict of str to object
            Without texts and lists, such as ``spin="singlet"`` or charges of atoms, which are something else
            under the same name; but whatever the user named is in it.
        """
        found = {k: stored[k] for k in self.invariants[name] if stored.get(k) is not None}
        if name in self.named_invariants:
            return found
        return {k: v for k, v in found.items() if np.size(v) == 1 and np.asarray(v).dtype.kind in "iuf"}

    def check_units(self, names: Sequence[str], where: str, advice: str = "") -> None:
        """Raise DataError if the unit of a quantity is not given, for files that do not say units.

        Parameters
        ----------
        names : sequence of str
            Quantities that were found.
        where : str
            The file, for the message.
        advice : str
            What the message ends with.
        """
        for name in names:
            q = self.candidates.get(name) or self.fields.get(name)
            if q is not None and q.unit and name not in self.units:
                raise DataError(
                    f"{where} does not say the unit of {name}; say it, for instance "
                    f"units={{{name!r}: {q.unit!r}}}{advice}; a pure number, such as a logarithm, is "
                    "declared without a unit"
                )

    def note(self, name: str) -> str:
        """Where and how a quantity was found, in a few words for `Dataset.summary`.

        Parameters
        ----------
        name : str
            One of `candidates`.
        """
        key = self.keys[name]
        unit = self.units.get(name)
        how = [
            f"in {unit}" if unit else "",
            "a virial" if key.virial else "",
            "sign changed" if key.sign < 0 else "",
            f"order {key.order}" if key.order != "ase" else "",
        ]
        return ", ".join([f"from {key.key!r}", *filter(None, how)])


def _asked(
    quantities: Sequence[str | Quantity], keys: Mapping[str, Any], partial: Sequence[str]
) -> dict[str, Quantity]:
    """The quantities that the caller names in one way or another."""
    asked = {q.name: q for q in map(quantity, quantities)}
    special = [*INVARIANTS, "velocities", *own_fields()]
    for name in keys:
        if name not in asked and name not in special:
            if name not in KNOWN:
                known = dict.fromkeys([*asked, *KNOWN, *special])
                raise ConfigError(f"keys: {name!r} is not a quantity{did_you_mean(name, known)}")
            if keys[name] is not None:
                asked[name] = KNOWN[name]
    return asked | {name: quantity(name) for name in partial if name not in asked}


def _factor_to(name: str, unit: str, wanted: str) -> float:
    """Factor from the unit of the file to that of a quantity; a unit of the user may be any text."""
    if unit == wanted:
        return 1.0
    if wanted and not is_unit(wanted):
        raise DataError(
            f"units[{name!r}] is {unit!r}, and {name} is declared in {wanted!r}, which is not a unit that "
            "can be "
            f"converted; give the labels in {wanted!r} and leave {name!r} out of units, or declare {name} in "
            f"{unit!r}"
        )
    return factor(unit, wanted)


def _field_key(name: str, given: object) -> str:
    """The name in the file of a declared field."""
    if not isinstance(given, str):
        raise ConfigError(f"keys[{name!r}] is {given!r}; wanted the name of the field in the file")
    return given


def _check_units(units: Mapping[str, str], asked: Mapping[str, Quantity]) -> None:
    known = {**asked, **KNOWN, **own_fields(), "positions": None, "velocities": None}
    for name in units:
        if name not in known:
            raise ConfigError(f"units: {name!r} is not a quantity{did_you_mean(name, known)}")
