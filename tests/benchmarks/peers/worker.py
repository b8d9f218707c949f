"""One code in a process of its own, driven by lines of JSON: a request on stdin, its reply on stdout.

    python worker.py use_nequip.py

Runs in the environment of that code and imports nothing of molequi's. The file named is the adapter: `versions() ->
dict` and `build(case) -> Peer`. Requests (`do`) and replies:

    versions                     {"torch": …, name: …}
    prepare {case}               builds the code for the case and runs it once on every structure: seconds until there,
                                 compilation included; the checks; what it needs (see `work`)
    run {n}                      n calls more: {"wall": seconds, "processor": seconds}
    memory                       {"peak": MB}, the highest resident memory since `prepare`
    limits                       {"gflops": …, "gbytes": …}: what a matrix product and a triad reach in this process
    train {case, …}              see training.py; rows come as {"row": …} before the reply
    device {case, …}             see on_device.py: one measurement on a GPU or the CPU

A case: {"measure": "train" | "infer" | "md", "structures": file.npz, "size": {…}, "accelerated": bool, "batch": int},
own: molequi's own architecture; count: also what it needs; isolated: standardised for training to accuracy. The file
has pos (F, N, 3) Å, numbers (N,), energy (F,) eV, forces (F, N, 3) eV/Å, cell (3, 3), pbc, and isolated (2, Z): atomic
numbers and energies.

What a code prints goes to stderr. A request that fails has the reply {"error": …}, and the process goes on.
"""

import importlib.util
import itertools
import json
import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

MD_STEPS = 20  # then from the start again: an untrained force field does not hold a molecule together
STEP = 1e-2  # Å, of the numerical derivative
LARGE = 1000  # atoms


