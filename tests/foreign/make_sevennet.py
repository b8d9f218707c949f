"""Makes the small models of this folder and their reference values, with the package sevenn in an environment of its own.

    python tests/foreign/make_sevennet.py

Each file NAME.pth is a checkpoint as sevenn writes it, with random weights; NAME.json has energies, forces and stress that sevenn
computes of its structures, in float64. Made with sevenn 0.13.0.
"""

import copy
import importlib
import json
from pathlib import Path

import numpy as np
import torch
from ase import Atoms

FOLDER = Path(__file__).parent
CONFIGS = {
    # O(3), a matrix for each element, polynomial cutoff, channels as the options give them
    "sevennet_o3": {
        "is_parity": True,
        "channel": 4,
        "lmax": 2,
        "num_convolution_layer": 3,
        "self_connection_type": "nequip",
        "cutoff": 4.0,
    },
    # SO(3), two levels of theory, XPLOR, other channels for each irrep, degree 3, harmonics that are not normalized
    "sevennet_levels": {
        "is_parity": False,
        "lmax": 3,
        "channel": 6,
        "irreps_manual": ["6x0e", "6x0e+4x1e+2x2e+1x3e", "6x0e+3x1e+2x2e+2x3e", "5x0e"],
        "num_convolution_layer": 3,
        "self_connection_type": ["linear", "nequip", "linear"],
        "cutoff_function": {"cutoff_function_name": "XPLOR", "cutoff_on": 3.0},
        "cutoff": 4.0,
        "_normalize_sph": False,
        "use_modality": True,
        "_number_of_modalities": 2,
        "_modal_map": {"PBE": 0, "R2SCAN": 1},
        "use_modal_node_embedding": True,
        "use_modal_self_inter_intro": True,
        "use_modal_self_inter_outro": True,
        "use_modal_output_block": True,
        "use_modal_wise_shift": True,
        "use_modal_wise_scale": False,
    },
}


def structures() -> list[Atoms]:
    random = np.random.default_rng(7)
    cell = [[4.4, 0, 0], [0.6, 4.1, 0], [-0.3, 0.8, 4.7]]
    made = [
        Atoms("OHH", [[0, 0, 0], [0.96, 0, 0.1], [-0.24, 0.93, 0]]),
        Atoms("C", [[1.0, 2.0, 3.0]]),
        Atoms("COHC", random.uniform(0, 1, (4, 3)) @ np.array(cell), cell=cell, pbc=True),
    ]
    for atoms in made:  # numbers that float32 holds, since sevenn makes its graphs in float32
        atoms.cell[:] = np.round(atoms.cell[:] * 1024) / 1024
        atoms.positions = np.round(atoms.positions * 1024) / 1024
    return made


def config_of(own: dict) -> dict:
    from sevenn import __version__
    from sevenn._const import DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG

    config = copy.deepcopy(DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG) | own
    levels = len(own.get("_modal_map", ())) or None
    config |= {
        "version": __version__,
        "_model_type": "E3_equivariant_model",
        "chemical_species": ["C", "H", "O"],
        "_number_of_species": 3,
        "_type_map": {6: 0, 1: 1, 8: 2},
        "conv_denominator": [2.5] * config["num_convolution_layer"],
        "shift": [-1.5, -0.5, -2.25] if levels is None else [[-1.5, -0.5, -2.25], [-3.5, -0.75, 1.25]],
        "scale": [1.25, 0.5, 2.0],
        "train_shift_scale": False,
    }
    return config


def make(name: str, own: dict) -> None:
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.calculator import SevenNetCalculator
    from sevenn.model_build import build_E3_equivariant_model

    torch.manual_seed(3)
    config = config_of(own)
    model = build_E3_equivariant_model(config)
    # Coupling tensors keep their digits; trained numbers are float32, as in published files.
    state = {k: v if "_w3j" in k else v.to(torch.float32) for k, v in model.state_dict().items()}
    file = FOLDER / f"{name}.pth"
    torch.save({"model_state_dict": state, "config": config, "epoch": 1}, file)

    graphs = AtomGraphData.from_numpy_dict

    def as_double(*arguments, **options):
        data = graphs(*arguments, **options)
        for key, value in data.to_dict().items():
            if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
                data[key] = value.double()
        return data

    AtomGraphData.from_numpy_dict = staticmethod(as_double)
    found = []
    for level in own.get("_modal_map", {None: 0}):
        calculator = SevenNetCalculator(str(file), device="cpu", modal=level)
        calculator.model.double()
        for atoms in structures():
            calculator.calculate(atoms)
            values = calculator.results
            found.append(
                {
                    "level": level,
                    "symbols": atoms.get_chemical_symbols(),
                    "positions": atoms.positions.tolist(),
                    "cell": atoms.cell.tolist() if atoms.pbc.all() else None,
                    "energy": float(values["energy"]),
                    "forces": np.asarray(values["forces"]).tolist(),
                    "stress": np.asarray(values["stress"]).tolist() if atoms.pbc.all() else None,
                }
            )
    AtomGraphData.from_numpy_dict = graphs
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    # Reference values in float64: sevenn itself makes its elements and some constants in float32.
    importlib.import_module("sevenn.calculator")  # before the names below change
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    torch.FloatTensor = lambda values: torch.tensor(values, dtype=torch.float64)
    for name, own in CONFIGS.items():
        make(name, own)
