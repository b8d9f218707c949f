"""How often `symmetry_test` is right: false positives, power against constant fields, and the charged N-body sets.

    python tests/benchmarks/data_symmetry.py false [--sets 200] [--structures 300] [--seed 0]
    python tests/benchmarks/data_symmetry.py power [--sets 20]
    python tests/benchmarks/data_symmetry.py nbody [--sets 5] [--structures 3000] [--seed 0]
    python tests/benchmarks/data_symmetry.py floor [--structures 2000]

false: symmetric sets of clouds in uniform orientations, or upright ones, with energies and forces of a Morse potential with charges; how many are
    called broken in any way, by each verdict. power: a constant field of so much of the rms of the forces, or of the spread of the energies.
nbody: the published sets, clipped by component, and those clipped by norm. floor: error and orbit variance of their law, by simulating turned
    systems. Prints a table.
"""

import argparse
import collections
import time

import torch

from molequi import Dataset, Graph
from molequi.data_symmetry import symmetry_test
from molequi.readers.nbody import nbody, simulate

Z = [1, 6, 8, 1, 6, 8]
CHARGE = torch.tensor([0.3, 0.1, -0.2, 0.3, 0.1, -0.2], dtype=torch.float64)
AXIS = torch.tensor([0.48, 0.6, 0.64], dtype=torch.float64)


def clouds(count: int, seed: int):
    """Positions, energies, forces of clouds of six atoms."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.empty(0, 6, 3, dtype=torch.float64)
    i, j = torch.triu_indices(6, 6, 1)
    while len(kept) < count:
        x = 1.3 * torch.randn(count, 6, 3, generator=generator, dtype=torch.float64)
        far = (x[:, i] - x[:, j]).norm(dim=2).amin(1) > 0.7
        kept = torch.cat([kept, x[far]])
    x = kept[:count].clone().requires_grad_(True)
    r = (x[:, i] - x[:, j]).norm(dim=2)
    e = (torch.exp(-2 * (r - 1.5)) - 2 * torch.exp(1.5 - r) + 2 * CHARGE[i] * CHARGE[j] / r).sum(1)
    (forces,) = torch.autograd.grad(-e.sum(), x)
    return x.detach(), e.detach(), forces


def planted(count: int, seed: int, field: float, what: str, upright: bool = False) -> Dataset:
    x, e, f = clouds(count, seed)
    if upright:
        x = x - x.mean(1, keepdim=True)
        axes = torch.linalg.eigh(x.mT @ x).eigenvectors
        axes = axes * ((x @ axes) ** 3).sum(1).sign()[:, None]
        x, f = x @ axes, f @ axes
    push = CHARGE[:, None] * AXIS
    push = push * field * f.square().mean().sqrt() / push.square().mean().sqrt()
    extra = torch.einsum("n,gni,i->g", CHARGE, x - x.mean(1, keepdim=True), AXIS)
    labels = {"forces": f + push, "energy": (e + field * e.std() * extra / extra.std())[:, None]}
    names = ("energy", "forces") if what == "both" else (what,)
    return Dataset([Graph.single(p, Z, targets={n: labels[n][k] for n in names}) for k, p in enumerate(x)])


BROKEN = {
    "rotational symmetry broken",
    "reflection symmetry broken",
    "translational symmetry broken",
    "spontaneous symmetry breaking",
}


def false(sets: int, structures: int, first: int) -> None:
    for upright in (False, True):
        found, start = collections.Counter(), time.process_time()
        for seed in range(first, first + sets):
            report = symmetry_test(planted(structures, seed, 0.0, "both", upright), seed=seed, progress=False)
            found.update(report.verdicts)
            found["called broken"] += bool(BROKEN & set(report.verdicts))
        seconds = (time.process_time() - start) / sets
        print(
            f"{'upright' if upright else 'uniform'} poses, {sets} sets of {structures}, {seconds:.1f} s of one core each: {dict(found)}",
            flush=True,
        )


def power(sets: int) -> None:
    for what in ("forces", "energy"):
        for structures in (300, 1000):
            for field in (0.003, 0.01, 0.03, 0.1, 0.3):
                p = []
                for seed in range(sets):
                    report = symmetry_test(
                        planted(structures, 1000 + seed, field, what),
                        groups=("SO(3)",),
                        seed=seed,
                        progress=False,
                    )
                    p += [c.p_value for c in report.tests if c.name == "SO(3)"]
                p = torch.tensor(p)
                print(
                    f"{what}, n = {structures}, break {100 * field:g} %: found (p < .01) in {int((p < 0.01).sum())} of {sets}, median p "
                    f"{float(p.median()):.3f}",
                    flush=True,
                )


def charged(sets: int, structures: int, first: int) -> None:
    for clip in ("component", "norm"):
        for seed in range(first, first + sets):
            start = time.process_time()
            report = symmetry_test(nbody(structures, clip=clip, seed=seed), limit=structures, progress=False)
            checks = {c.name: c.p_value for c in report.tests if c.p_value is not None}
            print(
                f"clip={clip}, seed {seed}, n = {structures}: {', '.join(report.verdicts)}; {checks}; left: {report.remaining_symmetry}; "
                f"{time.process_time() - start:.0f} s of one core",
                flush=True,
            )


def floor(structures: int) -> None:
    for clip in ("component", "norm"):

        def oracle(graphs, clip=clip):
            pos, vel = (torch.stack([getattr(g, name) for g in graphs]).numpy() for name in ("pos", "vel"))
            charges = torch.ones(
                len(graphs), 5, dtype=torch.float64
            )  # up to the sign of all, which the law does not see
            for k, g in enumerate(graphs):
                first = g.pair_index[0] == 0
                charges[k, g.pair_index[1][first]] = g.pair_attr[first, 0]
            run = simulate(charges.numpy(), pos, vel, frames=(9,), clip=clip)
            return [{"moved": torch.from_numpy(p)} for p in run.pos[:, 0]]

        report = symmetry_test(
            nbody(structures, clip=clip), oracle=oracle, groups=("SO(3)",), progress=False, limit=structures
        )
        for f in report.oracle:
            print(
                f"clip={clip}, {f.symmetry}: error {f.error:.3g} of the rms, "
                f"{'no floor' if f.orbit_variance is None else f'orbit variance {f.orbit_variance:.3g}'}",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("false", "power", "nbody", "floor"))
    parser.add_argument("--sets", type=int)
    parser.add_argument("--structures", type=int)
    parser.add_argument("--seed", type=int, default=0, help="of the first set (false, nbody)")
    given = parser.parse_args()
    if given.what == "false":
        false(given.sets or 200, given.structures or 300, given.seed)
    elif given.what == "power":
        power(given.sets or 20)
    elif given.what == "nbody":
        charged(given.sets or 5, given.structures or 3000, given.seed)
    else:
        floor(given.structures or 2000)
