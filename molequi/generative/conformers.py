"""The quality of conformers: coverage and matching beside RDKit's ETKDG with MMFF."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from molequi.data.dataset import Dataset
from molequi.errors import DataError
from molequi.generative.stereo import graph_of, mols_of, right_handed, with_positions
from molequi.generative.strain import Strain, strain_of
from molequi.util.html import html_heading, html_table
from molequi.util.tables import text_table

if TYPE_CHECKING:
    from molequi.generative.samples import Samples

THRESHOLDS = (0.5, 1.25)  # Å; of GEOM-QM9 and GEOM-Drugs (Ganea et al. 2021, arXiv 2106.07802)
ETKDG = "ETKDG + MMFF"


@dataclass(frozen=True)
class ConformerScores:
    """Scores of one source of conformers, means over molecules.

    The distance of two conformers is the smallest root mean square deviation of their heavy atoms, over
    rotations and over equivalent atoms.

    Parameters
    ----------
    coverage : mapping of float to (float, float)
        By the threshold in Å: fraction of the references with a generated conformer nearer than it (recall),
        and fraction of the generated ones with a reference nearer than it (precision).
    matching : (float, float)
        Mean distance in Å of a reference to the nearest generated conformer (recall), and of a generated one
        to the nearest reference (precision).
    molecules : int
        Number of molecules with conformers.
    chirality : float
        Fraction of the conformers whose stereochemistry, at centers and at double bonds, is that of the
        molecule.
    strain : Strain, optional
        Changes of energy on relaxation.
    """

    coverage: Mapping[float, tuple[float, float]]
    matching: tuple[float, float]
    molecules: int
    chirality: float
    strain: Strain | None = None


@dataclass(frozen=True, repr=False)
class ConformerQuality:
    """Scores of the conformers of a model, and of RDKit's; printed, a table.

    Parameters
    ----------
    scores : mapping of str to ConformerScores
        By the source: "model", and "ETKDG + MMFF".
    missing : int
        Molecules of the references without any sample.
    """

    scores: Mapping[str, ConformerScores]
    missing: int = 0

    def _table(self) -> tuple[list[str], list[list[str]]]:
        head = ["", "molecules"]
        for threshold in THRESHOLDS:
            head += [f"COV-R {threshold:g} Å", f"COV-P {threshold:g} Å"]
        head += ["MAT-R (Å)", "MAT-P (Å)", "stereochemistry kept", "mean strain (eV)"]
        rows = []
        for name, s in self.scores.items():
            row = [name, str(s.molecules)]
            for threshold in THRESHOLDS:
                row += [f"{100 * value:.1f} %" for value in s.coverage[threshold]]
            row += [f"{value:.3f}" for value in s.matching]
            row += [f"{100 * s.chirality:.1f} %", "" if s.strain is None else f"{s.strain.mean:.3f}"]
            rows.append(row)
        return head, rows

    def __str__(self) -> str:
        return "\n".join(text_table(*self._table()))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_heading("Conformers") + html_table(*self._table())


def conformer_quality(
    samples: "Samples",
    references: Dataset,
    *,
    etkdg: bool = True,
    seed: int = 0,
    energies: Any = None,
) -> ConformerQuality:
    """Coverage (COV) and matching (MAT) of sampled conformers against references.

    Molecules are those with the same canonical SMILES, stereochemistry included.

    Parameters
    ----------
    samples : Samples
        Conformers of these molecules.
    references : Dataset
        Reference conformers, as `molequi.generative.paths` takes them.
    etkdg : bool
        Measure RDKit's ETKDGv3 with MMFF beside them, with as many conformers of each molecule.
    seed : int
        Seed of ETKDG.
    energies : optional
        What relaxes the conformers for their strain, such as ``"gfn2-xtb"``.

    Returns
    -------
    ConformerQuality

    Raises
    ------
    DataError
        If `samples` are no result of `molequi.sample`, and if samples and references have no molecule in
        common.
    """
    from rdkit import rdBase

    if getattr(samples, "mols", None) is None:
        raise DataError(
            f"samples: found {type(samples).__name__} without molecular graphs; wanted conformers, as "
            "mq.sample(model, references, each=…) returns them"
        )

    with rdBase.BlockLogs():
        own: dict[str, list[Any]] = {}
        for mol, graph in zip(samples.mols, samples.graphs):
            own.setdefault(_key(mol), []).append(with_positions(mol, graph.pos))
        known: dict[str, list[Any]] = {}
        for mol in mols_of(references):
            known.setdefault(_key(mol), []).append(mol)
        common = [key for key in known if key in own]
        if not common:
            raise DataError(
                "samples and references have no molecule in common; sample those of the references: "
                "mq.sample(model, references, each=…)"
            )
        sources = {"model": {key: own[key] for key in common}}
        if etkdg:
            made = {key: _embedded(known[key][0], len(own[key]), seed) for key in common}
            sources[ETKDG] = {key: mols for key, mols in made.items() if mols}
        return ConformerQuality(
            {name: _scores(found, known, energies) for name, found in sources.items() if found},
            missing=len(known) - len(common),
        )


def _key(mol: Any) -> str:
    from rdkit import Chem

    return Chem.MolToSmiles(Chem.RemoveHs(mol))


def _embedded(mol: Any, count: int, seed: int) -> list[Any]:
    """Conformers by ETKDGv3 and MMFF94."""
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    mol = Chem.Mol(mol)
    parameters = rdDistGeom.ETKDGv3()
    parameters.randomSeed = seed  # type: ignore[assignment]  # the stubs have another type
    ids = list(rdDistGeom.EmbedMultipleConfs(mol, count, parameters))
    if ids and rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
        rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(mol, maxIters=1000)
    return [Chem.Mol(mol, confId=k) for k in ids]


def _scores(
    found: Mapping[str, Sequence[Any]], known: Mapping[str, Sequence[Any]], energies: Any
) -> ConformerScores:
    """Means over molecules."""
    from rdkit import Chem
    from rdkit.Chem import rdMolAlign

    recall, precision, right = [], [], []
    graphs = []
    for key, mols in found.items():
        bare = [Chem.RemoveHs(m) for m in mols]
        references = [Chem.RemoveHs(m) for m in known[key]]
        table = [
            [rdMolAlign.GetBestRMS(Chem.Mol(m), Chem.Mol(r), maxMatches=1000) for r in references]
            for m in bare
        ]
        precision.append([min(row) for row in table])
        recall.append([min(column) for column in zip(*table)])
        right += [_kept(m) for m in mols]
        if energies is not None:
            graphs += [_graph(m) for m in mols]
    coverage = {
        limit: (
            statistics.fmean(sum(d < limit for d in one) / len(one) for one in recall),
            statistics.fmean(sum(d < limit for d in one) / len(one) for one in precision),
        )
        for limit in THRESHOLDS
    }
    matching = (
        statistics.fmean(statistics.fmean(one) for one in recall),
        statistics.fmean(statistics.fmean(one) for one in precision),
    )
    return ConformerScores(
        coverage,
        matching,
        len(found),
        sum(right) / len(right) if right else math.nan,
        None if energies is None else strain_of(graphs, energies),
    )


def _kept(mol: Any) -> bool:
    """Whether the positions of a molecule have its stereochemistry, at centers and at double bonds."""
    return right_handed(graph_of(mol, mol.GetConformer().GetId()))


def _graph(mol: Any) -> Any:
    from molequi.graph import Graph

    return Graph.single(mol.GetConformer().GetPositions(), [a.GetAtomicNum() for a in mol.GetAtoms()])
