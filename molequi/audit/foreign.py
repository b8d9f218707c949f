"""Models of other packages in the audit: declared torch modules and ASE calculators."""

import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from molequi.checkpoint import load
from molequi.errors import ConfigError, ModelError, did_you_mean
from molequi.graph import Graph, own_fields, separate
from molequi.levels import check_single
from molequi.quantities import KNOWN, Quantity, quantity
from molequi.readers.ase import to_atoms
from molequi.util.devices import as_device

Takes = Sequence[str] | Mapping[str, str | Callable[[Graph], object]]
USUAL = ("energy", "forces", "stress", "dipole")
GIVEN = tuple(f.name for f in fields(Graph) if f.name not in ("targets", "real", "reverse")) + (
    "edge_vectors",
    "num_nodes",
)


class Auditable(nn.Module):
    """What the audit needs of a model, as a type; `as_auditable` checks that it is there."""

    quantities: Mapping[str, Quantity]
    cutoff: float | None
    group: str
    backbone: nn.Module  # where there is one
    forward: Callable[..., dict[str, Tensor]]


@runtime_checkable
class Calculator(Protocol):
    """What the audit uses of an ASE calculator."""

    implemented_properties: Sequence[str]

    def get_property(self, name: str, atoms: object) -> object:
        """The value of a property for a structure, ase.Atoms."""


