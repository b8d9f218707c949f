"""Converted models beside the packages that published them: the same values, and the time of energy and forces.

    python -m venv peer && peer/bin/pip install torch==2.13.0 sevenn
    python tests/benchmarks/published_models.py --peer peer/bin/python [7net-0 7net-l3i5 ...] [--atoms 64 512]

Values: 20 structures (molecules, atoms, crystals, slabs, a sheet, skewed cells) in float64 on both sides. Time: rattled silicon, one
thread, float32, processor time, the median of five calls after two others; the package and molequi (plain) in turn, twice.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

# After a script for a package that makes `calculator`, and reads `structures`, `what` and `out` from its arguments.
MEASURE = """
found = []
for atoms in read(structures, ":"):
    seconds = []
    for call in range(1 if what == "values" else 7):
        atoms.positions += 0 if what == "values" else 1e-4
        begin = time.process_time()
        calculator.calculate(atoms)
        seconds.append(time.process_time() - begin)
    r = calculator.results
    found.append({"energy": float(r["energy"]), "forces": np.asarray(r["forces"]).tolist(),
                  "stress": np.asarray(r["stress"]).tolist() if atoms.pbc.all() else None, "seconds": float(np.median(seconds[2:] or seconds))})
json.dump(found, open(out, "w"))
"""
PEER = """
import json, sys, time
import numpy as np
import torch
from ase.io import read

weights, level, structures, what, out = sys.argv[1:6]
torch.set_num_threads(1)
import sevenn.calculator
from sevenn.atom_graph_data import AtomGraphData
from sevenn.checkpoint import SevenNetCheckpoint

if what == "values":  # sevenn makes its elements, constants and loaded tables in float32
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    torch.FloatTensor = lambda values: torch.tensor(values, dtype=torch.float64)
    state = SevenNetCheckpoint.model_state_dict
    SevenNetCheckpoint.model_state_dict = property(lambda self: {k: v.double() for k, v in state.fget(self).items()})
    graphs = AtomGraphData.from_numpy_dict

    def as_double(*arguments, **options):
        data = graphs(*arguments, **options)
        for key, value in data.to_dict().items():
            if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
                data[key] = value.double()
        return data

    AtomGraphData.from_numpy_dict = staticmethod(as_double)
calculator = sevenn.calculator.SevenNetCalculator(weights, device="cpu", modal=level or None)
if what == "values":
    calculator.model.double()
