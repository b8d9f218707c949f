"""What a training tells and writes: the progress bar, metrics.csv, TensorBoard; config.yaml; tables of errors."""

import csv
import io
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from molequi.errors import ConfigError
from molequi.inference.metrics import Errors, as_csv
from molequi.util.run_folder import write_or_tell


class Display:
    """A progress bar with the time left on a terminal; elsewhere a line now and then."""

    def __init__(self, wanted: bool):
        self.wanted, self.terminal = wanted, sys.stderr.isatty()
        self.bar = None
        self.told = 0.0

    def __enter__(self) -> "Display":
        if self.wanted and self.terminal:
            from tqdm import tqdm

            self.bar = tqdm(
                total=1.0,
                bar_format="{percentage:3.0f}% |{bar}| {elapsed}<{remaining} {postfix}",
                dynamic_ncols=True,
            )
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()

    def step(self, done: float, place) -> None:
        if self.bar is not None:
            if self.bar.n == 0:
                self.bar.initial = done  # of a training that goes on, the past tells nothing of the time left
            self.bar.update(min(done, 1.0) - self.bar.n)

    def epoch(self, row: dict[str, float]) -> None:
        text = f"epoch {row['epoch'] + 1}, {row['seconds']:.0f} s, " + ", ".join(
            f"{name} {_short(row[name])}"
            for name in row
            if name in ("train_loss", "valid_loss")
            or name.startswith("valid_prior_")
            or (name.startswith("valid_") and name.endswith("_rmse"))
        )
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
        elif self.wanted and time.monotonic() - self.told > 15:
            print(text, file=sys.stderr, flush=True)
            self.told = time.monotonic()


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
            write_or_tell(self.path, lambda path: path.write_text(text, encoding="utf-8"))
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
    write_or_tell(folder / "config.yaml", lambda path: path.write_text(text, encoding="utf-8"))


def write_degree(folder: Path, degree: Any) -> None:
    """`degree.json`, of a `Degree`."""
    write_or_tell(folder / "degree.json", lambda path: path.write_text(degree.to_json(), encoding="utf-8"))


def write_errors(folder: Path, errors: Mapping[str, Errors]) -> None:
    """errors.json and errors.csv."""
    text = json.dumps({part: e.records() for part, e in errors.items()}, indent=1)
    write_or_tell(folder / "errors.json", lambda path: path.write_text(text + "\n", encoding="utf-8"))
    write_or_tell(folder / "errors.csv", lambda path: path.write_text(as_csv(errors), encoding="utf-8"))
