"""ns/day and energy drift of one model through every engine: `python tests/benchmarks/engines.py [quick | bands]`.

One molecule (ethanol), 100 replicas of it in a batch, and cells of silicon of 512 and 4,096 atoms; PaiNN in float64 on a CPU. The model of the
molecule is trained for a minute on the shipped frames, so that its dynamics is that of a molecule; of the cells only the time is measured.
The time of a step is that between two lengths of the same run, so that the start of an engine does not count. `bands` measures a step of
nudged elastic bands of benzene alone, by `mq.neb` and by ASE with a calculator of each image.
"""

import contextlib
import io
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ase import units
from ase.build import bulk, molecule
from ase.mep import NEB
from ase.optimize import FIRE

import molequi as mq
from molequi.engines.probes import ASE, PROBES

ETHANOL = Path(__file__).resolve().parents[2] / "data" / "ethanol_300K.xyz"
TIMESTEP = 0.5  # fs
DAY = 86400 * 1e-6  # fs/s to ns/day


def molecule_model(minutes: float) -> mq.Model:
    data = mq.read_extxyz(ETHANOL)
    torch.manual_seed(0)
    model = mq.Model(mq.PaiNN(elements=["C", "H", "O"], channels=32, layers=2, cutoff=4.0))
    train, valid = data[: len(data) * 4 // 5], data[len(data) * 4 // 5 :]
    mq.fit(model, train, valid, epochs=10000, max_minutes=minutes)
    return model


def with_velocities(atoms, kelvin=300.0, seed=0):
    size = np.sqrt(kelvin * units.kB * atoms.get_masses())[:, None]
    momenta = size * np.random.default_rng(seed).normal(size=(len(atoms), 3))
    atoms.set_momenta(momenta - momenta.mean(0))
    return atoms


def seconds_per_step(run, few: int, many: int) -> float:
    """Processor time of all threads, which other programs on the machine do not change much."""
    times = []
    with contextlib.redirect_stdout(io.StringIO()):
        run(1)  # imports
        for steps in (few, many):
            start = time.process_time()
            run(steps)
            times.append(time.process_time() - start)
    return (times[1] - times[0]) / (many - few)


def row(name: str, atoms, model, few: int, many: int) -> None:
    for probe in PROBES:
        engine = probe(model, device="cpu")
        step = seconds_per_step(partial(engine.nve, atoms, TIMESTEP), few, many)
        print(
            f"{name:22s} {probe.name:10s} {step * 1e3:9.2f} ms/step {TIMESTEP / step * DAY:9.4f} ns/day",
            flush=True,
        )


def replicas(atoms, model, number: int, few: int, many: int) -> None:
    """Replicas of a molecule: one after the other, `md_many`, torch-sim."""
    import torch_sim

    from molequi import engines

    def many_at_once(steps):
        mq.md_many(
            atoms,
            mq.Calculator(model, dtype="float64", device="cpu"),
            temperature=300.0,
            replicas=number,
            ensemble="nve",
            timestep=TIMESTEP,
            steps=steps,
            progress=False,
            every=1000,
        )

    wrapped = engines.torch_sim(model, device="cpu", compute_stress=False)
    start = torch_sim.io.atoms_to_state([atoms] * number, torch.device("cpu"), torch.float64)
    dt = torch.tensor(TIMESTEP * units.fs, dtype=torch.float64)

    def with_torch_sim(steps):
        init, step = torch_sim.integrators.nve(
            wrapped, dt=dt, kT=torch.tensor(300 * units.kB, dtype=torch.float64)
        )
        state = init(start, seed=0)
        for _ in range(steps):
            state = step(state)

    ways = {
        "one after the other": lambda steps: ASE(model, device="cpu").nve(atoms, TIMESTEP, steps),
        "md_many": many_at_once,
        "torch-sim": with_torch_sim,
    }
    for name, run in ways.items():
        step = seconds_per_step(run, few, many) * (number if name.startswith("one") else 1)
        rate = TIMESTEP * number / step * DAY
        print(
            f"{number} replicas: {name:20s} {step * 1e3:9.1f} ms/step of all {rate:9.4f} ns/day together",
            flush=True,
        )


def drift(atoms, model, steps: int) -> None:
    for probe in PROBES:
        with contextlib.redirect_stdout(io.StringIO()):
            energies, _ = probe(model, device="cpu").nve(atoms, TIMESTEP, steps)
        times = np.arange(steps + 1) * TIMESTEP * 1e-3
        found = mq.simulation.drift(times, energies, n_atoms=len(atoms))
        print(
            f"drift over {times[-1]:g} ps: {probe.name:10s} {found.slope:9.4f} meV/atom/ps, rms {found.rms:.5f} meV/atom",
            flush=True,
        )


def band(backbone: mq.Backbone, number: int) -> None:
    """A step of a nudged elastic band in float64."""
    model, start = mq.Model(backbone), molecule("C6H6")
    end = start.copy()
    end.rattle(0.25, seed=1)

    def images():
        path = [start.copy() for _ in range(number)]
        for k, frame in enumerate(path):
            frame.positions += (end.positions - start.positions) * k / (number - 1)
        return path

    def by_ase(steps):
        path = images()
        for frame in path:
            frame.calc = mq.Calculator(model, dtype="float64")
        FIRE(NEB(path, k=0.1, climb=True, method="improvedtangent"), logfile=None).run(1e-6, steps)

    def by_neb(steps):
        mq.neb(images(), model, steps=steps, fmax=1e-6, progress=False)

    for name, run in {"ASE": by_ase, "mq.neb": by_neb}.items():
        low, usual, high = sorted(1e3 * seconds_per_step(run, 2, 17) for _ in range(3))
        text = f"{type(backbone).__name__:8} {number:2} images  {name:7} {usual:6.1f} ms a step"
        print(f"{text} ({low:.1f} to {high:.1f})", flush=True)


def bands() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for backbone in (
        mq.PaiNN(elements=["H", "C"], channels=64, layers=3),
        mq.NequIP(elements=["H", "C"], channels=32, layers=3),
    ):
        for number in (7, 15):
            band(backbone, number)


def main(quick: bool) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = molecule_model(0.1 if quick else 1.0)
    ethanol = with_velocities(mq.to_atoms(mq.read_extxyz(ETHANOL)[0]))
    row("ethanol, 9 atoms", ethanol, model, 5, 15 if quick else 505)
    replicas(ethanol, model, 10 if quick else 100, 2, 4 if quick else 12)
    drift(ethanol, model, 20 if quick else 400)
    torch.manual_seed(0)
    silicon = mq.Model(mq.PaiNN(elements=["Si"], channels=32, layers=2, cutoff=4.0))
    for repeat in (4,) if quick else (4, 8):
        cell = bulk("Si", "diamond", a=5.43, cubic=True).repeat(repeat)
        cell.rattle(0.05, seed=0)
        row(
            f"silicon, {len(cell)} atoms", with_velocities(cell), silicon, 1, 3 if quick or repeat == 8 else 6
        )


if __name__ == "__main__":
    bands() if "bands" in sys.argv[1:] else main("quick" in sys.argv[1:])
