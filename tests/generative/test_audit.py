"""Symmetry of flows: a sound one passes, a network without symmetry and a density with a direction do not."""

import copy

import pytest
import torch

import molequi as mq
from molequi.errors import ConfigError
from molequi.generative import audit_flow, paths
from molequi.generative.audit import farthest, uniformity

from .flow_kit import trained


def test_a_sound_flow_passes(molecules, chiral):
    found = audit_flow(molecules, 4, steps=4, orientations=60)
    assert found.passed and len(found.checks) == 6, found
    conformers = audit_flow(chiral[1], "C[C@H](F)O", steps=4, orientations=40)
    assert conformers.passed and [c.name for c in conformers.checks][1:3] == [
        "rotation of the noise",
        "permutation of atoms",
    ]


def test_a_network_without_symmetry_fails(waters):
    model = trained(paths(waters, "molecules"), backbone=mq.Transformer)
    found = {c.name: c.passed for c in audit_flow(model, 4, steps=4, orientations=0).checks}
    assert found == {
        "way from noise to samples (Å)": True,
        "rotation of the noise": False,
        "reflection of the noise": False,
        "permutation of atoms": True,
    }


def test_a_density_with_a_direction_is_found():
    generator = torch.Generator().manual_seed(0)
    uniform = torch.nn.functional.normalize(
        torch.randn(300, 3, generator=generator, dtype=torch.float64), dim=1
    )
    one_way = torch.nn.functional.normalize(uniform + torch.tensor([0.0, 0, 0.5]), dim=1)
    one_axis = torch.nn.functional.normalize(uniform * torch.tensor([1.0, 1, 2.0]), dim=1)
    assert [c.passed for c in uniformity(uniform)] == [True, True]
    assert not uniformity(one_way)[0].passed
    assert [c.passed for c in uniformity(one_axis)] == [True, False]  # both ends of the axis are alike


def test_the_velocity_passes_the_audit_of_models(molecules, waters):
    data = paths(waters, "molecules")
    assert mq.audit(
        molecules, data[:2], draws=2, checks=["rotation", "reflection", "translation", "permutation"]
    ).passed


def test_a_velocity_of_zero_has_every_symmetry_and_fails(molecules):
    still = copy.deepcopy(molecules)
    with torch.no_grad():
        for parameter in still.heads["flow_velocity"].parameters():
            parameter.zero_()
    found = audit_flow(still, 4, steps=4, orientations=0)
    assert [c.name for c in found.checks if not c.passed] == ["way from noise to samples (Å)"]


def test_audits_of_nothing_are_refused(molecules):
    for options in ({"steps": 0}, {"orientations": -1}, {"seed": 2**40}):
        with pytest.raises(ConfigError, match=f"audit_flow.{next(iter(options))}: found"):
            audit_flow(molecules, 4, **options)
    one = copy.copy(molecules)
    flow = molecules.metadata["reading"]["flow"]
    one.metadata = {**molecules.metadata, "reading": {"flow": {**flow, "sizes": {"1": 1}}}}
    with pytest.raises(ConfigError, match="all structures have one atom"):
        audit_flow(one, 4, steps=2)
    mixed = [mq.Graph.single([[0, 0, 0]], ["H"]), mq.Graph.single([[0, 0, 0], [0, 0, 1]], ["H", "H"])]
    assert farthest(mixed).shape == (1, 3)
