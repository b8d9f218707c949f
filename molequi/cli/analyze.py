"""``molequi analyze``, ``eos``, ``elastic``, ``vibrations`` and ``phonons``."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from molequi.cli.command import Command
from molequi.cli.flags import Flag, flags_of, help_text, read_flags, wants_help, with_lists
from molequi.cli.simulate import ModelInputs
from molequi.errors import ConfigError

_TEXTS = {
    "analyze": "Radial distribution, diffusion, vibrations, bonds and angles of a trajectory.",
    "eos": "Equation of state and bulk modulus of a crystal with a model.",
    "elastic": "Elastic constants of a crystal with a model.",
    "vibrations": "Normal modes of a molecule with a model.",
    "phonons": "Phonon bands and density of states of a crystal with a model.",
}
_OUT = "Folder of the tables (CSV) and pictures (PNG)."


def _add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    if name == "analyze":
        parser.add_argument("trajectory", help="a file that ASE reads, such as md/trajectory.xyz")
    else:
        parser.add_argument("model", help="model.safetensors")
        parser.add_argument("structures", help="a file that ASE reads")
    parser.add_argument(
        "options",
        nargs=argparse.REMAINDER,
        metavar="--option value",
        help=f"options; `molequi {name} {'TRAJECTORY' if name == 'analyze' else 'MODEL STRUCTURE'} --help` "
        "lists them",
    ).required = False


def _analyze(given: argparse.Namespace) -> None:
    from molequi.analysis import analyze

    read = _options(given, "analyze", analyze, ("trajectory",))
    if read is None:
        return
    plain, _, out = read
    result = analyze(given.trajectory, **plain)
    print(result)
    _say(out, [path for one in result.results.values() for path in _write(one, out)])


def _calculate(given: argparse.Namespace, name: str) -> None:
    """Run one of the functions that take a structure and a model."""
    from molequi import analysis

    function: Callable[..., Any] = getattr(analysis, name)
    read = _options(given, name, function, ("atoms", "calculator"), ModelInputs)
    if read is None:
        return
    plain, inputs, out = read
    atoms, calculator = inputs.read(given.structures, given.model)
    result = function(atoms, calculator, **plain)
    print(result)
    _say(out, [*_write(result, out), *analysis.write_structures(result, out)])


def _options(
    given: argparse.Namespace,
    name: str,
    function: Callable[..., Any],
    leave_out: tuple[str, ...],
    *own: type,
) -> tuple[dict[str, Any], Any, Path] | None:
    """Keyword arguments of the function, the inputs and the folder; None if only help was asked for."""
    from molequi.util.options import collect
    from molequi.util.signature import check_call

    others = {flag: value for kind in own for flag, value in flags_of(kind).items()}
    others["out"] = Flag("out", "analysis" if name == "analyze" else name, _OUT)
    if wants_help(given.options):
        flags = flags_of(function, leave_out=leave_out) | others
        print(help_text(name, flags.values(), _TEXTS[name]))
        return None
    words = with_lists(function, read_flags(given.options))
    plain = {key: value for key, value in words.items() if key not in others}
    inputs = {key: value for key, value in words.items() if key in others and key != "out"}
    out = words.get("out", others["out"].default)
    if not isinstance(out, str):
        raise ConfigError(f"--out {out!r}: wanted the path of a folder")
    collect(
        partial(check_call, function, plain, where=name, leave_out=leave_out, more=tuple(others)),
        *(partial(check_call, kind, inputs, where=name) for kind in own),
    )
    return plain, own[0](**inputs) if own else None, Path(out)


def _say(out: Path, paths: Sequence[Path]) -> None:
    print(f"{out}: {', '.join(path.name for path in paths)}")


def _write(result: Any, out: Path) -> list[Path]:
    """Tables and picture of a result."""
    from molequi import plotting
    from molequi.analysis import write_tables
    from molequi.util.files import write_file

    paths = write_tables(result, out)
    picture = paths[0].with_suffix(".png")
    figure = plotting.analysis(result)
    write_file(picture, lambda path: figure.savefig(path, format="png"))
    return [*paths, picture]


COMMANDS = (
    Command("analyze", _TEXTS["analyze"], partial(_add_arguments, name="analyze"), _analyze),
    *(
        Command(name, _TEXTS[name], partial(_add_arguments, name=name), partial(_calculate, name=name))
        for name in ("eos", "elastic", "vibrations", "phonons")
    ),
)
