"""A guard of dynamics: watches how far it is from the training data, and collects the frames to label."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.io import read, write
from ase.neighborlist import neighbor_list

from molequi.data.checks import TOO_CLOSE
from molequi.errors import ConfigError, SimulationError
from molequi.inference.selection import select
from molequi.interfaces.ase import Calculator
from molequi.last_layer import LaplaceEnsemble
from molequi.simulation.bounds import forces_std
from molequi.simulation.files import whole
from molequi.util.files import write_results
from molequi.util.options import Options
from molequi.util.signature import check_keywords

TO_LABEL = "to_label.xyz"
_KEPT = 200  # frames that are remembered; then every second one is forgotten
_FACTOR = 1.2  # measured, see docs/how-to/uncertainty.md


@check_keywords()
@dataclass(frozen=True)
class Guard(Options):
    """Stops a simulation where the model does not know the forces, and writes the frames to label.

    By default it stops where an atom is farther from the training data than 1.2 times the 99 % quantile of
    the farthest atoms of the validation structures, by the distances of `molequi.environments`. These are of
    the features that heads read, and take a pass through the backbone without derivatives. If the simulation
    ends at a bound of `Limits`, frames are written, too.

    Parameters
    ----------
    max_std : float, > 0, or "auto"
        "auto" is the rule above, for a model of `molequi.laplace`. A number stops the simulation where the
        standard deviation of the force on an atom is larger, in eV/Å.
    every : int, > 0, optional
        Steps from one look to the next. By default 2, and 20 for a number, because the standard deviations of
        a model of `molequi.laplace` take backward passes. Otherwise only energy and forces are computed.
    frames : int, > 0
        How many frames are written: those on the way to the end that `molequi.select` chooses.
    """

    max_std: Annotated[float, Gt(0)] | Literal["auto"] = "auto"
    every: Annotated[int, Gt(0)] | None = None
    frames: Annotated[int, Ge(1)] = 10
    shorthand: ClassVar[str] = "max_std"


class Watch:
    """The guard of one simulation.

    Parameters
    ----------
    guard : Guard
        Its options.
    calculator : Calculator
        A calculator of a model with standard deviations of the forces.
    out : Path or None
        Folder of the frames.

    Attributes
    ----------
    calculator : Calculator
        Computes the standard deviations.
    drives : Calculator
        What the dynamics use: without standard deviations, if these cost more.
    column : str
        What is watched: "distance" or "forces_std".
    limit : float
        The largest value that does not stop the simulation.
    every : int
        Steps from one look to the next.

    Raises
    ------
    ConfigError
        For another calculator, and for "auto" of a model that keeps no environments of its training data.
    """

    def __init__(self, guard: Guard, calculator: BaseCalculator, out: Path | None) -> None:
        model = getattr(calculator, "model", None)
        if not isinstance(calculator, Calculator) or "forces" not in getattr(model, "stds", {}):
            raise ConfigError(
                "guard: the calculator gives no standard deviation of the forces; wanted an Ensemble, a "
                "model of mq.laplace(model, train, valid), or a Calculator of one"
            )
        self.guard, self.calculator, self.out = guard, calculator, out
        self.limit = _limit(guard, calculator)
        self.column = "distance" if guard.max_std == "auto" else "forces_std"
        self.every = guard.every or (2 if guard.max_std == "auto" else 20)
        self.drives = calculator
        if isinstance(calculator.model, LaplaceEnsemble):
            self.drives = Calculator(
                calculator.model.mean_model, device=calculator.model.device, skin=calculator.skin
            )
            self.drives.model.use_program(calculator.model.program)
        self._frames: list[Atoms] = []
        self._last: tuple[int, np.ndarray] = (-1, np.empty(0))
        self._stride, self._looks = 1, 0

    def measure(self, atoms: Atoms, step: int) -> np.ndarray:
        """Distance of the environment of each atom, or standard deviation of the force on it in eV/Å.

        Parameters
        ----------
        atoms : ase.Atoms
            The present frame.
        step : int
            Its step.
        """
        if self._last[0] != step:
            self._last = step, self._measured(atoms)
        return self._last[1]

    def _measured(self, atoms: Atoms) -> np.ndarray:
        if self.column == "distance":
            assert isinstance(self.calculator.model, LaplaceEnsemble)
            distances = self.calculator.model.distances(self.calculator.graph(atoms))
            return np.asarray(distances.double().cpu().numpy())
        if atoms.calc is not self.calculator:
            self.calculator.calculate(atoms)
        std = forces_std(self.calculator)
        assert std is not None
        return std

    def look(self, atoms: Atoms, step: int, time: float) -> str:
        """What is wrong with a frame, in words, if it is time to look; the frame is remembered.

        Parameters
        ----------
        atoms : ase.Atoms
            The frame.
        step : int
            Its step.
        time : float
            Its time in ps.
        """
        if step % self.every:
            return ""
        found = self.measure(atoms, step)
        self._remember(atoms, step, time, float(found.max()))
        if (found <= self.limit).all():
            return ""
        k = int(np.where(np.isfinite(found), found, np.inf).argmax())
        atom = f"atom {k} ({atoms.symbols[k]})"
        if self.column == "distance":
            return (
                f"the environment of {atom} is unlike those of the training data: its distance is "
                f"{found[k]:.3g}, more than {self.limit:.3g} of the guard"
            )
        return (
            f"the force on {atom} is uncertain: its standard deviation is {found[k]:.3g} eV/Å, more than "
            f"{self.limit:.3g} of the guard"
        )

    def _remember(self, atoms: Atoms, step: int, time: float, value: float) -> None:
        frame = atoms.copy()
        frame.info |= {"step": step, "time_ps": time, "uncertainty": value}
        if self._looks % self._stride == 0 or value > self.limit:
            self._frames.append(frame)
        self._looks += 1
        if len(self._frames) > _KEPT:
            self._frames, self._stride = self._frames[::2], 2 * self._stride

    def resume(self, step: int | None) -> None:
        """Remember the frames that an earlier call wrote, up to a step; without a step remove its file.

        Parameters
        ----------
        step : int or None
            The step at which the simulation goes on; None if it begins.
        """
        path = None if self.out is None else self.out / TO_LABEL
        if path is None or not path.exists():
            return
        if step is None:
            path.unlink()
            return
        with whole(path):
            found = read(path, ":", format="extxyz")
            self._frames = [frame for frame in found if int(frame.info["step"]) <= step]

    @contextmanager
    def frames_on_failure(self) -> Iterator[None]:
        """Write the frames to label if the block ends with a SimulationError, and say so in its message."""
        try:
            yield
        except SimulationError as error:
            frames = self.to_label(str(error).partition(". ")[0])
            if not frames:
                raise
            where = "`to_label` of this error"
            if self.out is not None:
                path = self.out / TO_LABEL
                write_results(path, lambda temporary: write(temporary, frames, format="extxyz"))
                where = str(path)
            hint = (
                f"{error}. The guard chose {len(frames)} frames to label: {where}. Label them, train with "
                "them, and simulate again; mq.active_learning does this"
            )
            raised = SimulationError(hint)
            raised.last_good, raised.to_label = error.last_good, frames
            raise raised from error

    def to_label(self, reason: str) -> list[Atoms]:
        """The frames to label, in their order; the uncertain ones of those that were looked at.

        Parameters
        ----------
        reason : str
            Why the simulation ended, for ``info["reason"]``.
        """
        good = [f for f in self._frames if not np.isnan(f.info["uncertainty"]) and is_possible(f)]
        if len(good) > self.guard.frames:
            plain = [_bare(frame) for frame in good]
            chosen = select(self.calculator.model, plain, self.guard.frames, progress=False)
            good = [good[k] for k in sorted(chosen.indices.tolist())]
        found = []
        for frame in good:
            new = _bare(frame)
            new.info |= {name: frame.info[name] for name in ("step", "time_ps", "uncertainty")}
            new.info["reason"] = reason
            found.append(new)
        return found


def is_possible(frame: Atoms) -> bool:
    """Whether a frame may be labelled: no two atoms are closer than in any bond.

    Parameters
    ----------
    frame : ase.Atoms
        A frame.
    """
    return bool(np.isfinite(frame.positions).all()) and not len(neighbor_list("i", frame, TOO_CLOSE))


def _bare(frame: Atoms) -> Atoms:
    """A frame without momenta and labels."""
    new = Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)
    skipped = ("step", "time_ps", "uncertainty", "reason")
    new.info = {name: value for name, value in frame.info.items() if name not in skipped}
    return new


def _limit(guard: Guard, calculator: Calculator) -> float:
    if guard.max_std != "auto":
        return guard.max_std
    model = calculator.model
    known = model.environments if isinstance(model, LaplaceEnsemble) else None
    level = ((getattr(model, "metadata", None) or {}).get("laplace") or {}).get("distance")
    if known is None or not isinstance(level, (int, float)):
        raise ConfigError(
            "limits={'guard': 'auto'} compares environments with the training data that "
            "mq.laplace(model, train, valid) keeps, and this model has none; make it again with mq.laplace "
            "and validation structures of the elements of the training, or give a standard deviation in "
            "eV/Å, such as limits={'guard': 0.3}"
        )
    return _FACTOR * float(level)
