"""Small good files of every kind that is read, made from shipped data and by the writers of other packages."""

import json
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from rdkit import Chem
from rdkit.Chem import AllChem

import molequi as mq
from molequi.readers import write_npz

DATA = Path(__file__).resolve().parents[2] / "data"
SMILES = [
    "CCO",
    "c1ccccc1",
    "CC(=O)O",
    "CN",
    "O",
    "C1CC1",
    "CC#N",
    "CCOC(C)=O",
    "NCC(=O)O",
    "OCC(O)CO",
    "CCCl",
    "CCS",
]


def write_structures(folder: Path) -> list[Path]:
    """Files that `mq.load_dataset` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    molecules = ase.io.read(DATA / "ethanol_300K.xyz", ":3")
    crystals = ase.io.read(DATA / "bn.xyz", ":2")
    head = (DATA / "ethanol_300K.xyz").read_text().splitlines(keepends=True)
    (folder / "molecules.xyz").write_text("".join(head[: 3 * (2 + int(head[0]))]))
    head = (DATA / "bn.xyz").read_text().splitlines(keepends=True)
    (folder / "crystals.extxyz").write_text("".join(head[: 2 + int(head[0])]))
    (folder / "plain.xyz").write_text("3\n\nO 0 0 0\nH 0 0 0.96\nH 0 0.93 -0.24\n")
    for atoms in molecules:
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((len(atoms), 3)))
    ase.io.write(folder / "m.traj", molecules)
    ase.io.write(folder / "m.json", molecules[:2])
    with ase.db.connect(folder / "m.db") as db:
        for atoms in molecules:
            db.write(atoms)
    for name in (
        "c.cif",
        "c.vasp",
        "c.gen",
        "c.xsf",
        "c.cube",
        "c.pdb",
        "c.xtd",
        "c.in",
        "c.gro",
        "c.cfg",
        "c.res",
        "c.xml",
    ):
        if name.endswith(("pdb", "gro")):
            ase.io.write(folder / name, molecules[0])
        elif name == "c.cube":
            ase.io.write(folder / name, molecules[0], data=np.zeros((2, 2, 2)))
        elif name == "c.in":
            ase.io.write(folder / "geometry.in", crystals[0], format="aims")
        elif name not in ("c.xtd", "c.xml"):
            crystals[0].calc = None
            ase.io.write(folder / name, crystals[0])
    (folder / "d.lammpstrj").write_text(
        "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n2\nITEM: BOX BOUNDS pp pp pp\n0 5\n0 5\n0 5\n"
        "ITEM: ATOMS id element x y z fx fy fz\n1 O 0 0 0 0 0 0.1\n2 H 0 0 0.96 0 0 -0.1\n"
    )
    _write_molecules(folder)
    _write_points(folder)
    return sorted(p for p in folder.iterdir() if p.is_file())


def _write_molecules(folder: Path) -> None:
    (folder / "t.csv").write_text(
        "id,smiles,logS\n" + "".join(f"m{k},{s},{-0.5 * k}\n" for k, s in enumerate(SMILES))
    )
    (folder / "t.tsv").write_text(
        "smiles\tgap (eV)\n" + "".join(f"{s}\t{0.5 + k}\n" for k, s in enumerate(SMILES[:5]))
    )
    (folder / "comma.csv").write_text(
        "smiles;logS\n" + "".join(f"{s};-0,{k}\n" for k, s in enumerate(SMILES[:5]))
    )
    (folder / "s.smi").write_text("".join(f"{s} name{k}\n" for k, s in enumerate(SMILES[:5])))
    mols = [Chem.AddHs(Chem.MolFromSmiles(s)) for s in SMILES[:3]]
    for k, mol in enumerate(mols):
        AllChem.EmbedMolecule(mol, randomSeed=1)
        mol.SetProp("_Name", f"m{k}")
        mol.SetProp("gap", str(float(k)))
    with Chem.SDWriter(str(folder / "m.sdf")) as writer:
        for mol in mols:
            writer.write(mol)
    (folder / "one.mol").write_text(Chem.MolToMolBlock(mols[0]))
    (folder / "v3.mol").write_text(Chem.MolToV3KMolBlock(mols[0]))
    write_npz(mq.read_npz(DATA / "molecules.npz", index=":4"), folder / "m.npz")
    np.savez(
        folder / "md17.npz", nuclear_charges=np.array([8, 1, 1]), coords=np.random.default_rng(0).normal(size=(3, 3, 3)) * 2,
        energies=np.array([-1.0, -2, -3]), forces=np.zeros((3, 3, 3)),
    )  # fmt: skip


def _write_points(folder: Path) -> None:
    import trimesh

    rng = np.random.default_rng(0)
    np.save(folder / "one.npy", rng.normal(size=(20, 3)))
    np.save(folder / "many.npy", rng.normal(size=(3, 10, 3)).astype(np.float32))
    np.savez(
        folder / "clouds.npz", pos=rng.normal(size=(30, 3)), n_points=np.array([10, 20]), shape=np.array([0, 1]),
        shape_classes=np.array(["cube", "ball"]), part=rng.integers(0, 2, 30),
    )  # fmt: skip
    np.savetxt(folder / "p.txt", rng.normal(size=(12, 3)))
    mesh = trimesh.creation.box()
    for name in ("a.off", "a.obj", "a.stl", "a.ply"):
        mesh.export(folder / name)
    (folder / "ascii.ply").write_bytes(mesh.export(file_type="ply", encoding="ascii"))
    (folder / "ascii.stl").write_text(trimesh.exchange.stl.export_stl_ascii(mesh))
    (folder / "n.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nvn 0 0 1\nf 1//1 2//1 3//1\nf 1 3 4\n")


CONFIG = """data:
  extxyz: {path: molecules.xyz, keys: {forces: forces}, units: {energy: eV, forces: eV/Å}, index: ":3", split: {train: 2, valid: 1}, seed: 0}
