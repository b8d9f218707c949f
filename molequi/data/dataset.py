"""Dataset: a sequence of labelled structures; parts of it; prepared neighbour lists."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from molequi.data.cache import connected_graphs
from molequi.data.digests import fingerprint, structure_bytes
from molequi.data.sources import Source
from molequi.data.splits import choose, conformer_groups, conformer_leak, scaffolds
from molequi.data.statistics import Statistics, single_atom_energies, statistics_of
from molequi.errors import DataError, DataWarning, did_you_mean
from molequi.graph import Graph, fields_per, mismatch
from molequi.quantities import KNOWN, SYMBOLS, Quantity
from molequi.util.files import sha256
from molequi.util.tables import text_table


class Dataset:
    """A sequence of structures, each a Graph of its own with its labels in `targets`, NaN where a label is not known.

    graphs: single structures with the same targets.
    quantities: what these are, by name; those of `molequi.quantities.KNOWN` need not be given.
    info: columns with one value a structure (`trajectory`, `config_type`), None where unknown.
    origins: where each came from. sources: files that were read.
    found: a line for each quantity on where it was found. unused: keys of the files that were not read.

    `dataset[3]` is a Graph; `dataset[:50]`, `dataset[[1, 5]]` and `first + second` are Datasets.
    Raises DataError if the structures do not fit together.
    """

    def __init__(
        self,
        graphs: Sequence[Graph],
        *,
        quantities: Mapping[str, Quantity] | None = None,
        info: Mapping[str, Sequence] | None = None,
        origins: Sequence[str] | None = None,
        sources: Sequence[Source] = (),
        found: Mapping[str, str] | None = None,
        unused: Mapping[str, int] | None = None,
    ):
        self.graphs = tuple(graphs)
        self.origins = (
            tuple(origins)
            if origins is not None
            else tuple(f"structure {k}" for k in range(len(self.graphs)))
        )
        self.info = {name: tuple(column) for name, column in (info or {}).items()}
        self.sources, self.found, self.unused = tuple(sources), dict(found or {}), dict(unused or {})
        if not self.graphs:
            raise DataError("a Dataset without structures; wanted at least one")
        names = tuple(self.graphs[0].targets)
        given = dict(KNOWN) | dict(quantities or {})
        for name in names:
            if name not in given:
                raise DataError(
                    f"targets named {name!r}: not a known quantity{did_you_mean(name, given)} "
                    "Give quantities={name: Quantity(name=...)}"
                )
        self.quantities = {name: given[name] for name in names}
        lengths = {"origins": len(self.origins)} | {f"info[{k!r}]": len(v) for k, v in self.info.items()}
        for what, length in lengths.items():
            if length != len(self.graphs):
                raise DataError(f"{what} has {length} entries for {len(self.graphs)} structures")
        first = self.graphs[0]
        for graph, origin in zip(self.graphs, self.origins):
            if graph.num_graphs != 1:
                raise DataError(
                    f"{origin}: a batch of {graph.num_graphs} structures; a Dataset takes single ones "
                    f"(molequi.graph.separate)"
                )
            if tuple(graph.targets) != names:
                raise DataError(
                    f"{origin} has the targets {sorted(graph.targets)}, {self.origins[0]} has {sorted(names)}"
                )
            lacking = mismatch(graph, first, "node", "graph", "pair")
            if lacking is not None:
                raise DataError(
                    f"{origin} and {self.origins[0]}: one has {lacking!r} and the other has not; wanted all or none"
                )
        self._check_sizes()
        for name, q in self.quantities.items():
            if q.classes:
                self._check_classes(name, q)

    def _check_sizes(self) -> None:
        """All structures have the same number of dimensions, features and vectors."""
        first, start = self.graphs[0], self.origins[0]
        fields = fields_per("node", "graph", "pair").items()
        several = [name for name, spec in fields if spec.channels and spec.default is None]
        for graph, origin in zip(self.graphs, self.origins):
            if graph.dim != first.dim:
                raise DataError(
                    f"{origin}: {graph.dim} dimensions, and {start} has {first.dim}; wanted the same"
                )
            for name in several:
                one, other = getattr(graph, name), getattr(first, name)
                if one is not None and other is not None and one.shape[1] != other.shape[1]:
                    raise DataError(
                        f"{origin}: {one.shape[1]} columns of {name}, and {start} has {other.shape[1]}"
                    )

    def _check_classes(self, name: str, q: Quantity) -> None:
        """Labels of classes are their numbers."""
        for graph, origin in zip(self.graphs, self.origins):
            label = graph.targets[name]
            label = label[~torch.isnan(label)]
            bad = label[(label < 0) | (label >= len(q.classes)) | (label != label.round())]
            if len(bad):
                raise DataError(
                    f"{origin}: the class of {name} is {float(bad[0]):g}; wanted a whole number from 0 ({q.classes[0]}) to "
                    f"{len(q.classes) - 1} ({q.classes[-1]}), or NaN where it is not known"
                )

    def __len__(self) -> int:
        return len(self.graphs)

    def __iter__(self) -> Iterator[Graph]:
        return iter(self.graphs)

    def __getitem__(self, index):
        if isinstance(index, (int, np.integer)):
            return self.graphs[index]
        if isinstance(index, slice):
            chosen = list(range(*index.indices(len(self))))
        else:
            chosen = np.asarray(index)
            if chosen.dtype == bool:
                if chosen.shape != (len(self),):
                    raise DataError(f"a mask of shape {chosen.shape} for {len(self)} structures")
                chosen = np.flatnonzero(chosen)
            if chosen.ndim != 1 or (len(chosen) and chosen.dtype.kind not in "iu"):
                raise DataError(
                    f"index {index!r}: wanted an integer, a slice, or a list of integers or booleans"
                )
            chosen = chosen.astype(int).tolist()
            bad = [k for k in chosen if not -len(self) <= k < len(self)]
            if bad:
                raise DataError(f"index {bad[0]} is outside of the {len(self)} structures")
        return self._like([self.graphs[k] for k in chosen], chosen)

    def _like(self, graphs: Sequence[Graph], chosen: Sequence[int]) -> "Dataset":
        return Dataset(
            graphs,
            quantities=self.quantities,
            info={k: [v[i] for i in chosen] for k, v in self.info.items()},
            origins=[self.origins[i] for i in chosen],
            sources=self.sources,
            found=self.found,
            unused=self.unused,
        )

    def __add__(self, other: "Dataset") -> "Dataset":
        if self.quantities != other.quantities:
            raise DataError(
                f"data with {sorted(self.quantities)} cannot be joined to data with {sorted(other.quantities)}; "
                "read both with the same `quantities`, those missing in one named in `partial`"
            )
        info = {
            k: [*self.info.get(k, [None] * len(self)), *other.info.get(k, [None] * len(other))]
            for k in {**self.info, **other.info}
        }
        order = dict.fromkeys(self.graphs[0].targets)
        graphs = [g.replace(targets={name: g.targets[name] for name in order}) for g in other.graphs]
        unused = {k: self.unused.get(k, 0) + other.unused.get(k, 0) for k in {**self.unused, **other.unused}}
        return Dataset(
            [*self.graphs, *graphs],
            quantities=self.quantities,
            info=info,
            origins=[*self.origins, *other.origins],
            sources=dict.fromkeys([*self.sources, *other.sources]),
            found=self.found,
            unused=unused,
        )

    @cached_property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, ascending."""
        return tuple(torch.cat([g.z for g in self.graphs]).unique().tolist())

    @cached_property
    def counts(self) -> np.ndarray:
        """Atoms of each structure."""
        return np.array([g.num_nodes for g in self.graphs])

    def values(self, name: str) -> torch.Tensor:
        """All labels of one quantity in a row: (structures, ...) or (all atoms, ...), NaN where unknown."""
        if name not in self.quantities:
            raise DataError(f"no {name!r} in these data{did_you_mean(name, self.quantities)}")
        return torch.cat([g.targets[name] for g in self.graphs])

    def known(self, name: str) -> np.ndarray:
        """Which structures have a label of this quantity: booleans."""
        if name not in self.quantities:
            raise DataError(f"no {name!r} in these data{did_you_mean(name, self.quantities)}")
        return np.array([not bool(torch.isnan(g.targets[name]).any()) for g in self.graphs])

    def labelled(self, name: str) -> bool:
        """Whether there is any label of this quantity, be it of a single node or component."""
        return name in self.quantities and any(
            not bool(torch.isnan(g.targets[name]).all()) for g in self.graphs
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything a model can see: structures, given invariants, labels and what they are."""

        def parts() -> Iterator[bytes | str]:
            yield repr(sorted(map(repr, self.quantities.values())))
            for graph in self.graphs:
                yield structure_bytes(graph)
                for name in sorted(graph.targets):
                    yield graph.targets[name].contiguous().numpy().tobytes()

        return sha256(parts())

    def split(
        self, sizes: Sequence[int] | Sequence[float] | Mapping, *, seed: int = 0, by: str | None = None
    ):
        """Disjoint parts: a list for a sequence of sizes, a dict for a mapping (`{"train": 450, "valid": 50}`).

        sizes: numbers of structures (what remains is left out), fractions of all (floats, together at most 1), or, in a
        mapping, lists of indices. seed decides who goes where; the order within a part is that of the data. by: a
        column of `info`; structures with the same value stay together, and sizes are met as well as whole
        groups allow. "scaffold" is that of Bemis and Murcko, of the column `smiles` where there is none of its own. Without it conformers of a molecule stay together, as its reader names it.
        Raises DataError for sizes that cannot be met, empty parts and indices in two parts; warns (DataWarning) where a
        structure of one part has an identical twin in another.
        """
        if not isinstance(sizes, (Mapping, Sequence)) or isinstance(sizes, str):
            raise DataError(
                f"split({sizes!r}): wanted the sizes of all parts, such as [0.8, 0.2], [450, 50] or {{'train': 450, 'valid': 50}}"
            )
        names = list(sizes) if isinstance(sizes, Mapping) else None
        wanted = list(sizes.values()) if isinstance(sizes, Mapping) else list(sizes)
        labels = names if names is not None else [f"part {k}" for k in range(len(wanted))]
        groups = conformers = conformer_groups(self.info)
        if by is not None:
            if by == "scaffold" and by not in self.info and "smiles" in self.info:
                groups = scaffolds(self.info["smiles"], self.origins)
            elif by not in self.info:
                raise DataError(f"by={by!r}: no such column of info{did_you_mean(by, self.info)}")
            else:
                groups = self.info[by]
        chosen = choose(len(self), wanted, labels, seed=seed, groups=groups)
        leak = conformers and conformer_leak(chosen, labels, conformers)
        if leak:
            warnings.warn(leak, DataWarning, stacklevel=2)
        parts = [self[part] for part in chosen]
        twins = duplicates(parts)
        if twins:
            (a, i), (b, j) = twins[0]
            warnings.warn(
                f"{len(twins)} structures occur in more than one part, so errors of one are no test of the other: "
                f"{parts[a].origins[i]} in {labels[a]} is {parts[b].origins[j]} in {labels[b]}",
                DataWarning,
                stacklevel=2,
            )
        return dict(zip(names, parts)) if names is not None else parts

    def connected(
        self, cutoff: float | None, cache: str | Path | None = None, *, k: int | None = None
    ) -> "Dataset":
        """The same data with neighbours up to `cutoff` (Å; None: all pairs), or the `k` nearest, kept in the folder `cache`.

        The file is named by the SHA-256 of structures and settings and holds plain tensors with their own digest; one
        that is damaged is reported (DataWarning), never used, and made again.
        """
        if all(
            g.edge_index is not None and g.cutoff == (float("inf") if cutoff is None else cutoff) and g.k == k
            for g in self.graphs
        ):
            return self
        folder = None if cache is None else Path(cache)
        return self._like(connected_graphs(self.graphs, cutoff, folder, k, self.sources), range(len(self)))

    def statistics(
        self,
        cutoff: float | None,
        *,
        reference_energies: "Mapping[str | int, float] | Dataset | None" = None,
        k: int | None = None,
    ) -> Statistics:
        """What a model needs to know of its training data; see `molequi.data.statistics.statistics_of`."""
        if isinstance(reference_energies, Dataset):
            reference_energies = single_atom_energies(reference_energies.graphs, reference_energies.origins)
        edges = sum(g.edge_index.shape[1] for g in self.connected(cutoff, k=k))
        return statistics_of(self.graphs, self.quantities, self.origins, edges, reference_energies)

    def summary(self) -> str:
        """What is in the data, line by line: structures, elements, each quantity with its range, and keys of the
        files not read.
        """
        z = torch.cat([g.z for g in self.graphs])
        atoms = ", ".join(f"{SYMBOLS[e]} {int((z == e).sum())}" for e in self.elements)
        low, high = int(self.counts.min()), int(self.counts.max())
        periodic = sum(g.pbc is not None for g in self.graphs)
        size = low if low == high else f"{low} to {high}"
        lines = [
            f"{len(self)} clouds of {size} points in {self.graphs[0].dim} dimensions"
            if self.elements == (0,)
            else f"{len(self)} structures of {size} atoms ({atoms}), "
            + (
                "none periodic"
                if not periodic
                else "all periodic"
                if periodic == len(self)
                else f"{periodic} of them periodic"
            )
        ]
        rows = []
        for name, quantity in self.quantities.items():
            known = sum(
                not bool(torch.isnan(g.targets[name]).all()) for g in self.graphs
            )  # in part, at least
            values = self.values(name)
            values = values[~torch.isnan(values)]
            span = f"{values.min().item():.6g} to {values.max().item():.6g}" if len(values) else ""
            if quantity.classes:
                span = ", ".join(
                    f"{c} {n}"
                    for c, n in zip(
                        quantity.classes, values.long().bincount(minlength=len(quantity.classes)).tolist()
                    )
                )
            rows.append((name, f"{known}/{len(self)}", span, quantity.unit, self.found.get(name, "")))
        for name, spec in fields_per("node", "graph", "pair").items():
            if spec.default is not None or name in ("pos", "z") or getattr(self.graphs[0], name) is None:
                continue
            values = torch.cat([getattr(g, name).flatten() for g in self.graphs])
            if len(values):
                span = f"{values.min().item():.6g} to {values.max().item():.6g}"
                rows.append((name, f"{len(self)}/{len(self)}", span, spec.unit, self.found.get(name, "")))
        lines += ["  " + line for line in text_table(rows[0], rows[1:], left=range(5))] if rows else []
        if not self.quantities:
            lines.append("  no labels")
        if self.unused:
            lines.append("  not read: " + ", ".join(f"{key} ({n})" for key, n in sorted(self.unused.items())))
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Dataset({self.summary()})"


def duplicates(parts: Sequence[Dataset]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Identical structures in different parts, as pairs of (part, index): leakage from training to test."""
    seen: dict[str, tuple[int, int]] = {}
    out = []
    for p, part in enumerate(parts):
        for k, graph in enumerate(part):
            first = seen.setdefault(fingerprint(graph), (p, k))
            if first[0] != p:
                out.append((first, (p, k)))
    return out
