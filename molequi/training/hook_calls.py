"""Call the hooks of a training, check what they return, and gather what is trained."""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from molequi.errors import ConfigError, TrainingError, TrainingWarning
from molequi.graph import Graph
from molequi.hooks import Batch, Hook, Penalty, Run
from molequi.model import Model


def counts_of(hooks: Sequence[Hook], run: Run, batch: Sequence[int]) -> list[int]:
    """Numbers of nodes of the structures of a batch of the training, if any hook may want them.

    Parameters
    ----------
    hooks : Sequence of Hook
        The hooks.
    run : Run
        The training.
    batch : Sequence of int
        Numbers of the structures.
    """
    return [int(count) for count in run.parts["train"].counts[list(batch)]] if hooks else []


def transformed(hooks: Sequence[Hook], run: Run, batch: Sequence[int], graph: Graph, number: int) -> Graph:
    """The batch of this device as the hooks change it, in their order.

    Parameters
    ----------
    hooks : Sequence of Hook
        The hooks.
    run : Run
        The training.
    batch : Sequence of int
        Numbers of the structures of the whole batch.
    graph : Graph
        This device's share with its labels.
    number : int
        Number of the step.

    Raises
    ------
    ConfigError
        If a hook returns something else than None or a Graph with the labels of the batch.
    """
    changing = [hook for hook in hooks if type(hook).transform is not Hook.transform]
    counts = counts_of(changing, run, batch)
    for hook in changing:
        found = hook.transform(run, Batch(number, counts, graph, None))
        if found is None:
            continue
        if not isinstance(found, Graph) or found.targets.keys() != graph.targets.keys():
            labels = f" with the labels {sorted(found.targets)}" if isinstance(found, Graph) else ""
            raise ConfigError(
                f"{type(hook).__name__}.transform: found {type(found).__name__}{labels}; wanted None, or a "
                f"Graph with the labels {sorted(graph.targets)}, such as batch.graph.replace(…)"
            )
        graph = found
    return graph


def penalty_of(hook: Hook, run: Run, batch: Batch) -> Penalty | None:
    """What `Hook.penalty` returns, checked.

    Parameters
    ----------
    hook : Hook
        The hook.
    run : Run
        The training.
    batch : Batch
        The batch of the step with its predictions.

    Raises
    ------
    ConfigError
        If it returns something else than a `Penalty` or None, or a total without gradient that is not zero.
    """
    penalty = hook.penalty(run, batch)
    if penalty is not None and not isinstance(penalty, Penalty):
        raise ConfigError(
            f"{type(hook).__name__}.penalty: found {type(penalty).__name__}; wanted Penalty(total) or None, "
            "from molequi.hooks import Penalty"
        )
    if penalty is not None and not penalty.total.requires_grad and float(penalty.total) != 0:
        raise ConfigError(
            f"{type(hook).__name__}.penalty: the total {float(penalty.total):g} has no gradient, so that it "
            "would change nothing; compute it from run.model.parameters() or batch.predictions, without "
            "detach() or float(). Numbers for the log alone are values: "
            "Penalty(torch.zeros(()), {'name': number})"
        )
    return penalty


