"""Structures in other poses: an element of a group for each of a batch, how quantities follow, and the errors of a model there."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor

from molequi.data.batches import Batches, Loader
from molequi.data.dataset import Dataset
from molequi.data.statistics import compositions
from molequi.errors import ConfigError, did_you_mean
from molequi.graph import Graph
from molequi.inference.evaluate import with_labels
from molequi.inference.metrics import Errors, Metrics
from molequi.inference.predictions import EDGES, Trained
from molequi.quantities import Quantity, per_atom
from molequi.symmetry import Group, Transform, group
from molequi.util.signature import check_call

_NOTHING = 1e-12  # of a size: less is round-off
SYMMETRIES = ("rotation", "reflection", "translation", "permutation")


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Which random elements are drawn of each symmetry.

    group: rotations and reflections are those of this group. A reflection is the inversion x → -x where the group has it, which leaves
    rotations alone, so that each symmetry is judged for itself; else any element with a reflection.
    shift: standard deviation of each component of a translation, Å.
    Elements are a function of `key` alone, whatever was drawn before: a training that goes on needs to remember nothing of them.
    """

    group: Group
    shift: float
    seed: int

    def _generator(self, *key) -> torch.Generator:
        digest = hashlib.sha256(repr((self.seed, *key)).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))

    def __call__(
        self, symmetry: str, counts: Sequence[int], key: tuple, share: tuple[int, int] = (0, 1)
    ) -> Transform:
        """An element for each structure of `counts` nodes. share: rank and number of devices, of which each gets its part."""
        generator = self._generator(symmetry, *key)
        mine = slice(share[0], None, share[1])
        if symmetry in ("rotation", "reflection"):
            draw = (
                self._reflection
                if symmetry == "reflection"
                else lambda g: self.group.sample(proper=True, generator=g)
            )
            return Transform(rotations=torch.stack([draw(generator) for _ in counts][mine]))
        if symmetry == "translation":
            return Transform(
                translations=self.shift
                * torch.randn(len(counts), self.group.dim, generator=generator, dtype=torch.float64)[mine]
            )
        orders = [torch.randperm(n, generator=generator) for n in counts][mine]
        starts = np.cumsum([0, *counts[mine]]).tolist()
        return Transform(permutation=torch.cat([order + start for order, start in zip(orders, starts)]))

    def _reflection(self, generator: torch.Generator) -> Tensor:
        if self.group.dim % 2 and self.group.name in ("O(n)", "Th", "Oh", "Ih"):
            return -torch.eye(self.group.dim, dtype=torch.float64)
        return self.group.sample(proper=False, generator=generator)

    def generators(
        self, symmetry: str, counts: Sequence[int], key: tuple, step: float, share: tuple[int, int] = (0, 1)
    ) -> tuple[Transform, Transform, int]:
        """exp(hξ) and exp(-hξ) for a random generator ξ of unit length for each structure (rotations in radians, translations in units of
        `shift`), h = `step`, and how many independent ones there are.
        """
        generator, dim = self._generator(symmetry, *key), self.group.dim
        mine = slice(share[0], None, share[1])
        if symmetry == "translation":
            shifts = torch.randn(len(counts), dim, generator=generator, dtype=torch.float64)
            shifts = step * self.shift * torch.nn.functional.normalize(shifts, dim=1)[mine]
            return Transform(translations=shifts), Transform(translations=-shifts), dim
        size = dim - 1 if self.group.name.endswith("(n-1)") else dim  # about the last axis of space
        xi = torch.zeros(len(counts), dim, dim, dtype=torch.float64)
        xi[:, :size, :size] = torch.randn(len(counts), size, size, generator=generator, dtype=torch.float64)
        xi = (xi - xi.transpose(1, 2))[mine]
        xi = xi / (xi.square().sum((1, 2), keepdim=True) / 2).sqrt()
        return (
            Transform(rotations=torch.matrix_exp(step * xi)),
            Transform(rotations=torch.matrix_exp(-step * xi)),
            size * (size - 1) // 2,
        )


def draws_of(
    name: str, data: Dataset, seed: int, shift: float | None, symmetries: Sequence[str], where: str
) -> Draws:
    """What is drawn for these data; shift: None is their size, the rms distance of a node from the middle of its structure (1 if that is 0).

    Raises ConfigError for an unknown group and for symmetries that it lacks.
    """
    chosen = group_with(name, data[0].dim, symmetries, where)
    if shift is None:
        square = torch.cat([(g.pos - g.pos.mean(0)).square().sum(1) for g in data]).mean()
        shift = float(square.sqrt()) or 1.0
    return Draws(group=chosen, shift=shift, seed=seed)


