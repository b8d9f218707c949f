"""Equivariance regularizers: each lowers the error of its symmetry on new structures; resumed runs; refused options."""

import importlib
import itertools
import math

import pytest
import torch

from molequi import (
    Dataset,
    Features,
    Graph,
    Model,
    Quantity,
    RelaxedEGNN,
    Transformer,
    collate,
    connect,
    fit,
    run,
)
from molequi.approximate import equivariance_errors
from molequi.approximate.penalties import squared_free_weights
from molequi.approximate.regularizers import EquivarianceRegularizer, Regularization
from molequi.approximate.transforms import SYMMETRIES, RandomTransforms
from molequi.config.schema import check_config
from molequi.errors import ConfigError
from molequi.heads import Head, Vector
from molequi.hooks import Batch
from molequi.losses import Loss, Objective
from molequi.models import Backbone
from molequi.nn.mlp import mlp
from molequi.nn.relaxed import free_groups, set_theta
from molequi.symmetry import Transform, group
from molequi.training import TrainingWarning
from molequi.training import symmetry as module

from ..training.test_resume import Stop, stop_before

LEVEL = Quantity(name="level")
PUSH = Quantity(name="push", per="node", rank=1)
NODES = 4


class Naive(Backbone):
    """Reads positions as they are and nodes by their number, so that it has no symmetry at all."""

    group, translations = "C1", False

    def __init__(self, *, elements=(0,), cutoff=None):
        super().__init__(elements=elements, cutoff=cutoff)
        self.out = {"0e": 16, "1o": 4}
        self.own = mlp([3 + NODES, 16, 16], activate_last=True)
        self.mix = mlp([32, 16, 16], activate_last=True)
        self.to_vectors = torch.nn.Linear(16, 12)

    def forward(self, graph):
        number = torch.nn.functional.one_hot(torch.arange(graph.num_nodes) % NODES, NODES).to(self.dtype)
        h = self.own(torch.cat([graph.pos.to(self.dtype), number], dim=1))
        all_of = torch.zeros(graph.num_graphs, 16, dtype=h.dtype).index_add(0, graph.batch, h)
        h = h + self.mix(torch.cat([h, all_of[graph.batch]], dim=1))
        return Features(
            blocks={"0e": h[:, :, None], "1o": self.to_vectors(h).reshape(-1, 4, 3)},
            coordination=torch.ones(graph.num_nodes),
        )


def naive(predict=(LEVEL,), seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Model(Naive(), list(predict))


class Quadratic(Backbone):
    """A quadratic form of all coordinates, with a number of its own for each pair of them: no symmetry, and all laws below in reach."""

    group, translations = "C1", False

    def __init__(self, *, elements=(0,), cutoff=None):
        super().__init__(elements=elements, cutoff=cutoff)
        self.out = {"0e": 1}
        self.form = torch.nn.Parameter(torch.zeros(3 * NODES, 3 * NODES))

    def forward(self, graph):
        x = graph.pos.to(self.dtype).reshape(graph.num_graphs, 3 * NODES)
        value = ((x @ self.form) * x).sum(1) / NODES
        return Features(
            blocks={"0e": value[graph.batch][:, None, None]}, coordination=torch.ones(graph.num_nodes)
        )


class Itself(Head):
    """The only feature, and a constant."""

    def make(self, channels):
        self.shift = torch.nn.Parameter(torch.zeros(()))

    def forward(self, graph, features):
        return self.pool(features.scalars[:, 0], graph, features) * self.scale + self.shift


def cloud(pos):
    """How far the nodes are from their middle, on average."""
    return (pos - pos.mean(0)).square().sum(1).mean()


BREAKS = {
    None: lambda p: cloud(p),
    "rotation": lambda p: (
        cloud(p) + ((p - p.mean(0)).square() @ torch.tensor([-1.0, 0.0, 1.0], dtype=p.dtype)).mean()
    ),
    "translation": lambda p: cloud(p) + 2 * p.mean(0).square().sum(),
    "permutation": lambda p: (
        cloud(p)
        + ((p - p.mean(0)).square().sum(1) * torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=p.dtype)).mean()
    ),
}


