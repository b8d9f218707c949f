"""Audits of sound models with random weights, options and structures: how many of them raise an alarm.

    python tests/benchmarks/false_alarms.py [--audits 1000] [--seed 0]

Each audit has a backbone of the table at random, with random small options, weights stretched by up to 1.5 and biases that are not zero,
what it can predict, and one or two random molecules or crystals. Every check is asked, 2 draws each. Prints one line for each alarm, and
at the end the number of audits by backbone, of alarms, of audits that found nothing to measure (atoms out of each other's sight), and the largest error of each check as a share of what is allowed.
"""

import argparse
import sys
import time
from collections import Counter

import torch

from molequi import Graph, Model, Quantity
from molequi.audit import audit
from molequi.errors import ModelError
from molequi.heads import default_head
from molequi.models import BACKBONES, Inputs
from molequi.quantities import quantity

ELEMENTS = [1, 6, 8]
AXES = [None, None, "learned", [0.0, 0.6, 0.8]]
CHOICES = {
    "EGNN": dict(
        channels=[4, 8],
        layers=[1, 2, 3],
        attention=[False, True],
        cutoff=[None, 3.0, 4.0],
        inputs=[Inputs(), Inputs(charge=True)],
        axis=AXES,
    ),
    "GauntACE": dict(
        channels=[2, 4],
        l_max=[1, 2, 3],
        l_hidden=[0, 1],
        l_out=[0, 1],
        correlation=[1, 2, 3],
        layers=[1, 2],
        axis=AXES,
    ),
    "MACE": dict(
        channels=[2, 4],
        l_max=[1, 2],
        l_hidden=[0, 1],
        l_out=[0, 1],
        correlation=[1, 2],
        radial_hidden=[(), (8,)],
        axis=AXES,
    ),
    "NequIP": dict(
        channels=[2, 4],
        l_max=[1, 2],
        layers=[1, 2, 3],
        parity=[False, True],
        group=["O(3)", "SO(3)"],
        axis=AXES,
    ),
    "PaiNN": dict(channels=[4, 8], layers=[1, 2, 3], cutoff=[None, 3.0, 4.0], axis=AXES),
    "Equiformer": dict(
        channels=[4], hidden=[4], l_max=[1, 2, 3], layers=[1, 2], group=["O(3)", "SO(3)"], axis=AXES
    ),
    "RelaxedEGNN": dict(channels=[4, 8], layers=[1, 2]),
    "RelaxedNequIP": dict(channels=[2, 4], layers=[1, 2], l_max=[1, 2]),
    "Transformer": dict(channels=[8], layers=[1, 2], absolute=[False, True]),
}
WANTED = [
    "energy",
    "forces",
    "dipole",
    "polarizability",
    "charges",
    Quantity(name="arrow", per="node", rank=1),
]


def chosen(options: list, generator: torch.Generator):
    return options[int(torch.randint(len(options), (), generator=generator))]


def structure(generator: torch.Generator, charged: bool) -> Graph:
    """A few atoms at random, none nearer than 0.8 Å; every third time in a skewed cell."""
    periodic = int(torch.randint(3, (), generator=generator)) == 0
    nodes = 2 + int(torch.randint(5, (), generator=generator))
    cell = (
        3.6 * torch.eye(3, dtype=torch.float64)
        + 0.4 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
        if periodic
        else None
    )
    pos: list[torch.Tensor] = []
    while len(pos) < nodes:
        new = (
            torch.rand(3, generator=generator, dtype=torch.float64) @ cell
            if periodic
            else 1.6 * torch.randn(3, generator=generator, dtype=torch.float64)
        )
        if all(float((new - p).norm()) > 0.8 for p in pos):
            pos.append(new)
    z = [chosen(ELEMENTS, generator) for _ in range(nodes)]
    more = {"charge": 1.0} if charged else {}
    return Graph.single(torch.stack(pos), z, **({"cell": cell, "pbc": True} if periodic else {}), **more)


def sound(name: str, generator: torch.Generator) -> Model:
    """A model of random options and weights that predicts all that its backbone has the irreps for."""
    options = {key: chosen(values, generator) for key, values in CHOICES[name].items()}
    if options.get("group") == "SO(3)":
        options["parity"] = False  # which means nothing there
    options.setdefault("cutoff", chosen([3.0, 4.0], generator))
    backbone = BACKBONES[name](elements=ELEMENTS, **options)
    able = []
    for item in WANTED:
        what = quantity(item)
        try:
            if what.gradient_of is None:
                default_head(what).check(backbone.out)
            able.append(item)
        except ModelError:
            continue
    model = Model(backbone, able)
    with torch.no_grad():
        for parameter in model.parameters():
            stretch = 0.5 + torch.rand((), generator=generator)
            parameter.mul_(stretch).add_(
                0.05 * torch.randn(parameter.shape, generator=generator) * (parameter.ndim == 1)
            )
    return model


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--audits", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    counts, alarms, blind, worst, start = Counter(), Counter(), 0, {}, time.monotonic()
    for k in range(given.audits):
        torch.manual_seed(given.seed + k)
        generator = torch.Generator().manual_seed(given.seed + k)
        name = chosen(list(CHOICES), generator)
        model = sound(name, generator)
        charged = model.backbone.inputs.charge
        structures = [structure(generator, charged) for _ in range(1 + k % 2)]
        if model.cutoff is None and any(g.pbc is not None for g in structures):
            structures = [g.replace(cell=None, pbc=None) for g in structures]
        report = audit(model, structures, draws=2, seed=k)
        counts[name] += 1
        for row in report.rows:
            if row.verdict == "pass" and row.maximum is not None and row.tolerance:
                worst[row.check] = max(worst.get(row.check, 0.0), row.maximum / row.tolerance)
        blind += not report.failed and not report.passed
        if report.failed:
            alarms[name] += 1
            print(
                f"alarm {k}: {name} {model.backbone.hparams}\n"
                + "\n".join(
                    f"    {r.check} {r.quantity} {r.element}: {r.explanation} ({r.maximum})"
                    for r in report.failed
                ),
                flush=True,
            )
        if sys.stderr.isatty() or (k + 1) % 50 == 0:
            left = (time.monotonic() - start) / (k + 1) * (given.audits - k - 1)
            print(
                f"{k + 1} of {given.audits}, about {left / 60:.0f} min left, {sum(alarms.values())} alarms",
                file=sys.stderr,
            )
    print(
        f"{given.audits} audits: {', '.join(f'{n} {c}' for n, c in sorted(counts.items()))}; "
        f"alarms: {sum(alarms.values())} {dict(alarms) or ''}; {blind} without anything to measure"
    )
    print(
        "largest error over what is allowed: " + ", ".join(f"{c} {v:.1e}" for c, v in sorted(worst.items()))
    )
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(main())
