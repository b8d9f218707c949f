"""`sample`: structures from a trained flow."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from molequi.checkpoint import load
from molequi.errors import ConfigError, DataError, ModelError
from molequi.generative.coupling import centered
from molequi.generative.flow import HIDDEN, Flow, Seed
from molequi.generative.guidance import Guidance, Push
from molequi.generative.integrate import Integrator, Sampler, own_draws
from molequi.generative.kept import Kept, weights_digest
from molequi.generative.samples import Samples, check_file
from molequi.graph import Graph, collate, separate
from molequi.model import Model
from molequi.quantities import SYMBOLS
from molequi.readers.load import load_dataset
from molequi.util.devices import as_device
from molequi.util.files import sha256
from molequi.util.options import as_options
from molequi.util.progress import ProgressBar
from molequi.util.signals import catch_signals, stop_process
from molequi.util.signature import check_call, check_keywords

REMASKING = 10.0
ATTEMPTS = 8  # of a conformer, until it has the stereochemistry of its molecule


@dataclass(frozen=True)
class _Wanted:
    """One structure to sample: noise without positions, or the unrelaxed structure; and its name."""

    graph: Graph
    name: str = ""
    mol: Any = None


@check_keywords()
def sample(
    model: Model | str | os.PathLike[str],
    what: Any = 100,
    *,
    each: Annotated[int, Gt(0)] = 1,
    steps: Annotated[int, Gt(0)] = 100,
    integrator: Integrator = "euler",
    atoms: Annotated[int, Gt(0)] | None = None,
    remasking: Annotated[float, Ge(0)] | None = None,
    guidance: Guidance | None = None,
    seed: Seed = 0,
    batch_size: Annotated[int, Gt(0)] = 100,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    device: str = "auto",
    progress: bool = True,
) -> Samples:
    """Generate structures with a model that was trained by flow matching, see `molequi.generative`.

    A conformer with another stereochemistry than its molecule is drawn again, at most seven times; `Samples`
    says how many are wrong nevertheless. Every structure has random numbers of its own, by the seed and its
    number. On one machine the same call gives the same structures bit for bit. With `out`, finished batches
    are kept beside the file: the same call continues after an interruption.

    Parameters
    ----------
    model : Model or path
        A model of such a training, or its file or folder.
    what : int or structures
        For "molecules": how many. For "conformers": SMILES, a list of SMILES or RDKit molecules, a file of
        them, or data with a column ``smiles``. For "relaxation": unrelaxed structures, as `load_dataset`
        takes them.
    each : int
        For "conformers" and "relaxation": number of samples of each.
    steps : int
        Number of steps.
    integrator : {"euler", "heun"}
        "heun" evaluates the network twice a step, except in the last one.
    atoms : int, optional
        For "molecules": number of atoms of each. None: drawn from those of the training data.
    remasking : float, optional
        For "molecules": rate η per unit of time at which elements that were decided are hidden again, so that
        the network can correct itself (Wang et al. 2025, arXiv 2503.00307). None: 10.
    guidance : Guidance, optional
        A property that the samples should have.
    seed : int
        Seed of the noise.
    batch_size : int
        Number of structures that are sampled together.
    out : path, optional
        File: .sdf, .xyz or .extxyz.
    overwrite : bool
        Replace `out` if it exists.
    device : {"auto", "cpu", "cuda", "cuda:1"}
        Where the model runs.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Samples
        The structures in the order of `what`; printed, a summary.

    Raises
    ------
    ModelError
        If the model was not trained on paths, or positions become infinite.
    ConfigError, DataError
        If `what` does not fit the task of the model, for values out of range and options without effect, and
        if `out` exists or cannot be written.
    KeyboardInterrupt, SystemExit
        For Ctrl-C and SIGTERM, after the step is finished.

    Examples
    --------
    >>> import molequi as mq
    >>> water = mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
    >>> data = mq.generative.paths([water] * 8, "molecules")
    >>> inputs = mq.Inputs(node_features=3, node_vectors=1)
    >>> backbone = mq.EGNN(elements=data.elements, cutoff=None, inputs=inputs, channels=8, layers=1)
    >>> model = mq.Model(backbone, [mq.heads.Velocity(), data.quantities["flow_element"]])
    >>> trained = mq.fit(model, data[:6], data[6:], epochs=1, terms=[mq.generative.FlowMatching()],
    ...                  logging={"progress": False}).model
    >>> found = mq.sample(trained, 2, steps=4, progress=False)
    >>> len(found), found[0].num_nodes
    (2, 3)
    """
    given = {"each": each, "steps": steps, "integrator": integrator, "atoms": atoms, "remasking": remasking}
    given |= {"seed": seed, "batch_size": batch_size, "overwrite": overwrite, "progress": progress}
    check_call(sample, given, where="sample", leave_out=("model", "what", "guidance", "out", "device"))
    if not isinstance(model, Model):
        found = load(model)
        if not isinstance(found, Model):
            raise ModelError(f"sample: {model} is {type(found).__name__}; wanted a single model")
        model = found
    flow = Flow.of(model, "sample")
    if remasking is not None and flow.task != "molecules":
        raise ConfigError(
            f"sample.remasking={remasking:g} has no effect: the task is {flow.task!r}, where elements are "
            "given"
        )
    wanted = _wanted(model, flow, what, each, atoms, seed)
    place = as_device(device)
    push = None
    if guidance is not None:
        guidance = as_options(Guidance, guidance, "sample.guidance")
        known = flow.elements or tuple(sorted({z for w in wanted for z in w.graph.z.tolist()}))
        push = guidance.push(flow, known, place)
    if out is not None and check_file(out, flow.task).exists() and not overwrite:
        raise ConfigError(
            f"sample.out={out}: this file exists; choose another name, or replace it with overwrite=True"
        )
    eta = REMASKING if remasking is None else remasking
    plan = _Plan(model.plain().to(place).eval(), flow, steps, integrator, eta, seed, batch_size, push)
    kept = Kept.of(out, plan.model, _digest(wanted), plan.record(guidance))
    graphs = _all(plan, wanted, kept, progress)
    samples = Samples(
        tuple(graphs),
        task=flow.task,
        names=tuple(w.name for w in wanted),
        mols=tuple(w.mol for w in wanted),
        starts=tuple(w.graph for w in wanted) if flow.task == "relaxation" else (),
        wrong=sum(not _is_right(flow, w.graph.replace(pos=g.pos)) for w, g in zip(wanted, graphs)),
    )
    if out is not None:
        samples.write(out)
        kept.remove()
    return samples


@dataclass(frozen=True)
class _Plan:
    """How samples are made."""

    model: Model
    flow: Flow
    steps: int
    integrator: Integrator
    remasking: float
    seed: int
    batch_size: int
    push: Push | None

    def record(self, guidance: Guidance | None) -> dict[str, Any]:
        """Plain values that decide the samples, beside the model and what is sampled."""
        names = ("steps", "integrator", "remasking", "seed", "batch_size")
        guided = None
        if guidance is not None and self.push is not None:
            values = [guidance.quantity, guidance.target, guidance.strength]
            guided = [*values, weights_digest(self.push.model)]
        return {name: getattr(self, name) for name in names} | {"guidance": guided}


def _all(plan: _Plan, wanted: Sequence[_Wanted], kept: Kept, progress: bool) -> list[Graph]:
    """All samples, batch by batch. After a signal the present step is the last one."""
    graphs, steps = list(kept.graphs), plan.steps
    with (
        ProgressBar(
            "sample", len(wanted) * steps, unit="step", show=progress, start=len(graphs) * steps, delay=2.0
        ) as bar,
        catch_signals() as received,
    ):
        while len(graphs) < len(wanted):
            first = len(graphs)
            batch = wanted[first : first + plan.batch_size]
            new: dict[int, Graph] = {}
            missing = list(range(len(batch)))
            for attempt in range(ATTEMPTS):
                sampler = _sampler(plan, batch, missing, first, attempt)
                while sampler.left:
                    sampler.step()
                    bar.advance(len(missing) * (attempt == 0))
                    if received:
                        stop_process(received, kept.advice(first))
                new |= zip(missing, separate(sampler.graph.to("cpu").without("edge")))
                missing = [k for k in missing if not _is_right(plan.flow, new[k])]
                if not missing:
                    break
            plain = [new[k].without("pair").replace(x=None, vec=None, targets={}) for k in range(len(batch))]
            kept.add(plain)
            graphs += plain
        bar.finish()
    return graphs


def wanted_structures(model: Model, flow: Flow, what: Any, seed: int) -> list[Graph]:
    """The structures that `sample` begins with, before the noise.

    Parameters
    ----------
    model : Model
        The model.
    flow : Flow
        Its declaration.
    what : object
        As `sample` takes it.
    seed : int
        Seed of the numbers of atoms.
    """
    return [one.graph for one in _wanted(model, flow, what, 1, None, seed)]


def _digest(wanted: Sequence[_Wanted]) -> str:
    """A digest of what is sampled: all values of the structures."""
    parts: list[bytes | str] = []
    for w in wanted:
        parts.append(f"structure {w.name}")
        for name, value in sorted(({**vars(w.graph), **w.graph.more}).items()):
            if isinstance(value, Tensor):
                parts += [f"{name} {value.dtype} {tuple(value.shape)}", value.contiguous().numpy().tobytes()]
    return sha256(parts)


def _wanted(model: Model, flow: Flow, what: Any, each: int, atoms: int | None, seed: int) -> list[_Wanted]:
    """The structures to sample, each with as many atoms as it gets."""
    if atoms is not None and flow.task != "molecules":
        raise ConfigError(
            f"sample.atoms={atoms}: the task is {flow.task!r}, where structures say it; leave it out"
        )
    if flow.task == "molecules":
        if isinstance(what, bool) or not isinstance(what, int) or what < 1:
            raise ConfigError(
                f"sample: found {str(what)[:60]!r}; this model generates molecules from nothing but their "
                "number: mq.sample(model, 100)"
            )
        if each != 1:
            raise ConfigError(f"sample.each={each} has no effect on molecules; ask for {what * each}")
        sizes = [atoms] * what if atoms is not None else _sizes(flow, what, seed)
        return [_Wanted(Graph.single(torch.zeros(n, 3), torch.full((n,), HIDDEN))) for n in sizes]
    if isinstance(what, int):
        raise ConfigError(
            f"sample: found the number {what}; this model was trained for {flow.task!r} and needs structures"
            + (": mq.sample(model, ['CCO'], each=10)" if flow.task == "conformers" else "")
        )
    found: list[_Wanted] = []
    if flow.task == "conformers":
        from molequi.generative.stereo import graphs_of

        found = [_Wanted(graph, name, mol) for graph, name, mol in graphs_of(what, each)]
    else:
        data = load_dataset(what, only=())
        if data[0].dim != 3:
            raise DataError(f"{data.origins[0]}: {data[0].dim} dimensions; flows are made in 3")
        for graph, origin in zip(data, data.origins):
            found += [_Wanted(graph.without("edge", "pair").replace(targets={}), origin)] * each
    if not found:
        raise DataError(f"sample: found no structures in {str(what)[:60]!r}; wanted at least one")
    for one in found:
        unknown = [z for z in one.graph.z.tolist() if z not in model.elements]
        if unknown:
            raise DataError(f"{one.name}: {SYMBOLS[unknown[0]]} is no element that this model knows")
    return found


def _sizes(flow: Flow, count: int, seed: int) -> list[int]:
    """Numbers of atoms, drawn from the histogram of the training data."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [int(n) for n in flow.sizes]
    weights = torch.tensor(list(flow.sizes.values()), dtype=torch.float64)
    drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
    return [sizes[k] for k in drawn.tolist()]


