"""Cells as engines want them."""

import numpy as np

from molequi.errors import DataError


def reduced(cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same lattice as OpenMM and LAMMPS want it, and the rotation of space that it needs.

    They want a = (ax, 0, 0), b = (bx, by, 0) and c with positive diagonal, and ``|bx|``, ``|cx|`` at most
    ax/2 and ``|cy|`` at most by/2.

    Parameters
    ----------
    cell : array, shape (3, 3)
        Lattice vectors in its rows.

    Returns
    -------
    box, rotation : array, shape (3, 3)
        Reduced vectors in rows; ``cell @ rotation`` spans the same lattice as the box.

    Raises
    ------
    DataError
        If the cell has no volume.
    """
    if abs(np.linalg.det(cell)) < 1e-8:
        raise DataError(f"a periodic cell of {abs(np.linalg.det(cell)):g} Å^3; wanted one with a volume")
    cell = cell * np.sign(np.linalg.det(cell))  # the lattice of -a, -b, -c is the same one
    q, _ = np.linalg.qr(cell.T)
    box = cell @ q
    signs = np.sign(np.diag(box))
    q, box = q * signs, box * signs
    box = np.tril(box)
    a, b, c = box
    c = c - b * np.round(c[1] / b[1])
    c = c - a * np.round(c[0] / a[0])
    b = b - a * np.round(b[0] / a[0])
    return np.array([a, b, c]), q
