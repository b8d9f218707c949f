"""Loggers beside the package's own ``metrics.csv``.

These are the loggers of Lightning (CSV, TensorBoard, Weights & Biases, MLflow) or any object with their
methods.
"""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from molequi.errors import ConfigError, did_you_mean


@runtime_checkable
class Logger(Protocol):
    """What a logger object has to have; those of Lightning do."""

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """Take the settings of the run.

        Parameters
        ----------
        params : dict
            Settings, nested.
        """

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Take the row of an epoch.

        Parameters
        ----------
        metrics : dict
            Numbers by name.
        step : int, optional
            Number of the epoch, from 1.
        """

    def finalize(self, status: str) -> None:
        """End.

        Parameters
        ----------
        status : str
            ``"success"`` or ``"failed"``.
        """


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
    """Check the loggers of `Logging`.

    Parameters
    ----------
    loggers : Sequence
        Names, mappings of a name to options, and objects.
    where : str
        What error messages put first.

    Raises
    ------
    ConfigError
        For an unknown name, a package that is not installed, and an object that is no logger.
    """
    if isinstance(loggers, str):
        raise ConfigError(f"{where}: found {loggers!r}; wanted a list, [{loggers}]")
    for k, given in enumerate(loggers):
        name, options = _named(given)
        if name is None:
            if not isinstance(given, Logger) or isinstance(given, type):
                raise ConfigError(
                    f"{where}.{k}: found {given!r} ({type(given).__name__}); wanted one of "
                    f"{', '.join(LOGGERS)}, "
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
    """Make the logger objects of a training.

    Parameters
    ----------
    loggers : Sequence
        As `check_loggers` accepted them.
    folder : Path or None
        Folder of the run.
    history : Sequence of Mapping
        Rows of the epochs so far.

    Raises
    ------
    ConfigError
        For a named logger without a folder, and for options that its class does not take.
    """
    return [_make(given, folder, history) for given in loggers]


def _make(given: Any, folder: Path | None, history: Sequence[Mapping[str, float]]) -> Logger:
    name, options = _named(given)
    if name is None:
        return cast(Logger, given)  # an object, see `check_loggers`
    if folder is None:
        raise ConfigError(f"logging.loggers has {name!r} and there is no folder to write to; give out=")
    known = LOGGERS[name]
    kind = getattr(importlib.import_module(known.module), known.kind)
    try:
        logger: Logger = kind(**_defaults(name, folder, len(history)) | dict(options))
    except TypeError as error:
        raise ConfigError(f"logging.loggers: {name} with {dict(options)}: {error}") from error
    if name == "csv":  # each start writes a new version, with all rows
        for row in history:
            log_row(logger, row)
    return logger


def _defaults(name: str, folder: Path, rows: int) -> dict[str, Any]:
    """Options that put the files of a logger into the folder of the run."""
    options: dict[str, dict[str, Any]] = {
        "csv": {"root_dir": folder, "name": "csv", "flush_logs_every_n_steps": 1},
        "tensorboard": {"root_dir": folder, "name": "tensorboard", "version": "", "purge_step": rows + 1},
        "wandb": {"save_dir": folder, "name": folder.name},
        "mlflow": {"save_dir": str(folder / "mlruns"), "run_name": folder.name},
    }
    return options[name]


def log_row(logger: Logger, row: Mapping[str, float]) -> None:
    """Give the row of an epoch to a logger; its step is the number of the epoch.

    Parameters
    ----------
    logger : Logger
        The logger.
    row : Mapping
        The row, as in ``metrics.csv``.
    """
    logger.log_metrics(dict(row), step=int(row["epoch"]))


def log_config(logger: Logger, config: Mapping[str, Any]) -> None:
    """Give the settings of the run to a logger that takes them.

    Parameters
    ----------
    logger : Logger
        The logger.
    config : Mapping
        The sections of the run.
    """
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
