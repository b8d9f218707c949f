"""Point clouds: parts of the shipped shapes at equal processor time, and the cost of large clouds.

    python tests/benchmarks/clouds.py parts [--seconds 120] [--networks flat farthest clusters] [--seeds 0 1]
    python tests/benchmarks/clouds.py large [--points 10000 30000 100000] [--networks farthest flat]
    python tests/benchmarks/clouds.py rotations

`parts` trains networks that predict the part of each point (11 classes, 700 clouds of about 190 points in any orientation; 100 for validation, 200
for the test) for a number of processor seconds (of this process and one thread, from the first to the last step, validations included): ten steps
are timed first, then the number of epochs is chosen, so that the schedule of the learning rate fits. `large` makes steps (forward, backward, Adam) on one cloud, each size in a process of its
own: seconds a step after the first, seconds of the neighbor search and of the choice of farthest points, and the peak memory of the process.
`rotations` measures vectors of untrained networks on finite groups: the error under elements of the group, and under random rotations.
"""

import argparse
import itertools
import os
import resource
import statistics
import subprocess
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import molequi as mq
from molequi.symmetry import group

INPUTS = {"node_features": 1, "node_vectors": 1}
NETWORKS = {
    "flat": ("PaiNN", {"cutoff": None, "k": 8, "channels": 24, "layers": 4}),
    "flat-3x16": ("PaiNN", {"cutoff": None, "k": 8, "channels": 16, "layers": 3}),
    "flat-8x24": ("PaiNN", {"cutoff": None, "k": 8, "channels": 24, "layers": 8}),
    "farthest": ("PointHierarchy", {"k": 8, "channels": 24, "layers": 1, "levels": 2}),
    "farthest-wide": ("PointHierarchy", {"k": 8, "channels": 40, "layers": 1, "levels": 2}),
    "farthest-deep": ("PointHierarchy", {"k": 8, "channels": 24, "layers": 1, "levels": 3, "ratio": 0.3}),
    "clusters": ("PointHierarchy", {"k": 8, "channels": 24, "layers": 2, "levels": 1, "pooling": "clusters"}),
}


def network(name: str, inputs: dict | None = None) -> mq.Backbone:
    kind, options = NETWORKS[name]
    return getattr(mq, kind)(elements=["X"], inputs=inputs or INPUTS, **options)


times: list[float] = []


class Times(mq.Hook):
    """Processor seconds at the steps of a training, in the list above."""

    def before_step(self, run) -> None:
        times.append(time.process_time())


def parts(names: list[str], seeds: list[int], seconds: float) -> None:
    whole = mq.read_points(mq.shipped("shapes.npz"), part="train", centroid=True)
    test = mq.read_points(mq.shipped("shapes.npz"), part="test", centroid=True)
    train, valid = whole.split([700, 100], seed=0)
    print("network          parameters  seed  epochs  processor s  accuracy  balanced accuracy", flush=True)
    for name in names:
        for seed in seeds:

            def fit(clouds: mq.Dataset, epochs: int, seed: int = seed, name: str = name):
                torch.manual_seed(seed)
                model = mq.Model(network(name), predict=[whole.quantities["part"]])
                times.clear()
                return mq.fit(
                    model,
                    clouds,
                    valid[: 100 if epochs > 1 else 16],
                    test=test,
                    epochs=epochs,
                    batch_size=16,
                    lr=5e-3,
                    optimizer={"name": "soap"},
                    schedule={"warmup": 1},
                    seed=seed,
                    terms=[Times()],
                    logging={"progress": False},
                )

            fit(train[:160], 1)
            step = statistics.median(b - a for a, b in itertools.pairwise(times[2:]))
            # A validation is a seventh of the structures, without gradients.
            epochs = max(round(seconds / (1.05 * step * len(train) / 16)), 2)
            result = fit(train, epochs)
            used = times[-1] - times[0]
            errors = result.errors["test"]
            size = sum(p.numel() for p in result.model.parameters())
            found = [errors[n] for n in ("part_accuracy", "part_balanced_accuracy")]
            print(
                f"{name:16s} {size:10d} {seed:5d} {epochs:7d} {used:12.0f} {found[0]:9.3f} {found[1]:18.3f}",
                flush=True,
            )


def surface(n: int) -> mq.Graph:
    """Points on a wavy sphere, with two classes of points."""
    torch.manual_seed(0)
    u = torch.nn.functional.normalize(torch.randn(n, 3, dtype=torch.float64), dim=1)
    pos = u * (1 + 0.3 * torch.sin(5 * u[:, :1]))
    return mq.Graph.single(pos, targets={"part": (u[:, 0] > 0).long()})


def large(name: str, n: int, steps: int) -> None:
    graph, clock = surface(n), time.process_time
    start = clock()
    graph = mq.connect(graph, None, 8)
    search, label = clock() - start, graph.targets["part"]
    model = mq.Model(
        network(name, {"node_features": 0}),
        predict=[mq.Quantity("part", per="node", classes=["one", "other"])],
    )
    optimizer, times = torch.optim.Adam(model.parameters(), lr=1e-3), []
    for _ in range(steps + 1):
        start = clock()
        loss = torch.nn.functional.cross_entropy(model(graph)["part"], label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(clock() - start)
    step = statistics.median(times[1:])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(f"{name:16s} {n:8d} {search:10.2f} {times[0] - step:14.2f} {step:8.2f} {memory:10.2f}", flush=True)


def rotations(seeds: int = 5) -> None:
    clouds = mq.read_points(mq.shipped("shapes.npz"), part="test", index=f":{seeds}")
    print("group  degree  error under the group  under random rotations")
    for name in ("T", "O", "I"):
        for degree in (None, 1):
            rows: dict[str, list[float]] = {name: [], "SO(3)": []}
            for seed, graph in enumerate(clouds):
                torch.manual_seed(seed)
                net = mq.GroupConvNet(
                    elements=["X"], cutoff=None, k=8, group=name, degree=degree, l_max=1, channels=8, layers=2
                ).double()
                for what, found in rows.items():
                    turn = group(what).sample(proper=True)
                    g = mq.Graph.single(graph.pos)
                    here, there = (
                        net(mq.connect(one, None, 8)).blocks["1o"]
                        for one in (g, g.replace(pos=g.pos @ turn.T))
                    )
                    found.append(float((there - here @ turn.T).norm() / here.norm()))
            exact, other = (statistics.mean(found) for found in rows.values())
            print(f"{name:5s}  {degree or '':6}  {exact:21.1e}  {other:22.2g}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["parts", "large", "one", "rotations"])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["flat", "farthest", "clusters"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--points", nargs="+", type=int, default=[10_000, 30_000, 100_000])
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "parts":
        parts(args.networks, args.seeds, args.seconds)
    elif args.what == "rotations":
        with torch.no_grad():
            rotations()
    elif args.what == "one":
        large(args.networks[0], args.points[0], args.steps)
    else:
        print("network            points  search s  first step + s   step s  memory GiB", flush=True)
        for name in args.networks:
            for n in args.points:
                command = [sys.executable, __file__, "one", "--networks", name, "--points", str(n)]
                subprocess.run([*command, "--steps", str(args.steps)], check=True)


if __name__ == "__main__":
    main()
