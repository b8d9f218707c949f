"""A run as a YAML file: the sections ``data``, ``backbone``, ``predict``, ``train``, perhaps ``pretrain``.

::

    data:     {extxyz: {path: ethanol.xyz, split: {train: 950, valid: 50}}}
    backbone: {NequIP: {channels: 64, layers: 3, cutoff: 5.0}}
    predict:  [energy, forces]
    train:    {epochs: 500, lr: 5e-4, loss: {energy: 1, forces: {weight: 100, kind: huber}}}

The options of each section are the arguments of a function or a class of the package, so its documentation
describes them: ``help(mq.read_extxyz)``, ``help(mq.NequIP)``, ``help(mq.fit)``. A wrong name or value is an
error before any data are read.

**data** is one reader with its options. Beside them stand ``split``, ``seed`` and ``by`` of `Dataset.split`,
``stratify`` and ``labelled``, see `molequi.config.splitting.split_options`. Beside the reader, ``valid`` and
``test`` may each have a reader of their own, in place of a part of the split. Data of several levels of
theory are ``levels: {pbe: {extxyz: …}, r2scan: {extxyz: …}}``, each with all of this, see `Model`.

The readers and their most used options:

- ``extxyz`` (`molequi.read_extxyz`): extended XYZ: ``path``, ``index``, ``keys``, ``units``
- ``ase`` (`molequi.read_ase`): every format of ASE: ``path``, ``format``, ``index``, ``keys``, ``units``
- ``hdf5`` (`molequi.read_hdf5`): ANI-1x, SPICE, files of MACE: ``path``, ``index``, ``keys``, ``units``
- ``npz`` (`molequi.read_npz`): arrays of NumPy: ``path``, ``index``, ``part``, ``keys``, ``units``
- ``store`` (`molequi.read_store`): prepared structures: ``path``, ``index``, ``quantities``, ``verify``
- ``smiles`` (`molequi.read_smiles`): tables of SMILES: ``path``, ``column``, ``id``, ``conformers``, ``skip``
- ``sdf`` (`molequi.read_sdf`): SDF and MOL files: ``path``, ``embed``, ``conformers``, ``skip``
- ``points`` (`molequi.read_points`): point clouds and surfaces: ``path``, ``part``, ``samples``, ``features``
- ``pyg`` (`molequi.read_pyg`): datasets of PyTorch Geometric: ``name``, ``root``, ``part``
- ``nbody`` (`molequi.nbody`): simulated charged particles: ``trajectories``, ``particles``, ``seed``
- ``paths`` (`molequi.generative.read_paths`): for flow matching: ``path``, ``task``, ``scale``

**backbone** is the name of an architecture with its options. Its elements are those of the data unless they
are given.

**predict** lists names of known quantities, new ones as ``{name: …, per: …, rank: …}``, or heads as
``{Vector: forces}``, with options as ``{Scalar: {quantity: gap, pool: attention}}``.

**long_range**, **repulsion** and **dispersion** are terms of the energy for any backbone, see
`molequi.terms`: ``long_range: latent``, ``repulsion: zbl``, ``dispersion: {d3: pbe}``.

**train** has the options of `fit`, see `molequi.config.train`.

**pretrain** is for few expensive labels: a first training on many cheap ones, see
`molequi.config.pretraining.Pretraining`: ``pretrain: gfn2-xtb``, or with options
``pretrain: {calculator: gfn2-xtb, frames: 4000}``.

**start_from** is a trained model: ``start_from: runs/first``. It says ``backbone`` and ``predict``, which are
left out then, and ``train.finetune`` says how it is trained further, see `molequi.config.start`.

Models of networks in place of structures have the same sections, see `molequi.config.networks`.

Objects of your own (backbones, heads, readers, losses, quantities, hooks) are handed over to `molequi.run` by
the names that the file uses.
"""

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from molequi.config.inputs import unused_totals
from molequi.config.levels import check_alone, joined, names_of, sections_of
from molequi.config.names import Names
from molequi.config.plain import as_plain
from molequi.config.pretraining import read_pretraining
from molequi.config.sections import NETWORKS, OPTIONAL, SECTIONS, of_networks, read_sections
from molequi.config.splitting import check_split, split_data, split_options
from molequi.config.start import with_start
from molequi.config.terms import terms_of
from molequi.config.train import read_train
from molequi.data.dataset import Dataset
from molequi.errors import ConfigError, ModelError, did_you_mean
from molequi.heads import Head
from molequi.model import Model
from molequi.quantities import KNOWN, Quantity, completed, quantity
from molequi.training.checks import PARTS, check_terms
from molequi.training.fit import fit
from molequi.training.loss_terms import check_losses
from molequi.util.memory import is_out_of_memory
from molequi.util.seeding import own_random_numbers
from molequi.util.signature import check_call

