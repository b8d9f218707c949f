"""What a fine-tuning changed: errors on new and old data, reference energies, pairs of atoms."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from molequi.finetuning.conservation import Conservation
from molequi.finetuning.energies import ElementEnergy, ReferenceEnergies
from molequi.finetuning.pairs import PairCurve
from molequi.inference.metrics import Errors
from molequi.util.html import html_details, html_facts, html_table
from molequi.util.tables import milli, text_table

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]  # title, head, rows


@dataclass(frozen=True)
class ErrorChange:
    """The error of one quantity on one set of data.

    Parameters
    ----------
    data : str
        The data.
    quantity : str
        The quantity; ``<name>_per_atom`` for an extensive scalar.
    kind : {"RMSE", "accuracy"}
        What the numbers are.
    unit : str
        Their unit.
    before, refitted, after : float
        Of the starting model, of the starting model with the fitted reference energies, and of the model
        after the fine-tuning.
    """

    data: str
    quantity: str
    kind: str
    unit: str
    before: float
    refitted: float
    after: float


@dataclass(frozen=True)
class FineTuningReport:
    """What a fine-tuning changed; printed, tables.

    Parameters
    ----------
    method : str
        What was trained.
    start : str
        SHA-256 of the weights of the starting model.
    errors : tuple of ErrorChange
        Errors before and after.
    old : str
        What the old data are; empty if nothing measures what is forgotten.
    elements : str
        New elements, and what they began as.
    energies : ReferenceEnergies or None
        Reference energies before and after.
    pairs : tuple of (PairCurve, PairCurve)
        Energies of two atoms before and after.
    conserved : tuple of Conservation
        How well energy is conserved before and after; empty if it was not measured.
    """

    method: str
    start: str
    errors: tuple[ErrorChange, ...]
    old: str = ""
    elements: str = ""
    energies: ReferenceEnergies | None = None
    pairs: tuple[tuple[PairCurve, PairCurve], ...] = ()
    conserved: tuple[Conservation, ...] = ()

    def facts(self) -> dict[str, str]:
        """What is said beside the tables."""
        facts = {"method": self.method, "new elements": self.elements}
        facts["old data"] = self.old or (
            "none: what is forgotten was not measured; finetune.old=FILE measures it"
        )
        return {name: text for name, text in facts.items() if text}

    def tables(self) -> list[Table]:
        """Title, head and rows of each table."""
        found: list[Table] = []
        head: tuple[str, ...] = ("data", "quantity", "", "before", "E0 fitted", "after", "unit")
        rows: list[tuple[str, ...]] = []
        for k, row in enumerate(self.errors):
            numbers = [n for n in (row.before, row.refitted, row.after) if math.isfinite(n)]
            factor, unit = milli(row.unit, min(numbers, default=math.inf))
            shown = [f"{n * factor:.4g}" for n in (row.before, row.refitted, row.after)]
            first = k == 0 or self.errors[k - 1].data != row.data
            rows.append((row.data if first else "", row.quantity.replace("_", " "), row.kind, *shown, unit))
        found.append(("errors", head, rows))
        if self.energies is not None:
            head, energies = self.energies.table()
            found.append((f"reference energies, {self.energies.why}", head, energies))
        if self.pairs:
            head = ("atoms", "lowest at", "after", "well", "after", "at half the distance", "after", "")
            found.append(("two atoms alone", head, [_pair_row(a, b) for a, b in self.pairs]))
        if self.conserved:
            one = self.conserved[0]
            title = f"energy in {one.steps} steps of NVE at 300 K of {one.structure}"
            head = ("", "slope", "fluctuation", "unit", "")
            rows = [
                (when, f"{c.slope:.2g}", f"{c.rms:.2g}", "meV/atom/ps, meV/atom", c.stopped)
                for when, c in zip(("before", "after"), self.conserved)
            ]
            found.append((title, head, rows))
        return found

    def __str__(self) -> str:
        lines = ["fine-tuning", *(f"{name}: {text}" for name, text in self.facts().items())]
        for title, head, rows in self.tables():
            words = {
                k
                for k, name in enumerate(head)
                if name in ("data", "quantity", "", "unit", "atoms", "element")
            }
            lines += ["", title, *text_table(head, rows, left=words)]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_facts(self.facts()) + "".join(
            html_details(title, html_table(head, rows, left=(0, 1))) for title, head, rows in self.tables()
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, from which `from_dict` makes the report again."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "FineTuningReport":
        """The report from what `to_dict` returned.

        Parameters
        ----------
        record : mapping
            Plain values.
        """
        energies = record.get("energies")
        if energies is not None:
            rows = tuple(ElementEnergy(**row) for row in energies["rows"])
            energies = ReferenceEnergies(rows, energies["why"], energies.get("fitted", False))
        return cls(
            **{name: record[name] for name in ("method", "start", "old", "elements")},
            errors=tuple(ErrorChange(**row) for row in record["errors"]),
            energies=energies,
            pairs=tuple((PairCurve(**a), PairCurve(**b)) for a, b in record["pairs"]),
            conserved=tuple(Conservation(**one) for one in record["conserved"]),
        )

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=2)


def _pair_row(before: PairCurve, after: PairCurve) -> tuple[str, ...]:
    """The cells of one pair of elements."""
    note = "" if after.repulsive else "not repulsive at short distances"
    if not after.repulsive and not before.repulsive:
        note += ", as before"
    return (
        before.atoms,
        f"{before.distance:.2f} Å",
        f"{after.distance:.2f} Å",
        f"{before.lowest:.3f} eV",
        f"{after.lowest:.3f} eV",
        f"{before.short:+.2f} eV",
        f"{after.short:+.2f} eV",
        note,
    )


def changes_of(data: str, before: Errors | None, refitted: Errors | None, after: Errors) -> list[ErrorChange]:
    """The errors of all quantities on one set of data.

    Parameters
    ----------
    data : str
        The data.
    before, refitted : Errors, optional
        Those of the starting model without and with the fitted reference energies. None: they were not
        measured.
    after : Errors
        Those after the fine-tuning.
    """
    found = []
    names = [row.quantity for row in after.rows if not row.element]
    for row in after.rows:
        if row.element or f"{row.quantity}_per_atom" in names:
            continue
        classes = not math.isnan(row.accuracy)
        key = f"{row.quantity}_{'accuracy' if classes else 'rmse'}"
        a, b = (math.nan if one is None else one.numbers().get(key, math.nan) for one in (before, refitted))
        kind, unit = ("accuracy", "") if classes else ("RMSE", row.unit)
        found.append(ErrorChange(data, row.quantity, kind, unit, a, b, after[key]))
    return found


def as_report(record: object) -> FineTuningReport | None:
    """The report that a model file keeps; None for another record.

    Parameters
    ----------
    record : object
        ``metadata["finetuning"]``.
    """
    wanted: Sequence[str] = ("method", "start", "old", "elements", "errors", "pairs", "conserved")
    if not isinstance(record, Mapping) or any(name not in record for name in wanted):
        return None
    return FineTuningReport.from_dict(record)
