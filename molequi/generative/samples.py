"""What `sample` returns: structures, their files and their quality."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from molequi.data.dataset import Dataset
from molequi.errors import ConfigError, DataError
from molequi.generative.bonds import molecule_of
from molequi.generative.flow import Task
from molequi.graph import Graph
from molequi.quantities import SYMBOLS
from molequi.readers.ase import to_atoms
from molequi.util.files import check_target, write_results
from molequi.util.html import html_heading, html_table
from molequi.util.tables import text_table

if TYPE_CHECKING:
    from molequi.generative.conformers import ConformerQuality
    from molequi.generative.quality import Quality

_SHOWN = 10


@dataclass(frozen=True, repr=False)
class Samples(Sequence[Graph]):
    """Generated structures. ``samples[3]`` is a Graph; printed, a summary.

    Parameters
    ----------
    graphs : tuple of Graph
        The structures.
    task : {"molecules", "conformers", "relaxation"}
        Task of the flow.
    names : tuple of str
        SMILES of a conformer, origin of an unrelaxed structure; empty for "molecules".
    mols : tuple of rdkit.Chem.Mol or None
        The molecule of each conformer.
    starts : tuple of Graph
        For "relaxation": the unrelaxed structures.
    wrong : int
        Number of conformers that have another stereochemistry than their molecule after the last attempt.
    """

    graphs: tuple[Graph, ...]
    task: Task
    names: tuple[str, ...]
    mols: tuple[Any, ...]
    starts: tuple[Graph, ...] = ()
    wrong: int = 0

    def __len__(self) -> int:
        return len(self.graphs)

    @overload
    def __getitem__(self, index: int) -> Graph: ...

    @overload
    def __getitem__(self, index: slice) -> "Sequence[Graph]": ...

    def __getitem__(self, index: Any) -> Any:
        return self.graphs[index]

    def __iter__(self) -> Iterator[Graph]:
        return iter(self.graphs)

    @property
    def dataset(self) -> Dataset:
        """The structures as a Dataset, with their names."""
        return Dataset(self.graphs, info={"name": list(self.names)} if any(self.names) else {})

    def to_mols(self) -> list[Any]:
        """RDKit molecules with positions, not sanitized: the given ones, or with bonds from distances.

        Returns
        -------
        list of rdkit.Chem.Mol
            See `molequi.generative.bonds.molecule_of`.
        """
        from molequi.generative.stereo import with_positions

        return [
            molecule_of(g.z, g.pos) if mol is None else with_positions(mol, g.pos)
            for g, mol in zip(self.graphs, self.mols)
        ]

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the structures to a file; an existing file is replaced, as a whole or not at all.

        Parameters
        ----------
        path : path
            .sdf for molecules, .xyz or .extxyz for any structures.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        ConfigError
            For another suffix, for an SDF of relaxed structures, and if the file cannot be written.
        """
        path = check_file(path, self.task)
        write_results(path, self._write_sdf if path.suffix == ".sdf" else self._write_xyz)
        return path

    def _write_sdf(self, path: Path) -> None:
        from rdkit import Chem

        with Chem.SDWriter(str(path)) as writer:
            writer.SetKekulize(False)
            for k, mol in enumerate(self.to_mols()):
                mol.UpdatePropertyCache(strict=False)
                mol.SetProp("_Name", self.names[k] or f"sample {k}")
                writer.write(mol)

    def _write_xyz(self, path: Path) -> None:
        for name, graph in zip(self.names, self.graphs):
            atoms = to_atoms(graph, {})
            if name:
                atoms.info["name"] = name
            atoms.write(path, format="extxyz", append=True)

    def quality(
        self, known: Sequence[str] = (), *, posebusters: bool = False, energies: Any = None
    ) -> "Quality":
        """Validity, stability, uniqueness and novelty of molecules, see `molequi.generative.quality_of`.

        Parameters
        ----------
        known : sequence of str
            SMILES of the training molecules, for the novelty.
        posebusters : bool
            Make the checks of the package posebusters, too.
        energies : optional
            What relaxes the molecules for their strain, such as ``"gfn2-xtb"`` or a model.
        """
        from molequi.generative.quality import quality_of

        return quality_of(self.graphs, known, posebusters=posebusters, energies=energies)

    def compared(self, references: Dataset, **options: Any) -> "ConformerQuality":
        """Coverage and matching of conformers, see `molequi.generative.conformer_quality`.

        Raises ConfigError for samples of another task.

        Parameters
        ----------
        references : Dataset
            The reference conformers.
        **options
            Options of that function.
        """
        from molequi.generative.conformers import conformer_quality

        if self.task != "conformers":
            raise ConfigError(
                f"Samples.compared: these are samples of {self.task!r}; conformers alone have references of "
                "the same molecule"
                + ("; wanted samples.quality(known=…)" if self.task == "molecules" else "")
            )
        return conformer_quality(self, references, **options)

    def _rows(self) -> list[list[str]]:
        rows = []
        for k, graph in enumerate(self.graphs[:_SHOWN]):
            numbers, counts = torch.unique(graph.z, return_counts=True)
            formula = " ".join(f"{SYMBOLS[z]}{n}" for z, n in zip(numbers.tolist(), counts.tolist()))
            rows.append([str(k), self.names[k], formula])
        return rows

    def _title(self) -> str:
        more = f", the first {_SHOWN}" if len(self) > _SHOWN else ""
        wrong = f", {self.wrong} with wrong stereochemistry" if self.wrong else ""
        return f"{len(self)} samples ({self.task}){wrong}{more}"

    def __str__(self) -> str:
        return "\n".join([self._title(), *text_table(["", "name", "formula"], self._rows(), left=(1, 2))])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_heading(self._title()) + html_table(["", "name", "formula"], self._rows(), left=(1, 2))


def check_file(path: str | os.PathLike[str], task: Task) -> Path:
    """The path of a file of samples.

    Parameters
    ----------
    path : path
        What was given.
    task : {"molecules", "conformers", "relaxation"}
        Task of the flow.

    Raises
    ------
    ConfigError
        For a suffix that is not written, and if the file cannot be written or there is no such folder.
    """
    path = Path(path)
    if path.suffix not in (".sdf", ".xyz", ".extxyz"):
        raise ConfigError(f"{path}: wanted a name with .sdf, .xyz or .extxyz")
    if path.suffix == ".sdf" and task == "relaxation":
        raise ConfigError(
            f"{path}: relaxed structures have no bonds, and may be periodic; wanted .xyz or .extxyz"
        )
    check_target(path)
    return path


def read_samples(path: str | os.PathLike[str]) -> list[Graph]:
    """The structures of a file that `Samples.write` made.

    Parameters
    ----------
    path : path
        The file.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    path = Path(path)
    if not path.is_file() or not path.stat().st_size:
        raise DataError(f"{path}: {'is empty' if path.is_file() else 'no such file'}; wanted structures")
    if path.suffix == ".sdf":
        from rdkit import Chem

        found = []
        for k, mol in enumerate(Chem.SDMolSupplier(str(path), removeHs=False, sanitize=False)):
            if mol is None:
                raise DataError(f"{path}, molecule {k}: RDKit cannot read it")
            z = [a.GetAtomicNum() for a in mol.GetAtoms()]
            found.append(Graph.single(mol.GetConformer().GetPositions(), z))
        return found
    from molequi.readers.ase import read_extxyz

    return list(read_extxyz(path, allow=["close-atoms"]))
