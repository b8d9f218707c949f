"""Screening: each input exactly once, in this process; interrupts, refusals, conditions."""

import csv
import json

import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.units import Bohr, Hartree

import molequi as mq
from molequi.cli import main
from molequi.data import cache
from molequi.errors import ConfigError, DataError, MissingPackageError, OtherSettingsError
from molequi.screening.outcomes import divided
from molequi.screening.work import BlockWork

from .conftest import FRAMES, water


def rows_of(done):
    found = []
    for path in done.parts:
        with open(path, newline="", encoding="utf-8") as file:
            found += list(csv.DictReader(file))
    return found


def contents(folder):
    return {
        path.name: path.read_bytes() for name in ("parts", "structures") for path in (folder / name).iterdir()
    }


@pytest.fixture
def run(model_file, tmp_path):
    def call(inputs, name="out", model=model_file, **options):
        options = {"block": 5, "format": "csv", "progress": False, **options}
        return mq.screen(model, inputs, out=tmp_path / name, **options)

    return call


def test_structures_have_the_predictions_of_predict(run, frames, model_file):
    done = run(frames)
    rows = rows_of(done)
    wanted = mq.predict(model_file, frames, progress=False)
    assert (done.inputs, done.predicted, done.failed, done.kept) == (FRAMES, FRAMES, 0, FRAMES)
    assert [int(row["input"]) for row in rows] == [int(row["record"]) for row in rows] == list(range(FRAMES))
    assert {row["formula"] for row in rows} == {"H2O"} and {row["atoms"] for row in rows} == {"3"}
    np.testing.assert_allclose(
        [float(row["gap (eV)"]) for row in rows], [one["gap"] for one in wanted], rtol=1e-9
    )
    atoms = [one for path in done.structures for one in read(path, ":")]
    assert [one.info["input"] for one in atoms] == list(range(FRAMES))
    np.testing.assert_allclose(
        [one.get_forces() for one in atoms], [one["forces"] for one in wanted], atol=1e-7
    )
    assert float(np.abs(atoms[0].get_forces()).max()) > 1e-3


def test_molecules_have_the_rows_of_predict_table(run, smiles, gap_file, tmp_path):
    done = run(smiles, model=gap_file, block=3)
    rows = rows_of(done)
    mq.inference.predict_table(gap_file, smiles, tmp_path / "wanted.csv", skip=True, progress=False)
    with open(tmp_path / "wanted.csv", newline="") as file:
        wanted = list(csv.DictReader(file))
    for row in rows:
        assert row.pop("file") == str(smiles) and row.pop("input") == row.pop("record")
    assert rows == wanted and len(rows) == 7
    assert (done.predicted, done.failed) == (4, 3)
    reasons = [row["reason"] for row in rows]
    assert [bool(reason) for reason in reasons] == [False, False, True, False, True, True, False]
    assert reasons[4] == "S: not an element that the model knows (H C N O)"
    assert "7 inputs = 4 predicted + 3 failed, each once" in str(done)
    assert done.structures == () and not list(
        (tmp_path / "out" / "structures").iterdir()
    )  # no quantities of atoms


def test_columns_of_tables_are_kept_and_several_conformers_are_counted(run, tmp_path, gap_file):
    path = tmp_path / "in.csv"
    path.write_text("id,gap,mol,smiles\nx,3.5,a,CCO\ny,,b,CCCC\n")
    done = run(path, model=gap_file, conformers=2)
    row, second = rows_of(done)
    assert [*row] == [
        *("input", "file", "record", "id", "gap_given", "mol", "smiles", "gap (eV)"),
        *("gap_conformer_std (eV)", "conformers", "reason"),
    ]
    assert (row["id"], row["gap_given"], second["mol"], second["conformers"]) == ("x", "3.5", "b", "2")


