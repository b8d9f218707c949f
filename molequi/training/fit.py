"""Training of a model: settings against the model and the data, then the loop."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt

from molequi.accelerate import accelerate as compiled
from molequi.approximate.annealing import check_relaxation
from molequi.approximate.regularizers import GROUP, KIND, Prior, check_form, check_model, check_prior
from molequi.approximate.regularizers import Kind as PriorKind
from molequi.approximate.selection import EVERY, check_degree
from molequi.approximate.selection import Method as DegreeMethod
from molequi.approximate.transforms import draws_of, scales
from molequi.checkpoint import as_device, as_dtype
from molequi.data.dataset import Dataset
from molequi.errors import ConfigError, DataWarning, did_you_mean
from molequi.losses import Kind, Loss
from molequi.model import Model
from molequi.ops.memory import keep_freed_memory
from molequi.quantities import SYMBOLS, Quantity
from molequi.readers.ase import read_ase
from molequi.readers.load import load_dataset
from molequi.training.devices import launch
from molequi.training.ensembles import EnsembleResult, fit_seeds
from molequi.training.schedule import Name
from molequi.training.trainer import Result, Training
from molequi.util.locks import lock_folder
from molequi.util.seeding import own_random_numbers
from molequi.util.signature import check_call

# Parameters of `fit` that are not settings of a run.
PARTS = ("model", "train", "valid", "test", "config")
# Settings that may differ between a training and its continuation, since they do not change what is learnt.
FREE = (
    "out",
    "resume",
    "accelerate",
    "device",
    "devices",
    "workers",
    "save_minutes",
    "progress",
    "tensorboard",
    "cache",
)


def fit(
    model: Model,
    train: Any,
    valid: Any,
    *,
    test: Any = None,
    epochs: Annotated[int, Gt(0)] | None = None,
    max_minutes: Annotated[float, Gt(0)] | None = None,
    lr: Annotated[float, Gt(0)] = 5e-3,
    batch_size: Annotated[int, Gt(0)] | None = None,
    batch_atoms: Annotated[int, Gt(0)] | None = None,
    batch_edges: Annotated[int, Gt(0)] | None = None,
    loss: Mapping[str, Annotated[float, Ge(0)]] | None = None,
    loss_kind: Kind = "mse",
    huber_delta: Annotated[float, Gt(0)] = 0.01,
    optimizer: Literal["adam", "adamw"] = "adam",
    amsgrad: bool = True,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
    schedule: Name = "cosine",
    warmup: Annotated[float, Ge(0)] = 0.0,
    plateau_factor: Annotated[float, Gt(0), Lt(1)] = 0.5,
    plateau_patience: Annotated[int, Ge(0)] = 10,
    lr_floor: Annotated[float, Ge(0), Lt(1)] = 0.01,
    ema: Annotated[float, Ge(0), Lt(1)] = 0.99,
    clip: Annotated[float, Gt(0)] | None = 10.0,
    patience: Annotated[int, Gt(0)] | None = None,
    validate_every: Annotated[int, Gt(0)] = 1,
    prior: Mapping[str, Annotated[float, Ge(0)]] | None = None,
    prior_kind: PriorKind = KIND,
    prior_structures: Any = None,
    prior_group: str = GROUP,
    prior_shift: Annotated[float, Gt(0)] | None = None,
    relax: Annotated[float, Ge(0)] | None = None,
    degree: DegreeMethod | None = None,
    degree_every: Annotated[int, Gt(0)] = EVERY,
    precision: Literal["float32", "float64"] = "float32",
    seed: Annotated[int, Ge(0)] | Sequence[Annotated[int, Ge(0)]] = 0,
    reference_energies: Any = None,
    standardize: bool | None = None,
    accelerate: bool = False,
    device: str = "cpu",
    devices: Annotated[int, Gt(0)] = 1,
    workers: Annotated[int, Ge(0)] = 0,
    out: str | Path | None = None,
    resume: Literal["auto", "force", "restart"] = "auto",
    save_minutes: Annotated[float, Ge(0)] = 1.0,
    cache: str | Path | None = None,
    tensorboard: bool = False,
    progress: bool = True,
    config: Mapping[str, Any] | None = None,
) -> Result | EnsembleResult:
    """Train `model` on `train`, choose its best weights by the loss on `valid`, and measure the errors of all parts.

    train, valid, test: Datasets, or what `data.load_dataset` makes one of: files, lists of Graphs or Atoms.

    How long: `epochs`, `max_minutes`, or both, whichever is reached first; `patience` ends after so many validations
    without a better loss. The cosine schedule is down at the end of either, so a training of 30 minutes ends with small
    steps.
    Batches: one of `batch_size` (structures), `batch_atoms`, `batch_edges`; 5 structures by default, over all `devices`
    together.
    loss: weight of each quantity, `{"energy": 1, "forces": 100}`; by default 1 for all that the model predicts and
    `train` has labels of, and 100 for forces; without forces each is divided by the spread of its labels (squared for "mse"), so that
    none outweighs others by its unit. Errors of extensive scalars are taken per atom; see `Loss`, also for loss_kind
    and huber_delta (in eV and Å).
    schedule, warmup, plateau_factor, plateau_patience, lr_floor: see `Schedule`; warmup in epochs, the others in parts
    of `lr`.
    ema: decay of the averaged weights, which are those that are validated and kept; 0 takes the weights as they are.
    clip: the largest norm of the gradient. validate_every: epochs from one validation to the next.
    isolated, standardize: energies of isolated atoms (see `Dataset.statistics`); standardize=False leaves scales and
    shifts of the model as they are; so does None for a model that was trained before and loaded, to train it further.
    prior: symmetries that the model should have and need not, with a weight of each, `{"rotation": 0.1, "reflection": 0.1,
    "translation": 0.1, "permutation": 0.1}`: the loss is L_task + Σ_s β_s R_s. For a model that has a symmetry exactly R_s is zero and
    costs time, of which a warning tells.
    prior_kind: the form of R_s, see `molequi.approximate.regularizers`: "functional", |f(gx) - ρ(g) f(x)|²/|f|² with an element g drawn for each
    structure and step; "anchored", the loss of f(gx) against labels that turn along; "lie", squared derivatives along the generators of
    rotations and translations, by central differences; "weights", squared free weights of relaxed backbones, for "rotation" alone.
    |f| is the size of the labels, see `molequi.approximate.transforms.size`. Each symmetry costs another evaluation of the model in each step,
    two for "lie", none for "weights".
    prior_structures: structures without labels, of which R_s takes a random batch in each step in place of those that are learnt from;
    whatever `train` may be. prior_group: the group of the rotations and reflections, as of `molequi.symmetry.group` ("O(n)", "O(n-1)" for
    those about the last axis, "Oh"). prior_shift: standard deviation of the translations, Å: a model that looks at absolute positions
    shows it where they are as far away as they vary among the data; None is the size of the structures, the rms distance of their nodes
    from their middle.
    The history has R_s in training and on the validation data, `train_prior_rotation` and `valid_prior_rotation`, the latter in poses that
    training does not see (in the functional form for "weights"). Choose β by these and `pose_errors` of the validation data: errors on poses that were seen mislead.
    relax: weight λ of the penalty with which the constraints of a relaxed backbone are loosened up to the middle of the training and
    tightened up to its end, see `molequi.approximate.annealing`; the result is exactly equivariant, and so is all that is validated.
    degree: learn how equivariant a relaxed backbone should be, one precision for the free path of each layer and irrep, every
    `degree_every` epochs in the first four fifths of the training: by the "evidence" of the training data, or by the cheaper
    "hypergradient" of the validation loss, see `molequi.approximate.selection`. The gates c stay where they are. `Result.degree` tells what
    was found, and so does `degree.json`, with a word of caution where the updates were few or the training was still far from its end at the last.
    accelerate: compile the model first, see `mq.accelerate`; it stays so afterwards. The symmetry report measures the compiled model too, which
    may need one more program where shaken structures have more neighbours.
    device, devices: "cpu" or "cuda", and how many. workers: processes that make batches (0 is best for prepared small
    structures).
    out: the folder of the run: state for resuming (saved every `save_minutes` and after each validation),
    `model.safetensors` (the best so far), `metrics.csv`, `errors.json`, `errors.csv`, `degree.json`, TensorBoard files. None writes
    nothing.
    resume: "auto" goes on with what is in `out`, if settings and data are the same; "force" also if they are not;
    "restart" begins anew.
    seed: of weights, order and all else that is random; a list trains an ensemble, one member a seed in a folder of its own, and the
    result is an `EnsembleResult`: `Ensemble` has means and spreads, see `molequi.training.ensembles`.
    cache: folder for neighbour lists. config: the run as `run` resolved it, kept in the model file and as
    `config.yaml`.

    The weights of `model` are those of the result afterwards. Ctrl-C and SIGTERM finish the step and save the state
    first, then raise KeyboardInterrupt or SystemExit(143). Random numbers of the caller are left as they were.
    Raises ConfigError for settings that are wrong or contradict each other or the data, TrainingError if the loss is
    not finite (naming the structures), memory runs out or the folder is in use, CheckpointError if the state is damaged
    or the disk is full.
    """
    settings = {name: value for name, value in locals().items() if name not in PARTS}
    check_call(fit, settings, where="fit", leave_out=PARTS)
    if not isinstance(model, Model):
        raise ConfigError(
            f"fit trains a Model, found {type(model).__name__}; an ensemble is trained from one Model with seed=[0, 1, 2]"
        )
    if epochs is None and max_minutes is None:
        raise ConfigError("how long to train? Give epochs, max_minutes or both")
    if not isinstance(seed, int):
        return fit_seeds(fit, model, {"train": train, "valid": valid, "test": test}, seed, settings, config)
    check_prior(prior, prior_kind, prior_structures, prior_shift, prior_group)
    check_relaxation(relax, model, patience)
    check_degree(model, settings)
    if batch_size is batch_atoms is batch_edges is None:
        batch_size = settings["batch_size"] = 5
    parts = {"train": train, "valid": valid} | ({} if test is None else {"test": test})
    parts = {
        name: load_dataset(data, only=(*model.quantities, "charge", "spin")) for name, data in parts.items()
    }
    weights = check_loss(loss, model, parts)
    check_form(prior, prior_kind, prior_group, model, [parts["train"][0].dim])
    unlabelled = None
    if prior_structures is not None:
        unlabelled = load_dataset(prior_structures, only=("charge", "spin"))
    check_elements(model, parts | ({} if unlabelled is None else {"prior_structures": unlabelled}))
    check_totals(model, parts)
    fabric = launch(as_device(device), devices)
    keep_freed_memory()
    folder = None if out is None else Path(out)
    with (
        lock_folder(folder) if folder and fabric.is_global_zero else nullcontext(),
        own_random_numbers(fabric.device, seed),
    ):
        parts = {name: data.connected(model.cutoff, cache, k=model.k) for name, data in parts.items()}
        model.to(as_dtype(precision))
        record = {
            "settings": (
                {
                    k: v
                    for k, v in settings.items()
                    if k not in FREE
                    and (prior is not None or not k.startswith("prior_"))
                    and (degree is not None or k != "degree_every")
                }
                | {"loss": weights, "reference_energies": str(reference_energies)}
                | ({} if unlabelled is None else {"prior_structures": unlabelled.digest})
            ),
            "model": model.hparams if folder else {},
            "data": {name: data.digest for name, data in parts.items()},
        }
        alone = (
            read_ase(reference_energies, quantities=["energy"])
            if isinstance(reference_energies, (str, Path))
            else reference_energies
        )
        statistics = parts["train"].statistics(model.cutoff, reference_energies=alone, k=model.k)
        if loss is None and not model.gradients:
            weights = balanced(weights, statistics.scale, loss_kind)
        trained = bool((getattr(model, "metadata", None) or {}).get("training"))  # as `load` gives it
        if standardize or (standardize is None and not trained):
            model.standardize(statistics)
        model.to(fabric.device)
        chosen = None
        if prior is not None:
            if unlabelled is not None:
                unlabelled = unlabelled.connected(model.cutoff, cache, k=model.k)
            judged = Loss(weights, model.quantities, loss_kind, huber_delta)
            draws = draws_of(
                prior_group,
                parts["train"],
                seed,
                prior_shift,
                [s for s, weight in prior.items() if weight],
                "prior",
            )
            check_model(prior, prior_kind, model, parts["train"], draws, judged)
            chosen = Prior(
                prior,
                prior_kind,
                draws,
                judged,
                scales({q: model.quantities[q] for q in judged.weights}, parts["train"]),
                unlabelled,
                {name: settings[name] for name in ("batch_size", "batch_atoms", "batch_edges")},
                (fabric.global_rank, fabric.world_size),
            )
        if accelerate:
            compiled(model)
        training = Training(
            model,
            parts,
            weights,
            settings,
            record,
            fabric,
            folder,
            (config or _config(model, settings | {"loss": weights})) if folder else {},
            chosen,
        )
        return training.run()


def check_weights(loss: Mapping[str, float], quantities: Mapping[str, Quantity], where: str = "loss") -> None:
    """Raises ConfigError if a weight is for a quantity that is not predicted, or if all are zero."""
    for name, weight in loss.items():
        if name not in quantities:
            raise ConfigError(
                f"{where}.{name} is {weight} and predict is [{', '.join(quantities)}]: the model does not predict "
                f"{name!r}{did_you_mean(name, quantities)}"
            )
    if not any(loss.values()):
        raise ConfigError(f"{where} is {dict(loss)}: all weights are zero")


def check_loss(
    loss: Mapping[str, float] | None, model: Model, parts: Mapping[str, Dataset]
) -> dict[str, float]:
    """The weights; raises ConfigError, naming both sides, where they do not fit the model or the labels."""
    train = parts["train"]
    if loss is None:
        # Without labels of a predicted quantity this fails below: a misnamed column must not go by. Only stress comes along unasked.
        loss = {
            name: 100.0 if name == "forces" else 1.0
            for name in model.quantities
            if name != "stress" or train.labelled(name)
        }
        if not any(name in train.quantities for name in loss):
            raise ConfigError(
                f"the model predicts {', '.join(model.quantities)} and the training data have labels of "
                f"{', '.join(train.quantities) or 'nothing'}; there is nothing to learn"
            )
    check_weights(loss, model.quantities)
    learnt = [name for name, weight in loss.items() if weight > 0]
    for name in learnt:
        for part, data in parts.items():
            if not data.labelled(name):
                unread = (
                    f"; not read: {', '.join(data.unused)}{did_you_mean(name, data.unused)}"
                    if data.unused
                    else ""
                )
                raise ConfigError(
                    f"loss.{name} is {loss[name]} and the {part} data have no labels of {name!r} (they have"
                    f" {', '.join(data.quantities) or 'none'}{unread}); take loss.{name} away, or say how the file"
                    f" calls it with keys={{{name!r}: ...}}"
                )
            if data.quantities[name] != model.quantities[name]:
                raise ConfigError(
                    f"{name!r} is {model.quantities[name]} for the model and {data.quantities[name]} in the {part} data"
                )
    for k, graph in enumerate(train):
        if all(bool(torch.isnan(graph.targets[name]).all()) for name in learnt):
            raise ConfigError(
                f"{train.origins[k]} has no label of {', '.join(learnt)}, so that its loss would be exactly zero; leave"
                " it out"
            )
    return dict(loss)


def balanced(weights: Mapping[str, float], scale: Mapping[str, float], kind: Kind) -> dict[str, float]:
    """Weights over the spread of the labels, so that units do not decide what is learnt; classes have none."""
    return {
        name: weight / scale.get(name, 1.0) ** (2 if kind == "mse" else 1) for name, weight in weights.items()
    }


def check_elements(model: Model, parts: Mapping[str, Dataset]) -> None:
    for part, data in parts.items():
        unknown = [SYMBOLS[z] for z in data.elements if z not in model.elements]
        if unknown:
            raise ConfigError(
                f"the {part} data have {', '.join(unknown)} and the model knows only "
                f"{', '.join(SYMBOLS[z] for z in model.elements)}; name all elements when the backbone is made"
            )


def check_totals(model: Model, parts: Mapping[str, Dataset]) -> None:
    """Warns (DataWarning) where total charges or spins differ among the training data and the backbone does not take them."""
    for name in ("charge", "spin"):
        values = {float(g) for graph in parts["train"] if (g := getattr(graph, name)) is not None}
        if len(values) > 1 and not model.backbone.reads(name):
            warnings.warn(
                f"the training data have a {name} of {', '.join(f'{v:g}' for v in sorted(values)[:5])} and the backbone does not "
                f"take it, so that it learns a mean over them; build it with inputs=Inputs({name}=True)",
                DataWarning,
                stacklevel=3,
            )


def _config(model: Model, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a run that was not made from a file, in the shape of one."""
    hparams = model.hparams
    given = settings["prior_structures"]
    if given is not None and not isinstance(given, (str, Path)):
        settings = settings | {
            "prior_structures": f"{type(given).__name__} of {len(given)}"
            if hasattr(given, "__len__")
            else type(given).__name__
        }
    plain = {
        k: v if isinstance(v, (str, int, float, bool, dict, type(None))) else str(v)
        for k, v in settings.items()
    }
    return {
        "backbone": {hparams["backbone"]: hparams["options"]},
        "train": plain,
        "predict": [
            {p["head"]: {"quantity": p["quantity"], **p["options"]} if p["options"] else p["quantity"]}
            if "head" in p
            else p
            for p in hparams["predict"]
        ],
    }
