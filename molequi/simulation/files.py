"""Files of a simulation: complete at any moment, and enough to continue."""

import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write

from molequi.data.request import INVARIANTS
from molequi.errors import CheckpointError, ConfigError, MolequiError, OtherSettingsError, SimulationError
from molequi.graph import own_fields
from molequi.interfaces.ase import Calculator
from molequi.simulation.bounds import Bounds
from molequi.util.files import write_file
from molequi.util.locks import check_unused, is_ours, lock_folder
from molequi.util.state_files import differences

FILES = ("trajectory.xyz", "log.csv", "last.xyz")
# What to do if a simulation cannot go on: after its steps, and where the model does not know the forces.
_ADVICE = {
    "md": "Use a shorter time step, or train on such structures",
    "relax": "Begin at another structure, or train on such structures",
}
_UNKNOWN = "Train on such structures, or stay nearer to the training data, at a lower temperature"
# Columns of the log and settings of the state that an earlier version wrote under other names.
_RENAMED_COLUMNS = {"forces_spread": "forces_std"}
_RENAMED_SETTINGS = {
    "friction": ("thermostat", "friction"),
    "pressure": ("barostat", "pressure"),
    "barostat_time": ("barostat", "time"),
}
# Settings that an earlier version did not have, with the values that it used.
_ADDED_SETTINGS = {
    "thermostat": {"kind": "langevin", "time": 100.0},
    "barostat": {"cell": "isotropic"},
}


