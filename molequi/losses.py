"""The loss: a weighted sum of terms, one for each quantity that is learnt, and terms of the user's own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from molequi.errors import ConfigError, did_you_mean
from molequi.graph import Graph
from molequi.quantities import Quantity, per_atom
from molequi.util.options import Options, as_options

Kind = Literal["mse", "huber", "mae", "l2"]
KINDS: tuple[str, ...] = get_args(Kind)
DELTA = 0.01  # of the Huber loss, in eV and Å
LossFunction = Callable[[Mapping[str, Tensor], Graph], Tensor]


@dataclass(frozen=True)
class Loss(Options):
    """One term of the loss: w · mean(ρ(error of a quantity)), or a function of the user's own.

    The mean is over all components of the batch with a known label; a label that is NaN is not known. The error of
    an extensive scalar such as the energy is divided by the number of atoms, so that large structures do not outweigh
    small ones. All others are taken component by component, in the units of molequi (forces eV/Å, stress eV/Å^3).

    Parameters
    ----------
    quantity : str or callable
        Name of a quantity that the model predicts. Or a function ``(predictions, graph) -> Tensor`` of the predictions
        by name and the batch, labels in ``graph.targets``. It returns the mean over the structures of the batch, shape
        (), or a value for each structure, shape (G,).
    weight : float, >= 0
        w; a term of weight zero is left out.
    kind : {"mse", "huber", "mae", "l2"}, optional
        ρ(e). "mse", the default, is e²; "mae" is |e|; "huber" is e²/2 up to `delta` and delta (|e| - delta/2) beyond
        it. "l2" is the length of the error of a vector or tensor over the number of its components, which does not
        depend on the axes, and |e| of a scalar. Classes are always learnt by cross-entropy and take no kind.
    delta : float, > 0, optional
        Where "huber" becomes linear, in the unit of the error; 0.01 by default. Only for "huber".
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

    quantity: str | Callable
    weight: Annotated[float, Ge(0)] = 1.0
    kind: Kind | None = None
    delta: Annotated[float, Gt(0)] | None = None
    name: str | None = None

    shorthand: ClassVar[str] = "weight"

    def problem(self) -> str:
        """Options without effect."""
        if not isinstance(self.quantity, str):
            given = [n for n in ("kind", "delta") if getattr(self, n) is not None]
            return (
                f"{' and '.join(given)} of the function {self.label!r} would have no effect" if given else ""
            )
        if self.name is not None:
            return f"name={self.name!r} is for functions; the log calls this term {self.quantity!r}"
        if self.delta is not None and self.kind != "huber":
            return (
                f"delta={self.delta} of {self.quantity!r} is for kind='huber', and its kind is "
                f"{self.kind or 'mse'!r}; take kind='huber' or leave delta out"
            )
        return ""

    @property
    def label(self) -> str:
        """What the log and error messages call this term."""
        if isinstance(self.quantity, str):
            return self.quantity
        return self.name or getattr(self.quantity, "__name__", type(self.quantity).__name__)

    @property
    def function(self) -> LossFunction | None:
        """The user's own function, or None."""
        return None if isinstance(self.quantity, str) else self.quantity

    def record(self) -> dict[str, Any]:
        """Plain values by which a continued training is compared with what was saved."""
        if isinstance(self.quantity, str):
            values = {"weight": self.weight, "kind": self.kind or "mse", "delta": self.delta}
            if self.kind == "huber":
                values["delta"] = DELTA if self.delta is None else self.delta
            return {name: value for name, value in values.items() if value is not None}
        function = self.quantity
        where = getattr(function, "__qualname__", type(function).__qualname__)
        return {"weight": self.weight, "function": f"{function.__module__}.{where}"}


def read_losses(
    value: Any, where: str = "loss", functions: Mapping[str, LossFunction] | None = None
) -> tuple[Loss, ...] | Kind | None:
    """The terms that an option `loss` stands for.

    Parameters
    ----------
    value : None, str, Loss, Mapping or Sequence
        None: default weights. A kind such as "mae": default weights and this kind for all. A mapping from names to weights or to
        the fields of `Loss`. A list of `Loss` objects and functions.
    where : str
        What error messages put before the name of a term.
    functions : Mapping, optional
        The user's own functions that a mapping may name.

    Raises
    ------
    ConfigError
        For anything else, and for two terms of one name.
    """
    functions = functions or {}
    if value is None or (isinstance(value, str) and value in KINDS):
        return value  # type: ignore[return-value]  # one of KINDS
    if isinstance(value, Loss):
        return (value,)
    if isinstance(value, Mapping):
        terms = [_named(name, given, f"{where}.{name}", functions) for name, given in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        terms = [_listed(given, f"{where}.{k}") for k, given in enumerate(value)]
    else:
        raise ConfigError(
            f"{where}: found {value!r} ({type(value).__name__}); wanted weights such as {{energy: 1, forces: 100}}, a list of "
            f"Loss objects and functions, or one of {', '.join(KINDS)}"
            + (did_you_mean(value, KINDS) if isinstance(value, str) else "")
        )
    labels = [term.label for term in terms]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(
                f"{where}: two terms are called {label!r}; join them, or give a function another name, Loss(f, name=…)"
            )
    return tuple(terms)


def _named(name: Any, value: Any, where: str, functions: Mapping[str, LossFunction]) -> Loss:
    """A term of a mapping."""
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
        f"{where}: found {value!r} ({type(value).__name__}); wanted a Loss or a function (predictions, graph) -> Tensor"
    )


