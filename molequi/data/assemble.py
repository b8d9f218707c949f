"""From what a file calls a number to a Quantity: names, units, orders, signs; and the checks that all files pass."""

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from molequi.data.dataset import Dataset
from molequi.data.sources import Source
from molequi.data.units import factor
from molequi.errors import ConfigError, DataError, DataWarning, did_you_mean
from molequi.graph import Graph
from molequi.neighbors import connect
from molequi.quantities import KNOWN, SYMBOLS, Quantity, quantity

# Given invariants of a structure, under the names that are in use.
INVARIANTS = {"charge": ("charge", "total_charge"), "spin": ("spin", "spin_multiplicity")}
COINCIDENT, TOO_CLOSE = 0.1, 0.6  # Å; the shortest bond, H2, has 0.74
_ORDERS = {"ase": "xx yy zz yz xz xy", "vasp": "xx yy zz xy yz zx"}


def _order(text: str) -> list[int] | None:
    """Position among the six written components of each of the nine of a matrix; None if the order is not one."""
    names = ["".join(sorted(word)) for word in _ORDERS.get(text, text).split()]
    nine = ["xx", "xy", "xz", "xy", "yy", "yz", "xz", "yz", "zz"]
    return [names.index(n) for n in nine] if sorted(names) == sorted(set(nine)) else None


@dataclass(frozen=True)
class Key:
    """Under which key a quantity is found, and how its numbers are meant.

    sign: -1 where the file has the opposite sign.
    order: of six components of a symmetric tensor: "ase" (xx yy zz yz xz xy), "vasp" (xx yy zz xy yz zx), or another
        one written so.
    virial: the number is a virial, -V times the stress, an energy; only for stress.
    """

    key: str
    sign: int = 1
    order: str = "ase"
    virial: bool = False

    def __post_init__(self):
        if self.sign not in (1, -1) or not isinstance(self.virial, bool):
            raise ConfigError(
                f"key {self.key!r}: sign {self.sign!r}, virial {self.virial!r}; wanted sign 1 or -1, virial True or "
                f"False"
            )
        if not isinstance(self.order, str) or _order(self.order) is None:
            raise ConfigError(
                f"key {self.key!r}: order {self.order!r}; wanted 'ase', 'vasp', or six components such as 'xx yy zz "
                f"xy xz yz'"
            )

    @classmethod
    def of(cls, name: str, given: "str | Mapping | Key") -> "Key":
        """The key of the quantity `name` from how a user writes it: a name, or a mapping of these fields."""
        options = [f.name for f in dataclasses.fields(cls)]
        if isinstance(given, Mapping):
            for option in given:
                if option not in options:
                    raise ConfigError(
                        f"keys[{name!r}]: no option {option!r}{did_you_mean(str(option), options)}"
                    )
            given = cls(**{"key": name, **given})
        elif isinstance(given, str):
            given = cls(given)
        if not isinstance(given, Key):
            raise ConfigError(
                f"keys[{name!r}] is {given!r}; wanted a name, or "
                f"{{'key': name, 'sign': -1, 'order': 'vasp', 'virial': True}}"
            )
        if given.virial and name != "stress":
            raise ConfigError(f"keys[{name!r}]: virial=True; only a stress can be given by a virial")
        return given


@dataclass
class Record:
    """One structure as found: geometry, and raw values by name before their units are changed."""

    where: str
    origin: str
    pos: np.ndarray
    z: np.ndarray
    cell: np.ndarray | None = None
    pbc: np.ndarray | None = None
    vel: np.ndarray | None = None
    given: dict[str, object] = field(default_factory=dict)  # other fields of Graph: x, vec, pair_index …
    values: dict[str, object] = field(default_factory=dict)
    info: dict[str, object] = field(default_factory=dict)
    keys: tuple[str, ...] = ()  # all keys that the file offers


