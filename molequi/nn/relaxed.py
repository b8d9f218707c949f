"""Layers that are equivariant as far as they are told to be: gates on an invariant, an equivariant and a free path.

    W = a W_inv + b W_eq + θ c W_free

The free path lies orthogonal to the equivariant maps (it is what a projection on these would take away), so that its share says how far
the layer is from the symmetry. Learning the dial: van der Ouderaa et al. 2022 (arXiv 2204.07178); θ: Pertigkiozoglou et al. 2024
(arXiv 2408.13242).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from molequi.errors import ModelError
from molequi.nn.cartesian import EGNNLayer
from molequi.nn.irreps import Convolution
from molequi.nn.mlp import linear
from molequi.ops import irreps as ir

GATES = (
    1.0,
    1.0,
    0.1,
)  # a, b, c of a new layer. With c = 0 its free weights would have no gradient in the first step


class Relaxed(ABC, nn.Module):
    """A layer with gates a, b, c (one number each, learned) and θ, a buffer that is 1 unless `set_theta` changes it.

    c = 0 or θ = 0: exactly equivariant; (1, 0, 0): invariant. A subclass calls `open` when it is built.
    """

    a: nn.Parameter
    b: nn.Parameter
    c: nn.Parameter
    theta: Tensor

    def open(self, gates: Sequence[float]) -> None:
        """Make the gates."""
        self.a, self.b, self.c = (nn.Parameter(torch.tensor(float(g))) for g in gates)
        self.register_buffer("theta", torch.tensor(1.0))

    @property
    def free(self) -> Tensor:
        """θ c, what the free path is multiplied by."""
        return self.theta * self.c

    @abstractmethod
    def free_groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters in which the free path is linear, by the irrep that they add to: all zero in an equivariant layer."""


def relaxed_layers(model: nn.Module) -> Iterator[tuple[str, Relaxed]]:
    """Names and layers that have gates, in the order of `model.named_modules()`."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Relaxed))


def free_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The free parameters of all layers by layer and irrep: {"backbone.layers.0/1o": [...], ...}; empty for a strict model."""
    return {
        f"{name}/{irrep}" if name else irrep: parameters
        for name, layer in relaxed_layers(model)
        for irrep, parameters in layer.free_groups().items()
    }


def set_theta(model: nn.Module, value: float) -> None:
    """θ of all relaxed layers; 0 makes the model exactly equivariant, whatever its gates are. Raises ModelError if it has no such layer."""
    layers = [layer for _, layer in relaxed_layers(model)]
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no relaxed layers, whose theta could be set; take RelaxedEGNN or RelaxedNequIP"
        )
    for layer in layers:
        layer.theta.fill_(value)


def is_strict(model: nn.Module) -> bool:
    """Whether θ is zero in all relaxed layers, so that nothing of the free paths is left."""
    return all(float(layer.theta) == 0.0 for _, layer in relaxed_layers(model))


