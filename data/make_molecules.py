"""Makes molecules.npz: small organic molecules, grown atom by atom, relaxed with GFN2-xTB, and what GFN2-xTB says of them.

`python data/make_molecules.py` (needs rdkit and tblite; about ten minutes on one core of its own). It can be interrupted: what is
finished lies in `molecules.jsonl` beside it, and the same command goes on. The list of molecules follows from SEED alone; geometries
and properties agree between machines as far as the relaxation is converged (forces below FMAX).

A molecule starts as one of SEEDS and grows by random steps: an atom more, a bond of higher order, a ring closed. Those that a
chemist would not expect to find in a bottle (BAD) are left out, and those whose atoms change partners when they relax.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.optimize import LBFGS
from ase.units import Bohr, Hartree
from rdkit import Chem, RDLogger
from rdkit.Chem import AllChem
from tblite.ase import TBLite
from tblite.interface import Calculator
from tblite.library import ffi
from tqdm import tqdm

from molequi import Dataset, Graph
from molequi.readers import write_npz
from molequi.util.files import write_atomically

HERE = Path(__file__).resolve().parent
WORK = HERE / "molecules.jsonl"
SEED = 20261121
SIZES = {3: 60, 4: 200, 5: 440, 6: 640, 7: 660, 8: 400}  # heavy atoms: molecules
FMAX, STEPS = 0.01, 400  # eV/Å, of the relaxation
FIELD = 1e-3  # atomic units; twice of it changes polarizabilities by 3e-5
SEEDS = [
    "C",
    "C",
    "C",
    "N",
    "O",
    "CC=O",
    "CC(=O)O",
    "CC(N)=O",
    "CC#N",
    "c1ccccc1",
    "c1ccncc1",
    "c1cc[nH]c1",
    "c1ccoc1",
    "c1ccsc1",
    "c1c[nH]cn1",
    "C1CC1",
    "C1CCC1",
    "C1CCCC1",
    "C1CCOC1",
    "C1CCNC1",
]
ATOMS, SHARES = ["C", "N", "O", "F", "S", "Cl"], [0.62, 0.14, 0.15, 0.04, 0.03, 0.02]
BAD = [
    Chem.MolFromSmarts(s)
    for s in (
        "[O,S]~[O,S]",
        "[N,n]~[N,n]~[N,n]",
        "[O,S]-[N;X3]-[O,S]",
        "[F,Cl]-[!#6]",
        "N-[O,S,F,Cl]",
        "[N;X3;!a]-[N;X3;!a]",
        "[OX2H]-[C;X4]-[O,N,S,F,Cl]",
        "[NX3;H2,H1;!a]-[CX4]-[O,S,F,Cl]",
        "[OX2H]-C=C",
        "[NX3;H2]-C=[C;!a]",
        "*=*=*",
        "[r]#[r]",
        "[r3]=[r3]",
        "[SX3,SX4,SX6]",
        "[OX2H]-C#C",
        "[NX3]-C#[C]",
        "[OX2]-C#C",
        "[NX2]=[NX2]",
        "[NX2]-[NX2]",
        "C(=O)-C(=O)-C=O",
        "[N+,n+,O+]",
        "[SX2H]-C=C",
        "C(=[O,S])[F,Cl]",
        "[OX2](C=O)C=O",
        "[F,Cl]C[F,Cl]",
        "C=[S]",
        "[CX3]=[NX2;H1]",
        "[!R0;!R1;r3]",
        "[!R0;!R1;r4]",
        "[#7]=[O,S]",
        "[NX3;H2,H1]-[CX4]-[NX3;H2,H1]",
        "[a;R2]",
        "[a;r3,r4]",
        "[r3]=*",
        "[r4]=[r4]",
        "[OX2H]-C=[N]",
        "[OX2H]-c1aa[n,o,s]a1",
        "[OX2H]-c1a[n,o,s]aa1",
        "[OX2H]-C#N",
        "[CX3]=[NX2]-[CX3,C$(C#*)]",
        "[CX3]=[NX2]-C#*",
        "[F,Cl]-C=[N]",
        "[SX2]1aa1",
        "[C;r3]-[C]#N",
        "C(=O)-C#N",
        "C(=O)1~*~*1",
        "C#CC#C",
        "C=C=*",
    )
]


def grown(random: np.random.RandomState, size: int) -> str | None:
    """SMILES of a molecule with `size` heavy atoms, or None where a step led nowhere."""
    molecule = Chem.RWMol(Chem.MolFromSmiles(SEEDS[random.randint(len(SEEDS))]))
    Chem.Kekulize(molecule, clearAromaticFlags=True)
    for _ in range(3 * size):
        free = [a.GetIdx() for a in molecule.GetAtoms() if a.GetTotalNumHs() > 0]
        if not free:
            return None
        at = int(free[random.randint(len(free))])
        step = random.random_sample()
        if molecule.GetNumAtoms() < size and step < 0.6:
            new = molecule.AddAtom(Chem.Atom(ATOMS[random.choice(len(ATOMS), p=SHARES)]))
            molecule.AddBond(at, new, Chem.BondType.SINGLE)
        elif step < 0.8:  # a bond of higher order
            bonds = [
                b
                for b in molecule.GetAtomWithIdx(at).GetBonds()
                if b.GetOtherAtom(molecule.GetAtomWithIdx(at)).GetTotalNumHs() > 0
                and b.GetBondTypeAsDouble() < 3
            ]
            if bonds:
                bond = bonds[random.randint(len(bonds))]
                bond.SetBondType(
                    Chem.BondType.DOUBLE if bond.GetBondTypeAsDouble() < 2 else Chem.BondType.TRIPLE
                )
        elif len(free) > 1:  # a ring of 3, 5 or 6
            distance = Chem.GetDistanceMatrix(molecule)[at]
            ends = [k for k in free if distance[k] in (2, 4, 5)]
            if ends and sum(b.IsInRing() for b in molecule.GetBonds()) < 7:
                molecule.AddBond(at, int(ends[random.randint(len(ends))]), Chem.BondType.SINGLE)
        if Chem.SanitizeMol(molecule, catchErrors=True):
            return None
        Chem.Kekulize(molecule, clearAromaticFlags=True)
        if molecule.GetNumAtoms() == size and random.random_sample() < 0.3:
            break
    smiles = Chem.MolToSmiles(Chem.MolFromSmiles(Chem.MolToSmiles(molecule)), isomericSmiles=False)
    final = Chem.MolFromSmiles(smiles)
    if (
        final is None
        or final.GetNumAtoms() != size
        or "." in smiles
        or any(final.HasSubstructMatch(b) for b in BAD)
    ):
        return None
    hetero = sum(a.GetSymbol() != "C" for a in final.GetAtoms())
    return (
        smiles if hetero <= (size + 1) // 2 and any(a.GetSymbol() == "C" for a in final.GetAtoms()) else None
    )


def smiles_list() -> list[str]:
    """The molecules, in an order in which any beginning has the shares of SIZES."""
    random = np.random.RandomState(SEED)
    found: dict[str, None] = {}
    for size, count in SIZES.items():
        mine: dict[str, None] = {}
        for _ in range(400 * count):
            smiles = grown(random, size)
            if smiles:
                mine[smiles] = None
            if len(mine) == count:
                break
        found |= mine
    names = list(found)
    return [names[k] for k in random.permutation(len(names))]


def started(smiles: str) -> tuple[Atoms, set[tuple[int, int]]]:
    """A conformer relaxed by MMFF, and its bonds. Raises ValueError where there is none."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    if AllChem.EmbedMolecule(molecule, randomSeed=SEED % 2**31) != 0:
        raise ValueError("no conformer")
    if AllChem.MMFFHasAllMoleculeParams(molecule):
        AllChem.MMFFOptimizeMolecule(molecule, maxIters=1000)
    bonds = {tuple(sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx()))) for b in molecule.GetBonds()}
    return Atoms(
        [a.GetAtomicNum() for a in molecule.GetAtoms()], molecule.GetConformer().GetPositions()
    ), bonds


