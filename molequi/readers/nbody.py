"""Charged particles that push and pull each other: the simulated data of the EGNN paper (Satorras et al. 2021, arXiv 2102.09844).

The system is that of Kipf et al. 2018 (arXiv 1802.04687) in three dimensions, without walls; all units are arbitrary.
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

MOVED = Quantity(name="moved", per="node", rank=1, point=True)
STEP, EVERY = 0.001, 100  # time of a step; steps from one frame to the next
SPEED = 0.5  # of every particle at the start
_TOGETHER = 250  # trajectories whose arrays stay in the cache of a core

Clip = Literal["component", "norm"]


@dataclass(frozen=True)
class Trajectories:
    """Frames of T trajectories of N particles. clipped: whether a force was clipped in any step up to the last frame."""

    pos: Float[np.ndarray, "T frames N D"]
    vel: Float[np.ndarray, "T frames N D"]
    clipped: Bool[np.ndarray, "T"]


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
    """Positions and velocities at frame `start` of simulated trajectories, and where the particles are at frame `end` ("moved").

    Charges are +1 or -1 with equal chance; positions begin as normal deviates, with a standard deviation of (particles / 5)^(1/3), and
    velocities with a norm of 0.5 in random directions. Frame k is the state after 100 (k + 1) steps of 0.001.
    A force is clipped when particles come close. clip="component" cuts each of its components at ±clip_at, as the published generator
    does: a box is not round, so that these data break the symmetry of rotations. clip="norm" shortens the vector to the length clip_at,
    and the data keep it. None clips nothing.
    gravity: an acceleration of all particles, added to the forces before they are clipped: of the symmetry of rotations those about it are
    left (if clipping leaves them). Du et al. 2022 (arXiv 2110.14811) have (0, 0, 0.098). A model sees it in the velocities, which all have
    fallen since the beginning: by 3.1 times it at frame 30, where a strictly equivariant model can guess the direction from them, hardly at
    frame 0.
    seed: another one gives other trajectories; more of them begin with the same ones, to round-off.

    The structures have `vel`, and the product of charges of every pair as `pair_attr`, as in the published protocol, which takes no
    notice of the charges themselves: all signs may be changed at once. Charges are columns of `info` ("charges"), and so is "clipped".
    Raises ConfigError for an `end` that is not after `start`, a gravity that is no vector, and if other quantities are asked for.
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
    """Charges, positions and velocities of the start; those of a trajectory do not depend on how many follow it."""
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
    """All trajectories at once, by the published rule: v ← v + τ F(x), x ← x + τ v, with

        F_i = Σ_j q_i q_j (x_i - x_j) / |x_i - x_j|³ + g,   clipped as `nbody` says.

    Frame k is the state after every · (k + 1) positions; `frames` ascend.
    """
    out_pos, out_vel = (np.empty((len(pos), len(frames), *pos.shape[1:])) for _ in range(2))
    clipped = np.zeros(len(pos), dtype=bool)
    stops = {every * (frame + 1): k for k, frame in enumerate(frames)}
    pull = np.zeros(pos.shape[2]) if gravity is None else np.asarray(gravity, dtype=np.float64)
    others = np.array([[j for j in range(pos.shape[1]) if j != i] for i in range(pos.shape[1])])
    for first in range(0, len(pos), _TOGETHER):
        part = slice(first, first + _TOGETHER)
        # Particles first and trajectories last: every operation runs along whole rows of trajectories.
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


def _forces(x, products, others, pull, clip: Clip | None, clip_at: float) -> tuple[np.ndarray, np.ndarray]:
    """Forces (N, D, T) after clipping, and in which of the T trajectories that changed one."""
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
