"""The data that molequi ships: small files for first steps, tests and recipes.

In a clone of the repository they are in the folder ``data``; in an installed package they are inside the
package. `shipped` finds them in both.
"""

import difflib
import shlex
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from molequi.errors import DataError
from molequi.util.files import write_atomically
from molequi.util.signature import check_keywords

# What each file holds.
SHIPPED = {
    "bn.xyz": "160 frames of cubic boron nitride (8 atoms): energy, forces, stress",
    "ethanol_300K.xyz": "400 frames of ethanol at 300 K: energy, forces, dipole",
    "ethanol_600K.xyz": "200 frames of ethanol at 600 K: energy, forces, dipole",
    "isolated_atoms.xyz": "H, C and O alone: energy",
    "molecules.npz": "2,286 organic molecules with SMILES: gap, dipole, polarizability and more",
    "shapes.npz": "1,000 point clouds of ten kinds of objects, with the part of each point",
}
_PACKAGE = Path(__file__).resolve().parent
FOLDERS = (_PACKAGE / "shipped", _PACKAGE.parent / "data")


@check_keywords()
def shipped(name: str) -> Path:
    """The path of a file that molequi ships.

    Parameters
    ----------
    name : str
        Name of the file, one of `SHIPPED`: "bn.xyz", "ethanol_300K.xyz", "ethanol_600K.xyz",
        "isolated_atoms.xyz", "molecules.npz" or "shapes.npz".

    Returns
    -------
    Path
        The file, in the installed package or in the folder ``data`` of a clone.

    Raises
    ------
    DataError
        If no file of this name is shipped, or if this installation lacks it.

    Examples
    --------
    >>> import molequi as mq
    >>> len(mq.read_extxyz(mq.shipped("bn.xyz")))
    160
    """
    if name not in SHIPPED:
        near = difflib.get_close_matches(str(name), SHIPPED, n=1, cutoff=0.4)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"{name}: no such file is shipped{guess} Shipped are {', '.join(SHIPPED)}")
    for folder in FOLDERS:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"{name}: shipped with molequi, and this installation lacks it; looked in "
        f"{' and '.join(map(str, FOLDERS))}. Install again: pip install --force-reinstall --no-deps molequi, "
        "or copy the folder 'data' of the repository to the second place"
    )


def shipped_like(path: str | Path) -> str:
    """What to do about a missing file, if molequi ships one of its name; else an empty text.

    Parameters
    ----------
    path : str or Path
        A path at which no file is.

    Returns
    -------
    str
        The end of a message.

    Examples
    --------
    >>> print(shipped_like("data/bn.xyz"))
    ; molequi ships a file of this name. Copy it:
      molequi data bn.xyz --out data
    or name it in Python: mq.shipped("bn.xyz")
    """
    path = Path(path)
    if path.name not in SHIPPED:
        return ""
    return (
        f"; molequi ships a file of this name. Copy it:\n  molequi data {path.name} --out "
        f'{shlex.quote(str(path.parent))}\nor name it in Python: mq.shipped("{path.name}")'
    )


def write_shipped(names: Sequence[str], folder: str | Path) -> list[Path]:
    """Copy shipped files into a folder, which is made if need be.

    Parameters
    ----------
    names : sequence of str
        Names of files; an empty list stands for all.
    folder : str or Path
        The folder.

    Returns
    -------
    list of Path
        The new files.

    Raises
    ------
    DataError
        If a name is unknown, if a file of this name with other content is there, or if a file cannot be
        written.
    """
    sources = [shipped(name) for name in names or SHIPPED]
    folder = Path(folder)
    targets = [folder / source.name for source in sources]
    for source, target in zip(sources, targets):
        if target.exists() and not (target.is_file() and target.read_bytes() == source.read_bytes()):
            raise DataError(
                f"{target}: exists and is another file; it was not replaced. Choose another folder: --out "
                "FOLDER"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source, target in zip(sources, targets):
            write_atomically(target, partial(shutil.copyfile, source))
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return targets
