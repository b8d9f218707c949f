"""What the test of data found: p-values under stated assumptions, verdicts in words, what to do."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Literal

from molequi.errors import DataError
from molequi.util.tables import FAILS, HOLDS, UNKNOWN, heading, markup, text

Verdict = Literal[
    "no broken symmetry found",
    "broken law",
    "chirality",
    "broken translations",
    "spontaneous breaking",
    "cannot be told",
    "anisotropic poses",
    "one hand",
]
AXIS = "about"
ADVICE: dict[str, str] = {
    "no broken symmetry found": "a strictly equivariant model loses nothing that these tests see",
    "broken law": "the labels depend on directions of the lab: a relaxed model, or one that is given the field, is advised",
    "cannot be told": "not all that was asked could be tested, see the reasons of each row: wanted structures that do not depend on each "
    "other, in other poses or places, with labels that vary",
    "chirality": "rotations hold and reflections do not: a model of SO(3), not of O(3), is advised",
    "broken translations": "the labels depend on where the structure is: give positions from the origin of the field, or relax",
    "spontaneous breaking": "symmetric structures have labels of less symmetry, which no equivariant model can give: "
    "symmetry-breaking sets are advised",
    "anisotropic poses": "the structures are not uniformly oriented, which is no broken law: an equivariant model is at its best here, "
    "others need augmentation",
    "one hand": "the structures are more of one hand than of the other, which is no broken law: nothing was learned of their mirror images",
}
# Where nothing is gained by knowing the lab, though the residuals have directions in it.
NOISY = (
    "the labels have noise, rounding or clipping along the lab's axes: better labels are advised; a relaxed model gains nothing that "
    "these tests see"
)
# An equivariant model is right in these cases.
HARMLESS = ("no broken symmetry found", "anisotropic poses", "one hand")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One test of one quantity ("" is of the structures alone).

    p: the largest over all assumptions on the poses, times the number of quantities and for reflections two; p_uniform: with uniform poses alone. assumption:
    under which p was found. found: what stood out most, by `observed` spreads of the `null`. stands_out: all that did, by how much.
    structures: with labels; independent: about so many of them do not depend on each other. assumed: whether p rests on the assumption,
    since poses are not uniform. untold: whether it was asked and these structures cannot answer, for the `reason`.
    """

    name: str
    quantity: str
    p: float | None = None
    p_uniform: float | None = None
    assumption: str = ""
    found: str = ""
    observed: float | None = None
    null: tuple[float, ...] = field(default=(), repr=False)
    stands_out: dict[str, float] = field(default_factory=dict)
    broken: bool = False
    reason: str = ""
    structures: int | None = None
    independent: int | None = None
    assumed: bool = False
    untold: bool = False

    @property
    def subgroup(self) -> bool:
        """Whether it asks what is left of the rotations."""
        return self.name.split(" ")[0] not in (
            "O(3)",
            "SO(3)",
            "reflections",
            "T(3)",
            "poses",
            "handedness",
            "stabilizers",
        )

    @property
    def words(self) -> str:
        if self.p is None and not self.broken:
            return f"cannot be told: {self.reason}" if self.untold else self.reason
        what = {
            "poses": ("not uniform", "uniform"),
            "handedness": ("one hand more than the other", "both hands alike"),
            "stabilizers": ("labels of less symmetry", "labels as symmetric"),
        }.get(self.name, ("broken", "holds"))[not self.broken]
        if self.broken and self.found:
            what = f"{what}: {self.found}"
        elif self.p_uniform is not None and self.p > 2 * self.p_uniform and not self.broken:
            what = f"{what}, but for {self.assumption}: poses explain it" if self.p_uniform < 0.01 else what
        return "; ".join(
            filter(None, [what, f"assumed: {self.assumption}" if self.assumed else "", self.reason])
        )


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Of the law itself, asked by the oracle: rms error of one symmetry over the rms of the quantity; and the orbit variance, in squared
    units: the mean square error (of a component) that no equivariant model can beat if every pose of the structures is equally frequent.
    None for translations.
    """

    name: str
    quantity: str
    error: float
    variance: float | None
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class SymmetryTestReport:
    """Which symmetries labelled structures break. `print(report)` shows the table.

    size: of the break of each quantity, over the rms of the label: what a fit that knows the lab gains on held-out structures; None where
    nothing is broken. axis: about which the most symmetry is left, where one was looked for.
    """

    checks: tuple[Check, ...]
    verdicts: tuple[Verdict, ...]
    size: dict[str, float | None]
    axis: dict[str, tuple[float, ...]]
    oracle: tuple[Floor, ...]
    structures: int
    given: int
    draws: int
    seed: int
    alpha: float
    version: str
    date: str

    @property
    def passed(self) -> bool:
        """Whether a strictly equivariant model is right for these data; anisotropic poses do no harm to one.

        Not if something that was asked of the law could not be told.
        """
        return all(v in HARMLESS for v in self.verdicts)

    def raise_if_failed(self) -> "BreakingReport":
        """The report itself if no symmetry of the law is broken; DataError with the verdict otherwise."""
        if self.passed:
            return self
        raise DataError(
            f"{self.summary}\n"
            + "\n".join(
                text(_HEAD, [_cells(c) for c in self.checks if c.broken] or map(_cells, self.checks), _WORDS)
            )
        )

    @property
    def remaining(self) -> tuple[str, ...]:
        """Subgroups that hold although the rotations do not."""
        names = dict.fromkeys(c.name for c in self.checks if c.subgroup)
        return tuple(
            n for n in names if all(c.p is not None and not c.broken for c in self.checks if c.name == n)
        )

    @property
    def summary(self) -> str:
        """The verdict and what to do."""
        parts = []
        for verdict in self.verdicts:
            words = f"{verdict}: {NOISY if verdict == 'broken law' and self._noisy else ADVICE[verdict]}"
            if verdict == "broken law":
                sizes = [f"{100 * s:.2g} % of the rms of {n}" for n, s in self.size.items() if s]
                words += f" (size about {', '.join(sizes)})" if sizes else ""
                words += f"; what is left: {self._left}"
            parts.append(words)
        untold = dict.fromkeys(
            f"{c.name} of {c.quantity}"
            for c in self.checks
            if c.p is None and c.quantity and not c.subgroup and c.name not in ("T(3)", "stabilizers")
        )
        if untold and "cannot be told" not in self.verdicts:
            parts.append(f"not told: {', '.join(untold)}")
        return "; ".join(parts)

    @property
    def _noisy(self) -> bool:
        broken = [c for c in self.checks if c.broken and (c.name == "SO(3)" or c.subgroup)]
        views = [v for c in broken for v in c.stands_out or [c.found]]
        return (
            bool(views)
            and all(v.startswith("directions of") for v in views)
            and not any(self.size.get(c.quantity) for c in broken)
        )

    @property
    def _left(self) -> str:
        asked = [c for c in self.checks if c.subgroup]
        if not asked:
            return "no subgroup was asked for"
        if self.remaining:
            return " and ".join(self.remaining)
        untold = any(c.p is None for c in asked)
        return "what was asked for could not be told" if untold else "none of the groups that were asked for"

    @property
    def title(self) -> str:
        some = str(self.structures) if self.structures == self.given else f"{self.structures} of {self.given}"
        return (
            f"symmetry of {some} structures, level {self.alpha:g}, {self.draws} draws, seed {self.seed}; molequi {self.version}, "
            f"{self.date}"
        )

    def to_json(self) -> str:
        """Everything, as JSON."""
        head = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("checks", "oracle")}
        return json.dumps(
            {
                **head,
                "passed": self.passed,
                "summary": self.summary,
                "remaining": self.remaining,
                "checks": [asdict(c) | {"words": c.words} for c in self.checks],
                "oracle": [asdict(f) for f in self.oracle],
            },
            indent=1,
            allow_nan=False,
        )

    def __str__(self) -> str:
        lines = [self.title, *text(_HEAD, map(_cells, self.checks), _WORDS)]
        for f in self.oracle:
            unit = f" ({f.unit})²" if f.unit else ""
            lines.append(
                f"oracle, {f.name} of {f.quantity}: error {f.error:.2e} of the rms"
                + (
                    ""
                    if f.variance is None
                    else f"; over all poses of these structures, each as frequent, no equivariant model has a smaller "
                    f"mean square error than {f.variance:.3g}{unit}"
                )
            )
        return "\n".join([*lines, self.summary])

    def _repr_html_(self) -> str:
        colours = [FAILS if c.broken else UNKNOWN if c.p is None else HOLDS for c in self.checks]
        return heading(self.title, self.summary) + markup(_HEAD, [_cells(c) for c in self.checks], colours)


_HEAD = ("symmetry", "of", "structures", "p", "p, poses uniform", "stands out by", "verdict")
_WORDS = (0, 1, 6)


def _cells(check: Check) -> tuple[str, ...]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3g}"

    out = check.observed if check.observed is None or math.isfinite(check.observed) else None
    far = "" if out is None else f"{out:.1f}"
    count = "" if check.structures is None else str(check.structures)
    if check.independent is not None and check.independent != check.structures:
        count += f", {check.independent} independent"
    return (
        check.name,
        check.quantity or "the structures",
        count,
        number(check.p),
        number(check.p_uniform),
        far,
        check.words,
    )
