"""Ensemble = several models of one kind: their mean, and how far they disagree."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from molequi.errors import ModelError, did_you_mean
from molequi.graph import Graph
from molequi.heads import Head
from molequi.model import Model, Program
from molequi.models import Backbone
from molequi.quantities import Quantity
from molequi.symmetry_report import SymmetryReport


class Ensemble(nn.Module):
    """Models that differ in their weights alone, used as one: `Ensemble([load(file) for file in files])`.

    Under the name of each quantity stands the mean over the M members, under `<name>_spread` one number for each row, in the same unit:

        s = c √(Σ_m |x_m - x̄|² / ((M - 1) D)),    D components (1 of a scalar, 3 of a vector in space, 9 of a tensor),

    the standard deviation over the members, as root mean square over the components. So it does not change when the structure turns,
    which the standard deviations of the single components would, and it is to be compared with the error of one component; the length of
    a vector is uncertain by √D s. Of classes the mean is that of the probabilities, given as their logarithms, and the spread is
    √(Σ_k Var p_k / 2), for two classes the standard deviation of the probability. Forces are the gradient of the mean energy. Disagreement
    of members that saw the same data grows where there were none; it does not see an error that all share.

    models: two or more Models with the same hyperparameters and quantities, in one precision; they are copied.
    scales: the factor c of each quantity, 1 unless said; see `calibrated`.
    It is in evaluation mode, and what takes a trained Model takes it. Raises ModelError for models that do not belong together.
    """

    def __init__(self, models: Sequence[Model], scales: Mapping[str, float] | None = None):
        super().__init__()
        models = list(models) if isinstance(models, (list, tuple, nn.ModuleList)) else [models]
        for k, model in enumerate(models):
            if not isinstance(model, Model):
                raise ModelError(
                    f"member {k} of an ensemble: found {type(model).__name__} {str(model)[:40]!r}; wanted a Model, as mq.load gives it"
                )
        if len(models) < 2:
            raise ModelError(f"an ensemble of {len(models)}: a spread needs two members or more")
        wanted = _description(models[0])
        for k, model in enumerate(models):
            found = _description(model)
            for name in dict.fromkeys([*wanted, *found]):
                if found.get(name) != wanted.get(name):
                    raise ModelError(
                        f"member {k} of an ensemble has {name} {found.get(name)} and member 0 has {wanted.get(name)}; "
                        "wanted models that differ in their weights alone"
                    )
        for name in models[0].quantities:
            if f"{name}_spread" in models[0].quantities:
                raise ModelError(
                    f"the members predict {name!r} and {name + '_spread'!r}, which is the name of the spread of the first; rename one"
                )
        _check(scales or {}, models[0].quantities, "scales")
        self.members = nn.ModuleList(copy.deepcopy(models))
        self.scales = {name: float(scale) for name, scale in (scales or {}).items()}
        self.eval()

    @property
    def quantities(self) -> dict[str, Quantity]:
        return self.members[0].quantities

    def predicting(self, items: Iterable[str | Quantity]) -> "Ensemble":
        """A view that shares the weights and predicts other quantities, see `Model.predicting`."""
        items = list(items)
        return self._of([member.predicting(items) for member in self.members])

    def plain(self) -> "Ensemble":
        """A view that shares the weights and computes without a compiled program."""
        return self._of([member.plain() for member in self.members])

    def use_program(self, program: Program | None) -> None:
        """Compute all members, which differ in their weights alone, with one compiled program; None: plainly."""
        for member in self.members:
            member.use_program(program)

    @property
    def program(self) -> Program | None:
        """The compiled program of the members, or None."""
        return next((member.program for member in self.members if member.program is not None), None)

    def _of(self, members: Sequence[Model]) -> "Ensemble":
        view = copy.copy(self)
        view._modules = dict(self._modules)
        view.members = nn.ModuleList(members)
        return view

    @property
    def spreads(self) -> dict[str, Quantity]:
        """What the spread of each quantity is: an invariant number, by the name of the quantity."""
        return {
            name: Quantity(name=f"{name}_spread", per=q.per, unit=q.unit)
            for name, q in self.quantities.items()
        }

    @property
    def outputs(self) -> dict[str, Quantity]:
        """Quantities and their spreads."""
        return self.quantities | {q.name: q for q in self.spreads.values()}

    # What all members share is asked of the first.

    @property
    def gradients(self) -> list[Quantity]:
        return self.members[0].gradients

    @property
    def backbone(self) -> Backbone:
        """That of the first member."""
        return self.members[0].backbone

    @property
    def heads(self) -> Mapping[str, Head]:
        """Those of the first member."""
        return self.members[0].heads

    @property
    def elements(self) -> tuple[int, ...]:
        return self.backbone.elements

    @property
    def cutoff(self) -> float | None:
        return self.backbone.cutoff

    @property
    def k(self) -> int | None:
        return self.backbone.k

    @property
    def group(self) -> str:
        """What all members have: "C1" where one has no more, or where their axes were learned and differ."""
        groups, axes = {m.backbone.group for m in self.members}, [m.backbone.axis for m in self.members]
        if len(groups) > 1 or any(
            a is not None and not abs(float((a @ axes[0]).detach())) > 1 - 1e-12 for a in axes
        ):
            return "C1"
        return self.backbone.group

    @property
    def translations(self) -> bool:
        return self.backbone.translations

    @property
    def symmetry_report(self) -> SymmetryReport | None:
        """The symmetry report of the file that it was loaded from; `report.verify(model)` says whether it was made for these weights."""
        record = getattr(self, "metadata", {}).get("symmetry_report")
        return None if record is None else SymmetryReport.from_dict(record)

    @property
    def axis(self) -> Tensor | None:
        return None if self.group == "C1" else self.backbone.axis

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.dtype

    @property
    def device(self) -> torch.device:
        return self.members[0].device

    @property
    def hparams(self) -> dict[str, Any]:
        """Those of the members, how many there are, and the scales; JSON-able."""
        return self.members[0].hparams | {"members": len(self.members), "scales": dict(self.scales)}

    @property
    def own_classes(self) -> dict[str, dict[str, type]]:
        """Classes of backbone and heads that are not the package's, see `Model.own_classes`."""
        return self.members[0].own_classes

    @classmethod
    def from_hparams(
        cls,
        hparams: Mapping[str, Any],
        *,
        backbones: Mapping[str, type[Backbone]] | None = None,
        heads: Mapping[str, type[Head]] | None = None,
    ) -> "Ensemble":
        """The ensemble, untrained, that `hparams` describes; arguments and errors are those of `Model.from_hparams`."""
        members = [
            Model.from_hparams(hparams, backbones=backbones, heads=heads) for _ in range(hparams["members"])
        ]
        return cls(members, hparams["scales"])

    def calibrated(self, factors: Mapping[str, float]) -> "Ensemble":
        """A copy whose spreads are multiplied by these factors, as `molequi.inference.calibration` measures them.

        factors: by name of the quantity, above those that it has already. Raises ModelError for other names and for factors that are
        not above zero.
        """
        _check(factors, self.quantities, "factors")
        new = Ensemble(
            list(self.members),
            self.scales | {name: self.scales.get(name, 1.0) * f for name, f in factors.items()},
        )
        if hasattr(self, "metadata"):
            new.metadata = self.metadata
        return new

    def check(self, graph: Graph) -> None:
        """Raises ModelError if this is not a graph that is connected far enough for the members."""
        self.members[0].check(graph)

    def forward(self, graph: Graph, *, create_graph: bool | None = None) -> dict[str, Tensor]:
        """Means and spreads by name: (G, …) per graph, (N, …) per node; with an energy also the mean of its parts, "energies" (N,).

        create_graph: as of `Model`. Raises ModelError as `check` does.
        """
        create_graph = self.training if create_graph is None else create_graph
        outs = [member(graph, create_graph=create_graph) for member in self.members]
        with torch.inference_mode(False), torch.set_grad_enabled(create_graph):
            values = {name: torch.stack([out[name] for out in outs]) for name in outs[0]}
            classes = [name for name, q in self.quantities.items() if q.classes]
            probabilities = {name: values[name].log_softmax(-1) for name in classes}
            result = {
                name: probabilities[name].logsumexp(0) - math.log(len(outs))
                if name in classes
                else _mean(value)
                for name, value in values.items()
            }
            for name, spread in self.spreads.items():
                of = probabilities[name].exp() if name in classes else values[name]
                result[spread.name] = self.scales.get(name, 1.0) * _spread(
                    of, components=2 if name in classes else None
                )
        return result


