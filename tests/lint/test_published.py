"""Published data sets: only what is really there."""

import pytest

import molequi as mq

MD17 = {"energy": "kcal/mol", "forces": "kcal/mol/Å"}
RAW = {"stress": {"key": "stress_kbar_raw", "order": "vasp", "sign": -1}}
CLUSTERS = {"energy": "REF_energy", "forces": "REF_forces", "dipole": "dipole_moment"}


def serious(data, **options):
    report = mq.lint(data, costs=False, **options)
    return {f.name: f for f in report.findings if f.severity != "info"}


@pytest.mark.parametrize("name", ["acac", "3bpa"])
def test_dft_trajectories(real_data, name):
    assert serious(real_data / name / "train_300K.xyz") == {}


def test_revised_md17(real_data):
    for name in ("ethanol", "toluene", "uracil"):
        parts = {part: real_data / "rmd17" / f"rmd17_{name}_{part}_01.npz" for part in ("train", "test")}
        assert serious(parts, units=MD17, index=":400") == {}
    found = serious(parts, units={"energy": "eV", "forces": "eV/Å"}, index=":200")
    assert set(found) == {"force-unit", "energy-unit"}
    assert "kcal/mol/Å" in found["force-unit"].message and "'kcal/mol'" in found["energy-unit"].message


@pytest.mark.parametrize("element", ["Si", "Ge"])
def test_cells_of_semiconductors(real_data, element):
    path = real_data / "mlearn" / f"{element}_train.extxyz"
    assert serious(path, keys=RAW, units={"stress": "kbar"}) == {}
    assert set(serious(path, keys={"stress": RAW["stress"] | {"sign": 1}}, units={"stress": "kbar"})) == {
        "stress-sign"
    }
    assert "GPa" not in serious(path, keys=RAW, units={"stress": "eV/Å^3"})["stress-unit"].message
    other = {"stress": RAW["stress"] | {"order": "ase"}}
    assert "stress-order" in serious(path, keys=other, units={"stress": "kbar"})


def test_copper_has_another_order_of_shear_components(real_data):
    """In this file a cell that is sheared in yz has a stress in the column of zx of VASP's order; in those of Si and Ge
    it has not."""
    path = real_data / "mlearn" / "Cu_train.extxyz"
    found = serious(path, keys=RAW, units={"stress": "kbar"})
    assert (
        set(found) == {"stress-order"}
        and "what is read as yz xz xy is xz yz xy" in found["stress-order"].message
    )
    right = {"stress": RAW["stress"] | {"order": "xx yy zz xy xz yz"}}
    assert serious(path, keys=right, units={"stress": "kbar"}) == {}


def test_silver_clusters_in_another_electronic_state(real_data):
    """Four linear Ag3+ are 0.5 eV above equal geometries (to 0.03 Å) of the same file."""
    found = serious(real_data / "charged_clusters" / "ag3_train.xyz", keys=CLUSTERS)
    # Their spin counts unpaired electrons, of which the reader warns.
    assert set(found) == {"inconsistent-frames", "reader-warnings"}
    assert found["inconsistent-frames"].count == 4
    numbers = {int(origin.split()[-1]) for origin in found["inconsistent-frames"].origins}
    assert numbers == {550, 583, 629, 725}
    assert serious(real_data / "charged_clusters" / "carbene_train.xyz", keys=CLUSTERS).keys() == {
        "reader-warnings"
    }


def test_zundel_cations_in_atomic_units(real_data):
    path, keys = real_data / "water_tensors" / "zundel_first800.xyz", {"energy": "potential", "dipole": "mu"}
    assert serious(path, keys=keys, units={"energy": "Hartree", "dipole": "e Bohr"}) == {}
    assert set(serious(path, keys=keys)) == {"energy-unit"}


def test_molecules_of_qm9(real_data):
    path = real_data / "qm9" / "qm9_train_valid.npz"
    data = mq.read_npz(path, index="::100", keys={"energy": "InternalEnergy_0K_au"}, quantities=["energy"])
    assert serious(data) == {}
    atomic = mq.read_npz(
        path,
        index="::400",
        keys={"energy": "InternalEnergy_0K_au"},
        units={"energy": "eV"},
        quantities=["energy"],
    )
    assert set(serious(atomic)) == {"energy-unit"}


def test_motion_capture(real_data):
    import numpy as np

    with np.load(real_data / "mocap" / "cmu_run_train_valid.npz") as arrays:
        clouds = [mq.Graph.single(x) for x in arrays["train_x0"][:50]]
    assert serious(clouds) == {}
