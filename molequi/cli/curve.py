"""``molequi curve``."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

from molequi.cli.command import Command
from molequi.cli.flags import add_flags, check_flags, flags_of, given_flags
from molequi.errors import ConfigError
from molequi.util.describe import Option

_LEAVE_OUT = ("overrides", "backbones", "heads", "readers", "losses", "quantities", "hooks")


@dataclass(frozen=True)
class _OfCurve:
    """Flags of the command beside those of the function.

    Parameters
    ----------
    target : mapping of str to float, optional
        How many structures do these errors need? In eV, Å and e, such as forces=0.02; by default half of the
        present errors.
    """

    target: Mapping[str, float] | None = None


def _flags() -> dict[str, Option]:
    from molequi.config.curve import learning_curve

    return flags_of(learning_curve, _LEAVE_OUT) | flags_of(_OfCurve)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a YAML file, such as runs/mine/config.yaml, or the name of a recipe")
    parser.add_argument("overrides", nargs="*", default=[], help="settings, such as train.epochs=50")
    add_flags(parser, _flags())


def _curve(given: argparse.Namespace) -> None:
    from molequi.config.curve import learning_curve

    options = given_flags(given, _flags())
    targets = _targets(options.pop("target", {}))
    check_flags("curve", learning_curve, options, _LEAVE_OUT)
    curve = learning_curve(given.config, given.overrides, **options)
    print(curve.text(targets))


def _targets(given: object) -> dict[str, float]:
    """The wanted errors. Raises ConfigError for what is no error."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"--target {given}: wanted NAME=ERROR, such as forces=0.02")
    found = {}
    for name, value in given.items():
        try:
            found[str(name)] = float(value)
        except (TypeError, ValueError):
            found[str(name)] = -1.0
        if not found[str(name)] > 0:
            raise ConfigError(
                f"--target {name}={value}: wanted an error above zero in eV, Å and e, such as forces=0.02"
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
