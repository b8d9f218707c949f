"""Report of the hypothesis test of the data's symmetry: p-values, their assumptions, verdicts and advice."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Literal

from molequi.errors import DataError
from molequi.util.html import FAILS, HOLDS, UNKNOWN, html_heading, html_table
from molequi.util.tables import text_table

Verdict = Literal[
    "no symmetry breaking found",
    "rotational symmetry broken",
    "reflection symmetry broken",
    "translational symmetry broken",
    "spontaneous symmetry breaking",
    "inconclusive",
    "anisotropic orientations",
    "unequal handedness",
]
ABOUT = "about"
ADVICE: dict[str, str] = {
    "no symmetry breaking found": "these tests see no loss from a strictly equivariant model",
    "rotational symmetry broken": (
        "the labels depend on directions of the lab frame. Use a relaxed model, or give the model the field "
        "as input"
    ),
    "inconclusive": (
        "not everything could be tested; each row gives the reason. The test needs independent structures in "
        "different orientations or positions, with labels that vary"
    ),
    "reflection symmetry broken": (
        "the labels are chiral: rotations hold and reflections do not. Use a model that is equivariant to "
        "SO(3), not to O(3)"
    ),
    "translational symmetry broken": (
        "the labels depend on the position of the structure. Give positions relative to the origin of the "
        "field, or use a relaxed model"
    ),
    "spontaneous symmetry breaking": (
        "symmetric structures have labels of lower symmetry, which no equivariant model can predict. Use "
        "symmetry-breaking sets"
    ),
    "anisotropic orientations": (
        "the orientations of the structures are not uniform. This breaks no symmetry of the labels: an "
        "equivariant model is suitable, other models need augmentation"
    ),
    "unequal handedness": (
        "one handedness is more frequent than the other. This breaks no symmetry of the labels, but the data "
        "say nothing about the mirror images"
    ),
}
# The residuals have preferred directions, but knowledge of the lab frame does not reduce the error.
NOISE_ADVICE = (
    "the noise, rounding or clipping of the labels has directions along axes of the lab frame. Improve the "
    "labels; these tests see no gain from a relaxed model"
)
# Verdicts for which an equivariant model is suitable.
HARMLESS = ("no symmetry breaking found", "anisotropic orientations", "unequal handedness")
WHOLE_GROUPS = ("O(3)", "SO(3)", "reflections", "T(3)", "orientations", "handedness", "stabilizers")


@dataclass(frozen=True, kw_only=True)
class HypothesisTest:
    """Test of one symmetry of one quantity, or of the structures alone.

    Attributes
    ----------
    name : str
        The symmetry: "O(3)", "SO(3)", "reflections", "T(3)", "stabilizers", a subgroup, or for the structures
        alone "orientations" and "handedness".
    quantity : str
        Name of the quantity; "" for the structures alone.
    p_value : float or None
        Largest p-value over all assumptions on the orientations, times the number of quantities, and for
        reflections times two. None if there is none.
    p_value_uniform : float or None
        p-value under the assumption of uniform orientations.
    assumption : str
        Assumption under which `p_value` was found.
    strongest_score : str
        The score with the largest z-score.
    z_score : float or None
        Its z-score, in standard deviations of the null distribution.
    null_distribution : tuple of float
        The largest z-score of each randomly transformed data set.
    significant_scores : dict
        z-scores above three.
    broken : bool
        Whether the hypothesis of symmetry is rejected.
    reason : str
        Why there is no p-value, or a remark.
    n_structures, n_independent : int or None
        Number of labelled structures, and of independent ones among them.
    assumed : bool
        Whether the p-value relies on the assumption, because orientations are not uniform.
    inconclusive : bool
        Whether the symmetry was tested and the data cannot answer, for the `reason`.
    """

    name: str
    quantity: str
    p_value: float | None = None
    p_value_uniform: float | None = None
    assumption: str = ""
    strongest_score: str = ""
    z_score: float | None = None
    null_distribution: tuple[float, ...] = field(default=(), repr=False)
    significant_scores: dict[str, float] = field(default_factory=dict)
    broken: bool = False
    reason: str = ""
    n_structures: int | None = None
    n_independent: int | None = None
    assumed: bool = False
    inconclusive: bool = False

    @property
    def is_subgroup(self) -> bool:
        """Whether the test is of a subgroup of the rotations and reflections."""
        return self.name.split(" ")[0] not in WHOLE_GROUPS

    @property
    def verdict(self) -> str:
        """The result in words."""
        if self.p_value is None and not self.broken:
            return f"inconclusive: {self.reason}" if self.inconclusive else self.reason
        words = {
            "orientations": ("not uniform", "uniform"),
            "handedness": ("unequal", "equal"),
            "stabilizers": ("labels of lower symmetry", "labels as symmetric as the structures"),
        }.get(self.name, ("broken", "holds"))[not self.broken]
        if self.broken and self.strongest_score:
            words = f"{words}: {self.strongest_score}"
        elif (
            not self.broken
            and self.p_value is not None
            and self.p_value_uniform is not None
            and self.p_value > 2 * self.p_value_uniform
            and self.p_value_uniform < 0.01
        ):
            words = (
                f"{words} under the assumption of {self.assumption}; the orientations explain the deviation"
            )
        assumed = f"assumed: {self.assumption}" if self.assumed else ""
        return "; ".join(filter(None, [words, assumed, self.reason]))


@dataclass(frozen=True, kw_only=True)
class OracleError:
    """Symmetry error of the labelling function itself, from labels of transformed structures.

    Attributes
    ----------
    symmetry : str
        "rotations", "reflections" or "translations".
    quantity : str
        Name of the quantity.
    error : float
        Root mean square error of the symmetry over the root mean square of the quantity.
    orbit_variance : float or None
        Variance over the group, for one component, in squared units of the quantity. No equivariant model has
        a smaller mean squared error if all orientations are equally frequent. None for translations.
    unit : str
        Unit of the quantity.
    """

    symmetry: str
    quantity: str
    error: float
    orbit_variance: float | None
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class SymmetryTestReport:
    """Which symmetries labelled structures break; ``print(report)`` shows the table.

    Attributes
    ----------
    tests : tuple of HypothesisTest
        One row for each symmetry and quantity.
    verdicts : tuple of str
        Overall verdicts; `ADVICE` says what to do.
    effect_size : dict
        For each quantity, the error that a regression with knowledge of the lab frame removes, relative to
        the RMS of the labels and cross-fitted. None if no symmetry is broken.
    axis : dict
        For each quantity the axis with the most remaining symmetry, if one was searched.
    oracle : tuple of OracleError
        Errors of the labelling function, if an oracle was given.
    n_structures, n_given : int
        Number of structures in use, and of those given.
    draws, seed, alpha : int, int, float
        Random data sets, seed, and significance level.
    version, date : str
        Version of molequi, and time of the test.
    """

    tests: tuple[HypothesisTest, ...]
    verdicts: tuple[Verdict, ...]
    effect_size: dict[str, float | None]
    axis: dict[str, tuple[float, ...]]
    oracle: tuple[OracleError, ...]
    n_structures: int
    n_given: int
    draws: int
    seed: int
    alpha: float
    version: str
    date: str

    @property
    def passed(self) -> bool:
        """Whether a strictly equivariant model is suitable; False if a test was inconclusive."""
        return all(v in HARMLESS for v in self.verdicts)

    def raise_if_failed(self) -> "SymmetryTestReport":
        """Return the report if no symmetry of the labels is broken.

        Raises
        ------
        DataError
            With the verdict and the rows that are broken, otherwise.
        """
        if self.passed:
            return self
        rows = [_cells(t) for t in self.tests if t.broken] or [_cells(t) for t in self.tests]
        table = "\n".join(text_table(_HEAD, rows, _LEFT))
        raise DataError(f"{self.summary}\n{table}")

    @property
    def remaining_symmetry(self) -> tuple[str, ...]:
        """Subgroups that hold although the rotational symmetry is broken."""
        names = dict.fromkeys(t.name for t in self.tests if t.is_subgroup)
        return tuple(
            n for n in names if all(t.p_value is not None and not t.broken for t in self.tests if t.name == n)
        )

    @property
    def summary(self) -> str:
        """The verdicts and what to do."""
        parts = []
        for verdict in self.verdicts:
            rotations = verdict == "rotational symmetry broken"
            words = f"{verdict}: {NOISE_ADVICE if rotations and self._only_noise else ADVICE[verdict]}"
            if rotations:
                sizes = [f"{100 * s:.2g} % of the RMS of {n}" for n, s in self.effect_size.items() if s]
                words += f" (effect size about {', '.join(sizes)})" if sizes else ""
                words += f"; remaining symmetry: {self._remaining_words}"
            parts.append(words)
        untested = dict.fromkeys(
            f"{t.name} of {t.quantity}"
            for t in self.tests
            if t.p_value is None
            and t.quantity
            and not t.is_subgroup
            and t.name not in ("T(3)", "stabilizers")
        )
        if untested and "inconclusive" not in self.verdicts:
            parts.append(f"not tested: {', '.join(untested)}")
        return "; ".join([*parts, *self._inconclusive_words])

    @property
    def _inconclusive_words(self) -> list[str]:
        """How many tests are inconclusive, and why; nothing if none is."""
        by_reason: dict[str, list[str]] = {}
        for test in self.tests:
            if test.inconclusive and test.p_value is None and not test.broken:
                of = f"{test.name} of {test.quantity}" if test.quantity else test.name
                by_reason.setdefault(test.reason.split(" (")[0], []).append(of)
        count = sum(map(len, by_reason.values()))
        if not count:
            return []
        why = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in by_reason.items())
        return [f"{count} of {len(self.tests)} tests {'is' if count == 1 else 'are'} inconclusive: {why}"]

    @property
    def _only_noise(self) -> bool:
        broken = [t for t in self.tests if t.broken and (t.name == "SO(3)" or t.is_subgroup)]
        scores = [s for t in broken for s in t.significant_scores or [t.strongest_score]]
        return (
            bool(scores)
            and all(s.startswith("directions of") for s in scores)
            and not any(self.effect_size.get(t.quantity) for t in broken)
        )

    @property
    def _remaining_words(self) -> str:
        tested = [t for t in self.tests if t.is_subgroup]
        if not tested:
            return "no subgroup was tested"
        if self.remaining_symmetry:
            return " and ".join(self.remaining_symmetry)
        inconclusive = any(t.p_value is None for t in tested)
        return "the tests of subgroups are inconclusive" if inconclusive else "none of the tested subgroups"

    @property
    def title(self) -> str:
        """Number of structures and settings of the test."""
        used, given = self.n_structures, self.n_given
        count = str(used) if used == given else f"{used} of {given}"
        return (
            f"symmetry test of {count} structures, level {self.alpha:g}, {self.draws} draws, seed "
            f"{self.seed}; "
            f"molequi {self.version}, {self.date}"
        )

    def to_json(self) -> str:
        """All fields, verdicts and summary as JSON."""
        head = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("tests", "oracle")}
        return json.dumps(
            {
                **head,
                "passed": self.passed,
                "summary": self.summary,
                "remaining_symmetry": self.remaining_symmetry,
                "tests": [asdict(t) | {"verdict": t.verdict} for t in self.tests],
                "oracle": [asdict(e) for e in self.oracle],
            },
            indent=1,
            allow_nan=False,
        )

    def __str__(self) -> str:
        lines = [self.title, *text_table(_HEAD, [_cells(t) for t in self.tests], _LEFT)]
        for e in self.oracle:
            unit = f" ({e.unit})²" if e.unit else ""
            line = f"oracle, {e.symmetry} of {e.quantity}: error {e.error:.2e} of the RMS"
            if e.orbit_variance is not None:
                line += (
                    "; with all orientations of these structures equally frequent, no equivariant model has "
                    "a smaller "
                    f"mean squared error than {e.orbit_variance:.3g}{unit}"
                )
            lines.append(line)
        return "\n".join([*lines, self.summary])

    def _repr_html_(self) -> str:
        colours = [FAILS if t.broken else UNKNOWN if t.p_value is None else HOLDS for t in self.tests]
        return html_heading(self.title, self.summary) + html_table(
            _HEAD, [_cells(t) for t in self.tests], colours, left=_LEFT
        )

    __repr__ = __str__


_HEAD = (
    "symmetry",
    "quantity",
    "structures",
    "p-value",
    "p-value, uniform orientations",
    "z-score",
    "verdict",
)
_LEFT = (0, 1, 6)


def _cells(test: HypothesisTest) -> tuple[str, ...]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3g}"

    z = "" if test.z_score is None or not math.isfinite(test.z_score) else f"{test.z_score:.1f}"
    count = "" if test.n_structures is None else str(test.n_structures)
    if test.n_independent is not None and test.n_independent != test.n_structures:
        count += f", {test.n_independent} independent"
    return (
        test.name,
        test.quantity or "structures alone",
        count,
        number(test.p_value),
        number(test.p_value_uniform),
        z,
        test.verdict,
    )
