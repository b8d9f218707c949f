"""Weights against a symmetry: how far a linear map is from those that turn along, and the net without what does not (pruning)."""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molequi.discovery.curves import Measure, measured
from molequi.discovery.orbits import rotations
from molequi.errors import ConfigError, did_you_mean
from molequi.ops import irreps as ir
from molequi.util import tables as table

SHARED = 1e-4  # what is left of a projected layer beyond the round-off of bfloat16, squared: its weights are those of another layer too

Representation = str | Callable[[Float[Tensor, "D D"]], Float[Tensor, "w w"]]


def blocks(layout: str, dim: int = 3) -> list[tuple[int, str, int]]:
    """("4x0e+2x1o") → [(4, "0e", 1), (2, "1o", D)]: multiplicity, irrep and its size. Raises ConfigError for what cannot be read."""
    found = []
    for term in layout.replace(" ", "").split("+"):
        times, _, irrep = term.rpartition("x")
        try:
            l, _ = ir.parse(irrep)
            count = int(times) if times else 1
        except ValueError as error:
            known = "; the parities of a hidden action are found with parity=True" if irrep.isdigit() else ""
            raise ConfigError(
                f"layout {layout!r}, term {term!r}: wanted such as '4x0e+2x1o'{known}"
            ) from error
        if count < 0 or (dim != 3 and l > 1):
            raise ConfigError(
                f"layout {layout!r}, term {term!r}: wanted irreps that exist in {dim} dimensions ({'0 and 1' if dim != 3 else 'any'}), "
                "each no less than zero times"
            )
        found.append((count, irrep, 1 if l == 0 else dim if l == 1 else 2 * l + 1))
    return found


def matrices(layout: str, turns: Float[Tensor, "Q D D"]) -> Float[Tensor, "Q w w"]:
    """The representation of a layout, in e3nn's order: of each term channel by channel."""
    dim = turns.shape[1]
    signs = torch.linalg.det(turns).sign()
    parts = []
    for count, irrep, _size in blocks(layout, dim):
        l, parity = ir.parse(irrep)
        if l == 0:
            one = torch.where(signs < 0, float(parity), 1.0).to(turns)[:, None, None]
        elif l == 1:
            one = turns if parity == -1 else turns * signs[:, None, None]
        else:
            one = torch.stack([ir.wigner(irrep, turn) for turn in turns])
        parts += [one.to(torch.float64)] * count
    return torch.stack([torch.block_diag(*(p[k] for p in parts)) for k in range(len(turns))])


def project(
    weight: Float[Tensor, "out into"],
    into: Representation,
    out: Representation,
    *,
    group: str = "O(n)",
    dim: int = 3,
    degree: int = 8,
) -> Float[Tensor, "out into"]:
    """P W = ∫ ρ_out(R)ᵀ W ρ_in(R) dR: the nearest linear map that turns along, W ρ_in(R) = ρ_out(R) W, for orthogonal representations.

    into, out: what the map takes and gives, each a layout ("4x0e+2x1o", features in e3nn's order) or a function from R to a matrix, as
    `Action.matrix` of features that declare nothing. group: "O(n)" or "SO(n)". dim: of space. degree: of the quadrature for functions, exact
    if the degrees of both representations add up to it; layouts need none (lemma of Schur). Raises ConfigError.
    """
    _check_group(group, dim)
    if isinstance(into, str) and isinstance(out, str):
        _check_shape(weight, into, out, dim)
        return _by_schur(weight.double(), into, out, group, dim).to(weight.dtype)
    total = torch.zeros_like(weight, dtype=torch.float64)
    turns, shares = _elements(group, dim, degree)
    for turn, share in zip(turns, shares):
        left, right = (
            matrices(r, turn[None])[0] if isinstance(r, str) else r(turn).double() for r in (out, into)
        )
        if tuple(weight.shape) != (left.shape[0], right.shape[0]):
            raise ConfigError(
                f"a map of shape {tuple(weight.shape)}; the representations act on {right.shape[0]} → {left.shape[0]} dimensions"
            )
        # R⁻¹ in place of the transpose, which a representation fitted to data is only nearly: P is a projection all the same
        total += share * torch.linalg.pinv(left, rtol=1e-6) @ weight.double() @ right
    return total.to(weight.dtype)


def _check_group(group: str, dim: int) -> None:
    if group not in ("O(n)", "SO(n)"):
        raise ConfigError(
            f"group {group!r}: weights are projected for O(n) or SO(n){did_you_mean(group, ('O(n)', 'SO(n)'))}"
        )
    if dim < 2:
        raise ConfigError(f"dim={dim}: wanted at least two dimensions, in which there are rotations")


