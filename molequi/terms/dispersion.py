"""Dispersion corrections D3(BJ) and D4 of the packages dftd3 and dftd4: not learned, added exactly once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import Annotated, Any, Literal, TypeVar, cast

import numpy as np
import torch
from annotated_types import MinLen
from jaxtyping import Float
from torch import Tensor

from molequi.errors import ConfigError, ModelError
from molequi.gradients import DISPLACEMENT, POSITIONS, STRAIN, differentiate, with_variables
from molequi.graph import Graph
from molequi.nn.pair_energies import BOHR, HARTREE
from molequi.quantities import SYMBOLS, Quantity
from molequi.util.optional import require
from molequi.util.options import Options
from molequi.util.signature import check_keywords

STEP = 1e-4  # Å: displacement of second differences; coordination numbers bend within 0.1 Å
ELEMENTS = (
    103  # both packages have parameters up to lawrencium; beyond, dftd3 1.7 returns anything or crashes
)
VACUUM = 50.0  # Å beside structures that are not periodic in all directions; D3 ends at 31.8 Å
KINDS = {"d3": "D3(BJ)", "d4": "D4"}
Labelled = TypeVar("Labelled")  # Model or Ensemble
Calculate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@check_keywords()
@dataclass(frozen=True)
class Dispersion(Options):
    """A dispersion correction, which a model adds to its energy: D3(BJ) (Grimme et al. 2010 and 2011,
    10.1063/1.3382344, 10.1002/jcc.21759) or D4 (Caldeweyher et al. 2019, 10.1063/1.5090222).

    In Python and YAML it is also ``{"d3": "pbe"}`` or ``{"d4": {"functional": "r2scan", …}}``.

    Parameters
    ----------
    kind : {"d3", "d4"}
        The correction, by the package dftd3 or dftd4.
    functional : str
        The functional whose damping parameters are taken, as the package names it.
    in_labels : bool
        Whether the labels of a training have this dispersion already. True: it is subtracted from them before
        the training, and the model that adds it predicts these labels. False: the labels are those of the
        bare functional, and the model predicts them plus the dispersion.
    three_body : bool, optional
        With the Axilrod-Teller-Muto term. The default is that of the method: no for D3, yes for D4.

    Raises
    ------
    ConfigError
        For wrong types, and a functional for which there are no parameters.
    MissingPackageError
        If the package is missing.

    Examples
    --------
    >>> Dispersion(kind="d3", functional="pbe").words
    'D3(BJ) of pbe, added to what the network predicts; subtracted from the labels of a training'
    """

    kind: Literal["d3", "d4"]
    functional: Annotated[str, MinLen(1)]
    in_labels: bool = True
    three_body: bool | None = None

    def problem(self) -> str:
        require(f"dft{self.kind}", "dispersion", f"dispersion {KINDS[self.kind]}")
        try:
            _parameters(self.kind, self.functional, self._with_three_body)
        except RuntimeError as error:
            return (
                f"functional={self.functional!r}: {' '.join(str(error).split())}; wanted a functional that "
                f"the package dft{self.kind} knows, such as 'pbe' or 'r2scan'"
            )
        return ""

    @property
    def _with_three_body(self) -> bool:
        return self.kind == "d4" if self.three_body is None else self.three_body

    def changed(self) -> dict[str, Any]:
        """As JSON and YAML have it."""
        return {self.kind: {k: v for k, v in super().changed().items() if k != "kind"}}

    @property
    def words(self) -> str:
        """What it is, for the summary of a model and the log of a training."""
        more = " with three-body term" if self.kind == "d3" and self.three_body else ""
        more = " without three-body term" if self.kind == "d4" and self.three_body is False else more
        labels = (
            "subtracted from the labels of a training"
            if self.in_labels
            else "not in the labels of a training"
        )
        return f"{KINDS[self.kind]} of {self.functional}{more}, added to what the network predicts; {labels}"

    def energies(self, graph: Graph, charges: bool) -> Float[Tensor, "G"]:
        """Energy of each structure in eV, differentiable twice by positions and cell.

        First derivatives are those of the package. Second derivatives are central differences of these; third
        ones raise ModelError.

        Parameters
        ----------
        graph : Graph
            A batch of structures. No edges are needed.
        charges : bool
            Whether D4 takes the total charge of the structures, which are neutral otherwise. D3 does not take
            it.

        Raises
        ------
        ModelError
            For an element without parameters.
        """
        outside = graph.z[(graph.z < 1) | (graph.z > ELEMENTS)].tolist()
        if outside:
            raise ModelError(
                f"dispersion {KINDS[self.kind]}: no parameters of {SYMBOLS[outside[0]]} (atomic number "
                f"{outside[0]}); wanted elements from H (1) to {SYMBOLS[ELEMENTS]} ({ELEMENTS}); take the "
                "model without it, model.with_dispersion(None)"
            )
        cell = graph.pos.new_zeros(graph.num_graphs, 3, 3) if graph.cell is None else graph.cell
        charge = graph.charge if charges and self.kind == "d4" else None
        batch = _Batch(
            self,
            graph.z.detach().cpu().numpy().astype(np.int32),
            graph.counts.tolist(),
            np.zeros((graph.num_graphs, 3), bool) if graph.pbc is None else graph.pbc.cpu().numpy(),
            [0.0] * graph.num_graphs if charge is None else charge.tolist(),
        )
        energy, _, _ = _WithSlopes.apply(graph.pos, cell, batch, graph.batch)
        return cast(Tensor, energy)


def as_dispersion(value: object, where: str = "dispersion") -> Dispersion:
    """A dispersion correction from an object or a mapping such as ``{"d3": "pbe"}``.

    Parameters
    ----------
    value : Dispersion or mapping
        The correction. A mapping has the kind and its functional or options.
    where : str
        What messages begin with.

    Raises
    ------
    ConfigError
        For anything else, and as `Dispersion` does.

    Examples
    --------
    >>> as_dispersion({"d4": "pbe"}).changed()
    {'d4': {'functional': 'pbe'}}
    """
    if isinstance(value, Dispersion):
        return value
    if not isinstance(value, Mapping) or len(value) != 1 or next(iter(value)) not in KINDS:
        raise ConfigError(
            f"{where}: found {value!r}; wanted {{d3: pbe}} or {{d4: pbe}}, or options as in "
            "{d3: {functional: pbe, in_labels: true}}"
        )
    ((kind, options),) = value.items()
    options = {"functional": options} if isinstance(options, str) else options
    if not isinstance(options, Mapping) or "functional" not in options:
        raise ConfigError(f"{where}.{kind}: found {options!r}; wanted a functional, as in {{{kind}: pbe}}")
    try:
        return Dispersion(kind=kind, **options)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{where}.{kind}: {str(error).removeprefix('Dispersion: ')}") from error


def add_dispersion(
    out: Mapping[str, Tensor],
    graph: Graph,
    dispersion: Dispersion,
    quantities: Mapping[str, Quantity],
    *,
    charges: bool,
    create_graph: bool,
) -> dict[str, Tensor]:
    """Predictions with the dispersion in the energy and in all its derivatives by positions and strain.

    The packages give the energy of a structure, which its atoms share in equal parts ("energies").

    Parameters
    ----------
    out : mapping of str to Tensor
        Predictions without it.
    graph : Graph
        The batch.
    dispersion : Dispersion
        The correction.
    quantities : mapping of str to Quantity
        What is predicted, by name. Forces that are predicted directly get those of the dispersion, too.
    charges : bool
        Whether the model takes the total charge of the structures.
    create_graph : bool
        Whether the results can be differentiated again.
    """
    if "energy" not in out:
        return dict(out)
    wanted, known = derivatives_of_energy(quantities), {"energy"}
    with torch.set_grad_enabled(bool(wanted) or create_graph):
        graph, strained, variables = with_variables(graph, list(dict.fromkeys(q.wrt for q in wanted)))
        energy = dispersion.energies(strained, charges)
        more = {"energy": energy, "energies": (energy / graph.counts)[graph.batch]}
        more |= differentiate(
            {"energy": energy}, wanted, variables, graph, always_finite=known, create_graph=create_graph
        )
    return {name: value + more[name] if name in more else value for name, value in out.items()}


def derivatives_of_energy(quantities: Mapping[str, Quantity]) -> list[Quantity]:
    """Quantities that are derivatives of the energy by positions, strain and a displacement, and derivatives
    of these.

    Parameters
    ----------
    quantities : mapping of str to Quantity
        Quantities by name.

    Returns
    -------
    list of Quantity
        Parents first.
    """
    found: dict[str, Quantity] = {}
    variables = (POSITIONS, STRAIN, DISPLACEMENT)
    for _ in quantities:
        for name, q in quantities.items():
            if q.wrt in variables and (q.gradient_of == "energy" or q.gradient_of in found):
                found.setdefault(name, q)
    return list(found.values())


def as_labelled(model: Labelled) -> Labelled:
    """The model that predicts what its labels are: without a dispersion that they lack (in_labels=False).

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    """
    found = getattr(model, "energy_terms", {}).get("dispersion")
    lacks = isinstance(found, Dispersion) and not found.in_labels
    return cast(Any, model).with_dispersion(None) if lacks else model


class _WithSlopes(torch.autograd.Function):
    """Energies with their derivatives by positions and cells as further outputs."""

    @staticmethod
    def forward(
        ctx: Any, pos: Tensor, cell: Tensor, calculate: Calculate, batch: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        energy, by_pos, by_cell = calculate(pos, cell)
        ctx.save_for_backward(pos, cell, by_pos, by_cell, batch)
        ctx.set_materialize_grads(False)
        ctx.calculate = calculate
        return energy, by_pos, by_cell

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        pos, cell, by_pos, by_cell, batch = ctx.saved_tensors
        energy, along_pos, along_cell = grads
        out = [torch.zeros_like(pos), torch.zeros_like(cell)]
        if energy is not None:
            out = [energy[batch, None] * by_pos, energy[:, None, None] * by_cell]
        if along_pos is not None or along_cell is not None:
            along_pos = torch.zeros_like(pos) if along_pos is None else along_pos
            along_cell = torch.zeros_like(cell) if along_cell is None else along_cell
            second = _SecondDifference.apply(pos, cell, along_pos, along_cell, ctx.calculate, batch)
            out = [a + b for a, b in zip(out, cast(tuple[Tensor, Tensor], second))]
        return (*out, None, None)


class _SecondDifference(torch.autograd.Function):
    """Second derivatives times a direction, by central differences of first derivatives."""

    @staticmethod
    def forward(
        pos: Tensor, cell: Tensor, along_pos: Tensor, along_cell: Tensor, calculate: Calculate, batch: Tensor
    ) -> tuple[Tensor, Tensor]:
        kind = pos.dtype
        pos, cell, along_pos, along_cell = (v.double() for v in (pos, cell, along_pos, along_cell))
        length = pos.new_zeros(len(cell))
        length = length.scatter_reduce(0, batch, along_pos.abs().amax(1), "amax")
        length = torch.maximum(length, along_cell.abs().amax((1, 2)))
        step = torch.where(length > 0, STEP / length.clamp(min=1e-300), 0.0)  # (G,)
        ends = []
        for sign in (1, -1):
            moved = sign * step
            _, by_pos, by_cell = calculate(
                pos + moved[batch, None] * along_pos, cell + moved[:, None, None] * along_cell
            )
            ends.append((by_pos, by_cell))
        scale = torch.where(length > 0, 0.5 / step.clamp(min=1e-300), 0.0)
        (pos_a, cell_a), (pos_b, cell_b) = ends
        second = (pos_a - pos_b) * scale[batch, None], (cell_a - cell_b) * scale[:, None, None]
        return second[0].to(kind), second[1].to(kind)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise ModelError(
            "third derivatives of a dispersion correction are not there: its second derivatives are central "
            "differences; take the model without it, model.with_dispersion(None)"
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *values: Any) -> Any:
        """Many directions, one after another."""
        rows = [
            _SecondDifference.apply(*(v if d is None else v.select(d, k) for v, d in zip(values, in_dims)))
            for k in range(info.batch_size)
        ]
        return tuple(torch.stack(column) for column in zip(*rows)), (0, 0)


class _Batch:
    """Energies and first derivatives of the structures of a batch, one after another."""

    def __init__(
        self, options: Dispersion, z: np.ndarray, counts: list[int], pbc: np.ndarray, charges: list[float]
    ) -> None:
        self.options, self.z, self.counts, self.pbc, self.charges = options, z, counts, pbc, charges

    def __call__(self, pos: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        where, lattice = pos.detach().double().cpu().numpy(), cell.detach().double().cpu().numpy()
        energy, by_cell = np.zeros(len(self.counts)), np.zeros((len(self.counts), 3, 3))
        by_pos, start = np.zeros_like(where), 0
        options = self.options
        for k, count in enumerate(self.counts):
            own, pbc = slice(start, start + count), self.pbc[k]
            box = _complete(lattice[k], pbc, where[own])
            energy[k], slope, virial = _evaluate(
                options.kind,
                options.functional,
                options._with_three_body,
                self.z[own].tobytes(),
                where[own].tobytes(),
                box.tobytes(),
                bool(pbc.any()),
                self.charges[k],
            )
            by_pos[own] = slope
            if pbc.any():  # dE/dε = Σ r ⊗ dE/dr + hᵀ dE/dh
                rest = virial - where[own].T @ slope
                by_cell[k] = np.where(pbc[:, None], np.linalg.solve(box.T, rest), 0.0)
            start += count
        return tuple(torch.from_numpy(v).to(pos) for v in (energy, by_pos, by_cell))  # type: ignore[return-value]


def _complete(cell: np.ndarray, pbc: np.ndarray, pos: np.ndarray) -> np.ndarray:
    """Lattice vectors, with normals in place of those that are not periodic, beyond which there is vacuum.

    The packages have no slabs: dftd4 takes all directions as periodic, and the energy of dftd3 1.7 for two
    periodic directions is not the limit of large clusters. The length is a multiple of the vacuum, so that it
    does not change with small displacements.
    """
    box = cell.copy()
    if pbc.any() and not pbc.all():
        normals = np.linalg.svd(box[pbc])[2][int(pbc.sum()) :]
        spans = np.ptp(pos @ normals.T, axis=0)
        box[~pbc] = normals * (VACUUM * (np.ceil(spans / VACUUM) + 1))[:, None]
    return box


def _compact(cell: np.ndarray) -> np.ndarray:
    """Vectors of the same lattice that no multiple of another one makes clearly shorter.

    The charges of dftd4 4.3 depend on the choice: energies of a skewed cell are wrong by 1e-3 eV.
    """
    short, before = cell.copy(), np.inf
    while np.linalg.norm(short) < 0.99 * before:
        before = float(np.linalg.norm(short))
        for k, other in permutations(range(3), 2):
            along = short[k] @ short[other] / (short[other] @ short[other])
            short[k] = short[k] - np.rint(along) * short[other]
    return short if np.linalg.norm(short) < 0.99 * np.linalg.norm(cell) else cell


@lru_cache(maxsize=64)
def _parameters(kind: str, functional: str, three_body: bool) -> Any:
    """Damping parameters of a functional. Raises RuntimeError for an unknown one."""
    package = _package(kind)
    damping = package.RationalDampingParam if kind == "d3" else package.DampingParam
    return damping(method=functional, atm=three_body)


def _package(kind: str) -> Any:
    """The interface of dftd3 or dftd4."""
    if kind == "d3":
        from dftd3 import interface as d3

        return d3
    from dftd4 import interface as d4

    return d4


@lru_cache(maxsize=64)  # members of an ensemble and several quantities ask for the same structure
def _evaluate(
    kind: str,
    functional: str,
    three_body: bool,
    z: bytes,
    pos: bytes,
    cell: bytes,
    periodic: bool,
    charge: float,
) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy in eV, its derivatives by positions in eV/Å, and by strain in eV."""
    numbers, place = np.frombuffer(z, np.int32), np.frombuffer(pos).reshape(-1, 3)
    more: dict[str, Any] = {} if kind == "d3" else {"charge": charge}
    if periodic:
        lattice = _compact(np.frombuffer(cell).reshape(3, 3))
        more |= {"lattice": lattice / BOHR, "periodic": np.ones(3, bool)}
    try:
        model = _package(kind).DispersionModel(numbers, place / BOHR, **more)
        found = model.get_dispersion(_parameters(kind, functional, three_body), grad=True)
    except (RuntimeError, ValueError) as error:
        here = ", ".join(SYMBOLS[number] for number in sorted(set(numbers.tolist())))
        raise ModelError(
            f"dispersion {KINDS[kind]} of a structure of {len(numbers)} atoms ({here}): the package "
            f"dft{kind} says: {' '.join(str(error).split())}"
        ) from error
    return (
        float(found["energy"]) * HARTREE,
        found["gradient"] * (HARTREE / BOHR),
        found["virial"] * HARTREE,
    )
