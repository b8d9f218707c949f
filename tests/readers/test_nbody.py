"""The simulator of charged particles: against a loop written from the equations, and the symmetry that each way of clipping leaves."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

import molequi as mq
from molequi.errors import ConfigError
from molequi.readers.nbody import MOVED, initial, nbody, simulate


def slow(charges, pos, vel, steps, clip, at=100.0, tau=0.001, gravity=(0.0, 0.0, 0.0)):
    """One trajectory, particle by particle, with plain numbers: Coulomb's law, and v before x."""
    x, v = [list(map(float, p)) for p in pos], [list(map(float, p)) for p in vel]
    for _ in range(steps):
        forces = []
        for i in range(len(x)):
            total = [0.0, 0.0, 0.0]
            for j in range(len(x)):
                if j == i:
                    continue
                r = [a - b for a, b in zip(x[i], x[j])]
                distance = math.hypot(*r)
                total = [t + charges[i] * charges[j] / distance**2 * (c / distance) for t, c in zip(total, r)]
            total = [t + g for t, g in zip(total, gravity)]
            if clip == "component":
                total = [max(-at, min(at, t)) for t in total]
            elif clip == "norm" and math.hypot(*total) > at:
                total = [t * at / math.hypot(*total) for t in total]
            forces.append(total)
        for i, force in enumerate(forces):
            v[i] = [a + tau * f for a, f in zip(v[i], force)]
            x[i] = [a + tau * b for a, b in zip(x[i], v[i])]
    return np.array(x), np.array(v)


def near(trajectories=4, particles=5, apart=0.35, seed=5):
    """Starts where particles are close, so that clipping at 5 acts soon."""
    charges, pos, vel = initial(trajectories, particles, seed)
    return charges, apart * pos, vel


@pytest.mark.parametrize("clip", ["component", "norm", None])
@pytest.mark.parametrize("particles", [2, 5])
def test_equals_a_slow_loop(clip, particles):
    charges, pos, vel = near(3, particles)
    run = simulate(charges, pos, vel, frames=(0, 1), clip=clip, clip_at=5.0, every=40)
    # none at all is one of the cases: then clipping must not act
    assert run.clipped.any() == (clip is not None)
    for t in range(3):
        for k, steps in enumerate((40, 80)):
            x, v = slow(charges[t], pos[t], vel[t], steps, clip, at=5.0)
            assert np.abs(run.pos[t, k] - x).max() < 1e-11
            assert np.abs(run.vel[t, k] - v).max() < 1e-10


@pytest.mark.parametrize("clip", ["component", "norm", None])
def test_gravity_equals_a_slow_loop(clip):
    charges, pos, vel = near(3, 4)
    g = (0.5, -0.2, 3.0)
    run = simulate(charges, pos, vel, frames=(0, 1), clip=clip, clip_at=5.0, every=40, gravity=g)
    for t in range(3):
        x, v = slow(charges[t], pos[t], vel[t], 80, clip, at=5.0, gravity=g)
        assert np.abs(run.pos[t, 1] - x).max() < 1e-11
        assert np.abs(run.vel[t, 1] - v).max() < 1e-10


def test_the_centre_of_mass_falls():
    """Forces between particles cancel: n steps of v ← v + τ g, x ← x + τ v move the centre by τ² g n (n + 1) / 2 beside its start's n τ v."""
    g, n = np.array([0.0, 0.0, 0.98]), 300
    start = initial(20, 5, 2)
    run = simulate(*start, frames=(2,), clip=None, gravity=g)
    fallen = run.pos[:, 0].mean(1) - start[1].mean(1) - n * 0.001 * start[2].mean(1)
    assert np.abs(fallen - 0.001**2 * g * n * (n + 1) / 2).max() < 1e-11


def test_gravity_leaves_the_rotations_about_it():
    g = np.array([0.0, 0.0, 0.98])
    charges, pos, vel = initial(16, 5, 3)
    about, across = (Rotation.from_euler(axis, 1.1).as_matrix() for axis in "zx")
    here = simulate(charges, pos, vel, frames=(4,), clip="norm", gravity=g).pos
    errors = [
        np.abs(
            here @ r.T - simulate(charges, pos @ r.T, vel @ r.T, frames=(4,), clip="norm", gravity=g).pos
        ).max()
        for r in (about, across)
    ]
    assert errors[0] < 1e-9
    assert errors[1] > 0.05


