"""Spectra over orbits and hidden actions: quadratures that are exact, functions of known degree, representations that were hidden, and nets
that have none."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import nn

from molequi import Graph, Model, connect
from molequi.discovery.actions import HiddenAction, hidden_action
from molequi.discovery.functions import record_outputs, structure_function
from molequi.discovery.rotations import rotation_irreps, rotation_quadrature
from molequi.discovery.spectrum import orbit_spectrum
from molequi.errors import ConfigError, DataError, ModelError
from molequi.models import EGNN, NequIP, Transformer
from molequi.ops.irreps import spherical_harmonics, wigner
from molequi.symmetry import random_orthogonal

from ..audit.kit import ELEMENTS, molecule


def small(kind, predict=("energy", "forces"), seed=0, **options) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Model(
            kind(**{"elements": ELEMENTS, "cutoff": 4.0, "channels": 4, "layers": 2, **options}), predict
        )


def cloud(seed: int, dim: int = 3, nodes: int = 5) -> Graph:
    return Graph.single(
        torch.randn(nodes, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )


CLOUDS = [cloud(k) for k in range(4)]


# The quadrature.


@pytest.mark.parametrize("degree", [0, 1, 3, 6, 9])
def test_matrix_elements_are_orthonormal_up_to_the_degree(degree):
    """∫ √(2l+1) D^l_mn √(2k+1) D^k_pq dR = δ for all l + k ≤ degree (Peter-Weyl); the weights add up to one."""
    turns, weights = rotation_quadrature(3, degree)
    assert torch.allclose(torch.linalg.det(turns), torch.ones(1, dtype=torch.float64)) and math.isclose(
        float(weights.sum()), 1.0
    )
    l_max = degree // 2
    rows = torch.cat(
        [math.sqrt(2 * l + 1) * d.flatten(1) for l, d in enumerate(rotation_irreps(l_max, turns))], dim=1
    )
    assert (
        float(((rows.T * weights) @ rows - torch.eye(rows.shape[1], dtype=torch.float64)).abs().max()) < 1e-13
    )
    highest = rotation_irreps(degree, turns)[-1].flatten(1)
    assert degree == 0 or float((weights @ highest).abs().max()) < 1e-13
    beyond = rotation_irreps(degree + 2, turns)[
        -2:
    ]  # the control: of higher degrees it does not say the truth
    assert max(float((weights @ d.flatten(1)).abs().max()) for d in beyond) > 1e-3


def test_weights_are_positive():
    """Of some sphere rules they are not, and then mean squares of what they do not resolve could be negative."""
    assert all(float(rotation_quadrature(3, degree)[1].min()) > 0 for degree in range(32))
    from molequi.ops.sphere import quadrature

    assert float(quadrature(13)[1].min()) < 0


def test_the_mean_of_a_polynomial_against_random_rotations():
    """A second source: the mean of (tr R)² R_xy R_yx over many rotations of scipy."""
    turns, weights = rotation_quadrature(3, 4)

    def polynomial(r):
        return np.trace(r, axis1=1, axis2=2) ** 2 * r[:, 0, 1] * r[:, 1, 0]

    drawn = polynomial(Rotation.random(400_000, random_state=0).as_matrix())
    assert abs(
        float(weights.numpy() @ polynomial(turns.numpy())) - drawn.mean()
    ) < 4 * drawn.std() / math.sqrt(len(drawn))


def test_representations_are_those_of_the_irreps():
    turns = torch.stack(
        [random_orthogonal(3, proper=True, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    )
    for l, found in enumerate(rotation_irreps(5, turns)):
        assert torch.allclose(found, torch.stack([wigner(f"{l}e", t) for t in turns]), atol=1e-12)
    plane = rotation_quadrature(2, 6)[0]
    for l, found in enumerate(rotation_irreps(3, plane)[1:], 1):
        assert torch.allclose(
            found[1, 0, 0], torch.tensor(math.cos(2 * math.pi * l / 7), dtype=torch.float64)
        )


# Spectra of what is known.


def invariant(graph: Graph):
    return graph.pos.norm(dim=1)


def vector(graph: Graph):
    return graph.pos * graph.pos.norm(dim=1, keepdim=True)


def component(graph: Graph):
    return graph.pos[:, 0]


def quadratic(graph: Graph):
    return graph.pos[:, 0] * graph.pos[:, 1]


def shares(function, **options):
    return list(
        orbit_spectrum(
            function, CLOUDS, **{"l_max": 3, "quadrature_degree": 8, "centered": False, **options}
        ).shares.values()
    )


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (invariant, [1, 0, 0, 0]),
        (vector, [0, 1, 0, 0]),
        (component, [0, 1, 0, 0]),
        (quadratic, [0, 0, 1, 0]),
        (lambda graph: spherical_harmonics(3, graph.pos)[3], [0, 0, 0, 1]),
        # x² has |r|²/3 in it: 1/9 of the mean 1/5 of x⁴ over the sphere, the rest of degree 2
        (lambda graph: graph.pos[:, 0].square(), [5 / 9, 0, 4 / 9, 0]),
        # x² + x: 1/5 + 1/3 in all for unit vectors, of which 1/9, 1/3 and 4/45
        (
            lambda graph: (u := nn.functional.normalize(graph.pos, dim=1)[:, 0]).square() + u,
            [(1 / 9) / (8 / 15), (1 / 3) / (8 / 15), (4 / 45) / (8 / 15), 0],
        ),
    ],
)
def test_known_spectra(function, wanted):
    assert np.allclose(shares(function), wanted, atol=1e-13)


def test_parity_splits_the_shares():
    def both(graph):
        pos = graph.pos.reshape(-1, 5, 3)
        return torch.cat([pos, torch.linalg.cross(pos, pos.roll(1, 1))], dim=2).flatten(0, 1)

    found = orbit_spectrum(both, CLOUDS, l_max=1, quadrature_degree=4, parity=True)
    assert (
        found.shares["1o"] > 0.1
        and found.shares["1e"] > 0.1
        and math.isclose(found.shares["1o"] + found.shares["1e"], 1.0, abs_tol=1e-13)
    )
    volume = orbit_spectrum(
        lambda g: torch.linalg.det(g.pos.reshape(-1, 5, 3)[:, :3]),
        CLOUDS,
        l_max=1,
        quadrature_degree=4,
        parity=True,
        centered=False,
    )
    assert math.isclose(volume.shares["0o"], 1.0, abs_tol=1e-13) and volume.summary == "a pseudoscalar"


def test_circles_in_the_plane():
    plane = [cloud(k, 2) for k in range(3)]

    def function(graph):  # r, r cos φ, and r² cos 2φ of unit vectors: 1, 1/2, 1/2
        u = nn.functional.normalize(graph.pos, dim=1)
        return 1 + u[:, 0] + u[:, 0].square() - u[:, 1].square()

    found = orbit_spectrum(function, plane, l_max=3, quadrature_degree=8, centered=False)
    assert (
        np.allclose(list(found.shares.values()), [1 / 2, 1 / 4, 1 / 4, 0], atol=1e-13)
        and found.n_rotations == 9
    )
    with pytest.raises(ConfigError, match="parity=True with structures of 2 dimensions"):
        orbit_spectrum(function, plane, parity=True)
    with pytest.raises(ConfigError, match="two and three dimensions; the structures have 4"):
        orbit_spectrum(component, [cloud(0, 4)])


def test_a_random_perceptron_is_a_mixture_that_adds_up_to_one():
    """Without its offset most is what a linear map has; and the quadrature leaves nothing out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 8)
        ).double()
    found = orbit_spectrum(lambda g: net(3 * g.pos), CLOUDS[:2], l_max=4, quadrature_degree=16)
    assert 0.5 < found.shares["1"] < 0.95 and min(found.shares["0"], found.shares["2"]) > 1e-3
    assert -1e-12 < found.remainder < 0.02 and sum(found.shares.values()) + found.remainder == pytest.approx(
        1
    )
    assert "a mixture of degrees" in found.summary and found.deformation_change > 1e-2
    coarse = orbit_spectrum(
        lambda g: torch.cos(8 * g.pos), CLOUDS[:2], l_max=3, quadrature_degree=6, centered=False
    )
    fine = orbit_spectrum(
        lambda g: torch.cos(8 * g.pos), CLOUDS[:2], l_max=3, quadrature_degree=30, centered=False
    )
    assert (
        coarse.remainder < fine.remainder and fine.remainder > 0.5
    )  # too coarse a rule sees too little beyond its degree
    assert (
        "not resolved" in coarse.summary
        and coarse.quadrature_error > 0.1
        and "not resolved" not in fine.summary
    )


