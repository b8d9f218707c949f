"""``molequi sample``."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from molequi.cli.advice import EXAMPLES
from molequi.cli.command import Command
from molequi.cli.flags import add_flags, check_flags, flags_of, given_flags
from molequi.errors import ConfigError
from molequi.util.describe import Option

_OF_GUIDANCE = {"property": "quantity", "target": "target", "strength": "strength"}


@dataclass(frozen=True)
class _OfCommand:
    """Flags of the command beside those of the function.

    Parameters
    ----------
    guide : str, optional
        A model that predicts the property of a guidance.
    property : str, optional
        The property that samples should have.
    target : float, optional
        Its value.
    strength : float
        Inverse of the variance that the property may have, in its unit.
    quality : bool
        Print validity, stability and uniqueness of molecules.
    known : str, optional
        File with the SMILES of the training molecules, for the novelty: .smi, or .npz with an array smiles.
    """

    guide: str | None = None
    property: str | None = None
    target: float | None = None
    strength: float = 10.0
    quality: bool = False
    known: str | None = None


def _flags() -> dict[str, Option]:
    from molequi.generative import sample

    return flags_of(sample, ("what", "guidance")) | flags_of(_OfCommand)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model.safetensors, or the folder of a run")
    parser.add_argument("what", help="a number of molecules, a SMILES, or a file of SMILES or of structures")
    add_flags(parser, _flags())


def _sample(given: argparse.Namespace) -> None:
    from molequi.generative import Guidance, sample
    from molequi.util.files import check_new_target

    options = given_flags(given, _flags())
    own = {name: options.pop(name) for name in flags_of(_OfCommand) if name in options}
    check_flags("sample", _OfCommand, own)
    check_flags("sample", sample, options, ("what", "guidance"))
    out = options.get("out")
    if out is None:
        raise ConfigError(
            f"sample: --out is missing; wanted a file for the structures, for example\n  {EXAMPLES['sample']}"
        )
    flags = _OfCommand(**own)
    guided = [name for name in ("guide", "property", "target", "strength") if name in own]
    if guided and None in (flags.guide, flags.property, flags.target):
        raise ConfigError(
            f"sample: --{guided[0]} alone has no effect; wanted --guide MODEL --property NAME --target VALUE"
        )
    if flags.guide is not None:
        values = {field: getattr(flags, flag) for flag, field in _OF_GUIDANCE.items()}
        options["guidance"] = Guidance(flags.guide, **values)
    if flags.known is not None and not flags.quality:
        raise ConfigError("sample: --known alone has no effect; write --quality, too")
    check_new_target(Path(out), overwrite=options.get("overwrite", False))
    known = _smiles(flags.known) if flags.known else ()
    what = int(given.what) if given.what.isdigit() else given.what
    found = sample(given.model, what, **options)
    print(f"{found}\n{out}")
    if flags.quality:
        print(found.quality(known))


def _smiles(path: str) -> list[str]:
    """The SMILES of a file."""
    from molequi.generative.stereo import lines_of
    from molequi.readers.npz import opened

    if path.endswith(".npz"):
        with opened(Path(path)) as arrays:
            if "smiles" not in arrays:
                raise ConfigError(f"sample: --known {path}: no array 'smiles'")
            return [str(text) for text in arrays["smiles"]]
    return lines_of(path)


COMMANDS = (
    Command(
        "sample",
        "Generate molecules, conformers or relaxed structures with a model of flow matching.",
        _add,
        _sample,
    ),
)
