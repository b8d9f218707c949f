"""Processor time, page faults and memory of energy and forces of crystals by a compiled force field.

    python tests/benchmarks/large_cells.py [--atoms 500 2000 5000 10000]

Crystals of acetylacetone (MOLEQUI_DATA) or ethanol, from small to large and the smallest once more: the default force field with `l_out=0`, one
thread, float32. 10,000 atoms take 5 GB.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import torch

import molequi as mq

sys.path.insert(0, str(Path(__file__).resolve().parent))

from peers.structures import crystal, molecules


def gigabytes(name: str) -> float:
    """VmRSS or VmHWM of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1e6


def main() -> None:
    """Measure the second call for each number of atoms."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--atoms", type=int, nargs="+", default=[500, 2000, 5000, 10000])
    sizes = sorted(parser.parse_args().atoms)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    frames, origin = molecules()
    model = mq.Model(mq.GauntACE(elements=["H", "C", "O"], cutoff=5.0, l_out=0), ["energy", "forces"])
    mq.accelerate(model.eval())
    print(origin)
    for wanted in (*sizes, sizes[0]):
        atoms = crystal(frames, wanted)
        graph = mq.connect(
            mq.Graph.single(atoms.positions, atoms.numbers, cell=atoms.cell.array, pbc=True), 5.0
        )
        model(graph)
        faults, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
        model(graph)
        seconds = time.process_time() - started
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        print(
            f"{len(atoms)} atoms: {1000 * seconds / len(atoms):.3f} ms per atom, {faults} page faults, "
            f"{gigabytes('VmRSS'):.2f} GB now, {gigabytes('VmHWM'):.2f} GB at most",
            flush=True,
        )


if __name__ == "__main__":
    main()
