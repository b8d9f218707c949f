"""Start the processes of a training, or join those that a launcher started."""

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

from molequi.errors import ConfigError, MolequiError, TrainingError
from molequi.training import watch as limits
from molequi.training.meeting import Met, meet, open_store
from molequi.training.options import Compute
from molequi.training.processes import Group, Processes
from molequi.training.watch import Watch, signal_of, state_of_process
from molequi.util.devices import as_device
from molequi.util.launchers import OWN, Launched, join_as, launched, warn_of_idle_tasks
from molequi.util.run_log import note

_GROUP: list[Group] = []  # of this process, once it has joined one
_CHILDREN: list["subprocess.Popen[bytes]"] = []  # that this process started, from rank 1
_STORES: list[dist.Store] = []  # which this process keeps for the others
_INSIDE = threading.local()  # whether a block of `together` has begun
_PATIENCE = 60.0  # seconds that rank 0 waits at its end for the processes that it started


def _folder() -> str | None:
    """The working directory."""
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


_FOLDER = _folder()  # where this process began; a script may change it later


def number_of_processes(compute: Compute) -> int:
    """Number of processes of a training with these options.

    Parameters
    ----------
    compute : Compute
        The options.
    """
    found = launched()
    return (compute.devices or 1) if found is None else found.size


def connect(compute: Compute, device: str) -> Processes:
    """Join the processes of a training; start them before, if the options say so and no launcher did.

    Parameters
    ----------
    compute : Compute
        The options.
    device : str
        The device, or the kind of the devices.

    Raises
    ------
    ConfigError
        If the options contradict the launcher or the devices, or if this process cannot start others.
    TrainingError
        If other processes do not come.
    """
    found, where = launched(), as_device(device)
    check_processes(compute, where)
    if found is None and (compute.devices or 1) > 1:
        found = _start(compute.devices or 1)
    if found is None:
        warn_of_idle_tasks()
        return Processes(_device(where, None))
    group = _join(found)
    if not dist.is_initialized():
        group.device = _device(where, found)
        _connect(group, where)
    return group


def check_processes(compute: Compute, device: torch.device) -> None:
    """Check the number of processes against the launcher and the devices of this machine.

    Parameters
    ----------
    compute : Compute
        The options.
    device : torch.device
        The device, or the kind of the devices.

    Raises
    ------
    ConfigError
        With both numbers.
    """
    found = launched()
    if found is not None:
        for name, wanted, there, what in (
            ("devices", compute.devices, found.local_size, "processes on each machine"),
            ("num_nodes", compute.num_nodes, found.nodes, "machines"),
        ):
            if wanted is not None and wanted != there:
                raise ConfigError(
                    f"compute.{name}={wanted} and {found.by} started {there} {what}; leave {name} out, or "
                    f"start as many"
                )
    elif (compute.num_nodes or 1) > 1:
        count, nodes = compute.devices or 1, compute.num_nodes
        raise ConfigError(
            f"compute.num_nodes={nodes}: molequi starts processes on its own machine alone. Start it on each "
            f"machine with torchrun --nnodes {nodes} --nproc-per-node {count} --rdzv-backend c10d "
            "--rdzv-endpoint HOST:PORT -m molequi.cli train …, or with srun"
        )
    here = (compute.devices or 1) if found is None else found.local_size
    alone = number_of_processes(compute) == 1
    if compute.strategy == "ddp" and alone:
        raise ConfigError(
            "compute.strategy='ddp' and one process; give compute.devices=2 or more, start it with torchrun "
            "or srun, or leave strategy out"
        )
    if device.type != "cuda" or alone:
        return
    if device.index is not None:
        raise ConfigError(
            f"device='{device}' is one device, and there are {here} processes on this machine; write "
            "device='cuda', which gives each process its own"
        )
    if torch.cuda.device_count() < here:
        raise ConfigError(
            f"{here} processes on this machine and {torch.cuda.device_count()} visible CUDA devices; "
            "start as many processes as there are devices. With srun, let each task see all devices of "
            "its node: --gpus-per-node instead of --gpus-per-task"
        )


