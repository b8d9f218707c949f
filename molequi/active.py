"""Active learning: simulate with a guard, choose frames, label them with any ASE calculator, train again."""

import json
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import ase.io
import numpy as np
from annotated_types import Ge, Gt
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.calculators.singlepoint import SinglePointCalculator

from molequi.checkpoint import load, save
from molequi.data.dataset import Dataset
from molequi.errors import CheckpointError, ConfigError, OtherSettingsError, SimulationError
from molequi.inference.evaluate import evaluate
from molequi.inference.known_energies import too_low
from molequi.inference.laplace import laplace
from molequi.inference.selection import By, select
from molequi.last_layer import LaplaceEnsemble
from molequi.model import Model
from molequi.readers import from_atoms, to_atoms
from molequi.readers.load import load_dataset
from molequi.simulation import md
from molequi.simulation.guard import is_possible
from molequi.simulation.inputs import as_calculator, check_energy
from molequi.simulation.known import told_by_caller
from molequi.simulation.options import Limits
from molequi.simulation.sampling import name_of
from molequi.training.fit import fit
from molequi.util.digests import weights_digest
from molequi.util.files import write_file
from molequi.util.html import html_table
from molequi.util.locks import lock_folder
from molequi.util.options import as_options
from molequi.util.signature import check_call, check_keywords
from molequi.util.state_files import differences
from molequi.util.tables import text_table

_STATE, _MODEL, _LABELS = "active.json", "model.safetensors", "labelled.xyz"
_LABELLED = ("energy", "forces")
_HEAD = (
    "round",
    "structures",
    "energy MAE (meV/atom)",
    "forces MAE (meV/Å)",
    "simulations stopped",
    "energies below the data",
)


@dataclass(frozen=True)
class ActiveLearning:
    """What `active_learning` did; printed, a table with a row for each round.

    Parameters
    ----------
    model : LaplaceEnsemble
        The last model.
    train : Dataset
        All training structures, the new ones last.
    rounds : sequence of mapping
        Of each training: ``structures``, the errors on the validation data, how many of the simulations
        that follow were stopped by the guard (``stopped``), and in how many the energy fell far below that of
        every training structure (``too_low``), where the model has learnt nothing. `md` warns of the latter;
        here the frames to label are chosen from them.
    """

    model: LaplaceEnsemble
    train: Dataset
    rounds: Sequence[Mapping[str, Any]]

    def _rows(self) -> list[list[str]]:
        return [
            [
                str(k),
                str(one["structures"]),
                f"{1e3 * one['energy_mae']:.3g}",
                f"{1e3 * one['forces_mae']:.3g}",
                *(
                    "" if one.get(name) is None else f"{one[name]} of {one['simulations']}"
                    for name in ("stopped", "too_low")
                ),
            ]
            for k, one in enumerate(self.rounds)
        ]

    def __str__(self) -> str:
        return "\n".join(text_table(_HEAD, self._rows(), left=()))

    def _repr_html_(self) -> str:
        return html_table(_HEAD, self._rows(), left=())

    __repr__ = __str__