class Request:
    """What is to be read: quantities, their keys, their units, and which of them may be missing."""

    def __init__(
        self,
        *,
        quantities: Sequence[str | Quantity],
        keys: Mapping | None,
        units: Mapping | None,
        partial: Sequence[str],
    ):
        keys, units = dict(keys or {}), dict(units or {})
        if isinstance(quantities, (str, Quantity)):
            quantities = [quantities]
        partial = [partial] if isinstance(partial, str) else list(partial)
        asked = {q.name: q for q in map(quantity, quantities)}
        special = [*INVARIANTS, "velocities"]
        for name in keys:
            if name not in asked and name not in special:
                if name not in KNOWN:
                    raise ConfigError(
                        f"keys: {name!r} is not a quantity{did_you_mean(name, [*asked, *KNOWN, *special])}"
                    )
                if keys[name] is not None:
                    asked[name] = KNOWN[name]
        for name in partial:
            if name not in asked:
                asked[name] = quantity(name)
        for name in units:
            if name not in asked and name not in KNOWN and name not in ("positions", "velocities"):
                raise ConfigError(
                    f"units: {name!r} is not a "
                    f"quantity{did_you_mean(name, [*asked, *KNOWN, 'positions', 'velocities'])}"
                )
        skipped = {name for name, given in keys.items() if given is None}
        self.named = tuple(n for n in asked if n not in skipped)
        self.partial = tuple(partial)
        # Without a list everything known is read where it is found; with one, that and what `keys` and `partial` name.
        self.candidates = {
            n: q for n, q in (asked if quantities else KNOWN | asked).items() if n not in skipped
        }
        self.keys = {n: Key.of(n, keys.get(n, n)) for n in self.candidates}
        self.invariants = {
            n: (keys[n],) if n in keys else names for n, names in INVARIANTS.items() if n not in skipped
        }
        self.named_invariants = tuple(n for n in self.invariants if n in keys)
        self.velocities = keys.get("velocities")
        self.units = units
        self.length = factor(units.get("positions", "Å"), "Å")
        self.factors = {}
        for name, q in self.candidates.items():
            unit = units.get(name)
            if self.keys[name].virial:
                self.factors[name] = -factor(unit or "eV", "eV")
            else:
                self.factors[name] = 1.0 if unit is None else factor(unit, q.unit)
            self.factors[name] *= self.keys[name].sign
        if units.get("energy") and "forces" in self.candidates and "forces" not in units:
            self.forces_unit_missing = f"units gives energy in {units['energy']} but no unit for forces"
        else:
            self.forces_unit_missing = None


def build(records: Iterable[Record], request: Request, sources: Callable[[], Sequence[Source]]) -> Dataset:
    """A checked Dataset of all records."""
    records = list(records)
    if not records:
        raise DataError("no structures were selected; wanted at least one")
    _set_aside(records, request)
    found = {name: [r for r in records if name in r.values] for name in request.candidates}
    names = [name for name in request.candidates if found[name]]
    for name in request.candidates:
        if name in request.named or found[name]:
            complete(name, records, found[name], request)
    if "forces" in names and request.forces_unit_missing:
        raise DataError(
            f"{request.forces_unit_missing}; say it too, for instance "
            f"units={{'energy': 'kcal/mol', 'forces': 'kcal/mol/Å'}}, "
            "or 'eV/Å' if that is what the file has"
        )
    given = _invariants(records, request)
    values = {name: _values(name, records, request) for name in names}
    graphs = []
    for k, r in enumerate(records):
        targets = {name: values[name][k] for name in names}
        try:
            graph = Graph.single(
                r.pos * request.length,
                r.z,
                cell=None if r.cell is None else r.cell * request.length,
                pbc=r.pbc,
                targets=targets,
                vel=None if r.vel is None else torch.as_tensor(r.vel, dtype=torch.float64),
                **r.given,
                **{n: v[k] for n, v in given.items()},
            )
        except DataError as error:
            raise DataError(f"{r.where}: {error}") from None
        graphs.append(graph)
    _distances(graphs, records)
    if "stress" in names:
        _stress_needs_a_volume(graphs, records)
    used = {request.keys[n].key for n in names} | {k for n in given for k in request.invariants[n]}
    used |= {"velocities", "momenta"} if request.velocities else set()
    unused: dict[str, int] = {}
    columns: dict[str, list] = {}
    for k, r in enumerate(records):
        for key in r.keys:
            if key not in used:
                unused[key] = unused.get(key, 0) + 1
        for key, value in r.info.items():
            if key not in columns:
                columns[key] = [None] * len(records)
            columns[key][k] = value
    notes = {n: _note(n, request) for n in names} | {
        n: f"from {'/'.join(request.invariants[n])}" for n in given
    }
    data = Dataset(
        graphs,
        quantities={n: request.candidates[n] for n in names},
        info=columns,
        origins=[r.origin for r in records],
        sources=sources(),
        found=notes,
        unused=unused,
    )
    for sentence in suspicions(data):
        warnings.warn(sentence, DataWarning, stacklevel=4)
    return data


