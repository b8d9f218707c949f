"""Batches of structures in a random order that depends on the seed and the epoch alone."""

import ast
import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from molequi.data.cache import warn_of_stored_lists
from molequi.data.dataset import Dataset
from molequi.data.structures import Structures
from molequi.errors import ConfigError
from molequi.graph import Graph

EVALUATION_EDGES = 20_000


def evaluation_edges(data: Dataset) -> int:
    """Largest number of edges of a batch that is only evaluated: 20 000, or those of the largest structure.

    Parameters
    ----------
    data : Dataset
        Structures with neighbor lists.
    """
    return max(EVALUATION_EDGES, int(data.graphs.edge_counts.max()))


def connected_blocks(
    data: Dataset, cutoff: float | None, k: int | None, *, progress: bool = True
) -> Iterator[Dataset]:
    """All structures with neighbor lists, in blocks; lists that are searched are in memory for one block.

    Parameters
    ----------
    data : Dataset
        The structures.
    cutoff : float or None
        Radius in Å; None: all pairs.
    k : int or None
        Only the k nearest within the cutoff.
    progress : bool
        Show a progress bar of a search.
    """
    if not data.graphs.is_connected(cutoff, k) and len(data) > len(next(data.graphs.blocks())):
        warn_of_stored_lists(data.graphs, cutoff, k, data.sources)
        data = Dataset.of_structures(
            data.graphs.with_edges(None), quantities=data.quantities, origins=data.origins, info=data.info
        )
        progress = False  # a bar for each block would say little
    for block in data.graphs.blocks():
        part = data if len(block) == len(data) else data[block.start : block.stop]
        yield part.connected(cutoff, k=k, progress=progress)


def check_main_guard(workers: int, name: str = "workers") -> None:
    """Raise ConfigError if worker processes would run the user's script again.

    A worker imports the script that started it. Without ``if __name__ == "__main__":`` it begins the training
    again, which Python forbids only after the script has run up to there.

    Parameters
    ----------
    workers : int
        Number of worker processes; 0 starts none.
    name : str
        The argument that the user gave, for the message.

    Raises
    ------
    ConfigError
        If the line of the script that leads here is not under such a line.
    """
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if not workers or file is None or (spec is not None and spec.name.endswith("__main__")):
        return  # what workers do not import
    frame = inspect.currentframe()
    while frame is not None and (frame.f_globals is not vars(main) or frame.f_code.co_name != "<module>"):
        frame = frame.f_back
    if frame is not None and not _is_guarded(Path(file), frame.f_lineno):
        raise ConfigError(
            f"{name}={workers}: each worker process imports the script {file} and would begin the work "
            f'again (line {frame.f_lineno}); write this line under  if __name__ == "__main__":  or leave out '
            f"{name}"
        )


