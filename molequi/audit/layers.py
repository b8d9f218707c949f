"""The layers of a model, and how their outputs transform, so that a symmetry error can be attributed to a
layer.

A backbone declares its layers and the layouts of their outputs, see `molequi.models.Backbone.states`. A
backbone that declares none is measured as a whole: it returns Features, whose transformation is known.
``layers=`` of `molequi.lie_errors` adds layouts of other modules.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad

from molequi.errors import ConfigError, ModelError, did_you_mean
from molequi.features import Features
from molequi.graph import FIELDS, Graph
from molequi.models.base import Backbone, Layouts
from molequi.models.layouts import LayerLayout
from molequi.ops import irreps as ir
from molequi.symmetry import Geometric, Transform, infinitesimal


@dataclass(frozen=True)
class Generator:
    """An infinitesimal element of E(D): x → x + h (K x) for a rotation, x → x + h t for a translation."""

    name: str
    matrix: Float[Tensor, "D D"] | None = None
    vector: Float[Tensor, "D"] | None = None

    def act(self, irrep: str, value: Float[Tensor, "... m"]) -> Float[Tensor, "... m"]:
        """D(ξ) on components of an irrep, or of positions ("point")."""
        if self.matrix is None:
            if irrep != "point" or self.vector is None:
                return torch.zeros_like(value)
            return self.vector.to(value).expand_as(value)
        degree = 1 if irrep == "point" else ir.parse(irrep)[0]
        if degree == 0:
            return torch.zeros_like(value)
        matrix = self.matrix if degree == 1 else _of_degree(degree, tuple(self.matrix.flatten().tolist()))
        return value @ matrix.to(value).T

    def moving(self, graph: Graph) -> Graph:
        """The structure with the tangent ξ x of every field that moves."""
        return graph.replace(
            **{
                name: forward_ad.make_dual(value, self.change(FIELDS[name], value))
                for name, value in graph.values("node", "graph").items()
                if FIELDS[name].point or (FIELDS[name].rank and self.matrix is not None)
            }
        )

    def change(self, what: Geometric, value: Tensor) -> Tensor:
        """ξ f of a field of the structure or of a quantity."""
        return infinitesimal(what, value, matrix=self.matrix, vector=self.vector)

    def element(self, h: float) -> Transform:
        """exp(h ξ)."""
        return Transform.single(
            rotation=None if self.matrix is None else torch.linalg.matrix_exp(h * self.matrix),
            translation=None if self.vector is None else h * self.vector,
        )


@lru_cache
def _of_degree(l: int, entries: tuple[float, ...]) -> Float[Tensor, "m m"]:
    """Generator of the irrep l for an antisymmetric K (3, 3): the derivative of D^l = C (D^{l-1} ⊗ D^1) C,
    see `ops.irreps.wigner`.
    """
    turn = torch.tensor(entries, dtype=torch.float64).reshape(3, 3)
    if l == 1:
        return turn
    lower, eye, one = (
        _of_degree(l - 1, entries),
        torch.eye(2 * l - 1, dtype=torch.float64),
        torch.eye(3, dtype=torch.float64),
    )
    coupling = ir.clebsch_gordan(l - 1, 1, l)
    both = torch.einsum("ia,jb->ijab", lower, one) + torch.einsum("ia,jb->ijab", eye, turn)
    return (2 * l + 1) * torch.einsum("ijk,ijab,abc->kc", coupling, both, coupling)


def generators(dim: int) -> list[Generator]:
    """A basis of the rotations, then of the translations."""
    letters = "xyz" if dim <= 3 else [str(k) for k in range(dim)]
    found = []
    for a in range(dim):
        for b in range(a + 1, dim):
            matrix = torch.zeros(dim, dim, dtype=torch.float64)
            matrix[b, a], matrix[a, b] = 1.0, -1.0
            found.append(Generator(f"rotation {letters[a]}{letters[b]}", matrix=matrix))
    eye = torch.eye(dim, dtype=torch.float64)
    return found + [Generator(f"translation {letters[k]}", vector=eye[k]) for k in range(dim)]


def casimir(irrep: str, dim: int) -> float:
    """Σ_k |K_k v|² / |v|² over the rotations: l (l + 1) in space; 1 for invariants, which have 0."""
    degree = 1 if irrep == "point" else ir.parse(irrep)[0]
    return float((1, dim - 1 or 1, 2 * dim)[degree] if degree < 3 else degree * (degree + 1))


@dataclass(frozen=True)
class Kept:
    """A tensor that a layer returned, and the function that splits it into irreps."""

    value: Tensor
    split: Callable[[Tensor], list[tuple[str, Tensor]]]

    def along(self, generator: Generator, slope: Tensor) -> Tensor:
        """⟨slope, D(ξ) h⟩."""
        pairs = zip(self.split(self.value), self.split(slope))
        terms = ((generator.act(irrep, part) * down).sum() for (irrep, part), (_, down) in pairs)
        return sum(terms, start=self.value.new_zeros(()))


def derivative(value: Tensor) -> Tensor:
    """The tangent of a tensor; zeros if it has none."""
    tangent = forward_ad.unpack_dual(value).tangent
    return torch.zeros_like(value) if tangent is None else tangent


def until(kept: Sequence[Kept], given: Sequence[Tensor], value: Tensor) -> list[Tensor]:
    """Derivatives of `value` with respect to the outputs of layers and to given tensors. Each derivative
    includes only paths that do not pass through the output of another of these layers.
    """
    slopes: list[Tensor] = [torch.zeros_like(k.value) for k in kept]

    def stop(place: int, slope: Tensor) -> Tensor:
        slopes[place] = slope
        return torch.zeros_like(slope)

    hooks = [k.value.register_hook(partial(stop, place)) for place, k in enumerate(kept)]
    try:
        wanted = [k.value for k in kept] + list(given)
        ends = torch.autograd.grad(value, wanted, create_graph=True, materialize_grads=True)
    finally:
        for hook in hooks:
            hook.remove()
    return slopes + list(ends[len(kept) :])


class Chain:
    """Hooks on the layers of a model that replace the tangents of their outputs by those of exactly
    equivariant layers. Layers are numbered in the order in which they are called.

    After ``start(generator, upto)`` the first `upto` layers return the tangent D(ξ) h instead of the one that
    they computed. The derivative of the output with ``upto = i + 1`` minus that with ``upto = i`` is
    therefore the contribution of layer i. `local` has the error of layer `upto` at its own output, and
    `features` what ``model.backbone`` returned, with its tangent. After ``start(None, keep=True)`` there are
    no tangents, and `kept` has the outputs of all layers by irrep, as variables of derivatives.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, Layouts] | None, dim: int) -> None:
        self.modules = dict(model.named_modules())
        self.own = "backbone" if isinstance(self.modules.get("backbone"), Backbone) else None
        self.states: dict[str, tuple[LayerLayout | None, ...] | None] = {}  # None: Features
        described: dict[str, Layouts] = {}
        for name, module in self.modules.items():
            if isinstance(module, Backbone):
                self.states[name] = None
                described |= {
                    f"{name}.{below}" if name else below: layout for below, layout in module.states().items()
                }
        for name in layers or {}:
            if name not in self.modules or not name:
                raise ConfigError(
                    f"layers: the model has no submodule "
                    f"{name!r}{did_you_mean(name, [m for m in self.modules if m])}"
                )
            if name in self.states:
                raise ConfigError(
                    f"layers: {name!r} is a Backbone, which returns Features and needs no layout; leave it "
                    "out"
                )
        for name, layout in (described | dict(layers or {})).items():
            several = layout if isinstance(layout, tuple) else (layout,)
            self.states[name] = tuple(
                None if one is None else LayerLayout(one, dim, f"layers[{name!r}]") for one in several
            )
        self.asked = list(layers or {})
        self.generator: Generator | None = None
        self.start(None)

    def __enter__(self) -> "Chain":
        self.handles = [
            self.modules[name].register_forward_hook(partial(self._returned, name)) for name in self.states
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def start(self, generator: Generator | None, upto: int = 0, *, keep: bool = False) -> None:
        """Prepare the next call of the model. Without a generator only the features are kept, or with `keep`
        the outputs of all layers.
        """
        self.generator, self.upto, self.keep = generator, upto, keep
        self.names: list[str] = []
        self.local: list[tuple[str, Tensor, Tensor]] = []  # irrep, value, error
        self.features: dict[str, tuple[Tensor, Tensor | None]] | None = None
        self.kept: list[list[Kept]] = []

    def check(self) -> None:
        """Raises ConfigError if a layer that the caller named was not called."""
        for name in self.asked:
            if not any(called.split(", call ")[0] == name for called in self.names):
                raise ConfigError(
                    f"layers: {name!r} is never called by the model; name a submodule whose forward runs"
                )

    def _returned(self, name: str, module: nn.Module, inputs: tuple, output: object) -> object:
        before = sum(called.split(", call ")[0] == name for called in self.names)
        index = len(self.names)
        self.names.append(f"{name}, call {before + 1}" if before else name)
        states = self.states[name]
        if states is None:
            return self._features(name, index, output)
        several = output if isinstance(output, (tuple, list)) else (output,)
        if len(several) != len(states):
            raise ModelError(
                f"layers[{name!r}]: {len(states)} layouts, and the layer returns {len(several)} tensors; "
                "give a tuple with one for "
                "each, None for what is to be left as it is"
            )
        for state, value in zip(states, several):
            if state is not None:
                state.check(value)
        if self.keep:
            self.kept.append([])
            new = [
                value if state is None else self._hold(value, state.split)
                for state, value in zip(states, several)
            ]
            return _like(output, new)
        if self.generator is None or index > self.upto:
            return None
        new = [
            value if state is None else self._exact(self.generator, state, value, index)
            for state, value in zip(states, several)
        ]
        return None if index == self.upto else _like(output, new)

    def _exact(self, generator: Generator, state: LayerLayout, value: Tensor, index: int) -> Tensor:
        """The tensor with the tangent D(ξ) h, or at the layer `upto` its error."""
        plain = forward_ad.unpack_dual(value).primal
        parts = state.split(plain)
        turned = [generator.act(irrep, part) for irrep, part in parts]
        if index == self.upto:
            for (irrep, part), exact, (_, found) in zip(parts, turned, state.split(derivative(value))):
                self.local.append((irrep, part.detach(), (exact - found).detach()))
            return value
        return forward_ad.make_dual(plain, state.join(turned))

    def _hold(self, value: Tensor, split: Callable[[Tensor], list[tuple[str, Tensor]]]) -> Tensor:
        """The same tensor as a new node of the autograd graph, which nothing inside of the layer uses."""
        value = value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
        self.kept[-1].append(Kept(value, split))
        return value

    def _features(self, name: str, index: int, output: object) -> Features | None:
        if not isinstance(output, Features):
            raise ModelError(
                f"{name or 'the model'}: a Backbone that returns {type(output).__name__}; wanted Features"
            )
        blocks = dict(output.blocks)
        if self.keep:
            self.kept.append([])
            seen = self._hold(output.coordination, lambda value: [("0e", value[:, None])])
            return Features(
                blocks={irrep: self._hold(block, partial(_whole, irrep)) for irrep, block in blocks.items()},
                coordination=seen,
            )
        if self.generator is None:
            if name == self.own:
                self.features = {irrep: (block.detach(), None) for irrep, block in blocks.items()}
            return None
        plain = {irrep: forward_ad.unpack_dual(block).primal for irrep, block in blocks.items()}
        if name == self.own:
            self.features = {
                irrep: (plain[irrep].detach(), derivative(block).detach()) for irrep, block in blocks.items()
            }
        if index > self.upto:
            return None
        turned = {irrep: self.generator.act(irrep, part) for irrep, part in plain.items()}
        if index == self.upto:
            self.local += [
                (irrep, part.detach(), (turned[irrep] - derivative(blocks[irrep])).detach())
                for irrep, part in plain.items()
            ]
            return None
        exact = {irrep: forward_ad.make_dual(part, turned[irrep]) for irrep, part in plain.items()}
        seen = forward_ad.unpack_dual(output.coordination).primal
        return Features(blocks=exact, coordination=forward_ad.make_dual(seen, torch.zeros_like(seen)))


def _whole(irrep: str, value: Tensor) -> list[tuple[str, Tensor]]:
    return [(irrep, value)]


def _like(output: object, new: list[Tensor]) -> object:
    """New tensors in the same container (tensor, tuple or list) as those that a layer returned."""
    if not isinstance(output, (tuple, list)):
        return new[0]
    return (
        type(output)(*new) if hasattr(output, "_fields") else type(output)(new)
    )  # named tuples take them one by one
