"""Ensembles: the mean of several models, and their standard deviation as an estimate of the uncertainty."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor, nn

from molequi.errors import ModelError, did_you_mean
from molequi.graph import Graph
from molequi.heads import Head
from molequi.model import Model, Program
from molequi.model_summary import summarize
from molequi.models import Backbone
from molequi.quantities import Quantity
from molequi.symmetry_report import SymmetryReport
from molequi.terms import Dispersion, Terms
from molequi.util import trained_on
from molequi.util.attributes import OF_MODEL, attribute_again
from molequi.util.level_records import own_level
from molequi.util.signature import check_keywords


@check_keywords()
class Ensemble(nn.Module):
    """Several models that differ only in their weights, used as one model.

    The output ``<name>`` is the mean over the M members. The output ``<name>_std`` is one number for each
    row, in the same unit::

        s = c √(Σ_m |x_m - x̄|² / ((M - 1) D))

    It is the standard deviation over the members, as root mean square over the D components (1 of a scalar, 3
    of a vector, 9 of a tensor of rank 2). So it is invariant under rotations, and comparable with the error
    of one component.
    For classes the mean is that of the probabilities, given as their logarithms, and the standard deviation
    is √(Σ_k Var p_k / 2); for two classes this is the standard deviation of the probability. Forces are the
    gradient of the mean energy.

    The standard deviation grows far from the training data. It does not show an error that all members share.

    An ensemble is in evaluation mode and can be used wherever a trained `Model` can.

    Parameters
    ----------
    models : sequence of Model
        Two or more models with the same hyperparameters and quantities, in one precision. They are copied.
    scales : mapping of str to float, optional
        The factor c of each quantity, 1 by default; see `calibrated`.

    Raises
    ------
    ModelError
        If the models do not belong together, or if a factor is not a finite number above zero.

    Examples
    --------
    >>> import molequi as mq
    >>> models = [mq.Model(mq.PaiNN(elements=["H"], channels=8, layers=1), ["energy"]) for _ in range(2)]
    >>> list(mq.Ensemble(models).outputs)
    ['energy', 'energy_std']
    """

    fewest = 2  # members
    metadata: dict[str, Any]  # what its members have in common, or its file says; see `molequi.checkpoint`

    def __init__(self, models: Sequence[Model], scales: Mapping[str, float] | None = None) -> None:
        super().__init__()
        if not isinstance(models, (list, tuple, nn.ModuleList)):
            models = [cast(Model, models)]  # one model, or something else: the check says so
        models = list(models)
        _check_members(models, self.fewest)
        _check_factors(scales or {}, models[0].quantities, "scales")
        self.members = nn.ModuleList(copy.deepcopy(models))
        self.scales = {name: float(scale) for name, scale in (scales or {}).items()}
        self.metadata = _common_records(models)
        self.eval()

    def __repr__(self) -> str:
        return str(summarize(self))

    def _repr_html_(self) -> str:
        return summarize(self)._repr_html_()

    @property
    def _models(self) -> list[Model]:
        return cast(list[Model], list(self.members))

    @property
    def quantities(self) -> dict[str, Quantity]:
        """Quantities that the members predict, by name."""
        return self._models[0].quantities

    def predicting(self, items: Iterable[str | Quantity]) -> "Ensemble":
        """An ensemble that shares the weights and predicts other quantities, see `Model.predicting`.

        Parameters
        ----------
        items : iterable of str or Quantity
            What it predicts.
        """
        items = list(items)
        view = self._of([member.predicting(items) for member in self._models])
        view.scales = {name: scale for name, scale in self.scales.items() if name in view.quantities}
        return view

    @property
    def energy_terms(self) -> Terms:
        """Terms of the energy beside the networks, see `Model.energy_terms`."""
        return self._models[0].energy_terms

    def with_dispersion(self, dispersion: Dispersion | Mapping[str, Any] | None) -> "Ensemble":
        """An ensemble that shares the weights and adds another dispersion, see `Model.with_dispersion`.

        Parameters
        ----------
        dispersion : terms.Dispersion, mapping or None
            Such as ``{"d3": "pbe"}``.
        """
        return self._of([member.with_dispersion(dispersion) for member in self._models])

    def plain(self) -> "Ensemble":
        """An ensemble that shares the weights and computes without a compiled program."""
        return self._of([member.plain() for member in self._models])

    def use_program(self, program: Program | None) -> None:
        """Compute all members with one compiled program.

        Parameters
        ----------
        program : Program or None
            The program; None computes without one.
        """
        for member in self._models:
            member.use_program(program)

    @property
    def program(self) -> Program | None:
        """The compiled program of the members, or None."""
        return next((member.program for member in self._models if member.program is not None), None)

    def _of(self, members: Sequence[Model]) -> "Ensemble":
        view = copy.copy(self)
        view._modules = dict(self._modules)
        view.members = nn.ModuleList(members)
        return view

    @property
    def stds(self) -> dict[str, Quantity]:
        """The standard deviation of each quantity, by its name: an invariant number in the same unit."""
        return {
            name: Quantity(name=f"{name}_std", per=q.per, unit=q.unit) for name, q in self.quantities.items()
        }

    @property
    def outputs(self) -> dict[str, Quantity]:
        """Quantities and their standard deviations."""
        return self.quantities | {q.name: q for q in self.stds.values()}

    @property
    def gradients(self) -> list[Quantity]:
        """Quantities that are gradients of others."""
        return self._models[0].gradients

    @property
    def backbone(self) -> Backbone:
        """The backbone of the first member."""
        return self._models[0].backbone

    @property
    def heads(self) -> Mapping[str, Head]:
        """The heads of the first member."""
        return cast(Mapping[str, Head], self._models[0].heads)

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that the members know."""
        return self.backbone.elements

    @property
    def cutoff(self) -> float | None:
        """Distance in Å up to which edges are needed; None for all pairs."""
        return self.backbone.cutoff

    @property
    def k(self) -> int | None:
        """Number of nearest neighbors that are joined; None for all within the cutoff."""
        return self.backbone.k

    @property
    def group(self) -> str:
        """The symmetry group of all members; "C1" if one has no symmetry, or if their learned axes differ."""
        groups, axes = {m.backbone.group for m in self._models}, [m.backbone.axis for m in self._models]
        if len(groups) > 1:
            return "C1"
        first = axes[0]
        if first is not None and any(
            a is not None and not abs(float((a @ first).detach())) > 1 - 1e-12 for a in axes
        ):
            return "C1"
        return self.backbone.group

    @property
    def translations(self) -> bool:
        """Whether outputs are invariant under translations."""
        return self.backbone.translations

    @property
    def symmetry_report(self) -> SymmetryReport | None:
        """The report in the file of the ensemble; `report.verify(model)` checks that it belongs to it."""
        record = getattr(self, "metadata", {}).get("symmetry_report")  # only after `load` or a training
        return None if record is None else SymmetryReport.from_dict(record)

    @property
    def axis(self) -> Tensor | None:
        """The axis of the symmetry group, if it has one."""
        return None if self.group == "C1" else self.backbone.axis

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.backbone.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self._models[0].device

    @property
    def hparams(self) -> dict[str, Any]:
        """Hyperparameters of the members, their number, and the scales; they can be written as JSON."""
        return self._models[0].hparams | {"members": len(self.members), "scales": dict(self.scales)}

    @property
    def own_classes(self) -> dict[str, dict[str, type]]:
        """Classes of backbone and heads that are not in the package, see `Model.own_classes`."""
        return self._models[0].own_classes

    @classmethod
    def from_hparams(
        cls,
        hparams: Mapping[str, Any],
        *,
        backbones: Mapping[str, type[Backbone]] | None = None,
        heads: Mapping[str, type[Head]] | None = None,
    ) -> "Ensemble":
        """The untrained ensemble of these hyperparameters; errors are those of `Model.from_hparams`.

        Parameters
        ----------
        hparams : mapping
            As `hparams` gives them.
        backbones, heads : mapping of str to class, optional
            Your own classes by name, as in `Model.from_hparams`.
        """
        members = [
            Model.from_hparams(hparams, backbones=backbones, heads=heads) for _ in range(hparams["members"])
        ]
        return cls(members, hparams["scales"])

    def calibrated(self, factors: Mapping[str, float]) -> "Ensemble":
        """A copy whose standard deviations are multiplied by factors.

        Parameters
        ----------
        factors : mapping of str to float
            Factor of each quantity, as `molequi.inference.calibration` measures it. It multiplies the present
            one.

        Returns
        -------
        Ensemble
            The calibrated copy.

        Raises
        ------
        ModelError
            If a name is not predicted, or if a factor is not a finite number above zero.
        """
        _check_factors(factors, self.quantities, "factors")
        new = Ensemble(
            self._models,
            self.scales | {name: self.scales.get(name, 1.0) * f for name, f in factors.items()},
        )
        if hasattr(self, "metadata"):
            new.metadata = self.metadata
        return new

    def check(self, graph: Graph) -> None:
        """Raise ModelError if the graph has too few edges for the members.

        Parameters
        ----------
        graph : Graph
            A batch of structures.
        """
        self._models[0].check(graph)

    def forward(self, graph: Graph, *, create_graph: bool | None = None) -> dict[str, Tensor]:
        """Means and standard deviations by name.

        Parameters
        ----------
        graph : Graph
            A batch of connected structures.
        create_graph : bool, optional
            As in `Model.forward`.

        Returns
        -------
        dict of str to Tensor
            (G, …) per graph, (N, …) per node. With an energy also the mean of its parts, ``energies`` (N,).

        Raises
        ------
        ModelError
            As `check` does.
        """
        create_graph = self.training if create_graph is None else create_graph
        outs = [member(graph, create_graph=create_graph) for member in self._models]
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
            for name, std in self.stds.items():
                of = probabilities[name].exp() if name in classes else values[name]
                result[std.name] = self.scales.get(name, 1.0) * _std(
                    of, components=2 if name in classes else None
                )
        return result

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return attribute_again(self, name, OF_MODEL)


