"""Other people's modules and calculators: sound ones pass, faults are found, and errors say what to declare."""

import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from torch import nn

from molequi.audit import BlackBox, Declared, audit, lie_errors
from molequi.audit.testing import assert_symmetric
from molequi.errors import ConfigError, ModelError
from molequi.graph import Graph
from molequi.quantities import Quantity

from .kit import crystal, molecule

REACH = 8.0


class Pairs(nn.Module):
    """Energies of pairs, from positions alone; `origin`: it knows where that is."""

    def __init__(self, origin=0.0):
        super().__init__()
        self.strength, self.origin = nn.Parameter(torch.tensor(1.3)), origin

    def forward(self, pos, z):
        away = pos[:, None] - pos[None]
        inverse = 1 / (1 + away.square().sum(-1))
        return self.strength * (inverse * z[:, None] * z[None]).sum() + self.origin * pos[:, 0].sum()


class Messages(nn.Module):
    """A batched net on edges with a vector for each node."""

    def forward(self, vector, edge_index, num_nodes):
        weight = torch.exp(-vector.square().sum(1, keepdim=True))
        out = torch.zeros(num_nodes, 3, dtype=vector.dtype).index_add(0, edge_index[1], vector * weight)
        return {"arrow": out, "length": out.norm(dim=1)}


def declared(**options):
    return Declared(Pairs(**options), takes=["pos", "z"], gives="energy", edges=False, batched=False)


def test_a_module_of_positions():
    report = audit(declared(), [molecule(0), molecule(1, 5)], draws=4)
    assert report.passed and report.model == "Pairs"
    assert {"rotation", "translation", "permutation", "batch"} <= {
        r.check for r in report.rows if r.verdict == "pass"
    }
    report = audit(declared(origin=1e-4), [molecule(0)], draws=4)
    assert {"rotation", "reflection", "translation"} <= {r.check for r in report.failed}


def test_a_module_on_edges_and_a_dictionary():
    arrow, length = Quantity(name="arrow", per="node", rank=1), Quantity(name="length", per="node")
    module = Declared(
        Messages(),
        takes={"vector": "edge_vectors", "edge_index": "edge_index", "num_nodes": "num_nodes"},
        gives={"arrow": arrow, "length": length},
        cutoff=4.0,
    )
    report = audit(
        module,
        [molecule(0), molecule(1, 5)],
        draws=4,
        checks=["rotation", "reflection", "permutation", "edge order", "batch"],
    )
    assert report.passed
    wrong = Declared(
        Messages(),
        takes={"vector": lambda g: g.edge_vectors(), "edge_index": "edge_index", "num_nodes": "num_nodes"},
        gives={"arrow": Quantity(name="arrow", per="node", rank=1, pseudo=True)},
        cutoff=4.0,
    )
    assert {
        r.check for r in audit(wrong, [molecule(0)], draws=4, checks=["rotation", "reflection"]).failed
    } == {"reflection"}


def metal() -> Graph:
    g = crystal()
    return g.replace(z=torch.tensor([29, 29, 13, 29, 13]))


def test_a_sound_calculator():
    report = audit(EMT(), [metal()], draws=4, limit=2)
    assert not [
        r
        for r in report.failed
        if r.check
        in ("rotation", "reflection", "translation", "permutation", "lattice", "supercell", "momentum")
    ]
    assert report.model == "EMT" and all(r.float32 is None for r in report.rows)
    assert {"energy", "forces", "stress"} <= {
        r.quantity for r in report.rows if r.check == "rotation" and r.verdict == "pass"
    }


class Broken(LennardJones):
    """Its box is not round."""

    def calculate(self, *args, **options):
        super().calculate(*args, **options)
        self.results["forces"] = np.clip(self.results["forces"], -0.02, 0.02)


def test_a_broken_calculator():
    sound = audit(
        LennardJones(rc=REACH, smooth=True),
        [molecule(0)],
        draws=4,
        checks=["rotation", "reflection", "translation", "permutation"],
    )
    assert sound.passed
    report = audit(Broken(rc=REACH, smooth=True), [molecule(0)], draws=4)
    assert {"rotation", "reflection", "finite differences"} <= {r.check for r in report.failed}
    assert {r.quantity for r in report.failed if r.check == "rotation"} == {"forces"}


class Rounded(LennardJones):
    def calculate(self, *args, **options):
        super().calculate(*args, **options)
        self.results["forces"] = self.results["forces"].astype(np.float32)


