"""Lists of recipes, backbones and options; help as a table; completion."""

import argparse
import ast
import inspect
import shutil
import subprocess

import pytest

import molequi as mq
from molequi.cli import main
from molequi.cli.command import parser_of
from molequi.cli.completion import SHELLS
from molequi.cli.program import COMMANDS
from molequi.config.sections import recipes
from molequi.heads import HEADS
from molequi.readers import READERS


def told(capsys, *words: str) -> str:
    """What a command prints."""
    assert main(list(words)) == 0
    return capsys.readouterr().out


def test_recipes_with_purpose_data_and_time(capsys):
    lines = told(capsys, "recipes").splitlines()
    assert lines[0].split() == ["recipe", "purpose", "data", "time"]
    named = [line.split()[0] for line in lines if line[:1].strip()]
    assert {*recipes()} <= {*named}
    (demo,) = [line for line in lines if line.startswith("demo ")]
    assert "shipped" in demo and "minutes" in demo
    (acac,) = [line for line in lines if line.startswith("acac ")]
    assert "Acetylacetone" in acac and "published" in acac
    assert any(line.startswith("nbody ") and "simulated" in line for line in lines)


def test_backbones_with_family_and_source(capsys):
    page = told(capsys, "backbones")
    for name, kind in mq.models.BACKBONES.items():
        assert kind.family and kind.good_for, name
        (line,) = [line for line in page.splitlines() if line.startswith(f"{name} ")]
        assert kind.family.split()[0] in line
    (mace,) = [line for line in page.splitlines() if line.startswith("MACE ")]
    assert "Batatia et al. 2022" in mace


@pytest.mark.parametrize(
    "name", ["NequIP", "painn", *READERS, *HEADS, "optimizer", "ConstraintAnnealing", "Calculator", "loss"]
)
def test_options_of_everything_are_those_of_its_signature(capsys, name):
    page = told(capsys, "options", name)
    kinds = {**mq.models.BACKBONES, **READERS, **HEADS, "optimizer": mq.Optimizer, "loss": mq.Loss}
    kinds |= {"painn": mq.PaiNN, "ConstraintAnnealing": mq.ConstraintAnnealing, "Calculator": mq.Calculator}
    left_out = ("elements", "item", "quantity", "name") if name != "optimizer" else ()
    listed = [line.split()[0] for line in page.splitlines() if line.startswith("  ") and line[2] != " "]
    wanted = [p for p in inspect.signature(kinds[name]).parameters if p not in left_out]
    assert [n for n in listed[1:] if n not in left_out] == wanted


def test_options_of_fit_show_types_choices_defaults_and_units(capsys):
    page = told(capsys, "options", "fit")
    rows = {
        line.split()[0]: " ".join(line.split()[1:]) for line in page.splitlines() if line.startswith("  ")
    }
    assert rows["lr"].startswith("float > 0 0.005 Learning rate")
    assert rows["resume"].startswith("auto | force | restart auto")
    assert rows["optimizer.clip"].startswith("float > 0 10.0 Largest norm")
    assert rows["device"].startswith("auto | cpu | cuda | cuda:1 auto")
    assert "cutoff" not in rows and "valid" not in rows


def test_names_of_all_options_are_listed(capsys):
    page = told(capsys, "options")
    assert all(name in page for name in ("NequIP", "extxyz", "Vector", "optimizer", "relax"))


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_help_of_every_command_has_one_layout(capsys, command):
    page = told(capsys, command, "--help")
    assert page.startswith(f"usage: molequi {command}")
    parser = parser_of(next(one for one in COMMANDS if one.name == command))
    for action in parser.positionals:
        assert f"  {(action.metavar or action.dest).upper()}  " in page
    flags = parser.flags
    if flags:
        assert "option " in page and " type or choices " in page and " default " in page and " unit " in page
    for name in flags:
        assert f"--{name.replace('_', '-')} " in page


