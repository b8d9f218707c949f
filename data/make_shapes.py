"""Makes shapes.npz: point clouds of ten kinds of objects in free orientation, with the part that each point belongs to.

`python data/make_shapes.py` (numpy alone; about 10 seconds). An object is made of boxes, balls, rings and round bodies in
proportions drawn for each; points are drawn uniformly on the outer surface (what lies inside another solid is left out),
moved by normal noise, centred, scaled to a root mean square radius of 1, and turned by a rotation drawn uniformly from
SO(3). No kind is the mirror image of another, so that models of O(3) lose nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from molequi.util.files import write_atomically

HERE = Path(__file__).resolve().parent
SEED = 20261121
EACH = {"train": 80, "test": 20}  # of each kind
POINTS = (128, 256)
NOISE = 0.01  # of the root mean square radius
SUNK = 0.01  # solids that touch reach into each other, so that the faces between them are inside


@dataclass(frozen=True)
class Solid:
    """A solid about the origin: its area, points drawn uniformly on its surface, what is inside; and where it is put."""

    part: str
    area: float
    draw: Callable[[np.random.Generator, int], np.ndarray]
    inside: Callable[[np.ndarray], np.ndarray]
    at: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn: np.ndarray | None = None  # columns are its axes in the object

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        points = self.draw(rng, count)
        return (points if self.turn is None else points @ self.turn.T) + self.at

    def contains(self, points: np.ndarray) -> np.ndarray:
        points = points - self.at
        return self.inside(points if self.turn is None else points @ self.turn)


def about(axis: str, degrees: float) -> np.ndarray:
    """Rotation about x, y or z."""
    a, b = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = c, -s, s, c
    return matrix


def box(part: str, x: float, y: float, z: float, at=(0, 0, 0), turn=None) -> Solid:
    half = np.array([x, y, z]) / 2
    areas = np.array([y * z, x * z, x * y])

    def draw(rng, count):
        points = rng.uniform(-half, half, (count, 3))
        axis = rng.choice(3, count, p=areas / areas.sum())
        points[np.arange(count), axis] = half[axis] * rng.choice([-1, 1], count)
        return points

    return Solid(part, 2 * areas.sum(), draw, lambda p: (abs(p) < half - 1e-9).all(1), at, turn)


def round_body(part: str, low: float, high: float, height: float, at=(0, 0, 0), turn=None) -> Solid:
    """A closed cylinder or cone along z, of radius `low` below and `high` above."""
    side = np.pi * (low + high) * np.hypot(height, high - low)
    areas = np.array([side, np.pi * low**2, np.pi * high**2])

    def draw(rng, count):
        piece = rng.choice(3, count, p=areas / areas.sum())
        u, angle = rng.random(count), rng.uniform(0, 2 * np.pi, count)
        wall = np.sqrt(low**2 + u * (high**2 - low**2))  # uniform in area
        slope = (wall - low) / (high - low) if high != low else u
        radius = np.choose(piece, [wall, low * np.sqrt(u), high * np.sqrt(u)])
        z = np.choose(piece, [slope - 0.5, -0.5 + 0 * u, 0.5 + 0 * u]) * height
        return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=1)

    def inside(p):
        radius = low + (high - low) * (p[:, 2] / height + 0.5)
        return (abs(p[:, 2]) < height / 2 - 1e-9) & (np.hypot(p[:, 0], p[:, 1]) < radius - 1e-9)

    return Solid(part, areas.sum(), draw, inside, at, turn)


def ball(part: str, a: float, b: float, c: float, at=(0, 0, 0)) -> Solid:
    """An ellipsoid with these semi-axes."""
    axes = np.array([a, b, c])
    largest = np.prod(axes) / axes.min()

    def draw(rng, count):
        kept = np.empty((0, 3))
        while len(kept) < count:
            unit = rng.normal(size=(4 * count, 3))
            unit /= np.linalg.norm(unit, axis=1, keepdims=True)
            stretch = np.prod(axes) * np.linalg.norm(
                unit / axes, axis=1
            )  # area of the ellipsoid per area of the sphere
            kept = np.concatenate([kept, axes * unit[rng.random(len(unit)) < stretch / largest]])
        return kept[:count]

    grid = np.polynomial.legendre.leggauss(64)  # area: an integral over the sphere
    z, w = grid
    phi = np.linspace(0, 2 * np.pi, 128, endpoint=False)
    s = np.sqrt(1 - z**2)[:, None]
    directions = np.stack([s * np.cos(phi), s * np.sin(phi), z[:, None] + 0 * phi], axis=-1)
    area = np.prod(axes) * (np.linalg.norm(directions / axes, axis=-1).mean(1) @ w) * 2 * np.pi
    return Solid(part, float(area), draw, lambda p: np.square(p / axes).sum(1) < 1 - 1e-9, at)


def ring(part: str, radius: float, thickness: float, at=(0, 0, 0), turn=None) -> Solid:
    """A torus about z."""

    def draw(rng, count):
        kept = np.empty(0)
        while len(kept) < count:
            angle = rng.uniform(0, 2 * np.pi, 2 * count)
            dense = radius + thickness * np.cos(angle)
            kept = np.concatenate([kept, angle[rng.random(len(angle)) < dense / (radius + thickness)]])
        angle, around = kept[:count], rng.uniform(0, 2 * np.pi, count)
        wide = radius + thickness * np.cos(angle)
        return np.stack([wide * np.cos(around), wide * np.sin(around), thickness * np.sin(angle)], axis=1)

    def inside(p):
        return np.hypot(np.hypot(p[:, 0], p[:, 1]) - radius, p[:, 2]) < thickness - 1e-9

    return Solid(part, 4 * np.pi**2 * radius * thickness, draw, inside, at, turn)


def legs(rng, x: float, y: float, height: float) -> list[Solid]:
    """Four legs below z = 0 at the corners of a rectangle, square or round."""
    thick = rng.uniform(0.04, 0.1)
    make = (
        partial(box, "leg", thick, thick, height)
        if rng.random() < 0.5
        else partial(round_body, "leg", thick / 2, thick / 2, height)
    )
    x, y = x / 2 - thick / 2, y / 2 - thick / 2
    return [make(at=(i * x, j * y, SUNK - height / 2)) for i in (-1, 1) for j in (-1, 1)]


def table(rng):
    x, y, thick = rng.uniform(0.9, 1.6), rng.uniform(0.6, 1.0), rng.uniform(0.03, 0.12)
    return [box("plate", x, y, thick, at=(0, 0, thick / 2)), *legs(rng, x, y, rng.uniform(0.4, 1.0))]


def chair(rng):
    x, y, thick, up = (
        rng.uniform(0.45, 0.7),
        rng.uniform(0.45, 0.7),
        rng.uniform(0.04, 0.1),
        rng.uniform(0.4, 0.9),
    )
    lean = about("y", -rng.uniform(0, 15))
    back = box(
        "back",
        thick,
        y,
        up,
        at=tuple(np.array([-x / 2 + thick / 2, 0, thick - SUNK]) + lean @ (0, 0, up / 2)),
        turn=lean,
    )
    return [box("plate", x, y, thick, at=(0, 0, thick / 2)), back, *legs(rng, x, y, rng.uniform(0.35, 0.7))]


def stool(rng):
    radius, thick, height = rng.uniform(0.25, 0.45), rng.uniform(0.04, 0.15), rng.uniform(0.5, 1.0)
    thin, spread = rng.uniform(0.025, 0.05), rng.uniform(0, 18)
    out = [round_body("plate", radius, radius, thick, at=(0, 0, thick / 2))]
    for k in range(3):
        turn = about("z", 120 * k) @ about("y", -spread)
        foot = about("z", 120 * k) @ (0.7 * radius, 0, 0)
        out.append(
            round_body(
                "leg", thin, thin, height, at=tuple(foot - turn @ (0, 0, height / 2 - SUNK)), turn=turn
            )
        )
    return out


def lamp(rng):
    wide, height, thin = rng.uniform(0.2, 0.4), rng.uniform(0.7, 1.6), rng.uniform(0.02, 0.05)
    low, shade = rng.uniform(0.25, 0.5), rng.uniform(0.25, 0.5)
    return [
        round_body("base", wide, rng.uniform(0.5, 1) * wide, 0.08, at=(0, 0, 0.04)),
        round_body("pole", thin, thin, height, at=(0, 0, height / 2)),
        round_body("shade", low, rng.uniform(0.3, 0.8) * low, shade, at=(0, 0, height)),
    ]


def dumbbell(rng):
    length, thin, big = rng.uniform(0.5, 1.2), rng.uniform(0.05, 0.12), rng.uniform(0.2, 0.4)
    lay = about("y", 90)
    if rng.random() < 0.5:
        ends = [ball("weight", big, big, big, at=(s * length / 2, 0, 0)) for s in (-1, 1)]
    else:
        wide = rng.uniform(0.15, 0.35)
        ends = [round_body("weight", big, big, wide, at=(s * length / 2, 0, 0), turn=lay) for s in (-1, 1)]
    return [round_body("pole", thin, thin, length, turn=lay), *ends]


def mug(rng):
    radius, height = rng.uniform(0.3, 0.5), rng.uniform(0.6, 1.1)
    size, thick = rng.uniform(0.28, 0.42) * height, rng.uniform(0.04, 0.08)
    return [
        round_body("body", rng.uniform(0.75, 1) * radius, radius, height),
        ring("handle", size, thick, at=(radius, 0, 0), turn=about("x", 90)),
    ]


def rocket(rng):
    radius, height, fins = rng.uniform(0.12, 0.25), rng.uniform(0.8, 1.4), int(rng.integers(3, 5))
    nose, wide, tall = rng.uniform(0.3, 0.6), rng.uniform(0.2, 0.45), rng.uniform(0.2, 0.45)
    out = [
        round_body("body", radius, radius, height),
        round_body("tip", radius, 0.0, nose, at=(0, 0, height / 2 + nose / 2 - SUNK)),
    ]
    for k in range(fins):
        turn = about("z", 360 * k / fins)
        at = turn @ (radius + wide / 2 - 0.02, 0, -height / 2 + tall / 2)
        out.append(box("wing", wide, 0.04, tall, at=tuple(at), turn=turn))
    return out


def plane(rng):
    length, radius = rng.uniform(1.2, 1.8), rng.uniform(0.1, 0.18)
    span, deep, where = rng.uniform(1.0, 1.8), rng.uniform(0.2, 0.4), rng.uniform(-0.1, 0.2)
    tail = rng.uniform(0.3, 0.5) * span
    return [
        ball("body", length / 2, radius, radius),
        box("wing", deep, span, 0.04, at=(where, 0, 0)),
        box("wing", 0.6 * deep, tail, 0.04, at=(-0.45 * length, 0, 0)),
        box("wing", 0.6 * deep, 0.04, 0.6 * tail, at=(-0.45 * length, 0, 0.3 * tail)),
    ]


def hammer(rng):
    thin, length, wide, deep = (
        rng.uniform(0.04, 0.08),
        rng.uniform(0.8, 1.4),
        rng.uniform(0.35, 0.7),
        rng.uniform(0.12, 0.25),
    )
    lay = about("y", 90)
    head = (
        box("weight", wide, deep, deep, at=(0, 0, length / 2))
        if rng.random() < 0.5
        else round_body("weight", deep / 2, deep / 2, wide, at=(0, 0, length / 2), turn=lay)
    )
    return [round_body("handle", thin, thin, length), head]


def mushroom(rng):
    thin, height, wide, tall = (
        rng.uniform(0.08, 0.2),
        rng.uniform(0.5, 1.0),
        rng.uniform(0.35, 0.6),
        rng.uniform(0.15, 0.4),
    )
    return [
        round_body("pole", rng.uniform(1, 1.4) * thin, thin, height),
        ball("shade", wide, wide, tall, at=(0, 0, height / 2)),
    ]


KINDS = {f.__name__: f for f in (chair, dumbbell, hammer, lamp, mug, mushroom, plane, rocket, stool, table)}
PARTS = ("back", "base", "body", "handle", "leg", "plate", "pole", "shade", "tip", "weight", "wing")


def shape(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (N, 3), their parts (N,), and the rotation (3, 3) that turned them."""
    solids = KINDS[kind](rng)
    count = int(rng.integers(POINTS[0], POINTS[1] + 1))
    areas = np.array([solid.area for solid in solids])
    points, parts = np.empty((0, 3)), np.empty(0, int)
    while len(points) < count:
        from_solid = rng.choice(len(solids), 2 * count, p=areas / areas.sum())
        drawn = np.empty((2 * count, 3))
        for k, solid in enumerate(solids):
            drawn[from_solid == k] = solid.sample(rng, int((from_solid == k).sum()))
        hidden = np.zeros(2 * count, bool)
        for k, solid in enumerate(solids):
            hidden |= (from_solid != k) & solid.contains(drawn)
        points = np.concatenate([points, drawn[~hidden]])
        parts = np.concatenate([parts, [PARTS.index(solids[k].part) for k in from_solid[~hidden]]])
    points, parts = points[:count], parts[:count]
    points = points - points.mean(0)
    points = points / np.sqrt(np.square(points).sum(1).mean()) + rng.normal(scale=NOISE, size=points.shape)
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    q = q * np.sign(np.linalg.det(q))
    points = points - points.mean(0)
    return points / np.sqrt(np.square(points).sum(1).mean()) @ q.T, parts, q