class RelaxedConvolution(Relaxed):
    """The dial of a tensor-field convolution: A_i = C Σ_j Σ_paths R_path(r_ij) (h_j · K_path(r̂_ij)), with kernels

        K_path = Y(r̂) · (a C_path) for l = 0,  Y(r̂) · (b C_path) for l > 0,  and on each θ c Y(r̂) · F_path:

    a W_inv(r) + b Σ_l R_l(r) Y_l(r̂) ⊗ + c Ψ(x_ij). C_path are the Clebsch-Gordan tensors of `Convolution`; F_path is a learned tensor of
    numbers in the frame of the laboratory, (harmonics up to l_max, components of the output, of the input), of which all that symmetry
    allows is projected away. It begins as large as C_path, so that c says how large the free kernel is beside the others; and it has
    no radial functions of its own, whose size would be one more dial.

    strict: the convolution that it takes over, whose weights keep their names. With a = b = 1 and c = 0 it is that one.
    """

    def __init__(self, strict: Convolution, gates: Sequence[float]):
        super().__init__()
        self.open(gates)
        self.product, self.channels = strict.product, strict.channels
        self.before, self.radial, self.after = strict.before, strict.radial, strict.after
        product = self.product
        outputs = [2 * ir.parse(i)[0] + 1 for i in product.outputs]
        rows = [product.sizes[i] for i, _, _ in product.paths]
        self.shape = (product.coupling.shape[0], product.components, sum(rows))
        coupling = product.coupling.unflatten(1, self.shape[1:])
        self.register_buffer(
            "invariant",
            torch.tensor([l == 0 for (_, l, _), size in zip(product.paths, rows) for _ in range(size)]),
            persistent=False,
        )
        places = torch.arange(coupling.numel()).reshape(self.shape)
        self.kernels, where = nn.ParameterDict(), []
        for k, target in enumerate(product.outputs):
            for i, source in enumerate(product.inputs):
                mine = [n for n, path in enumerate(product.paths) if (path[0], path[2]) == (i, k)]
                if not mine:
                    continue
                part = [
                    (
                        slice(None),
                        slice(sum(outputs[:k]), sum(outputs[: k + 1])),
                        slice(sum(rows[:n]), sum(rows[: n + 1])),
                    )
                    for n in mine
                ]
                tensors = torch.stack([coupling[p].flatten() for p in part])  # (paths, S · O · I), orthogonal
                size = tensors.norm(dim=1, keepdim=True)
                self.kernels[f"{target}_{source}"] = nn.Parameter(
                    (torch.randn_like(tensors) * size / tensors.shape[1] ** 0.5).float()
                )
                self.register_buffer(f"allowed_{target}_{source}", tensors / size, persistent=False)
                where += [places[p].flatten() for p in part]
        self.register_buffer("where", torch.cat(where), persistent=False)

    def free_groups(self) -> dict[str, list[nn.Parameter]]:
        groups: dict[str, list[nn.Parameter]] = {irrep: [] for irrep in self.product.outputs}
        for name, kernel in self.kernels.items():
            groups[name.split("_")[0]].append(kernel)
        return groups

    def free_kernels(self) -> dict[str, Tensor]:
        """F of each pair "output_input": (paths, S · O · I), orthogonal to all that symmetry allows between the two."""
        free = {}
        for name, kernel in self.kernels.items():
            allowed = getattr(self, f"allowed_{name}").to(kernel.dtype)
            free[name] = kernel - (kernel @ allowed.T) @ allowed
        return free

    def coupling(self, dtype: torch.dtype) -> Float[Tensor, "S OR"]:
        """All kernels, gates on them, in the layout of `TensorProduct`."""
        strict = self.product.coupling.to(dtype).reshape(self.shape) * torch.where(
            self.invariant, self.a, self.b
        )
        free = torch.cat([kernel.flatten() for kernel in self.free_kernels().values()]) * self.free
        return (
            strict.flatten()
            .index_add(0, self.where, free)
            .reshape(self.shape[0], self.shape[1] * self.shape[2])
        )

    def forward(
        self,
        h: Float[Tensor, "N I C"],
        radial: Float[Tensor, "E R"],
        harmonics: Float[Tensor, "E S"],
        edges,
        scale: Tensor,
    ) -> Float[Tensor, "N O C"]:
        weights = self.radial(radial) * edges.envelope[:, None]
        weights = weights.unflatten(1, (self.product.num_paths, self.channels))
        messages = self.product(edges.gather(self.before(h)), harmonics, weights, self.coupling(h.dtype))
        return self.after(edges.sum(messages) * scale)


class RelaxedEGNNLayer(Relaxed, EGNNLayer):
    """The dial of the E(n) layer: α times its own update and 1 - α times a free one, α of each node,

        1 - α_i = θ c σ(w · h_i + w_0),   Δh_i = α_i φ_h(h_i, a m_i) + (1 - α_i) Σ_c U_c v_ic,   Δx_i = α_i b Δx_i^E(n) + (1 - α_i) (S m_i + Σ_c T_c v_ic),

    with m_i = C Σ_j m_ij, v_ic = C Σ_j m_ijc (x_i - x_j) / (‖x_i - x_j‖ + 1), and the velocity as one more v. U, S and T are learned numbers
    in the frame of the laboratory: they take components of vectors for scalars, add vectors that point somewhere, and weigh directions
    differently (T_c without its trace). No choice of them but zero is equivariant. `open` makes them.
    """

    def open(self, gates: Sequence[float], *, dim: int) -> None:
        """Make gates and free weights for structures of that many dimensions."""
        super().open(gates)
        channels = self.from_sender.out_features
        vectors = channels + (self.velocity is not None)
        self.mix = linear(channels, 1, bias=True)
        self.to_scalars = linear(vectors * dim, channels)
        # As small as the first steps of the layer itself.
        self.constant = linear(channels, dim, gain=0.01)
        self.directions = nn.Parameter(0.01 * torch.randn(vectors, dim, dim) / (vectors * dim) ** 0.5)

    def free_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"0e": [self.to_scalars.weight], "1o": [self.constant.weight, self.directions]}

    def share(self, h: Float[Tensor, "N C"]) -> Float[Tensor, "N 1"]:
        """1 - α of each node."""
        return self.free * torch.sigmoid(self.mix(h))

    def forward(self, h, moved, velocity, edges, edge_inputs, scale):
        away, message = self.messages(h, moved, edges, edge_inputs)
        delta = self.b * self.displacement(h, away, message, velocity, edges, scale)
        total = edges.sum(message) * scale
        step = self.update(torch.cat([h, self.a * total], dim=1))
        vectors = edges.sum(message[:, :, None] * away[:, None, :]) * scale  # v_i  (N, C, D)
        if velocity is not None:
            vectors = torch.cat([vectors, velocity[:, None]], dim=1)
        trace = self.directions.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        turned = self.directions - trace * torch.eye(vectors.shape[2], dtype=h.dtype, device=h.device)
        free_delta = self.constant(total) + vectors.flatten(1) @ turned.transpose(1, 2).flatten(0, 1)
        share = self.share(h)
        h = h + (step + share * (self.to_scalars(vectors.flatten(1)) - step))
        return h, delta + share * (free_delta - delta)


