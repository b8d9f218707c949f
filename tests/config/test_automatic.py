"""Runs without a YAML file: what is chosen for which data, what is answered, and that the written file does the same."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.io import write as ase_write

import molequi as mq
from molequi.cli import main
from molequi.config import read_config
from molequi.config.automatic.asked import Asked
from molequi.config.automatic.choose import is_data, plan_of, settings_of
from molequi.errors import ConfigError, DataError

# The small data of these tests are not split as real ones are.
pytestmark = [
    pytest.mark.filterwarnings("ignore:the (valid|test) data have S:molequi.errors.DataWarning"),
    pytest.mark.filterwarnings("ignore:.*S occurs in no structure:molequi.errors.DataWarning"),
]

# Ten scaffolds of three molecules each; the label is the length of the SMILES.
RINGS = (
    "c1ccccc1",
    "C1CCCCC1",
    "c1ccncc1",
    "C1CCOC1",
    "c1ccoc1",
    "c1ccsc1",
    "C1CCCC1",
    "C1CCNCC1",
    "C1CC1",
    "C1CCC1",
)
SMILES = ["C" * n + ring for ring in RINGS for n in range(1, 4)]
QUICK = [
    "train.epochs=1",
    "train.logging.progress=false",
    "backbone.PaiNN.channels=8",
    "backbone.PaiNN.layers=1",
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(header="Compound ID;SMILES;logS", cell="{k};{s};{n}.5", name="mine.csv"):
    rows = [cell.format(k=k, s=s, n=len(s)) for k, s in enumerate(SMILES)]
    with open(name, "w", encoding="utf-8") as file:
        file.write("\n".join([header, *rows]) + "\n")
    return name


def frames(count=20, name="mine.xyz", stress=True, rename=None, start=0, **info):
    """Rattled copper with energy, forces and stress by EMT."""
    out = []
    for k in range(count):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=start + k)
        atoms.calc = EMT()
        copy = atoms.copy()
        names = rename or {"energy": "energy", "forces": "forces", "stress": "stress"}
        copy.info[names["energy"]] = atoms.get_potential_energy()
        copy.arrays[names["forces"]] = atoms.get_forces()
        if stress:
            copy.info[names["stress"]] = atoms.get_stress()
        copy.info |= {key: value(k) for key, value in info.items()}
        out.append(copy)
    ase_write(name, out, format="extxyz")
    return name


def trajectory(count=60):
    """A drop of argon under Newton's equations, of which each frame resembles the one before."""
    from ase import units
    from ase.md.verlet import VelocityVerlet

    atoms = Atoms("Ar4", [[0, 0, 0], [3.8, 0, 0], [0, 3.8, 0], [0, 0, 3.8]])
    atoms.set_momenta(np.random.default_rng(0).normal(size=(4, 3)) * 0.6)
    atoms.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=12.0)
    out = []

    def keep():
        copy = atoms.copy()
        copy.set_momenta(np.zeros((4, 3)))
        copy.info["energy"] = atoms.get_potential_energy()
        copy.arrays["forces"] = atoms.get_forces()
        out.append(copy)

    md = VelocityVerlet(atoms, 4 * units.fs)
    md.attach(keep, interval=10)
    md.run(10 * (count - 1))
    ase_write("md.xyz", out, format="extxyz")
    return out


def plan(path, **asked):
    chosen = plan_of(path, Asked(**asked))
    return chosen, read_config(settings_of(chosen))


def test_groups_of_an_hdf5_file_stay_together():
    h5py = pytest.importorskip("h5py", reason="h5py (the extra hdf5) is not installed")
    random = np.random.default_rng(3)
    with h5py.File("mine.h5", "w") as file:
        for k in range(6):
            file[f"{k}/atomic_numbers"] = [8, 1, 1]
            pos = molecule("H2O").positions + 0.03 * random.normal(size=(12, 3, 3))
            file[f"{k}/coordinates"], file[f"{k}/dft.energy"] = pos, random.normal(size=12) / 10 - 14
    chosen, config = plan("mine.h5", units={"energy": "eV"}, keys={"energy": "dft.energy"})
    assert config["data"]["hdf5"]["by"] == "group" and config["data"]["hdf5"]["units"] == {"energy": "eV"}
    assert config["data"]["hdf5"]["keys"] == {"energy": "dft.energy"}
    assert any("whole groups stay together" in note for note in chosen.notes.values())


