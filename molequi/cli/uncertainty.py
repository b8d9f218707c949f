"""``molequi laplace`` and ``molequi select``."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from molequi.cli.advice import EXAMPLES
from molequi.cli.command import Command
from molequi.cli.flags import add_flags, check_flags, flags_of, given_flags
from molequi.errors import ConfigError
from molequi.util.describe import Option


@dataclass(frozen=True)
class _OfLaplace:
    """Flags of the command beside those of the function.

    Parameters
    ----------
    out : str, optional
        The file of the model with standard deviations, a .safetensors file.
    overwrite : bool
        Replace the file if it exists.
    """

    out: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class _OfSelect:
    """Flags of the command beside those of the function.

    Parameters
    ----------
    index : str
        Structures of the pool to use: one number or start:stop:step, such as :100 or ::10.
    overwrite : bool
        Replace the file if it exists.
    """

    index: str = ":"
    overwrite: bool = False


def _laplace_flags() -> dict[str, Option]:
    from molequi.inference import laplace

    return flags_of(_OfLaplace) | flags_of(laplace, ("model", "train", "valid"))


def _select_flags() -> dict[str, Option]:
    from molequi.inference import select

    flags = flags_of(select, ("model", "pool")) | flags_of(_OfSelect)
    flags["known"] = replace(flags["known"], kind="path")
    return flags


def _add_laplace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model.safetensors, or the folder of a run")
    parser.add_argument("train", help="the file of its training data")
    parser.add_argument("valid", help="a file of labelled structures that it was not trained on")
    add_flags(parser, _laplace_flags())


def _add_select(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a model with standard deviations: an ensemble, or of molequi laplace")
    parser.add_argument("pool", help="a file that ASE reads, such as the trajectory.xyz of molequi md")
    add_flags(parser, _select_flags())


def _laplace(given: argparse.Namespace) -> None:
    from molequi.checkpoint import save
    from molequi.inference import laplace
    from molequi.util.files import check_new_target

    options = given_flags(given, _laplace_flags())
    out, overwrite = options.pop("out", None), options.pop("overwrite", False)
    if out is None or not out.endswith(".safetensors"):
        raise ConfigError(
            f"laplace: --out {out or 'is missing'}; wanted a .safetensors file, for example\n  "
            + EXAMPLES["laplace"]
        )
    check_flags("laplace", laplace, options)
    check_new_target(Path(out), overwrite=overwrite)
    model = laplace(given.model, given.train, given.valid, **options)
    print(model)
    print(save(model, out))


def _select(given: argparse.Namespace) -> None:
    from molequi.inference import select
    from molequi.util.files import check_new_target

    options = given_flags(given, _select_flags())
    overwrite, index = options.pop("overwrite", False), options.pop("index", ":")
    if options.get("out") is None:
        raise ConfigError(
            "select: --out is missing; wanted a file for the structures, for example\n  " + EXAMPLES["select"]
        )
    check_flags("select", select, options)
    check_new_target(Path(options["out"]), overwrite=overwrite)
    options |= {} if index == ":" else {"index": index}
    print(select(given.model, given.pool, **options))
    print(options["out"])


COMMANDS = (
    Command(
        "laplace",
        "Add standard deviations to one trained model (Laplace approximation of its last layers).",
        _add_laplace,
        _laplace,
    ),
    Command(
        "select",
        "Choose the structures of a pool that are worth a label: uncertain ones, unlike each other.",
        _add_select,
        _select,
    ),
)
