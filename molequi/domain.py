"""What a model was trained on: elements, total charges, spins and fields; and warnings about structures of
others.

A backbone names the elements that it has numbers for. That the numbers of an element were trained is another
matter, and the file of a model says so: ``metadata["trained_on"]``.
"""

import inspect
import math
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from molequi.data.dataset import Dataset
from molequi.data.reading import check_reading, options_of_training
from molequi.data.request import INVARIANTS
from molequi.ensemble import Ensemble
from molequi.errors import DataWarning, ModelError
from molequi.model import Model
from molequi.models.base import OTHER_ELEMENTS
from molequi.quantities import SYMBOLS
from molequi.readers import read_smiles
from molequi.readers.load import read_dataset, reader_of
from molequi.util.trained_on import FIELD, union

_NAMED = 5  # values in a sentence
_USUAL = {"charge": 0.0, "spin": 1.0}  # what a structure has that states nothing
_ROUNDED = 1e-6  # relative: files round electric fields
_TOTALS = {"charge": "total charge", "spin": "spin multiplicity"}


@dataclass(frozen=True)
class Seen:
    """What is checked of one structure.

    Parameters
    ----------
    where : str
        Where it came from.
    numbers : sequence of int
        Atomic numbers.
    totals : mapping of str to float
        ``"charge"`` (e) and ``"spin"`` (multiplicity), as far as they are known.
    electric_field : float
        Strength of the electric field in V/Å.
    """

    where: str
    numbers: Sequence[int] | np.ndarray
    totals: Mapping[str, float] = field(default_factory=dict)
    electric_field: float = 0.0


def seen_in(data: Dataset) -> Iterator[Seen]:
    """What is checked of each structure of a data set.

    A charge or spin that the model does not take is not read; then it is that of the columns of `info`.

    Parameters
    ----------
    data : Dataset
        The structures.
    """
    for k, graph in enumerate(data):
        totals = totals_in({key: column[k] for key, column in data.info.items()})
        own = {name: getattr(graph, name) for name in INVARIANTS}
        totals |= {name: float(value) for name, value in own.items() if value is not None}
        strength = 0.0 if graph.electric_field is None else float(graph.electric_field.norm())
        yield Seen(data.origins[k], graph.z.tolist(), totals, strength)


def totals_in(info: Mapping[str, Any]) -> dict[str, float]:
    """The total charge and the spin that a structure states, whether a model takes them or not.

    Parameters
    ----------
    info : mapping of str to object
        Values by name. What is no number is left out.

    Examples
    --------
    >>> totals_in({"total_charge": -1, "spin": "singlet"})
    {'charge': -1.0}
    """
    found = {}
    for name, keys in INVARIANTS.items():
        value = next((number for key in keys if (number := _number(info.get(key))) is not None), None)
        if value is not None:
            found[name] = value
    return found


def _number(value: object) -> float | None:
    """A value of a column as a number; None if it is none."""
    if isinstance(value, (np.generic, np.ndarray)) and np.size(value) == 1:
        value = np.asarray(value).item()
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def domain_of(data: Dataset) -> dict[str, Any]:
    """The elements, charges, spins and the electric field of a data set, as a model file keeps them.

    Parameters
    ----------
    data : Dataset
        The training data.

    Returns
    -------
    dict
        ``"elements"``, a list of symbols; ``"charge"`` and ``"spin"``, lists of numbers, if all structures
        have them; ``"electric_field"``, the strength of the largest one in V/Å, if any structure is in one.

    Examples
    --------
    >>> import molequi as mq
    >>> domain_of(mq.Dataset([mq.Graph.single([[0, 0, 0], [0, 0, 1.1]], ["O", "H"], charge=-1.0)]))
    {'elements': ['H', 'O'], 'charge': [-1.0]}
    """
    out: dict[str, Any] = {"elements": [SYMBOLS[z] for z in data.elements]}
    columns = {key: data.info[key] for keys in INVARIANTS.values() for key in keys if key in data.info}
    rows = (dict(zip(columns, values)) for values in zip(*columns.values()))
    totals = [totals_in(row) for row in rows]
    for name in INVARIANTS:
        own = data.graphs.field(name)
        if own is not None:
            out[name] = sorted(own.unique().tolist())
        elif totals and all(name in one for one in totals):
            out[name] = sorted({one[name] for one in totals})
    strengths = data.graphs.field(FIELD)
    largest = 0.0 if strengths is None else float(strengths.norm(dim=-1).max())
    return out | ({FIELD: largest} if largest else {})


