"""Layer-wise equivariance of a model that was trained already."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, cast

import torch
from annotated_types import Ge

from molequi.approximate.free_paths import open_groups
from molequi.approximate.laplace import MAX_LABELS, MIN_LABELS, linearised_evidence, warn_of_left_out
from molequi.approximate.report import LayerwiseEquivariance, path_rows
from molequi.approximate.shares import output_shares
from molequi.data.batches import Loader
from molequi.errors import ConfigError, did_you_mean
from molequi.inference.evaluate import with_labels
from molequi.inference.predictions import Trained
from molequi.losses import Loss, Objective
from molequi.readers import READERS
from molequi.util.signature import check_call


def layerwise_equivariance(
    model: Trained,
    train: Any,
    valid: Any = None,
    *,
    seed: Annotated[int, Ge(0)] = 0,
    labels: Annotated[int, Ge(MIN_LABELS)] = MAX_LABELS,
    **options: Any,
) -> LayerwiseEquivariance:
    """How far a trained relaxed model is from equivariance, by layer and irrep.

    The report also says which layers and irreps the evidence would prune.
    Shares and verdicts are those of the present weights. Precisions and gains are those of the Laplace
    approximation (see `molequi.approximate.laplace`): it may prune paths that a training without selection
    has left open, see `LayerwiseEquivariance.would_close`. The model is not changed.

    Parameters
    ----------
    model : Model, Ensemble, str or Path
        A relaxed model, or its file.
    train : object
        The training data; what `molequi.evaluate` takes.
    valid : object, optional
        Data on which the shares are measured; by default the training data.
    seed : int, >= 0
        Seed for the random choice of labels.
    labels : int, >= 32
        Largest number of labels in the Laplace approximation. A quantity with fewer than 8 is left out, with
        a `TrainingWarning`.
    **options
        Options of the reader, as in `molequi.evaluate`.

    Returns
    -------
    LayerwiseEquivariance
        One row for each layer and irrep.

    Raises
    ------
    ConfigError
        If the model has no free paths or a gate is zero, if the data have no labels of what the model
        predicts, and for unknown options.

    Examples
    --------
    >>> import molequi as mq
    >>> data = mq.read_extxyz("data/ethanol_300K.xyz")[:2]
    >>> backbone = mq.RelaxedEGNN(elements=["H", "C", "O"], channels=8, layers=1, cutoff=4.0)
    >>> model = mq.Model(backbone, [mq.heads.Vector("forces")])
    >>> [path.name for path in layerwise_equivariance(model, data, labels=32).paths]
    ['backbone.layers.0/0e', 'backbone.layers.0/1o']
    """
    where = "layerwise_equivariance"
    unchecked = ("model", "train", "valid")
    check_call(layerwise_equivariance, {"seed": seed, "labels": labels}, where=where, leave_out=unchecked)
    _check_reader_options(options, where)
    model, train = with_labels(model, train, **options)
    groups = open_groups(model, where)
    names = [name for name, q in model.quantities.items() if not q.classes and train.labelled(name)]
    if not names:
        raise ConfigError(
            f"{where}: the model predicts {', '.join(model.quantities)} and the data have labels of "
            f"{', '.join(train.quantities) or 'nothing'}; name labels with keys={{'forces': 'REF_forces'}}"
        )
    loss = Objective([Loss(name) for name in names], model.quantities)
    train = train.connected(model.cutoff, k=model.k)
    shown = train
    if valid is not None:
        shown = with_labels(model, valid, **options)[1].connected(model.cutoff, k=model.k)
    was_training = model.training
    try:
        generator = torch.Generator().manual_seed(seed)
        graphs = Loader(train, names).graphs
        found, noise = linearised_evidence(model.eval(), groups, graphs, loss, generator, labels)
        shares, total = output_shares(model, Loader(shown, []).graphs, loss, train)
    finally:
        model.train(was_training)
    warn_of_left_out(loss, noise, stacklevel=3)
    paths = path_rows(groups, found.precision, shares, found.gain)
    return LayerwiseEquivariance("evidence", paths, total, {name: math.sqrt(v) for name, v in noise.items()})


def _check_reader_options(options: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for an option that no reader takes."""
    known = {"keys", "units", "partial", "device"}
    for reader in READERS.values():
        known |= set(inspect.signature(cast(Callable[..., Any], reader)).parameters)
    for name in options:
        if name not in known:
            hint = did_you_mean(name, ["seed", "labels", "valid", *known])
            raise ConfigError(f"{where}.{name}: no such option, of {where} or of a reader{hint}")