def points(count, broken=None, seed=0):
    """Clouds of four points near the origin and a number that has all symmetries but one."""
    random = torch.Generator().manual_seed(seed)
    graphs = []
    for _ in range(count):
        pos = torch.randn(NODES, 3, generator=random, dtype=torch.float64)
        graphs.append(Graph.single(pos, targets={"level": BREAKS[broken](pos).reshape(1)}))
    return Dataset(graphs, quantities={"level": LEVEL})


SETTINGS = dict(
    epochs=14,
    batch_size=16,
    lr=1e-2,
    optimizer={"ema": 0.9},
    logging={"progress": False},
    validation={"every": 7},
)


def trained(model, data, weights, **more):
    terms = [EquivarianceRegularizer(weights)] if weights else []
    fit(model, data[:-64], data[-64:-32], terms=terms, **SETTINGS | more)
    return model


@pytest.fixture(autouse=True)
def without_cards(monkeypatch):
    """The audit after each training, which has tests of its own, takes longer than these trainings, and here nodes are numbered."""
    monkeypatch.setattr(module, "measure_symmetry", lambda *_: None)


@pytest.mark.parametrize("symmetry", ["translation", "rotation", "permutation"])
def test_the_equivariance_error_on_new_structures_falls_with_the_weight(symmetry):
    data = points(160)
    defects = [
        equivariance_errors(
            trained(naive(), data, {symmetry: beta} if beta else None),
            data[-32:],
            symmetries=[symmetry],
            draws=4,
        )[symmetry, "level"].relative_error
        for beta in (0.0, 0.1, 1.0, 10.0)
    ]
    assert all(after < before for before, after in itertools.pairwise(defects)), defects
    assert defects[-1] < 0.5 * defects[0]


@pytest.mark.parametrize("broken", ["rotation", "translation", "permutation"])
def test_data_that_break_one_symmetry_keep_the_others(broken):
    """Regularizers of the others cost nothing; that of the broken symmetry increases the error on the data."""
    data = points(224, broken)
    others = {s: 1.0 for s in ("rotation", "translation", "permutation") if s != broken}
    found = {}
    for name, weights in (("none", None), ("others", others), ("broken", {broken: 1.0})):
        model = trained(
            Model(Quadratic(), [Itself(LEVEL)]), data, weights, epochs=40, lr=3e-2, validation={"every": 20}
        )
        rows = equivariance_errors(model, data[-32:], symmetries=[*others, broken], draws=2)
        found[name] = {s: rows[s, "level"].relative_error for s in (*others, broken)} | {
            "error": rows[broken, "level"].rmse_original
        }
    none, right, wrong = found.values()
    assert all(right[s] < 0.4 * none[s] for s in others), found
    assert right[broken] > 0.8 * none[broken] > 2 * wrong[broken], found
    assert right["error"] < none["error"] and wrong["error"] > 2.5 * right["error"], found


def connected(data, cutoff=None):
    return [connect(g, cutoff) for g in data]


def regularization(model, weights, kind="functional", scale=None, shift=1.0, name="O(n)"):
    """The penalties of a training on one device, of quantities that all have the weight 1."""
    return Regularization(
        EquivarianceRegularizer(weights, form=kind),
        RandomTransforms(group=group(name), shift=shift, seed=0),
        Objective([Loss(q) for q in model.quantities], model.quantities),
        scale or dict.fromkeys(model.quantities, 1.0),
        None,
        {},
        (0, 1),
    )


def values_of(hook, model, graph, out, counts, step, add_up):
    return hook.values(model, Batch(step, counts, graph, out), add_up)


def same(values):
    return values


