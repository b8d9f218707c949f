"""The section ``pretrain`` of a run: a first training on frames that a cheap calculator labels."""

import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Gt
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from molequi.data.dataset import Dataset
from molequi.errors import CheckpointError, ConfigError, OtherSettingsError, SimulationError, did_you_mean
from molequi.losses import Loss
from molequi.model import Model
from molequi.simulation.inputs import XTB, as_calculator
from molequi.simulation.sampling import sample_frames, spacing_problem
from molequi.training.checks import check_elements, learnt_terms
from molequi.training.devices import number_of_processes
from molequi.training.fit import train_model
from molequi.training.options import BatchSize, Normalization, TrainingOptions, Validation
from molequi.util.locks import is_ours, lock_folder
from molequi.util.options import Options, as_options
from molequi.util.run_log import say
from molequi.util.signature import check_keywords
from molequi.util.state_files import differences

FOLDER = "pretrain"  # in the folder of the run
_LEARNT = ("energy", "forces", "stress")
_VALIDATED = 20  # one frame in so many


@check_keywords()
@dataclass(frozen=True)
class Pretraining(Options):
    """A first training on frames that a cheap method labels; ``pretrain: gfn2-xtb`` is short for its name.

    The frames are those of `molequi.sample_frames`, from the structures of the training data. The model
    learns their energies and forces, and then begins the training on the data of the run with its weights.
    Scales and reference energies are set anew for that. What is not said here is as in the section ``train``.

    Parameters
    ----------
    calculator : str
        ``"gfn2-xtb"`` or ``"gfn1-xtb"`` (tblite, ``pip install 'molequi[xtb]'``), or a model file of molequi.
    frames : int, > 0
        Number of frames; one in 20 is for validation.
    temperature : float, > 0
        Temperature of the dynamics in K.
    spacing, timestep : float, > 0
        Time between two frames, and time step, in fs.
    epochs : int, > 0
        Epochs of the first training. They do not count for ``train.max_minutes``.
    lr : float, > 0
        Learning rate of the first training.
    batch_size : int, > 0
        Structures in a batch of the first training.
    """

    calculator: str
    frames: Annotated[int, Gt(0)] = 2000
    temperature: Annotated[float, Gt(0)] = 500.0
    spacing: Annotated[float, Gt(0)] = 10.0
    timestep: Annotated[float, Gt(0)] = 1.0
    epochs: Annotated[int, Gt(0)] = 25
    lr: Annotated[float, Gt(0)] = 5e-3
    batch_size: Annotated[int, Gt(0)] = 5

    shorthand: ClassVar[str] = "calculator"

    def problem(self) -> str:
        """Too few frames for validation, and times that do not fit each other."""
        if self.frames < _VALIDATED:
            return f"frames={self.frames}: wanted at least {_VALIDATED}, of which one is for validation"
        return spacing_problem(self.spacing, self.timestep)


def read_pretraining(section: Any, options: TrainingOptions, model: Model) -> Pretraining | None:
    """Read the section ``pretrain``, and check it against the training that follows.

    Parameters
    ----------
    section : Mapping, str or None
        The section; None if there is none.
    options : TrainingOptions
        The options of the training that follows.
    model : Model
        A model as it will be trained.

    Returns
    -------
    Pretraining or None
        The options.

    Raises
    ------
    ConfigError
        For wrong options, for a model without energy and forces, and for ensembles and several devices.
    """
    if section is None:
        return None
    found = as_options(Pretraining, section, FOLDER)
    missing = [name for name in ("energy", "forces") if name not in model.quantities]
    if missing:
        raise ConfigError(
            f"pretrain: calculators label energy and forces, and the model predicts "
            f"{', '.join(model.quantities)}; wanted predict: [energy, forces], or no section pretrain"
        )
    if not isinstance(options.seed, int):
        raise ConfigError(
            f"pretrain and train.seed={list(options.seed)}: one model is pretrained; train one run for each "
            "seed, and join them: mq.Ensemble([mq.load(…), …])"
        )
    if options.normalization.standardize is False:
        raise ConfigError(
            "pretrain and train.normalization.standardize=false: the reference energies of the cheap method "
            "would stay; leave standardize out"
        )
    count = number_of_processes(options.compute)
    if count > 1:
        raise ConfigError(
            f"pretrain and {count} processes (train.compute.devices, torchrun or srun): the first training "
            "runs on one device; wanted train.compute.devices=1"
        )
    return found


def begin(wanted: Pretraining | None, options: TrainingOptions, section: Any) -> bool:
    """Check the folder of a run, and return whether the first training is still to be done.

    Once the training on the data of the run has begun, the first one is not needed any more, nor what it was
    made with.

    Parameters
    ----------
    wanted : Pretraining or None
        The options of the first training.
    options : TrainingOptions
        Those of the training that follows.
    section : Mapping, str or None
        The section ``pretrain``.

    Raises
    ------
    OtherSettingsError
        If the run in the folder was pretrained in another way.
    CheckpointError
        If its ``config.yaml`` cannot be read.
    ConfigError, MissingPackageError
        If the calculator cannot be used.
    """
    folder = options.out
    assert folder is not None
    begun = any(folder.glob("state-*")) and options.resume != "restart"
    if begun:
        _check_same(folder, section)
    if wanted is None or begun:
        return False
    if wanted.calculator.lower() not in XTB and not os.path.exists(wanted.calculator):
        raise ConfigError(
            f"pretrain.calculator={wanted.calculator!r}{did_you_mean(wanted.calculator.lower(), XTB)}; "
            f"wanted {' or '.join(XTB)}, or a model file; from "
            "Python any other ASE calculator: mq.sample_frames(structures, calculator), then mq.fit"
        )
    as_calculator(wanted.calculator)
    return True


