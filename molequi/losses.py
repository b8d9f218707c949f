"""The loss: a weighted sum of terms, one for each quantity that is learnt, and the user's own functions."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, cast, get_args

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from molequi.errors import ConfigError, TrainingWarning, did_you_mean
from molequi.graph import Graph
from molequi.quantities import Quantity, per_atom
from molequi.util.common_names import common_value
from molequi.util.identity import described
from molequi.util.options import Options, as_options
from molequi.util.signature import check_keywords

Kind = Literal["mse", "huber", "mae", "l2"]
KINDS: tuple[str, ...] = get_args(Kind)
DELTA = 0.01  # of the Huber loss, in eV and Å
LossFunction = Callable[[Mapping[str, Tensor], Graph], Tensor]


@check_keywords()
@dataclass(frozen=True)
class Loss(Options):
    """One term of the loss: w · mean(ρ(error of a quantity)), or a function of your own.

    The mean is over all components of the batch whose label is known; a label that is NaN is not known. The
    error of an extensive scalar such as the energy is divided by the number of atoms, so that large
    structures do not outweigh small ones. Errors of all other quantities are taken component by component, in
    the units of molequi (forces eV/Å, stress eV/Å^3).

    Parameters
    ----------
    quantity : str or callable
        Name of a quantity that the model predicts. Or a function ``(predictions, graph) -> Tensor``: it gets
        the predictions by name and the batch, whose labels are in ``graph.targets``. It returns the mean over
        the structures of the batch, shape (), or a value for each structure, shape (G,).
    weight : float, >= 0
        w. A term of weight zero is left out.
    kind : {"mse", "huber", "mae", "l2"}, optional
        ρ(e). "mse", the default, is e². "mae" is ``|e|``. "huber" is e²/2 for ``|e|`` up to `delta`, and
        ``delta (|e| - delta/2)`` beyond it. "l2" is the length of the error of a vector or tensor divided by
        the number of its components, which does not depend on the axes; of a scalar it is ``|e|``. Classes
        are always learnt by cross-entropy and take no kind.
    class_weights : "balanced" or mapping of str to float, > 0, optional
        Factors of the cross-entropy by class, for classes of different frequency: w_c in
        mean(w_label · cross-entropy). "balanced" is n / (K n_c) for n training labels, n_c of them of class
        c, and K classes: then all classes weigh the same in the loss, as if each was sampled equally often. A
        mapping names all classes. Only for classes.
    delta : float, > 0, optional
        The error at which "huber" becomes linear, in the unit of the error; 0.01 by default. Only for
        "huber".
    name : str, optional
        What the log calls a function; its ``__name__`` by default. Only for functions.

    Raises
    ------
    ConfigError
        For values out of range, and for options without effect.

    Examples
    --------
    >>> Loss("forces", weight=100, kind="huber", delta=0.02).label
    'forces'
    """

    quantity: str | Callable[..., Any]
    weight: Annotated[float, Ge(0)] = 1.0
    kind: Kind | None = None
    delta: Annotated[float, Gt(0)] | None = None
    class_weights: Literal["balanced"] | Mapping[str, Annotated[float, Gt(0)]] | None = None
    name: str | None = None

    shorthand: ClassVar[str] = "weight"

    def problem(self) -> str:
        """Options without effect."""
        if not isinstance(self.quantity, str):
            problem = _signature_problem(self.label, self.quantity)
            if problem:
                return problem
            given = [n for n in ("kind", "delta", "class_weights") if getattr(self, n) is not None]
            return (
                f"{' and '.join(given)} of the function {self.label!r} would have no effect" if given else ""
            )
        if self.name is not None:
            return f"name={self.name!r} is for functions; the log calls this term {self.quantity!r}"
        if self.delta is not None and self.kind != "huber":
            return (
                f"delta={self.delta:g} of {self.quantity!r} is for kind='huber', and its kind is "
                f"{self.kind or 'mse'!r}; take kind='huber' or leave delta out"
            )
        return ""

    @property
    def label(self) -> str:
        """What the log and error messages call this term."""
        if isinstance(self.quantity, str):
            return self.quantity
        return self.name or str(getattr(self.quantity, "__name__", type(self.quantity).__name__))

    @property
    def function(self) -> LossFunction | None:
        """The user's own function; None for a quantity."""
        return None if isinstance(self.quantity, str) else self.quantity

    def record(self) -> dict[str, Any]:
        """Plain values; a continued training must have the same ones."""
        if isinstance(self.quantity, str):
            values: dict[str, Any] = {"weight": self.weight, "kind": self.kind or "mse", "delta": self.delta}
            if self.class_weights is not None:
                values["class_weights"] = (
                    self.class_weights if isinstance(self.class_weights, str) else dict(self.class_weights)
                )
            if self.kind == "huber":
                values["delta"] = DELTA if self.delta is None else self.delta
            return {name: value for name, value in values.items() if value is not None}
        return {"weight": self.weight, "function": described(self.quantity)}


