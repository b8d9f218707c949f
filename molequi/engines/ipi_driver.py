"""A model as a driver of i-PI: over a socket (``molequi drive``), or inside i-PI (``ffdirect``).

i-PI loads this file by its path: ``<ffdirect><pes>custom</pes><pes_path>…/ipi_driver.py</pes_path>``;
`molequi.engines.ipi_path` is the path.
"""

import os
import socket
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from scipy.spatial import cKDTree

from molequi.domain import check_elements
from molequi.engines.evaluator import Evaluation, Evaluator
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, DataError
from molequi.graph import collate
from molequi.model import Model
from molequi.readers.atoms import read_frames
from molequi.util.signature import check_keywords

__DRIVER_NAME__ = "molequi"
__DRIVER_CLASS__ = "IPIDriver"

# i-PI's own units (ipi/utils/units.py, version 3.3): Å in bohr, and eV in hartree, with its digits, so that
# positions that i-PI has read come back as they were.
ANGSTROM, ELECTRONVOLT = 1.8897261, 0.036749326
_NEAR = 0.3  # Å: up to here from the start structure, the order of the atoms can be compared
_HEADER = 12  # bytes of a message
# Part of i-PI's protocol, the same on every machine: the default of its option --sockets_prefix.
_UNIX_PREFIX = "/tmp/ipi_"
_HOST = "localhost"
_WAIT = 0.2  # s between two trials to connect


class IPIDriver:
    """Energies, forces and virials in atomic units, as i-PI asks for them.

    Several structures at once, as beads of a path integral are (``batch_size`` of ``ffdirect``), are one
    batch of the model.

    Parameters
    ----------
    model : Model, Ensemble, str or Path
        The model or its file.
    template : Atoms, str or Path
        A structure with the elements in the order of i-PI's atoms; its ``pbc`` decides what is periodic.
    verbosity, verbose
        Given by i-PI; the driver prints nothing.
    **options
        Options of `molequi.engines.Evaluator`.
    """

    def __init__(
        self,
        model: Model | Ensemble | str | os.PathLike[str],
        template: Atoms | str | os.PathLike[str],
        verbosity: object = None,
        verbose: object = None,
        **options: Any,
    ) -> None:
        atoms = template if isinstance(template, Atoms) else read_frames(os.fspath(template))[0]
        self.atoms = atoms
        self.evaluator = Evaluator(model, **options)
        check_elements(self.evaluator.model, atoms.numbers)
        self._neighbors: dict[int, Any] = {}
        self._ordered = False

    def __call__(self, cell: Any, pos: Any) -> Any:
        """As `compute`."""
        return self.compute(cell, pos)

    def compute(self, cell: Any, pos: Any) -> Any:
        """Potential, forces, virial and extras of a structure, or of each of a list.

        Parameters
        ----------
        cell : array, shape (3, 3), or list
            Lattice vectors in columns, in bohr.
        pos : array, shape (N, 3), or list
            Positions in bohr.

        Returns
        -------
        tuple, or list of tuple
            In hartree and hartree/bohr, and an empty text.
        """
        if not isinstance(pos, list):
            return self.compute([cell], [pos])[0]
        found = self._evaluate([p / ANGSTROM for p in pos], [np.asarray(c).T / ANGSTROM for c in cell])
        force = ELECTRONVOLT / ANGSTROM
        return [(e * ELECTRONVOLT, f * force, w * ELECTRONVOLT, "") for e, f, w in found]

    def _evaluate(self, positions: Sequence[np.ndarray], cells: Sequence[np.ndarray]) -> list[Evaluation]:
        atoms, evaluator = self.atoms, self.evaluator
        for pos in positions:
            if len(pos) != len(atoms):
                raise DataError(f"i-PI has {len(pos)} atoms, and the start structure {len(atoms)}")
            if not np.isfinite(pos).all():
                raise DataError("i-PI sends positions that are not finite; its dynamics has gone astray")
        if not self._ordered:
            check_order(atoms, positions[0])
            self._ordered = True
        graphs = [
            evaluator.graph(pos, atoms.numbers, cell=cell, pbc=atoms.pbc)
            for pos, cell in zip(positions, cells)
        ]
        number = len(graphs)
        neighbors = self._neighbors.setdefault(number, evaluator.neighbor_list())
        out = evaluator.evaluate(collate(graphs).to(evaluator.device), neighbors)
        energy, forces, virial = (out[n].cpu().double().numpy() for n in ("energy", "forces", "virial"))
        rows = forces.reshape(number, -1, 3)
        return [Evaluation(float(energy[k]), rows[k], virial[k]) for k in range(number)]


