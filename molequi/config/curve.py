"""Errors against the number of training structures: the same training on parts of the data."""

import math
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from molequi.config.inputs import with_inputs
from molequi.config.levels import names_of
from molequi.config.names import Names
from molequi.config.places import check_published
from molequi.config.run import new_model
from molequi.config.schema import read_config, read_data
from molequi.config.sections import find_config
from molequi.config.start import SECTION
from molequi.config.train import read_train
from molequi.config.trainings import as_clock, fingerprint, finished, keep, lengthened, random_order
from molequi.data.dataset import Dataset
from molequi.errors import ConfigError, DataError, OtherSettingsError
from molequi.hooks import Hook
from molequi.inference.learning_curves import LearningCurve, Point, measured
from molequi.inference.metrics import Errors
from molequi.losses import LossFunction
from molequi.quantities import Quantity
from molequi.training.fit import train_model
from molequi.training.options import TrainingOptions
from molequi.util.files import write_file
from molequi.util.locks import check_unused, lock_folder
from molequi.util.run_log import log, run_log, say
from molequi.util.signature import check_keywords

WRITTEN = ("curve.json", "curve.csv", "curve.png")
FRACTIONS = (0.125, 0.25, 0.5, 1.0)
Same = Literal["steps", "epochs"]


@check_keywords()
def learning_curve(
    config: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    fractions: Sequence[Annotated[float, Gt(0), Le(1)]] = FRACTIONS,
    repeats: Annotated[int, Ge(1)] = 1,
    same: Same = "steps",
    measure: Literal["mae", "rmse"] = "mae",
    part: Literal["valid", "test"] = "valid",
    out: str | os.PathLike[str] | None = None,
    backbones: Mapping[str, Any] | None = None,
    heads: Mapping[str, Any] | None = None,
    readers: Mapping[str, Any] | None = None,
    losses: Mapping[str, LossFunction] | None = None,
    quantities: Mapping[str, Quantity] | None = None,
    hooks: Mapping[str, type[Hook] | Hook] | None = None,
) -> LearningCurve:
    """Train on parts of the training data, and say how many more structures a given error needs.

    The model of a run is trained on random parts of its training data. Each part contains the smaller ones.
    Validation and test data are the same for all. A power law is fitted to the errors on the validation data,
    or with ``part="test"`` on the test data.

    All trainings have the same number of steps: those with fewer structures have more epochs, and are
    validated as often. So a larger error comes from fewer data and not from a shorter training. A run that is
    limited by ``max_minutes`` alone has the same time for each. The whole takes about as many times the time
    of the run as there are trainings.

    Each training has a folder of its own. If the same curve is started again, finished trainings are not run
    again, and an interrupted one continues.

    Parameters
    ----------
    config : path, str or Mapping
        The run, as in `molequi.run`.
    overrides : Sequence of str
        Settings that replace those of the file, such as ``"train.epochs=50"``.
    fractions : Sequence of float, 0 < fraction <= 1
        Parts of the training data.
    repeats : int, >= 1
        Number of trainings for each part, with other structures and another seed. More than one makes the
        interval of the power law reliable.
    same : {"steps", "epochs"}
        What all trainings have in common. With "epochs" small parts are trained for fewer steps, which takes
        less time and makes more data look better than they are.
    measure : {"mae", "rmse"}
        Which error: mean absolute or root mean square. Of classes it is the share of wrong answers.
    part : {"valid", "test"}
        The data on which the errors are measured.
    out : path, optional
        Folder; by default that of the run with ``-curve`` at its end. It gets ``curve.json``, ``curve.csv``
        and ``curve.png``. The next report page of the run shows the curve.
    backbones, heads, readers, losses, quantities, hooks : Mapping, optional
        Your own objects, as in `molequi.run`.

    Returns
    -------
    LearningCurve
        The errors; ``print(curve)`` shows them with the power laws, and ``curve.structures_for("forces",
        0.02)`` says how many structures an error needs.

    Raises
    ------
    ConfigError, DataError, TrainingError, CheckpointError
        As `molequi.run` does, and if the fractions are not two or more parts of the training data.
    """
    names = Names.of(
        backbones=backbones, heads=heads, readers=readers, losses=losses, quantities=quantities, hooks=hooks
    )
    options = CurveOptions(tuple(fractions), repeats, same, measure, part)
    settings = read_config(config, overrides, names)
    if not isinstance(config, Mapping):
        check_published(find_config(config), settings)
    name = "run" if isinstance(config, Mapping) else Path(config).stem
    run = settings["train"].get("out") or f"runs/{name}"
    folder = Path(out) if out is not None else Path(f"{run}-curve")
    return carry_out_curve(settings, names, options, folder, partial(_typed, config, list(overrides)))


