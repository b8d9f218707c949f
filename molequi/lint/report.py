"""The result of a lint: findings, summaries and costs; as a table, as JSON and as a page."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from molequi.errors import DataError
from molequi.util.html import FAILS, UNKNOWN, html_details, html_facts, html_heading, html_table, html_text
from molequi.util.tables import json_ready, text_table

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
_COLOURS = {"error": FAILS, "warning": "#b26a00", "info": UNKNOWN}
_WIDTH = 110  # characters
_NAMED = 5  # structures in a message


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that a check found.

    Parameters
    ----------
    name : str
        Name of the heuristic, a key of `molequi.data.heuristics.HEURISTICS`.
    severity : {"error", "warning", "info"}
        "error": labels or positions are wrong beyond doubt. "warning": probably a fault; look. "info": a fact
        that one should know.
    message : str
        What was found, what was expected, and what to do.
    origins : tuple of str
        File and frame of the first structures that it concerns.
    count : int
        Number of structures that it concerns.
    """

    name: str
    severity: Severity
    message: str
    origins: tuple[str, ...] = ()
    count: int = 0

    @property
    def where(self) -> str:
        """The first structures, and how many more there are; those of one file share its name."""
        if not self.origins:
            return ""
        more = self.count - len(self.origins)
        split = [origin.rpartition(" ") for origin in self.origins]
        if len(split) > 1 and all(head == split[0][0] and end.isdigit() for head, _, end in split):
            said = f"{split[0][0]} {', '.join(end for _, _, end in split)}"
        else:
            said = ", ".join(self.origins)
        return said + (f" and {more} more" if more > 0 else "")

    def __str__(self) -> str:
        where = f" ({self.where})" if self.origins else ""
        return f"{self.severity} {self.name}: {self.message}{where}"


def finding(
    name: str,
    severity: Severity,
    message: str,
    origins: Sequence[str] = (),
    numbers: Sequence[int] = (),
) -> Finding:
    """A finding about some of the structures.

    Parameters
    ----------
    name, severity, message : str
        As in `Finding`.
    origins : sequence of str
        Where each structure of the data came from.
    numbers : sequence of int
        The structures that it concerns.
    """
    first = tuple(origins[int(k)] for k in list(numbers)[:_NAMED])
    return Finding(name=name, severity=severity, message=message, origins=first, count=len(numbers))


def _wrapped(text: str) -> list[str]:
    """Lines of a text below a row of the table."""
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent="    ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


@dataclass(frozen=True, kw_only=True)
class LintReport:
    """What a lint found.

    ``print(report)`` is a table, and so is the report in a notebook. ``report.raise_if_failed()`` is for
    tests.

    Parameters
    ----------
    findings : tuple of Finding
        Errors first.
    summaries : mapping of str to str
        The labels of each part, as `Dataset.summary` describes them.
    costs : mapping of str to str
        Edges, memory and time of a training, in words; empty if they were not measured.
    structures : int
        Number of structures.
    allowed : tuple of str
        Heuristics that were overruled.
    skipped : mapping of str to str
        Checks that these data do not allow, and why.
    sampled : mapping of str to str
        Checks that looked at some of the structures only, and at how many.
    """

    findings: tuple[Finding, ...]
    summaries: Mapping[str, str] = field(default_factory=dict)
    costs: Mapping[str, str] = field(default_factory=dict)
    structures: int = 0
    allowed: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    sampled: Mapping[str, str] = field(default_factory=dict)

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity.

        Parameters
        ----------
        severity : {"error", "warning", "info"}
            Which.
        """
        return tuple(f for f in self.findings if f.severity == severity)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings of severity "error"."""
        return self.of("error")

    @property
    def passed(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    def raise_if_failed(self) -> None:
        """Raise an error if there are findings of severity "error".

        Raises
        ------
        DataError
            With one line for each of them.
        """
        if self.errors:
            raise DataError("\n".join(map(str, self.errors)))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        found: dict[str, Any] = json_ready(
            {
                "passed": self.passed,
                "structures": self.structures,
                "findings": [asdict(f) for f in self.findings],
                "summaries": dict(self.summaries),
                "costs": dict(self.costs),
                "allowed": self.allowed,
                "skipped": dict(self.skipped),
                "sampled": dict(self.sampled),
            }
        )
        return found

    def to_json(self) -> str:
        """Everything as JSON."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False)

    @property
    def verdict(self) -> str:
        """One sentence: how many findings of each severity."""
        counts = [(s, len(self.of(s))) for s in SEVERITIES]
        words = {"error": "error", "warning": "warning", "info": "note"}
        said = [f"{n} {words[s]}{'s' * (n != 1)}" for s, n in counts if n]
        return f"{self.structures} structures: {', '.join(said) or 'nothing found'}"

    def __str__(self) -> str:
        lines = [self.verdict]
        if self.findings:
            rows = [(f.severity, f.name, str(f.count) if f.count else "") for f in self.findings]
            head = text_table(("severity", "finding", "structures"), rows, left=(0, 1))
            lines += ["", head[0]]
            for line, f in zip(head[1:], self.findings):
                lines += [line, *_wrapped(f.message)] + (_wrapped(f"in {f.where}") if f.origins else [])
        for name, summary in self.summaries.items():
            lines += ["", f"{name}: {summary}"]
        for title, facts in (
            ("cost of a training", self.costs),
            ("not checked", self.skipped),
            ("checked in part", self.sampled),
        ):
            if facts:
                lines += ["", f"{title}:", *(f"  {name}: {text}" for name, text in facts.items())]
        if self.allowed:
            lines += ["", f"allowed: {', '.join(self.allowed)}"]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [
            (f.name, str(f.count) if f.count else "", f.message, f.where, f.severity) for f in self.findings
        ]
        head = ("finding", "structures", "what", "where", "severity")
        table = html_table(head, rows, [_COLOURS[f.severity] for f in self.findings], left=(0, 2, 3))
        facts = dict(self.costs) | ({"allowed": ", ".join(self.allowed)} if self.allowed else {})
        parts = [html_heading("Data lint", self.verdict), table if rows else "", html_facts(facts)]
        parts += [html_details(f"labels: {n}", html_text(text)) for n, text in self.summaries.items()]
        for title, told in (("not checked", self.skipped), ("checked in part", self.sampled)):
            parts += [html_details(title, html_facts(told))] if told else []
        return "".join(parts)

    def to_html(self) -> str:
        """The report as a page of its own, which fetches nothing."""
        style = (
            "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1100px;padding:0 "
            "1em}table{border-collapse:collapse}th,td{padding:4px 14px 4px "
            "0;vertical-align:top;border-bottom:1px solid #d8dde3}details{margin:8px 0}"
        )
        return (
            "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Data "
            f"lint</title><style>{style}</style></head><body>{self._repr_html_()}</body></html>\n"
        )
