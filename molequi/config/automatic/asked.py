"""What the user says beside the file, and what is chosen from both."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from molequi.data.heuristics import checked_allow
from molequi.data.units import factor, is_unit
from molequi.errors import ConfigError, DataError
from molequi.quantities import KNOWN, Quantity
from molequi.readers.tables import quoted

SPLIT = {"train": 0.8, "valid": 0.1, "test": 0.1}
_UNIT = re.compile(r"(.*\S)\s*[(\[]\s*([^()\[\]]+?)\s*[)\]]\s*")


@dataclass(frozen=True)
class Asked:
    """What the user says of a run beside the data.

    Parameters
    ----------
    target : tuple of str
        What is to be learnt, by the names of the file.
    units : mapping of str to str
        Unit in the file by target; the name "" stands for the only target.
    keys : mapping of str to str
        Name in the file by quantity.
    stress : bool, optional
        Whether the stress is learnt; None: if the file has it.
    column : str, optional
        The column with the SMILES.
    recipe : str, optional
        The recipe whose model and training are taken.
    members : int, optional
        Number of models in the ensemble.
    skip : bool
        Leave out molecules that cannot be used.
    allow : tuple of str
        Heuristics that are overruled, see `molequi.data.heuristics`.
    command : str
        The command that the user typed, for messages.
    """

    target: tuple[str, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    stress: bool | None = None
    column: str | None = None
    recipe: str | None = None
    members: int | None = None
    skip: bool = False
    allow: tuple[str, ...] = ()
    command: str = "train"

    def refuse(self, what: str, *names: str) -> None:
        """Raise ConfigError for options that mean nothing for these data.

        Parameters
        ----------
        what : str
            What the data are, for the message.
        *names : str
            Options that were perhaps given.
        """
        for name in names:
            if getattr(self, name) not in (None, (), {}, False):
                raise ConfigError(f"--{name} has no meaning for {what}; leave it out")

    def words(self) -> list[str]:
        """The same as options of the command line, for messages."""
        words: list[str] = []
        for option in fields(self):
            given = getattr(self, option.name)
            if given in (option.default, (), {}) or option.name == "command":
                continue
            if isinstance(given, Mapping):
                given = [f"{key}={text}" if key else text for key, text in given.items()]
            if isinstance(given, bool):
                words.append(f"--{option.name}" if given else f"--no-{option.name}")
            else:
                words += [f"--{option.name}", *([given] if isinstance(given, (str, int)) else given)]
        return list(map(str, words))

    def unit(self, name: str) -> str | None:
        """The unit that was given for a target.

        Parameters
        ----------
        name : str
            The target, as the user calls it.
        """
        return self.units.get(name, self.units.get("") if len(self.target) < 2 else None)

    def check_units(self, names: Sequence[str]) -> None:
        """Raise ConfigError for a unit of something that is not learnt.

        Parameters
        ----------
        names : sequence of str
            All targets, by every name that they have.
        """
        if "" in self.units and len(self.target) > 1:
            raise ConfigError(
                f"--units {self.units['']}: there are {len(self.target)} targets; say of which: "
                f"--units {quoted(self.target[0] + '=' + self.units[''])}"
            )
        for name in self.units:
            if name and name not in names:
                raise ConfigError(f"--units {name}=…: {name} is not learnt; learnt are {', '.join(names)}")


def asked_of(
    target: str | Sequence[str] = (),
    units: str | Mapping[str, str] | None = None,
    keys: Mapping[str, str] | None = None,
    stress: bool | None = None,
    column: str | None = None,
    recipe: str | None = None,
    members: int | None = None,
    skip: bool = False,
    allow: str | Sequence[str] = (),
) -> Asked:
    """What the user says, in the forms of `molequi.train_file`.

    Parameters
    ----------
    target, units, keys, stress, column, recipe, members, skip, allow
        As in `molequi.train_file`.

    Examples
    --------
    >>> asked_of("logS", "mol/L").words()
    ['--target', 'logS', '--units', 'mol/L']
    """
    given = {"": units} if isinstance(units, str) else dict(units or {})
    names = (target,) if isinstance(target, str) else tuple(target)
    allowed = checked_allow(allow, "train.allow")
    return Asked(names, given, dict(keys or {}), stress, column, recipe, members, skip, allowed)


@dataclass(frozen=True)
class Plan:
    """What is chosen for a file.

    Parameters
    ----------
    data : dict
        The section ``data``.
    predict : list
        The section ``predict``.
    recipe : str
        The recipe whose backbone and training are taken.
    backbone : dict
        Options of the backbone that replace those of the recipe.
    train : dict
        Options of the training that replace those of the recipe.
    notes : dict of str to str
        What was chosen and why, by subject.
    """

    data: dict[str, Any]
    predict: list[Any]
    recipe: str
    backbone: dict[str, Any]
    train: dict[str, Any]
    notes: dict[str, str]


def identifier(name: str) -> str:
    """A name in a file as the name of a quantity.

    Parameters
    ----------
    name : str
        The name in the file.

    Examples
    --------
    >>> identifier("log S (mol/L)"), identifier("% purity"), identifier("2nd")
    ('log_S_mol_L', 'purity', 'y_2nd')
    """
    plain = re.sub(r"\W+", "_", name).strip("_") or "y"
    plain = f"y_{plain}" if plain[0].isdigit() else plain
    return plain if plain.isidentifier() and not _is_keyword(plain) else f"y_{plain}"


def _is_keyword(name: str) -> bool:
    import keyword

    return keyword.iskeyword(name)


def scalar_quantity(column: str, unit: str | None, where: str) -> tuple[Quantity, str | None]:
    """The number of a structure that a column holds, and its unit in the file.

    Parameters
    ----------
    column : str
        Name of the column, perhaps with its unit in brackets: ``gap (eV)``.
    unit : str or None
        The unit that the user gives.
    where : str
        The file, for messages.

    Returns
    -------
    Quantity
        A known quantity if the column has its name, otherwise a new one.
    str or None
        Its unit in the file; None for a pure number.

    Raises
    ------
    ConfigError
        If the unit is missing, or is not one of this quantity.
    """
    found = _UNIT.fullmatch(column)
    bare, inside = (found[1], found[2]) if found else (column, None)
    known = KNOWN.get(bare)
    if known is not None and known.rank == 0 and known.per == "graph":
        said = unit or inside
        if said is None:
            raise ConfigError(
                f"{where}: {bare!r} is a known quantity, which is measured in {known.unit}, and the column "
                f"does not say its unit; say it: --units {quoted(known.unit)}"
            )
        if not _convertible(known, said):
            raise ConfigError(
                f"{where}: {bare!r} is a known quantity, which is measured in {known.unit}; found the unit "
                f"{said!r}. Give one that can be converted: --units {quoted(known.unit)}; or give the column "
                "another name"
            )
        return known, said
    said = unit or (inside if inside and _looks_like_a_unit(inside) else None)
    if said is not None:
        return Quantity(new_name(bare), unit=said), said
    return Quantity(new_name(column)), None


def new_name(column: str) -> str:
    """The name of a new quantity for a column; no known quantity has it.

    Parameters
    ----------
    column : str
        The name in the file.

    Examples
    --------
    >>> new_name("log S"), new_name("gap")
    ('log_S', 'gap_value')
    """
    name = identifier(column)
    return f"{name}_value" if name in KNOWN else name


def _looks_like_a_unit(text: str) -> bool:
    return is_unit(text) or "/" in text or text == "%"


def _convertible(q: Quantity, unit: str) -> bool:
    try:
        factor(unit, q.unit)
    except DataError:
        return False
    return True


def described(q: Quantity) -> Any:
    """A quantity as a run file has it.

    Parameters
    ----------
    q : Quantity
        The quantity.

    Examples
    --------
    >>> described(Quantity("logS")), described(Quantity("shape", classes=["chair", "lamp"]))
    ({'name': 'logS'}, {'name': 'shape', 'classes': ['chair', 'lamp']})
    """
    if KNOWN.get(q.name) == q:
        return q.name
    defaults = {f.name: f.default for f in fields(Quantity)}
    given = {k: v for k, v in asdict(q).items() if v != defaults.get(k, ())}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}


def epochs_for(structures: int, batch: int, steps: int, most: int) -> int:
    """Number of epochs that makes so many steps.

    Parameters
    ----------
    structures : int
        Structures in the training set.
    batch : int
        Structures in a batch.
    steps : int
        Wanted number of steps.
    most : int
        Largest number of epochs; the smallest is 5.

    Examples
    --------
    >>> epochs_for(240, 16, 1200, 80), epochs_for(100_000, 16, 1200, 80), epochs_for(8, 5, 1000, 80)
    (80, 5, 80)
    """
    return max(5, min(most, round(steps * batch / max(structures, 1))))


def missing_target(
    where: str, what: str, numbers: Sequence[str], classes: Sequence[str], command: str = "train"
) -> str:
    """The message that the target is missing, with a command for each that there is.

    Parameters
    ----------
    where : str
        The file.
    what : str
        What holds the targets: "columns".
    numbers, classes : sequence of str
        Targets that are numbers and classes.
    command : str
        The command that the user typed.
    """
    lines = [f"{where}: what is to be learnt? --target is missing. Type one of"]
    for kind, names in (("numbers", numbers), ("classes", classes)):
        lines += [
            f"  molequi {command} {quoted(where)} --target {quoted(name)}    # {kind}" for name in names[:20]
        ]
        lines += [f"  … and {len(names) - 20} more {what} of {kind}"] if len(names) > 20 else []
    return "\n".join(lines)
