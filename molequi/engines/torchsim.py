"""A model for torch-sim: hundreds of simulations or relaxations in one batch."""

import os
import warnings
from typing import Any

import torch
from torch import Tensor

from molequi.engines.evaluator import Evaluator
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, DataError, DataWarning
from molequi.graph import Graph
from molequi.model import Model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch-sim uses what torch deprecates
    from torch_sim.models.interface import ModelInterface


_SCALES = ("n_atoms", "n_atoms_x_density")


class TorchSimModel(ModelInterface):
    """A ``torch_sim.models.interface.ModelInterface``; `molequi.engines.torch_sim` makes it.

    Parameters
    ----------
    model, compute_stress, memory_scales_with, **options
        As of `molequi.engines.torch_sim`.
    """

    def __init__(
        self,
        model: Model | Ensemble | str | os.PathLike[str],
        *,
        compute_stress: bool = True,
        memory_scales_with: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        object.__setattr__(
            self, "evaluator", Evaluator(model, **options)
        )  # no submodule: torch-sim trains none
        self._neighbors = self.evaluator.neighbor_list()
        self._device, self._dtype = self.evaluator.device, self.evaluator.model.dtype
        self._compute_stress, self._compute_forces = compute_stress, True
        if memory_scales_with not in (None, *_SCALES):
            raise ConfigError(
                f"memory_scales_with={memory_scales_with!r}: wanted one of {', '.join(_SCALES)}"
            )
        usual = "n_atoms" if self.evaluator.model.cutoff is None else "n_atoms_x_density"
        self._memory_scales_with = memory_scales_with or usual
        self._warned = False

    evaluator: Evaluator

    @property
    def compute_stress(self) -> bool:
        """Whether stresses are computed."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, compute_stress: bool) -> None:
        self._compute_stress = compute_stress

    @property
    def compute_forces(self) -> bool:
        """Whether forces are computed: always, they come with the energy."""
        return True

    @compute_forces.setter
    def compute_forces(self, compute_forces: bool) -> None:
        if not compute_forces:
            raise DataError("compute_forces=False: forces are computed with the energy; leave it True")

    def forward(self, state: Any, **_: Any) -> dict[str, Tensor]:
        """Energies, forces and stresses of a state.

        Parameters
        ----------
        state : torch_sim.SimState or dict
            The structures. The columns of ``cell`` are its lattice vectors, as torch-sim has them.

        Returns
        -------
        dict of str to Tensor
            ``"energy"`` (G,) in eV, ``"forces"`` (N, 3) in eV/Å and ``"stress"`` (G, 3, 3) in eV/Å³, positive
            under tension; NaN where the cell has no volume.
        """
        values = state if isinstance(state, dict) else vars(state)
        pos, cell = values["positions"], values["cell"]
        batch = values.get("system_idx")
        batch = torch.zeros(len(pos), dtype=torch.int64, device=pos.device) if batch is None else batch
        rows = cell.detach().double().transpose(1, 2)
        pbc = torch.as_tensor(values.get("pbc", True), device=pos.device).expand(len(rows), 3)
        periodic = bool(pbc.any())
        if not self._warned and not periodic and bool((torch.linalg.det(rows).abs() > 1e-8).any()):
            self._warned = True
            warnings.warn(
                "torch-sim has one pbc for all directions, here False, so that these cells are ignored; of a "
                "slab or wire set atoms.pbc = True and give the cell vacuum",
                DataWarning,
                stacklevel=2,
            )
        totals: dict[str, Any] = {
            name: torch.full((len(rows),), value, dtype=torch.float64, device=pos.device)
            for name, value in self.evaluator.totals.items()
        }
        graph = Graph(
            pos=pos.detach().double(),
            z=values["atomic_numbers"],
            batch=batch,
            num_graphs=len(rows),
            cell=rows if periodic else None,
            pbc=pbc if periodic else None,
            **totals,
        )
        out = self.evaluator.evaluate(graph, self._neighbors, virial=self._compute_stress)
        found = {name: out[name].to(pos.dtype) for name in ("energy", "forces")}
        if self._compute_stress:
            volume = torch.linalg.det(rows).abs()[:, None, None]
            stress = torch.where(volume > 0, -out["virial"] / volume.clamp(min=1e-300), torch.nan)
            found["stress"] = stress.to(pos.dtype)
        return found
