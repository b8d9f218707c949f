"""Frames that are aligned with edges: Wigner matrices into them, and linear maps inside them.

A frame has the direction of its edge as the axis y, about which the components m of e3nn's irreps are sorted:
a turn by φ about y mixes m and -m of each degree, with cos mφ and sin mφ. So an equivariant map of features
that depends on an edge is, in its frame, one matrix for each ``|m|`` (eSCN, Passaro and Zitnick 2023, arXiv
2302.03655). The other two axes of a frame are free: results do not depend on them.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molequi.nn.mlp import linear
from molequi.nn.radial import Edges
from molequi.ops import irreps as ir
from molequi.ops.constants import Float64Constants

Orders = list[Float[Tensor, "E _ _ C"]]  # features in the frame, one block for each |m|


def frames_of(unit: Float[Tensor, "E 3"]) -> Float[Tensor, "3 E 3"]:
    """Right-handed frames whose axis y is the direction of the edge.

    On each half of the sphere the frame is the smallest turn of ±y onto the edge; it has no singularity
    there, so that derivatives of any order are finite. Frames change at once where both halves meet, which
    results do not see.

    Parameters
    ----------
    unit : Tensor, shape (E, 3)
        Directions of length one, or zero.

    Returns
    -------
    Tensor, shape (3, E, 3)
        The axes x, y and z of each frame; zero for a zero direction.

    Examples
    --------
    >>> axes = frames_of(torch.tensor([[0.0, 0.6, 0.8]]))[:, 0]
    >>> [[round(x, 2) + 0.0 for x in axis] for axis in axes.tolist()]
    [[1.0, 0.0, 0.0], [0.0, 0.6, 0.8], [0.0, -0.8, 0.6]]
    """
    a, c, b = unit.unbind(1)
    sign = torch.where(c < 0, -1.0, 1.0).to(unit.dtype)
    q = 1.0 / (1.0 + sign * c)
    x = torch.stack([sign * (1.0 - a * a * q), -a, -sign * a * b * q], dim=1)
    z = torch.stack([-a * b * q, -sign * b, 1.0 - b * b * q], dim=1)
    present = (unit != 0).any(1, keepdim=True)
    return torch.stack([torch.where(present, x, 0.0), unit, torch.where(present, z, 0.0)])


class EdgeFrames(Float64Constants):
    """Wigner matrices D^l that turn features into the frames of edges.

    D^l follows from the spherical harmonics of a few points p that are fixed in the frame,

        Y_l(R⁻¹ p) = Y_l(p) D^l(R),

    which are polynomials of the axes of the frame. An edge without a direction has D^0 = 1 and D^l = 0 for
    l > 0, as with spherical harmonics: only invariants pass.

    Parameters
    ----------
    l_max : int
        Highest degree.
    m_max : int
        Highest ``|m|`` of the components in the frame.

    Examples
    --------
    >>> [tuple(d.shape) for d in EdgeFrames(2, m_max=1)(torch.eye(3))]
    [(3, 1, 1), (3, 3, 3), (3, 3, 5)]
    """

    points: Tensor

    def __init__(self, l_max: int, m_max: int) -> None:
        super().__init__()
        self.l_max, self.m_max = l_max, m_max
        points = _spiral(3 * l_max + 1)
        self.register_constant("points", points)
        for l, values in enumerate(ir.spherical_harmonics(l_max, points)):
            order = [l] + [l + s * m for m in range(1, min(l, m_max) + 1) for s in (1, -1)]
            self.register_constant(f"from_points_{l}", torch.linalg.pinv(values)[order])

    def forward(self, unit: Float[Tensor, "E 3"]) -> list[Float[Tensor, "E _ _"]]:
        """The matrices D^l.

        Parameters
        ----------
        unit : Tensor, shape (E, 3)
            Directions of the edges.

        Returns
        -------
        list of Tensor, shapes (E, 2 min(l, m_max) + 1, 2 l + 1)
            Rows are the components m = 0, 1, -1, 2, -2, … in the frame.
        """
        axes = frames_of(unit)
        points = (self.points.to(unit.dtype) @ axes.flatten(1)).reshape(-1, 3)  # R⁻¹ p  (P E, 3)
        out = []
        for l, values in enumerate(ir.spherical_harmonics(self.l_max, points)):
            solve = self.get_buffer(f"from_points_{l}").to(unit.dtype)  # (r, P)
            rows = solve @ values.reshape(solve.shape[1], -1)
            out.append(rows.reshape(solve.shape[0], unit.shape[0], 2 * l + 1).transpose(0, 1).contiguous())
        return out


def _spiral(n: int) -> Float[Tensor, "n 3"]:
    """Points on the sphere along a spiral (Fibonacci), float64. With 3 l + 1 of them the harmonics up to
    degree l <= 8 have condition numbers below 10.
    """
    k = torch.arange(n, dtype=torch.float64)
    y, turn = 1 - (2 * k + 1) / n, math.pi * (3 - math.sqrt(5)) * k + 0.1
    r = (1 - y * y).sqrt()
    return torch.stack([r * turn.sin(), y, r * turn.cos()], dim=1)


def into_frames(x: Float[Tensor, "E M C"], frames: Sequence[Tensor], l_max: int, m_max: int) -> Orders:
    """Features in the frames of edges, by ``|m|``.

    Parameters
    ----------
    x : Tensor, shape (E, (l_max + 1)², C)
        Features of natural parity.
    frames : sequence of Tensor
        Matrices of `EdgeFrames`.
    l_max, m_max : int
        Highest degree of the features, and highest ``|m|`` that is wanted.

    Returns
    -------
    list of Tensor, shapes (E, 1 or 2, l_max + 1 - m, C)
        One block for each m from 0 to m_max: components m and -m (one for m = 0) of the degrees m to l_max.
    """
    parts = [
        d[:, : 2 * min(l, m_max) + 1] @ part
        for l, (d, part) in enumerate(zip(frames, x.split([2 * l + 1 for l in range(l_max + 1)], dim=1)))
    ]
    return [
        torch.stack([part[:, max(0, 2 * m - 1) : 2 * m + 1] for part in parts[m:]], dim=2)
        for m in range(m_max + 1)
    ]


def sum_from_frames(blocks: Orders, frames: Sequence[Tensor], edges: Edges) -> Float[Tensor, "N M C"]:
    """Messages in the frames of edges, turned back and summed over the edges that each node receives.

    Parameters
    ----------
    blocks : list of Tensor
        Messages by ``|m|``, as from `into_frames`.
    frames : sequence of Tensor
        Matrices of `EdgeFrames`.
    edges : Edges
        The edges.

    Returns
    -------
    Tensor, shape (N, (l_max + 1)², C)
        The sums.
    """
    out = []
    for l in range(blocks[0].shape[2]):
        rows = [block[:, :, l - m] for m, block in enumerate(blocks[: l + 1])]
        rows_of = torch.cat(rows, dim=1) if len(rows) > 1 else rows[0]  # (E, r, C)
        out.append(edges.contract(frames[l][:, : rows_of.shape[1]], rows_of))
    return torch.cat(out, dim=1)


class SO2Linear(nn.Module):
    """All linear maps of features in the frame of an edge that commute with turns about the edge, with
    weights that do not depend on the edge, ``y_m = W_m x_m - V_m x_-m``, ``y_-m = V_m x_m + W_m x_-m`` and
    ``y_0 = W_0 x_0``.

    W_m mixes channels and degrees. A mirror plane that holds the edge keeps ``x_m`` and changes the sign of
    ``x_-m``, so that with reflections V_m = 0.

    Parameters
    ----------
    l_in, l_out : int
        Highest degree of x and y.
    m_max : int
        Highest ``|m|``; components above it are left out.
    channels : int
        Number of channels of each component, before and after.
    invariants : int
        Number of further invariants that are computed from x_0.
    reflections : bool
        True for O(3), False for SO(3).

    Examples
    --------
    >>> blocks = [torch.zeros(5, 1, 3, 8), torch.zeros(5, 2, 2, 8), torch.zeros(5, 2, 1, 8)]
    >>> layer = SO2Linear(l_in=2, l_out=1, m_max=2, channels=8, invariants=4, reflections=True)
    >>> [tuple(block.shape) for block in layer(blocks)[0]]
    [(5, 1, 2, 8), (5, 2, 1, 8)]
    """

    def __init__(
        self, *, l_in: int, l_out: int, m_max: int, channels: int, invariants: int, reflections: bool
    ) -> None:
        super().__init__()
        self.channels, self.reflections = channels, reflections
        self.m_max = min(l_in, l_out, m_max)
        self.zero = linear((l_in + 1) * channels, (l_out + 1) * channels + invariants)
        self.same = nn.ModuleList()
        self.crossed = nn.ModuleList()
        for m in range(1, self.m_max + 1):
            size = ((l_in + 1 - m) * channels, (l_out + 1 - m) * channels)
            gain = 1.0 if reflections else math.sqrt(0.5)
            self.same.append(linear(*size, gain=gain))
            if not reflections:
                self.crossed.append(linear(*size, gain=gain))
        self.first = (l_out + 1) * channels

    def forward(self, blocks: Orders) -> tuple[Orders, Float[Tensor, "E I"]]:
        """Orders of y by ``|m|``, and the further invariants.

        Parameters
        ----------
        blocks : list of Tensor
            Orders of x, as from `into_frames`.
        """
        zero = self.zero(blocks[0].flatten(1))
        out = [zero[:, : self.first].unflatten(1, (1, -1, self.channels))]
        for m, same in enumerate(self.same, start=1):
            x = blocks[m].flatten(2)  # (E, 2, L C)
            y = same(x)
            if not self.reflections:
                plus, minus = self.crossed[m - 1](x).unbind(1)
                y = y + torch.stack([-minus, plus], dim=1)
            out.append(y.unflatten(2, (-1, self.channels)))
        return out, zero[:, self.first :]