def _common_records(models: Sequence[Model]) -> dict[str, Any]:
    """What the files of all members say of their training, for the ensemble.

    An ensemble was trained on what all members were trained on: the others guess. How data were read and the
    level of theory are kept if they are the same for all.
    """
    found = [dict(getattr(model, "metadata", None) or {}) for model in models]
    out: dict[str, Any] = {}
    records = [one.get("trained_on") for one in found]
    if all(isinstance(record, Mapping) for record in records):
        out["trained_on"] = trained_on.common(cast(list[Mapping[str, Any]], records))
    if all(one.get("reading") == found[0].get("reading") for one in found) and found[0].get("reading"):
        out["reading"] = found[0]["reading"]
    if all(one.get("level") == found[0].get("level") for one in found) and found[0].get("level"):
        out["level"] = found[0]["level"]
    return out


def _mean(values: Tensor) -> Tensor:
    """Mean over the first axis, by deviations from the first value, which keeps the digits of totals."""
    return values[0] + (values - values[0]).mean(0)


def _std(values: Tensor, components: int | None = None) -> Tensor:
    """Standard deviation over the members, root mean square over components: (M, rows, …) → (rows,).

    NaN stays NaN. Where all members agree the gradient is zero.
    """
    away = (values - _mean(values)).flatten(2) if values.ndim > 2 else (values - _mean(values))[..., None]
    variance = away.square().sum((0, 2)) / ((len(values) - 1) * (components or away.shape[2]))
    equal = variance == 0
    return torch.where(equal, 0.0, torch.where(equal, 1.0, variance).sqrt())


