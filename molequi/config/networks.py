"""Runs that train a model of networks: the same sections, for `molequi.weights` in place of structures.

::

    data:     {networks: {path: nets.safetensors, split: {train: 0.8, valid: 0.2}}}
    backbone: {WeightModel: {channels: 16, layers: 2, probes: 32}}
    predict:  [{name: digit, classes: ["0", "1", "2"]}]
    train:    {epochs: 50, lr: 1e-2}

The options of each section are the arguments of `molequi.weights.read_networks` (or of `fitted_digits`, the
reader ``digits``), `molequi.weights.WeightModel` and `molequi.weights.fit`. The architecture is that of the
data. Predicted is one label with classes, by the numbers of the labels, or real values.
"""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from molequi.config.names import Names
from molequi.config.plain import as_plain
from molequi.config.schema import SPLIT_OPTIONS, check_data, predicted_items, reader_of
from molequi.config.sections import NETWORKS, SECTIONS
from molequi.config.splitting import BLOCKS
from molequi.data.splits import block_groups, choose, stratified
from molequi.errors import CheckpointError, ConfigError, DataError, OtherSettingsError
from molequi.heads import Head
from molequi.inference.metrics import Errors
from molequi.quantities import Quantity
from molequi.training.checks import WRITTEN as WRITTEN_BY_FIT
from molequi.training.history import History, read_history, write_config, write_errors
from molequi.util.locks import check_unused, lock_folder
from molequi.util.run_log import run_log, say
from molequi.util.seeding import own_random_numbers
from molequi.util.signature import check_call, with_dataclasses, with_floats
from molequi.weights import Interrupted, LabelledNetworks, WeightModel, fit, load, save
from molequi.weights.files import READERS
from molequi.weights.results import NetworkResult, errors_of, read_errors

_OF_RUN = ("out", "resume")  # options of the section train that are none of `fit`
_GIVEN = ("architecture", "outputs")  # of the model, by the data and by what is predicted
_NOT_OF_FILES = ("model", "networks", "targets", "valid", "each_epoch")
WRITTEN = tuple(name for name in WRITTEN_BY_FIT if name not in ("report.html", "parity.png"))


def names_of_networks(names: Names) -> Names:
    """What the names of a run on networks stand for: its readers, those of the user, and the model.

    Parameters
    ----------
    names : Names
        Those of the package and of the user.
    """
    own = {name: reader for name, reader in names.readers.items() if name not in Names().readers}
    return replace(names, readers={**READERS, **own}, backbones={NETWORKS: WeightModel})


def check_networks(config: Mapping[str, Any], names: Names) -> None:
    """Check everything about a run on networks that can be known before data are read.

    Parameters
    ----------
    config : mapping
        The sections as plain values.
    names : Names
        What the names of the file stand for.

    Raises
    ------
    ConfigError
        With the path of what is wrong.
    """
    for name in config:
        if name not in SECTIONS:
            raise ConfigError(f"{name}: a run on networks has {', '.join(SECTIONS)} alone; leave it out")
    for name in SECTIONS:
        if config.get(name) in (None, {}, []):
            raise ConfigError(f"{name}: this section is missing; a run has {', '.join(SECTIONS)}")
    of_networks = names_of_networks(names)
    check_data(config["data"], "data", of_networks)
    name, options = reader_of(config["data"], "data", ("valid", "test"), of_networks)
    if options.get("labelled"):
        raise ConfigError(f"data.{name}.labelled: has no effect on networks, which are all labelled")
    check_call(WeightModel, _model_options(config), where=f"backbone.{NETWORKS}", leave_out=_GIVEN)
    predicted(config, names)
    train = config["train"]
    if not isinstance(train, Mapping):
        raise ConfigError(f"train: found {train!r}; wanted options, such as epochs: 100")
    given = {k: v for k, v in train.items() if k not in _OF_RUN}
    check_call(fit, given, where="train", leave_out=_NOT_OF_FILES, more=_OF_RUN)
    if train.get("resume", "auto") not in ("auto", "restart"):
        raise ConfigError(f"train.resume: found {train['resume']!r}; wanted auto or restart")