class TestForms:
    """R_s by its definition, written out once more."""

    def test_functional(self):
        model, data = naive([LEVEL, PUSH]).double(), connected(points(3))
        graph, weights = collate(data), dict.fromkeys(SYMMETRIES, 1.0)
        hook = regularization(model, weights, scale={"level": 2.0, "push": 3.0})
        model.train()
        out = model(graph)
        got = values_of(hook, model, graph, out, [NODES] * 3, 5, same)
        hook.total(got).backward()
        assert all(p.grad is not None for p in model.parameters())
        model.eval()
        for value, symmetry in zip(got.tolist(), SYMMETRIES):
            elements, wanted = hook.penalties.transforms(symmetry, [NODES] * 3, ("train", 5)), []
            for k, one in enumerate(data):
                element = Transform.single(
                    rotation=torch.eye(3, dtype=torch.float64)
                    if elements.rotations is None
                    else elements.rotations[k],
                    translation=None if elements.translations is None else elements.translations[k],
                    permutation=None
                    if elements.permutation is None
                    else elements.permutation[NODES * k : NODES * (k + 1)] - NODES * k,
                )
                here, there = model(one), model(connect(element.graph(one), None))
                wanted.append(
                    [
                        float((there[q.name] - element.value(q, here[q.name])).square().mean()) / size**2
                        for q, size in ((LEVEL, 2.0), (PUSH, 3.0))
                    ]
                )
            assert value == pytest.approx(float(torch.tensor(wanted, dtype=torch.float64).mean()), rel=1e-10)
            assert value > 1e-4
        assert hook.total(got).tolist() == pytest.approx(sum(got.tolist()))

    def test_anchored_is_the_loss_against_transformed_labels(self):
        model = naive([LEVEL, PUSH]).double()
        data = [g.replace(targets=g.targets | {"push": g.pos}) for g in connected(points(3))]
        graph = collate(data)
        hook = regularization(model, {"rotation": 1.0}, "anchored")
        got = float(values_of(hook, model, graph, model(graph), [NODES] * 3, 5, same).detach())
        model.eval()
        turn = hook.penalties.transforms("rotation", [NODES] * 3, ("train", 5)).rotations
        images = [g.replace(pos=g.pos @ R.T) for g, R in zip(data, turn)]
        out = [model(g) for g in images]
        wanted = sum(float((o["level"] - g.targets["level"]).square()) for o, g in zip(out, data)) / 3
        wanted += sum(float((o["push"] - g.pos).square().sum()) for o, g in zip(out, images)) / 36
        assert got == pytest.approx(wanted, rel=1e-10)

    @pytest.mark.parametrize("symmetry,scale", [("rotation", 1.0), ("translation", 2.5)])
    def test_lie_is_the_derivative_that_autograd_finds(self, symmetry, scale):
        """Over many draws Σ_k |L_k f|² of the three generators, with L_k f from forward-mode differentiation."""
        model, graph = naive([LEVEL, PUSH]).double().eval(), connected(points(1))[0]
        turns = torch.zeros(3, 3, 3, dtype=torch.float64)
        for k, (i, j) in enumerate(((1, 2), (2, 0), (0, 1))):
            turns[k, j, i], turns[k, i, j] = 1.0, -1.0
        total = 0.0
        for k in range(3):
            direction = (
                graph.pos @ turns[k].T
                if symmetry == "rotation"
                else scale * torch.eye(3, dtype=torch.float64)[k].expand(NODES, 3)
            )
            outputs = lambda p: tuple(model.predict(graph.replace(pos=p), True)[n] for n in ("level", "push"))  # noqa: E731
            here, (level, push) = torch.autograd.functional.jvp(outputs, graph.pos, direction, strict=True)
            if symmetry == "rotation":
                push = push - here[1] @ turns[k].T
            total += (float(level.square().mean()) + float(push.square().mean())) / 2
        hook = regularization(model, {symmetry: 1.0}, "lie", shift=scale)
        draws = [
            float(values_of(hook, model, graph, model(graph), [NODES], step, same).detach())
            for step in range(300)
        ]
        mean, error = sum(draws) / 300, torch.tensor(draws).std() / 300**0.5
        assert error < 0.1 * total and abs(mean - total) < 4 * error
        # and exactly, once the direction is known
        model.eval()
        here, back, number = hook.penalties.transforms.generators(symmetry, [NODES], ("train", 0), 1e-4)
        ahead, behind = (model(p.graph(graph, {})) for p in (here, back))
        wanted = (
            sum(
                float(
                    ((back.value(q, ahead[q.name], graph) - here.value(q, behind[q.name], graph)) / 2e-4)
                    .square()
                    .mean()
                )
                for q in (LEVEL, PUSH)
            )
            / 2
            * number
        )
        assert draws[0] == pytest.approx(wanted, rel=2e-3)

    @pytest.mark.parametrize("kind", ["functional", "lie"])
    def test_zero_for_a_model_that_has_the_symmetry(self, make, kind):
        model, graph = make.tiny().double(), collate(connected(make.morse(4), 4.0))
        weights = dict.fromkeys(("rotation", "translation") if kind == "lie" else SYMMETRIES, 1.0)
        counts = graph.counts.tolist()
        assert (
            float(
                values_of(regularization(model, weights, kind), model, graph, model(graph), counts, 0, same)
                .detach()
                .max()
            )
            < 1e-18
        )
        absolute = Model(
            Transformer(
                elements=[1, 8], channels=8, layers=1, heads=2, vectors=2, radial=4, cutoff=4.0, absolute=True
            )
        ).double()
        found = values_of(
            regularization(absolute, weights, kind), absolute, graph, absolute(graph), counts, 0, same
        )
        assert all(value > 1e-8 for name, value in zip(weights, found.tolist()) if name != "permutation")

    @pytest.mark.parametrize("kind", ["functional", "anchored", "lie"])
    @pytest.mark.parametrize("unlabelled", [False, True])
    def test_shares_of_two_devices_add_up_to_the_whole(self, kind, unlabelled):
        if kind == "anchored" and unlabelled:
            return  # refused, see below
        model, data = naive().double(), connected(points(5))
        weights = dict.fromkeys(("rotation", "translation") if kind == "lie" else SYMMETRIES, 1.0)
        loss, draws = (
            Objective([Loss("level")], model.quantities),
            RandomTransforms(group=group("O(n)"), shift=1.0, seed=0),
        )
        more = Dataset(connected(points(12, seed=5)), quantities={"level": LEVEL}) if unlabelled else None

        def values(share, add_up):
            mine = data[share[0] :: share[1]]
            graph = collate(mine)
            hook = Regularization(
                EquivarianceRegularizer(weights, form=kind),
                draws,
                loss,
                {"level": 1.0},
                more,
                {"batch_size": 5},
                share,
            )
            return values_of(hook, model, graph, model(graph), [NODES] * 5, 7, add_up).detach()

        counts = []
        for rank in range(2):
            values((rank, 2), lambda c: counts.append(c) or c)
        parts = [values((rank, 2), lambda c: sum(counts)) for rank in range(2)]
        assert torch.allclose(parts[0] + parts[1], values((0, 1), same), rtol=1e-10)
        assert not torch.allclose(parts[0], parts[1])

    def test_weights(self):
        model = relaxed().double()
        hook = regularization(model, {"rotation": 1.0}, "weights")
        wanted = sum(
            0.25 * float(p.detach().square().sum()) for group in free_groups(model).values() for p in group
        )
        assert values_of(hook, model, None, None, [], 0, same).tolist() == pytest.approx([wanted])
        set_theta(model, 0.0)
        assert squared_free_weights(model).tolist() == 0.0


