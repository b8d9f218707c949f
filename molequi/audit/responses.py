"""Sum rules of responses to an electric field: Born charges and polarizabilities, in float64.

With the dipole μ, the Born charges Z_n,ab = ∂μ_a/∂r_nb, the polarizability α = ∂μ/∂F, and the total charge Q:

    acoustic:   Σ_n Z_n,ab = Q δ_ab,                    because a translation t adds Q t to the dipole;
    rotation:   Σ_n Z_n (ω × r_n) + α (ω × F) = ω × μ,  because the dipole turns with structure and field;
    symmetry:   α_ab = α_ba,                            because both are -∂²E/∂F_a ∂F_b.

The first one is that of Pick, Cohen and Martin (Phys. Rev. B 1, 910, 1970).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from molequi.audit.report import Deviation, Row, measured, skipped
from molequi.audit.study import FIELD, Case, Study, Subject
from molequi.errors import ModelError
from molequi.graph import FIELDS, Graph
from molequi.quantities import KNOWN, Quantity, completed

CHECK = "sum rules"
_EPSILON = torch.zeros(3, 3, 3, dtype=torch.float64)
_EPSILON[[0, 1, 2], [1, 2, 0], [2, 0, 1]], _EPSILON[[0, 1, 2], [2, 0, 1], [1, 2, 0]] = 1.0, -1.0


@dataclass(frozen=True)
class _Responses:
    """Dipole, Born charges and polarizability of one case; None where the model has none."""

    case: Case
    dipole: Tensor | None
    born: Tensor | None
    polarizability: Tensor | None


def sum_rules(study: Study) -> Iterator[Row]:
    """Born charges add up to the total charge, dipoles turn with the structure, and polarizabilities are
    symmetric. What the model does not predict is taken as the derivative of its dipole.
    """
    known = study.quantities
    if "dipole" not in known and not {"born_charges", "polarizability"} & set(known):
        return
    if study.structures[0].dim != 3:
        yield skipped(CHECK, "", "wanted structures in three dimensions")
        return
    found = _responses(study)
    yield _acoustic(study, found)
    yield _rotation(study, found)
    errors = [
        (_relative(r.polarizability - r.polarizability.T, r.polarizability.norm()), *_place(r))
        for r in found
        if r.polarizability is not None
    ]
    if errors:
        yield measured(CHECK, "polarizability", errors, study.tolerance.symmetry, element="symmetry")


def _responses(study: Study) -> list[_Responses]:
    """The responses of each case. Derivatives of the dipole are taken without the symmetry that is declared,
    which would hide what is wrong.
    """
    model: Any = study.double.model
    wanted = {n: q for n, q in study.quantities.items() if n in _NAMES}
    if "dipole" in wanted and hasattr(model, "predicting") and "dipole" not in getattr(model, "stds", {}):
        for name in ("born_charges", "polarizability"):
            if name in getattr(model, "heads", {}) or (name == "polarizability" and not study.in_field):
                continue
            declaration = completed({"name": name, "gradient_of": "dipole"}) | {"symmetry": ""}
            try:
                model = model.predicting(
                    [*(q for q in wanted.values() if q.name != name), Quantity(**declaration)]
                )
            except ModelError:
                continue
            wanted[name] = KNOWN[name]
    graphs = [c.graph for c in study.cases]
    values = Subject(model, None)(graphs, wanted) if model is not study.double.model else study.values
    return [_Responses(c, *(_finite(v.get(name)) for name in _NAMES)) for c, v in zip(study.cases, values)]


_NAMES = ("dipole", "born_charges", "polarizability")


def _finite(value: Tensor | None) -> Tensor | None:
    return value if value is not None and bool(torch.isfinite(value).all()) else None


def _acoustic(study: Study, found: list[_Responses]) -> Row:
    errors: list[Deviation] = []
    about_origin, charged = _about_origin(study), False
    for r in found:
        if r.born is None:
            continue
        charge = 0.0 if r.case.graph.charge is None else float(r.case.graph.charge[0])
        charged = charged or charge != 0
        # In a lattice the energy of a net charge in a field is not defined, and left out.
        wanted = charge * torch.eye(3, dtype=torch.float64) * (about_origin and r.case.graph.pbc is None)
        errors.append((_relative(r.born.sum(0) - wanted, r.born.flatten(1).norm(dim=1).sum()), *_place(r)))
    if not errors:
        return skipped(CHECK, "born_charges", "no structure has Born charges", "acoustic")
    reason = ""
    if charged and not about_origin:
        reason = "the dipole is about the mean of the positions: add Q/N to the Born charges of each atom"
    return measured(
        CHECK, "born_charges", errors, study.tolerance.momentum, element="acoustic", reason=reason
    )


def _about_origin(study: Study) -> bool:
    """Whether the dipole of a charged structure moves with it: that of a head is about the mean of the
    positions, and does not.
    """
    q, heads = study.quantities.get("dipole"), getattr(study.double.model, "heads", None)
    if q is None or not isinstance(heads, nn.ModuleDict) or "born_charges" in heads:
        return True
    return bool(study.takes("charge")) and not study.predicted_directly(q) and q.wrt == FIELD


def _rotation(study: Study, found: list[_Responses]) -> Row:
    if study.group.name not in ("O(n)", "SO(n)"):
        why = f"the model declares {study.group}, so that dipoles need not turn with the structure"
        return skipped(CHECK, "born_charges", why, "rotation")
    errors: list[Deviation] = []
    for r in found:
        graph = r.case.graph
        if r.born is None or r.dipole is None or graph.pbc is not None or _has_directions(graph):
            continue
        turned = torch.einsum("nab,bcd,nd->ac", r.born, _EPSILON, graph.pos)
        size = float((r.born.flatten(1).norm(dim=1) * graph.pos.norm(dim=1)).sum())
        if r.polarizability is not None and graph.electric_field is not None:
            turned = turned + torch.einsum(
                "ab,bcd,d->ac", r.polarizability, _EPSILON, graph.electric_field[0]
            )
        wanted = torch.einsum("acd,d->ac", _EPSILON, r.dipole)
        errors.append((_relative(turned - wanted, torch.tensor(size)), *_place(r)))
    if not errors:
        why = "every structure is periodic, has no dipole, or has other vectors, with which the dipole turns"
        return skipped(CHECK, "born_charges", why, "rotation")
    return measured(CHECK, "born_charges", errors, study.tolerance.momentum, element="rotation")


def _has_directions(graph: Graph) -> bool:
    """Whether a structure has vectors or tensors beside positions and electric field, such as velocities."""
    known = ("pos", "cell", "shift", FIELD)
    given = (n for n, f in FIELDS.items() if f.rank and n not in known)
    return any(getattr(graph, n, None) is not None for n in given)


def _relative(difference: Tensor, size: Tensor) -> float:
    gap = float(difference.norm())
    return gap / float(size) if float(size) else gap


def _place(r: _Responses) -> tuple[int, int]:
    return r.case.structure, r.case.draw