def _model_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the section ``backbone``. Raises ConfigError for another model."""
    section = config["backbone"]
    section = {section: {}} if isinstance(section, str) else section
    if not isinstance(section, Mapping) or list(section) != [NETWORKS]:
        found = ", ".join(section) if isinstance(section, Mapping) else repr(section)
        raise ConfigError(f"backbone: found {found}; networks are read by {NETWORKS} alone")
    options = section[NETWORKS]
    if options is not None and not isinstance(options, Mapping):
        raise ConfigError(f"backbone.{NETWORKS}: found {options!r}; wanted options, such as channels: 16")
    return dict(options or {})


def predicted(config: Mapping[str, Any], names: Names) -> list[Quantity]:
    """What a run on networks predicts: one label with classes, or real values.

    Parameters
    ----------
    config : mapping
        The sections.
    names : Names
        What the names of the file stand for.

    Raises
    ------
    ConfigError
        For heads, values that are none of a whole network, and classes beside something else.
    """
    found: list[Quantity] = []
    for k, item in enumerate(predicted_items(config, names)):
        if isinstance(item, Head):
            raise ConfigError(f"predict.{k}: {NETWORKS} has no heads; write the name of the label alone")
        if item.per != "graph" or item.rank:
            raise ConfigError(
                f"predict.{k}: {item.name} is no number or class of a whole network; leave out per and rank"
            )
        found.append(item)
    if len(found) > 1 and any(q.classes for q in found):
        raise ConfigError(
            f"predict: {', '.join(q.name for q in found)}: a label with classes is predicted alone; train "
            "one model for each"
        )
    twice = {q.name for k, q in enumerate(found) if q.name in [other.name for other in found[:k]]}
    if twice:
        raise ConfigError(f"predict: {', '.join(sorted(twice))}: found twice; wanted each label once")
    return found


def run_networks(settings: dict[str, Any], names: Names) -> NetworkResult:
    """Carry out a run on networks whose sections are checked.

    Parameters
    ----------
    settings : dict
        The sections, with ``train.out``.
    names : Names
        What the names of the file stand for.

    Returns
    -------
    NetworkResult
        Of a finished run with the same settings what is in its folder.

    Raises
    ------
    OtherSettingsError
        If the folder holds a run with other settings.
    DataError, ConfigError, ModelError, TrainingError
        As the readers, `molequi.weights.WeightModel` and `molequi.weights.fit` do.
    """
    train = settings["train"]
    folder = Path(train["out"])
    check_unused(folder, WRITTEN, restart=train.get("resume") == "restart")
    with run_log(folder):
        found = _finished(folder, settings, predicted(settings, names))
        if found is not None:
            say(f"{folder}: this run is finished; train.resume=restart begins anew")
            return found
        parts = read_parts(settings, names)
        say("\n".join(f"{part}: {data}" for part, data in parts.items()))
        with lock_folder(folder):
            return _trained(folder, settings, parts, predicted(settings, names))


def _record(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the result of a run, as plain values."""
    train = {k: v for k, v in settings["train"].items() if k not in (*_OF_RUN, "progress", "device")}
    plain: dict[str, Any] = as_plain({**settings, "train": train})
    return plain


def _finished(folder: Path, settings: dict[str, Any], wanted: list[Quantity]) -> NetworkResult | None:
    """The result of a run that is finished; None if there is none, or if it is to begin anew."""
    if settings["train"].get("resume") == "restart" or not (folder / "errors.json").exists():
        return None
    kept, errors = _kept(folder)
    if _record(kept) != _record(settings):
        differing = [name for name in SECTIONS if _record(kept).get(name) != _record(settings)[name]]
        text = f"{folder}: holds a run with another section {' and '.join(differing)}"
        raise OtherSettingsError(text, folder, force=False)
    return NetworkResult(
        model=load(folder / "model.safetensors"),
        history=read_history(folder / "metrics.csv"),
        errors=errors,
        quantities={q.name: q for q in wanted},
        out=folder,
    )


