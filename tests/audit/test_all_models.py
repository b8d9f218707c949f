"""The kit that every backbone passes with every head: one line in a table adds a model, and here it is tried."""

from dataclasses import replace

import pytest
import torch

from molequi import EGNN, Graph, Model, Quantity
from molequi.audit import audit
from molequi.errors import ModelError
from molequi.heads import HEADS, Vector, default_head
from molequi.models import BACKBONES, Inputs
from molequi.quantities import KNOWN

from .kit import ELEMENTS, crystal, molecule

SMALL = {
    "EGNN": [
        dict(channels=8, layers=2, radial=6),
        dict(channels=8, layers=2, cutoff=None),
        dict(channels=8, layers=2, attention=True),
    ],
    "Equiformer": [
        dict(channels=4, hidden=4, layers=2, l_max=2, radial=4),
        dict(
            channels=3,
            hidden=4,
            layers=2,
            l_max=3,
            m_max=1,
            l_out=2,
            group="SO(3)",
            activation="gate",
            radial=4,
        ),
        dict(channels=3, hidden=2, heads=1, layers=1, l_max=2, activation="sphere", radial=4),
    ],
    "GauntACE": [
        dict(channels=4, radial=4, l_max=2),
        dict(channels=4, radial=4, l_hidden=2, l_out=2, correlation=2, layers=3),
        dict(channels=4, radial=4, l_hidden=0, l_out=1, correlation=1),
        dict(channels=2, radial=4, l_hidden=3, correlation=2),
    ],
    "GroupConvNet": [
        dict(channels=4, layers=2, radial=4, group="T"),
        dict(channels=4, layers=1, radial=4, group="Th", kernel="gaussians", degree=1),
    ],
    "MACE": [
        dict(channels=4, radial=4, l_max=2, radial_hidden=(8,)),
        dict(channels=4, radial=4, l_hidden=2, correlation=2, radial_hidden=(8,)),
        dict(channels=3, layers=3, radial=4, l_max=2, l_hidden=0, l_out=2, radial_hidden=()),
        dict(
            channels=3,
            radial=4,
            l_max=2,
            correlation=[2, 3],
            radial_hidden=(8,),
            variant=dict(
                mix_paths=True,
                self_connection=[False, True],
                normalize="density",
                distance="agnesi",
                exponent=5,
                train_frequencies=True,
            ),
        ),
        dict(
            channels=3,
            radial=4,
            l_max=2,
            radial_hidden=(),
            correlation=2,
            variant=dict(mix_paths=True, distance="soft"),
        ),
    ],
    "NequIP": [
        dict(channels=4, layers=2, radial=4),
        dict(channels=4, layers=2, radial=4, group="SO(3)"),
        dict(channels=3, layers=3, radial=4, parity=True),
        dict(channels=4, layers=2, radial=4, l_max=3),
    ],
    "PaiNN": [dict(channels=8, layers=2, radial=6), dict(channels=8, layers=2, cutoff=None)],
    "RelaxedEGNN": [dict(channels=8, layers=2, radial=6), dict(channels=8, layers=2, cutoff=None)],
    "RelaxedNequIP": [
        dict(channels=4, layers=2, radial=4),
        dict(channels=4, layers=2, radial=4, gates=(0.5, 0.5, 0.0)),
    ],
    "NequIPGNN": [
        dict(channels=4, layers=2, radial=4, exponent=5, neighbors={"H": 4.0, "C": 9.0}),
        dict(channels=4, l_max=1, radial=4, pair_cutoffs={"H": {"H": 2.0, "O": 2.5}, "O": {"H": 1.5}}),
        dict(channels=[{"0e": 4}, {"0e": 4, "1o": 2, "2e": 1}, {"0e": 3, "1o": 1}], group="SO(3)", radial=4),
    ],
    "SevenNet": [
        dict(
            channels=[{"0e": 4}, {"0e": 4, "1o": 3, "2e": 2}, {"0e": 5, "1o": 2, "2e": 2}],
            radial=4,
        ),
        dict(
            channels=[{"0e": 4}, {"0e": 4, "1o": 2, "2e": 1}, {"0e": 4, "1o": 2, "1e": 2, "2e": 2, "2o": 1}],
            radial=4,
            self_connection="elements",
            unit_harmonics=False,
            biases=True,
        ),
    ],
    "So3krates": [
        dict(channels=8, layers=2, l_max=2, radial=6),
        dict(channels=12, layers=2, l_max=3, heads=2, radial=6, normalize=False, residual=False),
        dict(channels=8, layers=3, l_max=1, heads=1, radial=6, message_cutoff=3.0),
    ],
    "Transformer": [dict(channels=8, layers=2, radial=6), dict(channels=8, layers=2, cutoff=None, vectors=2)],
}
ATOMIC = [
    name for name, kind in BACKBONES.items() if not kind.clouds_alone
]  # tests/models/test_point_hierarchy.py has the others
PREDICTED = {
    "Scalar": ["energy", "charges", "gap"],
    "LinearScalar": [],  # no quantity gets it by default; tests/foreign has it
    "LayerReadouts": [],  # nor this one
    "ZBLEnergy": [],  # as LinearScalar
    "Vector": [Quantity(name="arrow", per="node", rank=1), Quantity(name="field", rank=1)],
    "Dipole": ["dipole"],
    "DipoleMagnitude": ["mu"],
    "SpatialExtent": ["r2"],
    "Tensor2": ["polarizability", Quantity(name="shielding", per="node", rank=2)],
    "TensorN": [Quantity(name="beta", rank=3, symmetry="ijk=jik=ikj")],
    "PhysicalEnergy": [],  # three heads that take the total charge: tests/models/test_so3krates.py
    "AtomicCharges": [],
    "Velocity": [],  # takes the time as a node feature: tests/generative
    "ChargeDipole": [],
    "Classes": [
        Quantity(name="shape", classes=["ball", "rod", "sheet"]),
        Quantity(name="part", per="node", classes=["end", "middle"]),
    ],
    "Position": [
        Quantity(name="moved", per="node", rank=1, point=True),
        Quantity(name="goal", rank=1, point=True),
    ],
}


