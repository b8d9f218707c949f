"""Generation by flow matching: trains for given processor minutes and prints how good the samples are.

    python tests/benchmarks/generative.py molecules --minutes 150 --out runs/qm9       QM9 of MOLEQUI_DATA
    python tests/benchmarks/generative.py conformers --minutes 60 --out runs/conformers data/molecules.npz
    python tests/benchmarks/generative.py relaxation --minutes 2 --out runs/relaxation  distorted shipped molecules
    python tests/benchmarks/generative.py measure molecules --out runs/qm9             the tables of a trained model
    python tests/benchmarks/generative.py measure conformers --out runs/conformers --qm9   on validation molecules of QM9

Minutes are those of the processor, not of the clock: the number of epochs is chosen from the measured time of a step, so that a
machine with other work gives the same training. What is there is continued. One thread: OMP_NUM_THREADS=1.
"""

import argparse
import math
import random
import time
from pathlib import Path

import torch

import molequi as mq
from molequi.config.inputs import with_inputs
from molequi.config.names import Names
from molequi.config.places import published
from molequi.config.schema import build_model, read_config, read_data
from molequi.errors import DataError
from molequi.generative import FlowMatching, audit_flow, unrelaxed
from molequi.generative.stereo import mols_of
from molequi.generative.unrelaxed import laid_on
from molequi.util.tables import text_table

STEPS_TIMED = 12
SAMPLES = 1000
TESTED, EACH = 100, 10  # molecules of the test part, and conformers of each


def epochs_of(task: str, overrides: list[str], minutes: float) -> tuple[int, float]:
    """Number of epochs that so many processor minutes pay for, and the processor seconds of a step."""
    small = ["data.paths.index=:2000"] if task == "molecules" else []
    if task == "molecules":
        small.append("data.valid.paths.index=:200")
    settings = read_config(task, [*overrides, *small])
    parts = read_data(settings)
    settings["backbone"] = with_inputs(settings["backbone"], parts, Names())
    elements = sorted({z for data in parts.values() for z in data.elements})
    torch.manual_seed(0)
    size = settings["train"]["batch_size"]
    seconds = []

    class Watch(mq.Hook):
        def after_step(self, run):
            seconds.append(time.process_time())

    train = parts["train"][list(range(min(size * STEPS_TIMED, len(parts["train"]))))]
    mq.fit(
        build_model(settings, elements), train, parts["valid"][:20], batch_size=size,
        epochs=math.ceil(STEPS_TIMED / math.ceil(len(train) / size)),
        terms=[FlowMatching(), Watch()], loss=settings["train"].get("loss"), logging={"progress": False},
        optimizer=settings["train"]["optimizer"],
    )  # fmt: skip
    step = (seconds[-1] - seconds[1]) / (len(seconds) - 2)
    number = 110_000 if task == "molecules" else len(parts["train"])
    return max(1, round(60 * minutes / (step * math.ceil(number / size)))), step


def train(task: str, overrides: list[str], minutes: float, out: Path) -> None:
    kept = out / "epochs.txt"  # a training that continues keeps its number
    if kept.exists():
        epochs = int(kept.read_text())
    else:
        epochs, step = epochs_of(task, overrides, minutes)
        print(f"{step:.3f} processor seconds a step; {epochs} epochs", flush=True)
        out.mkdir(parents=True, exist_ok=True)
        kept.write_text(str(epochs))
    begun = time.process_time()
    result = mq.run(task, [*overrides, f"train.epochs={epochs}", f"train.out={out / 'run'}"])
    print(f"{(time.process_time() - begun) / 60:.1f} processor minutes in this process")
    print({k: round(v, 4) for k, v in result.history[-1].items() if "loss" in k})


def of_qm9(count: int) -> mq.Dataset:
    """Validation molecules of QM9 at random, of those whose atoms are in the order of their SMILES."""
    data = mq.read_npz(published("qm9/qm9_train_valid.npz"), part="valid", keys=dict.fromkeys(("energy",)))
    order, kept = list(range(len(data))), []
    random.Random(0).shuffle(order)
    for k in order:
        if len(kept) == count:
            break
        try:
            mols_of(data[[k]])
        except DataError:
            continue
        kept.append(k)
    return data[kept]


