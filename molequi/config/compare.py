"""Train several networks on the same data for the same time."""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from molequi.approximate.equivariance_errors import equivariance_errors
from molequi.config.candidates import NETWORKS, Candidate, candidates, kind_of, merged, with_cutoff
from molequi.config.compare_checks import check_given, check_labels, check_sections, replaced, try_once
from molequi.config.inputs import with_inputs
from molequi.config.names import Names
from molequi.config.run import new_model
from molequi.config.schema import SPLIT_OPTIONS, read_data
from molequi.config.start import quantity_of
from molequi.config.train import read_train
from molequi.config.trainings import Progress, fingerprint, finished, keep, lengthened, random_order
from molequi.data.batches import Batches
from molequi.data.dataset import Dataset
from molequi.data.indexing import evenly_spaced
from molequi.errors import ConfigError, MolequiError, OtherSettingsError, TrainingError
from molequi.finetuning.conservation import conservation
from molequi.inference.comparisons import Comparison, Network, Trial
from molequi.inference.evaluate import evaluate
from molequi.inference.learning_curves import measured
from molequi.inference.ranking import OTHER
from molequi.inference.structure_errors import structure_errors
from molequi.model import Model
from molequi.quantities import per_atom
from molequi.training.clock import Kind
from molequi.training.fit import train_model
from molequi.training.options import TrainingOptions
from molequi.training.result import Result
from molequi.training.stopwatch import Cost, Stopwatch
from molequi.util.devices import as_device
from molequi.util.files import write_file
from molequi.util.html import html_page
from molequi.util.locks import check_unused, lock_folder
from molequi.util.memory import is_out_of_memory
from molequi.util.run_log import log, run_log, say

WRITTEN = ("comparison.json", "comparison.csv", "comparison.html", "comparison.png")
RATES = (0.3, 1.0, 3.0)
SHARE = 0.25  # of the minutes, for each trial of a learning rate
_ROTATED = 24  # structures whose symmetry is measured
_PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class CompareOptions:
    """What `molequi.compare` measures; see there.

    Parameters
    ----------
    networks : sequence of str
        The networks.
    own : mapping of str to mapping
        Networks of the caller.
    minutes : float
        Minutes of each training.
    seeds : sequence of int
        Seeds of the trainings.
    sizes : sequence of int
        Numbers of training structures beside all.
    rates : sequence of float
        Factors of the learning rate that are tried.
    simulate : int
        Steps of the simulation of a force field.
    other : str or None
        Data of other conditions.

    Raises
    ------
    ConfigError
        For wrong values.
    """

    networks: Sequence[str] = NETWORKS
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    minutes: float = 5.0
    seeds: Sequence[int] = (0, 1)
    sizes: Sequence[int] = ()
    rates: Sequence[float] = RATES
    simulate: int = 1000
    other: str | None = None

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise ConfigError(f"compare: minutes={self.minutes!r}; wanted a number above zero")
        for name, least in (("seeds", 0), ("sizes", 1)):
            given = getattr(self, name)
            if len(set(given)) < len(given) or any(not isinstance(n, int) or n < least for n in given):
                raise ConfigError(
                    f"compare: {name}={list(given)}; wanted different whole numbers from {least}"
                )
        if not self.seeds:
            raise ConfigError("compare: seeds is empty; wanted one or more, such as seeds=[0, 1]")
        if not self.rates or len(set(self.rates)) < len(self.rates) or not min(self.rates) > 0:
            raise ConfigError(
                f"compare: rates={list(self.rates)}; wanted different factors of the learning rate above "
                "zero, such as [0.3, 1, 3], or [1] for that of the recipe"
            )


@dataclass(frozen=True)
class _Job:
    """All that the trainings of a comparison share.

    Parameters
    ----------
    settings : dict
        The sections of the run.
    names : Names
        What names stand for.
    options : CompareOptions
        What is measured.
    parts : mapping of str to Dataset
        The data with "train" and "valid", perhaps "test" and "other".
    folder : Path
        Where everything is written.
    clock : {"processor", "wall"}
        Which minutes.
    """

    settings: dict[str, Any]
    names: Names
    options: CompareOptions
    parts: Mapping[str, Dataset]
    folder: Path
    clock: Kind

    @property
    def part(self) -> str:
        """The part whose errors decide."""
        return "test" if "test" in self.parts else "valid"

    @property
    def elements(self) -> list[int]:
        """Elements of all data."""
        return sorted({z for data in self.parts.values() for z in data.elements})

    def sections(self, one: Candidate, seed: int, rate: float, share: float) -> dict[str, Any]:
        """The sections of the run of a candidate."""
        train = merged(self.settings["train"], one.train)
        validation = {k: v for k, v in (train.get("validation") or {}).items() if k != "patience"}
        # Compiled programs are found by later seeds, and whether one pays depends on the machine.
        compute = dict(train.get("compute") or {}) | {"clock": self.clock, "accelerate": False}
        compute |= {"workers": 0} if self.clock == "processor" else {}
        lr = train.get("lr", TrainingOptions.lr)
        train |= {"seed": seed, "lr": float(f"{rate * lr:.4g}"), "compute": compute, "validation": validation}
        train |= {"max_minutes": share * self.options.minutes, "epochs": None, "out": None}
        return self.settings | {"backbone": dict(one.backbone), "train": train}


