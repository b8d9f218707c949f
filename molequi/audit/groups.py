"""The largest group under which a model is equivariant, found without what the model declares."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from molequi.audit.equivariance import by_transform
from molequi.audit.foreign import BlackBox, as_auditable
from molequi.audit.report import Row, Tolerances
from molequi.audit.study import Study, check_draws, structures_of
from molequi.checkpoint import check_order
from molequi.errors import ConfigError
from molequi.graph import Graph
from molequi.symmetry import Group, Transform
from molequi.util.html import FAILS, HOLDS, html_heading, html_table
from molequi.util.signature import check_keywords
from molequi.util.tables import json_ready, text_table

STEP = 1e-3  # rad, of the small rotations that show an axis; the extrapolation leaves an error of STEP⁴
ORDER = ("Ih", "I", "Oh", "O", "Td", "Th", "T")  # finite groups, the largest first


@dataclass(frozen=True, kw_only=True)
class Symmetries:
    """The largest group that holds, and the errors of all candidates.

    Parameters
    ----------
    model : str
        Name of the class of the model.
    group : Group
        The largest group that holds.
    permutations : bool
        Whether permutations hold.
    rows : tuple of Row
        The relative error of each subgroup and quantity.
    structures, draws, seed : int
        Number of structures, random transforms of each, and their seed.
    """

    model: str
    group: Group
    permutations: bool
    rows: tuple[Row, ...]
    structures: int
    draws: int
    seed: int

    @property
    def axis(self) -> tuple[float, ...] | None:
        """The axis of O(n-1) or SO(n-1); None for other groups."""
        return self.group.axis

    def holds(self, subgroup: str) -> bool:
        """Whether a subgroup holds for all quantities.

        Parameters
        ----------
        subgroup : str
            A name in the first column of the table, such as "rotations", "reflections" or "Td".

        Raises
        ------
        ConfigError
            If it was not measured.
        """
        rows = [r for r in self.rows if r.check == subgroup]
        if not rows:
            known = ", ".join(dict.fromkeys(r.check for r in self.rows))
            raise ConfigError(f"subgroup {subgroup!r} was not measured; there are {known}")
        return all(r.verdict == "pass" for r in rows)

    @property
    def summary(self) -> str:
        """The group in one line."""
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
        found = "the identity" if self.group.name == "C1" else name
        return f"largest group that holds: {found}; {kept}"

    def to_json(self) -> str:
        """Everything as JSON."""
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
        """Model, number of structures, draws and seed in one line."""
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
        return html_heading(self.title, self.summary) + html_table(_HEAD, self._lines(), colours, left=(0, 1))

    __repr__ = __str__


_HEAD = ("subgroup", "of", "median", "largest", "float32", "holds")


@check_keywords()
def symmetries(
    model: object,
    structures: object,
    *,
    draws: int = 8,
    seed: int = 0,
    limit: int = 8,
    tolerance: float | None = None,
) -> Symmetries:
    """Find the largest group under which a model is equivariant on these structures.

    The candidates are E(n), SE(n), O(2) and SO(2) about an axis that is found, point groups, translations and
    permutations. What the model declares is not used. The axis is the direction whose small rotations change
    the outputs least. The two-fold axes of the point groups are along x, y and z, so only a model that is
    broken by this frame (by a grid, for instance) keeps one of them.

    Parameters
    ----------
    model : Model, Ensemble, Declared, BlackBox or ASE calculator
        Whatever `audit` takes.
    structures : Dataset, Graph, ase.Atoms, list of these, or path
        Whatever `audit` takes.
    draws : int
        Random transforms of each group and structure.
    seed : int
        Seed of the random transforms.
    limit : int
        At most so many structures are used, spread evenly.
    tolerance : float, optional
        The largest relative error of a symmetry that holds; 1e-9, or 1e-4 for a calculator in float32.

    Returns
    -------
    Symmetries
        The group and the errors of all candidates.

    Raises
    ------
    ConfigError
        If all outputs are zero or constant, so that every symmetry holds.

    Examples
    --------
    >>> import molequi as mq
    >>> water = mq.Graph.single([[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]], ["O", "H", "H"])
    >>> model = mq.Model(mq.EGNN(elements=["H", "O"], channels=8, layers=1), ["energy"])
    >>> print(mq.symmetries(model, [water], draws=2).group)
    O(3)
    """
    check_order("symmetries", model, structures)
    auditable = as_auditable(model)
    check_draws(draws)
    used, _ = structures_of(structures, limit, auditable)
    rough = isinstance(auditable, BlackBox) and auditable.precision == "float32"
    allowed = tolerance or (1e-4 if rough else Tolerances().symmetry)
    dim = used[0].dim
    study = Study(
        auditable,
        used,
        draws=draws,
        seed=seed,
        tolerance=Tolerances(symmetry=allowed),
        declared=Group(name="O(n)", dim=dim),
    )
    if not study.measurable:
        raise ConfigError("all outputs are zero or constant, so every symmetry holds and none can be found")
    search = _Search(study)
    translations, permutations = search.translations(dim), search.permutations()
    name, axis = search.rotations(dim)
    return Symmetries(
        model=type(model).__name__,
        group=Group(name=name, dim=dim, translations=translations, axis=axis),
        permutations=permutations,
        rows=tuple(search.rows),
        structures=len(used),
        draws=draws,
        seed=seed,
    )


class _Search:
    """Measures one subgroup after the other and keeps their rows."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.rows: list[Row] = []

    def _holds(self, name: str, make: Callable[[Graph], Transform]) -> bool:
        found = by_transform(self.study, name, "", make)
        self.rows.extend(found)
        return all(row.verdict == "pass" for row in found)

    def _sampled(self, name: str, group: Group, *, proper: bool) -> bool:
        generator = self.study.generator
        return self._holds(name, lambda g: Transform.random(group, proper=proper, generator=generator))

    def translations(self, dim: int) -> bool:
        """Whether translations hold."""
        generator = self.study.generator
        return self._holds(
            "translations",
            lambda g: Transform.single(
                translation=torch.randn(dim, generator=generator, dtype=torch.float64)
            ),
        )

    def permutations(self) -> bool:
        """Whether permutations hold."""
        generator = self.study.generator
        return self._holds(
            "permutations",
            lambda g: Transform.single(permutation=torch.randperm(g.num_nodes, generator=generator)),
        )

    def rotations(self, dim: int) -> tuple[str, tuple[float, ...] | None]:
        """Name and axis of the largest subgroup of O(n) that holds."""
        every = Group(name="O(n)", dim=dim)
        proper = self._sampled("rotations", every, proper=True)
        reflections = self._sampled("reflections", every, proper=False)
        if proper:
            return ("O(n)" if reflections else "SO(n)"), None
        if dim != 3:
            return "C1", None
        about = Group(name="O(n-1)", axis=tuple(_axis(self.study).tolist()))
        round_axis = self._sampled("about an axis", about, proper=True)
        mirrors = self._sampled("mirrors with the axis", about, proper=False)
        if round_axis:
            return ("O(n-1)" if mirrors else "SO(n-1)"), about.axis
        return next((name for name in ORDER if self._point_group(name)), "C1"), None

    def _point_group(self, name: str) -> bool:
        group = Group(name=name)
        return self._sampled(name, group, proper=True) and (
            not group.improper or self._sampled(f"{name}, improper", group, proper=False)
        )


def _axis(study: Study) -> Tensor:
    """The axis of the small rotations that change the outputs least: the direction n that minimizes
    Σ_kl n_k n_l ⟨L_k f, L_l f⟩, where L_k f is the change under a rotation about axis k.
    """
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
                        for name, q in study.measurable.items()
                        for a, b in zip(ahead, back)
                    ]
                ).nan_to_num(0.0, 0.0, 0.0)
            )
        columns.append((4 * slopes[0] - slopes[1]) / 3)
    return torch.linalg.svd(torch.stack(columns, dim=1), full_matrices=False).Vh[2]
