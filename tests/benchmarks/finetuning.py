"""Methods of fine-tuning beside training from scratch: errors on new data, and on old ones that may be forgotten.

    python tests/benchmarks/finetuning.py [--start PaiNN] [--data acac] [--frames 20 50] [--seeds 0 1] [--epochs 100] [--only scratch lora …]
    python tests/benchmarks/finetuning.py --start 7net-0 --data Si --epochs 20 --only scratch default all lora replay
    python tests/benchmarks/finetuning.py --table      # what was measured so far; nothing is trained

A start of our own, PaiNN or GauntACE, is trained on revised MD17: 150 frames each of ethanol, toluene and uracil (PBE/def2-SVP, kcal/mol). Published
starts are 7net-0 and so3lr, as `mq.foundation` finds them. They are trained further on frames of acetylacetone at 300 K (acac, UHF-PBE-D3/def2-SVP)
or on silicon or copper of mlearn (PBE). Old data are 100 frames each of the old molecules, or for the solids 30 frames of the other metal; for so3lr
they have labels of the model itself, since its level of theory is another one. All are published training parts, so that published test parts stay unseen;
those for the test are others than those for training and validation. "scratch" is the backbone of the start with random weights, "default" the recipe `medium`.
Each variant makes the same number of epochs (the default 5 times as many, of cheaper steps); learning rates are those of `VARIANTS` and were not chosen on
the tests. Seconds are those of one processor, with the errors before and after. Published sets are found by MOLEQUI_DATA; rows are appended to
build/finetuning.jsonl.
"""

import argparse
import copy
import itertools
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
    "scratch, lr 1e-3": (1e-3, None),
    "default": (3e-3, None),
    "all": (2e-3, {}),
    "all, lr 1e-3": (1e-3, {}),
    "soap, scratch": (1e-3, None),
    "soap": (3e-3, {}),
    "soap, lr 1e-3": (1e-3, {}),
    "soap, lora": (1e-3, {"method": "lora", "rank": 4}),
    "soap, frozen": (1e-3, {"method": "frozen", "frozen": ["embedding", "FIRST"]}),
    "soap, replay": (1e-3, {"replay": {"weight": 1.0}}),
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
FIRST = {
    "PaiNN": ["messages.0", "updates.0"],
    "GauntACE": ["layers.0"],
    "7net-0": ["interactions.0", "interactions.1"],
    "so3lr": ["layers.0"],
}
SOLIDS = {"Si": "Cu", "Cu": "Si"}  # and what was learned before


def molecules():
    """Frames for training and for the test of each old molecule."""
    train, test = [], []
    for name in ("ethanol", "toluene", "uracil"):
        data = mq.read_npz(ROOT / "rmd17" / f"rmd17_{name}_train_01.npz", units=UNITS)
        train.append(data[:150])
        test.append(data[-100:])
    return sum(train[1:], train[0]), sum(test[1:], test[0])


def solid(name):
    return mq.read_extxyz(ROOT / "mlearn" / f"{name}_train.extxyz")


def parts(data, frames, seed):
    """For training, validation and the test; the seed chooses the frames."""
    if data in SOLIDS:
        test, valid, rest = solid(data).split([25, 15, frames], seed=seed)
        return rest, valid, test
    return mq.read_extxyz(ROOT / "acac" / "train_300K.xyz").split([frames, 50, 200], seed=seed)


def old_frames(data):
    return solid(SOLIDS[data]).split([60, 30], seed=0) if data in SOLIDS else molecules()


def options(epochs, rate, **more):
    return dict(epochs=epochs, lr=rate, loss=LOSS, logging={"progress": False}) | dict(batch_size=5) | more


def random_model(start, elements, seed=0):
    """The network of a start with random weights."""
    torch.manual_seed(seed)
    if start not in SIZES:
        published = mq.foundation(start).backbone
        given = published.hparams | {"elements": elements}
        return mq.Model(type(published)(**given), ["energy", "forces"])
    backbone = getattr(mq, start)(elements=elements, cutoff=5.0, **SIZES[start])
    return mq.Model(backbone, ["energy", "forces"])


def default_model(elements, seed):
    torch.manual_seed(seed)
    backbone = mq.GauntACE(elements=elements, cutoff=5.0, channels=64, layers=2, l_max=3, l_hidden=1, l_out=0)
    return mq.Model(backbone, ["energy", "forces"])


def starting(start, epochs):
    """What `mq.load` takes: a start of our own is trained once."""
    if start not in SIZES:
        return mq.foundation(start)
    file = BUILD / f"finetuning-{start}" / "model.safetensors"
    train, test = molecules()
    begun = time.process_time()
    result = mq.fit(
        random_model(start, train.elements), train, test[::3], **options(epochs, 5e-3), out=file.parent
    )
    print(f"start: {start}, {time.process_time() - begun:.0f} s\n{result}", flush=True)
    return mq.load(file)