def arrays() -> dict[str, np.ndarray]:
    """All that the file holds; see README.md."""
    made, labels, places = [], [], {name: [] for name in EACH}
    for number, kind in enumerate(KINDS):
        for k in range(sum(EACH.values())):
            # A generator for each, so that one shape does not depend on those before it.
            made.append(shape(kind, np.random.default_rng([SEED, number, k])))
            places["train" if k < EACH["train"] else "test"].append(len(labels))
            labels.append(number)
    points, parts, turns = zip(*made)
    return {
        "n_points": np.array([len(p) for p in points], np.int16),
        "pos": np.concatenate(points).astype(np.float16),
        "part": np.concatenate(parts).astype(np.int8),
        "part_classes": np.array(PARTS),
        "shape": np.array(labels, np.int8),
        "shape_classes": np.array(list(KINDS)),
        "rotation": np.array(turns, np.float32),
        **{name: np.array(where, np.int16) for name, where in places.items()},
    }


def main() -> None:
    made = arrays()

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as handle:
            np.savez_compressed(handle, **made)

    write_atomically(HERE / "shapes.npz", write)
    kinds = len(made["shape_classes"])
    print(
        f"{len(made['shape'])} shapes of {kinds} kinds, {len(made['pos'])} points, seed {SEED}, numpy {np.__version__}"
    )


if __name__ == "__main__":
    main()
