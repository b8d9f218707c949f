"""The symmetry report of a model file.

It holds the declared group, the measured errors, the structures on which they were measured, and a digest of
the weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import nn

from molequi.errors import CheckpointError, ModelError
from molequi.graph import FIELDS, Graph
from molequi.symmetry import Group, group
from molequi.util.digests import weights_digest
from molequi.util.html import html_heading, html_table, html_text
from molequi.util.tables import text_table


@dataclass(frozen=True, kw_only=True)
class SymmetryReport:
    """The measured symmetry of a model, kept in its file.

    Parameters
    ----------
    group : str
        The group that the model declares.
    checks : mapping of str to mapping of str to float
        The largest relative error of each check over all quantities, as `audit` defines it, in "float64", in
        "float32", and under "own" for the model as it is used: in its own precision, compiled if
        `accelerated`. None: not finite.
    failed : sequence of str
        Checks above the tolerance in float64.
    quantities : sequence of str
        Quantities for which something could be measured.
    own : str
        The precision in which the model is used.
    unusable : str
        Why the model cannot be computed in that precision; empty if it can.
    accelerated : bool
        Whether the model was compiled.
    weights : str
        SHA-256 of all numbers of the model, see `util.digests.weights_digest`.
    structures : sequence of mappings
        The structures, as JSON holds them; `graphs` has them as Graphs.
    draws, seed : int
        Random transforms of each structure, and their seed.
    molequi, date : str
        Version of molequi and time.
    """

    group: str
    checks: Mapping[str, Mapping[str, float | None]]
    failed: Sequence[str]
    quantities: Sequence[str]
    own: str
    unusable: str
    accelerated: bool
    weights: str
    structures: Sequence[Mapping[str, Any]] = field(repr=False)
    draws: int
    seed: int
    molequi: str
    date: str

    @property
    def passed(self) -> bool:
        """Whether nothing failed and something was measured."""
        return not self.failed and bool(self.quantities)

    @property
    def declared(self) -> Group:
        """The declared group as a `Group`."""
        return group(self.group, len(self.structures[0]["pos"][0]))

    @property
    def graphs(self) -> list[Graph]:
        """The structures on which the symmetry was measured."""
        return [Graph.single(**row) for row in self.structures]

    def verify(self, model: nn.Module) -> "SymmetryReport":
        """Check that the report was made for the weights of a model, and return the report itself.

        Only the digests of the weights are compared, nothing is measured. `molequi.audit.verify` and
        ``molequi info --verify`` also measure the symmetry again.

        Parameters
        ----------
        model : Module
            The model of the file. The report of one with a Laplace approximation is that of the trained model
            (``mean_model``), which predicts the same.

        Raises
        ------
        ModelError
            If the weights are different.
        """
        found = weights_digest(getattr(model, "mean_model", model).state_dict())
        if found != self.weights:
            raise ModelError(
                f"the symmetry report was made on {self.date} for other weights ({self.weights[:12]}…; the "
                f"model has {found[:12]}…), so it does not describe this model; measure it again with "
                "audit.symmetry_report"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "SymmetryReport":
        """The report from what `to_dict` returned.

        Parameters
        ----------
        record : mapping
            All fields by name.

        Raises
        ------
        CheckpointError
            If fields are missing or unknown.
        """
        names = {f.name for f in fields(cls)}
        if not isinstance(record, Mapping) or set(record) != names:
            found = sorted(record) if isinstance(record, Mapping) else type(record).__name__
            raise CheckpointError(
                f"the symmetry report of the file has {found}; wanted {sorted(names)}; measure it again "
                "with audit.symmetry_report"
            )
        return cls(**record)

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Head and rows: the largest error of each check in each precision."""

        def number(value: float | str | None) -> str:
            return "not finite" if value is None else value if isinstance(value, str) else f"{value:.1e}"

        ways = [way for way in ("float64", "float32", "own") if self.checks.get(way)]
        names = [
            f"as used ({self.own}{', compiled' if self.accelerated else ''})" if way == "own" else way
            for way in ways
        ]
        rows = [
            (check, *[number(self.checks[way].get(check, "")) for way in ways])
            for check in dict.fromkeys(c for way in ways for c in self.checks[way])
        ]
        return ("check", *names), rows

    @property
    def verdict(self) -> str:
        """The verdict in words: "passed", "FAILED" with the checks, or "nothing was measured"."""
        if self.failed:
            return f"FAILED: {', '.join(self.failed)}"
        return "passed" if self.passed else "nothing was measured"

    def _measured_on(self) -> str:
        return (
            f"largest relative errors on {len(self.structures)} structures, {self.draws} draws each; molequi "
            f"{self.molequi}, {self.date}"
        )

    def _caution(self) -> str:
        return f"as used ({self.own}): {self.unusable}" if self.unusable else ""

    def __str__(self) -> str:
        title = f"symmetry report: declared {self.group}; {self.verdict}; {self._measured_on()}"
        return "\n".join(filter(None, [title, *text_table(*self._table()), self._caution()]))

    def _repr_html_(self) -> str:
        title = f"symmetry report: declared {self.group}; {self._measured_on()}"
        caution = html_text(self._caution()) if self.unusable else ""
        return html_heading(title, self.verdict) + html_table(*self._table()) + caution

    __repr__ = __str__


def record_of(graph: Graph) -> dict[str, Any]:
    """A structure as plain values for JSON, with all digits.

    Parameters
    ----------
    graph : Graph
        A single structure.

    Returns
    -------
    dict
        The arguments of `Graph.single`.
    """
    record = {
        name: (value[0] if FIELDS[name].per == "graph" else value).tolist()
        for name, value in graph.values("node", "graph", "pair").items()
    }
    if graph.pair_index is not None:
        record["pair_index"] = graph.pair_index.tolist()
    return record