def tune(start, found, data, name, frames, epochs, seed):
    """One variant; a row of the table."""
    rate, wanted = VARIANTS[name]
    train, valid, test = parts(data, frames, seed)
    own_labels = start == "so3lr"
    if own_labels:
        train, valid, test = map(neutral, (train, valid, test))
    given = options(epochs, rate, batch_size=2 if data in SOLIDS else 5, seed=seed)
    if name == "default":
        model = default_model(train.elements, seed)
        given |= dict(epochs=5 * epochs, batch_size=2, optimizer="soap", schedule={"warmup": 1})
    elif wanted is None:
        model = random_model(start, train.elements, seed)
    else:
        model = copy.deepcopy(found)
        old, old_test = old_frames(data)
        if own_labels:
            old, old_test = neutral(old), labelled(found, neutral(old_test))
        wanted = dict(wanted) | {"old": old_test, "nve": 0}
        if "replay" in wanted:
            labels = {"labels": "model"} if own_labels else {}
            wanted["replay"] = wanted["replay"] | {"data": old} | labels
        if "frozen" in wanted:
            blocks = ([*FIRST[start]] if one == "FIRST" else [one] for one in wanted["frozen"])
            wanted["frozen"] = [name for block in blocks for name in block]
    if name.startswith("soap"):
        given |= dict(optimizer="soap", schedule={"warmup": 1})
    begun = time.process_time()
    result = mq.fit(model, train, valid, **given, test=test, finetune=wanted)
    seconds = time.process_time() - begun
    row = {
        "start": start,
        "data": data,
        "frames": frames,
        "epochs": given["epochs"],
        "variant": name,
        "seed": seed,
    }
    row["seconds"] = seconds
    errors = result.errors["test"]
    row["valid_forces"] = result.errors["valid"]["forces_rmse"]
    row |= {"new_forces": errors["forces_rmse"], "new_energy": errors["energy_per_atom_rmse"]}
    if wanted is not None:
        report = result.reports["finetuning"]
        found_errors = {(e.data, e.quantity): e for e in report.errors}
        row["before_forces"] = found_errors["new (test)", "forces"].before
        for quantity, key in (("forces", "forces"), ("energy_per_atom", "energy")):
            row[f"old_{key}"], row[f"old_{key}_before"] = (
                getattr(found_errors["old", quantity], at) for at in ("after", "before")
            )
        row["method"] = report.method
    with OUT.open("a") as handle:
        handle.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def neutral(data):
    """The same structures as neutral singlets, which so3lr has to know."""
    totals = {"charge": torch.zeros(1, dtype=torch.float64), "spin": torch.ones(1, dtype=torch.float64)}
    return mq.Dataset([graph.replace(**totals) for graph in data])


def labelled(model, data):
    """The same structures with energies and forces of a model."""
    graphs = []
    for graph in data:
        out = model(mq.connect(graph, model.cutoff))
        graphs.append(graph.replace(targets={"energy": out["energy"], "forces": out["forces"]}))
    return mq.Dataset(graphs)


def table():
    """The rows as Markdown; the last of each variant counts."""
    rows = {}
    for line in OUT.read_text().splitlines():
        row = json.loads(line)
        rows[row["start"], row["data"], row["frames"], row["variant"], row.get("seed", 0)] = row
    print(
        "| start | data | frames | variant | seed | new: forces meV/Å | energy meV/atom | old: forces | energy | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (start, data, frames, variant, seed), row in rows.items():
        new = f"{1000 * row['new_forces']:.0f} | {1000 * row['new_energy']:.1f}"
        old = " | "
        if "old_forces" in row:
            old = (
                f"{1000 * row['old_forces_before']:.0f} → {1000 * row['old_forces']:.0f} | "
                f"{1000 * row['old_energy_before']:.1f} → {1000 * row['old_energy']:.1f}"
            )
        print(f"| {start} | {data} | {frames} | {variant} | {seed} | {new} | {old} | {row['seconds']:.0f} |")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--start", default="PaiNN", choices=FIRST)
    parser.add_argument("--data", default="acac", choices=["acac", *SOLIDS])
    parser.add_argument("--frames", type=int, nargs="+", default=[50])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--start-epochs", type=int, default=40)
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if not given.table:
        torch.set_num_threads(1)
        BUILD.mkdir(exist_ok=True)
        found = starting(given.start, given.start_epochs)
        for frames, seed, name in itertools.product(given.frames, given.seeds, given.only):
            tune(given.start, found, given.data, name, frames, given.epochs, seed)
    table()


if __name__ == "__main__":
    main()
