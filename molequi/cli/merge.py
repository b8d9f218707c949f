"""``molequi merge``."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from molequi.cli.advice import EXAMPLES
from molequi.cli.command import Command
from molequi.cli.flags import add_flags, check_flags, flags_of, given_flags
from molequi.errors import ConfigError
from molequi.util.describe import Option

_READER = ("keys", "units", "device", "dtype", "batch_edges")


@dataclass(frozen=True)
class _OfCommand:
    """Flags of the command beside those of the function.

    Parameters
    ----------
    out : str, optional
        The file of the merged model, a .safetensors file.
    data : str, optional
        A file with labels on which all models and the merged one are compared.
    index : str
        Structures of it to use: one number or start:stop:step, such as :100 or ::10.
    overwrite : bool
        Replace OUT if it exists.
    """

    out: str | None = None
    data: str | None = None
    index: str = ":"
    overwrite: bool = False


def _flags() -> dict[str, Option]:
    from molequi.merging import merge

    return flags_of(_OfCommand) | flags_of(merge, ("data",))


def _data_flags() -> dict[str, Option]:
    from molequi.inference import evaluate
    from molequi.readers import read_ase

    flags = flags_of(evaluate, ("fabric",), like=(read_ase,))
    return {name: flags[name] for name in _READER}


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", help="two or more: model.safetensors, or the folders of runs")
    add_flags(parser, _flags())
    add_flags(parser, _data_flags(), "options of --data")


def _merge(given: argparse.Namespace) -> None:
    from molequi.checkpoint import save
    from molequi.merging import merge
    from molequi.util.files import check_new_target

    options = given_flags(given, _flags())
    out, overwrite = options.pop("out", None), options.pop("overwrite", False)
    data, index = options.pop("data", None), options.pop("index", ":")
    if out is None or Path(out).suffix != ".safetensors":
        found = "--out is missing" if out is None else f"--out {out}"
        raise ConfigError(
            f"merge: {found}; wanted a name that ends in .safetensors, for example\n  {EXAMPLES['merge']}"
        )
    check_flags("merge", merge, options, ("data",))
    check_new_target(out, overwrite=overwrite)
    options |= {} if index == ":" else {"index": index}
    merged = merge(given.models, data=data, **options, **given_flags(given, _data_flags()))
    save(merged.model, out)
    print(f"{merged}\n{out}")


COMMANDS = (
    Command(
        "merge",
        "One model from several of the same architecture: the mean of their weights, aligned if need be.",
        _add,
        _merge,
    ),
)
