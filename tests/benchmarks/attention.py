"""Equiformer: the growth of its cost with the degree beside full tensor products, and what it learns at equal processor time.

    python tests/benchmarks/attention.py cost [--degrees 2 4 6] [--channels 16] [--edges 2000] [--turns 5]
    python tests/benchmarks/attention.py sphere            # errors of equivariance of S2 activations by the degree of their quadrature
    python tests/benchmarks/attention.py train --cases acac gap mu [--seconds 1800] [--seeds 0]
    python tests/benchmarks/attention.py table             # what `train` has measured so far

`cost` times one convolution with its derivatives, on one thread, in processor seconds; all take turns, and the medians are printed with the
exponent p of a fit t ~ l^p: `EdgeAttention` with its frames, `Convolution` (the products of NequIP, with a weight for each path and channel),
and FullyConnectedTensorProduct of e3nn (with a weight for each path and pair of channels, as SO(2) maps have them).

`train` takes cases from optimizers.py (published sets are found by MOLEQUI_DATA). Two short runs give the processor seconds of an epoch; the
third one has as many epochs as the seconds allow, and a schedule that ends with them. Compiling does not count. Rows are appended to
build/attention.jsonl, and those that are there already are not trained again.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

OUT = Path(__file__).resolve().parents[2] / "build" / "attention.jsonl"
FORCES = "backbone.Equiformer={channels: 64, hidden: 32, layers: 2, l_max: 3, l_out: 0}"
SCALARS = "backbone.Equiformer={channels: 64, hidden: 16, layers: 2, l_max: 2, l_out: 0}"
VECTORS = "backbone.Equiformer={channels: 64, hidden: 16, layers: 2, l_max: 2, l_out: 1}"
# case: case of optimizers.py, its epochs, and for each backbone the variant and settings
TRAIN: dict[str, tuple[str, int, dict[str, tuple[str, list[str]]]]] = {
    "acac": ("acac", 100, {"GauntACE": ("soap-1e-2", []), "Equiformer": ("soap-5e-3", [FORCES])}),
    "gap": (
        "qm9",
        17,
        {
            "PaiNN": ("soap-5e-3", []),
            "EGNN": ("soap-5e-3", ["backbone.EGNN={cutoff: 5.0, channels: 64, layers: 4}"]),
            "Equiformer": ("soap-5e-3", [SCALARS]),
        },
    ),
    "mu": (
        "mu",
        17,
        {
            "PaiNN": ("soap-5e-3", []),
            "EGNN": ("soap-5e-3", ["backbone.EGNN={cutoff: 5.0, channels: 64, layers: 4}"]),
            "Equiformer": ("soap-5e-3", [VECTORS]),
        },
    ),
}


def convolutions(l_max: int, channels: int, edges):
    """Functions that compute one convolution and its derivatives, by name."""
    from e3nn import o3

    from molequi.nn import Convolution, EdgeAttention, EdgeFrames
    from molequi.nn.attention import natural
    from molequi.ops import irreps as ir

    nodes, count = edges.coordination.shape[0], len(edges.length)
    layout = natural(l_max)
    h = torch.randn(nodes, (l_max + 1) ** 2, channels, requires_grad=True)
    radial = torch.randn(count, 16)
    frames = EdgeFrames(l_max, l_max)
    sizes = dict(channels=channels, hidden=channels, heads=4, radial=16, reflections=True)
    attention = EdgeAttention(l_in=l_max, l_out=l_max, m_max=l_max, **sizes)
    nequip = Convolution(
        inputs=layout, outputs=layout, l_max=l_max, channels=channels, radial=(16,), reflections=True
    )
    irreps = "+".join(f"{channels}x{i}" for i in layout)
    full = o3.FullyConnectedTensorProduct(irreps, "+".join(f"1x{i}" for i in layout), irreps)
    flat = torch.randn(nodes, channels * (l_max + 1) ** 2, requires_grad=True)

    def harmonics(unit):
        return torch.cat(ir.spherical_harmonics(l_max, unit), dim=1)

    def run(function):
        def step() -> None:
            unit = edges.unit.detach().requires_grad_()
            function(unit).square().sum().backward()

        return step

    return {
        "EdgeAttention": run(lambda unit: attention(h, frames(unit), radial, edges)),
        "Convolution": run(lambda unit: nequip(h, radial, harmonics(unit), edges, torch.tensor(0.25))),
        "e3nn, full": run(lambda unit: edges.sum(full(edges.gather(flat), harmonics(unit)))),
    }


def cost(options: argparse.Namespace) -> None:
    import numpy as np

    from molequi import Graph, connect
    from molequi.nn import edges_of

    torch.set_num_threads(1)
    torch.manual_seed(0)
    nodes = options.edges // 14
    graph = connect(
        Graph.single((nodes / 5) ** (1 / 3) * torch.rand(nodes, 3)), 1.0
    )  # 5 nodes in a volume of 1
    edges = edges_of(graph, 1.0, torch.float32)
    print(f"{len(edges.length)} edges, {graph.num_nodes} nodes, {options.channels} channels, processor ms")
    medians: dict[str, list[float]] = {}
    for l_max in options.degrees:
        runs = convolutions(l_max, options.channels, edges)
        for step in runs.values():
            step()
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.turns):
            for name, step in runs.items():
                start = time.process_time()
                step()
                times[name].append(time.process_time() - start)
        for name, found in times.items():
            medians.setdefault(name, []).append(1e3 * statistics.median(found))
        print(f"l_max {l_max}: " + ", ".join(f"{n} {t[-1]:.1f}" for n, t in medians.items()), flush=True)
    for name, found in medians.items():
        slope = np.polyfit(np.log(options.degrees), np.log(found), 1)[0]
        print(f"{name:14s} t ~ l^{slope:.1f}")


def sphere(_: argparse.Namespace) -> None:
    from molequi.nn import SphereActivation
    from molequi.ops import irreps as ir
    from molequi.symmetry import random_orthogonal

    generator = torch.Generator().manual_seed(0)
    for l_max in (1, 2, 3, 4, 6):
        x = torch.randn(20, (l_max + 1) ** 2, 16, dtype=torch.float64, generator=generator)
        for degree in (l_max * k for k in (2, 4, 6, 8, 12, 16, 20)):
            act, errors = SphereActivation(l_max, degree), []
            for _ in range(8):
                g = random_orthogonal(3, generator=generator)
                d = torch.block_diag(*[ir.wigner(ir.natural(l), g) for l in range(l_max + 1)])
                wanted = d @ act(x)
                errors.append(float((act(d @ x) - wanted).norm() / wanted.norm()))
            print(
                f"l_max {l_max}, degree {degree:3d}, {len(act.there):4d} points: "
                f"{statistics.mean(errors):.1e}"
            )


def measured(case: str, variant: str, seed: int, scale: float, settings: list[str]) -> dict:
    """One training by optimizers.py, in a process of its own."""
    script = Path(__file__).with_name("optimizers.py")
    command = [sys.executable, str(script), "--measure", case, variant, str(seed), "--scale", repr(scale)]
    more = ["--with", *settings] if settings else []
    ended = subprocess.run(command + more, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def rows() -> list[dict]:
    return [json.loads(line) for line in OUT.read_text().splitlines()] if OUT.exists() else []


def train(options: argparse.Namespace) -> None:
    OUT.parent.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for name in options.cases:
            case, epochs, backbones = TRAIN[name]
            for backbone, (variant, settings) in backbones.items():
                key = {"case": name, "backbone": backbone, "seconds": options.seconds, "seed": seed}
                key |= {"variant": variant, "settings": settings}
                if any(key.items() <= row.items() for row in rows()):
                    continue
                print(f"{name}: {backbone}, seed {seed}", file=sys.stderr, flush=True)
                # Epochs are counted from 1: the difference of two short runs has no compiling and no reading.
                short = [measured(case, variant, seed, n / epochs, settings)["seconds"] for n in (1, 3)]
                epoch = (short[1] - short[0]) / 2
                if epoch <= 0:
                    sys.exit(f"{name}, {backbone}: an epoch is too short to be timed ({epoch:.2f} s)")
                count = max(1, round(options.seconds / epoch))
                found = measured(case, variant, seed, count / epochs, settings)
                with OUT.open("a") as file:
                    print(
                        json.dumps(key | {"epoch": epoch, "epochs": count, "errors": found["errors"]}),
                        file=file,
                    )


def table(_: argparse.Namespace) -> None:
    for row in rows():
        errors = ", ".join(f"{unit} {value:.2f}" for unit, value in row["errors"].items())
        print(
            f"{row['case']:5s} {row['backbone']:11s} {row['seconds']:.0f} s, seed {row['seed']}: {errors} "
            f"({row['epochs']} epochs of {row['epoch']:.1f} processor s)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("cost")
    one.set_defaults(run=cost)
    one.add_argument("--degrees", nargs="+", type=int, default=[2, 4, 6])
    one.add_argument("--channels", type=int, default=16)
    one.add_argument("--edges", type=int, default=2000)
    one.add_argument("--turns", type=int, default=5)
    commands.add_parser("sphere").set_defaults(run=sphere)
    one = commands.add_parser("train")
    one.set_defaults(run=train)
    one.add_argument("--cases", nargs="+", choices=TRAIN, default=[*TRAIN])
    one.add_argument("--seconds", type=float, default=1800)
    one.add_argument("--seeds", nargs="+", type=int, default=[0])
    commands.add_parser("table").set_defaults(run=table)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