@check_keywords()
def active_learning(
    model: Model,
    train: Any,
    valid: Any,
    oracle: BaseCalculator | str,
    *,
    out: str | os.PathLike[str],
    starts: Any = None,
    rounds: Annotated[int, Ge(1)] = 5,
    n: Annotated[int, Ge(1)] = 20,
    by: By = "both",
    training: Mapping[str, Any],
    dynamics: Mapping[str, Any],
    simulations: Annotated[int, Gt(0)] = 4,
    seed: Annotated[int, Ge(0)] = 0,
    progress: bool = True,
) -> ActiveLearning:
    """Improve a model in rounds: train, simulate with a guard, choose frames, label them.

    In each round a copy of `model` is trained on all labels and gets a Laplace approximation. Simulations
    with a guard begin at random structures of `starts`. Of their frames `select` chooses `n`, and the oracle
    computes their energies and forces. After the last round the model is trained once more. Everything is
    written to `out`; the same call goes on where it was interrupted.

    Parameters
    ----------
    model : Model
        The model, untrained or trained; every training begins with its weights. It is not changed.
    train, valid : object
        The first labels, and validation data that stay the same: Datasets or what `load_dataset` takes.
    oracle : ASE calculator or str
        What computes labels; ``"gfn2-xtb"`` is tight binding by tblite. A frame where it fails is left out.
    out : str or Path
        Folder: ``round0/`` and so on with the training, the simulations, ``picks.xyz``, ``labelled.xyz`` and
        ``model.safetensors``; ``active.json`` says how far it is.
    starts : object, optional
        Structures at which simulations begin; by default the training structures.
    rounds : int
        Number of rounds with new labels.
    n : int
        New labels in each.
    by : str
        As in `select`.
    training : mapping
        Arguments of `fit`, such as ``{"epochs": 50}``.
    dynamics : mapping
        Arguments of `md`, such as ``{"time": 1.0, "ensemble": "nvt", "temperature": 600.0}``.
    simulations : int
        Number of simulations in each round.
    seed : int
        Seed of starts and velocities.
    progress : bool
        Show progress bars.

    Returns
    -------
    ActiveLearning
        The last model, all training structures, and the errors of each round.

    Raises
    ------
    ConfigError
        For wrong settings, and for a folder with rounds of other settings.
    SimulationError
        If the oracle fails for all frames of a round.
    CheckpointError
        If the files in `out` are damaged.
    """
    settings: dict[str, Any] = {
        "rounds": rounds,
        "n": n,
        "by": by,
        "training": dict(training),
        "dynamics": dict(dynamics),
        "simulations": simulations,
        "seed": seed,
    }
    check_call(
        active_learning,
        settings | {"progress": progress},
        where="active_learning",
        leave_out=("model", "train", "valid", "oracle", "starts", "out"),
    )
    for name, value in (("training", training), ("dynamics", dynamics)):
        taken = sorted({"out", "seed", "progress"} & {*value})
        if taken:
            raise ConfigError(f"active_learning: {name}[{taken[0]!r}] is set in each round; leave it out")
    if not isinstance(model, Model):
        raise ConfigError(f"active_learning: wanted a Model, found {type(model).__name__}")
    labeller = as_calculator(oracle)
    check_energy(labeller)
    unlabelled = sorted(set(model.quantities) - set(_LABELLED))
    if unlabelled:
        raise ConfigError(
            f"active_learning: the model predicts {', '.join(unlabelled)}, which the calculator is not asked "
            f"for; wanted model.predicting({list(_LABELLED)})"
        )
    data, held = _as_labelled(load_dataset(train)), load_dataset(valid)
    begin = data if starts is None else load_dataset(starts)
    settings["oracle"] = name_of(oracle)
    settings |= {"train": data.digest, "valid": held.digest, "starts": begin.digest}
    settings |= {"model": model.hparams, "weights": weights_digest(model.state_dict())}
    folder = Path(out)
    with lock_folder(folder):
        state = _state(folder / _STATE, settings)
        loop = _Loop(model, held, begin, oracle, settings, folder, progress)
        for number in range(rounds + 1):
            done = len(state["rounds"]) > number
            record = state["rounds"][number] if done else loop.train(number, data)
            if number < rounds:
                data = loop.label(number, data, record)
            if not done or len(state["rounds"]) == number + 1:
                state["rounds"][number:] = [record]
                write_file(folder / _STATE, json.dumps(state))
        last = load(folder / f"round{rounds}" / _MODEL)
    assert isinstance(last, LaplaceEnsemble)
    return ActiveLearning(last, data, state["rounds"])


