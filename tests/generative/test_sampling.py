"""Samples: the exact flow of a Gaussian, reproducibility, interruptions, files, guidance."""

import copy

import pytest
import torch
from ase.build import molecule

import molequi as mq
from molequi.errors import ConfigError, DataError
from molequi.generative import Guidance, conformer_quality, read_samples, samples, sampling
from molequi.generative.flow import Flow
from molequi.generative.integrate import Sampler
from molequi.generative.stereo import graph_of, graphs_of
from molequi.heads import Head


class GaussianFlow(Head):
    """The velocity between normal distributions of variance 1 and s² (s = 3), which is linear in x:

    E[x_1 - x_0 | x_t] = (t s² - (1 - t)) / ((1 - t)² + t² s²) x_t.
    """

    rank, kind = 1, "value"

    def make(self, channels):
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, graph, features):
        t = graph.x[:, :1]
        return (9 * t - (1 - t)) / ((1 - t) ** 2 + 9 * t**2) * graph.pos


def gaussian_samples(steps, integrator):
    """Positions at the last time before the end divided by those at the beginning."""
    flow = Flow(task="relaxation", scale=1.0, end=0.9, self_conditioning=False)
    velocity = mq.heads.Velocity().quantity
    inputs = mq.Inputs(node_features=1)
    model = mq.Model(mq.EGNN(elements=["H"], inputs=inputs, channels=4, layers=1), [GaussianFlow(velocity)])
    noise = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    graph = mq.Graph.single(noise - noise.mean(0), ["H"] * 20)
    sampler = Sampler(model.double(), flow, graph, steps=steps, integrator=integrator, draws=lambda: None)
    while sampler.left > 1:
        sampler.step()
    return sampler.graph.pos / graph.pos


@pytest.mark.parametrize(("integrator", "order"), [("euler", 1), ("heun", 2)])
def test_the_flow_of_a_gaussian_stretches_noise_and_converges_with_the_order(integrator, order):
    exact = (0.1**2 + 0.9**2 * 9) ** 0.5  # standard deviation at t = 0.9
    errors = [float((gaussian_samples(n + 1, integrator) - exact).abs().max()) for n in (20, 40)]
    assert errors[1] < 0.1 * exact
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.2)


@pytest.mark.parametrize("eta", [0.0, 10.0])
def test_as_many_elements_are_hidden_as_the_time_says_whether_or_not_they_are_hidden_again(molecules, eta):
    flow = Flow.of(molecules)
    graph = mq.collate([mq.Graph.single(torch.randn(3, 3), torch.zeros(3, dtype=torch.int64))] * 400)
    generator = torch.Generator().manual_seed(0)
    sampler = Sampler(
        molecules, flow, graph, steps=50, integrator="euler", remasking=eta,
        draws=lambda: torch.rand(1200, 3, generator=generator),
    )  # fmt: skip
    again = 0
    while sampler.left > 1:
        before = sampler.graph.z
        sampler.step()
        again += int(((before != 0) & (sampler.graph.z == 0)).sum())
        hidden = float((sampler.graph.z == 0).double().mean())
        assert abs(hidden - (1 - sampler.grid[sampler.done])) < 4 * 0.5 / 1200**0.5  # 4 σ of a binomial
    assert (again > 0) == (eta > 0)
    sampler.step()
    assert not bool((sampler.graph.z == 0).any())


def test_the_same_seed_gives_the_same_structures(molecules):
    first, again, other = (mq.sample(molecules, 5, steps=4, seed=s, progress=False) for s in (0, 0, 1))
    assert all(torch.equal(a.pos, b.pos) and torch.equal(a.z, b.z) for a, b in zip(first, again))
    assert not torch.allclose(first[0].pos, other[0].pos)
    alone = mq.sample(molecules, 5, steps=4, batch_size=2, progress=False)  # noise is that of each structure
    assert all(torch.allclose(a.pos, b.pos, atol=1e-4) for a, b in zip(first, alone))
    assert {*first[0].z.tolist()} <= {1, 8}
    assert mq.sample(molecules, 1, steps=1, atoms=7, progress=False)[0].num_nodes == 7


