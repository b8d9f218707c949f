"""Guarded dynamics in cases in which the model fails, and in cases in which it does not; labels are GFN2-xTB's.

    python tests/benchmarks/guard.py --out FOLDER [--seeds 1 2] [--cases few-900K …] [--std 1.0 2]

A model fails at the first step at which the force on an atom is wrong by more than three times the 99 % quantile
of the largest errors of its validation structures; the reference is asked every 5 steps, and at each step
of the interval of the failure. The dynamics have no guard: they are recorded, and the guard looks at their frames
as `mq.md` does. Models and trajectories are kept in FOLDER. --std is another rule: a factor of the 99 % quantile
of the largest standard deviation of a force in each validation structure, and the steps from look to look.
"""

import argparse
import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from uncertainty import ACAC, errors_of, show, shuffled

import molequi as mq
from molequi.inference.selection import uncertainties
from molequi.simulation.guard import Guard, Watch
from molequi.simulation.inputs import as_calculator

# Model, start, temperature in K. The models have seen:
# few, cold: 15 and 100 frames of ethanol at 300 K, all gauche; hot: 100 at 300 K and 80 at 600 K;
# good: 300 at 300 K and 150 at 600 K; tight: 100 frames at 300 K with an O-H bond below the median; acac: 50 frames of acetylacetone at 300 K.
PLANTED = {
    "few-1500K": ("few", "", 1500),
    "few-900K": ("few", "", 900),
    "few-trans": ("few", "trans", 300),
    "few-two-molecules": ("few", "pair", 300),
    "cold-short-CO": ("cold", "co", 300),
    "cold-long-OH": ("cold", "oh", 300),
    "cold-dimethyl-ether": ("cold", "ether", 300),
    "tight-600K": ("tight", "", 600),
    "acac-1200K": ("acac", "", 1200),
    "hot-2000K": ("hot", "", 2000),
}
MORE = {
    "few-300K": ("few", "", 300),
    "cold-300K": ("cold", "", 300),
    "cold-1500K": ("cold", "", 1500),
    "cold-trans": ("cold", "trans", 300),
    "acac-300K": ("acac", "", 300),
    "hot-300K": ("hot", "", 300),
    "hot-600K": ("hot", "", 600),
    "good-300K": ("good", "", 300),
}
CASES = PLANTED | MORE
STEPS, AFTER = 1000, 60
LONG = {"hot-300K": 4000, "good-300K": 4000}  # steps


def parts(name: str, seed: int, out: Path):
    """Training, validation and held-out structures of a model."""
    cold, hot = (shuffled(mq.read_extxyz(mq.shipped(f"ethanol_{k}K.xyz")), seed) for k in (300, 600))
    if name == "acac":
        data = mq.read_extxyz(relabelled(seed, out))
        return data[:50], data[50:100], data[100:]
    if name == "tight":
        bonds = np.array([hydroxyl(mq.to_atoms(graph))[3] for graph in cold])
        cold = cold[np.flatnonzero(bonds <= np.median(bonds)).tolist()]
    if name == "few":
        return cold[:15], cold[15:35], cold[40:]
    if name == "hot":
        train, valid = [*cold[:100], *hot[:80]], [*cold[100:140], *hot[80:120]]
        return mq.Dataset(train), mq.Dataset(valid), cold[150:]
    if name == "good":
        train, valid = [*cold[:300], *hot[:150]], [*cold[300:350], *hot[150:]]
        return mq.Dataset(train), mq.Dataset(valid), cold[350:]
    return cold[:100], cold[100:150], cold[150:]


def relabelled(seed: int, out: Path) -> Path:
    """Frames of acetylacetone with energies and forces of GFN2-xTB."""
    path = out / f"acac{seed}.xyz"
    if not path.exists():
        frames = read(ACAC, ":")
        chosen = [frames[k] for k in np.random.default_rng(seed).permutation(len(frames))[:160]]
        oracle, found = as_calculator("gfn2-xtb"), []
        for frame in chosen:
            new = Atoms(frame.numbers, frame.positions, calculator=oracle)
            values = {"energy": new.get_potential_energy(), "forces": new.get_forces()}
            new.calc = SinglePointCalculator(new, **values)
            found.append(new)
        write(path, found)
    return path


