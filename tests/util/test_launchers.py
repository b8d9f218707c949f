"""What this process is among those of a launcher, from environment variables."""

import os

import pytest

from molequi.errors import ConfigError, TrainingWarning
from molequi.util.launchers import OWN, Launched, is_first_process, join_as, launched, warn_of_idle_tasks

SRUN = {
    "SLURM_JOB_ID": "40017",
    "SLURM_STEP_ID": "2",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "4",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_TASK_PID": "77",
    "SLURM_STEP_NODELIST": "node[07-08]",
}
TORCHRUN = {"RANK": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "node07", "MASTER_PORT": "29500"}


@pytest.fixture
def set_all(monkeypatch):
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_", "MASTER_", "LOCAL_")) or name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)

    def set_all(values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    yield set_all
    join_as_nobody()


def join_as_nobody():
    from molequi.util import launchers

    launchers._JOINED.clear()


def test_a_process_alone(set_all):
    assert launched() is None and is_first_process()
    set_all(TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"})
    assert launched() is None
    set_all({"WORLD_SIZE": "4", "MASTER_PORT": ""})  # left over in a shell
    assert launched() is None


def test_torchrun(set_all):
    set_all(TORCHRUN | {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"})
    assert launched() == Launched("torchrun", 2, 4, 0, 2, 2, "node07", 29500)
    assert not is_first_process()
    set_all({"RANK": "0"})
    assert is_first_process()


def test_one_process_on_each_machine(set_all):
    """Both have LOCAL_RANK=0, and only one of them is the first."""
    set_all(TORCHRUN | {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"})
    found = launched()
    assert found is not None and (found.nodes, found.local_size) == (4, 1)
    assert not is_first_process()


def test_jobs_of_kubeflow_have_no_local_rank(set_all):
    set_all(TORCHRUN)
    found = launched()
    assert found is not None and (found.nodes, found.local_rank, found.local_size) == (4, 0, 1)


def test_srun(set_all):
    set_all(SRUN)
    # The port: 15000 and the last four digits of job + 101 * step
    assert launched() == Launched("srun", 3, 4, 1, 2, 2, "node07", 15000 + 219)
    set_all({"MASTER_ADDR": "login", "MASTER_PORT": "5"})
    found = launched()
    assert found is not None and (found.address, found.port) == ("login", 5)


def test_a_shell_in_a_job_is_alone(set_all):
    set_all(SRUN | {"SLURM_JOB_NAME": "interactive"})
    assert launched() is None


def test_a_job_script_without_srun_is_alone_and_says_so(set_all, monkeypatch):
    set_all(SRUN | {"SLURM_PROCID": "0"})
    monkeypatch.delenv("SLURM_STEP_ID")
    assert launched() is None
    with pytest.warns(TrainingWarning, match="the job has 4 tasks .* srun molequi train"):
        warn_of_idle_tasks()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (TORCHRUN | {"RANK": "4"}, "RANK=4, WORLD_SIZE=4"),
        (TORCHRUN | {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE=3; wanted"),
        (TORCHRUN | {"WORLD_SIZE": "two"}, "the environment variable WORLD_SIZE is 'two'; wanted a number"),
        (SRUN | {"SLURM_NNODES": "3"}, "4 tasks on 3 nodes; wanted as many on each node"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun started 2 processes, .* torchrun --nproc-per-node 2"),
    ],
)
def test_variables_that_cannot_be(set_all, values, message):
    set_all(values)
    with pytest.raises(ConfigError, match=message):
        launched()


def test_children_of_a_process_do_not_inherit_what_it_is(set_all):
    set_all({OWN: "1 2 127.0.0.1 4000"})
    found = launched()
    assert found is not None and (found.by, found.rank, found.size, found.port) == ("molequi", 1, 2, 4000)
    assert OWN not in os.environ
    assert launched() == found


def test_who_started_others_is_one_of_them(set_all):
    own = Launched("molequi", 0, 2, 0, 2, 1, "127.0.0.1", 4000)
    join_as(own)
    assert launched() == own
