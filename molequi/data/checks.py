"""Checks of the content of structures: elements, finite numbers, distances, plausible labels."""

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields

import numpy as np
import torch

from molequi.data.dataset import Dataset
from molequi.data.record import Record
from molequi.data.statistics import compositions
from molequi.errors import ConfigError, DataError, DataWarning
from molequi.graph import Graph, fields_per
from molequi.neighbors import connect
from molequi.quantities import SYMBOLS, Quantity, as_label

COINCIDENT, TOO_CLOSE = 0.1, 0.6  # Å; the shortest bond, H2, has 0.74
SAME_PLACE = 1e-6  # Å: a distance in no unit of length
LARGEST = 1e100  # of coordinates; squares of larger numbers overflow
LARGE_FORCES, LARGE_DIFFERENCES = 15.0, 5.0  # eV/Å; eV per atom


def check_elements(z: np.ndarray, where: str) -> None:
    """Raise DataError for dummy atoms (0) and atomic numbers above 118.

    Parameters
    ----------
    z : array of int, shape (N,)
        Atomic numbers.
    where : str
        Place of the structure, for messages.
    """
    bad = np.flatnonzero((z < 1) | (z >= len(SYMBOLS)))
    if len(bad):
        raise DataError(
            f"{where}: atom {bad[0]} has the atomic number {int(z[bad[0]])}; wanted 1 to 118 (remove dummy "
            "atoms 'X')"
        )


def check_finite(arrays: Mapping[str, np.ndarray | None], where: str, node: str = "atom") -> None:
    """Raise DataError for the first node with a value that is not finite, or too large to be squared.

    Parameters
    ----------
    arrays : mapping of str to array or None
        Arrays by name, with one row for each node.
    where : str
        Place of the structure, for messages.
    node : str
        What a node is called in messages.
    """
    for name, values in arrays.items():
        if values is None:
            continue
        if values.dtype.kind not in "iufb":
            raise DataError(f"{where}: {name} holds {values.dtype}; wanted numbers")
        bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
        if len(bad):
            what = "position" if name == "pos" else name
            raise DataError(
                f"{where}: {what} of {node} {bad[0]} is {values[bad[0]].tolist()}; wanted finite numbers"
            )
        if values.dtype != np.float64:  # no other type holds such numbers
            continue
        large = np.flatnonzero((np.abs(values.reshape(len(values), -1)) > LARGEST).any(1))
        if len(large):
            what = "position" if name == "pos" else name
            raise DataError(
                f"{where}: {what} of {node} {large[0]} is {values[large[0]].tolist()}; wanted numbers below "
                f"{LARGEST:g}, whose squares can be computed"
            )


def check_geometry(records: Sequence[Record]) -> None:
    """Raise DataError for structures without nodes, values that are not finite, and impossible elements.

    Parameters
    ----------
    records : sequence of Record
        The structures.
    """
    for r in records:
        if len(r.pos) == 0:
            raise DataError(f"{r.where}: no {'points' if r.z is None else 'atoms'}; wanted at least one")
    with_z = [r for r in records if r.z is not None]
    if with_z:
        z = np.concatenate([np.asarray(r.z).ravel() for r in with_z])
        if z.min() < 1 or z.max() >= len(SYMBOLS):
            for r in with_z:
                check_elements(np.asarray(r.z), r.where)
    for name in [n for n, spec in fields_per("node").items() if spec.dtype.is_floating_point]:
        found = [_array(r, name) for r in records]
        flat = [a.ravel() for a in found if a is not None]
        # A number that is none is not below the bound, either.
        if not flat or (
            all(a.dtype.kind in "iufb" for a in flat)
            and (np.abs(np.concatenate(flat, dtype=np.float64)) <= LARGEST).all()
        ):
            continue
        for r, array in zip(records, found):
            check_finite({name: array}, r.where, "point" if r.z is None else "atom")


def _array(record: Record, name: str) -> np.ndarray | None:
    value = getattr(record, name) if name in ("pos", "vel") else record.fields.get(name)
    return None if value is None else np.asarray(value)


def check_distances(graphs: Sequence[Graph], wheres: Sequence[str], allow: Collection[str] = ()) -> None:
    """Raise DataError for coincident atoms, and if more than 1 % of the structures have atoms too close.

    Too close means closer than in every bond, the sign of a wrong unit of length. Plain points may have
    any distance.

    Parameters
    ----------
    graphs : sequence of Graph
        Single structures.
    wheres : sequence of str
        Place of each, for messages.
    allow : collection of str
        ``"close-atoms"`` and ``"coincident-atoms"``, where they are wanted.
    """
    close = []
    short = short_pairs(graphs)
    wanted = "coincident-atoms" in allow
    if len(short) > max(0.5 * len(graphs), 1) and "close-atoms" not in allow:
        allow = {*allow, "coincident-atoms"}  # the unit of length is wrong, rather than single atoms
    for k, (shortest, j, i) in sorted(short.items()):
        if (shortest < SAME_PLACE and not wanted) or (
            shortest < COINCIDENT and "coincident-atoms" not in allow
        ):
            raise DataError(
                f"{wheres[k]}: atoms {j} and {i} are {shortest:.4f} Å apart; wanted every atom once"
            )
        close.append(f"{wheres[k]}: atoms {j} and {i} are {shortest:.3f} Å apart")
    if len(close) > max(0.01 * len(graphs), 1) and "close-atoms" not in allow:
        raise DataError(
            f"{close[0]}, and {len(close)} of {len(graphs)} structures have atoms closer than {TOO_CLOSE} "
            f"Å: are positions in Å? If not, say units={{'positions': 'nm'}} or 'Bohr'. If they are wanted, "
            f"for "
            "instance for a repulsive wall, say allow=['close-atoms']"
        )


