"""A model compiled ahead of time (AOTInductor): a file that torch loads without molequi.

Energy, forces and virial are traced into one graph of plain operations, in which the differentiation is
unfolded, with dynamic numbers of atoms and edges. torch.export checks that no size was fixed, inductor
compiles it, and the result is compared with the model at other sizes.
"""

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from molequi.domain import check_elements
from molequi.engines.evaluator import VIRIAL, Evaluator
from molequi.ensemble import Ensemble
from molequi.errors import AccelerateError, DataError
from molequi.graph import Graph
from molequi.model import Model
from molequi.neighbors import connect
from molequi.quantities import KNOWN, SYMBOLS
from molequi.readers.atoms import read_frames
from molequi.util.files import check_new_target
from molequi.util.signature import check_keywords

CONTRACT = "1"
INPUTS = ("positions", "numbers", "edge_index", "shifts", "cell")
OUTPUTS = ("energy", "forces", "virial")
_LARGEST = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative difference from the model
_FEWEST = 5  # atoms of the example, more than the directions of space


class _Function(torch.nn.Module):
    """Energy, forces and virial of one structure as a function of tensors alone."""

    def __init__(self, evaluator: Evaluator) -> None:
        super().__init__()
        model = evaluator.model.plain()
        forces = "forces" if "forces" in model.quantities else KNOWN["forces"]
        self.model, self.names = model.predicting(["energy", forces, VIRIAL]), tuple(evaluator.totals)

    def forward(
        self, pos: Tensor, z: Tensor, edge_index: Tensor, shift: Tensor, cell: Tensor, *totals: Tensor
    ) -> tuple[Tensor, ...]:
        own: dict[str, Any] = {name: value.reshape(1) for name, value in zip(self.names, totals)}
        graph = Graph(
            # Differentiable from the start: then no kernel is chosen by the number of neighbors.
            pos=pos.detach().requires_grad_(),
            z=z,
            batch=torch.zeros_like(z),
            num_graphs=1,
            edge_index=edge_index,
            shift=shift,
            cell=cell[None],
            pbc=torch.ones(1, 3, dtype=torch.bool, device=pos.device),
            cutoff=self.model.cutoff,
            **own,
        )
        with torch.enable_grad():
            out = self.model.predict(graph, False)
        energy, forces, virial = (out[name].to(torch.float64) for name in OUTPUTS)
        return energy[0], forces, virial[0]


def arguments_of(evaluator: Evaluator, atoms: Atoms) -> tuple[Tensor, ...]:
    """The tensors that a compiled file takes, of one structure.

    Parameters
    ----------
    evaluator : Evaluator
        The model.
    atoms : ase.Atoms
        The structure.

    Returns
    -------
    tuple of Tensor
        `INPUTS`, then a charge and a spin, if the model reads them.
    """
    graph = evaluator.graph(atoms.positions, atoms.numbers, cell=atoms.cell.array, pbc=atoms.pbc)
    graph = connect(graph, evaluator.model.cutoff).to(evaluator.device)
    assert graph.edge_index is not None
    count = graph.edge_index.shape[1]
    shift = graph.pos.new_zeros(count, 3) if graph.shift is None else graph.shift
    cell = torch.eye(3, dtype=graph.pos.dtype, device=graph.pos.device)
    totals = [graph.pos.new_tensor([value]) for value in evaluator.totals.values()]
    return graph.pos, graph.z, graph.edge_index, shift, cell if graph.cell is None else graph.cell[0], *totals


