"""Faults put in on purpose: each must be found, by the check that is there for it."""

import pytest
import torch

from molequi import Model, NequIP, Quantity
from molequi.audit import audit
from molequi.features import Features
from molequi.heads import Scalar
from molequi.nn import radial

from .kit import ELEMENTS, crystal, molecule

PREDICT = ("energy", "forces", "dipole")


class Planted(NequIP):
    """A sound backbone with a fault before it (on the graph) or after it (on the features)."""

    def __init__(self, *, before=None, after=None):
        super().__init__(elements=ELEMENTS, cutoff=3.5, channels=4, layers=2, radial=4)
        self.before, self.after = before, after

    def forward(self, graph):
        features = super().forward(self.before(graph) if self.before else graph)
        if self.after is None:
            return features
        return Features(
            blocks={**features.blocks, **self.after(graph, features.blocks)},
            coordination=features.coordination,
        )


class Wrong(Model):
    """A sound model whose results are spoilt."""

    def __init__(self, backbone, predict, spoil):
        super().__init__(backbone, predict)
        self.spoil = spoil

    def forward(self, graph, *, create_graph=None):
        out = super().forward(graph, create_graph=create_graph)
        try:
            return self.spoil(graph, out)
        except KeyError:  # a view of the model without what is spoilt, as the sum rules take
            return out


def report_of(*, before=None, after=None, spoil=None, predict=PREDICT, structures=None, draws=8, **options):
    torch.manual_seed(0)
    backbone = Planted(before=before, after=after)
    model = Model(backbone, predict) if spoil is None else Wrong(backbone, predict, spoil)
    return audit(model, structures or [molecule(0), molecule(1, 5)], draws=draws, **options)


def failed(report):
    return {r.check for r in report.failed}


def test_control_without_a_fault():
    assert report_of().passed
    assert report_of(predict=("energy", "forces", "stress"), structures=[crystal()]).passed


def test_absolute_coordinate():
    report = report_of(after=lambda g, b: {"0e": b["0e"] + 1e-3 * g.pos[:, :1, None].to(b["0e"])})
    assert {"translation", "rotation", "reflection"} <= failed(report)
    assert not {"permutation", "edge order", "batch", "finite differences"} & failed(report)


def test_translation_alone():
    # a length from the origin turns with everything
    report = report_of(
        after=lambda g, b: {"0e": b["0e"] + 1e-3 * g.pos.square().sum(1)[:, None, None].to(b["0e"])}
    )
    assert "translation" in failed(report)
    assert not {"rotation", "reflection", "permutation"} & failed(report)


def test_mean_over_x_y_z():
    report = report_of(after=lambda g, b: {"0e": b["0e"] + 0.1 * b["1o"].mean(-1, keepdim=True)})
    assert {"rotation", "features"} <= failed(report)
    assert {r.quantity for r in report.failed if r.check == "features"} == {"0e"}
    assert not {"translation", "permutation", "batch"} & failed(report)


def test_component_wise_clamp():
    report = report_of(after=lambda g, b: {"1o": b["1o"].clamp(-0.1, 0.1)})
    assert {"rotation", "features"} <= failed(report)
    assert {r.quantity for r in report.failed} == {"dipole", "born_charges", "1o"}


def test_relu_on_vectors():
    report = report_of(after=lambda g, b: {"2e": b["2e"].relu()}, predict=("energy", "polarizability"))
    assert {r.quantity for r in report.failed if r.check in ("rotation", "features")} == {
        "polarizability",
        "2e",
    }


def test_batch_norm_on_vectors():
    def normalised(g, b):
        v = b["1o"]
        return {"1o": (v - v.mean(0)) / (v.std(0) + 1e-6)}

    assert {"rotation", "features", "batch"} <= failed(report_of(after=normalised))


