"""The errors of a training that cannot continue."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from molequi.errors import TrainingError
from molequi.graph import Graph

if TYPE_CHECKING:
    from molequi.training.trainer import Training


def out_of_memory(training: "Training", batch: list[int], graph: Graph | None) -> TrainingError:
    """The error of a step that needs more memory than the device has.

    Parameters
    ----------
    training : Training
        The training.
    batch : list of int
        Numbers of the structures of the batch.
    graph : Graph or None
        This device's share of the batch.
    """
    atoms = "no" if graph is None else graph.num_nodes
    edges = "no" if graph is None or graph.edge_index is None else graph.edge_index.shape[1]
    return TrainingError(
        f"step {training.place.step + 1}: out of memory with a batch of {len(batch)} structures, {atoms} "
        f"atoms and {edges} edges on {training.processes.device}; make batches smaller (batch_size=2, or "
        "batch_size={'edges': 2000})"
    )


def is_of_workers(error: Exception) -> bool:
    """Whether an error says that a process that made batches is no more.

    Parameters
    ----------
    error : Exception
        What PyTorch raised, or the connection to the process.
    """
    return "DataLoader worker" in str(error) or isinstance(error, (ConnectionError, EOFError))


def worker_ended(training: "Training", error: Exception) -> TrainingError:
    """The error of a process that made batches and is no more.

    Parameters
    ----------
    training : Training
        The training.
    error : Exception
        What PyTorch raised, or the connection to the process.
    """
    saved = f"; the state in {training.folder} is whole, and the same call goes on" if training.folder else ""
    reason = (str(error) or type(error).__name__).splitlines()[0][:80]
    return TrainingError(
        f"step {training.place.step + 1}: a process that makes batches has ended ({reason}), most often for "
        f"want of memory; workers=0 makes batches in this process{saved}"
    )


def not_finite(
    training: "Training",
    batch: list[int],
    sums: Tensor,
    known: Tensor,
    norm: Tensor,
    penalties: Mapping[str, Tensor],
) -> TrainingError:
    """The error of a loss or gradient that is not finite; it names the terms of the loss and the structures.

    Parameters
    ----------
    training : Training
        The training.
    batch : list of int
        Numbers of the structures of the batch.
    sums, known : Tensor, shape (T,)
        Sum and number of known components of each of the T terms.
    norm : Tensor, shape ()
        Norm of the gradient.
    penalties : Mapping of str to Tensor
        Numbers of the hooks.
    """
    place, folder = training.place, training.folder
    structures = ", ".join(training.parts["train"].origins[k] for k in batch)
    values = [
        *zip(training.objective.weights, (sums / known.clamp(min=1)).tolist()),
        *((name.removeprefix("train_"), float(value)) for name, value in penalties.items()),
    ]
    terms = ", ".join(f"{name} {value:.4g}" for name, value in values)
    kept = f" The best model so far is in {folder}." if folder and place.best_epoch else ""
    wrong = {
        f"{type(hook).__name__}.penalty is {total:g}"
        for hook, total in zip(training.hooks, training.totals.tolist())
        if not math.isfinite(total)
    }
    kept = "".join(f" {text}: look at this hook first." for text in sorted(wrong)) + kept
    return TrainingError(
        f"step {place.step + 1} (epoch {place.epoch + 1}): the loss is not finite ({terms}; norm of the "
        f"gradient {float(norm):.4g}) for the batch of {structures}. Look at these structures, or lower lr "
        f"or clip.{kept}"
    )


def validation_not_finite(training: "Training", batch: list[int], sums: Tensor) -> TrainingError:
    """The error of a validation loss that is not finite; it names its terms and the structures of the batch.

    Parameters
    ----------
    training : Training
        The training, whose epoch is over.
    batch : list of int
        Numbers of the structures of the batch.
    sums : Tensor, shape (T,)
        Sum of each of the T terms.
    """
    structures = ", ".join(training.parts["valid"].origins[k] for k in batch)
    terms = zip(training.objective.weights, sums.tolist())
    bad = [name for name, value in terms if not math.isfinite(value)]
    return TrainingError(
        f"epoch {training.place.epoch}: the validation loss of {', '.join(bad)} is not finite, among "
        f"{structures}. The model cannot predict it there (stress needs a cell, a dipole none), or the "
        "training has diverged: look at these structures, or lower lr"
    )


def left_by_interrupt(training: "Training") -> str:
    """What an interrupt leaves, and how to go on.

    Parameters
    ----------
    training : Training
        The training, whose state was just saved if it has a folder.
    """
    if training.folder is None:
        return "nothing is kept; with out=… the state is saved, and a training continues"
    step = training.place.step
    return f"the state after step {step} is saved in {training.folder}; the same command goes on from there"
