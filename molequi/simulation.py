"""Molecular dynamics and relaxation with any ASE calculator, in files that survive a kill.

A folder holds trajectory.xyz (extended XYZ: energy in eV, forces in eV/Å), log.csv, last.xyz (where it stands or the last
good frame) and state.npz, from which the same call goes on as if it had never stopped.
"""

import hashlib
import io
import json
import math
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from ase import Atoms, units
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.verlet import VelocityVerlet
from ase.optimize import LBFGS

from molequi.calculator import Calculator
from molequi.errors import CheckpointError, ConfigError, DataError, MolequiError, SimulationError
from molequi.model import Model
from molequi.training.folder import differences, locked, write_or_tell
from molequi.training.process import listening

KEPT = ("charge", "spin")      # of atoms.info, in every frame written


class Drift(NamedTuple):
    """slope: of a straight line through the energies, meV/atom/ps. rms: of what remains around it, meV/atom."""

    slope: float
    rms: float


def drift(times, energies, n_atoms: int) -> Drift:
    """How well a simulation keeps its total energy: times in ps, energies in eV, both (T,), T ≥ 3.

    >>> drift([0.0, 1.0, 2.0], [5.0, 5.001, 5.002], n_atoms=2).slope
    0.5
    """
    times, energies = np.asarray(times, dtype=float), np.asarray(energies, dtype=float)
    if times.ndim != 1 or times.shape != energies.shape or len(times) < 3 or n_atoms < 1:
        raise DataError(f"times {times.shape}, energies {energies.shape}, {n_atoms} atoms: wanted two series of at least three")
    t, e = times - times.mean(), (energies - energies.mean()) * 1e3 / n_atoms      # centred: total energies are large
    slope = (t @ e) / (t @ t)
    return Drift(round(float(slope), 12), float(np.sqrt(np.mean((e - slope * t) ** 2))))


