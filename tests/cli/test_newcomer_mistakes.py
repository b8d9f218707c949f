"""Typical mistakes of a newcomer: each is answered in one message that holds the next command or line to type."""

import copy
import pickle
import re
import shlex
from collections.abc import Callable

import pytest
import torch

import molequi as mq
from molequi.cli import main
from molequi.errors import MolequiError
from molequi.readers.embedder import Embedder

MD = "md model.safetensors frames.xyz --out runs/md --no-progress"

# As typed after `molequi`, and what the message holds.
TYPED = {
    # a force field
    "a misspelt flag": (f"{MD} --tme 2", "--tme: molequi md has no such option; did you mean '--time'?"),
    "NVT by its name": (f"{MD} --steps 2 --ensemble NVT_Berendsen", "write 'nvt'"),
    "a thermostat as an ensemble": (f"{MD} --steps 2 --ensemble CSVR", "write 'nvt' with --thermostat bussi"),
    "a time of a barostat": (f"{MD} --steps 2 --taup 500", "write --barostat-time 500 (in fs)"),
    "a time step as in ASE": (
        f"{MD} --steps 2 --dt 0.5",
        "write --timestep 0.5 (in fs, without ase.units.fs)",
    ),
    "a pressure in GPa": (f"{MD} --steps 2 --pressure_GPa 1", "write --pressure 10000.0 (in bar; 1 GPa is"),
    "no such folder": (
        "evaluate model.safetensors frames.xyz --out none/errors.csv",
        "--out=none/errors.csv: there is no folder none; make it with\n  mkdir -p none",
    ),
    "no such folder for an audit": (
        "audit model.safetensors frames.xyz --out none/report.html",
        "--out=none/report.html: there is no folder none",
    ),
    "a file in place of a folder": (
        "analyze frames.xyz --out frames.xyz",
        "--out=frames.xyz: ",
    ),
    "no length": (MD, "Write --time 10, in ps, or --steps 20000"),
    "Apple's GPU": (f"{MD} --steps 2 --device mps", "write --device cpu"),
    "model and structures exchanged": (
        "evaluate frames.xyz model.safetensors",
        "wanted first the model, then the structures: model.safetensors frames.xyz",
    ),
    "labels under other names": (
        "evaluate model.safetensors frames.xyz --forces_key REF_forces",
        "write --keys forces=REF_forces",
    ),
    "keys without a name": (
        "evaluate model.safetensors frames.xyz --keys REF_forces",
        "such as --keys forces=REF_forces",
    ),
    # a property of molecules
    "no file to write": (
        "predict gaps.safetensors mine.csv",
        "molequi predict gaps.safetensors mine.csv predicted.csv",
    ),
    "a SMILES as a file": ("predict gaps.safetensors CCO", "molequi predict gaps.safetensors --smiles CCO"),
    "another ending": ("predict model.safetensors frames.xyz out.txt", "such as out.xyz"),
    "OUT with a flag": (
        "predict model.safetensors frames.xyz --out out.xyz",
        "OUT stands without a name: molequi predict MODEL STRUCTURES OUT.xyz",
    ),
    "two files to write": (
        "predict model.safetensors frames.xyz a.xyz b.xyz",
        "predict: b.xyz is too much; wanted molequi predict MODEL STRUCTURES OUT.xyz",
    ),
    "a folder of structures": (
        "predict model.safetensors folder out.xyz",
        "molequi predict model.safetensors 'folder/*.xyz' out.xyz",
    ),
    # files that are not there, and folders
    "a shipped file": (
        "train data/bn.xyz",
        "no such file, and no folder data; molequi ships|  molequi data bn.xyz --out data",
    ),
    "a shipped file to simulate": (
        "md model.safetensors ethanol_300K.xyz@3 --steps 2",
        'molequi data ethanol_300K.xyz --out .|mq.shipped("ethanol_300K.xyz")',
    ),
    "a shipped file to analyze": ("analyze data/bn.xyz", "molequi data bn.xyz --out data"),
    "a shipped file to predict": (
        "predict model.safetensors data/bn.xyz out.xyz",
        "molequi data bn.xyz --out data",
    ),
    "a folder without a model": (
        "evaluate folder frames.xyz",
        "folder: a folder without a model; found nothing in it; wanted model.safetensors, which a training",
    ),
    "a folder of runs": (
        "info runs",
        "runs: a folder without model.safetensors; name one: runs/a/model.safetensors",
    ),
    "a folder of models": (
        "info kept",
        "with several models; name one: kept/1.safetensors, kept/2.safetensors",
    ),
    "a missing model": ("info runs/model.safetensors", "no such file, and there is runs/a/model.safetensors"),
    "a model in another folder": ("info nowhere/x.safetensors", "and there is runs/a/model.safetensors"),
    "a state of a training": ("info runs/a/state-0.pt", "the model is beside it: runs/a/model.safetensors"),
    "a run folder after the structures": (
        "evaluate frames.xyz runs/a",
        "wanted first the model, then the structures: runs/a frames.xyz",
    ),
    "a run folder to audit": ("audit runs/a", "molequi audit runs/a STRUCTURES"),
    "simulations of several temperatures": (
        "analyze runs/npt",
        "name one|runs/npt/300K/trajectory.xyz, runs/npt/600K/trajectory.xyz",
    ),
    "a folder without a trajectory": (
        "analyze folder",
        "a folder without trajectory.xyz, which molequi md writes",
    ),
    "the log of a simulation": (
        "analyze runs/npt/300K/log.csv",
        "beside this file: runs/npt/300K/trajectory.xyz",
    ),
    # values with units, and words for something else
    "kelvin": (f"{MD} --steps 2 --temperature 300K", "--temperature|write 300 (in K)"),
    "temperatures with a comma": (f"{MD} --steps 2 --temperature 300,600", "write 300 600"),
    "femtoseconds": (f"{MD} --steps 2 --timestep 1fs", "write 1 (in fs)"),
    "a time with a decimal comma": (f"{MD} --time 1,5", "wanted|; write 1.5"),
    "thousands of steps": (f"{MD} --steps 1,000", "; write 1000"),
    "a hexadecimal time": (f"{MD} --time 0x10", "--time 0x10: wanted a decimal number; write --time 16"),
    "an octal number of steps": (f"{MD} --steps 010", "--steps 010: wanted a decimal number"),
    "minutes and seconds": (f"{MD} --time 1:30", "--time 1:30: wanted a decimal number"),
    "a learning rate with a comma": ("train c.yaml train.lr=0,001", "; write 0.001"),
    "a learning rate and a letter": ("train c.yaml train.lr=1e-3x", "write the number alone: 1e-3"),
    "gigapascal": (f"{MD} --steps 2 --ensemble npt --pressure 1GPa", "write 10000 (in bar)"),
    "a length in ns": (f"{MD} --time 0.1ns", "write 100 (in ps)"),
    "minutes": ("train c.yaml train.max_minutes=5min", "write 5 (in minutes)"),
    "minutes of a flag": ("train mine.csv --max-minutes 5min", "write train.max_minutes=5"),
    "hours": ("train c.yaml train.max_minutes=1h", "write 60 (in minutes)"),
    "a supercell": ("phonons model.safetensors frames.xyz --supercell 2x2x2", "write 2 2 2"),
    "a percentage": ("predict gaps.safetensors mine.csv p.csv --interval 95", "did you mean 0.95?"),
    "an uncertainty": (
        "predict gaps.safetensors mine.csv p.csv --uncertainty",
        "molequi train FILE --members 3; then --interval 0.9",
    ),
    "an interval without errors": (
        "predict gaps.safetensors mine.csv p.csv --interval 0.9",
        "give held-out data with labels, --calibration FILE",
    ),
    "labels of a table": (
        "evaluate gaps.safetensors new.csv",
        "Name labels with --keys gap=NAME",
    ),
    "an analysis as a flag": ("analyze runs/npt/300K --rdf", "write --what rdf"),
    "phonons of a molecule": (
        "phonons stress.safetensors frames.xyz",
        "molequi vibrations MODEL STRUCTURES|mq.vibrations(",
    ),
    "no model": ("phonons bn.xyz", "for example|  molequi phonons runs/mine crystal.xyz"),
    "nothing to analyze": ("analyze", "  molequi analyze runs/nvt --what rdf"),
    "nothing to report": ("report", "  molequi report runs/mine"),
    "elements that the model does not know": (
        "md model.safetensors methane.xyz --steps 2",
        "does not know C; it knows H, O; train on data with these elements, or take",
    ),
    "labels of another file": (
        "evaluate model.safetensors methane.xyz",
        "--keys energy=NAME",
    ),
    # data to train
    "a setting after the target": ("train mine.csv --target gap --units eV epochs=5", "write train.epochs=5"),
    "a GPU": ("train frames.xyz --device gpu", "write train.device=cuda"),
    "gpu alone": ("train c.yaml gpu=true", "write train.device=cuda"),
    "forces as a flag": (
        "train frames.xyz --forces",
        "if the file has them; under another name: --keys forces=NAME",
    ),
    "a wrong target beside stress": ("train more.xyz --stress --target force", "no 'force' to learn"),
    "a limit in place of a value": (
        "train limits.csv --target logS --units eV",
        "row 20|'<-5'|it is a limit, no value|. Write the number, leave the cell empty",
    ),
    "a table without labels": (
        "train new.csv --target logS",
        "no column 'logS' to learn, and none of numbers or classes|molequi predict RUN new.csv predicted.csv",
    ),
    "another column": ("train mine.csv --target solubility", "  molequi train mine.csv --target gap"),
    "a spreadsheet": (
        "train real.xlsx --target logS",
        "pandas.read_excel('real.xlsx').to_csv('real.csv', index=False)",
    ),
    "molecules that cannot be used": (
        "train salts.csv --target logS --units eV",
        "Leave them out:|  molequi train salts.csv --target logS --units eV --skip",
    ),
    "a molecule to predict that cannot be used": (
        "predict gaps.safetensors salt.csv out.csv",
        "salt.csv, row 0: 1 of 1 molecules cannot be used|  molequi predict gaps.safetensors salt.csv out.csv --skip",
    ),
    # a training
    "another command": ("fit demo", "fit: molequi has no such command; write molequi train"),
    "a misspelt command": ("trian demo", "did you mean 'train'?"),
    "a flag of fit": ("train c.yaml --max_epochs 5", "write train.epochs=5"),
    "an option without its section": ("train c.yaml lr=1e-2", "write train.lr=1e-2"),
    "an option without its backbone": (
        "train c.yaml backbone.channels=16",
        "write backbone.EGNN.channels=16",
    ),
    "names of other packages": (
        "train c.yaml train.learning_rate=0.01 train.energy_weight=10 train.early_stopping=true",
        "write train.lr=0.01|write train.loss.energy=10|write train.validation.patience=20",
    ),
    "a cutoff by another name": ("train c.yaml backbone.EGNN.r_max=4.0", "write backbone.EGNN.cutoff=4.0"),
    "a loss of one's own": (
        "train c.yaml train.loss.smooth=1",
        "mq.run('run.yaml', losses={'smooth': f})",
    ),
    "a loss of what is not predicted": (
        "train c.yaml train.loss.stress=1",
        "predict it too: [energy, forces, stress]",
    ),
    "a name that has no options": ("options Nequpi", "did you mean 'NequIP'?"),
}


