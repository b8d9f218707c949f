"""What a fine-tuning trains: parameters with factors of the learning rate, and small changes of tensors."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from molequi.errors import ConfigError, did_you_mean
from molequi.finetuning.elements import NewElements
from molequi.finetuning.low_rank import Change, LowRank, Rows, worthwhile
from molequi.finetuning.options import RANK, Finetuning
from molequi.heads.levels import prefixes
from molequi.model import Model
from molequi.models.sevennet import ElementMatrices
from molequi.nn.irreps import ElementLinear


class Method:
    """The trained part of a model; all other parameters do not require gradients until `close`.

    Parameters
    ----------
    model : Model
        The model.
    options : Finetuning
        Which method.
    new : NewElements
        Elements that the model got. What belongs to them is always trained.
    seed : int
        Seed of the random numbers of "lora".
    levels : collection of str
        Of a model of several levels of theory: those of the data. The heads of others stay; "heads" trains
        those of `Finetuning.level` alone.

    Raises
    ------
    ConfigError
        If a name of `Finetuning.frozen` matches nothing, or nothing is left to train.
    """

    def __init__(
        self,
        model: Model,
        options: Finetuning,
        new: NewElements,
        seed: int,
        levels: Collection[str] = (),
    ) -> None:
        self.options, self.changes = options, dict[str, Change]()
        self.total = sum(p.numel() for p in model.parameters())
        self._before = [(p, p.requires_grad) for p in model.parameters()]
        every = {name: p for name, p in model.named_parameters() if p.requires_grad}
        own = (options.level,) if options.method == "heads" else levels
        stays = tuple(f"heads.{name}" for name in prefixes(model.heads, leave_out=own))
        named = {name: p for name, p in every.items() if not name.startswith(stays)}
        whole = self._whole(model, named)
        generator = torch.Generator().manual_seed(seed)
        if options.method == "lora":
            rank = options.rank or RANK
            for name in matrices(model):
                if name not in named:
                    continue
                if worthwhile(named[name], rank):
                    self.changes[name] = LowRank(named[name], rank, generator)
                else:
                    whole.add(name)
        for name, rows in new.rows.items():
            if name in named and name not in whole and name not in self.changes:
                self.changes[name] = Rows(named[name], rows)
        for name, p in every.items():
            p.requires_grad_(name in whole or name in self.changes)
        depths = depths_of(model)
        last = max(depths.values(), default=0)
        self.rates = [
            (named[name], options.layer_decay ** (last - depths[name])) for name in named if name in whole
        ]
        self.rates += [(part, 1.0) for change in self.changes.values() for part in change.parts.values()]
        if not self.rates:
            self.close()
            raise ConfigError(
                f"finetune: method={options.method!r} leaves nothing to train: the model has no parameters "
                "outside of what stays; take method='all'"
            )

    def _whole(self, model: Model, named: Mapping[str, nn.Parameter]) -> set[str]:
        """Names of the parameters that are trained as they are."""
        if self.options.method == "all":
            return set(named)
        if self.options.method == "heads":
            return {name for name in named if name.startswith(("heads.", "terms."))}
        if self.options.method == "frozen":
            return set(named) - frozen_names(model, self.options.frozen)
        return set()

    @property
    def trained(self) -> int:
        """How many parameters are trained."""
        return sum(p.numel() for p, _ in self.rates)

    def text(self) -> str:
        """What is trained, in words."""
        what = {
            "all": "all weights",
            "heads": "the heads",
            "frozen": f"all but {', '.join(self.options.frozen)}",
            "lora": f"changes of rank {self.options.rank or RANK}",
        }[self.options.method]
        decay = self.options.layer_decay
        rates = "" if decay == 1 else f", learning rates times {decay:g} from layer to layer"
        return f"{what}{rates}: {self.trained:,} parameters are trained; the model has {self.total:,}"

    def merge(self) -> None:
        """Write the changes into the model."""
        for change in self.changes.values():
            change.merge()

    def close(self) -> None:
        """Make the model an ordinary one again."""
        for change in self.changes.values():
            change.close()
        for p, wanted in self._before:
            p.requires_grad_(wanted)

    def state(self) -> dict[str, Any]:
        """The changes, for a saved state."""
        return {name: change.state() for name, change in self.changes.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Parameters
        ----------
        state : mapping
            What `state` returned.
        """
        for name, change in self.changes.items():
            change.restore(state[name])


def matrices(model: nn.Module) -> list[str]:
    """Names of the matrices that mix channels of one irrep each, and of those that act on invariants.

    Parameters
    ----------
    model : Module
        The model.

    Examples
    --------
    >>> import molequi as mq
    >>> model = mq.Model(mq.PaiNN(elements=["H"], channels=8, layers=1), ["energy"])
    >>> [name for name in matrices(model) if "updates" in name]
    ['backbone.updates.0.mix.weight', 'backbone.updates.0.a.0.weight', 'backbone.updates.0.a.2.weight']
    """
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, ElementLinear, ElementMatrices))
    ]


def depths_of(model: Model) -> dict[str, int]:
    """Number of the layer of each parameter: 0 for what comes before all layers, the highest one for heads.

    The layers of a backbone are its ``ModuleList`` members; those with the same number have the same depth.

    Parameters
    ----------
    model : Model
        The model.

    Returns
    -------
    dict of str to int
        By the name of the parameter.
    """
    lists = {name for name, child in model.backbone.named_children() if isinstance(child, nn.ModuleList)}
    found = {}
    for name, _ in model.named_parameters():
        part, child, *rest = name.split(".")
        found[name] = int(rest[0]) + 1 if part == "backbone" and child in lists else 0
    last = max(found.values(), default=0) + 1
    return {name: last if name.startswith(("heads.", "terms.")) else depth for name, depth in found.items()}


def frozen_names(model: Model, wanted: Sequence[str]) -> set[str]:
    """Names of the parameters that stay.

    Parameters
    ----------
    model : Model
        The model.
    wanted : sequence of str
        Parts of names between dots, such as "embedding" or "layers.0".

    Returns
    -------
    set of str

    Raises
    ------
    ConfigError
        If one of them matches nothing; the message names close ones.

    Examples
    --------
    >>> import molequi as mq
    >>> model = mq.Model(mq.PaiNN(elements=["H"], channels=8, layers=1), ["energy"])
    >>> sorted(frozen_names(model, ["embedding"]))
    ['backbone.embedding.element.weight']
    """
    names = [name for name, _ in model.named_parameters()]
    found: set[str] = set()
    for part in wanted:
        matching = [name for name in names if f".{part}." in f".{name}."]
        if not matching:
            offered = _parts(names)
            raise ConfigError(
                f"finetune.frozen: {part!r} matches no parameter of this {type(model.backbone).__name__}"
                f"{did_you_mean(part, offered)}"
            )
        found.update(matching)
    return found


def _parts(names: Sequence[str]) -> list[str]:
    """The blocks that names of parameters begin with, without the words "backbone" and "heads" alone."""
    found: dict[str, None] = {}
    for name in names:
        first, *path = name.split(".")
        path = path if first == "backbone" else [first, *path]
        for count in range(1, len(path)):
            found[".".join(path[:count])] = None
    return list(found)