@dataclass(frozen=True)
class Dynamics:
    """What `md` leaves. history: columns of log.csv, among them time_ps, E_pot, E_kin, E_tot (eV) and T (K)."""

    atoms: Atoms
    steps: int
    timestep: float
    history: dict[str, np.ndarray]
    out: Path | None

    @property
    def drift(self) -> Drift:
        """Slope and rms of the total energy, meaningful for `ensemble="nve"`."""
        return drift(self.history["time_ps"], self.history["E_tot"], len(self.atoms))

    def __str__(self) -> str:
        second = self.history["T"][len(self.history["T"]) // 2:]
        text = f"{self.steps} steps, {self.steps * self.timestep / 1e3:g} ps; mean T of the second half {second.mean():.1f} K"
        if len(self.history["time_ps"]) >= 3:
            text += f"; total energy {self.drift.slope:+.2e} meV/atom/ps, rms {self.drift.rms:.2e} meV/atom"
        return text + (f"\n{self.out}: trajectory.xyz, log.csv, last.xyz" if self.out else "")


@dataclass(frozen=True)
class Relaxation:
    """What `relax` leaves. energy in eV, fmax in eV/Å; history: columns of log.csv."""

    atoms: Atoms
    steps: int
    converged: bool
    energy: float
    fmax: float
    history: dict[str, np.ndarray]
    out: Path | None

    def __str__(self) -> str:
        text = f"{'converged' if self.converged else 'NOT converged'} in {self.steps} steps: " \
               f"energy {self.energy:.6f} eV, largest force {self.fmax:.2e} eV/Å"
        return text + (f"\n{self.out}: trajectory.xyz, log.csv, last.xyz" if self.out else "")


def md(
    atoms: "Atoms | str | os.PathLike", calculator: "Any | Model | str | os.PathLike", *,
    ensemble: Literal["nve", "langevin", "npt"] = "nve", temperature: float | None = 300.0, timestep: float = 0.5,
    time: float | None = None, steps: int | None = None, pressure: float = 1.0, friction: float = 0.01,
    barostat_time: float = 1000.0, seed: int = 0, out: str | os.PathLike | None = "md", every: int = 20,
    resume: Literal["auto", "restart"] = "auto", index: int = 0, device: str = "cpu",
    dtype: Literal["float32", "float64"] = "float64", max_heating: float = 1e4, max_force: float = 1e3, progress: bool = True,
) -> Dynamics:
    """Molecular dynamics of a copy of a structure.

    atoms: a structure, or a file that ASE reads (frame `index`). calculator: any ASE calculator, a Model or its file (these run on
    `device` in `dtype`).
    ensemble: "nve" is velocity Verlet; "langevin" and "npt" are ASE's BAOAB Langevin (Leimkuhler and Matthews 2013), "npt" with the
    Langevin barostat of Quigley and Probert (2004), which changes the volume and not the shape. These sample the right ensemble also of
    small and stiff systems, unlike Berendsen's, and their whole state is a few numbers, unlike chains of thermostats.
    temperature: K; velocities are drawn at it, without drift and (in a molecule) rotation for "nve". None, for "nve" only, keeps those given.
    timestep: fs. time: ps, or steps. pressure: bar. friction: 1/fs. barostat_time: fs.
    out: folder of the files, None for none; every: steps between frames, rows of the log and saved states.
    resume: "auto" goes on with what is in `out`, also to a longer time; "restart" begins anew.
    max_heating (K), max_force (eV/Å): beyond them the simulation stops, with the last good frame in last.xyz.

    Ctrl-C and SIGTERM end it after the present step, saved. Raises ConfigError for settings, also if they differ from those in `out`; DataError
    for the structure; SimulationError where it explodes; CheckpointError for a damaged state; TrainingError if the folder is in use.
    """
    settings = _checked(dict(
        ensemble=ensemble, temperature=temperature, timestep=timestep, pressure=pressure, friction=friction,
        barostat_time=barostat_time, seed=seed, every=every))
    total = _length(time, steps, timestep)
    atoms = _structure(atoms, index)
    atoms.calc = _calculator(calculator, device, dtype)
    if ensemble == "npt" and not (atoms.pbc.all() and atoms.cell.volume > 0 and "stress" in _properties(atoms.calc)):
        raise ConfigError(f"ensemble='npt' with pbc={atoms.pbc.tolist()}, a cell of {atoms.cell.volume:g} Å^3 and a calculator of "
                          f"{', '.join(_properties(atoms.calc))}: wanted a structure periodic in three directions, and stress")
    settings["structure"] = _digest(atoms, with_momenta=temperature is None)
    rng = np.random.default_rng(seed)
    freedom = atoms.get_number_of_degrees_of_freedom()
    if temperature is not None:
        freedom -= _draw_velocities(atoms, temperature, rng, still=ensemble == "nve")
    store = _Store(out, "md", settings, resume)
    with store, _Progress("md", total, progress) as shown, listening() as heard:
        state = store.state
        step = int(state["step"]) if state else 0
        if state:
            _restore(atoms, state, rng)
        integrator = _integrator(atoms, settings, rng)
        if state and ensemble == "npt":
            integrator.p_eps, integrator.force_eps = float(state["p_eps"]), float(state["force_eps"])
        kelvin = 2 / units.kB / max(freedom, 1)
        hottest = max_heating + (atoms.get_kinetic_energy() * kelvin if temperature is None else temperature)

        def row() -> dict[str, float]:
            potential, kinetic = float(atoms.get_potential_energy()), float(atoms.get_kinetic_energy())
            found = {"step": step, "time_ps": step * timestep / 1e3, "E_pot": potential, "E_kin": kinetic,
                     "E_tot": potential + kinetic, "T": kinetic * kelvin}
            if atoms.pbc.all():
                found["volume"] = float(atoms.cell.volume)
                if "stress" in _properties(atoms.calc):
                    found["pressure"] = float(-atoms.get_stress(include_ideal_gas=True)[:3].mean() / units.bar)
            return found

        def save() -> None:
            extra = dict(p_eps=integrator.p_eps, force_eps=integrator.force_eps) if ensemble == "npt" else {}
            store.save(atoms, step, rng=np.array(json.dumps(rng.bit_generator.state)), **extra)

        _check(store, None, atoms, step, max_force, hottest, kelvin)
        if state is None:
            store.record(atoms, row())
            save()
        while step < total:
            good = atoms.copy()
            try:
                integrator.step()
            except MolequiError as error:
                raise store.stopped(good, step, f"step {step + 1}: {error}") from error
            step += 1
            _check(store, good, atoms, step, max_force, hottest, kelvin)
            if step % every == 0:
                store.record(atoms, row())
                save()
                shown.at(step, f"T {store.rows[-1]['T']:.0f} K, E_tot {store.rows[-1]['E_tot']:.4f} eV")
            if heard:
                break
        if step % every:
            save()
        store.last(atoms, step)
        store.leave(heard)
    return Dynamics(atoms, step, timestep, store.history, store.out)


def relax(
    atoms: "Atoms | str | os.PathLike", calculator: "Any | Model | str | os.PathLike", *, fmax: float = 0.01, steps: int = 500,
    cell: bool = False, out: str | os.PathLike | None = "relax", every: int = 1, resume: Literal["auto", "restart"] = "auto", index: int = 0,
    device: str = "cpu", dtype: Literal["float32", "float64"] = "float64", progress: bool = True,
) -> Relaxation:
    """Minimise the energy of a copy of a structure with LBFGS, positions and, with `cell`, the lattice (ASE's FrechetCellFilter).

    atoms, calculator, index, device, dtype, out, resume: as for `md`. fmax: eV/Å, the largest force at which it is done. steps: at most that
    many; a second call goes on from the last saved positions (with a fresh LBFGS history). every: steps between frames.
    Raises SimulationError for forces that are not finite, and as `md` for the rest.
    """
    settings = _checked(dict(fmax=fmax, steps=steps, every=every)) | {"cell": cell}
    del settings["steps"], settings["fmax"]
    atoms = _structure(atoms, index)
    atoms.calc = _calculator(calculator, device, dtype)
    if cell and not (atoms.pbc.any() and atoms.cell.volume > 0 and "stress" in _properties(atoms.calc)):
        raise ConfigError(f"cell=True with pbc={atoms.pbc.tolist()} and a cell of {atoms.cell.volume:g} Å^3: wanted a periodic structure, and "
                          "a calculator with stress")
    settings["structure"] = _digest(atoms, with_momenta=False)
    store = _Store(out, "relax", settings, resume)
    with store, _Progress("relax", steps, progress) as shown, listening() as heard:
        before = int(store.state["step"]) if store.state else 0
        if store.state:
            _restore(atoms, store.state, None)
        step, done = before, False
        target = FrechetCellFilter(atoms) if cell else atoms
        if len(target) and not np.isfinite(atoms.get_forces()).all():
            _check(store, None, atoms, step, math.inf)

        def largest() -> float:
            return float(np.linalg.norm(target.get_forces(), axis=1).max())

        def record() -> None:
            store.record(atoms, {"step": step, "E_pot": float(atoms.get_potential_energy()), "fmax": largest(),
                                 **({"volume": float(atoms.cell.volume)} if atoms.pbc.all() else {})})
            store.save(atoms, step)

        with LBFGS(target, logfile=None) as optimizer:
            good = atoms.copy()
            for done in optimizer.irun(fmax=fmax, steps=max(steps - before, 0)):
                step = before + optimizer.nsteps
                _check(store, good, atoms, step, math.inf)
                if step % every == 0 and (not store.rows or store.rows[-1]["step"] < step):
                    record()
                    shown.at(step, f"largest force {largest():.3g} eV/Å")
                good = atoms.copy()
                if heard:
                    break
        if step > before and step % every:
            store.save(atoms, step)
        store.last(atoms, step)
        store.leave(heard)
        return Relaxation(atoms, step, bool(done), float(atoms.get_potential_energy()), largest(), store.history, store.out)


def _integrator(atoms: Atoms, settings: Mapping[str, Any], rng: np.random.Generator):
    dt = settings["timestep"] * units.fs
    if settings["ensemble"] == "nve":
        return VelocityVerlet(atoms, dt)
    kT = units.kB * settings["temperature"]
    barostat: dict[str, Any] = {}
    if settings["ensemble"] == "npt":
        tau = settings["barostat_time"] * units.fs
        # W = (3 N + 3) k T τ^2, Martyna, Tobias and Klein (1994), eq. 2.9 with d = 3.
        barostat = {"externalstress": -settings["pressure"] * units.bar, "P_tau": tau, "P_mass": (3 * len(atoms) + 3) * kT * tau**2}
    return LangevinBAOAB(atoms, dt, temperature_K=settings["temperature"], T_tau=units.fs / settings["friction"], rng=rng,
                         hydrostatic=True, **barostat)


def _draw_velocities(atoms: Atoms, temperature: float, rng: np.random.Generator, *, still: bool) -> int:
    """Maxwell's velocities; if still, without those of the whole, scaled to the temperature. Returns how many directions were stilled."""
    masses = atoms.get_masses()
    atoms.set_momenta(rng.standard_normal((len(atoms), 3)) * np.sqrt(masses * units.kB * temperature)[:, None])
    if not still or atoms.constraints:
        return 0
    velocities = atoms.get_velocities()
    velocities -= masses @ velocities / masses.sum()
    stilled = 3
    if not atoms.pbc.any():
        arms = atoms.positions - atoms.get_center_of_mass()
        inertia = np.einsum("n,nij->ij", masses, (arms**2).sum(1)[:, None, None] * np.eye(3) - arms[:, :, None] * arms[:, None, :])
        spin = np.linalg.pinv(inertia, rcond=1e-8) @ np.cross(arms, masses[:, None] * velocities).sum(0)
        velocities -= np.cross(spin, arms)
        stilled += int(np.linalg.matrix_rank(inertia, tol=1e-8 * np.linalg.norm(inertia)))
    atoms.set_velocities(velocities)
    freedom, energy = 3 * len(atoms) - stilled, atoms.get_kinetic_energy()
    atoms.set_momenta(atoms.get_momenta() * (math.sqrt(freedom * units.kB * temperature / 2 / energy) if freedom > 0 and energy > 0 else 0.0))
    return stilled


def _check(store: "_Store", good: Atoms | None, atoms: Atoms, step: int, max_force: float, hottest: float = math.inf,
           kelvin: float = 0.0) -> None:
    """Raises SimulationError, the last good frame saved, where forces or temperature have left all bounds."""
    force = np.linalg.norm(atoms.get_forces(), axis=1)
    heat = atoms.get_kinetic_energy() * kelvin
    if np.isfinite(atoms.get_potential_energy()) and (force <= max_force).all() and heat <= hottest:
        return
    moving = atoms.get_kinetic_energy() > 0
    if not (force <= max_force).all():
        k = int(np.argmax(~(force <= max_force) * np.where(np.isfinite(force), force, np.inf)))
        what = f"the force on atom {k} ({atoms.symbols[k]}) is {force[k]:g} eV/Å, allowed are finite forces up to {max_force:g}"
    elif not heat <= hottest:
        k = int(np.argmax(np.linalg.norm(atoms.get_momenta(), axis=1) / np.sqrt(atoms.get_masses()))) if moving else 0
        what = f"the temperature is {heat:.0f} K, allowed are {hottest:.0f}; fastest is atom {k} ({atoms.symbols[k]})"
    else:
        what = f"the energy is {atoms.get_potential_energy()}"
    raise store.stopped(good, step - 1, f"step {step}: {what}")


class _Store:
    """Files of one run. A frame and a row are one write each; the state says how long both files are, so that what came after is cut off."""

    def __init__(self, out: "str | os.PathLike | None", kind: str, settings: dict[str, Any], resume: str):
        if resume not in ("auto", "restart"):
            raise ConfigError(f"resume={resume!r}: wanted 'auto' or 'restart'")
        self.out = None if out is None else Path(out)
        self.settings, self.resume = {"what": kind, **settings}, resume
        self.rows: list[dict[str, float]] = []
        self.state: dict[str, np.ndarray] | None = None
        self.sizes = {"trajectory.xyz": 0, "log.csv": 0}

    def __enter__(self) -> "_Store":
        self.lock = nullcontext() if self.out is None else locked(self.out)
        self.lock.__enter__()
        try:
            if self.out is not None:
                self._open()
        except BaseException:
            self.lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *error) -> None:
        self.lock.__exit__(None, None, None)

    def _open(self) -> None:
        path = self.out / "state.npz"
        if self.resume == "restart":
            path.unlink(missing_ok=True)
        if path.exists():
            try:
                with np.load(path, allow_pickle=False) as file:
                    self.state = {name: file[name] for name in file.files}
                settings = json.loads(str(self.state["settings"]))
                self.sizes = dict(zip(self.sizes, self.state["sizes"].tolist()))
            except Exception as error:
                raise CheckpointError(f"{path}: not a whole state of a simulation ({error}); begin anew with resume='restart'") from error
            changed = differences(settings, json.loads(json.dumps(self.settings)))
            if changed:
                raise ConfigError(f"{self.out} holds another simulation:\n  " + "\n  ".join(changed) +
                                  "\nBegin anew with resume='restart', or choose another folder with out=")
        for name, size in self.sizes.items():
            found = (self.out / name).stat().st_size if (self.out / name).exists() else 0
            if found < size:
                raise CheckpointError(f"{self.out / name}: {found} bytes, and there were {size} when the state was saved; begin anew with "
                                      "resume='restart'")
            with open(self.out / name, "ab") as file:
                file.truncate(size)
        self.rows = _rows((self.out / "log.csv").read_text(encoding="utf-8"))

    @property
    def history(self) -> dict[str, np.ndarray]:
        return {name: np.array([row[name] for row in self.rows]) for name in (self.rows[0] if self.rows else ())}

    def record(self, atoms: Atoms, row: dict[str, float]) -> None:
        """A frame and a row of the log."""
        line = ",".join(repr(value) for value in row.values()) + "\n"
        self._append("trajectory.xyz", _frame(atoms, row))
        self._append("log.csv", line if self.rows else ",".join(row) + "\n" + line)
        self.rows.append(row)

    def _append(self, name: str, text: str) -> None:
        if self.out is None:
            return
        try:
            with open(self.out / name, "ab", buffering=0) as file:
                self.sizes[name] += file.write(text.encode())
        except OSError as error:
            raise SimulationError(f"{self.out / name}: cannot be written ({error.strerror}); make room, then start the same again") from error

    def save(self, atoms: Atoms, step: int, **more) -> None:
        """The state from which this goes on."""
        if self.out is None:
            return
        arrays = {"step": np.array(step), "positions": atoms.positions, "momenta": atoms.get_momenta(), "cell": atoms.cell.array,
                  "energy": np.array(atoms.get_potential_energy()), "sizes": np.array(list(self.sizes.values())),
                  "settings": np.array(json.dumps(self.settings)), **more}

        def written(path: Path) -> None:
            with open(path, "wb") as file:
                np.savez(file, allow_pickle=False, **arrays)

        write_or_tell(self.out / "state.npz", written)

    def last(self, atoms: Atoms, step: int) -> None:
        if self.out is not None:
            write_or_tell(self.out / "last.xyz", lambda path: path.write_text(_frame(atoms, {"step": step}), encoding="utf-8"))

    def stopped(self, good: Atoms | None, step: int, what: str) -> SimulationError:
        """The error for an explosion, after the last good frame is saved; it is also in the error's `last_good`."""
        text = f"{what}. The structure to begin with is already so"
        if good is not None:
            self.last(good, step)
            kept = "in last_good of this error" if self.out is None else f"in {self.out / 'last.xyz'}"
            text = f"{what}. The last good frame, of step {step}, is {kept}. Use a shorter time step, or train on such structures"
        error = SimulationError(text)
        error.last_good = good
        return error

    def leave(self, heard: list[int]) -> None:
        """Ends the process as the signal that was heard asked; all is saved."""
        import signal

        if heard:
            raise SystemExit(143) if heard[0] == signal.SIGTERM else KeyboardInterrupt