def the_library(words: str) -> Callable[[], object]:
    """A line of Python, as a user types it."""
    new = "frames.xyz"
    return {
        "predict dtype": lambda: mq.predict("model.safetensors", new, dtype="float16"),
        "predict batch": lambda: mq.predict("model.safetensors", new, batch_size=32),
        "predict reversed": lambda: mq.predict(new, "model.safetensors"),
        "audit precision": lambda: mq.audit("model.safetensors", new, dtype="float64"),
        "r_max": lambda: mq.NequIP(elements=["H", "O"], r_max=5.0),
        "irreps": lambda: mq.MACE(elements=["H", "O"], hidden_irreps="128x0e + 128x1o"),
        "cutoff": lambda: mq.Model(mq.EGNN(elements=["H"]), ["energy"], cutoff=5.0),
        "epochs": lambda: mq.fit(mq.load("model.safetensors"), new, new, max_epochs=3),
        "gpu": lambda: mq.fit(mq.load("model.safetensors"), new, new, epochs=3, gpu=True),
        "schedule": lambda: mq.Schedule("ReduceLROnPlateau"),
        "friction": lambda: mq.md(new, "model.safetensors", steps=2, friction=0.02),
        "temperature": lambda: mq.md(new, "model.safetensors", steps=2, temperature_K=300),
        "fmax": lambda: mq.md(new, "model.safetensors", steps=2, fmax=0.05),
        "device": lambda: mq.Calculator("model.safetensors", device="mps:0"),
        "key": lambda: mq.read_extxyz(new, forces_key="REF_forces"),
        "no validation data": lambda: mq.fit(mq.load("model.safetensors"), new, epochs=3),
        "a file to train": lambda: mq.fit("model.safetensors", new, new, epochs=3),
        "no elements": lambda: mq.NequIP(cutoff=5.0),
        "exchanged": lambda: mq.md("model.safetensors", new, steps=2),
        "no name": lambda: mq.md(new, "model.safetensors", 300),
        "options of run": lambda: mq.run("c.yaml", epochs=3),
        "a file in place of a setting": lambda: mq.run("c.yaml", [new]),
        "overrides": lambda: mq.run("c.yaml", "train.epochs=3"),
        "section": lambda: mq.run(
            {"data": {"npz": {"path": "a.npz"}}, "model": "EGNN", "train": {"epochs": 1}}
        ),
        "kind of loss": lambda: mq.fit(mq.load("model.safetensors"), new, new, epochs=3, loss="L1"),
        "sizes": lambda: mq.load_dataset(new).split(test_size=0.2, random_state=0),
        "a label": lambda: mq.read_extxyz(new)["energy"],
        "a target to read": lambda: mq.read_smiles("mine.csv", target="logS"),
        "molecules of frames": lambda: mq.read_extxyz(new).split([0.5, 0.5], by="smiles"),
        "spreadsheet": lambda: mq.read_smiles("real.xlsx"),
        "percent": lambda: mq.predict("gaps.safetensors", ["CCO"], interval=95),
        "state": lambda: mq.load("runs/a/state-0.pt"),
        "shipped": lambda: mq.read_extxyz("data/bn.xyz"),
        "folder": lambda: mq.load("folder"),
        "column": lambda: mq.read_smiles("mine.csv", smiles_column="smiles"),
    }[words]


