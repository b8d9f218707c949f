"""The report of `lie_errors`: errors of each output and irrep and the share of each layer, as tables, as JSON
and for notebooks.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from molequi.util.html import html_heading, html_table
from molequi.util.tables import json_ready, text_table

NOT_FINITE = "not finite"


@dataclass(frozen=True, kw_only=True)
class Share:
    """The contribution of one layer to an error.

    Parameters
    ----------
    layer : str
        Name of the module.
    share : float or None
        ⟨term, total⟩ / |total|². Shares add up to one; they may be negative or larger than one where terms
        cancel. None if the total is zero.
    size : float
        |term|², in the units of the LEE.
    """

    layer: str
    share: float | None
    size: float


@dataclass(frozen=True, kw_only=True)
class LieRow:
    """One irrep of one output.

    Parameters
    ----------
    quantity, irrep, unit : str
        The output, its irrep and its unit.
    scale : float
        What errors are divided by: √E|f|² or a standard deviation, in `unit`.
    rotations, translations : float
        Contributions of both kinds of generators to the LEE; translations in Å⁻².
    generators : dict of str to float
        Contribution of each generator.
    inversion : float
        Squared relative error under x → -x (under a mirror if the number of dimensions is even). Not part of
        the LEE.
    differences : float
        The LEE by finite differences.
    gap, allowed : float
        Relative distance of both derivatives, and the largest that passes.
    noise : float
        Errors up to this size may be round-off.
    layers : tuple of Share
        Contribution of each layer.
    missing : str
        Why nothing was measured, or which structures were left out.
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
        """Whether the output varies, so that there is a scale to divide by."""
        return self.scale > 0

    @property
    def broken(self) -> bool:
        """Whether there is more than round-off."""
        return self.measured and not self.error <= self.noise

    @property
    def agrees(self) -> bool:
        """Whether finite differences agree. If not, a `detach` cuts the derivative, or the function has kinks
        or jumps.
        """
        return not self.measured or self.gap <= self.allowed

    @property
    def remark(self) -> str:
        """Why nothing was measured, or what is exact although the output is broken."""
        if self.missing:
            return self.missing
        if not self.agrees:
            return "finite differences disagree: a detach cuts the derivative, or there are kinks or jumps"
        return f"exact: {', '.join(self.exact)}" if self.broken and self.exact else ""

    @property
    def exact(self) -> list[str]:
        """Generators without an error, if other generators of the same kind (rotation, translation) have
        one.
        """
        found = []
        for kind in ("rotation", "translation"):
            parts = {name: value for name, value in self.generators.items() if name.startswith(kind)}
            hold = [name for name, value in parts.items() if value <= self.noise**2]
            found += hold if len(hold) < len(parts) else []
        return found


@dataclass(frozen=True, kw_only=True)
class StateRow:
    """The error that one layer makes by itself in one irrep of its output.

    Parameters
    ----------
    layer, irrep : str
        The layer and the irrep.
    scale : float
        Root mean square of this part of the output; for positions their standard deviation.
    rotations, translations : float
        Relative squared errors of both kinds of generators.
    """

    layer: str
    irrep: str
    scale: float
    rotations: float
    translations: float

    @property
    def lee(self) -> float:
        """Sum of both contributions."""
        return self.rotations + self.translations


