"""A transformed batch is the batch of the transformed structures; equivariance errors are those of the model."""

import math

import pytest
import torch

from molequi import EGNN, Dataset, Graph, Model, Quantity, Transformer, collate, connect, evaluate
from molequi.approximate import equivariance_errors
from molequi.approximate.scales import quantity_scale, quantity_scales, variation
from molequi.approximate.transforms import SYMMETRIES, RandomTransforms
from molequi.errors import ConfigError
from molequi.graph import separate
from molequi.symmetry import Transform, group

TRANSFORMS = RandomTransforms(group=group("O(n)"), shift=2.0, seed=0)


def structures(periodic: bool):
    """Three of different sizes with everything that can be given."""
    random = torch.Generator().manual_seed(1)
    graphs = []
    for n in (5, 7, 4):

        def normal(*shape):
            return torch.randn(*shape, generator=random, dtype=torch.float64)

        if periodic:
            cell = 3.1 * torch.eye(3, dtype=torch.float64) + 0.3 * normal(3, 3)
            graphs.append(
                Graph.single(2 * normal(n, 3), [1] * n, cell=cell, pbc=True, vel=normal(n, 3), x=normal(n, 2))
            )
            continue
        i, j = torch.triu_indices(n, n, 1)[:, :n]
        attr = normal(len(i), 2)
        graphs.append(
            Graph.single(
                normal(n, 3),
                torch.arange(1, n + 1),
                vel=normal(n, 3),
                vec=normal(n, 2, 3),
                x=normal(n, 2),
                pair_index=torch.stack([torch.cat([i, j]), torch.cat([j, i])]),
                pair_attr=torch.cat([attr, attr]),
            )
        )
    return graphs


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("periodic", [False, True])
def test_a_transformed_batch_is_the_batch_of_transformed_structures(symmetry, periodic):
    graphs = [connect(g, 4.0 if periodic else 9.0) for g in structures(periodic)]
    batch = collate(graphs)
    counts = [g.num_nodes for g in graphs]
    transforms = TRANSFORMS(symmetry, counts, ("test",))
    got = separate(transforms.graph(batch, {}))
    starts = [0, 5, 12]
    eye = torch.eye(3, dtype=torch.float64)
    changed = False
    for k, graph in enumerate(graphs):
        element = Transform.single(
            rotation=eye if transforms.rotations is None else transforms.rotations[k],
            translation=None if transforms.translations is None else transforms.translations[k],
            permutation=None
            if transforms.permutation is None
            else transforms.permutation[starts[k] : starts[k] + counts[k]] - starts[k],
        )
        wanted = connect(element.graph(graph), graph.cutoff)
        assert torch.equal(got[k].edge_index, wanted.edge_index) and torch.equal(got[k].z, wanted.z)
        for name in ("pos", "cell", "shift", "vel", "vec", "x", "edge_attr"):
            a, b = getattr(got[k], name), getattr(wanted, name)
            assert (a is None) == (b is None), name
            assert a is None or torch.allclose(a, b, rtol=0, atol=1e-12), name
        for q in (
            Quantity(name="a"),
            Quantity(name="b", per="node", rank=1),
            Quantity(name="c", rank=2),
            Quantity(name="d", rank=1, pseudo=True),
            Quantity(name="e", per="node", rank=1, point=True),
            Quantity(name="f", per="node", pseudo=True),
        ):
            value = torch.randn(sum(counts) if q.per == "node" else 3, *q.shape(), dtype=torch.float64)
            mine = slice(starts[k], starts[k] + counts[k]) if q.per == "node" else k
            assert torch.allclose(
                transforms.value(q, value, batch)[mine], element.value(q, value[mine]), rtol=0, atol=1e-12
            ), q.name
        changed |= not torch.equal(got[k].pos, graph.pos)
    assert changed


def test_every_structure_has_an_element_of_its_own_and_devices_share_them():
    counts = [3, 5, 4, 2]
    for symmetry in ("rotation", "translation"):
        field = "rotations" if symmetry == "rotation" else "translations"
        whole = getattr(TRANSFORMS(symmetry, counts, (1,)), field)
        assert not torch.allclose(whole[0], whole[1])
        assert torch.equal(whole, getattr(TRANSFORMS(symmetry, counts, (1,)), field))
        assert not torch.equal(whole, getattr(TRANSFORMS(symmetry, counts, (2,)), field))
        for rank in range(2):
            assert torch.equal(whole[rank::2], getattr(TRANSFORMS(symmetry, counts, (1,), (rank, 2)), field))
    whole = TRANSFORMS("permutation", counts, (1,)).permutation
    assert [sorted(part.tolist()) for part in whole.split(counts)] == [
        [0, 1, 2],
        [3, 4, 5, 6, 7],
        [8, 9, 10, 11],
        [12, 13],
    ]
    assert torch.equal(
        TRANSFORMS("permutation", counts, (1,), (1, 2)).permutation,
        torch.cat([whole[3:8] - 3, whole[12:] - 7]),
    )