CALLED = {
    "predict dtype": "dtype='float16': wanted 'float32' or 'float64'",
    "predict batch": "predict.batch_size: the name here is 'batch_edges' (the largest number of edges in a batch); write batch_edges=",
    "predict reversed": "wanted first the model, then the structures: model.safetensors frames.xyz",
    "audit precision": "audit(dtype='float64'): now measured in float64 always",
    "r_max": "NequIP.r_max: the name here is 'cutoff' (in Å); write cutoff=5.0",
    "irreps": "write channels=128",
    "cutoff": "it is an option of the backbone: mq.NequIP(cutoff=5.0)",
    "epochs": "fit(max_epochs=3): the name here is 'epochs'; write epochs=3",
    "gpu": "write device='cuda'",
    "schedule": "write 'plateau'",
    "friction": "thermostat=mq.Thermostat(friction=0.02)",
    "temperature": "the name here is 'temperature' (in K); write temperature=300",
    "fmax": "it is an option of relax: mq.relax(…, fmax=0.05)",
    "device": "write device='cpu'",
    "key": "write keys={\"forces\": 'REF_forces'}",
    "a label": 'write data.values("energy")',
    "a target to read": "write quantities=[mq.Quantity('logS')]",
    "molecules of frames": "is a column of molecules that mq.read_smiles or mq.read_sdf reads. Split at random",
    "spreadsheet": "mq.read_smiles(pandas.read_excel('real.xlsx'), …)",
    "percent": "did you mean 0.95?",
    "state": "the model is beside it: runs/a/model.safetensors",
    "shipped": 'mq.shipped("bn.xyz")',
    "folder": "folder: a folder without a model; found nothing in it; wanted model.safetensors",
    "column": "write column='smiles'",
    "sizes": "write sizes={'train': 0.8, 'valid': 0.1, 'test': 0.1}",
    "no validation data": "fit: missing 1 required positional argument: 'valid'; wanted fit(model, train, valid, …)",
    "a file to train": "write mq.load('model.safetensors')",
    "no elements": "write NequIP(elements=data.elements, …)",
    "exchanged": "the structure comes first: mq.md('frames.xyz', 'model.safetensors', …)",
    "no name": "the others have names: md(atoms, calculator, ensemble=…, …)",
    "options of run": 'run(epochs=3): now overrides=["train.epochs=3"]',
    "a file in place of a setting": "for data of your own: data.extxyz.path=frames.xyz",
    "overrides": "write overrides=['train.epochs=3']",
    "section": "model: no such section; the section is called backbone",
    "kind of loss": "write 'mae'",
}


