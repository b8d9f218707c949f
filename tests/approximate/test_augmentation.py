"""Augmentation: labels follow the structures, draws are those of the step, and a network learns the symmetry from them."""

import dataclasses

import pytest
import torch

import molequi as mq
from molequi.approximate import Augmentation
from molequi.approximate.equivariance_errors import equivariance_errors
from molequi.config.names import Names
from molequi.config.train import read_train
from molequi.errors import ConfigError
from molequi.graph import Graph
from molequi.hooks import Batch, Hook


def transformer(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = mq.Transformer(elements=["H", "O"], channels=8, layers=1, cutoff=4.0)
        return mq.Model(backbone, ["energy", "forces"])


@dataclasses.dataclass
class Run:
    """What the term sees of a training."""

    model: mq.Model
    parts: dict
    seed: int = 0
    share: tuple[int, int] = (0, 1)


def drawn(data, number, term=Augmentation(), share=(0, 1)):
    run = Run(transformer(), {"train": data}, share=share)
    mine = [data[k] for k in range(share[0], len(data), share[1])]
    batch = Batch(number, data.counts.tolist(), mq.collate(mine), None)
    return batch.graph, term.start(run).transform(run, batch)


def test_structures_are_rotated_and_labels_follow(data):
    before, after = drawn(data, 3)
    for k in range(len(data)):
        rows = before.batch == k
        x, y = (g.pos[rows].double() - g.pos[rows].double().mean(0) for g in (before, after))
        u, _, v = torch.linalg.svd(x.T @ y)
        turn = u @ torch.diag(torch.tensor([1.0, 1.0, torch.det(u @ v)], dtype=torch.float64)) @ v
        if torch.linalg.matrix_rank(x, atol=1e-3) < 3:  # planar: a mirror is no change
            continue
        assert torch.det(turn) > 0 and torch.allclose(x @ turn, y, atol=1e-9)
        force = before.targets["forces"][rows].double() @ turn
        assert torch.allclose(force, after.targets["forces"][rows].double(), atol=1e-9)
        assert not torch.allclose(x, y, atol=0.1)  # control: it moved
    assert torch.equal(before.targets["energy"], after.targets["energy"])


def test_draws_depend_on_the_step_alone_and_devices_share_them(data):
    _, whole = drawn(data, 3)
    assert torch.equal(whole.pos, drawn(data, 3)[1].pos)
    assert not torch.allclose(whole.pos, drawn(data, 4)[1].pos)
    _, part = drawn(data, 3, share=(1, 2))
    expected = torch.cat([whole.pos[whole.batch == k] for k in range(1, len(data), 2)])
    assert torch.allclose(part.pos, expected)


def test_all_symmetries_can_be_drawn(data):
    before, after = drawn(data, 0, Augmentation(["reflection", "translation", "permutation"], shift=2.0))
    distances = [torch.pdist(g.pos[g.batch == 2].double()).sort().values for g in (before, after)]
    assert torch.allclose(*distances, atol=1e-9)
    assert (before.pos.mean(0) - after.pos.mean(0)).norm() > 0.1


def test_a_strict_network_learns_the_same(parts, make, quick):
    losses = []
    for terms in ([], [Augmentation()]):
        result = mq.fit(make.tiny(), **parts, **quick, terms=terms, compute={"precision": "float64"})
        losses.append(result.history[-1]["valid_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_free_network_learns_the_symmetry(parts, quick):
    errors = {}
    for name, terms in (("upright", []), ("rotated", [Augmentation()])):
        model = transformer()
        mq.fit(model, **parts, **quick | {"epochs": 40}, lr=1e-2, terms=terms)
        found = equivariance_errors(model, parts["valid"], symmetries=["rotation"])
        errors[name] = found["rotation", "forces"].rmse_transformed
    assert errors["rotated"] < 0.8 * errors["upright"]


def test_a_continued_training_is_the_same(parts, quick, tmp_path):
    """Interrupted after the first epoch by an error of a second term."""

    class Stop(Hook):
        def epoch_values(self, run):
            if run.epoch == 1 and not (tmp_path / "second").exists():
                raise KeyboardInterrupt
            return {}

    options = quick | {"epochs": 3, "terms": [Augmentation(), Stop()]}
    with pytest.raises(KeyboardInterrupt):
        mq.fit(transformer(), **parts, **options, out=tmp_path / "run")
    (tmp_path / "second").touch()
    again = mq.fit(transformer(), **parts, **options, out=tmp_path / "run")
    whole = mq.fit(transformer(), **parts, **options)
    assert again.history[-1]["valid_loss"] == whole.history[-1]["valid_loss"]


def test_a_run_file_names_it():
    (term,) = read_train({"epochs": 1, "terms": ["Augmentation"]}, Names()).terms
    assert term == Augmentation()
    (term,) = read_train({"epochs": 1, "terms": [{"Augmentation": {"group": "Oh"}}]}, Names()).terms
    assert term.group == "Oh"


@pytest.mark.parametrize(
    "options,message",
    [
        ({"symmetries": []}, "Augmentation: symmetries is empty; name what is drawn"),
        (
            {"symmetries": ["rotations"]},
            r"symmetries: found \['rotations'\] .*wanted 'rotation', 'reflection'",
        ),
        ({"shift": 1.0}, "shift=1.0 is for translations; add 'translation' to symmetries"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ConfigError, match=message):
        Augmentation(**options)


def test_a_group_without_such_elements_is_refused_before_the_training(parts, quick):
    with pytest.raises(ConfigError, match="reflection is asked for, and the group .* has none"):
        mq.fit(transformer(), **parts, **quick, terms=[Augmentation(["reflection"], group="SO(n)")])


def test_a_hook_changes_the_batch_that_the_model_sees(parts, make, quick):
    seen = []

    class Shift(Hook):
        def transform(self, run, batch):
            return batch.graph.replace(pos=batch.graph.pos + 7.0)

        def penalty(self, run, batch):
            seen.append(float(batch.graph.pos.mean()))

    mq.fit(make.tiny(), **parts, **quick, terms=[Shift()])
    assert min(seen) > 6.0 and len(seen) == 8
    wrong = type("Wrong", (Hook,), {"transform": lambda self, run, batch: batch.graph.pos})
    with pytest.raises(ConfigError, match="Wrong.transform: found Tensor; wanted None, or a Graph"):
        mq.fit(make.tiny(), **parts, **quick, terms=[wrong()])
    assert isinstance(parts["train"][0], Graph)