def test_inputs_that_cannot_be_used_are_rows_with_a_reason(run, tmp_path, monkeypatch):
    from molequi.screening import outcomes

    path = tmp_path / "some.xyz"
    write(path, [water(k) for k in range(12)])
    lines = path.read_text().splitlines()
    lines[5 * 1 + 2] = "Xx" + lines[5 * 1 + 2][1:]  # no element
    lines[5 * 2 + 2] = "S" + lines[5 * 2 + 2][1:]  # one that the model does not know
    lines[5 * 3 + 3] = lines[5 * 3 + 2].replace("O", "H", 1)  # two atoms at one place
    lines[5 * 4 + 3] = lines[5 * 4 + 3].split()[0] + " nan 0 0"
    path.write_text("\n".join(lines) + "\n")
    predictions = outcomes.predictions

    def failing(model, data, *args, **options):
        numbers = list(data.info["input"])
        if 7 in numbers:
            raise RuntimeError("this one breaks everything")
        found = predictions(model, data, *args, **options)
        for number, one in zip(numbers, found):
            if number == 9:
                one["energy"] = np.array(np.inf)
        return found

    monkeypatch.setattr(outcomes, "predictions", failing)
    done = run(path, block=12)
    rows = rows_of(done)
    reasons = {k: row["reason"] for k, row in enumerate(rows) if row["reason"]}
    assert [*reasons] == [1, 2, 3, 4, 7, 9] and (done.predicted, done.failed) == (6, 6)
    assert "'Xx' is not the symbol of an element" in reasons[1] and reasons[2].startswith("S: not an element")
    assert "Å" in reasons[3] and "finite" in reasons[4]
    assert reasons[7] == "RuntimeError: this one breaks everything"
    assert reasons[9] == "the prediction is not finite: energy" and rows[9]["energy (eV)"] == ""
    structures = read(done.structures[0], ":")
    assert [one.info["input"] for one in structures] == [0, 5, 6, 8, 10, 11]


def test_a_full_disk_is_no_fault_of_an_input():
    def full(items):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        list(divided([1, 2], full))
    assert list(divided([], full)) == []


def interrupted(monkeypatch, after):
    """The work stops at this block, as by Ctrl-C; returns the numbers of the blocks that are done."""
    called = []
    work = BlockWork.__call__

    def stopping(self, block):
        if len(called) == after:
            raise KeyboardInterrupt
        called.append(block.number)
        return work(self, block)

    monkeypatch.setattr(BlockWork, "__call__", stopping)
    return called


def test_an_interrupted_screening_does_the_missing_blocks_only(run, frames, tmp_path, monkeypatch, capsys):
    run(frames, "whole")
    with monkeypatch.context() as patch:
        interrupted(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run(frames)
    assert "what is done is kept" in capsys.readouterr().err
    # As after a kill: the last line is cut off, a file is unfinished, and a part of a block is lost.
    with open(tmp_path / "out" / "done.jsonl", "a") as file:
        file.write('{"block": 4, "sha')
    (tmp_path / "out" / "parts" / ".000002.csv.abc.tmp").write_text("half")
    with monkeypatch.context() as patch:
        called = interrupted(patch, 99)
        done = run(frames)
        assert called == [2, 3, 4] and (done.inputs, done.predicted) == (FRAMES, FRAMES)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    with monkeypatch.context() as patch:
        called = interrupted(patch, 99)
        assert str(run(frames)) == str(done) and called == []
        (tmp_path / "out" / "structures" / "000001.xyz").unlink()
        run(frames)
        assert called == [1]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    notes = [
        json.loads(line) for line in (tmp_path / "out" / "done.jsonl").read_text().splitlines() if "}" in line
    ]
    assert sorted({note["block"] for note in notes}) == [0, 1, 2, 3, 4]


def test_another_model_input_or_option_is_refused_with_what_differs(run, frames, gap_file, tmp_path):
    run(frames)
    before = contents(tmp_path / "out")
    with pytest.raises(OtherSettingsError, match="block: 5 → 6"):
        run(frames, block=6)
    with pytest.raises(OtherSettingsError, match=r"keep: \[\] → \['gap < 3'\]"):
        run(frames, keep=["gap < 3"])
    with pytest.raises(OtherSettingsError, match="model: '[0-9a-f]{16}' → '[0-9a-f]{16}'"):
        run(frames, model=gap_file)
    with pytest.raises(OtherSettingsError, match="dtype: 'float64' → 'float32'"):
        run(frames, dtype="float32")
    assert contents(tmp_path / "out") == before
    write(frames, water(99), append=True)
    with pytest.raises(OtherSettingsError, match=r"inputs\.0\.records: 23 → 24(.|\n)*resume='restart'"):
        run(frames)
    assert run(frames, resume="restart", block=100).inputs == FRAMES + 1
    assert sorted(contents(tmp_path / "out")) == ["000000.csv", "000000.xyz"]


def test_files_of_something_else_are_not_overwritten(run, frames, tmp_path):
    (tmp_path / "out" / "parts").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"there is parts and no screen\.json"):
        run(frames)
    (tmp_path / "out" / "screen.json").write_text("{}")
    with pytest.raises(mq.errors.CheckpointError, match=r"screen\.json: not the note of a screening"):
        run(frames)
    assert run(frames, resume="restart").inputs == FRAMES