def _rows(text: str) -> list[dict[str, float]]:
    names, *lines = [line.split(",") for line in text.splitlines()] or [[]]
    return [{n: (int if n == "step" else float)(v) for n, v in zip(names, line)} for line in lines]


def _frame(atoms: Atoms, row: Mapping[str, float]) -> str:
    """One frame of extended XYZ, with nothing of the labels that the structure was read with."""
    from ase.calculators.singlepoint import SinglePointCalculator

    frame = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if atoms.has("momenta"):
        frame.set_momenta(atoms.get_momenta())
    frame.info = {k: atoms.info[k] for k in KEPT if k in atoms.info} | {k: row[k] for k in ("step", "time_ps") if k in row}
    if atoms.calc is not None:
        frame.calc = SinglePointCalculator(frame, energy=atoms.get_potential_energy(), forces=atoms.get_forces(apply_constraint=False))
    text = io.StringIO()
    write(text, frame, format="extxyz")
    return text.getvalue()


def _restore(atoms: Atoms, state: Mapping[str, np.ndarray], rng: np.random.Generator | None) -> None:
    atoms.set_cell(state["cell"])
    atoms.set_positions(state["positions"], apply_constraint=False)
    atoms.set_momenta(state["momenta"], apply_constraint=False)
    if rng is not None:
        rng.bit_generator.state = json.loads(str(state["rng"]))
    energy, before = atoms.get_potential_energy(), float(state["energy"])
    if not abs(energy - before) <= 1e-4 * len(atoms):
        raise ConfigError(f"the energy where the simulation stands is {energy:.6f} eV with this calculator, and was {before:.6f} eV: it is another "
                          "one. Begin anew with resume='restart', or choose another folder with out=")


