"""The state of a training: what is saved, and how a training continues from it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge

from molequi.errors import CheckpointError, ConfigError, OtherSettingsError
from molequi.training.soap import SOAP, is_soap_state
from molequi.util.run_log import log, say
from molequi.util.signature import check_call
from molequi.util.state_files import differences

if TYPE_CHECKING:
    from molequi.training.trainer import Training


Count = Annotated[int, Ge(0)]


@dataclass
class Place:
    """How far a training is.

    Parameters
    ----------
    epoch : int
        Number of epochs that are over.
    batch : int
        Batches of the present epoch that are done.
    step : int
        Steps that are done.
    seconds : float
        Time of the training so far, without compilation.
    best_loss, best_epoch : float, int
        The lowest validation loss and its epoch, from 1; epoch 0 before the first validation.
    waited : int
        Validations since then.
    stopped : str
        Why the training ended; empty before the end.
    history : list of dict
        A row for each epoch that is over; epochs are numbered from 1.
    compiled : bool, optional
        Whether the model is compiled; None before this was chosen.
    """

    epoch: Count = 0
    batch: Count = 0
    step: Count = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_epoch: Count = 0
    waited: Count = 0
    stopped: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    compiled: bool | None = None


def epochs_from_1(state: dict[str, Any]) -> dict[str, Any]:
    """Upgrade a state of format 2, which numbered epochs from 0.

    Parameters
    ----------
    state : dict
        The state; it is not changed.

    Examples
    --------
    >>> old = {"place": {"best_epoch": 0, "history": [{"epoch": 0, "valid_loss": 0.3}]}}
    >>> epochs_from_1(old)
    {'place': {'best_epoch': 1, 'history': [{'epoch': 1, 'valid_loss': 0.3}]}}
    """
    place = state["place"]
    rows = [row | {"epoch": row["epoch"] + 1} for row in place["history"]]
    return state | {"place": place | {"best_epoch": place["best_epoch"] + 1, "history": rows}}


_KINDS: Mapping[tuple[type, ...], str] = {
    (Mapping,): "values by name",
    (torch.Tensor,): "a tensor",
    (bool,): "True or False",
    (int, float): "a number",
    (str,): "a text",
    (list, tuple): "a list",
}
_NEEDED = ("record", "place", "model", "frozen")
UPGRADES = {2: epochs_from_1}  # of states of earlier formats


def state_of(training: "Training") -> dict[str, Any]:
    """Everything that changes in a training, as tensors and plain values.

    Parameters
    ----------
    training : Training
        The training. All devices have to call this function.
    """
    rng = {"cpu": torch.get_rng_state()}
    if training.processes.device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(training.processes.device)
    return {
        "record": training.record,
        "place": asdict(training.place) | {"seconds": training.seconds},
        "model": training.model.state_dict(),
        "average": training.average.model.state_dict() if training.average else None,
        "best": training.best,
        "optimizer": training.optimizer.state_dict(),
        "schedule": training.learning_rate.state(),
        "hooks": {hook.name: _readable(hook.state(), type(hook).__name__) for hook in training.hooks},
        "frozen": training.freezing(),
        "running": training.running,
        "penalties": training.penalties,
        "sums": {name: training.add_up(sums) for name, sums in training.metrics["train"].sums.items()},
        "rng": rng,
    }


def _readable(value: Any, where: str, top: bool = True) -> Any:
    """The state of a hook. Raises ConfigError for values that could not be read back."""
    if top and not isinstance(value, dict):
        raise ConfigError(f"{where}.state: found {type(value).__name__}; wanted values by name")
    if isinstance(value, dict):
        for name, item in value.items():
            _readable(item, f"{where}.state: {name}" if top else f"{where}.{name}", top=False)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _readable(item, where, top=False)
    elif not (isinstance(value, torch.Tensor) or value is None or type(value) in (bool, int, float, str)):
        raise ConfigError(
            f"{where} is {type(value).__module__}.{type(value).__name__}, which a saved state cannot hold; "
            "wanted tensors, numbers, text, and lists and mappings of these, such as float(x)"
        )
    return value


def restore(training: "Training", state: Mapping[str, Any]) -> None:
    """Bring a training to a state.

    Parameters
    ----------
    training : Training
        The training, before its first step.
    state : Mapping
        What `state_of` returned.
    """
    device = training.processes.device
    training.place = Place(**state["place"])
    training.order = training.batches["train"].epoch(training.place.epoch)
    training.seconds = training.saved_at = training.place.seconds
    training.clock.set(training.seconds)
    training.model.load_state_dict(state["model"])
    if training.average and state["average"]:
        training.average.model.load_state_dict(state["average"])
    training.best = {name: value.to(device) for name, value in state["best"].items()}
    _restore_optimizer(training.optimizer, state["optimizer"])
    training.learning_rate.restore(state["schedule"])
    for hook in training.hooks:
        if hook.name in state["hooks"]:
            hook.restore(state["hooks"][hook.name])
    if state["running"].shape == training.running.shape:
        training.running.copy_(state["running"])
        training.penalties = {name: value.to(device) for name, value in state["penalties"].items()}
    for name, sums in training.metrics["train"].sums.items():
        if name in state["sums"] and training.processes.is_global_zero:  # they are sums over all devices
            sums.copy_(state["sums"][name])
    torch.set_rng_state(state["rng"]["cpu"].cpu())
    if "cuda" in state["rng"] and device.type == "cuda":
        torch.cuda.set_rng_state(state["rng"]["cuda"].cpu(), device)


def _restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take the moments of a state, with the options of this optimizer.

    Those of SOAP mean nothing for Adam, nor the other way round; then the optimizer begins anew.
    """
    if bool(state["state"]) and is_soap_state(state) != isinstance(optimizer, SOAP):
        say("the optimizer is another one than before, and begins without its moments")
        return
    # The learning rate is that of the last step: each step sets its own, and the history has it.
    options = [{k: v for k, v in g.items() if k not in ("params", "lr")} for g in optimizer.param_groups]
    optimizer.load_state_dict(state)
    if not isinstance(optimizer, SOAP):  # whose matrices have shapes of their own
        _check_moments(optimizer)
    for group, own in zip(optimizer.param_groups, options):
        group.update(own)
        if own.get("amsgrad"):  # it was off before
            for p in group["params"]:
                moments = optimizer.state.get(p, {})
                if "exp_avg_sq" in moments and "max_exp_avg_sq" not in moments:
                    moments["max_exp_avg_sq"] = moments["exp_avg_sq"].clone()


