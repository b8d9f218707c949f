"""Loggers beside metrics.csv: each gets every epoch once, also after an interruption."""

import csv
import importlib.util

import pytest
from lightning.fabric.loggers import CSVLogger

from molequi import Logging, fit
from molequi.errors import ConfigError
from molequi.training.loggers import make_loggers

from ..morse_kit import tiny
from .test_resume import Stop, stop_before


class Recorder:
    """A logger object that keeps what it is told."""

    def __init__(self):
        self.params, self.rows, self.ends = [], [], []

    def log_hyperparams(self, params):
        self.params.append(params)

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def finalize(self, status):
        self.ends.append(status)


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def logged(*loggers):
    return Logging(progress=False, loggers=loggers)


def test_an_object_gets_the_rows_of_metrics_csv(parts, model, quick, tmp_path):
    recorder = Recorder()
    fit(model, **parts, **quick | {"logging": logged(recorder)}, out=tmp_path)
    written = rows(tmp_path / "metrics.csv")
    assert len(written) == 2
    for (step, found), row in zip(recorder.rows, written):
        assert step == int(row["epoch"])
        assert found["valid_loss"] == pytest.approx(float(row["valid_loss"]), rel=1e-5)
    assert recorder.params and recorder.ends == ["success"]


def test_an_object_needs_no_folder(parts, model, quick):
    recorder = Recorder()
    fit(model, **parts, **quick | {"logging": logged(recorder)})
    assert len(recorder.rows) == 2


def test_a_logger_of_lightning_by_name_and_as_an_object(parts, make, quick, tmp_path):
    fit(make.tiny(), **parts, **quick | {"logging": logged({"csv": {"name": "more"}})}, out=tmp_path / "run")
    named = rows(next((tmp_path / "run" / "more").glob("version_*/metrics.csv")))
    logger = CSVLogger(tmp_path, name="object")
    fit(make.tiny(), **parts, **quick | {"logging": logged(logger)})
    given = rows(next((tmp_path / "object").glob("version_*/metrics.csv")))
    assert len(named) == 2 and [row["valid_loss"] for row in named] == [row["valid_loss"] for row in given]


def test_csv_has_all_epochs_after_an_interruption(parts, quick, tmp_path, monkeypatch):
    settings = quick | {"logging": logged("csv")}
    with monkeypatch.context() as patched, pytest.raises(Stop):
        stop_before(patched, 6)  # in the second epoch
        fit(tiny(), **parts, **settings, out=tmp_path)
    fit(tiny(), **parts, **settings, out=tmp_path)
    last = sorted((tmp_path / "csv").glob("version_*"), key=lambda path: int(path.name.split("_")[1]))[-1]
    assert [row["epoch"] for row in rows(last / "metrics.csv")] == [
        row["epoch"] for row in rows(tmp_path / "metrics.csv")
    ]
    assert len(rows(last / "metrics.csv")) == 2


@pytest.mark.parametrize(
    ("loggers", "message"),
    [
        ("csv", r"logging\.loggers: found 'csv'; wanted a list, \[csv\]"),
        (["cvs"], r"logging\.loggers\.0: 'cvs' is no logger.*csv"),
        ([print], r"logging\.loggers\.0: found .*wanted one of csv, tensorboard, wandb, mlflow"),
        ([Recorder], r"logging\.loggers\.0: found .*wanted one of"),
        ([{"csv": 3}], r"logging\.loggers\.0\.csv: found 3; wanted the options of CSVLogger"),
        ([{"csv": {"nam": "x"}}], r"logging\.loggers: csv with \{'nam': 'x'\}"),
    ],
)
def test_mistakes(parts, model, quick, tmp_path, loggers, message):
    with pytest.raises(ConfigError, match=message):
        fit(model, **parts, **quick | {"logging": {"loggers": loggers}}, out=tmp_path)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_optional_packages(name, parts, model, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=f"{name} is not installed: pip install {name}"):
        fit(model, **parts, **quick | {"logging": {"loggers": [name]}}, out=tmp_path)


def test_a_named_logger_needs_a_folder():
    with pytest.raises(ConfigError, match="'csv' and there is no folder to write to; give out="):
        make_loggers(["csv"], None, [])