def trained(name: str, seed: int, out: Path) -> mq.Model:
    path = out / f"{name}-{seed}.safetensors"
    if not path.exists():
        train, valid, _ = parts(name, seed, out)
        torch.manual_seed(seed)
        kind, channels = (mq.NequIP, 8) if name == "few" else (mq.PaiNN, 32)
        epochs = 60 if name in ("few", "good") else 40
        model = mq.Model(kind(elements=["C", "H", "O"], cutoff=4.0, channels=channels, layers=2))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            mq.fit(model, train, valid, epochs=epochs, seed=seed)
        mq.save(model.eval(), path)
    return mq.load(path)


def hydroxyl(atoms: Atoms) -> tuple[int, int, int, float]:
    """Atoms O, its H and its C of ethanol, and the length of O-H."""
    oxygen = int(np.flatnonzero(atoms.numbers == 8)[0])
    distances = atoms.get_all_distances()[oxygen]
    hydrogen, carbon = (
        min(np.flatnonzero(atoms.numbers == z), key=lambda k: distances[k]).item() for z in (1, 6)
    )
    return oxygen, hydrogen, carbon, float(distances[hydrogen])


def start(kind: str, frame: Atoms, seed: int) -> Atoms:
    """A frame that was held out, or something else that the model has not seen."""
    atoms = Atoms(frame.numbers, frame.positions)
    if kind == "ether":
        return Atoms(molecule("CH3OCH3").numbers, molecule("CH3OCH3").positions)
    if kind == "pair":  # 2.2 Å between the nearest atoms
        other = atoms.copy()
        other.rotate(90, "x", center="COP")
        other.rotate(57 * seed, "z", center="COP")
        for shift in np.arange(2, 9, 0.1):
            moved = other.positions + [shift, 0, 0]
            if np.linalg.norm(atoms.positions[:, None] - moved, axis=2).min() >= 2.2:
                return atoms + Atoms(other.numbers, moved)
    if kind:
        oxygen, hydrogen, carbon, _ = hydroxyl(atoms)
    if kind == "trans":
        other = next(int(k) for k in np.flatnonzero(atoms.numbers == 6) if k != carbon)
        atoms.set_dihedral(other, carbon, oxygen, hydrogen, 180, mask=np.arange(len(atoms)) == hydrogen)
    if kind == "oh":
        atoms.set_distance(oxygen, hydrogen, 1.25, fix=0)
    if kind == "co":
        bond = atoms.positions[oxygen] - atoms.positions[carbon]
        atoms.positions[[oxygen, hydrogen]] += (1.15 / np.linalg.norm(bond) - 1) * bond
    return atoms


def record(case: str, seed: int, out: Path) -> dict[str, np.ndarray]:
    """Positions of each step, the step of the failure (-1: none) and the usual error."""
    path = out / f"{case}_{seed}.npz"
    if not path.exists():
        name, kind, kelvin = CASES[case]
        model = trained(name, seed, out)
        _, valid, rest = parts(name, seed, out)
        usual = float(np.quantile(errors_of(model, valid), 0.99))
        atoms = start(kind, mq.to_atoms(rest[0]), seed)
        atoms.calc = mq.Calculator(model, dtype="float64")
        steps = LONG.get(case, STEPS)
        positions, fails = simulated(atoms, kelvin, seed, 3 * usual, steps)
        np.savez(path, numbers=atoms.numbers, pos=positions, fail=fails, usual=usual)
    return dict(np.load(path))


