"""Files in which a fifth of the structures has other units or signs: the fault is named, and so are the structures."""

import numpy as np
import pytest
import torch

import molequi as mq
from molequi import Dataset
from molequi.data.units import factor
from molequi.lint.compositions import unit_of_some_energies
from molequi.lint.frames import Frames

KCAL, HARTREE, BOHR = 1 / factor("kcal/mol", "eV"), 1 / factor("Hartree", "eV"), 1 / factor("Bohr", "Å")


def labels(graph, **targets):
    return graph.replace(targets={**graph.targets, **targets})


def scaled(**factors):
    return lambda g: labels(g, **{name: by * g.targets[name] for name, by in factors.items()})


def moved(by):
    return lambda g: g.replace(pos=by * g.pos, **({} if g.cell is None else {"cell": by * g.cell}))


def virial(g):
    return labels(g, stress=-g.targets["stress"] * torch.linalg.det(g.cell[0]))


def of_data(graphs, data):
    return Dataset(graphs, quantities=data.quantities, origins=data.origins, info=data.info)


@pytest.fixture(scope="module")
def ethanol():
    return mq.read_extxyz(mq.shipped("ethanol_300K.xyz"))


@pytest.fixture(scope="module")
def relative(ethanol):
    """Energies counted from the lowest one, so that no sum over elements shows a unit."""
    lowest = ethanol.values("energy").min()
    return of_data([labels(g, energy=g.targets["energy"] - lowest) for g in ethanol], ethanol)


@pytest.fixture(scope="module")
def energies(ethanol):
    return ethanol.with_quantities(["energy"])


@pytest.fixture(scope="module")
def nitride():
    return mq.read_extxyz(mq.shipped("bn.xyz"))


# What is done to a fifth, the data, and the findings: name, words of the message, the share that is named at least.
GRADIENTS = "have the wrong sign (gradients)"
CASES = {
    "energies in kcal/mol": (
        scaled(energy=KCAL),
        ("ethanol", "energies", "relative", "nitride"),
        [("energy-unit", "are in kcal/mol", 1.0)],
    ),
    "energies in Hartree": (
        scaled(energy=HARTREE),
        ("ethanol", "energies", "relative", "nitride"),
        [("energy-unit", "are in Hartree", 0.95)],
    ),
    "energies per atom": (
        lambda g: labels(g, energy=g.targets["energy"] / g.num_nodes),
        ("ethanol", "energies", "relative", "nitride"),
        [("per-atom-energies", "are energies per atom", 0.95)],
    ),
    "energies of zero": (
        scaled(energy=0.0),
        ("ethanol", "energies", "relative", "nitride"),
        [("zero-labels", "the energy is exactly 0", 1.0)],
    ),
    "forces in Hartree/Bohr": (
        scaled(forces=HARTREE / BOHR),
        ("ethanol", "relative", "nitride"),
        [("force-unit", "are in Hartree/Bohr", 0.95)],
    ),
    "forces in kcal/mol/Å": (
        scaled(forces=KCAL),
        ("ethanol", "relative", "nitride"),
        [("force-unit", "are in kcal/mol/Å", 0.95)],
    ),
    "gradients": (scaled(forces=-1.0), ("ethanol", "relative", "nitride"), [("force-unit", GRADIENTS, 0.95)]),
    "gradients in Hartree/Bohr": (
        scaled(forces=-HARTREE / BOHR),
        ("ethanol", "nitride"),
        [("force-unit", "are gradients in Hartree/Bohr", 0.95)],
    ),
    "all in atomic units": (
        scaled(energy=HARTREE, forces=HARTREE / BOHR),
        ("ethanol", "nitride"),
        [("energy-unit", "are in Hartree", 1.0), ("force-unit", "are in Hartree/Bohr", 0.95)],
    ),
    "positions in Bohr": (
        moved(BOHR),
        ("ethanol", "energies", "nitride"),
        [("length-unit", "positions in Bohr among others in Å", 1.0)],
    ),
    "positions in nm": (
        moved(0.1),
        ("ethanol", "energies", "nitride"),
        [("length-unit", "positions in nm among others in Å", 1.0)],
    ),
    "a stress in GPa": (
        scaled(stress=factor("eV/Å^3", "GPa")),
        ("nitride",),
        [("stress-unit", "is in GPa", 0.95)],
    ),
    "virials": (virial, ("nitride",), [("stress-unit", "is a virial in eV", 0.95)]),
}
PAIRS = [(case, name) for case, (_, names, _) in CASES.items() for name in names]