def energy(charges, pos, vel):
    potential = sum(
        charges[:, i] * charges[:, j] / np.linalg.norm(pos[:, :, i] - pos[:, :, j], axis=2).T
        for i in range(pos.shape[2])
        for j in range(i)
    )
    return 0.5 * (vel**2).sum((2, 3)) + potential.T


def test_energy_and_momentum_are_kept():
    """Without clipping, particles that only repel each other: the error of the energy is of first order in the step, since v belongs
    to half a step before x; momentum is kept to round-off."""
    _, pos, vel = initial(20, 5, 2)
    charges = np.ones((20, 5))
    drift = []
    for step, every in ((0.001, 200), (0.0005, 400)):
        run = simulate(charges, pos, vel, frames=range(5), clip=None, step=step, every=every)
        total = energy(charges, run.pos, run.vel)
        drift.append(np.abs(total - energy(charges, pos[:, None], vel[:, None])).max())
        assert np.abs(run.vel.sum(2) - vel.sum(1)[:, None]).max() < 1e-11
    assert drift[0] < 0.05
    assert 1.7 < drift[0] / drift[1] < 2.3


def turned(clip, at):
    charges, pos, vel = near(16)
    rotation = (
        Rotation.random(16, random_state=1).as_matrix() * np.where(np.arange(16) % 2, -1, 1)[:, None, None]
    )

    def turn(x):
        return np.einsum("tij,t...j->t...i", rotation, x)

    first = simulate(charges, pos, vel, frames=(0,), clip=clip, clip_at=at)
    second = simulate(charges, turn(pos), turn(vel), frames=(0,), clip=clip, clip_at=at)
    return first.clipped, np.abs(turn(first.pos) - second.pos).max((1, 2, 3))


def test_clipped_norms_keep_the_symmetry():
    clipped, error = turned("norm", 5.0)
    assert clipped.any()
    assert error.max() < 1e-9


def test_clipped_components_break_it():
    clipped, error = turned("component", 5.0)
    assert np.median(error[clipped]) > 1e-4
    clipped, error = turned("component", 1e9)  # the control: the box does harm only where it clips
    assert not clipped.any()
    assert error.max() < 1e-9


def test_published_settings():
    """Of the published set it is known that turning before and after the simulation differs, in clipped trajectories, by a median
    of 36 % of the positions in the last of its 49 frames."""
    charges, pos, vel = initial(400, 5, 0)
    rotation = Rotation.random(400, random_state=1).as_matrix()
    first = simulate(charges, pos, vel, frames=(48,))
    second = simulate(charges, pos @ rotation.swapaxes(1, 2), vel @ rotation.swapaxes(1, 2), frames=(48,))
    there = np.einsum("tij,tfnj->tfni", rotation, first.pos)
    error = np.linalg.norm(there - second.pos, axis=(2, 3)) / np.linalg.norm(there, axis=(2, 3))
    assert 0.3 < np.median(error[first.clipped]) < 0.42
    assert np.median(error[~first.clipped]) < 1e-9


def test_the_start():
    charges, pos, vel = initial(2000, 5, 0)
    assert set(np.unique(charges)) == {-1.0, 1.0}
    assert abs(charges.mean()) < 0.03
    assert abs(pos.std() - 1) < 0.02
    assert np.abs(np.linalg.norm(vel, axis=2) - 0.5).max() < 1e-12
    assert initial(2, 40, 0)[1].std() > 1.6  # (40 / 5)^(1/3) = 2
    for few, many in zip(initial(3, 5, 7), initial(900, 5, 7)):
        assert np.array_equal(few, many[:3])
    assert not np.array_equal(pos, initial(2000, 5, 1)[1])


def test_number_of_trajectories_does_not_matter():
    """Chunks of trajectories are a matter of speed alone: round-off differs, which chaos has not yet made large."""
    start = initial(300, 3, 0)
    together = simulate(*start, frames=(1,))
    for first in (249, 290, 299):
        alone = simulate(*(a[first:] for a in start), frames=(1,))
        assert np.abs(together.pos[first:] - alone.pos).max() < 1e-9
        assert np.array_equal(together.clipped[first:], alone.clipped)