def test_a_reflection_is_the_inversion_where_there_is_one():
    """So that a model with all rotations and no mirrors, or the other way round, is found at fault for one of them alone."""
    assert torch.equal(TRANSFORMS("reflection", [2], ()).rotations[0], -torch.eye(3, dtype=torch.float64))
    for name, dim in (("O(n)", 2), ("O(n-1)", 3), ("Td", 3)):
        turn = RandomTransforms(group=group(name, dim), shift=1.0, seed=0)("reflection", [2], ()).rotations[0]
        assert torch.linalg.det(turn) == pytest.approx(-1)
    assert turn.shape == (3, 3)
    upright = RandomTransforms(group=group("O(n-1)"), shift=1.0, seed=0)("rotation", [2], ()).rotations[0]
    assert (
        torch.allclose(upright[:, 2], torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
        and abs(float(upright[0, 0])) < 1
    )


@pytest.mark.parametrize("name,dim,number", [("O(n)", 3, 3), ("O(n)", 2, 1), ("O(n-1)", 3, 1)])
def test_generators_are_of_unit_length_and_undo_each_other(name, dim, number):
    draws = RandomTransforms(group=group(name, dim), shift=3.0, seed=0)
    here, back, found = draws.generators("rotation", [2, 2], (), 0.1)
    assert found == number
    assert torch.allclose(
        here.rotations @ back.rotations, torch.eye(dim, dtype=torch.float64).expand(2, dim, dim), atol=1e-12
    )
    # the angle of each is the step: tr R = dim - 2 + 2 cos φ
    assert torch.allclose(
        torch.einsum("gii->g", here.rotations),
        torch.full((2,), dim - 2 + 2 * math.cos(0.1), dtype=torch.float64),
    )
    here, back, found = draws.generators("translation", [2, 2], (), 0.1)
    assert found == dim and torch.equal(here.translations, -back.translations)
    assert torch.allclose(here.translations.norm(dim=1), torch.full((2,), 0.3, dtype=torch.float64))


def test_scales_are_those_of_the_dependence_on_geometry(make):
    data = make.morse(60)
    quantities = {n: data.quantities[n] for n in ("energy", "forces")}
    found = quantity_scales(quantities, data)
    assert found["forces"] == pytest.approx(float(data.values("forces").square().mean().sqrt()))
    # -3 eV for each proton of the nuclei is in every label, and does not depend on the geometry
    shifted = Dataset(
        [g.replace(targets=g.targets | {"energy": g.targets["energy"] + 50.0 * g.z.sum()}) for g in data]
    )
    assert quantity_scales(quantities, shifted)["energy"] == pytest.approx(found["energy"], rel=1e-6)
    assert 0.005 < found["energy"] < 0.5
    point = Quantity(name="moved", per="node", rank=1, point=True)
    values = torch.cat([g.pos + 0.5 for g in data])
    assert quantity_scale(point, values, data) == pytest.approx(0.5)
    assert quantity_scale(Quantity(name="kind", classes=("a", "b")), torch.zeros(60), data) == 1.0


def test_values_that_do_not_vary_have_no_variation_and_the_scale_one(make):
    data = make.morse(12)
    energy, forces = data.quantities["energy"], data.quantities["forces"]
    atoms = torch.tensor([g.num_nodes for g in data]).double()
    assert variation(energy, -7.0 * atoms, data) == 0.0 and quantity_scale(energy, -7.0 * atoms, data) == 1.0
    assert (
        variation(energy, data.values("energy"), data)
        == quantity_scale(energy, data.values("energy"), data)
        > 0.005
    )
    assert (
        variation(forces, torch.zeros(int(atoms.sum()), 3), data) == 0.0
        and quantity_scale(forces, torch.zeros(int(atoms.sum()), 3), data) == 1.0
    )
    unknown = torch.full((12,), float("nan")).double()
    assert variation(energy, unknown, data) == 0.0 and quantity_scale(energy, unknown, data) == 1.0
    few = data[:2]  # as many compositions as structures: the size is that of the energies themselves
    assert variation(energy, few.values("energy"), few) == 0.0
    assert quantity_scale(energy, few.values("energy"), few) == pytest.approx(
        float((few.values("energy") / atoms[:2]).std(correction=0))
    )


class TestEquivarianceErrors:
    def test_an_equivariant_model_has_none_and_errors_stay_as_they_are(self, make):
        data = make.morse(12)
        model = make.tiny().double()
        found = equivariance_errors(model, data, draws=2)
        given = evaluate(model, data).numbers()
        for row in found.rows:
            assert row.relative_error < 1e-10
            assert row.rmse_transformed == pytest.approx(row.rmse_original, rel=1e-8)
        assert found["rotation", "forces"].rmse_original == pytest.approx(given["forces_rmse"], rel=1e-12)
        assert found["rotation", "energy"].rmse_original == pytest.approx(
            given["energy_per_atom_rmse"], rel=1e-12
        )
        assert {row.symmetry for row in found.rows} == set(SYMMETRIES)
        assert "eV/atom" in str(found) and len(str(found).splitlines()) == 9

    def test_each_broken_symmetry_has_an_error_and_no_other(self, make):
        """A transformer has no equivariance to rotations; one with absolute positions none to translations either."""
        data = make.morse(8)
        for absolute in (False, True):
            torch.manual_seed(0)
            model = Model(
                Transformer(
                    elements=[1, 8],
                    channels=8,
                    layers=1,
                    heads=2,
                    vectors=2,
                    radial=4,
                    cutoff=4.0,
                    absolute=absolute,
                )
            ).double()
            found = equivariance_errors(model, data, draws=2)
            assert (
                found["rotation", "forces"].relative_error > 1e-3
                and found["reflection", "forces"].relative_error > 1e-3
            )
            assert found["permutation", "forces"].relative_error < 1e-10
            assert (found["translation", "forces"].relative_error > 1e-3) == absolute
            if not absolute:
                assert found["translation", "forces"].relative_error < 1e-10

    def test_the_scale_without_labels_is_that_of_the_predictions(self, make):
        data = make.morse(8)
        plain = Dataset([g.replace(targets={}) for g in data])
        torch.manual_seed(0)
        model = Model(
            Transformer(elements=[1, 8], channels=8, layers=1, heads=2, vectors=2, radial=4, cutoff=4.0)
        ).double()
        row = equivariance_errors(model, plain, draws=2, symmetries=["rotation"])["rotation", "forces"]
        other = equivariance_errors(model, data, draws=2, symmetries=["rotation"])["rotation", "forces"]
        predicted = torch.cat([model(connect(g, 4.0))["forces"] for g in plain]).detach()
        ratio = float(data.values("forces").square().mean().sqrt() / predicted.square().mean().sqrt())
        assert row.relative_error == pytest.approx(other.relative_error * ratio, rel=1e-6)
        assert row.rmse_transformed != row.rmse_transformed and row.rmse_original != row.rmse_original

    def test_points_move_along(self):
        moved = Quantity(name="moved", per="node", rank=1, point=True)
        random = torch.Generator().manual_seed(0)
        data = Dataset(
            [
                Graph.single(
                    p := torch.randn(4, 3, generator=random, dtype=torch.float64), targets={"moved": 1.1 * p}
                )
                for _ in range(6)
            ],
            quantities={"moved": moved},
        )
        model = Model(EGNN(elements=[0], channels=4, layers=1, cutoff=None), [moved]).double()
        assert all(row.relative_error < 1e-10 for row in equivariance_errors(model, data).rows)

    def test_messages(self, make):
        model, data = make.tiny(), make.morse(3)
        with pytest.raises(
            ConfigError, match=r"symmetries\.rotatoin: no such symmetry; did you mean 'rotation'\?"
        ):
            equivariance_errors(model, data, symmetries=["rotatoin"])
        with pytest.raises(ConfigError, match="symmetries='rotation': wanted a list of names"):
            equivariance_errors(model, data, symmetries="rotation")
        with pytest.raises(
            ConfigError, match="equivariance_errors: reflection is asked for, and the group SO.3. has none"
        ):
            equivariance_errors(model, data, group="SO(n)")
        with pytest.raises(
            ConfigError, match=r"equivariance_errors\.draws: found 0 \(int\); wanted greater than 0"
        ):
            equivariance_errors(model, data, draws=0)
        with pytest.raises(KeyError, match="rotation"):
            equivariance_errors(model, data)["turn", "forces"]


def test_a_transform_without_elements_changes_nothing():
    batch = collate([connect(g, 9.0) for g in structures(False)])
    same = Transform().graph(batch, {})
    assert torch.equal(same.pos, batch.pos) and torch.equal(same.edge_index, batch.edge_index)


def test_labels_of_any_unit_have_a_scale(make):
    data = make.morse(12)
    forces, values = data.quantities["forces"], data.values("forces")
    one = quantity_scale(forces, values, data)
    for unit in (1e-29, 1e20):
        assert quantity_scale(forces, unit * values, data) == pytest.approx(unit * one, rel=1e-9)
    assert variation(forces, 1e-14 * values, data, usual=1.0) == 0.0  # computed: round-off
    assert variation(forces, 1e-14 * values, data, usual=1e-13) > 0.0
