"""Relaxed backbones from strict to free, and what remains of a symmetry beside an axis."""

import pytest
import torch

from molequi.audit import audit, lie_errors
from molequi.checkpoint import load, save
from molequi.errors import ConfigError, ModelError
from molequi.graph import Graph
from molequi.model import Model
from molequi.models import BACKBONES, EGNN, Inputs, NequIP, RelaxedEGNN, RelaxedNequIP
from molequi.neighbors import connect
from molequi.nn.relaxed import free_groups, relaxed_layers, set_theta
from molequi.symmetry import Group, Transform, random_orthogonal

SMALL = {
    "EGNN": dict(channels=8, layers=3, radial=6, inputs=Inputs(velocity=True)),
    "NequIP": dict(channels=4, layers=3, radial=4),
}
LAYERS = {"EGNN": "layers.{}", "NequIP": "interactions.{}.convolution"}
both = pytest.mark.parametrize("name", SMALL)


def small(name: str, seed: int = 1, **options):
    torch.manual_seed(seed)
    kind = name.removeprefix("Relaxed")
    return BACKBONES[name](elements=["H", "C", "O"], cutoff=4.0, **(SMALL.get(kind, {}) | options)).double()


def molecule(seed: int = 0, n: int = 7) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    pos, vel = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return Graph.single(1.5 * pos, [[1, 6, 8][k % 3] for k in range(n)], vel=vel)


def features(backbone, graph):
    with torch.no_grad():
        return backbone(connect(graph, 4.0))


def errors(backbone, elements) -> dict[str, float]:
    """|f(gx) - D(g) f(x)| / |f(x)| of each irrep, the largest of several elements."""
    graph = molecule()
    here = features(backbone, graph)
    worst = dict.fromkeys(here.blocks, 0.0)
    for element in elements:
        wanted, found = element.features(here), features(backbone, element.graph(graph))
        for i in worst:
            size = max(float(wanted.blocks[i].norm()), 1e-12)
            worst[i] = max(worst[i], float((found.blocks[i] - wanted.blocks[i]).norm()) / size)
    return worst


def motions(count: int = 4, group: Group | None = None) -> list[Transform]:
    generator = torch.Generator().manual_seed(5)

    def draw(proper):
        return (
            random_orthogonal(3, proper=proper, generator=generator)
            if group is None
            else group.sample(proper=proper, generator=generator)
        )

    improper = group is None or group.improper
    return [
        Transform.single(
            rotation=draw(k % 2 == 0 or not improper),
            translation=torch.randn(3, generator=generator, dtype=torch.float64),
        )
        for k in range(count)
    ]


# The dial.


@both
def test_alpha_one_is_the_strict_backbone_bit_for_bit(name):
    """With the same seed, and with its weights by name."""
    strict, graph = small(name), molecule()
    for relaxed in (
        small(f"Relaxed{name}", gates=(1, 1, 0)),
        small(f"Relaxed{name}", seed=2, gates=(1, 1, 0)),
    ):
        missing = relaxed.load_state_dict(strict.state_dict(), strict=False)
        assert not missing.unexpected_keys
        for i, block in features(strict, graph).blocks.items():
            assert torch.equal(features(relaxed, graph).blocks[i], block)
    other = small(f"Relaxed{name}", gates=(1, 1, 0.1))
    assert not torch.allclose(
        features(other, graph).blocks["1o"], features(strict, graph).blocks["1o"], rtol=1e-3
    )


@both
def test_one_zero_zero_is_invariant(name):
    relaxed = small(f"Relaxed{name}", gates=(1, 0, 0))
    blocks = features(relaxed, molecule()).blocks
    assert float(blocks["0e"].norm()) > 0.1 and all(
        float(b.norm()) == 0.0 for i, b in blocks.items() if i != "0e"
    )
    assert errors(relaxed, motions())["0e"] < 1e-10
    moved = features(relaxed, molecule().replace(pos=1.1 * molecule().pos)).blocks["0e"]
    assert float((moved - blocks["0e"]).norm()) > 1e-3, "it sees distances"


@both
@pytest.mark.parametrize("gates", [(0, 1, 0), (1, 1, 0), (0.7, -1.3, 0)])
def test_without_c_it_is_equivariant(name, gates):
    relaxed = small(f"Relaxed{name}", gates=gates)
    found = errors(relaxed, motions())
    assert max(found.values()) < 1e-10
    assert all(float(b.norm()) > 1e-6 for b in features(relaxed, molecule()).blocks.values())