"""
FILE = "import importlib.metadata as m, sys; print(m.distribution(sys.argv[1]).locate_file(sys.argv[2]))"


def structures():
    """Twenty structures, in numbers that float32 holds, since sevenn makes its graphs in float32."""
    from ase import Atoms
    from ase.build import add_adsorbate, bulk, fcc111, graphene, molecule

    random = np.random.default_rng(0)
    found = [molecule(name) for name in ("H2O", "CH3CH2OH", "C6H6", "SO2", "PH3")]
    found += [Atoms("Ar"), Atoms("Fe", [[1.0, 2.0, 3.0]])]
    for name, options in {
        "Si": {"crystalstructure": "diamond", "a": 5.43},
        "Cu": {"cubic": True},
        "Fe": {"cubic": True},
        "NaCl": {"crystalstructure": "rocksalt", "a": 5.64},
        "MgO": {"crystalstructure": "rocksalt", "a": 4.2, "cubic": True},
        "GaAs": {"crystalstructure": "zincblende", "a": 5.65},
        "Ti": {},
        "W": {"cubic": True},
    }.items():
        crystal = bulk(name, **options)
        found.append(crystal if len(crystal) > 3 else crystal * (2, 2, 1))
    slab = fcc111("Pt", (2, 2, 3), vacuum=8.0)
    add_adsorbate(slab, molecule("CO"), 1.9, "ontop", mol_index=1)
    found += [slab, fcc111("Al", (2, 2, 3), vacuum=6.0, periodic=True), graphene(size=(2, 2, 1), vacuum=7.0)]
    skewed = bulk("Si", "diamond", a=5.43) * (2, 1, 1)
    skewed.set_cell(skewed.cell @ (np.eye(3) + [[0, 0.3, 0], [0, 0, 0.2], [0, 0, 0]]), scale_atoms=True)
    olivine = Atoms("LiFePO4", cell=[[4.5, 0, 0], [0.7, 4.6, 0], [-0.5, 0.9, 5.1]], pbc=True)
    olivine.set_scaled_positions(
        [
            [0, 0, 0],
            [0.5, 0.5, 0.5],
            [0.25, 0.75, 0.1],
            [0.1, 0.45, 0.2],
            [0.7, 0.3, 0.8],
            [0.8, 0.8, 0.1],
            [0.4, 0.1, 0.6],
        ]
    )
    found += [skewed, olivine]
    for atoms in found:
        atoms.info.clear()
        atoms.positions = (
            np.round((atoms.positions + random.normal(size=(len(atoms), 3)) * 0.05) * 1024) / 1024
        )
        atoms.cell[:] = np.round(atoms.cell[:] * 1024) / 1024
    assert len(found) == 20
    return found


def silicon(count: int):
    from ase.build import bulk

    crystal = bulk("Si", "diamond", a=5.43, cubic=True) * ((round((count / 8) ** (1 / 3)),) * 3)
    crystal.rattle(0.05, seed=1)
    return crystal


def ours(model, frames, calls: int, accelerate: bool = False):
    """Energy, forces and stress of each structure, and the median of processor seconds."""
    import time

    import molequi as mq

    calculator = mq.Calculator(model, accelerate=accelerate)
    found = []
    for atoms in frames:
        atoms = atoms.copy()
        atoms.calc, seconds = calculator, []
        for _ in range(calls):
            atoms.positions += 0 if calls == 1 else 1e-4
            begin = time.process_time()
            forces = atoms.get_forces()
            seconds.append(time.process_time() - begin)
        stress = atoms.get_stress().tolist() if atoms.pbc.all() else None
        found.append(
            {
                "energy": atoms.get_potential_energy(),
                "forces": forces,
                "stress": stress,
                "seconds": float(np.median(seconds[2:] or seconds)),
            }
        )
    return found


def main() -> None:
    import torch
    from ase.io import write

    import molequi as mq
    from molequi.foreign.published import PUBLISHED

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", default=[n for n, one in PUBLISHED.items() if one.package == "sevenn"]
    )
    parser.add_argument("--peer", required=True, help="Python of an environment that has the package")
    parser.add_argument("--atoms", type=int, nargs="*", default=[64, 512])
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:

        def peer(weights: str, level: str | None, frames: list, what: str):
            write(Path(folder) / "s.xyz", frames, format="extxyz", columns=["symbols", "positions"])
            run = [
                given.peer,
                "-W",
                "ignore",
                "-c",
                PEER + MEASURE,
                weights,
                level or "",
                "s.xyz",
                what,
                "out.json",
            ]
            subprocess.run(run, check=True, cwd=folder, stdout=sys.stderr)
            return json.loads((Path(folder) / "out.json").read_text())

        for name in given.names:
            one = PUBLISHED[name]
            run = [given.peer, "-c", FILE, one.package, one.file]
            weights = subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip()
            for level in one.levels or (None,):
                frames = structures()
                theirs = peer(weights, level, frames, "values")
                for precision in ("float64", "float32"):
                    model = mq.convert(weights, level=level, dtype=precision).double()
                    worst = [0.0, 0.0, 0.0]
                    for atoms, a, b in zip(frames, ours(model, frames, 1), theirs):
                        parts = [
                            abs(a["energy"] - b["energy"]) / len(atoms),
                            np.abs(a["forces"] - b["forces"]).max(),
                        ]
                        parts.append(
                            np.abs(np.subtract(a["stress"], b["stress"])).max() if b["stress"] else 0.0
                        )
                        worst = [max(w, float(p)) for w, p in zip(worst, parts)]
                    print(
                        f"{name} {level or ''} weights in {precision}: energy {worst[0]:.1e} eV/atom, forces {worst[1]:.1e} eV/Å, "
                        f"stress {worst[2]:.1e} eV/Å³",
                        flush=True,
                    )
            for count in given.atoms:
                crystal, model = silicon(count), mq.convert(weights, level=level)
                for _ in range(2):
                    a = peer(weights, level, [crystal], "time")[0]["seconds"]
                    b = ours(model, [crystal], 7)[0]["seconds"]
                    print(
                        f"{name} {len(crystal)} atoms: package {1e3 * a:.0f} ms, molequi {1e3 * b:.0f} ms, ratio {a / b:.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
