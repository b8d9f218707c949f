"""Each fault that is put into good data is found under its name, and good data give no finding."""

import re

import numpy as np
import pytest
import torch

import molequi as mq
from molequi import Dataset
from molequi.data.units import factor

KCAL, HARTREE, BOHR = 1 / factor("kcal/mol", "eV"), 1 / factor("Hartree", "eV"), 1 / factor("Bohr", "Å")


@pytest.fixture(scope="module")
def ethanol():
    return mq.read_extxyz(mq.shipped("ethanol_300K.xyz"))


@pytest.fixture(scope="module")
def nitride():
    return mq.read_extxyz(mq.shipped("bn.xyz"))


def changed(data, change, **more):
    """The data with every structure k replaced by change(k, graph)."""
    graphs = [change(k, graph) for k, graph in enumerate(data)]
    return Dataset(
        graphs,
        quantities=data.quantities,
        origins=data.origins,
        info=data.info | more.pop("info", {}),
        **more,
    )


def labels(graph, **targets):
    return graph.replace(targets={**graph.targets, **targets})


def scaled(data, **factors):
    return changed(data, lambda k, g: labels(g, **{n: f * g.targets[n] for n, f in factors.items()}))


def moved(data, scale):
    def one(k, g):
        return g.replace(pos=scale * g.pos, **({} if g.cell is None else {"cell": scale * g.cell}))

    return changed(data, one)


def names(data, *severities, **options):
    report = mq.lint(data, costs=False, **options)
    return {f.name for f in report.findings if f.severity in (severities or ("error", "warning"))}


def the(report, name):
    (found,) = [f for f in report.findings if f.name == name]
    return found


@pytest.mark.parametrize(
    "name",
    ["ethanol_300K.xyz", "ethanol_600K.xyz", "bn.xyz", "isolated_atoms.xyz", "molecules.npz", "shapes.npz"],
)
def test_shipped_data_have_no_fault(name):
    report = mq.lint(mq.shipped(name), costs=False)
    assert report.passed and not report.of("warning"), report


# Energies in kcal/mol, Hartree and so on, each read as eV and eV/Å: by hand.
UNITS = {
    "energies in kcal/mol": (
        dict(energy=KCAL),
        "energy-force-scale",
        "energies in kcal/mol with forces in eV/Å",
    ),
    "energies in Hartree": (
        dict(energy=HARTREE),
        "energy-force-scale",
        "energies in Hartree with forces in eV/Å",
    ),
    "both in kcal/mol": (dict(energy=KCAL, forces=KCAL), "force-unit", "kcal/mol/Å"),
    "forces in Hartree/Bohr": (dict(forces=HARTREE / BOHR), "energy-force-scale", "forces in Hartree/Bohr"),
    "both atomic": (dict(energy=HARTREE, forces=HARTREE / BOHR), "force-unit", "Hartree/Bohr"),
    "gradients": (dict(forces=-1.0), "energy-force-scale", "wrong sign"),
}


@pytest.mark.parametrize("case", UNITS)
def test_other_units_of_a_molecule(ethanol, case):
    factors, name, said = UNITS[case]
    report = mq.lint(scaled(ethanol, **factors), costs=False)
    found = the(report, name)
    assert said in found.message and found.severity == "error" and found.count == len(ethanol)
    assert not report.passed and found.origins[0] == ethanol.origins[0]


@pytest.mark.parametrize(
    "case", ["energies in kcal/mol", "energies in Hartree", "forces in Hartree/Bohr", "gradients"]
)
def test_other_units_of_a_crystal(nitride, case):
    factors, _, said = UNITS[case]
    assert said in the(mq.lint(scaled(nitride, **factors), costs=False), "energy-force-scale").message


@pytest.mark.parametrize("unit, scale", [("Bohr", BOHR), ("nm", 0.1)])
def test_other_units_of_length(ethanol, nitride, unit, scale):
    for data in (ethanol, nitride):
        found = the(mq.lint(moved(data, scale), costs=False), "length-unit")
        assert f"units={{'positions': '{unit}'}}" in found.message


