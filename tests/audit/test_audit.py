"""What can be handed to the audit, and what it leaves alone."""

import copy

import pytest
import torch

import molequi.model
from molequi import EGNN, Graph, Model, NequIP, collate, connect
from molequi.audit import Tolerances, audit, audit_files
from molequi.audit.images import dimers, near_cutoff, rattled, rebased, supercell
from molequi.checkpoint import save
from molequi.data import Dataset
from molequi.errors import ConfigError, DataError

from .kit import ELEMENTS, crystal, molecule

FEW = ["not zero", "rotation", "permutation"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Model(EGNN(elements=ELEMENTS, cutoff=4.0, channels=8, layers=2, radial=6), ["energy", "forces"])


def test_datasets_graphs_connected_or_not_and_atoms_give_the_same(model):
    from ase import Atoms

    graphs = [molecule(0), molecule(1)]
    labelled = [g.replace(targets={"energy": torch.zeros(1)}) for g in graphs]
    atoms = [Atoms(g.z.numpy(), positions=g.pos.numpy()) for g in graphs]
    first, *others = (
        audit(model, s, draws=2, checks=FEW)
        for s in (graphs, [connect(g, 1.0) for g in graphs], labelled, Dataset(labelled), atoms)
    )
    assert first.passed and len(first.rows) == 9
    assert all(other.rows == first.rows for other in others)
    assert audit(model, graphs[0], draws=2, checks=FEW).structures == 1


def test_seed_decides(model):
    one, again, other = (
        audit(model, [molecule()], draws=2, seed=s, checks=["rotation"]).rows for s in (1, 1, 2)
    )
    assert one == again != other


def test_nothing_outside_changes(model):
    model.train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    audit(model, [molecule()], draws=2, checks=FEW)
    assert model.training and model.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.eval()


def test_many_structures_are_thinned(model):
    report = audit(model, [molecule(k, 4) for k in range(10)], draws=2, checks=FEW, limit=3)
    assert (report.structures, report.given) == (3, 10) and "3 of 10 structures" in str(report)


def test_saved_model_and_file(model, tmp_path):
    from ase import Atoms
    from ase.io import write

    frames = [Atoms(g.z.numpy(), positions=g.pos.numpy()) for g in (molecule(0), molecule(1))]
    write(tmp_path / "a.xyz", frames)
    path = save(model, tmp_path / "m.safetensors")
    report = audit_files(path, tmp_path / "a.xyz", draws=2, checks=FEW)
    assert report.passed and report.structures == 2


def test_large_total_energies_raise_no_alarm():
    torch.manual_seed(1)
    heavy = Model(
        EGNN(elements=ELEMENTS, cutoff=3.5, channels=8, layers=2, radial=6), ["energy", "forces", "stress"]
    )
    heavy.heads["energy"].reference_energies.fill_(-5e5)  # eV; all-electron energies of heavy elements
    audit(heavy, [molecule(0), crystal()], draws=4).raise_if_failed()


def test_perfect_crystals_and_pairs_at_the_cutoff_raise_no_alarm():
    torch.manual_seed(2)
    cubic = Graph.single(
        torch.zeros(1, 3), [6], cell=3.5 * torch.eye(3), pbc=True
    )  # neighbours exactly at the cutoff
    model = Model(
        EGNN(elements=ELEMENTS, cutoff=3.5, channels=8, layers=2, radial=6), ["energy", "forces", "stress"]
    )
    report = audit(model, [cubic], draws=4).raise_if_failed()
    assert any("must be zero" in r.explanation for r in report.rows if r.quantity == "forces")


def test_one_atom_alone_cannot_be_audited(model):
    report = audit(model, [molecule(0, 1)], draws=2)
    assert not report.failed
    assert all(r.verdict == "not applicable" for r in report.rows if r.check == "not zero")


def test_tolerances_can_be_given(model):
    assert not audit(
        model, [molecule()], draws=2, checks=["rotation"], tolerance=Tolerances(symmetry=1e-20)
    ).passed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(checks=["rotations"]), "did you mean 'rotation'"),
        (dict(checks="rotation"), "wanted a list of names"),
        (dict(checks=[]), "wanted a list of names"),
        (dict(draws=1), "at least 2"),
        (dict(limit=0), "at least one structure"),
    ],
)
def test_wrong_options(model, options, message):
    with pytest.raises(ConfigError, match=message):
        audit(model, [molecule()], **options)


