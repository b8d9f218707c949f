"""Dipoles, polarizabilities and Born charges: one energy in an electric field beside separate heads, at equal processor time.

    python tests/benchmarks/responses.py label OUT.xyz [--frames 600] [--seed 0]
    python tests/benchmarks/responses.py train {zundel,methanol} [--ways field heads] [--seeds 0 1] [--seconds 240] [--data OUT.xyz]

`label` samples methanol at 500 K with GFN2-xTB (tblite) and labels each frame with seven calculations: one without a field, six in fields of
±0.002 atomic units along x, y and z. Polarizabilities are central differences of dipoles, Born charges those of forces, which are not used in
training. `train` trains for a number of processor seconds (of this process and one thread) one model of the energy in a field, whose dipole,
polarizability and Born charges are derivatives, and one with a head each for energy, dipole and polarizability, whose Born charges are the
derivative of the dipole. Both get the same labels, network, loss and learning rate. It prints RMSE of the test in percent of the standard
deviation of the labels (for Born charges of their root mean square), and how far ∂μ/∂r is from the Born charges ∂f/∂F of the same model in
float64, f being its forces.
"""

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import Bohr, Hartree

import molequi as mq
from molequi.heads import default_head
from molequi.quantities import KNOWN

FIELD = 0.002  # atomic units
VOLT_PER_ANGSTROM = Hartree / Bohr  # one atomic unit of field


def in_field(atoms: Atoms, field: np.ndarray) -> dict[str, np.ndarray]:
    """Energy (eV), forces (eV/Å) and dipole (e Å) of GFN2-xTB in a field in atomic units."""
    from tblite.interface import Calculator

    calculator = Calculator("GFN2-xTB", atoms.numbers, atoms.positions / Bohr)
    calculator.set("verbosity", 0)
    calculator.set("accuracy", 0.01)
    if field.any():
        # Its argument is a pointer of cffi; a list of floats is converted, an array is not.
        calculator.add("electric-field", field.tolist())
    found = calculator.singlepoint()
    return {
        "energy": found.get("energy") * Hartree,
        "forces": -found.get("gradient") * Hartree / Bohr,
        "dipole": found.get("dipole") * Bohr,
    }


def labelled(atoms: Atoms) -> Atoms:
    """The structure with all labels; polarizability and Born charges by central differences."""
    rest = in_field(atoms, np.zeros(3))
    pairs = [[in_field(atoms, sign * FIELD * axis) for sign in (1, -1)] for axis in np.eye(3)]
    step = 2 * FIELD * VOLT_PER_ANGSTROM
    alpha = np.stack([(a["dipole"] - b["dipole"]) / step for a, b in pairs], axis=1)
    born = np.stack([(a["forces"] - b["forces"]) / step for a, b in pairs], axis=1)  # ∂f_nb/∂F_a
    out = Atoms(atoms.numbers, atoms.positions)
    out.info["polarizability"] = (alpha + alpha.T) / 2
    out.arrays["born_charges"] = born.reshape(len(atoms), 9)
    out.calc = SinglePointCalculator(out, **rest)
    return out


def label(path: str, frames: int, seed: int) -> None:
    started = molecule("CH3OH")
    data = mq.sample_frames(
        [started], "gfn2-xtb", frames=frames, temperature=500.0, seed=seed, progress=False
    )
    ase.io.write(path, [labelled(Atoms(g.z.numpy(), g.pos.numpy())) for g in data], format="extxyz")


def zundel() -> mq.Dataset:
    """The published Zundel cations, about the centre of mass as their dipoles are, with their charge."""
    data = mq.read_extxyz(
        os.path.join(os.environ["MOLEQUI_DATA"], "water_tensors", "zundel_first800.xyz"),
        keys={"energy": "potential", "dipole": "mu", "polarizability": "alpha", "charge": 1},
        units={"energy": "Hartree", "dipole": "e Bohr", "polarizability": "e^2 Bohr^2/Hartree"},
        quantities=["energy", "dipole", "polarizability"],
    )
    mass = torch.from_numpy(ase.data.atomic_masses)
    graphs = [g.replace(pos=g.pos - (mass[g.z] @ g.pos) / mass[g.z].sum()) for g in data]
    return mq.Dataset(graphs, quantities=data.quantities)


