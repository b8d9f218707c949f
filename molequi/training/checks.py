"""Check options against each other, the model and the data, before the first step."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molequi.data.checks import check_same_quantities
from molequi.data.dataset import Dataset
from molequi.errors import ConfigError, DataWarning, ModelError, TrainingWarning, did_you_mean
from molequi.gradients import PRODUCTS
from molequi.hooks import Hook
from molequi.losses import Loss, read_losses
from molequi.model import Model
from molequi.quantities import SYMBOLS
from molequi.training.loggers import check_loggers
from molequi.training.loss_terms import check_losses
from molequi.training.options import GROUPS, NOT_GIVEN, Logging, TrainingOptions
from molequi.util.devices import as_device
from molequi.util.locks import check_unused
from molequi.util.options import as_options, collect
from molequi.util.signature import check_call, with_floats

_LOOKED_AT = 10_000  # structures in which neighbors are counted
# Files of the folder of a run, beside its states and the reports of hooks.
WRITTEN = (
    "model.safetensors",
    "config.yaml",
    "metrics.csv",
    "errors.json",
    "errors.csv",
    "report.html",
    "parity.png",
    "learning_curve.png",
)
PARTS = ("model", "train", "valid", "test")  # parameters of `fit` that are no options of a run


def read_options(fit: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> TrainingOptions:
    """Make checked options from the arguments of `fit` or from the section ``train`` of a file.

    Parameters
    ----------
    fit : callable
        The function whose signature says names, types and ranges.
    arguments : Mapping
        Options by name. Options that are missing have their defaults. Groups of options may be objects,
        mappings or shorthands.
    where : str
        What error messages put before a name: "fit" or "train".

    Returns
    -------
    TrainingOptions
        All options.

    Raises
    ------
    ConfigError
        With all mistakes that were found.
    """
    found: dict[str, Any] = {}

    def plain() -> None:
        given = {k: v for k, v in arguments.items() if k not in (*GROUPS, "loss", "terms")}
        check_call(
            fit,
            given,
            where=where,
            leave_out=(*PARTS, *GROUPS, "loss", "terms"),
            more=(*GROUPS, "loss", "terms"),
        )
        found.update(with_floats(fit, given))
        try:
            as_device(given.get("device", "auto"))
        except ModelError as error:
            raise ConfigError(f"{where}.{error}") from error

    def group(name: str) -> None:
        if name in NOT_GIVEN and arguments[name] is None:
            return
        found[name] = as_options(GROUPS[name], arguments[name], f"{where}.{name}")
        if isinstance(found[name], Logging):
            check_loggers(found[name].loggers, f"{where}.logging.loggers")

    def loss() -> None:
        found["loss"] = read_losses(arguments.get("loss"), f"{where}.loss")

    def terms() -> None:
        found["terms"] = _terms(arguments.get("terms", ()), f"{where}.terms")

    collect(plain, *((lambda name=name: group(name)) for name in GROUPS if name in arguments), loss, terms)
    if found.get("epochs") is None and found.get("max_minutes") is None:
        raise ConfigError(f"{where}.epochs: missing; how long to train? Give epochs, max_minutes or both")
    if found.get("out") is not None:
        if not str(found["out"]):
            raise ConfigError(f"{where}.out is empty; wanted a folder, or None for no files")
        found["out"] = Path(found["out"])
    if isinstance(found.get("seed"), Sequence):
        found["seed"] = tuple(found["seed"])
    return TrainingOptions(**found)


def _terms(value: Any, where: str) -> tuple[Hook, ...]:
    """The terms of a training. Raises ConfigError for an object that is no hook, and for two of one name."""
    if isinstance(value, Hook) or not isinstance(value, Sequence) or isinstance(value, str):
        raise ConfigError(f"{where}: found {value!r} ({type(value).__name__}); wanted a list of terms")
    for k, term in enumerate(value):
        if not isinstance(term, Hook):
            raise ConfigError(
                f"{where}.{k}: found {term!r} ({type(term).__name__}); wanted an object of a subclass of "
                "molequi.hooks.Hook"
            )
        if term.name in ("", "train", "valid", "test"):
            raise ConfigError(
                f"{where}.{k}: the term is called {term.name!r}, the beginning of other columns of the log; "
                "give it another name"
            )
    names = [term.name for term in value]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{where}: two terms are called {name!r}; give one of them another name")
    return tuple(value)


def check_terms(options: TrainingOptions, model: Model, where: str) -> None:
    """Let each term of a training check the other options.

    Parameters
    ----------
    options : TrainingOptions
        All options.
    model : Model
        The model to train.
    where : str
        What error messages put before the number of a term.

    Raises
    ------
    ConfigError
        By a term, see `Hook.check`.
    """
    plan = options
    if isinstance(options.loss, str):  # one kind for everything that is learnt; classes have no kind
        kinds = {name: None if q.classes else options.loss for name, q in model.quantities.items()}
        plan = replace(options, loss=tuple(Loss(name, kind=kind) for name, kind in kinds.items()))
    for k, term in enumerate(options.terms):
        term.check(model, plan, f"{where}.{k}")


def check_parts(parts: Mapping[str, Any]) -> None:
    """Raise ConfigError if a part of the data is only the name of a part.

    ``train, valid = data.split({…})`` leads to this: it unpacks the keys of a dict.

    Parameters
    ----------
    parts : Mapping
        What the user gave for ``"train"``, ``"valid"`` and ``"test"``.
    """
    for part, given in parts.items():
        if isinstance(given, str) and given in PARTS[1:] and not Path(given).exists():
            raise ConfigError(
                f"fit: {part} is the text {given!r}, and there is no file of this name. If it came from "
                "train, valid = data.split({…}): split returns a dict, so write parts = data.split({…}), "
                "then fit(model, **parts, …)"
            )


def check_folder(options: TrainingOptions) -> None:
    """Raise ConfigError for a folder with files of something else, and for options without a folder.

    Parameters
    ----------
    options : TrainingOptions
        All options.

    Raises
    ------
    ConfigError
        With the names of the files, or of the options.
    """
    if options.out is not None:
        reports = [f"{hook.name}.json" for hook in options.terms if isinstance(hook, Hook)]
        check_unused(options.out, [*WRITTEN, *reports], restart=options.resume == "restart")
        return
    if options.resume != "auto":
        raise ConfigError(f"fit.resume={options.resume!r} has no effect without a folder; give out=")
    if options.logging.save_minutes is not None:
        raise ConfigError(
            f"fit.logging.save_minutes={options.logging.save_minutes:g} has no effect without a folder; "
            "give out="
        )


def learnt_terms(options: TrainingOptions, model: Model, parts: Mapping[str, Dataset]) -> tuple[Loss, ...]:
    """Return the terms of the loss, with default weights if the user gave none.

    Parameters
    ----------
    options : TrainingOptions
        All options.
    model : Model
        The model to train.
    parts : Mapping of Dataset
        The data by part.

    Raises
    ------
    ConfigError
        If the terms do not fit the model or the labels; the message names both sides.
    """
    if isinstance(options.loss, tuple):
        terms = options.loss
    else:
        terms = _default_terms(options, model, parts["train"])
        _warn_of_unread_stress(model, parts["train"])
    check_losses(terms, model.quantities)
    _warn_of_untrained(terms, model)
    learnt = [term for term in terms if term.weight > 0 and term.function is None]
    for term in learnt:
        for part, data in parts.items():
            if term.label == PRODUCTS and part != "train":
                continue  # a part without them is measured by the other terms
            _check_labels(term, model, part, data, given=isinstance(options.loss, tuple))
    train = parts["train"]
    if any(term.function is not None and term.weight for term in terms):
        return terms
    if learnt:
        nothing = ~np.any([train.graphs.labelled(term.label) for term in learnt], axis=0)
        if nothing.any():
            raise ConfigError(
                f"{train.origins[int(nothing.argmax())]} has no label of "
                f"{', '.join(term.label for term in learnt)}, so that its loss would be exactly zero; "
                "leave it out"
            )
    return terms


def _warn_of_untrained(terms: Sequence[Loss], model: Model) -> None:
    """Warn (TrainingWarning) of predicted quantities that no term of the loss trains."""
    if any(term.function is not None for term in terms):
        return  # which may train anything
    trained, waiting = set(), [term.label for term in terms]  # a weight of zero is the user's decision
    while waiting:  # who learns a derivative learns the quantity
        name = waiting.pop()
        trained.add(name)
        parent = model.quantities[name].gradient_of
        if parent and name not in model.heads and parent not in trained:
            waiting.append(parent)
    for name in model.heads:
        if name not in trained:
            warnings.warn(
                f"{name} is predicted but not trained: it has no loss. Give it one, loss={{{name!r}: 1, …}}, "
                f"or leave {name} out of predict",
                TrainingWarning,
                stacklevel=3,
            )


def _default_terms(options: TrainingOptions, model: Model, train: Dataset) -> tuple[Loss, ...]:
    """Weight 100 for forces and 1 for other predicted quantities; stress only if there are labels of it."""
    # A predicted quantity without labels fails the next check, so that a misnamed column is noticed.
    names = [name for name in model.quantities if name != "stress" or train.labelled(name)]
    if not any(name in train.quantities for name in names):
        raise ConfigError(
            f"the model predicts {', '.join(model.quantities)} and the training data have labels of "
            f"{', '.join(train.quantities) or 'nothing'}; there is nothing to learn"
        )
    kind = None if isinstance(options.loss, tuple) else options.loss
    return tuple(
        Loss(
            name,
            weight=100.0 if name == "forces" else 1.0,
            kind=None if model.quantities[name].classes else kind,
        )
        for name in names
    )


def _warn_of_unread_stress(model: Model, train: Dataset) -> None:
    """Warn (TrainingWarning) if the stress is predicted and labels of it seem to be under another name."""
    if "stress" not in model.quantities or train.labelled("stress"):
        return
    near = [key for key in train.unused if "virial" in key.lower() or "stress" in key.lower()]
    if near:
        virial = ", 'virial': True" if "virial" in near[0].lower() else ""
        warnings.warn(
            f"stress is predicted, and not trained: the training data have no labels of 'stress'; found "
            f"{near[0]!r}. Read it with keys={{'stress': {{'key': {near[0]!r}{virial}}}}} (a virial is -V "
            "times the stress; 'sign': -1 is for the opposite sign), or leave stress out of predict",
            TrainingWarning,
            stacklevel=4,
        )


def _check_labels(term: Loss, model: Model, part: str, data: Dataset, *, given: bool) -> None:
    """Raise ConfigError if data have no labels for a term, or labels of another meaning."""
    name = term.label
    if not data.labelled(name):
        unread = (
            f"; not read: {', '.join(data.unused)}{did_you_mean(name, data.unused)}" if data.unused else ""
        )
        others = [one for one in model.quantities if one != name and data.labelled(one)]
        less = f"loss={ {one: 100 if one == 'forces' else 1 for one in others} }"
        what, instead = (
            (f"loss.{name} is {term.weight:g}", f"take loss.{name} away")
            if given
            else (f"predict has {name!r}", f"train the others alone with {less}" if others else "")
        )
        raise ConfigError(
            f"{what} and the {part} data have no labels of {name!r} (they have"
            f" {', '.join(data.quantities) or 'none'}{unread}); {instead}{', or ' if instead else ''}say how "
            f"the file calls it with keys={{{name!r}: ...}}"
        )
    check_same_quantities({name: model.quantities[name]}, data, f"the {part} data")


def check_elements(model: Model, parts: Mapping[str, Dataset]) -> None:
    """Raise ConfigError if the data have elements that the model does not know.

    Parameters
    ----------
    model : Model
        The model to train.
    parts : Mapping of Dataset
        The data by part.
    """
    for part, data in parts.items():
        unknown = [SYMBOLS[z] for z in data.elements if z not in model.elements]
        if unknown:
            raise ConfigError(
                f"the {part} data have {', '.join(unknown)} and the model knows only "
                f"{', '.join(SYMBOLS[z] for z in model.elements)}; name all elements when the backbone is "
                "made; a trained model gets new ones with finetune='all'"
            )


def check_totals(model: Model, parts: Mapping[str, Dataset]) -> None:
    """Warn (DataWarning) if charges or spins vary in the training data and the backbone does not take them.

    Parameters
    ----------
    model : Model
        The model to train.
    parts : Mapping of Dataset
        The data by part.
    """
    for name in ("charge", "spin"):
        column = parts["train"].graphs.field(name)
        values = set() if column is None else set(column.unique().tolist())
        if len(values) > 1 and not model.backbone.reads(name):
            warnings.warn(
                f"the training data have a {name} of {', '.join(f'{v:g}' for v in sorted(values)[:5])} and "
                f"the backbone does not take it, so that it learns a mean over them; build it with "
                f"inputs=Inputs({name}=True)",
                DataWarning,
                stacklevel=3,
            )


def check_neighbors(train: Dataset, cutoff: float | None) -> None:
    """Check that atoms of the training data have neighbors within the cutoff.

    Parameters
    ----------
    train : Dataset
        The training data with their edges.
    cutoff : float or None
        The cutoff in Å; None joins all pairs.

    Raises
    ------
    ConfigError
        If no atom of a structure with several atoms has a neighbor.

    Warns
    -----
    DataWarning
        If a tenth of these atoms or more have none.
    """
    alone, total, which = _without_neighbors(train)
    count = alone.total()
    if cutoff is None or not total or count < 0.1 * total:
        return
    text = (
        f"{count} of {total} atoms of {which} have no neighbor within the cutoff of {cutoff:g} Å, so that "
        "the model sees their element alone; cutoffs are in Å (5 is usual, 0.5 nm is 5 Å)"
    )
    if count == total:
        raise ConfigError(f"{text}; give the backbone a larger cutoff")
    warnings.warn(text, DataWarning, stacklevel=4)


def check_lone_ions(model: Model, train: Dataset) -> None:
    """Check that the reference energies of atoms without neighbors are not fitted in a model with charges.

    Parameters
    ----------
    model : Model
        The model, with a long range.
    train : Dataset
        The training data with their edges.

    Warns
    -----
    DataWarning
        If a hundredth of the atoms or more have no neighbor, and no structure of one atom says their energy.
    """
    alone, total, which = _without_neighbors(train)
    counts = train.counts
    single = train.graphs.z.numpy()[(np.cumsum(counts) - counts)[counts == 1]]
    fitted = [z for z in sorted(alone) if z not in single]
    count = sum(alone[z] for z in fitted)
    # Heads of some published models give an atom alone an energy of the network.
    network = not all(getattr(head, "isolated", True) for head in model.heads.values())
    if network or not total or count < 0.01 * total:
        return
    names = [SYMBOLS[z] for z in fitted]
    example = "{" + ", ".join(f'"{name}": …' for name in names) + "}"
    warnings.warn(
        f"{count} of {total} atoms of {which} ({', '.join(names)}) have no neighbor within the cutoff of "
        f"{model.cutoff:g} Å: all they have is the reference energy of their element and the charges. Fitted "
        "reference energies contain a mean of the electrostatics, and charges come out wrong to make up for "
        f'it; give those of atoms or ions alone, normalization={{"reference_energies": {example}}}, '
        "or add structures of one atom",
        DataWarning,
        stacklevel=4,
    )


def _without_neighbors(train: Dataset) -> tuple[Counter[int], int, str]:
    """Atoms without neighbors by element, all atoms, and where; structures of one atom are left out."""
    step = max(1, len(train) // _LOOKED_AT)
    alone: Counter[int] = Counter()
    total = 0
    for graph in train.graphs[::step]:
        if graph.num_nodes > 1 and graph.edge_index is not None:
            joined = torch.zeros(graph.num_nodes, dtype=torch.bool)
            joined[graph.edge_index[1]] = True
            alone.update(graph.z[~joined].tolist())
            total += graph.num_nodes
    looked_at = "" if step == 1 else f" (every {step}th structure)"
    return alone, total, f"the training data{looked_at}"


def sets_scales(options: TrainingOptions, model: Model) -> bool:
    """Return whether the scales and shifts of the model are set from the training data.

    Parameters
    ----------
    options : TrainingOptions
        All options.
    model : Model
        The model to train.

    Raises
    ------
    ConfigError
        If there are reference energies, and the model predicts no energy.
    """
    wanted = options.normalization.standardize
    if options.normalization.reference_energies is not None and "energy" not in model.quantities:
        raise ConfigError(
            "fit.normalization.reference_energies has no effect: the model predicts "
            f"{', '.join(model.quantities)} and no energy; leave it out"
        )
    trained = bool((getattr(model, "metadata", None) or {}).get("training"))  # as `load` gives it
    return wanted or (wanted is None and not trained)