@dataclass(frozen=True)
class CurveOptions:
    """What `learning_curve` measures; see there.

    Parameters
    ----------
    fractions : sequence of float
        Parts of the training data.
    repeats : int
        Number of trainings for each part.
    same : {"steps", "epochs"}
        What all trainings have in common.
    measure : {"mae", "rmse"}
        Which error.
    part : {"valid", "test"}
        The data on which the errors are measured.

    Raises
    ------
    ConfigError
        For wrong values.
    """

    fractions: Sequence[float] = FRACTIONS
    repeats: int = 1
    same: Same = "steps"
    measure: Literal["mae", "rmse"] = "mae"
    part: Literal["valid", "test"] = "valid"

    def __post_init__(self) -> None:
        _check(self.fractions, self.repeats, self.same, self.measure, self.part)


def carry_out_curve(
    settings: dict[str, Any],
    names: Names,
    options: CurveOptions,
    folder: Path,
    typed: Callable[[str, str], str],
    *,
    automatic: bool = False,
) -> LearningCurve:
    """The learning curve of a run whose sections were read and checked.

    Parameters
    ----------
    settings : dict
        The sections.
    names : Names
        What the names of the file stand for.
    options : CurveOptions
        What is measured.
    folder : Path
        Folder of the curve.
    typed : callable
        The command with one more option, by name and value, for messages.
    automatic : bool
        The run was chosen by the data: fill in charge and spin too, as in `molequi.config.run.carry_out`.

    Returns
    -------
    LearningCurve
        As `learning_curve` returns it.

    Raises
    ------
    ConfigError, DataError, TrainingError, CheckpointError
        As `learning_curve` does.
    """
    if settings.get("pretrain") is not None:
        raise ConfigError(
            "learning_curve: the section pretrain is not carried out for parts of the data; leave it out: "
            "pretrain=null"
        )
    if names_of(settings["data"]) is not None:
        raise ConfigError(
            "learning_curve: the data are of several levels of theory; take those of one level, and leave "
            "data.levels out"
        )
    settings["train"]["out"] = None
    training = read_train(settings["train"], names)
    check_unused(folder, WRITTEN, restart=training.resume == "restart")
    with run_log(folder):
        parts = read_data(settings, names)
        if options.part not in parts:
            raise ConfigError(
                f"learning_curve: part={options.part!r}, and the data have the parts {', '.join(parts)}; "
                "wanted 'valid', or a test part in the section data"
            )
        if SECTION not in settings:
            settings["backbone"] = with_inputs(settings["backbone"], parts, names, totals=automatic)
        plans = list(_plans(parts["train"], training, options, folder))
        try:
            with lock_folder(folder):
                curve = _trained(plans, parts, settings, names, options, folder)
                _write(curve, folder)
        except OtherSettingsError as error:
            raise OtherSettingsError(error.found, folder, typed, force=False) from error
        log(str(curve))
    return curve


@dataclass(frozen=True)
class _Plan:
    """One training.

    Parameters
    ----------
    data : Dataset
        Its training data.
    repeat : int
        Which random choice.
    options : TrainingOptions
        Its options.
    """

    data: Dataset
    repeat: int
    options: TrainingOptions

    @property
    def folder(self) -> Path:
        """Its folder."""
        assert self.options.out is not None
        return self.options.out


def _check(fractions: Sequence[float], repeats: int, same: str, measure: str, part: str) -> None:
    """Raise ConfigError for wrong options."""
    if same not in ("steps", "epochs"):
        raise ConfigError(f"learning_curve: same={same!r}; wanted 'steps' or 'epochs'")
    if measure not in ("mae", "rmse"):
        raise ConfigError(f"learning_curve: measure={measure!r}; wanted 'mae' or 'rmse'")
    if part not in ("valid", "test"):
        raise ConfigError(f"learning_curve: part={part!r}; wanted 'valid' or 'test'")
    if not isinstance(repeats, int) or repeats < 1:
        raise ConfigError(f"learning_curve: repeats={repeats!r}; wanted a whole number from 1")
    numbers = [f for f in fractions if isinstance(f, (int, float)) and 0 < f <= 1]
    if len(numbers) != len(fractions) or len(set(numbers)) < 2:
        raise ConfigError(
            f"learning_curve: fractions={list(fractions)}; wanted two or more different numbers above 0 and "
            "at "
            "most 1, such as [0.125, 0.25, 0.5, 1]"
        )