@contextmanager
def together(compute: Compute | None = None, device: str = "auto") -> Iterator[None]:
    """All processes do the block, or none of them finishes it.

    Processes of a launcher are joined at once, so that they are watched while they read data. An exception in
    one process ends the others too, with its message.

    Parameters
    ----------
    compute : Compute, optional
        The options, which are checked against the launcher; None: they are not known yet.
    device : str
        The device, or the kind of the devices.
    """
    if getattr(_INSIDE, "block", False):
        yield
        return
    if compute is not None:
        check_processes(compute, as_device(device))
    _INSIDE.block = True
    several = launched() is not None if compute is None else number_of_processes(compute) > 1
    with _sigterm_raises() if several else nullcontext():
        try:
            if (found := launched()) is not None:
                _join(found)
            yield
            if _GROUP and dist.is_initialized():
                _GROUP[0].barrier()
        except BaseException as error:
            if _GROUP:
                _separate(_GROUP[0], error)
                if isinstance(error, KeyboardInterrupt):
                    _end_with_a_sentence(_GROUP[0], str(error))
            _end_children()
            raise
        finally:
            _INSIDE.block = False
            if _GROUP:
                _GROUP[0].watch.active = False


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM raises SystemExit(143) in a block, so that the other processes get to know."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _separate(group: Group, error: BaseException) -> None:
    """Let the other processes end with the error of this one; none of them can go on after it."""
    if group.watch.failure is None:
        number = signal_of(error)
        kind = "" if isinstance(error, MolequiError) else f"{type(error).__name__}: "
        name = group.names[group.global_rank]
        text = f"{name} ended the training: {kind}{error}\nPut this right, and {group.watch.advice}"
        group.watch.fail(text, number)
    else:
        group.watch.wait_until_known()
        _note_lost_first(group.watch)
    # At its end Python would wait for a sum that a stopped process never gives. A thread that sleeps for ever
    # keeps the object that waits.
    threading.Thread(target=_keep, args=(dist.group.WORLD,), daemon=True).start()


