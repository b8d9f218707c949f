"""Equivariance of linear maps.

The projection to the commutant of two representations, and the distance from it.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molequi.discovery.rotations import rotation_quadrature
from molequi.errors import ConfigError, did_you_mean
from molequi.ops import irreps as ir
from molequi.util import tables as table
from molequi.util.html import html_heading, html_table

Representation = str | Callable[[Float[Tensor, "D D"]], Float[Tensor, "w w"]]


def parse_irreps(irreps: str, dim: int = 3) -> list[tuple[int, str, int]]:
    """("4x0e+2x1o") → [(4, "0e", 1), (2, "1o", D)]: multiplicity, irrep and its dimension.

    Raises ConfigError.
    """
    found = []
    for term in irreps.replace(" ", "").split("+"):
        times, _, irrep = term.rpartition("x")
        try:
            l, _ = ir.parse(irrep)
            count = int(times) if times else 1
        except ValueError as error:
            hint = "; hidden_action finds parities with parity=True" if irrep.isdigit() else ""
            raise ConfigError(
                f"irreps {irreps!r}, term {term!r}: wanted a form such as '4x0e+2x1o'{hint}"
            ) from error
        if count < 0 or (dim != 3 and l > 1):
            exist = "0 and 1" if dim != 3 else "any"
            raise ConfigError(
                f"irreps {irreps!r}, term {term!r}: wanted irreps that exist in {dim} dimensions ({exist}), "
                "with "
                "multiplicities of at least zero"
            )
        found.append((count, irrep, 1 if l == 0 else dim if l == 1 else 2 * l + 1))
    return found


def representation_matrices(irreps: str, elements: Float[Tensor, "Q D D"]) -> Float[Tensor, "Q w w"]:
    """Matrices of a representation in e3nn's order: term by term, channel by channel."""
    dim = elements.shape[1]
    signs = torch.linalg.det(elements).sign()
    parts = []
    for count, irrep, _ in parse_irreps(irreps, dim):
        l, parity = ir.parse(irrep)
        if l == 0:
            one = torch.where(signs < 0, float(parity), 1.0).to(elements)[:, None, None]
        elif l == 1:
            one = elements if parity == -1 else elements * signs[:, None, None]
        else:
            one = torch.stack([ir.wigner(irrep, element) for element in elements])
        parts += [one.to(torch.float64)] * count
    return torch.stack([torch.block_diag(*(p[k] for p in parts)) for k in range(len(elements))])


def equivariant_projection(
    weight: Float[Tensor, "out into"],
    irreps_in: Representation,
    irreps_out: Representation,
    *,
    group: str = "O(n)",
    dim: int = 3,
    quadrature_degree: int = 8,
) -> Float[Tensor, "out into"]:
    """Nearest equivariant linear map, P W = ∫ ρ_out(R)⁻¹ W ρ_in(R) dR.

    The result satisfies W ρ_in(R) = ρ_out(R) W. For two lists of irreps, the projection follows from Schur's
    lemma and needs no quadrature.

    Parameters
    ----------
    weight : Tensor, shape (out, in)
        W.
    irreps_in, irreps_out : str or callable
        Representations of inputs and outputs: irreps ("4x0e+2x1o", features in e3nn's order), or a function
        from R to a matrix, such as `HiddenAction.matrix`.
    group : str
        "O(n)" or "SO(n)".
    dim : int
        Number of dimensions of space, at least 2.
    quadrature_degree : int
        For functions. The quadrature is exact if the degrees of both representations add up to at most this.

    Returns
    -------
    Tensor, shape (out, in)
        P W, of the dtype of `weight`.

    Raises
    ------
    ConfigError
        For irreps, groups and sizes that do not fit.

    Examples
    --------
    >>> import torch
    >>> weight = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
    >>> equivariant_projection(weight, "1o", "1o")
    tensor([[5., 0., 0.],
            [0., 5., 0.],
            [0., 0., 5.]])
    """
    check_group(group, dim)
    if isinstance(irreps_in, str) and isinstance(irreps_out, str):
        _check_shape(weight, irreps_in, irreps_out, dim)
        return _schur_projection(weight.double(), irreps_in, irreps_out, group, dim).to(weight.dtype)
    total = torch.zeros_like(weight, dtype=torch.float64)
    elements, shares = _group_quadrature(group, dim, quadrature_degree)
    for element, share in zip(elements, shares):
        left, right = (
            representation_matrices(r, element[None])[0] if isinstance(r, str) else r(element).double()
            for r in (irreps_out, irreps_in)
        )
        if tuple(weight.shape) != (left.shape[0], right.shape[0]):
            raise ConfigError(
                f"a map of shape {tuple(weight.shape)}; the representations act on {right.shape[0]} → "
                f"{left.shape[0]} dimensions"
            )
        # The inverse, not the transpose: a representation that was fitted to data is only approximately
        # orthogonal.
        total += share * torch.linalg.pinv(left, rtol=1e-6) @ weight.double() @ right
    return total.to(weight.dtype)


