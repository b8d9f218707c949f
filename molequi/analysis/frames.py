"""Frames of a trajectory: reading, the time between them, positions without jumps, velocities."""

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from ase import Atoms

from molequi.errors import ConfigError, DataError
from molequi.readers import atoms
from molequi.readers.atoms import split_frames
from molequi.readers.files import check_file
from molequi.simulation import equilibration

TRAJECTORY = "trajectory.xyz"  # in the folder of a simulation
Frames = str | os.PathLike[str] | Sequence[Atoms]


def read_frames(given: Frames) -> list[Atoms]:
    """The frames of a trajectory.

    Parameters
    ----------
    given : str, Path or sequence of ase.Atoms
        A file that ASE reads, such as ``trajectory.xyz`` of `molequi.md` or ``trajectory.xyz@500:``;
        the folder of a simulation, which has one; or the frames.

    Returns
    -------
    list of ase.Atoms
        All frames, with the same atoms in the same order.

    Raises
    ------
    DataError
        If the file cannot be read, if there is no frame, or if the atoms of two frames differ.

    Examples
    --------
    >>> from ase.build import molecule
    >>> len(read_frames([molecule("H2O"), molecule("H2O")]))
    2
    """
    where = "the trajectory"
    if isinstance(given, (str, os.PathLike)):
        path, chosen = split_frames(os.fspath(given))
        where = str(_trajectory(path))
        frames = atoms.read_frames(where, index=":" if chosen is None else chosen)
    else:
        frames = [given] if isinstance(given, Atoms) else list(given)
    for k, frame in enumerate(frames):
        if not isinstance(frame, Atoms):
            raise DataError(f"frame {k} of {where} is {type(frame).__name__}; wanted ase.Atoms")
        if not np.array_equal(frame.numbers, frames[0].numbers):
            raise DataError(
                f"frame {k} of {where} is {frame.symbols}, frame 0 is {frames[0].symbols}: wanted the same "
                "atoms in the same order, as a simulation has them"
            )
    if not frames or len(frames[0]) == 0:
        raise DataError(f"{where}: no frames with atoms in it")
    return frames


def _trajectory(path: Path) -> Path:
    """The file of a trajectory, also for the folder of a simulation. Raises DataError if there is none."""
    if path.is_dir():
        if (path / TRAJECTORY).is_file():
            return path / TRAJECTORY
        below = sorted(map(str, path.glob(f"*/{TRAJECTORY}")))
        if len(below) == 1:
            return Path(below[0])
        found = f"; there are {', '.join(below[:8])}: name one" if below else ""
        raise DataError(f"{path}: a folder without {TRAJECTORY}{found or ', which molequi md writes'}")
    check_file(path)
    beside = path.with_name(TRAJECTORY)
    if path.suffix in (".csv", ".png", ".json", ".log") and beside.is_file():
        raise DataError(f"{path}: no trajectory; it is beside this file: {beside}")
    return path


def frame_spacing(frames: Sequence[Atoms], spacing: float | None = None) -> float:
    """The time between two frames in fs.

    Parameters
    ----------
    frames : sequence of ase.Atoms
        The frames; those of `molequi.md` know their times.
    spacing : float, optional
        The time in fs, for frames that do not.

    Raises
    ------
    ConfigError
        If the frames do not say it and `spacing` is missing or not above zero.
    DataError
        If the frames are not equally spaced in time, or fewer than two.
    """
    if len(frames) < 2:
        raise DataError(f"{len(frames)} frame: wanted two or more")
    if spacing is not None:
        if not np.isfinite(spacing) or spacing <= 0:
            raise ConfigError(f"spacing={spacing!r}: wanted the time between two frames in fs, above zero")
        return float(spacing)
    times = [frame.info.get("time_ps") for frame in frames]
    if any(time is None for time in times):
        raise ConfigError(
            f"frame {times.index(None)} has no time ('time_ps'); say the time between two frames in fs with "
            "spacing=…"
        )
    steps = np.diff(np.array(times, dtype=float)) * 1e3
    if steps.min() <= 0 or np.ptp(steps) > 1e-3 * steps.mean():
        k = int(np.abs(steps - np.median(steps)).argmax())
        raise DataError(
            f"frames {k} and {k + 1} are {steps[k]:g} fs apart, others {np.median(steps):g} fs: wanted equal "
            "times between frames, in one simulation"
        )
    return float(steps.mean())


def unwrapped_positions(frames: Sequence[Atoms], *, still: bool = True) -> np.ndarray:
    """Positions that do not jump when an atom crosses the border of the cell.

    The displacement from frame to frame is the shortest of all periodic images, so atoms may move less than
    half the cell between two frames.

    Parameters
    ----------
    frames : sequence of ase.Atoms
        The frames.
    still : bool
        Remove the motion of the centre of mass.

    Returns
    -------
    array, shape (T, N, 3)
        Positions in Å.
    """
    out = np.empty((len(frames), len(frames[0]), 3))
    out[0] = frames[0].positions
    for k, (before, after) in enumerate(pairwise(frames), start=1):
        if after.pbc.any() and after.cell.rank == 3:
            # In fractions of the cell, so that a cell that grows moves no atom.
            step = after.cell.scaled_positions(after.positions) - before.cell.scaled_positions(
                before.positions
            )
            step -= np.round(step) * after.pbc
            out[k] = out[k - 1] + step @ after.cell.array
        else:
            out[k] = out[k - 1] + after.positions - before.positions
    if still:
        masses = frames[0].get_masses()
        centre = np.einsum("n,tnd->td", masses, out) / masses.sum()
        out -= (centre - centre[0])[:, None]
    return out


def equilibrated(frames: Sequence[Atoms]) -> int:
    """Number of frames at the beginning that are not in equilibrium.

    Parameters
    ----------
    frames : sequence of ase.Atoms
        Frames with energies; of others none is left out. The volume counts too.
    """
    series = [[frame.cell.volume for frame in frames]] if frames[0].pbc.all() else []
    if all(frame.calc is not None and "energy" in frame.calc.results for frame in frames):
        series.append([frame.get_potential_energy() for frame in frames])
    return max((equilibration(values) for values in series), default=0)


def elements_of(frames: Sequence[Atoms]) -> list[str]:
    """Symbols of the elements, in order of their numbers."""
    return [frames[0].symbols[int((frames[0].numbers == z).argmax())] for z in np.unique(frames[0].numbers)]