def test_a_changed_table_is_found(run, frames, tmp_path):
    done = run(frames)
    lines = done.parts[1].read_text().splitlines()
    lines[1] = lines[2]  # the same size, but one input twice and one not at all
    done.parts[1].write_text("\n".join(lines) + "\n")
    note = json.loads((tmp_path / "out" / "done.jsonl").read_text().splitlines()[1])
    note["files"]["parts/000001.csv"] = done.parts[1].stat().st_size
    with open(tmp_path / "out" / "done.jsonl", "a") as file:
        file.write(json.dumps(note) + "\n")
    with pytest.raises(
        DataError, match=r"000001\.csv: 5 rows, .* of the inputs 5 to 9; the file was changed"
    ):
        run(frames)


def test_units_of_positions_are_converted(run, tmp_path, frames, model_file):
    atoms = read(frames, ":3")
    for one in atoms:
        one.positions /= Bohr
    write(tmp_path / "bohr.xyz", atoms)
    rows = rows_of(run(tmp_path / "bohr.xyz", units={"positions": "Bohr"}))
    wanted = mq.predict(model_file, read(frames, ":3"), progress=False)
    found = [float(row["gap (eV)"]) for row in rows]
    np.testing.assert_allclose(found, [one["gap"] for one in wanted], rtol=1e-6)
    assert abs(found[0] - float(rows_of(run(tmp_path / "bohr.xyz", "wrong"))[0]["gap (eV)"])) > 1e-3


@pytest.fixture
def labelled(tmp_path):
    """Structures with energies far from zero, forces in some of them, and one that cannot be used."""
    random = np.random.default_rng(5)
    frames = []
    for k in range(13):
        atoms = water(k)
        found = {"energy": -2000 + random.normal()}
        found |= {"forces": random.normal(size=(3, 3))} if k not in (0, 1, 2, 7) else {}
        atoms.calc = SinglePointCalculator(atoms, **found)
        frames.append(atoms)
    frames[9].numbers[0] = 16
    frames[5].positions[2] = frames[5].positions[1]  # the others of its block are predicted in two groups
    path = tmp_path / "labelled.xyz"
    write(path, frames)
    write(tmp_path / "usable.xyz", [atoms for k, atoms in enumerate(frames) if k not in (5, 9)])
    return path


@pytest.mark.parametrize("options", [{"block": 3}, {"block": 100}, {"block": 4, "processes": 2}])
def test_errors_are_those_of_evaluate(run, labelled, model_file, tmp_path, options):
    done = run(labelled, errors=True, **options)
    wanted = mq.evaluate(model_file, tmp_path / "usable.xyz", partial=["forces"])
    found = done.errors.numbers()
    assert found.keys() == wanted.numbers().keys() and "forces_r2" in found
    for name, value in wanted.numbers().items():
        assert found[name] == pytest.approx(value, rel=1e-8), name
    assert [(row.quantity, row.element, row.count) for row in done.errors.rows] == [
        (row.quantity, row.element, row.count) for row in wanted.rows
    ]
    assert "forces" in str(done) and (done.predicted, done.failed) == (11, 2)
    again = run(labelled, errors=True, **options)
    assert again.errors.numbers() == pytest.approx(found, rel=1e-12)
    with pytest.raises(OtherSettingsError, match="errors: True → False"):
        run(labelled, **options)


