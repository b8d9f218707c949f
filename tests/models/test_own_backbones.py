"""Mistakes in backbones of the user's own are explained."""

import numpy as np
import pytest
import torch

import molequi as mq
from molequi.errors import ConfigError, ModelError
from molequi.nn.radial import edges_of


class Own(mq.Backbone):
    """Number of neighbors, and a vector."""

    group = "O(n)"

    def __init__(self, *, elements, cutoff: float = 3.0):
        super().__init__(elements=elements, cutoff=cutoff)
        self.out = {"0e": 1, "1o": 1}

    def blocks(self, edges):
        return {"0e": edges.coordination[:, None, None], "1o": edges.sum(edges.vector)[:, None]}

    def forward(self, graph):
        edges = edges_of(graph, self.cutoff, self.dtype)
        return mq.Features(blocks=self.blocks(edges), coordination=edges.coordination)


def water():
    return mq.connect(mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], [8, 1, 1]), 3.0)


def changed(out=None, group="O(n)", blocks=None, forward=None):
    class Changed(Own):
        def __init__(self, *, elements, cutoff: float = 3.0):
            super().__init__(elements=elements, cutoff=cutoff)
            self.out = self.out if out is None else out

    Changed.group = group
    if blocks:
        Changed.blocks = lambda self, edges: blocks(Own.blocks(self, edges))
    if forward:
        Changed.forward = lambda self, graph: forward(Own.forward(self, graph))
    return Changed(elements=["H", "O"])


def test_control():
    assert mq.Model(changed(), ["energy", "forces", "dipole"])(water())["dipole"].shape == (1, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": {}}, r"Changed\.out: found \{\}; wanted the number of channels of each irrep"),
        ({"out": "8x0e"}, r"Changed\.out: found '8x0e'; wanted the number of channels"),
        ({"out": {"0e": 1, "q7": 1}}, r"Changed\.out: found the key 'q7'; wanted a degree and a parity"),
        ({"out": {"0e": 8.0}}, r"Changed\.out\['0e'\]: found 8\.0; wanted a number of channels"),
        ({"group": None}, r"Changed\.group: found None; wanted the name of the symmetry group"),
        ({"group": "E(3)x"}, r"Changed\.group: group 'E\(3\)x' is not known"),
    ],
)
def test_declarations(changes, message):
    with pytest.raises(ModelError, match=message):
        mq.Model(changed(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"blocks": lambda b: {"0e": b["0e"]}},
            r"returned blocks 0e; wanted '1o' too, since out declares it",
        ),
        ({"blocks": lambda b: b | {"2e": b["1o"]}}, r"returned the block '2e', which out does not declare"),
        (
            {"blocks": lambda b: b | {"1o": b["1o"].mT}},
            r"'1o' has the shape \(3, 3, 1\).*wanted .* = \(3, 1, 3\)",
        ),
        (
            {"blocks": lambda b: b | {"0e": b["0e"].double()}},
            r"the type torch\.float64; wanted .* torch\.float32",
        ),
        ({"forward": lambda f: f.blocks}, r"returned dict; wanted mq\.Features"),
        (
            {"forward": lambda f: mq.Features(blocks=f.blocks, coordination=torch.zeros(9))},
            r"coordination is \(9,\); wanted the smooth number of neighbors of each node, shape \(3,\)",
        ),
    ],
)
def test_features(changes, message):
    with pytest.raises(ModelError, match=message):
        mq.Model(changed(**changes), ["energy"])(water())


def test_options_that_a_file_cannot_give_back():
    class Sizes(Own):
        def __init__(self, *, elements, size: tuple[int, int] = (1, 2)):
            super().__init__(elements=elements)

    with pytest.raises(
        ModelError, match=r"Sizes could not be built again from its file.*Sizes\.size: found \[1, 2\]"
    ):
        mq.Model(Sizes(elements=["H", "O"])).hparams


def test_options_of_a_constructor_with_keywords_are_kept(tmp_path):
    class Wider(mq.EGNN):
        def __init__(self, *, width: int = 4, **options):
            super().__init__(channels=2 * width, **options)
            self.width = width

    model = mq.Model(Wider(width=3, elements=["H", "O"], cutoff=3.0, layers=1))
    assert model.backbone.hparams == {"width": 3, "elements": [1, 8], "cutoff": 3.0, "layers": 1}
    mq.save(model, tmp_path / "m.safetensors")
    loaded = mq.load(tmp_path / "m.safetensors", backbones={"Wider": Wider})
    assert loaded.backbone.width == 3 and torch.equal(
        loaded(water())["energy"], model.eval()(water())["energy"]
    )


@pytest.mark.parametrize("cutoff", [0, -1.0, float("nan"), float("inf")])
def test_a_cutoff_that_no_edge_can_be_shorter_than(cutoff):
    wanted = "a distance in Å above zero" if abs(cutoff) <= 1 else "a finite number"
    with pytest.raises((ModelError, ConfigError), match=rf"Own\.cutoff: found {cutoff!r}.*; wanted {wanted}"):
        Own(elements=["H"], cutoff=cutoff)


@pytest.mark.parametrize("cutoff", [3, 0.5, np.float32(3.0)])
def test_cutoffs_that_are_taken(cutoff):
    assert Own(elements=["H"], cutoff=cutoff).cutoff == float(cutoff)
