"""``molequi analyze``, ``eos``, ``elastic``, ``vibrations``, ``phonons``, ``infrared`` and ``raman``."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from molequi.cli.command import Command
from molequi.cli.flags import add_flags, check_flags, flags_of, given_flags
from molequi.cli.simulate import ModelInputs
from molequi.util.describe import Option
from molequi.util.locks import check_unused, lock_folder

_TEXTS = {
    "analyze": "Radial distribution, diffusion, vibrations, bonds and angles of a trajectory.",
    "eos": "Equation of state and bulk modulus of a crystal with a model.",
    "elastic": "Elastic constants of a crystal with a model.",
    "vibrations": "Normal modes of a molecule with a model.",
    "phonons": "Phonon bands and density of states of a crystal with a model.",
    "infrared": "Infrared spectrum with a model: of the normal modes of one structure, or of a trajectory.",
    "raman": "Raman spectrum with a model: of the normal modes of one structure, or of a trajectory.",
}
_SPECTRA = ("infrared", "raman")
_TABLES = (
    *("rdf", "msd", "vdos", "bonds", "angles", "eos", "elastic", "vibrations", "phonons", "phonon_dos"),
    "thermochemistry",
    *(f"{name}{part}" for name in _SPECTRA for part in ("", "_lines")),
)
_WRITTEN = (
    *(f"{name}.{kind}" for name in _TABLES for kind in ("csv", "png")),
    "structure.xyz",
    "modes.xyz",
    "phonopy.yaml",
)


@dataclass(frozen=True)
class _Output:
    """Where the results go.

    Parameters
    ----------
    out : str
        Folder of the tables (CSV), pictures (PNG) and structures.
    """

    out: str = "analysis"


def _add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    if name == "analyze":
        parser.add_argument(
            "trajectory",
            help="the folder of a simulation, or a file that ASE reads, such as md/trajectory.xyz",
        )
    else:
        parser.add_argument("model", help="model.safetensors, or the folder of a run")
        text = "a file that ASE reads, or one frame of it: frames.xyz@3"
        trajectory = "; or a trajectory, or the folder of a simulation" if name in _SPECTRA else ""
        parser.add_argument("structures", help=text + trajectory)
    add_flags(parser, _flags(name))


def _flags(name: str) -> dict[str, Option]:
    """All flags: those of the function, the folder, and how the model runs."""
    from molequi import analysis

    own = flags_of(_Output)
    own["out"] = replace(own["out"], default="analysis" if name == "analyze" else name)
    inputs = {} if name == "analyze" else flags_of(ModelInputs)
    return flags_of(getattr(analysis, name)) | _thermal(name) | own | inputs


def _thermal(name: str) -> dict[str, Option]:
    """Flags of thermochemistry, which is calculated if one of them is given."""
    from molequi.analysis import NormalModes

    if name != "vibrations":
        return {}
    flags = flags_of(NormalModes.thermochemistry)
    several = replace(flags["temperature"], kind="float ...", hint=Sequence[float])
    return flags | {"temperature": several}


def _analyze(given: argparse.Namespace) -> None:
    from molequi.analysis import analyze

    plain, out, _ = _options(given, "analyze", analyze)
    check_unused(out, _WRITTEN)
    result = analyze(given.trajectory, **plain)
    print(result)
    with lock_folder(out):
        paths = [path for one in result.results.values() for path in _write(one, out)]
    _say(out, paths)


def _calculate(given: argparse.Namespace, name: str) -> None:
    """Run one of the functions that take a structure and a model."""
    from molequi import analysis

    function: Callable[..., Any] = getattr(analysis, name)
    plain, out, inputs = _options(given, name, function)
    check_unused(out, _WRITTEN)
    heat = {key: plain.pop(key) for key in _thermal(name) if key in plain}
    atoms, calculator = inputs.read(given.structures, given.model)
    result = function(atoms, calculator, **plain)
    print(result)
    found = result.thermochemistry(**heat) if heat else None
    if found:
        print(found)
    with lock_folder(out):
        paths = [*_write(result, out), *analysis.write_structures(result, out)]
        paths += analysis.write_tables(found, out) if found else []
    _say(out, paths)


def _spectrum(given: argparse.Namespace, name: str) -> None:
    """Run one of the functions that take a structure or a trajectory, and a model."""
    from molequi import analysis

    function: Callable[..., Any] = getattr(analysis, name)
    plain, out, inputs = _options(given, name, function)
    check_unused(out, _WRITTEN)
    structures = inputs.read(given.structures, given.model)[0] if inputs.index else given.structures
    result = function(structures, inputs.calculator(given.model), **plain)
    print(result)
    with lock_folder(out):
        paths = _write(result, out)
    _say(out, paths)


def _options(
    given: argparse.Namespace, name: str, function: Callable[..., Any]
) -> tuple[dict[str, Any], Path, ModelInputs]:
    """Keyword arguments of the function, the folder, and how the model runs."""
    from molequi.analysis import NormalModes
    from molequi.util.files import check_target_folder
    from molequi.util.options import collect

    options = given_flags(given, _flags(name))
    out = {"out": options.pop("out", "analysis" if name == "analyze" else name)}
    inputs = {key: options.pop(key) for key in flags_of(ModelInputs) if key in options}
    heat = {key: options[key] for key in _thermal(name) if key in options}
    own = {key: value for key, value in options.items() if key not in heat}
    collect(
        partial(check_flags, name, function, own),
        *([partial(check_flags, name, NormalModes.thermochemistry, heat)] if heat else []),
        partial(check_flags, name, _Output, out),
        partial(check_flags, name, ModelInputs, inputs),
    )
    check_target_folder(out["out"], name="--out")
    return options, Path(out["out"]), ModelInputs(**inputs)


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
    *(
        Command(name, _TEXTS[name], partial(_add_arguments, name=name), partial(_spectrum, name=name))
        for name in _SPECTRA
    ),
)