def test_unrotated_cell():
    report = report_of(
        after=lambda g, b: {"0e": b["0e"] + 0.1 * g.cell[g.batch, 0, 0][:, None, None].to(b["0e"])},
        predict=("energy", "forces"),
        structures=[crystal()],
        checks=["not zero", "rotation", "reflection", "translation", "permutation", "lattice"],
    )
    assert failed(report) == {"rotation", "reflection", "lattice"}


def test_parity_slip_is_found_by_reflections_only():
    def slip(g, b):
        v = b["1o"]
        return {
            "0e": b["0e"] + 0.1 * torch.linalg.cross(v[:, :1], v[:, 1:2]).mul(v[:, 2:3]).sum(-1, keepdim=True)
        }

    report = report_of(after=slip)
    assert failed(report) == {"reflection", "features"}
    assert {r.element for r in report.failed} == {"improper"}


def test_first_neighbours_of_the_list_only():
    def first_three(g):
        receiver = g.edge_index[1]
        start = torch.searchsorted(receiver.contiguous(), receiver.contiguous())
        keep = torch.arange(len(receiver)) - start < 3
        return g.replace(edge_index=g.edge_index[:, keep])

    assert "permutation" in failed(report_of(before=first_three, predict=("energy", "forces")))


def test_nearest_neighbours_only():
    # this one turns and permutes well; only a path through a structure sees neighbours change places
    def nearest_two(g):
        receiver, length = g.edge_index[1], g.edge_vectors().detach().norm(dim=1)
        nearer = (receiver[:, None] == receiver[None]) & (length[None] < length[:, None])
        return g.replace(edge_index=g.edge_index[:, nearer.sum(1) < 2])

    found = [
        failed(
            report_of(
                before=nearest_two,
                predict=("energy", "forces"),
                seed=s,
                structures=[molecule(k) for k in range(4)],
                checks=["rotation", "permutation", "smoothness"],
            )
        )
        for s in range(3)
    ]
    assert all(f == {"smoothness", "energy against force"} for f in found)


def test_sign_of_the_lattice_step():
    report = report_of(
        before=lambda g: g if g.shift is None else g.replace(shift=-g.shift),
        structures=[crystal()],
        predict=("energy", "forces", "stress"),
    )
    assert "lattice" in failed(report)


def test_sign_of_an_edge_by_the_order_of_its_nodes():
    def one_sided(g, b):
        j, i = g.edge_index
        along = g.edge_vectors().to(b["1o"]) * torch.where(j < i, -1.0, 1.0)[:, None]
        return {"1o": b["1o"] + 0.1 * torch.zeros_like(g.pos).to(along).index_add(0, i, along)[:, None]}

    report = report_of(after=one_sided)
    assert "permutation" in failed(report)
    assert not {"rotation", "reflection", "translation", "edge order"} & failed(report)


def test_constants_rounded_to_half_precision():
    torch.manual_seed(0)
    model = Model(Planted(), PREDICT)
    for layer in model.backbone.interactions:
        layer.convolution.product.coupling = layer.convolution.product.coupling.half().double()
    report = audit(model, [molecule(0)], draws=8)
    rows = [r for r in report.failed if r.check == "features"]
    assert {"rotation", "reflection", "features"} <= failed(report)
    assert all("no round-off" in r.explanation and r.ratio < 10 for r in rows)
    assert not {"permutation", "translation", "batch", "finite differences"} & failed(report)


def test_leak_between_the_graphs_of_a_batch():
    report = report_of(after=lambda g, b: {"0e": b["0e"] + 0.1 * b["0e"].mean(0, keepdim=True)})
    assert {"batch", "across graphs"} <= failed(report)
    assert not {"rotation", "reflection", "permutation", "features"} & failed(report)


def test_sign_of_the_stress():
    report = report_of(
        spoil=lambda g, out: {**out, "stress": -out["stress"]},
        predict=("energy", "forces", "stress"),
        structures=[crystal()],
    )
    assert [(r.check, r.quantity) for r in report.failed] == [("finite differences", "stress")]
    assert report.failed[0].maximum > 0.1


