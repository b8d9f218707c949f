"""Charged particles that fall: how much a strictly equivariant model loses, and whether a learned axis finds the field.

    python tests/benchmarks/relaxed.py --train 1000 --epochs 30

Five particles, clipped by the norm, so that gravity alone breaks the symmetry; from frame 0, where velocities do not yet tell the direction,
to frame 10. Strict: EGNN. Given: EGNN with the axis of gravity; learned: with an axis of its own. Free: RelaxedEGNN, its gates learned
with the rest. For each the error of test positions (mean square of a component), minutes, and of a learned axis the cosine with gravity (its size: n and -n are one axis).
"""

import argparse
import time

import torch

import molequi as mq
from molequi.models import EGNN, RelaxedEGNN
from molequi.nn.relaxed import relaxed_layers
from molequi.readers.nbody import MOVED, nbody

ARMS = ("strict", "given", "learned", "free")


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--train", type=int, default=3000)
    arguments.add_argument("--valid", type=int, default=200)
    arguments.add_argument("--test", type=int, default=500)
    arguments.add_argument("--epochs", type=int, default=60)
    arguments.add_argument("--channels", type=int, default=32)
    arguments.add_argument("--layers", type=int, default=4)
    arguments.add_argument("--lr", type=float, default=2e-3)
    arguments.add_argument("--gravity", type=float, nargs=3, default=(0.0, 0.0, 0.98))
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    given = arguments.parse_args()

    n = given.train, given.valid, given.test
    data = nbody(sum(n), gravity=given.gravity, clip="norm", start=0, end=10, seed=given.seed)
    data = data.split({"train": n[0], "valid": n[1], "test": n[2]}, seed=given.seed)
    gravity = torch.tensor(given.gravity, dtype=torch.float64)
    common = dict(
        elements=["X"],
        cutoff=None,
        channels=given.channels,
        layers=given.layers,
        inputs=Inputs(velocity=True, edge_features=1),
    )
    for arm in given.arms:
        torch.manual_seed(given.seed)
        axis = {"given": list(given.gravity), "learned": "learned"}.get(arm)
        backbone = RelaxedEGNN(**common) if arm == "free" else EGNN(**common, axis=axis)
        before = time.perf_counter()
        model = mq.Model(backbone, [MOVED])
        start = backbone.axis
        result = mq.fit(
            model,
            data["train"],
            data["valid"],
            test=data["test"],
            epochs=given.epochs,
            batch_size=100,
            lr=given.lr,
            schedule={"warmup": 1},
            validation={"every": 5},
            seed=given.seed,
            logging={"progress": False},
        )
        line = f"{arm:8} test MSE {result.errors['test']['moved_rmse'] ** 2:.4f}  group {model.group:7} {(time.perf_counter() - before) / 60:.1f} min"
        if arm == "learned":
            cosines = (
                abs(float(n.detach() @ gravity / gravity.norm())) for n in (start, backbone.axis)
            )  # a field is as well told by -n
            line += "  cosine with gravity {:.3f} at the start, {:.4f} at the end".format(*cosines)
        if arm == "free":
            line += "  gates c " + " ".join(
                f"{float(layer.c.detach()):+.3f}" for _, layer in relaxed_layers(model)
            )
        print(line, flush=True)


if __name__ == "__main__":
    main()
