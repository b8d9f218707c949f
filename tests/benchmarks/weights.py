"""Weight spaces: digits from SIRENs, test errors of force fields, and edits of SIRENs, all from weights alone.

    pip install '.[benchmark]'
    python tests/benchmarks/weights.py              # all three; digits, errors or edit: one of them
    python tests/benchmarks/weights.py digits --seconds 60 --seed 1

digits: every picture of scikit-learn's digits (1,797 of 8 × 8 pixels) is fitted by SIRENs 2-16-16-1 from independent
random starts, four for each picture. 400 pictures are the test set, with one SIREN each; all SIRENs of the others are for
training. errors: 500 pair potentials 1-16-16-1 are trained on the forces of Morse clusters with different learning rates,
numbers of steps, starts, numbers of clusters and noise; the logarithm of the error of their forces on other clusters is
predicted. 100 of them are the test set. edit: the SIREN of a digit becomes that of
the dilated picture (the largest pixel of 3 × 3).

All models of a table have the same processor seconds, training data and order. "outputs change" is the largest change of
the outputs under permutations of neurons in float64, divided by their root mean square (`molequi.weights.audit`).
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from molequi import weights
from molequi.util.tables import text_table
from molequi.weights import Architecture, Networks, NeuronGroup, WeightModel

VIEWS, TEST = 4, 400
LR = (1e-2, 1e-3)  # of models with a symmetry, and of perceptrons
SMALL = dict(channels=16, layers=2, dropout=0.1)
WIDE = dict(channels=256, layers=2, dropout=0.1)
MODELS = {
    "signs, probes": dict(symmetry="signs", probes=32, **SMALL),
    "permutations (DWS), probes": dict(symmetry="permutations", probes=32, **SMALL),
    "signs": dict(symmetry="signs", **SMALL),
    "permutations (DWS)": dict(symmetry="permutations", **SMALL),
    "MLP, permutation augmentation": dict(symmetry="none", **WIDE),
    "MLP": dict(symmetry="none", **WIDE),
    "MLP, probes": dict(symmetry="none", probes=32, **WIDE),
}


def pictures() -> tuple[Tensor, Tensor]:
    """Gray values from -1 to 1, shape (1797, 8, 8), and the digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images / 8 - 1, dtype=torch.float32), torch.tensor(data.target)


def sirens(values: Tensor, views: int) -> Networks:
    """`views` SIRENs of each picture, one view of all after the other."""
    begun = time.process_time()
    y = values.flatten(1)[..., None]
    parts = [weights.fit_fields(weights.grid(8), y, hidden=[16, 16], seed=seed) for seed in range(views)]
    nets = Networks.cat(parts)
    error = (nets(weights.grid(8)) - y.repeat(views, 1, 1)).square().mean() / y.var()
    seconds = time.process_time() - begun
    print(
        f"{nets}, fitted in {seconds:.0f} processor seconds; squared error {error:.3f} of the variance\n",
        flush=True,
    )
    return nets


def trained(
    name: str, nets: Networks, targets: Tensor, seconds: float, **options
) -> tuple[WeightModel, float]:
    """A trained model, and how much its outputs change under permutations."""
    torch.manual_seed(options["seed"])
    model = WeightModel(nets.architecture, options.pop("outputs"), **MODELS[name])
    augment = NeuronGroup(nets.architecture.sizes) if "augmentation" in name else None
    weights.fit(
        model,
        nets,
        targets,
        epochs=10**6,
        max_seconds=seconds,
        lr=LR[name.startswith("MLP")],
        augment=augment,
        **options,
    )
    report = weights.audit(model, nets, group=NeuronGroup(nets.architecture.sizes), draws=4, limit=8)
    return model, next(row.maximum for row in report.rows if row.check == "permutation")