def test_a_file_in_nm_is_named_when_it_is_read(ethanol, tmp_path):
    from ase.io import read, write

    frames = read(mq.shipped("ethanol_300K.xyz"), ":20")
    for atoms in frames:
        atoms.positions *= 0.1
    write(tmp_path / "nm.xyz", frames, format="extxyz")
    assert names(tmp_path / "nm.xyz", "error") == {"length-unit"}
    with pytest.raises(mq.errors.DataError, match="are positions in Å"):
        mq.read_extxyz(tmp_path / "nm.xyz")


def test_total_energies_of_all_electrons_say_their_unit():
    """RHF/6-31G* of H2O, CH4 and NH3 in Hartree (-76.01, -40.195, -56.184; Hehre et al., Ab initio Molecular Orbital
    Theory, 1986), read as eV."""
    molecules = {"H2O": -76.0107, "CH4": -40.1952, "NH3": -56.1844}
    from ase.build import molecule

    def data(scale):
        frames = [molecule(name) for name in molecules for _ in range(2)]
        for k, atoms in enumerate(frames):
            atoms.rattle(0.02, seed=k)
            atoms.info["energy"] = scale * molecules[name_of(atoms)]
        return mq.from_atoms(frames)

    def name_of(atoms):
        return next(name for name in molecules if sorted(molecule(name).numbers) == sorted(atoms.numbers))

    assert "'energy': 'Hartree'" in the(mq.lint(data(1.0), costs=False), "energy-unit").message
    assert "'energy': 'kcal/mol'" in the(mq.lint(data(627.509), costs=False), "energy-unit").message
    assert "energy-unit" not in names(data(27.2114))
    assert "energy-unit" not in names(data(1.3))  # valence electrons alone fit no unit


def test_forces_of_the_structure_before(ethanol, nitride):
    for data in (ethanol, nitride):
        wrong = changed(data, lambda k, g, data=data: labels(g, forces=data[max(k - 1, 0)].targets["forces"]))
        assert "structure after" in the(mq.lint(wrong, costs=False), "shifted-forces").message


@pytest.mark.parametrize("pair", [(30, 31), (100, 17)])
def test_two_structures_that_exchanged_their_forces(ethanol, pair):
    other = dict(zip(pair, pair[::-1]))
    wrong = changed(ethanol, lambda k, g: labels(g, forces=ethanol[other.get(k, k)].targets["forces"]))
    found = the(mq.lint(wrong, costs=False), "net-torque")
    assert set(found.origins) == {ethanol.origins[k] for k in pair} and found.count == 2


def test_a_foreign_energy(ethanol):
    wrong = changed(ethanol, lambda k, g: labels(g, energy=g.targets["energy"] + 2.0 * (k == 200)))
    found = the(mq.lint(wrong, costs=False), "inconsistent-frames")
    assert found.origins == (ethanol.origins[200],) and found.count == 1


def test_stress_of_the_opposite_sign_and_a_virial(nitride):
    assert "'sign': -1" in the(mq.lint(scaled(nitride, stress=-1.0), costs=False), "stress-sign").message

    def virial(k, g):
        return labels(g, stress=-g.targets["stress"] * torch.linalg.det(g.cell[0]))

    assert "'virial': True" in the(mq.lint(changed(nitride, virial), costs=False), "stress-unit").message
    in_gpa = scaled(nitride, stress=160.21766)
    assert "units={'stress': 'GPa'}" in the(mq.lint(in_gpa, costs=False), "stress-unit").message


def test_components_of_the_stress_in_another_order(nitride):
    """xx yy zz xy yz zx, as VASP writes them, read as xx yy zz yz xz xy."""

    def misread(k, g):
        s = g.targets["stress"][0]
        yz, xz, xy = s[0, 1], s[1, 2], s[0, 2]
        matrix = torch.stack([s[0, 0], xy, xz, xy, s[1, 1], yz, xz, yz, s[2, 2]]).reshape(1, 3, 3)
        return labels(g, stress=matrix)

    found = the(mq.lint(changed(nitride, misread), costs=False), "stress-order")
    assert "what is read as yz xz xy is xy yz xz" in found.message


