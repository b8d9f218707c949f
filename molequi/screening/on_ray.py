"""Blocks are done by actors of Ray Data, on this machine or on all machines of a cluster."""

import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from molequi.readers.blocks import Block
from molequi.screening.work import BlockWork, as_line, from_line
from molequi.util.optional import require
from molequi.util.signals import keep_handlers

PURPOSE = "screen(ray=…)"


class RayWork:
    """What each actor does: `BlockWork.answer` for each line of a batch.

    Parameters
    ----------
    folder : str
        The folder of the screening, which all machines see.
    device : str or None
        Where the model runs.
    """

    def __init__(self, folder: str, device: str | None) -> None:
        self.work = BlockWork(Path(folder), device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Answers as lines of JSON.

        Parameters
        ----------
        batch : dict
            ``block``: blocks as lines of JSON.
        """
        return {"answer": [json.dumps(self.work.answer(from_line(str(line)))) for line in batch["block"]]}


class RayWorkers:
    """Actors of Ray; a context manager that shuts Ray down if it started it.

    Parameters
    ----------
    folder : Path
        The folder of the screening. All machines must see it under this path, and the inputs under theirs.
    address : str
        ``"local"`` starts Ray on this machine; every other one is that of a running cluster, ``"auto"`` of
        that on this machine. A connection that the program has already is used.
    count : int or None
        Number of actors; by default one for each GPU of the cluster, or for each processor if it has none.
    device : str or None
        Where the models run.

    Raises
    ------
    MissingPackageError
        If Ray is not installed.
    ConfigError
        If there is no cluster at this address.
    """

    def __init__(self, folder: Path, address: str, count: int | None, device: str | None) -> None:
        check_installed()
        self.folder, self.address, self.count, self.device = folder.absolute(), address, count, device
        self._stack = ExitStack()

    def __enter__(self) -> "RayWorkers":
        import ray

        if ray.is_initialized():
            return self
        local: dict[str, Any] = {"num_cpus": self.count} if self.count and self.address == "local" else {}
        with ExitStack() as stack:
            stack.enter_context(keep_handlers())  # Ray takes SIGTERM and never gives it back
            self._start(ray, local)
            stack.callback(ray.shutdown)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, ray: Any, local: dict[str, Any]) -> None:
        from molequi.errors import ConfigError

        try:
            ray.init(
                address=self.address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False if self.address == "local" else None,
                **local,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"ray={self.address!r}: no cluster answers there ({said}); start one with\n"
                "  ray start --head\nor write ray='local', which starts one on this machine"
            ) from error

    def run(self, blocks: Sequence[Block]) -> Iterator[dict[str, Any]]:
        """The answers of `BlockWork.answer` for all blocks, in the order in which they are done.

        Parameters
        ----------
        blocks : sequence of Block
            The blocks.
        """
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if self.device in (None, "auto", "cuda") else 0
        count = self.count or gpus or max(1, math.floor(resources.get("CPU", 1)))
        context = DataContext.get_current()
        shown = context.enable_progress_bars
        context.enable_progress_bars = False  # one bar is shown, that of the screening
        logger = logging.getLogger("ray.data")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            lines = ray.data.from_items(
                [{"block": as_line(block)} for block in blocks], override_num_blocks=len(blocks)
            )
            answers = lines.map_batches(
                RayWork,
                fn_constructor_args=(str(self.folder), self.device),
                batch_size=1,
                compute=ActorPoolStrategy(size=min(count, len(blocks))),
                num_gpus=1 if gpus else 0,
            )
            for row in answers.iter_rows():
                yield json.loads(row["answer"])
        finally:
            context.enable_progress_bars = shown
            logger.setLevel(level)


def check_installed() -> None:
    """Raise MissingPackageError if Ray or its Ray Data is not installed."""
    for package in ("ray", "pyarrow"):
        require(package, "ray", PURPOSE)
