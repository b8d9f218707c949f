"""``molequi curve``."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from molequi.cli.command import Command
from molequi.cli.flags import add_flags, check_flags, flags_of, given_flags, read_pairs
from molequi.cli.parser import Parser
from molequi.cli.train import GROUP, check_words, data_flags, refuse_flags, settings_of_words, with_units
from molequi.errors import ConfigError
from molequi.util.describe import Option

_LEAVE_OUT = ("overrides", "backbones", "heads", "readers", "losses", "quantities", "hooks")

_FORMS = (
    "molequi curve FILE.yaml|RECIPE [--target NAME=ERROR] [train.epochs=50 ...]",
    "molequi curve mine.csv --target logS [logS=0.5] [train.epochs=50 ...]",
    "molequi curve mine.xyz|FOLDER|FILE.sdf|FILE.npz [--target NAME] [train.epochs=50 ...]",
)


@dataclass(frozen=True)
class _OfCurve:
    """Flags of the command beside those of the function.

    Parameters
    ----------
    target : list of str
        Wanted errors, such as forces=0.02, and what is to be learnt of data without a YAML file, such as
        logS. By default the errors are half of the present ones; units are eV, Å and e.
    """

    target: list[str] = ()  # type: ignore[assignment]


def _flags() -> dict[str, Option]:
    from molequi.config.curve import learning_curve

    return flags_of(learning_curve, _LEAVE_OUT) | flags_of(_OfCurve)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    assert isinstance(parser, Parser)
    parser.forms = _FORMS
    parser.add_argument(
        "config", help="data, a YAML file, such as runs/mine/config.yaml, or the name of a recipe"
    )
    parser.add_argument("overrides", nargs="*", default=[], help="settings, such as train.epochs=50")
    add_flags(parser, _flags())
    add_flags(parser, _flags_of_data(), GROUP)


def _curve(given: argparse.Namespace) -> None:
    from molequi.config.automatic import curve_file, is_data
    from molequi.config.curve import CurveOptions, learning_curve

    overrides = settings_of_words(given, ("units", "keys", "target"))
    options, of_data = given_flags(given, _flags()), given_flags(given, _flags_of_data())
    words = options.pop("target", [])
    check_flags("curve", learning_curve, options, _LEAVE_OUT)
    if is_data(given.config):
        check_words(given)
        learnt = [word for word in words if "=" not in word]
        targets = _targets([word for word in words if "=" in word])
        with_units(of_data)
        out = {"out": options.pop("out")} if "out" in options else {}
        curve = curve_file(
            given.config, overrides, options=CurveOptions(**options), target=learnt, **out, **of_data
        )
    else:
        refuse_flags("curve", given.config, list(of_data))
        targets = _targets(words)
        curve = learning_curve(given.config, overrides, **options)
    print(curve.text(targets))


def _flags_of_data() -> dict[str, Option]:
    return {name: flag for name, flag in data_flags().items() if name not in ("target", "out")}


def _targets(words: Sequence[str]) -> dict[str, float]:
    """The wanted errors. Raises ConfigError for what is no error."""
    found = {}
    for name, value in read_pairs("--target", words).items():
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
