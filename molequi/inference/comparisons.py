"""Networks trained on the same data for the same time: what each reached and what it costs."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from molequi.errors import ConfigError, DataError, did_you_mean
from molequi.inference.ranking import OTHER, Kind, Ranking, Scores, rank
from molequi.inference.recommendation import sentences
from molequi.util.html import html_table, html_text, shorten
from molequi.util.tables import milli, text_table

_REASON = 60  # letters of the reason of a failure in the table


@dataclass(frozen=True)
class Network:
    """A network of a comparison.

    Parameters
    ----------
    name : str
        Its name, unique in the comparison.
    kind : {"strict", "approximate", "unconstrained"}
        Whether it is equivariant by construction, has a free part, or no symmetry of space.
    group : str
        The symmetry that it declares.
    setting : str
        Its sizes, terms of the training and learning rate, in words.
    parameters : int
        Number of its parameters.
    edge : {"", "lowest", "highest"}
        Whether its learning rate is at an end of those that were tried.
    """

    name: str
    kind: Kind
    group: str
    setting: str
    parameters: int
    edge: str = ""


@dataclass(frozen=True)
class Trial:
    """One training of a network.

    Parameters
    ----------
    network : str
        Name of the network.
    structures : int
        Number of training structures.
    seed : int
        Seed of the weights, of the order and, of parts of the data, of their choice.
    lr : float
        Learning rate.
    failed : str
        Why it has no result; empty if it has one.
    errors : mapping of str to mapping of str to float
        Mean absolute error of each quantity by part of the data; of classes the share of wrong answers.
    sums : mapping of str to sequence of (float, float)
        For each structure of a part the sum of the absolute errors of the deciding quantity, and how many.
    curve : sequence of (float, float)
        Seconds of the training, and the validation error of the deciding quantity at that time.
    seconds : float
        Seconds of the training, validation included.
    steps, epochs : int, float
        Number of steps, and how often each structure was seen.
    step : float, optional
        Median of the seconds of a step.
    memory : float, optional
        Largest memory of the training in bytes beyond that of the idle program; None where the system does
        not tell.
    symmetry : mapping of str to float
        Relative error of the deciding quantity under random rotations and reflections, in float64; of classes
        the error of the log-odds.
    drift : mapping, optional
        Slope of the total energy of a short simulation in meV/atom/ps, its ``rms`` around the line in
        meV/atom, and why it was ``stopped``. None without one.
    """

    network: str
    structures: int
    seed: int
    lr: float
    failed: str = ""
    errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    sums: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    curve: Sequence[Sequence[float]] = field(default_factory=list)
    seconds: float = 0.0
    steps: int = 0
    epochs: float = 0.0
    step: float | None = None
    memory: float | None = None
    symmetry: Mapping[str, float] = field(default_factory=dict)
    drift: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Comparison:
    """Networks trained on the same data for the same time; the result of `molequi.compare`.

    ``print(found)`` shows the tables and the recommendation, ``found.recommendation`` is the name of the
    recommended network.

    Parameters
    ----------
    networks : sequence of Network
        The networks.
    trials : sequence of Trial
        Their trainings, failed ones included.
    quantity : str
        The quantity whose error decides.
    units : mapping of str to str
        Unit of each quantity; extensive scalars are per atom.
    classes : sequence of str
        The quantities that are classes, of which the share of wrong answers counts.
    part : {"valid", "test"}
        The part of the data whose errors decide.
    minutes : float
        Minutes of each training.
    clock : {"processor", "wall"}
        Which time that is.
    left_out : mapping of str to str
        Networks that cannot be trained on these data, and why.
    """

    networks: Sequence[Network]
    trials: Sequence[Trial]
    quantity: str
    units: Mapping[str, str]
    classes: Sequence[str]
    part: str
    minutes: float
    clock: str = "processor"
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def sizes(self) -> list[int]:
        """The numbers of training structures, in order."""
        return sorted({trial.structures for trial in self.trials})

    @property
    def other(self) -> bool:
        """Whether there are data of other conditions."""
        return any(OTHER in trial.errors for trial in self.trials)

    def of(self, network: str, structures: int | None = None) -> list[Trial]:
        """The trainings of a network.

        Parameters
        ----------
        network : str
            Its name.
        structures : int, optional
            Number of training structures; the largest by default.

        Raises
        ------
        ConfigError
            For another name.
        """
        names = [one.name for one in self.networks]
        if network not in names:
            raise ConfigError(
                f"{network!r} was not compared{did_you_mean(network, names)}; there are {', '.join(names)}"
            )
        size = self.sizes[-1] if structures is None else structures
        return [t for t in self.trials if t.network == network and t.structures == size]

    def ranking(self, part: str | None = None, structures: int | None = None) -> Ranking:
        """Which networks are best and which cannot be told apart, see `molequi.inference.ranking`.

        Parameters
        ----------
        part : str, optional
            The part of the data: "valid", "test" or "other"; by default `part`.
        structures : int, optional
            Number of training structures; the largest by default.

        Raises
        ------
        DataError
            If no network has a result there.
        """
        name = part or self.part
        scores = []
        for network in self.networks:
            trials = self.of(network.name, structures)
            if not trials or any(trial.failed or name not in trial.sums for trial in trials):
                continue
            costs = [trial.step for trial in trials if trial.step is not None]
            scores.append(
                Scores(
                    network.name,
                    np.array([trial.sums[name] for trial in trials], dtype=float),
                    float(np.median(costs)) if costs else math.inf,
                )
            )
        if not scores:
            raise DataError(f"no network has errors on the {name} data; see the column 'failed' of the table")
        return rank(scores)

    @property
    def recommendation(self) -> str:
        """Name of the recommended network: the cheapest of those that cannot be told from the best."""
        return self.ranking().chosen

    def kind(self, quantity: str) -> str:
        """What is measured: `MAE`, or for classes the share of wrong answers.

        Parameters
        ----------
        quantity : str
            Its name, as in `units`.
        """
        return "share of wrong answers" if quantity in self.classes else "MAE"

    def shown(self, quantity: str) -> tuple[float, str]:
        """Factor and unit in which the errors of a quantity are shown.

        Parameters
        ----------
        quantity : str
            Its name, as in `units`.
        """
        if quantity in self.classes:
            return 100.0, "%"
        found = [v[quantity] for trial in self.trials for v in trial.errors.values() if quantity in v]
        return milli(self.units[quantity], max(found, default=0.0))

    def mean(
        self, network: str, part: str, quantity: str, structures: int | None = None
    ) -> tuple[float, float]:
        """Mean error of the trainings of a network, and its standard deviation over the seeds.

        Parameters
        ----------
        network : str
            Its name.
        part : str
            The part of the data.
        quantity : str
            The quantity.
        structures : int, optional
            Number of training structures; the largest by default.

        Returns
        -------
        (float, float)
            NaN where there is no result; the standard deviation is NaN for one seed.
        """
        trials = [t for t in self.of(network, structures) if quantity in t.errors.get(part, {})]
        values = np.array([trial.errors[part][quantity] for trial in trials])
        if not len(values):
            return math.nan, math.nan
        return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.nan

    def error(self, network: str, part: str, quantity: str, structures: int | None = None) -> str:
        """The same as a text, in the unit of `shown`.

        Parameters
        ----------
        network, part, quantity, structures
            As in `mean`.
        """
        factor, _ = self.shown(quantity)
        mean, spread = (factor * value for value in self.mean(network, part, quantity, structures))
        if math.isnan(mean):
            return ""
        return f"{mean:.3g}" + ("" if math.isnan(spread) else f" ± {spread:.1g}")

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows of the main table: what each network reached with all structures, and its cost."""
        parts = [self.part, *([OTHER] if self.other else [])]
        head = ["network", "symmetry", "parameters"]
        head += [f"{self._named(quantity)}, {part}" for quantity in self.units for part in parts]
        head += ["ms/step", "epochs", "memory (MB)", "rotation error", "reflection error"]
        simulated = any(trial.drift is not None for trial in self.trials)
        head += ["drift (meV/atom/ps)"] if simulated else []
        head += ["failed"] if any(trial.failed for trial in self.trials) else []
        rows = []
        for network in self.networks:
            trials = self.of(network.name)
            row = [network.name, network.kind, f"{network.parameters:,}"]
            row += [self.error(network.name, part, quantity) for quantity in self.units for part in parts]
            row += [
                _median([trial.step for trial in trials], 1000, ".3g"),
                _median([trial.epochs or None for trial in trials], 1, ".3g"),
                _median([trial.memory for trial in trials], 1e-6, ".0f"),
                _largest([trial.symmetry.get("rotation") for trial in trials]),
                _largest([trial.symmetry.get("reflection") for trial in trials]),
            ]
            row += [_drift(trials)] if simulated else []
            failures = [trial.failed for trial in trials if trial.failed]
            if head[-1] == "failed":
                first = shorten(failures[0], _REASON) if failures else ""
                row.append(f"{len(failures)} of {len(trials)}: {first}" if failures else "")
            rows.append(row)
        return head, rows

    def table_of_seconds(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows of a table: validation error after parts of the time, with all structures."""
        times = [60 * self.minutes * part for part in (0.25, 0.5, 0.75, 1.0)]
        factor, _ = self.shown(self.quantity)
        head = [f"{self._named(self.quantity)}, valid, after", *(f"{second:.3g} s" for second in times)]
        rows = []
        for network in self.networks:
            curves = [trial.curve for trial in self.of(network.name) if trial.curve]
            cells = [[_at(curve, second) for curve in curves] for second in times[:-1]]
            cells.append([curve[-1][1] for curve in curves])
            means = [float(np.mean(cell)) if cell else math.nan for cell in cells]
            rows.append([network.name, *("" if math.isnan(m) else f"{factor * m:.3g}" for m in means)])
        return head, rows

    def table_of_sizes(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows of a table: error against the number of training structures."""
        head = [f"{self._named(self.quantity)}, {self.part}", *(f"{size} structures" for size in self.sizes)]
        rows = [
            [one.name, *(self.error(one.name, self.part, self.quantity, size) for size in self.sizes)]
            for one in self.networks
        ]
        return head, rows

    def _named(self, quantity: str) -> str:
        _, unit = self.shown(quantity)
        name = quantity.replace("_", " ")
        name = f"{name} wrong" if quantity in self.classes else name
        return f"{name} ({unit})" if unit else name

    def _tables(self) -> list[tuple[list[str], list[list[str]]]]:
        tables = [self.table(), self.table_of_seconds()]
        return [*tables, self.table_of_sizes()] if len(self.sizes) > 1 else tables

    def _settings(self) -> list[str]:
        lines = [f"{one.name}: {one.setting}" for one in self.networks]
        return [*lines, *(f"{name}: left out: {reason}" for name, reason in self.left_out.items())]

    def words(self) -> list[str]:
        """The recommendation in sentences, see `molequi.inference.recommendation`."""
        return sentences(self)

    def __str__(self) -> str:
        tables = ["\n".join(text_table(head, rows, left=(0, 1))) for head, rows in self._tables()]
        return "\n\n".join([*tables, "\n".join(self._settings()), "\n".join(self.words())])

    def _repr_html_(self) -> str:
        tables = "".join(html_table(head, rows, left=(0, 1)) for head, rows in self._tables())
        return tables + html_text("\n".join(self._settings())) + html_text("\n".join(self.words()))

    __repr__ = __str__

    def to_json(self) -> str:
        """All fields as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Comparison":
        """The comparison from what `to_json` returned.

        Parameters
        ----------
        text : str
            JSON.

        Raises
        ------
        DataError
            For another text.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            networks = [Network(**one) for one in fields["networks"]]
            trials = [Trial(**one) for one in fields["trials"]]
            return cls(**fields | {"networks": networks, "trials": trials})
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"this is no comparison: {error}; `molequi compare` writes one") from error

    def to_csv(self) -> str:
        """One row for each training, in eV, Å and e, seconds and bytes."""
        text = io.StringIO()
        parts = [
            "train",
            "valid",
            *(["test"] if self.part == "test" else []),
            *([OTHER] if self.other else []),
        ]
        errors = [f"{quantity}_{part}" for quantity in self.units for part in parts]
        plain = ["network", "structures", "seed", "lr", "seconds", "steps", "epochs", "step", "memory"]
        more = ["rotation", "reflection", "drift", "failed"]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*plain, "parameters", *errors, *more])
        parameters = {one.name: one.parameters for one in self.networks}
        for trial in self.trials:
            row: list[Any] = [getattr(trial, name) for name in plain] + [parameters[trial.network]]
            row += [trial.errors.get(part, {}).get(q) for q in self.units for part in parts]
            row += [trial.symmetry.get("rotation"), trial.symmetry.get("reflection")]
            row += [(trial.drift or {}).get("slope"), trial.failed]
            writer.writerow(["" if value is None else value for value in row])
        return text.getvalue()


def _at(curve: Sequence[Sequence[float]], second: float) -> float:
    """The last error that was known at a time; NaN before the first validation."""
    known = [error for at, error in curve if at <= second]
    return known[-1] if known else math.nan


def _median(values: Sequence[float | None], factor: float, form: str) -> str:
    known = [value for value in values if value is not None]
    return format(factor * float(np.median(known)), form) if known else ""


def _largest(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{max(known):.1e}" if known else ""


def _drift(trials: Sequence[Trial]) -> str:
    """The largest drift, or that a simulation was stopped."""
    found = [trial.drift for trial in trials if trial.drift is not None]
    if any(one["stopped"] for one in found):
        return "stopped"
    return f"{max((one['slope'] for one in found), key=abs):+.2g}" if found else ""
