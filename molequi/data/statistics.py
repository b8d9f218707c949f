"""What a model needs to know of its training data: energies of isolated atoms, shifts, scales, neighbours."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from molequi.data.dataset import Dataset
from molequi.errors import DataError, DataWarning
from molequi.quantities import SYMBOLS, atomic_number


@dataclass(frozen=True)
class Statistics:
    """Numbers by which a model is standardised, once, before training.

    mean_neighbors: edges an atom. isolated: energy of an isolated atom by atomic number, eV, given or fitted. shift:
    mean of what is left, by quantity; for extensive ones by element. scale: by quantity; for the energy the rms force
    component (eV/Å) where forces are known.
    """

    elements: tuple[int, ...]
    mean_neighbors: float
    reference_energies: dict[int, float]
    reference_energies_given: bool
    shift: dict[str, float | dict[int, float]]
    scale: dict[str, float]


def compositions(data: Dataset, elements: Sequence[int]) -> np.ndarray:
    """Atoms of each element in each structure: (structures, elements)."""
    table = np.zeros((len(data), len(elements)))
    column = {e: c for c, e in enumerate(elements)}
    for k, graph in enumerate(data):
        np.add.at(table[k], [column[e] for e in graph.z.tolist()], 1)
    return table


def statistics(
    data: Dataset,
    cutoff: float | None,
    *,
    reference_energies: "Mapping | str | Path | Dataset | None" = None,
    k: int | None = None,
) -> Statistics:
    """Statistics of a training set.

    isolated: energies of isolated atoms (eV) by symbol or atomic number, or a file or Dataset of single atoms with
    energies. Without it
    they are those of single atoms among the data, and the others are fitted: least squares on the composition, of smallest norm where compositions do not tell elements apart
    (with a single composition only their sum means anything). What then remains per atom is the shift of the energy;
    with given ones it is the mean energy per atom of binding, refined by element as far as compositions tell them
    apart. Raises DataError if an element of the data has no given energy, or single atoms among the data have another; warns (DataWarning) where a fit says nothing
    about an element.
    """
    elements = data.elements
    edges = sum(g.edge_index.shape[1] for g in data.connected(cutoff, k=k))
    known = data.known("energy") if "energy" in data.quantities else np.zeros(len(data), dtype=bool)
    given = None if reference_energies is None else _given(reference_energies, elements)
    table = compositions(data, elements)
    energies = dict.fromkeys(elements, 0.0) if given is None else given
    lone = known & (np.asarray(data.counts) == 1) & np.array([g.pbc is None for g in data])
    alone = _alone(data, np.flatnonzero(lone), given)
    if given is None and (known & ~lone).any():
        fitted = [e for e in elements if e not in alone]
        rest = data.values("energy").numpy() - sum(
            table[:, elements.index(e)] * value for e, value in alone.items()
        )
        columns = [elements.index(e) for e in fitted]
        energies = alone | (
            _fit(table[known & ~lone][:, columns], rest[known & ~lone], fitted) if fitted else {}
        )
        energies = {e: energies[e] for e in elements}
    elif given is None:
        energies = energies | alone
    shift, scale = {}, {}
    for name, q in data.quantities.items():
        values = data.values(name).numpy()
        there = data.known(name)
        if (
            name == "energy" and not lone.all()
        ):  # lone atoms have the energy of isolated atoms and tell nothing of binding
            there = there & ~lone
            values = np.where(lone, np.nan, values)
        finite = values[~np.isnan(values).reshape(len(values), -1).any(1)] if len(values) else values
        if not len(finite):
            continue
        if q.classes:
            continue
        if q.point:
            there = (
                torch.cat([g.pos for g in data]).numpy()
                if q.per == "node"
                else np.stack([g.pos.numpy().mean(0) for g in data])
            )
            scale[name] = _positive(np.sqrt(np.nanmean((values - there) ** 2)))
        elif q.rank or q.gradient_of:
            scale[name] = _positive(np.sqrt(np.mean(finite**2)))
        elif q.per == "graph" and q.extensive:
            counts = table[there].sum(1)
            rest = finite - (
                table[there] @ np.array([energies[e] for e in elements]) if name == "energy" else 0.0
            )
            mean = float(np.mean(rest / counts))
            # Around the mean per atom, which every element shares as far as nothing is known of it.
            finer = np.linalg.lstsq(table[there], rest - mean * counts, rcond=None)[0]
            shift[name] = {e: mean + float(x) for e, x in zip(elements, finer)}
            rest = rest - table[there] @ (mean + finer)
            scale[name] = _positive(np.std(rest / counts))
        else:
            shift[name] = float(np.mean(finite))
            scale[name] = _positive(np.std(finite))
    if "energy" in scale and "forces" in scale:
        scale["energy"] = scale["forces"]
    return Statistics(
        elements=elements,
        mean_neighbors=edges / int(data.counts.sum()),
        reference_energies=energies,
        reference_energies_given=given is not None,
        shift=shift,
        scale=scale,
    )


def _alone(data: Dataset, lone: np.ndarray, given: Mapping[int, float] | None) -> dict[int, float]:
    """Energies of the single atoms among the data, by element; they must agree with each other and with given ones."""
    found: dict[int, float] = dict(given or {})
    seen: dict[int, float] = {}
    for k in lone.tolist():
        z, energy = int(data[k].z[0]), float(data[k].targets["energy"])
        if abs(found.setdefault(z, energy) - energy) > 1e-3:
            raise DataError(
                f"{data.origins[k]}: a single {SYMBOLS[z]} with the energy {energy} eV, and {found[z]} eV "
                f"{'given with reference_energies=' if given else 'in a frame before'}; an isolated atom has one energy"
            )
        seen[z] = found[z]
    return seen


def _positive(value: float) -> float:
    """A scale by which one can divide: 1 where all labels are the same."""
    return float(value) if value > 1e-12 else 1.0


def _fit(table: np.ndarray, energy: np.ndarray, elements: Sequence[int]) -> dict[int, float]:
    solution = np.linalg.lstsq(table, energy, rcond=None)[0]
    if len(np.unique(table, axis=0)) > 1:
        resolution = np.linalg.pinv(table) @ table  # the identity where every element can be told apart
        blind = [SYMBOLS[e] for k, e in enumerate(elements) if abs(resolution[k, k] - 1) > 1e-6]
        single = [
            SYMBOLS[e]
            for k, e in enumerate(elements)
            if (table[:, k] > 0).sum() == 1 and SYMBOLS[e] not in blind
        ]
        if blind or single:
            why = (
                [f"{', '.join(blind)} cannot be told apart by the compositions in these data"]
                if blind
                else []
            )
            why += [f"{', '.join(single)} occur in one structure only"] if single else []
            warnings.warn(
                f"energies of isolated atoms: {' and '.join(why)}, so that their fit means nothing for other "
                f"compositions; "
                "give them with reference_energies=",
                DataWarning,
                stacklevel=4,
            )
    return {e: float(x) for e, x in zip(elements, solution)}


def _given(reference_energies, elements: Sequence[int]) -> dict[int, float]:
    if isinstance(reference_energies, Dataset):
        energies: dict[int, float] = {}
        for graph, origin in zip(reference_energies, reference_energies.origins):
            if (
                graph.num_nodes != 1
                or "energy" not in graph.targets
                or bool(torch.isnan(graph.targets["energy"]).any())
            ):
                raise DataError(
                    f"{origin}: {graph.num_nodes} atoms; isolated atoms are frames of one atom with an energy"
                )
            z, energy = int(graph.z[0]), float(graph.targets["energy"])
            if energies.setdefault(z, energy) != energy:
                raise DataError(
                    f"{origin}: {SYMBOLS[z]} has the energy {energy} here and {energies[z]} before; wanted one"
                )
    elif isinstance(reference_energies, Mapping):
        energies = {}
        for element, energy in reference_energies.items():
            if (
                isinstance(energy, bool)
                or not isinstance(energy, (int, float, np.number))
                or not np.isfinite(energy)
            ):
                raise DataError(
                    f"reference_energies: {element!r} has the energy {energy!r}; wanted a finite number in eV"
                )
            energies[atomic_number(element)] = float(energy)
    else:
        raise DataError(
            f"reference_energies is {reference_energies!r}; wanted energies by element, or a file of single atoms"
        )
    missing = [SYMBOLS[e] for e in elements if e not in energies]
    if missing:
        raise DataError(
            f"reference_energies: no energy of {', '.join(missing)}; found {', '.join(SYMBOLS[e] for e in energies) or 'none'}"
        )
    return {e: energies[e] for e in elements}