def group_with(name: str, dim: int, symmetries: Sequence[str], where: str) -> Group:
    """The group of that name. Raises ConfigError for an unknown one and for symmetries that it lacks."""
    try:
        chosen = group(name, dim)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    for symmetry, has in (("rotation", chosen.proper and chosen.dim > 1), ("reflection", chosen.improper)):
        if symmetry in symmetries and not has:
            raise ConfigError(
                f"{where}: {symmetry} is asked for, and the group {chosen} has none but the identity; leave {symmetry} out, or "
                "take another group, such as 'O(n)'"
            )
    return chosen


def check_symmetries(names: Sequence[str], where: str) -> None:
    """Raises ConfigError for a name that is none of SYMMETRIES."""
    for name in names:
        if name not in SYMMETRIES:
            raise ConfigError(f"{where}.{name}: no such symmetry{did_you_mean(str(name), SYMMETRIES)}")


def scales(quantities: Mapping[str, Quantity], data: Dataset) -> dict[str, float]:
    """`size` of each quantity by its labels; 1 where there are none."""
    return {
        name: size(q, data.values(name), data) if data.labelled(name) else 1.0
        for name, q in quantities.items()
    }


def size(q: Quantity, values: Tensor, data: Dataset) -> float:
    """Size of a quantity with these values on all structures of `data`, NaN where unknown: standard deviation of scalars (of extensive ones
    per atom, without what the composition says), rms of vectors and tensors, of points how far they move; 1 for classes and if it is zero.
    """
    if q.classes:
        return 1.0
    found = spread(q, values, data)
    if found == 0 and per_atom(q):  # as many compositions as structures
        values = values / torch.tensor([g.num_nodes for g in data], dtype=values.dtype)
        values = values[torch.isfinite(values)]
        found = float(values.std(correction=0)) if len(values) else 0.0
    return found if found > _NOTHING else 1.0


def spread(q: Quantity, values: Tensor, data: Dataset) -> float:
    """`size` where the values have one: 0 where they do not vary beyond what the composition says, or are not known. Not for classes."""
    if q.point:
        values = values - (
            torch.cat([g.pos for g in data])
            if q.per == "node"
            else torch.stack([g.pos.mean(0) for g in data])
        )
    elif per_atom(q):
        known = torch.isfinite(values)
        table = torch.from_numpy(compositions(data.graphs, data.elements))[known]
        base = table @ torch.linalg.lstsq(table, values[known][:, None], driver="gelsd").solution
        values = (values[known] - base[:, 0]) / table.sum(1)
        values = values if bool((values.abs() > 1e-9).any()) else torch.zeros_like(values)
    values = values[torch.isfinite(values)]
    found = (
        float(values.square().mean().sqrt() if q.rank else values.std(correction=0)) if len(values) else 0.0
    )
    return found if found > _NOTHING else 0.0


def squares(
    quantities: Mapping[str, Quantity],
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    scale: Mapping[str, float],
    graph: Graph,
) -> tuple[Float[Tensor, "Q"], Float[Tensor, "Q"]]:
    """Sum of |found - wanted|² / scale² of each quantity over its components that exist, and their number; scores of classes as log p."""
    sums, counts = [], []
    for name, q in quantities.items():
        a, b = found[name].double(), wanted[name].double()
        if q.classes:
            a, b = a.log_softmax(-1), b.log_softmax(-1)
        unknown = torch.isnan(a) | torch.isnan(b)
        difference = torch.where(unknown, 0.0, a - b) / scale[name]
        if per_atom(q):
            difference = difference / graph.counts
        sums.append(difference.square().sum())
        counts.append((~unknown).sum().double())
    return torch.stack(sums), torch.stack(counts)


@dataclass(frozen=True)
class PoseError:
    """How far a quantity is from following a symmetry.

    defect: rms of f(gx) - ρ(g) f(x), in parts of the size of the quantity. rmse: of f(gx) against the label that has turned along,
    in `unit`, of extensive scalars per atom; given: of f(x) against the label. NaN without labels.
    """

    symmetry: str
    quantity: str
    unit: str
    defect: float
    rmse: float
    given: float