SPLIT_OPTIONS = tuple(inspect.signature(split_options).parameters)
# What other programs call the sections.
OTHER_SECTIONS = {
    **dict.fromkeys(("dataset", "datasets", "input", "train_data"), "data"),
    **dict.fromkeys(("model", "network", "architecture", "representation"), "backbone"),
    **dict.fromkeys(("targets", "target", "output", "outputs", "properties", "heads"), "predict"),
    **dict.fromkeys(("training", "trainer", "fit", "optimizer", "loss"), "train"),
}
_SKIP = (
    "skip: true leaves out molecules that cannot be used; skip: <path of a .csv file> lists them there too"
)
# Options of readers in earlier versions, and what to write now.
RENAMED_OPTIONS: dict[str, dict[str, str]] = {"sdf": {"rejected": _SKIP}, "smiles": {"rejected": _SKIP}}


def read_config(
    config: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Sequence[str] = (),
    names: Names | None = None,
) -> dict[str, Any]:
    """Read and check the description of a run.

    Parameters
    ----------
    config : path, str or Mapping
        A YAML file, the name of a recipe of the package, or a mapping of the sections.
    overrides : Sequence of str
        Settings that replace those of the file, such as ``"train.lr=1e-3"``.
    names : Names, optional
        What the names of the file stand for.

    Returns
    -------
    dict
        The sections as plain values.

    Raises
    ------
    ConfigError
        With the path of each key that is unknown, misspelt, of the wrong type, out of range or in
        contradiction to another.
    """
    plain = with_start(read_sections(config, overrides, names), names or Names())
    check_config(plain, names)
    return plain


def check_config(config: Mapping[str, Any], names: Names | None = None) -> None:
    """Check everything about a run that can be known before data are read.

    Parameters
    ----------
    config : Mapping
        The sections as plain values.
    names : Names, optional
        What the names of the file stand for.

    Raises
    ------
    ConfigError
        For everything that is wrong in one section, with its path.
    """
    names = names or Names()
    if of_networks(config):
        raise ConfigError(
            f"backbone.{NETWORKS}: reads networks and no structures; only molequi train and molequi.run take "
            "such a run"
        )
    if config and not any(name in SECTIONS for name in config):
        raise ConfigError(
            f"config: wanted the sections {', '.join(SECTIONS)}; found {', '.join(map(str, config))[:80]}"
        )
    for name in config:
        if name not in (*SECTIONS, *OPTIONAL):
            option = name in inspect.signature(fit).parameters and name not in PARTS
            meant = f"; the section is called {OTHER_SECTIONS.get(str(name).lower())}"
            near = (
                meant
                if str(name).lower() in OTHER_SECTIONS
                else did_you_mean(str(name), (*SECTIONS, *OPTIONAL))
            )
            raise ConfigError(f"{name}: no such section{f'; write train.{name}' if option else near}")
    for name in SECTIONS:
        if config.get(name) in (None, {}, []):
            raise ConfigError(f"{name}: this section is missing; a run has {', '.join(SECTIONS)}")
    check_alone(config)
    for where, section in sections_of(config["data"]).values():
        check_data(section, where, names)
    options = read_train(config["train"], names)
    with own_random_numbers(torch.device("cpu"), 0):
        model = build_model(config, ["H"], names)
    check_terms(options, model, "train.terms")
    if options.losses:
        check_losses(options.losses, model.quantities, "train.loss")
    read_pretraining(config.get("pretrain"), options, model)


def check_data(data: Any, where: str, names: Names) -> None:
    """Raise ConfigError for a section ``data`` that is wrong.

    Parameters
    ----------
    data : object
        The section.
    where : str
        Its name, for messages.
    names : Names
        The readers.
    """
    name, options = reader_of(data, where, ("valid", "test"), names)
    for part in ("valid", "test"):
        if part in data:
            reader_of(data[part], f"{where}.{part}", (), names)
    split = options.get("split") or {}
    for part in ("valid", "test"):
        if part in data and part in split:
            raise ConfigError(f"{where}.{part} and {where}.{name}.split.{part}: give only one of them")
    if "valid" not in data and "valid" not in split:
        raise ConfigError(
            f"{where}: no validation set; give {where}.{name}.split: {{train: …, valid: …}} or "
            f"{where}.valid: {{{name}: {{path: …}}"
        )
    if split and "train" not in split:
        raise ConfigError(f"{where}.{name}.split: found {', '.join(split)}; wanted train too")


