"""Neighbor lists that are prepared once and kept on disk, as plain tensors with their own digest."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch

from molequi.data.digests import structure_bytes
from molequi.data.edges import Edges, edges_of, joined_edges
from molequi.data.sources import Source
from molequi.data.structures import Structures
from molequi.errors import DataError, DataWarning
from molequi.neighbors import connect, on_edges
from molequi.util.files import sha256, write_file
from molequi.util.progress import ProgressBar

_FORMAT = 2
_BLOCK = 1000  # structures


def neighbor_lists(
    structures: Structures,
    cutoff: float | None,
    cache: Path | None,
    k: int | None = None,
    sources: Sequence[Source] = (),
    *,
    progress: bool = True,
) -> Edges:
    """The neighbor lists of structures.

    Parameters
    ----------
    structures : Structures
        The structures.
    cutoff : float or None
        Radius in Å; None: all pairs.
    cache : Path or None
        Folder from which the lists are read, if it has them, and to which they are written.
    k : int, optional
        Only the k nearest within the cutoff.
    sources : sequence of Source
        The files of the structures; the cache notes their numbers of frames.
    progress : bool
        Show a progress bar.

    Raises
    ------
    DataError
        If the cutoff is not positive, or if the folder cannot be written.
    """
    if cutoff is not None and not 0 < cutoff < float("inf"):
        raise DataError(f"cutoff {cutoff!r}; wanted a positive length in Å, or None for all pairs")
    warn_of_stored_lists(structures, cutoff, k, sources, stacklevel=4)
    if cache is None:
        return _search(structures, cutoff, k, progress)
    settings = {"format": _FORMAT, "cutoff": cutoff} | ({} if k is None else {"k": k})
    key = sha256(chain([json.dumps(settings)], map(structure_bytes, structures)))
    path = cache / f"neighbors-{key[:32]}.safetensors"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cache folder {cache}: {error.strerror or error}") from error
    _remember(sources, cache)
    if path.exists():
        tensors = _load(path, key)
        if tensors is not None:
            return _edges(structures, tensors, cutoff, k)
    found = _search(structures, cutoff, k, progress)
    _save(path, _tensors(found), key)
    return found


def warn_of_stored_lists(
    structures: Structures,
    cutoff: float | None,
    k: int | None,
    sources: Sequence[Source],
    stacklevel: int = 3,
) -> None:
    """Warn (DataWarning) if other neighbor lists are stored than those that are needed, once for a store.

    Parameters
    ----------
    structures : Structures
        The structures.
    cutoff, k
        What is needed, as in `neighbor_lists`.
    sources : sequence of Source
        The stores.
    stacklevel : int
        As in `warnings.warn`.
    """
    stored = structures.edges
    if stored is not None and stored.reopen is not None and (cutoff, k) not in stored.missed:
        stored.missed.add((cutoff, k))  # parts of a store have the same table
        files = ", ".join(source.file for source in sources)
        warnings.warn(
            f"{files}: neighbor lists are stored for cutoff={stored.cutoff:g}, k={stored.k}, and those of "
            f"cutoff={cutoff}, k={k} are needed: they are searched now, and kept in memory while they are "
            f"used; store them with\n  molequi prepare … --cutoff {'all' if cutoff is None else cutoff}",
            DataWarning,
            stacklevel=stacklevel,
        )


def _search(structures: Structures, cutoff: float | None, k: int | None, progress: bool) -> Edges:
    """Neighbor lists, searched in blocks, so that those of a block are the only ones in full precision."""
    blocks = []
    bare = structures.with_edges(None).with_targets(())
    with ProgressBar("neighbors", len(structures), unit="structure", show=progress, delay=3) as bar:
        for start in range(0, len(structures), _BLOCK):
            graphs = []
            for graph in bare[start : start + _BLOCK]:
                graphs.append(connect(graph, cutoff, k))
                bar.advance()
            blocks.append(edges_of(graphs))
    return joined_edges(blocks)


def _tensors(edges: Edges) -> dict[str, torch.Tensor]:
    """Neighbor lists as the tensors of a file."""
    tensors = {"starts": edges.starts, "edge_index": edges.edge_index[:]}
    for name in ("shift", "shifted"):
        value = getattr(edges, name)
        if value is not None:
            tensors[name] = value[:]
    return tensors


def _edges(
    structures: Structures, tensors: Mapping[str, torch.Tensor], cutoff: float | None, k: int | None
) -> Edges:
    """Neighbor lists of a file. Features of edges are those of the pairs of the structures."""
    edges = Edges(
        tensors["starts"],
        tensors["edge_index"],
        tensors.get("shift"),
        tensors.get("shifted"),
        float("inf") if cutoff is None else float(cutoff),
        k,
        None,
    )
    if structures.field("pair_attr") is None:
        return edges
    found = [on_edges(g, g.edge_index) for g in structures.with_edges(edges) if g.edge_index is not None]
    return replace(edges, edge_attr=torch.cat([f for f in found if f is not None]))


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    parts: list[bytes | str] = []
    for name in sorted(tensors):
        t = tensors[name].contiguous()
        parts += [f"{name} {t.dtype} {tuple(t.shape)}", t.numpy().tobytes()]
    return sha256(parts)


def _save(path: Path, tensors: dict[str, torch.Tensor], key: str) -> None:
    from safetensors.torch import save

    content = save(
        {k: v.contiguous() for k, v in tensors.items()}, metadata={"key": key, "digest": _digest(tensors)}
    )
    write_file(path, content, error=DataError)


def _load(path: Path, key: str) -> dict[str, torch.Tensor] | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("key") == key and metadata.get("digest") == _digest(tensors):
            return tensors
        reason = "its digest does not match its content"
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error)
    warnings.warn(f"{path}: damaged neighbor cache ({reason}); it is made again", DataWarning, stacklevel=4)
    return None


def _remember(sources: Sequence[Source], cache: Path) -> None:
    """Note how many frames each file had, and warn if there are fewer now.

    A file that was cut off at the end of a frame can be found in no other way.
    """
    path = cache / "sources.json"
    try:
        past = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        past = {}
    past = past if isinstance(past, dict) else {}
    for source in sources:
        name = str(Path(source.file).resolve())
        before = past.get(name)
        if (
            isinstance(before, dict)
            and isinstance(before.get("frames"), int)
            and source.frames < before["frames"]
        ):
            warnings.warn(
                f"{source.file}: {source.frames} frames, {before['frames']} when it was last prepared: was "
                "it cut off?",
                DataWarning,
                stacklevel=5,
            )
        past[name] = {"frames": source.frames, "sha256": source.sha256}
    write_file(path, json.dumps(past, indent=1), error=DataError)