def _check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError if parameters have other moments than the first one, or of other shapes."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p in optimizer.state]
    names = set(optimizer.state[parameters[0]]) if parameters else set()
    for p in parameters:
        moments = optimizer.state[p]
        if set(moments) != names:
            raise ValueError(f"moments {', '.join(map(str, moments)) or 'none'} of one parameter")
        for name, value in moments.items():
            wanted = (p.shape, p.dtype) if name != "step" else (torch.Size(), torch.float32)
            found = (value.shape, value.dtype) if isinstance(value, torch.Tensor) else (type(value).__name__,)
            if found != wanted:
                raise ValueError(f"a moment {name} {found}; wanted {wanted}")


def _check_kinds(folder: str, state: Mapping[str, Any]) -> None:
    """Raise CheckpointError for values of other types than a training writes."""
    try:
        if not isinstance(state["place"], Mapping):
            raise ConfigError(f"place: found {str(state['place'])[:40]}; wanted values by name")
        place = dict(state["place"])
        loss = place.pop("best_loss", None)  # infinite before the first validation
        if not isinstance(loss, (int, float)) or isinstance(loss, bool):
            raise ConfigError(f"place.best_loss: found {loss!r}; wanted a number")
        check_call(Place, place, where="place")
        if not isinstance(state["frozen"], (list, tuple)) or not all(
            isinstance(n, str) for n in state["frozen"]
        ):
            raise ConfigError(f"frozen: found {str(state['frozen'])[:40]}; wanted a list of names")
        if not isinstance(state.get("sums", {}), Mapping):
            raise ConfigError(f"sums: found {str(state['sums'])[:40]}; wanted sums by name")
        for name, sums in state.get("sums", {}).items():
            if isinstance(sums, torch.Tensor) and bool((sums[..., :3] < 0).any()):  # number, |error|, error²
                raise ConfigError(f"sums.{name}: found a sum of errors below zero")
    except ConfigError as error:
        raise CheckpointError(
            f"{folder}: its state has values that no training writes ({error}); begin anew with "
            "resume='restart'"
        ) from error


