"""The audit of models of weights: permuted neurons must not change what is predicted."""

import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import torch
from torch import Tensor, nn

from molequi.audit.report import Deviation, Report, Row, Tolerances, measured
from molequi.errors import ConfigError, DataError, ModelError
from molequi.weights.networks import Networks
from molequi.weights.symmetry import Kind, NeuronGroup, NeuronMap


def audit(
    model: nn.Module | Callable[[Networks], "Tensor | Networks"],
    networks: Networks,
    *,
    group: NeuronGroup | None = None,
    draws: int = 16,
    seed: int = 0,
    tolerance: float = 1e-10,
    limit: int = 16,
) -> Report:
    """Measure whether a model of weights has the symmetry of hidden neurons, in float64.

    Random elements g of the group act on the networks f. Outputs must stay, F(g f) = F(f); new networks must
    be transformed as the old ones, F(g f) = g F(f). Errors are divided by the root mean square of the
    outputs, for new networks of their change. Permutations, and signs or scales, are checked apart. What the
    networks have and the model does not declare is measured without a verdict. A model whose outputs do not
    depend on the network fails.

    Parameters
    ----------
    model : WeightModel, nn.Module or callable
        A function from `Networks` to a tensor of shape (B, …) or to `Networks`. A module is copied.
    networks : Networks
        Networks on which it is measured.
    group : NeuronGroup, optional
        The symmetry by which the model is judged. By default the one that it declares (``model.group``),
        and for one without the largest that the networks have.
    draws : int
        Random elements for each network.
    seed : int
        Seed of the elements.
    tolerance : float
        The largest error that passes.
    limit : int
        At most so many networks are used.

    Returns
    -------
    Report
        As that of `molequi.audit`; ``print`` shows it, ``raise_if_failed`` is for tests.

    Raises
    ------
    ConfigError
        For numbers below one.
    DataError
        Without networks.
    ModelError
        If the model does not give one row for each network.

    Examples
    --------
    >>> from molequi.weights import Architecture, WeightModel
    >>> nets = Networks.random(Architecture((2, 8, 8, 1), "tanh"), 4)
    >>> audit(WeightModel(nets.architecture, 3, channels=8), nets, draws=2).passed
    True
    """
    if draws < 1 or limit < 1:
        raise ConfigError(f"draws={draws}, limit={limit}: wanted at least 1 of each")
    if not len(networks):
        raise DataError("no networks were given; wanted at least one")
    from molequi import __version__

    declared = group or getattr(model, "group", None) or NeuronGroup.of(networks.architecture)
    largest = NeuronGroup.of(networks.architecture)
    judged = largest if declared.kind == "none" and group is None else declared
    used = networks[slice(limit)]
    rough, fine = ((_prepared(model, dtype), used.to(dtype)) for dtype in (torch.float32, torch.float64))
    rows = [_alive(*fine)]
    parts = [(judged, *part) for part in _parts(judged)]
    parts += [(largest, *part) for part in _parts(largest) if part not in _parts(judged)]
    for by, check, kind in parts:
        generator = torch.Generator().manual_seed(seed)
        elements = [_only(by, kind, len(used), generator) for _ in range(draws)]
        errors = [_deviations(*one, by, elements) for one in (fine, rough)]
        row = measured(check, _quantity(*fine), errors[0], tolerance, element=str(by), float32=errors[1])
        if by is not judged:
            row = replace(
                row,
                verdict="not applicable",
                reason=f"the model declares {judged}; to judge by it: "
                "group=NeuronGroup.of(networks.architecture)",
            )
        rows.append(row)
    return Report(
        rows=tuple(rows),
        model=type(model).__name__,
        group=str(judged),
        structures=len(used),
        given=len(networks),
        draws=draws,
        seed=seed,
        version=__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        tolerance=Tolerances(symmetry=tolerance),
    )


Function = Callable[[Networks], "Tensor | Networks"]


def _prepared(model: Function, dtype: torch.dtype) -> Function:
    return copy.deepcopy(model).eval().to(dtype) if isinstance(model, nn.Module) else model


def _parts(group: NeuronGroup) -> list[tuple[str, Kind]]:
    """The checks, and the factors of each."""
    other: list[tuple[str, Kind]] = [("sign", "signs")] if group.kind == "signs" else []
    other += [("scale", "scales")] if group.kind == "scales" else []
    return [("permutation", "permutations"), *other]


def _only(group: NeuronGroup, kind: Kind, batch: int, generator: torch.Generator) -> NeuronMap:
    """A random element with permutations alone, or with factors alone."""
    element = group.sample(batch, generator=generator)
    if kind == "permutations":
        return NeuronMap(element.order, {m: torch.ones_like(f) for m, f in element.factor.items()})
    kept = {m: torch.arange(o.shape[1]).expand_as(o) for m, o in element.order.items()}
    return NeuronMap(kept, element.factor)


@torch.no_grad()
def _deviations(
    model: Function, networks: Networks, group: NeuronGroup, elements: list[NeuronMap]
) -> list[Deviation]:
    plain, found = model(networks), []
    size = _rows(plain, networks).square().mean().sqrt()
    for draw, element in enumerate(elements):
        turned = group.act(element, networks)
        new = model(turned)
        wanted = group.act(element, plain) if isinstance(plain, Networks) else plain
        error = (_rows(new, turned) - _rows(wanted, turned)).abs().amax(dim=1) / size
        found += [(e, k, draw) for k, e in enumerate(error.tolist())]
    return found


@torch.no_grad()
def _alive(model: Function, networks: Networks) -> Row:
    """Outputs are not zero, and not the same for all networks."""
    rows = _rows(model(networks), networks)
    some = bool((rows - rows[:1]).any()) if len(rows) > 1 else bool(rows.any())
    return Row(
        check="not zero",
        quantity=_quantity(model, networks),
        verdict="pass" if some and bool(rows.isfinite().all()) else "fail",
        reason="" if some else "the output does not depend on the network",
    )


@torch.no_grad()
def _quantity(model: Function, networks: Networks) -> str:
    return "new weights" if isinstance(model(networks[:1]), Networks) else "outputs"


def _rows(found: "Tensor | Networks", networks: Networks) -> Tensor:
    """A row of numbers for each network: the outputs, or the change of the weights."""
    if isinstance(found, Networks):
        return found.flat() - networks.flat()
    if not found.ndim or len(found) != len(networks):
        raise ModelError(
            f"the model gave a tensor of shape {tuple(found.shape)} for {len(networks)} networks; wanted "
            f"({len(networks)}, …)"
        )
    return found.reshape(len(found), -1)