def legendre(l: int):
    """P_l(z / r) of each node."""
    return lambda g: torch.from_numpy(
        np.polynomial.legendre.Legendre.basis(l)((g.pos[:, 2] / g.pos.norm(dim=1)).numpy())
    )


def wave(k: int):
    """cos k φ of each node in the plane."""
    return lambda g: (k * torch.atan2(g.pos[:, 1], g.pos[:, 0])).cos()


PLANE = [cloud(k, 2) for k in range(4)]


@pytest.mark.parametrize("l", [6, 7, 8])
def test_the_mean_is_as_exact_as_the_rest(l):
    """Degrees up to half of that of the quadrature have no invariant part, without the mean over the structures too."""
    for function, structures in ((legendre(l), CLOUDS[:1]), (wave(l), PLANE)):
        for centered in (True, False):
            found = orbit_spectrum(function, structures, l_max=8, centered=centered)
            assert found.shares[str(l)] == pytest.approx(1, abs=1e-13) and found.shares["0"] < 1e-25, found
            assert found.quadrature_error < 1e-12 and found.summary == f"of degree {l}"


@pytest.mark.parametrize(
    ("function", "structures", "wrong"),
    [
        (wave(17), PLANE, {"0": 1}),
        (wave(14), PLANE, {"3": 1}),
        (wave(18), PLANE, {"1": 1}),  # of 17 points
        (lambda g: (25 * g.pos[:, 2] / g.pos.norm(dim=1)).sin(), CLOUDS, {}),
        (legendre(18), CLOUDS, {}),
        (lambda g: (25 * g.pos[:, 2] / g.pos.norm(dim=1)).sin().reshape(-1, 5).sum(1), CLOUDS[:1], {}),
    ],
)
def test_degrees_that_pass_for_lower_ones_are_seen(function, structures, wrong):
    """A quadrature takes cos 17φ for a constant; another one does not, and one that is fine enough tells the truth and says so."""
    found = orbit_spectrum(function, structures, centered=False)
    assert all(found.shares[label] == pytest.approx(share) for label, share in wrong.items()), (
        "the fault that is to be seen"
    )
    assert (
        found.quadrature_error > 0.05
        and "not resolved" in found.summary
        and "take a higher quadrature_degree" in found.summary
        and found.quadrature_degree == 16
    )
    assert (
        f"error {found.quadrature_error:.1e}" in str(found)
        and json.loads(found.to_json())["quadrature_error"] == found.quadrature_error
    )
    fine = orbit_spectrum(function, structures[:1], centered=False, quadrature_degree=40)
    assert fine.quadrature_error < 1e-2 and sum(fine.shares.values()) < 0.05 and "mostly" in fine.summary