def reader_of(section: Any, where: str, others: Sequence[str], names: Names) -> tuple[str, dict[str, Any]]:
    """Name and options of the one reader in a section.

    Parameters
    ----------
    section : object
        The section.
    where : str
        Its name, for messages.
    others : sequence of str
        What may stand beside the reader: the parts that have readers of their own, or nothing. Options of the
        split are allowed where it is not empty.
    names : Names
        The readers.

    Raises
    ------
    ConfigError
        With the path of what is wrong.
    """
    split = bool(others)
    readers = names.readers
    if not isinstance(section, Mapping):
        raise ConfigError(
            f"{where}: found {section!r}; wanted a reader with its options, such as {{extxyz: {{path: …}}}}"
        )
    for name in section:
        if name not in readers and name not in others:
            raise ConfigError(f"{where}.{name}: no such reader{did_you_mean(str(name), [*readers, *others])}")
    found = [name for name in section if name in readers]
    if len(found) != 1:
        raise ConfigError(
            f"{where}: found {' and '.join(found) or 'no reader'}; wanted one of {', '.join(readers)}"
        )
    name = found[0]
    options = section[name]
    if not isinstance(options, Mapping):
        raise ConfigError(f"{where}.{name}: found {options!r}; wanted options, such as path: data.xyz")
    own = {k: v for k, v in options.items() if split and k in SPLIT_OPTIONS}
    check_call(split_options, own, where=f"{where}.{name}")
    check_split(own, f"{where}.{name}")
    rest = {k: v for k, v in options.items() if k not in own}
    if "quantities" in rest:
        rest["quantities"] = [
            _item(q, f"{where}.{name}.quantities.{k}", names)
            for k, q in enumerate(_listed(rest["quantities"]))
        ]
    check_call(
        readers[name],
        rest,
        where=f"{where}.{name}",
        more=SPLIT_OPTIONS if split else (),
        renamed=RENAMED_OPTIONS.get(name),
    )
    return name, dict(options)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _item(item: Any, where: str, names: Names) -> Quantity | Head:
    """An entry of `predict`."""
    try:
        if isinstance(item, str):
            return names.quantities[item] if item in names.quantities else quantity(item)
        if isinstance(item, Mapping) and len(item) == 1 and "name" not in item:
            ((head, what),) = item.items()
            if head not in names.heads:
                raise ConfigError(f"{head!r} is not a head{did_you_mean(str(head), names.heads)}")
            options: dict[str, Any] = {}
            if isinstance(what, Mapping) and "quantity" in what:
                what, options = what["quantity"], {k: v for k, v in what.items() if k != "quantity"}
                check_call(names.heads[head], options, where=f"{where}.{head}", leave_out=("item",))
            return names.heads[head](_item(what, where, names), **options)
        if isinstance(item, Mapping):
            check_call(Quantity, item := completed(item), where=where)
            return Quantity(**item)
    except (ConfigError, ModelError) as error:
        raise ConfigError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error
    raise ConfigError(
        f"{where}: found {item!r} ({type(item).__name__}); wanted the name of a quantity, "
        f"{{name: …, rank: …}}, or"
        " {Vector: forces}"
    )


def predicted_items(config: Mapping[str, Any], names: Names) -> list[Quantity | Head]:
    """The entries of the section ``predict``.

    Parameters
    ----------
    config : mapping
        The sections.
    names : Names
        What the names of the file stand for.
    """
    return [_item(item, f"predict.{k}", names) for k, item in enumerate(_listed(config["predict"]))]


