"""Disjoint parts of data: by size, by fraction, by lists of indices, by group."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from molequi.errors import DataError

# Sizes of parts: numbers of structures, fractions, or lists of indices.
Sizes = Sequence[int] | Sequence[float] | Sequence[Sequence[int]]


def choose(
    total: int, sizes: Sizes, labels: Sequence[str], *, seed: int, groups: Sequence[Hashable] | None
) -> list[list[int]]:
    """Choose disjoint parts by the rules of `Dataset.split`.

    Parameters
    ----------
    total : int
        Number of structures.
    sizes : sequence
        Size of each part.
    labels : sequence of str
        Names of the parts, for messages.
    seed : int
        Seed of the random order.
    groups : sequence, optional
        The group of each structure; groups stay together.

    Returns
    -------
    list of lists of int
        Ascending indices of each part.

    Raises
    ------
    DataError
        If the sizes cannot be met.
    """
    if not sizes:
        raise DataError("split into no parts; wanted sizes such as {'train': 450, 'valid': 50} or [0.9, 0.1]")
    given = [isinstance(s, (list, tuple, np.ndarray, range)) for s in sizes]
    if any(given):
        if not all(given):
            raise DataError(f"split {dict(zip(labels, sizes))}: lists of indices and sizes cannot be mixed")
        return _given(total, cast(Sequence[Sequence[int]], sizes), labels)
    targets = _targets(total, sizes, labels)
    # NumPy never changes the numbers of RandomState; those of its newer generators may change with its
    # version.
    random = np.random.RandomState(seed)
    if groups is None:
        order = random.permutation(total)
        ends = np.cumsum(targets)
        return [sorted(order[e - t : e].tolist()) for e, t in zip(ends, targets)]
    return _grouped(total, targets, labels, random, groups)


def stratified(
    total: int, sizes: Sizes, labels: Sequence[str], *, seed: int, strata: Sequence[Hashable]
) -> list[list[int]]:
    """Choose disjoint random parts of which each has the same share of every stratum.

    Parameters
    ----------
    total : int
        Number of structures.
    sizes : sequence
        Numbers or fractions of structures, as of `choose`; they are met exactly.
    labels : sequence of str
        Names of the parts, for messages.
    seed : int
        Seed of the random order.
    strata : sequence
        The stratum of each structure, such as its class.

    Returns
    -------
    list of lists of int
        Ascending indices of each part. The number from one stratum differs from its share by less than the
        number of parts.

    Raises
    ------
    DataError
        If the sizes cannot be met.

    Examples
    --------
    >>> parts = stratified(12, [0.5, 0.5], ["train", "valid"], seed=0, strata="aaaaaaaabbbb")
    >>> ["".join("aaaaaaaabbbb"[k] for k in part) for part in parts]
    ['aaaabb', 'aaaabb']
    """
    if any(isinstance(size, (list, tuple, np.ndarray, range)) for size in sizes):
        raise DataError(
            f"split {dict(zip(labels, sizes))}: lists of indices are a choice already; leave stratify out"
        )
    targets = _targets(total, sizes, labels)
    random = np.random.RandomState(seed)
    ranks = {name: rank for rank, name in enumerate(dict.fromkeys(strata))}
    order = sorted(random.permutation(total).tolist(), key=lambda k: ranks[strata[k]])  # stable: still random
    shares = np.array([*targets, total - sum(targets)]) / max(total, 1)
    parts: list[list[int]] = [[] for _ in shares]
    for place, k in enumerate(order, 1):
        # The part that is most behind gets the next one, so that all keep their shares within each stratum.
        behind = shares * place - [len(part) for part in parts]
        parts[int(np.argmax(behind))].append(k)
    return [sorted(part) for part in parts[: len(targets)]]


def block_groups(total: int, blocks: int = 20) -> list[Hashable]:
    """The block of successive structures to which each belongs, for `choose`.

    Parameters
    ----------
    total : int
        Number of structures.
    blocks : int
        Number of blocks.

    Examples
    --------
    >>> block_groups(6, blocks=3)
    [0, 0, 1, 1, 2, 2]
    """
    return [k * blocks // total for k in range(total)]


def _targets(total: int, sizes: Sizes, labels: Sequence[str]) -> list[int]:
    """Number of structures of each part. Raises DataError if the sizes cannot be met."""
    for size, label in zip(sizes, labels):
        if (
            isinstance(size, bool)
            or not isinstance(size, (int, float, np.integer, np.floating))
            or not size > 0
        ):
            raise DataError(
                f"split: {label} has size {size!r}; wanted a positive number of structures, a fraction, or "
                "a list of indices"
            )
    kinds = {isinstance(s, (float, np.floating)) for s in sizes}
    if len(kinds) == 2:
        raise DataError(
            f"split {dict(zip(labels, sizes))}: numbers of structures and fractions cannot be mixed"
        )
    numbers = cast(Sequence[float], sizes)
    targets = _fractions(total, numbers, labels) if kinds == {True} else [int(s) for s in numbers]
    if sum(targets) > total:
        raise DataError(
            f"split {dict(zip(labels, sizes))} wants {sum(targets)} structures; there are {total}"
        )
    return targets


def conformer_groups(info: Mapping[str, Sequence[Any]]) -> list[Hashable] | None:
    """The molecule of each structure; None unless a molecule has several conformers.

    Parameters
    ----------
    info : mapping of str to sequence
        Columns of `Dataset.info`.
    """
    if "conformer" not in info:  # a column "molecule" of other files may say anything
        return None
    column = info.get("canonical", info.get("molecule"))
    if column is None:
        return None
    groups: list[Hashable] = [("structure", k) if name is None else name for k, name in enumerate(column)]
    return groups if len(set(groups)) < len(groups) else None


def conformer_leak(
    chosen: Sequence[Sequence[int]], labels: Sequence[str], groups: Sequence[Hashable]
) -> str | None:
    """A sentence about molecules that are in more than one part; None if there are none.

    Parameters
    ----------
    chosen : sequence of sequences of int
        Indices of each part.
    labels : sequence of str
        Names of the parts.
    groups : sequence
        What `conformer_groups` returned.
    """
    owner: dict[Hashable, str] = {}
    found: dict[Hashable, tuple[str, str]] = {}
    for part, label in zip(chosen, labels):
        for k in part:
            if owner.setdefault(groups[k], label) != label:
                found.setdefault(groups[k], (owner[groups[k]], label))
    if not found:
        return None
    name, (a, b) = next(iter(found.items()))
    return (
        f"{len(found)} molecules have conformers in more than one part, so errors of one are no test of the "
        f"other: {name!r} is in {a} and in {b}; by='canonical' keeps them together"
    )


def _given(total: int, lists: Sequence[Sequence[int]], labels: Sequence[str]) -> list[list[int]]:
    owner: dict[int, str] = {}
    for indices, label in zip(lists, labels):
        if not len(indices):
            raise DataError(f"split: {label} is empty")
        for k in indices:
            if isinstance(k, (bool, np.bool_)) or not isinstance(k, (int, np.integer)) or not 0 <= k < total:
                raise DataError(f"split: {label} has the index {k!r}; wanted integers from 0 to {total - 1}")
            k = int(k)
            if k in owner:
                raise DataError(f"split: index {k} is in {owner[k]} and again in {label}")
            owner[k] = label
    return [[int(k) for k in indices] for indices in lists]


def _fractions(total: int, sizes: Sequence[float], labels: Sequence[str]) -> list[int]:
    if sum(sizes) > 1 + 1e-9:
        raise DataError(
            f"split {dict(zip(labels, sizes))}: the fractions add up to {sum(sizes):g}; wanted at most 1"
        )
    # Rounding the running sum uses every structure if the fractions add up to 1.
    ends = np.round(np.cumsum(sizes) * total).astype(int)
    targets: list[int] = np.diff(ends, prepend=0).tolist()
    for size, target, label in zip(sizes, targets, labels):
        if target == 0:
            raise DataError(f"split: {label} is {size:g} of {total} structures, which is none")
    return targets


def _grouped(
    total: int,
    targets: list[int],
    labels: Sequence[str],
    random: np.random.RandomState,
    groups: Sequence[Hashable],
) -> list[list[int]]:
    members: dict[Hashable, list[int]] = {}
    for k, group in enumerate(groups):
        members.setdefault(group, []).append(k)
    if len(members) < len(targets):
        raise DataError(
            f"split into {len(targets)} parts by groups of which there are {len(members)}: "
            f"{list(members)[:10]}"
        )
    names = list(members)
    names = [names[k] for k in random.permutation(len(names))]
    # The sort is stable: groups of the same size stay shuffled. Large groups are placed first.
    names.sort(key=lambda name: -len(members[name]))
    missing = np.array([*targets, total - sum(targets)], dtype=float)
    parts: list[list[int]] = [[] for _ in missing]
    for n, name in enumerate(names):
        empty = [p for p in range(len(targets)) if not parts[p]]
        # A part must not stay empty because larger ones take all groups.
        allowed = empty if len(names) - n <= len(empty) else range(len(missing))
        best = max(allowed, key=lambda p: missing[p])
        parts[best] += members[name]
        missing[best] -= len(members[name])
    lacking = [labels[p] for p in range(len(targets)) if not parts[p]]
    if lacking:
        raise DataError(
            f"split by groups: no group is left for {lacking[0]}; sizes of the groups: "
            f"{[len(m) for m in members.values()][:10]}"
        )
    return [sorted(p) for p in parts[: len(targets)]]


def scaffolds(texts: Sequence[str], origins: Sequence[str]) -> list[str]:
    """Bemis-Murcko scaffolds of molecules.

    Parameters
    ----------
    texts : sequence of str
        SMILES.
    origins : sequence of str
        Where each came from, for messages.

    Returns
    -------
    list of str
        SMILES of the scaffolds; empty for molecules without rings.

    Raises
    ------
    DataError
        For a text that is no SMILES.
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles

    out = []
    with rdBase.BlockLogs():
        for text, origin in zip(texts, origins):
            mol = Chem.MolFromSmiles(text) if isinstance(text, str) else None
            if mol is None:
                raise DataError(
                    f"{origin}: smiles is {text!r}, of which there is no scaffold; wanted a valid SMILES"
                )
            out.append(MurckoScaffoldSmiles(mol=mol))
    return out
