import math

import numpy as np
import pytest
import torch

from molequi.errors import DataError
from molequi.graph import Graph, collate, separate
from molequi.neighbors import connect


def water(**given) -> Graph:
    return Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], [8, 1, 1], **given)


def test_single_graph_is_a_batch_of_one():
    graph = water(charge=1, spin=2)
    assert (graph.num_graphs, graph.num_nodes, graph.dim) == (1, 3, 3)
    assert (
        graph.pos.dtype == torch.float64 and graph.charge.tolist() == [1.0] and graph.spin.tolist() == [2.0]
    )


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Graph.single([[0.0, 0.0, float("nan")]]), "position of atom 0"),
        (lambda: Graph.single(torch.zeros(0, 3)), "without atoms"),
        (lambda: Graph.single([0.0, 1.0]), r"wanted \(N, D\)"),
        (lambda: Graph.single([[0.0, 0, 0]], [1, 2]), "atomic numbers of shape"),
        (lambda: Graph.single([[0.0, 0, 0]], pbc=True), "needs a lattice vector"),
        (
            lambda: Graph.single([[0.0, 0, 0]], cell=torch.zeros(3, 3), pbc=[True, False, False]),
            "needs a lattice vector",
        ),
        (lambda: Graph.single([[0.0, 0, 0]], cell=torch.eye(2), pbc=True), "cell of shape"),
        (
            lambda: Graph.single([[0.0, 0, 0]], cell=[[1.0, 0, 0], [2.0, 0, 0], [0, 0, 1.0]], pbc=True),
            "needs a lattice vector",
        ),
        (lambda: Graph.single([[0.0, 0, 0]], cell=torch.full((3, 3), float("inf")), pbc=True), "non-finite"),
        (lambda: water().edge_vectors(), "no edges yet"),
        (lambda: collate([]), "empty"),
        (lambda: collate([water(), connect(water(), 2.0)]), "connected"),
        (lambda: collate([water(charge=1), water()]), "'charge'"),
        (lambda: collate([water(), Graph.single([[0.0, 0.0]])]), "dimensions"),
        (lambda: water(vel=[[0.0, 0, 0]]), r"vel of shape \(1, 3\) for 3 nodes .*wanted \(3, 3\)"),
        (lambda: water(vec=torch.zeros(3, 1, 2)), r"vec of shape .*wanted \(3, any, 3\)"),
        (lambda: water(x=[[1.0], [float("nan")], [0.0]]), "x has entries that are not finite"),
        (lambda: water(pair_index=[[0, 1], [1, 0]]), "belong together"),
        (lambda: water(pair_index=[[0, 1], [1, 0]], pair_attr=[[1.0]]), r"wanted \(2, B\) and \(B, A\)"),
        (lambda: water(pair_index=[[0, 3], [3, 0]], pair_attr=[[1.0], [1.0]]), "nodes 0 to 3; there are 3"),
        (lambda: water(pair_index=[[0], [1]], pair_attr=[[1.0]]), "in one direction only"),
        (
            lambda: water(pair_index=[[0, 1], [1, 0]], pair_attr=[[1.0], [2.0]]),
            "with other values in the other",
        ),
        (lambda: water(pair_index=[[0, 0], [1, 1]], pair_attr=[[1.0], [1.0]]), "lists a pair twice"),
        (lambda: collate([connect(water(), 2.0), connect(water(), 2.0, 1)]), "k=1 and graph 0 with k=None"),
        (lambda: collate([water(vec=torch.ones(3, 1, 3)), water()]), "'vec'"),
        (lambda: collate([water(), water().replace(targets={"energy": torch.zeros(1)})]), "targets"),
    ],
)
def test_bad_graphs_are_refused(make, words):
    with pytest.raises(DataError, match=words):
        make()


def test_symbols_are_elements_too():
    assert Graph.single([[0.0, 0, 0], [0.96, 0, 0]], ["O", "H"]).z.tolist() == [8, 1]