# Molecules


def test_a_table_to_predictions_in_two_commands(capsys):
    table()
    assert main(["train", "mine.csv", "--target", "logS", *QUICK, "--members", "2"]) == 0
    out = capsys.readouterr().out
    assert (
        "30 rows, separated by ';'; SMILES in 'SMILES'" in out and "by scaffold" in out and "2 models" in out
    )
    assert "train: 24 structures" in out
    assert "predict:  molequi predict runs/mine/model.safetensors NEW.csv predictions.csv" in out
    with open("new.csv", "w") as file:
        file.write("Compound ID;SMILES\n1;CCCO\n2;OCCO\n")
    assert main(["predict", "runs/mine/model.safetensors", "new.csv", "out.csv"]) == 0
    lines = Path("out.csv").read_text("utf-8").splitlines()
    assert "logS_std" in lines[0] and len(lines) == 3


def test_predictions_find_the_column_of_smiles_as_the_training_does(capsys):
    pd = pytest.importorskip("pandas")
    table("code,the structure,y", "{k},{s},{n}")
    assert main(["train", "mine.csv", "--target", "y", "train.seed=0", *QUICK]) == 0
    model = "runs/mine/model.safetensors"
    assert f"molequi predict {model} NEW.csv predictions.csv\n" in capsys.readouterr().out
    named = mq.predict(model, SMILES, progress=False)

    def written(name, text, *more):
        Path(name).write_text(text)
        assert main(["predict", model, name, "out.csv", "--overwrite", *more]) == 0
        return pd.read_csv("out.csv", sep=";" if ";" in text else ",")["y"]

    wanted = pytest.approx([float(one["y"]) for one in named], rel=1e-5)
    # The column of the training, one with another name, and one of several that the training used.
    assert written("mine.csv", Path("mine.csv").read_text()).tolist() == wanted
    assert "SMILES were read from the column 'the structure'" in capsys.readouterr().out
    assert written("new.csv", "\n".join(["a b", *SMILES]) + "\n").tolist() == wanted
    both = "\n".join(["other smiles;the structure", *(f"CC;{s}" for s in SMILES)])
    assert written("both.csv", both).tolist() == wanted
    # What the user says counts.
    assert written("both.csv", both, "--column", "other smiles").nunique() == 1
    frame = mq.predict(model, pd.DataFrame({"n": 1, "any": SMILES}), as_frame=True, progress=False)
    assert frame["y"].tolist() == wanted
    # Labelled tables too.
    assert main(["evaluate", model, "mine.csv"]) == 0
    assert main(["evaluate", model, "mine.csv", "--column", "the structure"]) == 0
    first, second = capsys.readouterr().out.split("quantity")[-2:]
    assert first.strip() == second.strip()
    # Without a column there is an answer.
    Path("none.csv").write_text("name,y\nwater,1\n")
    assert main(["predict", model, "none.csv", "none_out.csv"]) == 2
    assert "none.csv: no column of SMILES (columns: name, y)" in capsys.readouterr().err