def test_dataset():
    data = mq.nbody(3, start=1, end=3)
    assert mq.readers.READERS["nbody"] is nbody
    run = simulate(*initial(3, 5, 0), frames=(1, 3))
    for t, graph in enumerate(data):
        assert np.array_equal(graph.pos.numpy(), run.pos[t, 0])
        assert np.array_equal(graph.vel.numpy(), run.vel[t, 0])
        assert np.array_equal(graph.targets["moved"].numpy(), run.pos[t, 1])
        charges = torch.tensor(data.info["charges"][t], dtype=torch.float64)
        assert graph.pair_index.shape == (2, 20)
        i, j = graph.pair_index
        assert torch.equal(graph.pair_attr[:, 0], charges[i] * charges[j])
    assert data.quantities == {"moved": MOVED}
    assert data.info["clipped"] == tuple(run.clipped.tolist())
    assert data.digest == mq.nbody(3, start=1, end=3, quantities=[MOVED]).digest
    assert data.digest != mq.nbody(3, start=1, end=3, seed=1).digest


def test_faults():
    with pytest.raises(ConfigError, match="end 3 and start 3; wanted an end after"):
        nbody(2, start=3, end=3)
    with pytest.raises(ConfigError, match="no quantity .*energy.* the simulation gives .*moved"):
        nbody(2, quantities=["energy"])
    with pytest.raises(ConfigError, match=r"nbody: gravity \(0, 1\); wanted three components"):
        nbody(2, gravity=(0, 1))
    with pytest.raises(ConfigError, match="data.nbody.clip: found 'box'"):
        mq.run(
            {
                "data": {"nbody": {"trajectories": 10, "clip": "box", "split": {"train": 5, "valid": 5}}},
                "backbone": {"EGNN": {}},
                "predict": ["energy"],
                "train": {"epochs": 1},
            }
        )


def test_a_seed_in_a_file_reaches_the_simulation():
    from molequi.config.schema import read_config, read_data

    short = [
        "data.nbody.trajectories=30",
        "data.nbody.split={train: 20, valid: 10}",
        "data.test.nbody={trajectories: 4, seed: 3}",
    ]
    parts = read_data(read_config("nbody", short))
    assert torch.allclose(parts["test"][0].pos, nbody(1, seed=3)[0].pos, atol=1e-6)
    first = read_data(read_config("nbody", [*short, "data.nbody.seed=3"]))["train"]
    drawn = {origin.split(",")[1] for origin in first.origins}
    assert drawn == {" seed 3"}
    assert first.origins != parts["train"].origins


def test_gravity_and_an_axis_as_the_recipe_says():
    from molequi.config.schema import build_model, read_config, read_data

    field = [
        "data.nbody.gravity=[0, 0, 0.98]",
        "data.nbody.start=0",
        "data.nbody.end=10",
        "backbone.EGNN.axis=learned",
    ]
    config = read_config(
        "nbody",
        [
            *field,
            "data.nbody.clip=null",
            "data.nbody.trajectories=30",
            "data.nbody.split={train: 20, valid: 10}",
        ],
    )
    model, graph = build_model(config, ["X"]), read_data(config)["train"][0]
    assert model.group == "O(n-1)" and model.axis.shape == (3,)
    fallen = (graph.targets["moved"] - graph.pos).mean(0) - graph.vel.mean(
        0
    )  # of the centre of mass, in a time of 1
    assert np.abs(fallen.numpy() - [0, 0, 0.4905]).max() < 1e-4


def test_recipe_learns(tmp_path):
    """The recipe, cut short: one line from the simulator to a model that moves along with its input."""
    from molequi.config.schema import read_config

    short = [
        "data.nbody.trajectories=60",
        "data.nbody.split={train: 40, valid: 10, test: 10}",
        "train.max_minutes=null",
        "train.epochs=2",
        f"train.out={tmp_path}",
        "backbone.EGNN.channels=8",
        "train.logging.progress=false",
    ]
    result = mq.run(read_config("nbody", short))
    assert math.isfinite(result.errors["test"]["moved_rmse"])
    graph = mq.nbody(1, seed=9).connected(None)[0]
    shift = torch.tensor([3.0, -2.0, 5.0], dtype=torch.float64)
    here, there = (result.model(g)["moved"] for g in (graph, graph.replace(pos=graph.pos + shift)))
    assert torch.allclose(here.double() + shift, there.double(), atol=1e-4)