def heads_that_fit(backbone, names):
    """What this backbone has the irreps for."""
    for name in names:
        for item in PREDICTED[name]:
            quantity = KNOWN[item] if isinstance(item, str) else item
            head = default_head(quantity)
            try:
                head.build(backbone.out)
            except ModelError:
                continue
            yield item


MATRIX = [
    pytest.param(name, options, id=f"{name}-{'-'.join(f'{k}={v}' for k, v in options.items())}")
    for name in ATOMIC
    for options in SMALL[name]
]


def test_every_backbone_and_every_head_is_tried():
    assert set(SMALL) == set(ATOMIC)
    assert set(PREDICTED) == set(HEADS)


@pytest.mark.parametrize(("name", "options"), MATRIX)
def test_molecules(name, options):
    torch.manual_seed(0)
    backbone = BACKBONES[name](elements=ELEMENTS, **{"cutoff": 4.0, **options})
    predict = [*heads_that_fit(backbone, PREDICTED), "forces"]
    assert len(predict) >= 9
    report = audit(Model(backbone, predict), [molecule(0), molecule(1, 5)], draws=4).raise_if_failed()
    turned = {r.quantity for r in report.rows if r.check == "rotation"}
    assert {"energy", "forces", "dipole", "polarizability", "arrow"} <= turned


