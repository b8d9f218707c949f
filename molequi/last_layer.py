"""Laplace approximation of the last layer: standard deviations of one trained model, also of its forces.

An output that is linear in the weights w of the last layer of its head, y = J w + …, has the variance

    s² = c² J (G + λ 1)⁻¹ Jᵀ,      G = Σ_n J_nᵀ J_n / σ²,

if w has the posterior of Bayesian linear regression (Bigi, Chong, Ceriotti and Grasselli, Mach. Learn.: Sci.
Technol. 5, 045018, 2024, arXiv 2403.02251; MacKay, Neural Comput. 4, 448, 1992). J has the features of the
last layer; that of a derivative, such as the forces, has their derivatives. The sum is over the training
labels, σ² is the mean squared error of each quantity on validation data, and c and λ are calibrated there,
see `molequi.laplace`. Terms of the energy beside the heads, such as latent charges, have no part in J.
"""

from collections.abc import Iterator, Mapping
from copy import copy, deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from molequi.ensemble import Ensemble
from molequi.environments import Environments, invariants_of
from molequi.errors import ModelError
from molequi.features import Features
from molequi.gradients import differentiate, with_variables
from molequi.graph import Graph
from molequi.heads import Head, Scalar
from molequi.model import Model, usable
from molequi.models import Backbone
from molequi.quantities import Quantity
from molequi.regular_graphs import regular_if_full
from molequi.util.signature import check_keywords

MOST = 1024  # weights of a last layer; the posterior is a matrix of them
_LINEAR = 1e-3  # how far from linear an output may be, relative to its size, in float32