def simulated(atoms: Atoms, kelvin: float, seed: int, allowed: float, steps: int) -> tuple[np.ndarray, int]:
    oracle, rng = as_calculator("gfn2-xtb"), np.random.default_rng(seed)
    MaxwellBoltzmannDistribution(atoms, temperature_K=kelvin, rng=rng)
    dynamics = Langevin(atoms, 0.5 * units.fs, temperature_K=kelvin, friction=0.01 / units.fs, rng=rng)
    positions = [atoms.positions.copy()]
    fails = 0 if wrong(atoms, oracle) > allowed else -1
    for step in range(1, steps + 1):
        dynamics.step()
        positions.append(atoms.positions.copy())
        if fails < 0 and not np.linalg.norm(atoms.get_forces(), axis=1).max() < 1e3:
            fails = step
        if fails < 0 and step % 5 == 0 and wrong(atoms, oracle) > allowed:
            before = (
                Atoms(atoms.numbers, positions[k], calculator=atoms.calc) for k in range(step - 4, step)
            )
            found = [k for k, frame in enumerate(before, step - 4) if wrong(frame, oracle) > allowed]
            fails = found[0] if found else step
        if not np.isfinite(atoms.positions).all() or (fails >= 0 and step >= fails + AFTER):
            break
    return np.array(positions), fails


def wrong(atoms: Atoms, oracle) -> float:
    """Largest error of the force on an atom; infinite where the reference fails."""
    try:
        true = Atoms(atoms.numbers, atoms.positions, calculator=oracle).get_forces()
    except Exception:
        return np.inf
    return float(np.linalg.norm(atoms.get_forces() - true, axis=1).max())


def guard_of(model, valid, std: list[float] | None) -> Guard:
    if std is None:
        return Guard()
    usual = float(np.quantile(uncertainties(model, valid)[0], 0.99))
    return Guard(max_std=std[0] * usual, every=int(std[1]))


def watched(model, run, guard: Guard) -> int | None:
    """The step at which a guard stops."""
    watch = Watch(guard, mq.Calculator(model, dtype="float64"), None)
    for step in range(0, len(run["pos"]), watch.every):
        if watch.look(Atoms(run["numbers"], run["pos"][step]), step, 0.0):
            return step
    return None


def judged(fails: int, stops: int | None) -> str:
    if fails < 0:
        return "right" if stops is None else "false alarm"
    return "silent" if stops is None else "right" if stops <= fails else "late"


def main(out: Path, seeds: list[int], cases: list[str], std: list[float] | None) -> None:
    rows, count = [], {}
    for seed in seeds:
        sure, rules = {}, {}
        for case in cases:
            name = CASES[case][0]
            if name not in sure:
                train, valid, rest = parts(name, seed, out)
                sure[name] = mq.laplace(trained(name, seed, out), train, valid, progress=False)
                rules[name] = guard_of(sure[name], valid, std)
                watch = Watch(rules[name], mq.Calculator(sure[name]), None)
                false = [
                    bool(watch.look(mq.to_atoms(graph), k * watch.every, 0.0)) for k, graph in enumerate(rest)
                ]
                print(
                    f"{name} {seed}: the guard stops at {sum(false)} of {len(false)} held-out frames",
                    flush=True,
                )
            run = record(case, seed, out)
            fails = int(run["fail"])
            stops = watched(sure[name], run, rules[name])
            said = judged(fails, stops)
            kind = "planted" if case in PLANTED else "other"
            kind += ", fails" if fails >= 0 else ", does not fail"
            count.setdefault(kind, []).append(said)
            row = [
                case,
                seed,
                f"{run['usual']:.2f}",
                fails if fails >= 0 else "none",
                "none" if stops is None else stops,
            ]
            rows.append([*row, said])
            print(rows[-1], flush=True)
    head = ["case", "seed", "usual error (eV/Å)", "step of failure", "step of the guard", ""]
    summary = {
        kind: {what: found.count(what) for what in sorted(set(found))} for kind, found in count.items()
    }
    show(f"guard: {summary}", head, rows, out / "guard.md")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("guard"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--std", type=float, nargs=2, metavar=("FACTOR", "EVERY"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="ase")
    main(given.out, given.seeds, given.cases, given.std)