def _state(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    plain = json.loads(json.dumps(settings, default=str))
    if not path.exists():
        return {"settings": plain, "rounds": []}
    try:
        found = json.loads(path.read_text())
        # More rounds may follow.
        changed = differences(found["settings"] | {"rounds": plain["rounds"]}, plain)
        list(found["rounds"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); choose another folder") from error
    if changed:
        text = f"{path.parent} holds rounds of other settings:\n  " + "\n  ".join(changed)
        raise OtherSettingsError(text, path.parent, force=False)
    return {"settings": plain, "rounds": list(found["rounds"])[: settings["rounds"] + 1]}


@dataclass(frozen=True)
class _Loop:
    """The steps of a round. Each finds what is done in its folder."""

    model: Model
    valid: Dataset
    starts: Dataset
    oracle: Any
    settings: Mapping[str, Any]
    folder: Path
    progress: bool

    def train(self, number: int, data: Dataset) -> dict[str, Any]:
        """Train a copy of the model, and write it with its Laplace approximation."""
        here = self.folder / f"round{number}"
        run = fit(
            deepcopy(self.model),
            data,
            self.valid,
            out=here / "training",
            seed=self.settings["seed"],
            **self.settings["training"],
        )
        found = laplace(run.model, data, self.valid, progress=self.progress)
        save(found, here / _MODEL)
        errors = evaluate(found, self.valid, progress=False)
        return {
            "structures": len(data),
            "energy_mae": float(errors["energy_mae"]) / float(self.valid.counts.mean()),
            "forces_mae": float(errors["forces_mae"]),
        }

    def label(self, number: int, data: Dataset, record: dict[str, Any]) -> Dataset:
        """The data with the new labels of a round."""
        here = self.folder / f"round{number}"
        picks = here / "picks.xyz"
        if not picks.exists():
            sure = load(here / _MODEL)
            frames, counts = self._simulate(number, sure)
            pool = _new(frames, data)
            if not pool:
                raise SimulationError(
                    f"{here}: no simulation has a frame that is not among the training structures; wanted "
                    "longer ones, starts like the validation data, or a lower temperature"
                )
            record |= {**counts, "simulations": self.settings["simulations"]}
            few = min(self.settings["n"], len(pool))
            seed = self.settings["seed"] + number
            by = self.settings["by"]
            known = data if by in ("both", "diversity") else None
            select(sure, pool, few, by=by, known=known, seed=seed, out=picks, progress=self.progress)
        found = self._labelled(picks, here / _LABELS)
        return Dataset([*data, *_as_labelled(from_atoms(found))])

    def _simulate(self, number: int, sure: Any) -> tuple[list[Atoms], dict[str, int]]:
        """Frames of the simulations of a round, and how many of these were stopped or had low energies."""
        rng = np.random.default_rng([self.settings["seed"], number])
        frames: list[Atoms] = []
        stopped = low = 0
        for k in range(self.settings["simulations"]):
            start = to_atoms(self.starts[int(rng.integers(len(self.starts)))].replace(targets={}))
            out = self.folder / f"round{number}" / f"md{k}"
            options: dict[str, Any] = {"out": out, "seed": int(rng.integers(2**31))}
            extra: list[Atoms] = []
            try:
                with told_by_caller():
                    md(start, sure, progress=self.progress, **options, **self._dynamics())
            except SimulationError as error:
                if not error.to_label:
                    raise
                stopped += 1
                extra = error.to_label
            walked = _frames(out / "trajectory.xyz")
            energies = [frame.get_potential_energy() for frame in walked]
            low += bool(too_low(sure, start.numbers, energies).any())
            frames += [*walked, *extra]
        possible = [_plain(frame) for frame in frames if is_possible(frame)]
        if not possible:
            raise SimulationError(
                f"{self.folder / f'round{number}'}: in all {len(frames)} frames of the simulations atoms are "
                "closer than in any bond; wanted a lower temperature, or a model trained on more structures"
            )
        return possible, {"stopped": stopped, "too_low": low}

    def _dynamics(self) -> dict[str, Any]:
        """Arguments of `md`, with a guard."""
        given = dict(self.settings["dynamics"])
        limits = as_options(Limits, given.get("limits", {}), "active_learning.dynamics.limits")
        if limits.guard is None:
            limits = replace(limits, guard="auto")
        return given | {"limits": limits}

    def _labelled(self, picks: Path, path: Path) -> list[Atoms]:
        """Label the frames that were chosen, each written at once; those that are there are kept."""
        frames = _frames(picks)
        found = _frames(path)
        tried = max([-1, *(int(frame.info["pick"]) for frame in found)]) + 1
        failure = ""
        for k in range(tried, len(frames)):
            frame = _plain(frames[k])
            try:
                labelled = _label(frame, as_calculator(self.oracle))
            except Exception as error:  # calculators raise anything
                failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                continue
            labelled.info["pick"] = k
            ase.io.write(path, labelled, format="extxyz", append=True)
            found.append(labelled)
        if not found:
            raise SimulationError(
                f"{picks}: the calculator {name_of(self.oracle)} failed for all {len(frames)} frames (the "
                f"last time: {failure}); wanted another calculator, or a lower temperature"
            )
        return found


def _new(frames: Sequence[Atoms], labelled: Dataset) -> list[Atoms]:
    """The frames without copies of each other and of labelled structures."""
    seen = {_key(to_atoms(graph.replace(targets={}))) for graph in labelled}
    new = []
    for frame in frames:
        key = _key(frame)
        if key not in seen:
            new.append(frame)
        seen.add(key)
    return new


def _key(atoms: Atoms) -> tuple[bytes, ...]:
    arrays = (atoms.positions.round(4) + 0.0, atoms.cell.array.round(4) + 0.0)  # -0.0 is 0.0
    return (atoms.numbers.tobytes(), *(array.tobytes() for array in arrays))


def _label(frame: Atoms, calculator: BaseCalculator) -> Atoms:
    frame.calc = calculator
    values = {"energy": frame.get_potential_energy(), "forces": frame.get_forces()}
    if not all(np.isfinite(value).all() for value in values.values()):
        raise SimulationError("energy or forces are not finite")
    new = frame.copy()
    new.calc = SinglePointCalculator(new, **values)
    return new


def _as_labelled(data: Dataset) -> Dataset:
    """The structures with the labels that the calculator gives, and no others."""
    return Dataset([g.replace(targets={n: g.targets[n] for n in _LABELLED if n in g.targets}) for g in data])


def _frames(path: Path) -> list[Atoms]:
    if not path.exists() or not path.stat().st_size:
        return []
    found = ase.io.read(path, index=":", format="extxyz")
    assert isinstance(found, list)
    return found


def _plain(frame: Atoms) -> Atoms:
    """A frame without momenta, labels and notes; charge and spin stay."""
    new = Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)
    kept = ("charge", "total_charge", "spin", "spin_multiplicity")
    new.info = {name: frame.info[name] for name in kept if name in frame.info}
    return new
