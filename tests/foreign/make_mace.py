"""Makes small models of MACE and their reference values, with mace-torch in an environment of its own.

    python -m venv peer && peer/bin/pip install torch==2.13.0 mace-torch==0.3.16
    export TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1
    peer/bin/python tests/foreign/make_mace.py mace_heads mace_density
    peer/bin/pip install mace-torch==0.3.8 && peer/bin/python tests/foreign/make_mace.py mace_before

Each file NAME.model is a model as mace-torch saves it, with random weights; NAME.json has energies, forces and stress that the package
computes of its structures with each head, and features of the first one, in float64. The variable is for e3nn 0.4.4, which loads
its own constants with torch.load.
"""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from e3nn import o3
from mace import modules
from mace.calculators import MACECalculator
from mace.modules.radial import BesselBasis

FOLDER = Path(__file__).parent
COMMON = {
    "r_max": 3.5,
    "num_bessel": 5,
    "num_interactions": 2,
    "num_elements": 3,
    "atomic_numbers": [1, 6, 8],
    "avg_num_neighbors": 3.7,
    "gate": torch.nn.functional.silu,
    "max_ell": 2,
    "radial_MLP": [6, 4],
}


def interactions(first: str, later: str) -> dict:
    kinds = modules.interaction_classes
    return {"interaction_cls_first": kinds[first], "interaction_cls": kinds[later]}


def with_heads() -> torch.nn.Module:
    """Two heads, vectors between layers, self-connections, repulsion, transformed distances, trained frequencies."""
    model = modules.ScaleShiftMACE(
        **COMMON,
        **interactions("RealAgnosticResidualInteractionBlock", "RealAgnosticResidualInteractionBlock"),
        hidden_irreps=o3.Irreps("4x0e+4x1o"),
        MLP_irreps=o3.Irreps("3x0e"),
        correlation=2,
        num_polynomial_cutoff=5,
        pair_repulsion=True,
        distance_transform="Agnesi",
        heads=["pt_head", "mine"],
        atomic_energies=np.array([[-1.5, -3.0, -2.25], [-13.5, -1029.25, -2041.0]]),
        atomic_inter_scale=[0.75, 1.25],
        atomic_inter_shift=[0.125, -0.25],
    )
    radial = model.radial_embedding
    radial.bessel_fn = BesselBasis(3.5, 5, trainable=True)
    radial.bessel_fn.bessel_weights.data += 0.05 * torch.randn(5)
    radial.distance_transform.q.fill_(0.95)
    return model


def with_density() -> torch.nn.Module:
    """Scalars between layers, three factors, sums over a density, as in MACE-MPA-0."""
    return modules.ScaleShiftMACE(
        **COMMON,
        **interactions("RealAgnosticDensityInteractionBlock", "RealAgnosticDensityResidualInteractionBlock"),
        hidden_irreps=o3.Irreps("5x0e"),
        MLP_irreps=o3.Irreps("4x0e"),
        correlation=[2, 3],
        num_polynomial_cutoff=6,
        distance_transform="Soft",
        atomic_energies=np.array([[-1.5, -3.0, -2.25]]),
        atomic_inter_scale=0.75,
        atomic_inter_shift=0.125,
    )


def as_before() -> torch.nn.Module:
    """As version 0.3.8 has it: other attributes and layouts. No scale, no self-connection of the first layer; float32."""
    model = modules.MACE(
        **COMMON,
        **interactions("RealAgnosticInteractionBlock", "RealAgnosticResidualInteractionBlock"),
        hidden_irreps=o3.Irreps("3x0e+3x1o+3x2e"),
        MLP_irreps=o3.Irreps("4x0e"),
        correlation=2,
        num_polynomial_cutoff=6,
        pair_repulsion=True,
        atomic_energies=np.array([-1.5, -3.0, -2.25]),
    )
    return model.float()


MODELS = {"mace_heads": with_heads, "mace_density": with_density, "mace_before": as_before}


def structures() -> list[Atoms]:
    random = np.random.default_rng(5)
    cell = np.array([[4.4, 0, 0], [0.6, 4.1, 0], [-0.3, 0.8, 4.7]])
    sheet = Atoms("C2", [[0, 0, 8], [1.23, 0.71, 8]], cell=[[2.46, 0, 0], [1.23, 2.1304, 0], [0, 0, 16]])
    slab = sheet * (2, 1, 1) + Atoms("OH", [[1.2, 0.6, 9.4], [1.4, 0.9, 10.3]])
    slab.set_cell((sheet * (2, 1, 1)).cell)
    slab.pbc = (True, True, False)
    return [
        Atoms("OHHCH", [[0, 0, 0], [0.96, 0, 0.1], [-0.24, 0.93, 0], [2.9, 0.3, 1.1], [3.6, -0.4, 1.7]]),
        Atoms("C", [[1.0, 2.0, 3.0]]),
        Atoms("COHC", random.uniform(0, 1, (4, 3)) @ cell, cell=cell, pbc=True),
        slab,
    ]


def make(name: str) -> None:
    torch.manual_seed(3)
    model = MODELS[name]()
    for parameter in model.products.parameters():  # so that all of the model counts
        parameter.data.normal_()
    for interaction in model.interactions:
        interaction.linear.weight.data *= 20 if name == "mace_before" else 4
    torch.save(model, FOLDER / f"{name}.model")
    found = []
    heads = getattr(model, "heads", ["Default"])
    for head in heads:
        torch.save(copy.deepcopy(model).double(), FOLDER / "double.model")
        options = {"head": head} if len(heads) > 1 else {}
        calculator = MACECalculator(FOLDER / "double.model", device="cpu", default_dtype="float64", **options)
        (FOLDER / "double.model").unlink()
        for atoms in structures():
            calculator.calculate(atoms)
            values = calculator.results
            features = calculator.get_descriptors(atoms, invariants_only=False)
            found.append(
                {
                    "level": head if len(heads) > 1 else None,
                    "symbols": atoms.get_chemical_symbols(),
                    "positions": atoms.positions.tolist(),
                    "cell": atoms.cell.tolist() if atoms.pbc.any() else None,
                    "pbc": atoms.pbc.tolist(),
                    "energy": float(values["energy"]),
                    "forces": values["forces"].tolist(),
                    "stress": values["stress"].tolist() if atoms.pbc.all() else None,
                    "features": features.tolist() if not found else None,
                }
            )
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    for name in sys.argv[1:]:
        make(name)