@check_keywords()
class LaplaceEnsemble(Ensemble):
    """A model with the posterior of its last layers; `molequi.laplace` makes it.

    It predicts what the model predicts, and ``<name>_std`` for each quantity as an `Ensemble` does: one
    number for each row, as root mean square over the components. The standard deviation of what a head
    predicts is that of all directions of the posterior. That of a derivative takes a backward pass for each
    direction: it is estimated with the first `directions` of them.

    Parameters
    ----------
    model : Model
        The trained model, which is copied.
    roots : mapping of str to Tensor
        A matrix R (n, n) for each head, whose n weights of the last layer have the covariance R Rᵀ. Its
        columns are in random directions.
    scales : mapping of str to float
        The factor c of each quantity. A derivative without one has that of its parent.
    directions : int, >= 2
        Columns of R that the derivatives use. They stand for all columns.
    environments : Environments, optional
        The features of the training atoms, for `distances`.

    Raises
    ------
    ModelError
        If the last layer has no such posterior; see `check_head`.

    Examples
    --------
    >>> import molequi as mq
    >>> model = mq.Model(mq.PaiNN(elements=["H"], channels=8, layers=1), ["energy"])
    >>> list(LaplaceEnsemble(model, {"energy": torch.eye(9)}, {}).outputs)
    ['energy', 'energy_std']
    """

    fewest = 1

    def __init__(
        self,
        model: Model,
        roots: Mapping[str, Tensor],
        scales: Mapping[str, float],
        directions: int = 8,
        environments: Environments | None = None,
    ) -> None:
        check_model(model)
        if isinstance(directions, bool) or not isinstance(directions, int) or directions < 2:
            raise ModelError(f"directions is {directions!r}; wanted a whole number from 2")
        super().__init__([model], scales)
        self.directions = directions
        for name, head in model.heads.items():
            size = sum(p.numel() for p in last_layer(head).values())
            root = roots.get(name)
            if root is None or tuple(root.shape) != (size, size):
                found = "none" if root is None else f"one of shape {tuple(root.shape)}"
                raise ModelError(f"roots[{name!r}]: found {found}; wanted a matrix of shape ({size}, {size})")
            self.register_buffer(f"root_{name}", root.detach().to(model.device, model.dtype).clone())
        self.environments = deepcopy(environments)
        if self.environments is not None:
            self.environments.to(model.device, model.dtype)
        self.eval()

    def predicting(self, items: Any) -> "LaplaceEnsemble":
        """A model that shares the weights and the posterior and predicts other quantities."""
        view = super().predicting(items)
        assert isinstance(view, LaplaceEnsemble)
        _check_quantities(view._models[0])
        kept = {f"root_{name}" for name in view.heads}
        view._buffers = {name: root for name, root in self._buffers.items() if name in kept}
        return view

    @property
    def hparams(self) -> dict[str, Any]:
        """Hyperparameters of the model, the scales, the number of directions, and sizes of `environments`."""
        known = None if self.environments is None else self.environments.hparams
        return super().hparams | {"directions": self.directions, "environments": known}

    @classmethod
    def from_hparams(
        cls,
        hparams: Mapping[str, Any],
        *,
        backbones: Mapping[str, type[Backbone]] | None = None,
        heads: Mapping[str, type[Head]] | None = None,
    ) -> "LaplaceEnsemble":
        """The model of these hyperparameters without its weights and posterior.

        Parameters
        ----------
        hparams : mapping
            As `hparams` gives them.
        backbones, heads : mapping of str to class, optional
            Your own classes by name, as in `Model.from_hparams`.
        """
        model = Model.from_hparams(hparams, backbones=backbones, heads=heads)
        sizes = {n: sum(p.numel() for p in last_layer(head).values()) for n, head in model.heads.items()}
        roots = {name: torch.zeros(size, size) for name, size in sizes.items()}
        known = hparams.get("environments")  # files of before have none
        environments = None if known is None else Environments(**known)
        return cls(model, roots, hparams["scales"], hparams["directions"], environments)

    def calibrated(self, factors: Mapping[str, float]) -> "LaplaceEnsemble":
        """A copy whose standard deviations are multiplied by factors, see `Ensemble.calibrated`."""
        scales = self.scales | {name: self.scale_of(name) * factor for name, factor in factors.items()}
        new = LaplaceEnsemble(self._models[0], self.roots, scales, self.directions, self.environments)
        changes = {n: new.scale_of(n) / self.scale_of(n) for n in self.quantities}
        new.metadata = dict(self.metadata)
        if "laplace" in self.metadata:
            new.metadata["laplace"] = _rescaled(self.metadata["laplace"], changes)
        return new

    @property
    def mean_model(self) -> Model:
        """The trained model, which predicts the same without standard deviations; it shares the weights."""
        view = copy(self._models[0])
        known = dict(getattr(view, "metadata", None) or {}) | self.metadata  # a file has those of the whole
        view.metadata = {name: record for name, record in known.items() if name != "laplace"}
        return view

    @property
    def roots(self) -> dict[str, Tensor]:
        """The matrix R of each head."""
        return {name: getattr(self, f"root_{name}") for name in self._models[0].heads}

    def scale_of(self, name: str) -> float:
        """The factor c of a quantity; that of its parent if it has none, and 1 without either.

        Parameters
        ----------
        name : str
            Name of a quantity.
        """
        q = self.quantities.get(name)
        if name in self.scales or q is None or q.gradient_of is None:
            return self.scales.get(name, 1.0)
        return self.scales.get(q.gradient_of, 1.0)

    @torch.no_grad()
    def distances(self, graph: Graph) -> Tensor:
        """How far the environment of each atom is from the training data, see `molequi.environments`: (N,).

        Parameters
        ----------
        graph : Graph
            A batch of connected structures.

        Raises
        ------
        ModelError
            If there are no `environments`.
        """
        if self.environments is None:
            raise ModelError(
                "this model keeps no features of its training data; wanted one that "
                "mq.laplace(model, train, valid) made of a model with forces"
            )
        return self.environments(environment_features(self._models[0], graph), graph.z)

    def forward(self, graph: Graph, *, create_graph: bool | None = None) -> dict[str, Tensor]:
        """Predictions and standard deviations by name, see `Ensemble.forward`.

        Parameters
        ----------
        graph : Graph
            A batch of connected structures.
        create_graph : bool, optional
            As in `Model.forward`.
        """
        create_graph = self.training if create_graph is None else create_graph
        member = self._models[0]
        out = member(graph, create_graph=create_graph)
        with torch.inference_mode(False):
            squares = self._squares(member, usable(graph), create_graph)
        for name in self.quantities:
            out[f"{name}_std"] = self.scale_of(name) * _root(squares[name])
        return out if create_graph else {name: value.detach() for name, value in out.items()}

    def _squares(self, model: Model, graph: Graph, create_graph: bool) -> dict[str, Tensor]:
        """Variance of each quantity without its factor, mean over the components: (rows,)."""
        found = {}
        with torch.set_grad_enabled(create_graph or bool(model.gradients)):
            step = Step(model, graph)
        for name, root in self.roots.items():
            with torch.set_grad_enabled(create_graph):
                found[name] = _mean_square(step.outputs(name, root).square().sum(0))
            if not step.children(name):
                continue
            few = min(self.directions, len(root))
            for slopes in step.slopes(name, root[:, :few], create_graph):
                for child, value in slopes.items():
                    found[child] = found.get(child, 0.0) + len(root) / few * _mean_square(value.square())
        return found