def relaxed(seed=0):
    torch.manual_seed(seed)
    return Model(
        RelaxedEGNN(elements=[0], channels=8, layers=2, cutoff=None, gates=[1.0, 1.0, 0.5]),
        [LEVEL, Vector(PUSH)],
    )


def weights_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


QUICK = dict(epochs=2, batch_size=8, logging={"progress": False})
ALL = dict.fromkeys(SYMMETRIES, 0.1)
OTHERS = {
    name: 0.1 for name in SYMMETRIES if name != "permutation"
}  # that of a Transformer that sees positions


class TestTraining:
    def test_history_and_table_have_the_penalties(self, tmp_path):
        data = points(32)
        backbone = dict(elements=[0], channels=8, layers=1, heads=2, vectors=2, cutoff=None, absolute=True)
        result = fit(
            Model(Transformer(**backbone), [LEVEL]),
            data[:24],
            data[24:],
            **QUICK,
            terms=[EquivarianceRegularizer({"rotation": 0.1, "translation": 0.2}, form="lie")],
            out=tmp_path,
        )
        for row in result.history:
            for part in ("train", "valid"):
                assert (
                    row[f"{part}_equivariance_rotation"] > 0 and row[f"{part}_equivariance_translation"] > 0
                )
        assert "valid_equivariance_translation" in (tmp_path / "metrics.csv").read_text().splitlines()[0]
        assert "rotation: 0.1" in (tmp_path / "config.yaml").read_text()

    def test_validation_uses_the_same_elements_in_every_epoch(self):
        data = points(24)
        row, again = fit(
            naive(),
            data[:16],
            data[16:],
            **QUICK | {"lr": 1e-12, "optimizer": {"ema": 0.0}},
            terms=[EquivarianceRegularizer(ALL)],
        ).history
        for s in SYMMETRIES:
            assert row[f"valid_equivariance_{s}"] == pytest.approx(again[f"valid_equivariance_{s}"], rel=1e-6)
        assert row["train_equivariance_rotation"] != again["train_equivariance_rotation"]

    @pytest.mark.parametrize(
        "kind,weights,structures",
        [
            ("functional", OTHERS, False),
            ("anchored", OTHERS, False),
            ("functional", OTHERS, True),
            ("lie", {"rotation": 0.1, "translation": 0.1}, False),
        ],
    )
    @pytest.mark.parametrize("step", [1, 3])
    def test_resumed_bit_for_bit(self, kind, weights, structures, step, tmp_path, monkeypatch):
        data = points(40)
        settings = QUICK | dict(
            terms=[EquivarianceRegularizer(weights, form=kind, structures=data[24:] if structures else None)]
        )

        def fresh(seed=0):
            torch.manual_seed(seed)
            return Model(
                Transformer(
                    elements=[0], channels=8, layers=1, heads=2, vectors=2, cutoff=None, absolute=True
                ),
                [LEVEL],
            )

        whole = fit(fresh(), data[:16], data[16:24], **settings, out=tmp_path / "whole")
        with monkeypatch.context() as patched, pytest.raises(Stop):
            stop_before(patched, step)
            fit(
                fresh(),
                data[:16],
                data[16:24],
                **settings | {"logging": {"progress": False, "save_minutes": 0}},
                out=tmp_path / "parts",
            )
        resumed = fit(fresh(seed=3), data[:16], data[16:24], **settings, out=tmp_path / "parts")
        assert equal(weights_of(whole.model), weights_of(resumed.model))
        assert [{k: v for k, v in row.items() if k != "seconds"} for row in whole.history] == [
            {k: v for k, v in row.items() if k != "seconds"} for row in resumed.history
        ]
        other = fit(fresh(), data[:16], data[16:24], **settings | {"seed": 1}).model
        assert not equal(weights_of(whole.model), weights_of(other))

    def test_a_weight_of_zero_has_no_effect(self):
        data = points(24)
        a, b, c = naive(), naive(), naive()
        fit(a, data[:16], data[16:], **QUICK, terms=[EquivarianceRegularizer({"rotation": 0.1})])
        fit(
            b,
            data[:16],
            data[16:],
            **QUICK,
            terms=[EquivarianceRegularizer({"rotation": 0.1, "permutation": 0.0})],
        )
        fit(c, data[:16], data[16:], **QUICK)
        assert equal(weights_of(a), weights_of(b)) and not equal(weights_of(a), weights_of(c))

    def test_structures_without_labels_take_the_place_of_the_batch(self):
        """Far away structures, on which labels say nothing: the penalty is then that of these structures."""
        data = points(24)
        apart = Dataset([Graph.single(g.pos + 5.0) for g in points(12, seed=3)])
        rows = [
            fit(
                naive(),
                data[:16],
                data[16:],
                **QUICK | {"lr": 1e-12},
                terms=[EquivarianceRegularizer({"rotation": 0.1}, structures=s)],
            ).history[0]
            for s in (None, apart)
        ]
        assert rows[1]["train_equivariance_rotation"] > 3 * rows[0]["train_equivariance_rotation"]
        assert rows[1]["train_loss"] == pytest.approx(rows[0]["train_loss"], rel=1e-6)

    def test_the_weights_form_brings_free_paths_down(self):
        data = points(32, "rotation")
        data = Dataset(
            [g.replace(targets={"level": g.targets["level"], "push": g.pos - g.pos.mean(0)}) for g in data],
            quantities={"level": LEVEL, "push": PUSH},
        )
        rows = []
        for beta in (1e-12, 1.0):
            rows.append(
                fit(
                    relaxed(),
                    data[:24],
                    data[24:],
                    **QUICK | {"epochs": 20, "lr": 0.02},
                    terms=[EquivarianceRegularizer({"rotation": beta}, form="weights")],
                    validation={"every": 10},
                ).history
            )
        assert rows[1][-1]["train_equivariance_rotation"] < 0.1 * rows[0][-1]["train_equivariance_rotation"]
        assert (
            rows[1][-1]["valid_equivariance_rotation"] < rows[0][-1]["valid_equivariance_rotation"]
        )  # measured on the outputs

    def test_in_two_dimensions_and_about_an_axis(self):
        random = torch.Generator().manual_seed(0)
        flat = Dataset(
            [
                Graph.single(
                    p := torch.randn(4, 2, generator=random, dtype=torch.float64),
                    targets={"level": p.square().sum().reshape(1)},
                )
                for _ in range(16)
            ],
            quantities={"level": LEVEL},
        )
        model = Model(
            Transformer(elements=[0], channels=8, layers=1, heads=2, vectors=2, cutoff=None, dim=2), [LEVEL]
        )
        row = fit(
            model,
            flat[:8],
            flat[8:],
            **QUICK,
            terms=[EquivarianceRegularizer({"rotation": 0.1, "reflection": 0.1})],
        ).history[-1]
        assert row["train_equivariance_rotation"] > 0 and row["train_equivariance_reflection"] > 0
        upright = Dataset(
            [
                g.replace(vec=torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(4, 1, 3))
                for g in points(16)
            ],
            quantities={"level": LEVEL},
        )
        for name in ("O(n-1)", "O(n)"):
            model = Model(Upright(), [LEVEL])
            if name == "O(n-1)":
                with pytest.warns(TrainingWarning, match="rotation: Upright has this symmetry exactly"):
                    fit(
                        model,
                        upright[:8],
                        upright[8:],
                        **QUICK,
                        terms=[EquivarianceRegularizer({"rotation": 0.1}, group=name)],
                    )
            else:
                fit(
                    model,
                    upright[:8],
                    upright[8:],
                    **QUICK,
                    terms=[EquivarianceRegularizer({"rotation": 0.1}, group=name)],
                )

    def test_an_exact_symmetry_is_a_warning(self, make, parts):
        with pytest.warns(
            TrainingWarning,
            match="rotation, permutation: EGNN has this symmetry exactly .* zero and only costs time",
        ):
            fit(
                make.tiny(),
                **parts,
                **QUICK,
                terms=[EquivarianceRegularizer({"rotation": 0.1, "permutation": 0.1})],
            )
        with pytest.warns(TrainingWarning, match="the loss once more and only costs time"):
            fit(
                make.tiny(),
                **parts,
                **QUICK,
                terms=[EquivarianceRegularizer({"rotation": 0.1}, form="anchored")],
            )

    def test_compiled_programs_train_the_same(self, make, parts, monkeypatch):
        compiler = importlib.import_module("molequi.accelerate")
        monkeypatch.setattr(compiler, "BACKEND", lambda traced, inputs: traced)
        models = []
        for fast in (False, True):
            torch.manual_seed(0)
            models.append(
                Model(
                    Transformer(
                        elements=[1, 8], channels=8, layers=1, heads=2, vectors=2, radial=4, cutoff=4.0
                    ),
                    ["energy"],
                )
            )
            fit(
                models[-1],
                **parts,
                **QUICK,
                terms=[EquivarianceRegularizer({"rotation": 0.1, "reflection": 0.1})],
                compute={"precision": "float64", "accelerate": fast},
            )
        assert models[1].program is not None and models[1].program.functions
        for a, b in zip(models[0].parameters(), models[1].parameters()):
            assert torch.allclose(a, b, rtol=1e-7, atol=1e-9)


