"""HTML of results for notebooks: headings, tables and lists of facts, without colours of their own.

Text takes the colours of the notebook, so it is readable in light and in dark themes. All arguments are plain
text and are escaped here.
"""

import html
from collections.abc import Container, Mapping, Sequence

# Colours of verdicts; the contrast with white and with the usual dark backgrounds is 4 or more.
HOLDS, FAILS, UNKNOWN = "#388e3c", "#e53935", "#7f7f7f"
_LEFT = "text-align:left"


def html_heading(title: str, summary: str = "") -> str:
    """A title and a summary in bold, for the place above a table.

    Parameters
    ----------
    title, summary : str
        Plain text.
    """
    bold = f"<br><b>{html.escape(summary)}</b>" if summary else ""
    return f"<p>{html.escape(title)}{bold}</p>"


def html_text(text: str) -> str:
    """A paragraph that keeps the line breaks of a text.

    Parameters
    ----------
    text : str
        Plain text.
    """
    return f'<p style="white-space:pre-wrap">{html.escape(text)}</p>'


def html_table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    colours: Sequence[str] | None = None,
    *,
    left: Container[int] = (0,),
) -> str:
    """A table.

    Parameters
    ----------
    head : sequence of str
        Names of the columns.
    rows : sequence of sequences of str
        Cells of each row.
    colours : sequence of str, optional
        The colour of the text in the last cell of each row, which is then left-aligned.
    left : container of int
        Columns that are left-aligned; the others are right-aligned.

    Returns
    -------
    str
        HTML.

    Examples
    --------
    >>> "&lt;b&gt;" in html_table(["a"], [["<b>"]])
    True
    """
    last = len(head) - 1
    styles = [
        _LEFT if k in left or (colours is not None and k == last) else "text-align:right"
        for k in range(len(head))
    ]
    top = "".join(f'<th style="{style}">{html.escape(name)}</th>' for name, style in zip(head, styles))
    lines = []
    for number, row in enumerate(rows):
        found = list(styles)
        if colours is not None:
            found[last] += f";color:{colours[number]}"
        cells = [f'<td style="{style}">{html.escape(cell)}</td>' for cell, style in zip(row, found)]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def html_facts(facts: Mapping[str, str]) -> str:
    """A table of two columns, a name and a text; facts without a text are left out.

    Parameters
    ----------
    facts : mapping of str to str
        Texts by name.
    """
    lines = [
        f'<tr><th style="{_LEFT};vertical-align:top">{html.escape(name)}</th>'
        f'<td style="{_LEFT}">{html.escape(text)}</td></tr>'
        for name, text in facts.items()
        if text
    ]
    return f"<table><tbody>{''.join(lines)}</tbody></table>" if lines else ""


def html_details(title: str, content: str) -> str:
    """Something that is shown after a click.

    Parameters
    ----------
    title : str
        Plain text that is always shown.
    content : str
        HTML that is shown after a click on the title.
    """
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def some(names: Sequence[str], most: int = 12) -> str:
    """The first of many names, and how many more there are.

    Parameters
    ----------
    names : sequence of str
        The names.
    most : int
        Largest number of names in the text.

    Examples
    --------
    >>> some(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    text = ", ".join(names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most} more"


def shorten(text: str, most: int) -> str:
    """The beginning of a long text, which then ends in an ellipsis.

    Parameters
    ----------
    text : str
        The text.
    most : int
        Largest number of characters of the result.

    Examples
    --------
    >>> shorten("abcdef", 4)
    'abc…'
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"


def as_html(value: object) -> str:
    """The HTML of an object that has some, and the escaped text of any other.

    Parameters
    ----------
    value : object
        Anything that can be printed.
    """
    made = getattr(value, "_repr_html_", None)
    return html_text(str(value)) if made is None else str(made())


def html_page(title: str, body: str) -> str:
    """A whole page.

    Parameters
    ----------
    title : str
        Plain text.
    body : str
        HTML.
    """
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'</head><body style="font-family:sans-serif">{body}</body></html>\n'
    )
