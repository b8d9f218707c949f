"""Measures how reliable models, simulations, files and trainings are; each function returns rows with what was found and what is wanted."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

import molequi as mq
from molequi.ops import irreps
from molequi.symmetry import random_orthogonal

from . import fuzz, kills

DATA = Path(__file__).resolve().parents[2] / "data"
SMALL = {
    "EGNN": dict(channels=8, layers=2), "PaiNN": dict(channels=8, layers=2), "GauntACE": dict(channels=8, l_max=2),
    "MACE": dict(channels=8, l_max=2), "NequIP": dict(channels=8, layers=2, l_max=2),
}  # fmt: skip
CUTOFF = 4.0


@dataclass(frozen=True)
class Row:
    """One figure.

    Parameters
    ----------
    quantity : str
        What is measured.
    found, found32 : float or str
        The value in float64, and in float32 where it is measured.
    wanted, wanted32 : float, (float, float) or str
        The largest value that is good, the range, or a text.
    good : bool
        Whether it is reached.
    command : str
        What measures this alone.
    """

    quantity: str
    found: float | str
    wanted: float | str
    good: bool
    found32: float | str = ""
    wanted32: float | str = ""
    command: str = ""


@dataclass(frozen=True)
class Length:
    """How much is measured.

    Parameters
    ----------
    draws : int
        Random transforms of each structure.
    lists : int
        Random structures whose neighbor lists are compared.
    kills, damaged : int
        Kills of trainings; damaged files of each kind.
    fuzz : int
        Minutes of fuzzing; below 1 a number of inputs.
    minutes : float
        Minutes of the training whose model is simulated.
    picoseconds : float
        Length of the simulation.
    """

    draws: int = 20
    lists: int = 1000
    kills: int = 50
    damaged: int = 1000
    fuzz: float = 30
    minutes: float = 5
    picoseconds: float = 10


QUICK = Length(draws=3, lists=60, kills=6, damaged=100, fuzz=0, minutes=0.7, picoseconds=0.5)


def largest(quantity: str, found: dict[str, float], limits: tuple[float, float]) -> Row:
    """A row of errors in float64 and float32 that must not exceed limits."""
    good = found["float64"] <= limits[0] and found["float32"] <= limits[1]
    return Row(quantity, found["float64"], limits[0], good, found["float32"], limits[1])


def models(dtype: torch.dtype, predict: list[str]) -> Iterator[tuple[str, mq.Model, mq.Dataset]]:
    """Each backbone for molecules and for crystals, with random weights and the scales of the data."""
    sets = [
        (mq.read_extxyz(DATA / "ethanol_300K.xyz", index=":40"), "forces"),
        (mq.read_extxyz(DATA / "bn.xyz", index=":40"), "stress"),
    ]
    for data, needed in sets:
        for name, options in SMALL.items():
            torch.manual_seed(0)
            outputs = [p for p in predict if p != "stress" or needed == "stress"]
            model = mq.Model(getattr(mq, name)(elements=data.elements, cutoff=CUTOFF, **options), outputs)
            model.standardize(data.statistics(CUTOFF))
            yield name, model.to(dtype).eval(), data


def predicted(model: mq.Model, graph: mq.Graph) -> tuple[float, np.ndarray]:
    """Energy and forces of a structure whose neighbors are found anew."""
    out = model(mq.connect(graph, model.cutoff))
    return float(out["energy"].sum()), out["forces"].detach().double().numpy()


def moved(graph: mq.Graph, **fields: object) -> mq.Graph:
    """A structure with other fields and without neighbors."""
    given = {"cell": graph.cell, "pbc": graph.pbc} | fields
    pos, z = given.pop("pos", graph.pos), given.pop("z", graph.z)
    cell, pbc = (
        None if v is None else torch.as_tensor(v).reshape(-1, *(torch.as_tensor(v).shape[-1:]))
        for v in (given["cell"], given["pbc"])
    )
    return mq.Graph.single(pos, z, cell=cell, pbc=None if pbc is None else pbc.reshape(3))


def transforms(length: Length) -> list[Row]:
    """Rotations, inversion and permutation: energies per atom, and forces by the largest of 1 and the largest force."""
    energy, force = {}, {}
    for dtype in (torch.float64, torch.float32):
        worst = [0.0, 0.0]
        generator = torch.Generator().manual_seed(0)
        for _, model, data in models(dtype, ["energy", "forces"]):
            graph = data[0]
            e, f = predicted(model, graph)
            scale = max(1.0, float(np.abs(f).max()))
            for k in range(length.draws + 1):
                q = (
                    -torch.eye(3, dtype=torch.float64)
                    if k == 0
                    else random_orthogonal(3, generator=generator)
                )
                order = torch.randperm(graph.num_nodes, generator=generator)
                cell = None if graph.cell is None else graph.cell @ q.T
                e2, f2 = predicted(
                    model, moved(graph, pos=(graph.pos @ q.T)[order], z=graph.z[order], cell=cell)
                )
                worst[0] = max(worst[0], abs(e2 - e) / graph.num_nodes)
                worst[1] = max(worst[1], float(np.abs(f2 - (f @ q.numpy().T)[order.numpy()]).max()) / scale)
        energy[str(dtype)[6:]], force[str(dtype)[6:]] = worst
    return [
        largest("rotation, inversion, permutation: energy, eV/atom", energy, (1e-10, 1e-6)),
        largest("rotation, inversion, permutation: forces, scaled", force, (1e-9, 1e-5)),
    ]


def batches(length: Length) -> list[Row]:
    """A structure in a batch and alone; a structure and its supercell; fragments that are far from each other."""
    alone, extensive = {}, {}
    for dtype in (torch.float64, torch.float32):
        a = b = 0.0
        for _, model, data in models(dtype, ["energy", "forces"]):
            graphs = [data[k] for k in range(4)]
            one = [predicted(model, g) for g in graphs]
            together = model(mq.collate([mq.connect(g, model.cutoff) for g in graphs[::-1]]))
            scale = max(1.0, max(float(np.abs(f).max()) for _, f in one))
            forces = together["forces"].detach().double().split([g.num_nodes for g in graphs[::-1]])
            for (e, f), e2, f2, g in zip(one, together["energy"].flip(0).tolist(), forces[::-1], graphs):
                a = max(a, abs(e - e2) / g.num_nodes, float(np.abs(f - f2.numpy()).max()) / scale)
            g = graphs[0]
            e, f = one[0]
            if g.cell is None:
                far = torch.tensor([200.0, 0.0, 0.0], dtype=torch.float64)
                double = mq.Graph.single(torch.cat([g.pos, g.pos + far]), torch.cat([g.z, g.z]))
            else:
                cell = g.cell[0].clone()
                double = mq.Graph.single(
                    torch.cat([g.pos, g.pos + cell[0]]),
                    torch.cat([g.z, g.z]),
                    cell=torch.cat([2 * cell[:1], cell[1:]]),
                    pbc=[True] * 3,
                )
            e2, f2 = predicted(model, double)
            b = max(
                b, abs(e2 / 2 - e) / g.num_nodes, float(np.abs(f2 - np.concatenate([f, f])).max()) / scale
            )
        alone[str(dtype)[6:]], extensive[str(dtype)[6:]] = a, b
    return [
        largest("in a batch and alone, other order", alone, (1e-10, 1e-5)),
        largest("supercell, far fragments: per atom", extensive, (1e-10, 1e-5)),
    ]


def differences(length: Length) -> list[Row]:
    """Forces and stress against central differences of the energy."""
    forces, stress = {}, {}
    for dtype, h in ((torch.float64, 1e-4), (torch.float32, 1e-2)):
        worst = [0.0, 0.0]
        for _, model, data in models(dtype, ["energy", "forces", "stress"]):
            g = data[0]
            out = model(mq.connect(g, model.cutoff))
            f = out["forces"].detach().double().numpy()
            scale = max(1.0, float(np.abs(f).max()))
            for atom, axis in ((0, 0), (1, 1), (g.num_nodes - 1, 2)):
                step = torch.zeros_like(g.pos)
                step[atom, axis] = h
                up, down = (predicted(model, moved(g, pos=g.pos + s * step))[0] for s in (1, -1))
                worst[0] = max(worst[0], abs(-(up - down) / (2 * h) - f[atom, axis]) / scale)
            if g.cell is None:
                continue
            volume = float(torch.linalg.det(g.cell[0]).abs())
            for i, j in ((0, 0), (1, 2)):
                strain = torch.zeros(3, 3, dtype=torch.float64)
                strain[i, j] += h / 2
                strain[j, i] += h / 2
                both = []
                for s in (1, -1):
                    change = torch.eye(3, dtype=torch.float64) + s * strain
                    both.append(predicted(model, moved(g, pos=g.pos @ change, cell=g.cell @ change))[0])
                worst[1] = max(
                    worst[1], abs((both[0] - both[1]) / (2 * h) / volume - float(out["stress"][0, i, j]))
                )
        forces[str(dtype)[6:]], stress[str(dtype)[6:]] = worst
    return [
        largest("forces and finite differences, scaled, eV/Å", forces, (1e-6, 5e-3)),
        largest("stress and finite differences, eV/Å³", stress, (1e-7, 5e-3)),
    ]


def exact_zeros(length: Length) -> list[Row]:
    """Forces of one structure when another one of its batch moves, and forces at and beyond the cutoff."""
    found = {}
    for dtype in (torch.float64, torch.float32):
        worst = 0.0
        for _, model, data in models(dtype, ["energy", "forces"]):
            a, b = data[0], data[1]
            other = moved(
                b,
                pos=b.pos
                + 0.01
                * torch.randn(b.pos.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
            )
            f = []
            for second in (b, other):
                # The same edges, so that nothing but the numbers of the other structure changes.
                pair = [mq.connect(a, CUTOFF), mq.connect(b, CUTOFF).replace(pos=second.pos)]
                f.append(model(mq.collate(pair))["forces"].detach()[: a.num_nodes])
            worst = max(worst, float((f[0] - f[1]).abs().max()))
            z = [int(v) for v in data.elements[:2]]
            for r in (CUTOFF, CUTOFF + 1e-6, CUTOFF + 1.0):
                worst = max(
                    worst,
                    float(np.abs(predicted(model, mq.Graph.single([[0, 0, 0], [0, 0, r]], z))[1]).max()),
                )
        found[str(dtype)[6:]] = worst
    return [largest("force of another structure; force beyond the cutoff", found, (0.0, 0.0))]


def lists(length: Length) -> list[Row]:
    """Neighbor lists against a search through all images."""
    from ..test_neighbors import as_set, brute_force

    rng, wrong = np.random.default_rng(0), 0
    for k in range(length.lists + 10):
        n, cutoff = int(rng.integers(1, 7)), float(rng.uniform(1.5, 4.0))
        cell = rng.normal(size=(3, 3)) + rng.uniform(1.5, 4) * np.eye(3)
        if k % 3 == 0:
            cell[0] *= -1
        pbc = rng.integers(0, 2, 3).astype(bool)
        if abs(np.linalg.det(cell)) < 4:
            cell += 3 * np.eye(3) * np.sign(np.diag(cell))
        graph = mq.Graph.single(rng.uniform(-2, 5, (n, 3)), [6] * n, cell=cell, pbc=pbc)
        wrong += as_set(mq.connect(graph, cutoff)) != brute_force(graph, cutoff)
    return [
        Row(
            f"neighbor lists unlike a search through all images, of {length.lists + 10}", wrong, 0, wrong == 0
        )
    ]


def harmonics(length: Length) -> list[Row]:
    """Spherical harmonics and Wigner matrices: against e3nn, orthogonal, and a homomorphism."""
    from e3nn import o3

    generator = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(50, 3, generator=generator, dtype=torch.float64), dim=1)
    a, b = (random_orthogonal(3, generator=generator) for _ in range(2))
    a, b = a * torch.linalg.det(a), b * torch.linalg.det(b)
    found = {"float64": 0.0, "float32": 0.0}
    wigner = 0.0
    for dtype in (torch.float64, torch.float32):
        for l, own in enumerate(irreps.spherical_harmonics(8, unit.to(dtype))):
            # e3nn has the components of a vector in the order x, y, z, as here; signs and scale are compared up to the one of each degree.
            theirs = o3.spherical_harmonics(l, unit, normalize=False, normalization="component")
            scale = own[0].double().norm() / theirs[0].norm()
            found[str(dtype)[6:]] = max(found[str(dtype)[6:]], _apart(own.double() / scale, theirs))
    for l in range(9):
        name = irreps.name(l, (-1) ** l)
        d = irreps.wigner(name, a @ b)
        wigner = max(
            wigner,
            float((d @ d.T - torch.eye(2 * l + 1, dtype=d.dtype)).abs().max()),
            float((irreps.wigner(name, a) @ irreps.wigner(name, b) - d).abs().max()),
        )
    return [
        largest("spherical harmonics and e3nn, l ≤ 8", found, (1e-12, 1e-5)),
        Row("Wigner matrices: orthogonal, homomorphism, l ≤ 8", wigner, 1e-12, wigner <= 1e-12),
    ]


def _apart(own: torch.Tensor, theirs: torch.Tensor) -> float:
    """Distance of the inner products of all pairs, which no choice of a basis changes, and no order of components."""
    scale = float((theirs @ theirs.T).abs().max())
    return float((own @ own.T - theirs @ theirs.T).abs().max()) / scale


def layers(length: Length) -> list[Row]:
    """Features of every layer under rotations and reflections, by the audit; energies along a path in steps of 0.005 Å."""
    found, path, jump = {"float64": 0.0, "float32": 0.0}, 0.0, 0.0
    for _, model, data in models(torch.float64, ["energy", "forces"]):
        if data[0].cell is not None:
            continue
        report = mq.audit(model, data[:2], draws=max(4, length.draws))
        for row in report.rows:
            if row.check == "features" and row.maximum is not None:
                found["float64"] = max(found["float64"], row.maximum)
                found["float32"] = max(found["float32"], row.float32 or 0.0)
            if row.check == "path" and row.maximum is not None:
                path = max(path, row.maximum)
            if row.check == "jump" and row.maximum is not None:
                jump = max(jump, row.maximum)
    return [
        largest("features of layers under O(3), relative", found, (1e-9, 1e-4)),
        Row("energy and force along a path, steps of 0.005 Å", path, 5e-3, path <= 5e-3),
        Row("largest jump along it, relative", jump, 0.05, jump <= 0.05),
    ]


def simulation(length: Length) -> list[Row]:
    """Molecular dynamics of a model that is trained here: the dt² law, drift and fluctuation of the energy."""
    data = mq.read_extxyz(DATA / "ethanol_300K.xyz")
    train, valid = data.split([0.8, 0.2], seed=0)
    torch.manual_seed(0)
    model = mq.Model(
        mq.PaiNN(elements=data.elements, cutoff=5.0, channels=32, layers=2), ["energy", "forces"]
    )
    mq.fit(
        model, train, valid, max_minutes=length.minutes, lr=5e-3, batch_size=10, loss={"energy": 1, "forces": 100}, logging={"progress": False},
    )  # fmt: skip
    import ase.io

    atoms = ase.io.read(DATA / "ethanol_300K.xyz")
    start = mq.relax(atoms, mq.Calculator(model, dtype="float64"), fmax=0.02, progress=False).atoms
    options = {"temperature": 300, "seed": 1, "progress": False, "every": 1}
    runs = {}
    for dtype in ("float64", "float32"):
        calculator = mq.Calculator(model, dtype=dtype)
        steps = {
            dt: mq.md(start, calculator, timestep=dt, time=0.2, **options).drift.rms
            for dt in (1.0, 0.5, 0.25)
        }
        long = mq.md(start, calculator, timestep=0.5, time=length.picoseconds, **options).drift
        runs[dtype] = (steps[0.5] / steps[0.25], steps[1.0] / steps[0.5], abs(long.slope), long.rms)
    a, b = runs["float64"], runs["float32"]
    # The slope of a short simulation is known to its fluctuation over its length only.
    limit = (
        1e-3
        if length.picoseconds >= 10
        else 1e-3 + 4 * a[3] / length.picoseconds / np.sqrt(length.picoseconds / 0.0005)
    )
    limit32 = max(1e-2, 10 * (limit - 1e-3))
    return [
        Row("dt² law: rms(0.5 fs) / rms(0.25 fs)", a[0], "3.7 to 4.3", 3.7 <= a[0] <= 4.3, b[0], "3 to 4.5"),
        Row(f"NVE drift, {length.picoseconds:g} ps, meV/atom/ps", a[2], limit, a[2] <= limit and b[2] <= limit32, b[2], limit32),
        Row("NVE rms at 0.5 fs, meV/atom", a[3], 0.05, a[3] <= 0.05 and b[3] <= 0.05, b[3], 0.05),
    ]  # fmt: skip


def files(length: Length) -> list[Row]:
    """Round trips of model files and trajectories, repeated trainings, and a training that was stopped."""
    import ase.io

    rows, differing, trajectory = [], 0, 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for dtype in (torch.float64, torch.float32):
            for kind, model, data in models(dtype, ["energy", "forces"]):
                again = mq.load(mq.save(model, folder / f"{kind}.safetensors"))
                graph = mq.connect(data[0], CUTOFF)
                differing += any(not torch.equal(v, again(graph)[n]) for n, v in model(graph).items())
        atoms = ase.io.read(DATA / "ethanol_300K.xyz")
        torch.manual_seed(0)
        force_field = mq.Model(
            mq.PaiNN(elements=["H", "C", "O"], cutoff=4.0, channels=8, layers=1), ["energy", "forces"]
        )
        run = mq.md(atoms, force_field, steps=5, every=1, out=folder / "md", progress=False)
        trajectory = float(
            np.abs(ase.io.read(folder / "md" / "trajectory.xyz", -1).positions - run.atoms.positions).max()
        )
        ends = []
        for k in range(2):
            kills.train(folder / f"run{k}")
            ends.append(mq.load(folder / f"run{k}").state_dict())
            shutil.rmtree(folder / f"run{k}")
        same = all(torch.equal(v, ends[1][n]) for n, v in ends[0].items())
    rows.append(Row("model files that predict other bits after saving", differing, 0, differing == 0))
    rows.append(Row("positions of a trajectory after reading, Å", trajectory, 1e-8, trajectory <= 1e-8))
    rows.append(Row("trainings of one seed that differ in a bit", int(not same), 0, same))
    return rows


def killed(length: Length) -> list[Row]:
    """Trainings that are killed, half of the times while a file is written."""
    with tempfile.TemporaryDirectory() as folder:
        found = kills.kills(length.kills, 0, Path(folder))
    lost = found.unreadable + found.back + found.differing + found.left
    told = "" if found.clean() else f": {found}"
    title = f"SIGKILL × {found.kills} ({found.in_writes} in writes, {found.trainings} trainings): files or bits lost{told}"
    return [Row(title, lost, 0, found.clean())]


def damaged(length: Length) -> list[Row]:
    """Truncations and single-bit flips of files."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, (path, load) in kills.files(Path(folder)).items():
            found = kills.damage(path, length.damaged, 0, load)
            good = not found.changed and not found.raw
            rows.append(
                Row(
                    f"damaged {kind} files × {found.files}: changed or raw",
                    found.changed + found.raw,
                    0,
                    good,
                )
            )
    return rows


def fuzzed(length: Length) -> list[Row]:
    """Damaged inputs of every kind."""
    out = Path(__file__).resolve().parents[2] / "build" / "fuzz" / "failures"
    tally = fuzz.fuzz(length.fuzz, 0, out, count=None if length.fuzz else 60)
    number = sum(tally.ends.values())
    return [Row(f"fuzzing × {number}: kinds of failure", len(tally.failures), 0, not tally.failures)]


FIGURES: dict[str, Callable[[Length], list[Row]]] = {
    "transforms": transforms, "batches": batches, "differences": differences, "zeros": exact_zeros, "layers": layers, "simulation": simulation,
    "neighbors": lists, "harmonics": harmonics, "files": files, "kills": killed, "damage": damaged, "fuzz": fuzzed,
}  # fmt: skip


def as_record(row: Row) -> dict[str, object]:
    """A row for JSON."""
    return {name: v.item() if isinstance(v, np.generic) else v for name, v in asdict(row).items()}
