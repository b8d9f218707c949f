"""mace-torch through its own modules: ScaleShiftMACE as mace_run_train builds it by default, in float32.

Accelerated: its preparation for torch.compile (mace.tools.compile), which its ASE calculator offers as compile_mode.
"""

import os

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = (
    "1"  # the e3nn that it wants keeps its constants in a pickle of its own
)

from argparse import Namespace
from importlib.metadata import version

import numpy as np
import torch
from e3nn import o3
from mace import data, modules, tools
from mace.calculators import MACECalculator
from mace.tools.compile import prepare
from mace.tools.scripts_utils import get_params_options
from mace.tools.torch_geometric import Batch
from worker import Peer, Structures

CUTOFF = 5.0


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("mace-torch", "torch", "e3nn")}


class MaceTorch(Peer):
    # arXiv 2206.07697 for this data set; schedule and clipping are the defaults of mace_run_train.
    plan = {
        "lr": 0.01,
        "batch_size": 5,
        "weights": {"energy": 1.0, "forces": 1000.0},
        "ema": 0.99,
        "ema_warmup": True,
        "clip": 10.0,
        "schedule": {"plateau": {"factor": 0.8, "patience": 50}},
    }

    def __init__(self, case: dict):
        torch.set_default_dtype(torch.float32)
        structures, size = Structures(case["structures"]), case["size"]
        if size["kind"] != "mace":
            raise ValueError(f"mace-torch has no {size['kind']}")
        if case["accelerated"] and case["measure"] == "train":
            raise ValueError("mace-torch compiles for its calculator; its training has no such option")
        self.table = tools.AtomicNumberTable(structures.elements)
        self.accelerated = case["accelerated"]
        channels = size["channels"]

        def build() -> torch.nn.Module:
            torch.manual_seed(0)
            return modules.ScaleShiftMACE(
                r_max=CUTOFF,
                num_bessel=8,
                num_polynomial_cutoff=5,
                max_ell=size["l_max"],
                num_interactions=size["layers"],
                interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
                interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
                num_elements=len(self.table),
                hidden_irreps=o3.Irreps([(channels, (l, (-1) ** l)) for l in range(size["l_hidden"] + 1)]),
                MLP_irreps=o3.Irreps("16x0e"),
                gate=modules.gate_dict["silu"],
                radial_MLP=[64, 64, 64],
                correlation=size["correlation"],
                atomic_energies=np.array(
                    [structures.isolated.get(z, 0.0) if case.get("isolated") else 0.0 for z in self.table.zs]
                ),
                avg_num_neighbors=structures.mean_neighbors(CUTOFF),
                atomic_numbers=self.table.zs,
                use_reduced_cg=False,
                atomic_inter_scale=float(np.sqrt(np.mean(structures.forces**2)))
                if case.get("isolated")
                else 1.0,
                atomic_inter_shift=0.0,
            )

        prepared = self.accelerated and case["measure"] != "md"  # its calculator prepares by itself
        self.model = prepare(build)() if prepared else build()
        if case.get("kernels") == "cuEquivariance":  # as its calculator's enable_cueq
            from mace.cli.convert_e3nn_cueq import run

            self.model = run(self.model.to(case["device"]), device=case["device"])
        self.function = torch.compile(self.model) if prepared else self.model

    def plain(self) -> Peer | None:
        return None if self.accelerated else self

    def graph(self, structures: Structures, k: int, moved=0.0) -> data.AtomicData:
        config = data.config_from_atoms(structures.atoms(k, moved), key_specification=data.KeySpecification())
        return data.AtomicData.from_config(config, z_table=self.table, cutoff=CUTOFF)

    def collate(self, graphs: list[data.AtomicData]) -> dict[str, torch.Tensor]:
        batch = Batch.from_data_list(graphs).to_dict()
        if self.accelerated:  # as its calculator does
            batch["positions"].requires_grad_(True)
            batch["node_attrs"].requires_grad_(True)
        return batch

    def outputs(self, batch: dict[str, torch.Tensor], training: bool):
        out = self.function(batch, training=training or self.accelerated)
        return out["energy"], out["forces"]

    def optimizer(self, lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            **get_params_options(
                Namespace(
                    lr=lr, weight_decay=5e-7, amsgrad=True, beta=0.9, freeze=None, lr_params_factors="{}"
                ),
                self.model,
            )
        )

    def calculator(self) -> MACECalculator:
        return MACECalculator(
            models=self.model, default_dtype="float32", compile_mode="default" if self.accelerated else None
        )


build = MaceTorch