def keep_domain(model: Model | Ensemble, data: Dataset) -> dict[str, Any]:
    """Keep in the metadata of a model what it is trained on.

    A model that was trained before keeps what it was trained on then. If its file does not say that, since
    an earlier version wrote it, nothing is kept.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    data : Dataset
        The training data.

    Returns
    -------
    dict
        ``{"trained_on": …}`` with what `domain_of` returns, if it is known, and ``{"reading": …}`` with
        `Dataset.reading`, if there is one.
    """
    before = dict(getattr(model, "metadata", None) or {})
    before.pop("reading", None)
    now, past = domain_of(data), before.pop("trained_on", None)
    if model.backbone.reads(FIELD):
        now.setdefault(FIELD, 0.0)  # said, unlike in files of earlier versions
    kept: dict[str, Any] = {"trained_on": now}
    if past is not None:
        kept = {"trained_on": union([past, now])}
    elif before.get("training"):
        kept = {}
    kept |= {"reading": data.reading} if data.reading else {}
    model.metadata = {**before, **kept}
    return kept


class DomainCheck:
    """Finds structures of other elements, charges or spins than those that a model was trained on, and in
    stronger electric fields.

    Parameters
    ----------
    model : Model or Ensemble
        The model. If it does not say what it was trained on, nothing is found. If its training data did not
        all state a total charge or a spin, only charges other than 0 and spins other than 1 are. Fields are
        not checked if the record has no entry for them, as in files of earlier versions.
    """

    def __init__(self, model: Model | Ensemble) -> None:
        record = (getattr(model, "metadata", None) or {}).get("trained_on")
        self.record: dict[str, Any] = dict(record) if isinstance(record, Mapping) else {}
        self._elements = {SYMBOLS.index(s) for s in self.record.get("elements", ()) if s in SYMBOLS}
        self._known, self._model = set(model.elements), model
        # A model that reads no field refuses structures in one.
        reads_field = bool(self.record) and model.backbone.reads(FIELD)
        self._strongest = float(self.record.get(FIELD, math.inf)) if reads_field else math.inf
        self._told: set[str] = set()

    def sentences(self, structures: Iterable[Seen]) -> list[str]:
        """Sentences about elements, charges, spins and fields that were not found before.

        Parameters
        ----------
        structures : iterable of Seen
            The structures. Elements that the model refuses are no matter of this check.

        Returns
        -------
        list of str
        """
        if not self.record:
            return []
        first: dict[tuple[str, Any], str] = {}
        beyond: Seen | None = None
        for one in structures:
            if one.electric_field > (beyond.electric_field if beyond else self._strongest * (1 + _ROUNDED)):
                beyond = one
            if self._elements:
                for z in {int(z) for z in one.numbers} & self._known - self._elements:
                    first.setdefault(("elements", SYMBOLS[z]), one.where)
            for name, usual in _USUAL.items():
                value = one.totals.get(name)
                if value is not None and value not in self.record.get(name, (usual,)):
                    first.setdefault((name, f"{value:g}"), one.where)
        found = [
            sentence
            for kind in ("elements", *_TOTALS)
            if (sentence := self._sentence(kind, {v: w for (k, v), w in first.items() if k == kind}))
        ]
        return found if beyond is None else [*found, self._of_field(beyond)]

    def _of_field(self, one: Seen) -> str:
        known = (
            f"this model was trained on fields of at most {self._strongest:g} V/Å"
            if self._strongest
            else "this model was trained without fields, and knows at most the response to a weak one"
        )
        self._strongest = math.inf  # said once, also in a field that changes with time
        return (
            f"{one.where}: an electric field of {one.electric_field:g} V/Å; {known}; train with structures "
            "in such fields"
        )

    def _sentence(self, kind: str, found: Mapping[str, str]) -> str:
        new = {value: where for value, where in found.items() if f"{kind} {value}" not in self._told}
        if not new:
            return ""
        self._told |= {f"{kind} {value}" for value in new}
        listed = ", ".join(list(new)[:_NAMED]) + (", …" if len(new) > _NAMED else "")
        where = next(iter(new.values()))
        if kind == "elements":
            known = ", ".join(self.record["elements"])
            return (
                f"{where}: {listed} occurs in no structure that this model was trained on (it was trained on "
                f"{known}), so that its predictions for it mean nothing; train with structures that have it"
            )
        if kind not in self.record:
            return (
                f"{where}: a {_TOTALS[kind]} of {listed}; the structures that this model was trained on do "
                "not all state theirs, so that it is not known whether it knows them; train with data "
                "that state it"
            )
        known = ", ".join(f"{float(value):g}" for value in self.record[kind][:_NAMED])
        known += ", …" if len(self.record[kind]) > _NAMED else ""
        taken = "" if self._model.backbone.reads(kind) else ", and does not take it as an input"
        return (
            f"{where}: a {_TOTALS[kind]} of {listed}; this model was trained on {known} alone{taken}, so "
            "that it does not know such molecules; train with structures that have it"
            + (f", and with inputs=Inputs({kind}=True)" if taken else "")
        )

    def warn(self, structures: Iterable[Seen], stacklevel: int = 3) -> None:
        """Warn (DataWarning) of what `sentences` finds, once for each value.

        Parameters
        ----------
        structures : iterable of Seen
            The structures.
        stacklevel : int
            As in `warnings.warn`.
        """
        for sentence in self.sentences(structures):
            warnings.warn(sentence, DataWarning, stacklevel=stacklevel)