def build_model(
    config: Mapping[str, Any], elements: Sequence[str | int], names: Names | None = None
) -> Model:
    """Build the untrained model of the sections ``backbone`` and ``predict``.

    Parameters
    ----------
    config : Mapping
        The sections.
    elements : Sequence of str or int
        Elements of the data, for a backbone whose options do not give them.
    names : Names, optional
        What the names of the file stand for.

    Returns
    -------
    Model
        The model; its weights are random.

    Raises
    ------
    ConfigError
        With the path of each wrong option, and if backbone and heads do not fit together.
    """
    names = _with_declared(config, names or Names())
    backbones, section = names.backbones, config["backbone"]
    if isinstance(section, str):
        section = {section: {}}
    if not isinstance(section, Mapping) or len(section) != 1:
        found = " and ".join(section) if isinstance(section, Mapping) else repr(section)
        raise ConfigError(f"backbone: found {found}; wanted one of {', '.join(backbones)} with its options")
    ((name, options),) = section.items()
    if name not in backbones:
        raise ConfigError(f"backbone.{name}: no such backbone{did_you_mean(str(name), backbones)}")
    where = f"backbone.{name}"
    if options is not None and not isinstance(options, Mapping):
        raise ConfigError(
            f"{where}: found {options!r} ({type(options).__name__}); wanted its options, such as "
            f"{name}: {{channels: 64}}"
        )
    options = {"elements": list(elements)} | dict(options or {})
    backbones[name].check_options(options, where=where)
    predict = predicted_items(config, names)
    terms: dict[str, Any] = {**terms_of(config)}
    try:
        return Model(backbones[name](**options), predict, levels=names_of(config.get("data")), **terms)
    except (ModelError, ConfigError) as error:
        raise ConfigError(f"{where} with predict {as_plain(config['predict'])}: {error}") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"{where}: a model of this size does not fit into the memory of this machine; make channels, "
            "layers or l_max smaller"
        ) from error


def read_data(config: Mapping[str, Any], names: Names | None = None) -> dict[str, Dataset]:
    """Read the data of a run.

    Parameters
    ----------
    config : Mapping
        All sections: the predicted quantities and the backbone (None: any) decide what is read.
    names : Names, optional
        What the names of the file stand for.

    Returns
    -------
    dict of Dataset
        The parts by name: ``"train"``, ``"valid"`` and perhaps ``"test"``.

    Raises
    ------
    ConfigError, DataError
        As the readers do.
    """
    data, names = config["data"], _with_declared(config, names or Names())
    items = [_item(item, "predict", names) for item in _listed(config["predict"])]
    predicted = [item.quantity.name if isinstance(item, Head) else item.name for item in items]
    found: dict[str, dict[str, Dataset]] = {}
    for level, (where, section) in sections_of(data).items():
        name, options = reader_of(section, where, ("valid", "test"), names)
        parts = split_data(_read(name, options, config, names), options, predicted)
        for part in ("valid", "test"):
            if part in section:
                own = reader_of(section[part], f"{where}.{part}", (), names)
                parts[part] = _read(*own, config, names)
        found[level] = parts
    return joined(found)


def _with_declared(config: Mapping[str, Any], names: Names) -> Names:
    """The names with the quantities that a reader declares, which `predict` may call by their bare names."""
    found: dict[str, Quantity] = {}
    sections = [section or {} for _, section in sections_of(config.get("data")).values()]
    for name, options in (item for section in sections for item in section.items()):
        for k, q in enumerate(_listed(options.get("quantities", []) if isinstance(options, Mapping) else [])):
            if isinstance(q, Mapping) and "name" in q:
                item = _item(q, f"data.{name}.quantities.{k}", names)
                if isinstance(item, Quantity):
                    found[item.name] = item
    return replace(names, quantities={**found, **names.quantities})


def _read(name: str, options: Mapping[str, Any], config: Mapping[str, Any], names: Names) -> Dataset:
    reader = names.readers[name]
    own = inspect.signature(reader).parameters  # a reader that draws random numbers takes the same seed
    options = {k: v for k, v in options.items() if k in own or k not in SPLIT_OPTIONS}
    wanted = [_item(item, "quantities", names) for item in _listed(options.pop("quantities", []))]
    if not wanted:
        # Readers look for all known quantities, but only the predicted ones are needed. If there are new
        # ones, all have to be named.
        items = [_item(item, "predict", names) for item in _listed(config["predict"])]
        predicted = [item.quantity if isinstance(item, Head) else item for item in items]
        if "keys" in own:
            asked = [q.name for q in predicted]
            unused = [n for n in KNOWN if n not in asked] + unused_totals(reader, config["backbone"], names)
            options["keys"] = dict.fromkeys(unused) | dict(options.get("keys") or {})
        if any(q != KNOWN.get(q.name) for q in predicted):
            losses = read_train(config["train"], names).losses
            learnt = [term.label for term in losses if term.weight] if losses else [q.name for q in predicted]
            wanted = [q for q in predicted if q.name in learnt]
    if "quantities" in own:  # a reader of the user's own may know its labels itself
        options["quantities"] = wanted
    data = reader(**options)
    if not isinstance(data, Dataset):
        raise ConfigError(
            f"data.{name}: the reader returned {type(data).__name__}; wanted a Dataset, mq.Dataset(graphs)"
        )
    return data