def check_group(group: str, dim: int) -> None:
    """Raise ConfigError for other groups than O(n) and SO(n), and for fewer than two dimensions."""
    if group not in ("O(n)", "SO(n)"):
        raise ConfigError(
            f"group {group!r}: weights are projected for O(n) or "
            f"SO(n){did_you_mean(group, ('O(n)', 'SO(n)'))}"
        )
    if dim < 2:
        raise ConfigError(f"dim={dim}: wanted at least two dimensions, in which rotations exist")


def _check_shape(weight: Tensor, irreps_in: str, irreps_out: str, dim: int, where: str = "the map") -> None:
    wanted = tuple(sum(n * m for n, _, m in parse_irreps(irreps, dim)) for irreps in (irreps_out, irreps_in))
    if weight.ndim != 2:
        raise ConfigError(
            f"{where} has shape {tuple(weight.shape)}; wanted a matrix (out, in), for {irreps_in} → "
            f"{irreps_out} "
            f"of shape {wanted}"
        )
    if tuple(weight.shape) != wanted:
        raise ConfigError(
            f"{where} goes from {weight.shape[1]} to {weight.shape[0]} dimensions; {irreps_in} → "
            f"{irreps_out} "
            f"from {wanted[1]} to {wanted[0]}"
        )


def _group_quadrature(group: str, dim: int, degree: int) -> tuple[Tensor, Tensor]:
    rotations, weights = rotation_quadrature(dim, degree)
    if group == "SO(n)":
        return rotations, weights
    mirror = torch.eye(dim, dtype=torch.float64)
    mirror[-1, -1] = -1.0
    return torch.cat([rotations, rotations @ mirror]), torch.cat([weights, weights]) / 2


def _blocks(weight: Tensor, irreps_in: str, irreps_out: str, dim: int) -> Iterator[tuple[str, str, Tensor]]:
    """(irrep in, irrep out, view (n_out, m_out, n_in, m_in) of the weight) of each pair of terms."""
    row = 0
    for n, irrep, m in parse_irreps(irreps_out, dim):
        column = 0
        for p, source, q in parse_irreps(irreps_in, dim):
            part = weight[row : row + n * m, column : column + p * q]
            yield source, irrep, part.unflatten(1, (p, q)).unflatten(0, (n, m))
            column += p * q
        row += n * m


def _schur_projection(weight: Tensor, irreps_in: str, irreps_out: str, group: str, dim: int) -> Tensor:
    result = torch.zeros_like(weight)
    for (source, irrep, part), (_, _, target) in zip(
        _blocks(weight, irreps_in, irreps_out, dim), _blocks(result, irreps_in, irreps_out, dim)
    ):
        (l, p), (k, q) = ir.parse(source), ir.parse(irrep)
        if l != k or not part.numel():
            continue
        size = part.shape[1]
        # Irreps of rotations in space are of real type: only multiples of one commute. In the plane the
        # rotation J by 90° commutes too, and J S = -S J for a reflection S: J connects vectors and
        # pseudovectors, which are the same representation of O(2).
        bases = [torch.eye(size, dtype=torch.float64)] if p == q or group == "SO(n)" else []
        if dim == 2 and l == 1 and (p != q or group == "SO(n)"):
            bases.append(torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64))
        for basis in bases:
            multiples = torch.einsum("ambq,mq->ab", part, basis)
            target += multiples[:, None, :, None] * basis[None, :, None, :] / size
    return result


