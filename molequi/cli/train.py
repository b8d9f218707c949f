"""``molequi train``."""

import argparse

from molequi.cli.command import Command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a YAML file, or the name of a recipe")
    parser.add_argument("overrides", nargs="*", default=[], help="train.lr=1e-3 backbone.NequIP.channels=32")


def _train(given: argparse.Namespace) -> None:
    from molequi.config.run import run

    result = run(given.config, given.overrides)
    if result.main and result.out is not None:
        names = sorted(path.name for path in result.out.iterdir() if path.stat().st_size)
        print(f"{result}\n{result.out}: {', '.join(names)}")


COMMANDS = (Command("train", "Train a model as a YAML file or a recipe says.", _add_arguments, _train),)
