"""What a training will cost, measured on a sample: edges, memory and time of an epoch."""

import time
from collections.abc import Sequence

import numpy as np
import torch

from molequi.data.indexing import evenly_spaced
from molequi.graph import Graph, collate
from molequi.lint.frames import Frames
from molequi.model import Model
from molequi.models import Inputs, PaiNN
from molequi.neighbors import connect
from molequi.quantities import KNOWN
from molequi.util.seeding import own_random_numbers

_SAMPLE, _BATCH, _BATCHES = 40, 5, 3
_BYTES = 2 * 8 + 3 * 8  # of an edge in a neighbor list: two int64, and a shift of three float64


def measured_costs(frames: Frames, cutoff: float, model: Model | None = None) -> dict[str, str]:
    """Edges, memory and time of an epoch, measured on 40 structures from the whole of the data.

    The neighbor lists of these are made, and a model makes steps with three batches of five of them: forward,
    and backward through a loss of all that it predicts. The memory of a step is the sum of all tensors that
    are kept for the backward pass. Times hold for this machine, one process and the number of threads that
    torch uses.

    Parameters
    ----------
    frames : Frames
        The structures.
    cutoff : float
        Cutoff in Å, if there is no model.
    model : Model, optional
        The model that will be trained; by default PaiNN with 64 channels, for energies and forces.

    Returns
    -------
    dict of str to str
        Sentences by their subject.
    """
    if not frames.molecules:
        return {}
    cutoff = cutoff if model is None or model.cutoff is None else model.cutoff
    numbers = evenly_spaced(len(frames), _SAMPLE)
    start = time.perf_counter()
    graphs = [connect(frames.graph(k).without("edge"), cutoff) for k in numbers]
    search = (time.perf_counter() - start) / len(numbers)
    edges = np.array([0 if g.edge_index is None else g.edge_index.shape[1] for g in graphs])
    total, atoms = edges.mean() * len(frames), frames.counts[numbers].sum()
    out = {
        "edges": (
            f"{edges.mean():,.0f} per structure and {edges.sum() / atoms:.1f} per atom within {cutoff:g} Å, "
            f"about {total:,.0f} in all; neighbor lists take {_seconds(search * len(frames))} once and "
            f"{_size(total * _BYTES)}"
        )
    }
    seconds, kept, name = _step(graphs, frames, cutoff, model)
    out["epoch"] = (
        f"{_seconds(seconds * len(frames))} with {name}, in batches of {_BATCH} ({1e3 * seconds:.1f} ms per "
        f"structure on this processor with {torch.get_num_threads()} "
        f"thread{'s' * (torch.get_num_threads() != 1)})"
    )
    out["memory"] = f"{_size(kept)} for a step with {_BATCH} structures, beside the weights"
    return out


def _step(
    graphs: Sequence[Graph], frames: Frames, cutoff: float, model: Model | None
) -> tuple[float, float, str]:
    """Seconds per structure, bytes of the largest batch, and what the model is called."""
    with own_random_numbers(torch.device("cpu"), 0):
        if model is None:
            predict = ["energy", "forces"] if frames.has("forces") else ["energy"]
            inputs = Inputs(
                electric_field=any(g.electric_field is not None for g in graphs),
                charge=all(g.charge is not None for g in graphs),
            )
            backbone = PaiNN(elements=frames.elements, cutoff=cutoff, channels=64, inputs=inputs)
            model, name = (
                Model(backbone, [KNOWN[n] for n in predict]),
                f"PaiNN of 64 channels ({', '.join(predict)})",
            )
        else:
            name = type(model.backbone).__name__
        bare = [g.replace(targets={}) for g in graphs]
        batches = [collate(bare[k : k + _BATCH]) for k in range(0, len(bare), _BATCH)]
        batches = sorted(batches, key=lambda b: 0 if b.edge_index is None else b.edge_index.shape[1])
        chosen = [batches[-1], *batches[:: max(1, len(batches) // _BATCHES)]][: _BATCHES + 1]
        kept = [_kept_bytes(model, chosen[0])]  # also the step that warms up
        start = time.perf_counter()
        for batch in chosen[1:] or chosen:
            _learn(model, batch)
        used = sum(batch.num_graphs for batch in chosen[1:] or chosen)
    return (time.perf_counter() - start) / used, float(max(kept)), name


def _learn(model: Model, batch: Graph) -> None:
    predictions = model(batch, create_graph=True)
    torch.stack([value.square().mean() for value in predictions.values()]).sum().backward()
    model.zero_grad(set_to_none=True)


def _kept_bytes(model: Model, batch: Graph) -> int:
    """Size of the tensors that a step keeps for its backward passes, each storage once."""
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _learn(model, batch)
    return sum(sizes.values())


def _seconds(value: float) -> str:
    """A time in a unit that is easy to read."""
    if value < 120:
        return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def _size(value: float) -> str:
    """A number of bytes in a unit that is easy to read."""
    return f"{value / 1e6:.3g} MB" if value < 1e9 else f"{value / 1e9:.3g} GB"
