"""Seconds of compilation in a first and in a second process, and of a training step, plain and compiled.

    python tests/benchmarks/compilation.py [--backbones PaiNN NequIP] [--sizes default] [--threads 1]

Energy and forces of ethanol (`data/ethanol_300K.xyz`), batches of five structures, float32, the sizes of the recipes. Each process is a new one; the
first finds an empty cache. Processor seconds contain those of the C++ compiler.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = {
    "EGNN": {"channels": 64, "layers": 3},
    "GauntACE": {"channels": 32, "layers": 2, "l_max": 2, "l_hidden": 1, "l_out": 0},
    "MACE": {"channels": 32, "layers": 2, "l_max": 2, "l_out": 0},
    "NequIP": {"channels": 32, "layers": 3, "l_max": 2, "l_out": 0},
    "PaiNN": {"channels": 64, "layers": 3},
}
DATA = Path(__file__).resolve().parents[2] / "data" / "ethanol_300K.xyz"
STEPS = 20


def processor_seconds() -> float:
    """Of this process and of the compilers that it has started."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure(name: str, threads: int, sizes: str) -> dict[str, float]:
    """The numbers of one process."""
    import torch

    import molequi as mq
    from molequi.graph import collate

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    data = mq.read_extxyz(DATA, index=":20")
    options = SIZES[name] if sizes == "recipes" else {k: v for k, v in SIZES[name].items() if k == "l_out"}
    model = mq.Model(getattr(mq, name)(elements=data.elements, cutoff=5.0, **options), ["energy", "forces"])
    model.standardize(data.statistics(5.0))
    batches = [collate([mq.connect(data[5 * k + j], 5.0) for j in range(5)]) for k in range(4)]

    def step(k: int) -> None:
        out = model.train()(batches[k % 4])
        (out["energy"].sum() + out["forces"].square().sum()).backward()

    def steps() -> float:
        started = time.process_time()
        for k in range(STEPS):
            step(k)
        return 1000 * (time.process_time() - started) / STEPS

    step(0)
    found = {"plain step (ms)": steps()}
    mq.accelerate(model)
    for kind in ("training", "evaluation"):
        wall, processor = time.monotonic(), processor_seconds()
        step(0) if kind == "training" else model.eval()(batches[0])
        found[f"{kind} (s)"] = time.monotonic() - wall
        found[f"{kind} (processor s)"] = processor_seconds() - processor
    return found | {"compiled step (ms)": steps()}


def main() -> None:
    """Run two processes for each backbone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", choices=SIZES, default=[*SIZES])
    parser.add_argument("--sizes", choices=["recipes", "default"], default="recipes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", choices=SIZES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.threads, given.sizes)))
        return
    for name in given.backbones:
        with tempfile.TemporaryDirectory() as cache:
            for process in ("first", "second"):
                out = subprocess.run(
                    [sys.executable, __file__, "--measure", name, "--threads", str(given.threads)]
                    + ["--sizes", given.sizes],
                    env=os.environ | {"MOLEQUI_CACHE": cache},
                    stdout=subprocess.PIPE,
                    check=True,
                    text=True,
                ).stdout
                numbers = json.loads(out.splitlines()[-1])
                print(name, f"{process} process:", {k: round(v, 1) for k, v in numbers.items()}, flush=True)


if __name__ == "__main__":
    main()