def test_help_of_dynamics_has_the_values_of_the_signature(capsys):
    page = told(capsys, "md", "--help")
    rows = {
        line.split()[0]: " ".join(line.split()[1:]) for line in page.splitlines() if line.startswith("  --")
    }
    step = inspect.signature(mq.md).parameters["timestep"].default
    assert rows["--timestep"].startswith(f"float {step} fs")
    assert rows["--pressure"].startswith(f"float {mq.Barostat().pressure} bar")
    assert rows["--max-force"].startswith("float > 0 1000.0 eV/Å")


@pytest.mark.parametrize("width", ["80", "120"])
def test_tables_fit_the_terminal(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    table = told(capsys, "relax", "--help").partition("options:")[2]
    assert max(map(len, table.splitlines())) <= int(width)


def test_options_that_are_declared_by_hand_are_in_the_table():
    from molequi.cli.parser import Parser

    parser = Parser(prog="molequi test", description="Test.")
    parser.add_argument("--kind", choices=("a", "b"), default="a", help="which")
    parser.add_argument("--fast", action="store_true", help="no checks")
    parser.add_argument("--also", action="append", default=[], help="one more")
    parser.add_argument("--hidden", help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, nargs="+", help="how many")
    rows = [line.split() for line in parser.format_help().splitlines() if line.startswith("  --")]
    assert rows == [
        ["--kind", "a", "|", "b", "a", "which"],
        ["--fast", "true", "|", "false", "no", "checks"],
        ["--also", "text", "one", "more"],
        ["--number", "int", "...", "how", "many"],
    ]
    given = parser.read(["--fast", "--number", "1", "2", "--also", "x", "--also", "y"])
    assert given.also == ["x", "y"]
    assert given.fast is True and given.number == [1, 2] and given.kind == "a"


def bash_completes(script: str, *words: str) -> set[str]:
    """What the Tab key offers after words, in bash."""
    line = " ".join(words)
    ask = (
        f"COMP_WORDS=({line} {'' if words[-1] else repr('')}); COMP_CWORD={len(words) - 1}; COMP_LINE={line!r}; "
        "COMP_POINT=${#COMP_LINE}; _shtab_molequi molequi; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{script}\n{ask}"], capture_output=True, text=True, timeout=60, check=True
    )
    return {*done.stdout.split()}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash, whose completion is tested")
def test_bash_completes_commands_options_choices_recipes_and_files(files, capsys):
    script = told(capsys, "completion", "bash")
    assert {"train", "predict", "recipes", "options"} <= bash_completes(script, "molequi", "")
    assert bash_completes(script, "molequi", "rela") == {"relax"}
    assert {"--temperature", "--timestep"} <= bash_completes(script, "molequi", "md", "--t")
    asked = ("molequi", "md", "model.safetensors", "frames.xyz", "--resume", "")
    assert bash_completes(script, *asked) == {"auto", "restart"}
    found = bash_completes(script, "molequi", "train", "")
    assert {"demo", "qm9", "c.yaml", "frames.xyz"} <= found
    assert bash_completes(script, "molequi", "predict", "mod") == {"model.safetensors"}
    assert "NequIP" in bash_completes(script, "molequi", "options", "Neq")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_for_each_shell(capsys, shell):
    script = told(capsys, "completion", shell)
    assert "relax" in script and "demo" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n", "-c", script], check=True, timeout=60)


def test_another_shell_is_refused(capsys):
    assert main(["completion", "cmd"]) == 2
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err


def test_help_needs_no_torch():
    """The list of commands and an unknown command answer at once."""
    code = (
        "import sys\nfrom molequi.cli import main\nmain(['--help'])\nmain(['trian'])\n"
        "print([n for n in ('torch', 'ase', 'rdkit') if n in sys.modules])"
    )
    import sys

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert ast.literal_eval(done.stdout.splitlines()[-1]) == []
