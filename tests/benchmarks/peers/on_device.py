"""One measurement on a device, in the process of a code; gpu.py says what is measured.

A case has, beside what worker.py says: device; precision ("float32", "tf32": float32 with TF32 in matrix products,
"float64"); kernels: those of another package that the code takes for its tensor products.

Weights are the same in all processes, so what a code computes can be compared with what its plain self computed in another
one: `expected`.
"""

import copy
import gc
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable

import torch
from worker import Peer, Structures, check, labels, peak, reset_peak

WARM, FEWEST, MOST = 4, 5, 200  # calls: TorchScript rewrites itself in the first ones
MD_STEPS, MD_LONGEST = 10, 2000
BUILT: dict[str, Peer] = {}  # the last one


def measure(
    build: Callable[[dict], Peer],
    case: dict,
    structures: str,
    seconds: float,
    expected: dict | None = None,
    audited: str | None = None,
) -> dict:
    """Times in ms (median, quartiles), GB at most, what it predicts (`check`), and what the measure is about.

    measure: "infer", energy and forces of one structure; "train", a step on two, since nequip's
    compiled training takes no single one; "precision", as "infer", and the errors
    against float64; "md", ns/day. start: seconds from nothing to the first result, compilation included, neighbors not.
    audited: file of a small structure that is rotated, see `precision`.
    """
    device, what = torch.device(case["device"]), case["measure"]
    torch.backends.cuda.matmul.allow_tf32 = case["precision"] == "tf32"
    torch.eye(64, device=device).mm(torch.eye(64, device=device))  # the device's own start is no code's
    began = time.perf_counter()
    peer = built(build, case | {"measure": "train" if what == "train" else "infer"})
    start = time.perf_counter() - began
    frames = Structures(structures)
    row = {"atoms": len(frames.numbers), "parameters": sum(p.numel() for p in peer.model.parameters())}
    if what == "md":
        return row | dynamics(peer, frames, device, seconds)
    training = what == "train"
    began = time.perf_counter()
    graphs = [peer.graph(frames, k) for k in (0, 1)]
    batches = [peer.collate(g) for g in ([graphs] if training else [[g] for g in graphs])]
    row["neighbors_ms"] = 500 * (time.perf_counter() - began)
    row["atoms"] *= 2 if training else 1
    peer.model.requires_grad_(training).train(training)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    start += seconds_of(lambda: peer.outputs(batches[0], training=training), device)
    if case["precision"] != "tf32":  # in which finite differences say nothing
        row["check"] = check(peer, frames, together=training)
        if expected is not None:
            row["against_plain"] = compared(row["check"], expected)
    if what == "precision":
        row |= precision(peer, batches[0], frames)
        if audited is not None:
            row["rotation"] = rotation(peer, Structures(audited), case["precision"])
    call = step(peer, frames, batches[0], device) if training else inference(peer, batches)
    for _ in range(WARM):
        call()
    reset(device)
    row |= timed(call, device, seconds) | {"memory": memory(device), "start": start}
    return row


def built(build: Callable[[dict], Peer], case: dict) -> Peer:
    """The code for a case on its device; the last one is kept, so that its other sizes need no second compilation."""
    key = json.dumps(case, sort_keys=True)
    if key not in BUILT:
        BUILT.clear()
        peer, device = build(case), torch.device(case["device"])
        peer.model.to(device)
        if case["precision"] == "float64":
            peer.model.double()
        collate = peer.collate
        peer.collate = lambda graphs: moved(collate(graphs), device)
        BUILT[key] = peer
    return BUILT[key]


def moved(batch, device: torch.device):
    """A batch of any code on a device; what is to be differentiated stays so."""
    if isinstance(batch, dict):
        return {name: moved(value, device) for name, value in batch.items()}
    if isinstance(batch, torch.Tensor):
        return batch.detach().to(device).requires_grad_(batch.requires_grad)
    return batch.to(device) if hasattr(batch, "to") else batch


def inference(peer: Peer, batches: list) -> Callable[[], None]:
    """Energy and forces, of the two frames in turn."""
    turn = itertools.cycle(batches)
    return lambda: peer.outputs(next(turn), training=False)