def exported(evaluator: Evaluator, atoms: Atoms) -> tuple[Any, tuple[Tensor, ...]]:
    """The model as a program of torch.export, and its arguments for a structure.

    Parameters
    ----------
    evaluator : Evaluator
        The model.
    atoms : ase.Atoms
        A structure with five atoms or more.

    Raises
    ------
    AccelerateError
        If the model cannot be traced, or does different things for different sizes.
    """
    name = type(evaluator.model.backbone).__name__
    if isinstance(evaluator.model, Ensemble):
        raise AccelerateError("an ensemble: wanted a single model; export its members one by one")
    if evaluator.model.backbone.clouds_alone or evaluator.model.k is not None:
        raise AccelerateError(f"{name} chooses points by the data, which cannot be compiled ahead of time")
    terms = {"long_range": "a long range", "dispersion": "a dispersion"}
    if found := [words for name, words in terms.items() if name in evaluator.model.energy_terms]:
        raise AccelerateError(
            f"the model has {' and '.join(found)}, which cannot be compiled ahead of time: it goes through "
            "all pairs and images, not through the edges alone; other engines take the model file itself"
        )
    function, values = _Function(evaluator), arguments_of(evaluator, atoms)
    atom, edge = torch.export.Dim("atoms", min=2), torch.export.Dim("edges", min=2)
    shapes: Any = ({0: atom}, {0: atom}, {1: edge}, {0: edge}, None, *[None] * len(evaluator.totals))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of its own functions
            function(*values)  # fills tables that must not be made while tracing
            traced = make_fx(
                lambda *given: function(*given), tracing_mode="symbolic", _allow_non_fake_inputs=True
            )(*values)
            program = torch.export.export(
                traced, values, dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=True
            )
            return program, values
    except Exception as failure:  # tracing raises errors that have no common type
        text = " ".join(str(failure).split())
        raise AccelerateError(
            f"{name} cannot be compiled ahead of time: {type(failure).__name__}: {text[:300]}; other engines "
            "take the model file itself"
        ) from failure


def compare(function: Any, evaluator: Evaluator, structures: Sequence[Atoms]) -> float:
    """The largest relative difference from the model. Raises AccelerateError if it is too large.

    Parameters
    ----------
    function : callable
        Takes the tensors of `arguments_of`.
    evaluator : Evaluator
        The model.
    structures : sequence of ase.Atoms
        Structures of different sizes.
    """
    largest = 0.0
    for atoms in structures:
        wanted = evaluator(atoms.positions, atoms.numbers, cell=atoms.cell.array, pbc=atoms.pbc)
        found = function(*arguments_of(evaluator, atoms))
        for name, value in zip(OUTPUTS, found):
            right = np.asarray(getattr(wanted, name))
            scale = max(float(np.abs(right).max()), 1.0)
            error = float(np.abs(value.detach().cpu().numpy() - right).max()) / scale
            limit = _LARGEST[evaluator.model.dtype]
            if not error <= limit:
                raise AccelerateError(
                    f"the compiled {type(evaluator.model.backbone).__name__} differs from the model: {name} "
                    f"of {len(atoms)} atoms by {error:.1e}, wanted {limit:g}"
                )
            largest = max(largest, error)
    return largest


