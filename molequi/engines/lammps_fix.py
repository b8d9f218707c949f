"""A model as ``fix external`` of LAMMPS, on one process."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import units

from molequi.domain import check_elements
from molequi.engines.evaluator import Evaluator
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, SimulationError
from molequi.model import Model
from molequi.quantities import atomic_number

_UNITS = {"metal": 1.0, "real": units.kcal / units.mol}  # eV in the unit of energy
_ORDER = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


class LammpsFix:
    """A model that LAMMPS calls in each step; `molequi.engines.lammps` makes it.

    The fix computes the energy, the forces and the virial of all atoms with periodic images of its own, so no
    ghost atoms of LAMMPS are used: any pair style, also none, may be added to it. Atoms are taken in the
    order of their IDs, whatever order LAMMPS sorts them into.

    Parameters
    ----------
    lmp : lammps.lammps
        An instance with a box and atoms.
    model, elements, fix, **options
        As of `molequi.engines.lammps`.

    Attributes
    ----------
    error : Exception or None
        What went wrong in a step. `run` and `command` raise it.
    """

    def __init__(
        self,
        lmp: Any,
        model: Model | Ensemble | str | os.PathLike[str],
        elements: Sequence[str | int],
        *,
        fix: str = "molequi",
        **options: Any,
    ) -> None:
        self.lmp, self.fix = lmp, fix
        self.error: Exception | None = None
        ranks = lmp.extract_setting("world_size")
        if ranks != 1:
            raise ConfigError(
                f"LAMMPS runs on {ranks} processes; this fix computes all atoms in one, so that message "
                "passing needs no exchange between them: start it with one (threads do the rest)"
            )
        kind = lmp.extract_global("units")
        kind = kind.decode() if isinstance(kind, bytes) else kind
        if kind not in _UNITS:
            raise ConfigError(f"units {kind}: wanted 'units metal' or 'units real' in the LAMMPS input")
        self._energy = _UNITS[kind]
        types = int(lmp.extract_global("ntypes"))
        self.numbers = np.array([atomic_number(element) for element in elements])
        if len(self.numbers) != types:
            raise ConfigError(
                f"elements={list(elements)}: {len(self.numbers)} elements for {types} atom types; wanted one "
                "for each type, in their order"
            )
        self.evaluator = Evaluator(model, **options)
        check_elements(self.evaluator.model, self.numbers)
        lmp.command(f"fix {fix} all external pf/callback 1 1")
        lmp.command(f"fix_modify {fix} energy yes virial yes")
        lmp.set_fix_external_callback(fix, self._step, None)

    def command(self, text: str) -> None:
        """Run one command of LAMMPS, and raise what went wrong in the model.

        Parameters
        ----------
        text : str
            The command, such as ``"run 100"`` or ``"minimize 0 1e-4 100 1000"``.

        Raises
        ------
        MolequiError
            What the model refused.
        """
        self.error = None
        try:
            self.lmp.command(text)
        finally:
            if self.error is not None:
                error, self.error = self.error, None
                raise error

    def run(self, steps: int) -> None:
        """Advance by some steps, see `command`.

        Parameters
        ----------
        steps : int
            Number of steps.
        """
        self.command(f"run {steps}")

    def _step(self, _: Any, __: int, count: int, tags: np.ndarray, x: np.ndarray, f: np.ndarray) -> None:
        try:
            if self.error is None:
                self._compute(count, tags, x, f)
        except Exception as error:  # ctypes would print it, and LAMMPS would go on with wrong forces
            self.error = error
            f[:] = 0.0
            self.lmp.force_timeout()

    def _compute(self, count: int, tags: np.ndarray, x: np.ndarray, f: np.ndarray) -> None:
        lmp = self.lmp
        natoms = int(lmp.get_natoms())
        if count != natoms:
            raise SimulationError(f"{count} of {natoms} atoms are here; LAMMPS has lost the others")
        order = np.argsort(np.asarray(tags).ravel())
        kinds = lmp.numpy.extract_atom("type")[:count].ravel()[order]
        cell, pbc = box_of(lmp)
        found = self.evaluator(np.asarray(x)[order], self.numbers[kinds - 1], cell=cell, pbc=pbc)
        f[order] = found.forces / self._energy
        lmp.fix_external_set_energy_global(self.fix, found.energy / self._energy)
        lmp.fix_external_set_virial_global(self.fix, [found.virial[k] / self._energy for k in _ORDER])


def box_of(lmp: Any) -> tuple[np.ndarray, np.ndarray]:
    """Lattice vectors in rows, and periodic directions.

    Parameters
    ----------
    lmp : lammps.lammps
        The instance.
    """
    low, high, xy, yz, xz, periodic, _ = lmp.extract_box()
    lx, ly, lz = np.subtract(high, low)
    return np.array([[lx, 0, 0], [xy, ly, 0], [xz, yz, lz]]), np.array(periodic, dtype=bool)