class Step:
    """One pass of the backbone, of which outputs are taken along directions of the last layers.

    Parameters
    ----------
    model : Model
        The model.
    graph : Graph
        A batch of connected structures.
    """

    def __init__(self, model: Model, graph: Graph) -> None:
        names = list(dict.fromkeys(q.wrt for q in model.gradients))
        graph = regular_if_full(graph, model.backbone.full_edges)
        self.model = model
        self.graph, self.strained, self.variables = with_variables(graph, names)
        self.features: Features = model.backbone(self.strained)

    def children(self, name: str) -> list[Quantity]:
        """Derivatives of what a head predicts.

        Parameters
        ----------
        name : str
            Name of its quantity.
        """
        return [q for q in self.model.gradients if q.gradient_of == name]

    def outputs(self, name: str, columns: Tensor) -> Tensor:
        """Change of the output of a head with the weights of its last layer.

        Parameters
        ----------
        name : str
            Name of its quantity.
        columns : Tensor, shape (n, K)
            Directions of the n weights.

        Returns
        -------
        Tensor, shape (K, rows, …)
        """
        head = self.model.heads[name]
        layer = last_layer(head)

        def output(weights: Mapping[str, Tensor]) -> Tensor:
            return functional_call(head, dict(weights), (self.strained, self.features))

        at_zero = output({name: torch.zeros_like(p) for name, p in layer.items()})
        return vmap(lambda w: output(w) - at_zero)(_split(layer, columns))

    def slopes(self, name: str, columns: Tensor, create_graph: bool = False) -> Iterator[dict[str, Tensor]]:
        """Derivatives of the same, for one direction after the other.

        Parameters
        ----------
        name : str
            Name of the quantity of the head.
        columns : Tensor, shape (n, K)
            Directions of the weights.
        create_graph : bool
            Whether the results can be differentiated again.

        Yields
        ------
        dict of str to Tensor
            By the name of the derivative.
        """
        children = self.children(name)
        finite = [name] if isinstance(self.model.heads[name], Scalar) else []
        with torch.enable_grad():
            values = self.outputs(name, columns).unbind()
        for value in values:
            with torch.enable_grad():
                slopes = differentiate(
                    {name: value},
                    children,
                    self.variables,
                    self.graph,
                    always_finite=finite,
                    create_graph=create_graph,
                    retain_graph=True,
                )
            yield slopes


@torch.no_grad()
def environment_features(model: Model, graph: Graph) -> Tensor:
    """The features of each atom that `molequi.environments` compares: (N, F).

    Parameters
    ----------
    model : Model
        The model.
    graph : Graph
        A batch of connected structures.
    """
    model.check(graph)
    graph = regular_if_full(usable(graph), model.backbone.full_edges)
    return invariants_of(model.backbone(graph))