@dataclass(frozen=True)
class PoseErrors:
    """Errors of a model in other poses; `errors["rotation", "forces"]` is a row, `print(errors)` a table."""

    rows: tuple[PoseError, ...]

    def __getitem__(self, key: tuple[str, str]) -> PoseError:
        found = {(row.symmetry, row.quantity): row for row in self.rows}
        if key not in found:
            raise KeyError(f"{key}; there are {', '.join(map(str, found))}")
        return found[key]

    def __str__(self) -> str:
        lines = [("symmetry", "quantity", "defect", "RMSE", "as given", "unit")]
        lines += [
            (r.symmetry, r.quantity, f"{r.defect:.2e}", f"{r.rmse:.4g}", f"{r.given:.4g}", r.unit)
            for r in self.rows
        ]
        widths = [max(len(line[c]) for line in lines) for c in range(6)]
        return "\n".join(
            "  ".join(f"{line[c]:{'>' if c in (2, 3, 4) else '<'}{widths[c]}}" for c in range(6)).rstrip()
            for line in lines
        )


def pose_errors(
    model: Trained,
    data: Any,
    *,
    symmetries: Sequence[str] = SYMMETRIES,
    draws: Annotated[int, Gt(0)] = 4,
    seed: Annotated[int, Ge(0)] = 0,
    group: str = "O(n)",
    shift: Annotated[float, Gt(0)] | None = None,
) -> PoseErrors:
    """How a model does on `data` in poses that it has not seen, symmetry by symmetry.

    Errors on poses that a model was trained on say nothing of others and put models in the wrong order; weights of a prior are chosen by
    what is found here, on validation data. A turned label is the right answer only if the law behind the data has the symmetry; `defect`
    asks the model alone.

    model: a Model or its file. data: whatever `evaluate` takes, with labels or without. symmetries: of SYMMETRIES. draws: poses of each
    structure. group: whose rotations and reflections ("O(n)", "O(n-1)" those about the last axis, "Oh" …). shift: standard deviation of
    translations, Å; None: the size of the structures.
    Defects are in parts of the size of the labels (of predictions, without labels): the rms of vectors, the standard deviation of scalars.
    Raises ConfigError for symmetries that are not known or that the group lacks, and what `evaluate` raises.
    """
    given = {"draws": draws, "seed": seed, "group": group, "shift": shift}
    check_call(pose_errors, given, where="pose_errors", leave_out=("model", "data", "symmetries"))
    if isinstance(symmetries, str) or not symmetries:
        raise ConfigError(f"symmetries={symmetries!r}: wanted a list of names from {', '.join(SYMMETRIES)}")
    check_symmetries(symmetries, "symmetries")
    model, data = with_labels(model, data)
    data = data.connected(model.cutoff, k=model.k)
    drawn = draws_of(group, data, seed, shift, symmetries, "pose_errors")
    metrics = {s: Metrics(model.quantities, data, model.device) for s in ("", *symmetries)}
    names = list(metrics[""].quantities)
    totals = {
        s: torch.zeros(2, len(model.quantities), dtype=torch.float64, device=model.device) for s in symmetries
    }
    outputs: list[dict[str, Tensor]] = []
    training = model.training
    model.eval()
    try:
        largest = max(g.edge_index.shape[1] for g in data)
        order = Batches(data, batch_edges=max(EDGES, largest, 1), shuffle=False).epoch(0)
        for number, (batch, graph) in enumerate(Loader(data, names)(order)):
            graph = graph.to(model.device)
            out = model(graph)
            outputs.append({n: v.double().cpu() for n, v in out.items() if n not in names})
            metrics[""].update(out, graph)
            for s in symmetries:
                for draw in range(draws):
                    poses = drawn(s, [data[k].num_nodes for k in batch], (draw, number)).to(model.device)
                    turned = poses.graph(graph, model.quantities)
                    found = model(turned)
                    metrics[s].update(found, turned)
                    wanted = {n: poses.value(q, out[n], graph) for n, q in model.quantities.items()}
                    totals[s] += torch.stack(
                        squares(model.quantities, found, wanted, dict.fromkeys(model.quantities, 1.0), graph)
                    )
    finally:
        model.train(training)
    sizes = {
        n: size(q, data.values(n) if n in names else torch.cat([o[n] for o in outputs]), data)
        for n, q in model.quantities.items()
    }
    errors = {s: m.errors() for s, m in metrics.items()}
    rows = [
        PoseError(
            s,
            n,
            q.unit + "/atom" * per_atom(q),
            float((total / count.clamp(min=1)).sqrt()) / sizes[n],
            _rmse(errors[s], q),
            _rmse(errors[""], q),
        )
        for s in symmetries
        for (n, q), total, count in zip(model.quantities.items(), *totals[s])
    ]
    return PoseErrors(tuple(rows))


def _rmse(errors: Errors, q: Quantity) -> float:
    name = f"{q.name}_per_atom_rmse" if per_atom(q) else f"{q.name}_rmse"
    return errors.numbers().get(name, float("nan"))
