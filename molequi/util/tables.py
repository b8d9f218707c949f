"""Tables of findings, as text and as HTML."""

import html
import math
from collections.abc import Container, Sequence
from typing import Any

HOLDS, FAILS, UNKNOWN = "#2e7d32", "#c62828", "#757575"  # colours of verdicts


def text(head: Sequence[str], rows: Sequence[Sequence[str]], left: Container[int] = (0,)) -> list[str]:
    """Lines of columns, the head first; those of the numbers `left` are flush left, the others flush right."""
    table = [list(head), *map(list, rows)]
    widths = [max(len(line[k]) for line in table) for k in range(len(head))]
    return [
        "  ".join(
            c.ljust(w) if k in left else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths))
        ).rstrip()
        for line in table
    ]


def heading(title: str, summary: str) -> str:
    """What stands above a table in a notebook."""
    return f"<p>{html.escape(title)}<br><b>{html.escape(summary)}</b></p>"


def markup(head: Sequence[str], rows: Sequence[Sequence[str]], colours: Sequence[str] | None = None) -> str:
    """A table for a notebook. colours: of the last cell of each row, which holds words then."""
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = []
    for k, row in enumerate(rows):
        cells = [f"<td>{html.escape(cell)}</td>" for cell in row]
        if colours is not None:
            cells[-1] = f'<td style="text-align:left;color:{colours[k]}">{html.escape(row[-1])}</td>'
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def finite(value: Any) -> Any:
    """What JSON can hold, of mappings and sequences too: null for numbers that are not finite."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