def test_wrong_structures(model):
    with pytest.raises(DataError, match="no structures"):
        audit(model, [])
    with pytest.raises(DataError, match="structure 1: a batch of 2"):
        audit(model, [molecule(), collate([molecule(), molecule()])])
    with pytest.raises(DataError, match="no such file"):
        audit(model, "x")
    with pytest.raises(DataError, match="features of given edges"):
        edges = connect(molecule(), 3.0)
        audit(model, [edges.replace(edge_attr=torch.ones(edges.edge_index.shape[1], 2))])


def test_images_are_the_same_crystal():
    def spectrum(graph):
        graph = connect(graph, 4.0)
        return torch.sort(graph.edge_vectors().norm(dim=1)).values

    generator = torch.Generator().manual_seed(0)
    known = spectrum(crystal())
    other = rebased(crystal(), generator)
    assert not torch.equal(other.cell, crystal().cell)
    torch.testing.assert_close(spectrum(other), known)
    for pbc, wanted in ((True, 8), ((True, False, True), 4)):
        larger, copies = supercell(crystal(pbc))
        assert copies == wanted and larger.num_nodes == wanted * 5
        torch.testing.assert_close(spectrum(larger), torch.sort(spectrum(crystal(pbc)).repeat(wanted)).values)


def test_a_shake_moves_atoms_by_a_part_of_a_bond():
    moved = rattled(molecule(), torch.Generator().manual_seed(0)).pos - molecule().pos
    assert 0.01 < float(moved.norm(dim=1).mean()) < 0.3


def test_pairs_of_elements():
    pairs = {tuple(sorted(g.z[nodes].tolist())) for g, nodes in dimers([molecule(0, 4)])}  # H C O H
    assert pairs == {(1, 1), (1, 6), (1, 8), (6, 8)}


def test_nearest_neighbours_are_not_smooth_and_it_says_so():
    torch.manual_seed(0)
    model = Model(EGNN(elements=ELEMENTS, cutoff=None, k=3, channels=8, layers=2), ["gap"])
    report = audit(model, [molecule(0), molecule(1)], draws=2)
    (row,) = (r for r in report.rows if r.check == "smoothness")
    assert report.passed and row.verdict == "not applicable" and "k=3 nearest" in row.reason


def test_atoms_out_of_sight_of_each_other_are_no_alarm():
    """Found among random models: no gradient at all is no fault where nobody sees anybody, or where a crystal has no dipole."""
    torch.manual_seed(0)
    model = Model(NequIP(elements=ELEMENTS, cutoff=3.0, channels=4, layers=2, radial=4), ["energy", "forces"])
    apart = Graph.single(torch.tensor([[0.0, 0, 0], [9, 0, 0]], dtype=torch.float64), [1, 8])
    for structures in ([apart, molecule(0)], [molecule(0), apart]):
        assert audit(model, structures, draws=2).passed
    assert audit(Model(model.backbone, ["energy", "dipole"]), [crystal(), molecule(0)], draws=2).passed
    pair = Graph.single(
        torch.tensor([[0.0, 0, 0], [1.1, 0, 0]], dtype=torch.float64), [1, 1]
    )  # two equal atoms have no dipole either
    for structures in ([pair], [pair, crystal()]):
        assert audit(Model(model.backbone, ["energy", "dipole"]), structures, draws=2).passed
    three = Graph.single(torch.tensor([[0.0, 0, 0], [9, 0, 0], [0, 8, 0]], dtype=torch.float64), [8, 8, 8])
    assert audit(Model(model.backbone, ["energy", "dipole"]), [crystal(), three], draws=2).passed


