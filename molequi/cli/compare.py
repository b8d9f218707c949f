"""``molequi compare``."""

import argparse

from molequi.cli.command import Command
from molequi.cli.flags import add_flags, check_flags, flags_of, given_flags
from molequi.cli.parser import Parser
from molequi.cli.train import GROUP, check_words, data_flags, refuse_flags, settings_of_words, with_units
from molequi.util.describe import Option

_LEAVE_OUT = ("overrides", "own", "backbones", "heads", "of_data")
_FORMS = (
    "molequi compare mine.xyz|FOLDER|FILE.sdf|FILE.npz [--minutes 5] [--other hot.xyz]",
    "molequi compare mine.csv --target logS [--networks EGNN PaiNN Transformer+rotations]",
    "molequi compare FILE.yaml|RECIPE [--seeds 0 1 2] [--sizes 50 100] [train.batch_size=2 ...]",
)


def _flags() -> dict[str, Option]:
    from molequi.config.automatic import compare

    return flags_of(compare, _LEAVE_OUT)


def _flags_of_data() -> dict[str, Option]:
    return {name: flag for name, flag in data_flags().items() if name not in ("out", "members")}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    assert isinstance(parser, Parser)
    parser.forms = _FORMS
    parser.add_argument(
        "config", help="data, a YAML file, such as runs/mine/config.yaml, or the name of a recipe"
    )
    parser.add_argument("overrides", nargs="*", default=[], help="settings, such as train.batch_size=2")
    add_flags(parser, _flags())
    add_flags(parser, _flags_of_data(), GROUP)


def _compare(given: argparse.Namespace) -> None:
    from molequi.config.automatic import compare, is_data

    overrides = settings_of_words(given)
    options, of_data = given_flags(given, _flags()), given_flags(given, _flags_of_data())
    check_flags("compare", compare, options, ("overrides", "of_data"))
    if is_data(given.config):
        check_words(given)
        with_units(of_data)
    else:
        refuse_flags("compare", given.config, list(of_data))
    print(compare(given.config, overrides, **options, **of_data))


COMMANDS = (
    Command(
        "compare",
        "What equivariance gains and costs: train several networks for the same time.",
        _add_arguments,
        _compare,
    ),
)