def step(peer: Peer, frames: Structures, batch, device: torch.device) -> Callable[[], torch.Tensor]:
    """A training step. The optimizer's rate is zero: other sizes must find the same weights."""
    optimizer = torch.optim.Adam(peer.model.parameters(), lr=0.0, amsgrad=True, fused=True)
    energies, forces, atoms = labels(frames, [0, 1])
    wanted = energies.to(device), forces.to(device), atoms

    def call() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = peer.loss(batch, wanted, {"energy": 1.0, "forces": 100.0})
        loss.backward()
        optimizer.step()
        return loss.detach()

    loss, gradients = float(call()), [p.grad for p in peer.model.parameters() if p.grad is not None]
    if not gradients or not math.isfinite(loss + sum(float(g.square().sum()) for g in gradients)):
        raise ValueError(
            f"a training step has the loss {loss} and {len(gradients)} gradients, not all finite"
        )
    return call


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


def timed(call: Callable[[], object], device: torch.device, seconds: float) -> dict[str, float]:
    """Median and quartiles in ms of calls that were waited for: at least FEWEST, then until so many seconds are over.

    Three where these take ten times as long.
    """
    times: list[float] = []
    while (
        len(times) < 3
        or (len(times) < FEWEST and sum(times) < 10 * seconds)
        or (len(times) < MOST and sum(times) < seconds)
    ):
        times.append(seconds_of(call, device))
    low, middle, high = statistics.quantiles(times, n=4)
    return {"ms": 1e3 * middle, "ms_low": 1e3 * low, "ms_high": 1e3 * high, "calls": len(times)}


def reset(device: torch.device) -> None:
    torch.cuda.reset_peak_memory_stats(device) if device.type == "cuda" else reset_peak()


def memory(device: torch.device) -> float:
    """GB since `reset`: tensors on a GPU, weights included; on a CPU the whole process."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else peak() / 1e3


def compared(found: dict, expected: dict) -> float:
    """The largest difference of forces, over the largest force; raises ValueError where another model was computed."""
    largest = max(map(abs, expected["forces"]))
    rounding = 1e-5 * max(map(abs, expected["energies"]))  # of sums over thousands of atoms
    for what, allowed in (("energies", 1e-3 * largest + rounding), ("forces", 1e-3 * largest)):
        difference = max(abs(a - b) for a, b in zip(found[what], expected[what], strict=True))
        if not difference <= allowed:
            raise ValueError(f"its {what} differ by {difference:.2g} from those of the plain code")
    return difference / largest


def precision(peer: Peer, batch, frames: Structures) -> dict[str, float]:
    """Errors against the same weights in float64: meV/atom, meV/Å, and the forces' root mean square relative to theirs."""
    exact = copy.deepcopy(peer.model).double()
    exact.use_program(None)
    wanted, (energy, forces) = exact(batch), peer.outputs(batch, training=False)
    difference = forces.double() - wanted["forces"]
    return {
        "energy_error": 1e3 * float((energy.double() - wanted["energy"]).abs().max()) / len(frames.numbers),
        "forces_error": 1e3 * float(difference.abs().max()),
        "forces_relative": float(difference.norm() / wanted["forces"].norm()),
    }


def rotation(peer: Peer, frames: Structures, name: str) -> dict[str, float]:
    """The largest relative error of each quantity under rotations, by molequi's audit."""
    import molequi as mq

    report = mq.audit(peer.model, [frames.atoms(0)], checks=["rotation"], draws=4)
    column = "maximum" if name == "float64" else "float32"
    return {row.quantity: getattr(row, column) for row in report.rows if row.check == "rotation"}


def dynamics(peer: Peer, frames: Structures, device: torch.device, seconds: float) -> dict[str, float]:
    """ns/day of mq.md with steps of 0.5 fs, neighbor lists included, after some steps that are not counted."""
    import molequi as mq

    calculator = mq.Calculator(peer.function, device=str(device))
    options = {"timestep": 0.5, "progress": False}
    mq.md(frames.atoms(0), calculator, steps=MD_STEPS, **options)
    began = time.perf_counter()
    mq.md(frames.atoms(0), calculator, steps=MD_STEPS, **options)
    rate = MD_STEPS / (time.perf_counter() - began)
    steps = int(min(MD_LONGEST, max(MD_STEPS, 3 * seconds * rate)))
    reset(device)
    found = mq.md(frames.atoms(0), calculator, steps=steps, **options)
    return {"ns_per_day": found.ns_per_day, "steps": steps, "memory": memory(device)}
