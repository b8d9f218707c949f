"""The report of an audit: rows with errors and verdicts, as a table, as JSON and for notebooks."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Literal

from molequi.errors import ModelError
from molequi.util.html import FAILS, HOLDS, UNKNOWN, html_details, html_heading, html_table
from molequi.util.tables import json_ready, text_table

Deviation = tuple[float, int, int]  # size, structure, draw
Verdict = Literal["pass", "fail", "not applicable"]
# Round-off in float32 is 5e8 times larger than in float64. An error that is equal in both is a real one.
ROUND_OFF = 1e3


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """The largest errors that pass, all in float64.

    Relative errors are divided by the root mean square of the quantity over the audited structures. Those of
    scalars are divided by the standard deviation over rattled copies of one structure, per atom if the scalar
    is extensive.

    Parameters
    ----------
    symmetry : float
        Rotations, reflections, translations, permutations, lattices and supercells; relative.
    batching : float
        A structure in a batch against the structure alone, and another order of the edges; relative.
    extensivity : float
        Fragments or atoms that do not see each other; relative.
    finite_difference : float
        Declared gradients (forces, stress, Born charges, …) against finite differences of their parents;
        relative. The differences themselves have errors of 1e-9 or less.
    momentum : float
        Net force and net torque, divided by the sum of the absolute values of their contributions.
    exact : float
        Forces at and beyond the cutoff and on a single atom, and gradients between structures of a batch.
    path : float
        Energy against the integral of the force along a path in steps of 0.005 Å, divided by the largest
        force; the same for other gradients by positions.
    jump : float
        The largest change along a path within a step of 1e-6 Å; relative.
    """

    symmetry: float = 1e-9
    batching: float = 1e-10
    extensivity: float = 1e-10
    finite_difference: float = 1e-6
    momentum: float = 1e-9
    exact: float = 0.0
    path: float = 5e-3
    jump: float = 1e-3

    @classmethod
    def single(cls) -> "Tolerances":
        """Tolerances for calculators that compute in float32 only: 1e-4 for symmetries."""
        return cls(symmetry=1e-4, batching=1e-4, extensivity=1e-4, momentum=1e-4)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One check of one quantity.

    Parameters
    ----------
    check : str
        Name of the check, a key of `CHECKS`.
    quantity : str
        Quantity, irrep or layer that was checked.
    element : str
        Which group elements, or which case.
    verdict : "pass", "fail" or "not applicable"
        What the error means.
    median, maximum : float or None
        Errors in float64; None if nothing was measured.
    tolerance : float or None
        The largest error that passes.
    float32 : float or None
        The largest error of the model in float32.
    worst : tuple of int, or None
        Structure and draw of the largest error.
    reason : str
        Why the check failed or could not be done.
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
        """Error in float32 over error in float64: about 1e8 for round-off, about 1 otherwise."""
        if self.float32 is None or not self.maximum or not math.isfinite(self.maximum):
            return None
        return self.float32 / self.maximum

    @property
    def explanation(self) -> str:
        """The verdict and its reason."""
        why = self.reason
        if self.verdict == "fail" and self.ratio is not None:
            kind = (
                "grows in float32: round-off"
                if self.ratio > ROUND_OFF
                else "as large in float64 as in float32: no round-off"
            )
            why = f"{why}; {kind}" if why else kind
        if self.verdict == "fail" and self.worst is not None:
            where = f"worst at structure {self.worst[0]}, draw {self.worst[1]}"
            why = f"{why}; {where}" if why else where
        return f"{self.verdict}: {why}" if why else self.verdict


def measured(
    check: str,
    quantity: str,
    errors: Sequence[Deviation],
    tolerance: float,
    *,
    element: str = "",
    float32: Sequence[Deviation] = (),
    reason: str = "",
) -> Row:
    """A row from errors (size, structure, draw); an error that is not finite counts as infinite."""
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
    """A row for a check that does not apply to this model or to these structures."""
    return Row(check=check, quantity=quantity, element=element, verdict="not applicable", reason=reason)


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of an audit.

    ``print(report)`` shows the table, and so does a notebook. ``report.raise_if_failed()`` is for tests.

    Parameters
    ----------
    rows : tuple of Row
        The checks.
    model : str
        Name of the class of the model and of its backbone.
    group : str
        The group by which the model was judged.
    structures, given : int
        Number of structures that were used, and of those that were given.
    draws : int
        Random transforms of each structure and check.
    seed : int
        Seed of the random transforms.
    version, date : str
        Version of molequi and time of the audit.
    tolerance : Tolerances
        The largest errors that pass.
    """

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
        """The checks that failed."""
        return [row for row in self.rows if row.verdict == "fail"]

    @property
    def passed(self) -> bool:
        """Whether nothing failed and something was measured, including at least one quantity if quantities
        were checked.
        """
        verdicts = [row.verdict for row in self.rows]
        alive = [row.verdict for row in self.rows if row.check == "not zero"]
        return not self.failed and "pass" in verdicts and ("pass" in alive or not alive)

    def raise_if_failed(self) -> "Report":
        """Return the report itself if it passed.

        Raises
        ------
        ModelError
            If a check failed or nothing was measured. The message has the rows that failed.
        """
        if self.passed:
            return self
        what = "\n".join(text_table(_HEAD, map(_cells, self.failed), _WORDS)) if self.failed else _NOTHING
        raise ModelError(f"the audit of {self.model} failed:\n{what}")

    def to_json(self) -> str:
        """Everything as JSON. An infinite error becomes null, and the reason of the row says so."""
        rows = [json_ready(asdict(row) | {"ratio": row.ratio}) for row in self.rows]
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
        """Model, group, number of structures, seed, version and date in one line."""
        some = str(self.structures) if self.structures == self.given else f"{self.structures} of {self.given}"
        return (
            f"{self.model}, declared {self.group}; {some} structures, {self.draws} draws each, seed "
            f"{self.seed}; "
            f"molequi {self.version}, {self.date}"
        )

    def __str__(self) -> str:
        return "\n".join([self.title, *text_table(_HEAD, map(_cells, self.rows), _WORDS), self.summary])

    def _repr_html_(self) -> str:
        colours = {"pass": HOLDS, "fail": FAILS, "not applicable": UNKNOWN}
        head = html_heading(self.title, self.summary)
        table = html_table(
            _HEAD, [_cells(r) for r in self.rows], [colours[r.verdict] for r in self.rows], left=_WORDS
        )
        if len(self.rows) <= _LONG:
            return head + table
        worst = _worst_of_each(self.rows)
        return (
            head
            + html_table(_HEAD, [_cells(r) for r in worst], [colours[r.verdict] for r in worst], left=_WORDS)
            + html_details(f"the worst of each check is shown; all {len(self.rows)} rows", table)
        )

    __repr__ = __str__


def _worst_of_each(rows: Sequence[Row]) -> list[Row]:
    """All rows that failed, and of each other check the row that is closest to its tolerance."""

    def badness(row: Row) -> tuple[bool, float]:
        known = row.maximum is not None and row.tolerance
        return row.verdict == "pass", (row.maximum or 0.0) / (row.tolerance or 1.0) if known else 0.0

    found = []
    for check in dict.fromkeys(row.check for row in rows):
        of = [row for row in rows if row.check == check]
        failed = [row for row in of if row.verdict == "fail"]
        found += failed or [max(of, key=badness)]
    return found


_LONG = 24  # rows of a table that a notebook shows at once
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
        row.explanation,
    )