class Declared(nn.Module):
    """Any torch module with declared inputs and outputs, so that it can be audited.

    Parameters
    ----------
    module : Module
        The module.
    takes : sequence of str, or mapping of str to str or callable
        Its arguments: names of fields of a Graph ("pos", "z", "batch", "num_graphs", "edge_index",
        "edge_vectors", "cell", "vel", "x", …), in order or by keyword. A function of the graph makes any
        other argument.
    gives : str, Quantity, sequence of these, or mapping of str to these
        The quantity of the tensor that it returns, a list for a tuple, or a mapping from the keys of a
        dictionary.
    cutoff : float or None
        How far neighbors are searched, in Å; None joins all pairs.
    k : int or None
        Number of nearest neighbors, as in `connect`.
    edges : bool
        False for a module that takes no edges.
    group : str
        The group that it should have, see `symmetry.group`.
    axis : sequence of float, optional
        The axis of a group such as "O(2)".
    batched : bool
        Whether the module takes several structures joined into one graph. Otherwise it is called for one
        structure after the other, and a quantity of a structure may lack the first axis.

    Raises
    ------
    ConfigError
        For names that are not fields of a Graph or known quantities.
    ModelError
        If an output has another shape than declared.

    Examples
    --------
    >>> import torch
    >>> from molequi.audit import Declared
    >>> class Spring(torch.nn.Module):
    ...     def forward(self, pos):
    ...         return torch.pdist(pos).square().sum().reshape(1)
    >>> declared = Declared(Spring(), takes=["pos"], gives="energy", edges=False, batched=False)
    >>> list(declared.quantities)
    ['energy']
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
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f"wanted a torch.nn.Module, found {type(module).__name__}; an ASE calculator is "
                "BlackBox(calculator)"
            )
        takes = [takes] if isinstance(takes, str) else takes
        for name in takes.values() if isinstance(takes, Mapping) else takes:
            if not callable(name) and name not in (*GIVEN, *own_fields()):
                raise ConfigError(
                    f"takes {name!r}: a Graph has no such thing{did_you_mean(str(name), GIVEN)}"
                )
        self.module, self.takes, self.batched = module, takes, batched
        self.cutoff, self.k, self.group, self.sees_edges = cutoff, k, group, edges
        if isinstance(axis, str):
            raise ConfigError(f"axis={axis!r}: wanted numbers, one for each dimension, such as [0, 0, 1]")
        self.axis = None if axis is None else torch.tensor(list(axis), dtype=torch.float64)
        self.keys: dict[str | int, Quantity]
        if isinstance(gives, Mapping):
            self.keys = {key: quantity(item) for key, item in gives.items()}
        else:
            items = [gives] if isinstance(gives, (str, Quantity)) else gives
            self.keys = {key: quantity(item) for key, item in enumerate(items)}
        self.quantities = {q.name: q for q in self.keys.values()}

    def forward(self, graph: Graph, *, create_graph: bool | None = None) -> dict[str, Tensor]:
        """Quantities by name.

        Parameters
        ----------
        graph : Graph
            One or several structures.
        create_graph : bool, optional
            Has no effect; `Model` has the same argument. The module decides whether its outputs are
            differentiable.
        """
        dtype = next((p.dtype for p in self.module.parameters()), graph.pos.dtype)
        graph = graph.map(lambda value: value.to(dtype) if value.is_floating_point() else value)
        rows = [self._named(part) for part in ([graph] if self.batched else separate(graph))]
        return {name: torch.cat([row[name] for row in rows]) for name in self.quantities}

    def _named(self, graph: Graph) -> dict[str, Tensor]:
        def value(what: str | Callable[[Graph], object]) -> object:
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
                    f"{type(self.module).__name__}: gives declares {key!r} and it returned "
                    f"{', '.join(map(repr, parts))}"
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
                    f"{type(self.module).__name__}: {q.name} has the shape {tuple(found.shape)}; wanted "
                    f"{wanted} for "
                    f"{graph.num_nodes} nodes in {graph.num_graphs} structures"
                )
            named[q.name] = found
        return named


class BlackBox(nn.Module):
    """An ASE calculator in the audit. Only its results are used.

    The calculator is not copied. Structures need three dimensions and elements. Total charges and spins are
    put into ``atoms.info``.

    Parameters
    ----------
    calculator : ase.calculators.calculator.Calculator
        The calculator.
    predict : sequence of str, optional
        Quantities to ask for; by default those of energy, forces, stress and dipole that it implements.
    group : str
        The group that it should have.
    precision : "float64" or "float32"
        The precision in which it computes. For "float32" only symmetries are checked, with the tolerances of
        `Tolerances.single`, because finite differences of its energies resolve nothing.

    Raises
    ------
    ConfigError
        If it is not a calculator, or implements nothing that is known.
    """

    sees_edges, cutoff, k = False, None, None

    def __init__(
        self,
        calculator: object,
        predict: Sequence[str] | None = None,
        *,
        group: str = "E(n)",
        precision: str = "float64",
    ) -> None:
        super().__init__()
        if isinstance(calculator, type):
            raise ConfigError(
                f"wanted a calculator, found the class {calculator.__name__}; make one: "
                f"{calculator.__name__}()"
            )
        if not isinstance(calculator, Calculator):
            raise ConfigError(
                f"wanted an ASE calculator, found {type(calculator).__name__}; a torch module is "
                "Declared(module, takes=…, gives=…)"
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
                    f"{type(calculator).__name__} does not implement {name!r}; of what is known it has "
                    f"{', '.join(able) or 'nothing'}"
                )
        if not chosen:
            raise ConfigError(
                f"{type(calculator).__name__} implements "
                f"{', '.join(calculator.implemented_properties) or 'nothing'}; wanted "
                f"one of {', '.join(USUAL)}, or say which with predict=[…]"
            )
        self.calculator, self.group, self.precision = calculator, group, precision
        self.quantities = {name: KNOWN[name] for name in chosen}

    def __deepcopy__(self, memo: dict[int, object]) -> "BlackBox":
        return self

    def forward(self, graph: Graph, *, create_graph: bool | None = None) -> dict[str, Tensor]:
        """Quantities by name, float64, not differentiable. The stress of a structure without a volume is NaN.

        Parameters
        ----------
        graph : Graph
            One or several structures.
        create_graph : bool, optional
            Has no effect; `Model` has the same argument. A calculator cannot be differentiated.
        """
        rows = [self._of(part) for part in separate(graph.without("edge"))]
        return {name: torch.cat([row[name] for row in rows]) for name in self.quantities}

    def _of(self, graph: Graph) -> dict[str, Tensor]:
        atoms = to_atoms(graph.replace(pos=graph.pos.double(), targets={}))
        out = {}
        for name, q in self.quantities.items():
            if name == "stress" and atoms.cell.rank != 3:
                out[name] = torch.full((1, 3, 3), float("nan"), dtype=torch.float64)
                continue
            try:
                found = self.calculator.get_property(name, atoms)
            except Exception as error:  # a calculator of another package may raise anything
                raise ModelError(
                    f"{type(self.calculator).__name__} cannot give {name!r} of {atoms.symbols} (pbc "
                    f"{atoms.pbc.tolist()}): "
                    f"{type(error).__name__}: {error}; leave it out of predict=, or leave such structures out"
                ) from error
            value = torch.as_tensor(found, dtype=torch.float64)
            if name == "stress" and value.numel() == 6:
                value = value[[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3)
            out[name] = value.clone() if q.per == "node" else value.reshape(1, *q.shape())
        return out


def as_auditable(
    model: object,
    needs: Sequence[str] = ("quantities", "cutoff", "group"),
    device: str | torch.device | None = None,
) -> Auditable:
    """The model that is audited.

    Parameters
    ----------
    model : Module, ASE calculator, str or Path
        A model, its file, or a calculator, which becomes a `BlackBox`.
    needs : sequence of str
        Attributes that it must have.
    device : str or torch.device, optional
        Where it runs; by default where it is, and a file on CUDA if there is one. A copy is moved.

    Raises
    ------
    ConfigError
        If an attribute is missing, for a calculator with a device, and for a model with an audit of its own.
    ModelError
        For a device that this machine does not have, and for a model of several levels of theory.
    """
    if isinstance(model, (str, os.PathLike)):
        model = load(model, device="auto" if device is None else device)
    elif device is not None:
        place = as_device(device)
        if not isinstance(model, nn.Module) or isinstance(model, BlackBox):
            raise ConfigError(f"device={device!r}: a calculator runs where it is; leave device out")
        model = deepcopy(model).to(place)
    if isinstance(model, nn.Module):
        if hasattr(model, "audited_by"):
            raise ConfigError(f"{type(model).__name__} reads no structures; wanted {model.audited_by}")
        check_single(model)
        missing = [name for name in needs if not hasattr(model, name)]
        if missing:
            raise ConfigError(
                f"{type(model).__name__} does not say its {', '.join(missing)}; declare what it takes and "
                "gives: "
                f"audit.Declared(module, takes=['pos', 'z'], gives='energy')"
            )
        return cast(Auditable, model)
    return cast(Auditable, BlackBox(model))
