"""Labels of Hessian-vector products for training: directions, and the products with the Hessian."""

import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt

from molequi.analysis.hessians import Hessian, check_step, hessian_vector_product
from molequi.analysis.relaxed import AnyCalculator
from molequi.data import Dataset
from molequi.errors import ConfigError, DataError, DataWarning
from molequi.gradients import DIRECTIONS, PRODUCTS
from molequi.quantities import KNOWN
from molequi.readers import to_atoms
from molequi.simulation.inputs import as_calculator
from molequi.util.signature import check_keywords

_SAME = 1e-4  # Å between the positions of a structure and of its Hessian


@check_keywords()
def add_hessian_products(
    data: Dataset,
    source: AnyCalculator | Sequence[np.ndarray | Hessian] | np.ndarray,
    *,
    directions: Annotated[int, Ge(1)] = 1,
    seed: Annotated[int, Ge(0)] = 0,
    step: Annotated[float, Gt(0)] | None = None,
    structures: Annotated[int, Ge(1)] | None = None,
) -> Dataset:
    """Label structures with products of the Hessian and random directions, for the loss ``hessian_products``.

    A direction is a random displacement of all atoms with a total length of 1 and no translation. Its product
    H v is the change of the forces along it, with the opposite sign, in eV/Å². The field ``hessian_vectors``
    keeps the direction.

    Parameters
    ----------
    data : Dataset
        Structures in three dimensions. Split them first: with several directions there are several copies of
        a structure.
    source : ASE calculator, ``"gfn2-xtb"``, Model, Ensemble, path, or Hessians
        What computes the products, at the level of theory of the labels that the data have: a calculator by
        two calculations of forces for each direction, a model exactly. Or the Hessians of the structures that
        are labelled, in a list or stacked in one array, each of shape (3N, 3N) or (N, 3, N, 3) in eV/Å², as
        programs of quantum chemistry write them, or results of `molequi.hessian`. Structures of one atom have
        none.
    directions : int, >= 1
        Directions of a structure.
    seed : int, >= 0
        Seed of the directions.
    step : float, > 0, optional
        Length of the displacement by finite differences in Å; 0.01 by default.
    structures : int, >= 1, optional
        Only so many structures are labelled, evenly spaced; the others have no label. By default all with
        more than one atom: an atom alone has the Hessian zero.

    Returns
    -------
    Dataset
        The data with both columns; copies of a structure follow each other.

    Raises
    ------
    DataError
        For structures that are not three-dimensional, if each has one atom only, and for Hessians of wrong
        number, shape or content, or of other structures.
    ConfigError
        For settings out of range or without effect.

    Warns
    -----
    DataWarning
        If the forces of the calculator are not those of the data.

    Examples
    --------
    >>> import molequi as mq
    >>> from ase.build import molecule
    >>> data = mq.from_atoms([molecule("H2O")])
    >>> springs = 2 * np.eye(9)
    >>> labelled = add_hessian_products(data, [springs])
    >>> bool(np.allclose(labelled.values("hessian_products"), 2 * labelled[0].hessian_vectors))
    True
    """
    several = _check(data, directions, seed, step, structures)
    count = len(several) if structures is None else structures
    chosen = {several[k] for k in np.linspace(0, len(several) - 1, count).round().astype(int)}
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu().numpy()
    given = isinstance(source, (Sequence, np.ndarray, Hessian)) and not isinstance(source, str)
    if given:
        _check_number(source, count, step)
    calculator: Any = None if given else as_calculator(source)  # type: ignore[arg-type]
    rng, hessians = np.random.default_rng(seed), iter(source if given else ())  # type: ignore[arg-type]
    rows, graphs = [], []
    for k, graph in enumerate(data):
        if k not in chosen:
            rows.append(k)
            graphs.append(_labelled(graph, np.zeros(graph.pos.shape), np.full(graph.pos.shape, np.nan)))
            continue
        vectors = _directions(rng, directions, graph.num_nodes)
        if given:
            products = _multiplied(next(hessians), vectors, graph, data.origins[k])
        else:
            atoms = to_atoms(graph)
            if k == min(chosen):
                _compare(calculator, atoms, graph, data.origins[k])
            products = hessian_vector_product(calculator, atoms, vectors, step=step)
        rows += [k] * directions
        graphs += [_labelled(graph, v, p) for v, p in zip(vectors, products)]
    return _of(data, rows, graphs)


