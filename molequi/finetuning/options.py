"""The options of a fine-tuning, the group ``finetune`` of `fit`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from molequi.util.options import Options, as_options
from molequi.util.signature import check_keywords

RANK = 4


@check_keywords()
@dataclass(frozen=True)
class Replay(Options):
    """Old data that are trained beside the new ones, so that they are not forgotten.

    In each step, the loss of a batch of old structures times `weight` is added to the loss of the new ones.
    Before the first step it is checked that this changes the trained weights.

    Parameters
    ----------
    data : Dataset or what `load_dataset` takes
        The old structures. ``replay="old.xyz"`` is short for ``Replay("old.xyz")``.
    weight : float, > 0
        Factor of their loss.
    labels : {"data", "model"}
        "data" are their own labels, from the training of the starting model. Their energies are shifted as
        its reference energies are, so that they stay what they were. "model" are the predictions of the
        starting model, so that structures without labels will do.
    quantities : sequence of str, optional
        Which quantities of the loss are trained on them; by default all.
    batch_size : int, > 0, optional
        Structures of a batch; by default as many as in a batch of the new data.
    valid : float, 0 < valid < 1
        Share of the structures that are not trained. They measure what is forgotten.
    level : str, optional
        Of a model of several levels of theory: that of the old data, whose heads they train. By default it is
        what the data say, or `Finetuning.from_level`.
    judge : {"both", "new"}
        By which loss the best epoch is chosen, and when `Validation.patience` ends the training: the
        validation loss plus `weight` times that of the structures that are not trained, or the former alone.
    """

    data: Any
    weight: Annotated[float, Ge(0)] = 1.0
    labels: Literal["data", "model"] = "data"
    quantities: Sequence[str] | None = None
    batch_size: Annotated[int, Gt(0)] | None = None
    valid: Annotated[float, Gt(0), Lt(1)] = 0.1
    judge: Literal["both", "new"] = "both"
    level: str | None = None

    shorthand: ClassVar[str] = "data"

    def problem(self) -> str:
        """A replay that does nothing."""
        if self.data is None or (not isinstance(self.data, str) and _is_empty(self.data)):
            return "data is empty, so that nothing is replayed; give old structures, or leave replay out"
        if self.weight == 0:
            return "weight is 0, so that replay has no effect; give a weight above 0, or leave replay out"
        if self.quantities is not None and not self.quantities:
            return (
                "quantities is empty, so that replay has no effect; name quantities of the loss, or leave "
                "quantities out for all of them"
            )
        return ""


def _is_empty(data: Any) -> bool:
    """Whether it is a container without anything in it."""
    return hasattr(data, "__len__") and len(data) == 0


@check_keywords()
@dataclass(frozen=True)
class Finetuning(Options):
    """How a trained model is trained further on new data.

    Its scales stay. Reference energies are fitted to the new labels, and elements that it does not know are
    added. ``finetune="lora"`` is short for ``Finetuning("lora")``.

    Parameters
    ----------
    method : {"all", "heads", "frozen", "lora"}
        "all" trains all weights; "heads" those of the heads; "frozen" all but those that `frozen` names.
        "lora" leaves each matrix W that mixes channels of one irrep and trains a small change of it, W + B A
        with `rank` rows of A (Hu et al. 2021, arXiv 2106.09685). Each irrep has its own W, so that the model
        stays exactly equivariant. W + B A is what the model file holds, which is an ordinary one. Matrices
        that are not larger than B and A are trained as they are; biases and embeddings stay.
    layer_decay : float, 0 < layer_decay <= 1
        Factor of the learning rate from each layer to the one before it; heads have the factor 1. For "all"
        and "frozen".
    frozen : sequence of str
        For "frozen": what stays, by parts of the names of parameters, such as ``["embedding", "layers.0"]``.
    rank : int, > 0, optional
        For "lora": number of rows of A; 4 by default.
    reference_energies : {"refit", "keep"}
        "refit" adds to the reference energy of each element what explains the differences between labels and
        predictions best, by least squares on the composition of the training structures. "keep" is for new
        data of the same level of theory.
    replay : Replay, mapping or path, optional
        Old data that are trained beside the new ones.
    old : Dataset or what `load_dataset` takes, optional
        Old data on which it is measured what is forgotten. Without it, the structures of `replay` that are
        not trained are taken.
    level : str, optional
        The level of theory of the new data. If the model does not have it, it gets heads of its own, and
        those of other levels stay; they are trained only by their replay.
    from_level : str, optional
        The level as which the heads of a new one begin; of a model of a single level the name that this one
        gets. It may be left out if the model knows its level, as one that was chosen from several.
    nve : int, >= 0
        Steps of 0.5 fs of a simulation at constant energy, before and after, of one new structure; it shows
        whether the model conserves energy. 0 leaves it out.
    """

    method: Literal["all", "heads", "frozen", "lora"] = "all"
    layer_decay: Annotated[float, Gt(0), Le(1)] = 1.0
    frozen: Sequence[str] = ()
    rank: Annotated[int, Gt(0)] | None = None
    reference_energies: Literal["refit", "keep"] = "refit"
    replay: Any = None
    old: Any = None
    nve: Annotated[int, Ge(0)] = 200
    level: str | None = None
    from_level: str | None = None

    shorthand: ClassVar[str] = "method"

    def __post_init__(self) -> None:
        if self.replay is not None and not isinstance(self.replay, Replay):
            given = self.replay if isinstance(self.replay, (str, Mapping)) else {"data": self.replay}
            object.__setattr__(self, "replay", as_options(Replay, given, "replay"))
        super().__post_init__()

    def problem(self) -> str:
        """Options of another method."""
        if self.layer_decay != 1 and self.method not in ("all", "frozen"):
            return (
                f"layer_decay={self.layer_decay:g} has no effect with method={self.method!r}; leave it out "
                "or take method='all'"
            )
        if self.rank is not None and self.method != "lora":
            return f"rank={self.rank} is for method='lora'; found method={self.method!r}"
        if self.frozen and self.method != "frozen":
            return f"frozen={list(self.frozen)} is for method='frozen'; found method={self.method!r}"
        if self.method == "frozen" and not self.frozen:
            return "method='frozen' needs the names of what stays, such as frozen=['embedding', 'layers.0']"
        return ""

    def record(self) -> dict[str, Any]:
        """Plain values that decide what is learnt; the data of replay are added when they are read."""
        found: dict[str, Any] = {
            "method": self.method,
            "layer_decay": self.layer_decay,
            "frozen": list(self.frozen),
            "rank": (self.rank or RANK) if self.method == "lora" else None,
            "reference_energies": self.reference_energies,
        }
        levels = {"level": self.level, "from_level": self.from_level}
        found |= {name: level for name, level in levels.items() if level is not None}
        replay = self.replay
        if replay is not None:
            names = ("weight", "labels", "batch_size", "valid", "judge")
            found["replay"] = {name: getattr(replay, name) for name in names}
            found["replay"] |= {} if replay.level is None else {"level": replay.level}
            found["replay"]["quantities"] = None if replay.quantities is None else list(replay.quantities)
        return found
