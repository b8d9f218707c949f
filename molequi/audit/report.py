"""What an audit found: rows with numbers and verdicts, shown as a table, kept as JSON, summed up as a report."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Literal

from molequi.errors import ModelError
from molequi.util.tables import FAILS, HOLDS, UNKNOWN, finite, heading, markup, text

Verdict = Literal["pass", "fail", "not applicable"]
# float32 resolves 5e8 times less than float64: an error that grows so between them is round-off, one that does not is a real break.
ROUND_OFF = 1e3


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """Largest errors that pass, all in float64.

    Relative errors are against the rms of the quantity over the audited structures; of scalars, against how much they respond to a
    shake of the atoms, per atom where extensive. So they are stricter than absolute ones in eV and eV/Å for all but very stiff models.
    """

    symmetry: float = 1e-9  # rotations, reflections, translations, permutations, lattices, supercells (images are moved atoms); relative
    batching: float = 1e-10  # batch against single, order of edges; relative
    extensivity: float = 1e-10  # fragments far apart, atoms far apart; relative
    finite_difference: float = 1e-6  # forces and stress against differences of the energy; relative
    momentum: float = 1e-9  # net force and torque over the sum of their parts
    exact: float = 0.0  # force at and beyond the cutoff, of one atom, across graphs
    path: float = 5e-3  # energy against force along a path in steps of 0.005 Å, over the largest force
    jump: float = (
        1e-3  # what remains of the largest change of a path when its step is refined to 1e-6 Å; relative
    )

    @classmethod
    def single(cls) -> "Tolerances":
        """For what computes in float32 and cannot be asked in float64: 1e-4 of symmetries."""
        return cls(symmetry=1e-4, batching=1e-4, extensivity=1e-4, momentum=1e-4)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One check of one quantity.

    element: which group elements, or which case. median, maximum: of the error, in float64. float32: the largest error of the model in
    float32. worst: structure and draw of the largest error.
    """

    check: str
    quantity: str
    element: str = ""
    verdict: Verdict
    median: float | None = None
    maximum: float | None = None
    tolerance: float | None = None
    float32: float | None = None
    worst: tuple[int, int] | None = None
    reason: str = ""

    @property
    def ratio(self) -> float | None:
        """Error in float32 over error in float64: about 1e8 for round-off, about 1 for a real break."""
        if self.float32 is None or not self.maximum or not math.isfinite(self.maximum):
            return None
        return self.float32 / self.maximum

    @property
    def words(self) -> str:
        """The verdict and why."""
        why = self.reason
        if self.verdict == "fail" and self.ratio is not None:
            kind = (
                "grows in float32: round-off"
                if self.ratio > ROUND_OFF
                else "as large in float64 as in float32: a real break"
            )
            why = f"{why}; {kind}" if why else kind
        if self.verdict == "fail" and self.worst is not None:
            where = f"worst at structure {self.worst[0]}, draw {self.worst[1]}"
            why = f"{why}; {where}" if why else where
        return f"{self.verdict}: {why}" if why else self.verdict


def measured(
    check: str,
    quantity: str,
    errors: Sequence[tuple[float, int, int]],
    tolerance: float,
    *,
    element: str = "",
    float32: Sequence[tuple[float, int, int]] = (),
    reason: str = "",
) -> Row:
    """A row from errors (size, structure, draw); one that is not finite is infinitely large."""
    sizes = [(e if math.isfinite(e) else math.inf, s, d) for e, s, d in errors]
    ordered = sorted(e for e, _, _ in sizes)
    maximum, structure, draw = max(sizes)
    if not math.isfinite(maximum):
        reason = "; ".join(filter(None, ["the output is not finite", reason]))
    return Row(
        check=check,
        quantity=quantity,
        element=element,
        verdict="pass" if maximum <= tolerance else "fail",
        median=ordered[len(ordered) // 2],
        maximum=maximum,
        tolerance=tolerance,
        worst=(structure, draw),
        reason=reason,
        float32=max((e if math.isfinite(e) else math.inf for e, _, _ in float32), default=None),
    )


def skipped(check: str, quantity: str, reason: str, element: str = "") -> Row:
    """A row for what cannot be asked of this model or these structures."""
    return Row(check=check, quantity=quantity, element=element, verdict="not applicable", reason=reason)


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of an audit. `print(report)` shows the table; `report.raise_if_failed()` is for tests."""

    rows: tuple[Row, ...]
    model: str
    group: str
    structures: int
    given: int
    draws: int
    seed: int
    version: str
    date: str
    tolerance: Tolerances = field(default_factory=Tolerances)

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row.verdict == "fail"]

    @property
    def passed(self) -> bool:
        """Nothing failed, and something was measured: of the quantities too, where they were asked for."""
        verdicts = [row.verdict for row in self.rows]
        alive = [row.verdict for row in self.rows if row.check == "not zero"]
        return not self.failed and "pass" in verdicts and ("pass" in alive or not alive)

    def raise_if_failed(self) -> "Report":
        """The report itself if it passed; ModelError with the rows that failed otherwise."""
        if self.passed:
            return self
        what = "\n".join(text(_HEAD, map(_cells, self.failed), _WORDS)) if self.failed else _NOTHING
        raise ModelError(f"the audit of {self.model} failed:\n{what}")

    def to_json(self) -> str:
        """Everything, as JSON; an infinite error is null, and the reason says that it was."""
        rows = [finite(asdict(row) | {"ratio": row.ratio}) for row in self.rows]
        head = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("rows", "tolerance")}
        return json.dumps(
            {**head, "passed": self.passed, "tolerance": asdict(self.tolerance), "rows": rows},
            indent=1,
            allow_nan=False,
        )

    @property
    def summary(self) -> str:
        """The verdict in one line."""
        asked = sum(row.verdict != "not applicable" for row in self.rows)
        if self.failed:
            where = ", ".join(
                dict.fromkeys(f"{r.check} of {r.quantity}" if r.quantity else r.check for r in self.failed)
            )
            return f"FAILED: {len(self.failed)} of {asked} checks: {where}"
        return f"passed: all {asked} checks" if self.passed else f"FAILED: {_NOTHING}"

    @property
    def title(self) -> str:
        some = str(self.structures) if self.structures == self.given else f"{self.structures} of {self.given}"
        return (
            f"{self.model}, declared {self.group}; {some} structures, {self.draws} draws each, seed {self.seed}; "
            f"molequi {self.version}, {self.date}"
        )

    def __str__(self) -> str:
        return "\n".join([self.title, *text(_HEAD, map(_cells, self.rows), _WORDS), self.summary])

    def _repr_html_(self) -> str:
        colours = {"pass": HOLDS, "fail": FAILS, "not applicable": UNKNOWN}
        return heading(self.title, self.summary) + markup(
            _HEAD, [_cells(r) for r in self.rows], [colours[r.verdict] for r in self.rows]
        )


_NOTHING = "nothing that the model predicts could be measured on these structures"
_HEAD = ("check", "of", "by", "median", "largest", "allowed", "float32", "verdict")
_WORDS = (0, 1, 2, 7)


def _cells(row: Row) -> tuple[str, ...]:
    def number(value: float | None, zero: str = "0") -> str:
        return "" if value is None else zero if value == 0 else f"{value:.1e}"

    return (
        row.check,
        row.quantity,
        row.element,
        number(row.median),
        number(row.maximum),
        number(row.tolerance, "exact"),
        number(row.float32),
        row.words,
    )
