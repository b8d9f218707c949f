"""What the Lie derivatives of a model say: rows for each output and irrep, shares of the layers, as a table, JSON and for a notebook."""

import json
import math
from dataclasses import asdict, dataclass, fields

from molequi.util.tables import finite, heading, markup, text

NOT_FINITE = "not finite"


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one layer adds to an error: share = ⟨term, total⟩ / |total|², which add up to one and may be negative or above it where terms
    cancel; size = |term|² in the units of the LEE. The share is None where the total is zero.
    """

    layer: str
    share: float | None
    size: float


@dataclass(frozen=True, kw_only=True)
class LieRow:
    """One irrep of one output.

    rotations, translations (Å⁻²): their parts of the LEE; generators: the part of each. inversion: squared relative error under x → -x
    (in an even number of dimensions under a mirror), not part of the LEE. differences: the LEE by finite differences; gap: root of the
    squared distance between both derivatives, relative as `error` is, and `allowed` the largest that passes. noise: what may be
    round-off. scale: what errors are divided by, √E|f|² or a spread, in `unit`. layers: what each adds to it. missing: why nothing was
    measured, or what was left out.
    """

    quantity: str
    irrep: str
    unit: str = ""
    scale: float
    rotations: float = math.nan
    translations: float = math.nan
    generators: dict[str, float]
    inversion: float = math.nan
    differences: float = math.nan
    gap: float = math.nan
    allowed: float = math.inf
    noise: float = math.inf
    layers: tuple[Share, ...] = ()
    missing: str = ""

    @property
    def lee(self) -> float:
        """E_x Σ_k |L_k f|² / E|f|²; NaN where f is zero or constant."""
        return self.rotations + self.translations

    @property
    def error(self) -> float:
        """√LEE: relative, as the errors of `audit` are."""
        return math.sqrt(self.lee) if self.measured else math.nan

    @property
    def measured(self) -> bool:
        return self.scale > 0

    @property
    def broken(self) -> bool:
        """Whether there is more than round-off."""
        return self.measured and not self.error <= self.noise

    @property
    def agrees(self) -> bool:
        """Whether finite differences say the same; if not, something cuts the derivative (a `detach`) or has kinks there."""
        return not self.measured or self.gap <= self.allowed

    @property
    def words(self) -> str:
        if self.missing:
            return self.missing
        if not self.agrees:
            return (
                "finite differences disagree: derivatives are cut (detached?), or there are kinks and jumps"
            )
        return f"exact: {', '.join(self.exact)}" if self.broken and self.exact else ""

    @property
    def exact(self) -> list[str]:
        """Generators of no error, of those kinds (rotations, translations) of which others have one."""
        found = []
        for kind in ("rotation", "translation"):
            parts = {name: value for name, value in self.generators.items() if name.startswith(kind)}
            hold = [name for name, value in parts.items() if value <= self.noise**2]
            found += hold if len(hold) < len(parts) else []
        return found


@dataclass(frozen=True, kw_only=True)
class StateRow:
    """The error that one layer makes by itself in one irrep of what it returns, relative to the rms of that; of positions to their spread."""

    layer: str
    irrep: str
    scale: float
    rotations: float
    translations: float

    @property
    def lee(self) -> float:
        return self.rotations + self.translations


@dataclass(frozen=True, kw_only=True)
class LieReport:
    """The result of `lie_errors`: `print(report)`, `report.to_json()`, `plotting.lie_errors(report)`."""

    rows: tuple[LieRow, ...]
    states: tuple[StateRow, ...]
    model: str
    group: str
    structures: int
    given: int
    draws: int
    seed: int
    precision: str
    version: str
    date: str

    def row(self, quantity: str, irrep: str | None = None) -> LieRow:
        """The row of a quantity, or of one of its irreps; KeyError if there is none."""
        for row in self.rows:
            if row.quantity == quantity and irrep in (None, row.irrep):
                return row
        raise KeyError(f"{quantity} {irrep or ''}".strip())

    @property
    def summary(self) -> str:
        """The largest error and the layer that makes most of it, in one line."""
        wrong = [row for row in self.rows if not row.agrees]
        if wrong:
            names = ", ".join(f"{r.quantity} {r.irrep}" for r in wrong)
            return f"NOT TO BE TRUSTED: finite differences disagree for {names}"
        wrong = [row for row in self.rows if row.missing.startswith(NOT_FINITE)]
        if wrong:
            return "NOT TO BE TRUSTED: not finite: " + ", ".join(f"{r.quantity} {r.irrep}" for r in wrong)
        known = [row for row in self.rows if row.measured]
        if not known:
            return "nothing could be measured: " + "; ".join(
                dict.fromkeys(f"{r.quantity} is {r.missing}" for r in self.rows)
            )
        # One that is broken before one that merely resolves less, as a small difference of large numbers does.
        worst = max(known, key=lambda row: (row.broken, row.lee if math.isfinite(row.lee) else math.inf))
        what = f"largest LEE {worst.lee:.1e}: {worst.quantity} {worst.irrep}"
        if not worst.broken:
            return f"{what}; no more than round-off (finite differences would show errors above {math.sqrt(max(r.differences for r in known)):.0e})"
        most = max(worst.layers, key=lambda s: abs(s.share or 0.0))
        return f"{what}; {100 * (most.share or 0.0):.1f} % from {most.layer}"

    @property
    def title(self) -> str:
        some = str(self.structures) if self.structures == self.given else f"{self.structures} of {self.given}"
        return (
            f"Lie derivatives of {self.model}, declared {self.group}; {some} structures, {self.draws} draws each, seed {self.seed}, {self.precision}; "
            f"molequi {self.version}, {self.date}"
        )

    def to_json(self) -> str:
        """Everything, as JSON; what is not finite is null."""
        rows = [finite(asdict(r) | {"lee": r.lee, "error": r.error, "agrees": r.agrees}) for r in self.rows]
        states = [finite(asdict(s) | {"lee": s.lee}) for s in self.states]
        head = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("rows", "states")}
        return json.dumps(
            {**head, "summary": self.summary, "rows": rows, "states": states}, indent=1, allow_nan=False
        )

    def tables(self) -> list[tuple[str, list[tuple[str, ...]]]]:
        """Title and lines of each table, the head first: errors, shares of the layers in those that are none of round-off, layers alone."""
        errors = [("of", "irrep", "LEE", "rotations", "translations", "inversion", "differences", "remark")]
        shares = [("of", "irrep", "layer", "share", "size")]
        states = [("layer", "irrep", "LEE", "rotations", "translations")]
        for r in self.rows:
            numbers = (
                map(_number, (r.lee, r.rotations, r.translations, r.inversion, r.differences))
                if r.measured
                else [""] * 5
            )
            errors.append((r.quantity, r.irrep, *numbers, r.words))
            if r.broken:
                shares += [
                    (
                        r.quantity,
                        r.irrep,
                        s.layer,
                        "" if s.share is None else f"{100 * s.share:.2f} %",
                        _number(s.size),
                    )
                    for s in r.layers
                    if not s.size <= r.noise**2
                ]
        states += [
            (s.layer, s.irrep, *map(_number, (s.lee, s.rotations, s.translations))) for s in self.states
        ]
        named = [
            ("", errors),
            ("charged to the layers (of others no more than round-off)", shares),
            ("each layer by itself", states),
        ]
        return [(title, lines) for title, lines in named if len(lines) > 1]

    def __str__(self) -> str:
        out = [self.title]
        for title, lines in self.tables():
            words = [k for k, name in enumerate(lines[0]) if name in ("of", "irrep", "layer", "remark")]
            out += ([f"{title}:"] if title else []) + text(lines[0], lines[1:], words)
        return "\n".join([*out, self.summary])

    def _repr_html_(self) -> str:
        out = [heading(self.title, self.summary)]
        for title, (head, *lines) in self.tables():
            out += [f"<p>{title}</p>", markup(head, lines)]
        return "".join(out)


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"
