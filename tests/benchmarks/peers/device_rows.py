"""The measurements of gpu.py: their time, the rows that are kept, and the tables of them."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from peers.report import markdown, number, read_rows, versions

PRECISIONS = ("float32", "tf32", "float64")
EVEN = 500  # atoms from which on the cost of one is compared


class Job(NamedTuple):
    """One measurement."""

    code: str
    measure: str
    atoms: int
    precision: str = "float32"

    def __str__(self) -> str:
        return f"{self.code}, {self.measure}, {self.precision}, {self.atoms:,} atoms"


class Budget:
    """The time of the whole run."""

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic):
        self.clock, self.end = clock, clock() + 60 * minutes

    def limit(self, most: float, needed: float) -> float | None:
        """Seconds that something may take; None if there is less than it needs."""
        left = self.end - self.clock()
        return min(most, left) if left >= needed else None


class Rows:
    """The rows of a file by job; those of another device or another kind of run (`where`) are left alone."""

    def __init__(self, path: Path, where: dict):
        self.path, self.where = path, where
        self.rows: dict[Job, dict] = {}
        for row in read_rows(path):
            if all(row.get(name) == value for name, value in where.items()):
                self.rows[Job(*(row[name] for name in Job._fields))] = row

    def known(self, job: Job, limit: float) -> bool:
        """Whether it needs no measurement: it was measured, or it has failed, or it took longer than `limit` seconds."""
        row = self.rows.get(job, {"skipped": ""})
        return "skipped" not in row and row.get("limit", limit) >= limit

    def add(self, job: Job, row: dict) -> None:
        self.rows[job] = job._asdict() | self.where | row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            print(json.dumps(self.rows[job]), file=file, flush=True)

    def failed_below(self, job: Job) -> int | None:
        """The smallest structure below this one for which the same has failed."""
        return min(
            (
                j.atoms
                for j, r in self.rows.items()
                if "error" in r and j._replace(atoms=0) == job._replace(atoms=0) and j.atoms < job.atoms
            ),
            default=None,
        )


def kinds(path: Path) -> list[dict]:
    """The devices and kinds of run of which a file has rows."""
    found = [{name: row[name] for name in ("device", "quick")} for row in read_rows(path)]
    return [where for k, where in enumerate(found) if where not in found[:k]]


def show(path: Path, wheres: list[dict]) -> None:
    """Prints the tables and writes them beside the rows."""
    text = "\n".join(tables(Rows(path, where).rows) for where in wheres) or tables({})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(text)
    print(text)


def spread(costs: dict[int, float]) -> float | None:
    """Largest over smallest cost of an atom, by the number of atoms, from EVEN atoms on."""
    large = [cost for atoms, cost in costs.items() if atoms >= EVEN]
    return max(large) / min(large) if len(large) > 1 else None


def tables(rows: dict[Job, dict]) -> str:
    done = {job: row for job, row in rows.items() if not {"error", "skipped"} & row.keys()}
    parts = [
        f"# {next(iter(rows.values()))['device']}\n\n{versions([*done.values()])}"
        if rows
        else "Nothing was measured.",
        by_size(done, "infer", "Energy and forces, float32"),
        by_size(done, "train", "A training step on two structures, float32"),
        by_precision(done),
        of_dynamics(done),
        missing(rows),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def by_size(rows: dict[Job, dict], measure: str, title: str) -> str:
    found = {job: row for job, row in rows.items() if job.measure == measure}
    sizes = sorted({job.atoms for job in found})
    lines = []
    for code in dict.fromkeys(job.code for job in found):
        own = {job.atoms: row for job, row in found.items() if job.code == code}
        cost = {n: 1e3 * row["ms"] / row["atoms"] for n, row in own.items()}
        plain = [row["against_plain"] for row in own.values() if "against_plain" in row]
        cells = [
            f"{own[n]['ms']:.3g} / {cost[n]:.3g} / {own[n]['memory']:.2g}" if n in own else "–" for n in sizes
        ]
        lines.append(
            [
                code,
                *cells,
                number(spread(cost), ".2f"),
                number(max(row["start"] for row in own.values()), ".1f"),
                number(max(plain, default=None), ".0e"),
            ]
        )
    atoms = {job.atoms: row["atoms"] for job, row in found.items()}
    header = ["code", *(f"{atoms[n]:,}" for n in sizes), "largest / smallest", "start s", "against plain"]
    text = (
        f"## {title}: ms / µs an atom / GB, by the number of atoms in all\n\nlargest / smallest: of the time an atom, from "
        f"{EVEN} atoms on. start: to the first result, compilation included. against plain: largest difference of "
        "forces from the plain code, over the largest force; – where there is none to compare with.\n\n"
    )
    return text + markdown(header, lines) if lines else ""


def by_precision(rows: dict[Job, dict]) -> str:
    lines = [
        [
            job.code,
            job.precision,
            f"{row['atoms']:,}",
            *(number(row[name]) for name in ("ms", "memory")),
            *(number(row[name], ".2g") for name in ("energy_error", "forces_error", "forces_relative")),
            *(number(row.get("rotation", {}).get(name), ".1e") for name in ("energy", "forces")),
        ]
        for job, row in sorted(
            rows.items(), key=lambda one: (one[0].code, one[0].atoms, PRECISIONS.index(one[0].precision))
        )
        if job.measure == "precision"
    ]
    header = ["code", "precision", "atoms", "ms", "GB", "energy meV/atom", "forces meV/Å", "forces relative"]
    header += ["rotation: energy", "forces"]
    text = (
        "## Precision: energy and forces, errors against float64\n\nLargest errors, and the root mean square of those of "
        "forces over that of forces. rotation: largest relative error of mq.audit.\n\n"
    )
    return text + markdown(header, lines) if lines else ""


def of_dynamics(rows: dict[Job, dict]) -> str:
    lines = [
        [job.code, f"{row['atoms']:,}", number(row["ns_per_day"]), str(row["steps"]), number(row["memory"])]
        for job, row in rows.items()
        if job.measure == "md"
    ]
    return (
        "## mq.md, steps of 0.5 fs\n\n" + markdown(["code", "atoms", "ns/day", "steps", "GB"], lines)
        if lines
        else ""
    )


def missing(rows: dict[Job, dict]) -> str:
    """What was not measured, by its reason."""
    why: dict[tuple[str, str], dict[str, list[str]]] = {}
    for job, row in rows.items():
        reason = row.get("error") or row.get("skipped")
        if reason:
            name = job.measure if job.precision == PRECISIONS[0] else f"{job.measure} {job.precision}"
            why.setdefault((job.code, reason), {}).setdefault(name, []).append(f"{job.atoms:,}")
    lines = [
        f"- {code}: {reason} ({'; '.join(f'{name} {chr(47).join(n)}' for name, n in where.items())})"
        for (code, reason), where in why.items()
    ]
    return "## Without figures\n\n" + "\n".join(lines) if lines else ""
