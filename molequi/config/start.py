"""The section ``start_from`` of a run: the trained model from which the training begins."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from molequi.checkpoint import load
from molequi.config.names import Names
from molequi.config.plain import as_plain
from molequi.config.terms import check_terms_of_start
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, MolequiError, did_you_mean
from molequi.foreign import FOUNDATIONS, foundation
from molequi.heads import HEADS, default_head
from molequi.heads.levels import first_of
from molequi.last_layer import LaplaceEnsemble
from molequi.model import Model
from molequi.models import BACKBONES
from molequi.quantities import KNOWN, Quantity, completed
from molequi.util.digests import weights_digest
from molequi.util.options import Options, as_options
from molequi.util.signature import check_keywords

SECTION = "start_from"


@check_keywords()
@dataclass(frozen=True)
class StartFrom(Options):
    """The trained model from which a training begins; ``start_from: model.safetensors`` is short for it.

    Backbone and quantities are those of the file. The option ``train.finetune`` says how it is trained
    further.

    Parameters
    ----------
    model : str
        A model file, the folder of a run, or a name that `molequi.foundation` knows; with several levels of
        theory one of them, such as ``7net-mf-0@PBE``.
    sha256 : str, optional
        Digest of the weights, as ``config.yaml`` of a run records it. Another model is an error then.
    """

    model: str
    sha256: str | None = None

    shorthand: ClassVar[str] = "model"


def with_start(settings: dict[str, Any], names: Names) -> dict[str, Any]:
    """The sections of a run with what the model says from which it starts.

    Parameters
    ----------
    settings : dict
        The sections. Without a section ``start_from`` they are returned as they are.
    names : Names
        What the names of the file stand for.

    Returns
    -------
    dict
        The sections with ``backbone``, ``predict``, ``train.finetune`` and the digest of its weights.

    Raises
    ------
    ConfigError
        If the file is no model, is another one than the digest says, or if the sections ask for another
        backbone or for quantities that it does not predict.
    """
    if SECTION not in settings:
        return settings
    if settings.get("pretrain") is not None:
        raise ConfigError(
            f"{SECTION} and pretrain: a model that is trained already is not pretrained; leave out one of "
            "them"
        )
    found = as_options(StartFrom, settings[SECTION], SECTION)
    model = starting_model(found, names)
    where = found.model
    digest = weights_digest(model.state_dict())
    if found.sha256 not in (None, digest):
        raise ConfigError(
            f"{SECTION}: the weights of {where} have the SHA-256 {digest[:12]}… and this run began with "
            f"{str(found.sha256)[:12]}…; take that model, or leave {SECTION}.sha256 out"
        )
    train = settings.get("train")
    if isinstance(train, Mapping) and train.get("finetune") is None:
        train = {**train, "finetune": "all"}
    return {
        **settings,
        SECTION: {"model": found.model, "sha256": digest},
        "backbone": _backbone(settings.get("backbone"), model, where),
        "predict": _predict(settings.get("predict"), model, where),
        "train": train,
        **check_terms_of_start(settings, model, SECTION),
    }


def starting_model(section: StartFrom, names: Names) -> Model:
    """The model of a section ``start_from``.

    Parameters
    ----------
    section : StartFrom
        The section.
    names : Names
        What the names of the file stand for.

    Raises
    ------
    ConfigError
        If it cannot be read, or is an ensemble.
    """
    backbones = {n: kind for n, kind in names.backbones.items() if n not in BACKBONES}
    heads = {n: kind for n, kind in names.heads.items() if n not in HEADS}
    try:
        name, _, level = section.model.partition("@")
        if name.lower() in FOUNDATIONS and not Path(section.model).exists():
            model: Model | Ensemble = foundation(name, level=level or None)
        else:
            model = load(section.model, backbones=backbones, heads=heads)
    except MolequiError as error:
        raise ConfigError(f"{SECTION}: {error}") from error
    if isinstance(model, Ensemble):
        raise ConfigError(
            f"{SECTION}: {section.model} has a Laplace approximation; name the file of the model without it, "
            "as mq.save(mq.load(…).mean_model, …) writes it"
            if isinstance(model, LaplaceEnsemble)
            else f"{SECTION}: {section.model} is an ensemble; name one of its members, such as "
            "runs/NAME/seed0/model.safetensors, and fine-tune each of them"
        )
    return model


def start_model(settings: Mapping[str, Any], names: Names) -> Model | None:
    """The trained model of a run with what it predicts; None if the run does not start from one.

    Parameters
    ----------
    settings : mapping
        All sections, as `with_start` returns them.
    names : Names
        What the names of the file stand for.
    """
    if SECTION not in settings:
        return None
    model = starting_model(as_options(StartFrom, settings[SECTION], SECTION), names)
    wanted = [quantity_of(item) for item in settings["predict"]]
    model = model if set(wanted) == set(model.quantities) else model.predicting(wanted)
    dispersion = settings.get("dispersion")
    return model if dispersion is None else model.with_dispersion(dispersion)


def _backbone(section: Any, model: Model, file: str) -> dict[str, Any]:
    """The section ``backbone``. Raises ConfigError if another one is asked for."""
    kind = type(model.backbone)
    own: dict[str, Any] = as_plain(model.backbone.hparams)
    found = {kind.__name__: own}
    if section is None:
        return found
    given = {section: {}} if isinstance(section, str) else section
    end = f"leave the section backbone out: {file}, which {SECTION} names, says it"
    if not isinstance(given, Mapping) or list(given) != [kind.__name__]:
        name = ", ".join(map(str, given)) if isinstance(given, Mapping) else repr(given)
        raise ConfigError(f"backbone: found {name}, and the starting model is a {kind.__name__}; {end}")
    parameters = inspect.signature(kind).parameters
    for name, value in (given[kind.__name__] or {}).items():
        default = parameters[name].default if name in parameters else None
        there = own.get(name, as_plain(default))
        if as_plain(value) != there:
            raise ConfigError(
                f"backbone.{kind.__name__}.{name}: found {value!r}, and the starting model has {there!r}, "
                f"which its weights need; {end}"
            )
    return found


def _predict(section: Any, model: Model, file: str) -> list[Any]:
    """The section ``predict``: what the model predicts, or some of it. Raises ConfigError for another one."""
    known = model.quantities
    items = list(section) if isinstance(section, (list, tuple)) else [section]
    wanted = list(known) if section is None else [quantity_of(item) for item in items]
    for k, name in enumerate(wanted):
        if name not in known:
            raise ConfigError(
                f"predict.{k}: {file}, which {SECTION} names, does not predict {name!r}"
                f"{did_you_mean(str(name), known)}; leave it out, or train a new model without {SECTION}"
            )
    described = {name: _described(model, name) for name in model.predicting(wanted).quantities}
    for k, item in enumerate(items if section is not None else ()):
        given = completed(item) if isinstance(item, Mapping) else item
        if not isinstance(item, str) and as_plain(given) not in (
            described[wanted[k]],
            _plain_of(known[wanted[k]]),
        ):
            raise ConfigError(
                f"predict.{k}: {item!r} is another declaration than that of {file}, which {SECTION} names; "
                f"write {wanted[k]} alone"
            )
    return list(described.values())


def _described(model: Model, name: str) -> Any:
    """An item of ``predict`` for a quantity of a model."""
    q = model.quantities[name]
    found = dict(model.heads).get(name)
    if found is None:
        return _plain_of(q)
    head = first_of(found)
    options: Mapping[str, Any] = cast(Mapping[str, Any], head.options)
    if type(head) is type(default_head(q)) and not options:
        return _plain_of(q)
    return {type(head).__name__: {"quantity": _plain_of(q), **options}}


def _plain_of(q: Quantity) -> Any:
    return q.name if KNOWN.get(q.name) == q else as_plain(q)


def quantity_of(item: Any) -> Any:
    """The name of the quantity of an item of ``predict``.

    Parameters
    ----------
    item : str or mapping
        The item.

    Examples
    --------
    >>> [quantity_of(item) for item in ("energy", {"name": "gap"}, {"Vector": "forces"})]
    ['energy', 'gap', 'forces']
    """
    if isinstance(item, Mapping) and "name" not in item and len(item) == 1:
        (what,) = item.values()
        item = what.get("quantity", what) if isinstance(what, Mapping) else what
    return item.get("name") if isinstance(item, Mapping) else item
