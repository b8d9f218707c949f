"""Carry out a run that a YAML file describes."""

import os
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from molequi.config.inputs import with_inputs
from molequi.config.levels import run_of_each
from molequi.config.names import Names
from molequi.config.networks import check_networks, names_of_networks, run_networks
from molequi.config.places import check_published
from molequi.config.pretraining import Pretraining, begin, clear, pretrain
from molequi.config.report import PAGE, finished_run
from molequi.config.schema import build_model, check_config, read_data
from molequi.config.sections import find_config, of_networks, read_sections
from molequi.config.start import SECTION, start_model, with_start
from molequi.config.train import read_train
from molequi.data.dataset import Dataset
from molequi.errors import DataWarning, MolequiError, OtherSettingsError
from molequi.hooks import Hook
from molequi.losses import LossFunction
from molequi.model import Model
from molequi.quantities import Quantity
from molequi.training.checks import PARTS, check_folder
from molequi.training.devices import together
from molequi.training.ensembles import EnsembleResult
from molequi.training.fit import fit, train_model
from molequi.training.history import write_config
from molequi.training.options import TrainingOptions
from molequi.training.result import Result
from molequi.util.launchers import is_first_process
from molequi.util.locks import lock_folder
from molequi.util.options import as_options
from molequi.util.run_log import run_log, say
from molequi.util.seeding import own_random_numbers
from molequi.util.signature import check_keywords
from molequi.weights.results import NetworkResult


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
) -> Result | EnsembleResult | NetworkResult:
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
    Result, EnsembleResult or NetworkResult
        As `fit` returns it; the last one for a run on networks, see `molequi.config.networks`. The folder is
        ``train.out``, by default ``runs/<name of the file>``. Beside what `fit` writes it has the report page
        ``report.html`` and the pictures ``parity.png`` and ``learning_curve.png``; that of a run on networks
        has the last of these.

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
    with together():
        settings = read_sections(config, overrides, names, names_of_networks(names))
        networks = of_networks(settings)
        if networks:
            check_networks(settings, names)
        else:
            settings = with_start(settings, names)
            check_config(settings, names)
        if not isinstance(config, Mapping):
            check_published(find_config(config), settings)
    name = "run" if isinstance(config, Mapping) else Path(config).stem
    out = settings["train"]["out"] = settings["train"].get("out") or f"runs/{name}"
    try:
        return run_networks(settings, names) if networks else carry_out(settings, names)
    except OtherSettingsError as error:
        if isinstance(config, Mapping):
            raise
        raise OtherSettingsError(error.found, out, _Typed(config, overrides), error.force) from error


def carry_out(settings: dict[str, Any], names: Names, *, automatic: bool = False) -> Result | EnsembleResult:
    """Carry out a run whose sections were read and checked.

    Parameters
    ----------
    settings : dict
        The sections, with ``train.out``. Inputs of the backbone that the data have are filled in.
    names : Names
        What the names of the file stand for.
    automatic : bool
        The run was chosen by the data: fill in charge and spin too, where they differ between structures, and
        write ``config.yaml`` before the first step.

    Returns
    -------
    Result or EnsembleResult
        As `run` returns it.

    Raises
    ------
    DataError, TrainingError, CheckpointError
        As `run` does.
    """
    folder = Path(settings["train"]["out"])
    options = replace(read_train(settings["train"], names), out=folder)
    check_folder(options)
    with run_log(folder):
        return _run(settings, options, names, automatic)


def _run(
    settings: dict[str, Any], options: TrainingOptions, names: Names, automatic: bool
) -> Result | EnsembleResult:
    """Carry out a run whose description is checked."""
    section = settings.get("pretrain")
    wanted = None if section is None else as_options(Pretraining, section, "pretrain")
    if options.out is not None and not begin(wanted, options, section):
        wanted = None
    with together(options.compute, options.device):
        parts, result = _trained(settings, options, names, automatic, wanted)
    if result.main and result.out:
        try:
            _draw(result, parts, settings, result.out)
        except Exception as error:  # the training is saved, and must not end with an error of its pictures
            kind = "" if isinstance(error, MolequiError) else f"{type(error).__name__}: "
            warnings.warn(
                f"{result.out}: the model is trained and saved, but its report page and pictures could not "
                "all "
                f"be made: {kind}{error}. Try again with: molequi report {result.out}",
                DataWarning,
                stacklevel=2,
            )
    return result


def _trained(
    settings: dict[str, Any],
    options: TrainingOptions,
    names: Names,
    automatic: bool,
    wanted: Pretraining | None,
) -> tuple[dict[str, Dataset], Result | EnsembleResult]:
    """Read the data, build the model and train it."""
    # A backbone that is still to take charge and spin from the data is not asked whether it takes them.
    parts = read_data(settings | {"backbone": None} if automatic else settings, names)
    first = is_first_process()
    if first:
        say("\n".join(f"{part}: {data.summary()}" for part, data in parts.items()))
    if SECTION not in settings:
        settings["backbone"] = with_inputs(settings["backbone"], parts, names, totals=automatic)
    # A file that is there is that of this run, or of another one, which is refused below.
    if automatic and first and options.out is not None and not (options.out / "config.yaml").exists():
        with lock_folder(options.out):
            write_config(options.out, settings)
    elements = sorted({z for data in parts.values() for z in data.elements})
    model = new_model(settings, elements, options, names)
    if options.out is not None and options.resume == "restart" and first:
        clear(options.out)
    if wanted is not None:
        pretrain(model, parts, wanted, options)
    return parts, train_model(model, parts, options, settings)


class _Typed:
    """The command of a run with one more option of the section ``train``."""

    def __init__(self, config: str | os.PathLike, overrides: Sequence[str]) -> None:
        self.config, self.overrides = os.fspath(config), overrides

    def __call__(self, name: str, value: str) -> str:
        kept = [item for item in self.overrides if item.partition("=")[0] != f"train.{name}"]
        return shlex.join(["molequi", "train", self.config, *kept, f"train.{name}={value}"])


def new_model(
    settings: Mapping[str, Any], elements: Sequence[int], options: TrainingOptions, names: Names
) -> Model:
    """The model of a run before its training, with the weights that its seed gives or of `start_from`.

    Parameters
    ----------
    settings : Mapping
        All sections.
    elements : Sequence of int
        Elements of all parts of the data.
    options : TrainingOptions
        The options of the training.
    names : Names
        What the names of the file stand for.
    """
    start = start_model(settings, names)
    if start is not None:
        return start
    # Members of an ensemble draw weights of their own.
    seed = options.seed if isinstance(options.seed, int) else 0
    with own_random_numbers(torch.device("cpu"), seed):
        return build_model(settings, elements, names)


def _draw(
    result: Result | EnsembleResult, parts: Mapping[str, Dataset], settings: Mapping[str, Any], folder: Path
) -> None:
    """Write the pictures and the report page; the structures are predicted once for both."""
    from molequi import plotting
    from molequi.plotting.parities import parity_of
    from molequi.report_page import samples_of, write_page

    curve = plotting.learning_curve(result.history, quantities=result.model.quantities)
    curve.savefig(folder / "learning_curve.png")
    for name, run in run_of_each(finished_run(result, parts, settings)).items():
        samples = samples_of(run.model, run.parts)
        drawn = parity_of({part: (s.data, s.results) for part, s in samples.items()})
        drawn.savefig(folder / f"parity{name}.png")
        page = write_page((folder / PAGE).with_stem(f"{Path(PAGE).stem}{name}"), run, samples)
        say(f"report page: {page}")