def test_files_come_back(molecules, tmp_path):
    found = mq.sample(molecules, 3, steps=4, progress=False)
    for name, digits in (("a.sdf", 1e-4), ("b.xyz", 1e-7)):
        back = read_samples(found.write(tmp_path / name))
        assert all(
            torch.allclose(a.pos, b.pos, atol=digits) and torch.equal(a.z, b.z) for a, b in zip(found, back)
        )
    with pytest.raises(ConfigError, match="wanted a name with .sdf, .xyz or .extxyz"):
        found.write(tmp_path / "a.cif")
    assert len(found.dataset) == 3 and "3 samples (molecules)" in str(found)


def test_an_interrupted_call_continues_bit_for_bit(molecules, tmp_path, monkeypatch):
    whole = mq.sample(molecules, 6, steps=3, batch_size=2, progress=False)
    options = {"steps": 3, "batch_size": 2, "progress": False, "out": tmp_path / "a.xyz"}
    steps = []

    class Ends(Sampler):
        def step(self):
            steps.append(1)
            if len(steps) == 5:
                raise KeyboardInterrupt
            super().step()

    monkeypatch.setattr(sampling, "Sampler", Ends)
    with pytest.raises(KeyboardInterrupt):
        mq.sample(molecules, 6, **options)
    assert (tmp_path / "a.xyz.part").exists() and not (tmp_path / "a.xyz").exists()
    with pytest.raises(ConfigError, match="samples of an interrupted call with another model"):
        mq.sample(molecules, 6, **{**options, "seed": 1})
    part = tmp_path / "a.xyz.part"
    lines = part.read_text().splitlines(keepends=True)
    part.write_text(
        "".join([*lines, lines[-1], lines[-1][:20]])
    )  # half a batch and half a line, as a kill leaves
    found = mq.sample(molecules, 6, **options)
    assert len(steps) == 5 + 6  # only the two batches that were missing
    assert all(torch.equal(a.pos, b.pos) for a, b in zip(whole, found))
    assert not (tmp_path / "a.xyz.part").exists() and len(read_samples(tmp_path / "a.xyz")) == 6


class Radius(Head):
    """Mean square distance from the center, a property whose gradient is known."""

    rank, kind = 0, "value"

    def make(self, channels):
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, graph, features):
        return (
            graph.pos.square()
            .sum(1)
            .new_zeros(graph.num_graphs)
            .index_add(0, graph.batch, graph.pos.square().sum(1) / graph.counts[graph.batch])
        )


def test_guidance_moves_a_property_to_its_target(molecules):
    predicts = mq.Model(mq.EGNN(elements=["H", "O"], channels=4, layers=1), [Radius(mq.Quantity("radius"))])

    def radius(guidance):
        found = mq.sample(molecules, 20, steps=20, guidance=guidance, progress=False)
        return torch.tensor([float(g.pos.square().sum(1).mean()) for g in found])

    plain = radius(None)
    for target in (0.2, 3.0):
        guided = radius(Guidance(predicts, "radius", target))
        assert (guided - target).abs().mean() < 0.7 * (plain - target).abs().mean()
    with pytest.raises(ConfigError, match="the model does not predict 'radios'; did you mean 'radius'"):
        radius(Guidance(predicts, "radios", 1.0))
    lacking = mq.Model(mq.EGNN(elements=["H"], channels=4, layers=1), [Radius(mq.Quantity("radius"))])
    with pytest.raises(ConfigError, match="it does not know O, which samples have"):
        radius(Guidance(lacking, "radius", 1.0))


