"""Optimizers beside each other: the recipes trained with each of them, at several learning rates and seeds.

    python tests/benchmarks/optimizers.py [--cases toluene50 acac …] [--variants adam soap-3e-3 …] [--seeds 0 1 2] [--scale 1.0]
    python tests/benchmarks/optimizers.py --cases acac --variants soap-1e-2 --with train.optimizer.ema=0.999 backbone.GauntACE.layers=3
    python tests/benchmarks/optimizers.py --table      # what was measured so far; nothing is trained

A case is a recipe with a number of epochs; a variant is a list of settings that replace those of the recipe. Numbers of epochs are fixed, not
times, so that the errors do not depend on what else the machine does; the processor seconds of a training are in the table. --scale multiplies
the numbers of epochs; --with adds further settings to every run, and their names to the table. Every run is a process with one thread; rows are appended to build/optimizers.jsonl, and those that are there already
are not trained again. Failures stay in the table.

Published sets are found by MOLEQUI_DATA. Of revised MD17 the 1,000 frames of the published training part are used: 50 for training, 50 for
validation, and 900 as the part `test` on which settings are chosen here; `--published` tests on the published test part in their place.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

OUT = Path(__file__).resolve().parents[2] / "build" / "optimizers.jsonl"


def rmd17(molecule: str) -> list[str]:
    return [
        f"data.npz.path=${{published:rmd17/rmd17_{molecule}_train_01.npz}}",
        "data.npz.split={train: 50, valid: 50, test: 900}",
    ]


def published(molecule: str) -> list[str]:
    return [
        f"data.npz.path=${{published:rmd17/rmd17_{molecule}_train_01.npz}}",
        f"data.test.npz.path=${{published:rmd17/rmd17_{molecule}_test_01.npz}}",
    ]


def crystal(element: str) -> list[str]:
    return [
        f"data.extxyz.path=${{published:mlearn/{element}_train.extxyz}}",
        "predict=[energy, forces]",
    ]


# name: recipe, epochs, settings, settings with --published, numbers of the table (part, name, factor, unit)
FORCES, ENERGY = ("forces_mae", 1000, "forces MAE meV/Å"), ("energy_mae", 1000, "energy MAE meV")
RMSE = ("forces_rmse", 1000, "forces RMSE meV/Å"), ("energy_rmse", 1000, "energy RMSE meV")
CASES: dict[str, tuple] = {
    **{
        f"{m}50": ("ethanol50", 400, rmd17(m), published(m), "test", (FORCES, ENERGY))
        for m in ("ethanol", "toluene", "uracil")
    },
    "acac": ("acac", 100, ["train.batch_size=5", "train.lr=5e-3"], [], "valid", RMSE),
    "3bpa": (
        "acac",
        100,
        [
            "data.extxyz.path=${published:3bpa/train_300K.xyz}",
            "train.normalization.reference_energies=${published:3bpa/iso_atoms.xyz}",
            "train.batch_size=5",
        ],
        [],
        "valid",
        RMSE,
    ),
    "hot": ("medium", 60, ["data.test.extxyz.path=${shipped:ethanol_600K.xyz}"], [], "test", RMSE),
    **{e: ("medium", 100, crystal(e), [], "valid", (FORCES, ENERGY)) for e in ("Si", "Ge", "Cu")},
    "qm9": ("qm9", 17, [], [], "valid", (("gap_mae", 1000, "gap MAE meV"),)),
    "mu": (
        "qm9",
        17,
        ["predict=[mu]", "train.loss.mu.kind=mae"],
        [],
        "valid",
        (("mu_mae", 4.80320471, "μ MAE D"),),
    ),
    "nbody": ("nbody", 80, [], [], "test", (("moved_rmse", 1, "moved RMSE"),)),
    "shapes": ("classify", 15, [], [], "test", (("shape_accuracy", 100, "accuracy %"),)),
}
VARIANTS: dict[str, list[str]] = {
    "adam": ["train.optimizer.name=adam"],
    **{
        f"soap-{lr}": ["train.optimizer.name=soap", f"train.lr={lr}"]
        for lr in ("1e-3", "2e-3", "3e-3", "5e-3", "1e-2", "2e-2")
    },
}


def measure(case: str, variant: str, seed: int, scale: float, official: bool, more: list[str]) -> dict:
    """One training in this process."""
    import torch
    from omegaconf import OmegaConf

    import molequi as mq

    torch.set_num_threads(1)
    recipe, epochs, settings, other, part, numbers = CASES[case]
    file = Path(mq.__file__).parent / "config" / "recipes" / f"{recipe}.yaml"
    config = OmegaConf.to_container(OmegaConf.load(file))
    if recipe == "ethanol50" and not official:
        del config["data"]["test"]
    if case == "mu":
        del config["train"]["loss"]
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        result = mq.run(
            config,
            [
                *(other if official else settings),
                "train.max_minutes=null",
                f"train.epochs={max(1, round(scale * epochs))}",
                *VARIANTS[variant],
                *more,
                f"train.seed={seed}",
                f"train.out={folder}/run",
                "train.logging.progress=false",
                "train.device=cpu",
            ],
        )
        seconds = time.process_time() - started + resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    found = {unit: factor * result.errors[part].numbers()[name] for name, factor, unit in numbers}
    return {
        "errors": found,
        "train": result.errors["train"].numbers(),
        "valid": result.errors["valid"].numbers(),
        "seconds": seconds,
    }


def table() -> None:
    """Means over the seeds, with the standard deviation."""
    rows = [json.loads(line) for line in OUT.read_text().splitlines()] if OUT.exists() else []
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for row in rows:
        variant = " ".join([row["variant"], *row.get("with", [])])
        groups[row["case"], row["scale"], row["official"], variant].append(row)
    for (case, scale, official, variant), found in sorted(groups.items()):
        good = [row for row in found if "error" not in row]
        text = []
        for unit in good[0]["errors"] if good else ():
            values = [row["errors"][unit] for row in good]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            text.append(f"{unit} {statistics.mean(values):.2f}{spread}")
        if good:
            text.append(f"{statistics.mean(row['seconds'] for row in good):.0f} processor s")
        text += [row["error"] for row in found if "error" in row]
        name = f"{case}{' published test' if official else ''} x{scale:g}"
        print(f"{name:28s} {variant:14s} {len(good)} seeds  " + ", ".join(text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["adam", "soap-3e-3"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--published", action="store_true")
    parser.add_argument("--with", nargs="+", default=[], dest="more", metavar="SETTING")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        case, variant, seed = given.measure
        print(json.dumps(measure(case, variant, int(seed), given.scale, given.published, given.more)))
        return
    if not given.table:
        OUT.parent.mkdir(parents=True, exist_ok=True)
        jobs = [(c, v, s) for s in given.seeds for c in given.cases for v in given.variants]
        for number, (case, variant, seed) in enumerate(jobs, 1):
            key = {
                "case": case,
                "variant": variant,
                "seed": seed,
                "scale": given.scale,
                "official": given.published,
                "with": given.more,
            }
            known = OUT.read_text().splitlines() if OUT.exists() else []
            if any(key.items() <= ({"with": []} | json.loads(line)).items() for line in known):
                continue
            print(f"[{number}/{len(jobs)}] {case} {variant} seed {seed}", file=sys.stderr, flush=True)
            command = [
                sys.executable,
                __file__,
                "--measure",
                case,
                variant,
                str(seed),
                "--scale",
                str(given.scale),
                *(["--with", *given.more] if given.more else []),
            ]
            ended = subprocess.run(
                command + ["--published"] * given.published, stdout=subprocess.PIPE, text=True, check=False
            )
            row = (
                json.loads(ended.stdout.splitlines()[-1])
                if ended.returncode == 0
                else {"error": f"ended with {ended.returncode}"}
            )
            with OUT.open("a") as file:
                print(json.dumps(key | row), file=file)
    table()


if __name__ == "__main__":
    main()