@pytest.mark.parametrize("z", [torch.tensor([7.9, 1]), np.array([-3, 1]), torch.tensor([119, 1])])
def test_numbers_that_are_no_element_are_refused(z):
    with pytest.raises(
        DataError, match=r"atomic number .*; wanted whole numbers from 0 \(a plain point\) to 118"
    ):
        Graph.single([[0.0, 0, 0], [1, 0, 0]], z)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"pos": None}, r"pos is None \(NoneType\); wanted numbers"),
        ({"pos": [[0, 0, 0], [1, 0]]}, "pos is .*wanted numbers"),
        ({"pos": [[0.0, 0, 0]], "z": ["H"], "charge": "a"}, r"charge is a \(str\); wanted numbers"),
        ({"pos": [[0.0, 0, 0]], "vel": "x"}, "vel is x"),
        ({"pos": [[0.0, 0, 0]], "cell": "a", "pbc": True}, "cell is a"),
        ({"pos": [[0.0, 0, 0]], "pbc": [True, False]}, r"pbc of shape \(2,\); wanted one truth value, or 3"),
        ({"pos": [[0.0, 0, 0]], "targets": 5}, r"targets is 5 \(int\); wanted labels by name"),
        ({"pos": [[0.0, 0, 0]], "z": "H"}, r"z is H \(str\); wanted numbers"),
    ],
)
def test_values_that_are_no_numbers_are_refused(values, words):
    with pytest.raises(DataError, match=words):
        Graph.single(**values)


def test_symbols_in_an_array_are_elements():
    assert Graph.single([[0.0, 0, 0], [1, 0, 0]], np.array(["H", "O"])).z.tolist() == [1, 8]


def test_a_target_with_rows_of_neither_kind_cannot_be_taken_apart():
    batch = collate([water(), water()]).replace(targets={"other": torch.zeros(5)})
    with pytest.raises(DataError, match="'other' has 5 rows; wanted 6, one per node, or 2, one per graph"):
        separate(batch)


def test_collate_and_separate_are_inverse():
    periodic = Graph.single([[0.1, 0.2, 0.3]], [14], cell=3 * torch.eye(3), pbc=True)
    parts = [
        connect(g, 4.0).replace(targets={"energy": torch.rand(1), "forces": torch.rand(g.num_nodes, 3)})
        for g in (water(), periodic, water(), Graph.single([[0.0, 0, 0]], [1]))
    ]
    batch = collate(parts)
    assert batch.num_graphs == 4 and batch.counts.tolist() == [3, 1, 3, 1] and batch.cutoff == 4.0
    assert (batch.edge_index[1].diff() >= 0).all(), "edges must stay sorted by receiver"
    again = separate(batch)
    for a, b in zip(parts, again):
        assert torch.equal(a.pos, b.pos) and torch.equal(a.edge_index, b.edge_index)
        assert torch.equal(a.edge_vectors(), b.edge_vectors())
        assert all(torch.equal(a.targets[k], b.targets[k]) for k in a.targets)


def test_strain_derivative_of_a_spring_is_its_virial():
    graph = connect(
        Graph.single([[0.0, 0, 0], [1.0, 2.0, 0.5]], [1, 1], cell=9 * torch.eye(3), pbc=True), 4.0
    )
    strain = torch.zeros(1, 3, 3, dtype=torch.float64, requires_grad=True)
    energy = (
        0.25 * graph.strained(strain).edge_vectors().square().sum()
    )  # two directed edges of one pair: r²/2
    (virial,) = torch.autograd.grad(energy, strain)
    r = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    assert torch.allclose(virial[0], torch.outer(r, r))


def test_all_pairs_have_no_cutoff():
    assert connect(water(), None).cutoff == math.inf and connect(water(), None).edge_index.shape == (2, 6)


