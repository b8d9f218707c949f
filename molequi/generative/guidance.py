"""Guidance of samples by a property that a model predicts."""

import math
import os
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Gt
from torch import Tensor

from molequi.errors import ConfigError, did_you_mean
from molequi.generative.coupling import centered
from molequi.generative.flow import Flow
from molequi.generative.pairs import connected
from molequi.graph import Graph
from molequi.model import Model
from molequi.quantities import SYMBOLS
from molequi.util.options import Options

LONGEST = (
    2.0  # Å per unit of time by which an atom is pushed at most; the whole path has the length of a molecule
)


@dataclass(frozen=True)
class Guidance(Options):
    """Pushes samples towards a value of a property.

    The velocity of a flow conditioned on y differs from that without by σ² (1 - t)/t ∇ log p(y | x) (Zheng et
    al. 2023, arXiv 2311.13443, for straight paths from noise of variance σ²). Here log p(y | x) is
    -strength (f(x̂) - y)²/2 at the expected end x̂ of the path, and f the prediction of a model.

    This is approximate. The formula holds for noise that is independent of the structures, and training
    couples both by optimal transport. The gradient is that with respect to x̂: its derivative ∂x̂/∂x is left
    out. Elements are guided only through positions. The pushes of a structure are shortened together so that
    none exceeds 2 Å per unit of time, since far from the training data of f its gradient means nothing. A
    flow without noise (σ = 0, as "relaxation" has by default) cannot be guided.

    Parameters
    ----------
    model : Model or path
        The model, which knows the elements of the samples.
    quantity : str
        The property: a scalar per graph.
    target : float
        y, in the unit of the property.
    strength : float, > 0
        Inverse of the variance that the property may have, in its unit.

    Raises
    ------
    ConfigError
        If the model does not predict the property or lacks elements, or the flow has no noise.
    """

    model: Any
    quantity: str
    target: float
    strength: Annotated[float, Gt(0)] = 10.0

    def problem(self) -> str:
        """What is wrong with the values together."""
        if not isinstance(self.model, (Model, str, os.PathLike)):
            return f"model={self.model!r}: wanted a Model or a model file"
        return "" if math.isfinite(self.target) else f"target={self.target}: wanted a number"

    def push(self, flow: Flow, elements: tuple[int, ...], device: torch.device) -> "Push":
        """The guidance of samples of a flow.

        Parameters
        ----------
        flow : Flow
            The flow.
        elements : tuple of int
            Elements of the samples.
        device : torch.device
            Where the samples are.
        """
        from molequi.checkpoint import load

        if flow.scale == 0:
            raise ConfigError(
                "Guidance: has no effect on a flow without noise, by whose variance it is multiplied; train "
                "one on paths(…, scale=0.1), or leave guidance out"
            )
        model = self.model if isinstance(self.model, Model) else load(self.model)
        if not isinstance(model, Model):
            raise ConfigError(f"Guidance.model: found {type(model).__name__}; wanted a single Model")
        known = model.quantities
        if self.quantity not in known:
            raise ConfigError(
                f"Guidance.quantity: the model does not predict {self.quantity!r}"
                f"{did_you_mean(self.quantity, known)}"
            )
        what = known[self.quantity]
        if what.per != "graph" or what.rank or what.classes:
            raise ConfigError(f"Guidance.quantity: {self.quantity!r} is no scalar of a whole structure")
        lacking = [SYMBOLS[z] for z in elements if z not in model.elements]
        if lacking:
            raise ConfigError(
                f"Guidance.model: it does not know {', '.join(lacking)}, which samples have; train it on "
                "data with these elements"
            )
        return Push(self, flow, model.predicting([self.quantity]).to(device).eval())


class Push:
    """Adds the guidance to velocities.

    Parameters
    ----------
    guidance : Guidance
        What is wanted.
    flow : Flow
        The flow.
    model : Model
        The model that predicts the property.
    """

    def __init__(self, guidance: Guidance, flow: Flow, model: Model) -> None:
        self.guidance, self.flow, self.model = guidance, flow, model

    def __call__(self, expected: Graph, time: Tensor, velocity: Tensor) -> Tensor:
        """The guided velocity.

        Parameters
        ----------
        expected : Graph
            Structures at the expected ends of the paths.
        time : Tensor, shape (G,)
            The time.
        velocity : Tensor, shape (N, 3)
            The velocity without guidance.
        """
        t = time[expected.batch, None]
        if float(time.max()) == 0.0:
            return velocity
        with torch.enable_grad():
            pos = expected.pos.detach().requires_grad_()
            plain = expected.without("edge", "pair").replace(pos=pos, x=None, vec=None, targets={})
            value = self.model(connected(plain, self.model), create_graph=True)[self.guidance.quantity]
            error = (value.double() - self.guidance.target).square().sum() / 2
            (slope,) = torch.autograd.grad(error, pos)
        push = -self.guidance.strength * self.flow.scale**2 * (1 - t) / t * slope
        push = centered(push, expected.batch, expected.num_graphs)
        length = push.norm(dim=1).new_zeros(expected.num_graphs)
        length = length.scatter_reduce(0, expected.batch, push.norm(dim=1), "amax")
        return velocity + push * (LONGEST / length.clamp(min=LONGEST))[expected.batch, None]