backbone:
  PaiNN: {cutoff: 4.0, channels: 8, layers: 1}
predict: [energy, forces, {name: gap, per: graph, rank: 0, unit: eV}, {Vector: dipole}]
train:
  epochs: 1
  batch_size: 2
  lr: 1e-3
  optimizer: {name: adam, weight_decay: 0.0, clip: 10.0, ema: 0.99}
  schedule: {name: cosine, warmup: 1}
  loss: {energy: 1, forces: {weight: 100, kind: huber, delta: 0.01}}
  validation: {patience: 5}
  logging: {progress: false}
  compute: {precision: float32, workers: 0}
  seed: 1
  out: runs/fuzz
"""


def write_models(folder: Path) -> list[Path]:
    """Model files: one for each kind of model, an ensemble, and those of past formats."""
    folder.mkdir(parents=True, exist_ok=True)
    small = {
        "EGNN": dict(channels=4, layers=1), "PaiNN": dict(channels=4, layers=1), "GauntACE": dict(channels=4, l_max=1),
        "MACE": dict(channels=4, l_max=1), "Transformer": dict(channels=4, layers=1), "RelaxedEGNN": dict(channels=4, layers=1),
    }  # fmt: skip
    paths = []
    for name, options in small.items():
        torch.manual_seed(0)
        model = mq.Model(
            getattr(mq, name)(elements=["H", "C", "O"], cutoff=3.0, **options), ["energy", "forces", "dipole"]
        )
        metadata = {"run": {"train": {"lr": 1e-3}}, "reading": {}, "elements": {"H": 3}}
        paths.append(mq.save(model, folder / f"{name}.safetensors", metadata=metadata))
        if name == "EGNN":
            paths.append(mq.save(mq.Ensemble([model, model]), folder / "ensemble.safetensors"))
    formats = Path(__file__).resolve().parents[1] / "formats"
    for path in sorted(formats.glob("*.safetensors")):
        paths.append(folder / path.name)
        paths[-1].write_bytes(path.read_bytes())
    return paths


def header_of(path: Path) -> tuple[dict, dict]:
    """The header of a model file as it is written, and its tensors."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["molequi"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
