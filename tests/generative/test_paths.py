"""Data of flow matching: what lies on a path, and what the training draws anew."""

import math

import pytest
import torch

import molequi as mq
from molequi.errors import ConfigError, DataError, ModelError
from molequi.generative import Flow, FlowMatching, paths, read_paths
from molequi.generative.flow import HIDDEN, times_of
from molequi.generative.paths import Ends, draw, ends_of
from molequi.graph import collate

from .flow_kit import QUIET, flow_model


def test_points_lie_on_straight_paths_to_the_structures(waters):
    data = paths(waters, "molecules", seed=3)
    for point, water in zip(data, waters):
        back = ends_of(Flow.of(data.reading), point).graph
        assert torch.allclose(back.pos, water.pos - water.pos.mean(0), atol=1e-12)
        assert torch.equal(back.z, water.z)
    times = torch.cat([times_of(g) for g in data])
    assert 0 <= float(times.min()) < float(times.max()) <= 0.98


def test_noise_and_hidden_elements_have_the_declared_distribution(waters):
    flow = Flow(task="molecules", scale=2.0, elements=(1, 8), sizes={"3": 1}, end=0.98)
    ends = Ends(collate([waters[0].replace(pos=waters[0].pos - waters[0].pos.mean(0))] * 4000))
    states = draw(flow, ends, torch.Generator().manual_seed(0), coupled=False)
    time, velocity = times_of(states)[states.batch], states.targets["flow_velocity"]
    noise = states.pos - time[:, None] * velocity
    # A third of the variance is that of the center, which is subtracted; 3σ of the estimate.
    assert abs(float(noise.var()) / (4 * 2 / 3) - 1) < 3 * math.sqrt(2 / 24000)
    hidden = (states.z == HIDDEN).double()
    assert abs(float((hidden - (1 - time)).mean())) < 3 * 0.5 / math.sqrt(12000)
    assert torch.equal(states.targets["flow_element"].isnan(), hidden == 0)


def test_each_step_draws_new_points_to_the_same_ends(waters):
    data = paths(waters, "molecules")

    class Seen(mq.Hook):
        def transform(self, run, batch):
            seen.append((batch.number, batch.graph))

    seen = []
    mq.fit(
        flow_model(data),
        data[:8],
        data[8:],
        epochs=2,
        batch_size=8,
        terms=[FlowMatching(), Seen()],
        logging=QUIET,
    )
    (_, first), (_, second) = seen
    assert [number for number, _ in seen] == [0, 1] and not torch.allclose(times_of(first), times_of(second))
    ends = [torch.sort(ends_of(Flow.of(data.reading), g).graph.pos.norm(dim=1)).values for _, g in seen]
    assert torch.allclose(*ends, atol=1e-9)


def test_an_estimate_is_an_input_and_no_gradient_flows_through_it(waters):
    """In the steps with self-conditioning the network reads its own estimate."""
    data = paths(waters, "molecules")
    seen = []

    class Seen(mq.Hook):
        def transform(self, run, batch):
            seen.append(batch.graph)

    mq.fit(
        flow_model(data), data[:8], data[8:], epochs=4, batch_size=4, terms=[FlowMatching(), Seen()], logging=QUIET
    )  # fmt: skip
    estimates = [graph for graph in seen if bool(graph.vec.any())]
    assert 0 < len(estimates) < len(seen)
    assert not any(graph.vec.requires_grad or graph.x.requires_grad for graph in seen)


def test_a_training_that_was_interrupted_ends_with_the_same_weights(waters, tmp_path):
    data = paths(waters, "molecules")

    def run(epochs, out):
        return mq.fit(
            flow_model(data),
            data[:8],
            data[8:],
            epochs=epochs,
            batch_size=4,
            terms=[FlowMatching()],
            logging=QUIET,
            schedule="constant",
            out=out,
            resume="force" if out.exists() else "auto",
        ).model

    whole = run(3, tmp_path / "whole")
    run(1, tmp_path / "parts")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), run(3, tmp_path / "parts").parameters()))


def test_relaxation_leads_from_the_unrelaxed_structure_to_the_nearest_image():
    cell = torch.eye(3, dtype=torch.float64) * 5
    start = torch.tensor([[0.1, 0, 0], [2.5, 2.5, 2.5]], dtype=torch.float64)
    moved = torch.tensor(
        [[4.9, 0, 0], [2.7, 2.5, 2.5]], dtype=torch.float64
    )  # -0.2 across the boundary, and 0.2
    q = mq.Quantity("relaxed", per="node", rank=1, point=True)
    graph = mq.Graph.single(start, ["B", "N"], cell=cell, pbc=True, targets={"relaxed": moved})
    data = paths(mq.Dataset([graph] * 2, quantities={"relaxed": q}), "relaxation")
    velocity = data[0].targets["flow_velocity"]
    assert torch.allclose(
        velocity, torch.tensor([[-0.2, 0, 0], [0.2, 0, 0]], dtype=torch.float64), atol=1e-12
    )
    ends = ends_of(Flow.of(data.reading), data[0])
    assert torch.allclose(ends.start, start, atol=1e-12)
    assert torch.allclose(ends.graph.pos, start + velocity, atol=1e-12)


def test_a_file_is_read_with_its_options():
    data = read_paths(mq.shipped("molecules.npz"), "conformers", index=":3")
    assert len(data) == 3 and data.reading["flow"]["task"] == "conformers"


