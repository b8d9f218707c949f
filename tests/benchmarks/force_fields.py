"""Speed, scaling and accuracy of molequi's force fields beside those of other packages, measured in the same run.

    python tests/benchmarks/force_fields.py setup       # environments of the others in build/peers, once, about 2 GB
    python tests/benchmarks/force_fields.py speed [--quick] [--threads 1 2] [--peers mace-torch molequi …] [--sizes …]
    python tests/benchmarks/force_fields.py scaling [--atoms 15 120 500 1000 2000 5000 10000] [--memory 8]
    python tests/benchmarks/force_fields.py accuracy [--seconds 1800] [--peers …] [--sizes …]    # goes on if stopped
    python tests/benchmarks/force_fields.py plot        # tables and pictures of what was measured; nothing is run

Each code runs in its own process and environment (`peers/worker.py`), all in float32 with untrained weights of the same
sizes:

    mace-64-0, mace-64-1, mace-128-2   64x0e, 64x0e+64x1o, 128x0e+128x1o+128x2e; l_max 3, correlation 3, 2 layers
    nequip-64-2                        64 channels, l_max 2, 3 layers, natural parities
    nequip-tutorial                    32 channels, l_max 1, 4 layers, both parities: nequip's tutorial

`NAME-compiled` is the code compiled as its own documentation says; molequi-own is molequi's default force field (recipe
`acac`), the same beside every size. Measures: `train`, one step on ten molecules (forward with forces, loss on energies
and forces, backward, Adam with amsgrad); `infer`, energy and forces of one; `md`, a step of 0.5 fs with the code's own
ASE calculator. Neighbour lists count in `md` only.

All codes take turns, in random order, within one loop; the table has medians and the ratio to the first code, the
median and the middle half of the ratios in the same turn (wide: the machine was busy, believe `--clock processor`
rather than `wall`, with one thread). `start`: processor seconds until everything was built and had run once,
compilation included. `GFLOP`: matrix products that the plain path needs; `of limit`: their share of what this machine
reaches in a large one, the best of the same run; `GB`: traffic of the uncompiled operations. Results are checked before
they are timed: forces are the derivative of an energy, and a compiled code agrees with its plain self. A code that
cannot do something says why below the table.

Acetylacetone at 300 K where the variable MOLEQUI_DATA (or ../shared/data) has it, else the ethanol that the project
ships. Ctrl-C keeps what was measured, in build/force_fields.
"""

import argparse
import csv
import json
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from peers import report
from peers.client import OUT, PEERS, SIZES, PeerError, Worker, compare_pairs, environment
from peers.structures import crystal, molecules, write

MEASURES = ("infer", "md", "train")  # from small to large, since a process keeps memory that it took


def setup(options: argparse.Namespace) -> None:
    for name in dict.fromkeys(PEERS[p].environment for p in options.peers):
        if name is not None:
            environment(name)


class Progress:
    """What is being done and how long it may still take, on stderr."""

    def __init__(self, total: int):
        self.total, self.done, self.start = total, 0, time.monotonic()

    def say(self, what: str) -> None:
        left = (
            ""
            if not self.done
            else f", about {(time.monotonic() - self.start) / self.done * (self.total - self.done) / 60:.0f} min left"
        )
        print(f"[{self.done}/{self.total}{left}] {what}", file=sys.stderr, flush=True)


class Group:
    """Workers of several codes with one number of threads; those that cannot do something drop out, with their reason."""

    def __init__(self, names: list[str], threads: int, options: argparse.Namespace, progress: Progress):
        self.threads, self.progress, self.keep = threads, progress, options.keep_compiled
        self.workers: dict[str, Worker] = {}
        self.versions: dict[str, dict[str, str]] = {}
        self.memory = getattr(options, "memory", None)
        for name in names:
            self.begin(name)

    def begin(self, name: str) -> None:
        self.workers[name] = Worker(PEERS[name], self.threads, memory=self.memory, keep_compiled=self.keep)
        self.versions[name] = self.workers[name].ask("versions")

    def prepare(self, name: str, case: dict, row: dict) -> bool:
        """Whether it can; otherwise the row has the error."""
        peer = PEERS[name]
        try:
            if name not in self.workers:
                self.begin(name)
            row |= self.workers[name].ask(
                "prepare",
                case={"count": True} | case | {"accelerated": peer.accelerated, "own": peer.own},
                waiting=lambda s: self.progress.say(f"{name}: preparing since {s:.0f} s"),
            )
        except PeerError as error:
            row["error"] = str(error)
            self.drop(name)
        return "error" not in row

    def drop(self, name: str) -> None:
        """Ends a worker that died; one that only said no stays."""
        if name in self.workers and not self.workers[name].alive:
            self.workers.pop(name).close()

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_) -> None:
        for worker in self.workers.values():
            worker.close()