def test_energies_per_atom_among_total_ones(ethanol):
    wrong = changed(ethanol, lambda k, g: labels(g, energy=g.targets["energy"] / (9 if k % 10 == 3 else 1)))
    found = the(mq.lint(wrong, costs=False), "per-atom-energies")
    assert found.count == 40 and found.origins[0] == ethanol.origins[3]


def mixture(change=lambda k, n, e: e):
    """Alkanes of 1 to 6 carbon atoms whose energies are sums over bonds (eV), three conformers of each."""
    from ase.build import molecule

    frames = []
    for k in range(30):
        n = 1 + k % 6
        name = {1: "CH4", 2: "C2H6", 3: "C3H8", 4: "trans-butane"}.get(n)
        if name is None:
            name, n = {5: ("C6H6", 6), 6: ("C2H4", 2)}[n]
        atoms = molecule(name)
        atoms.rattle(0.03, seed=k)
        carbon = int((atoms.numbers == 6).sum())
        hydrogen = len(atoms) - carbon
        energy = -150.0 * carbon - 16.0 * hydrogen + 0.3 * np.sin(k)
        atoms.info["energy"] = change(k, carbon, hydrogen, energy)
        atoms.info["config_type"] = "late" if k >= 24 else "early"
        frames.append(atoms)
    return mq.from_atoms(frames, allow=["energy-scale"])  # of which the reader would warn


def test_another_reference_energy_in_one_group():
    assert not names(mixture(lambda k, c, h, e: e), "error")
    wrong = mixture(lambda k, c, h, e: e + (55.0 * c if k >= 24 else 0.0))
    found = the(mq.lint(wrong, costs=False), "energy-groups")
    assert found.count == 6 and "config_type late" in found.message
    (shift,) = re.findall(r"; ([\d.]+) eV for each C explains it", found.message)
    assert float(shift) == pytest.approx(55.0, rel=0.01)


def test_energies_per_atom_of_molecules_of_all_sizes():
    all_of_them = mixture(lambda k, c, h, e: e / (c + h))
    assert "multiply" in the(mq.lint(all_of_them, costs=False), "per-atom-energies").message
    some = mixture(lambda k, c, h, e: e / (c + h) if k in (5, 7, 8) else e)
    assert the(mq.lint(some, costs=False), "per-atom-energies").count == 3


def test_another_zero_of_one_composition(ethanol):
    """1 eV, which no sum over elements can show, but similar structures do."""
    wrong = changed(ethanol, lambda k, g: labels(g, energy=g.targets["energy"] + (1.0 if k >= 320 else 0.0)))
    found = the(mq.lint(wrong, costs=False), "energy-offsets")
    assert 60 <= found.count <= 80
    assert "0.99" in found.message or "1.0" in found.message
    assert set(found.origins) <= set(ethanol.origins[320:])


def test_invented_zeros(ethanol):
    wrong = changed(ethanol, lambda k, g: labels(g, energy=g.targets["energy"] * (k not in (3, 50))))
    found = the(mq.lint(wrong, costs=False), "zero-labels")
    assert found.origins == (ethanol.origins[3], ethanol.origins[50])
    none = changed(ethanol, lambda k, g: labels(g, forces=g.targets["forces"] * (k != 7)))
    assert "all forces are exactly 0" in the(mq.lint(none, costs=False), "zero-labels").message


def test_energies_from_the_lowest_one_have_a_zero(ethanol):
    lowest = ethanol.values("energy").min()
    relative = changed(ethanol, lambda k, g: labels(g, energy=g.targets["energy"] - lowest))
    assert "zero-labels" not in names(relative)


def test_a_calculation_that_was_not_done_again(ethanol):
    wrong = changed(ethanol, lambda k, g: labels(g, forces=ethanol[60].targets["forces"]) if k == 61 else g)
    assert the(mq.lint(wrong, costs=False), "repeated-labels").origins == (ethanol.origins[61],)


