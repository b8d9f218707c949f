"""Files and messages of a training: metrics.csv, TensorBoard, config.yaml, tables of errors, and the line for the progress bar."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from molequi.errors import ConfigError
from molequi.inference.metrics import Errors, as_csv
from molequi.util.files import write_file


def epoch_summary(row: Mapping[str, float]) -> str:
    """One line about an epoch for the progress bar: its losses and root mean square errors."""
    return f"epoch {row['epoch'] + 1:.0f}, {row['seconds']:.0f} s, " + ", ".join(
        f"{name} {_short(row[name])}"
        for name in row
        if name in ("train_loss", "valid_loss")
        or name.startswith("valid_prior_")
        or (name.startswith("valid_") and name.endswith("_rmse"))
    )


class History:
    """metrics.csv, one row an epoch, and TensorBoard's files. Past rows are written again: a torn line heals."""

    def __init__(self, folder: Path | None, rows: list[dict[str, float]], tensorboard: bool):
        self.path = None if folder is None else folder / "metrics.csv"
        self.columns: list[str] = []
        self.writer = None
        if tensorboard and folder is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ConfigError(
                    "tensorboard=True, and TensorBoard is not installed: pip install 'molequi[tensorboard]'"
                ) from error
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=len(rows))
        elif tensorboard:
            raise ConfigError("tensorboard=True and no folder to write to; give out=")
        self.rows = rows

    def __enter__(self) -> "History":
        self._rewrite()
        return self

    def __exit__(self, *_) -> None:
        if self.writer is not None:
            self.writer.close()

    def _rewrite(self) -> None:
        if self.path is None:
            return
        self.columns = list(dict.fromkeys(name for row in self.rows for name in row))
        if self.rows:
            text = _csv(self.columns, self.rows, header=True)
            write_file(self.path, text)
        else:
            self.path.unlink(missing_ok=True)

    def add(self, row: dict[str, float]) -> None:
        """Row of an epoch, which is already in the list that was given."""
        if self.writer is not None:
            for name, value in row.items():
                self.writer.add_scalar(name, value, row["epoch"])
        if self.path is None:
            return
        if not set(row) <= set(self.columns):
            self._rewrite()
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_csv(self.columns, [row], header=False))


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
    """config.yaml."""
    from omegaconf import OmegaConf

    text = OmegaConf.to_yaml(OmegaConf.create(dict(config)))
    write_file(folder / "config.yaml", text)


def write_degree(folder: Path, degree: Any) -> None:
    """`degree.json`, of a `Degree`."""
    write_file(folder / "degree.json", degree.to_json())


def write_errors(folder: Path, errors: Mapping[str, Errors]) -> None:
    """errors.json and errors.csv."""
    text = json.dumps({part: e.records() for part, e in errors.items()}, indent=1)
    write_file(folder / "errors.json", text + "\n")
    write_file(folder / "errors.csv", as_csv(errors))
