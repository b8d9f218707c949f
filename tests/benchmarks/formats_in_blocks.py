"""Memory and time of `molequi prepare` on large files of arrays.

    python tests/benchmarks/formats_in_blocks.py [--megabytes 500] [--folder build/formats] [--cutoff 5]

Structures are ten molecules of ethanol apart from each other, 90 atoms, with random displacements, energies and forces: an .npz file (frames of one
molecule), the same compressed, and an HDF5 file with groups of 5,000 structures. Each file is prepared in a process of its own. Memory is its largest
resident set, and that after the package was imported.
"""

import argparse
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np

UNITS = {"energy": "eV", "forces": "eV/Å"}
GROUP = 5000


def molecules() -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers and positions of ten molecules."""
    from ase.io import read

    import molequi as mq

    one = read(mq.shipped("ethanol_300K.xyz"), 0)
    pos = np.concatenate([one.positions + [9.0 * k, 0, 0] for k in range(10)])
    return np.tile(one.numbers, 10).astype(np.uint8), pos


def pieces(pos: np.ndarray, count: int):
    """Positions, energies and forces of so many structures, some at once."""
    random = np.random.default_rng(0)
    for begin in range(0, count, GROUP):
        moved = 0.05 * random.normal(size=(min(GROUP, count - begin), *pos.shape))
        yield pos + moved, -3000 + 10 * (moved**2).sum((1, 2)), -20 * moved


def write_npz(path: Path, count: int, how: int) -> None:
    """An .npz file that was never in memory as a whole."""
    numbers, pos = molecules()
    with zipfile.ZipFile(path, "w", how) as archive:
        arrays = {"R": (count, *pos.shape), "E": (count,), "F": (count, *pos.shape)}
        with archive.open("z.npy", "w") as member:
            np.lib.format.write_array(member, numbers)
        for k, (name, shape) in enumerate(arrays.items()):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = {"descr": "<f8", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for piece in pieces(pos, count):
                    member.write(np.ascontiguousarray(piece[k]).tobytes())


def write_hdf5(path: Path, count: int) -> None:
    import h5py

    numbers, pos = molecules()
    with h5py.File(path, "w") as file:
        for k, (positions, energy, forces) in enumerate(pieces(pos, count)):
            group = file.create_group(f"group{k}")
            group["atomic_numbers"], group["positions"] = numbers, positions
            group["energy"], group["forces"] = energy, forces


def resident(name: str) -> float:
    """A line of the status of this process, in MB."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name)) / 1e3


def prepare(source: str, out: str, cutoff: str) -> dict[str, float]:
    import torch

    import molequi as mq

    torch.set_num_threads(1)
    mq.read_extxyz(mq.shipped("ethanol_300K.xyz"), index=":2").connected(5.0)  # so that all is imported
    before, begin = resident("VmRSS"), time.perf_counter()
    given = float(cutoff) or None
    data = mq.prepare(source, out, units=UNITS, cutoff=given, restart=True, progress=False)
    seconds = time.perf_counter() - begin
    return {
        "structures": len(data),
        "per_second": len(data) / seconds,
        "before_MB": before,
        "peak_MB": resident("VmHWM"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--folder", type=Path, default=Path("build/formats"))
    parser.add_argument("--cutoff", type=float, default=0.0, help="0: no neighbor lists")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        print(json.dumps(prepare(*given.part)))
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    count = given.megabytes * 10**6 // (8 * (6 * 90 + 1))
    for name, write in (
        ("stored.npz", lambda path: write_npz(path, count, zipfile.ZIP_STORED)),
        ("packed.npz", lambda path: write_npz(path, count, zipfile.ZIP_DEFLATED)),
        ("groups.h5", lambda path: write_hdf5(path, count)),
    ):
        path = given.folder / name
        if not path.exists():
            write(path)
        words = ["--part", str(path), str(path.with_suffix("")), str(given.cutoff)]
        done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        found = {key: round(value) for key, value in json.loads(done.stdout.splitlines()[-1]).items()}
        print(f"{name:12}", f"{path.stat().st_size / 1e6:.0f} MB", found, flush=True)


if __name__ == "__main__":
    main()
