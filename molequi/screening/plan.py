"""All inputs of a screening, in blocks."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from molequi.errors import ConfigError, DataError
from molequi.readers.blocks import STRUCTURES, Before, Block, Source, cut, digest_of, kind_of, source_of
from molequi.readers.files import expand_paths
from molequi.store.manifest import is_store
from molequi.util.progress import ProgressBar


def input_paths(inputs: Any) -> list[Path]:
    """The files and stores of inputs.

    Parameters
    ----------
    inputs : path or list of paths
        Files, patterns, or folders of stores.

    Raises
    ------
    ConfigError
        For what is no path, and for files whose records cannot be read one by one.
    """
    items = [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs
    if not isinstance(items, Sequence) or not all(isinstance(i, (str, os.PathLike)) for i in items):
        raise ConfigError(
            f"screen: found {type(inputs).__name__}; wanted files, whose parts are read one by one (what "
            "is in memory is predicted by mq.predict)"
        )
    given = [Path(item) for item in items]
    paths = [path for one in given for path in ([one] if is_store(one) else expand_paths(one))]
    for path in paths:
        kind_of(path)
    return paths


def plan(
    paths: Sequence[Path], size: int, *, column: str | None, hint: str | None, progress: bool
) -> tuple[list[Source], list[Block]]:
    """Read all files once, and cut them into blocks.

    Parameters
    ----------
    paths : sequence of Path
        The files.
    size : int
        Number of records in a block; the last one of a file may be smaller.
    column : str or None
        The column of the tables with the SMILES; None: it is found.
    hint : str or None
        The column that the training data had.
    progress : bool
        Whether to show a progress bar.

    Raises
    ------
    ConfigError
        If the files are of different kinds.
    DataError
        If a file cannot be cut into records; the message names the line.
    """
    kinds = {"structures" if kind_of(path) in STRUCTURES else "molecules" for path in paths}
    if len(kinds) > 1:
        raise ConfigError(
            f"{', '.join(map(str, paths[:4]))}: structures (.xyz, .db, .npz, .h5, stores) and molecules "
            "(SMILES, SDF) get different columns; screen each kind into a folder of its own"
        )
    sources: list[Source] = []
    blocks: list[Block] = []
    with ProgressBar("read", None, unit="input", show=progress, delay=2) as bar:
        for path in paths:
            source = source_of(path, kind_of(path), column=column, hint=hint)
            content = hashlib.sha256()
            before = Before(len(sources), len(blocks), blocks[-1].offset + blocks[-1].count if blocks else 0)
            found = []
            for block, _ in cut(source, size, before, content=content):
                found.append(block)
                bar.advance(block.count)
            if not found:
                raise DataError(f"{path}: nothing to predict in this file; wanted at least one input")
            records = sum(block.count for block in found)
            sources.append(replace(source, records=records, sha256=digest_of(source, content)))
            blocks += found
    return sources, blocks
