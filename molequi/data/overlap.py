"""Structures and molecules that are in two parts of the data, and equal ones with different labels."""

import warnings
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.data.digests import fingerprint
from molequi.data.fingerprints import duplicates, fingerprint_numbers, repeated
from molequi.errors import DataWarning
from molequi.graph import Graph

_SAME = 2e-4  # Å; smaller differences of distances are rounding of files
_ROUGH, _COMPARED = 1e-2, 20  # Å by which distances are sorted out first; structures that are compared then
_MOST = 100_000  # structures, since each takes a tenth of a millisecond and a kilobyte
_EQUAL = 1e-3  # of the standard deviation of a label; smaller differences are rounding


def overlaps(parts: Mapping[str, Dataset]) -> list[str]:
    """Sentences about structures, and about molecules, that are in more than one part.

    A molecule is known by its canonical SMILES, however it was written and whatever its geometry.

    Parameters
    ----------
    parts : mapping of str to Dataset
        The parts by name.

    Returns
    -------
    list of str

    Examples
    --------
    >>> import molequi as mq
    >>> one = mq.Dataset([mq.Graph.single([[0, 0, 0], [0, 0, 0.74]], ["H", "H"])])
    >>> overlaps({"train": one, "valid": one})[0][:53]
    '1 structure is in more than one part, so that errors '
    """
    names, data = list(parts), list(parts.values())
    out = []
    twins = duplicates(data)
    if twins:
        (a, i), (b, j) = twins[0]
        out.append(
            f"{_number(len(twins), 'structure')} in more than one part, so that errors of one are no test of "
            f"the other: {data[a].origins[i]} in {names[a]} is {data[b].origins[j]} in {names[b]}; leave "
            "them out of one part"
        )
    return out + _moved(parts) + shared_molecules(parts)


def shared_molecules(parts: Mapping[str, Dataset]) -> list[str]:
    """A sentence about molecules that are in more than one part, or none.

    Parameters
    ----------
    parts : mapping of str to Dataset
        The parts by name.

    Returns
    -------
    list of str
    """
    owner: dict[str, tuple[str, int]] = {}
    found: dict[str, str] = {}
    for name, part in parts.items():
        for k, molecule in enumerate(_molecules(part)):
            if molecule is None:
                continue
            first, i = owner.setdefault(molecule, (name, k))
            if first != name and molecule not in found:
                here = f"{parts[first].origins[i]} in {first} and {part.origins[k]} in {name}"
                found[molecule] = f"{molecule} ({here})"
    if found:
        listed = ", ".join(list(found.values())[:3]) + (", …" if len(found) > 3 else "")
        return [
            f"{_number(len(found), 'molecule')} in more than one part, so that errors of one are no test of "
            f"the other: {listed}; read all of them into one Dataset and split it with by='canonical'"
        ]
    return []


def _moved(parts: Mapping[str, Dataset]) -> list[str]:
    """A sentence about molecules of one part that are rotated or translated copies of those in another.

    Copies have the same distances between the same elements; so have mirror images. Periodic structures and
    plain points are left out, and so are structures that are equal in place. Of more than 100,000 structures
    in all, nothing is looked for.
    """
    if sum(map(len, parts.values())) > _MOST:
        return []
    names, seen, pairs = list(parts), dict[Hashable, list[tuple[int, int]]](), []
    for p, data in enumerate(parts.values()):
        for k, graph in enumerate(data):
            if graph.num_nodes < 3 or graph.pbc is not None or not bool(graph.z.all()):
                continue
            same = seen.setdefault(_radii(graph), [])
            others = ((q, m) for q, m in same[:_COMPARED] if q != p)
            first = next((one for one in others if _is_moved(parts[names[one[0]]][one[1]], graph)), None)
            pairs += [] if first is None else [(first, (p, k))]
            same.append((p, k))
    if not pairs:
        return []
    (a, i), (b, j) = pairs[0]
    return [
        f"{_number(len(pairs), 'structure')} in more than one part after a rotation or translation, so that "
        f"errors of one are no test of the other: {parts[names[a]].origins[i]} in {names[a]} is "
        f"{parts[names[b]].origins[j]} in {names[b]}; leave them out of one part"
    ]


def _is_moved(one: Graph, other: Graph) -> bool:
    """Whether two molecules of the same elements have the same distances, and are not equal in place."""
    if torch.equal(one.z, other.z) and torch.allclose(one.pos, other.pos, rtol=0, atol=_SAME):
        return False
    return torch.allclose(_distances(one), _distances(other), rtol=0, atol=_SAME)


def _radii(graph: Graph) -> Hashable:
    """Elements and rounded distances from the centroid, which no rotation and translation changes."""
    away = (graph.pos.double() - graph.pos.double().mean(0)).norm(dim=1)
    rows = sorted(zip(graph.z.tolist(), (away / _ROUGH).round().tolist()))
    totals = [None if value is None else float(value) for value in (graph.charge, graph.spin)]
    return (*rows, *totals)


def _distances(graph: Graph) -> Tensor:
    """All distances between atoms, sorted within each pair of elements."""
    i, j = torch.triu_indices(graph.num_nodes, graph.num_nodes, 1)
    low, high = torch.minimum(graph.z[i], graph.z[j]), torch.maximum(graph.z[i], graph.z[j])
    length = (graph.pos[i].double() - graph.pos[j].double()).norm(dim=1)
    _, order = torch.sort(length)
    kind = (low * 1000 + high)[order]
    return length[order][torch.sort(kind, stable=True)[1]]


