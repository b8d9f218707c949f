"""Makes bn.xyz: shaken and strained cubic boron nitride, for energies, forces and stress of a periodic structure.

`python data/make_bn.py` (needs tblite; about 2 minutes on one core). GFN2-xTB. Zincblende, 8 atoms in the cubic cell,
at the lattice constant where the pressure vanishes (found here by bisection). tblite samples the Γ point only, so this
is a data set for learning and testing, not a converged crystal; a wide gap stays open in the frames, and charge
stays where it is.

Each frame is drawn on its own. Displacements are normal, of 0.05 Å in the first half ("cold") and 0.12 Å in the second
("hot"), which is more than heat does; strains are symmetric and normal, of 1 % and 3 %.
"""

import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from tblite.ase import TBLite

from molequi.util.files import write_atomically

HERE = Path(__file__).resolve().parent
SEED = 20261121
SETS = {"cold": (80, 0.05, 0.01), "hot": (80, 0.12, 0.03)}  # frames, displacement in Å, strain


def xtb() -> TBLite:
    return TBLite(method="GFN2-xTB", accuracy=0.1, verbosity=0)


def crystal(constant: float) -> Atoms:
    atoms = bulk("BN", "zincblende", a=constant, cubic=True)
    atoms.calc = xtb()
    return atoms


def constant_without_pressure(low: float = 3.5, high: float = 4.0) -> float:
    """Where the trace of the stress changes sign, within 1e-3 Å."""

    def pressure(constant: float) -> float:
        return -crystal(constant).get_stress()[:3].mean()

    assert pressure(low) > 0 > pressure(high), "the lattice constant is outside the interval that is searched"
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if pressure(middle) > 0 else (low, middle)
    return (low + high) / 2


def main() -> None:
    versions = ", ".join(f"{name} {version(name)}" for name in ("tblite", "ase", "numpy"))
    print(f"GFN2-xTB, {versions}, Python {sys.version.split()[0]}, seed {SEED}", flush=True)
    constant = constant_without_pressure()
    print(f"lattice constant {constant:.4f} Å", flush=True)
    rng = np.random.default_rng(SEED)
    frames, clock, total = [], time.monotonic(), sum(n for n, _, _ in SETS.values())
    for name, (count, displacement, strain) in SETS.items():
        for _ in range(count):
            atoms = crystal(constant)
            random = rng.normal(scale=strain, size=(3, 3))
            atoms.set_cell(atoms.cell @ (np.eye(3) + (random + random.T) / 2), scale_atoms=True)
            atoms.positions += rng.normal(scale=displacement, size=(len(atoms), 3))
            results = {
                "energy": atoms.get_potential_energy(),
                "forces": atoms.get_forces(),
                "stress": atoms.get_stress(),
            }
            frame = Atoms(
                atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True, info={"sampling": name}
            )
            frame.calc = SinglePointCalculator(frame, **results)
            frames.append(frame)
            if len(frames) % 10 == 0:
                left = (time.monotonic() - clock) / len(frames) * (total - len(frames))
                print(f"{len(frames)} of {total} frames; {left / 60:.1f} minutes left", flush=True)
    write_atomically(HERE / "bn.xyz", partial(write, images=frames, format="extxyz"))


if __name__ == "__main__":
    main()
