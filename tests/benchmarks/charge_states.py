"""One model over two states of charge or spin beside a model of each state alone: force errors per state.

    python tests/benchmarks/charge_states.py [--set ag3 carbene] [--backbone PaiNN GauntACE] [--seeds 0 1] [--frames 200] [--epochs 60]
    python tests/benchmarks/charge_states.py --table      # what was measured so far; nothing is trained

Sets of Unke et al. (2021): Ag3 with the total charges -1 and +1, CH2 as a singlet and as a triplet; the states have the same geometries. Their column
spin_multiplicity counts unpaired electrons (0 and 2); the script adds 1. Each state has frames for training, 50 for validation and 200 for the test, drawn
at random from the published training part. The joint model sees the frames of both states as often as each model of one state sees its own: the same
number of epochs, twice the steps. Rows are appended to build/charge_states.jsonl; seconds are those of one processor.
"""

import argparse
import itertools
import json
import os
import time
import warnings
from pathlib import Path

import torch
from ase.io import read

import molequi as mq

ROOT = Path(os.environ.get("MOLEQUI_DATA", "."))
OUT = Path(__file__).resolve().parents[2] / "build" / "charge_states.jsonl"
STATES = {"ag3": ("charge", (-1.0, 1.0)), "carbene": ("spin", (1.0, 3.0))}
KEYS = {"energy": "REF_energy", "forces": "REF_forces"}
SIZES = {
    "PaiNN": dict(channels=32, layers=2),
    "GauntACE": dict(channels=16, layers=2, l_max=2),
    "NequIP": dict(channels=16, layers=2, l_max=1),
}


def states(name, frames):
    """Parts of each state by its charge or multiplicity."""
    kind, values = STATES[name]
    found = read(ROOT / "charged_clusters" / f"{name}_train.xyz", ":")
    for atoms in found:
        atoms.info["spin"] = atoms.info.pop("spin_multiplicity") + 1
    column = {"charge": "total_charge", "spin": "spin"}[kind]
    sizes = {"train": frames, "valid": 50, "test": 200}
    return {
        value: mq.from_atoms([a for a in found if a.info[column] == value], keys=KEYS).split(sizes, seed=0)
        for value in values
    }


def train(name, backbone, parts, seed, epochs):
    """A trained model and its processor seconds."""
    kind, _ = STATES[name]
    torch.manual_seed(seed)
    kwargs = SIZES[backbone] | {"inputs": mq.Inputs(**{kind: True})}
    model = mq.Model(getattr(mq, backbone)(elements=parts["train"].elements, cutoff=8.0, **kwargs))
    start = time.process_time()
    result = mq.fit(
        model,
        parts["train"],
        parts["valid"],
        epochs=epochs,
        loss={"energy": 1, "forces": 100},
        lr=5e-3,
        logging={"progress": False},
        seed=seed,
    )
    return result.model, time.process_time() - start


def errors(model, data):
    """MAE of forces in meV/Å and of the energy in meV."""
    found = mq.evaluate(model, data, progress=False)
    return {"forces": 1e3 * found["forces_mae"], "energy": 1e3 * found["energy_mae"]}


def measure(name, backbone, seed, frames, epochs):
    data = states(name, frames)
    first, second = data.values()
    joint = {part: first[part] + second[part] for part in first}
    both, seconds = train(name, backbone, joint, seed, epochs)
    for value, parts in data.items():
        alone, own = train(name, backbone, parts, seed, epochs)
        row = {
            "set": name,
            "state": value,
            "backbone": backbone,
            "seed": seed,
            "frames": frames,
            "epochs": epochs,
            "alone": errors(alone, parts["test"]),
            "joint": errors(both, parts["test"]),
            "seconds": {"alone": own, "joint": seconds},
        }
        OUT.parent.mkdir(exist_ok=True)
        with OUT.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def table():
    rows = [json.loads(line) for line in OUT.read_text().splitlines()]
    print(
        "| set | state | backbone | frames | epochs | seed | forces alone | joint | ratio | energy alone | joint | s alone | s joint |"
    )
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for r in rows:
        a, j, s = r["alone"], r["joint"], r["seconds"]
        print(
            f"| {r['set']} | {r['state']:g} | {r['backbone']} | {r['frames']} | {r['epochs']} | {r['seed']} | "
            f"{a['forces']:.1f} | {j['forces']:.1f} | {j['forces'] / a['forces']:.2f} | {a['energy']:.1f} | "
            f"{j['energy']:.1f} | {s['alone']:.0f} | {s['joint']:.0f} |"
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", nargs="+", default=list(STATES), choices=STATES)
    parser.add_argument("--backbone", nargs="+", default=["PaiNN"], choices=SIZES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", mq.errors.DataWarning)
    if not given.table:
        for name, backbone, seed in itertools.product(given.set, given.backbone, given.seeds):
            measure(name, backbone, seed, given.frames, given.epochs)
    table()


if __name__ == "__main__":
    main()