@both
def test_the_error_grows_with_c(name):
    sizes = {
        c: errors(small(f"Relaxed{name}", gates=(1, 1, c)), motions())
        for c in (0.0, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0)
    }
    for i in sizes[0.0]:
        column = [e[i] for e in sizes.values()]
        assert column == sorted(column) and column[0] < 1e-12 and column[1] > 1e-6, f"{i}: {column}"
    assert sizes[1.0]["1o"] > 0.1


@both
def test_the_lie_derivative_grows_with_c(name):
    """Of the outputs, gradients among them: zero when strict, larger with every step of the dial."""
    columns: dict[str, list[float]] = {}
    for c in (0.0, 0.03, 0.1, 0.3, 1.0):
        for row in lie_errors(
            Model(small(f"Relaxed{name}", gates=(1, 1, c)), ["energy", "forces"]), molecule(0)
        ).rows:
            if row.quantity in ("energy", "forces"):
                columns.setdefault(row.quantity, []).append(row.lee)
    for quantity, column in columns.items():
        assert column[0] < 1e-24 and column == sorted(column) and column[-1] > 1e-3, f"{quantity}: {column}"
    assert len(columns) == 2


@both
def test_translations_hold_however_free(name):
    generator = torch.Generator().manual_seed(2)
    shifts = [
        Transform.single(
            rotation=torch.eye(3, dtype=torch.float64),
            translation=10 * torch.randn(3, generator=generator, dtype=torch.float64),
            permutation=torch.randperm(7, generator=generator),
        )
        for _ in range(3)
    ]
    assert max(errors(small(f"Relaxed{name}", gates=(1, 1, 1.0)), shifts).values()) < 1e-10


@both
def test_theta_closes_the_free_part_and_the_group_says_so(name, tmp_path):
    relaxed = small(f"Relaxed{name}", gates=(0.9, 1.1, 0.8))
    assert relaxed.group == "C1" and relaxed.translations and errors(relaxed, motions())["1o"] > 1e-2
    model = Model(relaxed, ["energy", "dipole"])
    set_theta(model, 0.0)
    assert (
        relaxed.group == model.group == small(name).group and max(errors(relaxed, motions()).values()) < 1e-10
    )
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert again.group == model.group
    for i, block in features(relaxed, molecule()).blocks.items():
        assert torch.equal(features(again.backbone, molecule()).blocks[i], block)


@both
def test_gradients_reach_every_gate_and_free_weight_from_the_start(name):
    relaxed = small(f"Relaxed{name}")
    generator = torch.Generator().manual_seed(0)
    out = relaxed(connect(molecule(), 4.0)).blocks
    sum(
        (b * torch.randn(b.shape, generator=generator, dtype=torch.float64)).sum() for b in out.values()
    ).backward()
    layers = dict(relaxed_layers(relaxed))
    assert list(layers) == [LAYERS[name].format(k) for k in range(3)]
    for where, layer in layers.items():
        for gate in "abc":
            assert float(getattr(layer, gate).grad.abs()) > 1e-6, f"{where}.{gate}"
    for label, parameters in free_groups(relaxed).items():
        assert parameters and all(float(p.grad.norm()) > 1e-8 for p in parameters), label


@both
def test_zero_free_weights_are_strict(name):
    relaxed = small(f"Relaxed{name}", gates=(1, 1, 0.5))
    with torch.no_grad():
        for parameters in free_groups(relaxed).values():
            for p in parameters:
                p.zero_()
    assert max(errors(relaxed, motions()).values()) < 1e-10


def test_alpha_is_of_each_node():
    layer = small("RelaxedEGNN", gates=(1, 1, 0.5)).layers[0]
    share = layer.share(torch.randn(5, 8, dtype=torch.float64)).detach().flatten()
    assert float(share.min()) > 0 and float(share.max()) < 0.5 and len(share.unique()) == 5


def test_other_dimensions():
    torch.manual_seed(0)
    flat = Graph.single(torch.randn(6, 2, dtype=torch.float64))
    backbone = RelaxedEGNN(elements=["X"], cutoff=None, channels=8, layers=2, dim=2).double()
    assert backbone(connect(flat, None)).blocks["1o"].shape == (6, 2, 2)
    with pytest.raises(
        ModelError, match="free weights for 3 dimensions and these structures have 2; build it with dim=2"
    ):
        RelaxedEGNN(elements=["X"], cutoff=None, channels=8, layers=2)(connect(flat, None))


# The axis.

