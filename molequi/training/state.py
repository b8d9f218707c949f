"""The state of a training: what is saved, and how a training continues from it."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from molequi.errors import CheckpointError, ConfigError
from molequi.util.state_files import differences

if TYPE_CHECKING:
    from molequi.training.trainer import Training


@dataclass
class Place:
    """Where a training is."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_epoch: int = -1
    waited: int = 0
    stopped: str = ""
    history: list[dict[str, float]] = field(default_factory=list)


def state_of(training: "Training") -> dict[str, Any]:
    """All that changes in a training, as tensors and plain values; all devices have to call it."""
    rng = {"cpu": torch.get_rng_state()}
    if training.fabric.device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(training.fabric.device)
    return {
        "record": training.record,
        "place": asdict(training.place) | {"seconds": training.seconds},
        "model": training.model.state_dict(),
        "average": training.average.model.state_dict() if training.average else None,
        "best": training.best,
        "optimizer": training.optimizer.state_dict(),
        "schedule": training.learning_rate.state(),
        "hooks": {hook.name: hook.state() for hook in training.hooks},
        "frozen": training.freezing(),
        "running": training.running,
        "penalties": training.penalties,
        "sums": {name: training.add_up(sums) for name, sums in training.metrics["train"].sums.items()},
        "rng": rng,
    }


def restore(training: "Training", state: Mapping[str, Any]) -> None:
    """Put a training where it was when `state_of` gave this state."""
    device = training.fabric.device
    training.place = Place(**state["place"])
    training.order = training.batches["train"].epoch(training.place.epoch)
    training.seconds = training.saved_at = training.place.seconds
    training.started = time.monotonic() - training.seconds
    training.model.load_state_dict(state["model"])
    if training.average and state["average"]:
        training.average.model.load_state_dict(state["average"])
    training.best = {name: value.to(device) for name, value in state["best"].items()}
    training.optimizer.load_state_dict(state["optimizer"])
    training.learning_rate.restore(state["schedule"])
    for hook in training.hooks:
        if hook.name in state["hooks"]:
            hook.restore(state["hooks"][hook.name])
    if state["running"].shape == training.running.shape:
        training.running.copy_(state["running"])
        training.penalties = {name: value.to(device) for name, value in state["penalties"].items()}
    for name, sums in training.metrics["train"].sums.items():
        if name in state["sums"] and training.fabric.is_global_zero:  # they are sums over all devices
            sums.copy_(state["sums"][name])
    torch.set_rng_state(state["rng"]["cpu"].cpu())
    if "cuda" in state["rng"] and device.type == "cuda":
        torch.cuda.set_rng_state(state["rng"]["cuda"].cpu(), device)


def resume(training: "Training") -> None:
    """Continue from the state in the folder of a training, if that is wanted.

    Raises
    ------
    ConfigError
        With the differences, if the state is of other settings or data.
    CheckpointError
        If the state does not fit the model, or is damaged.
    """
    folder, states, wanted = training.folder, training.states, training.options.resume
    assert states is not None
    if wanted == "restart":
        if training.fabric.is_global_zero:
            states.remove()
        return
    state = states.load()
    if state is None:
        return
    changed = differences(state["record"], training.record)
    if changed and wanted != "force":
        raise ConfigError(
            f"{folder} holds a training with other settings or data:\n  "
            + "\n  ".join(changed)
            + "\nGo on all the same with resume='force', begin anew with resume='restart', or choose another folder with out="
        )
    if state["frozen"] != training.freezing():
        names = ", ".join(sorted({*state["frozen"]} ^ {*training.freezing()}))
        raise CheckpointError(
            f"{folder}: only one of its training and this one has the term {names}, which keeps parameters from the "
            "optimizer, so that one cannot continue the other. Begin anew with resume='restart', or choose another folder "
            "with out="
        )
    try:
        restore(training, state)
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: its state does not fit this model ({error}); begin anew with resume='restart'"
        ) from error
    place = training.place
    if changed:
        over = training.done() >= 1 and not place.batch and place.best_epoch >= 0
        place.stopped = training.ended() if over else ""  # the new settings decide how long it goes on
    if place.stopped and training.fabric.is_global_zero:
        print(
            f"{folder}: this training was finished already ({place.stopped}), and its model is taken; "
            "resume='restart' begins anew",
            flush=True,
        )
