"""Speed, memory and precision of molequi's force fields and of other packages on one GPU, in a limited time.

    python tests/benchmarks/gpu.py [--minutes 9] [--only GauntACE "GauntACE compiled" …] [--path mace-torch=FOLDER …]
    python tests/benchmarks/gpu.py --device cpu --quick     # the same code with tiny models and structures
    python tests/benchmarks/gpu.py --minutes 0              # the tables of what was measured

Untrained weights, periodic structures of 100 to 20,000 atoms (molecules of acetylacetone or of the
shipped ethanol side by side). GauntACE is molequi's default force field (recipe `medium`); MACE and mace-torch have the
sizes `mace-64-1` of force_fields.py, NequIP and nequip those of `nequip-64-2`. All are in float32 without TF32, except
where the precision is the subject.

Measures: `infer`, energy and forces; `train`, one step on two structures; `precision`, with and without TF32 and in
float64: time, errors against float64 with the statistics of the data, and the rotation error by mq.audit; `md`, ns/day of
mq.md. Times are medians of calls that were waited for; neighbor lists count in `md` only. Memory is the peak of tensors
on the GPU. Before it is timed, forces are compared with numerical derivatives of the energy (up to 1000 atoms), and a
compiled code with its plain self. `start` is the time until a code has computed its first result, compilation included.

The other packages are measured where this Python, or the folder that --path names for one of them (pip install --target
FOLDER), has them: mace-torch and molequi want different versions of e3nn. What is absent, fails, hangs or does not fit in
the time is listed with its reason. Each code runs in a process of its own.

Rows are appended to gpu.jsonl in build/gpu, or in the folder of --out. What is there already is not measured again, so a
run that was stopped goes on; what ended at its --limit is tried again with a higher one. Delete the file to begin anew. gpu.md has the tables, gpu.log the last output of
codes that failed.
"""

import argparse
import importlib.machinery
import os
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from peers import client
from peers.device_rows import PRECISIONS, Budget, Job, Rows, kinds, show
from peers.structures import crystal, molecules, write

ATOMS, TRAINED, TINY = (100, 500, 2000, 5000, 10_000, 20_000), (100, 500, 2000), (30, 60)
SMALL = {"channels": 8, "layers": 1, "l_max": 1}  # of the quick run
NO_TIME, FAILED = "not measured: no time left", "not measured: it failed for"


@dataclass(frozen=True)
class Code:
    """adapter: its file. size: its name in SIZES. needs: modules that must be there. kernels: another package's."""

    adapter: str
    size: str
    needs: tuple[str, ...] = ()
    own: bool = False
    kernels: str | None = None
    accelerated: bool = False
    plain: str | None = None

    @property
    def package(self) -> str:
        return {"use_mace_torch.py": "mace-torch", "use_nequip.py": "nequip"}.get(self.adapter, "molequi")

    def taking(self, kernels: str, needs: tuple[str, ...], plain: str) -> "Code":
        return replace(self, kernels=kernels, needs=self.needs + needs, plain=plain)


def all_codes() -> dict[str, Code]:
    own, mace = Code("use_molequi.py", "mace-64-1"), Code("use_mace_torch.py", "mace-64-1", ("mace",))
    nequip = Code("use_nequip.py", "nequip-64-2", ("nequip",))
    cueq, oeq = ("cuequivariance_torch", "cuequivariance_ops_torch"), ("openequivariance",)
    plain = {
        "GauntACE": replace(own, own=True),
        "MACE": own,
        "NequIP": Code("use_molequi.py", "nequip-64-2"),
        "mace-torch": mace,
        "nequip": nequip,
        "nequip OpenEquivariance": nequip.taking("OpenEquivariance", oeq, "nequip"),
        "nequip cuEquivariance": nequip.taking("CuEquivariance", cueq, "nequip"),
    }
    compiled = {f"{n} compiled": replace(c, accelerated=True, plain=c.plain or n) for n, c in plain.items()}
    return plain | compiled | {"mace-torch cuEquivariance": mace.taking("cuEquivariance", cueq, "mace-torch")}


CODES = all_codes()


