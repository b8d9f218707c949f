"""What is not molequi's, as the audit asks it: any module whose inputs and outputs are declared, any ASE calculator."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields

import torch
from torch import Tensor, nn

from molequi.errors import ConfigError, ModelError, did_you_mean
from molequi.graph import Graph, separate
from molequi.quantities import KNOWN, Quantity, quantity
from molequi.readers.ase import to_atoms

Takes = Sequence[str] | Mapping[str, str | Callable[[Graph], object]]
USUAL = ("energy", "forces", "stress", "dipole")
GIVEN = tuple(f.name for f in fields(Graph) if f.name not in ("targets", "real", "reverse")) + (
    "edge_vectors",
    "num_nodes",
)


class Declared(nn.Module):
    """Any module with what it takes and gives said, so that it can be audited: `Declared(net, takes=["pos", "z"], gives="energy")`.

    takes: names of what a Graph has ("pos", "z", "batch", "num_graphs", "edge_index", "edge_vectors", "cell", "vel", "x", …), given in this
    order, or by keyword as a mapping from its own names; a function of the graph makes what has no such name.
    gives: the quantity of a tensor that it returns, or a list of them for a tuple, or a mapping from the keys of a dictionary.
    cutoff, k: how far edges are searched, as in `connect`; edges=False for a module that takes none.
    group: what it should have, see `symmetry.group`; axis: for "O(2)". batched: whether it takes several structures joined into one graph;
    otherwise it is called for one after the other, and a quantity of the structure may lack the first axis.
    Raises ConfigError for names that are not known, ModelError where an output has another shape than declared.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        takes: Takes,
        gives: str | Quantity | Sequence[str | Quantity] | Mapping[str, str | Quantity],
        cutoff: float | None = None,
        k: int | None = None,
        edges: bool = True,
        group: str = "E(n)",
        axis: Sequence[float] | None = None,
        batched: bool = True,
    ):
        super().__init__()
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f"wanted a torch.nn.Module, found {type(module).__name__}; an ASE calculator is BlackBox(calculator)"
            )
        takes = [takes] if isinstance(takes, str) else takes
        for name in takes.values() if isinstance(takes, Mapping) else takes:
            if not callable(name) and name not in GIVEN:
                raise ConfigError(
                    f"takes {name!r}: a Graph has no such thing{did_you_mean(str(name), GIVEN)}"
                )
        self.module, self.takes, self.batched = module, takes, batched
        self.cutoff, self.k, self.group, self.sees_edges = cutoff, k, group, edges
        if isinstance(axis, str):
            raise ConfigError(f"axis={axis!r}: wanted numbers, one for each dimension, such as [0, 0, 1]")
        self.axis = None if axis is None else torch.tensor(list(axis), dtype=torch.float64)
        if isinstance(gives, Mapping):
            self.keys = {key: quantity(item) for key, item in gives.items()}
        else:
            self.keys = dict(
                enumerate(
                    quantity(item) for item in ([gives] if isinstance(gives, (str, Quantity)) else gives)
                )
            )
        self.quantities = {q.name: q for q in self.keys.values()}

    def forward(self, graph: Graph, *, create_graph: bool | None = None) -> dict[str, Tensor]:
        """Quantities by name. `create_graph` has no effect: what the module returns is differentiable, or it is not."""
        dtype = next((p.dtype for p in self.module.parameters()), graph.pos.dtype)
        graph = graph.replace(
            **{
                f.name: v.to(dtype)
                for f in fields(graph)
                if isinstance(v := getattr(graph, f.name), Tensor) and v.is_floating_point()
            }
        )
        rows = [self._named(part) for part in ([graph] if self.batched else separate(graph))]
        return {name: torch.cat([row[name] for row in rows]) for name in self.quantities}

    def _named(self, graph: Graph) -> dict[str, Tensor]:
        def value(what):
            found = what(graph) if callable(what) else getattr(graph, what)
            if found is None:
                raise ModelError(f"{type(self.module).__name__} takes {what!r}, and the structures have none")
            return found() if callable(found) and not callable(what) else found

        out = (
            self.module(**{own: value(w) for own, w in self.takes.items()})
            if isinstance(self.takes, Mapping)
            else self.module(*map(value, self.takes))
        )
        parts = (
            out
            if isinstance(out, Mapping)
            else dict(enumerate(out))
            if isinstance(out, (tuple, list))
            else {0: out}
        )
        named = {}
        for key, q in self.keys.items():
            if key not in parts:
                raise ModelError(
                    f"{type(self.module).__name__}: gives declares {key!r} and it returned {', '.join(map(repr, parts))}"
                )
            wanted = (
                graph.num_nodes if q.per == "node" else graph.num_graphs,
                *((q.classes and (len(q.classes),)) or q.shape(graph.dim)),
            )
            found = parts[key]
            if not self.batched and q.per == "graph" and tuple(found.shape) == wanted[1:]:
                found = found[None]
            if tuple(found.shape) != wanted:
                raise ModelError(
                    f"{type(self.module).__name__}: {q.name} has the shape {tuple(found.shape)}; wanted {wanted} for "
                    f"{graph.num_nodes} nodes in {graph.num_graphs} structures"
                )
            named[q.name] = found
        return named