def _structure(given: "Atoms | str | os.PathLike", index: int) -> Atoms:
    """A copy of the structure, or frame `index` of the file."""
    where = "the structure"
    if isinstance(given, (str, os.PathLike)):
        where = f"{os.fspath(given)}, frame {index}"
        try:
            given = read(given, index=index)
        except Exception as error:      # ASE's readers raise anything
            raise DataError(f"{where}: cannot be read ({type(error).__name__}: {error}); wanted a file that ASE reads") from error
    if not isinstance(given, Atoms):
        raise DataError(f"{where} is {type(given).__name__}; wanted one ase.Atoms or the path of a file")
    if len(given) == 0:
        raise DataError(f"{where} has no atoms")
    return given.copy()


def _calculator(given: Any, device: str, dtype: str):
    if isinstance(given, (str, os.PathLike, Model)):
        return Calculator(given, device=device, dtype=dtype)
    if not hasattr(given, "get_property"):
        raise ConfigError(f"calculator is {type(given).__name__}; wanted an ASE calculator, a Model or the path of a model file")
    return given


def _properties(calculator) -> list[str]:
    return list(getattr(calculator, "implemented_properties", []))


def _digest(atoms: Atoms, *, with_momenta: bool) -> str:
    out = hashlib.sha256()
    for array in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, *([atoms.get_momenta()] if with_momenta else [])):
        out.update(np.ascontiguousarray(array).tobytes())
    out.update(repr([atoms.info.get(k) for k in KEPT]).encode())
    return out.hexdigest()[:16]


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, or a ConfigError that names the first that is out of range."""
    known = ("nve", "langevin", "npt")
    if settings.get("ensemble", "nve") not in known:
        raise ConfigError(f"ensemble={settings['ensemble']!r}: wanted one of {', '.join(known)}")
    if "temperature" in settings and settings["temperature"] is None and settings["ensemble"] != "nve":
        raise ConfigError(f"temperature=None: ensemble={settings['ensemble']!r} needs one in K")
    for name, value in settings.items():
        if name == "ensemble" or value is None:
            continue
        number = isinstance(value, int if name in ("every", "seed", "steps") else (int, float)) and not isinstance(value, bool)
        least = -math.inf if name == "pressure" else 0
        if not number or not math.isfinite(value) or value < least or (value == 0 and name not in ("temperature", "seed", "pressure", "steps")):
            raise ConfigError(f"{name}={value!r}: wanted a {'number' if least else 'positive number'}")
    return {k: float(v) if isinstance(v, int) and k not in ("every", "seed", "steps") else v for k, v in settings.items()}


def _length(time: float | None, steps: int | None, timestep: float) -> int:
    if (time is None) == (steps is None):
        raise ConfigError(f"time={time} ps and steps={steps}: wanted one of the two")
    if steps is None:
        if not time >= 0 or not math.isfinite(time):
            raise ConfigError(f"time={time!r}: wanted ps, zero or more")
        return round(time * 1e3 / timestep)
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
        raise ConfigError(f"steps={steps!r}: wanted a whole number, zero or more")
    return steps


class _Progress:
    """A bar with the time left on a terminal; elsewhere a line now and then."""

    def __init__(self, name: str, total: int, wanted: bool):
        from tqdm import tqdm

        self.bar = tqdm(total=total, desc=name, unit="step", disable=not wanted, dynamic_ncols=True, mininterval=0.5)
        if wanted and not self.bar.fp.isatty():
            self.bar.mininterval = 15.0

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def at(self, step: int, text: str) -> None:
        if not self.bar.disable:
            if self.bar.n == 0:
                self.bar.initial = max(0, step - 1)
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(step - self.bar.n)
