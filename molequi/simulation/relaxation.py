"""Relaxation of positions and lattices by ASE's LBFGS."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.filters import FrechetCellFilter
from ase.optimize import LBFGS

from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, MolequiError
from molequi.model import Model
from molequi.simulation.bounds import Bounds
from molequi.simulation.files import FILES, SimulationFiles, restore_atoms
from molequi.simulation.inputs import (
    RENAMED,
    Structure,
    as_calculator,
    check_energy,
    checked_numbers,
    number_of_steps,
    properties_of,
    read_structure,
    structure_digest,
)
from molequi.simulation.known import energy_note
from molequi.util.html import html_heading, html_table, html_text
from molequi.util.progress import ProgressBar
from molequi.util.signals import catch_signals, stop_process
from molequi.util.signature import check_keywords
from molequi.util.tables import text_table

_HEAD = ("structure", "formula", "converged", "steps", "energy (eV)", "largest force (eV/Å)")


@dataclass(frozen=True)
class Relaxation:
    """Result of `relax`; printed, a summary.

    Parameters
    ----------
    atoms : ase.Atoms
        The relaxed structure, with its calculator.
    steps : int
        Number of steps, those of earlier calls included.
    converged : bool
        Whether all forces are below the threshold.
    energy : float
        Energy in eV.
    fmax : float
        Largest force in eV/Å.
    history : dict of str to array
        Columns of ``log.csv``: ``step``, ``E_pot`` (eV), ``fmax`` (eV/Å), and for structures that are
        periodic in three directions ``volume`` (Å³).
    out : Path or None
        Folder of the files.
    """

    atoms: Atoms
    steps: int
    converged: bool
    energy: float
    fmax: float
    history: dict[str, np.ndarray]
    out: Path | None

    @property
    def unknown(self) -> str:
        """That the energy is far below that of all training structures of the model; otherwise an empty
        string.
        """
        return energy_note(self.atoms, [self.energy], [])

    def __str__(self) -> str:
        found = "converged" if self.converged else "NOT converged"
        text = (
            f"{found} in {self.steps} steps: energy {self.energy:.6f} eV, largest force {self.fmax:.2e} eV/Å"
        )
        note = f"\nnote: {self.unknown}" if self.unknown else ""
        return text + note + (f"\n{self.out}: {', '.join(FILES)}" if self.out else "")

    def _repr_html_(self) -> str:
        return html_text(str(self))

    __repr__ = __str__


@dataclass(frozen=True)
class Relaxations(Sequence[Relaxation]):
    """Result of `relax_many`: the relaxations, in the order of the structures. Printed, a table.

    Parameters
    ----------
    runs : tuple of Relaxation
        The result of each structure.
    names : tuple of str
        Their names, which are those of their folders: "0", "1", …
    """

    runs: tuple[Relaxation, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: Any) -> Any:
        return self.runs[index]

    def __iter__(self) -> Iterator[Relaxation]:
        return iter(self.runs)

    @property
    def converged(self) -> bool:
        """Whether all have converged."""
        return all(run.converged for run in self.runs)

    def _rows(self) -> list[list[str]]:
        return [
            [
                name,
                run.atoms.get_chemical_formula(),
                "yes" if run.converged else "NO",
                str(run.steps),
                f"{run.energy:.6f}",
                f"{run.fmax:.2e}",
            ]
            for name, run in zip(self.names, self.runs)
        ]

    def _title(self) -> str:
        return f"{sum(run.converged for run in self.runs)} of {len(self.runs)} relaxations converged"

    def _note(self) -> str:
        notes = {name: run.unknown for name, run in zip(self.names, self.runs) if run.unknown}
        return f"note: {', '.join(notes)}: {next(iter(notes.values()))}" if notes else ""

    def __str__(self) -> str:
        table = text_table(_HEAD, self._rows(), left=(0, 1))
        return "\n".join(filter(None, [self._title(), *table, self._note()]))

    def _repr_html_(self) -> str:
        note = html_text(self._note()) if self._note() else ""
        return html_heading(self._title()) + html_table(_HEAD, self._rows(), left=(0, 1)) + note

    __repr__ = __str__


@check_keywords(RENAMED)
def relax(
    atoms: Structure,
    calculator: BaseCalculator | Model | Ensemble | str | os.PathLike[str],
    *,
    fmax: float = 0.01,
    steps: int = 500,
    cell: bool = False,
    out: str | os.PathLike[str] | None = None,
    every: int = 1,
    resume: Literal["auto", "restart"] = "auto",
    progress: bool = True,
) -> Relaxation:
    """Minimize the energy of a structure with LBFGS.

    The structure is copied. Ctrl-C and SIGTERM end the relaxation after the present step, and everything is
    saved.

    Parameters
    ----------
    atoms : ase.Atoms, str or Path
        A structure, or a file that ASE reads, as in `md`.
    calculator : ASE calculator, Model, Ensemble, str or Path
        What computes energies and forces, as in `md`.
    fmax : float
        The largest force at which the structure counts as relaxed, in eV/Å; with `cell` it includes the force
        on the lattice, as ASE's ``FrechetCellFilter`` defines it.
    steps : int
        Largest number of steps, earlier calls included.
    cell : bool
        Relax the lattice, too.
    out : str or Path, optional
        Folder of the files; None writes nothing.
    every : int
        Steps between frames, rows of the log and saved states.
    resume : "auto" or "restart"
        "auto" continues from the last saved positions in `out`, with a new LBFGS history. "restart" begins
        anew.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Relaxation
        The last frame, the log, and whether it is converged.

    Raises
    ------
    SimulationError
        If an energy or a force is not finite.
    ConfigError, UnknownKeywordError, DataError, CheckpointError, TrainingError
        As in `md`.

    Examples
    --------
    >>> from ase import Atoms
    >>> from ase.calculators.emt import EMT
    >>> relax(Atoms("Cu2", [[0, 0, 0], [2.5, 0, 0]]), EMT(), progress=False).converged
    True
    """
    checked_numbers(fmax=fmax)
    total = number_of_steps(None, steps, 1.0)
    if not isinstance(cell, bool):
        raise ConfigError(f"cell={cell!r}: wanted True or False")
    settings = {"what": "relax", "cell": cell, **checked_numbers(every=every)}
    frame = read_structure(atoms)
    frame.calc = as_calculator(calculator)
    check_energy(frame.calc)
    _check_cell(frame, cell)
    settings["structure"] = structure_digest(frame, with_momenta=False)
    with SimulationFiles(out, settings, resume) as files:
        run = _Run(frame, cell, every, files)
        received = run.advance(fmax, total, progress)
        if received:
            stop_process(received)
        energy = float(frame.get_potential_energy())
        return Relaxation(
            frame, run.step, run.converged, energy, run.largest_force(), files.history, files.out
        )


class _Run:
    """A relaxation that advances step by step, from its start or from the state in its folder."""

    def __init__(self, atoms: Atoms, cell: bool, every: int, files: SimulationFiles) -> None:
        self.atoms, self.every, self.files = atoms, every, files
        self.step, self.converged = 0, False
        if files.state is not None:
            self.step = int(files.state["step"])
            restore_atoms(atoms, files.state, files.path)
        files.check_frame(atoms, self.step, Bounds())
        self.target = FrechetCellFilter(atoms) if cell else atoms

    def largest_force(self) -> float:
        """The largest force on an atom, or on the lattice, in eV/Å."""
        return float(np.linalg.norm(self.target.get_forces(), axis=1).max())

    def advance(self, fmax: float, total: int, progress: bool) -> list[int]:
        """Run until it is converged, or to a number of steps. Returns the signals that ended it before."""
        files, before = self.files, self.step
        with (
            ProgressBar("relax", total, show=progress, start=before, keep=True) as bar,
            catch_signals() as received,
            # ASE's annotations lack filters and None.
            LBFGS(self.target, logfile=None) as optimizer,  # type: ignore[arg-type]
        ):
            walk, good = optimizer.irun(fmax=fmax, steps=max(total - before, 0)), self.atoms.copy()
            while not received:
                try:
                    done = next(walk, None)
                except MolequiError as error:
                    raise files.explosion(good, self.step, f"step {self.step + 1}: {error}") from error
                if done is None:
                    break
                self.step, self.converged = before + optimizer.nsteps, bool(done)
                files.check_frame(self.atoms, self.step, Bounds(), good)
                if self.step % self.every == 0 and (not files.rows or files.rows[-1]["step"] < self.step):
                    self._save_frame()
                    bar.update(self.step, f"largest force {files.rows[-1]['fmax']:.3g} eV/Å")
                good = self.atoms.copy()
            if self.converged:
                bar.finish()
            if self.step % self.every:
                files.save_state(self.atoms, self.step)
            files.save_last_frame(self.atoms, self.step)
        return received

    def _save_frame(self) -> None:
        """Append a frame and a row of the log, and save the state."""
        volume = {"volume": float(self.atoms.cell.volume)} if self.atoms.pbc.all() else {}
        energy = float(self.atoms.get_potential_energy())
        row = {"step": self.step, "E_pot": energy, "fmax": self.largest_force(), **volume}
        self.files.append(self.atoms, row)
        self.files.save_state(self.atoms, self.step)


def _check_cell(atoms: Atoms, cell: bool) -> None:
    """Raise ConfigError if the lattice shall be relaxed and cannot."""
    known = properties_of(atoms.calc)
    if cell and not (atoms.pbc.any() and atoms.cell.volume > 0 and "stress" in known):
        raise ConfigError(
            f"cell=True with pbc={atoms.pbc.tolist()}, a cell of {atoms.cell.volume:g} Å^3 and a calculator "
            f"of {', '.join(known)}: wanted a periodic structure, and stress"
        )