# Attributes that are not there: the object, the name, and what the message holds.
ATTRIBUTES = {
    "a backbone in other letters": (lambda: mq, "Painn", "did you mean 'PaiNN'?"),
    "a reader of pandas": (lambda: mq, "read_csv", "write mq.read_smiles('FILE.csv')"),
    "train": (lambda: mq, "train", "mq.fit(model, train, valid, epochs=…), or mq.train_file('FILE')"),
    "a method of a model": (lambda: mq.load("runs/a"), "fit", "write mq.fit(model, train, valid, epochs=…)"),
    "a method of an ensemble": (
        lambda: mq.Ensemble([mq.load("runs/a"), mq.load("runs/a")]),
        "predict",
        "write mq.predict(model, structures)",
    ),
    "a misspelt attribute": (lambda: mq.load("runs/a"), "quantites", "did you mean 'quantities'?"),
    "labels": (lambda: mq.read_extxyz("frames.xyz"), "energy", 'write data.values("energy")'),
    "a column": (lambda: mq.read_smiles("mine.csv", units={"gap": "eV"}), "gap", 'write data.values("gap")'),
    "a method of data": (
        lambda: mq.read_extxyz("frames.xyz"),
        "train_test_split",
        "data.split([0.8, 0.2], seed=0)",
    ),
    "a picture": (lambda: mq.plotting, "errors", "write plotting.parity(model, data)"),
}


