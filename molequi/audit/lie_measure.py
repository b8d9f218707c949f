"""Sums of Lie derivatives over structures, for each generator and layer: the numbers behind `lie_errors`."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.autograd import forward_ad

from molequi.audit.layers import Chain, Generator, casimir, derivative, generators, until
from molequi.audit.lie_report import NOT_FINITE, LieRow, Share, StateRow
from molequi.audit.study import Subject, cannot_have
from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import FIELDS, Graph
from molequi.model import Model
from molequi.output_scales import output_scale
from molequi.quantities import KNOWN, Quantity
from molequi.symmetry import Transform

STEP = {"float64": 1e-5, "float32": 1e-2}  # of the finite differences, radian and Å
SLACK = {
    "float64": (1e-3, 1e-6),
    "float32": (0.1, 0.1),
}  # how far these may lie off: relative to the error, and to the scale
ROUND_OFF = {
    "float64": 1e-10,
    "float32": 1e-4,
}  # relative errors below are none, and shares of them mean nothing
REMAINDER = "remainder"
Key = str | tuple[str, str]  # a quantity, or ("features", irrep)


@dataclass
class _Sums:
    """Sums over structures for one irrep of one output and each generator: squares of the error, and products
    of the error with the contribution of each layer.
    """

    count: int = 0
    total: dict[str, float] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    gap: dict[str, float] = field(default_factory=dict)
    along: dict[str, dict[str, float]] = field(default_factory=dict)  # by layer
    size: dict[str, dict[str, float]] = field(default_factory=dict)
    inversion: float = 0.0


class LieMeasure:
    """Derivatives of one model in which layers are made exact one after another, and their sums."""

    def __init__(self, subject: Subject, chain: Chain, precision: str) -> None:
        self.subject, self.model, self.chain, self.precision = subject, subject.model, chain, precision
        takes = "create_graph" in inspect.signature(self.model.forward).parameters
        self.call: Callable[[Graph], dict[str, Tensor]] = (
            partial(self.model, create_graph=True) if takes else self.model
        )
        self.quantities: dict[str, Quantity] = dict(self.model.quantities)
        if "energy" in self.quantities:
            self.quantities.setdefault("energies", KNOWN["energies"])
        direct = getattr(self.model, "heads", {})
        # Errors of these gradients are attributed to layers through their parents.
        self.children = [
            q
            for q in self.quantities.values()
            if q.gradient_of in self.quantities
            and q.name not in direct
            and self.quantities[q.gradient_of].rank == 0
            and (not direct or q.gradient_of in direct)
            and q.wrt in ("positions", "strain")
        ]
        self.lean = self.call
        self.heads: dict[str, str] = {}
        if isinstance(self.model, Model):
            lean = self.model.predicting(self.model.heads)
            self.lean = lambda graph: Model.predict(
                lean, graph, True
            )  # without what a subclass does besides: that is in the rest
            self.heads = {n: f"heads.{n}" for n in self.model.heads} | {
                q.name: f"heads.{q.gradient_of}" for q in self.children
            }
            if "energy" in self.heads:
                self.heads.setdefault("energies", "heads.energy")
        self.sums: dict[tuple[str, str], _Sums] = {}
        self.local: dict[
            tuple[str, str], list[float]
        ] = {}  # by layer and irrep: count, square, rotations, translations

    # Values

    def values(self, batch: Graph) -> dict[Key, Tensor]:
        """Outputs and features, without derivatives, float64 on the CPU."""
        self.chain.start(None)
        out: dict[Key, Tensor] = {n: v for n, v in self.model(batch).items() if n in self.quantities}
        for name, value in out.items():
            if not isinstance(value, Tensor):
                raise ModelError(
                    f"{type(self.model).__name__} gives {name} as {type(value).__name__}; wanted a tensor "
                    "that can be differentiated"
                )
        if self.chain.features is not None:
            out |= {("features", irrep): block for irrep, (block, _) in self.chain.features.items()}
        return {key: value.detach().to("cpu", torch.float64) for key, value in out.items()}

    def turned(self, element: Transform, values: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
        """The values that an equivariant model gives for the transformed structures."""
        out: dict[Key, Tensor] = {
            n: element.value(self.quantities[n], v) for n, v in values.items() if isinstance(n, str)
        }
        blocks = {key[1]: v for key, v in values.items() if isinstance(key, tuple)}
        if blocks:
            rows = next(iter(blocks.values()))
            features = element.features(Features(blocks=blocks, coordination=rows[:, 0, 0]))
            out |= {("features", irrep): block for irrep, block in features.blocks.items()}
        return out

    def scales(self, copies: Sequence[Sequence[Graph]]) -> dict[tuple[str, str], tuple[float, float, str]]:
        """For each irrep of each output: the scale, the round-off relative to it, and a remark.

        The scale is √E|f|², for scalars the standard deviation over the copies of one structure. The remark
        says why there is no scale (then 0), or which structures are left out.
        """
        largest: dict[tuple[str, str], float] = {}
        sums: dict[tuple[str, str], list[float]] = {}
        lost: set[tuple[str, str]] = set()
        for graphs in copies:
            found: dict[tuple[str, str], list[Tensor]] = {}
            for graph in graphs:
                batch = self.subject.connected([graph])
                for key, value in self.values(batch).items():
                    if isinstance(key, str) and self.quantities[key].point:
                        value = value - graph.pos.mean(0).to(value)
                    size = float(value.nan_to_num(0.0).abs().max())
                    for name, irrep, part in self.parts(key, value, batch):
                        found.setdefault((name, irrep), []).append(part)
                        if not bool(torch.isfinite(part).all()) and not (
                            isinstance(key, str) and cannot_have(self.model, self.quantities[key], graph)
                        ):
                            lost.add((name, irrep))
                        shared = irrep[0] == "0" and isinstance(key, str) and self.quantities[key].extensive
                        largest[name, irrep] = max(
                            largest.get((name, irrep), 0.0), size / (graph.num_nodes if shared else 1)
                        )
            for key, several in found.items():
                rows = torch.stack(several)
                rows = rows[:, torch.isfinite(rows).all(0).flatten(1).all(1)]
                entry = sums.setdefault(key, [0.0, 0.0])
                away = rows - rows.mean(0) if key[1][0] == "0" else rows
                entry[0] += rows[..., 0].numel() * ((len(rows) - 1) / len(rows) if key[1][0] == "0" else 1.0)
                entry[1] += float(away.square().sum())
        epsilon = torch.finfo(getattr(torch, self.precision)).eps
        out: dict[tuple[str, str], tuple[float, float, str]] = {}
        for key, (count, square) in sums.items():
            scale = math.sqrt(square / count) if count else 0.0
            zero = 1e-13 * output_scale(self.model, key[0])
            if key in lost:
                why = (
                    NOT_FINITE
                    if not count
                    else f"{NOT_FINITE} for some of the structures, which are left out"
                )
            elif not count:
                strained = key[0] in self.quantities and self.quantities[key[0]].wrt == "strain"
                why = (
                    f"not there: {'no structure has a volume' if strained else 'every structure is periodic'}"
                )
            elif scale <= zero:
                why = "zero, or the same for all positions of the atoms"
            else:
                why = (
                    ""
                    if scale > 64 * epsilon * largest[key]
                    else f"constant, or varies by less than {self.precision} resolves in {largest[key]:.1e}"
                )
            out[key] = (
                (scale, epsilon * largest[key] / scale, why)
                if scale > max(zero, 64 * epsilon * largest[key])
                else (0.0, 0.0, why)
            )
        return out

    def parts(self, key: Key, value: Tensor, batch: Graph) -> Iterator[tuple[str, str, Tensor]]:
        """(name, irrep, components of shape (rows, channels, m)) of an output, float64 on the CPU; extensive
        scalars per atom.
        """
        value = value.detach().to("cpu", torch.float64)
        if isinstance(key, tuple):
            yield "features", key[1], value
            return
        q, rows = self.quantities[key], value.shape[0]
        share = batch.counts.cpu().double()[:, None, None] if q.extensive else 1.0
        if q.rank == 0:
            yield (
                key,
                "0o" if q.pseudo else "0e",
                value.reshape(rows, value.numel() // max(rows, 1), 1) / share,
            )
        elif q.rank == 1:
            yield key, "1e" if q.pseudo else "1o", value[:, None]
        elif q.rank == 2:
            parity = "o" if q.pseudo else "e"
            trace = value.diagonal(dim1=1, dim2=2).sum(1) / batch.dim
            eye = torch.eye(batch.dim, dtype=torch.float64)
            yield key, f"0{parity}", (trace * math.sqrt(batch.dim))[:, None, None] / share
            if not q.symmetric:
                transposed = value.transpose(1, 2)
                yield key, f"1{parity}", ((value - transposed) / 2).flatten(1)[:, None]
                value = (value + transposed) / 2
            yield key, f"2{parity}", (value - trace[:, None, None] * eye).flatten(1)[:, None]

    # Derivatives

    def derivatives(
        self, batch: Graph, generator: Generator, upto: int, *, lean: bool
    ) -> tuple[dict[Key, Tensor], dict[Key, Tensor]]:
        """Values and Jf[ξ x] with the first `upto` layers made exact; with `lean` only those of the heads."""
        graph = batch.replace(pos=batch.pos.detach().clone().requires_grad_())
        self.chain.start(generator, upto)
        with torch.enable_grad(), forward_ad.dual_level():
            try:
                out = (self.lean if lean else self.call)(generator.moving(graph))
            except (NotImplementedError, RuntimeError) as error:
                if "forward AD" not in str(error) and "jvp" not in str(error):
                    raise
                raise ModelError(
                    f"the model has an operation without a derivative in forward mode "
                    f"({str(error).splitlines()[0]}); replace "
                    "it by operations of torch, or give a torch.autograd.Function a `jvp`; `audit` needs no "
                    "derivatives"
                ) from error
            values: dict[Key, Tensor] = {
                n: forward_ad.unpack_dual(v).primal for n, v in out.items() if n in self.quantities
            }
            slopes: dict[Key, Tensor] = {n: derivative(v) for n, v in out.items() if n in self.quantities}
        if self.chain.features is not None:
            values |= {("features", i): block for i, (block, _) in self.chain.features.items()}
            tangents = {i: slope for i, (_, slope) in self.chain.features.items() if slope is not None}
            slopes |= {("features", i): slope for i, slope in tangents.items()}
        return {n: v.detach() for n, v in values.items()}, {n: v.detach().double() for n, v in slopes.items()}

    def gradients(self, batch: Graph, turns: Sequence[Generator]) -> dict[str, list[dict[Key, Tensor]]]:
        """Forces and stress of JE[ξ x] in place of E, for each generator and each number of exact layers.

            JE[ξ x] = Σ_i ⟨∂E/∂h_i, D(ξ) h_i⟩ + ⟨∂E/∂x, ξ x⟩

        runs over the exact layers i, and the derivatives stop at their outputs h_i. They are computed in
        reverse mode, because in torch 2.13 the gradient of a forward derivative is wrong for layer norms,
        batch norms and determinants, and fails for softmax.
        """
        pos = batch.pos.detach().clone().requires_grad_()
        half = pos.new_zeros(batch.num_graphs, batch.dim, batch.dim).requires_grad_()
        given = {
            n: value.detach().requires_grad_()
            for n, value in batch.values("node", "graph").items()
            if FIELDS[n].rank and n != "pos"
        }
        graph = batch.replace(pos=pos, **given).strained((half + half.transpose(1, 2)) / 2)
        variables = {"positions": pos, "strain": half}
        found: dict[str, list[dict[Key, Tensor]]] = {turn.name: [] for turn in turns}
        self.chain.start(None, keep=True)
        with torch.enable_grad():
            out = self.lean(graph)
            kept = list(self.chain.kept)
            given = {n: getattr(graph, n) for n in ("pos", *given)}
            for upto in range(len(kept) + 1):
                for several in found.values():
                    several.append({})
                for parent in {q.gradient_of for q in self.children}:
                    exact = [k for layer in kept[:upto] for k in layer]
                    slopes = until(exact, list(given.values()), out[parent].sum())
                    for turn in turns:
                        nothing = pos.new_zeros(())
                        moved = (
                            (turn.change(FIELDS[n], value) * slope).sum()
                            for (n, value), slope in zip(given.items(), slopes[len(exact) :])
                        )
                        layers = (k.along(turn, slope) for k, slope in zip(exact, slopes))
                        along = sum(moved, start=nothing) + sum(layers, start=nothing)
                        for q in self.children:
                            if q.gradient_of == parent:
                                found[turn.name][-1][q.name] = _gradient(q, along, variables, batch)
        return found

    def add(self, batch: Graph, generator: Generator, gradients: Sequence[dict[Key, Tensor]] | None) -> None:
        """One generator on one batch: totals, terms of the layers, finite differences."""
        values, slopes = self.derivatives(batch, generator, 0, lean=False)
        exact = {key: self._acted(generator, key, value.double()) for key, value in values.items()}
        total = {key: exact[key] - slopes[key] for key in exact}
        terms: dict[Key, dict[str, Tensor]] = {key: {} for key in total}
        _, seen = self.derivatives(batch, generator, 0, lean=True)
        seen |= gradients[0] if gradients else {}
        names = list(self.chain.names)
        for k, name in enumerate(names):
            self._keep(name, generator, batch)
            _, after = self.derivatives(batch, generator, k + 1, lean=True)
            after |= gradients[k + 1] if gradients else {}
            for key in total:
                if isinstance(key, tuple):  # of the features, up to the backbone that gives them
                    if k <= names.index("backbone"):
                        terms[key][name] = (exact[key] if name == "backbone" else after[key]) - seen[key]
                elif key in after:
                    terms[key][name] = after[key] - seen[key]
            seen = after
        for key in total:
            if key in self.heads:
                parent = exact[key] if key not in {q.name for q in self.children} else 0.0
                head = self.heads[key]
                terms[key][head] = (
                    terms[key].get(head, 0.0) + parent - seen[key]
                )  # its own output may be a layer besides
            terms[key][REMAINDER] = total[key] - sum(terms[key].values()) if terms[key] else total[key]
        control = self._differences(batch, generator)
        for key, value in values.items():
            split = {
                label: list(self.parts(key, t, batch)) for label, t in (("", total[key]), *terms[key].items())
            }
            for k, (name, irrep, part) in enumerate(self.parts(key, value, batch)):
                whole, other = split[""][k][2], list(self.parts(key, control[key], batch))[k][2]
                known = torch.isfinite(part).flatten(1).all(1)
                sums = self.sums.setdefault((name, irrep), _Sums())
                _gain(sums.total, generator.name, whole[known], whole[known])
                _gain(sums.differences, generator.name, other[known], other[known])
                _gain(sums.gap, generator.name, (whole - other)[known], (whole - other)[known])
                for label in terms[key]:
                    term = split[label][k][2][known]
                    _gain(sums.along.setdefault(label, {}), generator.name, term, whole[known])
                    _gain(sums.size.setdefault(label, {}), generator.name, term, term)

    def _keep(self, layer: str, generator: Generator, batch: Graph) -> None:
        """Add the error that the layer makes at its own output."""
        for irrep, part, error in self.chain.local:
            entry = self.local.setdefault((layer, irrep), [0.0, 0.0, 0.0, 0.0])
            away = part
            if (
                irrep == "point"
            ):  # of nodes from the middle of their structure: how far apart structures lie says nothing
                counts = batch.counts.tolist() if part.shape[0] == batch.num_nodes else [part.shape[0]]
                away = torch.cat([p - p.mean(0) for p in part.split(counts)])
            entry[0] += part[..., 0].numel()
            entry[1] += float(away.double().square().sum())
            entry[2 if generator.matrix is not None else 3] += float(error.double().square().sum())

    def _acted(self, generator: Generator, key: Key, value: Tensor) -> Tensor:
        """D(ξ) f."""
        if isinstance(key, tuple):
            return generator.act(key[1], value)
        return generator.change(self.quantities[key], value)

    def _differences(self, batch: Graph, generator: Generator) -> dict[Key, Tensor]:
        """L f by finite differences of f at exp(±h ξ) x. The values are transformed back first, so that an
        equivariant f gives no error of differences.
        """
        step, ends = STEP[self.precision], []
        for h in (step, -step):
            there, back = (generator.element(sign * h) for sign in (1, -1))
            ends.append(self.turned(back, self.values(there.graph(batch))))
        return {key: (ends[1][key] - ends[0][key]) / (2 * step) for key in ends[0]}

    def invert(self, batch: Graph) -> None:
        """Add the error under x → -x (under a mirror if the number of dimensions is even), and count rows."""
        mirror = -torch.eye(batch.dim, dtype=torch.float64)
        if batch.dim % 2 == 0:
            mirror[1:] *= -1
        element = Transform.single(rotation=mirror)
        values = self.values(batch)
        found = self.values(element.graph(batch))
        wanted = self.turned(element, values)
        for key, value in values.items():
            pairs = zip(self.parts(key, value, batch), self.parts(key, wanted[key] - found[key], batch))
            for (name, irrep, part), (*_, away) in pairs:
                known = torch.isfinite(part).flatten(1).all(1)
                sums = self.sums.setdefault((name, irrep), _Sums())
                sums.count += part[known][..., 0].numel()
                sums.inversion += float(away[known].square().sum())

    # Results

    def rows(self, scales: Mapping[tuple[str, str], tuple[float, float, str]], dim: int) -> Iterator[LieRow]:
        for (name, irrep), sums in self.sums.items():
            (scale, epsilon, why), unit = (
                scales[name, irrep],
                "" if name == "features" else self.quantities[name].unit,
            )
            whole = scale**2 * sums.count
            if not whole > 0:
                yield LieRow(quantity=name, irrep=irrep, unit=unit, scale=0.0, generators={}, missing=why)
                continue

            relative = partial(_relative, whole, casimir(irrep, dim))

            lee, differences = relative(sums.total), relative(sums.differences)
            slope, noise = SLACK[self.precision]
            shares = tuple(
                Share(
                    layer=layer, share=relative(along) / lee if lee else None, size=relative(sums.size[layer])
                )
                for layer, along in sums.along.items()
            )
            yield LieRow(
                quantity=name,
                irrep=irrep,
                unit=unit,
                scale=scale,
                rotations=relative(sums.total, "rotation"),
                translations=relative(sums.total, "translation"),
                generators={n: relative({n: v}) for n, v in sums.total.items()},
                inversion=sums.inversion / whole,
                differences=differences,
                gap=math.sqrt(relative(sums.gap)),
                allowed=slope * math.sqrt(differences) + noise + 8 * epsilon / STEP[self.precision],
                noise=ROUND_OFF[self.precision] + 64 * epsilon,
                layers=shares,
                missing=why,
            )

    def states(self, dim: int) -> Iterator[StateRow]:
        turns = len(generators(dim))
        for (layer, irrep), (count, square, rotations, translations) in self.local.items():
            if square > 0:  # counted once for each generator
                per = turns / square
                yield StateRow(
                    layer=layer,
                    irrep=irrep,
                    scale=math.sqrt(square / count),
                    rotations=rotations * per / casimir(irrep, dim),
                    translations=translations * per,
                )


def _relative(whole: float, casimir: float, values: Mapping[str, float], kind: str = "") -> float:
    """Sum over the generators of one kind, relative to the whole; rotations are divided by the Casimir
    number.
    """
    return sum(
        value / whole / (casimir if name.startswith("rotation") else 1.0)
        for name, value in values.items()
        if name.startswith(kind)
    )


def _gain(sums: dict[str, float], name: str, a: Tensor, b: Tensor) -> None:
    sums[name] = sums.get(name, 0.0) + float((a * b).sum())


def _gradient(q: Quantity, slope: Tensor, variables: Mapping[str, Tensor], batch: Graph) -> Tensor:
    """The quantity that is this gradient, from the derivative of its parent."""
    if not slope.requires_grad:
        found = torch.zeros_like(variables[q.wrt])
    else:
        (found,) = torch.autograd.grad(slope, [variables[q.wrt]], retain_graph=True, materialize_grads=True)
    found = found.detach().double() * (1.0 if q.factor is None else q.factor)
    if not q.per_volume:
        return found
    if batch.cell is None:
        return torch.full_like(found, math.nan)
    return found / torch.linalg.det(batch.cell).abs()[:, None, None]