def _kept(folder: Path) -> tuple[dict[str, Any], dict[str, Errors]]:
    """The settings and the errors of a run that is finished."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    reason: object = "config.yaml has no section train"
    try:
        settings: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        if isinstance(settings, dict) and isinstance(settings.get("train"), dict):
            return settings, read_errors(folder)
    except (OSError, YAMLError, OmegaConfBaseException, ValueError, TypeError, KeyError) as error:
        reason = error
    raise CheckpointError(
        f"{folder}: what is kept of the run cannot be read ({' '.join(str(reason).split())}); "
        "train.resume=restart begins anew"
    )


def read_parts(config: Mapping[str, Any], names: Names) -> dict[str, LabelledNetworks]:
    """Read the networks of a run.

    Parameters
    ----------
    config : mapping
        The sections, checked.
    names : Names
        What the names of the file stand for.

    Returns
    -------
    dict of LabelledNetworks
        The parts by name.

    Raises
    ------
    DataError
        If a column of the split is missing, sizes cannot be met, or a reader returns something else.
    """
    of_networks, data = names_of_networks(names), config["data"]
    name, options = reader_of(data, "data", ("valid", "test"), of_networks)
    parts = _split(_read(name, options, of_networks), options)
    for part in ("valid", "test"):
        if part in data:
            own, given = reader_of(data[part], f"data.{part}", (), of_networks)
            parts[part] = _read(own, given, of_networks)
    return parts


def _read(name: str, options: Mapping[str, Any], names: Names) -> LabelledNetworks:
    reader = names.readers[name]
    own = inspect.signature(reader).parameters  # a reader that draws random numbers takes the same seed
    found = reader(**{k: v for k, v in options.items() if k in own or k not in SPLIT_OPTIONS})
    if not isinstance(found, LabelledNetworks):
        raise ConfigError(
            f"data.{name}: the reader returned {type(found).__name__}; wanted "
            "molequi.weights.LabelledNetworks(networks, labels)"
        )
    return found


def _split(whole: LabelledNetworks, options: Mapping[str, Any]) -> dict[str, LabelledNetworks]:
    split, seed, by = options.get("split"), options.get("seed", 0), options.get("by")
    if split is None:
        return {"train": whole}
    parts, sizes, stratify = list(split), list(split.values()), options.get("stratify")
    if stratify is not None:
        strata = whole.label(stratify).tolist()
        chosen = stratified(len(whole), sizes, parts, seed=seed, strata=strata)
    else:
        groups = None
        if by is not None:
            blocks = by == BLOCKS and by not in whole.labels
            groups = block_groups(len(whole)) if blocks else whole.label(by).tolist()
        chosen = choose(len(whole), sizes, parts, seed=seed, groups=groups)
    return {part: whole[indices] for part, indices in zip(parts, chosen)}


def targets_of(data: LabelledNetworks, wanted: list[Quantity], part: str) -> Tensor:
    """What is learned: class numbers of shape (B,), or real values of shape (B, K).

    Parameters
    ----------
    data : LabelledNetworks
        The networks.
    wanted : list of Quantity
        What is predicted.
    part : str
        Name of the part, for messages.

    Raises
    ------
    DataError
        For labels that are missing, or no class numbers.
    """
    if not len(data):
        raise DataError(f"{part}: no networks; wanted at least one")
    columns = [data.label(q.name) for q in wanted]
    if not wanted[0].classes:
        return torch.stack([column.to(torch.get_default_dtype()) for column in columns], dim=1)
    (labels,), count = columns, len(wanted[0].classes)
    if labels.is_floating_point() or not 0 <= int(labels.min()) <= int(labels.max()) < count:
        raise DataError(
            f"{part}: {wanted[0].name} goes from {labels.min().item()} to {labels.max().item()} "
            f"({labels.dtype}); wanted the numbers 0 to {count - 1} of its {count} classes"
        )
    return labels.long()


def _trained(
    folder: Path, settings: dict[str, Any], parts: Mapping[str, LabelledNetworks], wanted: list[Quantity]
) -> NetworkResult:
    """Train, measure and write."""
    from molequi.plotting import learning_curve

    targets = {part: targets_of(data, wanted, part) for part, data in parts.items()}
    given = {k: v for k, v in settings["train"].items() if k not in _OF_RUN}
    options = with_dataclasses(fit, with_floats(fit, given))
    outputs = len(wanted[0].classes) or len(wanted)
    with own_random_numbers(torch.device("cpu"), int(options.get("seed", 0))):
        architecture = parts["train"].networks.architecture
        model = WeightModel(architecture, outputs, **_model_options(settings))
    for part, data in parts.items():
        if data.networks.architecture != architecture:
            raise DataError(
                f"{part}: networks {data.networks.architecture}; those of train are {architecture}"
            )
    for name in WRITTEN:
        (folder / name).unlink(missing_ok=True)
    write_config(folder, as_plain(settings))
    rows: list[dict[str, float]] = []
    names = {"train": "train_loss", "valid": "valid_loss", "accuracy": f"valid_{wanted[0].name}_accuracy"}

    with History(folder, rows) as history:

        def add(row: Mapping[str, float]) -> None:
            rows.append({names.get(name, name): value for name, value in row.items()})
            say(history.add(rows[-1]))

        valid = (parts["valid"].networks, targets["valid"])
        try:
            fit(model, parts["train"].networks, targets["train"], valid=valid, each_epoch=add, **options)
        except Interrupted as error:
            raise KeyboardInterrupt(f"after {len(rows)} epochs; the same command begins anew") from error
    errors = {part: errors_of(model, data.networks, targets[part], wanted) for part, data in parts.items()}
    save(model.cpu(), folder / "model.safetensors")
    learning_curve(rows, quantities={q.name: q for q in wanted}).savefig(folder / "learning_curve.png")
    write_errors(folder, errors)  # the last file: it says that the run is finished
    return NetworkResult(
        model=model, history=rows, errors=errors, quantities={q.name: q for q in wanted}, out=folder
    )