def check_order(atoms: Atoms, positions: np.ndarray) -> None:
    """Check that atoms come in the order of the start structure, as far as they are still near it.

    i-PI sends positions without elements.

    Parameters
    ----------
    atoms : ase.Atoms
        The start structure.
    positions : array, shape (N, 3)
        The first positions, in Å.

    Raises
    ------
    DataError
        If the atoms stand where atoms of other elements were.
    """
    cell = atoms.cell.complete().array
    places = [pos @ np.linalg.inv(cell) for pos in (positions, atoms.positions)]
    # Twice, because the remainder of -1e-17 is 1.
    places = [np.where(atoms.pbc, place % 1.0 % 1.0, place) @ cell for place in places]
    steps = np.array(list(product(*[(-1, 0, 1) if periodic else (0,) for periodic in atoms.pbc]))) @ cell
    images = (places[1] + steps[:, None]).reshape(-1, 3)
    far, nearest = cKDTree(images).query(places[0])
    nearest = nearest % len(atoms)
    if far.max() > _NEAR:
        return
    wrong = np.flatnonzero(atoms.numbers[nearest] != atoms.numbers)
    if len(wrong):
        k = int(wrong[0])
        raise DataError(
            f"i-PI has its atoms in another order than the start structure: its atom {k} is where atom "
            f"{int(nearest[k])} ({atoms.symbols[nearest[k]]}) was, and atom {k} of the start structure is "
            f"{atoms.symbols[k]}; give both the same file"
        )


@check_keywords()
def drive(
    model: Model | Ensemble | str | os.PathLike[str],
    structure: Atoms | str | os.PathLike[str],
    *,
    host: str = _HOST,
    port: int | None = None,
    unix: str | None = None,
    sockets_prefix: str = _UNIX_PREFIX,
    timeout: float = 60.0,
    level: str | None = None,
    charge: float | None = None,
    spin: float | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str = "float64",
    skin: float = 0.5,
    accelerate: bool = False,
) -> int:
    """Serve i-PI over a socket until it says that it is finished.

    Parameters
    ----------
    model : Model, Ensemble, str or Path
        The model or its file.
    structure : Atoms, str or Path
        A structure with the elements in the order of i-PI's atoms.
    host : str
        Where i-PI runs, together with `port`.
    port : int, optional
        Its port.
    unix : str, optional
        The ``address`` of its UNIX socket; one of `port` and this is given.
    sockets_prefix : str
        What stands before the address of a UNIX socket, as in ``i-pi --sockets_prefix``.
    timeout : float
        Seconds to wait for i-PI.
    level, charge, spin, device, dtype, skin, accelerate
        As of `molequi.engines.Evaluator`.

    Returns
    -------
    int
        Number of structures that were computed.

    Raises
    ------
    ConfigError
        If there is no i-PI, not exactly one of `port` and `unix`, a prefix without `unix`, a host with it,
        or a port or timeout that cannot be one.
    DataError
        If the connection breaks before i-PI says that it is finished.
    """
    if (port is None) == (unix is None):
        raise ConfigError(f"port={port!r}, unix={unix!r}: wanted one of them, as in i-PI's <ffsocket>")
    if unix is None and sockets_prefix != _UNIX_PREFIX:
        raise ConfigError(f"sockets_prefix={sockets_prefix!r}: wanted together with unix, not with a port")
    if unix is not None and host != _HOST:
        raise ConfigError(
            f"host={host!r}, unix={unix!r}: a UNIX socket is on this machine; leave host out, or give port"
        )
    if port is not None and not (isinstance(port, int) and not isinstance(port, bool) and 0 < port < 65536):
        raise ConfigError(f"port={port!r}: wanted a whole number from 1 to 65535")
    if isinstance(timeout, bool) or not (isinstance(timeout, (int, float)) and timeout >= 0):
        raise ConfigError(f"timeout={timeout!r}: wanted seconds, zero or more")
    driver = IPIDriver(
        model,
        structure,
        level=level,
        charge=charge,
        spin=spin,
        device=device,
        dtype=dtype,
        skin=skin,
        accelerate=accelerate,
    )
    with _connected((host, port) if unix is None else f"{sockets_prefix}{unix}", timeout) as sock:
        try:
            return _serve(sock, driver)
        except OSError as error:
            raise DataError(f"the connection to i-PI is broken: {error.strerror or error}") from error