class SimulationFiles:
    """Trajectory, log and state of one simulation, in a folder that this process holds.

    A frame and a row of the log are one write each. The state says how long both files were when it was
    saved, so that what was written later can be cut off.

    Parameters
    ----------
    out : str, Path or None
        The folder. Without one, rows are kept in memory only.
    settings : dict
        What has to be the same to continue, as JSON has it.
    resume : "auto" or "restart"
        Continue from the state in the folder, or begin anew.

    Attributes
    ----------
    rows : list of dict
        The log so far.
    state : dict of arrays, or None
        The saved state; None at the beginning.

    Raises
    ------
    ConfigError
        If the folder holds a simulation with other settings.
    CheckpointError
        If its state is damaged.
    """

    def __init__(self, out: str | os.PathLike[str] | None, settings: dict[str, Any], resume: str) -> None:
        if resume not in ("auto", "restart"):
            raise ConfigError(f"resume={resume!r}: wanted 'auto' or 'restart'")
        if not (out is None or isinstance(out, (str, os.PathLike))):
            raise ConfigError(f"out={out!r}: wanted the path of a folder, or None")
        self.out = None if out is None else Path(out)
        self.settings, self.resume = settings, resume
        self.rows: list[dict[str, float]] = []
        self.state: dict[str, np.ndarray] | None = None
        self.sizes = {"trajectory.xyz": 0, "log.csv": 0}
        self._held = ExitStack()

    def __enter__(self) -> "SimulationFiles":
        with ExitStack() as stack:
            if self.out is not None:
                # Before the lock, which says that a folder is one of molequi.
                self._check(self.out)
                stack.enter_context(lock_folder(self.out))
                self._open(self.out)
            self._held = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def _check(self, out: Path) -> None:
        """Raise as `_open` does for a folder of somebody else, and change nothing."""
        path = out / "state.npz"
        if is_ours(out):
            return
        if self.resume == "restart":
            check_unused(out, [])
        elif path.exists():
            self._read(path)
        else:
            self._check_unused(out)
            check_unused(out, ["last.xyz"], restart=False)

    def _read(self, path: Path) -> dict[str, np.ndarray]:
        """The state of the folder, if it is one with these settings."""
        state, settings = _read_state(path)
        changed = differences(settings, json.loads(json.dumps(self.settings)))
        if changed:
            text = f"{self.out} holds another simulation:\n  " + "\n  ".join(changed)
            raise OtherSettingsError(text, path.parent, force=False)
        return state

    def _open(self, out: Path) -> None:
        path = out / "state.npz"
        if self.resume == "restart":
            path.unlink(missing_ok=True)
        if path.exists():
            self.state = self._read(path)
            self.sizes = dict(zip(self.sizes, self.state["sizes"].tolist()))
        elif self.resume != "restart":
            self._check_unused(out)
        for name, size in self.sizes.items():
            with open(out / name, "ab") as file:
                found = file.tell()
                if found < size:
                    raise CheckpointError(
                        f"{out / name}: {found} bytes, and it had {size} when the state was saved; begin "
                        "anew with resume='restart'"
                    )
                file.truncate(size)
        with whole(out / "log.csv"):
            names, *lines = [line.split(",") for line in (out / "log.csv").read_text().splitlines()] or [[]]
            names = [_RENAMED_COLUMNS.get(name, name) for name in names]
            if any(len(line) < len(names) for line in lines):
                raise ValueError("a row has fewer cells than there are columns")
            self.rows = [
                {n: int(v) if n == "step" else float(v) for n, v in zip(names, line)} for line in lines
            ]

    def _check_unused(self, out: Path) -> None:
        """Raise ConfigError if there are files without a state, which would be overwritten."""
        used = [name for name in self.sizes if (out / name).exists() and (out / name).stat().st_size]
        log = (out / "log.csv").read_text(errors="replace").splitlines() if "log.csv" in used else []
        # A simulation that was killed before its first state has at most one frame.
        begun = bool(log) and log[0].startswith("step,") and len(log) <= 2
        if used and not begun and not ("log.csv" not in used and _frames(out / "trajectory.xyz") <= 1):
            raise ConfigError(
                f"{out}: there is {' and '.join(used)} and no state.npz to continue from, so that it would "
                "be overwritten; choose another folder with out=, or overwrite it with resume='restart'"
            )

    @property
    def path(self) -> Path:
        """The file of the state."""
        assert self.out is not None
        return self.out / "state.npz"

    @property
    def history(self) -> dict[str, np.ndarray]:
        """The log as columns."""
        return {
            name: np.array([row[name] for row in self.rows]) for name in (self.rows[0] if self.rows else ())
        }

    def append(self, atoms: Atoms, row: dict[str, float]) -> None:
        """Append a frame to the trajectory and a row to the log.

        Parameters
        ----------
        atoms : ase.Atoms
            The frame.
        row : dict of str to float
            The row, by name of the column.

        Raises
        ------
        SimulationError
            If the disk is full or the file cannot be written.
        """
        written = row
        if self.rows:  # a guard may have been added or left out since; the log keeps its columns
            row = {name: row.get(name, math.nan) for name in self.rows[0]}
        if self.out is not None:
            line = ",".join(repr(value) for value in row.values()) + "\n"
            self._append(self.out / "trajectory.xyz", _frame(atoms, written))
            self._append(self.out / "log.csv", line if self.rows else ",".join(row) + "\n" + line)
        self.rows.append(row)

    def _append(self, path: Path, text: str) -> None:
        content = text.encode()
        try:
            with open(path, "ab", buffering=0) as file:
                written = file.write(content)
        except OSError as error:
            raise SimulationError(
                f"{path}: cannot be written ({error.strerror}); make room, then start the same again"
            ) from error
        if written < len(content):
            raise SimulationError(f"{path}: the disk is full; make room, then start the same again")
        self.sizes[path.name] += written

    def save_state(self, atoms: Atoms, step: int, **more: Any) -> None:
        """Replace the state from which the simulation continues.

        Parameters
        ----------
        atoms : ase.Atoms
            The present frame.
        step : int
            Its step.
        **more
            Other arrays, numbers and texts to keep.
        """
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

    def save_last_frame(self, atoms: Atoms, step: int) -> None:
        """Replace ``last.xyz``.

        Parameters
        ----------
        atoms : ase.Atoms
            The frame.
        step : int
            Its step.
        """
        if self.out is not None:
            write_file(self.out / "last.xyz", _frame(atoms, {"step": step}))

    def check_frame(self, atoms: Atoms, step: int, bounds: Bounds, last_good: Atoms | None = None) -> None:
        """Raise SimulationError if a frame is out of bounds.

        Parameters
        ----------
        atoms : ase.Atoms
            The frame.
        step : int
            Its step.
        bounds : Bounds
            What it must keep.
        last_good : ase.Atoms, optional
            The frame before; None if there is none.
        """
        for violation, unknown in ((bounds.violation(atoms), False), (bounds.uncertainty(atoms), True)):
            if violation:
                raise self.explosion(last_good, step - 1, f"step {step}: {violation}", unknown=unknown)

    def explosion(
        self, last_good: Atoms | None, step: int, what: str, *, unknown: bool = False
    ) -> SimulationError:
        """The error of a simulation that cannot go on; the last good frame is written to ``last.xyz``.

        Parameters
        ----------
        last_good : ase.Atoms or None
            The last good frame, which becomes an attribute of the error; None if the first frame is bad.
        step : int
            Its step.
        what : str
            What happened.
        unknown : bool
            The model does not know the forces there: it is not the step that is too long.
        """
        if last_good is None:
            error = SimulationError(
                f"{what}. It begins so: look at the structure, or at what the model was trained on"
            )
        else:
            self.save_last_frame(last_good, step)
            kept = "`last_good` of this error" if self.out is None else self.out / "last.xyz"
            advice = _UNKNOWN if unknown else _ADVICE[self.settings["what"]]
            error = SimulationError(f"{what}. The last good frame, of step {step}, is {kept}. {advice}")
        error.last_good = last_good
        return error


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Turn errors of a damaged file of a simulation into a CheckpointError that names the file.

    Parameters
    ----------
    path : Path
        The file from which the block takes its values.

    Raises
    ------
    CheckpointError
        For every error of the block that molequi does not explain itself.

    Examples
    --------
    >>> with whole(Path("md/state.npz")):
    ...     {}["step"]
    Traceback (most recent call last):
    molequi.errors.CheckpointError: md/state.npz: not a whole file of a simulation (no 'step'); begin ...
    """
    try:
        yield
    except MolequiError:
        raise
    except Exception as error:  # zipfile, zlib, numpy and json each have their own
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{path}: not a whole file of a simulation ({what}); begin anew with resume='restart'"
        ) from error


def restore_atoms(atoms: Atoms, state: Mapping[str, np.ndarray], path: Path) -> None:
    """Set positions, momenta and cell to those of a saved state.

    Parameters
    ----------
    atoms : ase.Atoms
        The structure, with a calculator.
    state : mapping of str to array
        The state of `SimulationFiles`.
    path : Path
        Its file, for messages.

    Raises
    ------
    CheckpointError
        If the state is one of another number of atoms.
    ConfigError
        If the calculator finds another energy than when the state was saved.
    """
    with whole(path):
        if len(state["positions"]) != len(atoms):
            raise ValueError(f"positions of {len(state['positions'])} atoms instead of {len(atoms)}")
        atoms.set_cell(state["cell"])
        atoms.set_positions(state["positions"], apply_constraint=False)
        atoms.set_momenta(state["momenta"], apply_constraint=False)
    energy, before = atoms.get_potential_energy(), float(state["energy"])
    if not abs(energy - before) <= 1e-4 * len(atoms):
        raise ConfigError(
            f"where the simulation stands the energy is {energy:.6f} eV and was {before:.6f} eV: the "
            "calculator is another one. Begin anew with resume='restart', or choose another folder with out="
        )


def _read_state(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The state and its settings."""
    with whole(path):
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            state = {name: arrays[name] for name in arrays.files}
        atoms = len(state["positions"])
        shapes = {"positions": (atoms, 3), "momenta": (atoms, 3), "cell": (3, 3), "energy": (), "step": ()}
        for name, shape in {**shapes, "sizes": (2,)}.items():
            check_entry(name, state[name], shape)
        for name in ("step", "sizes"):
            if state[name].dtype.kind != "i" or (state[name] < 0).any():
                raise ValueError(f"{name} is {state[name].tolist()}")
        return state, _present_settings(json.loads(str(state["settings"])))


