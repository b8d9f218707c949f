"""Pictures show the numbers that they are given."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from matplotlib.colors import to_rgb

from molequi import EGNN, Dataset, Graph, Model, Quantity, plotting
from molequi.errors import ConfigError, DataError
from molequi.plotting.parities import parity_of


@pytest.fixture
def model():
    return Model(EGNN(elements=[1, 8], channels=8, layers=1)).double().eval()


@pytest.fixture
def data():
    random = torch.Generator().manual_seed(0)
    return Dataset(
        [
            Graph.single(
                torch.randn(3, 3, generator=random).double() * 2,
                [8, 1, 1],
                targets={
                    "energy": torch.randn(1, generator=random).double(),
                    "forces": torch.randn(3, 3, generator=random).double(),
                },
            )
            for _ in range(6)
        ]
    )


def points(axis):
    """The points of each part, by the colours of the legend, ordered by their horizontal coordinate."""
    (cloud,) = axis.collections
    xy, colours = np.asarray(cloud.get_offsets()), cloud.get_facecolors()[:, :3]
    found = []
    for handle in axis.get_legend().legend_handles:
        one = xy[np.all(np.isclose(colours, to_rgb(handle.get_color())), axis=1)]
        found.append(one[np.lexsort(one.T[::-1])])
    assert sum(map(len, found)) == len(xy)
    return found


def test_parity_draws_given_against_predicted(model, data, tmp_path):
    from molequi import predict

    figure = plotting.parity(model, {"train": data[:4], "valid": data[4:]})
    energy, forces = figure.axes
    results = predict(model, data[:4])
    given = np.array([g.targets["energy"].item() / 3 for g in data[:4]])
    order = np.argsort(given)
    assert np.allclose(points(energy)[0][:, 0], given[order])
    assert np.allclose(points(energy)[0][:, 1], np.array([float(r["energy"]) / 3 for r in results])[order])
    order = np.argsort(np.concatenate([g.targets["forces"].numpy().ravel() for g in data[:4]]))
    assert np.allclose(points(forces)[0][:, 1], np.concatenate([r["forces"].ravel() for r in results])[order])
    assert len(points(forces)[1]) == 2 * 9
    assert "eV/atom" in energy.get_xlabel() and "eV/Å" in forces.get_ylabel()
    figure.savefig(tmp_path / "parity.png")
    assert (tmp_path / "parity.png").stat().st_size > 5000


def test_parity_has_one_unit_in_a_panel(data):
    """Errors of 0.5 and 2 eV are not 500 meV beside 2 eV; small ones are in meV, as in the table."""
    gap = Quantity("gap", unit="eV")
    label = {"gap": torch.zeros(1, dtype=torch.float64)}
    one = Dataset([g.replace(targets=label) for g in data[:2]], quantities={"gap": gap})

    def legend(*errors):
        parts = {f"p{e}": (one, [{"gap": np.array(e)}] * 2) for e in errors}
        return [text.get_text() for text in parity_of(parts).axes[0].get_legend().get_texts()]

    assert legend(0.5, 2.0) == ["p0.5: RMSE 0.5 eV", "p2.0: RMSE 2 eV"]
    assert legend(0.5, 0.02) == ["p0.5: RMSE 500 meV", "p0.02: RMSE 20 meV"]


def test_parity_leaves_out_what_is_not_known_and_thins(model, data):
    graphs = [
        g.replace(targets=g.targets | {"energy": torch.full((1,), float("nan")).double()}) if k < 2 else g
        for k, g in enumerate(data)
    ]
    figure = plotting.parity(model, Dataset(graphs))
    assert len(points(figure.axes[0])[0]) == 4
    thin = plotting.parity(model, data, limit=2).axes[0]
    assert len(points(thin)[0]) == 2
    named = [axis.get_legend().get_texts()[0].get_text() for axis in (thin, figure.axes[0])]
    assert named[0].startswith(f"data (2 of {len(data)}): RMSE") and named[1].startswith("data: RMSE")
    bare = Dataset([g.replace(targets={}) for g in data])
    with pytest.raises(DataError, match="no labels"):
        plotting.parity(model, bare)


HISTORY = [
    {
        "epoch": k + 1,
        "seconds": 1.0,
        "train_loss": 1 / (k + 1),
        "train_energy_rmse": 0.3,
        "train_energy_per_atom_rmse": 0.1,
        **({"valid_loss": 2 / (k + 1), "valid_energy_per_atom_rmse": 0.2} if k % 2 else {}),
    }
    for k in range(4)
]


def test_learning_curve(tmp_path):
    figure = plotting.learning_curve(HISTORY)
    loss, energy = figure.axes
    assert np.allclose(loss.lines[0].get_xydata(), [[k + 1, 1 / (k + 1)] for k in range(4)])
    assert np.allclose(loss.lines[1].get_xydata(), [[2, 1.0], [4, 0.5]])
    assert "per atom" in energy.get_ylabel() and loss.get_yscale() == "log"
    for first, second in ((1, 2), (0, 1)):  # files of molequi 0.1.0 count from 0
        text = f"epoch,train_loss,valid_loss\n{first},1.0,\n{second},0.5,2.0\n"
        (tmp_path / "metrics.csv").write_text(text)
        drawn = plotting.learning_curve(tmp_path / "metrics.csv").axes[0].lines[1]
        assert np.allclose(drawn.get_xydata(), [[2, 2.0]])


def test_axes_say_what_is_drawn_and_in_which_unit():
    rows = [
        {
            "epoch": k + 1,
            "step": 40 * (k + 1),
            "train_loss": 3.0 - k,
            "valid_loss": 3.0 - k,
            "valid_forces_rmse": 0.2,
            "valid_energy_rmse": 0.5,
            "valid_energy_per_atom_rmse": 0.05,
            "valid_stress_rmse": 0.01,
            "valid_logS_rmse": 0.7,
            "valid_kind_accuracy": 0.5 + 0.1 * k,
        }
        for k in range(3)
    ]
    figure = plotting.learning_curve(rows, quantities={"logS": Quantity("logS", unit="mol/l")})
    assert [axis.get_ylabel() for axis in figure.axes if axis.has_data()] == [
        "loss",
        "forces, RMSE (eV/Å)",
        "energy per atom, RMSE (eV/atom)",
        "stress, RMSE (eV/Å³)",
        "logS, RMSE (mol/l)",
        "kind, accuracy",
    ]
    figure.canvas.draw()
    loss, *_, accuracy = [axis for axis in figure.axes if axis.has_data()]
    assert accuracy.get_yscale() == "linear" and accuracy.get_ylim() == (0, 1.02)
    for axis in (loss, accuracy):
        ticks = [tick for tick in axis.get_xticks() if 1 <= tick <= 3]
        assert ticks and all(tick == round(tick) for tick in ticks) and axis.get_xlabel() == "epoch"
    steps = plotting.learning_curve(rows, against="step").axes[0]
    assert np.allclose(steps.lines[0].get_xdata(), [40, 80, 120]) and steps.get_xlabel() == "step"
    with pytest.raises(ConfigError, match="against='time'; wanted 'epoch' and 'step'"):
        plotting.learning_curve(rows, against="time")
    with pytest.raises(ConfigError, match="against='step'; wanted 'epoch', which this history counts"):
        plotting.learning_curve(HISTORY, against="step")


def test_few_decades_have_plain_numbers_as_ticks():
    for values in ([2.2, 1.8], [0.5, 0.09], [50.0, 0.2], [1e4, 1e-2]):
        rows = [{"epoch": k + 1, "train_loss": v} for k, v in enumerate(values)]
        figure = plotting.learning_curve(rows)
        figure.canvas.draw()
        (axis,) = figure.axes
        low, high = axis.get_ylim()
        shown = [t for t in axis.yaxis.get_majorticklocs() if low <= t <= high]
        texts = [axis.yaxis.get_major_formatter()(t) for t in shown]
        assert len(shown) >= 2 and [float(text) for text in texts] == pytest.approx(shown)


def overlaps(figure):
    """Legends that cover a part of a panel."""
    figure.canvas.draw()
    legends = [axis.get_legend() for axis in figure.axes if axis.get_legend()] + figure.legends
    boxes = [legend.get_window_extent() for legend in legends]
    panels = [axis.get_window_extent() for axis in figure.axes if axis.axison]
    assert boxes and panels
    return [box for box in boxes for panel in panels if box.padded(-2).overlaps(panel.padded(-2))]


def test_legends_cover_no_points(model, many, data):
    parts = {"train": data[:3], "valid": data[3:5], "test": data[5:], "600 K": data[:2]}
    figure = plotting.parity(model, parts)
    assert overlaps(figure) == []
    for axis in figure.axes:
        colours = [handle.get_color() for handle in axis.get_legend().legend_handles]
        assert len(set(colours)) == 4
        assert axis.get_xlim() == axis.get_ylim()
    assert overlaps(plotting.learning_curve(HISTORY)) == []
    assert overlaps(plotting.calibration(many, data, bins=4)) == []
    figure.axes[0].get_legend().set_bbox_to_anchor((0, 0.5))
    assert overlaps(figure) != []  # the check finds a legend that covers points


def test_learning_curve_of_nothing(tmp_path):
    with pytest.raises(DataError, match="no epochs"):
        plotting.learning_curve([])
    with pytest.raises(DataError, match="not a table of metrics"):
        plotting.learning_curve(tmp_path / "none.csv")


def test_trajectory():
    figure = plotting.trajectory(
        [0, 1, 2], total_energy_eV=[1, 2, 3], temperature_K=[300, 310, 305], title="NVE"
    )
    assert [axis.get_ylabel() for axis in figure.axes] == ["total energy (eV)", "temperature (K)"]
    assert np.allclose(figure.axes[1].lines[0].get_ydata(), [300, 310, 305])
    with pytest.raises(DataError, match="2 values for 3 times"):
        plotting.trajectory([0, 1, 2], energy_eV=[1, 2])
    with pytest.raises(DataError, match="give curves"):
        plotting.trajectory([0, 1])


def test_molecule_in_space(tmp_path):
    atoms = molecule("CH3CH2OH")
    (axis,) = plotting.molecule(atoms).axes
    assert len(axis.lines) == 2 * 8  # eight bonds, each in two halves
    assert len(axis.patches) == 9
    graph = Graph.single(atoms.positions, atoms.numbers)
    assert len(plotting.molecule(graph).axes[0].lines) == 16
    (cell,) = plotting.molecule(bulk("Si", cubic=True)).axes
    assert len(cell.lines) >= 12  # the edges of the cell
    plotting.molecule(atoms).savefig(tmp_path / "a.png")


@pytest.mark.parametrize("direction", [(20, -60), (80, 10), (-30, 135)])
@pytest.mark.parametrize(
    "atoms", [bulk("Si", cubic=True), bulk("NaCl", "rocksalt", a=5.64), bulk("Cu", cubic=True) * (1, 1, 4)]
)
def test_crystals_are_shown_whole(atoms, direction):
    """Every atom, with its radius, and every corner of the cell is inside of the panel."""
    (axis,) = plotting.molecule(atoms, elevation=direction[0], azimuth=direction[1]).axes
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    ends = np.concatenate([line.get_xydata() for line in axis.lines])
    balls = [(*ball.center, ball.radius) for ball in axis.patches]
    assert ends[:, 0].min() > left and ends[:, 0].max() < right
    assert ends[:, 1].min() > bottom and ends[:, 1].max() < top
    assert all(left < x - r and x + r < right and bottom < y - r and y + r < top for x, y, r in balls)
    assert right - left == pytest.approx(top - bottom)


def test_the_view_of_a_structure_is_a_projection():
    """Seen from above, x is to the right and y is up; the upper atom is drawn last."""
    atoms = Atoms("H2O", [[0, 0, 0], [3, 0, 1], [0, 2, 2]])
    (axis,) = plotting.molecule(atoms, elevation=90, azimuth=-90).axes
    centers = np.array([ball.center for ball in axis.patches])
    assert np.allclose(centers - centers[0], [[0, 0], [3, 0], [0, 2]])
    assert np.argsort([ball.get_zorder() for ball in axis.patches]).tolist() == [0, 1, 2]


@pytest.fixture
def many():
    from molequi import Ensemble

    def one(seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Model(EGNN(elements=[1, 8], channels=8, layers=1)).double()

    return Ensemble([one(k) for k in range(3)])


def test_calibration_draws_errors_over_stds(many, data, tmp_path):
    from molequi.inference import calibration

    figure = plotting.calibration(many, data, bins=4)
    found = calibration(many, data)
    for axis, one in zip(figure.axes, found.values()):
        groups = next(line for line in axis.lines if line.get_marker() == "o")
        assert np.allclose(groups.get_xydata(), np.transpose(one.bins(4))) and len(groups.get_xydata()) == 4
        diagonal = next(line for line in axis.lines if line.get_label() == "error = std").get_xydata()
        assert np.array_equal(diagonal[:, 0], diagonal[:, 1])
        cloud = axis.lines[0].get_xydata()
        assert np.allclose(cloud, np.transpose([one.std, np.abs(one.error)]))
        title = axis.get_title()
        assert (
            f"scale {one.scale:.3g}" in title
            and f"{one.within[0]:.0%} →" in title
            and "(68%)" in title
            and "(95%)" in title
        )
        assert f"miscalibration {one.miscalibration:.3f} →" in title
    assert "eV/atom" in figure.axes[0].get_xlabel() and "eV/Å" in figure.axes[1].get_ylabel()
    assert len(plotting.calibration(many, data, limit=10).axes[1].lines[0].get_xydata()) == 10
    figure.savefig(tmp_path / "calibration.png")
    assert (tmp_path / "calibration.png").stat().st_size > 5000
    better = many.calibrated({name: one.scale for name, one in found.items()})
    assert all(axis.get_title().startswith("scale 1;") for axis in plotting.calibration(better, data).axes)


def test_calibration_of_what_has_no_std(many, model, data):
    from molequi import Ensemble

    with pytest.raises(ConfigError, match="calibration is of an Ensemble"):
        plotting.calibration(model, data)
    with pytest.raises(DataError, match="energy, forces: all members of the ensemble predict the same"):
        plotting.calibration(Ensemble([model, model]), data)
    with pytest.raises(DataError, match="no labels of numbers"):
        plotting.calibration(many, Dataset([g.replace(targets={}) for g in data]))


def test_spectrum_generators_and_curves():
    from molequi.discovery import SymmetryCurves, orbit_spectrum, symmetry_generators

    graphs = [
        Graph.single(torch.randn(4, 3, generator=torch.Generator().manual_seed(k)).double())
        for k in range(24)
    ]
    found = orbit_spectrum(lambda graph: graph.pos.prod(1), graphs[:3], l_max=3, quadrature_degree=6)
    (axis,) = plotting.orbit_spectrum(found).axes
    assert [bar.get_height() for bar in axis.patches] == [
        *found.shares.values(),
        found.remainder,
    ] and "share" in axis.get_ylabel()
    found = symmetry_generators(
        lambda graph: torch.cdist(graph.pos, graph.pos).square().sum().reshape(1).log(), graphs
    )
    (axis,) = plotting.symmetry_generators(found).axes
    broken, held = (line.get_ydata() for line in axis.lines[:2])
    assert (
        len(broken) == 6 == len(held)
        and min(broken) > found.tolerance > max(held)
        and axis.get_yscale() == "log"
    )
    found = SymmetryCurves(
        x=(0, 5, 10),
        x_label="epoch",
        values={"loss": (1.0, 0.1, 0.01), "E: 0": (0.5, 0.7, 0.9), "E: higher": (0.1, 0.0, -1e-15)},
    )
    loss, shares = plotting.symmetry_curves(found).axes
    assert loss.get_yscale() == "log" and np.allclose(
        loss.lines[0].get_xydata(), [[0, 1.0], [5, 0.1], [10, 0.01]]
    )
    assert shares.get_yscale() == "linear" and [
        text.get_text() for text in shares.get_legend().get_texts()
    ] == ["0", "higher"]
    named = plotting.symmetry_curves(
        SymmetryCurves(x=("plain", "strict"), values={"error": (0.1, 1e-14)})
    ).axes[0]
    assert [label.get_text() for label in named.get_xticklabels()] == ["plain", "strict"]


def test_layerwise_equivariance_draws_a_bar_for_each_free_path():
    from molequi.approximate.report import FreePath, LayerwiseEquivariance

    paths = (
        FreePath("layers.0", "1o", 5, float("inf"), 0.0, 0.2),
        FreePath("layers.1", "0e", 7, 2.5, 0.03, 9.0),
    )
    figure = plotting.layerwise_equivariance(LayerwiseEquivariance("evidence", paths, 0.04, {}))
    (axis,) = figure.axes
    assert [bar.get_width() for bar in axis.patches] == pytest.approx(
        [1e-7, 0.03, 0.04]
    ) and axis.get_xscale() == "log"
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "layers.0  1o",
        "layers.1  0e",
        "all together",
    ]
    assert [text.get_text() for text in axis.texts] == ["pruned", "precision 2.5", "broken"]
    assert [line.get_xdata()[0] for line in axis.lines] == [1e-5, 5e-3] and "evidence" in axis.get_xlabel()
    figure.canvas.draw()


def test_shares_that_are_not_known_have_no_bar():
    from molequi.approximate.report import FreePath, LayerwiseEquivariance

    nan = float("nan")
    figure = plotting.layerwise_equivariance(
        LayerwiseEquivariance("hypergradient", (FreePath("layers.0", "1o", 5, nan, nan, nan),), nan, {})
    )
    assert [text.get_text() for text in figure.axes[0].texts] == ["not learned", "not known"]
    figure.canvas.draw()


def test_lie_errors_draw_a_bar_for_each_layer_and_irrep(tmp_path):
    from molequi.audit.lie import lie_errors

    torch.manual_seed(0)
    model = Model(EGNN(elements=[1, 8], channels=4, layers=2), ["energy", "dipole"])
    model.backbone.layers[0].register_forward_hook(lambda module, inputs, out: (out[0], out[1].relu()))
    graph = Graph.single([[0.0, 0.1, 0.2], [0.9, 0.4, 0.0], [-0.8, 0.5, 0.1]], [8, 1, 1])
    report = lie_errors(model, [graph])
    figure = plotting.lie_errors(report)
    charged, alone = figure.axes
    assert [label.get_text() for label in charged.get_yticklabels()] == [
        "backbone.embedding",
        "backbone.layers.0",
        "backbone.layers.1",
        "backbone",
        "heads.energy",
        "heads.dipole",
        "remainder",
    ]
    assert [text.get_text() for text in charged.get_legend().get_texts()] == [
        "round-off",
        *(f"{r.quantity} {r.irrep}" for r in report.rows),
    ]
    dipole = charged.containers[[r.quantity for r in report.rows].index("dipole")]
    assert [bar.get_width() for bar in dipole] == [max(s.size, 1e-40) for s in report.row("dipole").layers]
    assert max(bar.get_width() for bar in dipole) == dipole[1].get_width() > 1e-6
    (vectors,) = [c for c in alone.containers if c.get_label() == "1o"]
    assert vectors[0].get_width() > 1e-3 and charged.get_xscale() == alone.get_xscale() == "log"
    figure.savefig(tmp_path / "lie.png")
    with pytest.raises(DataError, match="zero or constant"):
        plotting.lie_errors(
            lie_errors(
                Model(EGNN(elements=["X"], channels=4, layers=1), ["dipole"]), Graph.single([[0.0, 0, 0]])
            )
        )


def test_symmetry_test_draws_the_null_and_what_was_observed(tmp_path):
    from molequi.data_symmetry import symmetry_test

    random = torch.Generator().manual_seed(0)
    clouds = torch.randn(40, 4, 3, generator=random).double()
    graphs = [
        Graph.single(pos - pos.mean(0), targets={"dipole": torch.tensor([[0.0, 0.0, 1.0]]).double()})
        for pos in clouds
    ]
    report = symmetry_test(graphs, draws=199, progress=False)
    figure = plotting.symmetry_test(report)
    drawn = [c for c in report.tests if c.null_distribution and c.name != "O(3)"]
    shown = [a for a in figure.axes if a.has_data()]
    assert len(shown) == len(drawn) and report.verdicts == ("rotational symmetry broken",)
    for axis, check in zip(shown, drawn):
        assert (
            axis.lines[0].get_xdata()[0] == check.z_score and sum(p.get_height() for p in axis.patches) == 199
        )
        assert f"p = {check.p_value:.3g}" in axis.get_legend().get_texts()[0].get_text()
    figure.savefig(tmp_path / "symmetry_test.png")
    bare = symmetry_test(graphs, groups=("T(3)",), draws=199, progress=False)
    with pytest.raises(DataError, match="nothing to draw"):
        plotting.symmetry_test(bare)


def test_names_of_the_module_are_its_functions():
    """matplotlib's Figure is no name of molequi, and every figure shows itself in a notebook."""
    assert not hasattr(plotting, "Figure") and all(callable(getattr(plotting, n)) for n in plotting.__all__)
    assert plotting.trajectory([0, 1], energy_eV=[1, 2])._repr_png_().startswith(b"\x89PNG")


def test_pictures_are_imported_on_first_use():
    code = (
        "import sys, molequi.plotting as plotting\n"
        "print([m for m in ('torch', 'matplotlib', 'molequi.analysis', 'molequi.audit') if m in sys.modules])\n"
        "import molequi.plotting.analyses\n"
        "print([name for name in plotting.__all__ if not callable(getattr(plotting, name))])\n"
        "print(set(plotting.__all__) <= set(dir(plotting)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["[]", "[]", "True"]
    with pytest.raises(AttributeError, match=r"module 'molequi.plotting' has no attribute 'pairity'"):
        plotting.pairity
