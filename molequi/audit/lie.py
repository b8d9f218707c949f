"""Lie derivatives of a model: how fast it leaves its symmetry, and which layer is responsible.

For a generator ξ of E(D) (a rotation or a translation) and a function f that should transform with D,

    L f(x) = D(ξ) f(x) - Df(x)[ξ x]

is zero for all ξ if and only if f is equivariant under SO(D) and translations. Each L f costs one derivative
in forward mode (Gruver et al. 2023, arXiv 2210.02984). For a chain of layers h_i = f_i(h_{i-1}, x) whose
states transform,

    L f = Σ_i Df_{>i} · (L f_i)(h_{i-1}, x)

exactly: each layer's own error, brought to the output by all later layers.

Gradients commute with L: for F = -∇E it is L F = -∇(L E), and for the stress the strain derivative of L E
over the volume. So errors of forces are attributed to layers through the energy, term by term.
"""

import os
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

import torch
from torch import nn
from torch.autograd import forward_ad

from molequi.audit.foreign import BlackBox, as_auditable
from molequi.audit.images import rattled
from molequi.audit.layers import Chain, Layouts, generators
from molequi.audit.lie_measure import STEP, LieMeasure
from molequi.audit.lie_report import LieReport
from molequi.audit.study import Subject, check_draws, chunks, structures_of
from molequi.checkpoint import check_order, load
from molequi.errors import ConfigError
from molequi.model import Model
from molequi.util.signature import check_keywords

RATTLED = 3  # rattled copies of each structure, from which scales are taken


@check_keywords()
def lie_errors(
    model: nn.Module | str | os.PathLike[str],
    structures: object,
    *,
    draws: int = 2,
    seed: int = 0,
    limit: int = 16,
    precision: Literal["float64", "float32"] = "float64",
    layers: Mapping[str, Layouts] | None = None,
) -> LieReport:
    """Local equivariance errors of all outputs and features, attributed to the layers.

    The local equivariance error of an output f is::

        LEE = E_x Σ_k |L_k f(x)|² / E|f|²,   L_k f(x) = D(ξ_k) f(x) - Df(x)[ξ_k x]

    (Gruver et al. 2023, arXiv 2210.02984), summed over all rotations and all translations (in Å⁻²).
    Contributions of rotations are divided by the Casimir number of the irrep: l (l + 1) in three dimensions,
    D - 1 for vectors and 2 D for traceless tensors in D dimensions, 1 for invariants. So a constant vector
    has an error of 1.

    ``E|f|²`` is the mean square length over the structures and three rattled copies of each. For scalars and
    isotropic parts it is the variance over the copies of one structure, per atom if the scalar is extensive;
    for points the mean square distance from the mean position.

    Edges are searched once and kept, so jumps of the neighbor list are not seen; `audit` sees them.

    Parameters
    ----------
    model : Model, Ensemble, Module, str or Path
        A model file, or any module with attributes ``quantities`` and ``cutoff`` that is called like a Model.
        It is copied, not changed. For a compiled model the plain one is measured.
    structures : Dataset, Graph, ase.Atoms, list of these, or path
        Whatever `audit` takes.
    draws : int
        Copies of each structure: the first as given, the others rattled, because an error may vanish in a
        symmetric structure.
    seed : int
        Seed of the rattling.
    limit : int
        At most so many structures are used, spread evenly.
    precision : "float64" or "float32"
        Precision of the copy of the model.
    layers : mapping of str to layout, optional
        How the outputs of further submodules transform, such as ``{"encoder": "64x0e+16x1o"}``. Backbones
        declare their own layers (`Backbone.states`). A wrong layout shows as an error in one layer that the
        next one takes back.

    Returns
    -------
    LieReport
        Errors by output and irrep. Shares of the layers add up to one; what no layer accounts for is the row
        "remainder".

    Raises
    ------
    ConfigError
        For layouts and names that are not possible, and for a model without the attributes.
    ModelError
        If the model has no derivative in forward mode, or a layer returns another shape than its layout.
    DataError
        If structures cannot be read.

    Examples
    --------
    >>> import molequi as mq
    >>> water = mq.Graph.single([[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]], ["O", "H", "H"])
    >>> report = mq.lie_errors(mq.Model(mq.EGNN(elements=["H", "O"], channels=8, layers=2)), water)
    >>> all(row.error < 1e-12 for row in report.rows)
    True
    """
    from molequi import __version__

    check_order("lie_errors", model, structures)
    if isinstance(model, (str, os.PathLike)):
        model = load(model, device="auto")
    if isinstance(model, BlackBox) or not isinstance(model, nn.Module):
        raise ConfigError(
            f"{type(getattr(model, 'calculator', model)).__name__} cannot be differentiated; audit measures "
            "it "
            "with finite rotations"
        )
    declared = as_auditable(model, needs=("quantities", "cutoff"))
    check_draws(draws, least=1)
    if layers is not None and not isinstance(layers, Mapping):
        raise ConfigError(
            f"layers={layers!r}: wanted layouts by name of the submodule, such as "
            f"{{'encoder': '64x0e+16x1o'}}"
        )
    if precision not in STEP:
        raise ConfigError(f"precision={precision!r}: wanted 'float64' or 'float32'")
    used, given = structures_of(structures, limit, model)
    _load_forward_derivatives()
    subject = Subject(declared, getattr(torch, precision))
    for module in subject.model.modules():
        if isinstance(module, Model):
            module.use_program(None)
    dim = used[0].dim
    with Chain(subject.model, layers, dim) as chain:
        measure = LieMeasure(subject, chain, precision)
        random = torch.Generator().manual_seed(seed)
        copies = [[g, *(rattled(g, random) for _ in range(max(RATTLED, draws - 1)))] for g in used]
        scales = measure.scales(copies)
        chain.check()
        for part in chunks([copy for several in copies for copy in several[:draws]]):
            batch = subject.connected(part)
            measure.invert(batch)
            turns = generators(dim)
            gradients = measure.gradients(batch, turns) if measure.children else {}
            for turn in turns:
                measure.add(batch, turn, gradients.get(turn.name))
    backbone = getattr(model, "backbone", None)
    name = type(model).__name__ if backbone is None else f"{type(model).__name__}({type(backbone).__name__})"
    return LieReport(
        rows=tuple(measure.rows(scales, dim)),
        states=tuple(measure.states(dim)),
        model=name,
        group=str(getattr(model, "group", "nothing")),
        structures=len(used),
        given=given,
        draws=draws,
        seed=seed,
        precision=precision,
        version=__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _load_forward_derivatives() -> None:
    """Let torch load its table of forward derivatives now, without its warning about its own use of
    torch.jit.script.
    """
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))
