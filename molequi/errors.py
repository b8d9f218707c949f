"""The errors a user can meet. Each message says where, what was found, what was wanted, and what to do."""

import difflib
import itertools
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

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


class OtherSettingsError(ConfigError):
    """A folder holds a training or a simulation with other settings or data.

    Parameters
    ----------
    found : str
        The folder and what differs.
    folder : str or path
        The folder.
    write : callable, optional
        How an option is typed, from its name and value; by default as an argument in Python.
    force : bool
        Whether it can go on with the new settings.

    Attributes
    ----------
    found, folder, force
        As given.
    """

    def __init__(
        self,
        found: str,
        folder: str | os.PathLike[str],
        write: Callable[[str, str], str] | None = None,
        force: bool = True,
    ) -> None:
        self.found, self.folder, self.force = found, folder, force
        write = write or (lambda name, value: f"{name}={value!r}")
        number = next(k for k in itertools.count(2) if not os.path.exists(f"{os.fspath(folder)}-{k}"))
        ways = {
            "Use a new folder:": write("out", f"{os.fspath(folder)}-{number}"),
            "Begin anew here; what is in the folder is lost:": write("resume", "restart"),
        }
        if force:
            ways["Go on with the new settings from where it is:"] = write("resume", "force")
        super().__init__("\n".join([found, *(f"{text}\n  {line}" for text, line in ways.items())]))


class ImmutableError(MolequiError, AttributeError):
    """A field of a Graph is assigned; a Graph does not change, `Graph.replace` makes another one."""


class ModelError(MolequiError, ValueError):
    """A model cannot be built from these parts, or cannot take this input."""


class CheckpointError(MolequiError, ValueError):
    """A model file or a training state is damaged, foreign or of another version."""


class TrainingError(MolequiError, RuntimeError):
    """A training cannot continue.

    Its loss is not finite, memory ran out, its folder is in use or cannot be written, or one of its processes
    is lost.
    """


class DivergedError(TrainingError):
    """Some of many networks that were trained together diverged; the others are trained.

    Parameters
    ----------
    text : str
        What happened.
    networks : molequi.weights.Networks
        All networks, those that diverged as they were at that moment.
    failed : tuple of int
        Those that diverged.

    Attributes
    ----------
    networks, failed
        As given.
    others : tuple of int
        Those that are trained: ``error.networks[error.others]``.
    """

    def __init__(self, text: str, networks: Any, failed: tuple[int, ...]) -> None:
        super().__init__(text)
        self.networks, self.failed = networks, failed
        self.others = tuple(k for k in range(len(networks)) if k not in set(failed))


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
    to_label : list of ase.Atoms or None
        Frames that a guard chose; labels of them would improve the model.
    """

    last_good: "Atoms | None" = None
    to_label: "list[Atoms] | None" = None


class DataWarning(UserWarning):
    """Data that can be used but look wrong."""


class TrainingWarning(UserWarning):
    """Something went wrong in a training, and it goes on."""


class SimulationWarning(UserWarning):
    """A simulation goes on, but its results may be wrong."""


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
