"""Results that a notebook and an interpreter show as their summary."""

from molequi.util.html import html_text


class Summary:
    """Base of results: shown as printed, without the arrays that they hold.

    A dataclass that derives from it has ``repr=False``.
    """

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return html_text(str(self))
