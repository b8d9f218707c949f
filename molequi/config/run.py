"""Carry out a run that a YAML file describes."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from molequi.config.names import Names
from molequi.config.schema import build_model, read_config, read_data
from molequi.config.train import read_train
from molequi.errors import OtherSettingsError
from molequi.hooks import Hook
from molequi.losses import LossFunction
from molequi.quantities import Quantity
from molequi.training.checks import PARTS
from molequi.training.ensembles import EnsembleResult
from molequi.training.fit import fit, train_model
from molequi.training.result import Result
from molequi.util.seeding import own_random_numbers
from molequi.util.signature import check_keywords


@check_keywords(
    {name: f'overrides=["train.{name}=…"]' for name in signature(fit).parameters if name not in PARTS}
)
def run(
    config: str | os.PathLike | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    backbones: Mapping[str, Any] | None = None,
    heads: Mapping[str, Any] | None = None,
    readers: Mapping[str, Any] | None = None,
    losses: Mapping[str, LossFunction] | None = None,
    quantities: Mapping[str, Quantity] | None = None,
    hooks: Mapping[str, type[Hook] | Hook] | None = None,
) -> Result | EnsembleResult:
    """Read data, build a model, train it, measure its errors and draw them, as a YAML file describes.

    Parameters
    ----------
    config : path, str or Mapping
        A YAML file, the name of a recipe, or a mapping with the sections data, backbone, predict and train,
        see `molequi.config.schema`. Relative paths start at the working directory.
    overrides : Sequence of str
        Settings that replace those of the file, such as ``"train.lr=1e-3"``.
    backbones, heads, readers, losses, quantities, hooks : Mapping, optional
        Objects of your own, by the names that the file uses. Reading a file never imports anything.

    Returns
    -------
    Result or EnsembleResult
        As `fit` returns it. The folder is ``train.out``, by default ``runs/<name of the file>``. Beside what
        `fit` writes it has the pictures ``parity.png`` and ``learning_curve.png``.

    Raises
    ------
    ConfigError
        If the description is wrong, before any data are read.
    DataError
        If the data are wrong.
    TrainingError, CheckpointError
        As `fit` does.
    """
    names = Names.of(
        backbones=backbones, heads=heads, readers=readers, losses=losses, quantities=quantities, hooks=hooks
    )
    settings = read_config(config, overrides, names)
    name = "run" if isinstance(config, Mapping) else Path(config).stem
    out = settings["train"]["out"] = settings["train"].get("out") or f"runs/{name}"
    options = replace(read_train(settings["train"], names), out=Path(out))
    parts = read_data(settings, names)
    if os.environ.get("LOCAL_RANK", "0") == "0":  # the first of the processes of several devices
        print(*(f"{part}: {data.summary()}" for part, data in parts.items()), sep="\n", flush=True)
    elements = sorted({z for data in parts.values() for z in data.elements})
    # Members of an ensemble draw weights of their own.
    seed = options.seed if isinstance(options.seed, int) else 0
    with own_random_numbers(torch.device("cpu"), seed):
        model = build_model(settings, elements, names)
    try:
        result = train_model(model, parts, options, settings)
    except OtherSettingsError as error:
        if isinstance(config, Mapping):
            raise
        raise OtherSettingsError(error.found, out, _Typed(config, overrides)) from error
    if result.main and result.out:
        from molequi import plotting

        plotting.parity(result.model, parts).savefig(result.out / "parity.png")
        plotting.learning_curve(result.history).savefig(result.out / "learning_curve.png")
    return result


class _Typed:
    """The command of a run with one more option of the section ``train``."""

    def __init__(self, config: str | os.PathLike, overrides: Sequence[str]) -> None:
        self.config, self.overrides = os.fspath(config), overrides

    def __call__(self, name: str, value: str) -> str:
        kept = [item for item in self.overrides if item.partition("=")[0] != f"train.{name}"]
        return shlex.join(["molequi", "train", self.config, *kept, f"train.{name}={value}"])
