"""What a value means, declared once: its name, shape, behaviour under rotations and reflections, and unit."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import Any, Literal

from molequi.errors import ConfigError, did_you_mean
from molequi.ops.indices import index_permutations
from molequi.util.html import html_facts, html_heading, some
from molequi.util.signature import check_keywords

MOST_INDICES = 10  # 3^10 components


@check_keywords()
@dataclass(frozen=True)
class Quantity:
    """A quantity that data sets contain and models predict.

    A quantity with ``gradient_of`` is a derivative of another predicted quantity P of the graph,

        factor · ∂P / ∂x  (divided by the volume if ``per_volume``),

    which the model takes by differentiation. Its indices are those of P, followed by those of the variable x:
    the Born charges of node n are ``born[n, a, b] = ∂μ_a / ∂r_nb``. Gradients of gradients are allowed.
    Strain refers to the given cell: the gradient of a stress with respect to strain is ∂²E/∂ε∂ε / V.

    Parameters
    ----------
    name : str
        Key of the quantity in data sets, models, metrics and files; a Python identifier.
    per : {"graph", "node"}
        One value per structure, or one per atom (or point).
    rank : int, >= 0
        Number of tensor indices: 0 scalar, 1 vector of shape (D,), 2 tensor of shape (D, D), and so on.
    symmetry : str
        Symmetry under exchange of indices: ``"ij=ji"`` (symmetric), ``"ij=-ji"`` (antisymmetric),
        ``"ijk=jik=ikj"``; empty: none.
    pseudo : bool
        Whether it has an additional change of sign under reflections. A magnetic moment is a pseudovector.
    unit : str
        Unit inside molequi (eV, Å, e); readers convert to it.
    extensive : bool
        Whether it is a sum over atoms, which doubles with the system; for ``per="graph"`` only.
    gradient_of : str, optional
        Name of the predicted quantity, one with ``per="graph"``, of which this one is a derivative.
    wrt : str
        Variable of the derivative: "positions", "strain" (symmetric, of positions and cell), the name of a
        field of the graph, or "displacement": s of x + s v, where v is the field ``hessian_vectors``.
    factor : float, optional
        Constant factor of the derivative; None means 1. Forces have -1. A gradient of a scalar with respect
        to positions needs it explicitly, because forces and gradients differ in their sign.
    per_volume : bool, optional
        Whether the derivative is divided by the volume of the cell (it is NaN without one); None means False.
        A derivative of a scalar with respect to strain needs it explicitly: True for a stress, False for a
        virial.
    classes : sequence of str
        Names of classes. A label is the number of one of them, a prediction has one score (logit) for each.
    point : bool
        Whether it is a position in space (rank 1), which moves with the structure under translations.

    Raises
    ------
    ConfigError
        If the declaration is inconsistent.

    Examples
    --------
    >>> Quantity("born", per="node", rank=2, unit="e", gradient_of="dipole", wrt="positions").shape()
    (3, 3)
    >>> Quantity("beta", rank=3, symmetry="ijk=jik=ikj").rank
    3
    """

    name: str
    _: KW_ONLY
    per: Literal["graph", "node"] = "graph"
    rank: int = 0
    symmetry: str = ""
    pseudo: bool = False
    unit: str = ""
    extensive: bool = False
    gradient_of: str | None = None
    wrt: str = "positions"
    factor: float | None = None
    per_volume: bool | None = None
    classes: Sequence[str] = ()
    point: bool = False

    def __post_init__(self) -> None:
        self._check_types()
        if not self.name.isidentifier():
            raise ConfigError(
                f"quantity {self.name!r}: a name must be a Python identifier (letters, digits, '_')"
            )
        if self.per not in ("graph", "node"):
            raise ConfigError(f"quantity {self.name}: per={self.per!r} is neither 'graph' nor 'node'")
        if not isinstance(self.rank, Integral) or isinstance(self.rank, bool) or self.rank < 0:
            raise ConfigError(
                f"quantity {self.name}: rank={self.rank!r}; wanted the number of tensor indices: 0 "
                "(scalar), 1 (vector), 2, …"
            )
        if self.rank > MOST_INDICES:
            raise ConfigError(
                f"quantity {self.name}: rank={self.rank}; wanted at most {MOST_INDICES} tensor indices, "
                "each of which has three values"
            )
        try:
            index_permutations(self.symmetry, self.rank)
        except ValueError as error:
            raise ConfigError(f"quantity {self.name}: symmetry={self.symmetry!r}: {error}") from error
        if self.extensive and self.per == "node":
            raise ConfigError(f"quantity {self.name}: a quantity per node is not extensive; say per='graph'")
        self._check_classes()
        self._check_gradient()
        if self.point and (self.rank != 1 or self.pseudo or self.extensive or self.gradient_of):
            raise ConfigError(
                f"quantity {self.name}: point=True is for positions, which have rank=1 and are neither "
                "pseudovectors, sums nor gradients"
            )

    def _check_types(self) -> None:
        texts = {n: getattr(self, n) for n in ("name", "symmetry", "unit", "wrt")}
        texts["gradient_of"] = self.gradient_of or ""
        switches = {n: getattr(self, n) for n in ("pseudo", "extensive", "point")}
        switches["per_volume"] = bool(self.per_volume) if self.per_volume is None else self.per_volume
        for kind, wanted, values in ((str, "text", texts), (bool, "True or False", switches)):
            for option, value in values.items():
                if not isinstance(value, kind):
                    raise ConfigError(f"quantity {self.name!r}: {option}={value!r}; wanted {wanted}")

    def _check_classes(self) -> None:
        if isinstance(self.classes, str) or not all(isinstance(c, str) for c in self.classes):
            raise ConfigError(f"quantity {self.name}: classes={self.classes!r}; wanted a list of names")
        object.__setattr__(self, "classes", tuple(self.classes))
        if len(self.classes) == 1 or len(set(self.classes)) < len(self.classes):
            raise ConfigError(
                f"quantity {self.name}: classes={list(self.classes)}; wanted two or more different names"
            )
        if self.classes and (self.rank or self.pseudo or self.extensive or self.unit or self.gradient_of):
            raise ConfigError(
                f"quantity {self.name}: classes are neither vectors nor sums and have no unit; leave rank, "
                "pseudo, extensive, unit and gradient_of out"
            )

    def _check_gradient(self) -> None:
        if not self.wrt.isidentifier():
            raise ConfigError(
                f"quantity {self.name}: wrt={self.wrt!r}; wanted 'positions', 'strain' or the name of a "
                "field of the graph"
            )
        if self.gradient_of is None:
            for option, default in (("wrt", "positions"), ("factor", None), ("per_volume", None)):
                if getattr(self, option) != default:
                    raise ConfigError(
                        f"quantity {self.name}: {option}={getattr(self, option)!r} belongs to a gradient; "
                        f"say of which quantity (gradient_of=…), or leave {option} out"
                    )
            return
        factor = self.factor
        if factor is not None and (
            isinstance(factor, bool) or not isinstance(factor, Real) or not 0 < abs(factor) < float("inf")
        ):
            raise ConfigError(
                f"quantity {self.name}: factor={factor!r}; wanted a finite number other than zero, such as -1"
            )
        signed = {"positions": ("forces", "r"), "electric_field": ("a dipole moment", "F")}
        if self.wrt in signed and self.rank == 1 and factor is None:
            usual, variable = signed[self.wrt]
            raise ConfigError(
                f"quantity {self.name}: the gradient of {self.gradient_of!r} with respect to {self.wrt} "
                f"needs its sign: say factor=-1 for {usual} (-d{self.gradient_of}/d{variable}), factor=1 for "
                "the gradient itself"
            )
        if self.wrt == "strain" and self.rank == 2 and self.per_volume is None:
            raise ConfigError(
                f"quantity {self.name}: say per_volume=True for a stress (d{self.gradient_of}/dstrain over "
                "the volume), per_volume=False for the derivative itself"
            )

    def shape(self, dim: int = 3) -> tuple[int, ...]:
        """Shape of one value: (), (D,), (D, D), …

        Parameters
        ----------
        dim : int
            Dimensions of space D.
        """
        return (dim,) * self.rank

    @property
    def symmetric(self) -> bool:
        """Whether it is a symmetric tensor of rank 2, which has six independent components in space."""
        return self.rank == 2 and index_permutations(self.symmetry, 2).get((1, 0)) == 1

    @property
    def label(self) -> str:
        """Name and unit for tables and plots: `forces (eV/Å)`."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def words(self) -> str:
        """What one value is: `vector of each node`, `scalar of the graph, extensive`."""
        if self.classes:
            kind = f"one of {len(self.classes)} classes"
        elif self.rank == 2:
            symmetry = {1: "symmetric ", -1: "antisymmetric "}
            kind = symmetry.get(index_permutations(self.symmetry, 2).get((1, 0), 0), "") + "tensor"
        else:
            kind = {0: "scalar", 1: "position" if self.point else "vector"}.get(
                self.rank, f"tensor of rank {self.rank}"
            )
        where = "of each node" if self.per == "node" else "of the graph"
        return f"{'pseudo' if self.pseudo else ''}{kind} {where}{', extensive' if self.extensive else ''}"

    @property
    def formula(self) -> str:
        """The derivative that it is, such as `-∂energy/∂positions`; empty if it is none."""
        if self.gradient_of is None:
            return ""
        number = 1.0 if self.factor is None else self.factor
        factor = {1.0: "", -1.0: "-"}.get(number, f"{number:g} ")
        return f"{factor}∂{self.gradient_of}/∂{self.wrt}{' per volume' if self.per_volume else ''}"

    def _repr_html_(self) -> str:
        facts = {"what": self.words, "unit": self.unit, "derivative": self.formula}
        return html_heading(f"quantity {self.name}") + html_facts(facts | {"classes": some(self.classes)})