def _set_aside(records: list[Record], request: Request) -> None:
    """What was found by its name alone is not read where the caller says that it is another quantity, or where a single
    number has several components (`mu` and `alpha` are a vector and a tensor in some files); the census names it.
    """
    taken = {request.keys[name].key for name in request.named}
    for name, q in request.candidates.items():
        if name not in request.named:
            single = q.per == "graph" and q.rank == 0
            for r in records:
                if name in r.values and (
                    request.keys[name].key in taken or (single and np.size(r.values[name]) > 1)
                ):
                    del r.values[name]


def _stress_needs_a_volume(graphs: list[Graph], records: list[Record]) -> None:
    """A stress of a structure without a volume (some programs write zeros for molecules) is no label: NaN, with a warning."""
    empty = [
        k
        for k, g in enumerate(graphs)
        if not torch.isnan(g.targets["stress"]).all()
        and (g.cell is None or float(torch.linalg.det(g.cell[0]).abs()) < 1e-8)
    ]
    for k in empty:
        graphs[k].targets["stress"].fill_(math.nan)
    if empty:
        warnings.warn(
            f"{records[empty[0]].where}: a stress, and no periodic cell with a volume; it is not used here nor in "
            f"{len(empty) - 1} other structures",
            DataWarning,
            stacklevel=5,
        )


def _note(name: str, request: Request) -> str:
    key = request.keys[name]
    unit = request.units.get(name)
    how = [
        w
        for w in (
            unit and f"in {unit}",
            key.virial and "a virial",
            key.sign < 0 and "sign changed",
            key.order != "ase" and f"order {key.order}",
        )
        if w
    ]
    return f"from {key.key!r}" + (f", {', '.join(how)}" if how else "")


def complete(name: str, records: list[Record], found: list[Record], request: Request) -> None:
    """Raises DataError if a quantity is missing in a structure and was not said to be partial (or is missing in
    all).
    """
    if found and (name in request.partial or len(found) == len(records)):
        return
    first = next(r for r in records if name not in r.values)
    key = request.keys[name].key
    offered = sorted({k for r in records for k in r.keys} if not found else set(first.keys))
    listed = f"found {', '.join(map(repr, offered))}" if offered else "found no keys at all"
    near = did_you_mean(key, offered)
    if near.startswith("; did"):
        advice = f"{near} Name it with keys={{{name!r}: {near.split(chr(39))[1]!r}}}"
    else:
        advice = f"; name the right key with keys={{{name!r}: ...}}"
    if found:
        advice = f"; where labels are meant to be missing say partial=[{name!r}]"
    raise DataError(
        f"{first.where}: no {key!r} (missing in {len(records) - len(found)} of {len(records)} structures); "
        f"{listed}{advice}"
    )


