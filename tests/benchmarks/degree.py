"""How equivariant should a linear map be, and who finds out? Strict, plain, joint optimisation and evidence on data of known symmetry.

    python tests/benchmarks/degree.py                       # the table: medians and means over 20 seeds
    python tests/benchmarks/degree.py --network [--seeds 3] [--fields 0 0.1]  # the same question for networks

A linear map W of 4 vectors to 2 has 72 weights: 8 commute with O(3), 64 do not, and turn as 1e (24) and 2e (40). A label is one random
component of W x with noise of 0.05; an error is the mean square over new x, without noise.

strict: the 8 alone. plain: least squares of least norm, which is what gradient descent from zero ends with. joint: weights and precisions
optimised together, p(y, w | α, σ²) at its maximum. evidence: `molequi.approximate.evidence.evidence_linear`. oracle: ridge regression on
the 64 with the strength that is best on the test data, or plain, whichever errs less.

--network: forces on four points that hold each other, in random poses, with a field along z or none and noise of 0.02; 24 structures to
learn from. strict: EGNN. plain: RelaxedEGNN, all weights by the training loss. Errors are root mean squares on data without noise.
"""

import argparse
from statistics import mean, median
from typing import NamedTuple

import torch
from torch import Tensor

from molequi import EGNN, Dataset, Graph, Model, fit
from molequi.approximate.evidence import evidence_linear
from molequi.heads import Vector
from molequi.models import RelaxedEGNN

NOISE = 0.05
CASES = {
    "n = 30, symmetric": (30, 0.0),
    "n = 100, weak break": (100, 0.0022),
    "n = 300, weak break": (300, 0.0022),
    "n = 300, strong break": (300, 0.0558),
}  # labels; squared length of the free weights
ARMS = ("strict", "plain", "joint", "evidence", "oracle")


class Rows(NamedTuple):
    """Labels and what each weight does to them."""

    fixed: Tensor
    free: dict[str, Tensor]
    label: Tensor
    clean: Tensor


class Problem(NamedTuple):
    train: Rows
    test: Rows


def bases() -> list[Tensor]:
    """Orthonormal 3 × 3 matrices that turn as 0e, 1e, 2e: one, three, five."""
    unit = torch.eye(9, dtype=torch.float64).reshape(9, 3, 3)
    skew = [(unit[3 * i + j] - unit[3 * j + i]) / 2**0.5 for i, j in ((1, 2), (2, 0), (0, 1))]
    even = [(unit[3 * i + j] + unit[3 * j + i]) / 2**0.5 for i, j in ((0, 1), (0, 2), (1, 2))]
    even += [torch.diag(torch.tensor(d).double()) / n**0.5 for d, n in (((1, -1, 0), 2), ((-1, -1, 2), 6))]
    return [torch.eye(3, dtype=torch.float64)[None] / 3**0.5, torch.stack(skew), torch.stack(even)]


def problem(n: int, broken: float, seed: int, test: int = 4000) -> Problem:
    """Data of a random map whose free weights have the squared length `broken`."""
    random = torch.Generator().manual_seed(seed)
    fixed = 0.1 * torch.randn(8, generator=random, dtype=torch.float64)
    free = torch.randn(64, generator=random, dtype=torch.float64)
    free = free * (broken / float(free.square().sum())) ** 0.5

    def rows(count: int) -> Rows:
        x = torch.randn(count, 4, 3, generator=random, dtype=torch.float64)
        u = torch.randn(count, 6, generator=random, dtype=torch.float64)
        u = (u / u.norm(dim=1, keepdim=True) * 6**0.5).reshape(count, 2, 3)
        one, skew, even = (
            torch.einsum("noi,kij,ncj->nkoc", u, basis, x).reshape(count, -1) for basis in bases()
        )
        clean = one @ fixed + skew @ free[:24] + even @ free[24:]
        return Rows(
            one,
            {"1e": skew, "2e": even},
            clean + NOISE * torch.randn(count, generator=random, dtype=torch.float64),
            clean,
        )

    return Problem(rows(n), rows(test))


def least_squares(x: Tensor, y: Tensor) -> Tensor:
    return torch.linalg.lstsq(x, y[:, None], driver="gelsd").solution[:, 0]


def ridge(x: Tensor, y: Tensor, strength: Tensor) -> Tensor:
    return torch.linalg.solve(x.T @ x + torch.diag(strength), x.T @ y)


def joint(rows: Rows, steps: int = 200) -> Tensor:
    """Weights, precisions and noise at a maximum of p(y, w | α, σ²): α = P / |w|², which grows without bound as w shrinks."""
    x, y = torch.cat([rows.fixed, *rows.free.values()], dim=1), rows.label
    sizes = [rows.fixed.shape[1], *(g.shape[1] for g in rows.free.values())]
    precision = torch.cat([torch.zeros(sizes[0]), torch.ones(sum(sizes[1:]))]).double()
    noise = y.square().mean() / 2
    for _ in range(steps):
        w = ridge(x, y, (noise * precision).clamp(max=1e12))
        noise = (y - x @ w).square().mean().clamp(min=1e-6 * y.square().mean())
        parts = w.split(sizes)
        precision = torch.cat(
            [
                torch.zeros_like(parts[0]),
                *((len(p) / p.square().sum()).clamp(max=1e12).expand(len(p)) for p in parts[1:]),
            ]
        )
    return w


