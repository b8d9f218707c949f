"""The errors a user can meet. Each message says where, what was found, what was wanted, and what to do."""

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ase import Atoms


class MolequiError(Exception):
    """Base of every error that molequi raises on purpose."""


class DataError(MolequiError, ValueError):
    """A structure, label or data file is not what it should be."""


class ConfigError(MolequiError, ValueError):
    """A setting of a run is misspelt, of the wrong type, out of range or contradicts another."""


class UnknownKeywordError(ConfigError, TypeError):
    """A function was called with a keyword argument that it does not have, or has no more.

    It is a TypeError too, as Python itself raises for such a call.
    """


class ModelError(MolequiError, ValueError):
    """A model cannot be built from these parts, or cannot take this input."""


class CheckpointError(MolequiError, ValueError):
    """A model file or a training state is damaged, foreign or of another version."""


class TrainingError(MolequiError, RuntimeError):
    """A training cannot continue.

    Its loss is not finite, memory ran out, or its folder is in use or cannot be written.
    """


class AccelerateError(MolequiError, RuntimeError):
    """A model cannot be compiled here, or the compiled one differs from the plain one."""


class MissingPackageError(MolequiError, ImportError):
    """A function needs an optional package that is not installed; the message names the extra to install."""


class SimulationError(MolequiError, RuntimeError):
    """A simulation left the region where its forces mean anything.

    Attributes
    ----------
    last_good : ase.Atoms or None
        The last good frame.
    """

    last_good: "Atoms | None" = None


class DataWarning(UserWarning):
    """Data that can be used but look wrong."""


class TrainingWarning(UserWarning):
    """Something went wrong in a training, and it goes on."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message that helps with a misspelt name.

    Parameters
    ----------
    name : str
        What was found.
    known : iterable of str
        The names that exist.

    Returns
    -------
    str
        ``"; did you mean 'x'?"`` if one of the names is similar, otherwise a list of all names.

    Examples
    --------
    >>> did_you_mean("enrgy", ["energy", "forces"])
    "; did you mean 'energy'?"
    >>> did_you_mean("x", ["energy", "forces"])
    '; known: energy, forces'
    """
    known = [str(k) for k in known]
    lowered = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {lowered[near[0]]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