def check_entry(name: str, value: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise ValueError for an entry of a state that is damaged.

    Parameters
    ----------
    name : str
        Name of the entry.
    value : array
        Its value.
    shape : tuple of int
        The shape that it must have.
    """
    if value.shape != shape:
        raise ValueError(f"{name} has the shape {value.shape} instead of {shape}")
    if value.dtype.kind not in "iuf" or not np.isfinite(value).all():
        raise ValueError(f"{name} is not finite or no number")


def _present_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under their present names, from those that an earlier version may have written."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if name in _RENAMED_SETTINGS:
            group, key = _RENAMED_SETTINGS[name]
            found.setdefault(group, {})[key] = value
        else:
            found[name] = value
    if found.get("ensemble") == "langevin":
        found["ensemble"] = "nvt"
    for name, added in _ADDED_SETTINGS.items():
        if name in found:
            found[name] = added | found[name]
    return found


def _frame(atoms: Atoms, row: Mapping[str, float]) -> str:
    """One frame of extended XYZ, without the labels that the structure was read with.

    Masses are written if they are not the standard ones, and fixed atoms as ``move_mask``. The format has no
    other constraints. Whatever else a model predicts is written under its name.
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
        _add_predictions(frame, atoms)
    text = io.StringIO()
    write(text, frame, format="extxyz")
    return text.getvalue()


def _add_predictions(frame: Atoms, atoms: Atoms) -> None:
    """Add what a model predicts beside energy, forces and stress: they are in its results already."""
    if not isinstance(atoms.calc, Calculator):
        return
    for name, quantity in atoms.calc.model.quantities.items():
        value = atoms.calc.results.get(name)
        if name in ("energy", "forces", "stress") or value is None:
            continue
        if name in all_properties:
            frame.calc.results[name] = np.array(value)
        elif quantity.per == "node":
            frame.set_array(name, np.asarray(value).reshape(len(frame), -1))
        else:
            frame.info[name] = np.asarray(value).tolist()


def _frames(path: Path) -> int:
    """Number of frames of a trajectory, as far as its first line says; 2 if it is no trajectory."""
    with open(path, errors="replace") as file:
        first, rest = file.readline().strip(), sum(1 for _ in file)
    return -(-(rest + 1) // (int(first) + 2)) if first.isdigit() else 2
