"""``molequi data``."""

import argparse

from molequi.cli.command import Command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="files to copy, by default all")
    parser.add_argument("--out", metavar="FOLDER", help="copy into this folder; without it, files are listed")


def _data(given: argparse.Namespace) -> None:
    from molequi.datasets import SHIPPED, shipped, write_shipped

    if given.out is not None or given.names:
        for path in write_shipped(given.names, given.out or "."):
            print(path)
        return
    width = max(map(len, SHIPPED))
    for name, text in SHIPPED.items():
        print(f"{name:{width}}  {text}")
    print(
        f"They are in {shipped(next(iter(SHIPPED))).parent}; in Python mq.shipped(NAME) is the path, in a "
        "run file ${shipped:NAME}.\nmolequi data NAME [--out FOLDER] copies them."
    )


COMMANDS = (
    Command("data", "List the data that molequi ships, or copy them into a folder.", _add_arguments, _data),
)
