"""Relaxation of positions and lattices by ASE's LBFGS."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.optimize import LBFGS

from molequi.errors import ConfigError, MolequiError
from molequi.simulation.inputs import calculator_of, checked, digest, length, properties, structure_of
from molequi.simulation.store import FILES, Store, check, restore
from molequi.util.progress import ProgressBar
from molequi.util.signals import catch_signals, stop_process


@dataclass(frozen=True)
class Relaxation:
    """What `relax` leaves. energy: eV. fmax: eV/Å. history: columns of log.csv: step, E_pot, fmax; in a cell volume."""

    atoms: Atoms
    steps: int
    converged: bool
    energy: float
    fmax: float
    history: dict[str, np.ndarray]
    out: Path | None

    def __str__(self) -> str:
        found = "converged" if self.converged else "NOT converged"
        text = (
            f"{found} in {self.steps} steps: energy {self.energy:.6f} eV, largest force {self.fmax:.2e} eV/Å"
        )
        return text + (f"\n{self.out}: {', '.join(FILES)}" if self.out else "")


def relax(
    atoms: Atoms | str | os.PathLike,
    calculator: Any,
    *,
    fmax: float = 0.01,
    steps: int = 500,
    cell: bool = False,
    out: str | os.PathLike | None = None,
    every: int = 1,
    resume: Literal["auto", "restart"] = "auto",
    index: int = 0,
    device: str = "cpu",
    dtype: Literal["float32", "float64"] = "float64",
    accelerate: bool = False,
    progress: bool = True,
) -> Relaxation:
    """Minimise the energy of a copy of a structure with LBFGS: positions and, with `cell`, the lattice.

    atoms, calculator, index, device, dtype, accelerate, out, every, resume: as for `md`. fmax: eV/Å, the largest force at which it
    is done, with `cell` also that on the lattice (as ASE's FrechetCellFilter defines it). steps: at most that many,
    earlier calls included; a later call goes on from the last saved positions, with a fresh LBFGS history.
    Raises SimulationError for energies or forces that are not finite, and as `md` for the rest.
    """
    checked(fmax=fmax)
    total = length(None, steps, 1.0)
    if not isinstance(cell, bool):
        raise ConfigError(f"cell={cell!r}: wanted True or False")
    settings = {"what": "relax", "cell": cell, **checked(every=every)}
    atoms = structure_of(atoms, index)
    atoms.calc = calculator_of(calculator, device, dtype, accelerate)
    if cell and not (atoms.pbc.any() and atoms.cell.volume > 0 and "stress" in properties(atoms.calc)):
        raise ConfigError(
            f"cell=True with pbc={atoms.pbc.tolist()}, a cell of {atoms.cell.volume:g} Å^3 and a calculator of"
            f" {', '.join(properties(atoms.calc))}: wanted a periodic structure, and stress"
        )
    settings["structure"] = digest(atoms, with_momenta=False)

    with Store(out, settings, resume) as store:
        before = 0 if store.state is None else int(store.state["step"])
        if store.state is not None:
            restore(atoms, store.state)
        step, converged, finite = before, False, sys.float_info.max
        check(store, None, atoms, step, finite)
        target = FrechetCellFilter(atoms) if cell else atoms

        def largest() -> float:
            return float(np.linalg.norm(target.get_forces(), axis=1).max())

        with (
            ProgressBar("relax", total, show=progress, start=before, keep=True) as bar,
            catch_signals() as received,
            LBFGS(target, logfile=None) as optimizer,
        ):
            walk, good = optimizer.irun(fmax=fmax, steps=max(total - before, 0)), atoms.copy()
            while not received:
                try:
                    done = next(walk, None)
                except MolequiError as error:
                    raise store.stopped(good, step, f"step {step + 1}: {error}") from error
                if done is None:
                    break
                step, converged = before + optimizer.nsteps, bool(done)
                check(store, good, atoms, step, finite)
                if step % every == 0 and (not store.rows or store.rows[-1]["step"] < step):
                    volume = {"volume": float(atoms.cell.volume)} if atoms.pbc.all() else {}
                    energy = float(atoms.get_potential_energy())
                    store.record(atoms, {"step": step, "E_pot": energy, "fmax": largest(), **volume})
                    store.save(atoms, step)
                    bar.update(step, f"largest force {store.rows[-1]['fmax']:.3g} eV/Å")
                good = atoms.copy()
            if step % every:
                store.save(atoms, step)
            store.last(atoms, step)
        if received:
            stop_process(received)
        energy = float(atoms.get_potential_energy())
        return Relaxation(atoms, step, converged, energy, largest(), store.history, store.out)
