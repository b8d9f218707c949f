"""What a training shows and writes: the progress bar, metrics.csv, config.yaml, tables of errors, reports."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from molequi.errors import DataError
from molequi.hooks import Report
from molequi.inference.metrics import Errors, as_csv
from molequi.training.loggers import Logger, log_row
from molequi.util.files import write_file
from molequi.util.run_log import log


def epoch_summary(row: Mapping[str, float], shown: Sequence[str] = ()) -> str:
    """One line about an epoch for the progress bar: losses and root mean square errors.

    Parameters
    ----------
    row : Mapping
        The row of the epoch.
    shown : Sequence of str
        Further columns: the beginnings of their names.
    """
    return f"epoch {row['epoch']:.0f}, {row['seconds']:.0f} s, " + ", ".join(
        f"{name} {_short(row[name])}"
        for name in row
        if name in ("train_loss", "valid_loss")
        or name.startswith(tuple(shown))
        or (name.startswith("valid_") and name.endswith("_rmse"))
    )


class History:
    """The file ``metrics.csv`` with a row for each epoch, and further loggers.

    At the start all past rows are written again, so that a line that was written only in part is repaired.

    Parameters
    ----------
    folder : Path or None
        Folder of the file; None writes no file.
    rows : list of dict
        Rows so far. It is the list of the training, which appends to it.
    loggers : Sequence of Logger
        Further loggers.
    shown : Sequence of str
        Further columns of the line about an epoch: the beginnings of their names.
    """

    def __init__(
        self,
        folder: Path | None,
        rows: list[dict[str, float]],
        loggers: Sequence[Logger] = (),
        shown: Sequence[str] = (),
    ) -> None:
        self.path = None if folder is None else folder / "metrics.csv"
        self.columns: list[str] = []
        self.rows, self.loggers, self.shown = rows, loggers, shown

    def __enter__(self) -> "History":
        self._rewrite()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for logger in self.loggers:
            logger.finalize("success" if kind is None else "failed")

    def _rewrite(self) -> None:
        if self.path is None:
            return
        self.columns = list(dict.fromkeys(name for row in self.rows for name in row))
        if self.rows:
            text = _csv(self.columns, self.rows, header=True)
            write_file(self.path, text)
        else:
            self.path.unlink(missing_ok=True)

    def add(self, row: dict[str, float]) -> str:
        """Write the row of an epoch, also to the log of the run, and return one line about it.

        Parameters
        ----------
        row : dict
            The row, which is already the last one of `rows`.
        """
        summary = epoch_summary(row, self.shown)
        log(summary)
        for logger in self.loggers:
            log_row(logger, row)
        if self.path is None:
            return summary
        if not set(row) <= set(self.columns):
            self._rewrite()
            return summary
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_csv(self.columns, [row], header=False))
        return summary


def mean_history(histories: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """A row for each epoch: means over the trainings that reached it.

    Parameters
    ----------
    histories : sequence of sequences of mappings
        The rows of each training.

    Examples
    --------
    >>> mean_history([[{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}], [{"epoch": 1, "loss": 4.0}]])
    [{'epoch': 1, 'loss': 3.0}, {'epoch': 2, 'loss': 1.0}]
    """
    rows = []
    for epoch in range(max(map(len, histories), default=0)):
        there = [history[epoch] for history in histories if epoch < len(history)]
        names = dict.fromkeys(name for row in there for name in row)
        values = {name: [row[name] for row in there if name in row] for name in names}
        rows.append({name: sum(v) / len(v) for name, v in values.items()} | {"epoch": epoch + 1})
    return rows


def read_history(path: Path) -> list[dict[str, float]]:
    """The rows of a file ``metrics.csv``.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    DataError
        If it is no table of numbers.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [
                {k: float(v) for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)
            ]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a table of metrics ({error})") from error


def _csv(columns: list[str], rows: list[dict[str, float]], header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _short(value: float) -> str:
    return f"{value:.3g}"


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write ``config.yaml``.

    Parameters
    ----------
    folder : Path
        Folder of the run.
    config : Mapping
        The sections of the run.
    """
    from omegaconf import OmegaConf

    text = OmegaConf.to_yaml(OmegaConf.create(dict(config)))
    write_file(folder / "config.yaml", text)


def write_report(folder: Path, name: str, report: Report) -> None:
    """Write the report of a hook to ``<name>.json``.

    Parameters
    ----------
    folder : Path
        Folder of the run.
    name : str
        Name of the hook.
    report : Report
        Its report.
    """
    write_file(folder / f"{name}.json", report.to_json())


def write_errors(folder: Path, errors: Mapping[str, Errors]) -> None:
    """Write ``errors.json`` and ``errors.csv``.

    Parameters
    ----------
    folder : Path
        Folder of the run.
    errors : Mapping of Errors
        Errors by part of the data.
    """
    text = json.dumps({part: e.records() for part, e in errors.items()}, indent=1)
    write_file(folder / "errors.json", text + "\n")
    write_file(folder / "errors.csv", as_csv(errors))
