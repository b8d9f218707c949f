"""The report of `molequi.check_engines`: a table of checks and engines."""

from collections.abc import Mapping
from dataclasses import dataclass

from molequi.util.html import html_heading, html_table, html_text
from molequi.util.tables import text_table


@dataclass(frozen=True)
class Measured:
    """What one check found of one engine.

    Parameters
    ----------
    value : float or None
        The largest error; None if the check does not apply.
    tolerance : float
        The largest value that passes.
    unit : str
        Unit of both; empty for relative errors.
    note : str
        The error that ended the check, which has then failed.
    """

    value: float | None
    tolerance: float
    unit: str = ""
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether there was no error, and the value is within the tolerance."""
        return not self.note and (self.value is None or self.value <= self.tolerance)

    @property
    def text(self) -> str:
        """The value, with a mark if it fails."""
        if self.note:
            return "error"
        number = "-" if self.value is None else f"{self.value:.1e}"
        return number if self.passed else f"{number} !"


@dataclass(frozen=True)
class EngineReport:
    """Checks of a model through several engines. Printed, a table; ``-`` does not apply, ``!`` fails.

    Parameters
    ----------
    engines : mapping of str to mapping of str to Measured
        What was found, by engine and check.
    missing : mapping of str to str
        Engines that are not installed, and how to install them.
    structures : tuple of str
        Formulas of the structures.
    """

    engines: Mapping[str, Mapping[str, Measured]]
    missing: Mapping[str, str]
    structures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether all checks of all installed engines pass."""
        return all(one.passed for found in self.engines.values() for one in found.values())

    def _table(self) -> tuple[list[str], list[list[str]]]:
        names = list(self.engines)
        checks = next(iter(self.engines.values()), {})
        head = ["check", *names, "tolerance"]
        return head, [
            [
                check,
                *(self.engines[name][check].text for name in names),
                f"{one.tolerance:g} {one.unit}".strip(),
            ]
            for check, one in checks.items()
        ]

    def _title(self) -> str:
        state = "all checks pass" if self.passed else "FAILED"
        return f"{len(self.engines)} engines with {', '.join(self.structures)}: {state}"

    def _notes(self) -> str:
        lines = [f"{name} is not installed: {how}" for name, how in self.missing.items()]
        lines += [
            f"{engine}, {check}: {one.note}"
            for engine, found in self.engines.items()
            for check, one in found.items()
            if one.note
        ]
        return "\n".join(lines)

    def __str__(self) -> str:
        return "\n".join(filter(None, [self._title(), *text_table(*self._table()), self._notes()]))

    def _repr_html_(self) -> str:
        notes = html_text(self._notes()) if self._notes() else ""
        return html_heading(self._title()) + html_table(*self._table()) + notes

    __repr__ = __str__