def _unlike(found: Any, own: Any, where: str = "") -> str:
    """Where a state has another kind of value than this training writes itself; empty if nowhere.

    Values that are None on either side, and names that only one side has, depend on how far a training is.
    """
    if found is None or own is None:
        return ""
    for kinds, words in _KINDS.items():
        if isinstance(own, kinds):
            if not isinstance(found, kinds) or isinstance(found, bool) != isinstance(own, bool):
                return f"{where} is {str(found)[:40]!r}; wanted {words}"
            break
    if isinstance(own, Mapping):
        for name in own.keys() & found.keys():
            if wrong := _unlike(found[name], own[name], f"{where}.{name}" if where else str(name)):
                return wrong
    return ""


def resume(training: "Training") -> None:
    """Continue from the state in the folder of a training, if the options ask for it.

    Parameters
    ----------
    training : Training
        The training, before its first step.

    Raises
    ------
    OtherSettingsError
        If the state is of other settings or data; the message lists the differences.
    CheckpointError
        If the state does not fit the model, or is damaged.
    """
    folder, states, wanted = training.folder, training.states, training.options.resume
    assert states is not None
    main = training.processes.is_global_zero
    if wanted == "restart":
        if main:
            states.remove()
        return
    # Rank 0 reads for all, so that all continue from the same state, also without a shared folder.
    state = training.broadcast(states.load() if main else None)
    if state is None:
        return
    lost = [name for name in _NEEDED if name not in state]
    if lost:
        raise CheckpointError(
            f"{folder}: its state has no {', '.join(lost)}, from which nothing can go on; begin anew with "
            "resume='restart'"
        )
    _check_kinds(str(folder), state)
    changed = differences(state["record"], training.record)
    if changed and wanted != "force":
        raise OtherSettingsError(
            f"{folder} holds a training with other settings or data:\n  " + "\n  ".join(changed), str(folder)
        )
    if state["frozen"] != training.freezing():
        names = ", ".join(sorted({*state["frozen"]} ^ {*training.freezing()}))
        raise CheckpointError(
            f"{folder}: only one of the saved training and this one has the term {names}, which keeps "
            "parameters from the optimizer, so that one cannot continue the other. Begin anew with "
            "resume='restart', or choose another folder with out="
        )
    wrong = _unlike(state, state_of(training))
    if wrong:
        raise CheckpointError(
            f"{folder}: its state does not fit this model ({wrong}); begin anew with resume='restart'"
        )
    try:
        restore(training, state)
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{folder}: its state does not fit this model ({error}); begin anew with resume='restart'"
        ) from error
    place = training.place
    if changed:
        over = training.done() >= 1 and not place.batch and place.best_epoch > 0
        place.stopped = training.ended() if over else ""  # the new settings decide how long it goes on
        place.compiled = None  # and whether compilation is worthwhile
    if place.stopped and main:
        say(
            f"{folder}: this training was finished already ({place.stopped}), and its model is taken; "
            "resume='restart' begins anew"
        )
    elif main:
        log(f"continued after step {place.step}, in epoch {place.epoch + 1}")