def test_what_does_not_fit_the_task_is_refused(molecules, chiral):
    with pytest.raises(ConfigError, match="generates molecules from nothing but their number"):
        mq.sample(molecules, "CCO")
    with pytest.raises(ConfigError, match="each=3 has no effect on molecules; ask for 6"):
        mq.sample(molecules, 2, each=3)
    with pytest.raises(ConfigError, match="was trained for 'conformers' and needs structures"):
        mq.sample(chiral[1], 3)
    with pytest.raises(ConfigError, match="remasking=1 has no effect: the task is 'conformers'"):
        mq.sample(chiral[1], "CCO", remasking=1.0)
    with pytest.raises(ConfigError, match="atoms=4: the task is 'conformers'"):
        mq.sample(chiral[1], "CCO", atoms=4)
    with pytest.raises(DataError, match="CCN: N is no element that this model knows"):
        mq.sample(chiral[1], "CCN")
    with pytest.raises(DataError, match="RDKit cannot read the SMILES 'C1CC'"):
        mq.sample(chiral[1], ["C1CC"])
    other = copy.copy(molecules)
    other.metadata = {}
    with pytest.raises(mq.errors.ModelError, match="sample: found no declaration of a flow"):
        mq.sample(other, 1)


def test_the_command_writes_a_file_and_says_what_is_missing(molecules, tmp_path, capsys):
    from molequi.cli import main

    model, out = tmp_path / "m.safetensors", tmp_path / "a.sdf"
    mq.save(molecules, model)
    words = ["sample", str(model), "2", "--out", str(out), "--steps", "3", "--quality", "--no-progress"]
    assert main(words) == 0
    assert "atom stability" in capsys.readouterr().out and len(read_samples(out)) == 2
    for more, said in (
        (["--out", str(out)], "--overwrite"),
        ([], "--out is missing"),
        (["--out", str(tmp_path / "b.sdf"), "--target", "3"], "--target alone has no effect"),
    ):
        assert main(["sample", str(model), "2", *more]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("steps", -2), ("integrator", "rk4"), ("integrator", "Heun"), ("atoms", 0), ("atoms", -1),
        ("remasking", -5.0), ("seed", -1), ("seed", 1.5), ("seed", 2**62), ("batch_size", 0), ("each", 0),
    ],
)  # fmt: skip
def test_values_are_checked(molecules, name, value):
    with pytest.raises(ConfigError, match=f"sample.{name}: found {value!r} .*; wanted"):
        mq.sample(molecules, 2, **{"progress": False, "steps": 2, name: value})


def test_guidance_without_noise_is_refused_and_others_keep_center_and_cell():
    predicts = mq.Model(mq.EGNN(elements=["H"], channels=4, layers=1), [Radius(mq.Quantity("radius"))])
    guidance = Guidance(predicts, "radius", 0.0, strength=1e3)
    with pytest.raises(ConfigError, match="has no effect on a flow without noise"):
        guidance.push(Flow(task="relaxation", scale=0.0), (1,), torch.device("cpu"))
    push = guidance.push(Flow(task="relaxation", scale=1.0), (1,), torch.device("cpu"))
    seen = []
    kept, push.model = push.model, lambda graph: None
    push.model = type("Watched", (), {"__call__": lambda self, graph, **options: seen.append(graph) or kept(
        graph, **options), "__getattr__": lambda self, name: getattr(kept, name)})()  # fmt: skip
    pos = torch.tensor([[9.0, 0, 0], [-8.0, 1, 0], [-1, -1, 0], [0.5, 0, 0], [-0.5, 0, 0]]).double()
    cell = 20 * torch.eye(3, dtype=torch.float64)
    graphs = [mq.Graph.single(p, ["H"] * len(p), cell=cell, pbc=True) for p in (pos[:3], pos[3:])]
    pushed = push(mq.collate(graphs), torch.full((2,), 0.5, dtype=torch.float64), torch.zeros_like(pos))
    assert torch.equal(seen[0].cell[0], cell) and bool(seen[0].pbc.all())
    assert torch.allclose(pushed[:3].sum(0), torch.zeros(3, dtype=torch.float64), atol=1e-12)
    # The gradient of the radius is along the positions, the longest push is 2 Å, and ratios stay.
    assert torch.allclose(pushed[:3], -2 * pos[:3] / 9, atol=1e-9)


