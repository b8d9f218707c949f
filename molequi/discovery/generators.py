"""Continuous symmetries of a function found from its derivatives: which motions of space leave it as it is."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molequi.audit.foreign import as_auditable
from molequi.discovery.probe import given, plain
from molequi.errors import ConfigError, DataError, ModelError, did_you_mean
from molequi.graph import Graph
from molequi.quantities import KNOWN, Quantity
from molequi.util import tables as table

RIGID = 1e-3  # part of a motion that may deform, of one that is called rigid; with a looser tolerance, as much as that
SEEN = 1e-6  # a motion that moves the structures less than this, relative to others, is not tried by them
CHECKED = 16  # structures on which derivatives are compared with finite differences
STEP = 1e-5  # of these, in radii of the structures
SLACK = 1e-5  # how far these may lie off, of the largest change, besides their own error
PARTNERS = (
    256  # nodes of a structure to which distances are taken by the function that structures are tried on
)


@dataclass(frozen=True, kw_only=True)
class Generators:
    """Motions x → X x + t of space, by how much a function changes along them; `print` shows them.

    singular: D² + D root mean square changes of the function along orthonormal motions (each moves the atoms by 1 Å in the root mean
    square), from the largest, over the largest. dimension: how many are below `tolerance`, the symmetries. gap: the smallest of the others
    over the largest of these. basis: the symmetries in words. motions: the same as (X, t) about `centre`. controls: relative changes along
    named motions, of which scaling and shears are no symmetries of space.
    """

    name: str
    dim: int
    dimension: int
    singular: tuple[float, ...]
    gap: float
    basis: tuple[str, ...]
    controls: dict[str, float]
    centre: tuple[float, ...]
    structures: int
    rows: int
    tolerance: float
    motions: tuple[tuple[Tensor, Tensor], ...]

    @property
    def summary(self) -> str:
        """The verdict in words."""
        if not self.dimension:
            return f"no continuous symmetry of space; the least change, {self.singular[-1]:.1e} of the largest, is above {self.tolerance:.0e}"
        whole = self.dim * (self.dim + 1) // 2
        kind = (
            f", all of E({self.dim})"
            if self.dimension == whole and not any("no rigid motion" in b for b in self.basis)
            else ""
        )
        how = "" if self.singular[-self.dimension] <= 1e-6 else ", some of them nearly"
        return f"{self.dimension} continuous symmetries{kind}{how}: {'; '.join(self.basis)}"

    @property
    def title(self) -> str:
        gap = "" if not 0 < self.dimension < len(self.singular) else f"; gap {self.gap:.1e}"
        return f"generators of {self.name}; {self.rows} derivatives of {self.structures} structures{gap}"

    def _rows(self) -> list[tuple[str, str]]:
        rows = [(f"singular value {k + 1}", f"{s:.1e}") for k, s in enumerate(self.singular)]
        return rows + [(k, f"{v:.1e}") for k, v in self.controls.items()]

    def __str__(self) -> str:
        return "\n".join([self.title, *table.text_table(("", "change"), self._rows()), self.summary])

    def _repr_html_(self) -> str:
        return table.html_heading(self.title, self.summary) + table.html_table(("", "change"), self._rows())

    def to_json(self) -> str:
        names = [n for n in self.__dataclass_fields__ if n != "motions"]
        return json.dumps(
            {
                **{n: table.json_ready(getattr(self, n)) for n in names},
                "summary": self.summary,
                "motions": [{"X": X.tolist(), "t": t.tolist()} for X, t in self.motions],
            },
            indent=1,
            allow_nan=False,
        )


def generators(
    subject,
    structures,
    of: str | Quantity | None = None,
    *,
    tolerance: float = 1e-6,
    probes: int = 4,
    seed: int = 0,
    limit: int = 64,
) -> Generators:
    """The motions x → X x + t along which a quantity changes as it declares, from the null space of its derivatives over data.

    A function f is left alone by a motion where Σ_i ∂f/∂x_i · (X x_i + t) = 0, so that the rows (Σ_i ∂f/∂x_i x_iᵀ, Σ_i ∂f/∂x_i) vanish on it;
    of vectors and tensors what they themselves turn by is taken off. Rows are taken in coordinates in which all motions move
    the atoms equally far, without which a large structure would make rotations look worse than translations; of structures with steeper
    slopes than the median, as where atoms nearly touch, rows are scaled down to it. Cells, velocities and given
    vectors go along with X. The null space of an invariant has 6 dimensions in space; with a field along z that acts on the height of
    each atom, 3: the rotation about z, and translations in the plane.

    Structures that stand alike make false symmetries, for every function: so a null space is believed only if one of distances alone, tried
    on the same structures, has no other symmetry than E(n). Derivatives are compared with finite differences, along random motions and
    along random ones of the null space.

    subject: a model, or a function from a Graph to a tensor, of which every number is taken as an invariant. of: a quantity that the model
    predicts. structures: whatever `audit` takes, at most `limit`. tolerance: change over the largest one below which a motion is a symmetry;
    1e-6 is for symmetries that are built in, 0.05 for learned ones. probes: random combinations of the components of vectors,
    tensors and numbers of nodes; each is a row. Raises ConfigError, DataError for constant functions and for structures that do not
    try all motions, and ModelError for numbers or derivatives that are not finite, and for derivatives that finite differences contradict.
    """
    name, call, quantity, graphs = _subject(subject, structures, of, limit)
    if probes < 1 or not 0 < tolerance < 1:
        raise ConfigError(
            f"probes={probes}, tolerance={tolerance}: wanted at least one probe, and a tolerance between 0 and 1"
        )
    if not isinstance(seed, Integral) or abs(seed) >= 2**63:
        raise ConfigError(f"seed={seed!r}: wanted a whole number below 2^63")
    dim = graphs[0].dim
    nodes = torch.cat([g.pos for g in graphs]).double()
    centre = nodes.mean(0)
    generator = torch.Generator().manual_seed(int(seed))
    several = [_rows(call, quantity, g, centre, probes, generator) for g in graphs]
    where = torch.cat([nodes - centre, torch.ones(len(nodes), 1, dtype=torch.float64)], dim=1)
    # Mean square of the displacement X x + t is Σ_a m_aᵀ K m_a with m_a = (X_a, t_a): the same K for each component a.
    size, axes = torch.linalg.eigh(where.T @ where / len(nodes))
    if not size[0] > SEEN**2 * size[-1]:
        raise DataError(
            f"the structures lie in {'one place' if size[-2] <= SEEN**2 * size[-1] else 'a plane or a line'}, so that some motions "
            "move no atom and nothing can be said of them; wanted structures that fill all dimensions"
        )
    count = sum(map(len, several))
    if count < 2 * (dim * dim + dim):
        raise DataError(
            f"{count} derivatives for {dim * dim + dim} motions; wanted at least {2 * (dim * dim + dim)}, from more structures or probes"
        )
    unit = axes / size.sqrt()  # columns: orthonormal (x, 1) → motion
    # Structures with steep slopes, as of atoms that nearly touch, count as much as the one in the middle: alone they would hide all others.
    steep = torch.stack([(r @ unit).square().mean().sqrt() for r in several])
    weight = (steep.median() / steep).clamp(max=1.0).nan_to_num(1.0)
    rows = torch.cat([w * r for w, r in zip(weight, several)])
    scaled = (rows @ unit).flatten(1)  # (rows, D (D + 1))
    _, singular, turned = torch.linalg.svd(scaled, full_matrices=False)
    # What nearby rows cancel to is not zero: a function that never answers has no symmetry worth the name.
    with torch.no_grad():
        answers = [call(g).detach() for g in graphs]
    if not singular[0] > 1e-12 * max(float(a.abs().max()) for a in answers):
        raise DataError(
            f"{name}: no derivative by the positions but that of values which every linear motion turns along, so that every motion "
            "is a symmetry and none says anything; wanted a function that depends on distances or directions"
        )
    relative = (singular / singular[0]).tolist()
    dimension = sum(s < tolerance for s in relative)
    null = (
        turned[len(relative) - dimension :].reshape(dimension, dim, dim + 1) @ unit.T
    )  # (X | t) about the centre
    radius, near = float((nodes - centre).square().sum(1).mean().sqrt()), max(RIGID, tolerance)
    within = (
        math.sqrt(sum(float((g.pos - g.pos.mean(0)).square().sum()) for g in graphs) / len(nodes)) or radius
    )
    if dimension:
        generic = [partial(_generic, quantity=quantity, shape=a.shape, radius=within) for a in answers]
        _try(
            torch.cat([_rows(f, quantity, g, centre, probes, generator) for f, g in zip(generic, graphs)]),
            unit,
            tolerance,
        )
    spaces = [torch.eye(dim * (dim + 1), dtype=torch.float64).unflatten(1, (dim, dim + 1)) @ unit.T, null]
    every = 1 + (len(graphs) - 1) // CHECKED
    gaps = [
        w * _compared(call, quantity, g, centre, spaces, STEP * within, generator)
        for g, w in zip(graphs[::every], weight[::every])
    ]
    gap, doubt = torch.stack(gaps).square().mean(0).sqrt().T
    scale = singular[0] / math.sqrt(len(rows))
    if not bool((gap <= max(tolerance, SLACK) * scale + 3 * doubt).all()):
        raise ModelError(
            f"{name}: finite differences and derivatives differ by {float((gap / scale).max()):.1e} of the largest change, so that a "
            "motion without derivatives need be no symmetry; wanted a function no part of which is cut off from them (by detach, "
            "no_grad, numpy or rounding)"
        )
    # In units of the radius of the structures while both parts of a motion are compared, or small molecules would look still.
    null[:, :, dim] /= radius
    kept = [(m[:, :dim], m[:, dim]) for m in _sorted(null, near)]
    words = _words(kept, centre / radius, radius, near)
    kept = [(X, radius * t) for X, t in kept]
    controls = {
        k: float((rows.flatten(1) @ _norm(m, where).flatten()).square().sum().sqrt() / singular[0])
        for k, m in _named(dim).items()
    }
    gap = (
        relative[-dimension - 1] / max(relative[-dimension], 1e-300)
        if 0 < dimension < len(relative)
        else math.inf
    )
    return Generators(
        name=name,
        dim=dim,
        dimension=dimension,
        singular=tuple(relative),
        gap=gap,
        basis=tuple(words),
        controls=controls,
        centre=tuple(centre.tolist()),
        structures=len(graphs),
        rows=len(rows),
        tolerance=tolerance,
        motions=tuple(kept),
    )


def _subject(subject, structures, of, limit):
    """Name, differentiable function, quantity and connected structures."""
    if not isinstance(subject, nn.Module):
        if of is not None and not isinstance(of, Quantity):
            raise ConfigError(
                f"of={of!r} of a {type(subject).__name__}: names belong to models; for a function give a Quantity, or nothing"
            )
        return (
            getattr(subject, "__name__", "function"),
            subject,
            of or Quantity(name="invariant"),
            given(structures, limit),
        )
    as_auditable(subject)
    model, graphs = plain(subject, structures, limit)
    quantities = dict(model.quantities)
    if "energy" in quantities:
        quantities.setdefault("energies", KNOWN["energies"])
    of = next(iter(quantities)) if of is None else of
    if of not in quantities:
        raise ConfigError(
            f"of={of!r}: the model predicts no such quantity{did_you_mean(str(of), quantities)}"
        )
    try:
        model(graphs[0], create_graph=True)
    except TypeError:
        return of, lambda graph: model(graph)[of], quantities[of], graphs
    return of, lambda graph: model(graph, create_graph=True)[of], quantities[of], graphs


def _moved(graph: Graph, X: Tensor, t: Tensor, centre: Tensor) -> Graph:
    """The structure at x + X (x − centre) + t; cells, velocities and given vectors go along."""

    def image(value):
        return None if value is None else value + value @ X.T.to(value.dtype)

    pos = graph.pos.double()
    return graph.replace(
        pos=pos + (pos - centre) @ X.T + t, vel=image(graph.vel), vec=image(graph.vec), cell=image(graph.cell)
    )


def _slopes(
    call, quantity: Quantity, graph: Graph, centre: Tensor, probes: int, generator: torch.Generator
) -> tuple[Tensor, list]:
    """The value f, and for random combinations w of its components, w and the derivative of w · f by X and t."""
    dim = graph.dim
    linear, offset = (
        torch.zeros(*shape, dtype=torch.float64, requires_grad=True) for shape in ((dim, dim), (dim,))
    )
    value = call(_moved(graph, linear, offset, centre))
    if not isinstance(value, Tensor) or not bool(torch.isfinite(value).all()):
        raise ModelError(
            f"{quantity.name}: found {'numbers that are not finite' if isinstance(value, Tensor) else type(value).__name__}; "
            "wanted a tensor of finite numbers"
        )
    found = []
    for _ in range(1 if value.numel() == 1 else probes):
        w = (
            torch.ones(value.shape).double()
            if value.numel() == 1
            else torch.randn(value.shape, generator=generator, dtype=torch.float64)
        )
        X, t = torch.zeros_like(linear), torch.zeros_like(offset)
        if value.requires_grad:
            X, t = torch.autograd.grad(
                (w * value.double()).sum(), [linear, offset], retain_graph=True, materialize_grads=True
            )
        if not bool(torch.isfinite(X).all() and torch.isfinite(t).all()):
            raise ModelError(
                f"{quantity.name}: its derivatives are not finite, though its numbers are, as those of the root of a distance of zero; "
                "wanted finite ones: leave out pairs of a node with itself, or use norms with finite gradients"
            )
        found.append((w, X.detach(), t.detach()))
    return value.detach().double(), found


def _rows(
    call, quantity: Quantity, graph: Graph, centre: Tensor, probes: int, generator: torch.Generator
) -> Float[Tensor, "R D D+1"]:
    """For random combinations w of the components of f: w · (X f − Df [X x + t]) as a linear function of (X | t) about the centre."""
    value, several = _slopes(call, quantity, graph, centre, probes, generator)
    own = [_own(quantity, w, value, centre) for w, _, _ in several]
    return torch.stack(
        [
            torch.cat([turned - X, (still - t)[:, None]], dim=1)
            for (turned, still), (_, X, t) in zip(own, several)
        ]
    )


def _compared(
    call,
    quantity: Quantity,
    graph: Graph,
    centre: Tensor,
    spaces: Sequence[Float[Tensor, "n D D+1"]],
    step: float,
    generator: torch.Generator,
) -> Float[Tensor, "spaces 2"]:
    """Along a random motion of each space: finite difference minus derivative of a random combination, and what round-off, kinks and jumps
    may be of it, from the second difference.
    """
    value, [(w, X, t)] = _slopes(call, quantity, graph, centre, 1, generator)
    still, found = float((w * value).sum()), []
    digits = (
        torch.float32 if bool((value.float() == value).all()) else torch.float64
    )  # computed in single, whatever type it came as
    noise = 8 * torch.finfo(digits).eps * float((w * value).abs().sum())
    for space in spaces:
        share = torch.randn(len(space), generator=generator, dtype=torch.float64)
        motion = torch.einsum("n,nab->ab", share / share.norm().clamp(min=1e-300), space)
        with torch.no_grad():
            ends = [
                call(_moved(graph, h * motion[:, :-1], h * motion[:, -1], centre)).detach()
                for h in (step, -step)
            ]
        ahead, behind = (float((w * end.double()).sum()) for end in ends)
        slope = float((X * motion[:, :-1]).sum() + (t * motion[:, -1]).sum())
        found.append(
            [(ahead - behind) / (2 * step) - slope, (abs(ahead + behind - 2 * still) + noise) / step]
        )
    return torch.tensor(found, dtype=torch.float64)


def _generic(graph: Graph, quantity: Quantity, shape: Sequence[int], radius: float) -> Tensor:
    """A function of distances alone of the shape of a quantity, that turns as it does and has no other symmetry than E(n)."""
    dim, several = graph.dim, graph.pos[:: 1 + graph.num_nodes // PARTNERS]
    cell = None if graph.cell is None else graph.cell.expand(graph.num_nodes, dim, dim)
    vel = None if graph.vel is None else graph.vel[:, None]
    arrows = torch.cat(
        [a for a in (graph.pos[:, None] - several, vel, graph.vec, cell) if a is not None], dim=1
    )
    near = 1 / (1 + arrows.square().sum(2) / radius**2)
    rank = 0 if quantity.classes else quantity.rank
    powers = {
        0: near,
        1: near[..., None] * arrows,
        2: near[..., None, None] * arrows[..., None] * arrows[..., None, :],
    }
    count = math.prod(shape) // dim**rank  # numbers, vectors or tensors
    of_nodes = count % graph.num_nodes == 0
    channels = count // graph.num_nodes if of_nodes else count
    angle = torch.linspace(1, 3, channels, dtype=torch.float64) * (1 + near.mean(1, keepdim=True))
    value = torch.einsum(
        "nk,n...->nk...", angle.cos(), torch.ones_like(near[:, 0]) if rank == 0 else powers[rank].mean(1)
    )
    value = value + graph.pos[:, None] if quantity.point else value
    return value.reshape(shape) if of_nodes else value.mean(0).reshape(shape)


def _try(rows: Float[Tensor, "R D D+1"], unit: Tensor, tolerance: float) -> None:
    """Raises DataError where the structures show a function more symmetries than it has; rows: of one that has E(n) alone."""
    dim = rows.shape[1]
    singular = torch.linalg.svdvals((rows @ unit).flatten(1))
    null, whole = int((singular < tolerance * singular[0]).sum()), dim * (dim + 1) // 2
    if null > whole:
        raise DataError(
            f"the structures stand too much alike: even of a function that has {whole} continuous symmetries they show {null} within a "
            f"tolerance of {tolerance:.0e}, so that those found mean nothing; wanted structures of different shapes, in random poses"
        )


def _own(quantity: Quantity, w: Tensor, f: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """W · (what X and t do to the quantity itself): zero for invariants."""
    dim = len(centre)
    still = torch.zeros(dim, dtype=torch.float64)
    if quantity.rank == 0 or quantity.classes:
        return torch.zeros(dim, dim, dtype=torch.float64), still
    if quantity.rank == 1:
        w, f = w.reshape(-1, dim), f.reshape(-1, dim)
        if quantity.point:
            return w.T @ (f - centre), w.sum(0)
        return w.T @ f, still
    w, f = w.reshape(-1, dim, dim), f.reshape(-1, dim, dim)
    return torch.einsum("nab,ncb->ac", w, f) + torch.einsum("nba,nbc->ac", w, f), still


def _norm(motion: Tensor, where: Tensor) -> Tensor:
    """The motion (X | t) that moves by 1 in the root mean square."""
    return motion / (where @ motion.T).square().sum(1).mean().sqrt()


def _named(dim: int) -> dict[str, Tensor]:
    """Motions (X | t) about the centre by name: those of E(n), and scaling and shears that are none."""
    axes = "xyzw"[:dim] if dim <= 4 else [str(k) for k in range(dim)]
    out = {}
    for a in range(dim):
        for b in range(a + 1, dim):
            motion = torch.zeros(dim, dim + 1, dtype=torch.float64)
            motion[a, b], motion[b, a] = -1.0, 1.0
            out[f"rotation {'about ' + 'xyz'[3 - a - b] if dim == 3 else 'in ' + axes[a] + axes[b]}"] = motion
    for a in range(dim):
        motion = torch.zeros(dim, dim + 1, dtype=torch.float64)
        motion[a, dim] = 1.0
        out[f"translation along {axes[a]}"] = motion
    out["scaling (control)"] = torch.eye(dim, dim + 1, dtype=torch.float64)
    for a in range(dim):
        for b in range(a + 1, dim):
            motion = torch.zeros(dim, dim + 1, dtype=torch.float64)
            motion[a, b] = motion[b, a] = 1.0
            out[f"shear {axes[a]}{axes[b]} (control)"] = motion
    return out


def _sorted(null: Float[Tensor, "n D D+1"], near: float) -> list[Tensor]:
    """Another basis of the same motions: translations, then rigid motions, then the rest; turns as matrices of norm √2, shifts of norm 1."""
    dim = null.shape[1]
    found: list[Tensor] = []
    for part in (lambda m: m[:, :, :dim], lambda m: m[:, :, :dim] + m[:, :, :dim].transpose(1, 2), None):
        if not len(null):
            break
        if part is None:
            found += [m / m[:, :dim].norm() for m in null]
            break
        size = null.flatten(1).norm(dim=1).max()
        left, s, _ = torch.linalg.svd(part(null).flatten(1), full_matrices=True)
        rank = int((s > near * size).sum())
        basis = (left.T @ null.flatten(1)).unflatten(1, null.shape[1:])
        free, null = basis[rank:], basis[:rank]
        if not len(free):
            continue
        if found:  # translations are symmetries by themselves: no turn needs a part along them
            shifts = torch.linalg.qr(torch.stack([m[:, dim] for m in found]).T).Q
            free[:, :, dim] -= free[:, :, dim] @ shifts @ shifts.T
        # columns in echelon order: axes of space where these are possible
        free = _echelon(free)
        found += [
            m / m[:, dim].norm()
            if float(m[:, :dim].norm()) <= near * float(m.norm())
            else m * math.sqrt(2) / m[:, :dim].norm()
            for m in free
        ]
    return found


def _echelon(motions: Tensor) -> Tensor:
    """The reduced row echelon form of these motions: a basis with as many zeros as there can be, so that the axes of space appear."""
    rows = motions.flatten(1).clone()
    done = 0
    size = float(rows.abs().max())
    for column in range(rows.shape[1]):
        if done == len(rows):
            break
        best = done + int(rows[done:, column].abs().argmax())
        if float(rows[best, column].abs()) <= 1e-4 * size:
            continue
        rows[[done, best]] = rows[[best, done]]
        rows[done] = rows[done] / rows[done, column]
        for k in range(len(rows)):
            if k != done:
                rows[k] = rows[k] - rows[k, column] * rows[done]
        done += 1
    return rows.unflatten(1, motions.shape[1:])


def _words(motions: Sequence[tuple[Tensor, Tensor]], centre: Tensor, radius: float, near: float) -> list[str]:
    """What each symmetry is, in order; all translations and all rotations in one phrase each. Lengths are in units of the radius."""
    dim = len(centre)
    shifts = [t / t.norm() for X, t in motions if float(X.norm()) <= near * float(t.norm())]
    out = (
        ["all translations"]
        if len(shifts) == dim
        else [f"translation along {_vector(_upright(t))}" for t in shifts]
    )
    turns = [
        (X, t) for X, t in motions[len(shifts) :] if float((X + X.T).norm()) <= 2 * near * float(X.norm())
    ]
    if turns:
        # The point where all of them meet, X c + t = 0; where translations are symmetries too, there are others.
        X, t = torch.cat([X for X, _ in turns]), torch.cat([t for _, t in turns])
        point = torch.linalg.lstsq(X, -t[:, None], driver="gelsd", rcond=near / 10).solution[:, 0]
        meet = float((X @ point + t).norm()) <= near * float(X.norm())
        through = "" if shifts else f" through {_vector(radius * (point + centre))}"
        if meet and len(turns) == dim * (dim - 1) // 2 > 1:
            out.append(f"all rotations{through}")
        else:
            out += [
                _rotation(X, t, None if shifts else centre, radius, near, through if meet else "")
                for X, t in turns
            ]
    for X, _ in motions[len(shifts) + len(turns) :]:
        even = torch.diagonal(X).mean() * torch.eye(dim, dtype=torch.float64)
        kind = "scaling" if float((X - even).norm()) <= near * float(X.norm()) else "a shear or stretch"
        out.append(f"no rigid motion but {kind} {_matrix(X)}")
    return out


def _rotation(X: Tensor, t: Tensor, centre: Tensor | None, radius: float, near: float, through: str) -> str:
    """centre: of the coordinates, None if no point is to be named; through: where the axis goes if that is known already."""
    fixed = torch.linalg.lstsq(X, -t[:, None], driver="gelsd", rcond=near / 10).solution[:, 0]
    along = float((t + X @ fixed).norm()) * math.sqrt(2) / float(X.norm())
    if centre is not None:
        through = through or f" through {_vector(radius * (fixed + centre))}"
    screw = f" with a translation of {radius * along:.3g} Å a radian" if along > near else ""
    if len(t) == 3:
        axis = torch.stack([X[2, 1] - X[1, 2], X[0, 2] - X[2, 0], X[1, 0] - X[0, 1]])
        return f"rotation about {_vector(_upright(axis / axis.norm()))}{through}{screw}"
    return f"rotation {'in the plane' if len(t) == 2 else _matrix(X)}{through}{screw}"


def _upright(v: Tensor) -> Tensor:
    """±v with its largest component positive."""
    return v * v[v.abs().argmax()].sign()


def _matrix(X: Tensor) -> str:
    return str([[round(x, 3) + 0.0 for x in row] for row in X.tolist()])


def _vector(v: Tensor) -> str:
    return f"({', '.join(f'{x + 0.0:.3g}' if abs(x) > 5e-4 else '0' for x in v.tolist())})"