def _number(value, what: str, where: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise DataError(f"{where}: {what} is {value!r}; wanted numbers")
    return array.astype(np.float64)


def _values(name: str, records: list[Record], request: Request) -> list[torch.Tensor]:
    q, key, out, bad = request.candidates[name], request.keys[name], [], []
    if q.per == "graph" and q.rank == 0 and all(isinstance(r.values.get(name), np.floating) for r in records):
        column = np.array([r.values[name] for r in records], np.float64)  # the same as below, for all at once
        if np.isfinite(column).all():
            return [torch.tensor([v], dtype=torch.float64) for v in (column * request.factors[name]).tolist()]
    for r in records:
        n = len(r.z) if q.per == "node" else 1
        shape = (n, *q.shape(r.pos.shape[1]))
        if name not in r.values:
            out.append(np.full(shape, np.nan))
            continue
        raw = _number(r.values[name], key.key, r.where)
        array = _shaped(raw, shape, q, key, r.where)
        wrong = ~np.isfinite(array)
        if wrong.any() and not (name in request.partial and np.isnan(array).all()):
            atom = (
                f" of atom {int(np.argwhere(wrong.reshape(n, -1).any(1))[0, 0])}" if q.per == "node" else ""
            )
            bad.append(
                f"{r.where}: {key.key}{atom} is "
                f"{array.reshape(n, -1)[wrong.reshape(n, -1).any(1)][0].squeeze().tolist()}"
            )
        scale = request.factors[name]
        if key.virial:
            volume = 0.0 if r.cell is None else abs(np.linalg.det(r.cell)) * request.length**3
            if volume == 0 or not np.all(r.pbc):
                raise DataError(
                    f"{r.where}: a virial becomes a stress by division by the volume, but this structure has no full "
                    f"cell"
                )
            scale = scale / volume
        out.append(array * scale)
    if bad:
        more = (
            f" (and {len(bad) - 1} more structures: {'; '.join(bad[1:5])}{' …' if len(bad) > 5 else ''})"
            if len(bad) > 1
            else ""
        )
        raise DataError(f"{bad[0]}; wanted finite numbers{more}")
    return [torch.from_numpy(a) for a in out]


def _shaped(raw: np.ndarray, shape: tuple[int, ...], q: Quantity, key: Key, where: str) -> np.ndarray:
    """(n, ...) from any common layout; symmetric tensors from six or nine components."""
    n = shape[0]
    if q.symmetric and shape[1] == 3:
        if raw.size == 6 * n:
            return raw.reshape(n, 6)[:, _order(key.order)].reshape(shape)
        if raw.size == 9 * n:
            full = raw.reshape(shape)
            odd = np.abs(full - full.swapaxes(1, 2)).max()
            # Printed digits and integration grids leave a little asymmetry; more than that is another quantity.
            if odd > 1e-3 * np.abs(full).max():
                raise DataError(f"{where}: {key.key} is {full[0].tolist()}; wanted a symmetric tensor")
            return (full + full.swapaxes(1, 2)) / 2
        raise DataError(
            f"{where}: {key.key} has {raw.size} numbers; wanted 6 or 9{' an atom' if q.per == 'node' else ''}"
        )
    if raw.size != math.prod(shape) or (q.per == "node" and raw.shape[:1] != (n,)):
        of = "" if q.per == "graph" else f" for {n} atoms"
        raise DataError(
            f"{where}: {key.key} has the shape {raw.shape}{of}; wanted "
            f"{shape if q.per == 'node' else shape[1:] or 'one number'}"
        )
    return raw.reshape(shape)


def _invariants(records: list[Record], request: Request) -> dict[str, list[float]]:
    out = {}
    for name, keys in request.invariants.items():
        have = [r for r in records if name in r.values]
        if not have and name not in request.named_invariants:
            continue
        if len(have) < len(records):
            first = next(r for r in records if name not in r.values)
            raise DataError(
                f"{first.where}: no {' or '.join(map(repr, keys))}, which {len(have)} of {len(records)} structures "
                f"have; wanted all "
                f"or none. Found {', '.join(map(repr, first.keys)) or 'no keys'}; keys={{{name!r}: None}} does not "
                f"read it"
            )
        out[name] = []
        for r in records:
            value = _number(r.values[name], name, r.where)
            if value.size != 1 or not np.isfinite(value).all():
                raise DataError(f"{r.where}: {name} is {r.values[name]!r}; wanted one finite number")
            out[name].append(float(value.reshape(())))
    return out


def check_elements(z: np.ndarray, where: str) -> None:
    """Raises DataError for dummies (0) and numbers above 118."""
    bad = np.flatnonzero((z < 1) | (z >= len(SYMBOLS)))
    if len(bad):
        raise DataError(
            f"{where}: atom {bad[0]} has the atomic number {int(z[bad[0]])}; wanted 1 to 118 (remove dummy atoms 'X')"
        )


def _distances(graphs: list[Graph], records: list[Record]) -> None:
    """Coincident atoms are an error; so are distances below any bond in more than one structure of a hundred: a
    wrong unit.
    """
    close = []
    for k, (shortest, j, i) in sorted(_short_pairs(graphs).items()):
        where = records[k].where
        if shortest < COINCIDENT:
            raise DataError(f"{where}: atoms {j} and {i} are {shortest:.4f} Å apart; wanted every atom once")
        close.append(f"{where}: atoms {j} and {i} are {shortest:.3f} Å apart")
    if len(close) > max(0.01 * len(graphs), 1):
        raise DataError(
            f"{close[0]}, and {len(close)} of {len(graphs)} structures have atoms closer than {TOO_CLOSE} Å: are "
            f"positions in Å? "
            "If not, say units={'positions': 'nm'} or 'Bohr'"
        )


def _short_pairs(graphs: list[Graph]) -> dict[int, tuple[float, int, int]]:
    """Length, first and second atom of the shortest pair of each structure that has one below TOO_CLOSE."""
    out, same_size = {}, {}
    for k, graph in enumerate(graphs):
        if not graph.z.any():
            continue  # plain points may be anywhere
        if graph.pbc is None and graph.num_nodes <= 64:
            same_size.setdefault(graph.num_nodes, []).append(k)
            continue
        linked = connect(graph.replace(pair_index=None, pair_attr=None), TOO_CLOSE)
        if linked.edge_index.shape[1]:
            shortest, edge = linked.edge_vectors().norm(dim=1).min(0)
            out[k] = (float(shortest), *sorted(linked.edge_index[:, edge].tolist()))
    for n, members in same_size.items():
        first, second = np.triu_indices(n, 1)
        if not len(first):
            continue
        step = max(1, 500_000 // len(first))
        for start in range(0, len(members), step):
            part = members[start : start + step]
            pos = np.stack([graphs[k].pos.numpy() for k in part])
            lengths = np.linalg.norm(pos[:, first] - pos[:, second], axis=2)
            shortest = lengths.argmin(1)
            for row in np.flatnonzero(lengths.min(1) < TOO_CLOSE):
                pair = shortest[row]
                out[part[row]] = (float(lengths[row, pair]), int(first[pair]), int(second[pair]))
    return out


def suspicions(data: Dataset) -> list[str]:
    """Sentences on labels that are finite and complete, and yet look like another unit or another quantity."""
    out = []
    if "forces" in data.quantities:
        forces = data.values("forces")
        forces = forces[~torch.isnan(forces)]
        rms = forces.square().mean().sqrt().item() if len(forces) else 0.0
        if rms > 15:
            out.append(
                f"forces have a root mean square of {rms:.3g} eV/Å, which no ordinary sample has: is the unit another "
                f"one, for instance "
                "units={'forces': 'kcal/mol/Å'}?"
            )
    if "energy" in data.quantities and len(set(data.counts.tolist())) > 1:
        from molequi.data.statistics import compositions

        known = data.known("energy")
        energy, counts = data.values("energy").numpy()[known], data.counts[known]
        table = compositions(data.graphs, data.elements)[known]
        rest = energy - table @ np.linalg.lstsq(table, energy, rcond=None)[0] if len(energy) else energy
        spread = np.sqrt(np.mean((rest / counts) ** 2)) if len(rest) else 0.0
        if spread > 5:
            out.append(
                f"after the best sum of energies of elements the energies still differ by {spread:.3g} eV an atom: "
                f"total energies mixed "
                "with energies per atom, or another unit?"
            )
    return out
