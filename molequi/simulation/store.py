"""The folder of a simulation: whole at any moment, and enough to go on from; and the watch over its frames."""

import io
import json
import math
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write

from molequi.data.request import INVARIANTS
from molequi.errors import CheckpointError, ConfigError, SimulationError
from molequi.graph import own_fields
from molequi.util.files import write_file
from molequi.util.locks import lock_folder
from molequi.util.state_files import differences

_RENAMED_COLUMNS = {"forces_spread": "forces_std"}  # of logs that an earlier version wrote
FILES = ("trajectory.xyz", "log.csv", "last.xyz")


class Store:
    """Files of one simulation, held for this process; without `out`, rows in memory only.

    A frame and a row are one write each. The state says how long both files were, so that what came after is cut off.
    Raises ConfigError if the folder holds a simulation with other settings, CheckpointError if its state is damaged.
    """

    def __init__(self, out: str | os.PathLike | None, settings: dict[str, Any], resume: str):
        if resume not in ("auto", "restart"):
            raise ConfigError(f"resume={resume!r}: wanted 'auto' or 'restart'")
        if not (out is None or isinstance(out, (str, os.PathLike))):
            raise ConfigError(f"out={out!r}: wanted the path of a folder, or None")
        self.out = None if out is None else Path(out)
        self.settings, self.resume = settings, resume
        self.rows: list[dict[str, float]] = []
        self.state: dict[str, np.ndarray] | None = None
        self.sizes = {"trajectory.xyz": 0, "log.csv": 0}

    def __enter__(self) -> "Store":
        with ExitStack() as stack:
            if self.out is not None:
                stack.enter_context(lock_folder(self.out))
                self._open(self.out / "state.npz")
            self.held = stack.pop_all()
        return self

    def __exit__(self, *_) -> None:
        self.held.close()

    def _open(self, path: Path) -> None:
        if self.resume == "restart":
            path.unlink(missing_ok=True)
        if path.exists():
            self.state, settings = _read(path)
            changed = differences(settings, json.loads(json.dumps(self.settings)))
            if changed:
                raise ConfigError(
                    f"{self.out} holds another simulation:\n  " + "\n  ".join(changed) + "\nBegin anew with"
                    " resume='restart', or choose another folder with out="
                )
            self.sizes = dict(zip(self.sizes, self.state["sizes"].tolist(), strict=True))
        for name, size in self.sizes.items():
            with open(self.out / name, "ab") as file:
                found = file.tell()
                if found < size:
                    raise CheckpointError(
                        f"{self.out / name}: {found} bytes, and it had {size} when the state was saved; begin anew"
                        " with resume='restart'"
                    )
                file.truncate(size)
        names, *lines = [line.split(",") for line in (self.out / "log.csv").read_text().splitlines()] or [[]]
        names = [_RENAMED_COLUMNS.get(name, name) for name in names]
        self.rows = [{n: int(v) if n == "step" else float(v) for n, v in zip(names, line)} for line in lines]

    @property
    def history(self) -> dict[str, np.ndarray]:
        return {
            name: np.array([row[name] for row in self.rows]) for name in (self.rows[0] if self.rows else ())
        }

    def record(self, atoms: Atoms, row: dict[str, float]) -> None:
        """Adds a frame and a row of the log."""
        if self.out is not None:
            line = ",".join(repr(value) for value in row.values()) + "\n"
            self._append("trajectory.xyz", _frame(atoms, row))
            self._append("log.csv", line if self.rows else ",".join(row) + "\n" + line)
        self.rows.append(row)

    def _append(self, name: str, text: str) -> None:
        content = text.encode()
        try:
            with open(self.out / name, "ab", buffering=0) as file:
                written = file.write(content)
        except OSError as error:
            raise SimulationError(
                f"{self.out / name}: cannot be written ({error.strerror}); make room, then start the same again"
            ) from error
        if written < len(content):
            raise SimulationError(
                f"{self.out / name}: the disk is full; make room, then start the same again"
            )
        self.sizes[name] += written

    def save(self, atoms: Atoms, step: int, **more: Any) -> None:
        """Replaces the state from which this goes on."""
        if self.out is None:
            return
        arrays = {
            "step": step,
            "positions": atoms.positions,
            "momenta": atoms.get_momenta(),
            "cell": atoms.cell.array,
            "energy": atoms.get_potential_energy(),
            "sizes": list(self.sizes.values()),
            "settings": json.dumps(self.settings),
            **more,
        }

        def write_arrays(path: Path) -> None:
            with open(path, "wb") as file:
                np.savez(file, allow_pickle=False, **arrays)

        write_file(self.out / "state.npz", write_arrays)

    def last(self, atoms: Atoms, step: int) -> None:
        """Replaces last.xyz."""
        if self.out is not None:
            text = _frame(atoms, {"step": step})
            write_file(self.out / "last.xyz", text)

    def stopped(self, good: Atoms | None, step: int, what: str) -> SimulationError:
        """The error for an explosion, once the last good frame is saved; the error has it as `last_good`."""
        if good is None:
            error = SimulationError(
                f"{what}. It begins so: look at the structure, or at what the model was trained on"
            )
        else:
            self.last(good, step)
            kept = "`last_good` of this error" if self.out is None else self.out / "last.xyz"
            error = SimulationError(
                f"{what}. The last good frame, of step {step}, is {kept}. Use a shorter time step, or train on such"
                " structures"
            )
        error.last_good = good
        return error


