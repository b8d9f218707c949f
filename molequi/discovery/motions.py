"""Motions x → X x + t of space as matrices (X | t).

Named ones, a readable basis, and their description in words.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def named_motions(dim: int) -> dict[str, Float[Tensor, "D D+1"]]:
    """Motions (X | t) about the center by name: those of E(n), and as controls scaling and shears."""
    axes = "xyzw"[:dim] if dim <= 4 else [str(k) for k in range(dim)]
    pairs = [(a, b) for a in range(dim) for b in range(a + 1, dim)]
    out = {}
    for a, b in pairs:
        motion = torch.zeros(dim, dim + 1, dtype=torch.float64)
        motion[a, b], motion[b, a] = -1.0, 1.0
        out[f"rotation {'about ' + 'xyz'[3 - a - b] if dim == 3 else 'in ' + axes[a] + axes[b]}"] = motion
    for a in range(dim):
        motion = torch.zeros(dim, dim + 1, dtype=torch.float64)
        motion[a, dim] = 1.0
        out[f"translation along {axes[a]}"] = motion
    out["scaling (control)"] = torch.eye(dim, dim + 1, dtype=torch.float64)
    for a, b in pairs:
        motion = torch.zeros(dim, dim + 1, dtype=torch.float64)
        motion[a, b] = motion[b, a] = 1.0
        out[f"shear {axes[a]}{axes[b]} (control)"] = motion
    return out


def sorted_motions(null: Float[Tensor, "n D D+1"], rigid: float) -> list[Float[Tensor, "D D+1"]]:
    """A basis of the same motions: translations, then rigid motions, then others.

    Matrices of rotations have the norm √2, translations the norm 1. rigid: largest share of another kind of
    motion.
    """
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
        rank = int((s > rigid * size).sum())
        basis = (left.T @ null.flatten(1)).unflatten(1, null.shape[1:])
        free, null = basis[rank:], basis[:rank]
        if not len(free):
            continue
        if found:  # translations are symmetries of their own: rotations need no component along them
            shifts = torch.linalg.qr(torch.stack([m[:, dim] for m in found]).T).Q
            free[:, :, dim] -= free[:, :, dim] @ shifts @ shifts.T
        free = _row_echelon(free)
        found += [
            m / m[:, dim].norm()
            if float(m[:, :dim].norm()) <= rigid * float(m.norm())
            else m * math.sqrt(2) / m[:, :dim].norm()
            for m in free
        ]
    return found


def _row_echelon(motions: Tensor) -> Tensor:
    """Reduced row echelon form: a basis with many zeros, so that the axes of space appear where they can."""
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


def describe_motions(
    motions: Sequence[tuple[Tensor, Tensor]], center: Tensor, radius: float, rigid: float
) -> list[str]:
    """Each motion in words; all translations, and all rotations, share one phrase.

    Parameters
    ----------
    motions : sequence of (Tensor, Tensor)
        (X, t) in the order of `sorted_motions`, with t in units of the radius.
    center : Tensor, shape (D,)
        Origin of the motions, in units of the radius.
    radius : float
        Radius of the structures in Å.
    rigid : float
        Largest share of another kind of motion.

    Returns
    -------
    list of str
        Descriptions, in the same order.
    """
    dim = len(center)
    shifts = [t / t.norm() for X, t in motions if float(X.norm()) <= rigid * float(t.norm())]
    out = (
        ["all translations"]
        if len(shifts) == dim
        else [f"translation along {_vector(_positive(t))}" for t in shifts]
    )
    turns = [
        (X, t) for X, t in motions[len(shifts) :] if float((X + X.T).norm()) <= 2 * rigid * float(X.norm())
    ]
    if turns:
        # The common fixed point, X c + t = 0. If translations are symmetries, every point is one.
        X, t = torch.cat([X for X, _ in turns]), torch.cat([t for _, t in turns])
        point = torch.linalg.lstsq(X, -t[:, None], driver="gelsd", rcond=rigid / 10).solution[:, 0]
        meet = float((X @ point + t).norm()) <= rigid * float(X.norm())
        through = "" if shifts else f" through {_vector(radius * (point + center))}"
        if meet and len(turns) == dim * (dim - 1) // 2 > 1:
            out.append(f"all rotations{through}")
        else:
            out += [
                _rotation(X, t, None if shifts else center, radius, rigid, through if meet else "")
                for X, t in turns
            ]
    for X, _ in motions[len(shifts) + len(turns) :]:
        even = torch.diagonal(X).mean() * torch.eye(dim, dtype=torch.float64)
        kind = "scaling" if float((X - even).norm()) <= rigid * float(X.norm()) else "a shear or stretch"
        out.append(f"no rigid motion but {kind} {_matrix(X)}")
    return out


def _rotation(X: Tensor, t: Tensor, center: Tensor | None, radius: float, rigid: float, through: str) -> str:
    """A rotation or screw in words; center None: no fixed point is named; through: the known fixed point."""
    fixed = torch.linalg.lstsq(X, -t[:, None], driver="gelsd", rcond=rigid / 10).solution[:, 0]
    along = float((t + X @ fixed).norm()) * math.sqrt(2) / float(X.norm())
    if center is not None:
        through = through or f" through {_vector(radius * (fixed + center))}"
    screw = f" with a translation of {radius * along:.3g} Å per radian" if along > rigid else ""
    if len(t) == 3:
        axis = torch.stack([X[2, 1] - X[1, 2], X[0, 2] - X[2, 0], X[1, 0] - X[0, 1]])
        return f"rotation about {_vector(_positive(axis / axis.norm()))}{through}{screw}"
    return f"rotation {'in the plane' if len(t) == 2 else _matrix(X)}{through}{screw}"


def _positive(v: Tensor) -> Tensor:
    """±v with a positive largest component."""
    return v * v[v.abs().argmax()].sign()


def _matrix(X: Tensor) -> str:
    return str([[round(x, 3) + 0.0 for x in row] for row in X.tolist()])


def _vector(v: Tensor) -> str:
    return f"({', '.join(f'{x + 0.0:.3g}' if abs(x) > 5e-4 else '0' for x in v.tolist())})"
