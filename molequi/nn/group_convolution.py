"""Convolutions of points with features on a finite group (regular representation).

Features are functions on the group for each node, f(g), of shape (N, G, C): one number for each element, for
instance each of the 24 rotations of a cube. An element k turns f into f(k⁻¹g). Functions that act on each
number alone are then equivariant, so that any nonlinearity is allowed. `nn.relaxed.lift` makes such features
from vectors, and `GroupPool` invariants and vectors from them.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molequi.nn.mlp import linear, mlp
from molequi.nn.norms import LayerNorm, check_layer_norm
from molequi.nn.radial import Edges
from molequi.nn.relaxed import group_table, lower
from molequi.ops import irreps as ir
from molequi.ops.constants import Float64Constants

Kernel = Literal["harmonics", "gaussians", "mlp"]


def _wigner(elements: Float[Tensor, "G 3 3"], degree: int) -> Float[Tensor, "G B"]:
    """√(2l + 1) D^l_mn(g) up to a degree, for both parities if there are reflections."""
    parities = (1, -1) if bool((torch.linalg.det(elements) < 0).any()) else (1,)
    names = [ir.name(l, p) for l in range(degree + 1) for p in parities]
    return torch.stack(
        [
            torch.cat([ir.wigner(n, g).flatten() * math.sqrt(2 * ir.parse(n)[0] + 1) for n in names])
            for g in elements
        ]
    )


class GroupLinear(Float64Constants):
    """Convolution over the group on each node (Cohen and Welling 2016, arXiv 1602.07576, eq. 11):

        f'(g) = Σ_h W(g⁻¹h) f(h).

    Parameters
    ----------
    elements : Tensor, shape (G, 3, 3)
        All elements of the group, as ``symmetry.Group.elements``.
    channels_in, channels_out : int
        Number of channels before and after.
    degree : int, optional
        Filters are sums of Wigner functions up to this degree, W(g) = Σ_l tr(w_l D^l(g)), and so smooth over
        all rotations, of which the group is a sample. The sum is the integral over all rotations, if f has no
        higher degrees than d and degree + d is at most 2 (T), 3 (O) or 5 (I). None: any filter.

    Raises
    ------
    ModelError
        If the elements are no group.

    Examples
    --------
    >>> from molequi.symmetry import group
    >>> GroupLinear(group("T").elements, 2, 3)(torch.zeros(5, 12, 2)).shape
    torch.Size([5, 12, 3])
    """

    table: Tensor
    functions: Tensor

    def __init__(
        self,
        elements: Float[Tensor, "G 3 3"],
        channels_in: int,
        channels_out: int,
        *,
        degree: int | None = None,
    ) -> None:
        super().__init__()
        number = elements.shape[0]
        self.register_buffer("table", group_table(elements), persistent=False)
        found = torch.eye(number, dtype=torch.float64) if degree is None else _wigner(elements, degree)
        self.register_constant("functions", found)
        size = (found.shape[1] * channels_in) ** 0.5
        self.weight = nn.Parameter(torch.randn(found.shape[1], channels_in, channels_out) / size)
        self.scale = 1.0 if degree is None else number**-0.5

    def forward(self, f: Float[Tensor, "N G I"]) -> Float[Tensor, "N G O"]:
        number, channels = self.table.shape[0], self.weight.shape[2]
        filters = torch.einsum("gb,bio->gio", self.functions.to(f.dtype), self.weight) * self.scale
        # W(g⁻¹h) as one matrix from (h, in) to (g, out)
        matrix = filters[self.table].permute(1, 2, 0, 3).reshape(-1, number * channels)
        return (f.flatten(1) @ matrix).unflatten(1, (number, channels))


class GroupKernel(Float64Constants):
    """Kernels k_c(g⁻¹x) of the vectors x of edges, for all elements g. k is any function of x:

    - "harmonics", steerable up to a degree: Σ_lm R_c,lm(r) Y_lm(x / r), with learned sums R of radial
      functions;
    - "gaussians": a learned sum of Gaussians with centers on a grid in the ball of radius 1;
    - "mlp": a perceptron of the components of x.

    Parameters
    ----------
    elements : Tensor, shape (G, 3, 3)
        All elements of the group.
    channels : int
        Number of kernels.
    radial : int
        Number of radial functions ("harmonics" alone reads them).
    kind : {"harmonics", "gaussians", "mlp"}
        The kind of function.
    l_max : int
        Highest degree of harmonics.
    """

    elements: Tensor
    turn: Tensor
    centers: Tensor

    def __init__(
        self, elements: Float[Tensor, "G 3 3"], channels: int, radial: int, kind: Kernel, l_max: int
    ) -> None:
        super().__init__()
        self.kind, self.channels, self.l_max = kind, channels, l_max
        self.register_constant("elements", elements.double())
        if kind == "harmonics":
            turns = [
                torch.block_diag(*[ir.wigner(ir.natural(l), g) for l in range(l_max + 1)]) for g in elements
            ]
            self.register_constant("turn", torch.stack(turns))  # Y(g⁻¹u) = D(g)ᵀ Y(u)
            size = (l_max + 1) ** 2
            self.mix: nn.Module = linear(radial, size * channels, gain=size**-0.5)
        elif kind == "gaussians":
            steps = torch.linspace(-1, 1, 5, dtype=torch.float64)
            grid = torch.cartesian_prod(steps, steps, steps)
            self.register_constant("centers", grid[grid.norm(dim=1) <= 1.0])
            self.mix = linear(len(self.centers), channels, gain=2.0)
        else:
            self.mix = mlp([3, 4 * channels, channels])

    def forward(
        self, x: Float[Tensor, "E 3"], edges: Edges, radial: Float[Tensor, "E R"]
    ) -> Float[Tensor, "E G C"]:
        """The kernels.

        Parameters
        ----------
        x : Tensor, shape (E, 3)
            Vectors of the edges in units in which most are shorter than 1.
        edges : Edges
            The edges.
        radial : Tensor, shape (E, R)
            Radial functions.
        """
        if self.kind == "harmonics":
            harmonics = torch.cat(ir.spherical_harmonics(self.l_max, edges.unit), dim=1)  # (E, S)
            turned = torch.einsum("es,gst->egt", harmonics, self.turn.to(x.dtype))
            return turned @ self.mix(radial).unflatten(1, (-1, self.channels))
        turned = torch.einsum("ex,gxy->egy", x, self.elements.to(x.dtype))  # g⁻¹x
        if self.kind == "mlp":
            return self.mix(turned)
        # exp(-‖x - μ‖² / 2σ²) with σ = 1/2, the distance of the grid points μ
        centers = self.centers.to(x.dtype)
        square = turned.square().sum(2, keepdim=True) - 2 * turned @ centers.T + centers.square().sum(1)
        return self.mix(torch.exp(-2 * square))


class GroupPointConvolution(nn.Module):
    """Convolution over points and the group, separated into both (Bekkers et al. 2024, arXiv 2310.02970):

        f'_i(g) = V SiLU(norm(C Σ_j u(r_ij) k(g⁻¹r_ij) ∘ Σ_h W(g⁻¹h) f_j(h))).

    It is exactly equivariant under the group, whatever k is. C is the argument `scale`, u the envelope.

    Parameters
    ----------
    elements : Tensor, shape (G, 3, 3)
        All elements of the group, as ``symmetry.Group.elements``.
    channels : int
        Number of channels, at least 2.
    radial : int
        Number of radial functions.
    kernel, l_max
        As `kind` and `l_max` of `GroupKernel`.
    degree : int, optional
        As in `GroupLinear`.
    """

    def __init__(
        self,
        elements: Float[Tensor, "G 3 3"],
        channels: int,
        radial: int,
        *,
        kernel: Kernel = "harmonics",
        l_max: int = 2,
        degree: int | None = None,
    ) -> None:
        super().__init__()
        check_layer_norm("GroupPointConvolution", channels)
        self.before = GroupLinear(elements, channels, channels, degree=degree)
        self.kernel = GroupKernel(elements, channels, radial, kernel, l_max)
        self.norm = LayerNorm(channels)
        self.after = mlp([channels, 2 * channels, channels], last_gain=0.5)

    def forward(
        self,
        f: Float[Tensor, "N G C"],
        x: Float[Tensor, "E 3"],
        edges: Edges,
        radial: Float[Tensor, "E R"],
        scale: Float[Tensor, ""],
    ) -> Float[Tensor, "N G C"]:
        """The features f'.

        Parameters
        ----------
        f : Tensor, shape (N, G, C)
            Features on the group.
        x, edges, radial
            As in `GroupKernel`.
        scale : Tensor, shape ()
            C, usually 1/√(mean number of neighbors).
        """
        kernel = self.kernel(x, edges, radial) * (edges.envelope * scale)[:, None, None]
        return self.after(self.norm(edges.sum(kernel * edges.gather(self.before(f)))))


class GroupPool(Float64Constants):
    """Invariants and vectors from features on a group: means of f(g) and of g (f_x, f_y, f_z)(g).

    Parameters
    ----------
    elements : Tensor, shape (G, 3, 3)
        All elements of the group.
    channels : int
        Number of channels before, and of invariants and vectors after.

    Examples
    --------
    >>> from molequi.symmetry import group
    >>> s, v = GroupPool(group("T").elements, 4)(torch.zeros(5, 12, 4))
    >>> s.shape, v.shape
    (torch.Size([5, 4]), torch.Size([5, 4, 3]))
    """

    elements: Tensor

    def __init__(self, elements: Float[Tensor, "G 3 3"], channels: int) -> None:
        super().__init__()
        self.register_constant("elements", elements.double())
        self.scalars = mlp([channels, channels, channels], activate_last=True)
        self.vectors = linear(channels, 3 * channels, gain=math.sqrt(len(elements)))

    def forward(self, f: Float[Tensor, "N G C"]) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N C 3"]]:
        return self.scalars(f).mean(1), lower(self.vectors(f), self.elements)
