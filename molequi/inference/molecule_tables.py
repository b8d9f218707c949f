"""Predictions for molecules without geometry, few or millions: embedded, predicted and written part by part."""

import csv
import inspect
import io
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt

from molequi.data.request import Request
from molequi.errors import ConfigError, DataError
from molequi.inference.predictions import Trained, append_structures, loaded, predictions, totals_taken
from molequi.model import Model
from molequi.quantities import KNOWN, SYMBOLS, Quantity
from molequi.readers.files import expand_paths
from molequi.readers.molecule_files import SDF, SMI, Row, sdf_rows, smiles_rows, suffix
from molequi.readers.molecules import (
    Rejected,
    conformer_dataset,
    embedder,
    geometry_options,
    rejection,
    report_rejected,
)
from molequi.util.files import file_sha256, sha256, write_atomically
from molequi.util.progress import ProgressBar
from molequi.util.signature import check_call

CHUNK = 256  # molecules that are in memory together


@dataclass(frozen=True)
class Screened:
    """What `screen` has done: how many molecules, how many of them could not be used, where the table is, what it has not."""

    molecules: int
    rejected: int
    out: Path
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        text = (
            f"{self.molecules} molecules"
            + (f", {self.rejected} of them without a prediction" if self.rejected else "")
            + f": {self.out}"
        )
        return text + (f"\nnot in a table: {', '.join(self.left_out)}" if self.left_out else "")


def screen(
    model: Trained,
    molecules: str | os.PathLike | Sequence[str],
    out: str | os.PathLike,
    *,
    column: str = "smiles",
    conformers: Annotated[int, Ge(1)] = 1,
    seed: Annotated[int, Ge(0)] = 0,
    optimize: Literal["mmff", "uff"] | None = "mmff",
    fragments: Literal["refuse", "largest"] = "refuse",
    embed: bool = False,
    skip: bool = False,
    workers: Annotated[int, Ge(1)] | None = None,
    device: str | None = None,
    batch_edges: Annotated[int, Gt(0)] | None = None,
    progress: bool = True,
) -> Screened:
    """Predictions for a file of molecules of any length, as a table; memory does not grow with the length.

    molecules: a table or list of SMILES or an SDF as `read_smiles` and `read_sdf` take it, with their options `column`, `conformers`,
        `seed`, `optimize`, `fragments`, `embed` and `workers`. Features of atoms and bonds are made for a model that takes them.
    out: a .csv with a row for each molecule in their order: the columns of the input (one that has the name of a prediction gets
        `_given` behind its own), the SMILES, the quantities of the model that are numbers of a whole molecule, in eV, Å and e, for
        classes the likeliest and the probability of each; with several conformers the mean, `<name>_spread` and `conformers`, how
        many there were. An ensemble adds the spread over its members, `<name>_spread`, or `<name>_members_spread` where that name is
        taken by several conformers.
    skip: molecules that cannot be used keep a row, without numbers and with `reason`; else the first part with such ends it with a
        DataError.
    The table grows as `<out>.partial` and gets its name when it is whole. What was interrupted goes on where it stopped when it is
    called again with the same model, molecules and options.
    """
    model = loaded(model, device)
    made = dict(
        column=column, conformers=conformers, seed=seed, optimize=optimize, fragments=fragments, embed=embed
    )
    source = _Source(molecules, column)
    table = _Table(Path(out), model, source, made, skip, go_on=True)
    for _ in _predicted(model, source, made, table, skip, workers, batch_edges, progress):
        pass
    return table.finish()


def predict_molecules(
    model: Model, molecules, *, out=None, batch_edges=None, progress=True, **options
) -> list[dict[str, np.ndarray]]:
    """Results of `predict` for molecules, one each."""
    check_call(
        screen,
        options,
        where="predict",
        leave_out=("model", "molecules", "out", "device", "batch_edges", "progress"),
    )
    default = {name: p.default for name, p in inspect.signature(screen).parameters.items()}
    made = {
        name: options.get(name, default[name])
        for name in ("column", "conformers", "seed", "optimize", "fragments", "embed")
    }
    skip, workers = (options.get(name, default[name]) for name in ("skip", "workers"))
    source = _Source(molecules, made["column"])
    table = (
        _Table(Path(out), model, source, made, skip, go_on=False)
        if out is not None and Path(out).suffix == ".csv"
        else None
    )
    results: list = []

    def collect(keep=None) -> None:
        for part, data, each in _predicted(model, source, made, table, skip, workers, batch_edges, progress):
            results.extend(result for _, result, _ in part)
            if keep and data is not None:
                keep(data, each)

    if table is not None:
        collect()
        table.finish()
    elif out is not None:
        write_atomically(
            Path(out), lambda path: collect(lambda data, each: append_structures(path, data, each, model))
        )
    else:
        collect()
    return results


