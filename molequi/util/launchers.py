"""Which of several processes this one is: read from what a launcher wrote into the environment."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from molequi.errors import ConfigError, TrainingWarning

OWN = "MOLEQUI_PROCESS"  # rank, number of processes, address and port, of a process that molequi started
_JOINED: "list[Launched]" = []  # what this process is, once it is known


@dataclass(frozen=True)
class Launched:
    """One of the processes that a launcher started.

    Parameters
    ----------
    by : str
        The launcher: "molequi", "torchrun" or "srun".
    rank, size : int
        Number of this process, from 0, and number of all processes.
    local_rank, local_size : int
        The same among the processes of this machine.
    nodes : int
        Number of machines.
    address, port : str, int
        Where the processes meet.
    """

    by: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    nodes: int
    address: str
    port: int


def launched() -> Launched | None:
    """What this process is among those that a launcher started; None for a process that is alone.

    Known are the environment variables of torchrun (also of other launchers that set ``RANK``,
    ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT``) and those of srun.

    Raises
    ------
    ConfigError
        If the variables contradict each other, or are those of mpirun alone.
    """
    if _JOINED:
        return _JOINED[0]
    found = _own() or _torchrun(os.environ) or _slurm(os.environ)
    ranks = int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))
    if found is None and ranks > 1 and "RANK" not in os.environ:
        raise ConfigError(
            f"mpirun started {ranks} processes, each of which would train alone; molequi joins processes of "
            f"torchrun and srun: torchrun --nproc-per-node {ranks} -m molequi.cli train …"
        )
    return found if found is not None and found.size > 1 else None


def join_as(found: Launched) -> None:
    """Remember what this process is, if it started the others itself.

    Parameters
    ----------
    found : Launched
        What this process is.
    """
    _JOINED[:] = [found]


def warn_of_idle_tasks() -> None:
    """Warn (TrainingWarning) if a job of SLURM has several tasks, and srun did not start this process."""
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if _is_batch_script(os.environ) and tasks != "1" and launched() is None:
        warnings.warn(
            f"the job has {tasks} tasks (SLURM_NTASKS), and srun did not start this process, which trains "
            "alone. srun molequi train … trains with all tasks; --ntasks=1 is for one process",
            TrainingWarning,
            stacklevel=2,
        )


def is_first_process() -> bool:
    """Whether this process is alone or has rank 0: the one that prints and writes files."""
    try:
        found = launched()
    except ConfigError:  # each process says it when it trains
        return True
    if found is None:  # a launcher that sets nothing else
        return os.environ.get("LOCAL_RANK", "0") == "0"
    return found.rank == 0


def _own() -> Launched | None:
    """The values of a process that `molequi` started; its own child processes do not get them."""
    text = os.environ.pop(OWN, "")
    if not text:
        return None
    rank, size, address, port = text.split()
    join_as(Launched("molequi", int(rank), int(size), int(rank), int(size), 1, address, int(port)))
    return _JOINED[0]


def _torchrun(env: Mapping[str, str]) -> Launched | None:
    if any(not env.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        return None
    number = _numbers(env, ("RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    rank, size = number["RANK"], number["WORLD_SIZE"]
    # Without LOCAL_RANK there is one process on each machine, as in the jobs of Kubeflow.
    local = number.get("LOCAL_WORLD_SIZE", size if "LOCAL_RANK" in number else 1)
    if not 0 <= rank < size or size % local:
        raise ConfigError(
            f"the launcher says RANK={rank}, WORLD_SIZE={size} and LOCAL_WORLD_SIZE={local}; wanted a rank "
            "below the number of processes, and as many processes on each machine"
        )
    here = number.get("LOCAL_RANK", 0)
    return Launched(
        "torchrun", rank, size, here, local, size // local, env["MASTER_ADDR"], number["MASTER_PORT"]
    )


def _slurm(env: Mapping[str, str]) -> Launched | None:
    wanted = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
    if any(not env.get(name) for name in wanted) or env["SLURM_NTASKS"] == "1":
        return None
    from lightning.fabric.plugins.environments import SLURMEnvironment

    if not SLURMEnvironment.detect():  # a shell, in which srun starts no tasks
        return None
    number = _numbers(env, (*wanted, "SLURM_NNODES", "SLURM_JOB_ID", "SLURM_STEP_ID", "MASTER_PORT"))
    size = number["SLURM_NTASKS"]
    if _is_batch_script(env):
        return None
    nodes = number.get("SLURM_NNODES", 1)
    if size % nodes:
        raise ConfigError(
            f"srun started {size} tasks on {nodes} nodes; wanted as many on each node, such as "
            f"--nodes={nodes} --ntasks-per-node={max(size // nodes, 1)}"
        )
    hosts = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_NODELIST") or "127.0.0.1"
    address = env.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(hosts)
    # All tasks know the numbers of job and step; jobs that share a node differ in them.
    port = 15000 + (number.get("SLURM_JOB_ID", 0) + 101 * number.get("SLURM_STEP_ID", 0)) % 10000
    return Launched(
        "srun",
        number["SLURM_PROCID"],
        size,
        number["SLURM_LOCALID"],
        size // nodes,
        nodes,
        address,
        number.get("MASTER_PORT", port),
    )


def _is_batch_script(env: Mapping[str, str]) -> bool:
    """Whether this process is the script of a job itself, which has rank 0 in its variables, but no step."""
    return "SLURM_TASK_PID" in env and "SLURM_STEP_ID" not in env


def _numbers(env: Mapping[str, str], names: tuple[str, ...]) -> dict[str, int]:
    """The variables that are set, as numbers."""
    found = {}
    for name in names:
        text = env.get(name, "")
        if text:
            if not text.isdecimal():
                raise ConfigError(f"the environment variable {name} is {text!r}; wanted a number")
            found[name] = int(text)
    return found
