"""Hessian-vector products in the loss: what a training predicts and reads, and a model does not keep."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch

from molequi.data.dataset import Dataset
from molequi.errors import ConfigError
from molequi.gradients import DIRECTIONS, PRODUCTS
from molequi.graph import Graph
from molequi.model import Model
from molequi.quantities import KNOWN
from molequi.training.options import TrainingOptions
from molequi.training.result import Result
from molequi.util.seeding import own_random_numbers

_OWN = ("energy_slope", PRODUCTS)
_H = 1e-5  # length of the step in the space of the weights
_HOW = "mq.add_hessian_products(data, calculator) makes them"


def with_products(model: Model, options: TrainingOptions) -> Model:
    """The model that is trained: with Hessian-vector products if the loss has a term of them.

    Parameters
    ----------
    model : Model
        The user's model.
    options : TrainingOptions
        All options.

    Returns
    -------
    Model
        The model itself, or one that shares its weights.

    Raises
    ------
    ConfigError
        If the model has no energy, or if it is compiled: compiled functions are differentiated once only.
    """
    losses = options.loss if isinstance(options.loss, tuple) else ()
    if PRODUCTS in model.quantities or not any(t.label == PRODUCTS and t.weight for t in losses):
        return model
    if "energy" not in model.quantities:
        raise ConfigError(
            f"loss.{PRODUCTS}: products of the Hessian are derivatives of an energy, and the model predicts "
            f"{', '.join(model.quantities)}; add 'energy' to predict"
        )
    if options.compute.accelerate or model.program is not None:
        raise ConfigError(
            f"loss.{PRODUCTS} and {'compute.accelerate' if options.compute.accelerate else 'mq.accelerate'}: "
            "a compiled model is differentiated once, and this loss needs third derivatives; leave one of "
            "them out"
        )
    return model.predicting([*model.quantities.values(), *(KNOWN[name] for name in _OWN)])


def without_products(model: Model) -> Model:
    """The same model without Hessian-vector products, as its file has it.

    Parameters
    ----------
    model : Model
        What was trained.
    """
    if PRODUCTS not in model.quantities:
        return model
    return model.predicting([q for name, q in model.quantities.items() if name not in _OWN])


def returned(result: Result, model: Model) -> Result:
    """The result with the user's own model, which has the best weights.

    Parameters
    ----------
    result : Result
        What the training returned.
    model : Model
        The user's model.
    """
    if result.model is model:
        return result
    kept = without_products(result.model)
    for name in ("backbone", "heads", "terms", "metadata"):
        setattr(model, name, getattr(kept, name))
    return replace(result, model=model.train(result.model.training))


def directed(data: Mapping[str, Dataset], model: Model) -> dict[str, Dataset]:
    """The data with a direction for each structure, if the model predicts Hessian-vector products.

    Parts without labels of them, other than the training data, get directions that are zero; the term of the
    loss and the error leave them out.

    Parameters
    ----------
    data : mapping of str to Dataset
        The data by part.
    model : Model
        What is trained.

    Raises
    ------
    ConfigError
        If the training data have no labels, or labels without directions.
    """
    if PRODUCTS not in model.quantities:
        return dict(data)
    found = {}
    for part, own in data.items():
        labelled = own.labelled(PRODUCTS)
        if labelled and own.graphs.field(DIRECTIONS) is None:
            raise ConfigError(
                f"the {part} data have labels of {PRODUCTS} and no {DIRECTIONS!r}, the vectors that were "
                f"multiplied; name them with keys={{{DIRECTIONS!r}: …}}; {_HOW}, too"
            )
        if part == "train" and not labelled:
            raise ConfigError(
                f"loss.{PRODUCTS}: the training data have no labels of {PRODUCTS!r} (they have "
                f"{', '.join(own.quantities) or 'none'}); {_HOW}, or name them with keys={{{PRODUCTS!r}: …, "
                f"{DIRECTIONS!r}: …}}"
            )
        found[part] = own if labelled else _undirected(own)
    return found


def check_derivatives(model: Model, data: Dataset) -> None:
    """Compare the gradient of this term of the loss with a finite difference, for one structure in float64.

    Some operations of torch have wrong derivatives of the third order, without an error; those of the package
    are replaced, and a backbone of your own may have others.

    Parameters
    ----------
    model : Model
        What is trained.
    data : Dataset
        The training data with their edges.

    Raises
    ------
    ConfigError
        If they differ.
    """
    if PRODUCTS not in model.quantities:
        return
    twin = deepcopy(model).cpu().double().train()
    graph = data[int(np.argmax(data.graphs.labelled(PRODUCTS)))]
    weights = [p for p in twin.parameters() if p.requires_grad]
    with own_random_numbers(torch.device("cpu"), 0), torch.enable_grad():
        along = [torch.randn_like(p) for p in weights]
        scale = _H / float(torch.cat([a.flatten() for a in along]).norm())
        slopes = torch.autograd.grad(_square(twin, graph), weights, materialize_grads=True)
        wanted = scale * sum((s * a).sum().item() for s, a in zip(slopes, along))
        ends = []
        for sign in (1, -2):
            with torch.no_grad():
                for p, a in zip(weights, along):
                    p.add_(sign * scale * a)
            ends.append(_square(twin, graph).item())
    found, size = (ends[0] - ends[1]) / 2, abs(ends[0]) + abs(ends[1])
    if abs(found - wanted) > 1e-3 * abs(wanted) + 1e-11 * size:
        raise ConfigError(
            f"loss.{PRODUCTS}: the gradient of this loss with respect to the weights of the "
            f"{type(model.backbone).__name__} is wrong: along one direction {wanted / _H:.6g}, and "
            f"{found / _H:.6g} by a finite difference. An operation inside has wrong third derivatives, as "
            "torch.nn.LayerNorm has; take molequi.nn.LayerNorm, or plain operations of torch"
        )


def _square(model: Model, graph: Graph) -> torch.Tensor:
    return model(graph, create_graph=True)[PRODUCTS].square().sum()


def _undirected(data: Dataset) -> Dataset:
    """The data with directions that are zero."""
    known = ("quantities", "info", "origins", "sources", "found", "unused", "reading", "allow")
    graphs = [graph.replace(**{DIRECTIONS: torch.zeros_like(graph.pos)}) for graph in data]
    return Dataset(graphs, **{name: getattr(data, name) for name in known})
