"""A converted MACE model beside mace-torch: the same energies, forces and stress, and the time of energy and forces.

    python -m venv peer && peer/bin/pip install torch==2.13.0 mace-torch==0.3.16
    python tests/benchmarks/published_mace.py --peer peer/bin/python [FILE.model] [--level HEAD] [--waters 8 64]

Without a file, mace-torch makes one of the size of MACE-OFF23 small (96 scalar channels, l = 3, three factors, 4.5 Å, ten elements) or, with
--size mp, of MACE-MP-0 medium (128 channels 0e + 1o, 6 Å, 89 elements), with random weights.

Values: those of the structures of `published_models.py` whose elements the model knows, in float64 on both sides. Time: boxes of water, one
thread, float32, processor time, the median of five calls after two others; the package and molequi (plain, and compiled with --compiled) in turn,
twice.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

MAKE = """
import sys
import numpy as np, torch
from e3nn import o3
from mace import modules

size, out = sys.argv[1:3]
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
own = {
    "off": {"r_max": 4.5, "hidden_irreps": "96x0e", "num_bessel": 8, "atomic_numbers": [1, 6, 7, 8, 9, 15, 16, 17, 35, 53]},
    "mp": {"r_max": 6.0, "hidden_irreps": "128x0e+128x1o", "num_bessel": 10, "atomic_numbers": [*range(1, 84), *range(89, 95)]},
}[size]
own["hidden_irreps"] = o3.Irreps(own["hidden_irreps"])
block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
count = len(own["atomic_numbers"])
model = modules.ScaleShiftMACE(
    **own, num_elements=count, max_ell=3, num_polynomial_cutoff=5, interaction_cls=block, interaction_cls_first=block,
    num_interactions=2, MLP_irreps=o3.Irreps("16x0e"), gate=torch.nn.functional.silu, atomic_energies=np.arange(count) - 50.0,
    avg_num_neighbors=20.0, correlation=3, atomic_inter_scale=0.8, atomic_inter_shift=0.1,
)
torch.save(model, out)
"""
PEER = """
import json, sys, time
import numpy as np, torch
from ase.io import read
from mace.calculators import MACECalculator

file, level, structures, what, out = sys.argv[1:6]
torch.set_num_threads(1)
precision = "float64" if what == "values" else "float32"
options = {"head": level} if level else {}
calculator = MACECalculator(file, device="cpu", default_dtype=precision, **options)
"""


def waters(count: int):
    """A periodic box of water molecules with the density of the liquid, each turned in its own way."""
    from ase import Atoms
    from ase.build import molecule

    random, side = np.random.default_rng(0), round(count ** (1 / 3))
    box = Atoms(cell=np.eye(3) * side * 3.1, pbc=True)
    for place in np.ndindex(side, side, side):
        one = molecule("H2O")
        one.rotate(random.uniform(0, 360), random.normal(size=3))
        one.positions += np.array(place) * 3.1
        box += one
    return box


def main() -> None:
    import torch
    from ase.io import write
    from published_models import MEASURE, ours, structures

    import molequi as mq

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", help="a model that mace-torch wrote with torch.save")
    parser.add_argument("--peer", required=True, help="Python of an environment that has mace-torch")
    parser.add_argument("--level", help="head of a model with several")
    parser.add_argument("--size", choices=["off", "mp"], default="off", help="size of the model that is made")
    parser.add_argument("--waters", type=int, nargs="*", default=[8, 64], help="cubes of whole numbers")
    parser.add_argument("--compiled", action="store_true", help="measure the compiled model, too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(given.file).resolve()) if given.file else str(Path(folder) / "random.model")

        def peer(script: str, *arguments: str) -> None:
            environment = {**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "OMP_NUM_THREADS": "1"}
            run = [given.peer, "-W", "ignore", "-c", script, *arguments]
            subprocess.run(run, check=True, cwd=folder, stdout=sys.stderr, env=environment)

        def package(frames: list, what: str) -> list:
            write(Path(folder) / "s.traj", frames)  # with all digits
            peer(PEER + MEASURE, file, given.level or "", "s.traj", what, "out.json")
            return json.loads((Path(folder) / "out.json").read_text())

        if not given.file:
            peer(MAKE, given.size, file)
        model = mq.convert(file, level=given.level, dtype="float64")
        frames = [atoms for atoms in structures() if set(atoms.numbers) <= set(model.elements)]
        frames += [waters(8)] if {1, 8} <= set(model.elements) else []
        worst = [0.0, 0.0, 0.0]
        for a, b in zip(ours(model, frames, 1), package(frames, "values")):
            parts = [
                abs(a["energy"] - b["energy"]) / max(abs(b["energy"]), 1e-3),
                *(
                    np.abs(np.subtract(a[name], b[name])).max() / max(np.abs(b[name]).max(), 1e-3)
                    if b[name]
                    else 0.0
                    for name in ("forces", "stress")
                ),
            ]
            worst = [max(w, float(p)) for w, p in zip(worst, parts)]
        print(
            f"{len(frames)} structures, float64, relative: energy {worst[0]:.1e}, forces {worst[1]:.1e}, stress {worst[2]:.1e}",
            flush=True,
        )
        single = mq.convert(file, level=given.level)
        for count in given.waters:
            box = waters(count)
            for _ in range(2):
                a = package([box], "time")[0]["seconds"]
                b = ours(single, [box], 7)[0]["seconds"]
                line = f"{len(box)} atoms of water: package {1e3 * a:.0f} ms, molequi {1e3 * b:.0f} ms, ratio {a / b:.2f}"
                if given.compiled:
                    c = ours(single, [box], 7, accelerate=True)[0]["seconds"]
                    line += f", compiled {1e3 * c:.0f} ms, ratio {a / c:.2f}"
                print(line, flush=True)


if __name__ == "__main__":
    main()
