"""Which symmetry a model has, if nobody says: the largest group of a ladder that holds, and by how much the others fail."""

import json
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from molequi.audit.equivariance import by_element
from molequi.audit.foreign import BlackBox, as_auditable
from molequi.audit.report import Row, Tolerances
from molequi.audit.study import Study, check_draws, structures_of
from molequi.errors import ConfigError
from molequi.symmetry import Group, Transform
from molequi.util.tables import FAILS, HOLDS, html_heading, html_table, json_ready, text_table

STEP = 1e-3  # rad, of the small turns that show an axis; Richardson leaves an error of STEP⁴
ORDER = ("Ih", "I", "Oh", "O", "Td", "Th", "T")  # finite groups, the largest first


@dataclass(frozen=True, kw_only=True)
class Symmetries:
    """What holds: `group` is the largest of the ladder. rows: the error of each rung and quantity, relative; axis: of "O(n-1)", if one is left."""

    model: str
    group: Group
    permutations: bool
    rows: tuple[Row, ...]
    structures: int
    draws: int
    seed: int

    @property
    def axis(self) -> tuple[float, ...] | None:
        return self.group.axis

    def holds(self, rung: str) -> bool:
        """Whether a rung such as "SO(n)", "reflections" or "Td" holds for all quantities. Raises ConfigError for one that is not there."""
        rows = [r for r in self.rows if r.check == rung]
        if not rows:
            raise ConfigError(
                f"rung {rung!r}: there are {', '.join(dict.fromkeys(r.check for r in self.rows))}"
            )
        return all(r.verdict == "pass" for r in rows)

    @property
    def summary(self) -> str:
        kept = (
            "translations and permutations"
            if self.group.translations and self.permutations
            else (
                "permutations, not translations"
                if self.permutations
                else "translations, not permutations"
                if self.group.translations
                else "neither translations nor permutations"
            )
        )
        name = str(Group(name=self.group.name, dim=self.group.dim, axis=self.group.axis))
        return f"largest group of the ladder that holds: {'the identity' if self.group.name == 'C1' else name}; {kept}"

    def to_json(self) -> str:
        rows = [json_ready(asdict(r)) for r in self.rows]
        head = {
            "model": self.model,
            "group": asdict(self.group),
            "permutations": self.permutations,
            "structures": self.structures,
            "draws": self.draws,
            "seed": self.seed,
        }
        return json.dumps(head | {"rows": rows}, indent=1, allow_nan=False)

    @property
    def title(self) -> str:
        return f"{self.model}; {self.structures} structures, {self.draws} draws each, seed {self.seed}"

    def _lines(self) -> list[tuple[str, ...]]:
        return [
            (
                r.check,
                r.quantity,
                f"{r.median:.1e}",
                f"{r.maximum:.1e}",
                "" if r.float32 is None else f"{r.float32:.1e}",
                "yes" if r.verdict == "pass" else "no",
            )
            for r in self.rows
        ]

    def __str__(self) -> str:
        return "\n".join([self.title, *text_table(_HEAD, self._lines(), (0, 1)), self.summary])

    def _repr_html_(self) -> str:
        colours = [HOLDS if r.verdict == "pass" else FAILS for r in self.rows]
        return html_heading(self.title, self.summary) + html_table(_HEAD, self._lines(), colours)


_HEAD = ("rung", "of", "median", "largest", "float32", "holds")