def plan(quick: bool) -> list[Job]:
    """What is measured, in this order: what matters most comes first, and what one process can measure stands together."""
    atoms, trained = (TINY, TINY[:1]) if quick else (ATOMS, TRAINED)
    sizes = {"infer": atoms, "train": trained, "md": trained[:1] if quick else (500, 5000)}
    sizes["precision"] = sizes["md"]
    order = [
        ("GauntACE", "infer train precision"),
        ("GauntACE compiled", "infer md"),
        ("mace-torch", "infer train"),
        ("mace-torch cuEquivariance", "infer train"),
        ("nequip", "infer"),
        ("nequip compiled", "infer"),
        ("nequip OpenEquivariance compiled", "infer"),
        ("MACE", "infer train precision"),
        ("NequIP", "infer train precision"),
        ("MACE compiled", "infer"),
        ("NequIP compiled", "infer"),
        ("GauntACE compiled", "train precision"),
        ("nequip", "train"),
        ("nequip OpenEquivariance", "infer train"),
        ("nequip cuEquivariance", "infer"),
        ("nequip cuEquivariance compiled", "infer"),
        ("mace-torch compiled", "infer"),
        ("MACE compiled", "train md"),
        ("NequIP compiled", "train md"),
        ("nequip compiled", "train"),
        ("GauntACE", "md"),
    ]
    if quick:  # one compilation
        order = [one for one in order if not CODES[one[0]].accelerated]
        order += [("GauntACE compiled", "infer")]
    return [
        Job(code, measure, n, precision)
        for code, measures in order
        for measure in measures.split()
        for precision in (PRECISIONS if measure == "precision" else PRECISIONS[:1])
        for n in sizes[measure]
    ]