def carry_out_comparison(
    settings: dict[str, Any],
    names: Names,
    options: CompareOptions,
    folder: Path,
    typed: Callable[[str, str], str],
    *,
    automatic: bool = False,
    overrides: Sequence[str] = (),
) -> Comparison:
    """The comparison of a run whose sections were read and checked.

    Parameters
    ----------
    settings : dict
        The sections.
    names : Names
        What the names of the file stand for.
    options : CompareOptions
        What is compared.
    folder : Path
        Folder of the comparison.
    typed : callable
        The command with one more option, by name and value, for messages.
    automatic : bool
        The run was chosen by the data: fill in charge and spin too.
    overrides : sequence of str
        The settings that the caller gave beside the run; those that would have no effect are refused.

    Returns
    -------
    Comparison

    Raises
    ------
    ConfigError, DataError, TrainingError, CheckpointError
        As `molequi.compare` does.
    """
    check_sections(settings)
    training = read_train(settings["train"], names)
    clock: Kind = "processor" if as_device(training.device).type == "cpu" else "wall"
    check_given(overrides, options.own, clock)
    chosen = candidates(options.networks, options.own, settings, names)
    check_unused(folder, WRITTEN, restart=training.resume == "restart")
    with run_log(folder):
        parts = read_data(settings | {"backbone": None} if automatic else settings, names)
        if options.other is not None:
            parts[OTHER] = _other(settings, options.other, names)
        too_large = [size for size in options.sizes if size >= len(parts["train"])]
        if too_large:
            raise ConfigError(
                f"compare: sizes={list(options.sizes)}, and there are {len(parts['train'])} training "
                "structures; wanted smaller numbers, all structures are always taken too"
            )
        job = _Job(settings, names, options, parts, folder, clock)
        check_labels(parts, _decides(job), options.other)
        try:
            with lock_folder(folder):
                found = _compared(job, chosen, automatic)
        except OtherSettingsError as error:
            raise OtherSettingsError(error.found, folder, typed, force=False) from error
        log(str(found))
    return found


def _other(settings: Mapping[str, Any], path: str, names: Names) -> Dataset:
    """Data of other conditions, read as the training data are."""
    ((reader, options),) = [(n, o or {}) for n, o in settings["data"].items() if n not in _PARTS]
    if "path" not in options:
        raise ConfigError(f"compare: other={path!r}: the reader {reader} has no path that could be replaced")
    kept = {k: v for k, v in options.items() if k not in (*SPLIT_OPTIONS, "part")}
    data = {reader: options, "test": {reader: kept | {"path": path}}}
    return read_data({**settings, "data": data, "backbone": None}, names)["test"]


def _compared(job: _Job, chosen: Sequence[Candidate], automatic: bool) -> Comparison:
    """All trainings, one candidate after the other; what is finished is written after each."""
    options, whole = job.options, len(job.parts["train"])
    ready, left_out = _fitting(job, chosen, automatic)
    sizes = [*sorted(options.sizes), whole]
    tries = SHARE * len(options.rates) if len(options.rates) > 1 else 0.0
    budget = options.minutes * len(ready) * (tries + len(options.seeds) * len(sizes))
    say(
        f"{len(ready)} networks, {options.minutes:g} {job.clock} minutes for each training, "
        f"{budget:g} minutes together; errors on the {job.part} data"
    )
    if unused := replaced(job.settings, job.clock):
        say(f"not used of the run, since all networks have equal minutes and seeds: {', '.join(unused)}")
    progress = Progress(budget)
    networks: list[Network] = []
    trials: list[Trial] = []
    for one, model in ready:
        rate, failed = _rate(job, one, progress)
        networks.append(_network(job, one, model, rate, failed))
        for size in sizes:
            for seed in options.seeds:
                if failed:
                    trials.append(Trial(one.name, size, seed, 0.0, failed))
                    progress.add(options.minutes, None)
                else:
                    trials.append(_trial(job, one, size, seed, rate, 1.0, progress))
        found = _comparison(job, networks, trials, left_out)
        write_file(job.folder / "comparison.json", found.to_json())
        write_file(job.folder / "comparison.csv", found.to_csv())
    _write(found, job.folder)
    return found