class _Source:
    """Molecules in a list or in files, that can be gone through again and again."""

    def __init__(self, molecules: Any, column: str):
        self.files, self.items, self.column = [], [], column
        if not isinstance(molecules, (str, os.PathLike)):
            self.items = list(molecules)
        kinds = [suffix(Path(item)) for item in self.items if isinstance(item, (str, os.PathLike))]
        if isinstance(molecules, (str, os.PathLike)) or (kinds and all(kind in SDF for kind in kinds)):
            self.files = expand_paths(molecules)
        self.kind = "sdf" if self.files and suffix(self.files[0]) in SDF else "smiles"
        self.name = ", ".join(map(str, self.files)) or "list"
        self.total, self.columns = 0, []
        for row in self.rows():  # the whole file is looked through before anything is embedded
            if not self.total:
                self.columns = (
                    ["name"] if self.kind == "sdf" or suffix(Path(self.name)) in SMI else list(row.columns)
                )
            self.total += 1
        if not self.total:
            raise DataError(f"{self.name}: no molecules; wanted at least one")

    def rows(self) -> Iterator[Row]:
        if self.kind == "smiles":
            yield from smiles_rows(self.files[0] if self.files else self.items, column=self.column)
            return
        for number, row in enumerate(itertools.chain.from_iterable(map(sdf_rows, self.files))):
            yield replace(row, number=number)

    @property
    def digest(self) -> str:
        return " ".join(map(file_sha256, self.files)) or sha256([json.dumps(self.items)])


def _predicted(
    model: Model, source: _Source, made: dict, table: "_Table | None", skip, workers, batch_edges, progress
):
    """For one part of the molecules after the other: (row, mean result, Rejected or None) of each; all conformers as a Dataset, or
    None; and their results.
    """
    start = table.rows if table else 0
    keys = dict.fromkeys((*KNOWN, *(n for n in ("charge", "spin") if n not in totals_taken(model))))
    request = Request(quantities=(), keys=keys, units=None, partial=())
    inputs = model.backbone.inputs
    sized = inputs is not None and bool(inputs.node_features or inputs.edge_features)
    options = geometry_options(
        source.kind, request, features=sized, **{k: v for k, v in made.items() if k != "column"}
    )
    refused: list[Rejected] = []
    ahead, rows = itertools.tee(itertools.islice(source.rows(), start, None))
    with (
        embedder(options, source.total - start, workers) as processes,
        ProgressBar("molecules", source.total, unit="molecule", show=progress, start=start, delay=2) as bar,
    ):
        answers = zip(rows, processes.map(row.text for row in ahead))
        while part := list(itertools.islice(answers, CHUNK)):
            reasons = [row.fault or answer.get("reason") or _strange(model, answer) for row, answer in part]
            wrong = [rejection(row, reason, options) for (row, _), reason in zip(part, reasons) if reason]
            refused += wrong
            if wrong and not skip:
                report_rejected(
                    wrong,
                    f"{source.name}, rows {part[0][0].number} to {part[-1][0].number}",
                    len(part),
                    False,
                )
            kept = [pair for pair, reason in zip(part, reasons) if not reason]
            data = conformer_dataset(kept, request) if kept else None
            each = predictions(model, data, batch_edges, progress=False) if kept else []
            of: dict[int, list] = {}
            for number, result in zip(data.info["molecule"] if kept else (), each):
                of.setdefault(number, []).append(result)
            left = iter(wrong)
            told = [
                (row, {}, next(left))
                if reason
                else (row, averaged(of[row.number], model, made["conformers"]), None)
                for (row, _), reason in zip(part, reasons)
            ]
            if table:
                table.add(
                    told,
                    {row.number: len(answer.get("pos", ())) for row, answer in part},
                    {row.number: answer.get("canonical", "") for row, answer in part},
                )
            yield told, data, each
            bar.advance(len(part))
    if refused and skip and table is None:
        report_rejected(refused, source.name, source.total, True)


def _strange(model: Model, answer: dict) -> str:
    strange = sorted(set(answer.get("z", ())) - set(model.elements))
    known = " ".join(SYMBOLS[z] for z in model.elements)
    return (
        f"{', '.join(SYMBOLS[z] for z in strange)}: not an element that the model knows ({known})"
        if strange
        else ""
    )


def averaged(results: Sequence[dict], model: Model, conformers: int) -> dict[str, np.ndarray]:
    """One result of those of several conformers: of numbers mean and spread, a standard deviation; vectors and tensors one after the
    other, as they turn with their geometries. The spread of an ensemble has the name that is left, and is the rms over conformers.
    """
    out = {}
    for name, q in model.quantities.items():
        values = np.array([result[name] for result in results])
        if conformers == 1:
            out[name] = values[0]
        elif q.rank:
            out[name] = values
        else:
            out[name] = values.mean(0)
            if not q.classes:
                out[f"{name}_spread"] = (
                    values.std(0, ddof=1) if len(values) > 1 else np.full_like(out[name], np.nan)
                )
    for name, spread in model.spreads.items():
        values = np.array([result[spread.name] for result in results])
        if conformers == 1:
            out[spread.name] = values[0]
        else:
            out[f"{name}_members_spread"] = (
                values if model.quantities[name].rank else np.sqrt((values**2).mean(0))
            )
    return out


