"""How data were read, where that changes what a model sees: normalisation, sampling, conformers.

A reader keeps these options in `Dataset.reading`, a training keeps them in the model file
(``metadata["reading"]``), and predictions for files use them again.
"""

import warnings
from collections.abc import Mapping
from typing import Any

from molequi.errors import ConfigError, DataWarning

# Options that make other structures of the same file. With the wrong ones of the first group every length
# differs; those of the second group change details.
SCALES = ("normalize",)
DETAILS = ("samples", "centroid", "normals", "features", "optimize")


def check_reading(
    wanted: Mapping[str, Any], found: Mapping[str, Any], what: str, of: str = "those of the training"
) -> None:
    """Check that data were read as those of the training.

    Parameters
    ----------
    wanted : mapping
        `Dataset.reading` of the training data; empty if it is not known.
    found : mapping
        `Dataset.reading` of other data; empty if it is not known.
    what : str
        The other data in the message, in the plural.
    of : str
        The training data in the message.

    Raises
    ------
    ConfigError
        If one was normalised and the other was not.

    Warns
    -----
    DataWarning
        If another option differs.

    Examples
    --------
    >>> check_reading({"normalize": "rms"}, {"normalize": "rms"}, "these data")
    """
    differing = {
        name: (wanted[name], found[name])
        for name in (*SCALES, *DETAILS)
        if name in wanted and name in found and _plain(wanted[name]) != _plain(found[name])
    }
    if not differing:
        return
    here = ", ".join(f"{name}={b!r}" for name, (_, b) in differing.items())
    there = ", ".join(f"{name}={a!r}" for name, (a, _) in differing.items())
    text = f"{what} were read with {here}, and {of} with {there}"
    if any(name in SCALES for name in differing):
        raise ConfigError(f"{text}, so that all lengths mean something else; read them with {there}")
    warnings.warn(f"{text}; the model sees other structures than it learnt", DataWarning, stacklevel=4)


def options_of_training(
    reading: Mapping[str, Any], given: Mapping[str, Any], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """The options for a reader: those that are given, and else those of the training.

    Parameters
    ----------
    reading : mapping
        `Dataset.reading` of the training data.
    given : mapping
        Options of the caller.
    parameters : mapping
        The parameters of the reader by name; other options of the training are left out.

    Returns
    -------
    dict
    """
    names = (*SCALES, *DETAILS, "conformers")
    kept = {n: reading[n] for n in names if n in reading and n in parameters and n not in given}
    return {**given, **kept}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