class Objective:
    """L = Σ w · mean(ρ) of the terms with a weight, as sums and counts that can be added over batches and devices.

    Parameters
    ----------
    terms : Sequence of Loss
        Their quantities are among `quantities`.
    quantities : Mapping
        All quantities of the model by name.
    """

    def __init__(self, terms: Sequence[Loss], quantities: Mapping[str, Quantity]):
        self.terms = tuple(term for term in terms if term.weight > 0)
        self.quantities = quantities

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term by its label."""
        return {term.label: term.weight for term in self.terms}

    @property
    def supervised(self) -> "Objective":
        """The terms that compare with labels, without the user's own functions."""
        return Objective([term for term in self.terms if term.function is None], self.quantities)

    def known(self, graph: Graph) -> Tensor:
        """(T,) number of known components of each term; of a function, the number of structures."""
        return torch.stack(
            [
                (~torch.isnan(graph.targets[term.label])).sum()
                if term.function is None
                else torch.tensor(graph.num_graphs, device=graph.pos.device)
                for term in self.terms
            ]
        )

    def sums(self, out: Mapping[str, Tensor], graph: Graph) -> Tensor:
        """(T,) sum of ρ over the known components of each term, float64."""
        return torch.stack(
            [
                self._sum(term, out[term.label], graph)
                if term.function is None
                else _own(term.label, term.function, out, graph)
                for term in self.terms
            ]
        )

    def total(self, sums: Tensor, known: Tensor) -> Tensor:
        """The loss from `sums` and `known`, which may have been added up over batches or devices."""
        weights = sums.new_tensor([term.weight for term in self.terms])
        return (weights * sums / known.clamp(min=1)).sum()

    def _sum(self, term: Loss, value: Tensor, graph: Graph) -> Tensor:
        quantity, target = self.quantities[term.label], graph.targets[term.label]
        if quantity.classes:
            known = ~torch.isnan(target)
            return torch.nn.functional.cross_entropy(
                value.double()[known], target[known].long(), reduction="sum"
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
    value = function(out, graph)
    if not isinstance(value, Tensor) or tuple(value.shape) not in ((), (graph.num_graphs,)):
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(
            f"loss {label!r}: found {found}; wanted a tensor of shape (), the mean over the structures of the batch, or of "
            f"shape ({graph.num_graphs},), a value for each structure"
        )
    return value.double() * graph.num_graphs if value.ndim == 0 else value.double().sum()


def check_losses(terms: Sequence[Loss], quantities: Mapping[str, Quantity], where: str = "loss") -> None:
    """Check terms against what a model predicts.

    Raises
    ------
    ConfigError
        For a term of a quantity that is not predicted, a function with the name of a quantity, a kind for classes, and if all weights
        are zero.
    """
    for term in terms:
        name = term.label
        if term.function is not None:
            if name in quantities:
                raise ConfigError(
                    f"{where}.{name}: a function and a quantity have this name; rename the function"
                )
            continue
        if name not in quantities:
            raise ConfigError(
                f"{where}.{name} is {term.weight} and predict is [{', '.join(quantities)}]: the model does not predict "
                f"{name!r}{did_you_mean(name, quantities)}"
            )
        if term.kind is not None and quantities[name].classes:
            raise ConfigError(
                f"{where}.{name}.kind is {term.kind!r} and {name!r} has classes, which are always learnt by cross-entropy; "
                "leave kind out"
            )
    if not any(term.weight for term in terms):
        raise ConfigError(f"{where} is { {t.label: t.weight for t in terms} }: all weights are zero")


def balanced(terms: Sequence[Loss], scale: Mapping[str, float]) -> tuple[Loss, ...]:
    """Terms whose weights are divided by the standard deviation of their labels, squared for "mse"; classes have none."""
    return tuple(
        replace(
            term,
            weight=term.weight / scale.get(term.label, 1.0) ** (2 if (term.kind or "mse") == "mse" else 1),
        )
        for term in terms
    )