def take_turns(group: Group, rows: dict[str, dict], seconds: float) -> None:
    """Runs the prepared codes in random order until each had so many seconds; rows get lists of seconds a call.

    Seven turns at least, three where one turn takes longer than that. A code that fails under way leaves, with its
    reason.
    """
    calls: dict[str, int] = {}
    for row in rows.values():
        row |= {"wall": [], "processor": []}

    def run(name: str) -> None:
        try:
            taken = group.workers[name].ask("run", n=calls.get(name, 1))
        except PeerError as error:
            rows[name]["error"] = str(error)
            group.drop(name)
            return
        if name in calls:
            for clock in ("wall", "processor"):
                rows[name][clock].append(taken[clock] / calls[name])
        else:
            calls[name] = max(1, min(20, round(seconds / 10 / max(taken["wall"], 1e-4))))

    for name in rows:
        run(name)
    start, turns = time.monotonic(), 0
    while (
        turns < 3
        or time.monotonic() - start < seconds * len(rows)
        or (turns < 7 and time.monotonic() - start < 7 * seconds * len(rows))
    ):
        able = [name for name in rows if "error" not in rows[name]]
        if not able:
            return
        for name in random.sample(able, len(able)):
            run(name)
        turns += 1
    for name, row in rows.items():
        if "error" not in row:
            row["peak"] = group.workers[name].ask("memory")["peak"]


def measure(group: Group, names: list[str], case: dict, row: dict, seconds: float, record) -> None:
    """Prepares and times one case for all codes; `record` gets their rows."""
    rows = {}
    for name in names:
        rows[name] = row | {"peer": name, "versions": group.versions.get(name, {}), "threads": group.threads}
        group.progress.say(f"{row['size']}, {row['measure']}, {group.threads} threads: {name}")
        group.prepare(name, case, rows[name])
        group.progress.done += 1
    compare_pairs(rows)
    ready = {name: r for name, r in rows.items() if "error" not in r}
    if ready:
        limit = group.workers[next(iter(ready))].ask("limits")
        take_turns(group, ready, seconds)
        for r in ready.values():
            r["limits"] = limit
    for r in rows.values():
        record(r)


def recorder(name: str):
    """Appends rows to build/force_fields/NAME.jsonl, a new one for each command."""
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{name}.jsonl"
    path.write_text("")

    def record(row: dict) -> None:
        with path.open("a") as file:
            print(json.dumps(row), file=file)

    return record


def speed(options: argparse.Namespace) -> None:
    frames, origin = molecules()
    path = write(frames[: max(20, 2 * options.batch)], OUT / "speed.npz")
    peers, sizes = options.peers, options.sizes
    takers = {size: [p for p in peers if PEERS[p].takes(SIZES[size]["kind"])] for size in sizes}
    progress = Progress(len(options.threads) * len(options.measures) * sum(map(len, takers.values())))
    record = recorder("speed")
    for threads in options.threads:
        for size in sizes:
            with Group(takers[size], threads, options, progress) as group:
                for what in options.measures:
                    case = {
                        "measure": what,
                        "structures": str(path),
                        "size": SIZES[size],
                        "batch": options.batch,
                    }
                    measure(
                        group,
                        takers[size],
                        case,
                        {"size": size, "measure": what, "data": origin},
                        options.seconds,
                        record,
                    )


def scaling(options: argparse.Namespace) -> None:
    frames, origin = molecules()
    record = recorder("scaling")
    (size,) = options.sizes
    takers = [p for p in options.peers if PEERS[p].takes(SIZES[size]["kind"])]
    progress = Progress(len(options.atoms) * len(takers))
    finished = set()
    with Group(takers, options.threads[0], options, progress) as group:
        for wanted in options.atoms:
            structure = frames[0] if wanted <= len(frames[0]) else crystal(frames, wanted)
            path = write([structure, structure], OUT / "scaling.npz", shake=0.01)
            case = {
                "measure": "infer",
                "structures": str(path),
                "size": SIZES[size],
                "batch": 1,
                "count": False,
            }
            row = {"size": size, "measure": "infer", "data": origin, "atoms": len(structure)}
            names = [p for p in takers if p not in finished]
            rows = []
            measure(group, names, case, row, options.seconds, rows.append)
            for r in rows:
                record(r)
                if "error" in r:  # what does not fit will not fit in a larger size
                    finished.add(r["peer"])
                    progress.done += sum(n > wanted for n in options.atoms)