class RelaxedGroupConvolution(Relaxed):
    """Convolution over a finite group whose filters may depend on where they act (Wang et al. 2022, arXiv 2201.11969, eq. 6):

        (f ∗ ψ)(g) = Σ_h Σ_l w_l(h) ψ_l(g⁻¹h) f(h) / √|G|,   w_l(h) = 1 + θ c δ_l(h),

    with δ_l of mean zero over the group: where all are zero the coefficients are equal and the layer is exactly equivariant. As gates ask,
    ψ_l is split into its mean over the group (gate a: an invariant of f, the same for all g) and the rest (gate b).

    elements: all of the group, (G, D, D), as `symmetry.Group.elements`. channels_in, channels_out: of f and of the result. filters: how many
    ψ_l; one can only be scaled from place to place, several are mixed differently.
    Takes (N, G, channels_in), values of functions on the group for N nodes; gives (N, G, channels_out). `lift` and `lower` come from vectors
    and go back. Raises ModelError if the elements are no group, or one of them is there twice.
    """

    def __init__(
        self,
        elements: Float[Tensor, "G D D"],
        channels_in: int,
        channels_out: int,
        *,
        filters: int = 1,
        gates: Sequence[float] = GATES,
    ):
        super().__init__()
        self.open(gates)
        number = elements.shape[0]
        self.register_buffer("table", group_table(elements), persistent=False)
        self.filters = nn.Parameter(
            torch.randn(filters, number, channels_out, channels_in) / (filters * channels_in) ** 0.5
        )
        self.deviations = nn.Parameter(torch.randn(filters, number))

    def free_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"regular": [self.deviations]}

    def forward(self, f: Float[Tensor, "N G I"]) -> Float[Tensor, "N G O"]:
        mean = self.filters.mean(1, keepdim=True)
        strict = (self.a * mean + self.b * (self.filters - mean)).sum(0)  # (G, O, I)
        deviations = self.free * (self.deviations - self.deviations.mean(1, keepdim=True))
        free = (deviations[:, None, :, None, None] * self.filters[:, self.table]).sum(0)  # (G, G, O, I)
        return torch.einsum("ghoi,nhi->ngo", strict[self.table] + free, f) / self.table.shape[0] ** 0.5


def group_table(elements: Float[Tensor, "G D D"]) -> Int[Tensor, "G G"]:
    """Number of g⁻¹h, for all g and h. Raises ModelError if that is not among the elements, or there more than once."""
    if elements.ndim != 3 or not elements.shape[0] or elements.shape[1] != elements.shape[2]:
        raise ModelError(
            f"elements of the shape {tuple(elements.shape)} are no group: wanted one or more square matrices, (G, D, D); "
            "take symmetry.group('Oh').elements"
        )
    products = elements.transpose(1, 2)[:, None] @ elements[None]
    gaps = (products[:, :, None] - elements).abs().amax((3, 4))
    found = (gaps <= 1e-6).sum(2)
    if bool((found != 1).any()):
        what = (
            "the product of one's inverse with another is missing"
            if bool((found == 0).any())
            else "one of them is there twice"
        )
        raise ModelError(
            f"{elements.shape[0]} matrices are no group: {what}; take symmetry.group('Oh').elements"
        )
    return gaps.argmin(2)


def lift(vectors: Float[Tensor, "N C D"], elements: Float[Tensor, "G D D"]) -> Float[Tensor, "N G CD"]:
    """Vectors as functions on a group, f(g) = g⁻¹ v: where v turns by k, f(g) becomes f(k⁻¹g)."""
    return (vectors[:, None] @ elements.to(vectors.dtype)).flatten(2)


def lower(f: Float[Tensor, "N G CD"], elements: Float[Tensor, "G D D"]) -> Float[Tensor, "N C D"]:
    """The mean over the group of g f(g), back to vectors."""
    dim = elements.shape[1]
    components = f.unflatten(2, (f.shape[2] // dim, dim))
    return (components @ elements.to(f.dtype).transpose(1, 2)).mean(1)
