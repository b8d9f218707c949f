"""Every structure once an epoch, limits kept, order a function of seed and epoch, workers without influence."""

import pytest
import torch

from molequi.data.batches import Batches, Loader
from molequi.errors import ConfigError
from molequi.graph import collate


@pytest.mark.parametrize("limit", [dict(batch_size=5), dict(batch_atoms=11), dict(batch_edges=30)])
def test_each_structure_once_and_limits_kept(data, limit):
    data = data.connected(4.0)
    batches = Batches(data, **limit, seed=3)
    ((name, most),) = limit.items()
    weigh = {
        "batch_size": lambda g: 1,
        "batch_atoms": lambda g: g.num_nodes,
        "batch_edges": lambda g: g.edge_index.shape[1],
    }[name]
    for epoch in range(3):
        chosen = batches.epoch(epoch)
        assert sorted(k for batch in chosen for k in batch) == list(range(len(data)))
        sizes = [sum(weigh(data[k]) for k in batch) for batch in chosen]
        assert max(sizes) <= most
        for size, nxt in zip(sizes, chosen[1:]):
            assert size + weigh(data[nxt[0]]) > most  # no batch ends before it must


@pytest.mark.parametrize(
    "limit", [dict(batch_size=5), dict(batch_atoms=11), dict(batch_size=5, shuffle=False)]
)
def test_the_first_batch_alone(data, limit):
    """Without a look at structures that are in none of it."""
    batches = Batches(data, **limit, seed=3)
    wanted = [batches.epoch(number)[0] for number in range(4)]

    class Weights(list):
        looked = 0

        def __getitem__(self, k):
            self.looked += 1
            return super().__getitem__(k)

    batches.weights = Weights(batches.weights)
    assert [batches.first(number) for number in range(4)] == wanted
    assert batches.weights.looked <= 2 * sum(len(batch) + 1 for batch in wanted) < 4 * len(data)


def test_order_depends_on_seed_and_epoch_only(data):
    a, b = Batches(data, batch_size=4, seed=1), Batches(data, batch_size=4, seed=1)
    a.epoch(7)
    assert a.epoch(2) == b.epoch(2)
    assert a.epoch(2) != a.epoch(3)
    assert a.epoch(2) != Batches(data, batch_size=4, seed=2).epoch(2)
    assert Batches(data, batch_size=4, shuffle=False).epoch(5)[0] == [0, 1, 2, 3]


def test_global_random_numbers_are_left_alone(data):
    before = torch.get_rng_state()
    Batches(data, batch_size=4).epoch(0)
    assert torch.equal(before, torch.get_rng_state())


def test_limits_that_cannot_be_met(data):
    with pytest.raises(ConfigError, match="batch_size.*batch_atoms"):
        Batches(data, batch_size=2, batch_atoms=9)
    with pytest.raises(ConfigError, match="none"):
        Batches(data)
    with pytest.raises(ConfigError, match="structure 2 alone has 5; wanted at least 5"):
        Batches(data, batch_atoms=4)


def test_shares_of_devices_make_up_the_batch(data):
    batches = Batches(data, batch_size=3, seed=1).epoch(0)[:2] + [[5]]
    shares = [list(Loader(data, ["energy"], share=(rank, 2))(batches)) for rank in range(2)]
    for batch, (whole, one), (_, two) in zip(batches, *shares):
        assert whole == batch
        assert one.num_graphs + (0 if two is None else two.num_graphs) == len(batch)
    assert shares[1][2][1] is None


def test_targets_not_asked_for_are_dropped(data):
    ((_, graph),) = Loader(data, ["energy"])([[0, 1]])
    assert list(graph.targets) == ["energy"]


def test_workers_give_the_same_batches_in_every_epoch(data):
    """FAULTS B23: the number of workers changes nothing."""
    batches = Batches(data, batch_size=7, seed=1)
    loader = Loader(data, ["energy", "forces"], workers=2)
    for epoch in range(2):
        chosen = batches.epoch(epoch)
        before = torch.get_rng_state()
        found = list(loader(chosen))
        assert torch.equal(before, torch.get_rng_state())
        assert [batch for batch, _ in found] == chosen
        for batch, graph in found:
            own = collate([data[k] for k in batch])
            assert torch.equal(graph.pos, own.pos) and torch.equal(
                graph.targets["forces"], own.targets["forces"]
            )


SCRIPT = """
import molequi as mq
print("begin", __name__)
def main():
    data = mq.read_extxyz(mq.shipped("ethanol_300K.xyz"), index=":4")
    model = mq.Model(mq.EGNN(elements=data.elements, cutoff=4.0, channels=4, layers=1), ["energy"])
    mq.fit(model, data[:2], data[2:], epochs=1, compute={"workers": 1}, logging={"progress": False})
    print("done")
"""


@pytest.mark.parametrize(
    ("end", "guarded"),
    [
        ("main()\n", False),
        ("main()\nif __name__ == '__main__':\n    print('end')\n", False),
        ("if __name__ == '__main__':\n    main()\n", True),
    ],
)
def test_workers_of_a_script_need_a_guard(tmp_path, end, guarded):
    """A worker imports the script: without a guard, one sentence and no second training."""
    import subprocess
    import sys

    (tmp_path / "script.py").write_text(SCRIPT + end)
    run = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=100
    )
    assert run.stdout.count("begin") == 1 + guarded, run.stderr
    if guarded:
        assert run.returncode == 0 and "done" in run.stdout, run.stderr
        return
    assert run.returncode == 1 and run.stderr.count("Traceback") == 1
    line = SCRIPT.count("\n") + 1
    assert (
        f"ConfigError: workers=1: each worker process imports the script {tmp_path}/script.py" in run.stderr
    )
    assert f'(line {line}); write this line under  if __name__ == "__main__":' in run.stderr
