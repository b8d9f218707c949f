"""Pairs for the task "relaxation" from relaxed structures alone: the unrelaxed ones are made of them."""

from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt

from molequi.data.dataset import Dataset
from molequi.errors import DataError
from molequi.generative.coupling import centered, rotations
from molequi.generative.flow import Seed
from molequi.generative.stereo import mols_of
from molequi.quantities import Quantity
from molequi.readers.load import load_dataset, reader_of
from molequi.readers.molecules import read_sdf, read_smiles
from molequi.readers.mols import read_mols
from molequi.util.progress import ProgressBar
from molequi.util.signature import check_call

Start = Literal["distorted", "mmff"]
RELAXED = Quantity("relaxed", per="node", rank=1, point=True, unit="Å")


def load_molecules(data: Any, **options: Any) -> Dataset:
    """Molecules without their labels, with their bonds.

    Parameters
    ----------
    data : object
        As `load_dataset` takes it.
    **options
        Options of the reader.
    """
    reader, _ = reader_of(data)
    if reader in (read_sdf, read_smiles, read_mols):
        options = {"features": True, **options}
    return load_dataset(data, only=(), **options)


def unrelaxed(
    data: Any,
    by: Start = "distorted",
    *,
    size: Annotated[float, Gt(0)] = 0.15,
    seed: Seed = 0,
    progress: bool = False,
    **options: Any,
) -> Dataset:
    """Relaxed structures with unrelaxed ones made of them: pairs for ``paths(…, task="relaxation")``.

    "distorted" moves each atom by a random vector, of crystals, too. "mmff" relaxes molecules by MMFF94
    (Halgren 1996, J. Comput. Chem. 17, 490) from their own geometry; a flow that is trained on these pairs
    leads from the force field to the method that relaxed the data. Structures that are not periodic are then
    turned and moved so that they lie on the relaxed ones as well as they can.

    Parameters
    ----------
    data : Dataset or what `load_dataset` takes
        Relaxed structures; for "mmff" molecules whose bonds are known, as for ``task="conformers"`` of
        `paths`.
    by : {"distorted", "mmff"}
        How the unrelaxed ones are made.
    size : float
        For "distorted": standard deviation of each component of the random vectors in Å.
    seed : int
        For "distorted": seed of the random vectors.
    progress : bool
        Show a progress bar.
    **options
        Options of the reader, if `data` are files.

    Returns
    -------
    Dataset
        Positions are those of the unrelaxed structures; the quantity ``relaxed`` has the given ones.

    Raises
    ------
    ConfigError
        For values of another type or out of range.
    DataError
        For "mmff": if bonds are not known, the force field lacks an atom type, or does not converge.

    Examples
    --------
    >>> from molequi import Graph
    >>> water = Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
    >>> pair = unrelaxed([water])[0]
    >>> pair.pos.shape, bool((pair.targets["relaxed"] == water.pos).all())
    (torch.Size([3, 3]), True)
    """
    given = {"by": by, "size": size, "seed": seed, "progress": progress}
    check_call(unrelaxed, given, where="unrelaxed", leave_out=("data",))
    found = load_molecules(data, **options) if by == "mmff" else load_dataset(data, only=(), **options)
    mols = mols_of(found) if by == "mmff" else [None] * len(found)
    generator = torch.Generator().manual_seed(seed)
    graphs = []
    with ProgressBar("unrelaxed", len(found), unit="structure", show=progress) as bar:
        for mol, graph, origin in zip(mols, found, found.origins):
            if mol is None:
                noise = torch.randn(graph.pos.shape, generator=generator, dtype=graph.pos.dtype)
                start = graph.pos + size * (noise - noise.mean(0))
            else:
                start = _by_mmff(mol, origin)
            if graph.pbc is None:
                start = laid_on(start, graph.pos)
            plain = graph.without("edge", "pair").replace(x=None if mol else graph.x, pos=start)
            graphs.append(plain.replace(targets={"relaxed": graph.pos}))
            bar.advance()
    return Dataset(
        graphs,
        quantities={"relaxed": RELAXED},
        info=found.info,
        origins=found.origins,
        sources=found.sources,
        reading=found.reading,
        allow=[*found.allow, "close-atoms"],
    )


def laid_on(pos: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Positions turned and moved so that they lie on others as well as they can.

    Parameters
    ----------
    pos, other : Tensor, shape (N, 3)
        Positions of the same atoms.
    """
    batch = torch.zeros(len(pos), dtype=torch.int64)
    own = centered(pos, batch, 1)
    turn = rotations(own, centered(other, batch, 1), batch, 1)[0]
    return own @ turn.T + other.mean(0)


def _by_mmff(mol: Any, where: str) -> torch.Tensor:
    """The geometry of the nearest minimum of MMFF94."""
    from rdkit.Chem import rdForceFieldHelpers

    if not rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
        raise DataError(f"{where}: MMFF94 lacks an atom type of this molecule; leave it out")
    if rdForceFieldHelpers.MMFFOptimizeMolecule(mol, maxIters=2000):
        raise DataError(f"{where}: MMFF94 does not converge for this molecule; leave it out")
    return torch.as_tensor(mol.GetConformer().GetPositions(), dtype=torch.float64)
