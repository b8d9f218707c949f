"""Descriptors: the features that a trained model computes for each atom or structure, by irrep."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from molequi.checkpoint import check_order
from molequi.data.dataset import Dataset
from molequi.domain import DomainCheck, read_as_trained, seen_in, totals_taken
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, did_you_mean
from molequi.inference.layer_features import LayerFeatures
from molequi.inference.molecule_predictions import column_of_table, column_of_training
from molequi.inference.predictions import Trained, check_elements, evaluation_batches, loaded
from molequi.inference.table_files import given_names
from molequi.inference.table_parts import Cell
from molequi.model import Model
from molequi.ops.segment import segment_mean, segment_sum
from molequi.quantities import SYMBOLS
from molequi.readers import read_smiles
from molequi.readers.load import reader_of
from molequi.util.optional import require
from molequi.util.progress import ProgressBar

Pool = Literal["mean", "sum"]
ARGUMENTS = (
    "out",
    "layer",
    "irreps",
    "pool",
    "member",
    "as_frame",
    "device",
    "dtype",
    "batch_edges",
    "progress",
)
PART_ATOMS = 10_000  # about as many atoms are in memory at a time


@dataclass(frozen=True, kw_only=True)
class Descriptors:
    """Descriptors of atoms or structures, by irrep.

    Parameters
    ----------
    blocks : mapping of str to array, shape (rows, C, m)
        C channels of an irrep with m components, by irrep. A row is an atom, in the order of structures and
        of their atoms, or with `pool` a structure.
    elements : array of int, shape (atoms,)
        Atomic numbers of all atoms; 0 for plain points.
    offsets : array of int, shape (structures + 1,)
        The atoms of structure k are ``offsets[k]`` to ``offsets[k + 1] - 1``.
    origins : sequence of str
        Where each structure came from, such as ``"test.xyz: frame 3"``.
    layer : str
        The layer; ``"output"`` is what heads read.
    pool : {"mean", "sum"} or None
        How atoms were pooled; None: a row for each atom.
    group : str
        The symmetry that the model declares. Blocks transform as their names say under its elements alone:
        under none of them but the identity for "C1".
    info : mapping of str to list
        Columns of the data with a value for each structure.
    """

    blocks: Mapping[str, np.ndarray]
    elements: np.ndarray
    offsets: np.ndarray
    origins: Sequence[str]
    layer: str
    pool: Pool | None
    group: str
    info: Mapping[str, list] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        rows = self.pool or f"{len(self.elements)} atoms"
        return f"Descriptors({rows} of {len(self)} structures, layer {self.layer!r}, {self.layout})"

    @property
    def layout(self) -> str:
        """The irreps with their channels in the notation of e3nn: ``64x0e+64x1o``."""
        return "+".join(f"{block.shape[1]}x{irrep}" for irrep, block in self.blocks.items())

    @property
    def invariants(self) -> np.ndarray:
        """The invariants "0e", shape (rows, C).

        Raises
        ------
        ConfigError
            If the layer has none, or if they were not asked for.
        """
        if "0e" not in self.blocks:
            raise ConfigError(
                f"these descriptors have {', '.join(self.blocks)} and no invariants '0e'; ask for them with "
                "irreps=['0e'], or choose another layer"
            )
        return np.asarray(self.blocks["0e"][:, :, 0])

    def of(self, structure: int) -> dict[str, np.ndarray]:
        """The blocks of one structure, shape (atoms, C, m); with `pool` (C, m).

        Parameters
        ----------
        structure : int
            Its number.
        """
        rows: Any = structure
        if self.pool is None:
            number = range(len(self))[structure]
            rows = slice(int(self.offsets[number]), int(self.offsets[number + 1]))
        return {irrep: block[rows] for irrep, block in self.blocks.items()}

    def frame(self) -> Any:
        """A pandas.DataFrame of the invariants, in the columns ``0e_0``, ``0e_1``, …

        A row is an atom, with the columns ``structure``, ``atom`` (its number in the structure) and
        ``element``; with `pool` it is a structure, with its ``origin``, its number of ``atoms`` and the
        columns of `info` (``_given`` is appended to a name that is taken).

        Raises
        ------
        MissingPackageError
            If pandas is not installed.
        ConfigError
            If there are no invariants.
        """
        require("pandas", "pandas", "descriptors(as_frame=True)")
        import pandas as pd

        values = self.invariants
        names = invariant_names(values.shape[1])
        labels = {cell.header: column for cell, column in self.row_labels(names)}
        made = pd.concat([pd.DataFrame(labels), pd.DataFrame(values, columns=names)], axis=1)
        made.attrs.update(layer=self.layer, pool=self.pool, group=self.group)
        return made

    @property
    def rows(self) -> int:
        """Number of rows: of atoms, or with `pool` of structures."""
        return len(self) if self.pool else len(self.elements)

    def row_labels(
        self, names: Sequence[str], rows: slice = slice(None)
    ) -> list[tuple[Cell, np.ndarray | list[Any]]]:
        """The columns of a table that say what each row belongs to, with the values of some rows.

        Parameters
        ----------
        names : sequence of str
            The other columns of the table.
        rows : slice
            The rows.
        """
        chosen = np.arange(self.rows)[rows]
        if self.pool is None:
            structure = np.searchsorted(self.offsets, chosen, side="right") - 1
            return [
                (Cell("structure", "count"), structure),
                (Cell("atom", "count"), chosen - self.offsets[structure]),
                (Cell("element", "text"), [SYMBOLS[z] for z in self.elements[chosen]]),
            ]
        found: list[tuple[Cell, np.ndarray | list[Any]]] = [
            (Cell("structure", "count"), chosen),
            (Cell("origin", "text"), [self.origins[k] for k in chosen]),
            (Cell("atoms", "count"), np.diff(self.offsets)[chosen]),
        ]
        taken = [cell.header for cell, _ in found]
        renamed = given_names(list(self.info), [*taken, *names], smiles="")
        for name, column in zip(renamed, self.info.values()):
            kind = "number" if all(_is_number(value) for value in column) else "text"
            found.append((Cell(name, kind), [column[k] for k in chosen]))
        return found


def invariant_names(channels: int) -> list[str]:
    """Names of the columns of invariants.

    Parameters
    ----------
    channels : int
        Number of channels.

    Examples
    --------
    >>> invariant_names(2)
    ['0e_0', '0e_1']
    """
    return [f"0e_{k}" for k in range(channels)]


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float, np.number)) and not isinstance(value, bool))


def descriptors(
    model: Trained,
    structures: Any,
    *,
    layer: str | None = None,
    irreps: Sequence[str] | None = None,
    pool: Pool | None = None,
    member: int | None = None,
    as_frame: bool = False,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    batch_edges: int | None = None,
    progress: bool = True,
    **options: Any,
) -> Any:
    """Descriptors of atoms or structures: the features of a model by irrep.

    They are what the network computes before its heads: numbers that do not change under rotations (``"0e"``,
    invariants), vectors (``"1o"``, components x, y, z), tensors (``"2e"``, five components) and so on, in
    the conventions of e3nn. If the structure is transformed by g, each channel of a block becomes D(g) times
    itself, with the Wigner matrix D of the irrep (`molequi.ops.irreps.wigner`), for all g of the symmetry
    group that the model declares. The order of channels has no meaning, and descriptors of different models
    cannot be compared with each other.

    `molequi.inference.write_descriptors` writes the same to a file, with bounded memory.

    Parameters
    ----------
    model : Model, Ensemble, str or Path
        The model, or its file. Each member of an ensemble has channels of its own, so that there is no mean
        of them: `member` chooses one.
    structures : object
        What `molequi.load_dataset` takes: a Dataset, ase.Atoms or Graphs or lists of them, files, a list of
        SMILES. Labels are not read. Each conformer of a molecule is a structure.
    layer : str, optional
        A layer that `Backbone.states` describes, such as ``"embedding"`` or ``"layers.0"``. By default
        what the heads read (``"output"``), the output of the last layer, for MACE and GauntACE with the
        invariants of all layers.
    irreps : sequence of str, optional
        The irreps that are kept, such as ``["0e"]``; by default all.
    pool : {"mean", "sum"}, optional
        Mean or sum over the atoms of each structure; by default there is a row for each atom. The sum is
        extensive.
    member : int, optional
        Number of the member of an ensemble, from 0.
    as_frame : bool
        Return a pandas.DataFrame of the invariants, see `Descriptors.frame`.
    device : {"auto", "cpu", "cuda", "cuda:1"}, optional
        Where the model runs; by default where it is, and a model of a file as "auto".
    dtype : {"float32", "float64"}, optional
        Precision of the computation; by default the one of the model.
    batch_edges : int, optional
        Largest number of edges in a batch.
    progress : bool
        Show a progress bar.
    **options
        Options of the reader. What changes the structures (such as ``normalize`` and ``conformers``) is as
        in the training by default.

    Returns
    -------
    Descriptors, or pandas.DataFrame

    Raises
    ------
    ConfigError
        For an unknown layer or irrep, a `member` of a single model, an ensemble without `member`, and if
        `as_frame` is wanted of descriptors without invariants.
    ModelError
        For elements that the model does not know.
    DataError
        For structures that are impossible.
    MissingPackageError
        If `as_frame` is wanted and pandas is not installed.

    Examples
    --------
    >>> import molequi as mq
    >>> model = mq.Model(mq.PaiNN(elements=["H", "C", "O"], cutoff=4.0, channels=8, layers=2), ["energy"])
    >>> found = mq.descriptors(model, mq.shipped("ethanol_300K.xyz"), index=":2", progress=False)
    >>> found
    Descriptors(18 atoms of 2 structures, layer 'output', 8x0e+8x1o)
    >>> found.of(0)["1o"].shape
    (9, 8, 3)
    """
    work = DescriptorWork(
        model, structures, layer, irreps, pool, member, device, dtype, batch_edges, options, "descriptors"
    )
    if as_frame:
        require("pandas", "pandas", "descriptors(as_frame=True)")
        work.check_table("as_frame=True")
    parts = [blocks for _, blocks in work.parts(progress=progress)]
    found = work.described({irrep: np.concatenate([part[irrep] for part in parts]) for irrep in parts[0]})
    return found.frame() if as_frame else found


class DescriptorWork:
    """The descriptors of structures, part by part.

    Parameters
    ----------
    model, structures, layer, irreps, pool, member, device, dtype, batch_edges, options
        As in `descriptors`.
    where : str
        The function that the user called, for messages.

    Raises
    ------
    ConfigError, ModelError, DataError
        As `descriptors`.
    """

    def __init__(
        self,
        model: Trained,
        structures: Any,
        layer: str | None,
        irreps: Sequence[str] | None,
        pool: Pool | None,
        member: int | None,
        device: str | torch.device | None,
        dtype: torch.dtype | str | None,
        batch_edges: int | None,
        options: Mapping[str, Any],
        where: str,
    ) -> None:
        check_order(where, model, structures)
        if pool not in (None, "mean", "sum"):
            raise ConfigError(f"pool={pool!r}: wanted 'mean' or 'sum', or None for a row for each atom")
        given = loaded(model, device, dtype)
        self.model, self.pool, self.batch_edges = _single(given, member), pool, batch_edges
        self.features = LayerFeatures(self.model, layer)
        options = dict(options)
        if reader_of(structures)[0] is read_smiles and options.get("column") is None:
            options["column"] = column_of_table(structures, column_of_training(given))
        self.data: Dataset = read_as_trained(
            given, structures, options, only=totals_taken(given), where=where, more=ARGUMENTS
        )
        check_elements(self.model, self.data)
        DomainCheck(given).warn(seen_in(self.data), stacklevel=4)
        self.irreps = self._checked(irreps)

    def _checked(self, irreps: Sequence[str] | None) -> list[str]:
        """The irreps that are kept, found in the features of the first structure."""
        first = self.data[:1].connected(self.model.cutoff, k=self.model.k, progress=False)
        _, graph = next(iter(evaluation_batches(self.model, first, (), self.batch_edges)))
        with torch.no_grad():
            there = list(self.features(graph))
        for irrep in irreps or ():
            if irrep not in there:
                raise ConfigError(
                    f"irreps: the layer {self.features.layer!r} has no {irrep!r}"
                    f"{did_you_mean(irrep, there)}; it has {', '.join(there)}"
                )
        return [irrep for irrep in there if not irreps or irrep in irreps]

    def check_table(self, what: str) -> None:
        """Check that there are invariants for a table.

        Parameters
        ----------
        what : str
            What the user asked for.

        Raises
        ------
        ConfigError
            If there are none.
        """
        if "0e" not in self.irreps:
            raise ConfigError(
                f"{what}: a table has invariants ('0e') alone, and these descriptors have "
                f"{', '.join(self.irreps)}; leave out irreps, or write all irreps as .npz"
            )
        self.irreps = ["0e"]

    def parts(self, start: int = 0, progress: bool = True) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Number of structures so far, and the blocks of the next ones.

        Parameters
        ----------
        start : int
            Structures that are left out at the beginning.
        progress : bool
            Show a progress bar.
        """
        total, ends = len(self.data), np.cumsum(self.data.counts)
        with ProgressBar("features", total, unit="structure", show=progress, start=start, delay=2) as bar:
            while start < total:
                before = int(ends[start - 1]) if start else 0
                stop = max(int(np.searchsorted(ends, before + PART_ATOMS, side="right")), start + 1)
                part = self.data[start:stop].connected(self.model.cutoff, k=self.model.k, progress=False)
                found = [
                    self._blocks(graph)
                    for _, graph in evaluation_batches(self.model, part, (), self.batch_edges)
                ]
                yield stop, {irrep: np.concatenate([one[irrep] for one in found]) for irrep in self.irreps}
                bar.advance(stop - start)
                start = stop

    def _blocks(self, graph: Any) -> dict[str, np.ndarray]:
        blocks = self.features(graph)
        pooled = {"mean": segment_mean, "sum": segment_sum}.get(self.pool or "")
        out = {}
        for irrep in self.irreps:
            block = blocks[irrep]
            if pooled is not None:  # sums in float64, so that they do not depend on the order of atoms
                block = pooled(block.double(), graph.batch, graph.num_graphs).to(block.dtype)
            out[irrep] = block.cpu().numpy()
        return out

    def described(self, blocks: Mapping[str, np.ndarray]) -> Descriptors:
        """Descriptors with what they belong to.

        Parameters
        ----------
        blocks : mapping of str to array
            All blocks.
        """
        return Descriptors(
            blocks=blocks,
            elements=self.data.graphs.z.numpy(),
            offsets=np.concatenate([[0], np.cumsum(self.data.counts)]),
            origins=list(self.data.origins),
            layer=self.features.layer,
            pool=self.pool,
            group=self.model.group,
            info={name: list(column) for name, column in self.data.info.items()},
        )


def _single(model: Model | Ensemble, member: int | None) -> Model:
    """The model whose features are asked for."""
    if isinstance(model, Model):
        if member is not None:
            raise ConfigError(f"member={member}: this is a single model; leave it out")
        return model
    count = len(model.members)
    member = 0 if count == 1 and member is None else member  # one model with a Laplace approximation
    if member is None or not 0 <= member < count:
        found = "an ensemble" if member is None else f"member={member}"
        raise ConfigError(
            f"{found}: each of the {count} members has channels of its own, so that their descriptors have "
            f"no mean; choose one of them: member=0 (up to {count - 1})"
        )
    chosen = model.members[member]
    assert isinstance(chosen, Model)
    return chosen
