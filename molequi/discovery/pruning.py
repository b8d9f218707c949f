"""Pruning of the weights that are not equivariant."""

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from molequi.discovery.commutant import (
    CommutantDistance,
    check_group,
    commutant_distance,
    equivariant_projection,
)
from molequi.discovery.curves import Measure, evaluate_measures
from molequi.errors import ConfigError, did_you_mean
from molequi.util import tables as table
from molequi.util.html import html_heading, html_table

# Relative distance that is left of a projected layer. More than the squared round-off of bfloat16 means that
# another layer shares the weights.
SHARED = 1e-4


@dataclass(frozen=True, kw_only=True)
class PrunedModel:
    """A copy of a model with projected linear layers, and what the projection changed; ``print`` shows it.

    Attributes
    ----------
    distances_before, distances_after : tuple of CommutantDistance
        Distance of each layer before and after. The latter is round-off, unless two layers share their
        weights.
    measures_before, measures_after : dict
        Measures of both models.
    model : torch.nn.Module
        The copy.
    """

    distances_before: tuple[CommutantDistance, ...]
    distances_after: tuple[CommutantDistance, ...]
    measures_before: dict[str, float]
    measures_after: dict[str, float]
    model: nn.Module = field(repr=False, compare=False)

    @property
    def summary(self) -> str:
        """How much was removed, and from which layers not all."""
        distance = sum(d.squared_distance for d in self.distances_before)
        removed = distance / max(sum(d.squared_norm for d in self.distances_before), 1e-300)
        count = len(self.distances_before)
        words = f"{removed:.2e} of the squared weights removed in {count} layer{'s' if count != 1 else ''}"
        left = [d.name for d in self.distances_after if not d.relative <= SHARED]
        if left:
            words += (
                f"; not all in {', '.join(left)}, because another layer shares the weights with other irreps"
            )
        return words

    def _rows(self) -> list[tuple[str, str, str]]:
        rows = [
            (f"{a.name}: {a.irreps_in} → {a.irreps_out}", f"{a.relative:.2e}", f"{b.relative:.2e}")
            for a, b in zip(self.distances_before, self.distances_after)
        ]
        return rows + [
            (name, f"{value:.3e}", f"{self.measures_after[name]:.3e}")
            for name, value in self.measures_before.items()
        ]

    def __str__(self) -> str:
        return "\n".join([*table.text_table(_HEAD, self._rows()), self.summary])

    def _repr_html_(self) -> str:
        return html_heading("pruning to equivariant weights", self.summary) + html_table(_HEAD, self._rows())

    __repr__ = __str__

    def to_json(self) -> str:
        """Distances, measures and the summary as JSON."""
        names = ("distances_before", "distances_after")
        numbers = table.json_ready(
            {
                **{name: [asdict(d) for d in getattr(self, name)] for name in names},
                "measures_before": self.measures_before,
                "measures_after": self.measures_after,
            }
        )
        return json.dumps({**numbers, "summary": self.summary}, indent=1, allow_nan=False)


_HEAD = ("layer or measure", "before", "after")


def prune(
    model: nn.Module,
    irreps: Mapping[str, tuple[str, str]],
    *,
    group: str = "O(n)",
    dim: int = 3,
    measures: Mapping[str, Measure] | None = None,
) -> PrunedModel:
    """Replace linear layers of a copy by the nearest equivariant ones, W → P W, and report the effect.

    The whole model is equivariant afterwards only if everything between these layers is.

    Parameters
    ----------
    model : torch.nn.Module
        The model; it does not change.
    irreps : mapping
        Irreps of inputs and outputs of each `torch.nn.Linear`, by its name as in `named_modules` ("" is the
        model itself): {"edge.0": ("1x1o+16x0e", "64x0e")}.
    group : str
        "O(n)" or "SO(n)".
    dim : int
        Number of dimensions of space.
    measures : mapping, optional
        Functions of a model, such as a loss on test data or those of `symmetry_curves`, evaluated before and
        after.

    Returns
    -------
    PrunedModel
        ``model`` is the copy; ``print`` shows distances and measures.

    Raises
    ------
    ConfigError
        For names of modules that are not a `torch.nn.Linear`, weights that are computed from other parameters
        (weight norm and the like), sizes that do not fit, and measures that return no numbers or share a
        name.

    Examples
    --------
    >>> import torch
    >>> pruned = prune(torch.nn.Linear(3, 3), {"": ("1x1o", "1x1o")})
    >>> torch.count_nonzero(pruned.model.bias).item()
    0
    """
    check_group(group, dim)
    _check_layers(_linear_layers(model), irreps)
    changed = copy.deepcopy(model)
    layers = _linear_layers(changed)

    def distances() -> tuple[CommutantDistance, ...]:
        return tuple(
            commutant_distance(
                layers[name], *pair, group=group, dim=dim, name=name or type(layers[name]).__name__
            )
            for name, pair in irreps.items()
        )

    before = distances()
    with torch.no_grad():
        for name, (irreps_in, irreps_out) in irreps.items():
            layer = layers[name]
            layer.weight.copy_(
                equivariant_projection(layer.weight, irreps_in, irreps_out, group=group, dim=dim)
            )
            if layer.bias is not None:
                column = layer.bias[:, None]
                layer.bias.copy_(
                    equivariant_projection(column, "1x0e", irreps_out, group=group, dim=dim)[:, 0]
                )
    return PrunedModel(
        distances_before=before,
        distances_after=distances(),
        measures_before=evaluate_measures(model, measures or {}),
        measures_after=evaluate_measures(changed, measures or {}),
        model=changed,
    )


def _check_layers(layers: Mapping[str, nn.Linear], names: Iterable[str]) -> None:
    names = list(names)
    if not names:
        raise ConfigError(
            "irreps names no layer; wanted at least one nn.Linear, such as "
            "{'edge.0': ('1x1o+16x0e', '64x0e')}"
        )
    for name in names:
        if name not in layers:
            raise ConfigError(f"irreps: {name!r} is no nn.Linear of the model{did_you_mean(name, layers)}")
        for part in ("weight", "bias"):
            if part not in layers[name]._parameters:
                raise ConfigError(
                    f"irreps: the {part} of {name!r} is computed from other parameters (weight norm and the "
                    "like), "
                    "so that a projection would have no effect; make it a parameter first, as with "
                    f"torch.nn.utils.parametrize.remove_parametrizations(layer, {part!r})"
                )


def _linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Linear layers by all their names; a layer may have several."""
    return {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear)
    }