@dataclass(frozen=True, kw_only=True)
class CommutantDistance:
    """Distance of a linear map from the equivariant ones, ``|(1 − P) W|² / |W|²``; ``print`` shows it.

    The mean of ``|W ρ_in(R) − ρ_out(R) W|²`` over the group is ``2 |(1 − P) W|²``.

    Attributes
    ----------
    name : str
        The layer.
    irreps_in, irreps_out, group : str
        Representations of inputs and outputs, and the group.
    squared_norm : float
        ``|W|²``.
    squared_distance : float
        ``|(1 − P) W|²``.
    by_irreps : dict
        For each pair of irreps such as "1o → 0e", its share of ``|W|²``, and its part of
        ``|(1 − P) W|² / |W|²``.
    """

    name: str
    irreps_in: str
    irreps_out: str
    group: str
    squared_norm: float
    squared_distance: float
    by_irreps: dict[str, tuple[float, float]]

    @property
    def relative(self) -> float:
        """The relative distance ``|(1 − P) W|² / |W|²``."""
        return self.squared_distance / self.squared_norm if self.squared_norm else 0.0

    @property
    def summary(self) -> str:
        """The result in words."""
        if self.relative <= 1e-24:
            return "equivariant"
        return f"{self.relative:.2e} of the squared weights is not equivariant"

    @property
    def title(self) -> str:
        """The layer, its representations and the group."""
        return f"weights of {self.name}: {self.irreps_in} → {self.irreps_out}, {self.group}"

    def _rows(self) -> list[tuple[str, str, str]]:
        return [(k, f"{a:.4f}", f"{b:.1e}") for k, (a, b) in self.by_irreps.items()]

    def __str__(self) -> str:
        return "\n".join([self.title, *table.text_table(_HEAD, self._rows()), self.summary])

    def _repr_html_(self) -> str:
        return html_heading(self.title, self.summary) + html_table(_HEAD, self._rows())

    __repr__ = __str__

    def to_json(self) -> str:
        """All fields, the relative distance and the summary as JSON."""
        numbers = table.json_ready({**asdict(self), "relative": self.relative})
        return json.dumps({**numbers, "summary": self.summary}, indent=1, allow_nan=False)


_HEAD = ("irreps", "share of the weights", "not equivariant")


def commutant_distance(
    layer: nn.Linear | Tensor,
    irreps_in: str,
    irreps_out: str,
    *,
    group: str = "O(n)",
    dim: int = 3,
    name: str = "W",
) -> CommutantDistance:
    """Distance of a linear map from the equivariant ones, in all and by pairs of irreps.

    For representations that are functions, see `equivariant_projection`.

    Parameters
    ----------
    layer : torch.nn.Linear or Tensor, shape (out, in)
        The map. A bias counts as a map from one more "0e".
    irreps_in, irreps_out : str
        Irreps of inputs and outputs, such as "4x0e+2x1o", in e3nn's order.
    group : str
        "O(n)" or "SO(n)".
    dim : int
        Number of dimensions of space.
    name : str
        Name for the report.

    Returns
    -------
    CommutantDistance
        ``print`` shows it.

    Raises
    ------
    ConfigError
        For irreps, groups and sizes that do not fit.

    Examples
    --------
    >>> import torch
    >>> commutant_distance(torch.diag(torch.tensor([1.0, 1.0, 4.0])), "1o", "1o").relative
    0.3333333333333333
    """
    check_group(group, dim)
    weight = (layer.weight if isinstance(layer, nn.Linear) else layer).detach().double()
    _check_shape(weight, irreps_in, irreps_out, dim, name)
    inputs = irreps_in
    if isinstance(layer, nn.Linear) and layer.bias is not None:
        weight, inputs = (
            torch.cat([weight, layer.bias.detach().double()[:, None]], dim=1),
            f"{irreps_in}+1x0e",
        )
    remainder = weight - _schur_projection(weight, inputs, irreps_out, group, dim)
    squares: dict[str, list[float]] = {}
    for (source, irrep, part), (_, _, left) in zip(
        _blocks(weight, inputs, irreps_out, dim), _blocks(remainder, inputs, irreps_out, dim)
    ):
        entry = squares.setdefault(f"{source} → {irrep}", [0.0, 0.0])
        entry[0] += float(part.square().sum())
        entry[1] += float(left.square().sum())
    whole = float(weight.square().sum())
    return CommutantDistance(
        name=name,
        irreps_in=irreps_in,
        irreps_out=irreps_out,
        group=group,
        squared_norm=whole,
        squared_distance=float(remainder.square().sum()),
        by_irreps={
            k: (a / whole if whole else 0.0, b / whole if whole else 0.0) for k, (a, b) in squares.items()
        },
    )