def test_what_does_not_fit_is_refused(waters):
    periodic = mq.Graph.single([[0, 0, 0]], ["H"], cell=[[3, 0, 0], [0, 3, 0], [0, 0, 3]], pbc=True)
    with pytest.raises(DataError, match="is periodic; molecules and conformers are generated in open space"):
        paths([periodic], "molecules")
    with pytest.raises(DataError, match="2 dimensions; flows are made in 3"):
        paths([mq.Graph.single([[0, 0], [1, 0]])], "molecules")
    with pytest.raises(DataError, match="no bonds; conformers need the molecular graph"):
        paths(waters, "conformers")
    with pytest.raises(DataError, match="no relaxed positions 'relaxed'; found none"):
        paths(waters, "relaxation")
    with pytest.raises(
        ModelError, match="found no declaration of a flow; wanted a model that was trained on paths"
    ):
        Flow.of(mq.Model(mq.EGNN(elements=["H"]), ["energy"]))
    with pytest.raises(
        mq.errors.ConfigError, match="the model predicts energy; flow matching trains the velocity"
    ):
        mq.fit(
            mq.Model(mq.EGNN(elements=["H"]), ["energy"]), waters, waters, epochs=1, terms=[FlowMatching()]
        )
    plain = flow_model(paths(waters, "molecules"))
    with pytest.raises(ModelError, match="depends on the time, the first column of Graph.x"):
        plain.heads["flow_velocity"](waters[0], None)


def test_elements_are_those_of_the_flow_whatever_is_hidden(waters):
    for seed in range(20):  # of two molecules, an element is hidden everywhere now and then
        assert paths(waters[:2], "molecules", seed=seed).elements == (HIDDEN, 1, 8)
    data = paths(waters, "molecules")
    with pytest.raises(ConfigError, match="the train data have X and the model knows only"):
        run_for(data, flow_model(data, elements=["H", "O", "C"]), data[8:])


def run_for(data, model, valid):
    return mq.fit(model, data[:8], valid, epochs=1, batch_size=8, terms=[FlowMatching()], logging=QUIET)


def test_parts_have_one_flow(waters):
    data = paths(waters[:8], "molecules")
    small = [mq.Graph.single(0.9 * g.pos, g.z) for g in waters[8:]]
    alike = paths(small, "molecules", like=data)
    assert alike.reading["flow"]["scale"] == data.reading["flow"]["scale"]
    run_for(data, flow_model(data), alike)
    with pytest.raises(
        ConfigError, match=r"valid data are paths with scale=0.\d+, and the training data with"
    ):
        run_for(data, flow_model(data), paths(small, "molecules"))
    methane = mq.Graph.single(torch.randn(3, 3, dtype=torch.float64), ["C", "H", "H"])
    with pytest.raises(DataError, match="these data have C, which the paths of like lack"):
        paths([methane], "molecules", like=data)
    with pytest.raises(ConfigError, match="scale and self_conditioning are those of like"):
        paths(small, "molecules", like=data, scale=1.0)
    with pytest.raises(ConfigError, match="paths of 'molecules'; wanted those of 'conformers'"):
        paths(mq.read_npz(mq.shipped("molecules.npz"), index=":2"), "conformers", like=data)


@pytest.mark.parametrize(
    ("task", "options", "said"),
    [
        ("molecule", {}, "paths.task: found 'molecule' .str.; wanted .*; did you mean 'molecules'"),
        ("molecules", {"scale": 0}, "scale=0: molecules begin with noise"),
        ("molecules", {"scale": -1.0}, "paths.scale: found -1.0"),
        ("molecules", {"seed": -1}, "paths.seed: found -1"),
        ("molecules", {"seed": 1.5}, "paths.seed: found 1.5"),
        ("molecules", {"seed": 2**62}, "paths.seed: found 4611686018427387904"),
        ("molecules", {"relaxed": "end"}, "paths.relaxed='end' has no effect: the task is 'molecules'"),
    ],
)
def test_values_of_paths_are_checked(waters, task, options, said):
    with pytest.raises(ConfigError, match=said):
        paths(waters, task, **options)


def test_molecules_of_one_element_are_refused():
    pair = mq.Graph.single([[0, 0, 0], [0, 0, 1.1]], ["N", "N"])
    with pytest.raises(ConfigError, match="elements: found N; 'molecules' generates the elements, a choice"):
        paths([pair], "molecules")


def test_the_nearest_image_in_a_skewed_cell_and_in_a_slab():
    cell = torch.tensor([[4.0, 0, 0], [3.6, 1.5, 0], [0, 0, 0]], dtype=torch.float64)
    q = mq.Quantity("relaxed", per="node", rank=1, point=True)
    steps = torch.cartesian_prod(*[torch.arange(-4, 5, dtype=torch.float64)] * 2)
    generator = torch.Generator().manual_seed(0)
    for third, pbc in (([0, 0, 0], [True, True, False]), ([1.0, 2.0, 5.0], True)):
        cell[2] = torch.tensor(third, dtype=torch.float64)
        start, end = (4 * torch.rand(9, 3, generator=generator, dtype=torch.float64) for _ in range(2))
        end[:, 2] = start[:, 2]
        graph = mq.Graph.single(start, ["B"] * 9, cell=cell, pbc=pbc, targets={"relaxed": end})
        data = paths(mq.Dataset([graph], quantities={"relaxed": q}), "relaxation")
        images = (end - start)[:, None] + steps @ cell[:2]  # in the plane, all images that could be near
        nearest = images[range(9), images.norm(dim=2).argmin(1)]
        assert torch.allclose(data[0].targets["flow_velocity"], nearest - nearest.mean(0), atol=1e-9)
