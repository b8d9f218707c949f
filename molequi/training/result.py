"""What a training returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from molequi.inference.metrics import Errors, table, table_html
from molequi.model import Model
from molequi.symmetry_report import SymmetryReport
from molequi.util.html import as_html, html_details, html_facts, html_heading


@dataclass(frozen=True)
class Result:
    """The result of a training.

    Parameters
    ----------
    model : Model
        The best model: averaged weights of the best epoch, in evaluation mode.
    history : list of dict
        A row for each epoch, as in ``metrics.csv``. Epochs are numbered from 1.
    errors : dict of Errors
        Errors of the best model by part of the data. Those of "train" are of at most 10,000 structures; if
        there are more, ``errors["train"].sample`` and the table say so.
    best_epoch, best_loss : int, float
        The epoch with the lowest validation loss, and this loss. The row of this epoch is
        ``history[best_epoch - 1]``.
    stopped : str
        Why the training ended.
    out : Path or None
        The folder of the run.
    main : bool
        False in all but one of the processes of a training on several devices.
    reports : Mapping
        What the terms of the training report at the end, by name, such as ``"equivariance_selection"``. Every
        training has a ``"symmetry_report"``.
    compilation : str
        Whether the model was compiled, and why not, if ``compute.accelerate`` was given with ``max_minutes``.
    """

    model: Model
    history: list[dict[str, float]]
    errors: dict[str, Errors]
    best_epoch: int
    best_loss: float
    stopped: str
    out: Path | None
    main: bool = True
    reports: Mapping[str, object] = field(default_factory=dict)
    compilation: str = ""

    @property
    def symmetry_report(self) -> SymmetryReport | None:
        """The symmetry of the model at the end of the training; None if it could not be measured."""
        found = self.reports.get("symmetry_report")
        return found if isinstance(found, SymmetryReport) else None

    def _title(self) -> str:
        return f"best epoch {self.best_epoch} of {len(self.history)} ({self.stopped})"

    def __str__(self) -> str:
        return (
            f"{self._title()}\n"
            + (f"{self.compilation}\n" if self.compilation else "")
            + str(table(self.errors))
            + "".join(f"\n{report}" for report in self.reports.values())
        )

    def _repr_html_(self) -> str:
        facts = {"folder": "" if self.out is None else str(self.out), "last epoch": _last(self.history)}
        reports = [(name.replace("_", " "), as_html(report)) for name, report in self.reports.items()]
        return (
            html_heading(self._title())
            + table_html(self.errors)
            + html_facts(facts)
            + "".join(html_details(name, found) for name, found in reports)
        )

    __repr__ = __str__


def _last(history: Sequence[Mapping[str, float]]) -> str:
    """Losses of the last epoch, in words."""
    names = {"train_loss": "training loss", "valid_loss": "validation loss"}
    row = history[-1] if history else {}
    return ", ".join(f"{text} {row[name]:.4g}" for name, text in names.items() if name in row)