def read_losses(
    value: Any, where: str = "loss", functions: Mapping[str, LossFunction] | None = None
) -> tuple[Loss, ...] | Kind | None:
    """Read the option ``loss`` of a training.

    Parameters
    ----------
    value : None, str, Loss, Mapping or Sequence
        None stands for default weights. A kind such as "mae" stands for default weights and this kind for
        all. Or a mapping from names to weights or to the fields of `Loss`, or a list of `Loss` objects and
        functions.
    where : str
        What error messages put before the name of a term.
    functions : Mapping, optional
        The user's own functions, by the names that a mapping may use.

    Returns
    -------
    tuple of Loss, str or None
        The terms; a kind or None as it was given.

    Raises
    ------
    ConfigError
        For anything else, and for two terms of one name.
    """
    functions = functions or {}
    if value is None:
        return None
    if isinstance(value, str) and value in KINDS:
        return cast(Kind, value)
    if isinstance(value, Loss):
        return (value,)
    if isinstance(value, Mapping):
        terms = [_named(name, given, f"{where}.{name}", functions) for name, given in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        terms = [_listed(given, f"{where}.{k}") for k, given in enumerate(value)]
    else:
        raise ConfigError(
            f"{where}: found {value!r} ({type(value).__name__}); wanted weights such as "
            f"{{energy: 1, forces: 100}}, a list of Loss objects and functions, or one of {', '.join(KINDS)}"
            + (_kind_hint(value) if isinstance(value, str) else "")
        )
    labels = [term.label for term in terms]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(
                f"{where}: two terms are called {label!r}; join them, or give a function another name, "
                "Loss(f, name=…)"
            )
    return tuple(terms)


def _kind_hint(value: str) -> str:
    """The end of a message about a text that is no kind of loss."""
    meant = common_value("kind", value, KINDS)
    return f"; write {meant!r}" if meant else did_you_mean(value, KINDS)


def _named(name: Any, value: Any, where: str, functions: Mapping[str, LossFunction]) -> Loss:
    """A term of a mapping."""
    if isinstance(value, Loss):
        if value.function is not None and value.name is None:
            return replace(value, name=name)
        if value.label != name:
            raise ConfigError(f"{where}: found Loss({value.label!r}); wanted Loss({name!r}, …), or a list")
        return value
    if name in functions:
        return as_options(Loss, value, where, quantity=functions[name], name=name)
    return as_options(Loss, value, where, quantity=name)


def _listed(value: Any, where: str) -> Loss:
    """A term of a list."""
    if isinstance(value, Loss):
        return value
    if callable(value):
        return Loss(value)
    raise ConfigError(
        f"{where}: found {value!r} ({type(value).__name__}); wanted a Loss or a function (predictions, "
        "graph) -> Tensor"
    )


class Objective:
    """The loss L = Σ w · mean(ρ) over all terms with a weight above zero.

    It is computed from sums and counts that can be added over batches and devices.

    Parameters
    ----------
    terms : Sequence of Loss
        The terms; their quantities are among `quantities`.
    quantities : Mapping
        All quantities of the model by name.
    """

    def __init__(self, terms: Sequence[Loss], quantities: Mapping[str, Quantity]) -> None:
        self.terms = tuple(term for term in terms if term.weight > 0)
        self.quantities = quantities

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term by its label."""
        return {term.label: term.weight for term in self.terms}

    @property
    def supervised(self) -> "Objective":
        """The terms that compare predictions with labels, without the user's own functions."""
        return Objective([term for term in self.terms if term.function is None], self.quantities)

    def known(self, graph: Graph) -> Tensor:
        """Number of components with a known label, for each term; for a function, the number of structures.

        Parameters
        ----------
        graph : Graph
            A batch of G structures with labels.

        Returns
        -------
        Tensor, shape (T,)
        """
        return torch.stack(
            [
                torch.tensor(graph.num_graphs, device=graph.pos.device)
                if term.function is not None
                else (~torch.isnan(graph.targets[term.label])).sum()
                if term.label in graph.targets
                else torch.tensor(0, device=graph.pos.device)  # a part of the data without this label
                for term in self.terms
            ]
        )

    def sums(self, out: Mapping[str, Tensor], graph: Graph) -> Tensor:
        """Sum of ρ over the components with a known label, for each term.

        Parameters
        ----------
        out : Mapping of Tensor
            Predictions by name.
        graph : Graph
            The batch, with labels.

        Returns
        -------
        Tensor, shape (T,), float64
        """
        return torch.stack(
            [
                self._sum(term, out[term.label], graph)
                if term.function is None
                else _own(term.label, term.function, out, graph)
                for term in self.terms
            ]
        )

    def total(self, sums: Tensor, known: Tensor) -> Tensor:
        """The loss from sums and counts.

        Parameters
        ----------
        sums, known : Tensor, shape (T,)
            What `sums` and `known` return; both may be added up over batches or devices.

        Returns
        -------
        Tensor, shape ()
        """
        weights = sums.new_tensor([term.weight for term in self.terms])
        return (weights * sums / known.clamp(min=1)).sum()

    def own(self, sums: Tensor, known: Tensor) -> dict[str, float]:
        """The value of each of the user's own functions by its label, without its weight.

        Parameters
        ----------
        sums, known : Tensor, shape (T,)
            What `sums` and `known` return; both may be added up over batches or devices.
        """
        means = (sums / known.clamp(min=1)).tolist()
        return {term.label: mean for term, mean in zip(self.terms, means) if term.function is not None}

    def _sum(self, term: Loss, value: Tensor, graph: Graph) -> Tensor:
        quantity, target = self.quantities[term.label], graph.targets.get(term.label)
        if target is None:
            return torch.zeros((), dtype=torch.float64, device=value.device)
        if quantity.classes:
            known = ~torch.isnan(target)
            weights = None
            if isinstance(term.class_weights, Mapping):
                weights = value.new_tensor([term.class_weights[c] for c in quantity.classes]).double()
            return torch.nn.functional.cross_entropy(
                value.double()[known], target[known].long(), weight=weights, reduction="sum"
            )
        error = torch.where(torch.isnan(target), 0.0, value.double() - target)
        if per_atom(quantity):
            error = error / graph.counts
        kind = term.kind or "mse"
        if kind == "mse":
            return error.square().sum()
        if kind == "l2" and quantity.rank:
            return torch.linalg.vector_norm(
                error, dim=tuple(range(error.ndim - quantity.rank, error.ndim))
            ).sum()
        if kind in ("mae", "l2"):
            return error.abs().sum()
        delta = DELTA if term.delta is None else term.delta
        return torch.nn.functional.huber_loss(error, torch.zeros_like(error), delta=delta, reduction="sum")


def _own(label: str, function: LossFunction, out: Mapping[str, Tensor], graph: Graph) -> Tensor:
    """Sum over the structures of a user's own function."""
    try:
        value = function(MappingProxyType(out), graph)
    except KeyError as error:
        known = {**out, **graph.targets}
        if error.args and error.args[0] in known:
            raise
        name = error.args[0] if error.args else ""
        raise ConfigError(
            f"loss {label!r}: there is no {name!r}{did_you_mean(str(name), known)} Predictions: "
            f"{', '.join(out)}; labels, in graph.targets: {', '.join(graph.targets)}"
        ) from error
    if not isinstance(value, Tensor) or tuple(value.shape) not in ((), (graph.num_graphs,)):
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(
            f"loss {label!r}: found {found}; wanted a tensor of shape (), the mean over the structures of "
            f"the batch, or of shape ({graph.num_graphs},), a value for each structure"
        )
    if not value.requires_grad and any(p.requires_grad for p in out.values()):
        warnings.warn(
            f"loss {label!r}: its value has no gradient, so that it changes no weight; compute it from the "
            "predictions, with functions of torch alone and without .detach()",
            TrainingWarning,
            stacklevel=2,
        )
    return value.double() * graph.num_graphs if value.ndim == 0 else value.double().sum()


def _signature_problem(label: str, function: Callable[..., Any]) -> str:
    """What is wrong with the arguments of a user's own function."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a builtin
        return ""
    try:
        signature.bind({}, None)
    except TypeError:
        return (
            f"{label}{signature} cannot be called with two arguments; wanted a function (predictions, graph) "
            "-> Tensor"
        )
    return ""
