"""Simulated charged particles: the data of the EGNN paper (Satorras et al. 2021, arXiv 2102.09844).

The system is that of Kipf et al. 2018 (arXiv 1802.04687) in three dimensions, without walls, in arbitrary
units.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Len
from jaxtyping import Bool, Float

from molequi.data.assemble import assemble
from molequi.data.dataset import Dataset
from molequi.data.record import Record
from molequi.data.request import Request
from molequi.errors import ConfigError
from molequi.quantities import Quantity, quantity
from molequi.util.signature import check_keywords

MOVED = Quantity(name="moved", per="node", rank=1, point=True)
STEP, EVERY = 0.001, 100  # time of a step; steps from one frame to the next
SPEED = 0.5  # of every particle at the start
_TOGETHER = 250  # trajectories whose arrays stay in the cache of a core

Clip = Literal["component", "norm"]


@dataclass(frozen=True)
class Trajectories:
    """Frames of T trajectories of N particles.

    Parameters
    ----------
    pos, vel : array, shape (T, frames, N, D)
        Positions and velocities.
    clipped : array of bool, shape (T,)
        Whether a force was clipped in any step up to the last frame.
    """

    pos: Float[np.ndarray, "T frames N D"]
    vel: Float[np.ndarray, "T frames N D"]
    clipped: Bool[np.ndarray, "T"]


@check_keywords()
def nbody(
    trajectories: Annotated[int, Gt(0)],
    *,
    particles: Annotated[int, Gt(1)] = 5,
    seed: Annotated[int, Ge(0)] = 0,
    clip: Clip | None = "component",
    clip_at: Annotated[float, Gt(0)] = 100.0,
    start: Annotated[int, Ge(0)] = 30,
    end: Annotated[int, Gt(0)] = 40,
    gravity: Annotated[Sequence[float], Len(3, 3)] | None = None,
    quantities: Sequence[str | Quantity] = (),
) -> Dataset:
    """Positions and velocities of simulated particles, and where they are later (the label ``moved``).

    Charges are +1 or -1 with equal probability. Initial positions are normally distributed, with a standard
    deviation of (particles / 5)^(1/3), and initial velocities have the norm 0.5 and random directions. Frame
    k is the state after 100 (k + 1) steps of 0.001.

    The structures have `vel`, and the product of charges of every pair as `pair_attr`. As in the published
    protocol, a model does not see the charges themselves. `info` has the columns ``charges`` and ``clipped``.

    Parameters
    ----------
    trajectories : int
        Number of structures.
    particles : int
        Particles of each, at least 2.
    seed : int
        Seed of the initial states. The first trajectories do not depend on how many follow, up to round-off.
    clip : {"component", "norm"} or None
        How a large force is clipped. "component" cuts each component at ±clip_at, as the published generator
        does; this breaks the rotational symmetry of the data. "norm" shortens the vector, and the data keep
        the symmetry.
    clip_at : float
        The largest component or norm.
    start, end : int
        Frames of the input and of the label, start < end.
    gravity : sequence of 3 floats, optional
        An acceleration of all particles, added to the forces before they are clipped. Only rotations about it
        remain a symmetry. Du et al. 2022 (arXiv 2110.14811) use (0, 0, 0.098). At frame 30 the velocities
        have changed by 3.1 times the acceleration, so that a strictly equivariant model can infer its
        direction from them; at frame 0 it hardly can.
    quantities : sequence of str or Quantity
        Nothing, or ``moved``.

    Returns
    -------
    Dataset

    Raises
    ------
    ConfigError
        If `end` is not after `start`, `gravity` is no vector, or other quantities are named.

    Examples
    --------
    >>> data = nbody(2, start=0, end=1)
    >>> data[0].vel.shape, data.values("moved").shape
    (torch.Size([5, 3]), torch.Size([10, 3]))
    """
    if end <= start:
        raise ConfigError(f"nbody: end {end} and start {start}; wanted an end after the start")
    for item in map(quantity, [quantities] if isinstance(quantities, (str, Quantity)) else quantities):
        if item != MOVED:
            raise ConfigError(f"nbody: no quantity {item}; the simulation gives {MOVED}")
    if gravity is not None and np.shape(gravity) != (3,):
        raise ConfigError(f"nbody: gravity {gravity}; wanted three components, such as [0, 0, 0.098]")
    charges, pos, vel = initial(trajectories, particles, seed)
    run = simulate(charges, pos, vel, frames=(start, end), clip=clip, clip_at=clip_at, gravity=gravity)
    i, j = np.nonzero(~np.eye(particles, dtype=bool))
    index = np.stack([i, j])
    wheres = [f"nbody, seed {seed}, trajectory {t}" for t in range(trajectories)]
    records = [
        Record(
            where=wheres[t],
            pos=run.pos[t, 0],
            vel=run.vel[t, 0],
            fields={"pair_index": index, "pair_attr": (charges[t, i] * charges[t, j])[:, None]},
            values={"moved": run.pos[t, 1]},
            info={"clipped": bool(run.clipped[t]), "charges": tuple(charges[t].astype(int).tolist())},
        )
        for t in range(trajectories)
    ]
    note = f"simulated up to frame {end}, from frame {start}"
    return assemble(records, Request(quantities=[MOVED]), found={"moved": note})


def initial(
    trajectories: int, particles: int, seed: int
) -> tuple[Float[np.ndarray, "T N"], Float[np.ndarray, "T N 3"], Float[np.ndarray, "T N 3"]]:
    """Initial charges, positions and velocities; the first ones do not depend on `trajectories`."""
    drawn = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)]
    charges = drawn[0].choice([-1.0, 1.0], (trajectories, particles))
    pos = drawn[1].standard_normal((trajectories, particles, 3)) * (particles / 5) ** (1 / 3)
    vel = drawn[2].standard_normal((trajectories, particles, 3))
    return charges, pos, vel * (SPEED / np.linalg.norm(vel, axis=2, keepdims=True))


def simulate(
    charges: Float[np.ndarray, "T N"],
    pos: Float[np.ndarray, "T N D"],
    vel: Float[np.ndarray, "T N D"],
    *,
    frames: Sequence[int],
    clip: Clip | None = "component",
    clip_at: float = 100.0,
    step: float = STEP,
    every: int = EVERY,
    gravity: Sequence[float] | None = None,
) -> Trajectories:
    """Trajectories by the published rule, all at once.

    v ← v + τ F(x), then x ← x + τ v, with F_i = Σ_j q_i q_j (x_i - x_j) / |x_i - x_j|³ + g, clipped as
    `nbody` says. Frame k is the state after every · (k + 1) steps of size τ = step. `frames` ascend.
    """
    out_pos, out_vel = (np.empty((len(pos), len(frames), *pos.shape[1:])) for _ in range(2))
    clipped = np.zeros(len(pos), dtype=bool)
    stops = {every * (frame + 1): k for k, frame in enumerate(frames)}
    pull = np.zeros(pos.shape[2]) if gravity is None else np.asarray(gravity, dtype=np.float64)
    others = np.array([[j for j in range(pos.shape[1]) if j != i] for i in range(pos.shape[1])])
    for first in range(0, len(pos), _TOGETHER):
        part = slice(first, first + _TOGETHER)
        # Particles first and trajectories last, so that every operation runs along whole rows of
        # trajectories.
        x, v = (np.ascontiguousarray(a[part].transpose(1, 2, 0), dtype=np.float64) for a in (pos, vel))
        q = charges[part].T
        products = q[:, None] * q[others]  # (N, N - 1, T)
        for n in range(1, max(stops) + 1):
            force, over = _forces(x, products, others, pull, clip, clip_at)
            clipped[part] |= over
            v += step * force
            x += step * v
            if n in stops:
                out_pos[part, stops[n]], out_vel[part, stops[n]] = x.transpose(2, 0, 1), v.transpose(2, 0, 1)
    return Trajectories(pos=out_pos, vel=out_vel, clipped=clipped)


def _forces(
    x: np.ndarray,
    products: np.ndarray,
    others: np.ndarray,
    pull: np.ndarray,
    clip: Clip | None,
    clip_at: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Forces (N, D, T) after clipping, and in which of the T trajectories one was clipped."""
    away = x[:, None] - x[others]  # (N, N - 1, D, T)
    square = np.einsum("ijdt,ijdt->ijt", away, away)
    force = np.einsum("ijt,ijdt->idt", products / (square * np.sqrt(square)), away) + pull[:, None]
    if clip == "component":
        over = (np.abs(force) > clip_at).any((0, 1))
        return np.clip(force, -clip_at, clip_at), over
    if clip == "norm":
        length = np.sqrt((force * force).sum(1))
        return force * (clip_at / np.maximum(length, clip_at))[:, None], (length > clip_at).any(0)
    return force, np.zeros(x.shape[2], dtype=bool)