def accuracy(options: argparse.Namespace) -> None:
    train, valid, origin = molecules(split=True)
    folder = OUT / "accuracy"
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "structures": str(write(train, folder / "train.npz")),
        "valid": str(write(valid, folder / "valid.npz")),
    }
    runs = [
        (p, s)
        for s in options.sizes
        for p in options.peers
        if PEERS[p].takes(SIZES[s]["kind"]) and not PEERS[p].own
    ]
    runs += [(p, None) for p in options.peers if PEERS[p].own]
    for number, (name, size) in enumerate(runs, 1):
        peer, title = PEERS[name], f"{name} {size}" if size else name
        path = folder / f"{title.replace(' ', '_')}.csv"
        case = {
            "measure": "train",
            "structures": files["structures"],
            "size": SIZES[size or "mace-64-1"],
            "isolated": True,
            "accelerated": peer.accelerated,
            "own": peer.own,
        }
        print(
            f"[{number}/{len(runs)}] {title}: {options.seconds:g} processor seconds, {origin}",
            file=sys.stderr,
            flush=True,
        )
        worker = Worker(peer, options.threads[0], keep_compiled=options.keep_compiled)
        try:
            versions = worker.ask("versions")
            for row in worker.stream(
                "train",
                case=case,
                valid=files["valid"],
                seconds=options.seconds,
                state=str(path.with_suffix(".pt")),
                waiting=lambda s: print(f"  since {s:.0f} s", file=sys.stderr, flush=True),
            ):
                append(
                    path,
                    row | {"versions": " ".join(f"{k} {v}" for k, v in versions.items()), "data": origin},
                )
                print(
                    f"  {row['processor']:.0f} s of {options.seconds:g}: epoch {row['epoch']}, "
                    f"forces {row['forces_rmse']:.1f} meV/Å, "
                    f"energy {row['energy_rmse']:.2f} meV/atom",
                    file=sys.stderr,
                    flush=True,
                )
        except PeerError as error:
            print(f"  {title}: {error}", file=sys.stderr, flush=True)
        finally:
            worker.close()


def append(path: Path, row: dict) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    defaults = {
        "speed": (1.0, ["mace-64-0", "mace-64-1", "mace-128-2", "nequip-64-2"], list(PEERS)),
        "scaling": (
            1.0,
            ["mace-64-1"],
            ["mace-torch", "molequi", "molequi-compiled", "molequi-own", "molequi-own-compiled"],
        ),
        "accuracy": (
            1800.0,
            ["mace-64-0", "nequip-tutorial"],
            ["mace-torch", "nequip", "nequip-compiled", "molequi-own-compiled"],
        ),
    }
    for name, (seconds, sizes, peers) in defaults.items():
        command = commands.add_parser(name)
        command.add_argument(
            "--peers",
            nargs="+",
            choices=PEERS,
            default=peers,
            metavar="NAME",
            help=f"of {', '.join(PEERS)}; ratios are to the first",
        )
        command.add_argument(
            "--sizes",
            nargs="+" if name != "scaling" else 1,
            choices=SIZES,
            default=sizes,
            metavar="SIZE",
            help=", ".join(SIZES),
        )
        command.add_argument(
            "--seconds",
            type=float,
            default=seconds,
            help="processor seconds of a training" if name == "accuracy" else "of each code and row",
        )
        command.add_argument(
            "--threads",
            type=int,
            nargs="+" if name == "speed" else 1,
            default=[1, 2] if name == "speed" else [1],
        )
        command.add_argument(
            "--keep-compiled",
            action="store_true",
            help="compiled code of an earlier run is used again, so that `start` says nothing",
        )
        if name != "accuracy":
            command.add_argument(
                "--clock", choices=["wall", "processor"], default="wall", help="of the table"
            )
    commands.choices["speed"].add_argument("--measures", nargs="+", choices=MEASURES, default=list(MEASURES))
    commands.choices["speed"].add_argument("--batch", type=int, default=10)
    commands.choices["speed"].add_argument(
        "--quick", action="store_true", help="one thread, mace-64-0, nothing compiled"
    )
    commands.choices["scaling"].add_argument(
        "--atoms", type=int, nargs="+", default=[15, 120, 500, 1000, 2000, 5000, 10_000]
    )
    commands.choices["scaling"].add_argument(
        "--memory", type=float, default=8.0, help="GB that a code may take; it stops where that is not enough"
    )
    make = commands.add_parser("setup")
    make.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), metavar="NAME")
    plot = commands.add_parser("plot")
    plot.add_argument("--clock", choices=["wall", "processor"], default="wall")
    options = parser.parse_args(words)
    if getattr(options, "quick", False):
        options.threads, options.sizes, options.peers = (
            [1],
            ["mace-64-0"],
            [p for p in options.peers if not PEERS[p].accelerated],
        )
    return options


def main() -> None:
    options = arguments()
    stopped = False
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    try:
        {"setup": setup, "speed": speed, "scaling": scaling, "accuracy": accuracy, "plot": lambda _: None}[
            options.command
        ](options)
    except KeyboardInterrupt:
        stopped = True
        print("stopped; what was measured is kept", file=sys.stderr)
    except PeerError as error:
        sys.exit(f"force_fields.py: {error}")
    if options.command != "setup":
        report.write(
            OUT,
            [options.command] if options.command != "plot" else ["speed", "scaling", "accuracy"],
            getattr(options, "clock", "wall"),
        )
    if stopped:
        sys.exit(130)


if __name__ == "__main__":
    main()