def _check(data: object, directions: Any, seed: Any, step: Any, structures: Any) -> list[int]:
    """The numbers of the structures with more than one atom, after all arguments were checked."""
    if not isinstance(data, Dataset):
        raise ConfigError(
            f"data is {type(data).__name__}; wanted a Dataset, such as mq.load_dataset(…) gives"
        )
    if data[0].dim != 3:
        raise DataError(f"structures in {data[0].dim} dimensions; Hessian-vector products need 3")
    several = [k for k, graph in enumerate(data) if graph.num_nodes > 1]
    if not several:
        raise DataError("each structure has one atom, whose Hessian is zero; wanted molecules or crystals")
    most = {"directions": None, "seed": None, "structures": len(several)}
    for name, value, least in (
        ("directions", directions, 1),
        ("seed", seed, 0),
        ("structures", 1 if structures is None else structures, 1),
    ):
        top = most[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < least or (top and value > top):
            upper = f" to {top}" if top else " or more"
            raise ConfigError(f"{name}={value!r}: wanted a whole number, {least}{upper}")
    check_step("step", step, "Å")
    return several


def _check_number(hessians: Any, count: int, step: float | None) -> None:
    """Raise for another number of Hessians than of structures."""
    alone = isinstance(hessians, Hessian)
    if alone or (isinstance(hessians, np.ndarray) and hessians.ndim not in (3, 5)):
        found = "one result of mq.hessian" if alone else f"an array of shape {hessians.shape}"
        raise DataError(
            f"{found}; wanted one Hessian for each structure, in a list or stacked in the shape (n, 3N, 3N) "
            "or (n, N, 3, N, 3). One Hessian alone is [hessian]"
        )
    if len(hessians) != count:
        raise DataError(
            f"{len(hessians)} Hessians for {count} structures; wanted one for each, and none for single atoms"
        )
    if step is not None:
        raise ConfigError(f"step={step:g} has no effect: the Hessians are given; leave it out")


def _directions(rng: np.random.Generator, count: int, atoms: int) -> np.ndarray:
    """Random directions of length 1 without translation, shape (count, N, 3)."""
    found = rng.normal(size=(count, atoms, 3))
    found -= found.mean(1, keepdims=True)
    return found / np.linalg.norm(found.reshape(count, -1), axis=1)[:, None, None]


def _multiplied(hessian: object, vectors: np.ndarray, graph: Any, where: str) -> np.ndarray:
    """Products of a given Hessian. Raises DataError if it is none, or one of another structure."""
    if isinstance(hessian, Hessian):
        own, structure = hessian.atoms, to_atoms(graph)
        if own.numbers.tolist() != structure.numbers.tolist() or not np.allclose(
            own.positions, structure.positions, rtol=0.0, atol=_SAME
        ):
            raise DataError(
                f"{where}: a Hessian of {own.get_chemical_formula()} at other positions or with its atoms in "
                "another order; wanted the results of mq.hessian in the order of the structures"
            )
        hessian = hessian.matrix
    size = vectors[0].size
    try:
        array = np.asarray(hessian.detach().cpu() if isinstance(hessian, torch.Tensor) else hessian)
        if array.dtype.kind not in "fiuO":
            raise TypeError
        array = array.astype(np.float64)
    except (TypeError, ValueError):
        raise DataError(
            f"{where}: a Hessian that is {type(hessian).__name__}; wanted an array of numbers, shape "
            f"({size}, {size})"
        ) from None
    if array.shape not in ((size, size), (size // 3, 3, size // 3, 3)):
        raise DataError(
            f"{where}: a Hessian of shape {array.shape} for {size // 3} atoms; wanted ({size}, {size}) or "
            f"({size // 3}, 3, {size // 3}, 3)"
        )
    array = array.reshape(size, size)
    if not np.isfinite(array).all():
        raise DataError(f"{where}: the Hessian has a number that is not finite")
    odd = np.abs(array - array.T).max()
    if odd > 0.05 * np.abs(array).max():
        raise DataError(
            f"{where}: H_ij and H_ji differ by up to {odd:.3g} of {np.abs(array).max():.3g} eV/Å²; a Hessian "
            "is symmetric"
        )
    return (vectors.reshape(len(vectors), -1) @ ((array + array.T) / 2)).reshape(vectors.shape)


def _compare(calculator: Any, atoms: Any, graph: Any, where: str) -> None:
    """Warn (DataWarning) if the forces of the first structure are not those of the calculator."""
    label = graph.targets.get("forces")
    if label is None or torch.isnan(label).any():
        return
    frame = atoms.copy()
    frame.calc = calculator
    wanted, found = label.numpy(), frame.get_forces()
    away, size = (float(np.sqrt(np.square(x).mean())) for x in (found - wanted, wanted))
    if away > 0.02 * size + 1e-3:
        warnings.warn(
            f"{where}: the forces of {type(calculator).__name__} differ from the labels by {away:.3g} eV/Å "
            f"(rms; the labels have {size:.3g}), so that forces and Hessian-vector products contradict each "
            "other; take the method that made the labels",
            DataWarning,
            stacklevel=4,
        )


def _labelled(graph: Any, vectors: np.ndarray, products: np.ndarray) -> Any:
    targets = graph.targets | {PRODUCTS: torch.from_numpy(products)}
    return graph.replace(**{DIRECTIONS: torch.from_numpy(vectors)}, targets=targets)


def _of(data: Dataset, rows: Sequence[int], graphs: Sequence[Any]) -> Dataset:
    """A Dataset of structures that belong to these rows."""
    return Dataset(
        graphs,
        quantities=data.quantities | {PRODUCTS: KNOWN[PRODUCTS]},
        info={name: [column[k] for k in rows] for name, column in data.info.items()},
        origins=[data.origins[k] for k in rows],
        sources=data.sources,
        found=data.found,
        unused=data.unused,
        reading=data.reading,
        allow=data.allow,
    )