def check(
    store: Store,
    good: Atoms | None,
    atoms: Atoms,
    step: int,
    max_force: float,
    hottest: float = math.inf,
    kelvin: float = 0.0,
    max_spread: float | None = None,
) -> None:
    """Raises SimulationError, the last good frame saved, where forces and their spread (eV/Å) or temperature (K) left all bounds."""
    energy, force = atoms.get_potential_energy(), np.linalg.norm(atoms.get_forces(), axis=1)
    heat = atoms.get_kinetic_energy() * kelvin
    unsure = np.zeros(1) if max_spread is None else atoms.calc.results["forces_std"]
    calm = force <= max_force  # False for NaN
    if not calm.all():
        k = int(np.where(calm, -1.0, np.where(np.isfinite(force), force, np.inf)).argmax())
        what = f"the force on atom {k} ({atoms.symbols[k]}) is {force[k]:g} eV/Å, more than {max_force:g} or not finite"
    elif not np.isfinite(energy):
        what = f"the energy is {energy}"
    elif not heat <= hottest:
        k = int((np.linalg.norm(atoms.get_momenta(), axis=1) ** 2 / atoms.get_masses()).argmax())
        what = f"the temperature is {heat:.0f} K, more than {hottest:.0f}; fastest is atom {k} ({atoms.symbols[k]})"
    elif max_spread is not None and not (unsure <= max_spread).all():
        k = int(unsure.argmax())
        what = (
            f"the members of the ensemble differ by {unsure[k]:.3g} eV/Å about the force on atom {k} ({atoms.symbols[k]}), more than "
            f"max_spread={max_spread:g}"
        )
    else:
        return
    raise store.stopped(good, step - 1, f"step {step}: {what}")


def restore(atoms: Atoms, state: Mapping[str, np.ndarray]) -> None:
    """Puts the structure where the state says. Raises ConfigError if the calculator has another energy there."""
    atoms.set_cell(state["cell"])
    atoms.set_positions(state["positions"], apply_constraint=False)
    atoms.set_momenta(state["momenta"], apply_constraint=False)
    energy, before = atoms.get_potential_energy(), float(state["energy"])
    if not abs(energy - before) <= 1e-4 * len(atoms):
        raise ConfigError(
            f"where the simulation stands the energy is {energy:.6f} eV and was {before:.6f} eV: the calculator is"
            " another one. Begin anew with resume='restart', or choose another folder with out="
        )


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The state and its settings."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            state = {name: arrays[name] for name in arrays.files}
        return state, json.loads(str(state["settings"]))
    except Exception as error:  # zipfile, zlib, numpy and json each have their own
        raise CheckpointError(
            f"{path}: not a whole state of a simulation ({error}); begin anew with resume='restart'"
        ) from error


def _frame(atoms: Atoms, row: Mapping[str, float]) -> str:
    """One frame of extended XYZ, without the labels that the structure was read with.

    Masses stand in it if they are not the standard ones, fixed atoms as move_mask; the format has no other constraints.
    """
    frame = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if atoms.has("masses"):
        frame.set_masses(atoms.get_masses())
    if atoms.has("momenta"):
        frame.set_momenta(atoms.get_momenta())
    frame.set_constraint([constraint for constraint in atoms.constraints if isinstance(constraint, FixAtoms)])
    names = [*(n for names in INVARIANTS.values() for n in names), *own_fields()]
    frame.info = {n: atoms.info[n] for n in names if n in atoms.info}
    for name in own_fields():
        if name in atoms.arrays:
            frame.set_array(name, atoms.arrays[name])
    frame.info.update({name: row[name] for name in ("step", "time_ps") if name in row})
    if atoms.calc is not None:
        forces = atoms.get_forces(apply_constraint=False)
        frame.calc = SinglePointCalculator(frame, energy=atoms.get_potential_energy(), forces=forces)
    text = io.StringIO()
    write(text, frame, format="extxyz")
    return text.getvalue()
