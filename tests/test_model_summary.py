"""A model, an ensemble and the result of a training say in a few lines what they are."""

import pytest
import torch

import molequi as mq
from molequi.audit.report import Report, Row

from .util.test_html import Page


def data(count: int = 12) -> mq.Dataset:
    generator = torch.Generator().manual_seed(0)
    graphs = []
    for _ in range(count):
        pos = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        graphs.append(
            mq.Graph.single(pos, ["H"] * 4, targets={"energy": pos.norm()[None], "forces": -pos / pos.norm()})
        )
    return mq.Dataset(graphs)


def small(seed: int = 0) -> mq.Model:
    torch.manual_seed(seed)
    return mq.Model(mq.PaiNN(elements=["H"], cutoff=3.0, channels=8, layers=1), ["energy", "forces"])


def test_a_model_is_a_few_lines():
    model = mq.Model(
        mq.MACE(elements=["H", "C"], cutoff=4.5, inputs=mq.Inputs(charge=True)),
        ["energy", "stress", mq.Quantity("beta", rank=3, unit="<b>")],
    )
    text = repr(model)
    assert str(model) == text and len(text) < 1000 < len(torch.nn.Module.__repr__(model))
    count = sum(p.numel() for p in model.parameters())
    assert text.startswith(f"Model with MACE, {count:,} parameters, float32 on cpu\n")
    lines = [line.split() for line in text.splitlines()]
    assert ["elements", "H,", "C"] in lines and ["neighbors", "up", "to", "4.5", "Å"] in lines
    assert "inputs={'charge': True}" in text and "correlation=3" in text and "axis" not in text
    assert "O(3) declared, with translations; not measured" in text
    assert [
        "stress",
        "eV/Å^3",
        "symmetric",
        "tensor",
        "of",
        "the",
        "graph",
        "∂energy/∂strain",
        "per",
        "volume",
    ] in lines
    html = model._repr_html_()
    page = Page(html)
    assert len(html) < 6000 and "b" not in page.tags
    assert page.cells[page.cells.index("beta") :][:4] == [
        "beta",
        "<b>",
        "tensor of rank 3 of the graph",
        "TensorN",
    ]
    assert page.cells[page.cells.index("correlation") + 1] == "3"  # in the list of all options


def test_neighbors_and_axis_are_named():
    near = mq.Model(mq.EGNN(elements=["X"], cutoff=None, k=8, axis=[0, 0, 1]), [mq.Quantity("u")])
    assert "the 8 nearest\n" in repr(near) and "axis (0, 0, 1)" in repr(near)
    assert "all pairs" in repr(mq.Model(mq.EGNN(elements=["X"], cutoff=None), ["gap"]))
    both = mq.Model(mq.EGNN(elements=["X"], cutoff=2.0, k=3), ["gap"])
    assert "the 3 nearest, up to 2 Å" in repr(both)


def test_an_ensemble_says_its_members_and_factors():
    ensemble = mq.Ensemble([small(0), small(1)], {"forces": 2.5})
    assert repr(ensemble).startswith("Ensemble of 2 PaiNN, ")
    cells = Page(ensemble._repr_html_()).cells
    assert "energy_std, × 1" in cells and "forces_std, × 2.5" in cells


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.manual_seed(0)
    found = data()
    options = dict(epochs=2, batch_size=4, logging={"progress": False})
    one = mq.fit(small(), found[:8], found[8:], **options, out=tmp_path_factory.mktemp("<run>"))
    return one, mq.fit(small(), found[:8], found[8:], seed=[0, 1], **options)


def test_results_of_a_training(trained):
    one, several = trained
    assert repr(one) == str(one) and repr(several) == str(several)
    page = Page(one._repr_html_())
    assert page.cells.count("train") == page.cells.count("valid") == 1
    assert f"{one.errors['valid']['forces_mae'] * 1000:.4g}" in page.cells and "meV/Å" in page.cells
    assert str(one.out) in page.cells and "symmetry report" in page.words
    assert (
        f"validation loss {one.history[-1]['valid_loss']:.4g}"
        in page.cells[page.cells.index("last epoch") + 1]
    )
    assert f"{one.model.group} declared, with translations; measured" in repr(one.model) and "passed" in repr(
        one.model
    )
    assert f"best epoch {one.best_epoch}" in repr(mq.load(one.out / "model.safetensors"))
    pages = Page(several._repr_html_())
    assert f"{several.members[1].best_loss:.4g}" in pages.cells and "calibration" in pages.words
    assert "best epochs" in repr(several.model)


def test_errors_are_a_table_or_one_line(trained):
    errors = trained[0].errors["valid"]
    assert repr(errors).startswith(f"Errors(energy_mae={errors['energy_mae']:.4g}, ")
    assert "\n" not in repr(errors)
    page = Page(errors._repr_html_())
    assert page.cells[:2] == ["quantity", ""] and len(page.cells) % 7 == 0


def test_predictions_are_a_short_table(trained):
    predictions = mq.predict(trained[0].model, data(12), progress=False)
    page = Page(predictions._repr_html_())
    assert page.cells[:3] == ["", "energy (eV)", "forces (eV/Å)"] and len(page.cells) == 3 * 11
    assert page.cells[6:9] == ["1", f"{float(predictions[1]['energy']):.6g}", "array, 4 × 3"]
    assert page.words[-1] == "and 2 more structures"


def test_of_a_long_audit_the_worst_of_each_check_and_all_failures_are_shown():
    row = {"quantity": "energy", "median": 0.0, "tolerance": 1e-9}
    rows = [
        Row(check="rotation", element=f"g{k}", verdict="pass", maximum=k * 1e-11, **row) for k in range(20)
    ]
    rows += [Row(check="lattice", element="", verdict="not applicable", quantity="")]
    rows += [
        Row(check="batch", element=f"b{k}", verdict="fail" if k < 2 else "pass", maximum=1.0, **row)
        for k in range(9)
    ]
    made = {
        "model": "m",
        "group": "O(3)",
        "structures": 1,
        "given": 1,
        "draws": 1,
        "seed": 0,
        "version": "",
        "date": "",
    }
    short, long = Report(rows=tuple(rows), **made)._repr_html_().split("<details>")
    assert [cell for cell in Page(short).cells if cell in {"g19", "b0", "b1", "lattice"}] == [
        "g19",
        "lattice",
        "b0",
        "b1",
    ]
    assert "g18" not in short and "b2" not in short and long.count("<tr>") == 31
    assert "<details>" not in Report(rows=tuple(rows[:5]), **made)._repr_html_()


def test_reports_and_trajectories_have_html(trained):
    model = trained[0].model
    found = data(2)
    report = mq.audit(model, found, draws=2, checks=["not zero", "rotation"])
    page = Page(report._repr_html_())
    assert repr(report) == str(report) and "rotation" in page.cells
    symmetry = Page(model.symmetry_report._repr_html_())
    assert "passed" in symmetry.words and "rotation" in symmetry.cells
    run = mq.md(mq.to_atoms(found[0]), model, steps=2, progress=False)
    cells = Page(run._repr_html_()).cells
    assert repr(run) == str(run) and cells[:3] == ["average of", "", "unit"]
    assert cells[cells.index("T") :][:3] == ["T", str(run.averages["T"]), "K"]
    errors = mq.approximate.equivariance_errors(model, found, symmetries=["rotation"], draws=1)
    assert "rotation" in Page(errors._repr_html_()).cells
    twice = mq.symmetries(model, found, draws=2, limit=1)
    assert "largest group that holds" in "".join(Page(twice._repr_html_()).words)
