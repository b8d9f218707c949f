"""Charged dimers with a known Coulomb law, with and without a long range; cost of the sums and of D3 and D4.

    python tests/benchmarks/long_range.py dimers [SECONDS] [SEEDS]
    python tests/benchmarks/long_range.py cost

A dimer is two fragments (Na+, Cl-, water) whose centers are 6 to 15 Å apart, so that a model with a cutoff of 5 Å
sees none of one from the other. Its energy is the Coulomb energy of fixed charges of different fragments, and
springs for the bonds of water. Both models get the same seconds of the processor, and zero as the reference energy of
all elements: that of an ion alone. Fitted ones would contain a mean of the Coulomb energy, and an atom without
neighbors has no other energy of its own, so that the latent charges would be wrong by what makes up for it.
"""

import sys
import time
from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule

import molequi as mq
from molequi.nn.pair_energies import COULOMB

CHARGES = {"Na": 1.0, "Cl": -1.0, "O": -0.8, "H": 0.4}  # e
SPRING, BOND, ANGLE = 30.0, 0.96, 1.52  # eV/Å² of both O-H bonds and of H-H, Å
CUTOFF, NEAR, FAR = 5.0, 6.0, 15.0  # Å


def fragment(kind: str, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """Symbols and positions of one fragment about the origin, in a random orientation."""
    if kind != "water":
        return [kind], np.zeros((1, 3))
    atoms = molecule("H2O")
    positions = atoms.positions - atoms.positions.mean(0) + rng.normal(scale=0.05, size=(3, 3))
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return atoms.get_chemical_symbols(), positions @ turn


def label(symbols: list[str], positions: np.ndarray, first: int) -> tuple[float, np.ndarray]:
    """Energy and forces of a dimer whose first fragment has `first` atoms."""
    pos = torch.tensor(positions, dtype=torch.float64, requires_grad=True)
    q = torch.tensor([CHARGES[s] for s in symbols], dtype=torch.float64)
    distance = torch.cdist(pos[:first], pos[first:])
    energy = COULOMB * (q[:first, None] * q[None, first:] / distance).sum()
    for start, count in ((0, first), (first, len(symbols) - first)):
        if count == 3:
            o, a, b = pos[start : start + 3]
            for one, other, length in ((o, a, BOND), (o, b, BOND), (a, b, ANGLE)):
                energy = energy + SPRING / 2 * ((one - other).norm() - length) ** 2
    (slope,) = torch.autograd.grad(energy, pos)
    return float(energy.detach()), -slope.numpy()


@cache
def dimers(count: int, seed: int) -> mq.Dataset:
    """Labelled dimers."""
    rng, graphs = np.random.default_rng(seed), []
    for _ in range(count):
        (a, here), (b, there) = (fragment(str(rng.choice(["Na", "Cl", "water"])), rng) for _ in range(2))
        direction = rng.normal(size=3)
        positions = np.vstack([here, there + rng.uniform(NEAR, FAR) * direction / np.linalg.norm(direction)])
        energy, forces = label(a + b, positions, len(a))
        targets = {"energy": torch.tensor([energy]).double(), "forces": torch.from_numpy(forces)}
        graphs.append(mq.Graph.single(positions, a + b, targets=targets))
    return mq.Dataset(graphs)


def trained(long_range: str | None, seed: int, seconds: float) -> dict[str, float]:
    """Errors on 500 new dimers of a model that was trained for some seconds of the processor."""
    torch.manual_seed(seed)
    backbone = mq.PaiNN(elements=["H", "O", "Na", "Cl"], cutoff=CUTOFF, channels=32, layers=2)
    model = mq.Model(backbone, ["energy", "forces"], long_range=long_range)
    mq.fit(
        model,
        dimers(1000, 1),
        dimers(200, 2),
        max_minutes=seconds / 60,
        lr=5e-3,
        seed=seed,
        batch_size=50,
        compute={"clock": "processor"},
        loss={"energy": 1, "forces": 10},
        normalization={"reference_energies": dict.fromkeys(("H", "O", "Na", "Cl"), 0.0)},
        logging={"progress": False},
    )
    errors = mq.evaluate(model, dimers(500, 3), progress=False)
    return {name: 1000 * errors[name] for name in ("energy_mae", "forces_mae")}


def compare_dimers(seconds: float, seeds: int) -> None:
    """A table of errors for both models and all seeds."""
    print(f"{seconds:g} s of the processor each; MAE of energy in meV and of forces in meV/Å")
    rows: dict[str, list[dict[str, float]]] = {}
    for name, kind in (("cutoff of 5 Å", None), ("with latent charges", "latent")):
        rows[name] = []
        for seed in range(seeds):
            row = trained(kind, seed, seconds)
            rows[name].append(row)
            print(f"{name:20} seed {seed}: " + "  ".join(f"{n} {v:8.2f}" for n, v in row.items()), flush=True)
    short, long = rows.values()
    for n in short[0]:
        ratio = np.mean([r[n] for r in short]) / np.mean([r[n] for r in long])
        print(f"{n}: {ratio:.1f} times smaller")


def best(functions: Sequence[Callable[[], object]]) -> float:
    """The shortest time of the processor of one of these, in ms."""
    times = []
    for function in functions:
        started = time.process_time()
        function()
        times.append(1000 * (time.process_time() - started))
    return min(times)


def cost() -> None:
    """Energies and forces of crystals of sodium chloride and of liquid-like clusters, in ms of the processor."""
    for repeats in ((4, 4, 4), (8, 9, 9)):
        atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(repeats)
        atoms.rattle(0.05, seed=0)
        one_cost(f"crystal, {len(atoms)} atoms", atoms)
    atoms.pbc = False
    one_cost(f"cluster, {len(atoms[:500])} atoms", Atoms(atoms[:500]))


def one_cost(title: str, atoms: Atoms) -> None:
    """Rows of one structure."""
    periodic = bool(atoms.pbc.any())
    graph = mq.Graph.single(
        atoms.positions, atoms.numbers, cell=atoms.cell.array if periodic else None, pbc=periodic, charge=0
    )
    graph = mq.connect(graph, CUTOFF)
    kinds = {"without": {}, "zbl": {"repulsion": "zbl"}, "latent": {"long_range": "latent"}}
    if len(atoms) <= 1000:
        kinds |= {"equilibrated": {"long_range": "equilibrated"}}
        kinds |= {"d3": {"dispersion": {"d3": "pbe"}}, "d4": {"dispersion": {"d4": "pbe"}}}
    for name, terms in kinds.items():
        backbone = mq.PaiNN(
            elements=["Na", "Cl"], cutoff=CUTOFF, channels=64, layers=2, inputs=mq.Inputs(charge=True)
        )
        model = mq.Model(backbone, ["energy", "forces"], **terms).eval()
        moved = [graph.replace(pos=graph.pos + 1e-6 * k) for k in range(4)]  # nothing is known from before
        print(f"{title:22} {name:14} {best([partial(model, one) for one in moved]):10.1f} ms", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["dimers"]:
        compare_dimers(float(sys.argv[2]) if len(sys.argv) > 2 else 60.0, int((sys.argv[3:] or ["3"])[0]))
    elif sys.argv[1:] == ["cost"]:
        cost()
    else:
        print(__doc__)
