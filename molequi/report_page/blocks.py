"""What a section of a report page is made of."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from molequi.plotting.figure import Figure
from molequi.report_page.words import Finding


@dataclass(frozen=True)
class Block:
    """A paragraph, heading, table, picture, list of findings or text in a fixed font.

    Parameters
    ----------
    kind : str
        Which of these.
    value : object
        Its content.
    title : str
        Text that stands for a picture.
    """

    kind: str
    value: Any
    title: str = ""


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Parameters
    ----------
    id : str
        Its anchor.
    title : str
        Its heading.
    what : str
        One sentence that says what to look for, and what is good.
    blocks : sequence of Block
        Its content.
    """

    id: str
    title: str
    what: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Cell:
    """A cell of a table that stands out.

    Parameters
    ----------
    text : str
        Its text.
    high : bool
        Whether it stands out.
    """

    text: str
    high: bool


@dataclass(frozen=True)
class Table:
    """A table.

    Parameters
    ----------
    head : sequence of str
        Names of the columns.
    rows : sequence of sequence
        Cells: texts, or `Cell`.
    left : int
        So many columns on the left are texts.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    left: int = 1


def text(value: str) -> Block:
    """A paragraph.

    Parameters
    ----------
    value : str
        Plain text.
    """
    return Block("text", value)


def heading(value: str) -> Block:
    """A heading within a section.

    Parameters
    ----------
    value : str
        Plain text.
    """
    return Block("heading", value)


def marks(value: Sequence[Finding]) -> Block:
    """A list of findings.

    Parameters
    ----------
    value : sequence of Finding
        The findings.
    """
    return Block("findings", value)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], left: int = 1) -> Block:
    """A table.

    Parameters
    ----------
    head : sequence of str
        Names of the columns.
    rows : sequence of sequence
        Cells.
    left : int
        So many columns on the left are texts.
    """
    return Block("table", Table(head, rows, left))


def picture(figure: Figure, title: str) -> Block:
    """A picture, inside of the page.

    Parameters
    ----------
    figure : Figure
        The figure.
    title : str
        What it shows.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Block("picture", f"data:image/png;base64,{data}", title)
