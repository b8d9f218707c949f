"""Loggers of Lightning beside the package's own metrics.csv: CSV, TensorBoard, Weights & Biases, MLflow, or any object."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from molequi.errors import ConfigError, did_you_mean


@runtime_checkable
class Logger(Protocol):
    """What a logger object has to have; those of Lightning do."""

    def log_hyperparams(self, params: dict[str, Any]) -> None: ...
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...
    def finalize(self, status: str) -> None: ...


@dataclass(frozen=True)
class _Known:
    """Where the class of a named logger is, and what has to be installed for it."""

    module: str
    kind: str
    package: str


LOGGERS = {
    "csv": _Known("lightning.fabric.loggers", "CSVLogger", ""),
    "tensorboard": _Known("lightning.fabric.loggers", "TensorBoardLogger", "tensorboard"),
    "wandb": _Known("lightning.pytorch.loggers", "WandbLogger", "wandb"),
    "mlflow": _Known("lightning.pytorch.loggers", "MLFlowLogger", "mlflow"),
}


def check_loggers(loggers: Sequence[Any], where: str) -> None:
    """Check what `Logging.loggers` has.

    Raises
    ------
    ConfigError
        For a name that is not known, a package that is not installed, and an object that is no logger.
    """
    if isinstance(loggers, str):
        raise ConfigError(f"{where}: found {loggers!r}; wanted a list, [{loggers}]")
    for k, given in enumerate(loggers):
        name, options = _named(given)
        if name is None:
            if not isinstance(given, Logger) or isinstance(given, type):
                raise ConfigError(
                    f"{where}.{k}: found {given!r} ({type(given).__name__}); wanted one of {', '.join(LOGGERS)}, "
                    "{name: options}, or an object with log_hyperparams, log_metrics and finalize"
                )
            continue
        if name not in LOGGERS:
            raise ConfigError(f"{where}.{k}: {name!r} is no logger{did_you_mean(name, LOGGERS)}")
        if not isinstance(options, Mapping):
            raise ConfigError(
                f"{where}.{k}.{name}: found {options!r}; wanted the options of {LOGGERS[name].kind}"
            )
        package = LOGGERS[name].package
        if package and importlib.util.find_spec(package) is None:
            raise ConfigError(f"{where}.{k}: {name} is not installed: pip install {package}")


def make_loggers(
    loggers: Sequence[Any], folder: Path | None, history: Sequence[Mapping[str, float]]
) -> list[Logger]:
    """The logger objects of a training that has the rows `history` already.

    Raises
    ------
    ConfigError
        For a named logger without a folder, and for options that its class does not take.
    """
    return [_make(given, folder, history) for given in loggers]


def _make(given: Any, folder: Path | None, history: Sequence[Mapping[str, float]]) -> Logger:
    name, options = _named(given)
    if name is None:
        return given
    if folder is None:
        raise ConfigError(f"logging.loggers has {name!r} and there is no folder to write to; give out=")
    known = LOGGERS[name]
    kind = getattr(importlib.import_module(known.module), known.kind)
    try:
        logger = kind(**_defaults(name, folder, len(history)) | dict(options))
    except TypeError as error:
        raise ConfigError(f"logging.loggers: {name} with {dict(options)}: {error}") from error
    if name == "csv":  # each start writes a new version, with all rows
        for row in history:
            log_row(logger, row)
    return logger


def _defaults(name: str, folder: Path, rows: int) -> dict[str, Any]:
    """Options that put the files of a logger into the folder of the run."""
    return {
        "csv": {"root_dir": folder, "name": "csv", "flush_logs_every_n_steps": 1},
        "tensorboard": {"root_dir": folder, "name": "tensorboard", "version": "", "purge_step": rows},
        "wandb": {"save_dir": folder, "name": folder.name},
        "mlflow": {"save_dir": str(folder / "mlruns"), "run_name": folder.name},
    }[name]


def log_row(logger: Logger, row: Mapping[str, float]) -> None:
    """Give the row of an epoch to a logger; its step is the number of the epoch."""
    logger.log_metrics(dict(row), step=int(row["epoch"]))


def log_config(logger: Logger, config: Mapping[str, Any]) -> None:
    """Give the settings of the run to a logger that takes them."""
    try:
        logger.log_hyperparams(dict(config))
    except NotImplementedError:  # Lightning's CSV logger
        pass


def _named(given: Any) -> tuple[str | None, Any]:
    """Name and options of a named logger; no name for an object."""
    if isinstance(given, str):
        return given, {}
    if isinstance(given, Mapping) and len(given) == 1:
        ((name, options),) = given.items()
        return str(name), {} if options is None else options
    return None, {}
