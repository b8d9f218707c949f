"""Errors against the number of training structures, and what more structures would give."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from molequi.errors import ConfigError, DataError, did_you_mean
from molequi.inference.metrics import Errors
from molequi.inference.power_law import Estimate, PowerLaw, levels_off, two_digits
from molequi.util.html import html_table, html_text
from molequi.util.tables import text_table

_FARTHEST = 100  # times the largest training set; beyond it no number is shown
_FAR = 8.0  # how many times the largest training set a power law may be extended
_FLAT = 0.9  # training error over other error above which the model, not the data, limits


@dataclass(frozen=True)
class Point:
    """The errors of one training.

    Parameters
    ----------
    structures : int
        Number of training structures.
    repeat : int
        Which random choice of structures.
    errors : mapping of str to float
        Error of each quantity on data that were not trained on.
    training : mapping of str to float
        Error of each quantity on the training structures, of which at most 10,000 are measured.
    """

    structures: int
    repeat: int
    errors: Mapping[str, float]
    training: Mapping[str, float]


@dataclass(frozen=True)
class LearningCurve:
    """Errors against the number of training structures; the result of `molequi.learning_curve`.

    Parameters
    ----------
    points : sequence of Point
        The trainings.
    units : mapping of str to str
        Unit of each quantity; extensive scalars are per atom, and of classes the share of wrong answers
        counts.
    part : str
        The part of the data on which errors were measured.
    same : {"steps", "epochs"}
        What all trainings have in common.
    measure : {"mae", "rmse"}
        Mean absolute or root mean square errors.
    classes : sequence of str
        The quantities that are classes.
    """

    points: Sequence[Point]
    units: Mapping[str, str]
    part: str
    same: Literal["steps", "epochs"] = "steps"
    measure: Literal["mae", "rmse"] = "mae"
    classes: Sequence[str] = ()

    @property
    def largest(self) -> int:
        """The largest number of training structures."""
        return max(point.structures for point in self.points)

    def law(self, quantity: str) -> PowerLaw:
        """The power law of one quantity.

        Parameters
        ----------
        quantity : str
            Its name, as in `units`.

        Raises
        ------
        ConfigError
            For another name.
        DataError
            If there are too few trainings, or errors of zero.
        """
        self._check(quantity)
        return PowerLaw(
            np.array([point.structures for point in self.points]),
            np.array([point.errors[quantity] for point in self.points]),
        )

    def structures_for(self, quantity: str, error: float) -> Estimate:
        """How many structures give an error of a quantity.

        Parameters
        ----------
        quantity : str
            Its name, as in `units`.
        error : float, > 0
            The error in eV, Å and e.

        Raises
        ------
        ConfigError
            For another name, and for an error that is not positive.
        DataError
            If there are too few trainings, or errors of zero.
        """
        self._check(quantity)
        if not error > 0:
            raise ConfigError(f"the wanted error of {quantity} is {error!r}; wanted a number above zero")
        return self.law(quantity).structures_for(error)

    def doubts(self, quantity: str, error: float | None = None) -> list[str]:
        """Why the power law of a quantity is not to be believed; nothing if there is no reason.

        Parameters
        ----------
        quantity : str
            Its name, as in `units`.
        error : float, optional
            The error for which the law is asked.
        """
        try:
            law = self.law(quantity)
        except DataError as reason:
            return [f"there is no power law: {reason}"]
        found = []
        sizes = len(set(law.sizes.tolist()))
        if sizes < 4:
            found.append(f"it has only {sizes} sizes")
        if law.exponent_interval[0] <= 0:
            low, high = law.exponent_interval
            found.append(
                f"the exponent is {law.exponent:.2f} with an interval of {low:.2f} to {high:.2f}, which has "
                "zero "
                "inside: no effect of more structures is shown"
            )
        if law.scatter > 0.15:
            found.append(f"the errors scatter by {law.scatter:.0%} about it")
        if sizes >= 4 and levels_off(law):
            found.append("the errors level off at the largest sizes, and a power law does not")
        ratio = self._ratio(quantity)
        if ratio > _FLAT:
            found.append(
                f"with all structures the training error is {ratio:.0%} of the {self._part_name} error: a "
                "larger model or a longer training helps more than data"
            )
        if error is not None:
            needed = law.structures_for(error).structures
            if law.exponent_interval[0] > 0 and needed > _FAR * self.largest:
                times = min(needed / self.largest, 1e6)
                found.append(
                    f"it is extended far beyond the data, to {two_digits(times)} times the largest part"
                )
        return found

    def _ratio(self, quantity: str) -> float:
        """Training error over other error, with the largest number of structures."""
        last = [point for point in self.points if point.structures == self.largest]
        other = sum(point.errors[quantity] for point in last)
        return sum(point.training[quantity] for point in last) / max(other, 1e-300)

    def _check(self, quantity: str) -> None:
        if quantity not in self.units:
            raise ConfigError(
                f"{quantity!r} is not measured{did_you_mean(quantity, self.units)}; "
                f"there are {', '.join(self.units)}"
            )

    def advice(self, quantity: str, error: float | None = None) -> str:
        """What more structures would give, in one or two sentences.

        Parameters
        ----------
        quantity : str
            Its name, as in `units`.
        error : float, optional
            The wanted error in eV, Å and e; half of the present one by default.
        """
        try:
            law = self.law(quantity)
        except DataError as reason:
            return f"{quantity}: {reason}"
        present = float(
            np.mean([point.errors[quantity] for point in self.points if point.structures == self.largest])
        )
        wanted = present / 2 if error is None else error
        factor, unit = self.shown(quantity)
        low, high = law.exponent_interval
        name = quantity.replace("_", " ")
        verb = "falls as n^-b with" if law.exponent > 0 else "does not fall, n^-b has"
        now = f"{present * factor:.3g} {unit}".rstrip()
        head = (
            f"{name}: {self._part_name} {self.kind(quantity)} {now} with "
            f"{self.largest:,} structures; it {verb} b = {law.exponent:.2f} (95 % interval "
            f"{low:.2f} to {high:.2f})."
        )
        shown = f"{wanted * factor:.3g} {unit}".rstrip()
        if wanted >= present:
            return f"{head} {shown} is reached already."
        needed = law.structures_for(wanted).structures
        if low <= 0:
            body = f"No number of structures can be given for {shown}"
        elif needed > _FARTHEST * self.largest:
            body = f"{shown} needs more than {_FARTHEST * self.largest:,.0f} structures by this law"
        else:
            more = two_digits(needed - self.largest)
            body = f"{shown} needs {law.structures_for(wanted)}, {more} more than now"
        doubts = self.doubts(quantity, wanted)
        return f"{head} {body}." + (f" Do not rely on it: {'; '.join(doubts)}." if doubts else "")

    @property
    def _part_name(self) -> str:
        """What the part is called in a sentence."""
        return {"valid": "validation"}.get(self.part, self.part)

    def kind(self, quantity: str) -> str:
        """What is measured: `MAE`, `RMSE`, or for classes the share of wrong answers.

        Parameters
        ----------
        quantity : str
            Its name, as in `units`.
        """
        return "share of wrong answers" if quantity in self.classes else self.measure.upper()

    def shown(self, quantity: str) -> tuple[float, str]:
        """Factor and unit in which the errors of a quantity are shown.

        Parameters
        ----------
        quantity : str
            Its name, as in `units`.
        """
        self._check(quantity)
        unit = self.units[quantity]
        largest = max(max(p.errors[quantity], p.training[quantity]) for p in self.points)
        return (1000.0, f"m{unit}") if unit.startswith("eV") and largest < 1 else (1.0, unit)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows of a table: errors on other data and on the training data for each size."""
        head = ["structures"]
        for quantity in self.units:
            unit = self.shown(quantity)[1]
            name = f"{quantity.replace('_', ' ')} ({unit})" if unit else quantity.replace("_", " ")
            head += [f"{name}, {self.part}", "training"]
        rows = []
        for size in sorted({point.structures for point in self.points}):
            there, row = [point for point in self.points if point.structures == size], [str(size)]
            for quantity in self.units:
                factor = self.shown(quantity)[0]
                values = factor * np.array([point.errors[quantity] for point in there])
                spread = f" ± {values.std(ddof=1):.2g}" if len(values) > 1 else ""
                trained = factor * float(np.mean([point.training[quantity] for point in there]))
                row += [f"{values.mean():.4g}{spread}", f"{trained:.4g}"]
            rows.append(row)
        return head, rows

    def text(self, targets: Mapping[str, float] = {}) -> str:
        """The table, and what more structures would give.

        Parameters
        ----------
        targets : mapping of str to float
            Wanted errors of quantities in eV, Å and e; half of the present errors by default.

        Raises
        ------
        ConfigError
            For a quantity that is not measured.
        """
        for name in targets:
            self._check(name)
        head, rows = self.table()
        lines = text_table(head, rows, left=())
        return "\n".join([*lines, *(self.advice(name, targets.get(name)) for name in self.units)])

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        head, rows = self.table()
        advice = "\n".join(self.advice(quantity) for quantity in self.units)
        return html_table(head, rows, left=()) + html_text(advice)

    __repr__ = __str__

    def to_json(self) -> str:
        """All fields as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "LearningCurve":
        """The curve from what `to_json` returned.

        Parameters
        ----------
        text : str
            JSON.

        Raises
        ------
        DataError
            For another text.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            return cls(**fields | {"points": [Point(**point) for point in fields["points"]]})
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"this is no learning curve: {error}; `molequi curve` writes one") from error


def measured(errors: Errors, measure: str) -> tuple[dict[str, float], dict[str, str]]:
    """One number for each quantity, and its unit: errors, or for classes the share of wrong answers.

    Parameters
    ----------
    errors : Errors
        The errors of a part of the data.
    measure : {"mae", "rmse"}
        Which one.
    """
    rows = {row.quantity: row for row in errors.rows if not row.element and row.count}
    chosen = {name: row for name, row in rows.items() if f"{name}_per_atom" not in rows}
    values = {
        name: getattr(row, measure) if math.isnan(row.accuracy) else 1 - row.accuracy
        for name, row in chosen.items()
    }
    return values, {name: row.unit for name, row in chosen.items()}
