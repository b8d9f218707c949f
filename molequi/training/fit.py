"""Training of a model: options against the model and the data, then the loop."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from traceback import clear_frames
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from molequi.accelerate import accelerate
from molequi.data.batches import check_main_guard
from molequi.data.dataset import Dataset
from molequi.data.overlap import warn_of_overlap
from molequi.data.reading import check_reading
from molequi.domain import totals_taken, warn_of_parts
from molequi.errors import ConfigError
from molequi.finetuning.levels import with_start
from molequi.finetuning.options import Finetuning
from molequi.finetuning.session import Start, begin, check_start, hooks_of, start_from
from molequi.hooks import Hook
from molequi.lint.checking import warn_of_faults
from molequi.losses import Loss, LossFunction, Objective
from molequi.model import Model
from molequi.ops.memory import keep_freed_memory
from molequi.readers.load import load_labelled
from molequi.training.checks import (
    check_elements,
    check_folder,
    check_lone_ions,
    check_neighbors,
    check_parts,
    check_terms,
    check_totals,
    learnt_terms,
    read_options,
    sets_scales,
)
from molequi.training.devices import advise, connect, together
from molequi.training.dispersion import without_dispersion
from molequi.training.ensembles import EnsembleResult, fit_seeds
from molequi.training.failures import is_of_workers, worker_ended
from molequi.training.intervals import KeepErrors
from molequi.training.levels import LevelLosses, Standards, each_level, numbered_parts
from molequi.training.loss_terms import balanced, with_class_weights
from molequi.training.options import (
    BatchSize,
    Compute,
    Logging,
    Normalization,
    Optimizer,
    Schedule,
    TrainingOptions,
    Validation,
)
from molequi.training.processes import Processes
from molequi.training.products import check_derivatives, directed, returned, with_products, without_products
from molequi.training.renamed import RENAMED
from molequi.training.result import Result
from molequi.training.symmetry import MeasureSymmetry
from molequi.training.trainer import Training
from molequi.util.devices import as_dtype
from molequi.util.locks import lock_folder
from molequi.util.run_log import log, run_log, versions
from molequi.util.seeding import own_random_numbers
from molequi.util.signature import check_keywords

Options = Mapping[str, Any]


@check_keywords({name: new.python for name, new in RENAMED.items()})
def fit(
    model: Model,
    train: Any,
    valid: Any,
    *,
    test: Any = None,
    epochs: Annotated[int, Gt(0)] | None = None,
    max_minutes: Annotated[float, Gt(0)] | None = None,
    batch_size: int | BatchSize | Options | None = None,
    lr: Annotated[float, Gt(0)] = 5e-3,
    loss: Options | Sequence[Loss | LossFunction] | Loss | str | None = None,
    optimizer: str | Optimizer | Options = Optimizer(),
    schedule: str | Schedule | Options = Schedule(),
    validation: Validation | Options = Validation(),
    normalization: Normalization | Options = Normalization(),
    terms: Sequence[Hook] = (),
    logging: Logging | Options = Logging(),
    compute: Compute | Options = Compute(),
    finetune: str | Finetuning | Options | None = None,
    device: str = "auto",
    out: str | Path | None = None,
    resume: Literal["auto", "force", "restart"] = "auto",
    seed: Annotated[int, Ge(0)] | Sequence[Annotated[int, Ge(0)]] = 0,
) -> Result | EnsembleResult:
    """Train a model, keep its best weights, and measure its errors.

    The weights are trained on `train`. The best weights are those with the lowest loss on `valid`. Errors are
    measured on all parts of the data; of `train` on at most 10,000 structures, evenly spaced.

    Options that belong together are one object, such as `Optimizer` or `Schedule`. A mapping of its fields
    will do: ``optimizer={"name": "adamw", "weight_decay": 1e-3}``.

    Parameters
    ----------
    model : Model
        The model to train. Afterwards it has the best weights.
    train, valid, test : Dataset or what `load_dataset` takes
        Datasets, files, lists of Graphs or Atoms. `test` is optional, and only its errors are measured. The
        parts of `Dataset.split` are handed over as
        ``fit(model, **data.split({"train": 0.8, "valid": 0.2}), …)``.
    epochs, max_minutes : int, float, optional
        When the training ends: give one of them or both. The first that is reached ends it. The minutes are
        those of training and validation; the compilation of the model is not counted.
    batch_size : int or BatchSize, optional
        Number of structures in a batch, 5 by default. ``{"atoms": n}`` or ``{"edges": n}`` limits the number
        of atoms or edges instead.
    lr : float, > 0
        Learning rate.
    loss : mapping, sequence, Loss or str, optional
        Weights, ``{"energy": 1, "forces": 100}``; a list of `Loss` objects and functions
        ``(predictions, graph) -> Tensor``; or a kind for all quantities, ``"mae"``. By default the weight is
        100 for forces and 1 for every other quantity that the model predicts. If the model predicts no
        forces, each of these default weights is divided by the standard deviation of the labels (squared for
        "mse"), so that units do not matter.
    optimizer : str or Optimizer
        ``"adam"``, ``"adamw"`` or ``"soap"``; weight decay, clipping, averaging of the weights.
    schedule : str or Schedule
        ``"cosine"``, ``"plateau"`` or ``"constant"``; warm-up.
    validation : Validation
        How often to validate, and after how many validations without progress to stop.
    normalization : Normalization
        Reference energies of isolated atoms, scales of the outputs.
    terms : Sequence of Hook
        Terms beside the loss: `EquivarianceRegularizer`, `ConstraintAnnealing`, `EquivarianceSelection`, or
        your own `Hook`.
    logging : Logging
        Loggers, progress bar, how often the state is saved.
    compute : Compute
        Precision, compilation, number of devices, worker processes, cache of neighbor lists.
    finetune : str or Finetuning, optional
        ``"all"``, ``"heads"``, ``"frozen"`` or ``"lora"``: how a trained model is trained further on new
        data; new elements, reference energies, old data beside the new ones. None trains all weights, and
        a loaded model keeps its reference energies.
    device : {"auto", "cpu", "cuda", "cuda:1"}
        Where it trains, and where the model is afterwards. "auto" is CUDA if this machine has it, otherwise
        the CPU.
    out : path, optional
        Folder of the run. It gets the state for resuming, ``model.safetensors`` (the best model so far),
        ``metrics.csv``, ``errors.json``, ``errors.csv``, ``config.yaml`` and a JSON file for each report of a
        term. None writes nothing.
    resume : {"auto", "force", "restart"}
        "auto" continues the training in `out` if options and data are the same. "force" continues it even if
        they differ. "restart" begins anew.
    seed : int or Sequence of int
        Seed of the order of the data and of everything else that is random. A list trains an ensemble, one
        member for each seed.

    Returns
    -------
    Result or EnsembleResult
        The best model, a row for each epoch, errors by part, reports of the terms. The random state of the
        caller is unchanged.

    Raises
    ------
    ConfigError
        For options that are wrong, that contradict each other, the model or the data, or that have no effect.
    UnknownKeywordError
        For an argument that `fit` does not have; it names the right one.
    TrainingError
        If the loss is not finite (with the structures), memory runs out, the folder is in use, or another
        process is lost (with its rank).
    CheckpointError
        If the saved state is damaged or the disk is full.
    KeyboardInterrupt, SystemExit
        For Ctrl-C and SIGTERM, after the step is finished and the state is saved.

    Examples
    --------
    >>> import torch
    >>> from molequi import EGNN, Graph, Loss, Model, fit
    >>> waters = [
    ...     Graph.single(torch.tensor([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, y, 0.0]]), ["O", "H", "H"],
    ...                  targets={"energy": torch.tensor([-14.0 + y], dtype=torch.float64)})
    ...     for y in (0.90, 0.92, 0.94, 0.96)
    ... ]
    >>> model = Model(EGNN(elements=["H", "O"], channels=4, layers=1), ["energy"])
    >>> result = fit(model, waters[:3], waters[3:], epochs=2, loss=[Loss("energy", kind="huber")],
    ...              logging={"progress": False})
    >>> len(result.history), result.stopped
    (2, 'all epochs')
    """
    arguments = {
        name: value for name, value in locals().items() if name not in ("model", "train", "valid", "test")
    }
    parts = {"train": train, "valid": valid} | ({} if test is None else {"test": test})
    return train_model(model, parts, read_options(fit, arguments, "fit"))


def train_model(
    model: Model,
    parts: Mapping[str, Any],
    options: TrainingOptions,
    config: Mapping[str, Any] | None = None,
) -> Result | EnsembleResult:
    """Train a model with options that were checked before, as `fit` does.

    Parameters
    ----------
    model : Model
        The model to train.
    parts : Mapping
        ``"train"``, ``"valid"`` and perhaps ``"test"``, each a Dataset or what `load_dataset` takes.
    options : TrainingOptions
        All options.
    config : Mapping, optional
        The description of the run in a YAML file. It is kept in the model file and as ``config.yaml``.

    Returns
    -------
    Result or EnsembleResult
        As `fit` returns it.

    Raises
    ------
    ConfigError, TrainingError, CheckpointError
        As `fit` does.
    """
    check_start(model, options.finetune, options.seed, options.normalization.standardize)
    if not isinstance(model, Model):
        if isinstance(model, (str, Path)):
            raise ConfigError(
                f"fit trains a Model, found the text {str(model)!r}; write mq.load({str(model)!r})"
            )
        raise ConfigError(
            f"fit trains a Model, found {type(model).__name__}; an ensemble is trained from one Model with "
            "seed=[0, 1, 2], and model.mean_model is the Model of mq.laplace"
        )
    if model.levels and not isinstance(options.seed, int):
        raise ConfigError(
            f"seed={list(options.seed)}: an ensemble is of one level of theory, and the model has several; "
            "train one run for each seed, and join them: mq.Ensemble([mq.load(…, level=…), …])"
        )
    check_main_guard(options.compute.workers)
    check_folder(options)
    check_parts(parts)
    check_terms(options, model, "fit.terms")
    with run_log(options.out), together(options.compute, options.device):
        result: Result | EnsembleResult
        if isinstance(options.seed, int):
            result = _train_single(model, parts, options, config)
        else:
            result = fit_seeds(_train_single, model, parts, options, config)
        if result.main:
            log(str(result))
    return result


def _train_single(
    model: Model, parts: Mapping[str, Any], options: TrainingOptions, config: Mapping[str, Any] | None
) -> Result:
    """Train one model; with Hessian-vector products in the loss, a view of it that predicts them. What a
    dispersion correction adds is not learned.
    """
    view = with_products(model, options)
    totals = totals_taken(view)
    data = {name: load_labelled(given, view.quantities, totals) for name, given in parts.items()}
    with without_dispersion(view, directed(data, view)) as rest:
        return returned(_train_rest(view, rest, options, config), model)


def _train_rest(
    model: Model, data: dict[str, Dataset], options: TrainingOptions, config: Mapping[str, Any] | None
) -> Result:
    """Train one model on labels that it predicts as it is."""
    losses = learnt_terms(options, model, data)
    start, level = None, None
    if options.finetune is not None:
        options = replace(options, finetune=(finetune := with_start(model, options.finetune)))
        start, data = start_from(model, data, finetune, options.member_seed)
        level = finetune.level
    data = numbered_parts(model, data, level)
    check_elements(model, data)
    check_totals(model, data)
    warn_of_overlap(data)
    each_level(model, data, warn_of_faults)
    warn_of_parts(model, data)
    for name, part in data.items():
        check_reading(data["train"].reading, part.reading, f"the {name} data", "the training data")
    sets = sets_scales(options, model) and start is None
    processes = connect(options.compute, options.device)
    if options.compute.clock == "processor" and processes.device.type != "cpu":
        raise ConfigError(
            f"compute.clock='processor' does not see the time of {processes.device}; take clock='wall', or "
            "train on the CPU with device='cpu'"
        )
    advise(
        "start it again; with out=… the state is saved, and a training continues"
        if options.out is None
        else f"start the same command again: it continues from the last state in {options.out}",
        options.out,
    )
    keep_freed_memory()
    with (
        run_log(options.out),
        lock_folder(options.out) if options.out and processes.is_global_zero else nullcontext(),
        own_random_numbers(processes.device, options.member_seed),
        ExitStack() as ends,
    ):
        training = _prepared(model, data, losses, options, processes, config, start or sets, ends)
        try:
            return training.run()
        except (RuntimeError, ConnectionError, EOFError) as error:
            if not options.compute.workers or not is_of_workers(error):
                raise
            ended = worker_ended(training, error)
            del training
            # The workers end with the last references to them, and would raise anywhere until then.
            clear_frames(error.__traceback__)
            raise ended from None


def _prepared(
    model: Model,
    data: Mapping[str, Dataset],
    losses: tuple[Loss, ...],
    options: TrainingOptions,
    processes: Processes,
    config: Mapping[str, Any] | None,
    scales: bool | Start,
    ends: ExitStack,
) -> Training:
    """The training before its first step: edges, scales and the compiled program are there.

    `scales` says whether they are set from the data; of a fine-tuning it is what is known of its start.
    """
    data = {
        name: part.connected(model.cutoff, options.compute.cache, k=model.k) for name, part in data.items()
    }
    if "long_range" not in model.energy_terms:  # with it, atoms without neighbors are not alone
        check_neighbors(data["train"], model.cutoff)
    elif scales is True and options.normalization.reference_energies is None:
        check_lone_ions(model, data["train"])
    check_derivatives(model, data["train"])
    model.to(as_dtype(options.compute.precision))
    standards = Standards.of(model, data["train"], options.normalization.reference_energies)
    record = {
        "settings": options.record() | {"loss": {term.label: term.record() for term in losses}},
        "model": model.hparams if options.out else {},
        "data": {name: part.digest for name, part in data.items()},
    }
    if not isinstance(options.loss, tuple) and not model.gradients:
        losses = balanced(losses, standards.scale)
    model.to(processes.device)
    beginning, terms = None, options.terms
    if isinstance(scales, Start):
        assert options.finetune is not None
        beginning = begin(model, scales, data, losses, options.finetune, standards.given, options.member_seed)
    elif scales:
        standards.set_scales(model)
    else:
        standards.set_given(model)
    _same_everywhere(processes, model, options, losses, record)
    if beginning is not None:
        method, own = hooks_of(model, beginning, options.member_seed, processes.device)
        ends.callback(method.close)
        terms = (*terms, *own)
    if options.compute.accelerate:
        accelerate(model)
    return Training(
        model,
        data,
        Objective(_weighted(losses, model, data["train"]), model.quantities),
        (*terms, *([LevelLosses(model.levels)] if model.levels else []), MeasureSymmetry(), KeepErrors()),
        options,
        processes,
        record,
        (config or _config(model, options, losses)) if options.out else {},
    )


def _same_everywhere(
    processes: Processes,
    model: Model,
    options: TrainingOptions,
    losses: tuple[Loss, ...],
    record: Mapping[str, Any],
) -> None:
    """Check that all processes train the same, and give all of them the weights of rank 0.

    A script may draw the weights from random numbers without a seed.
    """
    if processes.world_size == 1:
        return
    state = model.state_dict()
    processes.check_equal(
        {
            "versions": versions(),
            **record,
            "terms": options.plain(losses).get("terms", []),
            "validation": vars(options.validation),
            "save_minutes": options.logging.save_minutes,
            "accelerate": options.compute.accelerate,
            "out": "a folder" if options.out else None,
            "resume": options.resume,
            "weights": {name: list(value.shape) for name, value in state.items()},
        }
    )
    model.load_state_dict(processes.broadcast(dict(state)))


def _weighted(losses: tuple[Loss, ...], model: Model, train: Dataset) -> tuple[Loss, ...]:
    """The terms with the weights of classes that are "balanced" as numbers."""
    classes = {name: q.classes for name, q in model.quantities.items() if q.classes}
    labels = {name: train.values(name) for name in classes if name in train.quantities}
    return with_class_weights(losses, labels, classes)


def _config(model: Model, options: TrainingOptions, losses: Sequence[Loss]) -> dict[str, Any]:
    """What is known of a run that was not made from a file, in the form of one."""
    hparams = without_products(model).hparams
    plain = options.plain(losses)
    for name in (name for name, q in model.quantities.items() if q.classes and name in plain["loss"]):
        del plain["loss"][name]["kind"]  # classes have none
    return {
        "backbone": {hparams["backbone"]: hparams["options"]},
        "train": plain,
        **hparams.get("terms", {}),
        "predict": [
            {p["head"]: {"quantity": p["quantity"], **p["options"]} if p["options"] else p["quantity"]}
            if "head" in p
            else p
            for p in hparams["predict"]
        ],
    }