def _mean(values: Tensor) -> Tensor:
    """Over the first axis; as deviations from the first value, so that large totals lose nothing and equal ones stay as they are."""
    return values[0] + (values - values[0]).mean(0)


def _spread(values: Tensor, components: int | None = None) -> Tensor:
    """(M, rows, …) → (rows,): standard deviation over the members, rms over the components. NaN stays NaN, and where all agree the
    gradient is zero and not that of a square root.
    """
    away = (values - _mean(values)).flatten(2) if values.ndim > 2 else (values - _mean(values))[..., None]
    variance = away.square().sum((0, 2)) / ((len(values) - 1) * (components or away.shape[2]))
    equal = variance == 0
    return torch.where(equal, 0.0, torch.where(equal, 1.0, variance).sqrt())


def _description(model: Model) -> dict[str, Any]:
    """What members must have in common."""
    backbone = {f"backbone.{name}": value for name, value in model.backbone.hparams.items()}
    heads = {f"the head of {name}": head.hparams for name, head in model.heads.items()}
    quantities = {f"the quantity {name}": q for name, q in model.quantities.items()}
    return {
        "backbone": type(model.backbone).__name__,
        **backbone,
        **heads,
        **quantities,
        "precision": model.dtype,
        "device": model.device,
    }


def _check(factors: Mapping[str, float], quantities: Mapping[str, Quantity], what: str) -> None:
    for name, factor in factors.items():
        if name not in quantities:
            raise ModelError(f"{what}: {name!r} is not predicted{did_you_mean(name, quantities)}")
        if isinstance(factor, bool) or not isinstance(factor, Real) or not 0 < factor < math.inf:
            raise ModelError(f"{what}: {name} is {factor!r}; wanted a finite number above zero")