def test_a_calculator_in_float32():
    box = BlackBox(Rounded(rc=REACH, smooth=True), precision="float32", predict=["forces"])
    report = audit(box, [molecule(0)], draws=4)
    assert (
        report.passed
        and report.tolerance.symmetry == 1e-4
        and "finite differences" not in {r.check for r in report.rows}
    )
    assert not audit(
        BlackBox(Rounded(rc=REACH, smooth=True), predict=["forces"]), [molecule(0)], draws=4
    ).passed


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Declared(Pairs(), takes=["position"], gives="energy"), "no such thing; known: pos, z"),
        (lambda: Declared(EMT(), takes=["pos"], gives="energy"), "an ASE calculator is BlackBox"),
        (lambda: BlackBox(Pairs()), "is Declared"),
        (lambda: BlackBox(EMT(), ["dipole"]), "does not implement 'dipole'"),
        (lambda: BlackBox(EMT(), precision="half"), "precision='half'"),
        (lambda: audit(Pairs(), [molecule(0)]), "does not say its quantities, cutoff, group; declare"),
    ],
)
def test_errors(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_errors_of_shapes_and_keys():
    with pytest.raises(ModelError, match=r"energy has the shape \(\); wanted \(16,\)"):
        audit(Declared(Pairs(), takes=["pos", "z"], gives="energy", edges=False), [molecule(0)])
    with pytest.raises(ModelError, match="declares 'arrows' and it returned 'arrow', 'length'"):
        audit(
            Declared(
                Messages(),
                takes=["edge_vectors", "edge_index", "num_nodes"],
                gives={"arrows": "energy"},
                cutoff=4.0,
            ),
            [molecule(0)],
        )


def test_what_a_calculator_cannot_do():
    with pytest.raises(ModelError, match=r"EMT cannot give 'energy' of .*NotImplementedError.*leave"):
        audit(EMT(), [molecule(0).replace(z=torch.full((7,), 92))])
    nothing = EMT()
    nothing.implemented_properties = ["free_energy"]
    with pytest.raises(ConfigError, match="implements free_energy; wanted one of energy, forces"):
        BlackBox(nothing)


def test_one_line_for_other_peoples_tests():
    assert_symmetric(declared(), [molecule(0)], draws=2, checks=["rotation"])
    with pytest.raises(AssertionError, match=r"(?s)audit of Pairs failed.*rotation +energy"):
        assert_symmetric(declared(origin=1e-3), [molecule(0)], draws=2, checks=["rotation"])
    with pytest.raises(ConfigError, match="check 'rotations' is not known"):
        assert_symmetric(declared(), [molecule(0)], checks=["rotations"])


def test_precisions_of_modules():
    report = audit(declared(), [molecule(0)], draws=8, checks=["rotation"])
    assert report.rows[0].float32 > 1e-9 > report.rows[0].maximum

    class Plain(nn.Module):
        """Without weights, so that nobody can say its precision, and not differentiable."""

        def forward(self, pos):
            return torch.exp(-torch.linalg.vector_norm(pos[:, None] - pos[None], dim=-1)).sum().detach()

    plain = Declared(Plain(), takes="pos", gives="energy", edges=False, batched=False)
    report = audit(plain, [molecule(0), molecule(1, 5)], draws=2)
    assert not [r for r in report.failed if r.check in ("rotation", "batch", "across graphs")]
    assert any("not differentiable" in r.explanation for r in report.rows if r.check == "across graphs")
    assert all(r.float32 is None for r in report.rows) and [
        r for r in report.rows if r.check == "batch" and r.verdict == "pass"
    ]


def test_a_stress_that_is_never_a_number_fails():
    class Lost(nn.Module):
        def forward(self, pos, cell):
            return {
                "energy": pos.square().sum()[None],
                "stress": torch.full((1, 3, 3), float("nan"), dtype=pos.dtype),
            }

    lost = Declared(
        Lost(),
        takes=["pos", "cell"],
        gives={"energy": "energy", "stress": "stress"},
        cutoff=4.0,
        batched=False,
    )
    report = audit(lost, [crystal()], draws=2, checks=["not zero"])
    assert [(r.quantity, r.reason) for r in report.failed] == [("stress", "the output is not finite")]


class Coarse(LennardJones):
    """Computes in float32 from the start."""

    def calculate(self, atoms, *args, **options):
        rounded = atoms.copy()
        rounded.positions = atoms.positions.astype(np.float32)
        super().calculate(rounded, *args, **options)
        self.results["energy"] = float(np.float32(self.results["energy"] - 600.0 * len(atoms)))


def test_a_calculator_in_float32_with_a_large_offset():
    audit(
        BlackBox(Coarse(rc=REACH, smooth=True), precision="float32"), [molecule(0), molecule(1, 5)], draws=4
    ).raise_if_failed()


def test_perfect_crystals_are_no_alarm():
    from ase.build import bulk

    report = audit(
        EMT(), [bulk("Cu", cubic=True)], draws=2, checks=["momentum", "rotation", "lattice", "not zero"]
    )
    assert report.passed


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: audit(EMT, [molecule(0)]), "found the class EMT; make one"),
        (lambda: Declared(Pairs(), takes=["pos", "z"], gives="energy", axis="z"), "axis='z': wanted numbers"),
        (lambda: lie_errors(EMT(), [molecule(0)]), "EMT cannot be differentiated"),
    ],
)
def test_more_errors(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_what_the_structures_have_not():
    with pytest.raises(ModelError, match="Pairs takes 'vel', and the structures have none"):
        audit(
            Declared(Pairs(), takes=["pos", "vel"], gives="energy", edges=False, batched=False), [molecule(0)]
        )