def _fitting(
    job: _Job, chosen: Sequence[Candidate], automatic: bool
) -> tuple[list[tuple[Candidate, Model]], dict[str, str]]:
    """The candidates that can be trained on these data, and why others cannot."""
    ready, left_out = [], {}
    for one in chosen:
        try:
            backbone = with_cutoff(one.backbone, job.parts["train"], job.names)
            backbone = with_inputs(backbone, job.parts, job.names, totals=automatic)
            one = replace(one, backbone=backbone)
            settings = job.sections(one, 0, 1.0, 1.0)
            options = read_train(settings["train"], job.names)
            model = new_model(settings, job.elements, options, job.names)
            try_once(model, job.parts, options)
            ready.append((one, model))
        except MolequiError as error:
            if one.name in job.options.own or tuple(job.options.networks) != NETWORKS:
                raise
            left_out[one.name] = str(error).splitlines()[0]
            say(f"{one.name} is left out: {left_out[one.name]}")
    if len(ready) < 2:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise ConfigError(f"compare: fewer than two networks can be trained on these data ({reasons})")
    return ready, left_out


def _network(job: _Job, one: Candidate, model: Model, rate: float, failed: str) -> Network:
    train = job.sections(one, 0, rate, 1.0)["train"]
    optimizer = read_train(train, job.names).optimizer.name
    setting = f"{one.setting}; {optimizer}, lr {train['lr']:g}"
    parameters = sum(p.numel() for p in model.parameters())
    rates, edge = sorted(job.options.rates), ""
    if len(rates) > 1 and not failed:
        edge = {rates[0]: "lowest", rates[-1]: "highest"}.get(rate, "")
    return Network(one.name, kind_of(model, train), model.group, setting, parameters, edge)


def _rate(job: _Job, one: Candidate, progress: Progress) -> tuple[float, str]:
    """The factor of the learning rate with the lowest validation error in a short training.

    Returns also why there is none, if all of them failed.
    """
    rates, seed = job.options.rates, job.options.seeds[0]
    if len(rates) == 1:
        return rates[0], ""
    size = len(job.parts["train"])
    found = {rate: _trial(job, one, size, seed, rate, SHARE, progress) for rate in rates}
    good = {rate: _valid_error(job, t) for rate, t in found.items() if not t.failed}
    if not good:
        return rates[0], found[rates[0]].failed
    return min(good, key=good.__getitem__), ""


def _valid_error(job: _Job, trial: Trial) -> float:
    """The error that chooses a learning rate."""
    errors, name = trial.errors["valid"], _decides(job)
    return errors[name] if name in errors else errors[f"{name}_per_atom"]


def _decides(job: _Job) -> str:
    """The quantity whose error decides: forces, else the first that is predicted."""
    names = _predicted(job)
    return "forces" if "forces" in names else names[0]


def _predicted(job: _Job) -> list[str]:
    """Names of what the networks predict."""
    predict = job.settings["predict"]
    return [str(quantity_of(q)) for q in (predict if isinstance(predict, (list, tuple)) else [predict])]


def _trial(
    job: _Job, one: Candidate, size: int, seed: int, rate: float, share: float, progress: Progress
) -> Trial:
    """One training and what is measured of it; from its record if it was finished before."""
    settings, train = job.sections(one, seed, rate, share), job.parts["train"]
    options = read_train(settings["train"], job.names)
    whole = len(train)
    if size < whole:
        train = train[sorted(random_order(train, seed)[:size])]
        options = lengthened(options, size, whole)
    folder = job.folder / one.folder / (f"n{size}-s{seed}" if share == 1.0 else f"lr{rate:g}-s{seed}")
    options = replace(options, out=folder, terms=(*options.terms, Stopwatch(job.clock)))
    parts = {name: data for name, data in job.parts.items() if name != OTHER} | {"train": train}
    key = fingerprint(options, {**job.parts, "train": train}, settings) + f"-{job.options.simulate}"
    record, minutes = folder / "trial.json", share * job.options.minutes
    found = finished(record, key, options)
    what = f"{one.name}, {size} structures, seed {seed}, lr {options.lr:g}, {minutes:g} min"
    if found is not None:
        retry = f"failed before; delete {record} to try it again" if found["failed"] else ""
        say(f"{what}: {retry or f'done before, {folder}'}")
        progress.add(minutes, None)
        return Trial(**found | {"network": one.name})
    progress.say(what)
    started = time.monotonic()
    with lock_folder(folder):  # a folder in use is no failure of a network
        pass
    trial, final = Trial(one.name, size, seed, options.lr), True
    try:
        model = new_model(settings, job.elements, options, job.names)
        result = train_model(model, parts, options, settings if size == whole else None)
        assert isinstance(result, Result)
        epochs = result.history[-1]["step"] / _steps_of_epoch(train, result.model, options)
        trial = _measured(job, replace(trial, epochs=epochs), result, full=share == 1.0)
        if wrong := _not_finite(trial):
            trial = replace(trial, failed=f"not finite on the {wrong}")
            say(f"{one.name} failed: {trial.failed}")
    except (TrainingError, MemoryError, RuntimeError) as error:
        if not isinstance(error, TrainingError) and not is_out_of_memory(error):
            raise
        reason = next(iter(str(error).splitlines()), "out of memory")
        final = not is_out_of_memory(error.__cause__ or error)  # there may be more memory the next time
        trial = replace(trial, failed=reason)
        say(f"{one.name} failed: {trial.failed}")
    if final:
        keep(record, key, asdict(trial))
    progress.add(minutes, time.monotonic() - started)
    return trial


