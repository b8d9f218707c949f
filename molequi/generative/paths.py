"""Data for flow matching: points on the paths between noise and structures, with their velocities."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.errors import ConfigError, DataError
from molequi.generative.coupling import centered, couple
from molequi.generative.flow import (
    ELEMENT,
    HIDDEN,
    READING,
    VELOCITY,
    Flow,
    Seed,
    Task,
    inputs_of,
    times_of,
)
from molequi.generative.unrelaxed import RELAXED, Start, load_molecules, unrelaxed
from molequi.graph import Graph, collate, separate
from molequi.neighbors import nearest_images
from molequi.quantities import SYMBOLS
from molequi.readers.load import load_dataset
from molequi.util.signature import check_call, check_keywords

BLOCK = 500  # structures that are joined at once


@dataclass(frozen=True)
class Ends:
    """Where paths end, as `draw` takes it.

    Parameters
    ----------
    graph : Graph
        Structures with centered positions and their elements.
    start : Tensor, shape (N, 3), optional
        Positions of the unrelaxed structures, for "relaxation".
    """

    graph: Graph
    start: Tensor | None = None


def draw(flow: Flow, ends: Ends, generator: torch.Generator, *, coupled: bool = True) -> Graph:
    """Points on paths to given ends, at random times from random noise, with inputs and labels.

    The path is straight: x_t = (1 - t) x_0 + t x_1, its velocity x_1 - x_0 (Lipman et al. 2022, arXiv
    2210.02747, with σ_min = 0). The element of an atom is hidden with the probability 1 - t (Campbell et al.
    2024, arXiv 2402.04997, section 4).

    Parameters
    ----------
    flow : Flow
        The declaration.
    ends : Ends
        The ends.
    generator : torch.Generator
        The random numbers.
    coupled : bool
        Couple noise and structures by optimal transport.

    Returns
    -------
    Graph
        The points. Labels are the velocity, and for "molecules" the elements that are hidden.
    """
    graph, batch, count = ends.graph, ends.graph.batch, ends.graph.num_graphs
    end = graph.pos
    noise = torch.randn(end.shape, generator=generator, dtype=end.dtype)
    time = flow.end * torch.rand(count, generator=generator, dtype=end.dtype)
    noise = flow.scale * centered(noise, batch, count)
    if flow.task == "relaxation":
        assert ends.start is not None
        noise = noise + ends.start
    elif coupled:
        noise = couple(noise, end, batch, count, alike_of(flow, graph))
    t = time[batch, None]
    targets = {VELOCITY: end - noise}
    state = graph.replace(pos=noise + t * (end - noise), targets={}, edge_index=None)
    if flow.task == "molecules":
        hidden = torch.rand(len(end), generator=generator, dtype=end.dtype) >= t[:, 0]
        targets[ELEMENT] = torch.where(hidden, _class_of(flow, graph.z).to(end.dtype), math.nan)
        state = state.replace(z=torch.where(hidden, HIDDEN, graph.z))
    return inputs_of(flow, state, time, start=ends.start).replace(targets=targets)


def ends_of(flow: Flow, graph: Graph) -> Ends:
    """The ends of the paths on which states with labels lie.

    Parameters
    ----------
    flow : Flow
        The declaration.
    graph : Graph
        What `draw` returned.
    """
    way = graph.targets[VELOCITY] * (1 - times_of(graph))[graph.batch, None]
    start = None
    if flow.task == "relaxation" and graph.vec is not None:
        start = graph.pos + graph.vec[:, -1]
    fixed = graph.x if flow.task == "conformers" else None  # its last columns stay
    whole = graph.without("edge").replace(pos=graph.pos + way, targets={}, x=fixed, vec=None)
    if flow.task == "molecules":
        label = graph.targets[ELEMENT]
        table = torch.tensor(flow.elements, device=label.device)
        whole = whole.replace(z=torch.where(label.isnan(), graph.z, table[label.nan_to_num().long()]))
    return Ends(whole, start)


def alike_of(flow: Flow, graph: Graph) -> Tensor | None:
    """Atoms that may change places, by equal numbers; None if none may.

    All hidden atoms are alike. With a molecular graph, atoms of one element with a single bond to the same
    atom are, such as the hydrogens of a methyl group: exchanging them leaves the graph and the density of its
    geometries as they are.
    """
    if flow.task == "molecules":
        return torch.zeros_like(graph.z)
    if flow.task == "conformers":
        from molequi.generative.stereo import ends_of_bonds

        return ends_of_bonds(graph)
    return None


def _class_of(flow: Flow, z: Tensor) -> Tensor:
    table = torch.full((len(SYMBOLS),), -1, device=z.device)
    table[list(flow.elements)] = torch.arange(len(flow.elements), device=z.device)
    return table[z]


def paths(
    data: Any,
    task: Task,
    *,
    scale: Annotated[float, Ge(0)] | None = None,
    relaxed: str = "relaxed",
    self_conditioning: bool = True,
    like: Dataset | None = None,
    seed: Seed = 0,
    **options: Any,
) -> Dataset:
    """Data for flow matching: each structure becomes a random point on a path that ends at it.

    The result is an ordinary Dataset with labels, the velocity ``flow_velocity`` and for "molecules" the
    hidden elements ``flow_element``. So `mq.fit` trains on it, and `mq.evaluate` and `mq.audit` take it. The
    term `FlowMatching` of a training draws new points in every step; validation data keep theirs.

    Parameters
    ----------
    data : Dataset or what `load_dataset` takes
        The structures, in three dimensions and not periodic; "relaxation" takes periodic ones, too.
    task : {"molecules", "conformers", "relaxation"}
        What is generated. "molecules": elements and positions from nothing but the number of atoms.
        "conformers": positions for a molecular graph; the data have SMILES in a column ``smiles`` of their
        info or are RDKit molecules, see `molequi.generative.stereo`. "relaxation": relaxed positions from
        unrelaxed ones.
    scale : float, optional
        Standard deviation of the noise in Å. None: that of the centered positions; for "relaxation" 0.
    relaxed : str
        For "relaxation": name of the quantity with the relaxed positions of each atom.
    self_conditioning : bool
        Whether the network reads its own earlier estimate of the end, see `Flow`.
    like : Dataset, optional
        Paths whose scale, elements and self-conditioning these get, as those of validation data.
    seed : int
        Seed of the points.
    **options
        Options of the reader, if `data` are files.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        If structures are periodic, have another dimension, lack what the task needs, or have elements that
        those of `like` lack.
    ConfigError
        For values out of range, options without effect, and data that no flow can be made of, see `Flow`.

    Examples
    --------
    >>> import molequi as mq
    >>> water = mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
    >>> points = paths([water] * 4, "molecules")
    >>> list(points.quantities), points.reading["flow"]["elements"]
    (['flow_velocity', 'flow_element'], [1, 8])
    >>> points.elements  # 0 is an atom whose element is hidden
    (0, 1, 8)
    """
    given = {"task": task, "scale": scale, "relaxed": relaxed, "seed": seed}
    given["self_conditioning"] = self_conditioning
    check_call(paths, given, where="paths", leave_out=("data", "like"))
    if task != "relaxation" and relaxed != "relaxed":
        raise ConfigError(f"paths.relaxed={relaxed!r} has no effect: the task is {task!r}; leave it out")
    if like is not None and (scale is not None or not self_conditioning):
        raise ConfigError("paths: scale and self_conditioning are those of like; leave them out")
    found = _loaded(data, task, relaxed, options)
    first = found[0]
    if first.dim != 3:
        raise DataError(f"{found.origins[0]}: {first.dim} dimensions; flows are made in 3")
    if first.pbc is not None and task != "relaxation":
        raise DataError(
            f"{found.origins[0]} is periodic; molecules and conformers are generated in open space, and only "
            "task='relaxation' takes cells"
        )
    graphs, starts = _ends(found, task, relaxed)
    sizes = _sizes(found) if task == "molecules" else {}
    if like is not None:
        flow = replace(Flow.of(like.reading, "paths.like"), sizes=sizes)
        if flow.task != task:
            raise ConfigError(f"paths.like: paths of {flow.task!r}; wanted those of {task!r}")
    else:
        if scale is None:
            scale = 0.0 if task == "relaxation" else _spread(graphs)
        elements = found.elements if task == "molecules" else ()
        flow = Flow(
            task=task, scale=scale, self_conditioning=self_conditioning, elements=elements, sizes=sizes
        )
    possible = {"elements": [HIDDEN, *flow.elements]} if task == "molecules" else {}
    if foreign := [SYMBOLS[z] for z in found.elements if possible and z not in flow.elements]:
        raise DataError(
            f"these data have {', '.join(foreign)}, which the paths of like lack; leave such structures out"
        )
    generator = torch.Generator().manual_seed(seed)
    points: list[Graph] = []
    for first_of in range(0, len(graphs), BLOCK):
        chosen = slice(first_of, first_of + BLOCK)
        start = torch.cat(starts[chosen]) if starts else None
        points += separate(draw(flow, Ends(collate(graphs[chosen]), start), generator))
    return Dataset(
        points,
        quantities=flow.quantities,
        info=found.info,
        origins=found.origins,
        sources=found.sources,
        reading={**found.reading, READING: flow.record(), **possible},
        allow=found.allow,
    )


def _loaded(data: Any, task: Task, relaxed: str, options: dict[str, Any]) -> Dataset:
    """The structures; of molecules without their labels, and for conformers with their bonds."""
    if task == "conformers":
        return load_molecules(data, **options)
    return load_dataset(data, only=(relaxed,) if task == "relaxation" else (), **options)


def _ends(found: Dataset, task: Task, relaxed: str) -> tuple[list[Graph], list[Tensor]]:
    """Structures at the ends, centered, and the positions of the unrelaxed ones."""
    if task == "conformers":
        from molequi.generative.stereo import with_graphs

        return with_graphs(found), []
    if task == "molecules":
        return [Graph.single(g.pos - g.pos.mean(0), g.z) for g in found], []
    if relaxed not in found.quantities or found.quantities[relaxed].per != "node":
        raise DataError(
            f"{found.origins[0]}: no relaxed positions {relaxed!r}; found "
            f"{', '.join(found.quantities) or 'none'}; name them: keys={{'{relaxed}': 'column'}}, "
            f"quantities=[mq.Quantity('{relaxed}', per='node', rank=1, point=True)]"
        )
    ends, starts = [], []
    for g in found:
        way = g.targets[relaxed] - g.pos
        if g.pbc is not None and g.cell is not None:  # the nearest image, also in skewed cells and slabs
            way = nearest_images(way, g.cell[0], g.pbc[0])
        way = way - way.mean(0)  # a common translation of all atoms is no relaxation
        ends.append(g.without("edge", "pair").replace(pos=g.pos + way, targets={}))
        starts.append(g.pos)
    return ends, starts


def _spread(graphs: Sequence[Graph]) -> float:
    """Root mean square component of centered positions."""
    pos = torch.cat([g.pos for g in graphs])
    return round(float(pos.square().mean().sqrt()), 3)


def _sizes(data: Dataset) -> Mapping[str, int]:
    """How many structures have so many atoms."""
    numbers, counts = torch.as_tensor(data.counts).unique(return_counts=True)
    return {str(n): c for n, c in zip(numbers.tolist(), counts.tolist())}


@check_keywords()
def read_paths(
    path: Any,
    task: Task,
    *,
    index: str | int | slice = ":",
    part: str | None = None,
    keys: Mapping[str, Any] | None = None,
    relaxed: str = "relaxed",
    start: Start | None = None,
    size: Annotated[float, Gt(0)] | None = None,
    scale: Annotated[float, Ge(0)] | None = None,
    self_conditioning: bool = True,
    seed: Seed = 0,
) -> Dataset:
    """Read a file and make the data for flow matching; a run file calls this reader ``paths``.

    Parameters
    ----------
    path : path
        A file that `load_dataset` takes.
    task : {"molecules", "conformers", "relaxation"}
        As in `paths`.
    index, part, keys : optional
        As the reader of the file takes them.
    start : {"distorted", "mmff"}, optional
        For "relaxation" of a file that has relaxed structures alone: how `unrelaxed` makes the others.
    size : float, optional
        For "distorted": standard deviation of each component of the displacements in Å; None: 0.15.
    relaxed, scale, self_conditioning, seed
        As in `paths`.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError, ConfigError
        As `paths` and the reader of the file.
    """
    options: dict[str, Any] = {"part": part, "keys": dict(keys) if keys else None}
    options |= {} if index == ":" else {"index": index}
    if start is not None and task != "relaxation":
        raise ConfigError(f"paths.start={start!r} has no effect: the task is {task!r}; leave it out")
    if start is not None and relaxed != RELAXED.name:
        raise ConfigError(f"paths.relaxed={relaxed!r} has no effect with start={start!r}; leave it out")
    if size is not None and start != "distorted":
        raise ConfigError(f"paths.size={size!r} has no effect without start='distorted'; leave it out")
    if task == "relaxation" and start is None:
        options["quantities"] = [replace(RELAXED, name=relaxed)]
    given = {name: value for name, value in options.items() if value is not None}
    if start is not None:
        given |= {} if size is None else {"size": size}
        path, given = unrelaxed(path, start, seed=seed, **given), {}
    return paths(
        path, task, scale=scale, relaxed=relaxed, self_conditioning=self_conditioning, seed=seed, **given
    )