class BlackBox(nn.Module):
    """An ASE calculator as the audit sees it: nothing but what it says of structures.

    predict: quantities that are asked for; None is what it implements of energy, forces, stress and dipole. group: what it should have.
    precision: in which it computes; of "float32" only symmetries are asked, with tolerances for it (`Tolerances.single`), since differences
    of its energies resolve nothing. Structures need three dimensions and elements; `charge` and `spin` go to `atoms.info`.
    The calculator itself is used, not a copy. Raises ConfigError for what is no calculator, or implements nothing that is known.
    """

    sees_edges, cutoff, k = False, None, None

    def __init__(
        self,
        calculator,
        predict: Sequence[str] | None = None,
        *,
        group: str = "E(n)",
        precision: str = "float64",
    ):
        super().__init__()
        if isinstance(calculator, type):
            raise ConfigError(
                f"wanted a calculator, found the class {calculator.__name__}; make one: {calculator.__name__}()"
            )
        if not hasattr(calculator, "implemented_properties") or not hasattr(calculator, "get_property"):
            raise ConfigError(
                f"wanted an ASE calculator, found {type(calculator).__name__}; a torch module is Declared(module, takes=…, gives=…)"
            )
        if precision not in ("float32", "float64"):
            raise ConfigError(f"precision={precision!r}: wanted 'float32' or 'float64'")
        able = [n for n in calculator.implemented_properties if n in KNOWN]
        chosen = (
            [n for n in able if n in USUAL]
            if predict is None
            else [predict]
            if isinstance(predict, str)
            else list(predict)
        )
        for name in chosen:
            if name not in able:
                raise ConfigError(
                    f"{type(calculator).__name__} does not implement {name!r}; of what is known it has {', '.join(able) or 'nothing'}"
                )
        if not chosen:
            raise ConfigError(
                f"{type(calculator).__name__} implements {', '.join(calculator.implemented_properties) or 'nothing'}; wanted "
                f"one of {', '.join(USUAL)}, or say which with predict=[…]"
            )
        self.calculator, self.group, self.precision = calculator, group, precision
        self.quantities = {name: KNOWN[name] for name in chosen}

    def __deepcopy__(self, memo):
        return self

    def forward(self, graph: Graph, *, create_graph: bool | None = None) -> dict[str, Tensor]:
        """Quantities by name, float64, not differentiable; a stress without a volume is NaN."""
        rows = [
            self._of(part)
            for part in separate(
                graph.replace(edge_index=None, shift=None, edge_attr=None, cutoff=None, k=None)
            )
        ]
        return {name: torch.cat([row[name] for row in rows]) for name in self.quantities}

    def _of(self, graph: Graph) -> dict[str, Tensor]:
        atoms = to_atoms(graph.replace(pos=graph.pos.double(), targets={}))
        out = {}
        for name, q in self.quantities.items():
            if name == "stress" and not atoms.cell.rank == 3:
                out[name] = torch.full((1, 3, 3), float("nan"), dtype=torch.float64)
                continue
            try:
                found = self.calculator.get_property(name, atoms)
            except Exception as error:  # of a foreign code, which may raise anything
                raise ModelError(
                    f"{type(self.calculator).__name__} cannot give {name!r} of {atoms.symbols} (pbc {atoms.pbc.tolist()}): "
                    f"{type(error).__name__}: {error}; leave it out of predict=, or leave such structures out"
                ) from error
            value = torch.as_tensor(found, dtype=torch.float64)
            if name == "stress" and value.numel() == 6:
                value = value[[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3)
            out[name] = value.clone() if q.per == "node" else value.reshape(1, *q.shape())
        return out


def as_auditable(model, needs: Sequence[str] = ("quantities", "cutoff", "group")) -> nn.Module:
    """A model, a declared module, or a calculator made a black box. Raises ConfigError for what cannot be asked: it lacks one of `needs`."""
    if isinstance(model, nn.Module):
        missing = [name for name in needs if not hasattr(model, name)]
        if missing:
            raise ConfigError(
                f"{type(model).__name__} does not say its {', '.join(missing)}; declare what it takes and gives: "
                f"audit.Declared(module, takes=['pos', 'z'], gives='energy')"
            )
        return model
    return BlackBox(model)