def _check_members(models: Sequence[Model], fewest: int) -> None:
    """Raise ModelError if the models do not belong together."""
    for k, model in enumerate(models):
        if not isinstance(model, Model):
            raise ModelError(
                f"member {k} of an ensemble: found {type(model).__name__} {str(model)[:40]!r}; wanted a "
                "Model, as mq.load gives it"
            )
        if model.levels:
            raise ModelError(
                f"member {k} of an ensemble has the levels of theory {', '.join(map(repr, model.levels))}; "
                f"an ensemble is of one level: mq.Ensemble([m.at({model.levels[0]!r}) for m in models])"
            )
    if len(models) < fewest:
        raise ModelError(f"an ensemble of {len(models)}: a standard deviation needs two members or more")
    names = ["member 0", *(f"member {k} of an ensemble" for k in range(1, len(models)))]
    check_alike(models, names)
    for name in models[0].quantities:
        if f"{name}_std" in models[0].quantities:
            raise ModelError(
                f"the members predict {name!r} and {name + '_std'!r}, which is the name of the standard "
                "deviation of the first; rename one"
            )


def check_alike(models: Sequence[Model], names: Sequence[str]) -> None:
    """Check that models differ only in their weights.

    Parameters
    ----------
    models : sequence of Model
        The models.
    names : sequence of str
        What messages call each of them.

    Raises
    ------
    ModelError
        For the first one that has other hyperparameters or quantities, another precision, another device or
        another level of theory than the first model.
    """
    levels = [(label, own_level(getattr(m, "metadata", None) or {})) for label, m in zip(names, models)]
    stated = [(label, level) for label, level in levels if level is not None]
    for label, level in stated:
        if level != stated[0][1]:
            raise ModelError(
                f"{label} is of the level of theory {level!r} and {stated[0][0]} of {stated[0][1]!r}, so "
                "that a mean of them belongs to neither; wanted models of one level"
            )
    wanted = _description(models[0])
    for label, model in zip(names, models):
        found = _description(model)
        for name in dict.fromkeys([*wanted, *found]):
            if found.get(name) != wanted.get(name):
                raise ModelError(
                    f"{label} has {name} {found.get(name)} and {names[0]} has {wanted.get(name)}; "
                    "wanted models that differ only in their weights"
                )


def _description(model: Model) -> dict[str, Any]:
    """What all members must have in common."""
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


def _check_factors(factors: Mapping[str, float], quantities: Mapping[str, Quantity], what: str) -> None:
    """Raise ModelError for a factor of an unknown quantity, or one that is not above zero."""
    for name, factor in factors.items():
        if name not in quantities:
            raise ModelError(f"{what}: {name!r} is not predicted{did_you_mean(name, quantities)}")
        if isinstance(factor, bool) or not isinstance(factor, Real) or not 0 < factor < math.inf:
            raise ModelError(f"{what}: {name} is {factor!r}; wanted a finite number above zero")
