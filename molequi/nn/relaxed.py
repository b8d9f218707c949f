"""Relaxed layers: gates on an invariant, an equivariant and a free path,

    W = a W_inv + b W_eq + θ c W_free.

The free path is orthogonal to all equivariant maps, so that its share measures how far a layer is from the
symmetry. Gates are learned as by van der Ouderaa et al. 2022 (arXiv 2204.07178); θ is that of Pertigkiozoglou
et al. 2024 (arXiv 2408.13242).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from molequi.errors import ModelError
from molequi.nn.cartesian import EGNNLayer
from molequi.nn.irreps import Convolution, sizes
from molequi.nn.mlp import linear
from molequi.nn.radial import Edges

# a, b and c of a new layer. With c = 0 its free weights would have no gradient in the first step.
GATES = (1.0, 1.0, 0.1)


class Relaxed(ABC, nn.Module):
    """A layer with gates on an invariant, an equivariant and a free path.

    It is exactly equivariant for c = 0 or θ = 0, and invariant for (a, b, c) = (1, 0, 0). A subclass calls
    `open` when it is built.

    Attributes
    ----------
    a, b, c : Parameter, shape ()
        Gates, which are learned.
    theta : Tensor, shape ()
        θ, which is 1 unless `set_theta` changes it.
    """

    a: nn.Parameter
    b: nn.Parameter
    c: nn.Parameter
    theta: Tensor

    def open(self, gates: Sequence[float]) -> None:
        """Make the gates.

        Parameters
        ----------
        gates : sequence of float
            Initial values of a, b and c.
        """
        self.a, self.b, self.c = (nn.Parameter(torch.tensor(float(g))) for g in gates)
        self.register_buffer("theta", torch.tensor(1.0))

    @property
    def free(self) -> Tensor:
        """θ c, the factor of the free path."""
        return self.theta * self.c

    @abstractmethod
    def free_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters in which the free path is linear, by the irrep of its output; zero means equivariant."""


def relaxed_layers(model: nn.Module) -> Iterator[tuple[str, Relaxed]]:
    """Names and relaxed layers, in the order of ``model.named_modules()``.

    Parameters
    ----------
    model : nn.Module
        A model or a part of it.
    """
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Relaxed))