def _check_shape(weight: Tensor, into: str, out: str, dim: int, where: str = "the map") -> None:
    wanted = tuple(sum(n * m for n, _, m in blocks(layout, dim)) for layout in (out, into))
    if weight.ndim != 2:
        raise ConfigError(
            f"{where} has shape {tuple(weight.shape)}; wanted a matrix (out, in), for {into} → {out} of shape {wanted}"
        )
    if tuple(weight.shape) != wanted:
        raise ConfigError(
            f"{where} goes from {weight.shape[1]} to {weight.shape[0]} dimensions; {into} → {out} from {wanted[1]} to {wanted[0]}"
        )


def _elements(group: str, dim: int, degree: int) -> tuple[Tensor, Tensor]:
    turns, shares = rotations(dim, degree)
    if group == "SO(n)":
        return turns, shares
    mirror = torch.eye(dim, dtype=torch.float64)
    mirror[-1, -1] = -1.0
    return torch.cat([turns, turns @ mirror]), torch.cat([shares, shares]) / 2


def _pieces(weight: Tensor, into: str, out: str, dim: int):
    """(irrep in, irrep out, view (n_out, m_out, n_in, m_in) of the weight) of each pair of terms."""
    row = 0
    for n, irrep, m in blocks(out, dim):
        column = 0
        for p, source, q in blocks(into, dim):
            yield (
                source,
                irrep,
                weight[row : row + n * m, column : column + p * q].unflatten(1, (p, q)).unflatten(0, (n, m)),
            )
            column += p * q
        row += n * m


def _by_schur(weight: Tensor, into: str, out: str, group: str, dim: int) -> Tensor:
    result = torch.zeros_like(weight)
    for (source, irrep, piece), (_, _, target) in zip(
        _pieces(weight, into, out, dim), _pieces(result, into, out, dim)
    ):
        (l, p), (k, q) = ir.parse(source), ir.parse(irrep)
        if l != k or not piece.numel():
            continue
        size = piece.shape[1]
        # Irreps of the rotations of space are of real type: only multiples of one commute. In the plane so does the turn J by 90°, and
        # J S = -S J for a reflection S: vectors and pseudovectors are one representation of O(2), which J connects.
        bases = [torch.eye(size, dtype=torch.float64)] if p == q or group == "SO(n)" else []
        if dim == 2 and l == 1 and (p != q or group == "SO(n)"):
            bases.append(torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64))
        for basis in bases:
            target += (
                torch.einsum("ambq,mq->ab", piece, basis)[:, None, :, None] * basis[None, :, None, :] / size
            )
    return result


@dataclass(frozen=True, kw_only=True)
class Commutant:
    """How much of a linear map does not turn along: |(1 − P) W|² / |W|², in all and for each pair of irreps; `print` shows them.

    The mean of |W ρ_in(R) − ρ_out(R) W|² over the group is twice |(1 − P) W|². pairs: {"1o → 0e": (share of |W|², of it what breaks)}.
    """

    name: str
    into: str
    out: str
    group: str
    size: float
    broken: float
    pairs: dict[str, tuple[float, float]]

    @property
    def share(self) -> float:
        """|(1 − P) W|² / |W|²."""
        return self.broken / self.size if self.size else 0.0

    @property
    def summary(self) -> str:
        return (
            "turns along"
            if self.share <= 1e-24
            else f"{self.share:.2e} of the squared weights does not turn along"
        )

    @property
    def title(self) -> str:
        return f"weights of {self.name}: {self.into} → {self.out}, {self.group}"

    def _rows(self) -> list[tuple[str, str, str]]:
        return [(k, f"{a:.4f}", f"{b:.1e}") for k, (a, b) in self.pairs.items()]

    def __str__(self) -> str:
        return "\n".join(
            [self.title, *table.text_table(("irreps", "share", "broken"), self._rows()), self.summary]
        )

    def _repr_html_(self) -> str:
        return table.html_heading(self.title, self.summary) + table.html_table(
            ("irreps", "share", "broken"), self._rows()
        )

    def to_json(self) -> str:
        return json.dumps(
            {
                **table.json_ready(asdict(self)),
                "share": table.json_ready(self.share),
                "summary": self.summary,
            },
            indent=1,
            allow_nan=False,
        )