def clear(folder: Path) -> None:
    """Remove the states of a run and its first training, which begin anew.

    Otherwise an interrupt in the first training would leave the old state of the second.

    Parameters
    ----------
    folder : Path
        The folder of the run.

    Raises
    ------
    TrainingError
        If another process uses the folder.
    """
    if not is_ours(folder):
        return
    with lock_folder(folder):
        for state in folder.glob("state-*"):
            state.unlink()
        shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _check_same(folder: Path, section: Any) -> None:
    """Compare the section with that of the run in a folder."""
    file = folder / "config.yaml"
    if not file.exists():
        return
    try:
        before = OmegaConf.to_container(OmegaConf.load(file))
        found = before.get(FOLDER) if isinstance(before, Mapping) else None
        there = None if found is None else vars(as_options(Pretraining, found, FOLDER))
    except (ConfigError, OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file}: cannot be read ({' '.join(str(error).split())[:200]}); take it from a copy, or begin "
            "anew with train.resume=restart"
        ) from error
    here = None if section is None else vars(as_options(Pretraining, section, FOLDER))
    changed = differences({FOLDER: there}, {FOLDER: here})
    if changed:
        text = f"{folder} holds a training with other settings or data:\n  " + "\n  ".join(changed)
        raise OtherSettingsError(text, folder, force=False)


def pretrain(
    model: Model, parts: Mapping[str, Dataset], wanted: Pretraining, options: TrainingOptions
) -> None:
    """Train a model on sampled frames; its folder is ``pretrain`` in that of the run.

    What is there already is used: frames that were sampled, and the state of an interrupted training.

    Parameters
    ----------
    model : Model
        The model; it gets the weights.
    parts : mapping of Dataset
        The data of the run; the dynamics begins at the training structures.
    wanted : Pretraining
        The options.
    options : TrainingOptions
        Those of the training that follows.

    Raises
    ------
    ConfigError
        If the training that follows could not be done.
    SimulationError, TrainingError, CheckpointError
        As `sample_frames` and `fit` do.
    """
    assert options.out is not None and isinstance(options.seed, int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the training that follows warns
        learnt_terms(options, model, parts)
        check_elements(model, parts)
    folder, show = options.out / FOLDER, options.logging.progress
    frames = sample_frames(
        parts["train"],
        wanted.calculator,
        frames=wanted.frames,
        temperature=wanted.temperature,
        spacing=wanted.spacing,
        timestep=wanted.timestep,
        seed=options.seed,
        out=folder / "frames",
        progress=show,
    )
    if len(frames) < _VALIDATED:
        raise SimulationError(
            f"{folder / 'frames'}: {len(frames)} of {wanted.frames} frames could be calculated, and "
            f"{_VALIDATED} are needed; wanted another calculator, or a lower pretrain.temperature"
        )
    train, valid = _parts(frames)
    if show:
        say(f"pretraining on {len(train)} frames by {wanted.calculator}, {wanted.epochs} epochs")
    own = replace(
        options,
        epochs=wanted.epochs,
        max_minutes=None,
        batch_size=BatchSize(wanted.batch_size),
        lr=wanted.lr,
        loss=_losses(options, frames, model),
        validation=Validation(),
        normalization=Normalization(standardize=True),
        terms=(),
        out=folder,
        resume="auto",
    )
    train_model(model, {"train": train, "valid": valid}, own)


def _parts(frames: Dataset) -> tuple[Dataset, Dataset]:
    """One frame in 20 for validation: whole trajectories, evenly over their starts, if there are enough."""
    length = 1
    while length < len(frames) and frames.info["trajectory"][length] == frames.info["trajectory"][0]:
        length += 1
    length = length if len(frames) // length >= _VALIDATED else 1
    chosen = [k // length % _VALIDATED == _VALIDATED - 1 for k in range(len(frames))]
    return frames[[not one for one in chosen]], frames[chosen]


def _losses(options: TrainingOptions, frames: Dataset, model: Model) -> tuple[Loss, ...]:
    """The terms of the loss that the frames have labels for, and weights of zero for everything else."""
    names = [name for name in _LEARNT if name in model.quantities and frames.labelled(name)]
    terms = [term for term in options.losses if term.function is None and term.label in names]
    if not terms:
        kind = options.loss if isinstance(options.loss, str) else None
        terms = [Loss(name, weight=100.0 if name == "forces" else 1.0, kind=kind) for name in names]
    untrained = [name for name in model.heads if name not in names]
    return (*terms, *(Loss(name, weight=0.0) for name in untrained))
