"""Irreps of O(3) in e3nn's conventions: names, Clebsch-Gordan tensors, spherical harmonics, Wigner matrices.

``"1o"`` is l = 1 with odd parity; its components are x, y, z. ``"2e"`` has five components. The normalization
is "component": the components of Y_l have mean square 1 over the sphere. e3nn computes the coupling tensors.
Everything in a forward pass is a plain tensor, since an `Irreps` object there stops torch.compile.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor


@lru_cache
def parse(irrep: str) -> tuple[int, int]:
    """Degree and parity of an irrep.

    Parameters
    ----------
    irrep : str
        A degree and "e" (even) or "o" (odd).

    Returns
    -------
    tuple of int
        Degree l, and parity 1 or -1.

    Raises
    ------
    ValueError
        If it is no irrep.

    Examples
    --------
    >>> parse("1o")
    (1, -1)
    """
    degree, parity = irrep[:-1], irrep[-1:]
    if parity not in ("e", "o") or not degree.isdigit():
        raise ValueError(f"irrep {irrep!r}: wanted a degree and a parity, such as '0e' or '1o'")
    return int(degree), 1 if parity == "e" else -1


def sizes(layout: Sequence[str]) -> list[int]:
    """Number of components of each irrep.

    Parameters
    ----------
    layout : sequence of str
        Irreps.

    Examples
    --------
    >>> sizes(["0e", "1o", "2e"])
    [1, 3, 5]
    """
    return [2 * parse(irrep)[0] + 1 for irrep in layout]


def name(l: int, parity: int) -> str:
    """The irrep of a degree and a parity, the inverse of `parse`.

    Parameters
    ----------
    l : int
        Degree.
    parity : {1, -1}
        Parity.

    Examples
    --------
    >>> name(1, -1)
    '1o'
    """
    return f"{l}{'e' if parity == 1 else 'o'}"


def natural(l: int) -> str:
    """The irrep of degree l with the parity of its spherical harmonic: 0e, 1o, 2e, …

    Parameters
    ----------
    l : int
        Degree.
    """
    return name(l, (-1) ** l)


@lru_cache
def clebsch_gordan(l1: int, l2: int, l3: int) -> Float[Tensor, "i j k"]:
    """Clebsch-Gordan (Wigner 3j) tensor, which couples two irreps to a third one.

    If x and y transform with D^l1 and D^l2, then z_k = Σ_ij C_ijk x_i y_j transforms with D^l3.

    Parameters
    ----------
    l1, l2, l3 : int
        Degrees; ``|l1 - l2| <= l3 <= l1 + l2``.

    Returns
    -------
    Tensor, shape (2 l1 + 1, 2 l2 + 1, 2 l3 + 1)
        C, float64, with Frobenius norm 1.

    Examples
    --------
    >>> clebsch_gordan(1, 1, 2).shape
    torch.Size([3, 3, 5])
    """
    from e3nn import o3

    return o3.wigner_3j(l1, l2, l3, dtype=torch.float64)


@lru_cache
def symmetric_basis() -> Float[Tensor, "6 3 3"]:
    """Orthonormal basis of symmetric 3 × 3 matrices: first the isotropic one (0e), then five traceless ones
    (2e).

    Returns
    -------
    Tensor, shape (6, 3, 3)
        The matrices, float64.
    """
    isotropic = torch.eye(3, dtype=torch.float64)[None] / math.sqrt(3)
    traceless = clebsch_gordan(1, 1, 2).permute(2, 0, 1) * math.sqrt(5)
    return torch.cat([isotropic, traceless])


@lru_cache
def _harmonic_step(l: int) -> Float[Tensor, "i k"]:
    """Matrix that takes Y_{l-1} ⊗ u, flattened, to Y_l of the unit vector u."""
    step = clebsch_gordan(l - 1, 1, l).reshape(-1, 2 * l + 1)
    pole = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    lower = spherical_harmonics(l - 1, pole[None])[-1][0]
    at_pole = torch.outer(lower, pole).reshape(-1) @ step
    return step * math.sqrt(2 * l + 1) / at_pole.norm() * _sign(l)


@lru_cache
def _sign(l: int) -> float:
    """Sign that makes the products of lower harmonics those of e3nn, since the sign of a 3j tensor is
    arbitrary.
    """
    from e3nn import o3

    u = torch.nn.functional.normalize(torch.tensor([[0.3, 0.5, 0.7]], dtype=torch.float64))
    lower = o3.spherical_harmonics(l - 1, u, normalize=False)[0]
    ours = torch.outer(lower, u[0]).reshape(-1) @ clebsch_gordan(l - 1, 1, l).reshape(-1, 2 * l + 1)
    return 1.0 if float(ours @ o3.spherical_harmonics(l, u, normalize=False)[0]) > 0 else -1.0


@lru_cache
def _cast(l: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _harmonic_step(l).to(device=device, dtype=dtype)


def spherical_harmonics(l_max: int, unit: Float[Tensor, "E 3"]) -> list[Float[Tensor, "E m"]]:
    """Real spherical harmonics of unit vectors, as polynomials of increasing degree.

    They follow from Y_l ∝ C(l-1, 1, l) · Y_{l-1} ⊗ u. So gradients of any order exist, and a zero vector has
    Y_l = 0 for l > 0.

    Parameters
    ----------
    l_max : int
        Highest degree.
    unit : Tensor, shape (E, 3)
        Unit vectors u, or zero.

    Returns
    -------
    list of Tensor, shapes (E, 1), (E, 3), (E, 5), …
        Y_0, Y_1, … up to Y_l_max.

    Examples
    --------
    >>> [y.shape[1] for y in spherical_harmonics(2, torch.eye(3))]
    [1, 3, 5]
    """
    out = [torch.ones_like(unit[:, :1])]
    if l_max > 0:
        out.append(unit * math.sqrt(3.0))
    for l in range(2, l_max + 1):
        product = (out[-1][:, :, None] * unit[:, None, :]).flatten(1)
        out.append(product @ _cast(l, unit.dtype, unit.device))
    return out


def wigner(irrep: str, rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "m m"]:
    """Wigner matrix D(g) of an irrep for an orthogonal matrix g: components transform as x' = D x.

    Parameters
    ----------
    irrep : str
        The irrep, such as "2e".
    rotation : Tensor, shape (3, 3)
        A rotation, or a rotation with a reflection.

    Returns
    -------
    Tensor, shape (2 l + 1, 2 l + 1)
        D, float64.

    Examples
    --------
    >>> wigner("1o", -torch.eye(3)).diagonal().tolist()
    [-1.0, -1.0, -1.0]
    >>> wigner("1e", -torch.eye(3)).diagonal().tolist()
    [1.0, 1.0, 1.0]
    """
    l, parity = parse(irrep)
    rotation = rotation.to(torch.float64)
    det = torch.linalg.det(rotation)
    proper = rotation * det.sign()
    # D^l(R) from D^{l-1} ⊗ D^1, coupled. This is exact to round-off; matrices from Euler angles lose digits
    # near the poles.
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for k in range(1, l + 1):
        if k == 1:
            matrix = proper
            continue
        coupling = clebsch_gordan(k - 1, 1, k) * math.sqrt(2 * k + 1)
        matrix = torch.einsum("ijk,ia,jb,abc->kc", coupling, matrix, proper, coupling)
    return matrix if det > 0 else matrix * parity


def couplings(
    left: Sequence[str], l_max: int, right: Sequence[str], *, reflections: bool
) -> list[tuple[int, int, int]]:
    """Couplings of features with spherical harmonics that symmetry allows.

    Parameters
    ----------
    left : sequence of str
        Irreps of the features.
    l_max : int
        Highest degree of the harmonics.
    right : sequence of str
        Irreps of the result.
    reflections : bool
        True: parities must match, p1 · (-1)^l = p3 (O(3)). False: only the triangle rule holds (SO(3)).

    Returns
    -------
    list of tuple of int
        Paths: index into `left`, degree l of the harmonic, index into `right`.

    Examples
    --------
    >>> couplings(["0e", "1o"], 1, ["1o"], reflections=True)
    [(0, 1, 0), (1, 0, 0)]
    """
    paths = []
    for k, target in enumerate(right):
        l3, p3 = parse(target)
        for i, source in enumerate(left):
            l1, p1 = parse(source)
            for l2 in range(abs(l1 - l3), min(l1 + l3, l_max) + 1):
                if not reflections or p1 * (-1) ** l2 == p3:
                    paths.append((i, l2, k))
    return paths
