"""Results as files: tables as CSV, structures as extended XYZ."""

import os
from pathlib import Path

from ase.io import write

from molequi.analysis.elasticity import ElasticConstants
from molequi.analysis.equation_of_state import EnergyVolume
from molequi.analysis.normal_modes import NormalModes
from molequi.analysis.phonon_bands import Phonons
from molequi.analysis.trajectories import Result
from molequi.util.files import write_file


def write_tables(result: Result, out: str | os.PathLike[str]) -> list[Path]:
    """Write each table of a result as a CSV file.

    Parameters
    ----------
    result : object
        A result of this package.
    out : str or Path
        The folder; it is made.

    Returns
    -------
    list of Path
        The files.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from molequi.analysis import rdf
    >>> [path.name for path in write_tables(rdf([bulk("Cu")]), "analysis")]  # doctest: +SKIP
    ['rdf.csv']
    """
    paths = []
    for name, columns in result.tables().items():
        lines = [",".join(columns)]
        lines += [",".join(f"{value:.10g}" for value in row) for row in zip(*columns.values())]
        path = Path(out) / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, "\n".join(lines) + "\n")
        paths.append(path)
    return paths


def write_structures(
    result: EnergyVolume | ElasticConstants | NormalModes | Phonons, out: str | os.PathLike[str]
) -> list[Path]:
    """Write the structure that a result is about, and what else belongs to it.

    Normal modes are frames with the wavenumber and an array ``mode``. Phonons are the file of phonopy, with
    its force constants.

    Parameters
    ----------
    result : object
        Result of `eos`, `elastic`, `vibrations` or `phonons`.
    out : str or Path
        The folder; it is made.

    Returns
    -------
    list of Path
        The files: ``structure.xyz``, and ``modes.xyz`` or ``phonopy.yaml``.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    atoms = result.start.atoms.copy()  # without the results of the last calculation, a displaced structure
    paths = [folder / "structure.xyz"]
    write(paths[0], atoms, format="extxyz")
    if isinstance(result, NormalModes):
        frames = []
        for value, mode in zip(result.wavenumber, result.modes):
            frame = atoms.copy()
            frame.info["wavenumber"] = float(value)
            frame.set_array("mode", mode)
            frames.append(frame)
        paths.append(folder / "modes.xyz")
        write(paths[-1], frames, format="extxyz")
    if isinstance(result, Phonons):
        paths.append(folder / "phonopy.yaml")
        result.phonopy.save(paths[-1], settings={"force_constants": True})
    return paths