def test_positions_that_are_not_finite_are_refused(molecules, tmp_path):
    wild = copy.deepcopy(molecules)
    with torch.no_grad():
        for parameter in wild.heads["flow_velocity"].parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(
        mq.errors.ModelError, match="positions of structure 0 .* not finite after step 1 of 3"
    ):
        mq.sample(wild, 2, steps=3, out=tmp_path / "a.xyz", progress=False)
    assert not (tmp_path / "a.xyz").exists()


def test_conformers_that_stay_wrong_are_counted(chiral, monkeypatch):
    monkeypatch.setattr(sampling, "ATTEMPTS", 1)
    found = mq.sample(chiral[1], "C[C@H](F)O", each=20, steps=3, progress=False)
    number = sum(not sampling._is_right(Flow.of(chiral[1]), graph_of(m).replace(pos=g.pos))
                 for m, g in zip(found.mols, found))  # fmt: skip
    assert 0 < number == found.wrong and f", {number} with wrong stereochemistry" in str(found)


def test_what_was_kept_is_only_continued_for_the_same_structures(chiral, tmp_path):
    def digest(smiles):
        return sampling._digest(sampling._wanted(chiral[1], Flow.of(chiral[1]), [smiles], 1, None, 0))

    assert digest("C[C@H](F)O") == digest("C[C@H](F)O")
    graph = graphs_of("C[C@H](F)O")[0][0]
    others = [graph.replace(pair_attr=2 * graph.pair_attr), graph.replace(x=-graph.x)]
    assert len({sampling._digest([sampling._Wanted(g, "a")]) for g in (graph, *others)}) == 3
    cells = [mq.Graph.single([[0, 0, 0]], ["H"], cell=c * torch.eye(3), pbc=True) for c in (3.0, 4.0)]
    assert len({sampling._digest([sampling._Wanted(g, "a")]) for g in cells}) == 2


def test_files_are_checked_before_sampling_and_replaced_as_a_whole(molecules, tmp_path, monkeypatch):
    out = tmp_path / "a.xyz"
    options = {"steps": 2, "progress": False}
    (tmp_path / "a.xyz.part").write_text('{"settings": {"st')  # a head that was cut
    found = mq.sample(molecules, 2, out=out, **options)
    with pytest.raises(ConfigError, match="this file exists; choose another name, or replace it with overw"):
        mq.sample(molecules, 1, out=out, **options)
    assert len(mq.sample(molecules, 1, out=out, overwrite=True, **options)) == len(read_samples(out)) == 1
    with pytest.raises(ConfigError, match="there is no folder"):
        mq.sample(molecules, 1, out=tmp_path / "none" / "a.xyz", **options)
    before = out.read_bytes()
    calls = iter([samples.to_atoms])
    monkeypatch.setattr(samples, "to_atoms", lambda *given: next(calls)(*given))  # only once
    with pytest.raises(StopIteration):
        found.write(out)
    assert out.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.xyz"]


def test_missing_and_empty_files_are_named(molecules, chiral, tmp_path, capsys):
    from molequi.cli import main

    with pytest.raises(DataError, match="none.sdf: cannot be read"):
        mq.sample(chiral[1], "none.sdf")
    with pytest.raises(DataError, match="none.sdf: no such file"):
        read_samples("none.sdf")
    (tmp_path / "empty.xyz").touch()
    with pytest.raises(DataError, match="empty.xyz: is empty"):
        read_samples(tmp_path / "empty.xyz")
    with pytest.raises(DataError, match="found no structures"):
        mq.sample(chiral[1], [])
    with pytest.raises(ConfigError, match="these are samples of 'molecules'; conformers alone"):
        mq.sample(molecules, 1, steps=1, progress=False).compared(chiral[0])
    with pytest.raises(
        DataError, match=r"samples: found list without molecular graphs; wanted conformers, as mq.sample"
    ):
        conformer_quality([molecule("H2O")], chiral[0])
    model, out = tmp_path / "m.safetensors", tmp_path / "a.sdf"
    mq.save(molecules, model)
    words = ["sample", str(model), "2", "--out", str(out), "--quality", "--known", str(tmp_path / "no.smi")]
    assert main(words) == 2 and "no.smi: cannot be read" in capsys.readouterr().err and not out.exists()
