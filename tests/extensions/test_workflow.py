"""The workflow of the documentation: its jobs do what each of them says; with jobflow they run as a flow."""

import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest
from ase.io import read

import molequi as mq

FILE = Path(__file__).with_name("workflow.py")


def loaded():
    spec = importlib.util.spec_from_file_location("workflow", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(outputs, count):
    assert len(outputs) == count
    for one in outputs:
        assert set(one["averages"]) >= {"T", "E_pot"} and len(read(one["trajectory"], ":")) >= 2
        json.dumps(one)  # what a store can hold


def test_the_jobs_work_one_after_the_other(tmp_path, monkeypatch):
    """Without jobflow: each job is done at once, and its output is a value."""

    class Done:
        def __init__(self, output):
            self.output = output

    class Flow:
        def __init__(self, jobs, output):
            self.jobs, self.output = jobs, output

    plain = types.ModuleType("jobflow")
    plain.Flow, plain.run_locally = Flow, None
    plain.job = lambda function: lambda *args: Done(function(*args))
    monkeypatch.setitem(sys.modules, "jobflow", plain)
    monkeypatch.chdir(tmp_path)
    flow = loaded().workflow(mq.shipped("ethanol_300K.xyz"), [300.0], epochs=1, steps=20)
    trained, relaxed, _ = (job.output for job in flow.jobs)
    assert mq.load(trained["model"]).elements and trained["errors"]["forces_rmse"] > 0
    assert relaxed["energy"] == pytest.approx(read(relaxed["structure"]).get_potential_energy())
    check(flow.output, 1)


@pytest.mark.filterwarnings("default")  # jobflow uses what its dependencies deprecate
def test_jobflow_runs_the_flow(tmp_path, monkeypatch):
    jobflow = pytest.importorskip("jobflow", reason="jobflow is not installed")
    monkeypatch.chdir(tmp_path)
    data = str(Path(mq.shipped("ethanol_300K.xyz")).absolute())
    flow = loaded().workflow(data, [200.0, 300.0], epochs=1, steps=20)
    answers = jobflow.run_locally(flow, create_folders=True, ensure_success=True)
    check([answers[job.uuid][1].output for job in flow.jobs[2:]], 2)