def test_forces_four_percent_wrong():
    report = report_of(spoil=lambda g, out: {**out, "forces": 1.04 * out["forces"]})
    assert failed(report) == {"finite differences", "energy against force"}
    (row,) = (r for r in report.failed if r.check == "finite differences")
    assert 0.01 < row.maximum < 0.2


def test_forces_with_a_net_force():
    report = report_of(spoil=lambda g, out: {**out, "forces": out["forces"] + 1e-3 * g.z[:, None]})
    assert {"momentum", "rotation", "cutoff", "one atom", "no edges"} <= failed(report)


def test_cutoff_without_an_envelope(monkeypatch):
    monkeypatch.setattr(radial, "envelope", lambda length, cutoff, p=6: (length < cutoff).to(length.dtype))
    report = report_of()
    rows = {(r.check, r.element) for r in report.failed}
    assert {("energy against force", "across the cutoff"), ("smoothness", "across the cutoff")} <= rows
    assert not {"rotation", "reflection", "permutation"} & failed(report)


def test_edges_beyond_the_cutoff_are_felt(monkeypatch):
    monkeypatch.setattr(radial, "envelope", lambda length, cutoff, p=6: torch.exp(-length))
    assert "cutoff" in failed(report_of())


def test_energy_that_is_a_mean():
    class Averaged(Scalar):
        def pool(self, values, graph, features):
            return super().pool(values, graph, features) / graph.counts

    torch.manual_seed(0)
    report = audit(Model(Planted(), [Averaged("energy"), "forces"]), [crystal(), molecule(0)], draws=4)
    assert {"supercell", "fragments"} <= failed(report)
    assert not {"rotation", "batch", "finite differences"} & failed(report)


def test_isolated_atoms_with_a_wrong_energy():
    report = report_of(spoil=lambda g, out: {**out, "energy": out["energy"] + 0.1 * g.counts.double()})
    assert failed(report) == {"one atom"}


@pytest.mark.parametrize("name", ["energy", "forces", "dipole"])
def test_nothing_passes_by_being_zero(name):
    report = report_of(spoil=lambda g, out: {**out, name: 0.0 * out[name]})
    assert ("not zero", name) in {(r.check, r.quantity) for r in report.failed}


def test_output_that_is_not_finite():
    report = report_of(spoil=lambda g, out: {**out, "dipole": out["dipole"] / 0.0})
    assert "not finite" in str(report)
    assert ("not zero", "dipole") in {(r.check, r.quantity) for r in report.failed}


def test_pseudovector_declared_as_a_vector():
    torch.manual_seed(0)
    backbone = NequIP(elements=ELEMENTS, cutoff=3.5, channels=4, layers=3, radial=4, parity=True)
    sound = Model(backbone, [Quantity(name="spin_moment", per="node", rank=1, pseudo=True)])
    assert audit(sound, [molecule(0)], draws=4, checks=["not zero", "rotation", "reflection"]).passed
    sound._quantities["spin_moment"] = Quantity(name="spin_moment", per="node", rank=1)
    report = audit(sound, [molecule(0)], draws=4, checks=["not zero", "rotation", "reflection"])
    assert failed(report) == {"reflection"}


def test_reflections_of_a_model_without_them_are_reported_and_not_asked():
    torch.manual_seed(0)
    model = Model(
        NequIP(elements=ELEMENTS, cutoff=3.5, channels=4, layers=3, radial=4, group="SO(3)"),
        ["energy", "forces"],
    )
    report = audit(model, [molecule(0)], draws=4, checks=["rotation", "reflection"])
    assert report.passed
    rows = [r for r in report.rows if r.check == "reflection"]
    assert all(
        r.verdict == "not applicable" and "do not hold" in r.explanation and r.maximum > 1e-6 for r in rows
    )
