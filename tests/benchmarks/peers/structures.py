"""The structures that all codes get, as one npz."""

import os
import random
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read
from peers.client import REPOSITORY

GAP = 2.4  # Å between the atoms of neighbouring molecules, about the contact of two hydrogens
VALID = 50


def molecules(split: bool = False):
    """(frames, what they are), or split: (for training, 50 for validation, what they are). Labels in a calculator."""
    folder = Path(os.environ.get("MOLEQUI_DATA", REPOSITORY.parent / "shared" / "data")) / "acac"
    if folder.is_dir():
        frames, alone, origin = (
            read(folder / "train_300K.xyz", ":"),
            folder / "isolated_atoms.xyz",
            "acetylacetone at 300 K",
        )
        random.Random(0).shuffle(frames)
    else:  # frames of one trajectory follow upon each other: the last one validates
        frames, alone, origin = (
            read(REPOSITORY / "data" / "ethanol_300K.xyz", ":"),
            REPOSITORY / "data" / "isolated_atoms.xyz",
            "ethanol at 300 K",
        )
    isolated = {a.get_chemical_symbols()[0]: a.get_potential_energy() for a in read(alone, ":")}
    for atoms in frames:
        atoms.info["isolated"] = isolated
    return (frames[:-VALID], frames[-VALID:], origin) if split else (frames, origin)


def write(frames: list[Atoms], path: Path, shake: float = 0.0) -> Path:
    """Frames of one composition as `worker.Structures` reads them. shake: Å, random displacements, so that frames differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, random_numbers = frames[0], np.random.default_rng(0)
    if any((a.numbers != first.numbers).any() for a in frames):
        raise ValueError("frames of different composition in one file")
    isolated = {Atoms(symbol).numbers[0]: energy for symbol, energy in first.info["isolated"].items()}
    labelled = all(a.calc is not None for a in frames)
    np.savez(
        path,
        pos=np.array([a.positions + shake * random_numbers.normal(size=a.positions.shape) for a in frames]),
        numbers=first.numbers,
        energy=np.array([a.get_potential_energy() if labelled else 0.0 for a in frames]),
        forces=np.array([a.get_forces() if labelled else np.zeros((len(a), 3)) for a in frames]),
        cell=np.array(first.cell),
        pbc=bool(first.pbc.all()),
        isolated=np.array([list(isolated), list(isolated.values())]),
    )
    return path


def crystal(frames: list[Atoms], wanted: int) -> Atoms:
    """About so many atoms, periodic: frames side by side along their principal axes, as close as molecules come.

    The box is as close to a cube as it can be.
    """
    turned = []
    for atoms in frames:
        centred = atoms.positions - atoms.positions.mean(0)
        axes = np.linalg.svd(centred, full_matrices=False)[2]
        axes[2] *= np.linalg.det(axes)
        turned.append(centred @ axes.T)
    spacing = np.mean([np.ptp(pos, axis=0) for pos in turned], axis=0) + GAP
    spacing = np.maximum(spacing, np.max([np.ptp(pos, axis=0) for pos in turned[:50]], axis=0) + 0.7 * GAP)
    count = wanted / len(frames[0])
    side = (count * spacing.prod()) ** (1 / 3)
    near = [sorted({max(1, int(side // s)), max(1, int(side // s) + 1)}) for s in spacing]
    grid = min(
        ((a, b, c) for a in near[0] for b in near[1] for c in near[2]),
        key=lambda g: abs(np.log(np.prod(g) / count)),
    )
    places = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, 3) * spacing
    positions = np.concatenate([turned[k % 50 % len(turned)] + place for k, place in enumerate(places)])
    out = Atoms(np.tile(frames[0].numbers, len(places)), positions, cell=spacing * grid, pbc=True)
    out.info["isolated"] = frames[0].info["isolated"]
    return out
