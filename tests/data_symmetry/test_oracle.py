"""Symmetry errors of a labelling function."""

import pytest
import torch

from molequi import Graph
from molequi.data_symmetry import symmetry_test
from molequi.errors import ConfigError
from molequi.readers.nbody import nbody, simulate

from .test_symmetry_test import FEW, Z, clouds, forced


def test_the_oracle_measures_the_law():
    """The published N-body law, clipped by component and by norm: simulate, then turn."""

    def oracle_of(clip):
        def oracle(graphs):
            pos, vel = (torch.stack([getattr(g, name) for g in graphs]).numpy() for name in ("pos", "vel"))
            charges = torch.ones(len(graphs), 5, dtype=torch.float64)
            for k, g in enumerate(graphs):
                first = g.pair_index[0] == 0
                charges[k, g.pair_index[1][first]] = g.pair_attr[first, 0]
            run = simulate(charges.numpy(), pos, vel, frames=(0,), clip=clip, clip_at=1.0)
            return [{"moved": torch.from_numpy(p)} for p in run.pos[:, 0]]

        return oracle

    for clip in ("component", "norm"):
        data = nbody(40, start=0, end=1, clip=clip, clip_at=1.0)
        report = symmetry_test(data, oracle=oracle_of(clip), groups=("SO(3)",), **FEW)
        errors = {f.symmetry: f for f in report.oracle}
        assert (
            set(errors) == {"rotations", "reflections", "translations"}
            and errors["translations"].error < 1e-9
        )
        if clip == "norm":
            assert errors["rotations"].error < 1e-9 and errors["rotations"].orbit_variance < 1e-18
        else:
            assert (
                errors["rotations"].error > 1e-3
                and errors["rotations"].orbit_variance > 1e-7
                and "no equivariant model" in str(report)
            )


def test_a_wrong_oracle_is_named():
    data = forced(40)
    for oracle, text in (
        (lambda g: [], "returned 0 mappings for 40"),
        (lambda g: [{"energy": 0.0} for _ in g], "returned no forces for structure 0"),
        (lambda g: [{"forces": torch.zeros(3)} for _ in g], r"shape \(3,\) for structure 0; wanted \(6, 3\)"),
    ):
        with pytest.raises(ConfigError, match=text):
            symmetry_test(data, oracle=oracle, groups=("SO(3)",), **FEW)


def test_the_floor_of_reflections_is_that_of_all_poses():
    """A pseudoscalar v: an O(3)-invariant model answers 0, with the mean square error v², and mirror images are off by 2 |v|."""
    x = clouds(60, 0)[0]

    def volume(pos):
        return (torch.linalg.cross(pos[1] - pos[0], pos[2] - pos[0]) * (pos[4] - pos[0])).sum()

    known = torch.stack([volume(p) for p in x])
    data = [Graph.single(p, Z, targets={"energy": v[None]}) for p, v in zip(x, known)]
    report = symmetry_test(
        data, oracle=lambda graphs: [{"energy": volume(g.pos)} for g in graphs], groups=("SO(3)",), **FEW
    )
    rotations, reflections, _ = report.oracle
    assert (
        rotations.error < 1e-12 and abs(reflections.orbit_variance / float(known.square().mean()) - 1) < 0.15
    )
    assert (
        abs(reflections.error / 2 * float(known.std(correction=0) / known.square().mean().sqrt()) - 1) < 0.05
    )


def test_translations_have_an_error_and_no_floor():
    """A trap at the origin, of structures that are all there: what is asked elsewhere does not limit a model for these data."""
    data = [Graph.single(p, Z, targets={"forces": -0.1 * p}) for p in clouds(40, 0)[0]]
    report = symmetry_test(
        data, oracle=lambda graphs: [{"forces": -0.1 * g.pos} for g in graphs], groups=("SO(3)",), **FEW
    )
    rotations, _, translations = report.oracle
    assert translations.error > 1 and translations.orbit_variance is None and rotations.orbit_variance < 1e-20
    lines = [line for line in str(report).splitlines() if line.startswith("oracle")]
    assert "all orientations of these structures" in lines[0] and "no equivariant model" not in lines[2]
