"""The symmetry report: which group a model declares, what was measured, on which structures and for which weights."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from molequi.errors import CheckpointError, ModelError
from molequi.graph import Graph
from molequi.symmetry import Group, group
from molequi.util.digests import weights_digest
from molequi.util.tables import text

_FLOATS = ("vel", "vec", "x", "pair_attr")


@dataclass(frozen=True, kw_only=True)
class SymmetryReport:
    """What a model file says of the symmetry of its model.

    group: declared. checks: of each check (rotation, …) the largest relative error over all quantities, as `audit` defines it, by the way
    it was computed: "float64", "float32", and "own", the model as it is used: in its precision, compiled if `accelerated`.
    failed: checks above the tolerance in float64. quantities: of which anything could be measured. own: the precision that it is used in;
    unusable: why it cannot be computed there, empty if it can. structures: on which, in a form that JSON holds; `graphs` makes them again.
    weights: SHA-256 of all numbers of the model. draws, seed, molequi, date: how, with which version, when.
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
        """Nothing failed, and something was measured."""
        return not self.failed and bool(self.quantities)

    @property
    def declared(self) -> Group:
        """The declared group, to be compared with others."""
        return group(self.group, len(self.structures[0]["pos"][0]))

    @property
    def graphs(self) -> list[Graph]:
        """The structures that it was measured on."""
        made = []
        for row in self.structures:
            given = {k: torch.tensor(v, dtype=torch.float64) for k, v in row.items() if k in _FLOATS}
            if "pair_index" in row:
                given["pair_index"] = torch.tensor(row["pair_index"])
            made.append(
                Graph.single(
                    torch.tensor(row["pos"], dtype=torch.float64),
                    torch.tensor(row["z"]),
                    **{k: row[k] for k in ("cell", "pbc", "charge", "spin") if k in row},
                    **given,
                )
            )
        return made

    def verify(self, model: nn.Module) -> "SymmetryReport":
        """The report itself if it was made for the weights of this model. Raises ModelError if they are others."""
        found = weights_digest(model.state_dict())
        if found != self.weights:
            raise ModelError(
                f"the symmetry report was made on {self.date} for other weights ({self.weights[:12]}…; the model has {found[:12]}…): "
                "what it says was not measured on this model; measure it anew with audit.symmetry_report"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` is the way back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "SymmetryReport":
        """Raises CheckpointError for what is no report."""
        names = {f.name for f in fields(cls)}
        if not isinstance(record, Mapping) or set(record) != names:
            found = sorted(record) if isinstance(record, Mapping) else type(record).__name__
            raise CheckpointError(
                f"the symmetry report of the file has {found}; wanted {sorted(names)}; measure it anew with audit.symmetry_report"
            )
        return cls(**record)

    def __str__(self) -> str:
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
        lines = text(("check", *names), rows) + (
            [f"as used ({self.own}): {self.unusable}"] if self.unusable else []
        )
        verdict = (
            f"FAILED: {', '.join(self.failed)}"
            if self.failed
            else "passed"
            if self.passed
            else "nothing was measured"
        )
        return "\n".join(
            [
                f"symmetry report: declared {self.group}; {verdict}; largest relative errors on {len(self.structures)} structures, "
                f"{self.draws} draws each; molequi {self.molequi}, {self.date}",
                *lines,
            ]
        )


def record_of(graph: Graph) -> dict[str, Any]:
    """A single structure as JSON holds it, every digit of it."""
    record: dict[str, Any] = {"pos": graph.pos.tolist(), "z": graph.z.tolist()}
    for name in (*_FLOATS, "pair_index"):
        if getattr(graph, name) is not None:
            record[name] = getattr(graph, name).tolist()
    for name in ("cell", "pbc", "charge", "spin"):
        value: Tensor | None = getattr(graph, name)
        if value is not None:
            record[name] = value[0].tolist()
    return record