def _measured(job: _Job, trial: Trial, result: Result, *, full: bool) -> Trial:
    """The trial with all that is measured of a training; `full` with symmetry, other data and simulation."""
    model, decides, history = result.model, _decides(job), result.history
    errors = {part: measured(found, "mae")[0] for part, found in result.errors.items()}
    cost = result.reports["cost"]
    assert isinstance(cost, Cost)
    trial = replace(
        trial,
        errors=errors,
        curve=_curve(history, decides, job),
        seconds=history[-1]["seconds"],
        steps=int(history[-1]["step"]),
        step=cost.step,
        memory=cost.memory,
    )
    if not full:
        return trial
    if OTHER in job.parts:
        errors[OTHER] = measured(evaluate(model, job.parts[OTHER], progress=False), "mae")[0]
    measured_on = [job.part, *([OTHER] if OTHER in job.parts else [])]
    tested = job.parts[job.part]
    sample = tested[evenly_spaced(len(tested), min(_ROTATED, len(tested)))]
    exact = copy.deepcopy(model).double()  # without round-off
    exact.use_program(None)
    turned = equivariance_errors(exact, sample, symmetries=["rotation", "reflection"])
    drift = conservation(model, tested, job.options.simulate)
    return replace(
        trial,
        errors=errors,
        sums={part: structure_errors(model, job.parts[part], decides) for part in measured_on},
        symmetry={s: turned[s, decides].relative_error for s in ("rotation", "reflection")},
        drift=None if drift is None else asdict(drift),
    )


def _steps_of_epoch(train: Dataset, model: Model, options: TrainingOptions) -> int:
    """Number of batches in which each structure is seen once."""
    limits = options.batch_size
    if limits.structures is not None:
        return -(-len(train) // limits.structures)
    data = train if limits.edges is None else train.connected(model.cutoff, options.compute.cache, k=model.k)
    batches = Batches(data, batch_atoms=limits.atoms, batch_edges=limits.edges, seed=options.member_seed)
    return len(batches.epoch(0))


def _not_finite(trial: Trial) -> str:
    """The first of what was measured that is not finite; empty if all is."""
    for part, errors in trial.errors.items():
        for quantity, error in errors.items():
            if not math.isfinite(error):
                return f"{part} data ({quantity})"
    for part, sums in trial.sums.items():
        if not all(math.isfinite(error) for error, _ in sums):
            return f"{part} data"
    turned = [name for name, error in trial.symmetry.items() if not math.isfinite(error)]
    return f"data after a {turned[0]}" if turned else ""


def _curve(history: Sequence[Mapping[str, float]], decides: str, job: _Job) -> list[list[float]]:
    """Seconds and validation error of the deciding quantity after each validation."""
    names = (f"valid_{decides}_accuracy", f"valid_{decides}_per_atom_mae", f"valid_{decides}_mae")
    name = next((name for name in names if any(name in row for row in history)), names[-1])
    rows = [(row["seconds"], row[name]) for row in history if name in row]
    return [[seconds, 1 - value if name == names[0] else value] for seconds, value in rows]


def _comparison(
    job: _Job, networks: Sequence[Network], trials: Sequence[Trial], left_out: Mapping[str, str]
) -> Comparison:
    predicted = [q for q in job.parts["train"].quantities.values() if q.name in _predicted(job)]
    shown = {q.name: f"{q.name}_per_atom" if per_atom(q) else q.name for q in predicted}
    units = {shown[q.name]: q.unit + ("/atom" if per_atom(q) else "") for q in predicted}
    classes = [q.name for q in predicted if q.classes]
    minutes, decides = job.options.minutes, shown[_decides(job)]
    return Comparison(networks, trials, decides, units, classes, job.part, minutes, job.clock, dict(left_out))


def _write(found: Comparison, folder: Path) -> None:
    """Write the page and the picture."""
    from molequi import plotting

    plotting.comparison(found).savefig(folder / "comparison.png")
    page = html_page("molequi compare", f'{found._repr_html_()}<img src="comparison.png" alt="errors">')
    write_file(folder / "comparison.html", page)