def commutant(
    layer: nn.Linear | Tensor, into: str, out: str, *, group: str = "O(n)", dim: int = 3, name: str = "W"
) -> Commutant:
    """The distance of a linear map from those that turn along, for layouts ("4x0e+2x1o"); for hidden representations, see `project`.

    layer: an nn.Linear, whose bias counts as a map from "1x0e", or a matrix (out, in). Raises ConfigError where sizes do not fit.
    """
    _check_group(group, dim)
    weight = (layer.weight if isinstance(layer, nn.Linear) else layer).detach().double()
    _check_shape(weight, into, out, dim, name)
    if isinstance(layer, nn.Linear) and layer.bias is not None:
        weight, taken = torch.cat([weight, layer.bias.detach().double()[:, None]], dim=1), f"{into}+1x0e"
    else:
        taken = into
    rest = weight - _by_schur(weight, taken, out, group, dim)
    sizes: dict[str, list[float]] = {}
    for (source, irrep, piece), (_, _, left) in zip(
        _pieces(weight, taken, out, dim), _pieces(rest, taken, out, dim)
    ):
        entry = sizes.setdefault(f"{source} → {irrep}", [0.0, 0.0])
        entry[0] += float(piece.square().sum())
        entry[1] += float(left.square().sum())
    whole = float(weight.square().sum())
    return Commutant(
        name=name,
        into=into,
        out=out,
        group=group,
        size=whole,
        broken=float(rest.square().sum()),
        pairs={k: (a / whole if whole else 0.0, b / whole if whole else 0.0) for k, (a, b) in sizes.items()},
    )


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A copy of a net in which linear maps were projected, `model`; `print` shows what was taken away and what it changed.

    layers: of each map, the distance that it had; left: that it has now, round-off unless two layers share their weights. before, after:
    the measures of both nets.
    """

    layers: tuple[Commutant, ...]
    left: tuple[Commutant, ...]
    before: dict[str, float]
    after: dict[str, float]
    model: nn.Module = field(repr=False, compare=False)

    @property
    def summary(self) -> str:
        taken = sum(c.broken for c in self.layers) / max(sum(c.size for c in self.layers), 1e-300)
        still = [c.name for c in self.left if not c.share <= SHARED]
        return (
            f"{taken:.2e} of the squared weights taken away in {len(self.layers)} layer{'s' if len(self.layers) != 1 else ''}"
            + (
                f"; of {', '.join(still)} not all, for another of them has the same weights with another layout"
                if still
                else ""
            )
        )

    def _rows(self) -> list[tuple[str, str, str]]:
        rows = [
            (f"{c.name}: {c.into} → {c.out}", f"{c.share:.2e}", f"{left.share:.2e}")
            for c, left in zip(self.layers, self.left)
        ]
        return rows + [
            (name, f"{value:.3e}", f"{self.after[name]:.3e}") for name, value in self.before.items()
        ]

    def __str__(self) -> str:
        return "\n".join([*table.text_table(("", "before", "after"), self._rows()), self.summary])

    def _repr_html_(self) -> str:
        return table.html_heading("pruned: what does not turn along", self.summary) + table.html_table(
            ("", "before", "after"), self._rows()
        )

    def to_json(self) -> str:
        return json.dumps(
            {
                **table.json_ready({k: [asdict(c) for c in getattr(self, k)] for k in ("layers", "left")}),
                "before": table.json_ready(self.before),
                "after": table.json_ready(self.after),
                "summary": self.summary,
            },
            indent=1,
            allow_nan=False,
        )


def prune(
    model: nn.Module,
    layouts: Mapping[str, tuple[str, str]],
    *,
    group: str = "O(n)",
    dim: int = 3,
    measures: Mapping[str, Measure] | None = None,
) -> Pruned:
    """A copy of a net whose linear maps are replaced by the nearest ones that turn along, W → P W, and what that does to it.

    layouts: of each nn.Linear by its name as in `named_modules` ("" for the model itself), what it takes and gives: {"edge.0":
    ("1x1o+16x0e", "64x0e")}. measures: functions of a model by name, such as a loss on held-out data or those of
    `learned.curves`, taken before and after. The whole net is equivariant afterwards only if all that stands between these maps is.
    Raises ConfigError for names that are no nn.Linear, for weights that are computed from others (weight norm and the like), for sizes
    that do not fit, and for measures that are no numbers or share a name.
    """
    _check_group(group, dim)
    linears = _linears(model)
    for name in layouts:
        if name not in linears:
            raise ConfigError(f"layouts: {name!r} is no nn.Linear of the model{did_you_mean(name, linears)}")
        for part in ("weight", "bias"):
            if part not in linears[name]._parameters:
                raise ConfigError(
                    f"layouts: the {part} of {name!r} is computed from other parameters (weight norm and the like), which a projection of it "
                    f"does not change; make it one first, as by torch.nn.utils.parametrize.remove_parametrizations(layer, {part!r})"
                )
    changed = copy.deepcopy(model)
    linears = _linears(changed)

    def distances() -> tuple[Commutant, ...]:
        return tuple(
            commutant(linears[name], *of, group=group, dim=dim, name=name or type(linears[name]).__name__)
            for name, of in layouts.items()
        )

    found = distances()
    with torch.no_grad():
        for name, (into, out) in layouts.items():
            layer = linears[name]
            layer.weight.copy_(project(layer.weight, into, out, group=group, dim=dim))
            if layer.bias is not None:
                layer.bias.copy_(project(layer.bias[:, None], "1x0e", out, group=group, dim=dim)[:, 0])
    if not found:
        raise ConfigError(
            "layouts names no layer; wanted at least one nn.Linear, such as {'edge.0': ('1x1o+16x0e', '64x0e')}"
        )
    return Pruned(
        layers=found,
        left=distances(),
        before=measured(model, measures or {}),
        after=measured(changed, measures or {}),
        model=changed,
    )


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    """By all their names, of which a layer may have several."""
    return {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear)
    }