def measure(task: str, overrides: list[str], out: Path, qm9: bool = False) -> None:
    model = mq.load(out / "run")
    settings = read_config(task, overrides)
    if task == "molecules":
        data = settings["data"]["paths"]["path"]
        known = list(mq.read_npz(data, part="train", keys=dict.fromkeys(("energy",))).info["smiles"])
        for integrator, steps in (("euler", 50), ("euler", 100), ("euler", 250), ("heun", 50)):
            begun = time.process_time()
            found = mq.sample(
                model,
                SAMPLES,
                steps=steps,
                integrator=integrator,
                out=out / f"{integrator}{steps}.xyz",
                overwrite=True,
            )
            seconds = time.process_time() - begun
            print(f"\n{integrator}, {steps} steps, {seconds / SAMPLES:.3f} processor seconds a molecule")
            print(found.quality(known))
        print(
            "\nThe first 100 of them, relaxed:\n",
            mq.generative.quality_of(found[:100], energies="gfn2-xtb").strain,
        )
        print(audit_flow(model, 8, orientations=400))
        return
    rows = [int(origin.rsplit(" ", 1)[1]) for origin in read_data(settings)["test"].origins]
    if task == "relaxation":
        return relaxed(model, settings, rows)
    shipped = mq.read_npz(mq.shipped("molecules.npz"), index=":", keys=dict.fromkeys(("energy",)))
    chosen = of_qm9(TESTED) if qm9 else shipped[rows[:TESTED]]
    for integrator, steps in (("euler", 50), ("heun", 50)):
        begun = time.process_time()
        found = mq.sample(model, chosen, each=EACH, steps=steps, integrator=integrator)
        print(
            f"\n{integrator}, {steps} steps, {(time.process_time() - begun) / len(found):.3f} processor seconds each"
        )
        print(found.compared(chosen, energies="gfn2-xtb"))
    print(audit_flow(model, mols_of(chosen[:4]), orientations=200))


def relaxed(model, settings: dict, chosen: list[int]) -> None:
    """Root mean square deviations of all atoms from the relaxed structures, before and after."""
    pairs = unrelaxed(mq.shipped("molecules.npz"), settings["data"]["paths"]["start"])[chosen]

    def off(positions) -> torch.Tensor:
        ends = [g.targets["relaxed"] for g in pairs]
        return torch.stack(
            [(laid_on(p, e) - e).square().sum(1).mean().sqrt() for p, e in zip(positions, ends)]
        )

    before, rows = off([g.pos for g in pairs]), []
    for steps in (1, 5, 20):
        begun = time.process_time()
        after = off([g.pos for g in mq.sample(model, pairs, steps=steps)])
        seconds = (time.process_time() - begun) / len(pairs)
        rows.append([str(steps), f"{before.mean():.3f}", f"{after.mean():.3f}", f"{after.median():.3f}"])
        rows[-1] += [f"{(after > before).double().mean():.1%}", f"{seconds:.4f}"]
    head = ["steps", "before (Å)", "after", "median after", "farther than before", "processor s each"]
    print(*text_table(head, rows), sep="\n")
    print(audit_flow(model, pairs[:4], steps=5))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("molecules", "conformers", "relaxation", "measure"))
    parser.add_argument("task", nargs="?", choices=("molecules", "conformers", "relaxation"))
    parser.add_argument("--minutes", type=float, default=150.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--qm9", action="store_true", help="conformers of validation molecules of QM9")
    parser.add_argument("overrides", nargs="*", default=[])
    given, more = parser.parse_known_args()
    overrides = [*given.overrides, *more]
    if given.what != "measure":
        train(given.what, overrides, given.minutes, given.out)
    measure(given.task or given.what, overrides, given.out, given.qm9)


if __name__ == "__main__":
    main()