KNOWN = {
    q.name: q
    for q in (
        Quantity(name="energy", unit="eV", extensive=True),
        Quantity(
            name="forces", per="node", rank=1, unit="eV/Å", gradient_of="energy", wrt="positions", factor=-1.0
        ),
        Quantity(
            name="stress",
            rank=2,
            symmetry="ij=ji",
            unit="eV/Å^3",
            gradient_of="energy",
            wrt="strain",
            per_volume=True,
        ),
        # Products of the Hessian with the field hessian_vectors v: H v = d(v · dE/dx)/dx.
        Quantity(name="energy_slope", unit="eV/Å", gradient_of="energy", wrt="displacement"),
        Quantity(
            name="hessian_products",
            per="node",
            rank=1,
            unit="eV/Å^2",
            gradient_of="energy_slope",
            wrt="positions",
            factor=1.0,
        ),
        Quantity(name="energies", per="node", unit="eV"),
        Quantity(name="dipole", rank=1, unit="e Å", extensive=True),
        Quantity(name="polarizability", rank=2, symmetry="ij=ji", unit="e^2 Å^2/eV", extensive=True),
        Quantity(name="born_charges", per="node", rank=2, unit="e", gradient_of="dipole"),
        Quantity(name="charges", per="node", unit="e"),
        Quantity(name="magmoms", per="node", unit="μB"),
        Quantity(name="gap", unit="eV"),
        Quantity(name="homo", unit="eV"),
        Quantity(name="lumo", unit="eV"),
        # Properties of QM9; alpha is the isotropic polarizability volume, mu = |dipole|, r2 = ⟨R²⟩.
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


# What a known quantity is. Whether a model predicts it directly or as a derivative is free.
_NATURE = ("per", "rank", "pseudo", "unit", "extensive", "classes", "point")


# Responses to an electric field: what is differentiated, by what, and with which factor.
RESPONSES: dict[str, tuple[str, str, float | None]] = {
    "dipole": ("energy", "electric_field", -1.0),
    "polarizability": ("dipole", "electric_field", None),
    "born_charges": ("dipole", "positions", None),
}


@check_keywords()
def response(*names: str) -> list[Quantity]:
    """Dipole, polarizability and Born charges as derivatives of the energy in an electric field F:

        μ = -∂E/∂F,   α = ∂μ/∂F = -∂²E/∂F²,   Z_n,ab = ∂μ_a/∂r_nb = ∂f_nb/∂F_a.

    They are trained together with energies and forces, like any other quantity. The backbone must read the
    field: ``Inputs(electric_field=True)``. In a run file a response is ``{name: dipole, gradient_of:
    energy}``, and so on.

    Parameters
    ----------
    *names : str
        Of "dipole", "polarizability" and "born_charges"; none given: all three. The last two are derivatives
        of the dipole, which has to be predicted too, as a response or by a head.

    Returns
    -------
    list of Quantity
        The declarations, for ``predict``.

    Raises
    ------
    ConfigError
        For another name.

    Examples
    --------
    >>> [q.formula for q in response()]
    ['-∂energy/∂electric_field', '∂dipole/∂electric_field', '∂dipole/∂positions']
    """
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(
                f"response: found {name!r}; wanted names, as in mq.response('dipole', 'polarizability')"
            )
        if name not in RESPONSES:
            guess = did_you_mean(name, RESPONSES)
            raise ConfigError(f"response {name!r} is not known{guess} Wanted some of {', '.join(RESPONSES)}")
    return [
        Quantity(**completed({"name": name, "gradient_of": RESPONSES[name][0]}))
        for name in names or RESPONSES
    ]


def completed(declaration: Mapping[str, Any]) -> dict[str, Any]:
    """A declaration as a mapping; a response by its name and its parent gets what is left out.

    Parameters
    ----------
    declaration : mapping of str to object
        Arguments of `Quantity`. ``{"name": "dipole", "gradient_of": "energy"}`` is enough for those that
        `response` knows.

    Returns
    -------
    dict of str to object
        All of them.

    Examples
    --------
    >>> completed({"name": "dipole", "gradient_of": "energy"})["wrt"]
    'electric_field'
    """
    name = declaration.get("name")
    parent, wrt, factor = RESPONSES.get(str(name), ("", "", None))
    if not parent or declaration.get("gradient_of") != parent:
        return dict(declaration)
    known = KNOWN[str(name)]
    nature = {n: getattr(known, n) for n in (*_NATURE, "symmetry")}
    return nature | {"wrt": wrt, "factor": factor} | dict(declaration)


def as_label(item: Quantity) -> Quantity:
    """What labels of a quantity mean: the known quantity for its `response`, otherwise the quantity itself.

    Parameters
    ----------
    item : Quantity
        What a model predicts or data have.

    Returns
    -------
    Quantity
        Equal for two quantities whose labels mean the same.

    Examples
    --------
    >>> as_label(response("dipole")[0]) == KNOWN["dipole"]
    True
    """
    return KNOWN[item.name] if item.name in RESPONSES and item in response(item.name) else item


def stored_quantity(entry: Mapping[str, Any]) -> Quantity:
    """A quantity of a model file.

    Earlier files have vectors that are derivatives by the electric field without their factor, which was 1.

    Parameters
    ----------
    entry : mapping of str to object
        Arguments of `Quantity`.
    """
    by_field = entry.get("wrt") == "electric_field" and entry.get("gradient_of")
    if by_field and entry.get("rank") == 1 and entry.get("factor") is None:
        entry = {**entry, "factor": 1.0}
    return Quantity(**entry)


def quantity(item: "str | Quantity") -> Quantity:
    """Look up a known quantity by its name.

    Parameters
    ----------
    item : str or Quantity
        The name; a `Quantity` is returned unchanged.

    Returns
    -------
    Quantity
        The declaration.

    Raises
    ------
    ConfigError
        If the name is unknown, or if a declaration has the name of a known quantity and says something else.

    Examples
    --------
    >>> quantity("forces").label
    'forces (eV/Å)'
    """
    if isinstance(item, Quantity):
        known = KNOWN.get(item.name, item)
        other = [n for n in _NATURE if getattr(item, n) != getattr(known, n)]
        if other:
            raise ConfigError(
                f"quantity {item.name!r} is known and has "
                f"{', '.join(f'{n}={getattr(known, n)!r}' for n in other)}; this declaration has "
                f"{', '.join(f'{n}={getattr(item, n)!r}' for n in other)}. Write {item.name!r} for the known "
                "quantity, or give yours another name"
            )
        return item
    if isinstance(item, str):
        if item in KNOWN:
            return KNOWN[item]
        guess = did_you_mean(item, KNOWN)
        raise ConfigError(
            f"quantity {item!r} is not known{guess}{'' if guess.endswith('?') else '.'} Declare a new one: "
            f"mq.Quantity({item!r}, unit='…'), without unit for a pure number such as a logarithm; in YAML "
            f"{{name: {item}, unit: …}}"
        )
    raise ConfigError(f"wanted the name of a quantity or a Quantity, found {type(item).__name__}: {item!r}")


_PERIODIC_TABLE = (
    "X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br "
    "Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er "
    "Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md "
    "No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"
)
# Chemical symbols by atomic number; X (0) is a point that is not an atom.
SYMBOLS = _PERIODIC_TABLE.split()


def atomic_number(element: "str | int") -> int:
    """Atomic number of an element.

    Parameters
    ----------
    element : str or int
        Symbol or atomic number; 0 or "X" is a plain point.

    Returns
    -------
    int
        The atomic number.

    Raises
    ------
    ConfigError
        If there is no such element.

    Examples
    --------
    >>> atomic_number("O")
    8
    """
    if isinstance(element, str) and element in SYMBOLS:
        return SYMBOLS.index(element)
    if isinstance(element, Integral) and not isinstance(element, bool) and 0 <= element < len(SYMBOLS):
        return int(element)
    raise ConfigError(
        f"element {element!r}: wanted a chemical symbol or an atomic number from 0 (a plain point) to 118"
    )


def per_atom(quantity: Quantity) -> bool:
    """Whether errors are also reported per atom, which is so for extensive scalars of structures.

    Parameters
    ----------
    quantity : Quantity
        The declaration.
    """
    return quantity.per == "graph" and quantity.extensive and quantity.rank == 0