def last_layer(head: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of the last layer of a head by their names; none if it has none.

    Parameters
    ----------
    head : Head
        The head.

    Examples
    --------
    >>> import molequi as mq
    >>> model = mq.Model(mq.PaiNN(elements=["H"], channels=8, layers=1), ["energy"])
    >>> {name: tuple(p.shape) for name, p in last_layer(model.heads["energy"]).items()}
    {'net.2.weight': (1, 8), 'net.2.bias': (1,)}
    """
    names = [name for name, module in head.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        return {}
    return {f"{names[-1]}.{name}": p for name, p in head.get_submodule(names[-1]).named_parameters()}


def check_model(model: object) -> None:
    """Raise ModelError for a model that has no posterior of its last layers.

    Parameters
    ----------
    model : object
        What should be a Model.
    """
    if isinstance(model, LaplaceEnsemble):
        raise ModelError(
            "the model has a Laplace approximation already; model.mean_model is the trained model without it"
        )
    if not isinstance(model, Model):
        raise ModelError(
            f"a Laplace approximation is of one Model, found {type(model).__name__}; an Ensemble has "
            "standard deviations already, and mq.load gives the model of a file"
        )
    if model.levels:
        raise ModelError(
            f"the model has the levels of theory {', '.join(map(repr, model.levels))}; a Laplace "
            f"approximation is of one level: model.at({model.levels[0]!r})"
        )
    _check_quantities(model)
    for name, head in model.heads.items():
        size = sum(p.numel() for p in last_layer(head).values())
        q = model.quantities[name]
        if q.classes or not 0 < size <= MOST:
            why = (
                "it predicts classes, whose scores have no squared error"
                if q.classes
                else f"its last layer has {size} weights; wanted 1 to {MOST}"
            )
            raise ModelError(_without(model, name, why))


def check_linear(model: Model, graph: Graph) -> None:
    """Raise ModelError for a head whose output is no linear function of its last layer.

    Parameters
    ----------
    model : Model
        The model.
    graph : Graph
        A batch of connected structures, on which this is tried.
    """
    with torch.no_grad():
        step = Step(model.predicting(list(model.heads)), graph)
        for name, head in model.heads.items():
            size = sum(p.numel() for p in last_layer(head).values())
            generator = torch.Generator().manual_seed(0)
            two = torch.randn(size, 2, generator=generator).to(model.device, model.dtype)
            try:
                values = step.outputs(name, torch.cat([two, two.sum(1, True)], 1)).nan_to_num()
            except RuntimeError as error:
                why = f"torch cannot compute it for several weights at once ({str(error).splitlines()[0]})"
                raise ModelError(_without(model, name, why)) from error
            if not bool((values[2] - values[:2].sum(0)).abs().max() <= _LINEAR * values.abs().max()):
                raise ModelError(_without(model, name, "its output is not linear in its last layer"))


def _check_quantities(model: Model) -> None:
    for q in model.gradients:
        if str(q.gradient_of) not in model.heads:
            why = f"{q.name!r} is a derivative of the derivative {q.gradient_of!r}"
            raise ModelError(_without(model, q.name, why))


def _without(model: Model, name: str, why: str) -> str:
    left = [n for n, q in model.quantities.items() if n != name and q.gradient_of != name]
    what = f"{type(model.heads[name]).__name__} of {name!r}" if name in model.heads else repr(name)
    hint = f"; leave it out: model.predicting({left})" if left else "; wanted several models, an Ensemble"
    return f"a Laplace approximation of the last layer: {what}: {why}{hint}"


def _rescaled(record: Mapping[str, Any], changes: Mapping[str, float]) -> dict[str, Any]:
    """The record of `molequi.laplace`, of standard deviations that are multiplied by factors."""
    scores = {
        name: one | {"values": [v / changes.get(name, 1.0) for v in one["values"]]}
        for name, one in (record.get("scores") or {}).items()
    }
    return dict(record) | {"scores": scores}


def _split(layer: Mapping[str, Tensor], columns: Tensor) -> dict[str, Tensor]:
    """Columns (n, K) as weights (K, …) by name."""
    parts = columns.T.split([p.numel() for p in layer.values()], 1)
    return {name: part.reshape(-1, *p.shape) for (name, p), part in zip(layer.items(), parts)}


def _mean_square(squares: Tensor) -> Tensor:
    return squares if squares.ndim == 1 else squares.flatten(1).mean(1)


def _root(square: Tensor) -> Tensor:
    """√ with a gradient of zero at zero; NaN stays NaN."""
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())