class Upright(Backbone):
    """Height above the middle, along the third axis, and distance from it across."""

    group = "O(n-1)"

    def __init__(self, *, elements=(0,), cutoff=None):
        super().__init__(elements=elements, cutoff=cutoff)
        self.out = {"0e": 4}
        self.net = mlp([2, 8, 4])

    def forward(self, graph):
        middle = (
            torch.zeros(graph.num_graphs, 3, dtype=torch.float64).index_add(0, graph.batch, graph.pos)
            / graph.counts[:, None]
        )
        away = (graph.pos - middle[graph.batch]).to(self.dtype)
        seen = torch.stack([away[:, 2], away[:, :2].square().sum(1)], dim=1)
        return Features(blocks={"0e": self.net(seen)[:, :, None]}, coordination=torch.ones(graph.num_nodes))


# Options of EquivarianceRegularizer that make no sense by themselves, and what it says of them.
WRONG = [
    ({"weights": {"rotatoin": 0.1}}, r"weights\.rotatoin: no such symmetry; did you mean 'rotation'\?"),
    (
        {"weights": {"rotation": -0.1}},
        r"\.weights\.rotation: found -0\.1 \(float\); wanted greater than or equal to 0",
    ),
    ({"weights": {"rotation": "much"}}, r"\.weights\.rotation: found 'much' \(str\); wanted"),
    ({"weights": {"rotation": math.inf}}, r"\.weights\.rotation: found inf"),
    ({"weights": {}}, r"weights is \{\}: wanted a positive weight"),
    ({"weights": {"rotation": 0.0}}, r"weights is \{'rotation': 0\.0\}: wanted a positive weight"),
    ({"weights": {"rotation": 0.1}, "form": "functoinal"}, r"\.form: found 'functoinal'"),
    (
        {"weights": {"permutation": 0.1}, "form": "lie"},
        r"weights\.permutation with form='lie': there is no infinitesimal permutation",
    ),
    (
        {"weights": {"reflection": 0.1}, "form": "lie"},
        r"weights\.reflection with form='lie': there is no infinitesimal reflection",
    ),
    (
        {"weights": {"translation": 0.1}, "form": "weights"},
        r"weights\.translation with form='weights': the free paths",
    ),
    ({"weights": {"rotation": 0.1}, "shift": 2.0}, r"shift=2\.0 is for translations, and weights has none"),
    (
        {"weights": {"translation": 0.1}, "group": "Oh"},
        r"group='Oh' has no effect, since weights has neither rotation nor reflection",
    ),
    (
        {"weights": {"rotation": 0.1}, "form": "weights", "group": "Oh"},
        r"group='Oh' has no effect on form='weights'",
    ),
    (
        {"weights": {"rotation": 0.1}, "form": "anchored", "structures": "more.xyz"},
        "structures with form='anchored', which compares with labels",
    ),
    (
        {"weights": {"rotation": 0.1}, "form": "weights", "structures": "more.xyz"},
        "structures with form='weights', which depends on the weights alone",
    ),
]
# And with a model, EGNN, which has no free paths.
WRONG_FOR_EGNN = [
    (
        {"weights": {"rotation": 0.1}, "form": "weights"},
        r"form='weights': EGNN has no free paths; take a relaxed",
    ),
    (
        {"weights": {"reflection": 0.1}, "group": "SO(n)"},
        r"reflection is asked for, and the group SO\(3\) has none",
    ),
    ({"weights": {"rotation": 0.1}, "group": "C1"}, r"rotation is asked for, and the group C1 has none"),
    ({"weights": {"rotation": 0.1}, "group": "Oo"}, r"group 'Oo' is not known"),
    (
        {"weights": {"rotation": 0.1}, "form": "lie", "group": "Oh"},
        r"the group Oh is finite and has no infinitesimal rotations",
    ),
]