def errors(data: Problem) -> dict[str, float]:
    """Test error of each arm, and the share of the free path in what the evidence predicts."""
    train, test = data
    x, seen = (torch.cat([rows.fixed, *rows.free.values()], dim=1) for rows in (train, test))
    none = torch.zeros(64, dtype=torch.float64)
    found = evidence_linear(train.label, train.fixed, train.free)
    weights = {
        "strict": torch.cat([least_squares(train.fixed, train.label), none]),
        "plain": least_squares(x, train.label),
        "joint": joint(train),
        "evidence": torch.cat([found.fixed, *found.free.values()]),
    }

    def error(w: Tensor) -> float:
        return float((seen @ w - test.clean).square().mean())

    strengths = (
        torch.cat([none[:8], torch.full_like(none, 10.0**k)]) for k in torch.linspace(-3, 4, 29).tolist()
    )
    found_errors = {arm: error(w) for arm, w in weights.items()}
    found_errors["oracle"] = min(found_errors["plain"], *(error(ridge(x, train.label, s)) for s in strengths))
    whole = seen @ weights["evidence"]
    free = whole - test.fixed @ found.fixed
    return found_errors | {"share": float(free.square().mean() / whole.square().mean())}


def relaxed_errors(n: int, broken: float, seeds: range = range(20), of=median) -> dict[str, float]:
    """`errors`, medians over the seeds."""
    rows = [errors(problem(n, broken, seed)) for seed in seeds]
    return {name: of([row[name] for row in rows]) for name in rows[0]}


def table() -> str:
    lines = [f"{'':22}" + "".join(f"{arm:>10}" for arm in (*ARMS, "share"))]
    for name, (n, broken) in CASES.items():
        for how in (median, mean):
            found = relaxed_errors(n, broken, of=how)
            lines.append(
                f"{name if how is median else '  mean':22}"
                + "".join(f"{found[arm]:10.4f}" for arm in ARMS)
                + f"{found['share']:10.1e}"
            )
    return "\n".join(lines)


def points(count: int, seed: int, field: float = 0.0, noise: float = 0.02) -> Dataset:
    """Four points with forces of Morse pairs in arbitrary units, turned at random, and a field along z, which does not turn."""
    random = torch.Generator().manual_seed(seed)
    corners = torch.cat([torch.zeros(1, 3), 1.2 * torch.eye(3)]).double()
    graphs = []
    for _ in range(count):
        turn = torch.linalg.qr(torch.randn(3, 3, generator=random, dtype=torch.float64)).Q
        pos = (corners + 0.15 * torch.randn(4, 3, generator=random, dtype=torch.float64)) @ turn
        away = pos[:, None] - pos[None]
        r = away.norm(dim=-1) + torch.eye(4)
        stretch = torch.exp(-1.3 * (r - 1.1))
        forces = (-1.3 * ((1 - stretch) * stretch * (1 - torch.eye(4)) / r)[..., None] * away).sum(
            1
        ) + field * torch.tensor([0, 0, 1.0])
        graphs.append(
            Graph.single(
                pos,
                [1] * 4,
                targets={"forces": forces + noise * torch.randn(4, 3, generator=random, dtype=torch.float64)},
            )
        )
    return Dataset(graphs, allow="length-unit")  # points with the names of elements


def network(arm: str, field: float, seed: int, epochs: int = 40) -> tuple[float, float]:
    """Test error and share of the free paths; NaN where none was asked for."""
    torch.manual_seed(seed)
    kind = EGNN if arm == "strict" else RelaxedEGNN
    model = Model(kind(elements=[1], channels=8, layers=1, radial=6, cutoff=4.0), [Vector("forces")])
    learned = {
        "evidence": {"terms": [EquivarianceSelection("evidence", every=8)]},
        "hypergradient": {"terms": [EquivarianceSelection("hypergradient", every=1)]},
    }.get(arm, {})
    result = fit(
        model,
        points(24, 3 * seed, field),
        points(12, 3 * seed + 1, field),
        test=points(200, 3 * seed + 2, field, noise=0.0),
        epochs=epochs,
        batch_size=8,
        lr=1e-2,
        seed=seed,
        logging={"progress": False},
        **learned,
    )
    return result.errors["test"]["forces_rmse"], getattr(
        result.reports.get("equivariance_selection"), "share", float("nan")
    )


def networks(fields: list[float], seeds: int) -> None:
    """Prints medians over the seeds as they come."""
    print(f"{'':22}{'rmse':>10}{'share':>10}  shares of the seeds")
    for field in fields:
        for arm in ("strict", "plain", "evidence", "hypergradient"):
            found = [network(arm, field, seed) for seed in range(seeds)]
            shares = (
                ""
                if found[0][1] != found[0][1]
                else f"{median(s for _, s in found):10.1e}  " + " ".join(f"{s:.1e}" for _, s in found)
            )
            print(f"field {field:4g}, {arm:10}{median(e for e, _ in found):10.4f}{shares}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", action="store_true", help="relaxed networks instead of a linear map")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fields", type=float, nargs="+", default=[0.0, 0.1])
    options = parser.parse_args()
    if options.network:
        networks(options.fields, options.seeds)
    else:
        print(table())
