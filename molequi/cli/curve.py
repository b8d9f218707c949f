"""``molequi curve``."""

import argparse

from molequi.cli.command import Command
from molequi.cli.flags import read_pairs
from molequi.errors import ConfigError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("config", help="a YAML file, or the name of a recipe")
    add("overrides", nargs="*", default=[], help="train.epochs=50 train.lr=1e-3, before other options")
    add(
        "--target",
        action="append",
        default=[],
        metavar="NAME=ERROR",
        help="how many structures does this error need? In eV, Å and e: --target forces=0.02; by default "
        "half of the present errors",
    )
    add(
        "--fractions",
        nargs="+",
        type=float,
        metavar="F",
        help="parts of the training data (0.125 0.25 0.5 1)",
    )
    add(
        "--repeats",
        type=int,
        default=1,
        metavar="N",
        help="trainings for each part, which make the interval reliable (1)",
    )
    add(
        "--same",
        choices=("steps", "epochs"),
        default="steps",
        help="what all trainings have in common (steps)",
    )
    add("--measure", choices=("mae", "rmse"), default="mae", help="which error (mae)")
    add("--part", choices=("valid", "test"), default="valid", help="where errors are measured (valid)")
    add("--out", help="folder (that of the run, with -curve at its end)")


def _curve(given: argparse.Namespace) -> None:
    from molequi.config.curve import FRACTIONS, learning_curve

    targets = _targets(given.target)
    curve = learning_curve(
        given.config,
        given.overrides,
        fractions=given.fractions or FRACTIONS,
        repeats=given.repeats,
        same=given.same,
        measure=given.measure,
        part=given.part,
        out=given.out,
    )
    print(curve.text(targets))


def _targets(words: list[str]) -> dict[str, float]:
    """``forces=0.02`` as a mapping."""
    found = {}
    for name, text in (read_pairs("--target", words) or {}).items():
        try:
            found[name] = float(text)
        except ValueError:
            found[name] = -1.0
        if not found[name] > 0:
            raise ConfigError(
                f"--target {name}={text}: wanted an error above zero in eV, Å and e, such as forces=0.02"
            )
    return found


COMMANDS = (
    Command(
        "curve",
        "Train on 1/8, 1/4, 1/2 and all of the training data: would more data help?",
        _add_arguments,
        _curve,
    ),
)
