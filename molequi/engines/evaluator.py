"""What all engines ask of a model: energies, forces and virials of positions, elements and cells."""

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from molequi.checkpoint import load
from molequi.data.request import impossible_total
from molequi.domain import DomainCheck, Seen, check_elements
from molequi.engines.neighbor_lists import BatchNeighborList
from molequi.ensemble import Ensemble
from molequi.errors import DataError, ModelError
from molequi.graph import Graph
from molequi.interfaces import Calculator
from molequi.model import Model
from molequi.neighbors import remove_far_edges
from molequi.quantities import KNOWN, Quantity
from molequi.util.signature import check_keywords

VIRIAL = Quantity(
    "virial",
    per="graph",
    rank=2,
    symmetry="ij=ji",
    unit="eV",
    gradient_of="energy",
    wrt="strain",
    factor=-1.0,
    per_volume=False,
)


class Evaluation(NamedTuple):
    """Result of one structure.

    Attributes
    ----------
    energy : float
        In eV.
    forces : array, shape (N, 3)
        In eV/Å.
    virial : array, shape (3, 3)
        -dE/dε in eV, which is ``-V`` times the stress of ASE; it is defined for molecules, too.
    """

    energy: float
    forces: np.ndarray
    virial: np.ndarray


@check_keywords()
class Evaluator:
    """A model as a function of positions, elements and cells, with one neighbor list with a skin.

    All engines compute through it. Its checks are those of `molequi.Calculator`: unknown elements are
    refused, and elements, charges and spins that the model was not trained on give a DataWarning.

    Parameters
    ----------
    model : Model, Ensemble, str or Path
        The model, which is copied, or its file. It predicts an energy.
    level : str, optional
        Level of theory, of a model of several.
    charge, spin : float, optional
        Total charge (e) and spin multiplicity of the structures, for a model that reads them. Engines have
        no place for them.
    device : {"auto", "cpu", "cuda", "cuda:1"}
        Where it runs.
    dtype : {"float32", "float64"}
        Its precision. Dynamics conserves the energy well in float64 only.
    skin : float, >= 0
        Distance in Å beyond the cutoff up to which neighbors are searched.
    accelerate : bool
        Compile the model, see `molequi.accelerate`.

    Raises
    ------
    ModelError
        As `molequi.Calculator` does; also for a model without an energy, for one that reads a charge or spin
        that is not given, for a given one that it does not read, and for one that reads other fields of a
        graph.
    DataError
        For a charge or spin that is no number, and for an impossible multiplicity.

    Examples
    --------
    >>> import molequi as mq
    >>> evaluate = Evaluator(mq.Model(mq.EGNN(elements=["H", "O"], channels=8, layers=1)))
    >>> evaluate([[0, 0, 0], [0, 0, 0.97]], [8, 1]).forces.shape
    (2, 3)
    """

    def __init__(
        self,
        model: Model | Ensemble | str | os.PathLike[str],
        *,
        level: str | None = None,
        charge: float | None = None,
        spin: float | None = None,
        device: str | torch.device = "auto",
        dtype: torch.dtype | str = "float64",
        skin: float = 0.5,
        accelerate: bool = False,
    ) -> None:
        if level is not None:
            model = load(model) if isinstance(model, (str, os.PathLike)) else model
            if not isinstance(model, Model) or not model.levels:
                raise ModelError(f"level={level!r}: this {type(model).__name__} has no levels of theory")
            model = model.at(level)
        self.calculator = Calculator(model, device=device, dtype=dtype, skin=skin, accelerate=accelerate)
        self.model = self.calculator.model
        if "energy" not in self.model.quantities:
            raise ModelError(
                f"this model predicts {', '.join(self.model.quantities)} and no energy, of which an engine "
                "needs the forces; train with predict=['energy', 'forces']"
            )
        inputs = self.model.backbone.inputs
        own = {"charge": charge, "spin": spin}
        used = () if inputs is None else inputs.used
        if missing := [name for name in used if own.get(name) is None]:
            words = " and ".join(f"{name}=…" for name in missing if name in own)
            raise ModelError(
                f"this model reads {', '.join(missing)} of each structure; "
                + (f"give {words} to the engine" if words else "no engine has these, so that none can run it")
            )
        self.totals: dict[str, Any] = {
            name: _total(self.model, name, value) for name, value in own.items() if value is not None
        }
        for name in self.totals:
            if name not in used:
                raise ModelError(
                    f"{name}={own[name]!r}: this model reads no {name}, so it changes nothing; leave "
                    f"it out, or train a model with inputs=Inputs({name}=True)"
                )
        self.skin = skin
        forces = "forces" if "forces" in self.model.quantities else KNOWN["forces"]
        self._full = self.model.predicting(["energy", forces, VIRIAL])
        self._short = self.model.predicting(["energy", forces])
        self._domain = DomainCheck(self.model)
        self._known: bytes = b""
        self._single = self.neighbor_list()

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.device

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that the model knows."""
        return self.model.elements

    def neighbor_list(self) -> BatchNeighborList:
        """A new neighbor list for this model."""
        return BatchNeighborList(self.model.cutoff, self.skin)

    def __call__(
        self,
        positions: npt.ArrayLike,
        numbers: Sequence[int] | np.ndarray,
        *,
        cell: npt.ArrayLike | None = None,
        pbc: npt.ArrayLike = False,
    ) -> Evaluation:
        """Energy, forces and virial of one structure.

        Parameters
        ----------
        positions : array, shape (N, 3)
            In Å.
        numbers : sequence of int, shape (N,)
            Atomic numbers.
        cell : array, shape (3, 3), optional
            Lattice vectors in Å, one in each row.
        pbc : bool or array of bool, shape (3,)
            Periodic directions.

        Returns
        -------
        Evaluation
        """
        graph = self.graph(positions, numbers, cell=cell, pbc=pbc).to(self.device)
        out = self.evaluate(graph, self._single)
        energy, forces, virial = (out[name].cpu().double().numpy() for name in ("energy", "forces", "virial"))
        return Evaluation(float(energy[0]), forces, virial[0])

    def graph(
        self,
        positions: npt.ArrayLike,
        numbers: Sequence[int] | np.ndarray,
        *,
        cell: npt.ArrayLike | None = None,
        pbc: npt.ArrayLike = False,
    ) -> Graph:
        """One structure without edges, with arrays of its own and the total charge and spin, on the CPU.

        Parameters
        ----------
        positions, numbers, cell, pbc
            As of a call. The cell of a structure that is not periodic is left out.
        """
        pos = torch.from_numpy(np.array(positions, dtype=np.float64))
        if pos.ndim != 2 or pos.shape[1:] != (3,) or len(pos) != len(numbers) or not len(pos):
            raise DataError(
                f"positions of shape {tuple(pos.shape)} and {len(numbers)} elements; wanted (N, 3) and N > 0"
            )
        pbc = np.broadcast_to(np.asarray(pbc, dtype=bool), (3,))
        return Graph.single(
            pos,
            np.array(numbers),
            cell=np.array(cell, dtype=np.float64) if pbc.any() else None,
            pbc=pbc.copy() if pbc.any() else None,
            **self.totals,
        )

    def evaluate(
        self, graph: Graph, neighbors: BatchNeighborList, *, virial: bool = True
    ) -> dict[str, Tensor]:
        """Energies, forces and virials of a batch.

        Parameters
        ----------
        graph : Graph
            Structures without edges, on the device of the model.
        neighbors : BatchNeighborList
            The list for these structures, see `neighbor_list`.
        virial : bool
            With virials.

        Returns
        -------
        dict of str to Tensor
            ``"energy"`` (G,) in eV, ``"forces"`` (N, 3) in eV/Å and ``"virial"`` (G, 3, 3) in eV.

        Raises
        ------
        ModelError
            For elements that the model does not know.
        """
        self._check(graph)
        connected = neighbors(graph)
        model = self._full if virial else self._short
        if self.model.cutoff is not None:  # also without a skin, with which a list may outlive a step
            connected = remove_far_edges(connected, self.model.cutoff)
        out = model(connected)
        return {name: out[name] for name in ("energy", "forces", *(["virial"] if virial else []))}

    def _check(self, graph: Graph) -> None:
        """Refuse unknown elements, and warn of what the model was not trained on."""
        content = graph.z.cpu().numpy()
        if content.tobytes() == self._known:
            return
        check_elements(self.model, content)
        totals = {**self.totals} or {"charge": 0.0, "spin": 1.0}
        self._domain.warn([Seen("the structure of the engine", content, totals)], stacklevel=5)
        self._known = content.tobytes()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the bytes of a model file, never modules; see `molequi.Calculator`."""
        return _again, (self.calculator, self.totals)


def _total(model: Model | Ensemble, name: str, value: Any) -> float:
    """A total charge or a spin multiplicity, checked as `molequi.Calculator` checks them."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{name}={value!r}: wanted a finite number")
    wrong = impossible_total(name, number)
    if wrong and number not in DomainCheck(model).record.get(name, ()):
        raise DataError(f"{name}={number:g}: {wrong}")
    return number


def _again(calculator: Calculator, totals: dict[str, Any]) -> Evaluator:
    model = calculator.model
    return Evaluator(model, device=model.device, dtype=model.dtype, skin=calculator.skin, **totals)