@pytest.mark.parametrize(("name", "options"), [p for p in MATRIX if p.values[1].get("cutoff", 0) is not None])
@pytest.mark.parametrize("pbc", [True, (True, True, False)], ids=["crystal", "slab"])
def test_crystals(name, options, pbc):
    torch.manual_seed(1)
    backbone = BACKBONES[name](elements=ELEMENTS, **{"cutoff": 3.5, **options})
    structures = [crystal(pbc), molecule(2, 4)] if pbc is True else [crystal(pbc)]
    predict = ["energy", "forces", *(["stress"] if pbc is True else [])]
    report = audit(Model(backbone, predict), structures, draws=4).raise_if_failed()
    assert {"lattice", "supercell"} <= {r.check for r in report.rows if r.verdict == "pass"}
    assert pbc is not True or any(
        r.check == "finite differences" and r.quantity == "stress" for r in report.rows
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "EGNN",
            dict(channels=8, layers=2, inputs=Inputs(charge=True, spin=True, velocity=True, node_features=2)),
        ),
        (
            "GauntACE",
            dict(channels=4, radial=4, l_max=2, inputs=Inputs(charge=True, spin=True, node_features=2)),
        ),
        ("MACE", dict(channels=4, radial=4, l_max=2, inputs=Inputs(charge=True, spin=True, node_features=2))),
        (
            "NequIP",
            dict(channels=4, layers=2, radial=4, inputs=Inputs(charge=True, spin=True, node_features=2)),
        ),
    ],
)
def test_given_charge_spin_velocities_and_features(name, options):
    torch.manual_seed(2)
    generator = torch.Generator().manual_seed(3)
    structures = [
        molecule(
            k,
            n,
            charge=float(k),
            spin=1.0 + k,
            x=torch.randn(n, 2, generator=generator),
            vel=torch.randn(n, 3, generator=generator, dtype=torch.float64),
        )
        for k, n in enumerate((6, 5))
    ]
    model = Model(BACKBONES[name](elements=ELEMENTS, cutoff=4.0, **options), ["energy", "forces", "dipole"])
    report = audit(model, structures, draws=4).raise_if_failed()
    (reason,) = (r.reason for r in report.rows if r.check == "fragments")
    assert reason == "the model takes the total charge, which belongs to the whole structure"


@pytest.mark.parametrize("dim", [2, 4])
def test_other_dimensions(dim):
    torch.manual_seed(3)
    cloud = torch.randn(6, dim, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    model = Model(
        EGNN(elements=["X"], cutoff=2.5, channels=8, layers=2),
        ["energy", "forces", Quantity(name="field", rank=1)],
    )
    audit(model, [Graph.single(1.5 * cloud)], draws=4).raise_if_failed()


@pytest.mark.parametrize("name", ATOMIC)
def test_direct_forces_are_called_not_conservative(name):
    torch.manual_seed(4)
    options = SMALL[name][0]
    undeclared = replace(KNOWN["forces"], gradient_of=None, factor=None)
    model = Model(BACKBONES[name](elements=ELEMENTS, cutoff=4.0, **options), ["energy", Vector(undeclared)])
    report = audit(model, [molecule()], draws=4).raise_if_failed()
    (row,) = (r for r in report.rows if r.check == "conservative")
    assert row.verdict == "not applicable" and "not conservative" in row.explanation and row.maximum > 1e-3

    model = Model(BACKBONES[name](elements=ELEMENTS, cutoff=4.0, **options), ["energy", Vector("forces")])
    failed = {(r.check, r.quantity) for r in audit(model, [molecule()], draws=4).failed}
    assert {("conservative", "forces"), ("finite differences", "forces")} <= failed


def test_twenty_random_models_raise_no_alarm():
    kinds = [
        (name, options) for name in ATOMIC for options in SMALL[name] if options.get("cutoff", 0) is not None
    ]
    for seed in range(20):
        torch.manual_seed(100 + seed)
        name, options = kinds[seed % len(kinds)]
        backbone = BACKBONES[name](elements=ELEMENTS, **{"cutoff": 3.0 + 0.1 * seed, **options})
        model = Model(backbone, ["energy", "forces", *(["stress"] if seed % 2 else [])])
        with torch.no_grad():  # biases too: zeros would hide what they break
            for p in model.parameters():
                p.add_(0.2 * torch.randn_like(p))
        report = audit(model, [crystal() if seed % 2 else molecule(seed, 5)], draws=2, seed=seed)
        assert report.passed, f"seed {seed}: {report}"
