"""All analyses of a trajectory in one call."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np

from molequi.analysis.frames import Frames, equilibrated, read_frames
from molequi.analysis.motion import msd, vdos
from molequi.analysis.pairs import angles, bonds, rdf
from molequi.errors import ConfigError, DataError
from molequi.util.html import html_text
from molequi.util.signature import check_keywords

What = Literal["rdf", "msd", "vdos", "bonds", "angles"]


class Result(Protocol):
    """What each analysis returns; printed, a summary."""

    def tables(self) -> dict[str, dict[str, np.ndarray]]:
        """Columns of each table, by name of the table."""


@dataclass(frozen=True)
class Analysis:
    """Result of `analyze`; printed, the summaries.

    Parameters
    ----------
    results : mapping of str to object
        Result of each analysis, by its name.
    left_out : mapping of str to str
        Why the others could not be made.
    frames : int
        Number of frames that were used.
    skipped : int
        Number of frames at the beginning that were left out as equilibration.
    """

    results: Mapping[str, Result]
    left_out: Mapping[str, str]
    frames: int
    skipped: int

    def __str__(self) -> str:
        head = f"{self.frames} frames"
        if self.skipped:
            head += f"; the first {self.skipped} are left out as equilibration"
        lines = [head, *(str(result) for result in self.results.values())]
        return "\n".join([*lines, *(f"{name} left out: {why}" for name, why in self.left_out.items())])

    def _repr_html_(self) -> str:
        return html_text(str(self))

    __repr__ = __str__


@check_keywords()
def analyze(
    trajectory: Frames,
    *,
    what: Sequence[What] | None = None,
    skip: int | Literal["auto"] = "auto",
    cutoff: float = 6.0,
    tolerance: float = 1.2,
    spacing: float | None = None,
) -> Analysis:
    """Radial distribution, diffusion, vibrations, bonds and angles of a trajectory.

    Parameters
    ----------
    trajectory : str, Path or sequence of ase.Atoms
        A file that ASE reads, such as ``trajectory.xyz`` of `molequi.md`; the folder of a simulation,
        which has one; or the frames.
    what : sequence of str, optional
        Some of "rdf", "msd", "vdos", "bonds" and "angles". By default all that the trajectory allows.
    skip : int or "auto"
        Frames at the beginning to leave out. "auto" leaves out those that are not in equilibrium, by their
        energies and volumes (`molequi.simulation.equilibration`).
    cutoff : float, > 0
        Largest distance of the radial distribution in Å.
    tolerance : float, > 0
        Atoms closer than the sum of their covalent radii times this are bonded.
    spacing : float, optional
        Time between two frames in fs, for frames that do not say it.

    Returns
    -------
    Analysis
        The results, and why others are missing.

    Raises
    ------
    ConfigError
        For settings out of range.
    DataError
        If the trajectory cannot be read, or if an analysis in `what` cannot be made.

    Examples
    --------
    >>> from ase.build import molecule
    >>> found = analyze([molecule("H2O")])
    >>> list(found.results)
    ['bonds', 'angles']
    """
    known = get_args(What)
    wanted = known if what is None else tuple([what] if isinstance(what, str) else what)
    for name in wanted:
        if name not in known:
            raise ConfigError(f"what: found {name!r}; wanted some of {', '.join(known)}")
    frames = read_frames(trajectory)
    if skip != "auto" and (not isinstance(skip, (int, np.integer)) or isinstance(skip, bool) or skip < 0):
        raise ConfigError(f"skip={skip!r}: wanted 'auto' or a number of frames")
    first = equilibrated(frames) if skip == "auto" else int(skip)
    if first >= len(frames):
        raise ConfigError(f"skip={first}: the trajectory has {len(frames)} frames; none is left")
    kept = frames[first:]
    ways: dict[str, Callable[[], Result]] = {
        "rdf": lambda: rdf(kept, cutoff=cutoff),
        "msd": lambda: msd(kept, spacing=spacing),
        "vdos": lambda: vdos(kept, spacing=spacing),
        "bonds": lambda: bonds(kept, tolerance=tolerance),
        "angles": lambda: angles(kept, tolerance=tolerance),
    }
    results: dict[str, Result] = {}
    left_out: dict[str, str] = {}
    for name in wanted:
        try:
            results[name] = ways[name]()
        except (DataError, ConfigError) as error:
            if what is not None:
                raise
            left_out[name] = str(error)
    return Analysis(results, left_out, len(kept), first)