def penalties_of(
    hooks: Sequence[Hook], run: Run, batch: Batch, zeros: Tensor
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """The penalties of all hooks in a step.

    Parameters
    ----------
    hooks : Sequence of Hook
        The H hooks.
    run : Run
        The training.
    batch : Batch
        The batch of the step with its predictions.
    zeros : Tensor, float64
        A tensor on the device of the training.

    Returns
    -------
    Tensor, shape ()
        What is added to the loss.
    dict of str to Tensor
        Numbers for the log, by column.
    Tensor, shape (H,)
        The penalty of each hook, without gradient.
    """
    values: dict[str, Tensor] = {}
    added, totals = zeros.new_zeros(()), zeros.new_zeros(len(hooks))
    for k, hook in enumerate(hooks):
        penalty = penalty_of(hook, run, batch)
        if penalty is not None:
            added, totals[k] = added + penalty.total, penalty.total.detach()
            values |= {f"train_{hook.name}_{name}": value for name, value in penalty.values.items()}
    return added, values, totals


def numbers_of(hook: Hook, method: str, values: object) -> dict[str, float]:
    """Numbers for the log that a method of a hook returned, checked.

    Parameters
    ----------
    hook : Hook
        The hook.
    method : str
        Name of its method.
    values : object
        What the method returned.

    Raises
    ------
    ConfigError
        If it is no mapping from names to numbers.
    """
    where = f"{type(hook).__name__}.{method}"
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: found {values!r} ({type(values).__name__}); wanted numbers by name")
    numbers = {}
    for name, value in values.items():
        try:
            numbers[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"{where}: {name} is {value!r} ({type(value).__name__}); wanted one number"
            ) from error
    return numbers


def sums_of(hook: Hook, run: Run, model: Model, batch: Batch) -> Tensor | None:
    """What `Hook.validation_sums` returns, checked.

    Parameters
    ----------
    hook : Hook
        The hook.
    run : Run
        The training.
    model : Model
        The model that is validated.
    batch : Batch
        The batch with its predictions.

    Raises
    ------
    ConfigError
        If it returns something else than a tensor or None.
    """
    sums = hook.validation_sums(run, model, batch)
    if sums is not None and not isinstance(sums, Tensor):
        raise ConfigError(
            f"{type(hook).__name__}.validation_sums: found {type(sums).__name__}; wanted a tensor or None"
        )
    return sums


def trained_parameters(hooks: Sequence[Hook], run: Run) -> list[tuple[nn.Parameter, float]]:
    """The parameters that the optimizer changes, each with the factor of its learning rate.

    Parameters
    ----------
    hooks : Sequence of Hook
        The hooks.
    run : Run
        The training, which has no optimizer yet.
    """
    frozen: set[int] = set().union(*(hook.frozen() for hook in hooks))
    rates: Sequence[tuple[nn.Parameter, float]] = [
        (p, 1.0) for p in run.model.parameters() if p.requires_grad and id(p) not in frozen
    ]
    for hook in hooks:
        rates = hook.trained(run, rates)
    return list(rates)


def summed_gradients(parameters: Sequence[nn.Parameter], run: Run) -> list[Tensor]:
    """The gradients of parameters, summed over the devices.

    Parameters
    ----------
    parameters : Sequence of Parameter
        The parameters that the optimizer changes.
    run : Run
        The training.
    """
    if run.share[1] > 1:
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = run.add_up(torch.cat([grad.reshape(-1) for grad in grads]))
        for grad, part in zip(grads, flat.split([grad.numel() for grad in grads])):
            grad.copy_(part.view_as(grad))
    return [p.grad for p in parameters if p.grad is not None]


def validation_losses(hooks: Sequence[Hook], run: Run) -> dict[str, float]:
    """What hooks add to the validation loss, by column.

    Parameters
    ----------
    hooks : Sequence of Hook
        The hooks.
    run : Run
        The training after the validation.

    Raises
    ------
    ConfigError
        If it is no number.
    TrainingError
        If it is not finite.
    """
    model = (run.averaged or run.model).eval()
    found: dict[str, float] = {}
    for hook in hooks:
        value = hook.validation_loss(run, model)
        if value is None:
            continue
        name = f"valid_{hook.name}_loss"
        found |= numbers_of(hook, "validation_loss", {name: value})
        if not math.isfinite(found[name]):
            raise TrainingError(
                f"{name} is {found[name]} after epoch {run.epoch}; take a lower learning rate, or look at "
                "the labels"
            )
    return found


def metadata_of(hook: Hook, report: object) -> dict[str, Any]:
    """What `Hook.metadata` returns, without values that JSON cannot hold; it warns of them.

    Parameters
    ----------
    hook : Hook
        The hook.
    report : object
        What `Hook.report` returned.

    Warns
    -----
    TrainingWarning
        Of values that are left out, so that the end of a training loses nothing else.
    """
    kept = {}
    for name, value in hook.metadata(report).items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            warnings.warn(
                f"{type(hook).__name__}.metadata: {name} is {type(value).__name__}, which JSON cannot hold, "
                "and is left out of the model file; wanted numbers, text, lists and mappings",
                TrainingWarning,
                stacklevel=2,
            )
        else:
            kept[name] = value
    return kept
