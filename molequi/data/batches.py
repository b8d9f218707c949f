"""Which structures make a batch, in a random order that is a function of seed and epoch alone."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch.utils.data import DataLoader

from molequi.data.dataset import Dataset
from molequi.errors import ConfigError
from molequi.graph import Graph, collate


class Batches:
    """Batches of a connected Dataset, limited by the number of structures, of atoms or of edges.

    Any epoch can be entered at any batch: its order depends on `seed` and the epoch and on nothing that happened
    before. shuffle=False keeps the order of the data. Raises ConfigError if no limit or several are given, or a
    structure alone is too large.
    """

    def __init__(
        self,
        data: Dataset,
        *,
        batch_size: int | None = None,
        batch_atoms: int | None = None,
        batch_edges: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
    ):
        limits = {"batch_size": batch_size, "batch_atoms": batch_atoms, "batch_edges": batch_edges}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        if len(given) != 1:
            raise ConfigError(
                f"batches are limited by one of batch_size, batch_atoms and batch_edges; found {given or 'none'}"
            )
        ((name, self.limit),) = given.items()
        weigh = {
            "batch_size": lambda g: 1,
            "batch_atoms": lambda g: g.num_nodes,
            "batch_edges": lambda g: g.edge_index.shape[1],
        }[name]
        self.weights = [weigh(graph) for graph in data]
        self.shuffle, self.seed = shuffle, seed
        largest = max(range(len(data)), key=self.weights.__getitem__)
        if self.weights[largest] > self.limit:
            raise ConfigError(
                f"{name} is {self.limit} and {data.origins[largest]} alone has {self.weights[largest]}; "
                f"wanted at least {self.weights[largest]}"
            )

    def epoch(self, number: int) -> list[list[int]]:
        """The batches of an epoch, as lists of indices; every structure occurs once."""
        return list(self._batches(number))

    def first(self, number: int) -> list[int]:
        """The first batch of an epoch, without the work of making the others."""
        return next(self._batches(number))

    def _batches(self, number: int) -> Iterator[list[int]]:
        order: Sequence[int] = range(len(self.weights))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            order = torch.randperm(len(self.weights), generator=generator).numpy()
        batch: list[int] = []
        filled = 0
        for k in map(int, order):
            if batch and filled + self.weights[k] > self.limit:
                yield batch
                batch, filled = [], 0
            batch.append(k)
            filled += self.weights[k]
        yield batch


class Loader:
    """Collated batches of a Dataset, made here or in worker processes.

    names: the targets that are kept. share: rank and number of devices; each gets its part of every batch, possibly
    nothing (None). Workers are started afresh ("spawn"): a fork of a process that has touched CUDA or threads may hang.
    """

    def __init__(
        self, data: Dataset, names: Sequence[str], *, workers: int = 0, share: tuple[int, int] = (0, 1)
    ):
        self.graphs = [_only(graph, names) for graph in data]
        self.workers, self.share = workers, share
        self._order: list[list[int]] = []
        self._pool: DataLoader | None = None

    def __call__(self, batches: Sequence[list[int]]) -> Iterator[tuple[list[int], Graph | None]]:
        """(indices of the whole batch, this device's share of it) one after the other."""
        rank, world = self.share
        mine = [batch[rank::world] for batch in batches]
        if not self.workers:
            for batch, part in zip(batches, mine):
                yield batch, collate([self.graphs[k] for k in part]) if part else None
            return
        self._order[:] = mine
        if self._pool is None:
            # A generator of its own: the loader draws from it and must not disturb the random numbers of the model.
            self._pool = DataLoader(
                self.graphs,
                batch_sampler=self._order,
                num_workers=self.workers,
                collate_fn=_collate,
                multiprocessing_context="spawn",
                persistent_workers=True,
                generator=torch.Generator(),
            )
        yield from zip(batches, self._pool)


def _collate(graphs: list[Graph]) -> Graph | None:
    return collate(graphs) if graphs else None


def _only(graph: Graph, names: Sequence[str]) -> Graph:
    return replace(graph, targets={name: graph.targets[name] for name in names})