class TestMessages:
    @pytest.mark.parametrize("options,message", WRONG)
    def test_refused_by_itself(self, options, message):
        with pytest.raises(ConfigError, match=message):
            EquivarianceRegularizer(**options)

    @pytest.mark.parametrize("options,message", WRONG_FOR_EGNN)
    def test_refused(self, make, parts, options, message):
        with pytest.raises(ConfigError, match=message):
            fit(make.tiny(), **parts, **QUICK, terms=[EquivarianceRegularizer(**options)])

    def test_refused_structures(self, make, parts):
        foreign = Dataset([Graph.single(torch.zeros(1, 3), [6])])
        with pytest.raises(ConfigError, match="have C and the model knows only H, O"):
            fit(
                make.tiny(),
                **parts,
                **QUICK,
                terms=[EquivarianceRegularizer({"rotation": 0.1}, structures=foreign)],
            )

    @pytest.mark.parametrize("options,message", [*WRONG, *WRONG_FOR_EGNN])
    def test_refused_in_a_file(self, options, message):
        config = {
            "data": {"extxyz": {"path": "a.xyz", "split": {"train": 2, "valid": 1}}},
            "backbone": {"EGNN": {}},
            "predict": ["energy"],
            "train": {"epochs": 1, "terms": [{"EquivarianceRegularizer": options}]},
        }
        with pytest.raises(ConfigError, match=message) as info:
            check_config(config)
        assert "train.terms" in str(info.value)

    @pytest.mark.parametrize(
        "backbone, train",
        [
            (
                "EGNN",
                {"terms": [{"EquivarianceRegularizer": {"weights": {"rotation": 1}, "group": "O(2)"}}]},
            ),  # of data in the plane, or in space about an axis
            ("EGNN", {"terms": [{"EquivarianceRegularizer": {"weights": {"rotation": 1}, "group": "Oh"}}]}),
            (
                "EGNN",
                {"terms": [{"EquivarianceRegularizer": {"weights": {"reflection": 1}, "group": "O(n-1)"}}]},
            ),
            (
                "RelaxedEGNN",
                {"terms": [{"EquivarianceRegularizer": {"weights": {"rotation": 1}, "form": "weights"}}]},
            ),
        ],
    )
    def test_accepted_in_a_file(self, backbone, train):
        check_config(
            {
                "data": {"extxyz": {"path": "a.xyz", "split": {"train": 2, "valid": 1}}},
                "backbone": {backbone: {}},
                "predict": ["energy"],
                "train": {"epochs": 1} | train,
            }
        )


def test_a_run_from_a_file(make, tmp_path):
    from molequi.readers import to_atoms

    for _k, graph in enumerate(make.morse(12)):
        atoms = to_atoms(
            graph,
            {n: v.numpy() if n == "forces" else float(v) for n, v in graph.targets.items()},
            dict(make.morse(3).quantities.items()),
        )
        atoms.write(tmp_path / "data.xyz", format="extxyz", append=True)
    config = {
        "data": {"extxyz": {"path": str(tmp_path / "data.xyz"), "split": {"train": 8, "valid": 4}}},
        "backbone": {
            "Transformer": {"channels": 8, "layers": 1, "heads": 2, "vectors": 2, "radial": 4, "cutoff": 4.0}
        },
        "predict": ["energy", "forces"],
        "train": {
            "epochs": 1,
            "logging": {"progress": False},
            "terms": [
                {
                    "EquivarianceRegularizer": {
                        "weights": {"rotation": 0.1},
                        "structures": str(tmp_path / "data.xyz"),
                    }
                }
            ],
            "out": str(tmp_path / "out"),
        },
    }
    assert run(config).history[0]["valid_equivariance_rotation"] > 0
    assert "structures" in (tmp_path / "out" / "config.yaml").read_text()