class _Table:
    """The table of `screen`: it grows in a file of its own, with a note of how far it is, and then takes its name."""

    def __init__(self, path: Path, model: Model, source: _Source, made: dict, skip: bool, *, go_on: bool):
        if path.suffix != ".csv":
            raise ConfigError(f"out={path}: wanted a name that ends in .csv")
        if any(path.exists() and path.samefile(file) for file in source.files):
            raise ConfigError(f"out={path}: this is the file of the molecules; choose another name")
        self.quantities = [q for q in model.quantities.values() if q.per == "graph" and q.rank == 0]
        self.spreads = {
            n: q.name if made["conformers"] == 1 else f"{n}_members_spread" for n, q in model.spreads.items()
        }
        self.left_out = tuple(n for n, q in model.quantities.items() if q not in self.quantities)
        if not self.quantities:
            raise ConfigError(
                f"the model predicts {', '.join(model.quantities)}, none of which is one number of a molecule; a table holds "
                "nothing else, structures hold all: predict(..., out='NAME.xyz')"
            )
        self.path, self.source, self.conformers, self.skip = path, source, made["conformers"], skip
        self.partial, self.note = (
            path.with_name(path.name + ".partial"),
            path.with_name(path.name + ".partial.json"),
        )
        self.key = self._key(model, made)
        self.rows = self.rejected = 0
        names = self._names()
        self.header = [f"{c}_given" if c in (*names, "smiles") else c for c in source.columns] + [
            "smiles",
            *names,
        ]
        if not (go_on and self._found()):
            self.partial.write_text(_line(self.header), encoding="utf-8")
            self._noted()

    def _names(self) -> list[str]:
        names = []
        for q in self.quantities:
            names += [q.name, *(f"{q.name}_{c}" for c in q.classes)]
            names += [f"{q.name}_spread"] if self.conformers > 1 and not q.classes else []
            names += [self.spreads[q.name]] if self.spreads else []
        return names + (["conformers"] if self.conformers > 1 else []) + ["reason"]

    def _key(self, model: Model, made: dict) -> str:
        settings = [self.source.digest, made, sorted(model.outputs), getattr(model, "scales", {})]
        weights = (
            name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes()
            for name, tensor in sorted(model.state_dict().items())
        )
        return sha256(itertools.chain([json.dumps(settings, sort_keys=True)], weights))

    def _found(self) -> bool:
        try:
            note = json.loads(self.note.read_text())
            if note["key"] != self.key or self.partial.stat().st_size < note["bytes"]:
                return False
            os.truncate(self.partial, note["bytes"])
            self.rows, self.rejected = note["rows"], note["rejected"]
        except (OSError, ValueError, KeyError, TypeError):  # nothing to go on from
            return False
        return True

    def _noted(self) -> None:
        note = {
            "key": self.key,
            "rows": self.rows,
            "rejected": self.rejected,
            "bytes": self.partial.stat().st_size,
        }
        write_atomically(self.note, lambda path: path.write_text(json.dumps(note)))

    def add(self, part, found: dict[int, int], canonical: dict[int, str]) -> None:
        """Rows of one part, on the disk when this returns."""
        text = []
        for row, result, wrong in part:
            smiles = row.text if self.source.kind == "smiles" else canonical[row.number]
            cells = [row.columns.get(c, "") for c in self.source.columns] + [smiles]
            for q in self.quantities:
                cells += _cells(q, result, self.conformers)
                cells += [_shown(result[self.spreads[q.name]]) if result else ""] if self.spreads else []
            cells += ["" if wrong else found[row.number]] if self.conformers > 1 else []
            text.append(_line([*cells, wrong.reason if wrong else ""]))
        with open(self.partial, "a", encoding="utf-8", newline="") as file:
            file.write("".join(text))
            file.flush()
            os.fsync(file.fileno())
        self.rows += len(part)
        self.rejected += sum(wrong is not None for *_, wrong in part)
        self._noted()

    def finish(self) -> Screened:
        os.replace(self.partial, self.path)
        self.note.unlink(missing_ok=True)
        return Screened(self.rows, self.rejected, self.path, self.left_out)


def _cells(q: Quantity, result: dict, conformers: int) -> list:
    if not result:
        return [""] * (1 + len(q.classes) + (conformers > 1 and not q.classes))
    value = result[q.name]
    if q.classes:
        odds = np.exp(value - value.max())
        return [q.classes[int(value.argmax())], *(f"{p:.6g}" for p in odds / odds.sum())]
    numbers = [value, result[f"{q.name}_spread"]] if conformers > 1 else [value]
    return [_shown(v) for v in numbers]


def _shown(value) -> str:
    return "" if np.isnan(value) else f"{float(value):.10g}"


def _line(cells: Sequence) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
