"""Makes ethanol_300K.xyz, ethanol_600K.xyz and isolated_atoms.xyz: ethanol sampled by molecular dynamics, GFN2-xTB.

`python data/make_ethanol.py` (needs tblite; about 5 minutes on one core). Ethanol is small, and floppy: its hydroxyl
and methyl groups turn. In GFN2-xTB the two gauche conformers are mirror images, 66 meV below trans: at 300 K both are
visited and trans is not, at 600 K it is in one frame of eleven. The hot set thus tests beyond what the cold one shows.

Langevin dynamics, 1 fs, friction 0.02/fs, from the relaxed trans molecule; independent trajectories, 1 ps of
equilibration, then a frame each 50 fs. After that time the energy has forgotten most of itself, the turning of the
hydroxyl group has not: frames of one trajectory are related. Each says its trajectory, so that sets can be split by it.
"""

import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.optimize import LBFGS
from tblite.ase import TBLite

from molequi.util.files import write_atomically

HERE = Path(__file__).resolve().parent
SETS = {300: (8, 50), 600: (4, 50)}  # K: trajectories, frames of each
SEED = 20261121
# Unpaired electrons of the atoms' ground states. GFN2-xTB without spin polarisation: they fill the orbitals, no more
# (a closed-shell filling of C and O would lie 0.05 eV lower).
UNPAIRED = {"H": 1, "C": 2, "O": 2}


def xtb(**options) -> TBLite:
    return TBLite(method="GFN2-xTB", accuracy=0.1, verbosity=0, **options)


def labelled(atoms: Atoms, **info) -> Atoms:
    """A copy with energy (eV), forces (eV/Å) and dipole (e Å) as calculator results, centred."""
    frame = Atoms(atoms.numbers, positions=atoms.positions - atoms.positions.mean(axis=0), info=info)
    results = {
        "energy": atoms.get_potential_energy(),
        "forces": atoms.get_forces(),
        "dipole": atoms.get_dipole_moment(),
    }
    frame.calc = SinglePointCalculator(frame, **results)
    return frame


def main() -> None:
    versions = ", ".join(f"{name} {version(name)}" for name in ("tblite", "ase", "numpy"))
    print(f"GFN2-xTB, {versions}, Python {sys.version.split()[0]}, seed {SEED}", flush=True)
    start = molecule("CH3CH2OH")
    start.calc = xtb()
    LBFGS(start, logfile=None).run(fmax=0.001)
    total = sum(n * (1000 + 50 * k) for n, k in SETS.values())
    done, clock = 0, time.monotonic()
    for temperature, (trajectories, count) in SETS.items():
        frames = []
        for trajectory in range(trajectories):
            rng = np.random.default_rng([SEED, temperature, trajectory])
            atoms = start.copy()
            atoms.calc = xtb()
            thermalize_momenta(atoms, temperature_K=temperature, rng=rng)
            dynamics = Langevin(
                atoms,
                timestep=units.fs,
                temperature_K=temperature,
                friction=0.02 / units.fs,
                fixcm=False,
                rng=rng,
            )
            dynamics.run(1000)
            for _ in range(count):
                dynamics.run(50)
                frames.append(labelled(atoms, trajectory=trajectory, temperature=temperature))
            done += 1000 + 50 * count
            left = (time.monotonic() - clock) / done * (total - done)
            print(
                f"{temperature} K, trajectory {trajectory + 1} of {trajectories}; {left / 60:.1f} minutes left",
                flush=True,
            )
        path = HERE / f"ethanol_{temperature}K.xyz"
        write_atomically(path, partial(write, images=frames, format="extxyz"))
    atoms = []
    for symbol, unpaired in UNPAIRED.items():
        atom = Atoms(symbol)
        atom.calc = xtb(multiplicity=unpaired + 1)
        energy = atom.get_potential_energy()
        atom.calc = SinglePointCalculator(atom, energy=energy)
        atoms.append(atom)
    write_atomically(HERE / "isolated_atoms.xyz", partial(write, images=atoms, format="extxyz"))


if __name__ == "__main__":
    main()