def test_a_little_that_is_not_resolved_is_no_exact_symmetry():
    found = orbit_spectrum(lambda g: 1 + 0.05 * wave(17)(g), PLANE, centered=False)
    assert (
        found.shares["0"] == pytest.approx(1)
        and 1e-4 < found.quadrature_error < 1e-2
        and found.summary == f"invariant, except for {found.quadrature_error:.1e}"
    )


def test_degrees_above_those_told_apart():
    found = orbit_spectrum(legendre(6), CLOUDS, l_max=4)
    assert found.remainder == pytest.approx(1) and found.summary == "mostly (1.000) of degrees above 4"
    assert (
        orbit_spectrum(legendre(6), CLOUDS, l_max=3, parity=True).summary
        == "mostly (1.000) of degrees above 3"
    )


@pytest.mark.parametrize("kind, group", [(NequIP, "exact"), (Transformer, "none")])
def test_quantities_irreps_and_layers_of_models(kind, group):
    net = small(kind, ["energy", "forces", "dipole"], **({"l_max": 2} if kind is NequIP else {"channels": 8}))
    structures = [molecule(0, 5), molecule(1, 6)]
    layer = "backbone.layers.0" if kind is Transformer else "heads.energy.net.0"
    for of, label in (
        ("energy", "0"),
        ("forces", "1"),
        ("dipole", "1"),
        ("0e", "0"),
        ("1o", "1"),
        (layer, "0"),
    ):
        found = orbit_spectrum(net, structures, of, l_max=2, quadrature_degree=6)
        assert (abs(found.shares[label] - 1) < 1e-12) == (group == "exact"), (of, found)
    assert net.training and next(net.parameters()).dtype == torch.float32, (
        "the model that is handed over stays as it was"
    )