class Structures:
    """Frames of one composition, and their labels."""

    def __init__(self, path: str):
        with np.load(path, allow_pickle=False) as file:
            data = {name: file[name] for name in file.files}
        self.pos, self.numbers, self.energy, self.forces = (
            data["pos"],
            data["numbers"],
            data["energy"],
            data["forces"],
        )
        self.cell, self.pbc = data["cell"], bool(data["pbc"])
        self.isolated = {int(z): float(e) for z, e in data["isolated"].T}
        self.elements = sorted({int(z) for z in self.numbers})

    def __len__(self) -> int:
        return len(self.pos)

    def atoms(self, k: int, moved: np.ndarray | float = 0.0):
        from ase import Atoms

        return Atoms(self.numbers, self.pos[k] + moved, cell=self.cell if self.pbc else None, pbc=self.pbc)

    def mean_neighbors(self, cutoff: float) -> float:
        from ase.neighborlist import neighbor_list

        frames = range(0, len(self), max(1, len(self) // 10))
        return float(np.mean([len(neighbor_list("i", self.atoms(k), cutoff)) for k in frames])) / len(
            self.numbers
        )


class Peer:
    """A force field of some code, untrained, in float32. Adapters subclass it.

    model: its module. function: what is called, the module itself or its compiled form; `outputs` uses it.
    plan, optimizer: how it is trained to accuracy, as its own documentation says: lr, batch_size, weights {energy,
    forces}, ema (decay), clip, ema_warmup (it begins with a short memory), schedule {"plateau": arguments of
    ReduceLROnPlateau} or {"cosine": {warmup, floor}}.
    """

    model = None
    plan: dict = {}

    def graph(self, structures: Structures, k: int, moved: np.ndarray | float = 0.0):
        """One frame as the code wants it, neighbours included."""
        raise NotImplementedError

    def collate(self, graphs: list):
        """A batch of them."""
        raise NotImplementedError

    def outputs(self, batch, training: bool):
        """Energies (G,) in eV and forces (N, 3) in eV/Å; training: to be differentiated further."""
        raise NotImplementedError

    def calculator(self):
        """The code's own ASE calculator."""
        raise NotImplementedError

    def plain(self) -> "Peer | None":
        """What counts the arithmetic: itself, unless it is compiled."""
        return self

    def optimizer(self, lr: float):
        """That of its training to accuracy."""
        raise NotImplementedError

    def loss(self, batch, labels, weights: dict[str, float]):
        """Mean squares of the energy per atom and of the components of the forces."""
        energy, forces = self.outputs(batch, training=True)
        energies, wanted, atoms = labels
        return (
            weights["energy"] * ((energy - energies) / atoms).square().mean()
            + weights["forces"] * (forces - wanted).square().mean()
        )


def processor_seconds() -> float:
    """Of this process and the compilers that it called."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def labels(structures: Structures, frames: list[int], offset: np.ndarray | float = 0.0):
    """Energies, forces and numbers of atoms, as `Peer.loss` takes them."""
    import torch

    energies = torch.tensor(structures.energy[frames] - offset)
    return (
        energies,
        torch.tensor(structures.forces[frames].reshape(-1, 3), dtype=torch.float32),
        len(structures.numbers),
    )


class Job:
    """A case, prepared: `call()` does it once more."""

    def __init__(self, case: dict, build: Callable[[dict], Peer]):
        structures = Structures(case["structures"])
        wall, processor = time.perf_counter(), processor_seconds()
        self.peer = peer = build(case)
        self.start: Callable[[], None] = lambda: None  # before a run, not timed
        self.report = {}
        if case["measure"] == "infer":
            peer.model.requires_grad_(False)  # as calculators do
        if case["measure"] != "md":
            self.report |= {"check": check(peer, structures, together=case["measure"] == "train")}
        if case["measure"] == "train":
            import torch

            groups = [
                list(range(k, k + case["batch"]))
                for k in range(0, len(structures) - case["batch"] + 1, case["batch"])
            ]
            optimizer, mean = (
                torch.optim.Adam(peer.model.parameters(), lr=1e-3, amsgrad=True, fused=True),
                structures.energy.mean(),
            )
            inputs = [
                (peer.collate([peer.graph(structures, k) for k in g]), labels(structures, g, mean))
                for g in groups
            ]
            again = itertools.cycle(inputs)

            def call(of: Peer = peer) -> None:
                optimizer.zero_grad(set_to_none=True)
                of.loss(*next(again), {"energy": 1.0, "forces": 100.0}).backward()
                optimizer.step()
        elif case["measure"] == "infer":
            inputs = [peer.collate([peer.graph(structures, k)]) for k in range(len(structures))]
            again = itertools.cycle(inputs)

            def call(of: Peer = peer) -> None:
                of.outputs(next(again), training=False)
        else:
            inputs = [None]
            call = self.dynamics(structures)
        self.call = call
        for _ in inputs:
            call()
        self.report |= {
            "start_wall": time.perf_counter() - wall,
            "start_processor": processor_seconds() - processor,
            "parameters": sum(p.numel() for p in peer.model.parameters()),
        }
        if case["measure"] != "md" and case.get("count"):
            self.report |= work(peer, call)

    def dynamics(self, structures: Structures) -> Callable[[], None]:
        from ase import units
        from ase.md.verlet import VelocityVerlet

        atoms = structures.atoms(0)
        atoms.calc = self.peer.calculator()
        at = atoms.get_positions()
        momenta = (
            np.random.default_rng(0).normal(size=at.shape)
            * np.sqrt(300 * units.kB * atoms.get_masses())[:, None]
        )
        verlet = VelocityVerlet(atoms, 0.5 * units.fs)
        self.done = 0

        def start() -> None:
            atoms.set_positions(at)
            atoms.set_momenta(momenta)
            atoms.get_forces()
            self.done = 0

        def call() -> None:
            if self.done >= MD_STEPS:
                start()
            verlet.run(1)
            self.done += 1

        self.start = start
        start()
        return call

    def run(self, n: int) -> dict[str, float]:
        self.start()
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(n):
            self.call()
        return {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}


def check(peer: Peer, structures: Structures, together: bool) -> dict:
    """Energies and forces of the first two frames; raises ValueError if they cannot be those of a force field.

    Finite, an energy that differs between two geometries, and forces that are its derivative: along themselves, to 3 %;
    up to LARGE atoms, beyond which single precision does not tell. together: the two as one batch, as in training.
    """
    frames = [k % len(structures) for k in (0, 1)]

    def predict(moved: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        graphs = [peer.graph(structures, k, moved) for k in frames]
        outputs = [
            peer.outputs(peer.collate(g), training=together)
            for g in ([graphs] if together else [[g] for g in graphs])
        ]
        energies, forces = (
            np.concatenate([x.detach().double().cpu().numpy() for x in part]) for part in zip(*outputs)
        )
        return energies.reshape(2), forces.reshape(2, -1, 3)

    energies, forces = predict()
    if not (np.isfinite(energies).all() and np.isfinite(forces).all()):
        raise ValueError("energy or forces are not finite")
    size = np.linalg.norm(forces[0])
    if size == 0:
        raise ValueError("all forces are zero")
    if len(structures.numbers) <= LARGE:
        check_slope(predict, energies[0], forces[0])
    if len(structures) > 1 and energies[0] == energies[1]:
        raise ValueError("the energy is the same for two geometries")
    return {"energies": energies.tolist(), "forces": forces[:, :50].reshape(-1).tolist()}


def check_slope(predict: Callable, energy: float, forces: np.ndarray) -> None:
    size = np.linalg.norm(forces)
    direction = forces / size
    slope = (predict(-STEP * direction)[0][0] - predict(STEP * direction)[0][0]) / (2 * STEP)
    noise = 4 * np.finfo(np.float32).eps * abs(energy) / STEP
    if abs(slope - size) > 0.03 * size + noise:
        raise ValueError(
            f"forces are not the derivative of the energy: {size:.6g} eV/Å along themselves, numerically {slope:.6g}"
        )


def work(peer: Peer, call: Callable[[Peer], None]) -> dict[str, float]:
    """What a call needs on the plain path.

    gflop: of its matrix products, by torch's formulas (its FlopCounterMode itself cannot count where a module
    differentiates within its forward). gbytes: what all operations read and write, views aside, if each fetched its
    arguments anew: the traffic of an uncompiled model, of which caches serve a part.
    """
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import flop_registry

    class Count(TorchDispatchMode):
        flops = bytes = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if not function.is_view:
                self.bytes += sum(
                    t.numel() * t.element_size()
                    for t in tree_leaves((args, kwargs, out))
                    if isinstance(t, Tensor)
                )
            if function._overloadpacket in flop_registry:
                self.flops += flop_registry[function._overloadpacket](*args, **(kwargs or {}), out_val=out)
            return out

    plain = peer.plain()
    if plain is None:
        return {}
    with Count() as count:
        call(plain)
    return {"gflop": count.flops / 1e9, "gbytes": count.bytes / 1e9}


def limits() -> dict[str, float]:
    """The best of several times of a matrix product of 1024 and of a + s b over 64 MB each.

    By processor time over the number of threads, so that other processes do not make the machine look slow.
    """
    import torch

    a, b = torch.randn(2, 1024, 1024)
    u, v, w = torch.randn(3, 16_000_000)

    def best(function: Callable[[], object], times: int) -> float:
        function()
        seconds = []
        for _ in range(times):
            begin = time.process_time()
            function()
            seconds.append(time.process_time() - begin)
        return min(seconds) / torch.get_num_threads()

    return {
        "gflops": 2 * 1024**3 / best(lambda: torch.mm(a, b), 15) / 1e9,
        "gbytes": 3 * u.nbytes / best(lambda: torch.add(u, v, alpha=2.0, out=w), 10) / 1e9,
    }


def reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed: the peak is that of the whole process
        pass


def peak() -> float:
    """MB."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def load(path: str):
    spec = importlib.util.spec_from_file_location("adapter", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def serve(adapter, requests, reply: Callable[[dict], None]) -> None:
    job = None
    for line in requests:
        request = json.loads(line)
        do = request.pop("do")
        try:
            if do == "versions":
                answer = adapter.versions()
            elif do == "prepare":
                job = None
                reset_peak()
                job = Job(request["case"], adapter.build)
                answer = job.report
            elif do == "run":
                answer = job.run(request["n"])
            elif do == "memory":
                answer = {"peak": peak()}
            elif do == "limits":
                answer = limits()
            elif do == "train":
                from training import train

                answer = train(adapter.build, lambda row: reply({"row": row}), **request)
            elif do == "device":
                from on_device import measure

                answer = measure(adapter.build, **request)
            else:
                raise ValueError(f"no request {do!r}")
        except KeyboardInterrupt:
            return
        except (Exception, SystemExit) as error:  # of any code: the table says it, stderr has the rest
            traceback.print_exc()
            text = [line for line in str(error).splitlines() if line.strip()] or [""]
            answer = {
                "error": f"{type(error).__name__}: {' … '.join(dict.fromkeys([text[0], text[-1]]))}"[:300]
            }
        reply(answer)


def end_with(parent: int) -> None:
    """A worker whose parent was killed would go on with what it was asked, for minutes."""
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(1)


def main() -> None:
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a code prints is no reply
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    memory = os.environ.get("PEER_MEMORY_GB")
    if memory:
        resource.setrlimit(resource.RLIMIT_DATA, (int(float(memory) * 2**30),) * 2)

    def reply(answer: dict) -> None:
        print(json.dumps(answer), file=out, flush=True)

    serve(load(sys.argv[1]), sys.stdin, reply)


if __name__ == "__main__":
    sys.modules["worker"] = sys.modules["__main__"]  # adapters import it by its name
    main()
