"""The converted SO3LR beside so3krates-torch: the same energies, forces, stress, charges and dipoles.

    python -m venv peer && peer/bin/pip install torch==2.13.0 so3krates-torch==0.2.1
    python tests/benchmarks/published_so3lr.py --peer peer/bin/python

24 neutral and charged molecules, radicals, atoms, clusters, crystals, slabs and skewed cells, in float64 on both sides.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read, write

PEER = """
import numpy as np, sys, torch
from ase.io import read
from so3krates_torch.calculator.so3 import SO3LRCalculator

torch.set_default_dtype(torch.float64)
calculator = SO3LRCalculator(default_dtype="float64")
found = {}
for k, atoms in enumerate(read(sys.argv[1], ":")):
    calculator.compute_stress = bool(atoms.pbc.all())
    calculator.calculate(atoms)
    for name in ("energy", "forces", "stress", "partial_charges", "dipole"):
        if name in calculator.results:
            found[f"{name} {k}"] = calculator.results[name]
np.savez(sys.argv[2], **found)
"""
FILE = "import importlib.metadata as m, sys; print(m.distribution(sys.argv[1]).locate_file(sys.argv[2]))"
UNITS = {"energy": "eV/atom", "forces": "eV/Å", "stress": "eV/Å³", "charges": "e", "dipole": "e Å"}


def structures() -> list[Atoms]:
    random = np.random.default_rng(1)
    found = []

    def add(atoms: Atoms, charge: int = 0, spin: int = 1, size: float = 0.05) -> None:
        atoms.positions += random.normal(size=(len(atoms), 3)) * size
        atoms.info = {"charge": charge, "spin": spin, "total_spin": (spin - 1) / 2}
        found.append(atoms)

    for name in ("H2O", "CH3CH2OH", "C6H6", "CH3SH", "PH3", "CH3Cl", "HCOOCH3", "isobutane"):
        add(molecule(name))
    ammonium = molecule("NH3")
    ammonium += Atoms("H", [ammonium.positions[0] + [0, 0, 1.02]])
    add(ammonium, 1)
    for name, charge, spin in (
        ("OH", -1, 1),
        ("CH3", 0, 2),
        ("O2", 0, 3),
        ("NO2", -1, 1),
        ("C2H4", 2, 3),
        ("Cl", -1, 1),
        ("H", 0, 2),
    ):
        add(molecule(name), charge, spin)

    def waters(counts: tuple[int, int, int], step: float) -> Atoms:
        together = Atoms()
        for place in np.ndindex(*counts):
            one = molecule("H2O")
            one.rotate(random.uniform(0, 360), random.normal(size=3))
            one.positions += np.array(place) * step
            together += one
        return together

    add(waters((3, 3, 2), 3.0))
    pair, far = molecule("CH3Cl"), molecule("C6H6")
    far.positions += [9.3, 0, 0]
    add(pair + far)
    ice = waters((2, 2, 2), 3.1)
    ice.set_cell(np.eye(3) * 6.2)
    ice.pbc = True
    add(ice)
    add(bulk("C", "diamond", a=3.57))
    skewed = bulk("C", "diamond", a=3.57) * (2, 1, 1)
    skewed.set_cell(skewed.cell @ (np.eye(3) + [[0, 0.3, 0], [0, 0, 0.2], [0, 0, 0]]), scale_atoms=True)
    add(skewed)
    ammonia = molecule("NH3", cell=[[4.5, 0, 0], [0.7, 4.6, 0], [-0.5, 0.9, 5.1]], pbc=True)
    add(ammonia)
    for name, pbc in (("H2O", True), ("HCl", (True, True, False))):
        cell = [[2.46, 0, 0], [1.23, 2.1304, 0], [0, 0, 20]]
        sheet = Atoms("C2", [[0, 0, 8], [1.23, 0.71, 8]], cell=cell, pbc=pbc) * (2, 2, 1)
        above = molecule(name)
        above.positions += [2, 1, 11.5]
        add(sheet + above)
    assert len(found) == 24
    return found


def main() -> None:
    import molequi as mq
    from molequi.foreign.published import PUBLISHED

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", required=True, help="Python of an environment that has the package")
    given = parser.parse_args()
    one = PUBLISHED["so3lr"]
    run = [given.peer, "-c", FILE, one.package, one.file]
    weights = subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "s.xyz", Path(folder) / "out.npz"
        write(file, structures(), format="extxyz", columns=["symbols", "positions"])
        subprocess.run([given.peer, "-W", "ignore", "-c", PEER, file, out], check=True, capture_output=True)
        theirs, frames = dict(np.load(out)), read(file, ":")
    for precision in ("float64", "float32"):
        calculator = mq.Calculator(mq.convert(weights, dtype=precision).double())
        worst = dict.fromkeys(UNITS, 0.0)
        for k, atoms in enumerate(frames):
            atoms.calc = calculator
            found = {"energy": atoms.get_potential_energy() / len(atoms), "forces": atoms.get_forces()}
            wanted = {"energy": theirs[f"energy {k}"] / len(atoms), "forces": theirs[f"forces {k}"]}
            found["charges"], wanted["charges"] = atoms.get_charges(), theirs[f"partial_charges {k}"]
            if atoms.pbc.all():
                found["stress"], wanted["stress"] = atoms.get_stress(), theirs[f"stress {k}"]
            # That of an ion depends on the origin, which is another one in the package.
            if not atoms.pbc.any() and not atoms.info["charge"]:
                found["dipole"], wanted["dipole"] = atoms.get_dipole_moment(), theirs[f"dipole {k}"]
            for name, value in found.items():
                worst[name] = max(worst[name], float(np.abs(value - wanted[name]).max()))
        told = ", ".join(f"{name} {value:.1e} {UNITS[name]}" for name, value in worst.items())
        print(f"so3lr, weights in {precision}: {told}", flush=True)


if __name__ == "__main__":
    main()