def test_the_written_file_trains_the_same_weights():
    table()
    assert main(["train", "mine.csv", *QUICK, "--target", "logS", "--members", "2", "train.lr=3e-3"]) == 0
    written = read_config("runs/mine/config.yaml")
    assert written["train"]["lr"] == 3e-3 and written["train"]["seed"] == [0, 1]
    assert main(["train", "runs/mine/config.yaml", "train.out=again"]) == 0
    one, two = mq.load("runs/mine/model.safetensors"), mq.load("again/model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    assert one.scales == two.scales
    other = mq.run("runs/mine/config.yaml", ["train.out=other", "train.seed=[3,4]"]).model
    assert not all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


def test_the_same_command_goes_on_and_another_gets_its_own_folder(capsys):
    table()
    command = ["train", "mine.csv", "--target", "logS", "train.seed=0", *QUICK]
    assert main(command) == 0 and main(command) == 0
    assert re.search(r"folder +runs/mine\n", capsys.readouterr().out)
    assert main([*command, "train.lr=1e-3"]) == 0
    assert re.search(r"folder +runs/mine-2\n", capsys.readouterr().out)
    assert main([*command, "--out", "here"]) == 0
    assert mq.load("here/model.safetensors").metadata["run"]["train"]["out"] == "here"
    before = Path("here/config.yaml").read_text("utf-8")
    capsys.readouterr()
    assert main([*command, "--out", "here", "train.lr=5e-4"]) == 2
    lines = capsys.readouterr().err.splitlines()
    (again,) = [line for line in lines if line.endswith("train.resume=restart")]
    assert again.startswith("  molequi train mine.csv --target logS") and "train.lr=5e-4" in again
    assert Path("here/config.yaml").read_text("utf-8") == before
    assert main(shlex.split(again)[1:]) == 0
    assert read_config("here/config.yaml")["train"]["lr"] == 5e-4


def test_a_missing_or_wrong_target_is_answered_with_the_command(capsys):
    table("id,smiles,log S,kind", "{k},{s},{n}.5,long")
    with open("mine.csv", "a") as file:
        file.writelines(f"{k},C,1,short\n" for k in range(100, 130))
    assert main(["train", "mine.csv"]) == 2
    error = capsys.readouterr().err
    assert "--target is missing" in error
    assert "\n  molequi train mine.csv --target 'log S'    # numbers" in error
    assert "\n  molequi train mine.csv --target kind    # classes" in error and "--target id" not in error
    assert main(["train", "mine.csv", "--target", "logS"]) == 2
    assert "no column 'logS' to learn; did you mean 'log S'?" in capsys.readouterr().err


def test_names_units_and_gaps_of_columns():
    table("SMILES\tlog S\tgap (eV)\tMW", "{s}\t{n}.5\t{n}\t", "mine.tsv")
    _, settings = plan("mine.tsv", target=("log S", "gap (eV)"))
    reader = settings["data"]["smiles"]
    assert reader["keys"] == {"log_S": "log S", "gap": "gap (eV)"} and reader["units"] == {"gap": "eV"}
    assert settings["predict"] == [{"name": "log_S"}, "gap"] and "labelled" not in reader
    # A unit that the user says is converted: 1 Hartree is 27.211 eV (CODATA).
    table("SMILES,gap", "{s},1", "gap.csv")
    _, settings = plan("gap.csv", target=("gap",), units={"": "Hartree"})
    data = mq.config.read_data(settings)["train"]
    assert data.values("gap")[0].item() == pytest.approx(27.211386, abs=1e-5)
    # A unit of the user's own is kept as it is, also that of the name of a column.
    table("SMILES,c (mol/L),k (exp.)", "{s},2.5,1", "own.csv")
    for target, given, found in (
        ("c (mol/L)", {}, ("c", "mol/L")),
        ("k (exp.)", {"": "1/week"}, ("k", "1/week")),
    ):
        _, settings = plan("own.csv", target=(target,), units=given)
        data = mq.config.read_data(settings)["train"]
        assert {name: q.unit for name, q in data.quantities.items()} == dict([found])
    assert plan("own.csv", target=("k (exp.)",))[1]["predict"] == [{"name": "k_exp"}]
    assert data.values("k").unique().tolist() == [1.0]
    with pytest.raises(ConfigError, match=r"'gap' is a known quantity.*say it: --units eV"):
        plan("gap.csv", target=("gap",))
    with pytest.raises(ConfigError, match=r"measured in eV; found the unit 'Å'.*--units eV"):
        plan("gap.csv", target=("gap",), units={"": "Å"})


def test_rows_without_a_value_are_left_out():
    table()
    text = Path("mine.csv").read_text("utf-8").replace(";9.5", ";").replace(";10.5", ";n/a")
    Path("mine.csv").write_text(text)
    chosen, settings = plan("mine.csv", target=("logS",))
    missing = sum(len(s) in (9, 10) for s in SMILES)
    assert f"{missing} rows have none" in chosen.notes["target"]
    parts = mq.config.read_data(settings)
    assert sum(len(part) for part in parts.values()) == len(SMILES) - missing
    assert not any(torch.isnan(part.values("logS")).any() for part in parts.values())


def test_decimal_commas_are_read():
    pd = pytest.importorskip("pandas")
    table(cell="{k};{s};{n},25")
    chosen, settings = plan("mine.csv", target=("logS",))
    assert "whose decimal commas are read as points (9,25)" in chosen.notes["target"]
    frame = pd.read_csv("mine.csv", sep=";", decimal=",").set_index("SMILES")["logS"]
    for part in mq.config.read_data(settings).values():
        assert part.values("logS").tolist() == frame[list(part.info["smiles"])].tolist()
        assert re.search(r"^ *logS .*'logS', decimal commas$", part.summary(), re.MULTILINE)
    # A table with points has no such note.
    table()
    chosen, settings = plan("mine.csv", target=("logS",))
    assert "commas" not in chosen.notes["target"]
    assert "commas" not in mq.config.read_data(settings)["train"].summary()


def test_marks_of_decimals_that_differ_are_answered_with_rows(capsys):
    table("SMILES;logS", "{s};{k},5")
    lines = Path("mine.csv").read_text("utf-8").splitlines()
    for row in (4, 7):
        lines[row + 1] = lines[row + 1].replace(",5", ".5")
    Path("mine.csv").write_text("\n".join(lines))
    assert main(["train", "mine.csv", "--target", "logS"]) == 2
    error = capsys.readouterr().err
    assert "row 0 is '0,5', row 4 is '4.5' (rows count from 0 below the header)" in error
    assert "Correct the 2 of 30 rows with the rarer one: 4, 7" in error
    # Thousands are not read as decimals, unless semicolons make clear that they are none.
    table("SMILES\tprice", "{s}\t1,{k:03}")
    with pytest.raises(DataError, match=r"price: three digits after each comma, such as '1,000' in row 0"):
        plan("mine.csv", target=("price",))
    table("SMILES;price", "{s};1,{k:03}")
    assert "read as points (1,000)" in plan("mine.csv", target=("price",))[0].notes["target"]


def test_classes_of_a_table():
    table("smiles,active", "{s},{k}")
    text = ["smiles,active,kind"] + [
        f"{s},{k % 2},{'aromatic' if 'c1' in s else 'other'}" for k, s in enumerate(SMILES)
    ]
    Path("mine.csv").write_text("\n".join(text))
    _, settings = plan("mine.csv", target=("active",))
    assert settings["predict"] == [{"name": "active", "classes": ["0", "1"]}]
    _, settings = plan("mine.csv", target=("kind",))
    assert settings["predict"] == [{"name": "kind", "classes": ["aromatic", "other"]}]
    parts = mq.config.read_data(settings)
    assert sum(int(part.values("kind").sum()) for part in parts.values()) == sum(
        "c1" not in s for s in SMILES
    )
    with pytest.raises(ConfigError, match="holds classes, which have no unit"):
        plan("mine.csv", target=("kind",), units={"": "eV"})


def test_other_mistakes_with_molecules():
    table("smiles,logS,note", "{s},{n},text {k}")
    with pytest.raises(ConfigError, match="--stress has no meaning for a table of molecules"):
        plan("mine.csv", target=("logS",), stress=True)
    with pytest.raises(DataError, match="'note' holds neither numbers nor classes"):
        plan("mine.csv", target=("note",))
    with pytest.raises(ConfigError, match="logP is not learnt; learnt are logS"):
        plan("mine.csv", target=("logS",), units={"logP": "eV"})
    with pytest.raises(ConfigError, match="no column 'Smile'; did you mean 'smiles'"):
        plan("mine.csv", target=("logS",), column="Smile")
    with pytest.raises(DataError, match="mine2.csv: no such file; did you mean 'mine.csv'"):
        plan("mine2.csv")
    Path("few.csv").write_text("smiles,y\nCCO,1\nCCC,2\n")
    with pytest.raises(DataError, match="2 molecules; wanted at least 20"):
        plan("few.csv", target=("y",))
    Path("list.smi").write_text("CCO\n")
    with pytest.raises(ConfigError, match="a list of SMILES has no labels; wanted a table"):
        plan("list.smi")
    Path("text.csv").write_text("smiles,note\nCCO,a\nCCC,b\n")
    with pytest.raises(ConfigError, match="nothing to learn: no column of numbers"):
        plan("text.csv")
    with pytest.raises(ConfigError, match=r"--recipe propert: no such recipe; did you mean 'property'"):
        plan("mine.csv", target=("logS",), recipe="propert")


def test_molecules_that_cannot_be_used_are_left_out_on_request(capsys):
    table()
    with open("mine.csv", "a") as file:
        file.write("99;not a molecule;1.0\n")
    assert main(["train", "mine.csv", "--target", "logS", *QUICK]) == 2
    assert "--skip" in capsys.readouterr().err
    with pytest.warns(mq.errors.DataWarning, match="1 of 31 molecules cannot be used and are left out"):
        mq.config.read_data(plan("mine.csv", target=("logS",), skip=True)[1])


def test_sdf_with_and_without_coordinates():
    from rdkit import Chem
    from rdkit.Chem import AllChem

    for name, flat in (("flat.sdf", True), ("solid.sdf", False)):
        with Chem.SDWriter(name) as writer:
            for k, smiles in enumerate(SMILES):
                mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
                (AllChem.Compute2DCoords if flat else AllChem.EmbedMolecule)(mol)
                mol.SetProp("pIC50", f"{k}.5")
                writer.write(mol)
        _, settings = plan(name, target=("pIC50",))
        assert settings["data"]["sdf"].get("embed", False) is flat
        assert len(mq.config.read_data(settings)["train"]) == 24
    with pytest.raises(ConfigError, match=r"molequi train flat.sdf --target pIC50    # numbers"):
        plan("flat.sdf")


# Structures


def test_frames_to_a_force_field_with_stress(capsys):
    frames()
    assert (
        main(
            [
                "train",
                "mine.xyz",
                "train.epochs=1",
                "train.logging.progress=false",
                "backbone.GauntACE.channels=4",
            ]
        )
        == 0
    )
    model = mq.load("runs/mine/model.safetensors")
    assert list(model.quantities) == ["energy", "forces", "stress"] and model.elements == (29,)
    told = capsys.readouterr().out
    assert "relax:    molequi relax runs/mine START.xyz --cell --out runs/mine-relaxed" in told
    assert "simulate: molequi md runs/mine runs/mine-relaxed/last.xyz --ensemble npt --time 1" in told
    _, settings = plan("mine.xyz", stress=False)
    assert settings["predict"] == ["energy", "forces"] and settings["train"]["loss"] == {
        "energy": 1,
        "forces": 100,
    }
    _, settings = plan("mine.xyz", recipe="medium")
    assert settings["backbone"]["GauntACE"]["channels"] == 64
    # The weight of the stress makes its share of the loss a tenth of that of the forces.
    _, settings = plan("mine.xyz")
    data = mq.read_extxyz("mine.xyz")
    spread = {name: float(data.values(name).std()) for name in ("forces", "stress")}
    loss = settings["train"]["loss"]
    assert loss["stress"] * spread["stress"] ** 2 == pytest.approx(0.1 * 100 * spread["forces"] ** 2, rel=0.5)


def test_other_names_of_labels_are_found_and_ambiguous_ones_are_asked_for():
    names = {"energy": "REF_energy", "forces": "REF_forces", "stress": "REF_stress"}
    frames(rename=names)
    chosen, settings = plan("mine.xyz")
    assert settings["data"]["extxyz"]["keys"] == names and "energy from 'REF_energy'" in chosen.notes["keys"]
    frames(stress=False, rename=names, dft_energy=float)
    with pytest.raises(
        ConfigError, match=r"'REF_energy' and 'dft_energy' are like it.*--keys energy=REF_energy"
    ):
        plan("mine.xyz")
    _, settings = plan("mine.xyz", keys={"energy": "REF_energy", "forces": "REF_forces"})
    assert settings["predict"] == ["energy", "forces"]
    with pytest.raises(ConfigError, match=r"--stress: mine.xyz has no stress .*--keys stress=NAME"):
        plan("mine.xyz", keys={"energy": "REF_energy"}, stress=True)


def test_trajectories_and_blocks_stay_together():
    frames(24, run_id=lambda k: k // 6)
    chosen, settings = plan("mine.xyz")
    assert settings["data"]["extxyz"]["by"] == "run_id" and "'run_id'" in chosen.notes["split"]
    frames(24)
    chosen, settings = plan("mine.xyz")
    assert "by" not in settings["data"]["extxyz"] and "at random" in chosen.notes["split"]
    images = trajectory()
    chosen, settings = plan("md.xyz")
    assert settings["data"]["extxyz"]["by"] == "blocks" and "in blocks" in chosen.notes["split"]
    ase_write(
        "mixed.xyz", [images[k] for k in np.random.RandomState(0).permutation(len(images))], format="extxyz"
    )
    assert "by" not in plan("mixed.xyz")[1]["data"]["extxyz"]


def test_properties_of_structures():
    frames(24, score=lambda k: 0.1 * k, kind=lambda k: "a")
    chosen, settings = plan("mine.xyz", target=("score",))
    assert chosen.recipe == "property" and settings["predict"] == [{"name": "score"}]
    data = mq.config.read_data(settings)
    assert sorted(torch.cat([part.values("score") for part in data.values()]).tolist()) == pytest.approx(
        [0.1 * k for k in range(24)]
    )
    with pytest.raises(ConfigError, match="no 'scor' to learn; did you mean 'score'"):
        plan("mine.xyz", target=("scor",))


def test_mistakes_with_structures():
    atoms = molecule("H2O")
    ase_write("bare.xyz", [atoms] * 12, format="extxyz")
    with pytest.raises(ConfigError, match="no energies"):
        plan("bare.xyz")
    frames(5)
    with pytest.raises(DataError, match="5 structures; wanted at least 10"):
        plan("mine.xyz")
    frames()
    with pytest.raises(
        ConfigError, match=r"--units kcal/mol: say of which quantity: --units energy=kcal/mol"
    ):
        plan("mine.xyz", units={"": "kcal/mol"})
    with pytest.raises(ConfigError, match="forces and stress are derivatives of the energy"):
        plan("mine.xyz", target=("forces",))
    with pytest.raises(ConfigError, match="--column has no meaning for structures"):
        plan("mine.xyz", column="smiles")


def test_charges_that_differ_are_read_by_the_model():
    frames(charge=lambda k: k % 2)
    mq.train_file(
        "mine.xyz", ["train.epochs=1", "train.logging.progress=false", "backbone.GauntACE.channels=4"]
    )
    written = read_config("runs/mine/config.yaml")
    assert written["backbone"]["GauntACE"]["inputs"] == {"charge": True}


def test_arrays_with_their_own_parts(shipped):
    data = mq.read_npz(shipped / "molecules.npz", index=":60", quantities=["gap"])
    mq.write_npz(data, "plain.npz")
    with np.load("plain.npz") as file:
        np.savez(
            "parts.npz", **{name: file[name] for name in file}, train=np.arange(40), test=np.arange(40, 60)
        )
    chosen, settings = plan("parts.npz", target=("gap",))
    assert {name: len(part) for name, part in mq.config.read_data(settings).items()} == {
        "train": 36,
        "valid": 4,
        "test": 20,
    }
    assert "the parts that the file names: train 40, test 20" in chosen.notes["split"]
    assert plan("plain.npz", target=("gap",))[1]["data"]["npz"]["by"] == "scaffold"


# Clouds


def shapes(folder, count=12, points=40, parts=("",)):
    random = np.random.default_rng(0)
    for kind, axes in (("ball", (1, 1, 1)), ("disc", (1, 1, 0.05))):
        for part in parts:
            place = folder / kind / part
            place.mkdir(parents=True)
            for k in range(count):
                np.save(place / f"{k}.npy", random.normal(size=(points, 3)) * axes)


def test_a_folder_of_classes(here, capsys):
    shapes(here / "shapes")
    assert main(["train", "shapes/", "train.epochs=1", "train.logging.progress=false"]) == 0
    out = capsys.readouterr().out
    assert "shape  5/5  ball 2, disc 3" in out or "shape  5/5  ball 3, disc 2" in out
    written = read_config("runs/shapes/config.yaml")
    assert written["backbone"]["PaiNN"]["inputs"] == {"node_features": 1, "node_vectors": 1}
    assert written["backbone"]["PaiNN"]["k"] == 8 and written["data"]["points"]["stratify"] == "shape"
    shapes(here / "tiny", points=6)
    assert plan("tiny")[1]["backbone"]["PaiNN"]["k"] is None
    shapes(here / "parted", parts=("train", "test"))
    parts = mq.config.read_data(plan("parted")[1])
    assert {name: len(part) for name, part in parts.items()} == {"train": 22, "valid": 2, "test": 24}


def test_arrays_of_clouds_with_several_labels(shipped):
    chosen, settings = plan(str(shipped / "shapes.npz"))
    assert settings["predict"][0]["name"] == "shape" and len(settings["predict"][0]["classes"]) == 10
    assert "--target part" in chosen.notes["others"]
    _, settings = plan(str(shipped / "shapes.npz"), target=("part",))
    assert settings["predict"][0]["per"] == "node"
    np.savez("plain.npz", pos=np.random.default_rng(0).normal(size=(20, 9, 3)), volume=np.arange(20.0))
    with pytest.raises(ConfigError, match="molequi train plain.npz --target volume    # numbers$"):
        plan("plain.npz")
    parts = mq.config.read_data(plan("plain.npz", target=("volume",))[1])
    assert sorted(torch.cat([p.values("volume") for p in parts.values()]).tolist()) == list(range(20))


def test_mistakes_with_clouds(here):
    shapes(here / "shapes", count=2)
    with pytest.raises(DataError, match="4 clouds; wanted at least 10"):
        plan("shapes")
    with pytest.raises(ConfigError, match="--units has no meaning for point clouds"):
        plan("shapes", units={"": "eV"})
    with pytest.raises(ConfigError, match="no 'kind' to learn"):
        plan("shapes", target=("kind",))


# The command line


def test_what_is_data_and_what_is_not(here):
    (here / "demo").mkdir()
    (here / "other").mkdir()
    assert not is_data("demo") and is_data("demo/") and is_data("other") and is_data("frames/*.xyz")
    assert not is_data("run.yaml") and not is_data("nonsense") and is_data("absent.csv")


def test_two_folders_for_one_run_are_refused(capsys):
    for data in ("demo", "mine.csv"):
        assert main(["train", data, "--out", "one", "train.out=two"]) == 2
        assert "--out one: a setting says two already; give the folder" in capsys.readouterr().err


def test_options_of_data_are_refused_for_yaml_and_recipes(capsys):
    assert main(["train", "demo", "--target", "energy"]) == 2
    assert "--target: demo is a recipe, which says this itself" in capsys.readouterr().err
    assert main(["train", "absent.csv", "--target", "y"]) == 2
    assert "absent.csv: no such file" in capsys.readouterr().err
    frames(12, "a.xyz")
    frames(12, "b.xyz")
    assert main(["train", "a.xyz", "b.xyz"]) == 2
    assert (
        "wanted one file; several are one pattern in quotes, '*.xyz', or a folder" in capsys.readouterr().err
    )


def test_a_folder_and_a_pattern_of_structures(here):
    (here / "set").mkdir()
    frames(6, "set/a.xyz")
    frames(6, "set/b.xyz", start=6)
    for name in ("set", "set/*.xyz"):
        _, settings = plan(name)
        assert len(mq.config.read_data(settings)["train"]) == 10


def test_few_scaffolds_are_split_at_random():
    Path("chains.csv").write_text("smiles,y\n" + "".join(f"{'C' * n}O,{n}\n" for n in range(1, 31)))
    chosen, settings = plan("chains.csv", target=("y",))
    assert settings["data"]["smiles"]["by"] == "canonical"
    assert "at random, not by scaffold, of which there are only 1" in chosen.notes["split"]
    rows = [f"{'C' * n}{ring},{n}\n" for ring in RINGS[:5] for n in range(1, 6)]
    Path("five.csv").write_text("smiles,y\n" + "".join(rows))
    chosen, settings = plan("five.csv", target=("y",))
    assert settings["data"]["smiles"]["by"] == "canonical" and "there are only 5" in chosen.notes["split"]
    table()
    assert plan("mine.csv", target=("logS",))[1]["data"]["smiles"]["by"] == "scaffold"


def printed(capsys, *words):
    """What the plan says of a training of no steps, by subject."""
    assert main(["train", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    return dict(
        re.split(r"  +", line, maxsplit=1) for line in lines[: 1 + lines.index(next(filter(_last, lines)))]
    )


def _last(line):
    return line.startswith("folder ")


def test_the_printed_plan_is_that_of_the_settings_after_overrides(capsys):
    table()
    words = ["mine.csv", "--target", "logS", *QUICK, "data.smiles.by=canonical", "train.seed=0"]
    said = printed(capsys, *words)
    assert said["split"] == "80% train, 10% valid, 10% test by 'canonical'"
    assert said["ensemble"] == "1 model, by train.seed=0"
    assert "scaffold" not in str(said) and "data.smiles.by=canonical train.seed=0" in said["set by you"]
    words[-2:] = ["data.smiles.split={train: 20, valid: 10}", "train.seed=[0, 1]"]
    said = printed(capsys, *words, "--out", "other")
    assert said["split"] == "20 train, 10 valid by 'scaffold'" and said["ensemble"].startswith("2 models")


def test_a_backbone_by_its_name_alone(capsys):
    table()
    said = printed(capsys, "mine.csv", "--target", "logS", *QUICK, "backbone=EGNN")
    assert said["recipe"].endswith(": EGNN, its defaults")


def test_the_printed_plan_says_nothing_of_settings_that_nobody_changed(capsys):
    table()
    said = printed(capsys, "mine.csv", "--target", "logS", *QUICK, "--members", "1")
    assert "by scaffold: errors are those for ring systems" in said["split"]
    frames()
    said = printed(
        capsys,
        "mine.xyz",
        *QUICK[:2],
        "backbone.NequIP.channels=4",
        "predict=[energy, forces]",
        "train.loss=null",
    )
    assert said["target"] == "energy, forces" and "stress" not in said


def test_the_function_is_public_and_does_what_the_command_does():
    assert "train_file" in mq.__all__ and "train_file" in mq.config.__all__
    table()
    quick = [*QUICK, "train.seed=0"]
    result = mq.train_file("mine.csv", quick, target="logS", out="one")
    assert main(["train", "mine.csv", "--target", "logS", "--out", "two", *quick]) == 0
    for name, weight in mq.load("two/model.safetensors").state_dict().items():
        assert torch.equal(weight, result.model.state_dict()[name])
    with pytest.raises(ConfigError, match=r"train_file\(traget=.*did you mean 'target'"):
        mq.train_file("mine.csv", traget="logS")


def test_small_validation_sets_do_not_choose_the_epoch():
    from molequi.config.automatic.asked import Asked
    from molequi.config.automatic.molecules import training

    small, notes = training(300, Asked(), "a.csv")
    assert small["validation"] == {"keep": "last"}
    assert notes["weights"] == "of the last epoch: which one is best cannot be told by 30 molecules"
    assert "validation" not in training(3000, Asked(), "a.csv")[0]


def test_a_part_that_is_left_out_has_no_share_of_the_data():
    from molequi.config.automatic.planned import planned

    for path, target in ((table(), ("logS",)), (frames(60), ())):
        plan, settings = planned(path, ["data.test=null"], Asked(target))
        assert plan.notes["split"].startswith("90% train, 10% valid") and "test" not in plan.notes["split"]
        assert plan.notes["set by you"] == "data.test=null"
        ((_, options),) = settings["data"].items()
        assert options["split"] == {"train": 0.9, "valid": 0.1}
        with pytest.raises(ConfigError, match="no validation set; give data"):
            planned(path, ["data.valid=null"], Asked(target))
    result = mq.train_file("mine.csv", [*QUICK, "train.seed=0", "data.test=null"], target="logS", out="one")
    assert "test" not in result.errors


def test_a_patience_chooses_the_best_epoch_again():
    from molequi.config.automatic.planned import planned

    asked, path = Asked(("logS",)), table()
    assert "which one is best cannot be told" in planned(path, ["train.epochs=7"], asked)[0].notes["weights"]
    plan, settings = planned(path, ["train.validation.patience=5"], asked)
    assert "weights" not in plan.notes and settings["train"]["validation"] == {"patience": 5}
    plan, settings = planned(path, ["train.validation.patience=null"], asked)
    assert "weights" in plan.notes and settings["train"]["validation"]["keep"] == "last"
    with pytest.raises(ConfigError, match="patience=5 is for keep='best'"):
        planned(path, ["train.validation={patience: 5, keep: last}"], asked)
    for typed in ("patience=5", "early_stopping_patience=5"):
        with pytest.raises(ConfigError, match="the full name is .*; write train.validation.patience=5$"):
            planned(path, [typed], asked)
    with pytest.raises(ConfigError, match="write train.compute.precision=float64"):
        planned(path, ["precision=float64"], asked)


def test_a_limit_among_decimal_commas_is_blamed_and_not_the_good_cells():
    path = Path(table(cell="{k};{s};{n},5"))
    path.write_text(path.read_text().replace(";9,5", ";<9,5", 1))
    with pytest.raises(DataError, match=r"logS is '<9,5'; wanted a number; it is a limit, no value"):
        mq.train_file(path, QUICK, target="logS", out="limit")
    path = table(cell="{k};{s};\u2212{n},5")
    with pytest.raises(DataError, match=r"neither numbers nor classes \(found '\u2212.*\(U\+2212\), write -"):
        mq.train_file(path, QUICK, target="logS", out="minus")