def symmetries(
    model: nn.Module,
    structures,
    *,
    draws: int = 8,
    seed: int = 0,
    limit: int = 8,
    tolerance: float | None = None,
) -> Symmetries:
    """The largest group that a model has on these structures: E(n), SE(n), O(2) about an axis that is found, point groups, T(n), S_N.

    model, structures: as in `audit`; what the model declares is not asked. The axis is the direction whose small turns change least; the
    finite groups stand with their two-fold axes along x, y, z, so that only a model broken by such a frame (by a grid, say) keeps one.
    draws: elements of each group and structure. tolerance: largest relative error that holds, 1e-9, or 1e-4 for a black box in float32.
    Raises as `audit` does, and ConfigError if the model is zero or constant, which has every symmetry.
    """
    model = as_auditable(model)
    check_draws(draws)
    used, _ = structures_of(structures, limit)
    rough = isinstance(model, BlackBox) and model.precision == "float32"
    allowed = tolerance or (1e-4 if rough else Tolerances().symmetry)
    dim = used[0].dim
    study = Study(
        model,
        used,
        draws=draws,
        seed=seed,
        tolerance=Tolerances(symmetry=allowed),
        declared=Group(name="O(n)", dim=dim),
    )
    if not study.alive:
        raise ConfigError(
            "every output is zero, or the same however the atoms stand, which has every symmetry; nothing can be found"
        )
    rows: list[Row] = []

    def rung(name: str, make) -> bool:
        found = by_element(study, name, "", make)
        rows.extend(found)
        return all(r.verdict == "pass" for r in found)

    def turns(name: str, group: Group, proper: bool) -> bool:
        return rung(name, lambda g: Transform.random(group, proper=proper, generator=study.generator))

    moves = rung(
        "translations",
        lambda g: Transform.single(
            translation=torch.randn(dim, generator=study.generator, dtype=torch.float64)
        ),
    )
    swaps = rung(
        "permutations",
        lambda g: Transform.single(permutation=torch.randperm(g.num_nodes, generator=study.generator)),
    )
    every, axis = Group(name="O(n)", dim=dim), None
    proper, mirrors = turns("rotations", every, True), turns("reflections", every, False)
    if proper:
        name = "O(n)" if mirrors else "SO(n)"
    else:
        name = "C1"
        if dim == 3:
            about = Group(name="O(n-1)", axis=tuple(_axis(study).tolist()))
            round_, flat = turns("about an axis", about, True), turns("mirrors with the axis", about, False)
            if round_:
                name, axis = "O(n-1)" if flat else "SO(n-1)", about.axis
            else:
                name = next(
                    (
                        point
                        for point in ORDER
                        if turns(point, Group(name=point), True)
                        and (
                            not Group(name=point).improper
                            or turns(f"{point}, improper", Group(name=point), False)
                        )
                    ),
                    "C1",
                )
    return Symmetries(
        model=type(model).__name__,
        group=Group(name=name, dim=dim, translations=moves, axis=axis),
        permutations=swaps,
        rows=tuple(rows),
        structures=len(used),
        draws=draws,
        seed=seed,
    )


def _axis(study: Study) -> Tensor:
    """The direction about which small turns change least: of L_k f for the three turns, the null direction of ⟨L_k f, L_l f⟩."""
    graphs = [c.graph for c in study.cases if c.draw < 2]
    columns = []
    for k in range(3):
        turn = torch.linalg.cross(
            torch.eye(3, dtype=torch.float64)[k].expand(3, 3), torch.eye(3, dtype=torch.float64)
        ).T  # K v = e_k × v
        slopes = []
        for step in (STEP, 2 * STEP):
            plus, minus = (
                Transform.single(rotation=torch.linalg.matrix_exp(sign * step * turn)) for sign in (1.0, -1.0)
            )
            ahead, back = (
                study.double([e.graph(g) for g in graphs], study.quantities) for e in (plus, minus)
            )
            slopes.append(
                torch.cat(
                    [
                        (
                            (minus.value(q, a[name]) - plus.value(q, b[name]))
                            / (2 * step * study.scale[name])
                        ).flatten()
                        for name, q in study.alive.items()
                        for a, b in zip(ahead, back)
                    ]
                ).nan_to_num(0.0, 0.0, 0.0)
            )
        columns.append((4 * slopes[0] - slopes[1]) / 3)
    return torch.linalg.svd(torch.stack(columns, dim=1), full_matrices=False).Vh[2]