def test_labels_of_other_names_and_units_and_none_at_all(run, labelled, frames, smiles, model_file, tmp_path):
    atoms = read(tmp_path / "usable.xyz", ":")
    for one in atoms:
        one.info["REF"] = one.get_potential_energy() / Hartree
        one.calc = None
    write(tmp_path / "named.xyz", atoms)
    options = {"keys": {"energy": "REF"}, "units": {"energy": "Hartree"}}
    done = run(tmp_path / "named.xyz", errors=True, **options)
    wanted = mq.evaluate(model_file, tmp_path / "named.xyz", **options)
    assert done.errors["energy_mae"] == pytest.approx(wanted["energy_mae"], rel=1e-8)
    assert "no labels of what the model predicts" in str(run(frames, "none", errors=True))
    for inputs, given, message in (
        (frames, {"units": {"energy": "Hartree"}}, "units: 'energy' is not read .*errors=True"),
        (frames, {"errors": True, "units": {"enrgy": "eV"}}, "'enrgy' is not read; did you mean 'energy'"),
        (frames, {"errors": True, "keys": {"stress": "S"}}, "keys: 'stress' is not read"),
        (frames, {"errors": "yes"}, "screen.errors: found 'yes'; wanted True or False"),
        (frames, {"keys": {"energy": "REF"}}, "names of labels, which are not read; add errors=True"),
        (smiles, {"errors": True}, "errors is for structures with labels.*molequi evaluate MODEL TABLE.csv"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(inputs, "other", **given)


def test_warnings_of_the_model_are_shown_once(run, frames, tmp_path, model_file, capsys):
    model = mq.load(model_file)
    model.metadata = {"trained_on": {"elements": ["H"]}}
    run(frames, model=model, processes=2)
    said = capsys.readouterr().err
    assert said.count("O occurs in no structure that this model was trained on") == 1
    assert said.count("molequi: warning:") == 1


def test_conditions_keep_results_and_the_best_are_found(run, frames, smiles, gap_file, model_file):
    gaps = [float(one["gap"]) for one in mq.predict(model_file, frames, progress=False)]
    middle = sorted(gaps)[FRAMES // 2]
    done = run(frames, keep=[f"gap < {middle!r}", "energy (eV) > -1e9"], best="3 largest gap")
    kept = [k for k, gap in enumerate(gaps) if gap < middle]
    assert [int(row["input"]) for row in rows_of(done)] == kept and done.kept == len(kept) == FRAMES // 2
    assert (done.inputs, done.predicted) == (FRAMES, FRAMES)
    atoms = [one for path in done.structures for one in read(path, ":")]
    assert [one.info["input"] for one in atoms] == kept
    with open(done.best, newline="") as file:
        best = [int(row["input"]) for row in csv.DictReader(file)]
    assert best == sorted(kept, key=lambda k: -gaps[k])[:3]
    # Inputs without a prediction are never lost, whatever is kept.
    none = run(smiles, "none", model=gap_file, keep=["gap > 1e9"])
    assert (none.kept, none.predicted, none.failed, len(rows_of(none))) == (0, 4, 3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": ["gap"]}, "keep='gap': wanted a column, one of <= .* keep=\\['energy < 3'\\]"),
        ({"keep": "gap < 3"}, "screen.keep: .* wanted a list"),
        ({"keep": ["gpa < 3"]}, "no column 'gpa' in the results; did you mean 'gap'"),
        ({"keep": ["gap < small"]}, "'small' is no number; wanted one in eV"),
        ({"best": "gap"}, "wanted a number, smallest or largest"),
        ({"best": "3 smallest forces"}, "best: no column 'forces'"),
        ({"format": "xlsx"}, "screen.format: found 'xlsx'"),
        ({"block": 0}, "screen.block"),
        ({"processes": 0}, "screen.processes"),
        ({"conformers": 3}, "screen.conformers"),
        ({"units": {"positions": "foo"}}, "'foo' is not known"),
        ({"workres": 3}, "screen.workres"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_before_anything_is_done(
    run, frames, tmp_path, options, message
):
    with pytest.raises((ConfigError, DataError), match=message):
        run(frames, **options)
    assert not (tmp_path / "out" / "screen.json").exists()


def test_without_progress_nothing_is_shown(frames, model_file, monkeypatch):
    shown = []

    class Bar(cache.ProgressBar):
        def __init__(self, *args, show=True, **options):
            shown.append(show)
            super().__init__(*args, show=show, **options)

    monkeypatch.setattr(cache, "ProgressBar", Bar)
    for progress in (True, False):
        mq.predict(model_file, frames, progress=progress)
    assert shown == [True, False]


def test_workers_are_the_rdkit_processes_of_each_process(run, smiles, gap_file, tmp_path):
    run(smiles, model=gap_file, workers=3)
    assert BlockWork(tmp_path / "out").work.workers == 3
    run(smiles, "default", model=gap_file)
    assert BlockWork(tmp_path / "default", workers=2).work.workers == 2


def test_ray_chooses_the_device_of_an_actor(run, frames, monkeypatch):
    monkeypatch.setattr("molequi.util.optional.find_spec", lambda package: package)
    with pytest.raises(
        ConfigError, match="ray='local' with device='cuda:1': Ray gives each actor one device"
    ):
        run(frames, ray="local", device="cuda:1")


def test_inputs_in_memory_are_refused(run, frames):
    with pytest.raises(ConfigError, match=r"found Dataset; .* mq\.predict"):
        run(mq.read_extxyz(frames))
    with pytest.raises(ConfigError, match="comes first and .* comes second"):
        run("model.safetensors", model=frames)


def test_missing_packages_are_named_with_their_extra(run, frames, monkeypatch):
    monkeypatch.setattr("molequi.util.optional.find_spec", lambda package: None)
    with pytest.raises(MissingPackageError, match=r"screen\(ray=…\) needs ray.*pip install 'molequi\[ray\]'"):
        run(frames, ray="local")
    with pytest.raises(MissingPackageError, match=r"needs pyarrow.*pip install 'molequi\[parquet\]'"):
        run(frames, format="parquet")


def test_parquet_has_the_numbers_of_csv(run, frames):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow (the extra parquet) is not installed")
    done, same = run(frames, "p", format="parquet", best="2 smallest gap"), run(frames, "c")
    rows = [row for path in done.parts for row in parquet.read_table(path).to_pylist()]
    wanted = rows_of(same)
    assert [*rows[0]] == [*wanted[0]] and len(rows) == len(wanted)
    for row, text in zip(rows, wanted):
        assert row["input"] == int(text["input"]) and row["reason"] == ""
        assert row["gap (eV)"] == pytest.approx(float(text["gap (eV)"]), rel=1e-9)
    assert done.best.read_text().count("\n") == 3
    assert run(frames, "p", format="parquet").inputs == FRAMES


def test_the_command_does_it_too(frames, model_file, tmp_path, capsys):
    words = ["screen", str(model_file), str(frames), "--out", str(tmp_path / "out"), "--block"]
    assert main([*words, "9", "--keep", "gap < 1e9", "--best", "2 smallest gap", "--errors"]) == 0
    said = capsys.readouterr().out
    assert "no labels of what the model predicts" in said
    assert "23 inputs = 23 predicted + 0 failed, each once; 23 results in 3 parts" in said
    assert main([*words, "8"]) == 2
    found = capsys.readouterr().err
    assert "block: 9 → 8" in found and f"--out {tmp_path / 'out'}-2" in found and "--resume restart" in found
    assert main(["screen", str(model_file), str(frames)]) == 2
    found = capsys.readouterr().err
    assert "--out is missing" in found and "molequi screen runs/mine 'library/*.smi' --out screened" in found
    for flag, said in {"--restart": "--resume restart", "--top": "--best", "--n-jobs": "--processes"}.items():
        assert main([*words, "9", flag, "3"]) == 2
        assert said in capsys.readouterr().err
