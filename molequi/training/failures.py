"""What a training says when it cannot go on."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from molequi.errors import TrainingError
from molequi.graph import Graph

if TYPE_CHECKING:
    from molequi.training.trainer import Training


def out_of_memory(training: "Training", batch: list[int], graph: Graph | None) -> TrainingError:
    """The error of a step that needs more memory than there is; `graph` is this device's share of the batch."""
    atoms = "no" if graph is None else graph.num_nodes
    edges = "no" if graph is None or graph.edge_index is None else graph.edge_index.shape[1]
    return TrainingError(
        f"step {training.place.step + 1}: out of memory with a batch of {len(batch)} structures, {atoms} atoms and {edges} "
        f"edges on {training.fabric.device}; make batches smaller (batch_size=2, or batch_size={{'edges': 2000}})"
    )


def not_finite(
    training: "Training",
    batch: list[int],
    sums: Tensor,
    known: Tensor,
    norm: Tensor,
    penalties: Mapping[str, Tensor],
) -> TrainingError:
    """The error of a loss or gradient that is not finite, with the terms of the loss and the structures of the batch."""
    origins, place, folder = training.parts["train"].origins, training.place, training.folder
    values = [
        *zip(training.objective.weights, (sums / known.clamp(min=1)).tolist()),
        *((name.removeprefix("train_"), float(value)) for name, value in penalties.items()),
    ]
    terms = ", ".join(f"{name} {value:.4g}" for name, value in values)
    kept = f" The best model so far is in {folder}." if folder and place.best_epoch >= 0 else ""
    return TrainingError(
        f"step {place.step + 1} (epoch {place.epoch}): the loss is not finite ({terms}; norm of the gradient {float(norm):.4g}) "
        f"for the batch of {', '.join(origins[k] for k in batch)}. Look at these structures, or lower lr or clip.{kept}"
    )


def validation_not_finite(training: "Training", batch: list[int], sums: Tensor) -> TrainingError:
    """The error of a validation loss that is not finite, with its terms and the structures of the batch."""
    terms = zip(training.objective.weights, sums.tolist())
    bad = [name for name, value in terms if not math.isfinite(value)]
    return TrainingError(
        f"epoch {training.place.epoch}: the validation loss of {', '.join(bad)} is not finite, among "
        f"{', '.join(training.parts['valid'].origins[k] for k in batch)}. The model cannot predict it there (stress needs a "
        "cell, a dipole none), or the training has diverged: look at these structures, or lower lr"
    )