def split(count: int, test: int, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers for training and test."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[test:], order[:test]


def digits(seconds: float, seed: int) -> None:
    """The table of accuracies."""
    values, labels = pictures()
    nets = sirens(values, VIEWS)
    train, test = split(len(values), TEST, seed)
    train = torch.cat([train + len(values) * k for k in range(VIEWS)])
    rows = []
    for name in MODELS:
        model, change = trained(
            name, nets[train], labels.repeat(VIEWS)[train], seconds, outputs=10, seed=seed
        )
        right = (model.predict(nets[test]).argmax(1) == labels[test]).double().mean()
        rows.append([name, f"{100 * right:.1f}", f"{change:.0e}"])
        print(rows[-1], flush=True)
    print(*text_table(["model of weights", "accuracy (%)", "outputs change"], rows), "", sep="\n")


def clusters(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Distances (frames, pairs, 1) and unit vectors (frames, pairs, 3) of Morse clusters of five atoms; forces."""
    g = torch.Generator().manual_seed(seed)
    grid = torch.tensor([[0, 0, 0], [1.3, 0, 0], [0, 1.4, 0], [0, 0, 1.5], [1.3, 1.4, 0.0]])
    pos = grid + 0.2 * torch.randn(count, 5, 3, generator=g)
    first, second = torch.triu_indices(5, 5, offset=1)
    away = pos[:, first] - pos[:, second]
    r = away.norm(dim=-1, keepdim=True)
    bond = torch.exp(-1.3 * (r - 1.4))
    slope = 2 * 0.5 * 1.3 * (1 - bond) * bond  # φ = 0.5 eV (1 - exp(-1.3 (r - 1.4 Å)))²
    return r, away / r, on_atoms(-slope * away / r)


def on_atoms(pull: Tensor) -> Tensor:
    """Forces (…, 5, 3) from those of each pair (…, 10, 3) on its first atom."""
    first, second = torch.triu_indices(5, 5, offset=1)
    out = torch.zeros(*pull.shape[:-2], 5, 3)
    return out.index_add(-2, first, pull).index_add(-2, second, -pull)


def pair_forces(nets: Networks, r: Tensor, unit: Tensor) -> Tensor:
    """Forces (networks, frames, atoms, 3) of E = Σ φ(r_ij), where the networks are φ(r - 2 Å).

    `r` and `unit` have frames of each network: (networks, frames, pairs, …).
    """
    rows = (r.flatten(1, 2) - 2.0).requires_grad_()
    (slope,) = torch.autograd.grad(nets(rows).sum(), rows, create_graph=True)
    return on_atoms(-slope.unflatten(1, r.shape[1:3]) * unit)


def force_fields(count: int = 500, longest: int = 600) -> tuple[Networks, Tensor]:
    """Networks, and the logarithm of the error of their forces (eV/Å) on other clusters."""
    begun = time.process_time()
    (r, unit, forces), test = clusters(64, 0), clusters(64, 1)
    g = torch.Generator().manual_seed(0)

    def between(low: float, high: float) -> Tensor:
        return torch.exp(torch.rand(count, generator=g) * torch.log(torch.tensor(high / low))) * low

    rates, steps, gain = between(1e-3, 3e-2), between(20, longest).long(), between(0.5, 2)
    noise, frames = between(0.01, 2), between(2, 64)
    start = Networks.random(Architecture((1, 16, 16, 1), "tanh"), count, generator=g)
    start = start.map(lambda v: v * gain.view(-1, *[1] * (v.ndim - 1)))
    wrong = torch.randn(forces.shape, generator=g)  # the noise of a cluster is the same in each step

    def loss(nets: Networks, step: int) -> Tensor:
        chosen = (torch.rand(count, 4, generator=g) * frames[:, None]).long()
        wanted = forces[chosen] + noise[:, None, None, None] * wrong[chosen]
        return (pair_forces(nets, r[chosen], unit[chosen]) - wanted).square().mean((1, 2, 3))

    nets = weights.train_many(start, loss, steps=steps, lr=rates, decay=False)
    found = pair_forces(nets, *(v.expand(count, -1, -1, -1) for v in test[:2])).detach()
    error = (found - test[2]).square().mean((1, 2, 3)).sqrt()
    low, mid, high = error.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    print(
        f"{nets}, trained in {time.process_time() - begun:.0f} processor seconds; errors {low:.3f}, {mid:.3f} and "
        f"{high:.3f} eV/Å (5 %, median, 95 %), forces {test[2].square().mean().sqrt():.2f}\n",
        flush=True,
    )
    return nets, error.log()[:, None]


def errors(seconds: float, seed: int) -> None:
    """The table of R²."""
    nets, target = force_fields()
    train, test = split(len(nets), 100, seed)
    rows = []
    for name in MODELS:
        model, change = trained(name, nets[train], target[train], seconds, outputs=1, seed=seed)
        off = (model.predict(nets[test]) - target[test]).square().mean()
        r2 = 1 - off / (target[test] - target[test].mean()).square().mean()
        rows.append([name, f"{r2:.3f}", f"{change:.0e}"])
        print(rows[-1], flush=True)
    print(*text_table(["model of weights", "R² of log error", "outputs change"], rows), "", sep="\n")


def edit(seconds: float, seed: int) -> None:
    """The table of edits: squared error against the dilated picture, divided by that of the network itself."""
    values, _ = pictures()
    nets, x = sirens(values, 1), weights.grid(8)
    wanted = torch.nn.functional.max_pool2d(values[:, None], 3, stride=1, padding=1).flatten(1)[..., None]
    train, test = split(len(values), TEST, seed)

    def loss(new: Networks, y: Tensor) -> Tensor:
        return (new(x) - y).square().mean()

    same, rows = loss(nets[test], wanted[test]), []
    for name in MODELS:
        model, change = trained(
            name, nets[train], wanted[train], seconds, outputs="weights", seed=seed, loss=loss
        )
        rows.append([name, f"{loss(model.predict(nets[test]), wanted[test]) / same:.3f}", f"{change:.0e}"])
        print(rows[-1], flush=True)
    print(*text_table(["model of weights", "error, no edit is 1", "change not equivariant"], rows), sep="\n")


TASKS: dict[str, Callable[[float, int], None]] = {"digits": digits, "errors": errors, "edit": edit}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", nargs="*", help=f"of {', '.join(TASKS)}; all by default")
    parser.add_argument("--seconds", type=float, default=60.0, help="processor seconds of each training")
    parser.add_argument("--seed", type=int, default=0, help="of split, start and order")
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="rows of the tables")
    options = parser.parse_args()
    for name in set(MODELS) - set(options.models):
        del MODELS[name]
    for task in options.task or TASKS:
        TASKS[task](options.seconds, options.seed)


if __name__ == "__main__":
    main()
