"""The learning curve of a file of data, with everything else chosen."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from molequi.config.automatic.asked import Asked, asked_of
from molequi.config.automatic.planned import free_folder, planned, print_plan
from molequi.config.automatic.train import train_file
from molequi.config.curve import CurveOptions, carry_out_curve
from molequi.config.names import Names
from molequi.inference.learning_curves import LearningCurve
from molequi.util.signature import check_call


def curve_file(
    path: str | os.PathLike,
    overrides: Sequence[str] = (),
    *,
    options: CurveOptions = CurveOptions(),
    out: str | os.PathLike | None = None,
    **data: Any,
) -> LearningCurve:
    """Train on parts of a file, and say how many more structures a given error needs.

    Model, split and training are chosen as in `molequi.train_file`; see `molequi.learning_curve` for the
    curve.

    Parameters
    ----------
    path : path
        The data, as in `molequi.train_file`.
    overrides : sequence of str
        Settings that replace those that were chosen, such as ``"train.lr=1e-3"``.
    options : CurveOptions
        The parts, and which error is measured.
    out : path, optional
        Folder; by default that of the run with ``-curve`` at its end, such as ``runs/NAME-curve``.
    **data
        Options of `molequi.train_file` that describe the data: target, units, keys, stress, column, recipe,
        members, skip, allow.

    Returns
    -------
    LearningCurve

    Raises
    ------
    ConfigError, DataError, TrainingError, CheckpointError
        As `molequi.train_file` and `molequi.learning_curve` do.
    """
    check_call(train_file, data, where="curve_file", leave_out=("path", "overrides", "out"))
    asked = replace(asked_of(**data), command="curve")
    plan, settings = planned(os.fspath(path), overrides, asked)
    run = settings["train"].get("out") or free_folder(Path(path), settings)
    folder = Path(out) if out is not None else Path(f"{run}-curve")
    print_plan(plan, settings, folder)
    typed = partial(_typed, os.fspath(path), list(overrides), asked)
    return carry_out_curve(settings, Names(), options, folder, typed, automatic=True)


def _typed(path: str, overrides: Sequence[str], asked: Asked, name: str, value: str) -> str:
    """The command with one more option, for messages."""
    words = ["molequi", "curve", path, *asked.words(), *overrides]
    return shlex.join([*words, "--out", value] if name == "out" else [*words, f"train.{name}={value}"])
