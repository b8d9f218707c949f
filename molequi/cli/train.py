"""``molequi train``."""

import argparse
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from molequi.cli.command import Command
from molequi.cli.flags import add_flags, check_flags, flags_of, given_flags, read_pairs
from molequi.cli.parser import Parser
from molequi.errors import ConfigError
from molequi.util.describe import Option

_SETTING = re.compile(r"(data|backbone|predict|train|start_from)(\.[^=]*)?=")
_ASSIGNMENT = re.compile(r"[A-Za-z_][\w.]*=")  # in a list of names, where no word has one
GROUP = "options of data without a YAML file"
_FORMS = (
    "molequi train mine.csv --target logS [--units UNIT] [train.lr=1e-3 ...]",
    "molequi train mine.xyz [--stress] [--target NAME] [train.lr=1e-3 ...]",
    "molequi train FOLDER|FILE.sdf|FILE.npz [--target NAME] [train.lr=1e-3 ...]",
    "molequi train FILE.yaml|RECIPE [train.lr=1e-3 ...]",
)
_FORMS_OF_TUNING = (
    "molequi finetune MODEL mine.xyz [train.finetune=lora] [train.lr=1e-3 ...]",
    "molequi finetune MODEL mine.xyz train.finetune.replay=old.xyz",
    "molequi finetune MODEL FILE.yaml|RECIPE [train.lr=1e-3 ...]",
)


@dataclass(frozen=True)
class _OfTrain:
    """Flags of the command that differ from those of the function.

    Parameters
    ----------
    units : list of str
        Unit in the file: kcal/mol of the only target, or energy=kcal/mol of one of several.
    """

    units: list[str] = ()  # type: ignore[assignment]


def data_flags() -> dict[str, Option]:
    """Flags of data without a YAML file."""
    from molequi.config.automatic import train_file

    return flags_of(train_file, ("overrides", "units")) | flags_of(_OfTrain)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    assert isinstance(parser, Parser)
    parser.forms = _FORMS
    _add_data(parser)


def _add_tuning(parser: argparse.ArgumentParser) -> None:
    assert isinstance(parser, Parser)
    parser.forms = _FORMS_OF_TUNING
    parser.add_argument("model", help="a trained model: its file, or the folder of its run")
    _add_data(parser)


def _add_data(parser: argparse.ArgumentParser) -> None:
    """The data, the settings and the flags of data."""
    parser.add_argument("config", help="data, a YAML file, or the name of a recipe")
    parser.add_argument(
        "overrides", nargs="*", default=[], help="settings, such as train.lr=1e-3 or train.max_minutes=2"
    )
    add_flags(parser, data_flags(), GROUP)


def _finetune(given: argparse.Namespace) -> None:
    """As ``molequi train DATA start_from=MODEL``."""
    from molequi.checkpoint import check_order

    check_order("finetune", given.model, given.config)
    given.overrides = [f"start_from={given.model}", *given.overrides]
    _train(given)


def _train(given: argparse.Namespace) -> None:
    from molequi.config.automatic import is_data, train_file
    from molequi.config.run import run

    overrides = settings_of_words(given)
    options = given_flags(given, data_flags())
    out = options.get("out")
    other = next((word for word in overrides if word.startswith("train.out=")), None)
    if out is not None and other is not None:
        folder = other.removeprefix("train.out=")
        raise ConfigError(f"--out {out}: a setting says {folder} already; give the folder of the run once")
    data = is_data(given.config)
    result: Any
    if data:
        check_words(given)
        with_units(options)
        check_flags("train", train_file, options, ("overrides",))
        result = train_file(given.config, overrides, **options)
    else:
        refuse_flags("train", given.config, [name for name in options if name != "out"])
        result = run(given.config, [*overrides, *([f"train.out={out}"] if out else [])])
    if result.main and result.out is not None:
        names = sorted(path.name for path in result.out.iterdir() if path.stat().st_size)
        print(f"{result}\n{result.out}: {', '.join(names)}")
        if data:
            print(_next(given.config, result.out, result.model, result.errors))