def joined(atoms: Atoms) -> set[tuple[int, int]]:
    """Pairs nearer than 1.25 times the sum of their covalent radii."""
    radii = covalent_radii[atoms.numbers]
    near = atoms.get_all_distances() < 1.25 * (radii[:, None] + radii)
    return {(int(i), int(j)) for i, j in np.argwhere(np.triu(near, 1))}


def single_point(atoms: Atoms, field: np.ndarray | None = None):
    calculator = Calculator("GFN2-xTB", atoms.numbers, atoms.positions / Bohr)
    calculator.set("verbosity", 0)
    calculator.set("accuracy", 0.01)
    if field is not None:
        held = np.ascontiguousarray(field, dtype=np.float64)
        calculator.add("electric-field", ffi.cast("double*", held.ctypes.data))
    return calculator.singlepoint()


def measured(smiles: str) -> dict:
    """Geometry and properties in eV, Å and e. Raises ValueError saying why there are none."""
    atoms, bonds = started(smiles)
    atoms.calc = TBLite(method="GFN2-xTB", accuracy=0.1, verbosity=0)
    if not LBFGS(atoms, logfile=None).run(fmax=FMAX, steps=STEPS):
        raise ValueError("not relaxed")
    if joined(atoms) != bonds:
        raise ValueError("other bonds when relaxed")
    atoms.positions = np.round(
        atoms.positions - atoms.positions.mean(0), 5
    )  # the properties are those of what is written
    result = single_point(atoms)
    occupied = int((result.get("orbital-occupations") > 1).sum())
    levels = result.get("orbital-energies") * Hartree
    steps = FIELD * np.eye(3)
    response = [
        (single_point(atoms, e).get("dipole") - single_point(atoms, -e).get("dipole")) / (2 * FIELD)
        for e in steps
    ]
    alpha = np.array(response) * Bohr**2 / Hartree  # e² a0² / Eh → e² Å² / eV
    return {
        "smiles": smiles,
        "z": atoms.numbers.tolist(),
        "pos": atoms.positions.tolist(),
        "energy": float(result.get("energy") * Hartree),
        "homo": float(levels[occupied - 1]),
        "lumo": float(levels[occupied]),
        "gap": float(levels[occupied] - levels[occupied - 1]),
        "dipole": (result.get("dipole") * Bohr).tolist(),
        "polarizability": ((alpha + alpha.T) / 2).tolist(),
        "charges": result.get("charges").tolist(),
    }