def absent(code: Code, device: str, paths: dict[str, str]) -> str | None:
    """Why a code cannot be measured here; None if nothing is known."""
    where = [paths[code.package], *sys.path] if code.package in paths else sys.path
    missing = [name for name in code.needs if importlib.machinery.PathFinder.find_spec(name, where) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return f"{code.kernels} needs a GPU" if code.kernels and device == "cpu" else None


class Bench:
    """Runs jobs, with one process at a time."""

    def __init__(self, options: argparse.Namespace, rows: Rows, budget: Budget, begin: Callable):
        self.options, self.rows, self.budget, self.begin = options, rows, budget, begin
        self.worker, self.name, self.warm = None, None, set()

    def run(self, jobs: Iterable[Job]) -> None:
        jobs = [job for job in jobs if not self.rows.known(job, self.options.limit)]
        for number, job in enumerate(jobs):
            code, before = CODES[job.code], self.rows.failed_below(job)
            reason = absent(code, self.options.device, self.options.path)
            reason = reason or (before and f"{FAILED} {before} atoms")
            fresh = (job.code, job.measure == "train", job.precision) not in self.warm
            needed = (40 if code.accelerated else 15) if fresh else 5
            limit = self.budget.limit(self.options.limit, needed / (10 if self.options.quick else 1))
            if reason or limit is None:
                self.rows.add(job, {"skipped": reason or NO_TIME})
                continue
            print(f"[{number}/{len(jobs)}] {job}", file=sys.stderr, flush=True)
            self.rows.add(job, self.measured(job, code, limit))
        self.close()

    def measured(self, job: Job, code: Code, limit: float) -> dict:
        """The row of a job, or why there is none."""
        plain = self.rows.rows.get(Job(code.plain, "infer", job.atoms), {}) if code.plain else {}
        expected = plain.get("check") if job.precision == "float32" and job.measure != "precision" else None
        began = self.budget.clock()
        try:
            if self.worker is None or self.name != job.code or not self.worker.alive:
                self.close()
                self.worker, self.name = self.begin(job.code), job.code
                self.versions = self.worker.ask("versions", limit=limit)
            left = limit - (self.budget.clock() - began)
            row = self.worker.ask("device", limit=left, **self.request(job, code), expected=expected)
        except client.PeerError as error:
            self.warm = set()  # the next process starts anew
            slow = "no answer within" in str(error)
            if slow and limit < self.options.limit:
                return {"skipped": f"{NO_TIME} (ended after {limit:.0f} s)"}
            self.keep_log(job)
            return {"error": str(error)} | ({"limit": limit} if slow else {})
        self.warm.add((job.code, job.measure == "train", job.precision))
        if code.plain or job.measure != "infer":
            row.pop("check", None)  # only those of plain codes are compared with
        return row | {"versions": self.versions}

    def request(self, job: Job, code: Code) -> dict:
        """Precision is measured with the statistics of the data, so that its errors have their scale."""
        exact, size = job.measure == "precision", client.SIZES[code.size]
        small = SMALL | ({"l_hidden": 1} if size["kind"] == "mace" else {}) if self.options.quick else {}
        case = {
            "measure": job.measure,
            "structures": self.structures("molecules" if exact else ATOMS[0]),
            "size": size | small,
            "options": small,
            "own": code.own,
            "accelerated": code.accelerated,
            "isolated": exact,
            "kernels": code.kernels,
            "device": self.options.device,
            "precision": job.precision,
        }
        audited = self.structures(TINY[0]) if exact and not code.accelerated else None
        return {
            "case": case,
            "structures": self.structures(job.atoms),
            "seconds": 0.05 if self.options.quick else 1.0,
            "audited": audited,
        }

    def structures(self, what: int | str) -> str:
        path = self.options.scratch / f"{what}.npz"
        if not path.exists():
            frames, _ = molecules()
            chosen = frames[:20] if what == "molecules" else [crystal(frames, what)] * 2
            write(chosen, path, shake=0.0 if what == "molecules" else 0.01)
        return str(path)

    def keep_log(self, job: Job) -> None:
        if self.worker is not None:
            with self.rows.path.with_suffix(".log").open("a") as file:
                last = self.worker.log.read_text(errors="replace").splitlines()[-40:]
                print(f"--- {job}", *last, sep="\n", file=file)

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
        self.worker, self.warm = None, set()


def starter(options: argparse.Namespace) -> Callable[[str], client.Worker]:
    """Begins the process of a code."""
    threads = int(os.environ.get("OMP_NUM_THREADS", "1" if options.device == "cpu" else "4"))
    compilers = 1 if options.device == "cpu" else min(16, os.cpu_count() or 1)

    def begin(name: str) -> client.Worker:
        code = CODES[name]
        paths = [options.path.get(code.package), str(client.REPOSITORY), os.environ.get("PYTHONPATH")]
        settings = {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "TORCHINDUCTOR_COMPILE_THREADS": str(compilers),
        }
        peer = client.Peer(code.adapter, None, (), accelerated=code.accelerated, own=code.own)
        return client.Worker(peer, threads, settings=settings)

    return begin


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, help="of the whole run: 9, or 2 with --quick")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of one measurement at most")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="tiny models and structures")
    parser.add_argument("--only", nargs="+", choices=CODES, metavar="CODE", help=f"of {', '.join(CODES)}")
    parser.add_argument(
        "--out", type=Path, default=client.REPOSITORY / "build" / "gpu", help="folder of the rows"
    )
    parser.add_argument("--path", nargs="+", default=[], metavar="PACKAGE=FOLDER", help="where a package is")
    options = parser.parse_args(words)
    for word in options.path:
        package, _, folder = word.partition("=")
        if package not in ("mace-torch", "nequip") or not Path(folder).is_dir():
            parser.error(f"--path {word}: wanted mace-torch=FOLDER or nequip=FOLDER, and that folder")
    options.path = dict(word.split("=", 1) for word in options.path)
    options.minutes = options.minutes if options.minutes is not None else 2.0 if options.quick else 9.0
    options.scratch = client.REPOSITORY / "build" / "gpu" / "structures"
    return options


def device_name(device: str) -> str:
    import torch

    if device == "cpu":
        return "CPU"
    if not torch.cuda.is_available():
        sys.exit("gpu.py: torch sees no CUDA GPU here; try the program with --device cpu --quick")
    return torch.cuda.get_device_name()


def main() -> None:
    options = arguments()
    budget = Budget(options.minutes)
    path = options.out / "gpu.jsonl"
    if not options.minutes:
        show(path, kinds(path))
        return
    rows = Rows(path, {"device": device_name(options.device), "quick": options.quick})
    jobs = [job for job in plan(options.quick) if not options.only or job.code in options.only]
    bench = Bench(options, rows, budget, starter(options))
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    stopped = False
    try:
        bench.run(jobs)
    except KeyboardInterrupt:
        stopped = True
        print("stopped; what was measured is kept", file=sys.stderr)
    finally:
        bench.close()
    show(path, [rows.where])
    if stopped:
        sys.exit(130)


if __name__ == "__main__":
    main()
