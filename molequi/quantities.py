"""What a number means, said once: name, place, how it turns, unit. Everything else in the house follows from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

from molequi.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A predicted or given quantity.

    name: the key under which data sets, models, metrics and files know it.
    per: "graph" (one value a structure) or "node" (one value an atom or point).
    rank: 0 scalar, 1 vector of shape (D,), 2 symmetric tensor of shape (D, D).
    pseudo: True if it gains an extra sign under reflections (a magnetic moment is a pseudovector).
    unit: the unit inside molequi (eV, Å, e); readers convert to it.
    extensive: a sum over atoms, so that it doubles with the system; only for `per="graph"`.
    gradient_of, wrt: the quantity is minus the gradient of another with respect to the positions (`wrt="positions"`),
        or the gradient with respect to a symmetric strain over the volume (`wrt="strain"`).
    classes: names of classes; a label is the number of one of them, a prediction one score (logit) for each.
    point: a position in space, of rank 1, which moves along when the structure is shifted; other vectors do not.
    """

    name: str
    per: Literal["graph", "node"] = "graph"
    rank: Literal[0, 1, 2] = 0
    pseudo: bool = False
    unit: str = ""
    extensive: bool = False
    gradient_of: str | None = None
    wrt: Literal["positions", "strain"] = "positions"
    classes: Sequence[str] = ()
    point: bool = False

    def __post_init__(self):
        if not self.name.isidentifier():
            raise ConfigError(
                f"quantity {self.name!r}: a name must be a Python identifier (letters, digits, '_')"
            )
        if self.per not in ("graph", "node"):
            raise ConfigError(f"quantity {self.name}: per={self.per!r} is neither 'graph' nor 'node'")
        if self.rank not in (0, 1, 2):
            raise ConfigError(
                f"quantity {self.name}: rank={self.rank!r}; wanted 0 (scalar), 1 (vector) or 2 (symmetric)"
            )
        if self.wrt not in ("positions", "strain"):
            raise ConfigError(f"quantity {self.name}: wrt={self.wrt!r} is neither 'positions' nor 'strain'")
        if self.extensive and self.per == "node":
            raise ConfigError(f"quantity {self.name}: a quantity per node is not extensive; say per='graph'")
        if isinstance(self.classes, str) or not all(isinstance(c, str) for c in self.classes):
            raise ConfigError(f"quantity {self.name}: classes={self.classes!r}; wanted a list of names")
        object.__setattr__(self, "classes", tuple(self.classes))
        if len(self.classes) == 1 or len(set(self.classes)) < len(self.classes):
            raise ConfigError(
                f"quantity {self.name}: classes={list(self.classes)}; wanted two or more different names"
            )
        if self.classes and (self.rank or self.pseudo or self.extensive or self.unit or self.gradient_of):
            raise ConfigError(
                f"quantity {self.name}: classes are neither vectors nor sums and have no unit; leave rank, pseudo, "
                "extensive, unit and gradient_of out"
            )
        if self.point and (self.rank != 1 or self.pseudo or self.extensive or self.gradient_of):
            raise ConfigError(
                f"quantity {self.name}: point=True is for positions, which have rank=1 and are neither pseudovectors, "
                "sums nor gradients"
            )

    def shape(self, dim: int = 3) -> tuple[int, ...]:
        """Shape of one value in `dim` dimensions: (), (D,) or (D, D)."""
        return (dim,) * self.rank

    @property
    def label(self) -> str:
        """Name and unit for tables and plots: `forces (eV/Å)`."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


KNOWN = {
    q.name: q
    for q in (
        Quantity(name="energy", unit="eV", extensive=True),
        Quantity(name="forces", per="node", rank=1, unit="eV/Å", gradient_of="energy", wrt="positions"),
        Quantity(name="stress", rank=2, unit="eV/Å^3", gradient_of="energy", wrt="strain"),
        Quantity(name="energies", per="node", unit="eV"),
        Quantity(name="dipole", rank=1, unit="e Å", extensive=True),
        Quantity(name="polarizability", rank=2, unit="e^2 Å^2/eV", extensive=True),
        Quantity(name="charges", per="node", unit="e"),
        Quantity(name="magmoms", per="node", unit="μB"),
        Quantity(name="gap", unit="eV"),
        Quantity(name="homo", unit="eV"),
        Quantity(name="lumo", unit="eV"),
        # those of QM9; total energies are extensive, alpha is the isotropic polarizability volume, mu = |dipole|, r2 = ⟨R²⟩
        Quantity(name="mu", unit="e Å"),
        Quantity(name="alpha", unit="Å^3", extensive=True),
        Quantity(name="r2", unit="Å^2"),
        Quantity(name="zpve", unit="eV", extensive=True),
        Quantity(name="u0", unit="eV", extensive=True),
        Quantity(name="u298", unit="eV", extensive=True),
        Quantity(name="h298", unit="eV", extensive=True),
        Quantity(name="g298", unit="eV", extensive=True),
        Quantity(name="cv", unit="eV/K", extensive=True),
    )
}


def quantity(item: "str | Quantity") -> Quantity:
    """The known quantity of that name, or the one given. Raises ConfigError for an unknown name."""
    if isinstance(item, Quantity):
        return item
    if isinstance(item, str):
        if item in KNOWN:
            return KNOWN[item]
        raise ConfigError(
            f"quantity {item!r} is not known{did_you_mean(item, KNOWN)} "
            f"A new one is an expression: Quantity(name={item!r}, per='graph', rank=0, unit='...')"
        )
    raise ConfigError(f"wanted the name of a quantity or a Quantity, found {type(item).__name__}: {item!r}")


SYMBOLS = [
    "X",
    "H",
    "He",
    "Li",
    "Be",
    "B",
    "C",
    "N",
    "O",
    "F",
    "Ne",
    "Na",
    "Mg",
    "Al",
    "Si",
    "P",
    "S",
    "Cl",
    "Ar",
    "K",
    "Ca",
    "Sc",
    "Ti",
    "V",
    "Cr",
    "Mn",
    "Fe",
    "Co",
    "Ni",
    "Cu",
    "Zn",
    "Ga",
    "Ge",
    "As",
    "Se",
    "Br",
    "Kr",
    "Rb",
    "Sr",
    "Y",
    "Zr",
    "Nb",
    "Mo",
    "Tc",
    "Ru",
    "Rh",
    "Pd",
    "Ag",
    "Cd",
    "In",
    "Sn",
    "Sb",
    "Te",
    "I",
    "Xe",
    "Cs",
    "Ba",
    "La",
    "Ce",
    "Pr",
    "Nd",
    "Pm",
    "Sm",
    "Eu",
    "Gd",
    "Tb",
    "Dy",
    "Ho",
    "Er",
    "Tm",
    "Yb",
    "Lu",
    "Hf",
    "Ta",
    "W",
    "Re",
    "Os",
    "Ir",
    "Pt",
    "Au",
    "Hg",
    "Tl",
    "Pb",
    "Bi",
    "Po",
    "At",
    "Rn",
    "Fr",
    "Ra",
    "Ac",
    "Th",
    "Pa",
    "U",
    "Np",
    "Pu",
    "Am",
    "Cm",
    "Bk",
    "Cf",
    "Es",
    "Fm",
    "Md",
    "No",
    "Lr",
    "Rf",
    "Db",
    "Sg",
    "Bh",
    "Hs",
    "Mt",
    "Ds",
    "Rg",
    "Cn",
    "Nh",
    "Fl",
    "Mc",
    "Lv",
    "Ts",
    "Og",
]


def atomic_number(element: "str | int") -> int:
    """Atomic number of a symbol or number; 0 (`X`) is a plain point. Raises ConfigError if there is no such element."""
    if isinstance(element, str) and element in SYMBOLS:
        return SYMBOLS.index(element)
    if isinstance(element, Integral) and not isinstance(element, bool) and 0 <= element < len(SYMBOLS):
        return int(element)
    raise ConfigError(
        f"element {element!r}: wanted a chemical symbol or an atomic number from 0 (a plain point) to 118"
    )


def per_atom(quantity: Quantity) -> bool:
    """Whether errors of this quantity are also meant per atom: extensive scalars of a structure."""
    return quantity.per == "graph" and quantity.extensive and quantity.rank == 0