@pytest.mark.parametrize("what", ATTRIBUTES)
def test_an_attribute_that_is_not_there(files, what):
    make, name, wanted = ATTRIBUTES[what]
    owner = make()
    assert not hasattr(owner, name)
    with pytest.raises(AttributeError, match=re.escape(wanted)):
        getattr(owner, name)
    with pytest.raises(AttributeError, match=r"has no attribute '_nothing'$"):
        owner._nothing


def test_a_property_that_fails_says_why(files):
    class Mine(mq.Model):
        @property
        def broken(self):
            return self.nothing_here

        @property
        def other(self):
            return {}.keyz

    model = Mine(mq.EGNN(elements=["H"], channels=4, layers=1), ["energy"])
    for name, wanted in (
        ("broken", "'Mine' object has no attribute 'nothing_here'"),
        ("other", "'dict' object has no attribute 'keyz'"),
        ("quantites", "'Mine' object has no attribute 'quantites'; did you mean 'quantities'?"),
    ):
        with pytest.raises(AttributeError, match=re.escape(wanted)):
            getattr(model, name)
    assert not hasattr(model, "broken")


def test_objects_with_helpful_attributes_are_copied_and_pickled(files):
    data, model = mq.read_extxyz("frames.xyz"), mq.load("runs/a")
    # Processes hand objects to each other by pickle, which asks for attributes that are not there.
    for kept in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert kept.digest == data.digest
    water = mq.connect(data[0], 4.0)
    for kept in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(kept(water)["energy"], model(water)["energy"])
    assert getattr(data, "energy", None) is None


@pytest.mark.filterwarnings("ignore:.* in more than one part:molequi.errors.DataWarning")  # toy data
def test_the_result_of_a_training_in_the_place_of_a_model(files):
    data = mq.load_dataset("more.xyz", only=["energy"])
    train, valid = data.split([8, 4], seed=0, by="energy") if "energy" in data.info else (data[:8], data[:4])
    model = mq.Model(mq.load("runs/a").backbone, ["energy"])
    result = mq.fit(model, train, valid, epochs=1, logging={"progress": False})
    assert mq.plotting.parity(result, {"valid": valid}).axes
    for found in (result, result.model):
        with pytest.raises(
            MolequiError, match="write plotting.parity\\(model, {'train': train, 'valid': valid}"
        ):
            mq.plotting.parity(found)
    with pytest.raises(MolequiError, match="give the file: out='report.html'"):
        mq.report(result)
    with pytest.raises(MolequiError, match="mq.report\\('runs/NAME'\\)"):
        mq.report(result.model)


@pytest.mark.parametrize("what", TYPED)
def test_a_mistake_on_the_command_line(files, capsys, what):
    line, wanted = TYPED[what]
    assert main(shlex.split(line)) == 2
    told = capsys.readouterr().err
    assert told.startswith("molequi: ") and "Traceback" not in told and "usage" not in told
    for part in wanted.split("|"):
        assert part in told
    assert len(told) < 700


@pytest.mark.parametrize("what", CALLED)
def test_a_mistake_in_python(files, what):
    with pytest.raises(MolequiError, match=re.escape(CALLED[what])):
        the_library(what)()


