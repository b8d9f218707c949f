"""Hessian-vector products as labels: force errors and vibrations with and without them; speed of analytic Hessians.

    python tests/benchmarks/hessians.py [--variants plain products …] [--seeds 0 1] [--epochs 100] [--weight 10] [--directions 2]
    python tests/benchmarks/hessians.py --speed        # Hessians of ethanol and of a crystal, analytic and by differences
    python tests/benchmarks/hessians.py --table        # what was measured so far; nothing is trained

Data are the shipped frames of ethanol at 300 K with labels of GFN2-xTB: 50 for training, 50 for validation, 100 for the test, drawn at random.
"plain" trains on energies and forces. "products" has products of the Hessian with random directions for each frame, each from two more
calculations of forces, and the same frames, epochs, steps and options. "calls" spends these calculations on more frames instead (at most 200).
"time" is "plain" for longer. Both have as many epochs as take the processor time of "products", by the rows of "plain" and "products" of this seed.
"all" has one product of each of 450 frames: 50 and 200 at 300 K, and 200 at 600 K.

Vibrations are those of relaxed ethanol, by the analytic Hessian of the model, beside GFN2-xTB by differences of its own forces: of the gauche
conformer, around which all frames at 300 K are, and of trans, which is 9 % of the frames at 600 K (data/README.md).
Rows are appended to build/hessian_products.jsonl; seconds are those of one processor.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk, molecule

import molequi as mq

BUILD = Path(__file__).resolve().parents[2] / "build"
OUT = BUILD / "hessian_products.jsonl"
LOSS = {"energy": 1, "forces": 100}
VARIANTS = ("plain", "products", "time", "calls")
TORSIONS = {"gauche": 60, "trans": 180}  # C-C-O-H in degrees


def frames(directions):
    """Parts of the data; the training frames with products are another part."""
    data = mq.read_extxyz(mq.shipped("ethanol_300K.xyz")).with_quantities(["energy", "forces"])
    parts = data.split({"train": 50, "valid": 50, "test": 100, "more": 200}, seed=0)
    start = time.process_time()
    parts["products"] = mq.add_hessian_products(parts["train"], "gfn2-xtb", directions=directions)
    print(f"{directions} products of each frame: {time.process_time() - start:.1f} s")
    hot = mq.read_extxyz(mq.shipped("ethanol_600K.xyz")).with_quantities(["energy", "forces"])
    parts["calls"] = parts["train"] + parts["more"][: 100 * directions]
    parts["all"] = parts["train"] + parts["more"] + hot
    return parts


def train(parts, name, seed, epochs, weight, batch):
    """A trained model and its processor seconds."""
    torch.manual_seed(seed)
    backbone = mq.GauntACE(elements=parts["train"].elements, cutoff=5.0, channels=16, layers=2, l_max=2)
    own = parts.get(name, parts["train"])
    if name == "all":
        own = mq.add_hessian_products(own, "gfn2-xtb")
    start = time.process_time()
    result = mq.fit(
        mq.Model(backbone),
        own,
        parts["valid"],
        epochs=epochs,
        batch_size=batch,
        lr=2e-3,
        optimizer="soap",
        loss=LOSS | ({"hessian_products": weight} if name in ("products", "all") else {}),
        logging={"progress": False},
        seed=seed,
    )
    return result.model, time.process_time() - start


def wavenumbers(calculator):
    """Wavenumbers of the vibrations of both conformers in 1/cm, shape (2, 21)."""
    found = []
    for angle in TORSIONS.values():
        start = molecule("CH3CH2OH")
        start.set_dihedral(0, 1, 2, 3, angle, indices=[3])
        modes = mq.vibrations(start, calculator, fmax=1e-4)
        found.append(modes.wavenumber[modes.internal])
    return np.array(found)


def longer(seed, epochs, directions, share):
    """Epochs that take the time of "products"; share is the structures of "plain" over those of this training."""
    spent = {
        r["variant"]: r["seconds"]
        for r in rows()
        if r["seed"] == seed and r["epochs"] == epochs and r["directions"] in (0, directions)
    }
    missing = [name for name in ("plain", "products") if name not in spent]
    if missing:
        raise SystemExit(
            f"{OUT}: no row of {' and '.join(missing)} with seed {seed}, {epochs} epochs and {directions} "
            "directions, whose time is needed; measure them first: --variants plain products …"
        )
    return round(epochs * spent["products"] / spent["plain"] * share)


def measure(given):
    parts = frames(given.directions)
    wanted = wavenumbers("gfn2-xtb")
    for seed, name in itertools.product(given.seeds, given.variants):
        epochs, batch = given.epochs, given.batch
        if name in ("calls", "time"):
            count = len(parts[name if name in parts else "train"])
            epochs = longer(seed, epochs, given.directions, len(parts["train"]) / count)
        directions = {"products": given.directions, "all": 1}.get(name, 0)
        batch *= max(directions, 1)  # as many steps
        model, seconds = train(parts, name, seed, epochs, given.weight, batch)
        errors = {part: mq.evaluate(model, parts[part], progress=False) for part in ("valid", "test")}
        away = np.abs(wavenumbers(model) - wanted)
        row = {
            "variant": name,
            "seed": seed,
            "epochs": epochs,
            "directions": directions,
            "weight": given.weight if directions else 0,
            "seconds": seconds,
            "forces": {part: 1e3 * e["forces_mae"] for part, e in errors.items()},
            "energy": {part: 1e3 * e["energy_mae"] for part, e in errors.items()},
            "vibrations": {
                conformer: {"mean": float(own.mean()), "max": float(own.max()), "at": float(of[own.argmax()])}
                for conformer, own, of in zip(TORSIONS, away, wanted)
            },
        }
        BUILD.mkdir(exist_ok=True)
        with OUT.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def speed():
    """Processor seconds of a Hessian by each method, and their largest difference."""
    torch.manual_seed(0)
    print("| structure | backbone | method | s | largest difference, eV/Å² |")
    print("|---|---|---|---:|---:|")
    cases = {"ethanol, 9 atoms": molecule("CH3CH2OH"), "Si, 64 atoms": bulk("Si", cubic=True) * (2, 2, 2)}
    for (title, atoms), name in itertools.product(cases.items(), ("PaiNN", "GauntACE", "MACE")):
        atoms.rattle(0.05, seed=0)
        options = {"channels": 16, "layers": 2} | ({} if name == "PaiNN" else {"l_max": 2})
        elements = sorted(set(atoms.get_chemical_symbols()))
        model = mq.Model(getattr(mq, name)(elements=elements, cutoff=5.0, **options))
        first = None
        for method in ("vmap", "loop", "finite-differences"):
            start = time.process_time()
            found = mq.hessian(model, atoms, method=method).matrix
            seconds = time.process_time() - start
            first = found if first is None else first
            away = np.abs(found - first).max()
            print(f"| {title} | {name} | {method} | {seconds:.2f} | {away:.1e} |", flush=True)


def rows():
    return [json.loads(line) for line in OUT.read_text().splitlines()] if OUT.exists() else []


def table():
    print(
        "| variant | seed | epochs | forces valid | forces test | energy test | gauche mean | max | trans mean | max | s |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for r in rows():
        name = r["variant"] + (f", {r['directions']} × {r['weight']:g}" if r["directions"] else "")
        modes = " | ".join(
            f"{own['mean']:.1f} | {own['max']:.0f} (at {own['at']:.0f})" for own in r["vibrations"].values()
        )
        print(
            f"| {name} | {r['seed']} | {r['epochs']} | {r['forces']['valid']:.1f} | {r['forces']['test']:.1f} | "
            f"{r['energy']['test']:.2f} | {modes} | {r['seconds']:.0f} |"
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=(*VARIANTS, "all"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--weight", type=float, default=10)
    parser.add_argument("--directions", type=int, default=2)
    parser.add_argument("--batch", type=int, default=5)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.speed:
        speed()
    elif not given.table:
        measure(given)
    if not given.speed:
        table()


if __name__ == "__main__":
    main()
