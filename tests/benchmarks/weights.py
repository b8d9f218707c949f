"""Weight spaces: digits from SIRENs, test errors of force fields, and edits of SIRENs, all from weights alone.

    pip install '.[benchmark]'
    python tests/benchmarks/weights.py              # all three; digits, errors or edit: one of them
    python tests/benchmarks/weights.py digits --seconds 60 --seed 1

digits: every picture of scikit-learn's digits (1,797 of 8 × 8 pixels) is fitted by SIRENs 2-16-16-1 from independent
random starts, four for each picture. 400 pictures are the test set, with one SIREN each; all SIRENs of the others are for
training. errors: 500 pair potentials of ethanol, small networks of distance and pair of elements, are trained on the
forces of shipped frames with different learning rates, numbers of steps, starts, frames and noise; the logarithm of the
error of the forces on other frames is predicted. 100 of them are the test set. edit: the SIREN of a digit becomes that of
the dilated picture (the largest pixel of 3 × 3).

All models of a table have the same processor seconds, training data and order. "outputs change" is the largest change of
the outputs under permutations of neurons in float64, divided by their root mean square (`molequi.weights.audit`).
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

import molequi as mq
from molequi import weights
from molequi.util.tables import text_table
from molequi.weights import Architecture, Networks, NeuronGroup, WeightModel

VIEWS, TEST = 4, 400
MODELS = {
    "signs, probes": dict(symmetry="signs", channels=16, probes=32),
    "permutations (DWS), probes": dict(symmetry="permutations", channels=16, probes=32),
    "signs": dict(symmetry="signs", channels=16),
    "permutations (DWS)": dict(symmetry="permutations", channels=16),
    "MLP, permutation augmentation": dict(symmetry="none", channels=256),
    "MLP": dict(symmetry="none", channels=256),
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
    print(f"{nets}, fitted in {seconds:.0f} processor seconds; squared error {error:.3f} of the variance\n")
    return nets


def trained(
    name: str, nets: Networks, targets: Tensor, seconds: float, **options
) -> tuple[WeightModel, float]:
    """A trained model, and how much its outputs change under permutations."""
    own = dict(MODELS[name])
    if own.get("probes") and "inputs" in options:
        own["probes"] = options["inputs"][: own["probes"]]
    options.pop("inputs", None)
    torch.manual_seed(options["seed"])
    model = WeightModel(nets.architecture, options.pop("outputs"), **own)
    augment = NeuronGroup(nets.architecture.sizes) if "augmentation" in name else None
    weights.fit(model, nets, targets, epochs=10**6, max_seconds=seconds, augment=augment, **options)
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


def pairs(frames: mq.Dataset) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs (frames, pairs, 1 + kinds), signs of unit vectors (frames, pairs, 3), forces (frames, atoms, 3)."""
    pos = torch.stack([graph.pos for graph in frames]).float()
    forces = torch.stack([graph.targets["forces"] for graph in frames]).float()
    first, second = torch.triu_indices(pos.shape[1], pos.shape[1], offset=1)
    away = pos[:, first] - pos[:, second]
    r = away.norm(dim=-1, keepdim=True)
    z = frames[0].z
    kind = torch.stack([z[first], z[second]]).sort(dim=0).values
    _, kind = torch.unique(kind, dim=1, return_inverse=True)
    one = torch.nn.functional.one_hot(kind).float().expand(len(pos), -1, -1)
    return torch.cat([(r - 2.5) / 1.5, one], dim=-1), away / r, forces


def pair_forces(nets: Networks, x: Tensor, unit: Tensor, atoms: int) -> Tensor:
    """Forces (networks, frames, atoms, 3) of E = Σ φ(r_ij, kinds): -φ'(r) along the pair, one way and back."""
    rows = x.flatten(0, 1).expand(len(nets), -1, -1).clone().requires_grad_()
    (slope,) = torch.autograd.grad(nets(rows).sum(), rows, create_graph=torch.is_grad_enabled())
    pull = -slope[..., 0].unflatten(1, x.shape[:2])[..., None] / 1.5 * unit
    first, second = torch.triu_indices(atoms, atoms, offset=1)
    out = torch.zeros(len(nets), len(x), atoms, 3)
    return out.index_add(2, first, pull).index_add(2, second, -pull)


def force_fields(count: int = 500, longest: int = 300) -> tuple[Networks, Tensor, Tensor]:
    """Networks, the logarithm of the error of their forces (eV/Å) on other frames, and inputs that occur."""
    begun = time.process_time()
    x, unit, forces = pairs(mq.read_extxyz(mq.shipped("ethanol_300K.xyz"), index=":200"))
    g = torch.Generator().manual_seed(0)

    def between(low: float, high: float) -> Tensor:
        return torch.exp(torch.rand(count, generator=g) * torch.log(torch.tensor(high / low))) * low

    rates, steps, gain = between(1e-3, 5e-2), between(5, longest).long(), between(0.5, 2)
    noise, many = between(0.01, 3), between(2, 100).long()
    start = Networks.random(Architecture((x.shape[-1], 16, 16, 1), "tanh"), count, generator=g)
    start = start.map(lambda v: v * gain.view(-1, *[1] * (v.ndim - 1)))
    wrong = torch.randn(100, *forces.shape[1:], generator=g)  # the noise of a frame is the same in each step
    atoms, batch = forces.shape[1], 4

    def loss(nets: Networks, step: int) -> Tensor:
        chosen = torch.randint(100, (batch,), generator=g)
        found = pair_forces(nets, x[chosen], unit[chosen], atoms)
        wanted = forces[chosen] + noise[:, None, None, None] * wrong[chosen]
        # Frame k is one of those of a network if k is below its number of frames.
        mask = (chosen < many[:, None]).float()
        each = (found - wanted).square().mean((2, 3))
        return (each * mask).sum(1) / mask.sum(1).clamp(min=1)

    nets = weights.train_many(start, loss, steps=steps, lr=rates, decay=False)
    parts = [
        pair_forces(nets[some], x[100:], unit[100:], atoms).detach() for some in torch.arange(count).split(50)
    ]
    error = (torch.cat(parts) - forces[100:]).square().mean((1, 2, 3)).sqrt()
    low, mid, high = error.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    print(
        f"{nets}, trained in {time.process_time() - begun:.0f} processor seconds; errors {low:.2f}, {mid:.2f} and {high:.2f} "
        f"eV/Å (5 %, median, 95 %); forces {forces.square().mean().sqrt():.2f}\n"
    )
    inputs = x.flatten(0, 1)
    return nets, error.log()[:, None], inputs[torch.randperm(len(inputs), generator=g)]


def errors(seconds: float, seed: int) -> None:
    """The table of R²."""
    nets, target, inputs = force_fields()
    train, test = split(len(nets), 100, seed)
    rows = []
    for name in MODELS:
        model, change = trained(
            name, nets[train], target[train], seconds, outputs=1, seed=seed, inputs=inputs
        )
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
    options = parser.parse_args()
    for task in options.task or TASKS:
        TASKS[task](options.seconds, options.seed)


if __name__ == "__main__":
    main()
