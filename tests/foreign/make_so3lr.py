"""Makes small models of So3krates and SO3LR and their reference values, with so3krates-torch in an environment of its own.

    python tests/foreign/make_so3lr.py

Each file NAME.model is a model as so3krates-torch saves it, with random weights; NAME.json has energies, forces, stress, charges and
dipoles that the package computes of its structures, in float64. Made with so3krates-torch 0.2.1.
"""

import copy
import json
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from so3krates_torch.calculator.so3 import TorchkratesCalculator
from so3krates_torch.modules.models import SO3LR, So3krates

FOLDER = Path(__file__).parent
COMMON = {
    "r_max": 3.5,
    "num_radial_basis_fn": 6,
    "degrees": [1, 2],
    "num_features": 8,
    "num_heads": 2,
    "num_layers": 2,
    "num_elements": 118,
    "avg_num_neighbors": 3.7,
    "radial_basis_fn": "bernstein",
    "cutoff_fn": "phys",
    "message_normalization": "avg_num_neighbors",
    "energy_learn_atomic_type_scales": True,
    "energy_learn_atomic_type_shifts": True,
    "dtype": torch.float32,
}
MODELS = {
    # As the published model: layer norms, residual perceptrons, total charge and spin, all terms
    "so3lr": lambda: SO3LR(
        **COMMON,
        r_max_lr=6.0,
        dispersion_energy_cutoff_lr_damping=1.5,
        energy_regression_dim=6,
        layer_normalization_1=True,
        layer_normalization_2=True,
        residual_mlp_1=True,
        use_charge_embed=True,
        use_spin_embed=True,
    ),
    # Without any of these
    "so3krates": lambda: So3krates(**COMMON, energy_regression_dim=8),
}


def structures() -> list[Atoms]:
    random = np.random.default_rng(5)
    cell = [[4.4, 0, 0], [0.6, 4.1, 0], [-0.3, 0.8, 4.7]]
    made = [
        Atoms("OHHCH", [[0, 0, 0], [0.96, 0, 0.1], [-0.24, 0.93, 0], [2.9, 0.3, 1.1], [4.0, -0.4, 3.1]]),
        Atoms("C", [[1.0, 2.0, 3.0]]),
        Atoms("COHC", random.uniform(0, 1, (4, 3)) @ np.array(cell), cell=cell, pbc=True),
    ]
    for atoms, charge, unpaired in zip(made, (0, -1, 2), (0, 3, 1)):
        atoms.info = {"charge": charge, "spin": unpaired + 1, "total_spin": unpaired / 2}
    return made


def make(name: str) -> None:
    torch.manual_seed(3)
    model = MODELS[name]()
    for parameter in model.parameters():  # biases, too
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.inv_feature_embedding.embedding.weight.data *= 4  # so that all parts of the model count
    head = model.atomic_energy_output_block
    scales = torch.ones(118)
    scales[[0, 5, 7]] = torch.tensor([0.75, 1.25, 0.5])  # of H, C and O: other elements count as not trained
    head.energy_scales.weight.data[0] = scales
    torch.save(model, FOLDER / f"{name}.model")

    torch.set_default_dtype(torch.float64)
    long = getattr(model, "r_max_lr", None)
    calculator = TorchkratesCalculator(
        models=[copy.deepcopy(model).double()], model_type=name, default_dtype="float64", r_max_lr=long
    )
    found = []
    for atoms in structures():
        periodic = bool(atoms.pbc.all())
        calculator.compute_stress = periodic
        calculator.calculate(atoms)
        values = calculator.results
        one = {
            "symbols": atoms.get_chemical_symbols(),
            "positions": atoms.positions.tolist(),
            "cell": atoms.cell.tolist() if periodic else None,
            "charge": atoms.info["charge"],
            "spin": atoms.info["spin"],
            "energy": float(values["energy"]),
            "forces": values["forces"].tolist(),
            "stress": values["stress"].tolist() if periodic else None,
        }
        if "partial_charges" in values:
            one |= {"charges": values["partial_charges"].tolist(), "dipole": values["dipole"].tolist()}
        found.append(one)
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    torch.set_default_dtype(torch.float32)


if __name__ == "__main__":
    for name in MODELS:
        make(name)