def test_given_pairs_and_vectors_survive_batches_and_come_apart_again():
    pairs = {"pair_index": [[0, 1], [1, 0]], "pair_attr": [[1.0, 2.0], [1.0, 2.0]]}
    first = water(vec=torch.randn(3, 2, 3), x=torch.randn(3, 4), **pairs)
    second = water(
        vec=torch.randn(3, 2, 3),
        x=torch.randn(3, 4),
        pair_index=[[2, 0], [0, 2]],
        pair_attr=[[3.0, 4.0], [3.0, 4.0]],
    )
    none = water(
        vec=torch.randn(3, 2, 3),
        x=torch.randn(3, 4),
        pair_index=torch.zeros(2, 0),
        pair_attr=torch.zeros(0, 2),
    )
    batch = collate([first, none, second])
    assert batch.pair_index.tolist() == [[0, 1, 8, 6], [1, 0, 6, 8]]
    for whole, part in zip((first, none, second), separate(batch)):
        for name in ("vec", "x", "pair_index", "pair_attr"):
            assert torch.equal(getattr(whole, name), getattr(part, name))
    # the same edges with the same features, whether connected before or after
    after, before = connect(batch, 2.0), collate([connect(g, 2.0) for g in (first, none, second)])
    assert torch.equal(after.edge_index, before.edge_index) and torch.equal(after.edge_attr, before.edge_attr)
    listed = {tuple(e): a.tolist() for e, a in zip(after.edge_index.T.tolist(), after.edge_attr)}
    assert listed[0, 1] == [1.0, 2.0] and listed[6, 8] == [3.0, 4.0] and listed[0, 2] == [0.0, 0.0]


def test_a_permutation_takes_pairs_along():
    from molequi.symmetry import Transform

    graph = water(pair_index=[[0, 1], [1, 0]], pair_attr=[[1.0], [1.0]])
    moved = Transform.single(
        rotation=torch.eye(3, dtype=torch.float64), permutation=torch.tensor([2, 0, 1])
    ).graph(graph)
    j, i = moved.pair_index[:, 0].tolist()
    assert {int(moved.z[j]), int(moved.z[i])} == {8, 1} and float(
        (moved.pos[j] - moved.pos[i]).norm()
    ) == 0.96


def test_a_graph_cannot_be_assigned_to_and_lightning_says_so():
    """Lightning assigns to batches for 64-true; what the message advises works in the same Trainer."""
    import copy
    import pickle
    import warnings

    from molequi import PaiNN
    from molequi.errors import ImmutableError
    from molequi.graph import collate
    from molequi.model import Model

    torch.manual_seed(0)
    graphs = [Graph.single(torch.tensor([[0.0, 0, 0], [0.9 + 0.1 * k, 0, 0]]), [1, 1]) for k in range(2)]
    with pytest.raises(
        ImmutableError, match=r"pos cannot be assigned; write graph = graph.replace\(pos=...\)"
    ):
        graphs[0].pos = graphs[1].pos
    with pytest.raises(AttributeError):
        graphs[0].other = 1
    assert torch.equal(pickle.loads(pickle.dumps(graphs[0])).pos, copy.deepcopy(graphs[0]).pos)
    lightning = pytest.importorskip("lightning")
    from torch.utils.data import DataLoader

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Model(PaiNN(elements=["H"], cutoff=3.0, channels=4, layers=1), ["energy"])

        def training_step(self, batch, _):
            return self.model(batch)["energy"].square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    def fit(precision, module):
        options = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", precision=precision, **options)
        trainer.fit(module, DataLoader(graphs, 2, collate_fn=collate))

    connected = [connect(g, 3.0) for g in graphs]
    graphs = connected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of Lightning about its settings
        for precision in ("64-true", "bf16-true"):
            with pytest.raises(ImmutableError, match="use precision='32-true' with model.to.torch.float64"):
                fit(precision, Module())
        fit("32-true", Module().to(torch.float64))
        fit("bf16-mixed", Module())
