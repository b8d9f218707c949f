"""What a step through ASE costs besides the model: `python tests/benchmarks/calculator.py [--compiled]`.

Atoms of shipped ethanol are shaken by 1e-4 Å and asked for their forces, with the calculator and by the model alone on one graph with the
same neighbours, in turns of 500; medians of processor time. The rest is the overhead: comparing, copying, neighbours, results.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

import molequi as mq

SHIPPED = Path(__file__).resolve().parents[2] / "data" / "ethanol_300K.xyz"


def median(function, calls: int = 500) -> float:
    """Milliseconds of this process."""
    spent = []
    for _ in range(calls):
        start = time.process_time_ns()
        function()
        spent.append(time.process_time_ns() - start)
    return float(np.median(spent)) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compiled", action="store_true")
    given = parser.parse_args()
    from ase.io import read

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = mq.Model(
        mq.EGNN(elements=["H", "C", "O"], channels=16, layers=1, cutoff=4.0), ["energy", "forces"]
    ).float()
    atoms, random = read(SHIPPED, index=0), np.random.default_rng(0)
    atoms.calc = mq.Calculator(model, accelerate=given.compiled)
    alone = mq.accelerate(model) if given.compiled else model.eval()
    graph = mq.connect(mq.Graph.single(atoms.positions, atoms.numbers), 4.0)

    def step() -> None:
        atoms.positions += 1e-4 * random.normal(size=atoms.positions.shape)
        atoms.get_forces()

    median(step), median(lambda: alone(graph))
    turns = np.array([(median(step), median(lambda: alone(graph))) for _ in range(5)])
    whole, inner = np.median(turns, axis=0)
    print(
        f"{'compiled' if given.compiled else 'plain'}: a step {whole:.2f} ms, the model {inner:.2f} ms, overhead {whole - inner:.2f} ms"
    )


if __name__ == "__main__":
    main()