def _is_right(flow: Flow, graph: Graph) -> bool:
    """Whether a conformer has the stereochemistry of its molecule; True for other tasks."""
    if flow.task != "conformers":
        return True
    from molequi.generative.stereo import right_handed

    return right_handed(graph)


def _sampler(
    plan: _Plan, whole: Sequence[_Wanted], chosen: Sequence[int], first: int, attempt: int
) -> Sampler:
    """The noise of some of the structures of a batch, on its way."""
    flow, device = plan.flow, plan.model.device
    batch = [whole[k] for k in chosen]
    seeds = [(plan.seed * 1_000_003 + first + k) * ATTEMPTS + attempt for k in chosen]
    generators = [torch.Generator().manual_seed(number) for number in seeds]
    graph = collate([w.graph for w in batch])
    drawn = [
        torch.randn(w.graph.num_nodes, 3, generator=g, dtype=torch.float64) for w, g in zip(batch, generators)
    ]
    noise = flow.scale * centered(torch.cat(drawn), graph.batch, graph.num_graphs)
    start: Tensor | None = None
    if flow.task == "relaxation":
        start = graph.pos
        noise = noise + start
    return Sampler(
        plan.model,
        flow,
        graph.replace(pos=noise).to(device),
        steps=plan.steps,
        integrator=plan.integrator,
        draws=own_draws(graph.counts.tolist(), generators),
        remasking=plan.remasking,
        start=None if start is None else start.to(device),
        push=plan.push,
    )