def methanol(path: str) -> mq.Dataset:
    names = ["energy", "forces", "dipole", "polarizability", "born_charges"]
    return mq.read_extxyz(path, quantities=names)


def model_of(way: str, data: mq.Dataset, charged: bool) -> mq.Model:
    inputs = mq.Inputs(electric_field=way == "field", charge=charged)
    backbone = mq.NequIP(elements=data.elements, cutoff=6.0, channels=24, layers=2, l_max=2, inputs=inputs)
    responses = mq.response("dipole", "polarizability") if way == "field" else ["dipole", "polarizability"]
    if way == "heads":
        responses = [default_head(KNOWN[name]) for name in responses]
    forces = ["forces"] if "forces" in data.quantities else []
    return mq.Model(backbone, ["energy", *forces, *responses])


def consistency(model: mq.Model, data: mq.Dataset) -> float:
    """Largest difference between ∂μ/∂r and ∂f/∂F in e, the latter by differentiating the forces."""
    worst, model = 0.0, model.predicting([*model.quantities.values(), KNOWN["forces"], KNOWN["born_charges"]])
    model = model.to(torch.float64).eval()
    for graph in list(data)[:20]:
        field = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
        out = model(mq.connect(graph, model.cutoff).replace(electric_field=field), create_graph=True)
        forces = out["forces"].flatten()
        rows = [torch.autograd.grad(f, field, retain_graph=True)[0][0] for f in forces]
        other = torch.stack(rows).reshape(-1, 3, 3).transpose(1, 2)  # n, b, a -> n, a, b
        worst = max(worst, float((other - out["born_charges"]).detach().abs().max()))
    return worst


def errors(model: mq.Model, test: mq.Dataset) -> dict[str, float]:
    asked = model.predicting([*model.quantities.values(), KNOWN["born_charges"]])
    batch = mq.connect(mq.collate(list(test)), model.cutoff)
    out, shown = asked(batch), {}
    for name, label_ in batch.targets.items():
        if name not in out:
            continue
        error, wanted = (out[name] - label_).double(), label_.double()
        size = wanted if name == "born_charges" else wanted - wanted.mean(0)
        shown[name] = 100 * float((error.square().mean() / size.square().mean()).sqrt())
    return shown


def train(name: str, ways: list[str], seeds: list[int], seconds: float, path: str) -> None:
    whole = zundel() if name == "zundel" else methanol(path)
    count = len(whole)
    parts = whole.split([count - 240, 40, 200], seed=0)
    for way in ways:
        for seed in seeds:
            torch.manual_seed(seed)
            model = model_of(way, whole, charged=name == "zundel")
            wanted = set(model.quantities)
            weights = {"energy": 1.0, "forces": 10.0, "dipole": 20.0, "polarizability": 20.0}
            started = time.process_time()
            result = mq.fit(
                model,
                parts[0],
                parts[1],
                max_minutes=seconds / 60,
                epochs=10_000,
                batch_size=10,
                lr=5e-3,
                loss={n: w for n, w in weights.items() if n in wanted},
                compute={"clock": "processor"},
                seed=seed,
                logging={"progress": False},
            )
            used = time.process_time() - started
            shown = "  ".join(f"{n} {v:.2f} %" for n, v in errors(result.model, parts[2]).items())
            same = f"  |∂μ/∂r - ∂f/∂F| {consistency(result.model, parts[2]):.1e} e" if way == "field" else ""
            size = sum(p.numel() for p in result.model.parameters())
            print(f"{name} {way:5s} seed {seed}  {used:.0f} s, {size} parameters  {shown}{same}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    labels = commands.add_parser("label")
    labels.add_argument("out")
    labels.add_argument("--frames", type=int, default=600)
    labels.add_argument("--seed", type=int, default=0)
    training = commands.add_parser("train")
    training.add_argument("set", choices=("zundel", "methanol"))
    training.add_argument("--ways", nargs="+", default=["field", "heads"])
    training.add_argument("--seeds", nargs="+", type=int, default=[0])
    training.add_argument("--seconds", type=float, default=240)
    training.add_argument("--data", default="methanol.xyz")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.command == "label":
        label(given.out, given.frames, given.seed)
    else:
        train(given.set, given.ways, given.seeds, given.seconds, given.data)


if __name__ == "__main__":
    main()