def _plans(train: Dataset, options: TrainingOptions, asked: CurveOptions, folder: Path) -> Iterator[_Plan]:
    """All trainings, those with few structures first."""
    fractions = asked.fractions
    sizes = sorted({max(1, round(fraction * len(train))) for fraction in fractions})
    if len(sizes) < 2:
        raise DataError(
            f"there are {len(train)} training structures, of which the fractions {list(fractions)} are "
            f"{sizes}; wanted two or more different numbers of structures"
        )
    orders = [random_order(train, repeat) for repeat in range(asked.repeats)]
    for size in sizes:
        for repeat, order in enumerate(orders):
            name = f"n{size:06d}" + (f"-r{repeat}" if repeat else "")
            own = lengthened(options, size, len(train)) if asked.same == "steps" else options
            seed = options.seed + repeat if isinstance(options.seed, int) else options.seed
            yield _Plan(train[sorted(order[:size])], repeat, replace(own, out=folder / name, seed=seed))


def _typed(config: object, overrides: Sequence[str], name: str, value: str) -> str:
    """How an option is typed: as a command, or for a description from Python as an argument."""
    if isinstance(config, Mapping):
        return f"out={value!r}" if name == "out" else f"overrides=['train.{name}={value}']"
    words = ["molequi", "curve", os.fspath(config), *overrides]  # type: ignore[call-overload]
    return shlex.join([*words, "--out", value] if name == "out" else [*words, f"train.{name}={value}"])


def _trained(
    plans: Sequence[_Plan],
    parts: Mapping[str, Dataset],
    settings: dict[str, Any],
    names: Names,
    options: CurveOptions,
    folder: Path,
) -> LearningCurve:
    """The errors of all trainings."""
    same, measure, part = options.same, options.measure, options.part
    elements = sorted({z for data in parts.values() for z in data.elements})
    points: list[Point] = []
    spent = done = 0.0
    weights = [float(len(plan.data)) if same == "epochs" else 1.0 for plan in plans]
    for k, plan in enumerate(plans):
        key, record = (
            fingerprint(plan.options, {**parts, "train": plan.data}, settings),
            plan.folder / "point.json",
        )
        found = finished(record, key, plan.options)
        if found is None:
            left = f"; about {as_clock(spent / done * sum(weights[k:]))} left" if done else ""
            epochs = f", {plan.options.epochs} epochs" if plan.options.epochs else ""
            say(f"training {k + 1} of {len(plans)}: {len(plan.data)} structures{epochs}{left}")
            started = time.monotonic()
            model = new_model(settings, elements, plan.options, names)
            result = train_model(model, {**parts, "train": plan.data}, plan.options)
            spent, done = spent + time.monotonic() - started, done + weights[k]
            found = {name: errors.records() for name, errors in result.errors.items()}
            keep(record, key, found)
        else:
            say(f"training {k + 1} of {len(plans)}: {len(plan.data)} structures: done before, {plan.folder}")
        errors, training = Errors.from_records(found[part]), Errors.from_records(found["train"])
        values, units = measured(errors, measure)
        points.append(Point(len(plan.data), plan.repeat, values, measured(training, measure)[0]))
        classes = [row.quantity for row in errors.rows if not row.element and not math.isnan(row.accuracy)]
        curve = LearningCurve(points, units, part, same, measure, classes)
        write_file(folder / "curve.json", curve.to_json())
    return curve


def _write(curve: LearningCurve, folder: Path) -> None:
    """Write the table and the picture."""
    import csv
    import io

    from molequi import plotting

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["structures", "repeat", *(f"{name}_{curve.part}" for name in curve.units)]
        + [f"{name}_train" for name in curve.units]
    )
    for point in curve.points:
        writer.writerow([point.structures, point.repeat, *point.errors.values(), *point.training.values()])
    write_file(folder / "curve.csv", text.getvalue())
    plotting.size_curve(curve).savefig(folder / "curve.png")
