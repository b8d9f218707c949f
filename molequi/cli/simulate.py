"""``molequi md`` and ``molequi relax``."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from molequi.cli.command import Command
from molequi.cli.flags import add_flags, check_flags, flags_of, given_flags
from molequi.cli.parser import Parser
from molequi.errors import ConfigError
from molequi.util.describe import Option

if TYPE_CHECKING:
    from ase import Atoms

    from molequi.interfaces import Calculator
    from molequi.simulation import Dynamics

_TEXTS = {
    "md": "Molecular dynamics with a model.",
    "relax": "Relax structures with a model.",
}
# Flags that are fields of a group of options: flag, parameter of the function, field.
_GROUPED = {
    "md": (
        ("thermostat", "thermostat", "kind"),
        ("friction", "thermostat", "friction"),
        ("thermostat_time", "thermostat", "time"),
        ("pressure", "barostat", "pressure"),
        ("barostat_time", "barostat", "time"),
        ("barostat_cell", "barostat", "cell"),
        ("max_heating", "limits", "max_heating"),
        ("max_force", "limits", "max_force"),
        ("max_std", "limits", "max_std"),
        ("guard", "guard", "max_std"),
        ("guard_every", "guard", "every"),
        ("guard_frames", "guard", "frames"),
    ),
    "relax": (),
}
_RENAMED = {"max_spread": "--max-std"}  # flags of an earlier version


@dataclass(frozen=True)
class ModelInputs:
    """Which structure and how the model runs.

    Parameters
    ----------
    index : int
        Frame of the file.
    device : {"auto", "cpu", "cuda", "cuda:1"}
        Where the model runs; "auto" is CUDA if this machine has it.
    dtype : {"float32", "float64"}
        How precisely it runs; float64 for dynamics that should conserve the energy.
    accelerate : bool
        Compile the model.
    """

    index: int = 0
    device: str = "auto"
    dtype: Literal["float32", "float64"] = "float64"
    accelerate: bool = False

    def read(self, structures: str, model: str) -> "tuple[Atoms, Calculator]":
        """The structure and the calculator."""
        from molequi.readers.atoms import split_frames
        from molequi.readers.files import check_file
        from molequi.simulation.inputs import read_frame, read_structure
        from molequi.util.devices import as_device

        as_device(self.device)  # before anything is read
        path, frames = split_frames(structures)
        check_file(path)
        if frames is not None and self.index:
            raise ConfigError(f"{structures} with --index {self.index}: two frames; wanted one of them")
        atoms = read_frame(structures, self.index) if self.index else read_structure(structures)
        return atoms, self.calculator(model)

    def calculator(self, model: str) -> "Calculator":
        """The calculator."""
        from molequi.interfaces import Calculator

        return Calculator(model, device=self.device, dtype=self.dtype, accelerate=self.accelerate)


@dataclass(frozen=True)
class _Relax:
    """What ``molequi relax`` has beside the options of the function.

    Parameters
    ----------
    all : bool
        Relax all structures of the file, in one batch.
    """

    all: bool = False


def _add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    from molequi import simulation

    assert isinstance(parser, Parser)
    parser.add_argument("model", help="model.safetensors, or the folder of a run")
    parser.add_argument("structures", help="a file that ASE reads, or one frame of it: frames.xyz@3")
    add_flags(parser, _flags(name, getattr(simulation, name)))
    parser.renamed = _RENAMED


def _md(given: argparse.Namespace) -> None:
    from molequi.simulation import md, md_many

    options = _given(given, "md", md)
    kelvins, replicas = options.pop("temperature", [300.0]), options.pop("replicas", 1)
    if kelvins in (["none"], ["null"]):
        kelvins = [None]
    several = len(kelvins) > 1 or replicas != 1
    if several:
        check_flags("md", md_many, {"temperature": kelvins, "replicas": replicas})
    plain, inputs = _split("md", md, options if several else options | {"temperature": kelvins[0]})
    atoms, calculator = inputs.read(given.structures, given.model)
    if several:
        runs = md_many(atoms, calculator, temperature=kelvins, replicas=replicas, **plain)
        print(runs)
        for run in runs:
            _draw(run)
        print(f"{plain['out']}: {', '.join(runs.names)}, each with trajectory.xyz, log.csv, trajectory.png")
        return
    result = md(atoms, calculator, **plain)
    print(result)
    if result.out is not None:
        print(f"picture: {_draw(result)}")


def _relax(given: argparse.Namespace) -> None:
    from molequi.simulation import relax, relax_many
    from molequi.simulation.relaxation import FILES as RELAXATION

    options = _given(given, "relax", relax)
    own = {name: options.pop(name) for name in flags_of(_Relax) if name in options}
    check_flags("relax", _Relax, own)
    plain, inputs = _split("relax", relax, options)
    if _Relax(**own).all:
        found = relax_many(given.structures, inputs.calculator(given.model), **plain)
        print(f"{found}\n{plain['out']}: {', '.join(found.names)}, each with {', '.join(RELAXATION)}")
        return
    atoms, calculator = inputs.read(given.structures, given.model)
    print(relax(atoms, calculator, **plain))


def _given(given: argparse.Namespace, name: str, function: Callable[..., Any]) -> dict[str, Any]:
    """The options of a command line."""
    return {"out": name, **given_flags(given, _flags(name, function))}


def _groups(name: str) -> dict[str, type]:
    """The groups of options of a function, by parameter."""
    from molequi.simulation import Barostat, Guard, Limits, Thermostat

    groups = {"thermostat": Thermostat, "barostat": Barostat, "limits": Limits, "guard": Guard}
    return groups if name == "md" else {}


def _flags(name: str, function: Callable[..., Any]) -> dict[str, Option]:
    """All flags: those of the function, of its groups of options, and of the inputs."""
    kinds = _groups(name)
    flags = flags_of(function, leave_out=("atoms", "calculator", *kinds))
    flags["out"] = replace(flags["out"], default=name)
    if name == "md":
        flags |= _flags_of_many(flags["temperature"])
    else:
        flags |= flags_of(_Relax)
    for flag, group, field in _GROUPED[name]:
        flags[flag] = replace(flags_of(kinds[group])[field], name=flag)
    if "guard" in flags:  # there is none by default
        text = (
            'Stop far from the training data ("auto") or where forces are more uncertain than this (eV/Å), '
            "and write the frames to label"
        )
        flags["guard"] = replace(flags["guard"], default=None, text=text)
    return flags | flags_of(ModelInputs)


def _flags_of_many(temperature: Option) -> dict[str, Option]:
    """Flags for several simulations at once."""
    from molequi.simulation import md_many

    text = f"{temperature.text} Several make as many simulations, in one batch."
    replicas = flags_of(md_many)["replicas"]
    return {
        "temperature": replace(temperature, kind="float ...", text=text, hint=Sequence[float]),
        "replicas": replace(replicas, text="Number of simulations at each temperature, in one batch."),
    }


def _split(
    name: str, function: Callable[..., Any], options: Mapping[str, Any]
) -> tuple[dict[str, Any], ModelInputs]:
    """Keyword arguments of the function, and the inputs. Raises ConfigError for wrong values."""
    from molequi.util.options import collect
    from molequi.util.signature import check_call

    kinds, own = _groups(name), flags_of(ModelInputs)
    inputs = {key: value for key, value in options.items() if key in own}
    groups: dict[str, dict[str, Any]] = {}
    grouped = {flag: (group, field) for flag, group, field in _GROUPED[name]}
    for flag, (group, field) in grouped.items():
        if flag in options:
            groups.setdefault(group, {})[field] = options[flag]
    plain = {key: value for key, value in options.items() if key not in own and key not in grouped}
    if name == "md" and not {"time", "steps"} & {*plain}:
        raise ConfigError("md: how long? Write --time 10, in ps, or --steps 20000")
    checks = [
        partial(check_call, kinds[group], fields, where=f"{name}.{group}") for group, fields in groups.items()
    ]
    try:
        collect(
            partial(check_flags, name, function, plain, tuple(kinds)),
            partial(check_flags, name, ModelInputs, inputs),
            *checks,
        )
    except ConfigError as error:
        text = str(error)
        for flag, (group, field) in grouped.items():
            text = text.replace(f"{name}.{group}.{field}:", f"{name}.{flag}:")
        raise ConfigError(text) from error
    if "guard" in groups:  # one of the limits
        groups.setdefault("limits", {})["guard"] = groups.pop("guard")
    return plain | groups, ModelInputs(**inputs)


def _draw(result: "Dynamics") -> Path:
    """The series of a simulation as a picture beside its trajectory."""
    from molequi import plotting

    assert result.out is not None
    log, path = result.history, result.out / "trajectory.png"
    curves = {
        "potential_-_start_eV": log["E_pot"] - log["E_pot"][0],
        "kinetic_eV": log["E_kin"],
        "total_-_start_eV": log["E_tot"] - log["E_tot"][0],
        "temperature_K": log["T"],
    }
    if result.ensemble == "npt":
        curves |= {"pressure_bar": log["pressure"], "volume_Å³": log["volume"]}
    title = f"{result.ensemble}, {len(result.atoms)} atoms"
    if result.temperature and result.ensemble != "nve":
        title += f", {result.temperature:g} K asked for"
    plotting.trajectory(log["time_ps"], title=title, **curves).savefig(path)
    return path


COMMANDS = (
    Command("md", _TEXTS["md"], partial(_add_arguments, name="md"), _md),
    Command("relax", _TEXTS["relax"], partial(_add_arguments, name="relax"), _relax),
)
