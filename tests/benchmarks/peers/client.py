"""The codes that are compared, their environments, and the processes in which they run."""

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parent
ENVIRONMENTS, OUT = REPOSITORY / "build" / "peers", REPOSITORY / "build" / "force_fields"
PACKAGES = {"mace-torch": ["mace-torch"], "nequip": ["nequip"]}


class PeerError(Exception):
    """A code cannot do what it was asked, and says why."""


@dataclass(frozen=True)
class Peer:
    """adapter: its file. environment: name of its environment, None for this one. kinds: architectures that it has.

    accelerated: compiled. plain: the name of the same code that is not. own: its own default architecture, whatever the
    size.
    """

    adapter: str
    environment: str | None
    kinds: tuple[str, ...]
    accelerated: bool = False
    plain: str | None = None
    own: bool = False

    def takes(self, kind: str) -> bool:
        return kind in self.kinds


PEERS = {
    "mace-torch": Peer("use_mace_torch.py", "mace-torch", ("mace",)),
    "mace-torch-compiled": Peer(
        "use_mace_torch.py", "mace-torch", ("mace",), accelerated=True, plain="mace-torch"
    ),
    "nequip-compiled": Peer("use_nequip.py", "nequip", ("nequip",), accelerated=True, plain="nequip"),
    "nequip": Peer("use_nequip.py", "nequip", ("nequip",)),
    "molequi": Peer("use_molequi.py", None, ("mace", "nequip")),
    "molequi-compiled": Peer("use_molequi.py", None, ("mace", "nequip"), accelerated=True, plain="molequi"),
    "molequi-own": Peer("use_molequi.py", None, ("mace", "nequip"), own=True),
    "molequi-own-compiled": Peer(
        "use_molequi.py", None, ("mace", "nequip"), accelerated=True, plain="molequi-own", own=True
    ),
}

MACE = {"kind": "mace", "l_max": 3, "correlation": 3, "layers": 2}
SIZES = {
    "mace-64-0": MACE | {"channels": 64, "l_hidden": 0},
    "mace-64-1": MACE | {"channels": 64, "l_hidden": 1},
    "mace-128-2": MACE | {"channels": 128, "l_hidden": 2},
    "nequip-64-2": {"kind": "nequip", "channels": 64, "l_max": 2, "layers": 3, "parity": False},
    "nequip-tutorial": {"kind": "nequip", "channels": 32, "l_max": 1, "layers": 4, "parity": True},
}


def environment(name: str) -> None:
    """Makes the environment of a code, torch first by the version pinned here; does nothing where it is there."""
    folder = ENVIRONMENTS / name
    ready = folder / ".ready"
    torch = next(
        line
        for line in (REPOSITORY / ".constraints.txt").read_text().splitlines()
        if line.startswith("torch==")
    )
    if ready.exists() and ready.read_text() == torch:
        return
    print(
        f"{folder.relative_to(REPOSITORY)}: {torch}, {' '.join(PACKAGES[name])}", file=sys.stderr, flush=True
    )
    venv.create(folder, with_pip=True)
    for packages in ([torch], [torch, *PACKAGES[name]]):
        if subprocess.run([python(name), "-m", "pip", "install", "--quiet", *packages]).returncode:
            raise PeerError(f"{name}: pip install {' '.join(packages)} failed; see above")
    ready.write_text(torch)


def compare_pairs(rows: dict[str, dict]) -> None:
    """A compiled code must agree with its plain self to 1e-3 of the largest force component, or its row has an error."""
    for name, row in rows.items():
        plain = rows.get(PEERS[name].plain)
        if "check" in row and plain and "check" in plain:
            for what in ("energies", "forces"):
                difference = max(abs(a - b) for a, b in zip(row["check"][what], plain["check"][what]))
                if difference > 1e-3 * max(abs(v) for v in plain["check"]["forces"]):
                    row["error"] = f"its {what} differ by {difference:.2g} from those of {PEERS[name].plain}"
    for row in rows.values():
        row.pop("check", None)


def python(name: str | None) -> str:
    return (
        sys.executable
        if name is None
        else str(ENVIRONMENTS / name / ("Scripts" if os.name == "nt" else "bin") / "python")
    )


class Worker:
    """A code in a process of its own; `ask` sends a request and waits for the reply.

    memory: GB that it may take. keep_compiled: what compilers leave is kept for later runs; otherwise it compiles anew.
    settings: further variables of its environment.
    """

    def __init__(
        self,
        peer: Peer,
        threads: int,
        memory: float | None = None,
        keep_compiled: bool = False,
        settings: Mapping[str, str] = {},
    ):
        command = python(peer.environment)
        if not Path(command).exists():
            raise PeerError(
                f"{peer.environment} is not installed: run `python tests/benchmarks/force_fields.py setup` once"
            )
        OUT.mkdir(parents=True, exist_ok=True)
        self.log = OUT / f"{Path(peer.adapter).stem}{'_compiled' * peer.accelerated}{'_own' * peer.own}.log"
        self.scratch = None if keep_compiled else tempfile.mkdtemp(prefix="compiled-", dir=OUT)
        compiled = self.scratch or str(OUT / "compiled")
        settings = {
            "OMP_NUM_THREADS": str(threads),
            "PEER_MEMORY_GB": str(memory or ""),
            "PYTHONWARNINGS": "ignore",
            "TORCHINDUCTOR_CACHE_DIR": compiled,
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "MOLEQUI_CACHE": compiled,
            **settings,
        }
        with self.log.open("w") as log:
            # Ctrl-C is for the program that asks, so a session of its own
            self.process = subprocess.Popen(
                [command, str(HERE / "worker.py"), str(HERE / peer.adapter)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | settings,
                start_new_session=True,
                cwd=REPOSITORY,
            )
        self.replies: queue.Queue[str | None] = queue.Queue()
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.replies.put(line)
        self.replies.put(None)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def ask(
        self,
        do: str,
        waiting: Callable[[float], None] | None = None,
        limit: float | None = None,
        **request,
    ) -> dict:
        """The reply; raises PeerError with what the code says. waiting: called every half minute, with the seconds.

        limit: seconds after which the process is ended.
        """
        *_, reply = self.stream(do, waiting, last=True, limit=limit, **request)
        return reply

    def stream(
        self,
        do: str,
        waiting: Callable[[float], None] | None = None,
        last: bool = False,
        limit: float | None = None,
        **request,
    ) -> Iterator[dict]:
        """The rows before the reply; last: the reply too."""
        try:
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise self._died() from error
        begin = time.monotonic()
        while True:
            try:
                passed = time.monotonic() - begin
                line = self.replies.get(timeout=30 if limit is None else min(30, max(0, limit - passed)))
            except queue.Empty:
                if limit is not None and time.monotonic() - begin >= limit:
                    self.process.kill()
                    self.process.wait()
                    raise PeerError(f"no answer within {limit:.0f} s") from None
                if waiting is not None:
                    waiting(time.monotonic() - begin)
                continue
            if line is None:
                raise self._died()
            reply = json.loads(line)
            if "error" in reply:
                raise PeerError(reply["error"])
            if "row" not in reply:
                if last:
                    yield reply
                return
            yield reply["row"]

    def _died(self) -> PeerError:
        code = self.process.wait()
        tail = self.log.read_text().strip().splitlines()[-1:]
        return PeerError(f"its process ended with {code}" + (f": {tail[0][:200]}" if tail else ""))

    def close(self) -> None:
        try:
            self.process.stdin.close()
        except BrokenPipeError:  # it ended with a request unread
            pass
        if self.alive:
            self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.listener.join()
        self.process.stdout.close()
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)