def _trials(atoms: Atoms) -> list[Atoms]:
    """The structure, moved, and of other sizes."""
    moved = atoms.copy()
    moved.rattle(0.05, seed=0)
    return [moved, _larger(moved), moved[: len(moved) // 2]]


def _larger(atoms: Atoms) -> Atoms:
    """Twice the structure."""
    if atoms.pbc.any():
        first = int(atoms.pbc.argmax())
        return atoms.repeat([2 if k == first else 1 for k in range(3)])
    copy = atoms.copy()
    copy.translate([float(np.ptp(atoms.positions[:, 0])) + 1.5, 0, 0])
    return atoms + copy


@check_keywords()
def export_aot(
    model: Model | Ensemble | str | os.PathLike[str],
    out: str | os.PathLike[str],
    like: Atoms | str | os.PathLike[str],
    *,
    overwrite: bool = False,
    level: str | None = None,
    charge: float | None = None,
    spin: float | None = None,
    device: str = "cpu",
    dtype: str = "float64",
) -> Path:
    """Compile a model ahead of time into a file that torch loads without molequi.

    ``torch._inductor.aoti_load_package(path)`` gives a function of ``positions`` (N, 3) in Å, ``numbers``
    (N,), ``edge_index`` (2, E), ``shifts`` (E, 3) and ``cell`` (3, 3) in Å, then ``charge`` and ``spin``
    (1,), if the model reads them; all float64 but for the integers, which are int64, and all contiguous:
    give ``x.to(dtype).contiguous()``. The file checks this only in a process that was started with
    ``AOTI_RUNTIME_CHECK_INPUTS=1`` in its environment; otherwise other tensors give wrong numbers. An
    edge goes from the sender, row 0 of ``edge_index``, to the receiver, row 1, and its vector is
    ``positions[sender] + shifts @ cell - positions[receiver]``. Every pair within the cutoff is two
    edges, sorted by the receiver. A molecule has zero shifts and a unit cell. It returns the energy in
    eV, the forces (N, 3) in eV/Å and the virial (3, 3) in eV, -dE/dε. Numbers of atoms and edges are free
    from two upwards.
    ``function.get_metadata()["molequi"]`` has the units, the cutoff, the elements and the precision as JSON.

    Compiling takes a minute or more. The file serves the kind of processor on which it was made.

    Parameters
    ----------
    model : Model, str or Path
        The model or its file.
    out : str or Path
        The file to write, NAME.pt2.
    like : ase.Atoms, str or Path
        A structure on which the compiled model is compared with the model, as well as on a larger and a
        smaller one made of it.
    overwrite : bool
        Replace the file if it exists.
    level : str, optional
        Level of theory, of a model of several.
    charge, spin : float, optional
        Total charge (e) and spin multiplicity of that structure, for a model that reads them.
    device : {"cpu", "cuda"}
        Where the compiled model runs.
    dtype : {"float64", "float32"}
        Its precision inside.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    AccelerateError
        If the model cannot be compiled, or the compiled one differs from it.
    DataError
        For a name that does not end in .pt2, and for a structure without atoms or with too few neighbors.
    ModelError
        As `Evaluator` does, and for unknown elements.
    ConfigError
        If the file exists.
    """
    path = Path(out)
    if path.suffix != ".pt2":
        raise DataError(f"{out}: wanted a name that ends in .pt2")
    check_new_target(path, overwrite=overwrite, name="out=")
    atoms = like.copy() if isinstance(like, Atoms) else read_frames(os.fspath(like))[0]
    if not len(atoms):
        raise DataError("like=: this structure has no atoms; wanted one of the simulation")
    while len(atoms) < _FEWEST:
        atoms = _larger(atoms)
    evaluator = Evaluator(model, level=level, charge=charge, spin=spin, device=device, dtype=dtype)
    check_elements(evaluator.model, atoms.numbers)
    trials = _trials(atoms)
    for one in trials:
        if arguments_of(evaluator, one)[2].shape[1] < 2:
            raise DataError(
                f"like=: {one.get_chemical_formula()}, made of this structure, has no two atoms within the "
                f"cutoff of {evaluator.model.cutoff:g} Å; wanted a structure whose first half has neighbors"
            )
    program, _ = exported(evaluator, trials[0])
    compare(program.module(), evaluator, trials)
    options = {"aot_inductor.metadata": {"molequi": json.dumps(contract(evaluator))}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)
        loaded = torch._inductor.aoti_load_package(str(path))
    compare(loaded, evaluator, trials)
    return path


def contract(evaluator: Evaluator) -> dict[str, Any]:
    """What a compiled file says about itself.

    Parameters
    ----------
    evaluator : Evaluator
        The model.
    """
    given = [*INPUTS, *evaluator.totals]
    return {
        "contract": CONTRACT,
        "inputs": given,
        "outputs": list(OUTPUTS),
        "dtypes": {name: "int64" if name in ("numbers", "edge_index") else "float64" for name in given},
        "layout": "contiguous",
        "units": {"positions": "Å", "cell": "Å", "energy": "eV", "forces": "eV/Å", "virial": "eV"},
        "cutoff": evaluator.model.cutoff,
        "elements": [SYMBOLS[z] for z in evaluator.elements],
        "precision": str(evaluator.model.dtype).removeprefix("torch."),
        "device": evaluator.device.type,
    }