def mixed(data, change, where):
    """The data with a fifth of them changed: the end, as of two joined sources, or at random."""
    n = len(data)
    end, any_ = range(n - n // 5, n), np.random.default_rng(0).permutation(n)[: n // 5].tolist()
    rows = set(end if where == "end" else any_)
    return of_data([change(g) if k in rows else g for k, g in enumerate(data)], data), rows


def serious(report):
    return [f for f in report.findings if f.severity != "info"]


@pytest.mark.parametrize("where", ["end", "at random"])
@pytest.mark.parametrize("case, name", PAIRS)
def test_a_fifth_of_the_structures(request, case, name, where):
    data = request.getfixturevalue(name)
    change, _, wanted = CASES[case]
    wrong, rows = mixed(data, change, where)
    found = serious(mq.lint(wrong, costs=False))
    assert sorted(f.name for f in found) == sorted(heuristic for heuristic, _, _ in wanted)
    for heuristic, words, share in wanted:
        (one,) = [f for f in found if f.name == heuristic]
        assert words in one.message and one.severity == "error"
        assert share * len(rows) <= one.count <= 1.07 * len(rows)
        assert {wrong.origins.index(origin) for origin in one.origins} <= rows | _lowest(data)


def _lowest(data):
    """A structure whose energy is zero by right."""
    return set(np.flatnonzero(data.values("energy").numpy() == 0.0).tolist())


@pytest.mark.parametrize("order", [1, -1])
def test_a_stress_of_the_opposite_sign_in_one_piece(nitride, order):
    """At the end, and in the other order at the beginning."""
    wrong, rows = mixed(nitride, scaled(stress=-1.0), "end")
    (found,) = serious(mq.lint(wrong[::order], costs=False))
    assert found.name == "stress-sign" and "'sign': -1" in found.message and found.count == len(rows)
    assert found.origins[0] == nitride.origins[min(rows) if order == 1 else -1]


@pytest.mark.parametrize("share", [0.02, 0.4])
def test_other_shares_than_a_fifth(ethanol, share):
    least = round((1 - share) * len(ethanol))
    for change, heuristic in ((scaled(forces=-1.0), "force-unit"), (scaled(energy=KCAL), "energy-unit")):
        graphs = [change(g) if k >= least else g for k, g in enumerate(ethanol)]
        (found,) = serious(mq.lint(of_data(graphs, ethanol), costs=False))
        assert found.name == heuristic and found.count == len(ethanol) - least


def test_molecules_of_all_sizes_in_two_units(ethanol):
    """Alkanes and others with energies that are sums over elements to 0.3 eV, of which some are in kcal/mol."""
    from ase.build import molecule

    names = ("CH4", "C2H6", "C3H8", "trans-butane", "C6H6", "C2H4")
    frames = []
    for k in range(60):
        atoms = molecule(names[k % 6])
        atoms.rattle(0.03, seed=k)
        carbon = int((atoms.numbers == 6).sum())
        energy = -1030.0 * carbon - 16.5 * (len(atoms) - carbon) + 0.3 * np.sin(k)
        atoms.info["energy"] = energy * (KCAL if k % 5 == 2 else 1.0)
        frames.append(atoms)
    (found,) = serious(
        mq.lint(mq.from_atoms(frames, allow=["energy-scale"]), costs=False, allow=["energy-scale"])
    )
    assert found.name == "energy-unit" and "'kcal/mol'" in found.message and found.count == 12


def test_dissociated_structures_have_no_other_unit():
    """Energies from the separated atoms: bonds of -5 eV per atom, and stretched ones anywhere up to zero."""
    random = np.random.default_rng(0)
    graphs = []
    for k in range(100):
        d = 1.2 if k < 60 else random.uniform(1.3, 4.0)
        energy = -15.0 * float(np.exp(-2 * (d - 1.2))) + 0.05 * random.normal()
        pos = np.array([[0, 0, 0], [d, 0, 0], [0, d, 0]]) + 0.01 * random.normal(size=(3, 3))
        graphs.append(mq.Graph.single(pos, ["O", "C", "N"], targets={"energy": torch.tensor([energy])}))
    assert not mq.lint(Dataset(graphs), costs=False).errors


def test_few_of_many_odd_energies_have_no_other_unit(energies):
    """Four energies fit kcal/mol, and 36 others fit no unit: they may be anything."""
    for odd, wanted in ((36, 0), (0, 1)):
        by = np.ones(len(energies))
        by[:4], by[4 : 4 + odd] = KCAL, np.random.default_rng(0).uniform(2, 15, odd)
        graphs = [scaled(energy=value)(g) for value, g in zip(by, energies)]
        told, _ = unit_of_some_energies(Frames({"data": of_data(graphs, energies)}))
        assert len(told) == wanted


def test_a_mixture_that_is_wanted_is_allowed(ethanol):
    wrong, _ = mixed(ethanol, scaled(forces=-1.0), "end")
    assert "force-unit" not in [f.name for f in mq.lint(wrong, costs=False, allow=["force-unit"]).findings]


@pytest.mark.parametrize("seed", range(3))
def test_good_data_in_any_order_have_no_fault(ethanol, nitride, seed):
    for data in (ethanol, nitride):
        order = np.random.default_rng(seed).permutation(len(data)).tolist()
        assert serious(mq.lint(data[order], costs=False)) == []
