"""Forms of files for prepared structures: time to read a random batch, and size, beside structures in memory.

    python tests/benchmarks/stores.py [--structures 20000] [--batch 32]        # needs lmdb, h5py, zarr

Each form holds the same tables (numbers, positions, forces, energies, edges) of copies of ethanol with random displacements. A batch of random
structures is read and joined as a training needs it; medians over 200 batches after the files were written, so that they are in the cache of the
operating system, as they are in all epochs of a training that has enough memory for them. The forms are read in turn, in a random order for each batch.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import molequi as mq
from molequi.store.tables import tables_of

TABLES = ("field.z", "field.pos", "node_target.forces", "edge_index")


def structures(count: int) -> mq.Dataset:
    first = mq.read_extxyz(mq.shipped("ethanol_300K.xyz"), index=0)[0]
    random = np.random.default_rng(0)
    moved = (first.pos + torch.tensor(random.normal(size=first.pos.shape) * 0.05) for _ in range(count))
    return mq.Dataset([first.replace(pos=pos) for pos in moved]).connected(5.0)


def spans(starts: np.ndarray, rows: list[int]) -> list[slice]:
    return [slice(starts[r], starts[r + 1]) for r in rows]


def forms(data: mq.Dataset, folder: Path) -> dict:
    """For each form a function that reads the tables of some structures, and the size of the files."""
    import h5py
    import lmdb
    import zarr

    tables = {name: np.ascontiguousarray(array) for name, array in tables_of(data).items() if name in TABLES}
    starts = {
        name: np.concatenate([[0], tables_of(data)[f"{'edge' if name == 'edge_index' else 'node'}.starts"]])
        for name in TABLES
    }
    stored = mq.prepare(data, folder / "store", progress=False)
    in_memory = data.graphs

    environment = lmdb.open(str(folder / "lmdb"), map_size=2**36)
    with environment.begin(write=True) as transaction:
        for k in range(len(data)):
            pieces = [tables[n][starts[n][k] : starts[n][k + 1]].tobytes() for n in TABLES]
            transaction.put(str(k).encode(), b"".join(pieces))
    shapes = {n: (tables[n].dtype, tables[n].shape[1:]) for n in TABLES}

    def of_lmdb(rows: list[int]) -> list[np.ndarray]:
        found: dict[str, list[np.ndarray]] = {n: [] for n in TABLES}
        with environment.begin(buffers=True) as transaction:
            for r in rows:
                value, place = transaction.get(str(r).encode()), 0
                for n in TABLES:
                    dtype, shape = shapes[n]
                    count = int(starts[n][r + 1] - starts[n][r]) * int(np.prod(shape, dtype=int))
                    found[n].append(np.frombuffer(value, dtype, count, place).reshape(-1, *shape))
                    place += count * dtype.itemsize
            return [np.concatenate(found[n]) for n in TABLES]

    with h5py.File(folder / "data.h5", "w") as file:
        for n in TABLES:
            file.create_dataset(n, data=tables[n], chunks=True)
    opened = h5py.File(folder / "data.h5")

    def of_hdf5(rows: list[int]) -> list[np.ndarray]:
        return [np.concatenate([opened[n][s] for s in spans(starts[n], rows)]) for n in TABLES]

    group = zarr.open_group(str(folder / "zarr"), mode="w")
    for n in TABLES:
        array = group.create_array(
            n, shape=tables[n].shape, dtype=tables[n].dtype, chunks=(8192, *tables[n].shape[1:])
        )
        array[:] = tables[n]

    def of_zarr(rows: list[int]) -> list[np.ndarray]:
        return [np.concatenate([group[n][s] for s in spans(starts[n], rows)]) for n in TABLES]

    paths = {"memory": None, "store": "store", "LMDB": "lmdb", "HDF5": "data.h5", "Zarr": "zarr"}
    readers = {
        "memory": in_memory.batch,
        "store": stored.graphs.batch,
        "LMDB": of_lmdb,
        "HDF5": of_hdf5,
        "Zarr": of_zarr,
    }
    return {
        name: (read, 0 if paths[name] is None else size(folder / str(paths[name])))
        for name, read in readers.items()
    }


def size(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_blocks * 512 for p in files)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--structures", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=32)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = structures(given.structures)
    random = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        found = forms(data, Path(folder))
        times: dict[str, list[float]] = {name: [] for name in found}
        for step in range(220):
            rows = random.permutation(given.structures)[: given.batch].tolist()
            for name in random.permutation(list(found)).tolist():
                read = found[name][0]
                read(rows[:2])  # what the form before has left in the processor's caches counts for none
                begin = time.perf_counter()
                read(rows)
                if step >= 20:
                    times[name].append(time.perf_counter() - begin)
        print("form     ms a batch   of memory   MB")
        base = statistics.median(times["memory"])
        for name, (_, used) in found.items():
            median = statistics.median(times[name])
            print(f"{name:8} {1000 * median:10.3f}   {median / base:9.2f}   {used / 1e6:.1f}")


if __name__ == "__main__":
    main()