def test_a_constant_beside_the_energy_hides_nothing():
    """-10⁶ eV of isolated atoms would make any net invariant to 10⁻⁹; and one structure alone cannot tell an invariant from a constant."""
    net = small(Transformer, channels=8)
    net.heads["energy"].reference_energies[:] = -1e6
    structures = [molecule(0, 5), molecule(1, 5)]
    assert orbit_spectrum(net, structures, "energy", quadrature_degree=8, l_max=2).shares["0"] < 0.99
    assert (
        orbit_spectrum(net, structures, "energy", quadrature_degree=8, l_max=2, centered=False).shares["0"]
        > 1 - 1e-9
    )
    with pytest.raises(DataError, match="the same for all 1 structures .* or centered=False"):
        orbit_spectrum(small(EGNN), structures[:1], "energy", quadrature_degree=4, l_max=1)


def test_calculators_and_declared_modules():
    from ase.calculators.lj import LennardJones

    from molequi.audit import Declared

    structures = [molecule(0, 4), molecule(1, 5)]
    for of, label in (("energy", "0"), ("forces", "1")):
        assert (
            abs(
                orbit_spectrum(LennardJones(rc=4.0), structures, of, l_max=1, quadrature_degree=2).shares[
                    label
                ]
                - 1
            )
            < 1e-10
        )

    class Height(nn.Module):
        def forward(self, pos):
            return pos[:, 2]

    found = orbit_spectrum(
        Declared(Height(), takes=["pos"], gives="charges", edges=False),
        structures,
        "charges",
        l_max=1,
        quadrature_degree=2,
    )
    assert abs(found.shares["1"] - 1) < 1e-12
    with pytest.raises(
        ConfigError,
        match="Height does not say its quantities, cutoff, group; declare what it takes and gives",
    ):
        orbit_spectrum(Height(), structures, "charges")


@pytest.mark.parametrize("of", [orbit_spectrum, hidden_action])
def test_functions_that_do_not_depend_on_positions_are_refused(of):
    with pytest.raises(DataError, match="function|lambda"):
        of(lambda graph: torch.ones(graph.num_nodes, 2), CLOUDS)
    with pytest.raises(DataError, match="for all deformations of the structures"):
        of(lambda graph: graph.z.double(), CLOUDS)


def test_periodic_structures_turn_with_their_cells():
    from ..audit.kit import crystal

    found = orbit_spectrum(
        small(NequIP, ["energy", "forces", "stress"], l_max=1),
        [crystal(), molecule(2, 5)],
        "energy",
        l_max=1,
        quadrature_degree=2,
    )
    assert abs(found.shares["0"] - 1) < 1e-12

    def rows_for_columns(graph):  # hᵀ x in place of x h⁻¹: no invariant, as an unrotated cell is none
        return (graph.cell[graph.batch].transpose(1, 2) @ graph.pos[:, :, None]).norm(dim=1)

    assert orbit_spectrum(rows_for_columns, [crystal()], l_max=1, quadrature_degree=8).shares["0"] < 0.999


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: orbit_spectrum(small(EGNN), [molecule()], "enrgy"), ConfigError, "did you mean 'energy'"),
        (lambda: orbit_spectrum(component, CLOUDS, "energy"), ConfigError, "only models have named outputs"),
        (lambda: orbit_spectrum(3, CLOUDS), ConfigError, "only models have named outputs"),
        (
            lambda: orbit_spectrum(component, CLOUDS, quadrature_degree=131),
            ConfigError,
            "quadrature_degree=131: wanted a quadrature_degree up to 130",
        ),
        (
            lambda: orbit_spectrum(component, CLOUDS, l_max=5, quadrature_degree=8),
            ConfigError,
            "l_max=5 with quadrature_degree=8: wanted a quadrature_degree up to 130, and l_max from 0 to half of it",
        ),
        (
            lambda: orbit_spectrum(lambda g: g.pos.sum(), CLOUDS),
            ModelError,
            "wanted the same number of rows for each",
        ),
        (lambda: orbit_spectrum(lambda g: g.pos / 0.0, CLOUDS), ModelError, "not finite"),
        (
            lambda: hidden_action(component, CLOUDS, l_max=5, quadrature_degree=8),
            ConfigError,
            "l_max=5 with quadrature_degree=8: wanted a quadrature_degree up to 130, and l_max from 0 to half of it",
        ),
        (lambda: hidden_action(component, CLOUDS, n_pairs=0), ConfigError, "at least one pair"),
        (lambda: hidden_action(component, CLOUDS[:2]), DataError, "2 structures .* at least three"),
        (
            lambda: hidden_action(lambda g: torch.cat([g.pos, g.pos**2, g.pos**3, g.pos**4], 1), CLOUDS[:3]),
            DataError,
            "10 rows .* 12 dimensions",
        ),
        (
            lambda: hidden_action(
                lambda g: g.pos, [Graph.single(torch.ones(9, 1) * torch.randn(3)) for _ in range(3)]
            ),
            DataError,
            "too similar",
        ),
    ],
)
def test_what_cannot_be_asked(make, error, words):
    with pytest.raises(error, match=words):
        make()