def test_one_percent_of_duplicates_across_parts(ethanol):
    train, valid = ethanol[:300], ethanol[300:] + ethanol[[10, 20, 30, 40]]
    report = mq.lint({"train": train, "valid": valid}, costs=False)
    found = the(report, "duplicates")
    assert found.count == 4 and found.origins[0] == ethanol.origins[10] and found.severity == "error"
    assert "in valid is" in found.message and "in train" in found.message
    assert names({"train": train, "valid": ethanol[300:]}) == set()


def test_every_part_may_have_the_isolated_atoms():
    atoms = mq.read_extxyz(mq.shipped("isolated_atoms.xyz"))
    assert mq.lint({"train": atoms, "valid": atoms}, costs=False).findings == ()


def test_turned_and_shaken_copies_are_near_duplicates(ethanol):
    random = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=random))[0]
    turn = turn * torch.linalg.det(turn)
    order = torch.tensor([0, 1, 2, 5, 4, 3, 8, 6, 7])
    assert ethanol[0].z[order].tolist() == ethanol[0].z.tolist()

    def copy(k, g):
        noise = 1e-3 * torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        return labels(
            g.replace(pos=(g.pos @ turn + noise)[order]), forces=(g.targets["forces"] @ turn)[order]
        )

    copies = changed(ethanol[:5], copy)
    report = mq.lint({"train": ethanol[:300], "valid": copies}, costs=False)
    found = the(report, "near-duplicates")
    assert found.count == 5 and found.severity == "warning"


def test_equal_structures_with_different_labels(ethanol):
    wrong = ethanol[:50] + scaled(ethanol[:2], energy=1.01)
    assert "contradictions" in names(wrong, "error")


def test_far_and_lonely_atoms(ethanol):
    def away(k, g):
        pos = g.pos.clone()
        pos[8, 0] += 20.0 * (k == 4) + 6.5 * (k == 5)
        return g.replace(pos=pos)

    report = mq.lint(changed(ethanol[:20], away), costs=False, cutoff=5.0)
    assert the(report, "far-atoms").origins == (ethanol.origins[4],)
    assert set(the(report, "no-neighbors").origins) == {ethanol.origins[4], ethanol.origins[5]}


def test_an_external_field_or_fixed_atoms(ethanol):
    wrong = changed(ethanol, lambda k, g: labels(g, forces=g.targets["forces"] + 1.0))
    assert the(mq.lint(wrong, costs=False), "net-force").count == len(ethanol)


def test_missing_labels_and_rare_elements(ethanol):
    def without(k, g):
        return labels(g, energy=g.targets["energy"] * (float("nan") if k < 7 else 1.0))

    report = mq.lint(changed(ethanol, without), costs=False)
    assert (
        the(report, "missing-labels").count == 7
        and "energy: 7 of 400" in the(report, "missing-labels").message
    )


def test_a_single_energy_far_from_all_others(ethanol):
    wrong = changed(ethanol, lambda k, g: labels(g, energy=g.targets["energy"] + 30.0 * (k == 9)))
    without_forces = Dataset(
        [g.replace(targets={"energy": g.targets["energy"]}) for g in wrong], origins=ethanol.origins
    )
    assert the(mq.lint(without_forces, costs=False), "energy-outliers").origins == (ethanol.origins[9],)


def test_a_fault_of_one_part_is_found_beside_good_data(ethanol):
    """Together, the work of right and wrong forces would say nothing."""
    for factors in (dict(energy=KCAL), dict(forces=-1.0)):
        parts = {"good": ethanol[:200], "other": scaled(ethanol[200:], **factors)}
        for given in (parts, dict(reversed(parts.items()))):
            found = the(mq.lint(given, costs=False), "energy-force-scale")
            assert found.severity == "error" and found.message.startswith("other: ")
    both = {"one": ethanol[:200], "two": ethanol[200:]}
    assert mq.lint(both, costs=False).passed