def free_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Free parameters of all relaxed layers, by layer and irrep.

    Parameters
    ----------
    model : nn.Module
        A model or a part of it.

    Returns
    -------
    dict of str to list of Parameter
        ``{"backbone.layers.0/1o": [...], ...}``; empty for a model without relaxed layers.
    """
    return {
        f"{name}/{irrep}" if name else irrep: parameters
        for name, layer in relaxed_layers(model)
        for irrep, parameters in layer.free_groups().items()
    }


def set_theta(model: nn.Module, value: float) -> None:
    """Set θ of all relaxed layers. 0 makes the model exactly equivariant, whatever its gates are.

    Parameters
    ----------
    model : nn.Module
        A model or a part of it.
    value : float
        θ.

    Raises
    ------
    ModelError
        If it has no relaxed layers.

    Examples
    --------
    >>> import molequi as mq
    >>> model = mq.Model(mq.RelaxedEGNN(elements=["H"], channels=8, layers=1))
    >>> model.group
    'C1'
    >>> set_theta(model, 0)
    >>> model.group
    'O(n)'
    """
    layers = [layer for _, layer in relaxed_layers(model)]
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no relaxed layers, whose theta could be set; take RelaxedEGNN or "
            "RelaxedNequIP"
        )
    for layer in layers:
        layer.theta.fill_(value)


def is_strict(model: nn.Module) -> bool:
    """Whether θ is zero in all relaxed layers, so that free paths add nothing.

    Parameters
    ----------
    model : nn.Module
        A model or a part of it.
    """
    return all(float(layer.theta) == 0.0 for _, layer in relaxed_layers(model))


class RelaxedConvolution(Relaxed, Convolution):
    """Relaxed tensor-field convolution: `Convolution` with the kernels

        K_path = Y(r̂) · (a C_path + θ c F_path)   for paths with l = 0,
        K_path = Y(r̂) · (b C_path + θ c F_path)   for paths with l > 0.

    C_path are Clebsch-Gordan tensors. F_path are learned tensors in the frame of the laboratory, from which
    the part that symmetry allows is projected out. F_path has the norm of C_path at first, so that c is the
    size of the free kernel relative to the others. It has no radial functions of its own, since their size
    would act as another gate.

    For a = b = 1 and c = 0 it is the strict convolution.

    Parameters
    ----------
    strict : Convolution
        The convolution whose weights it takes over; they keep their names.
    gates : sequence of float
        Initial values of a, b and c.
    """

    invariant: Tensor
    where: Tensor

    def __init__(self, strict: Convolution, gates: Sequence[float]) -> None:
        nn.Module.__init__(self)  # the parts of a Convolution are those of the strict one
        self.open(gates)
        self.product, self.channels = strict.product, strict.channels
        self.before, self.radial, self.after = strict.before, strict.radial, strict.after
        product = self.product
        outputs = sizes(product.outputs)
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
        """Free tensors of each pair "output_input", orthogonal to all that symmetry allows between the two.

        Returns
        -------
        dict of str to Tensor, shape (paths, S · O · I)
            F, flattened over harmonics and components of output and input.
        """
        free = {}
        for name, kernel in self.kernels.items():
            allowed = self.get_buffer(f"allowed_{name}").to(kernel.dtype)
            free[name] = kernel - (kernel @ allowed.T) @ allowed
        return free

    def coupling(self, dtype: torch.dtype) -> Float[Tensor, "S OR"]:
        """All tensors with their gates, in the layout of `ops.TensorProduct`.

        Parameters
        ----------
        dtype : torch.dtype
            Precision of the result.
        """
        strict = self.product.coupling.to(dtype).reshape(self.shape) * torch.where(
            self.invariant, self.a, self.b
        )
        free = torch.cat([kernel.flatten() for kernel in self.free_kernels().values()]) * self.free
        return (
            strict.flatten()
            .index_add(0, self.where, free)
            .reshape(self.shape[0], self.shape[1] * self.shape[2])
        )


class RelaxedEGNNLayer(Relaxed, EGNNLayer):
    """Relaxed E(n) layer: α times the update of `EGNNLayer` and 1 - α times a free one, with α of each node,

        1 - α_i = θ c σ(w · h_i + w_0)
        Δh_i = α_i φ_h(h_i, a m_i) + (1 - α_i) Σ_c U_c v_ic
        Δx_i = α_i b Δx_i^E(n) + (1 - α_i) (S m_i + Σ_c T_c v_ic)
        m_i = C Σ_j m_ij,   v_ic = C Σ_j m_ijc (x_i - x_j) / (‖x_i - x_j‖ + 1).

    The velocity, if there is one, is another v. U, S and T are learned in the frame of the laboratory: U
    reads components of vectors as scalars, S adds vectors with fixed directions, and T, which has no trace,
    weights directions differently. Only zero is equivariant. `open` makes them.

    Parameters
    ----------
    channels, basis, edge_inputs, attention, velocity
        As in `EGNNLayer`.
    """

    def open(self, gates: Sequence[float], *, dim: int = 3) -> None:
        """Make gates and free weights.

        Parameters
        ----------
        gates : sequence of float
            Initial values of a, b and c.
        dim : int
            Dimensions of space.
        """
        super().open(gates)
        channels = self.from_sender.out_features
        vectors = channels + (self.velocity is not None)
        self.mix = linear(channels, 1, bias=True)
        self.to_scalars = linear(vectors * dim, channels)
        # As small as the initial steps of the layer itself.
        self.constant = linear(channels, dim, gain=0.01)
        self.directions = nn.Parameter(0.01 * torch.randn(vectors, dim, dim) / (vectors * dim) ** 0.5)

    def free_groups(self) -> dict[str, list[nn.Parameter]]:
        weights = (cast(nn.Parameter, layer.weight) for layer in (self.to_scalars, self.constant))
        scalars, constant = weights
        return {"0e": [scalars], "1o": [constant, self.directions]}

    def share(self, h: Float[Tensor, "N C"]) -> Float[Tensor, "N 1"]:
        """1 - α of each node.

        Parameters
        ----------
        h : Tensor, shape (N, C)
            Invariants of the nodes.
        """
        return self.free * torch.sigmoid(self.mix(h))

    def forward(
        self,
        h: Float[Tensor, "N C"],
        moved: Float[Tensor, "N D"],
        velocity: Float[Tensor, "N D"] | None,
        edges: Edges,
        edge_inputs: Float[Tensor, "E A"] | None,
        scale: Float[Tensor, ""],
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N D"]]:
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
    """Convolution over a finite group whose filters may depend on the group element (Wang et al. 2022, arXiv
    2201.11969, eq. 6):

        (f ∗ ψ)(g) = Σ_h Σ_l w_l(h) ψ_l(g⁻¹h) f(h) / √|G|,   w_l(h) = 1 + θ c δ_l(h).

    δ_l has mean zero over the group. If all δ_l are zero, the layer is exactly equivariant. The filter ψ_l is
    split into its mean over the group (gate a; the output is the same for all g) and the remainder (gate b).

    It maps functions on the group, shape (N, G, channels_in), to functions of shape (N, G, channels_out).
    `lift` makes such functions from vectors, and `lower` makes vectors from them.

    Parameters
    ----------
    elements : Tensor, shape (G, D, D)
        All elements of the group, as ``symmetry.Group.elements``.
    channels_in, channels_out : int
        Number of functions of a node, before and after.
    filters : int
        Number of filters ψ_l. One filter can only be scaled from element to element; several are mixed
        differently.
    gates : sequence of float
        Initial values of a, b and c.

    Raises
    ------
    ModelError
        If the elements are no group, or if one of them is given twice.

    Examples
    --------
    >>> from molequi.symmetry import group
    >>> layer = RelaxedGroupConvolution(group("Oh").elements, 2, 3)
    >>> layer(torch.zeros(5, 48, 2)).shape
    torch.Size([5, 48, 3])
    """

    table: Tensor

    def __init__(
        self,
        elements: Float[Tensor, "G D D"],
        channels_in: int,
        channels_out: int,
        *,
        filters: int = 1,
        gates: Sequence[float] = GATES,
    ) -> None:
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
    """Index of g⁻¹h among the elements, for all g and h.

    Parameters
    ----------
    elements : Tensor, shape (G, D, D)
        Orthogonal matrices.

    Returns
    -------
    Tensor, shape (G, G)
        The indices.

    Raises
    ------
    ModelError
        If a product is not among the elements, or more than once.
    """
    if elements.ndim != 3 or not elements.shape[0] or elements.shape[1] != elements.shape[2]:
        raise ModelError(
            f"elements of the shape {tuple(elements.shape)} are no group: wanted one or more square "
            "matrices, (G, D, D); take symmetry.group('Oh').elements"
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
    """Vectors as functions on a group, f(g) = g⁻¹ v. If v is transformed by k, f(g) becomes f(k⁻¹g).

    Parameters
    ----------
    vectors : Tensor, shape (N, C, D)
        Vectors.
    elements : Tensor, shape (G, D, D)
        All elements of the group.

    Returns
    -------
    Tensor, shape (N, G, C · D)
        f.
    """
    return (vectors[:, None] @ elements.to(vectors.dtype)).flatten(2)


def lower(f: Float[Tensor, "N G CD"], elements: Float[Tensor, "G D D"]) -> Float[Tensor, "N C D"]:
    """Vectors from functions on a group, the mean of g f(g): the inverse of `lift`.

    Parameters
    ----------
    f : Tensor, shape (N, G, C · D)
        Functions.
    elements : Tensor, shape (G, D, D)
        All elements of the group.

    Returns
    -------
    Tensor, shape (N, C, D)
        Vectors.
    """
    dim = elements.shape[1]
    components = f.unflatten(2, (f.shape[2] // dim, dim))
    return (components @ elements.to(f.dtype).transpose(1, 2)).mean(1)