WITH_AXIS = SMALL | {
    "PaiNN": dict(channels=8, layers=3, radial=6),
    "MACE": dict(channels=4, l_max=2, radial=4),
    "GauntACE": dict(channels=4, l_max=2, radial=4),
}
AXES = [*[(name, {}, "O(n-1)") for name in WITH_AXIS], ("NequIP", {"group": "SO(3)"}, "SO(n-1)")]


@pytest.mark.parametrize(("name", "options", "group"), AXES, ids=[*WITH_AXIS, "NequIP SO(3)"])
@pytest.mark.parametrize("axis", ["learned", [1.0, -2.0, 0.5]], ids=["learned", "given"])
def test_what_remains_beside_an_axis(name, options, group, axis):
    """Rotations about it and, for O(n), mirrors that contain it, with translations; no others."""
    backbone = small(name, axis=axis, **WITH_AXIS[name] | options)
    assert (
        backbone.group == group
        and backbone.axis.dtype == torch.float64
        and abs(float(backbone.axis.detach().norm()) - 1) < 1e-12
    )
    if axis != "learned":
        assert torch.allclose(backbone.axis, torch.tensor(axis, dtype=torch.float64) / 5.25**0.5, atol=1e-7)
    about = Group(name=group, axis=tuple(backbone.axis.tolist()))
    assert max(errors(backbone, motions(group=about)).values()) < 1e-10
    n = backbone.axis.detach()
    off = random_orthogonal(3, proper=True, generator=torch.Generator().manual_seed(1))
    across = torch.eye(3, dtype=torch.float64) - 2 * torch.outer(n, n)
    for rotation in (off, across, -torch.eye(3, dtype=torch.float64)):
        assert min(errors(backbone, [Transform.single(rotation=rotation)]).values()) > 1e-6
    out = features(backbone, molecule()).blocks["1o"]
    assert out.shape[1] == backbone.out["1o"] and torch.equal(out[:, -1], n.expand(7, 3))


@pytest.mark.parametrize("name", WITH_AXIS)
def test_an_axis_is_learned_saved_and_audited(name, tmp_path):
    torch.manual_seed(3)
    given = {option: value for option, value in WITH_AXIS[name].items() if option != "inputs"}
    backbone = BACKBONES[name](elements=["H", "C", "O"], cutoff=4.0, **given, axis="learned")
    model = Model(backbone, ["energy", "forces", "dipole"])
    out = model.train()(connect(molecule(), 4.0))
    (out["energy"].sum() + out["dipole"].sum() + out["forces"].square().sum()).backward()
    gradient = backbone.direction.grad
    assert float(gradient.norm()) > 1e-6 and abs(
        float(gradient @ backbone.direction.detach())
    ) < 1e-6 * float(gradient.norm()), "only the direction counts"
    path = tmp_path / "model.safetensors"
    save(model, path)
    assert torch.equal(load(path).axis, model.axis) and load(path).group == "O(n-1)"
    report = audit(model, [molecule().replace(vel=None)], draws=2).raise_if_failed()
    assert report.passed


@pytest.mark.parametrize(
    "make, error, words",
    [
        (
            lambda: EGNN(elements=["H"], axis=[0.0, 0.0, 0.0]),
            ModelError,
            r"EGNN.axis: found \[0.0, 0.0, 0.0\]; wanted 'learned'",
        ),
        (
            lambda: EGNN(elements=["H"], axis="up"),
            ConfigError,
            r"EGNN.axis: found 'up' \(str\); wanted 'learned' or a list$",
        ),
        (lambda: NequIP(elements=["H"], axis=["x"]), ConfigError, "NequIP.axis"),
        (
            lambda: EGNN(elements=["H"], axis=[0, 1])(
                connect(Graph.single([[0.0, 0, 0], [1.0, 0, 0]], [1, 1]), 5.0)
            ),
            ModelError,
            "the axis of this EGNN has 2 components; the structures have 3",
        ),
        (lambda: RelaxedEGNN(elements=["H"], gates=[1.0, 1.0]), ConfigError, "RelaxedEGNN.gates: found"),
        (
            lambda: RelaxedNequIP(elements=["H"], gates=["all", 1, 1]),
            ConfigError,
            r"RelaxedNequIP.gates: found \['all', 1, 1\]",
        ),
        (lambda: RelaxedNequIP(elements=["H"], channels=0), ConfigError, "RelaxedNequIP.channels: found 0"),
    ],
)
def test_faults(make, error, words):
    with pytest.raises(error, match=words):
        make()
