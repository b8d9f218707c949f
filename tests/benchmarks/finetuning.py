"""Methods of fine-tuning beside training from scratch: errors on new molecules, and on the old ones that may be forgotten.

    python tests/benchmarks/finetuning.py [--backbone PaiNN] [--frames 20 50] [--epochs 100] [--only scratch lora …]
    python tests/benchmarks/finetuning.py --table      # what was measured so far; nothing is trained

The start is trained on revised MD17: 150 frames each of ethanol, toluene and uracil (PBE/def2-SVP, kcal/mol). It is trained further on frames of
acetylacetone at 300 K (UHF-PBE-D3/def2-SVP, eV), which has the same elements and another level of theory. Tested are 200 other frames of
acetylacetone, and 100 other frames of each old molecule; all of the published training parts, so that published test parts stay unseen. Each
variant makes the same number of epochs; learning rates are those of `VARIANTS` and were not chosen on the tests. Seconds are those of one
processor, with the errors before and after. Published sets are found by MOLEQUI_DATA; rows are appended to build/finetuning.jsonl.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch

import molequi as mq

ROOT = Path(os.environ.get("MOLEQUI_DATA", "."))
BUILD = Path(__file__).resolve().parents[2] / "build"
OUT = BUILD / "finetuning.jsonl"
LOSS = {"energy": 100, "forces": 100}
UNITS = {"energy": "kcal/mol", "forces": "kcal/mol/Å"}
SIZES = {
    "PaiNN": dict(channels=32, layers=2),
    "GauntACE": dict(channels=16, layers=2, l_max=2, l_hidden=1, l_out=0),
}
# name: learning rate, option finetune (None: from scratch)
VARIANTS = {
    "scratch": (5e-3, None),
    "all": (2e-3, {}),
    "all, lr 5e-3": (5e-3, {}),
    "all, layer_decay 0.5": (2e-3, {"layer_decay": 0.5}),
    "heads": (5e-3, {"method": "heads"}),
    "frozen": (2e-3, {"method": "frozen", "frozen": ["embedding", "FIRST"]}),
    "lora": (5e-3, {"method": "lora", "rank": 4}),
    "replay": (2e-3, {"replay": {"weight": 1.0}}),
    "replay, lr 5e-3": (5e-3, {"replay": {"weight": 1.0}}),
    "replay, labels of the model": (2e-3, {"replay": {"weight": 1.0, "labels": "model"}}),
    "lora with replay": (5e-3, {"method": "lora", "rank": 4, "replay": {"weight": 1.0}}),
}
FIRST = {"PaiNN": ["messages.0", "updates.0"], "GauntACE": ["layers.0"]}


def old_frames():
    """Frames for training and for the test of each old molecule."""
    train, test = [], []
    for name in ("ethanol", "toluene", "uracil"):
        data = mq.read_npz(ROOT / "rmd17" / f"rmd17_{name}_train_01.npz", units=UNITS)
        train.append(data[:150])
        test.append(data[-100:])
    return sum(train[1:], train[0]), sum(test[1:], test[0])


def options(epochs, rate, **more):
    return dict(epochs=epochs, batch_size=5, lr=rate, loss=LOSS, logging={"progress": False}, **more)


def model_of(backbone, elements):
    torch.manual_seed(0)
    return mq.Model(
        getattr(mq, backbone)(elements=elements, cutoff=5.0, **SIZES[backbone]), ["energy", "forces"]
    )


def start(backbone, epochs):
    """The file of the starting model, which is trained once."""
    file = BUILD / f"finetuning-{backbone}" / "model.safetensors"
    train, test = old_frames()
    begun = time.process_time()
    result = mq.fit(
        model_of(backbone, train.elements), train, test[::3], **options(epochs, 5e-3), out=file.parent
    )
    print(f"start: {backbone}, {time.process_time() - begun:.0f} s\n{result}", flush=True)
    return file


def tune(backbone, file, name, frames, epochs):
    """One variant; a row of the table."""
    rate, wanted = VARIANTS[name]
    old, old_test = old_frames()
    acac = mq.read_extxyz(ROOT / "acac" / "train_300K.xyz")
    parts = acac.split([frames, 50, 200], seed=0)
    train, valid, test = parts
    model = model_of(backbone, train.elements) if wanted is None else mq.load(file)
    if wanted is not None:
        wanted = dict(wanted) | {"old": old_test, "nve": 0}
        if "replay" in wanted:
            wanted["replay"] = wanted["replay"] | {"data": old}
        if "frozen" in wanted:
            wanted["frozen"] = [
                x for one in wanted["frozen"] for x in (FIRST[backbone] if one == "FIRST" else [one])
            ]
    begun = time.process_time()
    result = mq.fit(model, train, valid, **options(epochs, rate), test=test, finetune=wanted)
    seconds = time.process_time() - begun
    row = {"backbone": backbone, "frames": frames, "epochs": epochs, "variant": name, "seconds": seconds}
    errors = result.errors["test"]
    row["valid_forces"] = result.errors["valid"]["forces_rmse"]
    row |= {"new_forces": errors["forces_rmse"], "new_energy": errors["energy_per_atom_rmse"]}
    if wanted is not None:
        report = result.reports["finetuning"]
        found = {(e.data, e.quantity): e for e in report.errors}
        for quantity, key in (("forces", "forces"), ("energy_per_atom", "energy")):
            row[f"old_{key}"], row[f"old_{key}_before"] = (
                getattr(found["old", quantity], at) for at in ("after", "before")
            )
        row["method"] = report.method
    with OUT.open("a") as handle:
        handle.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def table():
    """The rows as Markdown; the last of each variant counts."""
    rows = {}
    for line in OUT.read_text().splitlines():
        row = json.loads(line)
        rows[row["backbone"], row["frames"], row["variant"]] = row
    print(
        "| start | frames | variant | new: forces meV/Å | energy meV/atom | old: forces | energy | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for (backbone, frames, variant), row in rows.items():
        new = f"{1000 * row['new_forces']:.0f} | {1000 * row['new_energy']:.1f}"
        old = " | "
        if "old_forces" in row:
            old = (
                f"{1000 * row['old_forces_before']:.0f} → {1000 * row['old_forces']:.0f} | "
                f"{1000 * row['old_energy_before']:.1f} → {1000 * row['old_energy']:.1f}"
            )
        print(f"| {backbone} | {frames} | {variant} | {new} | {old} | {row['seconds']:.0f} |")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="PaiNN", choices=SIZES)
    parser.add_argument("--frames", type=int, nargs="+", default=[50])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--start-epochs", type=int, default=40)
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if not given.table:
        torch.set_num_threads(1)
        BUILD.mkdir(exist_ok=True)
        file = start(given.backbone, given.start_epochs)
        for frames in given.frames:
            for name in given.only:
                tune(given.backbone, file, name, frames, given.epochs)
    table()


if __name__ == "__main__":
    main()