def _connected(address: Any, timeout: float) -> socket.socket:
    """The socket of i-PI, which may start later than the driver. Of a UNIX socket the address is a path."""
    end = time.monotonic() + timeout
    while True:
        sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        try:
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            if time.monotonic() > end:
                raise ConfigError(
                    f"no i-PI at {address} within {timeout:g} s ({error.strerror}); start i-PI with "
                    "<ffsocket>, and give its address (and sockets_prefix=, if i-PI has one)"
                ) from error
            time.sleep(_WAIT)


def _serve(sock: socket.socket, driver: IPIDriver) -> int:
    """Answer the messages of i-PI. Returns the number of structures."""
    count, answer = 0, None
    while True:
        word = _receive(sock, _HEADER).decode(errors="replace").strip()
        if word == "EXIT":
            return count
        if not word:
            raise DataError(f"i-PI has gone away after {count} structures, without EXIT; see its output")
        if word == "STATUS":
            sock.sendall((b"READY" if answer is None else b"HAVEDATA").ljust(_HEADER))
        elif word == "INIT":
            _receive(sock, 4)
            _receive(sock, int(np.frombuffer(_receive(sock, 4), np.int32)[0]))
        elif word == "POSDATA":
            cell = np.frombuffer(_receive(sock, 72)).reshape(3, 3)  # row by row, vectors in columns
            _receive(sock, 72)  # its inverse
            number = int(np.frombuffer(_receive(sock, 4), np.int32)[0])
            answer = driver(cell, np.frombuffer(_receive(sock, 24 * number)).reshape(number, 3))
            count += 1
        elif word == "GETFORCE" and answer is not None:
            energy, forces, virial, _ = answer
            parts = [
                b"FORCEREADY".ljust(_HEADER),
                np.float64(energy).tobytes(),
                np.int32(len(forces)).tobytes(),
            ]
            parts += [np.ascontiguousarray(forces).tobytes(), np.ascontiguousarray(virial.T).tobytes()]
            sock.sendall(b"".join([*parts, np.int32(1).tobytes(), b" "]))
            answer = None
        else:
            raise DataError(f"i-PI says {word!r}; wanted STATUS, INIT, POSDATA, GETFORCE or EXIT")


def _receive(sock: socket.socket, number: int) -> bytes:
    """So many bytes; nothing if i-PI has gone away between two messages."""
    found = b""
    while len(found) < number:
        part = sock.recv(number - len(found))
        if not part:
            if found or number != _HEADER:
                raise DataError("i-PI has closed the connection in the middle of a message")
            return b""
        found += part
    return found


PATH = Path(__file__).resolve()
