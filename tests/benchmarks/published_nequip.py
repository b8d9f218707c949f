"""Converted NequIP models beside the package nequip: the same values, and the time of energy and forces.

    python -m venv peer && peer/bin/pip install torch==2.13.0 nequip==0.19.1
    python tests/benchmarks/published_nequip.py --peer peer/bin/python [FILE.ckpt | FILE.nequip.zip | S | M | L ...] [--atoms 64 512]

S, M and L are presets of nequip with random weights and 6 Å. Values: the 20 structures of published_models.py in float64 on both sides;
options and weights of a file in float32 are kept so, and constants that nequip rounds with them differ in the eighth digit. Time: rattled
silicon, one thread, float32, processor time, the median of five calls after two others; the package (not compiled) and molequi (plain)
in turn, twice.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from published_models import MEASURE, ours, silicon, structures

PEER = """
import json, sys, time
import numpy as np
import torch
from ase.io import read

file, structures, what, out = sys.argv[1:5]
torch.set_num_threads(1)
from nequip.integrations.ase import NequIPCalculator
from nequip.utils.global_state import set_global_state

set_global_state()
calculator = NequIPCalculator._from_saved_model(file, device="cpu")
if what == "values":
    calculator.model.double()
    for module in calculator.model.modules():
        for name in ("_output_dtype", "model_dtype"):
            if hasattr(module, name):
                setattr(module, name, torch.float64)
"""
MAKE = """
import copy, sys
import lightning
from nequip.train import NequIPLightningModule
from nequip.utils import get_current_code_versions
from nequip.utils.global_state import set_global_state

preset, dtype, out, *types = sys.argv[1:]
set_global_state()
model = {"_target_": "nequip.model.PresetNequIPGNNModel", "preset": preset, "seed": 3, "model_dtype": dtype, "type_names": types,
         "r_max": 6.0, "avg_num_neighbors": 40.0, "per_type_energy_scales": 1.5,
         "per_type_energy_shifts": {name: -1.0 - k / 8 for k, name in enumerate(types)}}
target = "nequip.train.NequIPLightningModule"
info = {"versions": get_current_code_versions(verbose=False), "runs": ["train"], "training_module": {"_target_": target, "model": copy.deepcopy(model)}}
module = NequIPLightningModule(model=model, num_datasets={"train": 1, "val": 0, "test": 0, "predict": 0}, info_dict=info)
trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
trainer.strategy.connect(module)
trainer.save_checkpoint(out)
"""


def main() -> None:
    import torch
    from ase.io import read, write

    import molequi as mq

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", default=["S", "M"])
    parser.add_argument("--peer", required=True, help="Python of an environment that has the package")
    parser.add_argument("--atoms", type=int, nargs="*", default=[64, 512])
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "all.xyz", structures(), format="extxyz", columns=["symbols", "positions"])
        frames = read(Path(folder) / "all.xyz", ":")  # with the digits that the package gets

        def run(code: str, *arguments: str) -> None:
            subprocess.run(
                [given.peer, "-W", "ignore", "-c", code, *arguments],
                check=True,
                cwd=folder,
                stdout=sys.stderr,
                stderr=subprocess.DEVNULL,
            )

        def peer(file: str, which: list, what: str):
            write(Path(folder) / "s.xyz", which, format="extxyz", columns=["symbols", "positions"])
            run(PEER + MEASURE, file, "s.xyz", what, "out.json")
            return json.loads((Path(folder) / "out.json").read_text())

        for name in given.files:
            files = dict.fromkeys(("float64", "float32"), str(Path(name).resolve()))
            if not Path(name).exists():
                types = sorted({symbol for atoms in frames for symbol in atoms.get_chemical_symbols()})
                for dtype in files:
                    files[dtype] = str(Path(folder) / f"{name}-{dtype}.ckpt")
                    run(MAKE, name, dtype, files[dtype], *types)
            model = mq.convert(files["float64"], dtype="float64")
            known = [a for a in frames if set(a.numbers) <= set(model.elements)]
            worst = [0.0, 0.0, 0.0]
            for atoms, a, b in zip(known, ours(model, known, 1), peer(files["float64"], known, "values")):
                parts = [
                    abs(a["energy"] - b["energy"]) / len(atoms),
                    np.abs(np.subtract(a["forces"], b["forces"])).max(),
                    np.abs(np.subtract(a["stress"], b["stress"])).max() if b["stress"] else 0.0,
                ]
                worst = [max(w, float(p)) for w, p in zip(worst, parts)]
            print(
                f"{name}, {len(known)} structures: energy {worst[0]:.1e} eV/atom, forces {worst[1]:.1e} eV/Å, "
                f"stress {worst[2]:.1e} eV/Å³",
                flush=True,
            )
            if 14 not in model.elements:
                continue
            for count in given.atoms:
                crystal, model = silicon(count), mq.convert(files["float32"])
                for _ in range(2):
                    a = peer(files["float32"], [crystal], "time")[0]["seconds"]
                    b = ours(model, [crystal], 7)[0]["seconds"]
                    print(
                        f"{name} {len(crystal)} atoms: package {1e3 * a:.0f} ms, molequi {1e3 * b:.0f} ms, ratio {a / b:.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