def short_pairs(graphs: Sequence[Graph]) -> dict[int, tuple[float, int, int]]:
    """Find structures with a pair of atoms closer than TOO_CLOSE.

    Parameters
    ----------
    graphs : sequence of Graph
        Single structures.

    Returns
    -------
    dict of int to (float, int, int)
        By number of the structure: length (Å) and atoms of its shortest pair.
    """
    out: dict[int, tuple[float, int, int]] = {}
    same_size: dict[int, list[int]] = {}
    for k, graph in enumerate(graphs):
        if not graph.z.any():
            continue  # plain points may be anywhere
        if graph.pbc is None and graph.num_nodes <= 64:
            same_size.setdefault(graph.num_nodes, []).append(k)
            continue
        linked = connect(graph.without("pair"), TOO_CLOSE)
        if linked.edge_index is not None and linked.edge_index.shape[1]:
            shortest, edge = linked.edge_vectors().norm(dim=1).min(0)
            j, i = sorted(linked.edge_index[:, edge].tolist())
            out[k] = (float(shortest), j, i)
    for n, members in same_size.items():
        first, second = np.triu_indices(n, 1)
        if not len(first):
            continue
        step = max(1, 500_000 // len(first))
        for start in range(0, len(members), step):
            part = members[start : start + step]
            pos = np.stack([graphs[k].pos.numpy() for k in part])
            lengths = np.linalg.norm(pos[:, first] - pos[:, second], axis=2)
            nearest = lengths.argmin(1)
            for row in np.flatnonzero(lengths.min(1) < TOO_CLOSE):
                pair = nearest[row]
                out[part[row]] = (float(lengths[row, pair]), int(first[pair]), int(second[pair]))
    return out


def without_stress_of_molecules(graphs: Sequence[Graph], wheres: Sequence[str]) -> list[Graph]:
    """Return the graphs, with a stress of NaN where the structure has no volume, and warn about these.

    Some programs write a stress of zeros for molecules, which is no label.

    Parameters
    ----------
    graphs : sequence of Graph
        Single structures with labels of the stress.
    wheres : sequence of str
        Place of each, for messages.
    """
    out, empty = list(graphs), []
    for k, g in enumerate(graphs):
        volume = 0.0 if g.cell is None else float(torch.linalg.det(g.cell[0]).abs())
        if volume < 1e-8 and not torch.isnan(g.targets["stress"]).all():
            empty.append(k)
            unknown = torch.full_like(g.targets["stress"], math.nan)
            out[k] = g.replace(targets=g.targets | {"stress": unknown})
    if empty:
        warnings.warn(
            f"{wheres[empty[0]]}: a stress, and no periodic cell with a volume; it is not used here nor in "
            f"{len(empty) - 1} other structures",
            DataWarning,
            stacklevel=5,
        )
    return out


def implausible_labels(data: Dataset) -> dict[str, str]:
    """Sentences about labels that are finite and complete, but look like another unit or another quantity.

    Parameters
    ----------
    data : Dataset
        The data.

    Returns
    -------
    dict of str to str
        By the name of the heuristic.
    """
    out = {}
    if "forces" in data.quantities:
        forces = data.values("forces")
        forces = forces[~torch.isnan(forces)]
        rms = forces.square().mean().sqrt().item() if len(forces) else 0.0
        if rms > LARGE_FORCES:
            out["force-scale"] = (
                f"forces have a root mean square of {rms:.3g} eV/Å, which no ordinary sample has: is the "
                f"unit another one, for instance units={{'forces': 'kcal/mol/Å'}}?"
            )
    if "energy" in data.quantities and len(set(data.counts.tolist())) > 1:
        known = data.known("energy")
        energy, counts = data.values("energy").numpy()[known], data.counts[known]
        table = compositions(data.graphs.z.numpy(), data.counts, data.elements)[known]
        rest = energy - table @ np.linalg.lstsq(table, energy, rcond=None)[0] if len(energy) else energy
        deviation = np.sqrt(np.mean((rest / counts) ** 2)) if len(rest) else 0.0
        if deviation > LARGE_DIFFERENCES:
            out["energy-scale"] = (
                f"after the best sum of energies of elements the energies still differ by {deviation:.3g} "
                "eV an atom: total energies mixed with energies per atom, or another unit?"
            )
    return out


def check_same_quantities(
    quantities: Mapping[str, Quantity], data: Dataset, what: str = "these data"
) -> None:
    """Check that labels mean what a model predicts: the same classes, unit and kind.

    Numbers of classes that are listed in another order, or of energies in another unit, would otherwise be
    compared with each other.

    Parameters
    ----------
    quantities : mapping of str to Quantity
        What the model predicts.
    data : Dataset
        The data. Labels that the model does not predict are no matter.
    what : str
        The data in the message.

    Raises
    ------
    ConfigError
        For the first quantity that differs; the message says in what.
    """
    for name, wanted in quantities.items():
        found = data.quantities.get(name)
        if found is None or as_label(found) == as_label(wanted) or not data.labelled(name):
            continue
        pairs = {
            option: (getattr(wanted, option), getattr(found, option))
            for option in (one.name for one in fields(Quantity))
            if getattr(wanted, option) != getattr(found, option)
        }
        of_model = ", ".join(f"{option}={_plain(a)!r}" for option, (a, _) in pairs.items())
        of_data = ", ".join(f"{option}={_plain(b)!r}" for option, (_, b) in pairs.items())
        unit = f", and say the unit of the file with units={{{name!r}: …}}" if found.unit else ""
        raise ConfigError(
            f"{name!r} has {of_model} in the model and {of_data} in {what}, so that their numbers mean "
            "different things; read the data with the quantity of the model, quantities=[model.quantities["
            f"{name!r}]]{unit}"
        )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
