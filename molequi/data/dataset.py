"""Dataset: a sequence of labelled structures, its parts, its neighbor lists and its statistics."""

import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch

from molequi.data.cache import neighbor_lists
from molequi.data.consistency import check_alike, checked_labels, single_graphs, target_quantities
from molequi.data.digests import content_digest
from molequi.data.fingerprints import duplicates
from molequi.data.heuristics import checked_allow
from molequi.data.indexing import chosen_values, numbers_of, way_to_column
from molequi.data.joined import about_both, alike, joined
from molequi.data.levels import LEVEL, named_level, rows_at
from molequi.data.sources import Source
from molequi.data.splits import Sizes, choose, conformer_groups, conformer_leak, scaffolds
from molequi.data.statistics import Statistics, single_atom_energies, statistics_of
from molequi.data.structures import Structures
from molequi.data.summary import html, text
from molequi.errors import DataError, DataWarning, did_you_mean
from molequi.graph import Graph
from molequi.quantities import KNOWN, Quantity
from molequi.util.attributes import OF_DATA, attribute_again
from molequi.util.files import sha256
from molequi.util.signature import check_keywords


@check_keywords()
class Dataset:
    """A sequence of labelled structures.

    ``dataset[3]`` is a Graph; ``dataset[:50]``, ``dataset[[1, 5]]`` and ``first + second`` are Datasets. A
    Dataset is never changed: methods return new ones. Structures of a store stay on disk, in a sum too.

    Parameters
    ----------
    graphs : sequence of Graph
        Single structures, each with its labels in `Graph.targets`, NaN where a label is not known. All have
        the same targets and the same fields.
    quantities : mapping of str to Quantity, optional
        What the targets are. Those of `molequi.quantities.KNOWN` need not be listed.
    info : mapping of str to sequence, optional
        Columns with one value per structure, such as ``config_type``; None where unknown.
    origins : sequence of str, optional
        Where each structure came from, for messages.
    sources : sequence of Source, optional
        The files that were read.
    found : mapping of str to str, optional
        For `summary`: where each quantity was found.
    unused : mapping of str to int or None, optional
        For `summary`: keys of the files that were not read, with the number of structures that have them;
        None where it is not known, as for a part of data of which only some have the key.
    reading : mapping, optional
        Options of the reader that change what a model sees, see `molequi.data.reading`.
    allow : str or sequence of str, optional
        Heuristics that are overruled, see `molequi.data.heuristics`.

    Raises
    ------
    DataError
        If there are no structures, if they do not fit together, or if a target is not a known quantity.

    Examples
    --------
    >>> from molequi import Dataset, Graph
    >>> import torch
    >>> energy = torch.tensor([-1.0], dtype=torch.float64)
    >>> data = Dataset([Graph.single([[0, 0, 0], [0, 0, 0.74]], ["H", "H"], targets={"energy": energy})] * 4)
    >>> len(data), len(data[:2]), data.elements
    (4, 2, (1,))
    >>> data.values("energy").tolist()
    [-1.0, -1.0, -1.0, -1.0]
    """

    def __init__(
        self,
        graphs: Sequence[Graph],
        *,
        quantities: Mapping[str, Quantity] | None = None,
        info: Mapping[str, Sequence[Any]] | None = None,
        origins: Sequence[str] | None = None,
        sources: Sequence[Source] = (),
        found: Mapping[str, str] | None = None,
        unused: Mapping[str, int | None] | None = None,
        reading: Mapping[str, Any] | None = None,
        allow: str | Sequence[str] = (),
    ) -> None:
        found_graphs = single_graphs(graphs)
        if origins is None:
            origins = [f"structure {k}" for k in range(len(found_graphs))]
        self.origins: Sequence[str] = tuple(origins)
        self.info: dict[str, Sequence[Any]] = {name: tuple(column) for name, column in (info or {}).items()}
        self.sources, self.found, self.unused = tuple(sources), dict(found or {}), dict(unused or {})
        self.reading: dict[str, Any] = dict(reading or {})
        self.allow = checked_allow(allow)
        self.parts_of: object = None  # parts of one split have the same one
        self.digest_of_all: str | None = None  # of the store whose structures these are
        self.quantities = target_quantities(found_graphs[0], quantities)
        lengths = {"origins": len(self.origins)} | {f"info[{k!r}]": len(v) for k, v in self.info.items()}
        for what, length in lengths.items():
            if length != len(found_graphs):
                raise DataError(f"{what} has {length} entries for {len(found_graphs)} structures")
        check_alike(found_graphs, self.origins)
        per_node = [name for name, q in self.quantities.items() if q.per == "node"]
        checked = (checked_labels(g, self.quantities, o) for g, o in zip(found_graphs, self.origins))
        self.graphs = Structures.of(checked, per_node)

    @classmethod
    def of_structures(
        cls,
        structures: Structures,
        *,
        quantities: Mapping[str, Quantity],
        origins: Sequence[str],
        info: Mapping[str, Sequence[Any]],
        sources: Sequence[Source] = (),
        found: Mapping[str, str] | None = None,
        unused: Mapping[str, int | None] | None = None,
        reading: Mapping[str, Any] | None = None,
        digest: str | None = None,
        allow: str | Sequence[str] = (),
    ) -> "Dataset":
        """A Dataset of structures that were checked before.

        Parameters
        ----------
        structures : Structures
            The structures with their labels.
        quantities, origins, info, sources, found, unused, reading, allow
            As `Dataset` takes them. Columns with a method ``select`` stay what they are.
        digest : str, optional
            SHA-256 of all structures and labels.

        Returns
        -------
        Dataset
        """
        data = cls.__new__(cls)
        data.graphs, data.quantities = structures, dict(quantities)
        data.origins, data.info = origins, dict(info)
        data.sources, data.found, data.unused = tuple(sources), dict(found or {}), dict(unused or {})
        data.reading, data.parts_of, data.digest_of_all = dict(reading or {}), None, digest
        data.allow = checked_allow(allow)
        return data

    def __len__(self) -> int:
        return len(self.graphs)

    def __iter__(self) -> Iterator[Graph]:
        return iter(self.graphs)

    @overload
    def __getitem__(self, index: int) -> Graph: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int] | Sequence[bool] | np.ndarray) -> "Dataset": ...

    def __getitem__(
        self, index: int | slice | Sequence[int] | Sequence[bool] | np.ndarray
    ) -> "Graph | Dataset":
        if isinstance(index, (int, np.integer)):
            return self.graphs[int(index)]
        chosen = numbers_of(index, len(self), self.quantities, self.info)
        return self._like(self.graphs.select(chosen), chosen)

    if not TYPE_CHECKING:  # for a type checker, what is not declared is not there

        def __getattr__(self, name: str) -> Any:
            own = vars(self)  # of a copy that is being made it is empty
            ways = {n: f'data.info["{n}"]' for n in own.get("info", {})}
            ways |= {n: f'data.values("{n}")' for n in (*KNOWN, *own.get("quantities", {}))}
            return attribute_again(self, name, OF_DATA | ways)

    def _like(self, graphs: Structures, chosen: Sequence[int]) -> "Dataset":
        """The chosen structures, which are not checked again."""
        data = Dataset.__new__(Dataset)
        data.graphs, data.quantities = graphs, self.quantities
        data.info = {k: chosen_values(v, chosen) for k, v in self.info.items()}
        data.origins = chosen_values(self.origins, chosen)
        data.digest_of_all = self.digest_of_all
        data.sources, data.found, data.unused = self.sources, self.found, dict(self.unused)
        data.reading, data.allow, data.parts_of = self.reading, self.allow, None
        if len(data.graphs) != len(self):
            data.unused = {k: len(data.graphs) if n == len(self) else None for k, n in self.unused.items()}
        if not len(data.graphs):
            raise DataError("a Dataset without structures; wanted at least one")
        return data

    def __add__(self, other: "Dataset") -> "Dataset":
        if self.quantities != other.quantities:
            raise DataError(
                f"data with {sorted(self.quantities)} cannot be joined to data with "
                f"{sorted(other.quantities)}; read both with the same `quantities`, those missing in one "
                "named in `partial`"
            )
        graphs = other.graphs.with_targets(self.graphs.columns.targets)
        about = about_both(self, other)
        if not (self.graphs.on_disk or graphs.on_disk):
            return Dataset([*self.graphs, *graphs], **about)
        check_alike([self.graphs[0], graphs[0]], [self.origins[0], other.origins[0]])  # as all others of each
        if not alike(self.graphs, graphs):
            warnings.warn(
                f"{self.origins[0]} and {other.origins[0]}: neighbor lists of both are not of one cutoff, so "
                "that those of all structures are searched again, and kept in memory; prepare both with the "
                "same --cutoff",
                DataWarning,
                stacklevel=2,
            )
        digest = sha256([self.digest, other.digest])
        return Dataset.of_structures(joined(self.graphs, graphs), **about, digest=digest)

    @cached_property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, or that `reading` says may occur, ascending."""
        blocks = (self.graphs.select(block).z.unique().tolist() for block in self.graphs.blocks())
        return tuple(sorted(set(self.reading.get("elements", ())).union(*blocks)))

    @cached_property
    def counts(self) -> np.ndarray:
        """Number of nodes of each structure, shape (structures,)."""
        return self.graphs.counts

    def with_quantities(self, names: Sequence[str]) -> "Dataset":
        """The same structures with some of their labels.

        Parameters
        ----------
        names : sequence of str
            Names of the quantities that stay.

        Returns
        -------
        Dataset

        Raises
        ------
        DataError
            If there is no label of that name.
        """
        missing = [name for name in names if name not in self.quantities]
        if missing:
            raise DataError(f"no {missing[0]!r} in these data{did_you_mean(missing[0], self.quantities)}")
        data = self._like(self.graphs.with_targets(names), range(len(self)))
        data.quantities = {name: self.quantities[name] for name in names}
        return data

    def with_level(self, level: str) -> "Dataset":
        """The same structures with labels of a level of theory, the column ``level`` of `info`.

        Parameters
        ----------
        level : str
            Its name.
        """
        data = self._like(self.graphs, range(len(self)))
        data.info[LEVEL] = (named_level(level),) * len(self)
        return data

    def at_level(self, level: str) -> "Dataset":
        """The structures of one level of theory; raises DataError if there are none.

        Parameters
        ----------
        level : str
            Its name in the column ``level`` of `info`.
        """
        return self[rows_at(self.info.get(LEVEL), level)]

    def values(self, name: str) -> torch.Tensor:
        """All labels of one quantity, joined along the first axis.

        Parameters
        ----------
        name : str
            Name of the quantity.

        Returns
        -------
        Tensor, shape (structures, …) or (nodes of all structures, …)
            NaN where unknown.
        """
        if name not in self.quantities:
            raise DataError(f"no {name!r} in these data{did_you_mean(name, self.quantities)}")
        return self.graphs.target(name)

    def known(self, name: str) -> np.ndarray:
        """Which structures have a complete label of a quantity.

        Parameters
        ----------
        name : str
            Name of the quantity.

        Returns
        -------
        array of bool, shape (structures,)
        """
        if name not in self.quantities:
            raise DataError(f"no {name!r} in these data{did_you_mean(name, self.quantities)}")
        return self.graphs.complete(name)

    def labelled(self, name: str) -> bool:
        """Whether there is any label of a quantity, even of a single node or component.

        Parameters
        ----------
        name : str
            Name of the quantity; it need not be one of these data.
        """
        return name in self.quantities and any(
            self.graphs.select(block).labelled(name).any() for block in self.graphs.blocks()
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of structures, labels and what the labels are.

        Of a part of a store it is that of the whole store, of the numbers of the structures, and of the names
        of the labels.
        """
        if self.digest_of_all is not None:
            rows = b"" if self.graphs.rows is None else self.graphs.rows.numpy().tobytes()
            return sha256([self.digest_of_all, *sorted(self.quantities), rows])
        return content_digest(self.graphs, self.quantities.values())

    @overload
    def split(self, sizes: Sizes, *, seed: int = 0, by: str | None = None) -> "list[Dataset]": ...

    @overload
    def split(
        self, sizes: Mapping[str, int | float | Sequence[int]], *, seed: int = 0, by: str | None = None
    ) -> "dict[str, Dataset]": ...

    @check_keywords()
    def split(
        self,
        sizes: Sizes | Mapping[str, int | float | Sequence[int]],
        *,
        seed: int = 0,
        by: str | None = None,
    ) -> "list[Dataset] | dict[str, Dataset]":
        """Disjoint random parts of the data.

        Without `by`, the conformers of a molecule stay together.

        Parameters
        ----------
        sizes : sequence or mapping
            Number of structures of each part (the remainder is left out), or fractions of all (together at
            most 1), or lists of indices. A mapping such as ``{"train": 450, "valid": 50}`` names the parts.
        seed : int
            Seed of the random choice. Within a part the structures keep their order.
        by : str, optional
            A column of `info`: structures with the same value stay together, and sizes are met as well as
            whole groups allow. "scaffold" without such a column is the Bemis-Murcko scaffold of the column
            ``smiles``.

        Returns
        -------
        list of Dataset, or dict of str to Dataset
            A dict if `sizes` is a mapping; `fit` takes it as ``fit(model, **parts, …)``.

        Raises
        ------
        DataError
            If the sizes cannot be met, a part is empty, or an index is in two parts.

        Warns
        -----
        DataWarning
            If identical structures, or conformers of one molecule, are in different parts.
        """
        if not isinstance(sizes, (Mapping, Sequence)) or isinstance(sizes, str):
            raise DataError(
                f"split({sizes!r}): wanted the sizes of all parts, such as [0.8, 0.2], [450, 50] or "
                f"{{'train': 450, 'valid': 50}}"
            )
        names = list(sizes) if isinstance(sizes, Mapping) else None
        wanted: list[Any] = list(sizes.values()) if isinstance(sizes, Mapping) else list(sizes)
        labels = names if names is not None else [f"part {k}" for k in range(len(wanted))]
        conformers = conformer_groups(self.info)
        groups = conformers if by is None else self._groups(by)
        chosen = choose(len(self), wanted, labels, seed=seed, groups=groups)
        leak = conformers and conformer_leak(chosen, labels, conformers)
        if leak:
            warnings.warn(leak, DataWarning, stacklevel=2)
        parts, together = [self[part] for part in chosen], object()
        for part in parts:
            part.parts_of = together
        twins = duplicates(parts)
        if twins:
            (a, i), (b, j) = twins[0]
            warnings.warn(
                f"{len(twins)} structures occur in more than one part, so errors of one are no test of the "
                f"other: {parts[a].origins[i]} in {labels[a]} is {parts[b].origins[j]} in {labels[b]}",
                DataWarning,
                stacklevel=2,
            )
        return dict(zip(names, parts)) if names is not None else parts

    def _groups(self, by: str) -> Sequence[Hashable]:
        """The group of each structure: a column of info, or scaffolds."""
        if by == "scaffold" and by not in self.info and "smiles" in self.info:
            return scaffolds(self.info["smiles"], self.origins)
        if by not in self.info:
            raise DataError(
                f"by={by!r}: no such column of info{did_you_mean(by, self.info)}{way_to_column(by)}"
            )
        return self.info[by]

    def connected(
        self,
        cutoff: float | None,
        cache: str | Path | None = None,
        *,
        k: int | None = None,
        progress: bool = True,
    ) -> "Dataset":
        """The same data with neighbor lists.

        Parameters
        ----------
        cutoff : float or None
            Radius in Å; None: all pairs.
        cache : path, optional
            Folder in which the lists are kept. The file name is the SHA-256 of structures and settings, and
            the file holds plain tensors with their own digest. A damaged file is reported by a DataWarning,
            never used, and written again.
        k : int, optional
            Only the k nearest within the cutoff.
        progress : bool
            Show a progress bar, if it takes more than three seconds.

        Returns
        -------
        Dataset
            This one, if it has these neighbor lists already.
        """
        if self.graphs.is_connected(cutoff, k):
            return self
        folder = None if cache is None else Path(cache)
        edges = neighbor_lists(self.graphs, cutoff, folder, k, self.sources, progress=progress)
        return self._like(self.graphs.with_edges(edges), range(len(self)))

    def statistics(
        self,
        cutoff: float | None,
        *,
        reference_energies: "Mapping[str | int, float] | Dataset | None" = None,
        k: int | None = None,
    ) -> Statistics:
        """Statistics of training data by which a model is standardized.

        Parameters
        ----------
        cutoff : float or None
            Radius of the neighbor list in Å; None: all pairs.
        reference_energies : mapping or Dataset, optional
            Energy of a single atom in eV by symbol or atomic number, or a Dataset of single atoms with
            energies. By default they are fitted, see `molequi.data.statistics.statistics_of`.
        k : int, optional
            Only the k nearest neighbors.

        Returns
        -------
        Statistics
        """
        if isinstance(reference_energies, Dataset):
            single = reference_energies
            reference_energies = single_atom_energies(single.graphs, single.origins, single._edges(cutoff, k))
        edges = self._edges(cutoff, k)
        return statistics_of(self.graphs, self.quantities, self.origins, edges, reference_energies)

    def _edges(self, cutoff: float | None, k: int | None) -> list[int]:
        """Number of edges of each structure."""
        counts: list[int] = self.connected(cutoff, k=k).graphs.edge_counts.tolist()
        return counts

    def summary(self) -> str:
        """A summary of the data for reading, one fact per line.

        It lists the number of structures and atoms of each element; for each quantity the number of labels,
        the range, the unit and where it was found; and the keys of the files that were not read.
        """
        return text(self)

    def __repr__(self) -> str:
        return f"Dataset({self.summary()})"

    def _repr_html_(self) -> str:
        return html(self)