def _end_with_a_sentence(group: Group, text: str) -> None:
    """If nobody catches the interrupt, rank 0 prints a sentence, in place of a traceback of each process."""
    before, sentence = sys.excepthook, f"molequi: interrupted; {text or group.watch.advice}"

    def show(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            before(kind, value, trace)
        elif group.is_global_zero:
            print(sentence, file=sys.stderr)

    sys.excepthook = show


def _note_lost_first(watch: Watch) -> None:
    """Rank 1 writes to the log of the run that rank 0, which keeps it, is lost."""
    failure = watch.failure
    if failure is not None and failure.lost and failure.rank == 0 and watch.rank == 1 and watch.folder:
        note(watch.folder, failure.text)


def _keep(group: object) -> None:
    threading.Event().wait()


def advise(text: str, folder: Path | None) -> None:
    """Set what errors say at their end, if the processes cannot go on together.

    Parameters
    ----------
    text : str
        What to do.
    folder : Path or None
        Folder of the run, to whose log they are written.
    """
    for group in _GROUP:
        group.watch.advice, group.watch.folder = text, folder


def _start(count: int) -> Launched:
    """Start this program again for each further process."""
    if launched() is not None or _GROUP:
        raise ConfigError(f"compute.devices={count}: the processes of this program have been started already")
    line = [sys.executable, *sys.orig_argv[1:]]
    problem = _why_not()
    if problem:
        raise ConfigError(
            f"compute.devices={count} starts this program again for each process, and {problem}. Write it to "
            f"a file, train.py, and type: python train.py, or torchrun --nproc-per-node {count} train.py"
        )
    store, port = open_store()
    for rank in range(1, count):
        more = {
            OWN: f"{rank} {count} 127.0.0.1 {port}",
            "RANK": str(rank),  # for other libraries
            "LOCAL_RANK": str(rank),
            "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),  # not of lost connections
            "WORLD_SIZE": str(count),
        }
        _CHILDREN.append(subprocess.Popen(line, env=os.environ | more, cwd=_FOLDER))
    own = Launched("molequi", 0, count, 0, count, 1, "127.0.0.1", port)
    join_as(own)
    _STORES.append(store)
    atexit.register(_wait_for_children)
    return own


def _why_not() -> str:
    """Why this program cannot be started again; empty if it can."""
    main = sys.modules["__main__"]
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
        return "a notebook or IPython cannot be"
    words = sys.orig_argv[1:]
    if hasattr(sys, "ps1") or sys.flags.interactive or not words:
        return "it was typed into Python"
    if words[-1] == "-" or not (hasattr(main, "__file__") or "-c" in words):
        return "it was read from the standard input"
    return ""


def _join(found: Launched) -> Group:
    """Meet the other processes; from then on they watch each other."""
    if not _GROUP:
        met = meet(found, _how_ended)
        _STORES.extend(met.stores)
        own, others, of_torch = met.clients
        watch = Watch(own, found.rank, met.names, lambda rank: _what_of(rank, met))
        watch.before_exit = partial(_before_exit, watch)
        watch.start()
        _GROUP.append(Group(found, others, of_torch, met.names, watch))
        atexit.register(_leave, watch)
    watch = _GROUP[0].watch
    watch.active = True
    if watch.failure is not None and watch.raised:
        raise TrainingError(
            f"an earlier error has separated the processes of this program: {watch.failure.text}. Start it "
            "again"
        )
    watch.check()
    return _GROUP[0]


def _connect(group: Group, device: torch.device) -> None:
    """Connect the processes, so that they can add up tensors."""
    found, where = group.launched, group.device
    dist.init_process_group(
        "nccl" if where.type == "cuda" else "gloo",
        store=dist.PrefixStore("torch", group.of_torch),
        rank=found.rank,
        world_size=found.size,
        timeout=timedelta(seconds=2 * limits.STUCK),  # `Group` gives up before
        device_id=where if where.type == "cuda" else None,
    )
    _launch(device, found)


def _device(device: torch.device, found: Launched | None) -> torch.device:
    from molequi.training.fabric import device_of  # takes a second

    return device_of(device, found)


def _launch(device: torch.device, found: Launched) -> None:
    from molequi.training.fabric import launch

    launch(device, found)


def _leave(watch: Watch) -> None:
    """The end of this program."""
    failed = watch.failure is not None
    watch.leave()
    if dist.is_initialized() and not failed:
        dist.destroy_process_group()


def _how_ended(rank: int) -> str:
    """How a process ended that this one started; empty if it runs, or is none of them."""
    status = _CHILDREN[rank - 1].poll() if 0 < rank <= len(_CHILDREN) else None
    if status is None:
        return ""
    return (
        f"ended with exit status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"
    )


def _what_of(rank: int, met: Met) -> str:
    """What this machine knows of a process that does not answer."""
    how = _how_ended(rank)
    return f"the process {how}" if how else state_of_process(met.numbers[rank]) if met.here[rank] else ""


def _end_children() -> None:
    """End the processes that this one started, after an error that they know if they can."""
    failure = _GROUP[0].watch.failure if _GROUP else None
    end = time.monotonic() + (0 if failure is None else limits.GRACE)
    for rank, child in enumerate(_CHILDREN, start=1):
        stopped = failure is not None and failure.lost and failure.rank == rank
        try:
            child.wait(0 if stopped else max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _before_exit(watch: Watch) -> None:
    """What is done before this process is ended from outside."""
    _note_lost_first(watch)
    for child in _CHILDREN:
        child.kill()


def _wait_for_children() -> None:
    """Let the processes end that this one started, before it ends itself."""
    for child in _CHILDREN:
        try:
            child.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            return
