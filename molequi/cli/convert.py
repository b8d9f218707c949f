"""``molequi convert``."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from molequi.cli.command import Command
from molequi.cli.flags import add_flags, check_flags, flags_of, given_flags
from molequi.errors import ConfigError

_TEXT = "Read a model of another package, without running it, and write it as one safe file."


@dataclass(frozen=True)
class _Own:
    """Flags of the command.

    Parameters
    ----------
    level : str, optional
        Level of theory, for a file with several.
    overwrite : bool
        Replace the file if it exists.
    """

    level: str | None = None
    overwrite: bool = False


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    from molequi.foreign.published import PUBLISHED

    parser.add_argument(
        "source",
        help="a checkpoint or package (.pth, .model, .ckpt, .nequip.zip), or the name of a published model: "
        + ", ".join(PUBLISHED),
    )
    parser.add_argument("out", help="the model file to write, NAME.safetensors")
    add_flags(parser, flags_of(_Own))


def _convert(given: argparse.Namespace) -> None:
    from molequi.checkpoint import save
    from molequi.foreign import convert, foundation
    from molequi.foreign.published import PUBLISHED
    from molequi.util.files import check_new_target

    options = given_flags(given, flags_of(_Own))
    check_flags("convert", _Own, options)
    own = _Own(**options)
    out = Path(given.out)
    if out.suffix != ".safetensors":
        raise ConfigError(f"{given.out}: wanted a name that ends in .safetensors")
    check_new_target(out, overwrite=own.overwrite, name="OUT=")
    named = given.source.lower() in PUBLISHED and not Path(given.source).exists()
    model = (foundation if named else convert)(given.source, level=own.level)
    save(model, out)
    print(model)
    for name, value in model.metadata["origin"].items():
        print(
            f"  {name.replace('_', ' ')}: {', '.join(value) if isinstance(value, (list, tuple)) else value}"
        )
    print(model.symmetry_report)
    print(f"written: {out}")


COMMANDS = (Command("convert", _TEXT, _add_arguments, _convert),)