@dataclass(frozen=True, kw_only=True)
class LieReport:
    """The result of `lie_errors`: ``print(report)``, ``report.to_json()``, ``plotting.lie_errors(report)``.

    Parameters
    ----------
    rows : tuple of LieRow
        One for each irrep of each output and of the features.
    states : tuple of StateRow
        The error of each layer by itself.
    model, group : str
        The model and the group that it declares.
    structures, given : int
        Number of structures that were used, and of those that were given.
    draws, seed : int
        Copies of each structure, and the seed of the rattling.
    precision : str
        "float64" or "float32".
    version, date : str
        Version of molequi and time.
    """

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
        """The first row of a quantity, or the row of one of its irreps.

        Parameters
        ----------
        quantity : str
            Name of the output; "features" for the features of the backbone.
        irrep : str or None
            Such as "1o".

        Raises
        ------
        KeyError
            If there is no such row.
        """
        for row in self.rows:
            if row.quantity == quantity and irrep in (None, row.irrep):
                return row
        raise KeyError(f"{quantity} {irrep or ''}".strip())

    @property
    def summary(self) -> str:
        """The largest error and the layer that contributes most to it, in one line."""
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
        # A broken output comes before one whose error is large because it is a small difference of large
        # numbers.
        worst = max(known, key=lambda row: (row.broken, row.lee if math.isfinite(row.lee) else math.inf))
        what = f"largest LEE {worst.lee:.1e}: {worst.quantity} {worst.irrep}"
        if not worst.broken:
            resolved = math.sqrt(max(r.differences for r in known))
            return (
                f"{what}; no more than round-off (finite differences would show errors above {resolved:.0e})"
            )
        most = max(worst.layers, key=lambda s: abs(s.share or 0.0))
        return f"{what}; {100 * (most.share or 0.0):.1f} % from {most.layer}"

    @property
    def title(self) -> str:
        """Model, group, number of structures, seed, precision, version and date in one line."""
        some = str(self.structures) if self.structures == self.given else f"{self.structures} of {self.given}"
        return (
            f"Lie derivatives of {self.model}, declared {self.group}; {some} structures, {self.draws} draws "
            "each, "
            f"seed {self.seed}, {self.precision}; molequi {self.version}, {self.date}"
        )

    def to_json(self) -> str:
        """Everything as JSON; numbers that are not finite become null."""
        rows = [
            json_ready(asdict(r) | {"lee": r.lee, "error": r.error, "agrees": r.agrees}) for r in self.rows
        ]
        states = [json_ready(asdict(s) | {"lee": s.lee}) for s in self.states]
        head = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("rows", "states")}
        return json.dumps(
            {**head, "summary": self.summary, "rows": rows, "states": states}, indent=1, allow_nan=False
        )

    def tables(self) -> list[tuple[str, list[tuple[str, ...]]]]:
        """Title and lines of each table, the head first: errors, shares of the layers, each layer by itself.

        Shares are listed for errors that are larger than round-off.
        """
        errors: list[tuple[str, ...]] = [
            ("of", "irrep", "LEE", "rotations", "translations", "inversion", "differences", "remark")
        ]
        shares: list[tuple[str, ...]] = [("of", "irrep", "layer", "share", "size")]
        states: list[tuple[str, ...]] = [("layer", "irrep", "LEE", "rotations", "translations")]
        for r in self.rows:
            numbers = (
                map(_number, (r.lee, r.rotations, r.translations, r.inversion, r.differences))
                if r.measured
                else [""] * 5
            )
            errors.append((r.quantity, r.irrep, *numbers, r.remark))
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
            ("share of each layer (other layers contribute no more than round-off)", shares),
            ("each layer by itself", states),
        ]
        return [(title, lines) for title, lines in named if len(lines) > 1]

    def __str__(self) -> str:
        out = [self.title]
        for title, lines in self.tables():
            out += ([f"{title}:"] if title else []) + text_table(lines[0], lines[1:], _words(lines[0]))
        return "\n".join([*out, self.summary])

    def _repr_html_(self) -> str:
        out = [html_heading(self.title, self.summary)]
        for title, (head, *lines) in self.tables():
            out += [html_heading(title) if title else "", html_table(head, lines, left=_words(head))]
        return "".join(out)

    __repr__ = __str__


def _words(head: Sequence[str]) -> list[int]:
    """Columns of a table that hold words."""
    return [k for k, name in enumerate(head) if name in ("of", "irrep", "layer", "remark")]


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"
