"""Tables of findings, as text and as HTML."""

import html
import math
from collections.abc import Sequence
from typing import Any


def text(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns; the first is flush left, numbers flush right."""
    table = [list(head), *map(list, rows)]
    widths = [max(len(line[k]) for line in table) for k in range(len(head))]
    return ["  ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths))).rstrip() for line in table]


def markup(title: str, summary: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for notebooks."""
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return (f"<p>{html.escape(title)}<br><b>{html.escape(summary)}</b></p>"
            f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>")


def finite(value: Any) -> Any:
    """What JSON can hold: null for numbers that are not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