class Talking(nn.Module):
    """A backbone's layer that returns words beside numbers."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.word = layer, nn.Module()
        self.word.forward = lambda: "nothing"

    def forward(self, *given):
        self.word()
        return self.layer(*given)


def test_layers_that_do_not_run_or_return_no_rows():
    net = small(Transformer, channels=8)
    net.unused = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="'unused': the module was not called"):
        orbit_spectrum(net, [molecule()], "unused")
    net.backbone.layers[0] = Talking(net.backbone.layers[0])
    with pytest.raises(ModelError, match="returns str; wanted a tensor"):
        orbit_spectrum(net, [molecule()], "backbone.layers.0.word")
    whole = structure_function(net, [molecule()], "backbone")  # Features: its blocks side by side
    assert whole.function(whole.graphs[0]).shape == (7, 8 + 3 * 16)
    with record_outputs([net.backbone.layers[0].word]) as seen:
        net(connect(molecule(), 4.0))
    assert seen == ["nothing"] and not net.backbone.layers[0].word._forward_hooks, "hooks are taken away"


# Hidden actions.


def hidden(net: Model, seed: int = 3):
    """The features of a net flattened and mixed by a random orthogonal matrix, and the layout that they were made of."""
    model = net.double().eval()
    width = sum(c * {"0": 1, "1": 3, "2": 5}[i[0]] for i, c in model.backbone.out.items())
    mix = random_orthogonal(width, generator=torch.Generator().manual_seed(seed))

    def features(graph: Graph):
        with torch.no_grad():
            return model.backbone(graph).flat() @ mix.T

    return features, mix, "+".join(f"{c}x{i}" for i, c in model.backbone.out.items())


@pytest.fixture(scope="module")
def recovered() -> tuple[HiddenAction, torch.Tensor, str]:
    net = small(NequIP, ["energy"], l_max=2, channels=3)
    features, mix, layout = hidden(net)
    return (
        hidden_action(
            features, [connect(molecule(k, 6), 4.0) for k in range(18)], quadrature_degree=4, parity=True
        ),
        mix,
        layout,
    )


def test_a_hidden_representation_is_recovered_exactly(recovered):
    found, _, layout = recovered
    assert (
        layout == "3x0e+3x1o+3x2e" == found.irreps
        and found.exact
        and "exact linear action: 3x0e+3x1o+3x2e" in found.summary
    )
    assert found.rank == found.n_features == 27 and found.homomorphism_defect <= 1e-6 and 1 - found.r2 <= 1e-8
    assert (
        all(abs(n - round(n)) < 1e-8 for n in found.multiplicities.values()) and abs(found.remainder) < 1e-8
    )


def test_its_matrices_are_those_of_the_layout_behind_the_mix(recovered):
    found, mix, _ = recovered
    turn = random_orthogonal(3, proper=False, generator=torch.Generator().manual_seed(9))
    wanted = torch.block_diag(*[torch.eye(3, dtype=torch.float64), *[turn] * 3, *[wigner("2e", turn)] * 3])
    assert torch.allclose(found.matrix(turn), mix @ wanted @ mix.T, atol=1e-7)


def test_features_that_never_vary_are_left_out():
    """Invariants and vectors in twice as many dimensions as they need, some of them zero."""
    wide = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wide[:2] = 0
    found = hidden_action(
        lambda g: torch.cat([g.pos, g.pos.norm(dim=1, keepdim=True)], 1) @ wide.T,
        [cloud(k, nodes=8) for k in range(6)],
        l_max=1,
    )
    assert (found.n_features, found.rank) == (9, 4) and found.irreps == "1x0+1x1" and found.exact


def test_actions_in_the_plane():
    def features(graph):
        x, y = graph.pos.unbind(1)
        return torch.stack([x, y, x * x + y * y, x * x - y * y, 2 * x * y, x + y], dim=1)

    found = hidden_action(features, [cloud(k, 2, 8) for k in range(6)], l_max=3)
    assert found.rank == 5 and found.irreps == "1x0+1x1+1x2" and found.exact


@pytest.mark.parametrize("seed", range(3))
def test_a_random_net_has_no_action(seed):
    net = small(Transformer, ["energy"], seed=seed, channels=8, radial=4)
    found = hidden_action(net, [molecule(k, 7) for k in range(20)], "features", quadrature_degree=4)
    assert found.irreps is None and not found.exact and found.r2 < 0.9 and "no linear action" in found.summary
    assert found.r2 < found.r2_train - 0.02  # a fit to few rows is better on them than it is


def test_a_nonlinear_action_is_none():
    """tanh of a mix of vectors: what comes out is fixed by what goes in, but not linearly."""
    mix = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    structures = [cloud(k, nodes=10) for k in range(9)]
    assert hidden_action(lambda g: g.pos @ mix, structures, l_max=1).irreps == "1x1"
    found = hidden_action(lambda g: torch.tanh(g.pos @ mix), structures, l_max=1)
    assert found.irreps is None and found.r2 < 0.9


def test_a_slight_nonlinearity_is_nearly_an_action():
    found = hidden_action(
        lambda g: torch.cat([g.pos + 0.02 * g.pos[:, :1].square(), g.pos.norm(dim=1, keepdim=True)], 1),
        [cloud(k, nodes=10) for k in range(9)],
        l_max=1,
    )
    assert found.irreps == "1x0+1x1" and not found.exact and "an approximate linear action" in found.summary


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_frames_of_one_pose_do_not_hide_that_there_is_no_action(noise):
    """Nine nodes and nine features: some map fits how one pose turns, whatever it does."""
    generator = torch.Generator().manual_seed(0)
    pos, mix, shift = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((9, 3), (3, 9), (9,))
    )
    frames = [
        Graph.single(pos + noise * torch.randn(9, 3, generator=generator, dtype=torch.float64))
        for _ in range(12)
    ]
    found = hidden_action(lambda g: torch.tanh(g.pos @ mix + shift), frames)
    assert found.r2 < 0.8 and found.irreps is None and "no linear action" in found.summary, found
    assert hidden_action(lambda g: g.pos @ mix, frames).irreps == "1x1", "the control"


def test_structures_in_one_plane_say_as_much_as_others():
    flat = [Graph.single(cloud(k, nodes=9).pos * torch.tensor([1.0, 1.0, 0.0])) for k in range(3)]
    found = hidden_action(lambda g: g.pos, flat)
    assert found.exact and found.irreps == "1x1"


def test_a_map_that_is_no_homomorphism_is_no_action(recovered):
    found = replace(recovered[0], homomorphism_defect=11.0)
    assert (
        found.irreps is None
        and not found.exact
        and found.summary
        == "no linear action: M(R₁R₂) differs from M(R₁)M(R₂), with a relative defect of 1.1e+01"
    )
    assert "an approximate linear action" in replace(recovered[0], homomorphism_defect=0.1).summary


def test_an_irrep_beyond_those_looked_for():
    def features(graph):
        return torch.cat(spherical_harmonics(3, graph.pos)[3:], dim=1)

    structures = [cloud(k, nodes=10) for k in range(9)]
    assert hidden_action(features, structures, l_max=3).irreps == "1x3"
    found = hidden_action(features, structures, l_max=2)
    assert (
        found.irreps is None
        and found.r2 > 1 - 1e-8
        and "take a larger l_max" in found.summary
        and found.remainder == pytest.approx(7, abs=1e-6)
    )


# Reports.


def test_reports_are_tables_json_and_html(recovered):
    found = orbit_spectrum(vector, CLOUDS, l_max=1, quadrature_degree=4)
    data = json.loads(found.to_json())
    assert (
        data["shares"]["1"] == found.shares["1"]
        and data["summary"] == found.summary == "a vector, or components of one"
    )
    assert (
        "degree" in str(found)
        and "orbit spectrum of vector" in str(found)
        and "<table>" in found._repr_html_()
    )
    action = recovered[0]
    data = json.loads(action.to_json())
    assert (
        data["irreps"] == "3x0e+3x1o+3x2e"
        and data["exact"]
        and "3x2e" in str(action)
        and "<table>" in action._repr_html_()
    )
