"""From a description of a run to a trained model with its errors and pictures."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from molequi.config.schema import build_model, read_config, read_data
from molequi.training.fit import fit
from molequi.training.trainer import Result
from molequi.util.seeding import own_random_numbers


def run(config: str | os.PathLike | Mapping[str, Any], overrides: Sequence[str] = ()) -> Result:
    """Read data, build a model, train it, measure it, draw it; all as a YAML file says (see `molequi.config.schema`).

    config: a YAML file, the name of a recipe, or a mapping with the sections data, backbone, predict and train.
    overrides: such as `"train.lr=1e-3"`. The folder of the run is `train.out`, by default `runs/<name of the file>`;
    beside what `fit` writes it gets `parity.png` and `learning_curve.png`. Relative paths start at the working
    directory.
    Raises ConfigError before anything is read if the description is wrong, DataError if the data are, and the errors of
    `fit`.
    """
    settings = read_config(config, overrides)
    train = dict(settings["train"])
    name = "run" if isinstance(config, Mapping) else Path(config).stem
    train["out"] = settings["train"]["out"] = train.get("out") or f"runs/{name}"
    parts = read_data(settings)
    if os.environ.get("LOCAL_RANK", "0") == "0":  # the first of the processes of several devices
        print(*(f"{part}: {data.summary()}" for part, data in parts.items()), sep="\n", flush=True)
    elements = sorted({z for data in parts.values() for z in data.elements})
    seed = train.get("seed", 0)
    with own_random_numbers(
        torch.device("cpu"), seed if isinstance(seed, int) else 0
    ):  # members of an ensemble draw their own
        model = build_model(settings, elements)
    result = fit(model, **parts, **train, config=settings)
    if result.main:
        from molequi import plotting

        plotting.parity(result.model, parts).savefig(result.out / "parity.png")
        plotting.learning_curve(result.history).savefig(result.out / "learning_curve.png")
    return result
