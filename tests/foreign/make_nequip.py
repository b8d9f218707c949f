"""Makes the small models of this folder and their reference values, with the package nequip in an environment of its own.

    python tests/foreign/make_nequip.py

Each file NAME.ckpt is a checkpoint as nequip writes it while it trains, with random weights and options in float64; NAME.json has
energies, forces and stress that nequip computes of its structures, in float64. NAME.nequip.zip is a package as `nequip-package build`
makes it of the checkpoint, without what the reader does not look at: the Python files of nequip and e3nn (all modules are declared
external), the programs that e3nn generates (``__codegen__`` is emptied), the example data and the compiled twin of the model. Made with
nequip 0.19.1, e3nn 0.6.0 and torch 2.13.0; checkpoints of versions 0.7 to 0.17 and whole packages were compared in the same way.
"""

import copy
import json
import warnings
from pathlib import Path

import lightning
import numpy as np
import torch
from ase import Atoms
from e3nn.util.codegen import CodeGenMixin

FOLDER = Path(__file__).parent
TYPES = ["H", "O", "C"]
COMMON = {"seed": 3, "model_dtype": "float64", "type_names": TYPES, "r_max": 4.0, "num_bessels": 5}
TRAINED = {"nequip_o3": "nequip.train.EMALightningModule"}
MODELS = {
    # both parities (0o is in the third layer), numbers of neighbors, scales and shifts of each type, repulsion, averaged weights
    "nequip_o3": {
        "_target_": "nequip.model.NequIPGNNModel",
        **COMMON,
        "num_layers": 4,
        "l_max": 2,
        "parity": True,
        "num_features": [4, 3, 1],
        "type_embed_num_features": 5,
        "radial_mlp_depth": 2,
        "radial_mlp_width": 6,
        "bessel_trainable": True,
        "polynomial_cutoff_p": 5,
        "avg_num_neighbors": {"H": 11.0, "O": 14.5, "C": 12.25},
        "per_type_energy_scales": {"H": 1.25, "O": 0.5, "C": 2.0},
        "per_type_energy_shifts": {"H": -0.5, "O": -2.25, "C": -1.5},
        "per_type_energy_shifts_trainable": True,
        "pair_potential": {
            "_target_": "nequip.nn.pair_potential.ZBL",
            "units": "metal",
            "chemical_species": TYPES,
        },
    },
    # natural parity alone, cutoffs of pairs with a repulsion, a readout with a hidden layer, linear radial functions
    "nequip_natural": {
        "_target_": "nequip.model.NequIPGNNModel",
        **COMMON,
        "num_layers": 2,
        "l_max": 3,
        "parity": False,
        "num_features": 4,
        "radial_mlp_depth": 0,
        "radial_mlp_width": 6,
        "per_edge_type_cutoff": {"H": 2.5, "C": {"O": 3.0}},
        "avg_num_neighbors": 9.5,
        "per_type_energy_shifts": -1.5,
        "readout_mlp_hidden_layers_depth": 1,
        "readout_mlp_hidden_layers_width": 6,
        "pair_potential": {
            "_target_": "nequip.nn.pair_potential.ZBL",
            "units": "metal",
            "chemical_species": TYPES,
            "polynomial_cutoff_p": 8,
        },
    },
    # SO(3) in an order of its own, other channels in each layer, a deep linear readout, a self-connection in all layers
    "nequip_so3": {
        "_target_": "nequip.model.FullNequIPGNNModel",
        **COMMON,
        "irreps_edge_sh": "0e+1e+2e",
        "type_embed_num_features": 4,
        "feature_irreps_hidden": ["2x2e+4x0e+3x1e", "5x0e+1x1e+2x2e", "4x0e"],
        "radial_mlp_depth": [1, 1, 1],
        "radial_mlp_width": [7, 7, 7],
        "avg_num_neighbors": 9.5,
        "per_type_energy_scales": 1.75,
        "learnable_shift": True,
        "readout_mlp_hidden_layers_depth": 2,
        "readout_mlp_hidden_layers_width": 3,
        "readout_mlp_nonlinearity": None,
    },
}


def structures() -> list[Atoms]:
    random = np.random.default_rng(7)
    cell = np.array([[4.4, 0, 0], [0.6, 4.1, 0], [-0.3, 0.8, 4.7]])
    slab = np.diag([3.1, 3.3, 14.0])
    return [
        Atoms("OHH", [[0, 0, 0], [0.96, 0, 0.1], [-0.24, 0.93, 0]]),
        Atoms("C", [[1.0, 2.0, 3.0]]),
        Atoms("COHC", random.uniform(0, 1, (4, 3)) @ cell, cell=cell, pbc=True),
        Atoms("OHCCH", random.uniform(0, 1, (5, 3)) * [3.1, 3.3, 4.0], cell=slab, pbc=(True, True, False)),
        Atoms("C", [[0, 0, 0]], cell=np.eye(3) * 2.1 + 0.1, pbc=True),
    ]


def write(name: str, options: dict) -> None:
    from hydra.utils import get_class
    from nequip.utils import get_current_code_versions

    target = TRAINED.get(name, "nequip.train.NequIPLightningModule")
    averaged = target.endswith("EMALightningModule")
    info = {
        "versions": get_current_code_versions(verbose=False),
        "training_module": {"_target_": target, "model": copy.deepcopy(options)},
        "runs": ["train"],
    }
    counts = {"train": 1, "val": 0, "test": 0, "predict": 0}
    module = get_class(target)(model=copy.deepcopy(options), num_datasets=counts, info_dict=info)
    if averaged:  # the averages are others than the last weights
        with torch.no_grad():
            for tensor in module.model.parameters():
                tensor += 0.1 * torch.randn_like(tensor)
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(FOLDER / f"{name}.ckpt")


def package(name: str, model: torch.nn.Module) -> None:
    getstate = CodeGenMixin.__getstate__

    def without_programs(self):
        state = getstate(self)
        state["__codegen__"] = {key: (kind, b"") for key, (kind, _) in state["__codegen__"].items()}
        return state

    CodeGenMixin.__getstate__ = without_programs
    with torch.package.PackageExporter(FOLDER / f"{name}.nequip.zip") as out:
        out.extern("**")
        out.save_text("model", "package_metadata.txt", "package_version_id: 2\nversions:\n  nequip: 0.19.1\n")
        out.save_pickle("model", "eager_model.pkl", model)
    CodeGenMixin.__getstate__ = getstate


def make(name: str) -> None:
    from nequip.data.ase import from_ase
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
    from nequip.model import ModelFromCheckpoint

    write(name, MODELS[name])
    models = ModelFromCheckpoint(str(FOLDER / f"{name}.ckpt")).eval()
    package(name, models)
    mapper = ChemicalSpeciesToAtomTypeMapper(TYPES, {symbol: symbol for symbol in TYPES})
    neighbors = NeighborListTransform(r_max=COMMON["r_max"])
    found = []
    for atoms in structures():
        values = models["sole_model"](neighbors(mapper(from_ase(atoms))))
        full = atoms.pbc.all()
        found.append(
            {
                "symbols": atoms.get_chemical_symbols(),
                "positions": atoms.positions.tolist(),
                "cell": atoms.cell.tolist() if atoms.pbc.any() else None,
                "pbc": atoms.pbc.tolist(),
                "energy": float(values["total_energy"]),
                "forces": values["forces"].tolist(),
                "stress": values["stress"][0].tolist() if full else None,
            }
        )
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    from nequip.utils.global_state import set_global_state

    warnings.simplefilter("ignore")
    set_global_state()
    for name in MODELS:
        make(name)
