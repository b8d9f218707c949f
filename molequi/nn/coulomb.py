"""Electrostatics of Gaussian charges without a cutoff: pairs of a molecule, Ewald sums of crystals, slabs.

A charge q_i is a Gaussian of width σ, so that two of them interact by

    V(r) = k erf(r / 2σ) / r.

The Fourier transform of V falls like exp(-σ² k²), so that a lattice sum converges in reciprocal space alone:
no part in real space, hence no second neighbor list, and the sum of one structure is a few matrix products.
In the literature on latent Ewald sums (Cheng 2025, 10.1038/s41524-025-01577-7) √2 σ is called σ.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.errors import DataError
from molequi.graph import Graph
from molequi.nn.pair_energies import COULOMB
from molequi.ops.segment import segment_mean

NEGLIGIBLE = 1e-10  # of the Fourier transform of V(r) r: terms below are left out
GAP = 3.5  # of the longest lattice vector of a slab: vacuum between its images, exp(-2π 3.5) = 3e-10


def coulomb_potential(charges: Float[Tensor, "N C"], graph: Graph, width: float) -> Float[Tensor, "N C"]:
    """Potential of the other charges and of all periodic images at each atom, in each channel.

    ``0.5 * (charges * potential).sum()`` is the energy. An atom alone has the potential 0. The cell of a
    crystal that is charged is neutralized by a uniform background.

    Parameters
    ----------
    charges : Tensor, shape (N, C)
        Charges in e.
    graph : Graph
        A batch of structures. No edges are needed.
    width : float
        σ in Å.

    Returns
    -------
    Tensor, shape (N, C)
        In eV/e, float64.

    Raises
    ------
    DataError
        For structures that are not of three dimensions, or have one periodic direction.
    """
    charges, graph, periodic = charges.double(), _precise(graph), _periodic(graph)
    out = torch.zeros_like(charges)
    if not all(periodic):
        rows, members = _padded(graph, [k for k, images in enumerate(periodic) if not images])
        dense = _pairs(graph.pos[rows], members, width) @ (charges[rows] * members[..., None])
        out = out.index_put((rows[members],), dense[members])
    if any(periodic):
        nodes = _parts(graph, periodic)
        dense = torch.cat(
            [
                _lattice_potential(charges[own], graph.pos[own], *_box(graph, k, own), width)
                for k, own in nodes
            ]
        )
        rows = torch.cat([torch.arange(own.start, own.stop, device=out.device) for _, own in nodes])
        out = out.index_put((rows,), dense - _self(width) * charges[rows])
    return COULOMB * out


def coulomb_matrix(graph: Graph, width: float) -> tuple[Float[Tensor, "G n n"], Tensor, Tensor]:
    """Interaction A of all pairs of atoms of each structure: the energy of charges q is ½ qᵀ A q.

    The diagonal has the energy of each Gaussian with itself, k / (√π σ), so that A is positive definite.

    Parameters
    ----------
    graph : Graph
        A batch of structures. No edges are needed.
    width : float
        σ in Å.

    Returns
    -------
    matrix : Tensor, shape (G, n, n)
        In eV/e², float64; n is the largest number of atoms. Rows and columns beyond those of a structure are
        zero.
    rows : Tensor, shape (G, n)
        Node of each row of the matrix.
    members : Tensor, shape (G, n)
        False for padding.

    Raises
    ------
    DataError
        As `coulomb_potential`.
    """
    graph, periodic = _precise(graph), _periodic(graph)
    rows, members = _padded(graph, list(range(graph.num_graphs)))
    matrix = _pairs(graph.pos[rows], members, width)
    matrix = matrix + _self(width) * torch.diag_embed(members.double())
    if any(periodic):
        whole = list(matrix.unbind(0))
        for k, own in _parts(graph, periodic):
            dense = _lattice_matrix(graph.pos[own], *_box(graph, k, own), width)
            missing = matrix.shape[1] - dense.shape[0]
            whole[k] = torch.nn.functional.pad(dense, (0, missing, 0, missing))
        matrix = torch.stack(whole)
    return COULOMB * matrix, rows, members


def _self(width: float) -> float:
    """V(0) / k, the potential of a Gaussian at its own center."""
    return 1 / (math.sqrt(math.pi) * width)


def _precise(graph: Graph) -> Graph:
    """The graph with positions and cells in float64."""
    return graph.replace(pos=graph.pos.double(), cell=None if graph.cell is None else graph.cell.double())


def _periodic(graph: Graph) -> list[bool]:
    """Which structures have images. Raises DataError for those that have no sum."""
    if graph.dim != 3:
        raise DataError(f"long range: structures of {graph.dim} dimensions; wanted three")
    if graph.pbc is None:
        return [False] * graph.num_graphs
    directions = graph.pbc.sum(1).tolist()
    if 1 in directions:
        raise DataError(
            f"long range: structure {directions.index(1)} of the batch is periodic in one direction "
            f"(pbc={graph.pbc[directions.index(1)].tolist()}), for which there is no sum here; make it "
            "periodic in three directions with enough vacuum, or in none"
        )
    return [number > 0 for number in directions]


def _parts(graph: Graph, chosen: list[bool]) -> list[tuple[int, slice]]:
    """Number and nodes of each chosen structure."""
    ends = [0, *graph.counts.cumsum(0).tolist()]
    return [(k, slice(ends[k], ends[k + 1])) for k, wanted in enumerate(chosen) if wanted]


def _padded(graph: Graph, chosen: list[int]) -> tuple[Tensor, Tensor]:
    """Nodes of the chosen structures as rows of equal length, and which of them are no padding."""
    counts = graph.counts
    starts = counts.cumsum(0) - counts
    chosen_ = torch.tensor(chosen, device=graph.pos.device)
    steps = torch.arange(int(counts[chosen_].max()), device=graph.pos.device)
    members = steps < counts[chosen_, None]  # (M, n)
    return torch.where(members, starts[chosen_, None] + steps, starts[chosen_, None]), members


def _pairs(pos: Float[Tensor, "M n 3"], members: Tensor, width: float) -> Float[Tensor, "M n n"]:
    """V(r) / k of all pairs of different atoms of each molecule; zero for padding and on the diagonal."""
    both = members[:, :, None] & members[:, None, :]
    both = both & ~torch.eye(pos.shape[1], dtype=torch.bool, device=pos.device)
    square = (pos[:, :, None] - pos[:, None, :]).square().sum(3)
    # Of two atoms in one place the value is V(0) to 1e-16, and the slope 0.
    r = torch.where(both, square, 1.0).clamp(min=1e-16 * width**2).sqrt()
    return torch.where(both, torch.erf(r / (2 * width)) / r, 0.0)


def _box(graph: Graph, k: int, own: slice) -> tuple[Tensor, Tensor | None]:
    """Lattice vectors of one structure, and of a slab the coordinate of each atom along its normal.

    A slab gets a vector along its normal in place of the one that is not periodic. Its length does not change
    the energy, see `_slab`.
    """
    assert graph.cell is not None and graph.pbc is not None
    cell, pbc = graph.cell[k], graph.pbc[k]
    if bool(pbc.all()):
        return cell, None
    a, b = cell[pbc].unbind(0)
    normal = torch.linalg.cross(a, b)
    normal = normal / normal.norm()
    height = graph.pos[own] @ normal
    height = height - height.detach().mean()
    with torch.no_grad():
        length = (height.max() - height.min()) + GAP * torch.stack([a.norm(), b.norm()]).max()
    return torch.stack([a, b, normal * length]), height


def _frequencies(cell: Float[Tensor, "3 3"], width: float) -> tuple[list[int], Float[Tensor, "a b c"]]:
    """Reciprocal lattice vectors: largest index in each direction, and the weight 4π exp(-σ² k²) / (V k²).

    Of k and -k only one is there, with twice the weight. Those beyond the sphere in which weights matter have
    the weight 0, so that the sum does not depend on the choice of the lattice vectors.
    """
    largest = math.sqrt(-math.log(NEGLIGIBLE)) / width
    most = [int(largest * n / (2 * math.pi)) for n in cell.detach().norm(dim=1).tolist()]  # |k·a| <= |k| |a|
    indices = [
        torch.arange(0 if k == 0 else -n, n + 1, dtype=cell.dtype, device=cell.device)
        for k, n in enumerate(most)
    ]
    vectors = 2 * math.pi * torch.cartesian_prod(*indices) @ torch.linalg.inv(cell).T
    square = vectors.square().sum(1)
    inside = (square <= largest**2) & (square > 0)
    square = torch.where(inside, square, 1.0)
    volume = torch.linalg.det(cell).abs()
    weight = torch.where(inside, 4 * math.pi / volume * torch.exp(-(width**2) * square) / square, 0.0)
    weight = weight.reshape([len(i) for i in indices])
    twice = torch.where(indices[0] > 0, 2.0, 1.0)
    return most, weight * twice[:, None, None]


def _phases(pos: Tensor, cell: Tensor, most: list[int]) -> list[Tensor]:
    """exp(2πi m s) of the fractional coordinates s with the indices m of each direction, shape (N, n)."""
    fractional = 2 * math.pi * pos @ torch.linalg.inv(cell)
    return [
        torch.polar(torch.ones_like(angle), angle)
        for k, n in enumerate(most)
        for angle in [
            fractional[:, k, None]
            * torch.arange(0 if k == 0 else -n, n + 1, dtype=pos.dtype, device=pos.device)
        ]
    ]


def _lattice_potential(
    charges: Float[Tensor, "N C"],
    pos: Float[Tensor, "N 3"],
    cell: Tensor,
    height: Tensor | None,
    width: float,
) -> Float[Tensor, "N C"]:
    """φ_i / k = Σ_k w_k Re [S_k* exp(i k·r_i)],   S_k = Σ_j q_j exp(i k·r_j),   with the charge i itself.

    exp(i k·r) is a product of three factors, one for each direction of the lattice, so that both sums are
    matrix products.
    """
    most, weight = _frequencies(cell, width)
    x, y, z = _phases(pos, cell, most)
    plane = (x[:, :, None] * y[:, None, :]).flatten(1)  # (N, a b)
    out = []
    for q in charges.unbind(1):
        structure = plane.T @ (q[:, None] * z)  # S  (a b, c)
        back = plane @ (structure.conj() * weight.flatten(0, 1))  # (N, c)
        out.append((back * z).real.sum(1))
    potential = torch.stack(out, dim=1)
    return potential if height is None else potential + _slab(cell, height, width) @ charges


def _lattice_matrix(pos: Tensor, cell: Tensor, height: Tensor | None, width: float) -> Float[Tensor, "N N"]:
    """A_ij / k = Σ_k w_k cos(k·(r_i - r_j)), a product of a matrix with its transpose."""
    most, weight = _frequencies(cell, width)
    x, y, z = _phases(pos, cell, most)
    chosen = weight.flatten().nonzero().squeeze(1)
    a, rest = chosen // (y.shape[1] * z.shape[1]), chosen % (y.shape[1] * z.shape[1])
    waves = x[:, a] * y[:, rest // z.shape[1]] * z[:, rest % z.shape[1]]  # exp(i k·r)  (N, K)
    waves = waves * weight.flatten()[chosen].sqrt()
    parts = torch.cat([waves.real, waves.imag], dim=1)
    matrix = parts @ parts.T
    return matrix if height is None else matrix + _slab(cell, height, width)


def _slab(cell: Tensor, height: Float[Tensor, "N"], width: float) -> Float[Tensor, "N N"]:
    """What a sum over images of a slab along its normal has too much, as a matrix of pairs over k:

        -(2π / V) [(z_i - z_j)² + 2 σ² + L² / 6]

    (Yeh and Berkowitz 1999, 10.1063/1.479595; with a net charge Ballenegger, Arnold and Cerdà 2009,
    10.1063/1.3216473). V is the volume of the box and L its length along the normal.
    """
    volume = torch.linalg.det(cell).abs()
    length = cell[2].detach().norm()
    square = (height[:, None] - height[None, :]).square()
    return -2 * math.pi / volume * (square + 2 * width**2 + length**2 / 6)


def work_of_field(graph: Graph) -> Float[Tensor, "N"]:
    """F·(r - r̄) of each atom, with the mean r̄ of the positions: minus the energy of a unit charge there.

    Together with the energy of the net charge, see `models.inputs.net_charge_in_field`, charges q then have
    the energy -Σ q F·r. In periodic structures r is not defined and the result is zero.

    Parameters
    ----------
    graph : Graph
        A batch of structures in electric fields.

    Returns
    -------
    Tensor, shape (N,)
        In eV/e, float64.
    """
    pos, field = graph.pos.double(), graph.electric_field
    assert field is not None
    if graph.pbc is not None:
        field = field.masked_fill(graph.pbc.any(1)[:, None], 0.0)
    arm = pos - segment_mean(pos, graph.batch, graph.num_graphs)[graph.batch]
    return (arm * field.double()[graph.batch]).sum(1)