def contradictions(parts: Mapping[str, Dataset]) -> list[str]:
    """Sentences about equal structures or molecules with different labels, one for each quantity.

    Molecules count as equal by their canonical SMILES if their geometries were made from it. Labels are
    different if they differ by more than a thousandth of the standard deviation of all labels.

    Parameters
    ----------
    parts : mapping of str to Dataset
        The parts by name.

    Returns
    -------
    list of str
    """
    equal = equal_structures(parts)
    if not equal:
        return []
    out = []
    for label in dict.fromkeys(label for data in parts.values() for label in data.quantities):
        sentence = _contradiction(parts, label, equal)
        if sentence:
            out.append(sentence)
    return out


def equal_structures(parts: Mapping[str, Dataset]) -> list[list[tuple[str, int]]]:
    """Groups of equal structures, see `molequi.data.digests.fingerprint`.

    Molecules count as equal by their canonical SMILES if their geometries were made from it.

    Parameters
    ----------
    parts : mapping of str to Dataset
        The parts by name.

    Returns
    -------
    list of lists of (part, index)
        Groups of two or more.
    """
    groups: dict[Hashable, list[tuple[str, int]]] = {}
    places: list[tuple[str, np.ndarray]] = []  # of structures that are known by their geometry
    for name, data in parts.items():
        molecules = _molecules(data) if "conformers" in data.reading else ()
        for k, molecule in enumerate(molecules):
            if molecule is not None:
                groups.setdefault(("molecule", molecule), []).append((name, k))
        rows = [k for k, molecule in enumerate(molecules) if molecule is None]
        places.append((name, np.array(rows, int) if molecules else np.arange(len(data))))
    numbers = np.concatenate([fingerprint_numbers(parts[name].graphs)[rows] for name, rows in places])
    owner = np.repeat(np.arange(len(places)), [len(rows) for _, rows in places])
    every = np.concatenate([rows for _, rows in places])
    for row in repeated(numbers):
        name, k = places[owner[row]][0], int(every[row])
        groups.setdefault(fingerprint(parts[name][k]), []).append((name, k))
    return [group for group in groups.values() if len(group) > 1]


def _contradiction(
    parts: Mapping[str, Dataset], label: str, equal: Sequence[Sequence[tuple[str, int]]]
) -> str:
    """A sentence about equal structures with different labels of one quantity; empty if there are none."""
    having = [data for data in parts.values() if label in data.quantities]
    q = having[0].quantities[label]
    values = torch.cat([data.values(label).reshape(-1) for data in having])
    values = values[~torch.isnan(values)]
    least = 0.0 if q.classes or len(values) < 2 else _EQUAL * float(values.std())
    wrong = []
    for group in equal:
        there = [(n, k) for n, k in group if label in parts[n].quantities]
        if not q.classes and q.rank and any("conformers" in parts[n].reading for n, _ in there):
            continue  # vectors depend on the frame of each geometry
        for n, k in there[1:]:
            first, own = parts[there[0][0]][there[0][1]].targets[label], parts[n][k].targets[label]
            if first.shape == own.shape and bool(((first - own).abs() > least).any()):
                wrong.append((there[0], (n, k), first, own))
                break
    if not wrong:
        return ""
    (a, i), (b, j), first, own = wrong[0]
    place = int((first - own).abs().nan_to_num().argmax())
    x, y = float(first.reshape(-1)[place]), float(own.reshape(-1)[place])
    said = f"{q.classes[int(x)]} and {q.classes[int(y)]}" if q.classes else f"{x:.6g} and {y:.6g} {q.unit}"
    return (
        f"{label}: {len(wrong)} equal {'structures have' if len(wrong) > 1 else 'structure has'} different "
        f"labels, so that no model can learn both: {parts[a].origins[i]} in {a} and {parts[b].origins[j]} in "
        f"{b} have {said.strip()}; keep one of them, or their mean"
    )


def _molecules(data: Dataset) -> Sequence[str | None]:
    """The canonical SMILES of each structure, as the readers of molecules make it; None where unknown."""
    if "canonical" not in data.info or "conformer" not in data.info:
        return [None] * len(data)
    return [name if isinstance(name, str) else None for name in data.info["canonical"]]


def _number(count: int, what: str) -> str:
    return f"1 {what} is" if count == 1 else f"{count} {what}s are"


def warn_of_overlap(parts: Mapping[str, Dataset]) -> None:
    """Warn (DataWarning) of what `overlaps` and `contradictions` find.

    Of the parts of one `Dataset.split`, which looked for structures that are equal in place itself, only
    moved copies and contradictions are named.

    Parameters
    ----------
    parts : mapping of str to Dataset
        The parts by name.
    """
    origin = next(iter(parts.values())).parts_of
    checked = origin is not None and all(data.parts_of is origin for data in parts.values())
    found = _moved(parts) if checked else overlaps(parts)
    for sentence in [*found, *contradictions(parts)]:
        warnings.warn(sentence, DataWarning, stacklevel=3)
