"""Results as CSV files."""

import os
from pathlib import Path

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