def main() -> int:
    RDLogger.DisableLog("rdApp.*")
    done = {}
    if WORK.exists():
        for line in WORK.read_text(encoding="utf-8").splitlines():
            if line.endswith("}"):  # a last line may be cut
                row = json.loads(line)
                done[row["smiles"]] = row
    names = smiles_list()
    print(f"{len(names)} molecules, {sum(n in done for n in names)} of them finished before", flush=True)
    with WORK.open("a", encoding="utf-8") as file:
        for smiles in tqdm([n for n in names if n not in done], unit="molecule", disable=None):
            try:
                row = measured(smiles)
            except (ValueError, RuntimeError) as error:
                row = {"smiles": smiles, "refused": str(error).split("\n")[0]}
            done[smiles] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
    rows = [done[n] for n in names if "refused" not in done[n]]
    refused = Counter(done[n]["refused"] for n in names if "refused" in done[n])
    print(f"{len(rows)} molecules kept; left out: {dict(refused)}")
    labels = ("energy", "homo", "lumo", "gap", "dipole", "polarizability")
    data = Dataset(
        [
            Graph.single(
                row["pos"],
                row["z"],
                targets={
                    **{name: np_tensor([row[name]]) for name in labels},
                    "charges": np_tensor(row["charges"]),
                },
            )
            for row in rows
        ],
        info={"smiles": [row["smiles"] for row in rows]},
    )
    write_atomically(HERE / "molecules.npz", lambda path: write_npz(data, path))
    print(data.summary())
    return 0


def np_tensor(values):
    import torch

    return torch.tensor(np.round(values, 6), dtype=torch.float64)


if __name__ == "__main__":
    sys.exit(main())
