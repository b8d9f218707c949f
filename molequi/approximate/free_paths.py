"""Free paths of relaxed layers: which can be trained, their gates, and a model without some of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from molequi.errors import ConfigError
from molequi.nn.relaxed import free_groups, relaxed_layers


def open_groups(model: nn.Module, where: str) -> dict[str, list[nn.Parameter]]:
    """The free weights of a relaxed model by layer and irrep, if all their gates are open.

    Parameters
    ----------
    model : nn.Module
        The model.
    where : str
        Beginning of error messages.

    Returns
    -------
    dict of str to list of nn.Parameter
        Groups of `molequi.nn.relaxed.free_groups` that have parameters.

    Raises
    ------
    ConfigError
        If there are no free paths. Also if a gate θ c is zero, because then the free weights have no
        gradient.
    """
    groups = {name: group for name, group in free_groups(model).items() if group}
    if not groups:
        kind = type(getattr(model, "backbone", model)).__name__
        raise ConfigError(
            f"{where}: {kind} has no free paths, so that its equivariance is fixed; take a relaxed backbone, "
            "such as RelaxedEGNN or RelaxedNequIP"
        )
    for name, layer in relaxed_layers(model):
        if float(layer.free.detach()) == 0:
            raise ConfigError(
                f"{where}: the free path of {name} is closed (c = {float(layer.c.detach()):g}, theta = "
                f"{float(layer.theta):g}), so that its weights have no gradient; open it with c above zero "
                "and set_theta(model, 1.0)"
            )
    return groups


def gates(model: nn.Module) -> set[int]:
    """The ``id`` of the gates a, b, c of all relaxed layers."""
    return {id(gate) for _, layer in relaxed_layers(model) for gate in (layer.a, layer.b, layer.c)}


@contextmanager
def zeroed(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Set parameters to zero inside a ``with`` block, and restore them afterwards."""
    kept = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            for p in parameters:
                p.zero_()
        yield
    finally:
        with torch.no_grad():
            for p, before in zip(parameters, kept):
                p.copy_(before)