def test_a_run_folder_is_a_model_everywhere(files, capsys):
    (files / "only").mkdir()
    mq.save(mq.load("runs/a"), "only/best.safetensors")
    water = mq.load_dataset("frames.xyz", only=["energy"])[:2]
    expected = mq.predict("runs/a/model.safetensors", water)[0]["energy"]
    for folder in ("runs/a", "only"):
        assert mq.predict(folder, water)[0]["energy"] == expected
        assert mq.Calculator(folder).get_potential_energy(mq.to_atoms(water[0])) == pytest.approx(expected)
    for line in (
        "predict runs/a frames.xyz p.xyz --progress false",
        "evaluate runs/a frames.xyz --keys forces=REF_forces",
        "info runs/a",
        "md runs/a frames.xyz --steps 1 --no-progress",
        "relax runs/a frames.xyz --steps 1 --no-progress",
    ):
        assert main(shlex.split(line)) == 0, capsys.readouterr().err
    assert mq.audit("runs/a", water, draws=2, limit=1)


def test_the_folder_of_a_simulation_is_a_trajectory(files):
    one = mq.analysis.analyze("runs/npt/300K", what="bonds", skip=0)
    assert one.frames == mq.analysis.analyze("runs/npt/300K/trajectory.xyz", what="bonds", skip=0).frames == 8
    (files / "runs/npt/600K/trajectory.xyz").unlink()
    assert mq.analysis.analyze("runs/npt", what="bonds", skip=0).frames == 8


def test_a_flag_that_is_misspelt_is_answered_in_one_line(files, capsys):
    assert main(shlex.split(TYPED["a misspelt flag"][0])) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_molecules_that_cannot_be_used_are_refused_before_any_geometry(files, monkeypatch):
    asked, whole = [], Embedder.map
    monkeypatch.setattr(
        Embedder,
        "map",
        lambda self, texts, check=False: asked.append(check) or whole(self, texts, check=check),
    )
    bad = ["CCO", "C[", "[Na+].[Cl-]", "C[Zn]", "*C"]
    with pytest.raises(MolequiError, match=r"4 of 5 molecules cannot be used"):
        mq.read_smiles(bad)
    assert asked == [True]
    with pytest.warns(mq.errors.DataWarning, match="4 of 5"):
        assert len(mq.read_smiles(bad, skip=True)) == 1
    assert asked == [True, False] and len(mq.read_smiles(["CCO", "C"])) == 2


def test_a_table_of_predictions_has_the_marks_and_names_of_the_input(files):
    table = files / "mine2.csv"
    table.write_text("Compound ID;SMILES;note\n1;CCO;a,b\n2;CC;c\n")
    assert main(["predict", "gaps.safetensors", "mine2.csv", "out.csv"]) == 0
    lines = (files / "out.csv").read_text().splitlines()
    assert lines[0] == "Compound ID;note;SMILES;gap (eV);reason"
    assert lines[1].startswith("1;a,b;CCO;") and len(lines) == 3
    again = mq.read_smiles("out.csv", column="SMILES")
    assert again.quantities["gap"].unit == "eV" and len(again) == 2
    table.write_text("smiles,note\nCCO,a\n")
    assert main(["predict", "gaps.safetensors", "mine2.csv", "out.csv", "--overwrite"]) == 0
    assert (files / "out.csv").read_text().startswith("note,smiles,gap (eV),reason\na,CCO,")


def test_a_rerun_with_one_change_is_told_the_exact_commands(files, capsys):
    assert main(["train", "c.yaml"]) == 0
    capsys.readouterr()
    assert main(["train", "c.yaml", "train.lr=0.1", "train.seed=0"]) == 2
    told = capsys.readouterr().err
    assert "settings.lr: 0.005 → 0.1" in told
    lines = re.findall(r"^  molequi (.*)$", told, flags=re.MULTILINE)
    assert lines == [
        f"train c.yaml train.lr=0.1 train.seed=0 train.{end}"
        for end in ("out=runs/c-2", "resume=restart", "resume=force")
    ]
    for line in lines:
        assert main(shlex.split(line)) == 0
    assert (files / "runs/c-2/model.safetensors").exists()
    assert main(["train", "c.yaml", "train.lr=0.2"]) == 2
    assert "train.out=runs/c-3" in capsys.readouterr().err


def test_a_simulation_with_one_change_is_told_the_exact_commands(files, capsys):
    assert main([*MD.split(), "--steps", "1"]) == 0
    capsys.readouterr()
    assert main([*MD.split(), "--steps", "1", "--temperature", "10"]) == 2
    lines = re.findall(r"^  molequi (.*)$", capsys.readouterr().err, flags=re.MULTILINE)
    typed = "md model.safetensors frames.xyz --no-progress --steps 1 --temperature 10 --out runs/md-2"
    assert lines == [typed, f"{MD} --steps 1 --temperature 10 --resume restart"]
    for line in lines:
        assert main(shlex.split(line)) == 0