def check_elements(model: Model | Ensemble, numbers: np.ndarray) -> None:
    """Check that a model knows the elements of a structure.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    numbers : array, shape (N,)
        Atomic numbers.

    Raises
    ------
    ModelError
        If it does not; the message names the elements and the first atom.
    """
    unknown = sorted({int(z) for z in numbers} - set(model.elements))
    if unknown:
        names = ", ".join(SYMBOLS[z] if 0 <= z < len(SYMBOLS) else str(z) for z in unknown)
        first = int(np.isin(numbers, unknown).argmax())
        known = ", ".join(SYMBOLS[z] for z in model.elements)
        raise ModelError(
            f"atom {first}: this model does not know {names}; it knows {known}; {OTHER_ELEMENTS}"
        )


def totals_taken(model: object) -> tuple[str, ...]:
    """Which of ``"charge"`` and ``"spin"`` a model reads; both if it is not known.

    Parameters
    ----------
    model : Model, Ensemble or other object
        The model. A backbone of the user may read both.
    """
    reads = getattr(getattr(model, "backbone", None), "reads", None)
    return tuple(name for name in INVARIANTS if reads is None or reads(name))


def read_as_trained(
    model: object,
    what: object,
    options: Mapping[str, Any],
    *,
    only: Collection[str],
    where: str | None = None,
    more: Collection[str] = (),
) -> Dataset:
    """Load structures as the training data of a model were read: normalization, sampling, conformers.

    Parameters
    ----------
    model : Model, Ensemble or other object
        The model.
    what : object
        As for `molequi.load_dataset`.
    options : mapping of str to object
        Options of the reader that the caller gave.
    only, where, more
        As for `molequi.readers.load.read_dataset`.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError, ConfigError
        As `molequi.load_dataset`; and if the data are normalized and those of the training were not, or the
        other way round.
    """
    reading, (reader, _) = reading_of(model), reader_of(what)
    if reader is not None:
        if reader is not read_smiles:  # RDKit molecules and SDF files have their own conformers
            reading.pop("conformers", None)
        options = options_of_training(reading, options, inspect.signature(reader).parameters)
    found = read_dataset(what, options, only=only, where=where, more=more)
    check_reading(reading_of(model), found.reading, "these data")
    return found


def reading_of(model: object) -> dict[str, Any]:
    """How the training data of a model were read, `Dataset.reading`; empty if it is not known.

    Parameters
    ----------
    model : Model, Ensemble or other object
        The model.
    """
    found = (getattr(model, "metadata", None) or {}).get("reading")
    return dict(found) if isinstance(found, Mapping) else {}


def warn_of_parts(model: Model | Ensemble, parts: Mapping[str, Dataset]) -> None:
    """Warn (DataWarning) of elements, charges and spins that no training structure has but another part has,
    and of stronger electric fields.

    Parameters
    ----------
    model : Model or Ensemble
        The model before its training; what it was trained on before counts.
    parts : mapping of str to Dataset
        The data by part, ``"train"`` among them.
    """
    past = (getattr(model, "metadata", None) or {}).get("trained_on") or {}
    now = {FIELD: 0.0} | domain_of(parts["train"])
    for part, data in parts.items():
        if part == "train":
            continue
        for kind, values in domain_of(data).items():
            if new := _only_there(kind, values, [now, past]):
                warnings.warn(
                    f"the {part} data have {new}, which no structure of the training data has, so that the "
                    f"model does not learn it and the errors of {part} include it; move such structures to "
                    "the training data, or leave them out",
                    DataWarning,
                    stacklevel=3,
                )


def _only_there(kind: str, values: Any, trained: Sequence[Mapping[str, Any]]) -> str:
    """What of the domain of a part is in no training data, in words."""
    if kind == FIELD:
        # A record of before without the entry: in which fields the model was trained is not known.
        largest = max(one.get(FIELD, math.inf) for one in trained if one)
        return f"an electric field of {values:g} V/Å" if values > largest * (1 + _ROUNDED) else ""
    known = [value for one in trained for value in one.get(kind, ())]
    new = [value for value in values if value not in known]
    if not new or not known:
        return ""
    listed = ", ".join(value if isinstance(value, str) else f"{value:g}" for value in new[:_NAMED])
    listed += ", …" if len(new) > _NAMED else ""
    return listed if kind == "elements" else f"a {_TOTALS[kind]} of {listed}"
