"""CMU motion capture, subject 35 running (Kipf et al. 2018; split of Han et al. 2022, arXiv 2202.06484), as the recipe `mocap` reads it.

    python tests/benchmarks/mocap.py cmu_run_train_valid.npz mocap.npz [--plain]
    molequi train mocap

The published file has, for `train` and `val`, x0 (G, 31, 3), v0 (a frame's step) and xT, the positions 30 frames later. Here lengths
are divided by 10, and every joint is given

    x    its number as 31 features (without them a left hand is a right one), and its height, as in the published protocol;
    vec  the step that 30 frames at its speed would make, that of the whole body, its place as seen from the middle, and upwards (y).

A model is then equivariant under rotations about the vertical and mirrors alone, and knows where the ground is. --plain leaves height and
vertical away: all rotations. First this prints what straight lines do: for each joint a least-squares fit of its step by the vectors of all
joints (and, but for --plain, by their vertical parts), which has that symmetry too; the best of four penalties on the validation part.
"""

import sys

import numpy as np

FRAMES, UP, LENGTH = 30, 1, 10.0


def load(source: str) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Positions, steps at the present speed, and positions to come, of both parts."""
    with np.load(source, allow_pickle=False) as file:
        return {
            p: (file[f"{p}_x0"] / LENGTH, FRAMES * file[f"{p}_v0"] / LENGTH, file[f"{p}_xT"] / LENGTH)
            for p in ("train", "val")
        }


def vectors(pos: np.ndarray, step: np.ndarray, plain: bool) -> np.ndarray:
    """(G, N, V, 3)."""
    given = [step, np.broadcast_to(step.mean(1, keepdims=True), pos.shape), pos - pos.mean(1, keepdims=True)]
    return np.stack(given if plain else [*given, np.broadcast_to(np.eye(3)[UP], pos.shape)], axis=2)


def straight_lines(parts: dict, plain: bool) -> float:
    """Mean square error of the linear fit on `val`, in published lengths."""
    sides = {}
    for name, (pos, step, moved) in parts.items():
        columns = [pos - pos.mean(1, keepdims=True), step]
        if not plain:
            columns += [a[..., UP : UP + 1] * np.eye(3)[UP] for a in (pos, step)] + [
                np.broadcast_to(np.eye(3)[UP], (len(pos), 1, 3))
            ]
        sides[name] = (np.concatenate(columns, 1).swapaxes(1, 2), (moved - pos).swapaxes(1, 2))
    a, b = (side.reshape(-1, side.shape[2]) for side in sides["train"])
    errors = []
    for penalty in (1e-3, 1e-2, 1e-1, 1.0):
        weights = np.linalg.solve(a.T @ a + penalty * np.eye(a.shape[1]), a.T @ b)
        errors.append(float(np.mean((sides["val"][0] @ weights - sides["val"][1]) ** 2)) * LENGTH**2)
    return min(errors)


def convert(parts: dict, target: str, plain: bool) -> None:
    pos, step, moved = (np.concatenate(a) for a in zip(*parts.values()))
    x = np.broadcast_to(np.eye(pos.shape[1]), (*pos.shape[:2], pos.shape[1]))
    train = len(parts["train"][0])
    np.savez_compressed(
        target,
        pos=pos,
        moved=moved,
        vec=vectors(pos, step, plain),
        x=x if plain else np.concatenate([x, pos[..., UP : UP + 1]], 2),
        train=np.arange(train),
        valid=np.arange(train, len(pos)),
    )


if __name__ == "__main__":
    paths = [a for a in sys.argv[1:] if not a.startswith("--")]
    if len(paths) != 2 or set(sys.argv[1:]) - {*paths, "--plain"}:
        sys.exit(__doc__)
    parts, plain = load(paths[0]), "--plain" in sys.argv
    print(f"straight lines: mean square error {100 * straight_lines(parts, plain):.1f}e-2")
    convert(parts, paths[1], plain)
