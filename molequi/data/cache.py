"""Neighbor lists that are prepared once and kept on disk, as plain tensors with their own digest."""

import json
import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch

from molequi.data.digests import structure_bytes
from molequi.data.sources import Source
from molequi.errors import DataError, DataWarning
from molequi.graph import Graph
from molequi.neighbors import connect, on_edges
from molequi.util.files import sha256, write_file
from molequi.util.progress import ProgressBar

_FORMAT = 1


def connected_graphs(
    graphs: Sequence[Graph],
    cutoff: float | None,
    cache: Path | None,
    k: int | None = None,
    sources: Sequence[Source] = (),
    *,
    progress: bool = True,
) -> list[Graph]:
    """Return graphs with their neighbor lists.

    Parameters
    ----------
    graphs : sequence of Graph
        Single structures.
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
    if cache is None:
        return _connect(graphs, cutoff, k, progress)
    settings = {"format": _FORMAT, "cutoff": cutoff} | ({} if k is None else {"k": k})
    key = sha256(chain([json.dumps(settings)], map(structure_bytes, graphs)))
    path = cache / f"neighbors-{key[:32]}.safetensors"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cache folder {cache}: {error.strerror or error}") from error
    _remember(sources, cache)
    if path.exists():
        tensors = _load(path, key)
        if tensors is not None:
            return _attach(graphs, tensors, k)
    found = _connect(graphs, cutoff, k, progress)
    edges = [g.edge_index for g in found if g.edge_index is not None]
    shifts = [e.new_zeros(e.shape[1], g.dim) if g.shift is None else g.shift for e, g in zip(edges, found)]
    tensors = {
        "counts": torch.tensor([e.shape[1] for e in edges]),
        "edge_index": torch.cat(edges, 1).to(torch.int32),
        "shift": torch.cat(shifts).to(torch.int32),
        "shifted": torch.tensor([g.shift is not None for g in found]),
        "cutoff": torch.tensor([g.cutoff for g in found], dtype=torch.float64),
    }
    _save(path, tensors, key)
    return found


def _connect(graphs: Sequence[Graph], cutoff: float | None, k: int | None, progress: bool) -> list[Graph]:
    out = []
    with ProgressBar("neighbors", len(graphs), unit="structure", show=progress, delay=3) as bar:
        for graph in graphs:
            out.append(connect(graph, cutoff, k))
            bar.advance()
    return out


def _attach(graphs: Sequence[Graph], tensors: Mapping[str, torch.Tensor], k: int | None) -> list[Graph]:
    ends = tensors["counts"].cumsum(0).tolist()
    edges, shift = tensors["edge_index"].long(), tensors["shift"].double()
    return [
        graph.replace(
            edge_index=edges[:, a:b],
            shift=shift[a:b] if shifted else None,
            cutoff=cut,
            k=k,
            edge_attr=None if graph.pair_index is None else on_edges(graph, edges[:, a:b]),
        )
        for graph, a, b, shifted, cut in zip(
            graphs, [0, *ends[:-1]], ends, tensors["shifted"].tolist(), tensors["cutoff"].tolist()
        )
    ]


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
