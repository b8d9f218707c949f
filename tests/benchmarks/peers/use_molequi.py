"""molequi: the architectures that the others have, and its own default force field, which is that of the recipe `acac`.

Accelerated: by mq.accelerate.
"""

import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from worker import Peer, Structures

import molequi as mq
from molequi.config.schema import read_config
from molequi.ops.memory import keep_freed_memory
from molequi.readers.load import load_dataset
from molequi.training.options import Optimizer, Schedule

CUTOFF = 5.0


def versions() -> dict[str, str]:
    return {"molequi": mq.__version__, "torch": torch.__version__}


class Molequi(Peer):
    def __init__(self, case: dict):
        structures, size = Structures(case["structures"]), case["size"]
        self.accelerated = case["accelerated"]
        elements = [chemical_symbols[z] for z in structures.elements]
        recipe = read_config("acac")
        if case["measure"] == "train":
            keep_freed_memory()  # as `fit` does
        torch.manual_seed(0)
        if case["own"]:
            ((name, options),) = recipe["backbone"].items()
            options = options | case.get("options", {})
        elif size["kind"] == "mace":
            name, options = (
                "MACE",
                {n: size[n] for n in ("channels", "layers", "l_max", "l_hidden", "correlation")}
                | {"cutoff": CUTOFF},
            )
        else:
            name, options = (
                "NequIP",
                {n: size[n] for n in ("channels", "layers", "l_max", "parity")}
                | {"cutoff": CUTOFF, "l_out": 0},
            )
        self.model = mq.Model(getattr(mq, name)(elements=elements, **options))
        if case.get("isolated"):
            data = load_dataset([labelled(structures, k) for k in range(len(structures))])
            self.model.standardize(data.statistics(self.model.cutoff, reference_energies=structures.isolated))
        train = recipe["train"]
        self.options, schedule = Optimizer(**train["optimizer"]), Schedule(**train["schedule"])
        if schedule.name != "cosine" or not all(isinstance(w, (int, float)) for w in train["loss"].values()):
            raise ValueError("the recipe acac has another schedule or loss than training.py knows")
        self.plan = {
            "lr": train["lr"],
            "batch_size": train["batch_size"],
            "weights": train["loss"],
            "ema": self.options.ema,
            "ema_warmup": True,
            "clip": self.options.clip,
            "schedule": {
                "cosine": {
                    "warmup": schedule.warmup,
                    "floor": 0.01 if schedule.floor is None else schedule.floor,
                }
            },
        }
        self.function = mq.accelerate(self.model) if self.accelerated else self.model

    def plain(self) -> Peer | None:
        return None if self.accelerated else self

    def graph(self, structures: Structures, k: int, moved=0.0) -> mq.Graph:
        cell = {"cell": structures.cell, "pbc": True} if structures.pbc else {}
        return mq.connect(
            mq.Graph.single(structures.pos[k] + moved, structures.numbers, **cell), self.model.cutoff
        )

    def collate(self, graphs: list[mq.Graph]) -> mq.Graph:
        return mq.collate(graphs)

    def outputs(self, batch: mq.Graph, training: bool):
        out = self.function(batch, create_graph=training)
        return out["energy"], out["forces"]

    def optimizer(self, lr: float) -> torch.optim.Optimizer:
        return self.options.make([*self.model.parameters()], lr)

    def calculator(self) -> mq.Calculator:
        return mq.Calculator(self.function)


def labelled(structures: Structures, k: int) -> Atoms:
    atoms = structures.atoms(k)
    atoms.calc = SinglePointCalculator(atoms, energy=float(structures.energy[k]), forces=structures.forces[k])
    return atoms


build = Molequi