def _is_guarded(file: Path, line: int) -> bool:
    """Whether a line of a script is not run by a process that imports the script."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):  # a program in another form, such as a zip file
        return True
    for node in ast.walk(tree):
        if not isinstance(node, ast.If):
            continue
        names = {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)}
        texts = {n.value for n in ast.walk(node.test) if isinstance(n, ast.Constant)}
        if "__name__" in names and "__main__" in texts:
            other = any(isinstance(n, ast.NotEq) for n in ast.walk(node.test))  # != and then an exit
            if other or node.lineno <= line <= (node.end_lineno or line):
                return True
    return False


class Batches:
    """Batches of a connected Dataset, limited by the number of structures, atoms or edges.

    The order of an epoch depends on `seed` and its number alone, so that a training can continue at any
    batch.

    Parameters
    ----------
    data : Dataset
        Structures with neighbor lists.
    batch_size, batch_atoms, batch_edges : int, optional
        The limit; exactly one of them.
    shuffle : bool
        False keeps the order of the data.
    seed : int
        Seed of the random order.

    Raises
    ------
    ConfigError
        If no limit or several are given, or one structure alone exceeds it.
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
    ) -> None:
        limits = {"batch_size": batch_size, "batch_atoms": batch_atoms, "batch_edges": batch_edges}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        if len(given) != 1:
            raise ConfigError(
                "batches are limited by one of batch_size, batch_atoms and batch_edges; found "
                f"{given or 'none'}"
            )
        ((name, self.limit),) = given.items()
        self.weights: list[int] = {
            "batch_size": lambda: [1] * len(data),
            "batch_atoms": data.counts.tolist,
            "batch_edges": data.graphs.edge_counts.tolist,
        }[name]()
        self.shuffle, self.seed = shuffle, seed
        largest = max(range(len(data)), key=self.weights.__getitem__)
        if self.weights[largest] > self.limit:
            raise ConfigError(
                f"{name} is {self.limit} and {data.origins[largest]} alone has {self.weights[largest]}; "
                f"wanted at least {self.weights[largest]}"
            )

    def epoch(self, number: int) -> list[list[int]]:
        """The batches of an epoch, as lists of indices. Every structure occurs once.

        Parameters
        ----------
        number : int
            Number of the epoch; the order depends on it.
        """
        return list(self._batches(number))

    def first(self, number: int) -> list[int]:
        """The first batch of an epoch, without the work of making the others.

        Parameters
        ----------
        number : int
            Number of the epoch.
        """
        return next(self._batches(number))

    def _batches(self, number: int) -> Iterator[list[int]]:
        order: Iterable[int] = range(len(self.weights))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            order = torch.randperm(len(self.weights), generator=generator).tolist()
        batch: list[int] = []
        filled = 0
        for k in order:
            if batch and filled + self.weights[k] > self.limit:
                yield batch
                batch, filled = [], 0
            batch.append(k)
            filled += self.weights[k]
        yield batch


class Loader:
    """Collated batches of a Dataset, made in this process or in workers.

    Workers are started afresh ("spawn"), because a fork of a process that has used CUDA or threads may hang.

    Parameters
    ----------
    data : Dataset
        Structures with neighbor lists.
    names : sequence of str
        The targets that are kept.
    workers : int
        Number of worker processes; 0 makes the batches in this process. A script that starts workers needs
        ``if __name__ == "__main__":``, see `check_main_guard`.
    share : (int, int)
        Rank of this device and number of devices. Each device gets its part of every batch.
    """

    def __init__(
        self, data: Dataset, names: Sequence[str], *, workers: int = 0, share: tuple[int, int] = (0, 1)
    ) -> None:
        self.graphs = data.graphs.with_targets(names)
        check_main_guard(workers)
        self.workers, self.share = workers, share
        self._order: list[list[int]] = []
        self._pool: DataLoader[Graph] | None = None

    def __call__(self, batches: Sequence[list[int]]) -> Iterator[tuple[list[int], Graph | None]]:
        """Indices of each whole batch, and the part of this device; None if that part is empty."""
        rank, devices = self.share
        mine = [batch[rank::devices] for batch in batches]
        if not self.workers:
            for batch, part in zip(batches, mine):
                yield batch, self.graphs.batch(part) if part else None
            return
        self._order[:] = mine
        if self._pool is None:
            # A generator of its own, because the loader must not disturb the random numbers of the model.
            self._pool = DataLoader(
                _Joined(self.graphs),
                batch_sampler=self._order,
                num_workers=self.workers,
                collate_fn=_as_it_is,
                multiprocessing_context="spawn",
                persistent_workers=True,
                generator=torch.Generator(),
            )
        yield from zip(batches, self._pool)


class _Joined(TorchDataset[Graph]):
    """Structures from which a loader takes whole batches."""

    def __init__(self, graphs: Structures) -> None:
        self.graphs = graphs

    def __getitem__(self, number: int) -> Graph:
        return self.graphs[number]

    def __getitems__(self, numbers: list[int]) -> Graph | None:
        return self.graphs.batch(numbers) if numbers else None


def _as_it_is(batch: Any) -> Any:
    return batch
