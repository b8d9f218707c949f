"""Coverage of intervals, rank of uncertainties and active learning, on the data of the project.

    python tests/benchmarks/uncertainty.py intervals|active --out FOLDER [--seeds 5]

Every table is printed and written to FOLDER; seconds are of the processor, on one thread.
"""

import argparse
import contextlib
import io
import os
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

import molequi as mq
from molequi.inference import calibration, coverage
from molequi.inference.predictions import predictions

ACAC = Path(os.environ.get("MOLEQUI_DATA", "shared/data")) / "acac" / "train_300K.xyz"
COMPONENT = "force component"


def small(channels: int, elements=("C", "H", "O")):
    return mq.Model(mq.NequIP(elements=list(elements), cutoff=4.0, channels=channels, layers=2))


def trained(data, valid, *, seed: int, epochs: int, channels: int, out: Path | None = None):
    torch.manual_seed(seed)
    model = small(channels)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        mq.fit(model, data, valid, epochs=epochs, seed=seed, out=out)
    return model.eval()


def shuffled(data, seed=0):
    return data[np.random.default_rng(seed).permutation(len(data)).tolist()]


def show(title: str, head, rows, path: Path) -> None:
    table = "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [head, ["---"] * len(head), *rows])
    print(f"{title}\n{table}", flush=True)
    path.write_text(table + "\n")


# --- intervals


def intervals(out: Path, seeds: int) -> None:
    acac, cold = shuffled(mq.read_extxyz(ACAC)), shuffled(mq.read_extxyz(mq.shipped("ethanol_300K.xyz")))
    hot = mq.read_extxyz(mq.shipped("ethanol_600K.xyz"))
    rows = []
    cases = {
        "acac": (acac, {"acac 300 K": acac[350:]}),
        "ethanol": (cold, {"ethanol 300 K": cold[350:], "ethanol 600 K": hot}),
    }
    for name, (data, tests) in cases.items():
        train, valid, held = data[:200], data[200:250], data[250:350]
        begin = time.process_time()
        members = [
            trained(train, valid, seed=k, epochs=30, channels=16, out=out / f"{name}{k}") for k in range(3)
        ]
        seconds = (time.process_time() - begin) / 3
        begin = time.process_time()
        laplace = mq.laplace(members[0], train, valid, progress=False)
        fitted = time.process_time() - begin
        print(f"{name}: training {seconds:.0f} s a model, Laplace approximation {fitted:.1f} s", flush=True)
        models = {"one model": members[0], "Laplace": laplace, "3 models": mq.Ensemble(members)}
        for test, part in tests.items():
            usual = spent(members[0], part)
            for kind, model in models.items():
                cost = f"{spent(model, part) / usual:.1f}"
                for scaled in (False, True) if kind != "one model" else (False,):
                    found = coverage(model, part, calibration=held, scaled=scaled)["forces"]
                    row = [
                        test,
                        kind,
                        "scaled" if scaled else "constant",
                        f"{found.share:.1%}",
                        f"{found.lowest:.0%}",
                    ]
                    rows.append(
                        [*row, f"{1e3 * found.half_width:.0f}", *ranks(model, held, part, scaled), cost]
                    )
                    print(rows[-1], flush=True)
    head = [
        "held-out data",
        "model",
        "widths",
        "within 90 %",
        "lowest structure",
        "± meV/Å",
        "Spearman",
        "NLL",
        "cost",
    ]
    show("intervals", head, rows, out / "intervals.md")


def spent(model, data) -> float:
    predictions(model, data[:20], progress=False)
    begin = time.process_time()
    predictions(model, data, progress=False)
    return time.process_time() - begin


def ranks(model, held, part, scaled: bool) -> list[str]:
    if not scaled:
        return ["", ""]
    factor = calibration(model, held)["forces"].scale
    found = calibration(model, part)["forces"].scaled(factor)
    likelihood = np.mean(np.log(found.std) + (found.error / found.std) ** 2 / 2 + np.log(2 * np.pi) / 2)
    return [f"{spearmanr(found.std, np.abs(found.error))[0]:.2f}", f"{likelihood:.2f}"]


def errors_of(model, data) -> np.ndarray:
    """Largest error of the force on an atom of each structure."""
    found = predictions(model, data, progress=False)
    return np.array(
        [
            np.linalg.norm(one["forces"] - g.targets["forces"].numpy(), axis=1).max()
            for one, g in zip(found, data)
        ]
    )


# --- active learning


def active(out: Path, seeds: int) -> None:
    """Five rounds of 10 labels from a pool of which a quarter is hot, tested on as many cold as hot frames."""
    cold, hot = (mq.read_extxyz(mq.shipped(f"ethanol_{k}K.xyz")) for k in (300, 600))
    curves: dict[str, list] = {"both": [], "uncertainty": [], "random": []}
    begin = time.process_time()
    for seed in range(seeds):
        a, b = shuffled(cold, seed), shuffled(hot, seed)
        first, valid = a[:20], a[20:40]
        pool = mq.Dataset([*a[40:300], *b[:87]])
        test = mq.Dataset([*a[300:], *b[100:]])
        for by, curve in curves.items():
            curve.append(rounds(first, valid, pool, test, by, seed))
            print(
                seed,
                by,
                [f"{1e3 * e:.0f}" for e in curve[-1]],
                f"{time.process_time() - begin:.0f} s",
                flush=True,
            )
        rows = [
            [by, *(f"{1e3 * m:.0f} ± {1e3 * s:.0f}" for m, s in zip(np.mean(c, 0), np.std(c, 0)))]
            for by, c in curves.items()
        ]
        won = sum(x[-1] < y[-1] for x, y in zip(curves["both"], curves["random"]))
        head = ["chosen by", *(f"{20 + 10 * k}" for k in range(6))]
        show(
            f"force MAE (meV/Å), {seed + 1} seeds; both below random in {won}", head, rows, out / "active.md"
        )


def rounds(first, valid, pool, test, by: str, seed: int) -> list[float]:
    labelled, left, errors = list(first), list(range(len(pool))), []
    for k in range(6):
        data = mq.Dataset(labelled)
        model = trained(data, valid, seed=seed, epochs=40, channels=8)
        errors.append(mq.evaluate(model, test, progress=False)["forces_mae"])
        if k == 5:
            break
        rest = pool[left]
        sure = model if by == "random" else mq.laplace(model, data, valid, progress=False)
        chosen = mq.select(sure, rest, 10, by=by, seed=seed + k, progress=False)
        labelled += [rest[int(i)] for i in chosen.indices]
        left = [n for i, n in enumerate(left) if i not in set(chosen.indices.tolist())]
    return errors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("intervals", "active"))
    parser.add_argument("--out", type=Path, default=Path("uncertainty"))
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    {"intervals": intervals, "active": active}[given.what](given.out, given.seeds)
