"""One family of errors: users catch `MolequiError`, the command line shows a message and a status, and readers raise nothing else."""

import ast
import inspect
from collections import Counter
from pathlib import Path

import pytest

import molequi
from molequi import errors
from molequi.cli import main

from .targets import called, read

CLASSES = [
    c
    for _, c in inspect.getmembers(errors, inspect.isclass)
    if issubclass(c, Exception) and not issubclass(c, Warning)
]
PACKAGE = Path(molequi.__file__).parent
# Built-in errors that the package raises, by folder: Python wants them there (attributes, mappings), or callers in the same package catch them.
OTHERS = {"AssertionError", "KeyError", "TypeError", "ValueError", "AttributeError"}


def test_all_have_one_base_and_say_what_kind_they_are():
    assert len(CLASSES) >= 12
    for kind in CLASSES:
        assert issubclass(kind, errors.MolequiError)
        if kind is not errors.MolequiError:
            assert issubclass(kind, (ValueError, RuntimeError, ImportError, AttributeError, TypeError)), kind
    warnings = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, Warning)]
    assert all(issubclass(w, UserWarning) for w in warnings)


@pytest.mark.parametrize("kind", CLASSES)
def test_the_command_line_turns_each_into_a_message(kind, monkeypatch, capsys):
    more = {errors.OtherSettingsError: ("runs/a",), errors.DivergedError: ((0, 1), (1,))}
    error = kind("what is wrong", *more.get(kind, ()))

    def fails(words):
        raise error

    monkeypatch.setattr("molequi.cli.program._run", fails)
    assert main(["info", "x"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("molequi: what is wrong") and "Traceback" not in told


def raised() -> Counter:
    """Names of the classes that are raised, with the first folder below the package."""
    found = Counter()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Raise) and node.exc is not None:
                called = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                found[ast.unparse(called), path.relative_to(PACKAGE).parts[0]] += 1
    return found


def test_readers_commands_and_trainings_raise_errors_of_the_family_only():
    """Built-in errors stay inside the arithmetic (ops, nn), and where a mapping or an attribute is asked for."""
    found = raised()
    assert sum(n for (name, _), n in found.items() if name in {k.__name__ for k in CLASSES}) > 500
    users = (
        "readers",
        "cli",
        "config",
        "training",
        "simulation",
        "interfaces",
        "data",
        "graph",
        "checkpoint.py",
    )
    ours = {(name, place): n for (name, place), n in found.items() if name in OTHERS and place in users}
    # Each is caught in the same package and becomes an error of the family: wrong entries of states, and numbers that are none.
    assert ours == {
        ("TypeError", "readers"): 1, ("TypeError", "data"): 1, ("ValueError", "training"): 3, ("ValueError", "simulation"): 5,
        ("AttributeError", "graph"): 1,
    }  # fmt: skip


DAMAGE = {
    "empty": lambda data, other: b"",
    "half": lambda data, other: data[: len(data) // 2],
    "nulls": lambda data, other: b"\x00" * 100 + data,
    "letters": lambda data, other: data.replace(b"0", b"x"),
    "another kind": lambda data, other: other,
    "bytes of no text": lambda data, other: data[:20] + b"\xff\xfe\xfa" + data[20:],
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    from .targets import Inputs

    return Inputs(tmp_path_factory.mktemp("good"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_of_every_kind_are_read_or_refused_in_the_family(damage, good, tmp_path):
    import random

    refused = 0
    for k, path in enumerate(good.structures):
        other = good.contents[good.structures[k - 7]]
        broken = tmp_path / path.name
        broken.write_bytes(DAMAGE[damage](good.contents[path], other))
        try:
            read(broken, random.Random(0))
        except errors.MolequiError as error:
            assert path.name in str(error) or "frame" in str(error), error  # its place is said
            refused += 1
    assert refused > len(good.structures) / 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["molecules.xyz", "m.npz", "t.csv", "m.sdf", "m.db", "c.cif"])
def test_commands_with_damaged_files_end_with_a_status_and_leave_nothing(name, good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = good.contents[next(p for p in good.structures if p.name == name)]
    model = str(good.folder / "model.safetensors")
    for damage, change in DAMAGE.items():
        Path(name).write_bytes(change(content, good.contents[good.structures[0]]))
        for words in (
            ["predict", model, name, "out.xyz"],
            ["evaluate", model, name],
            ["audit", model, name, "--draws", "1"],
            ["relax", model, name, "--steps", "1", "--out", "out"],
            ["md", model, name, "--steps", "1", "--out", "out"],
            ["train", name, "train.epochs=1", "train.out=out"],
        ):
            if damage in ("empty", "another kind") or (damage == "letters" and name != "m.db"):  # never read
                status, told = called(words)
                assert status == 2 and told.startswith("molequi: "), (words, damage, told)
                assert not Path("out.xyz").exists() and not list(Path().rglob("*.tmp"))


def test_a_place_that_cannot_be_written_is_named_as_the_user_wrote_it(good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, told = called(
        [
            "predict",
            str(good.folder / "model.safetensors"),
            str(good.folder / "molecules.xyz"),
            "/proc/out.xyz",
        ]
    )
    assert status == 2 and "out=/proc/out.xyz: cannot be written" in told and ".tmp" not in told