def with_units(options: dict[str, Any]) -> None:
    """Replace the words of ``--units`` by what `molequi.train_file` takes.

    Parameters
    ----------
    options : dict
        Values of flags.
    """
    units = options.pop("units", [])
    if units:
        single = len(units) == 1 and "=" not in units[0]
        options["units"] = units[0] if single else read_pairs("--units", units)


def check_words(given: argparse.Namespace) -> None:
    """Raise ConfigError for several files.

    Parameters
    ----------
    given : Namespace
        The parsed arguments.
    """
    for word in given.overrides:
        if "=" not in word and Path(word).exists():
            pattern = Path(word).parent / f"*{Path(word).suffix}"
            raise ConfigError(
                f"{given.config} {word}: wanted one file; several are one pattern in quotes, '{pattern}', or "
                "a folder"
            )


def settings_of_words(given: argparse.Namespace, mappings: Collection[str] = ("units", "keys")) -> list[str]:
    """All settings of the command line, also those after a flag that takes several words.

    Parameters
    ----------
    given : Namespace
        The parsed arguments, from which these settings are removed.
    mappings : collection of str
        Flags whose words are NAME=VALUE themselves.
    """
    found = [*given.overrides]
    for name, value in vars(given).items():
        if name == "overrides":
            continue
        if isinstance(value, list):
            single = name == "units" and bool(value) and "=" not in value[0]
            mapping = name in mappings and not single
            form = _SETTING if mapping else _ASSIGNMENT
            found += [word for word in value if form.match(word)]
            setattr(given, name, [word for word in value if not form.match(word)])
        elif isinstance(value, str) and name not in ("config", "model") and _SETTING.match(value):
            found.append(value)
            setattr(given, name, None)
    return found


def refuse_flags(command: str, config: str, options: Sequence[str]) -> None:
    """Raise ConfigError for options of data beside a YAML file or a recipe.

    Parameters
    ----------
    command : str
        Name of the command.
    config : str
        The file or the recipe.
    options : sequence of str
        Names of options that were given.
    """
    if options:
        kind = "YAML file" if Path(config).exists() else "recipe"
        raise ConfigError(
            f"--{options[0]}: {config} is a {kind}, which says this itself; change its settings, such as "
            f"predict='[energy]', or give data: molequi {command} FILE --{options[0]} …"
        )


def _next(data: str, out: Path, model: Any, errors: Mapping[str, Any]) -> str:
    """What to type next; of a model of several levels with the one that was trained."""
    from molequi.readers.molecule_files import CSV, SDF, suffix

    level = next((one for one in getattr(model, "levels", ()) if f"valid {one}" in errors), None)
    run, file = (f"{path}@{level}" if level else str(path) for path in (out, out / "model.safetensors"))
    typed_run, typed = shlex.quote(run), shlex.quote(file)
    kind = suffix(Path(data))
    lines = [f"again:    molequi train {out / 'config.yaml'} train.out={out}-again"]
    if kind in CSV + SDF:
        lines.append(f"predict:  molequi predict {typed} NEW{kind} predictions.csv")
    elif "forces" in model.quantities:
        cell = " --cell" if "stress" in model.quantities else ""
        relaxed = f"{out}-relaxed"
        lines.append(f"relax:    molequi relax {typed_run} START.xyz{cell} --out {relaxed}")
        ensemble = "npt" if cell else "nvt"
        lines.append(f"simulate: molequi md {typed_run} {relaxed}/last.xyz --ensemble {ensemble} --time 1")
    elif model.elements != (0,):
        lines.append(f"predict:  molequi predict {typed} NEW{kind} predictions.xyz")
    else:
        call = f"import molequi as mq; print(mq.predict('{file}', 'NEW{kind}'))"
        lines.append(f'predict:  python -c "{call}"')
    return "\n".join(lines)


COMMANDS = (
    Command(
        "train",
        "Train a model on data, or as a YAML file or a recipe says.",
        _add_arguments,
        _train,
    ),
    Command(
        "finetune",
        "Train a trained model further on new data; say what it learns and what it forgets.",
        _add_tuning,
        _finetune,
    ),
)