def test_a_perfect_crystal_is_no_alarm():
    """Forces are zero by symmetry, up to round-off, and so are gradients of the energy."""
    a = 5.43
    silicon = Graph.single(
        torch.tensor([[0.0, 0, 0], [a / 4, a / 4, a / 4]], dtype=torch.float64),
        [6, 6],
        cell=torch.tensor([[0, a / 2, a / 2], [a / 2, 0, a / 2], [a / 2, a / 2, 0]]),
        pbc=True,
    )
    torch.manual_seed(0)
    model = Model(
        EGNN(elements=ELEMENTS, cutoff=4.0, channels=8, layers=2, radial=6), ["energy", "forces", "stress"]
    )
    assert audit(model, [silicon], draws=2).passed


def test_a_dipole_of_nearly_equal_atoms_bears_a_far_place():
    """Found among random models: charges that all but cancel, and 1e-14 Å of the places are lost 100 Å away."""
    torch.manual_seed(0)
    model = Model(EGNN(elements=ELEMENTS, cutoff=3.5, channels=8, layers=2, radial=6), ["energy", "dipole"])
    model.heads["dipole"].charge_net[-1].bias.data += 1e5
    for _name, parameter in model.heads["dipole"].net.named_parameters():
        parameter.data.zero_()
    report = audit(model, [molecule(0)], draws=6, checks=["not zero", "translation", "rotation"])
    assert report.passed


def test_pairs_that_hardly_see_each_other_are_shaken_again():
    """Found among random models: at 99.7 % of the cutoff the energy is 1e-7 of what it is nearer, and round-off of places is 1e-9 of that."""

    def pair(length):
        return Graph.single(torch.tensor([[0.0, 0, 0], [length, 0, 0]], dtype=torch.float64), [6, 8])

    assert (
        near_cutoff(pair(2.99), 3.0) and not near_cutoff(pair(2.9), 3.0) and not near_cutoff(pair(3.1), 3.0)
    )
    assert not near_cutoff(
        Graph.single(torch.tensor([[0.0, 0, 0], [2.99, 0, 0], [0, 1, 0]], dtype=torch.float64), [6, 8, 1]),
        3.0,
    )


def test_outputs_of_any_unit_are_measured():
    """A dipole moment in C m is 1e-29: no number is zero by itself."""
    from molequi import MACE, Quantity
    from molequi.audit import lie_errors

    own = Quantity("moment", rank=1, unit="")
    graphs = [molecule(0), molecule(1)]
    torch.manual_seed(0)
    tiny = Model(MACE(elements=ELEMENTS, cutoff=4.0, channels=4, layers=1), [own])
    tiny.heads["moment"].standardize(scale=1e-29)
    report = audit(tiny, graphs, draws=2, checks=["not zero", "rotation"])
    assert report.passed and any(row.check == "rotation" and row.verdict == "pass" for row in report.rows)
    assert any(row.quantity == "moment" and row.measured for row in lie_errors(tiny, graphs, draws=1).rows)
    with torch.no_grad():
        for parameter in tiny.heads.parameters():
            parameter.zero_()
    assert not audit(tiny, graphs, draws=2, checks=["not zero"]).passed  # the control: what is zero is found


def test_missing_attributes_are_not_asked_for_again_and_again(model, monkeypatch):
    """Their error looks for a name that is close, which takes time."""
    asked = []
    raising = molequi.model.attribute_again
    monkeypatch.setattr(molequi.model, "attribute_again", lambda *of: (asked.append(of[1]), raising(*of))[1])
    counts = []
    for draws in (2, 4):
        audit(model, [molecule()], draws=draws, checks=FEW)
        counts.append(len(asked))
        asked.clear()
    assert counts[0] == counts[1] < 20
