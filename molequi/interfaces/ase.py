"""A molequi model as an ASE calculator."""

import math
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator as ASECalculator
from ase.calculators.calculator import PropertyNotImplementedError, all_changes, all_properties
from ase.stress import full_3x3_to_voigt_6_stress

from molequi.accelerate import SMALL
from molequi.accelerate import accelerate as compiled
from molequi.checkpoint import load, save
from molequi.data.request import INVARIANTS, impossible_total
from molequi.domain import DomainCheck, Seen, check_elements, totals_in
from molequi.ensemble import Ensemble
from molequi.errors import DataError, ModelError, did_you_mean
from molequi.graph import FIELDS, Graph, own_fields
from molequi.interfaces.neighbor_list import NeighborList
from molequi.levels import check_single
from molequi.model import Model
from molequi.neighbors import remove_far_edges
from molequi.ops.memory import keep_freed_memory
from molequi.quantities import KNOWN
from molequi.util.devices import as_device, as_dtype
from molequi.util.forking import prepare_forked_process
from molequi.util.signature import check_keywords


@check_keywords()
class Calculator(ASECalculator):
    """A model as an ASE calculator: energies, forces, stress and whatever else it predicts.

    ``energy`` and ``free_energy`` are the same. ``stress`` has ASE's sign and order (xx, yy, zz, yz, xz, xy;
    eV/Å³); every model with an energy gives it, whether it was trained on stress or not. ``dipole``,
    ``charges`` and ``magmoms`` are there if the model predicts them. Other quantities are in `results` under
    their names. An `Ensemble` adds its standard deviations: ``energy_std`` (eV), ``forces_std`` (N,) in eV/Å,
    and so on.

    The total charge and the spin multiplicity are read from ``atoms.info["charge"]`` and
    ``atoms.info["spin"]``, or ``"total_charge"`` and ``"spin_multiplicity"``. Elements, charges and spins
    that the model was not trained on give a DataWarning. One calculator may be used from several threads;
    they wait for each other. A process that was forked after a calculation computes with one thread and
    without a compiled program. The process keeps up to 2 GiB of freed memory for the next step.

    Parameters
    ----------
    model : Model, Ensemble, str or Path
        The model, which is copied, or its file.
    device : {"auto", "cpu", "cuda", "cuda:1"}
        Where it runs. "auto" is CUDA if this machine has it, otherwise the CPU.
    dtype : {"float32", "float64"}, optional
        Its precision; by default the one of the model. Dynamics conserves the energy well in float64 only.
    skin : float, >= 0
        Distance in Å beyond the cutoff up to which neighbors are searched, see
        `molequi.interfaces.NeighborList`.
    accelerate : bool
        Compile the model, see `molequi.accelerate`.

    Raises
    ------
    ModelError
        For elements that the model does not know, a missing charge or spin, a model of several levels of
        theory, and one that starts from velocities, because ASE's forces are a function of the positions.
    DataError
        For a structure that is empty, not finite (charge and spin included) or periodic without a cell, and
        for two names of the charge or spin whose values differ.
    PropertyNotImplementedError
        For what the model does not predict, and for the stress of a structure without a cell.

    Examples
    --------
    >>> from ase.build import molecule
    >>> import molequi as mq
    >>> atoms = molecule("H2O")
    >>> atoms.calc = Calculator(mq.Model(mq.EGNN(elements=["H", "O"], channels=8, layers=1)))
    >>> atoms.get_forces().shape
    (3, 3)
    """

    default_parameters: dict[str, Any] = {}

    def __init__(
        self,
        model: Model | Ensemble | str | os.PathLike[str],
        *,
        device: str | torch.device = "auto",
        dtype: torch.dtype | str | None = None,
        skin: float = 0.5,
        accelerate: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(accelerate, bool):
            raise ModelError(f"accelerate={accelerate!r}: wanted True or False")
        with torch.inference_mode(False):  # parameters made under it could not serve forces
            if isinstance(model, (Model, Ensemble)):
                model = deepcopy(model).to(as_device(device))
            elif isinstance(model, (str, os.PathLike)):
                model = load(model, device=device)
            else:
                raise ModelError(
                    f"wanted a Model, an Ensemble or the path of its file, found {type(model).__name__}"
                )
            check_single(model)
            self.model = model.eval() if dtype is None else model.to(as_dtype(dtype)).eval()
        inputs = self.model.backbone.inputs
        if inputs is not None and inputs.velocity:
            kind = type(self.model.backbone).__name__
            raise ModelError(
                f"this {kind} reads velocities (inputs=Inputs(velocity=True)), on which ASE's energies and "
                "forces cannot depend; wanted a model of positions alone"
            )
        self._domain = DomainCheck(self.model)
        if accelerate:
            compiled(self.model)
        keep_freed_memory()
        self._neighbors = NeighborList(self.model.cutoff, skin)
        self._checked: tuple[object, ...] = ()
        self._asked_before: tuple[object, ...] = ()
        asked = list(self.model.quantities.values())
        if "energy" in self.model.heads:
            asked += [KNOWN[n] for n in ("forces", "stress") if n not in self.model.quantities]
        self._asked = self.model.predicting(asked)
        self._without_stress = self.model.predicting(q for q in asked if q.name != "stress")
        names = set(self._asked.quantities) | (
            {"energies", "free_energy"} if "energy" in self.model.heads else set()
        )
        self.implemented_properties = [name for name in all_properties if name in names]
        self._totals: dict[str, float | list[Any]] | None = None
        self._lock = threading.RLock()

    @property
    def skin(self) -> float:
        """Additional distance in Å up to which edges are searched."""
        return self._neighbors.skin

    @skin.setter
    def skin(self, value: float) -> None:
        self._neighbors.skin = value

    @property
    def searches(self) -> int:
        """Number of neighbor searches so far."""
        return self._neighbors.searches

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation, including the total charge and spin in ``atoms.info``.

        Parameters
        ----------
        atoms : ase.Atoms
            The structure.
        tol : float
            Largest difference of numbers that count as equal.

        Returns
        -------
        list of str
            ASE's names, such as "positions".
        """
        # ASE's own comparison takes 0.3 ms.
        known = self.atoms
        changes = [
            name
            for name in all_changes
            if name not in self.ignored_changes
            and (known is None or not _equal(_state_of(atoms, name), _state_of(known, name), tol))
        ]
        return changes if self._totals == self.inputs_of(atoms) else [*changes, "initial_charges"]

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> float | np.ndarray | None:
        """One property, calculated if the structure has changed.

        Parameters
        ----------
        name : str
            ASE's name of the property, or the name of another quantity of the model.
        atoms : ase.Atoms, optional
            The structure; by default that of the last calculation.
        allow_calculation : bool
            Whether to calculate; if not, the result may be None.
        """
        with self._lock:
            if (
                name == "stress"
                and name in self.implemented_properties
                and atoms is not None
                and np.isfinite(atoms.cell.array).all()  # the graph refuses other cells
                and not _has_volume(atoms)
            ):
                raise PropertyNotImplementedError(
                    "stress is defined for a periodic structure whose cell has a volume; found "
                    f"pbc={atoms.pbc.tolist()} and a cell of {atoms.cell.volume:g} Å^3"
                )
            if name not in all_properties and name in self._asked.outputs:
                return self._own_property(name, atoms, allow_calculation)
            if name not in self.implemented_properties:
                known = (*self.implemented_properties, *self._asked.outputs)
                raise PropertyNotImplementedError(
                    f"{name}: this model does not predict it{did_you_mean(name, dict.fromkeys(known))}"
                )
            return super().get_property(name, atoms, allow_calculation)  # ASE hands out copies of arrays

    def _own_property(
        self, name: str, atoms: Atoms | None, allow_calculation: bool
    ) -> float | np.ndarray | None:
        """A quantity for which ASE has no name; ASE itself returns those that it knows."""
        atoms = self.atoms if atoms is None else atoms
        if atoms is not None and self.check_state(atoms):
            self.reset()
        if name not in self.results:
            if not allow_calculation:
                return None
            self.calculate(atoms)
        value = self.results[name]
        return value.copy() if isinstance(value, np.ndarray) else value

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Calculate all that the model predicts, into `results`.

        Parameters
        ----------
        atoms : ase.Atoms, optional
            The structure; by default that of the last calculation.
        properties, system_changes : sequence of str
            Part of ASE's interface, not used.
        """
        with self._lock:
            atoms = self.atoms if atoms is None else atoms
            if atoms is None:
                raise DataError("calculate: found no structure to calculate; give the atoms")
            self._calculate(atoms)

    def _calculate(self, atoms: Atoms) -> None:
        self.results = {}
        prepare_forked_process(self.model.device)  # before the first operation, not only in the model
        graph = self.graph(atoms)
        super().calculate(atoms)
        self._totals = self.inputs_of(atoms)
        self.results = self._evaluate(graph, _has_volume(atoms))

    def _evaluate(self, graph: Graph, stress: bool) -> dict[str, Any]:
        """Results of one structure. Calculators that share a batch get them from it."""
        return self.results_of(graph, stress=stress)[0]

    def results_of(self, graph: Graph, *, stress: bool) -> list[dict[str, Any]]:
        """Results of each structure of a batch, as `results` has them.

        Parameters
        ----------
        graph : Graph
            One structure or more, connected.
        stress : bool
            With stress; all structures have a cell with a volume.
        """
        model = self._asked if stress else self._without_stress
        out = model(graph)
        values = {name: value.detach().cpu().double().numpy() for name, value in out.items()}
        ends = graph.counts.cumsum(0).tolist()
        found: list[dict[str, Any]] = [{} for _ in ends]
        outputs = model.outputs
        for name, value in values.items():
            per_graph = name in outputs and outputs[name].per == "graph"
            for k, (start, end) in enumerate(zip([0, *ends], ends)):
                own = value[k] if per_graph else value[start:end]
                if name == "stress":
                    own = full_3x3_to_voigt_6_stress(own)
                found[k][name] = float(own) if own.ndim == 0 else own
        for results in found:
            if "energy" in results:
                results["free_energy"] = results["energy"]
        return found

    def inputs_of(self, atoms: Atoms) -> dict[str, float | list[Any]]:
        """Total charge and spin, as far as the model takes them, and fields of a structure.

        Parameters
        ----------
        atoms : ase.Atoms
            The structure.

        Raises
        ------
        DataError
            For values that are no finite numbers or impossible, and for two different ones.
        """
        found: dict[str, float | list[Any]] = {}
        for field, names in INVARIANTS.items():
            pushed = field == "charge" and atoms.info.get("electric_field") is not None
            if not pushed and not self.model.backbone.reads(field):
                continue
            here = {name: atoms.info[name] for name in names if atoms.info.get(name) is not None}
            numbers = [_number(name, value) for name, value in here.items()]
            if len(set(numbers)) > 1:
                both = " and ".join(f"atoms.info[{name!r}] is {value!r}" for name, value in here.items())
                raise DataError(f"{both}; wanted one of them, or both alike")
            if numbers:
                found[field] = numbers[0]
                wrong = impossible_total(field, numbers[0])
                if wrong and numbers[0] not in self._domain.record.get(field, ()):
                    raise DataError(f"atoms.info[{next(iter(here))!r}] is {numbers[0]:g}; {wrong}")
        for field in own_fields():
            value = atoms.info.get(field, atoms.arrays.get(field))
            if value is not None:
                found[field] = _field_value(field, value)
        return found

    def graph(self, atoms: Atoms) -> Graph:
        """The structure with the edges that the model needs, and perhaps those of the skin.

        Parameters
        ----------
        atoms : ase.Atoms
            The structure.

        Raises
        ------
        DataError, ModelError
            As a calculation does.
        """
        if len(atoms) == 0:
            raise DataError("no atoms in this structure; there is nothing to calculate")
        model = self.model
        self._check_elements(atoms)
        given = self.inputs_of(atoms)
        self._check_domain(atoms, given)
        graph = self._neighbors(
            torch.from_numpy(np.array(atoms.positions, dtype=np.float64)).to(model.device),
            atoms.numbers,
            cell=atoms.cell.array,
            pbc=atoms.pbc,
            trim=False,
            **given,
        )
        assert graph.edge_index is not None  # a neighbor list has edges
        if (
            model.cutoff is None
            or not self.skin
            or (self._tolerates_far_edges(model) and graph.edge_index.shape[1] < SMALL)
        ):
            return graph
        return remove_far_edges(graph, model.cutoff)

    def _check_domain(self, atoms: Atoms, given: Mapping[str, Any]) -> None:
        """Warn of elements, charges, spins and fields that the model was not trained on, once for each."""
        totals = totals_in(atoms.info) | {name: float(given[name]) for name in INVARIANTS if name in given}
        strength = float(np.linalg.norm(cast(list[float], given.get("electric_field", []))))
        asked = atoms.numbers.tobytes(), tuple(totals.items()), strength
        if self._domain.record and asked != self._asked_before:
            name = atoms.get_chemical_formula()
            self._domain.warn([Seen(name, atoms.numbers, totals, strength)], stacklevel=6)
            self._asked_before = asked

    def _check_elements(self, atoms: Atoms) -> None:
        """Raise ModelError for elements that the model does not know."""
        checked = self.model.elements, atoms.numbers.tobytes()
        if checked == self._checked:
            return
        check_elements(self.model, atoms.numbers)
        self._checked = checked

    def _tolerates_far_edges(self, model: Model | Ensemble) -> bool:
        """Whether it is faster to keep the edges of the skin than to remove them.

        A compiled model reuses the layout of the previous step if the edges are the same. Edges of the skin
        change nothing if the backbone is exactly zero beyond its cutoff.
        """
        return self._compiled and model.backbone.smooth_cutoff

    @property
    def _compiled(self) -> bool:
        return self.model.program is not None

    def sharing(self) -> "Calculator":
        """A calculator with the same model, no copy of it, and a neighbor list and results of its own."""
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view.results, view.atoms, view._totals = {}, None, None
        view._neighbors = NeighborList(self.model.cutoff, self.skin)
        view._lock = threading.RLock()
        return view

    def __deepcopy__(self, memo: dict[int, object]) -> "Calculator":
        return Calculator(self.model, device=self.model.device, skin=self.skin)

    def __copy__(self) -> "Calculator":
        return self.copy()

    def copy(self) -> "Calculator":
        """A calculator of its own with the same model, for another thread."""
        return deepcopy(self)

    def __reduce__(self) -> tuple[Callable[..., "Calculator"], tuple[object, ...]]:
        """Pickle the bytes of a model file, never modules."""
        with tempfile.TemporaryDirectory() as folder:
            path = save(self.model, Path(folder) / "model.safetensors")
            own = self.model.own_classes  # pickled by reference, as classes are
            return _from_bytes, (path.read_bytes(), str(self.model.device), self.skin, self._compiled, own)


def _state_of(atoms: Atoms, name: str) -> np.ndarray:
    """What a calculation depends on, by ASE's name; zeros if the structure does not have it."""
    if name == "cell":
        return atoms.cell.array
    if name == "pbc":
        return atoms.pbc
    found = atoms.arrays.get(name)
    return np.zeros(len(atoms)) if found is None else found


def _equal(a: np.ndarray, b: np.ndarray, tol: float) -> bool:
    return np.array_equal(a, b) or (
        a.shape == b.shape and a.dtype != bool and bool((np.abs(a - b) <= tol).all())
    )


def _field_value(name: str, value: object) -> list[Any]:
    """A declared field as `Graph` takes it. Raises DataError for truth values in place of numbers."""
    array = np.asarray(value)
    if array.dtype.kind == "b" and FIELDS[name].dtype.is_floating_point:
        unit = FIELDS[name].unit
        raise DataError(f"{name} is {value!r}; wanted numbers" + f" in {unit}" * bool(unit))
    found: list[Any] = array.tolist()
    return found


def _number(name: str, value: Any) -> float:
    try:
        number = float(np.asarray(value, dtype=np.float64).reshape(()))  # also one number in an array
    except (TypeError, ValueError) as error:
        raise DataError(f"atoms.info[{name!r}] is {value!r}; wanted a finite number") from error
    if not math.isfinite(number):
        raise DataError(f"atoms.info[{name!r}] is {value!r}; wanted a finite number")
    return number


def _has_volume(atoms: Atoms) -> bool:
    return bool(atoms.pbc.any()) and bool(atoms.cell.volume > 1e-8)


def _from_bytes(
    content: bytes, device: str, skin: float, accelerate: bool, own: Mapping[str, dict[str, Any]]
) -> Calculator:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(content)
        model = load(path, backbones=own["backbones"], heads=own["heads"])
        return Calculator(model, device=device, skin=skin, accelerate=accelerate)
