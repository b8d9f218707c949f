"""``molequi train``."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from molequi.cli.command import Command
from molequi.cli.flags import read_pairs
from molequi.errors import ConfigError

_OVERRIDE = re.compile(r"(data|backbone|predict|train)(\.[^=]*)?=")
_OF_DATA = ("target", "units", "keys", "stress", "column", "recipe", "members", "skip")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "molequi train mine.csv --target logS [--units UNIT] [train.lr=1e-3 ...]\n"
        "       molequi train mine.xyz [--stress] [--target NAME] [train.lr=1e-3 ...]\n"
        "       molequi train FOLDER|FILE.sdf|FILE.npz [--target NAME] [train.lr=1e-3 ...]\n"
        "       molequi train FILE.yaml|RECIPE [train.lr=1e-3 ...]"
    )
    parser.add_argument("config", help="data, a YAML file, or the name of a recipe")
    parser.add_argument(
        "overrides", nargs="*", default=[], help="settings, such as train.lr=1e-3 or train.max_minutes=2"
    )
    parser.add_argument("--out", help="folder of the run (runs/NAME)")
    add = parser.add_argument_group("data without a YAML file").add_argument
    add(
        "--target",
        action="append",
        default=[],
        metavar="NAME",
        help="what to learn, by the name in the file; repeat it for several",
    )
    add(
        "--units",
        action="append",
        default=[],
        metavar="[NAME=]UNIT",
        help="unit in the file: kcal/mol, or of one of several targets: energy=kcal/mol",
    )
    add(
        "--keys",
        action="append",
        default=[],
        metavar="NAME=KEY",
        help="name in the file, of structures: forces=REF_forces",
    )
    add(
        "--stress",
        action=argparse.BooleanOptionalAction,
        help="learn the stress; by default if the file has it",
    )
    add("--column", metavar="NAME", help="the column with the SMILES; by default it is found")
    add("--recipe", metavar="NAME", help="recipe whose model and training are taken, such as medium")
    add(
        "--members",
        type=int,
        metavar="N",
        help="models in the ensemble (3 for up to 5,000 molecules, else 1)",
    )
    add("--skip", action="store_true", help="leave out molecules that cannot be used")
    parser.add_argument("--set", action="append", default=[], help=argparse.SUPPRESS)


def settings_anywhere(words: Sequence[str]) -> list[str]:
    """Words of the command line in which settings may stand at any place, also after options.

    Parameters
    ----------
    words : sequence of str
        Words after ``molequi``.

    Examples
    --------
    >>> settings_anywhere(["train", "a.csv", "--target", "logS", "train.lr=1e-3"])
    ['train', 'a.csv', '--target', 'logS', '--set=train.lr=1e-3']
    """
    if list(words[:1]) != ["train"]:
        return list(words)
    return [f"--set={word}" if _OVERRIDE.match(word) else word for word in words]


def _train(given: argparse.Namespace) -> None:
    from molequi.config.automatic import is_data, train_file
    from molequi.config.run import run

    overrides = [*given.overrides, *given.set]
    if not is_data(given.config):
        used = [name for name in _OF_DATA if getattr(given, name) not in (None, [], False)]
        if used:
            kind = "YAML file" if Path(given.config).exists() else "recipe"
            raise ConfigError(
                f"--{used[0]}: {given.config} is a {kind}, which says this itself; change its settings, such "
                f"as predict='[energy]', or give data: molequi train FILE --{used[0]} …"
            )
        out = [f"train.out={given.out}"] if given.out else []
        result = run(given.config, [*overrides, *out])
    else:
        _check_words(given)
        result = train_file(
            given.config,
            overrides,
            target=given.target,
            units=_units(given.units),
            keys=read_pairs("--keys", given.keys),
            stress=given.stress,
            column=given.column,
            recipe=given.recipe,
            members=given.members,
            skip=given.skip,
            out=given.out,
        )
    if result.main and result.out is not None:
        names = sorted(path.name for path in result.out.iterdir() if path.stat().st_size)
        print(f"{result}\n{result.out}: {', '.join(names)}")
        if is_data(given.config):
            print(_next(given.config, result.out, given.column))


def _check_words(given: argparse.Namespace) -> None:
    """Raise ConfigError for several files."""
    for word in given.overrides:
        if "=" not in word and Path(word).exists():
            kind = Path(word).suffix
            raise ConfigError(
                f"{given.config} {word}: wanted one file; several are one pattern in quotes, "
                f"'{Path(word).parent / f'*{kind}'}', or a folder"
            )


def _units(words: Sequence[str]) -> str | dict[str, str] | None:
    """``["kcal/mol"]`` or ``["energy=kcal/mol", …]`` as `train_file` takes them."""
    if len(words) == 1 and "=" not in words[0]:
        return words[0]
    return read_pairs("--units", words)


def _next(data: str, out: Path, column: str | None) -> str:
    """What to type next."""
    from molequi.readers.molecule_files import CSV, SDF, suffix

    model = out / "model.safetensors"
    kind = suffix(Path(data))
    lines = [f"again:    molequi train {out / 'config.yaml'} train.out={out}-again"]
    if kind in CSV + SDF:
        option = f" --column {column}" if column else ""
        lines.append(f"predict:  molequi predict {model} NEW{kind} predictions.csv{option}")
    elif Path(data).is_dir() or kind in (".npz", ".npy"):
        lines.append(
            f"predict:  python -c \"import molequi as mq; print(mq.predict('{model}', 'NEW{kind}'))\""
        )
    else:
        lines.append(f"simulate: molequi md {model} START.xyz --ensemble langevin --time 1")
    return "\n".join(lines)


COMMANDS = (
    Command(
        "train",
        "Train a model on data, or as a YAML file or a recipe says.",
        _add_arguments,
        _train,
    ),
)
