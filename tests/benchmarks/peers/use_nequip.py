"""nequip through its own model builder, in float32.

Accelerated as its documentation says: training by compile_mode "compile", inference and dynamics by a model compiled
ahead of time for its ASE calculator (what nequip-compile --mode aotinductor --target ase makes of a checkpoint).
"""

import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from ase.data import chemical_symbols
from nequip.data import AtomicDataDict, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.integrations.ase import NequIPCalculator
from nequip.model import NequIPGNNModel, modify
from nequip.nn.compile import DictInputOutputWrapper
from nequip.scripts._compile_utils import ASE_TARGET
from nequip.utils.aot import aot_export_model
from nequip.utils.global_state import set_global_state
from worker import Peer, Structures

CUTOFF = 5.0
COMPILED: dict[str, torch.nn.Module] = {}


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("nequip", "torch", "e3nn")}


class Nequip(Peer):
    # Its tutorial configuration; its plateau is of the sum of mean absolute errors, here of the loss.
    plan = {
        "lr": 0.01,
        "batch_size": 5,
        "weights": {"energy": 1.0, "forces": 1.0},
        "ema": 0.999,
        "ema_warmup": False,
        "clip": None,
        "schedule": {"plateau": {"factor": 0.6, "patience": 5, "threshold": 0.2, "min_lr": 1e-6}},
    }

    def __init__(self, case: dict):
        set_global_state(allow_tf32=False)
        structures, size = Structures(case["structures"]), case["size"]
        if size["kind"] != "nequip":
            raise ValueError(f"nequip has no {size['kind']}")
        symbols = [chemical_symbols[z] for z in structures.elements]
        self.transforms = [
            ChemicalSpeciesToAtomTypeMapper(
                model_type_names=symbols, chemical_species_to_atom_type_map={s: s for s in symbols}
            ),
            NeighborListTransform(r_max=CUTOFF),
        ]
        training, self.accelerated = case["measure"] == "train", case["accelerated"]
        trained = case.get("isolated")
        rms = {
            s: float(np.sqrt(np.mean(structures.forces[:, structures.numbers == z] ** 2)))
            for s, z in zip(symbols, structures.elements)
        }
        options = dict(
            seed=0,
            model_dtype="float32",
            type_names=symbols,
            r_max=CUTOFF,
            num_layers=size["layers"],
            l_max=size["l_max"],
            parity=size["parity"],
            num_features=size["channels"],
            radial_mlp_depth=2,
            radial_mlp_width=64,
            avg_num_neighbors=structures.mean_neighbors(CUTOFF),
            per_type_energy_scales=rms if trained else 1.0,
            per_type_energy_shifts=float(structures.energy.mean()) / len(structures.numbers)
            if trained
            else 0.0,
        )
        self.model = NequIPGNNModel(
            **options, compile_mode="compile" if self.accelerated and training else "eager"
        )
        self.device = case.get("device", "cpu")
        if case.get("kernels"):
            self.model = modify(self.model, [{"modifier": f"enable_{case['kernels']}"}])
        self.function = self.model.train(training)
        if self.accelerated and not training:
            self.function = self.ahead_of_time(
                self.graph(structures, 0), json.dumps([size, structures.elements])
            )

    def ahead_of_time(self, example: AtomicDataDict.Type, what: str) -> torch.nn.Module:
        """Compiled, or taken from what this process compiled last."""
        if what not in COMPILED:
            COMPILED.clear()
            COMPILED[what] = self.compiled(example)
        return COMPILED[what]

    def compiled(self, example: AtomicDataDict.Type) -> torch.nn.Module:
        shapes = {
            name: torch.export.dynamic_shapes.Dim(f"num_{name}s", min=2, max=torch.inf)
            for name in ("graph", "node", "edge")
        }
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "model.nequip.pt2")
            aot_export_model(
                self.model.eval(),
                self.device,
                ASE_TARGET["input"],
                ASE_TARGET["output"],
                ASE_TARGET["data_settings"](AtomicDataDict.to_(dict(example), self.device)),
                ASE_TARGET["batch_map_settings"](shapes),
                path,
            )
            return DictInputOutputWrapper(
                torch._inductor.aoti_load_package(path), ASE_TARGET["input"], ASE_TARGET["output"]
            ).eval()

    def plain(self) -> Peer | None:
        return None if self.accelerated else self

    def graph(self, structures: Structures, k: int, moved=0.0) -> AtomicDataDict.Type:
        atoms = structures.atoms(k, moved)
        if not structures.pbc:
            atoms.cell = [50.0] * 3  # its stress, which comes along, is divided by a volume
        graph = from_ase(atoms)
        for transform in self.transforms:
            graph = transform(graph)
        return graph

    def collate(self, graphs: list[AtomicDataDict.Type]) -> AtomicDataDict.Type:
        return AtomicDataDict.batched_from_list(graphs) if len(graphs) > 1 else graphs[0]

    def outputs(self, batch: AtomicDataDict.Type, training: bool):
        if self.function.training != training:
            self.function.train(training)
        out = self.function(dict(batch))
        return out[AtomicDataDict.TOTAL_ENERGY_KEY].reshape(-1), out[AtomicDataDict.FORCE_KEY]

    def optimizer(self, lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=lr)

    def calculator(self) -> NequIPCalculator:
        return NequIPCalculator(self.function.eval(), "cpu", transforms=self.transforms)


build = Nequip
