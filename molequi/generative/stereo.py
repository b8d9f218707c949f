"""The molecular graph as a condition of conformers: bonds, distances in the graph, stereochemistry.

A network that is equivariant under O(3) predicts the same for a molecule and its mirror image, so that its
samples have both with equal probability. Here the network reads, beside the positions, the volume that the
four corners of each stereocenter span in the order that their chirality gives, and the directions in which
the volume grows. Corners are the neighbors, and of a center with three neighbors and a lone pair, such as the
sulfur of a sulfoxide, the center itself, which lies on the side of the lone pair. A volume changes its sign
in the mirror image and the given order does not, so that the velocity distinguishes both, with any backbone:
the whole is equivariant under SO(3).
"""

import math
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.errors import DataError
from molequi.graph import Graph
from molequi.quantities import SYMBOLS
from molequi.readers.conformers import BOND_FEATURES

KINDS = ("SINGLE", "DOUBLE", "TRIPLE", "AROMATIC")
# Columns of pair_attr: four kinds of bonds, two and three bonds apart, the inverse number of bonds, and cis
# (1) or trans (-1) at a double bond.
COLUMNS = ("single", "double", "triple", "aromatic", "second", "third", "inverse", "cis")
# Columns of x: 1 or -1 for a stereocenter, and the canonical rank, which equivalent atoms share. Where two
# neighbors of a center share it, as in 1,3-dimethylcyclobutane, ranks of the neighbors differ by TIE, so that
# they have an order. Which comes first changes the sign and the order together, and the volume not at all.
OF_NODES = ("parity", "rank")
TIE = 1e-3
MOST_ISOMERS = 32
# A bond is not longer than this times the sum of covalent radii (of RDKit).
LONGEST = 1.5


def graph_of(mol: Any, conformer: int | None = None) -> Graph:
    """The graph of a molecule with all pairs of its atoms as pairs with features.

    Parameters
    ----------
    mol : rdkit.Chem.Mol
        A molecule with all hydrogens.
    conformer : int, optional
        Conformer whose positions it gets, centered. None: zeros, and the stereochemistry of the molecule.

    Raises
    ------
    DataError
        For bonds of other kinds, and for stereochemistry that is neither that of a tetrahedral center nor cis
        or trans at a double bond.
    """
    from rdkit import Chem

    n = mol.GetNumAtoms()
    steps = torch.as_tensor(np.minimum(Chem.GetDistanceMatrix(mol), 1e3))
    attr = torch.zeros(n, n, len(COLUMNS), dtype=torch.float64)
    for bond in mol.GetBonds():
        kind = bond.GetBondType().name
        if kind not in KINDS:
            raise DataError(f"bond {bond.GetIdx()} is {kind.lower()}; wanted {', '.join(KINDS).lower()}")
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        attr[i, j, KINDS.index(kind)] = attr[j, i, KINDS.index(kind)] = 1.0
        if sign := _side(bond):
            a, b = bond.GetStereoAtoms()
            attr[a, b, 7] = attr[b, a, 7] = sign
    attr[:, :, 4], attr[:, :, 5] = (steps == 2).double(), (steps == 3).double()
    attr[:, :, 6] = torch.where(steps > 0, 1 / steps.clamp(min=1), 0.0)
    pairs = (~torch.eye(n, dtype=torch.bool)).nonzero().flip(1).T  # sorted by receiver, then sender
    pos = torch.zeros(n, 3, dtype=torch.float64)
    if conformer is not None:
        pos = torch.as_tensor(mol.GetConformer(conformer).GetPositions(), dtype=torch.float64)
        pos = pos - pos.mean(0)
    return Graph.single(
        pos,
        [a.GetAtomicNum() for a in mol.GetAtoms()],
        x=_parities(mol),
        pair_index=pairs,
        pair_attr=attr[pairs[0], pairs[1]],
    )


def _side(bond: Any) -> int:
    """1 for a double bond whose stereo atoms are on one side, -1 for two sides, 0 without stereochemistry."""
    name = bond.GetStereo().name
    sides = {"STEREOZ": 1, "STEREOCIS": 1, "STEREOE": -1, "STEREOTRANS": -1, "STEREONONE": 0, "STEREOANY": 0}
    if name not in sides or (sides[name] and len(bond.GetStereoAtoms()) != 2):
        raise DataError(
            f"bond {bond.GetIdx()} has the stereochemistry {name}, which conformers cannot be given; wanted "
            "cis or trans at a double bond; leave it out of the SMILES to sample both"
        )
    return sides[name]


def _parities(mol: Any) -> Float[Tensor, "N 2"]:
    """For each tetrahedral center 1 if its corners, in the order of their ranks, span a positive volume,
    and -1 for a negative one; 0 for other atoms. And the ranks, divided by the number of atoms.

    Canonical ranks do not depend on the order of the atoms. Of three neighbors the center is the last corner.
    """
    from rdkit import Chem

    ranks = [float(r) for r in Chem.CanonicalRankAtoms(mol, breakTies=False, includeChirality=True)]
    total = list(Chem.CanonicalRankAtoms(mol, breakTies=True, includeChirality=True))
    signs = {"CHI_UNSPECIFIED": 0, "CHI_TETRAHEDRAL_CW": -1, "CHI_TETRAHEDRAL_CCW": 1}
    neighbors: dict[int, list[int]] = {}
    for atom in mol.GetAtoms():
        tag, near = atom.GetChiralTag().name, [n.GetIdx() for n in atom.GetNeighbors()]
        if tag not in signs or (signs[tag] and len(near) not in (3, 4)):
            raise DataError(
                f"atom {atom.GetIdx()} ({atom.GetSymbol()}) with {len(near)} neighbors has the "
                f"stereochemistry {tag}, which conformers cannot be given; wanted tetrahedral centers; leave "
                "it out of the SMILES to sample any"
            )
        if signs[tag]:
            neighbors[atom.GetIdx()] = near
    for near in neighbors.values():
        if len({ranks[k] for k in near}) < len(near):
            for place, k in enumerate(sorted(near, key=total.__getitem__)):
                ranks[k] = int(ranks[k]) + TIE * place
    parities = [0.0] * len(ranks)
    for center, near in neighbors.items():
        # RDKit: seen from the first neighbor, the others are clockwise (CW), so that the volume is negative.
        swaps = sum(ranks[a] > ranks[b] for k, a in enumerate(near) for b in near[k + 1 :])
        parities[center] = float(signs[mol.GetAtomWithIdx(center).GetChiralTag().name] * (-1) ** swaps)
    return torch.tensor([parities, [r / len(ranks) for r in ranks]], dtype=torch.float64).T.contiguous()


def volumes(graph: Graph) -> tuple[Float[Tensor, "N"], Float[Tensor, "N 3"]]:
    """Volume of the tetrahedron around each stereocenter, and the directions in which volumes grow.

    Parameters
    ----------
    graph : Graph
        Structures with the pairs of `graph_of`.

    Returns
    -------
    volume : Tensor, shape (N,)
        asinh of six times the volume in Å³, positive for the chirality that the molecule has; 0 for an atom
        that is no center.
    growth : Tensor, shape (N, 3)
        Gradient of the volumes in Å², shortened below 1 by g / (1 + ‖g‖).
    """
    assert graph.pair_index is not None and graph.pair_attr is not None and graph.x is not None
    volume, growth = graph.pos.new_zeros(graph.num_nodes), torch.zeros_like(graph.pos)
    parity, rank = graph.x[:, -2], graph.x[:, -1]
    sender, receiver = graph.pair_index
    chosen = graph.pair_attr[:, : len(KINDS)].any(1) & (parity[receiver] != 0)
    if not bool(chosen.any()):
        return volume, growth
    sender, receiver = sender[chosen], receiver[chosen]
    three = (torch.bincount(receiver, minlength=graph.num_nodes) == 3).nonzero()[:, 0]
    last = rank.new_full((len(three),), math.inf)  # the place of a center that is its own last corner
    place = torch.cat([rank[sender], last])
    sender, receiver = torch.cat([sender, three]), torch.cat([receiver, three])
    order = torch.argsort(place, stable=True)
    order = order[torch.argsort(receiver[order], stable=True)]
    corners, center = sender[order].reshape(-1, 4), receiver[order].reshape(-1, 4)[:, 0]
    p = graph.pos[corners]  # (C, 4, 3)
    a, b, c = (p[:, k] - p[:, 3] for k in range(3))
    slopes = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], 1)
    slopes = slopes * parity[center][:, None, None]
    six = (a * slopes[:, 0]).sum(1)
    slopes = torch.cat([slopes, -slopes.sum(1, keepdim=True)], 1)  # (C, 4, 3)
    volume = volume.index_copy(0, center, torch.asinh(six))
    growth = growth.index_add(0, corners.flatten(), slopes.flatten(0, 1))
    return volume, growth / (1 + growth.norm(dim=1, keepdim=True))


def right_handed(graph: Graph) -> bool:
    """Whether the stereochemistry of structures is that of their molecules: at centers, and cis or trans.

    Parameters
    ----------
    graph : Graph
        Structures with the pairs and the columns of `graph_of`.
    """
    assert graph.x is not None
    return bool((volumes(graph)[0][graph.x[:, -2] != 0] > 0).all()) and _right_sides(graph)


def _right_sides(graph: Graph) -> bool:
    """Whether atoms at both ends of double bonds are on one side where `pair_attr` says cis, and on two for
    trans.
    """
    assert graph.pair_index is not None and graph.pair_attr is not None
    kinds, side = graph.pair_attr[:, : len(KINDS)], graph.pair_attr[:, COLUMNS.index("cis")]
    first, second = graph.pair_index
    double = {*map(tuple, graph.pair_index[:, kinds[:, KINDS.index("DOUBLE")] == 1].T.tolist())}
    for pair in ((side != 0) & (first < second)).nonzero()[:, 0].tolist():
        a, b = int(first[pair]), int(second[pair])
        ends = [first[kinds.any(1) & (second == k)].tolist() for k in (a, b)]
        i, j = next((i, j) for i in ends[0] for j in ends[1] if (i, j) in double)
        axis = torch.nn.functional.normalize(graph.pos[j] - graph.pos[i], dim=0)
        one, other = graph.pos[a] - graph.pos[i], graph.pos[b] - graph.pos[j]
        across = one @ other - (one @ axis) * (other @ axis)  # > 0: the dihedral angle is below 90°
        if not float(across * side[pair]) > 0:
            return False
    return True


def ends_of_bonds(graph: Graph) -> Int[Tensor, "N"]:
    """Equal numbers for atoms of one element that have one bond, of the same kind to the same atom.

    Parameters
    ----------
    graph : Graph
        Structures with the pairs of `graph_of`.
    """
    assert graph.pair_index is not None and graph.pair_attr is not None
    kinds = graph.pair_attr[:, : len(KINDS)]
    bonded = kinds.any(1)
    parent, atom = graph.pair_index[:, bonded]
    single = torch.bincount(atom, minlength=graph.num_nodes) == 1
    own = torch.arange(graph.num_nodes, device=atom.device)
    width = len(KINDS) * len(SYMBOLS)
    key = parent * width + kinds[bonded].argmax(1) * len(SYMBOLS) + graph.z[atom]
    return own.index_copy(0, atom, torch.where(single[atom], graph.num_nodes + key, atom))


def with_graphs(data: Dataset) -> list[Graph]:
    """The structures of data with the pairs of `graph_of`, centered.

    Bonds are those of `pair_attr` as `read_sdf`, `read_mols` and `read_smiles` give it with
    ``features=True``. Without it, they are those of the column ``smiles``, whose atoms, with hydrogens at the
    end, must have the order of the structure. Stereochemistry is that of the positions.

    Parameters
    ----------
    data : Dataset
        Molecules.

    Raises
    ------
    DataError
        If bonds are not known, or do not fit the positions, and as `graph_of`.
    """
    found = []
    for mol, origin in zip(mols_of(data), data.origins):
        try:
            found.append(graph_of(mol, 0))
        except DataError as error:
            raise DataError(f"{origin}: {error}") from error
    return found


def mols_of(data: Dataset) -> list[Any]:
    """The molecules of data, with their positions as the only conformer.

    Parameters
    ----------
    data : Dataset
        As for `with_graphs`.
    """
    from rdkit import Chem, rdBase

    smiles = data.info.get("smiles")
    found = []
    with rdBase.BlockLogs():
        for k, graph in enumerate(data):
            where = data.origins[k]
            if graph.pair_attr is not None and graph.pair_attr.shape[1] == len(BOND_FEATURES):
                mol = _from_pairs(graph)
            elif smiles is not None and smiles[k] is not None:
                mol = _from_smiles(graph, str(smiles[k]), where)
            else:
                raise DataError(
                    f"{where}: no bonds; conformers need the molecular graph: read molecules with "
                    "features=True (mq.read_sdf, mq.read_smiles, mq.read_mols), or data with a column "
                    "'smiles'"
                )
            if Chem.SanitizeMol(mol, catchErrors=True):
                raise DataError(f"{where}: RDKit finds its bonds impossible")
            mol.AddConformer(_conformer(graph.pos), assignId=True)
            _check_lengths(mol, graph, where)
            Chem.AssignStereochemistryFrom3D(mol, 0)
            _tag_the_rest(mol)
            found.append(mol)
    return found


def _tag_the_rest(mol: Any) -> None:
    """Tags of centers with a lone pair that RDKit knows and does not read from positions, such as phosphines;
    of nitrogen only in a ring of three, elsewhere it inverts.
    """
    from rdkit import Chem

    pos = torch.as_tensor(mol.GetConformer().GetPositions())
    for one in Chem.FindPotentialStereo(mol):
        if one.type != Chem.StereoType.Atom_Tetrahedral or one.specified != Chem.StereoSpecified.Unspecified:
            continue
        atom = mol.GetAtomWithIdx(one.centeredOn)
        near = [n.GetIdx() for n in atom.GetNeighbors()]
        if len(near) != 3 or (atom.GetSymbol() == "N" and not atom.IsInRingSize(3)):
            continue
        corners = pos[[*near, one.centeredOn]]
        volume = float(torch.linalg.det(corners[:3] - corners[3]))
        tag = "CHI_TETRAHEDRAL_CCW" if volume > 0 else "CHI_TETRAHEDRAL_CW"
        atom.SetChiralTag(getattr(Chem.ChiralType, tag))


def _from_pairs(graph: Graph) -> Any:
    """A molecule with the bonds of `pair_attr`; charges follow from the valences where RDKit needs them."""
    from rdkit import Chem

    assert graph.pair_index is not None and graph.pair_attr is not None
    mol = Chem.RWMol()
    for k, z in enumerate(graph.z.tolist()):
        atom = Chem.Atom(z)
        atom.SetNoImplicit(True)
        if graph.x is not None:
            atom.SetFormalCharge(int(graph.x[k, 1]))
        mol.AddAtom(atom)
    for (j, i), row in zip(graph.pair_index.T.tolist(), graph.pair_attr.tolist()):
        if j < i:
            kind = getattr(Chem.BondType, KINDS[row[: len(KINDS)].index(1.0)])
            mol.AddBond(j, i, kind)
            if kind == Chem.BondType.AROMATIC:
                mol.GetAtomWithIdx(i).SetIsAromatic(True)
                mol.GetAtomWithIdx(j).SetIsAromatic(True)
    return mol.GetMol()


def _from_smiles(graph: Graph, smiles: str, where: str) -> Any:
    from rdkit import Chem

    mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        raise DataError(f"{where}: RDKit cannot read its SMILES {smiles!r}")
    mol = Chem.AddHs(mol)
    if [a.GetAtomicNum() for a in mol.GetAtoms()] != graph.z.tolist():
        raise DataError(
            f"{where}: its atoms are not in the order of its SMILES {smiles!r} with hydrogens at the end, "
            "so that bonds cannot be assigned; give the molecules as an SDF file or as RDKit molecules"
        )
    mol.RemoveAllConformers()
    return mol


def _check_lengths(mol: Any, graph: Graph, where: str) -> None:
    """Raise DataError for a bond as long as no bond of its elements is."""
    from rdkit import Chem

    radius = Chem.GetPeriodicTable().GetRcovalent
    for bond in mol.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        length = float((graph.pos[i] - graph.pos[j]).norm())
        if length > LONGEST * (radius(int(graph.z[i])) + radius(int(graph.z[j]))):
            raise DataError(
                f"{where}: its atoms {i} and {j} are bonded and {length:.2f} Å apart; are its atoms in the "
                "order of its SMILES?"
            )


def _conformer(pos: Tensor) -> Any:
    from rdkit import Chem

    conformer = Chem.Conformer(len(pos))
    conformer.SetPositions(np.ascontiguousarray(pos.numpy(), dtype=np.float64))
    return conformer


def with_positions(mol: Any, pos: Tensor) -> Any:
    """A copy of a molecule with one conformer.

    Parameters
    ----------
    mol : rdkit.Chem.Mol
        The molecule.
    pos : Tensor, shape (N, 3)
        Positions.
    """
    from rdkit import Chem

    copy = Chem.Mol(mol)
    copy.RemoveAllConformers()
    copy.AddConformer(_conformer(pos), assignId=True)
    return copy


def graphs_of(what: Any, each: int = 1) -> list[tuple[Graph, str, Any]]:
    """Graphs, names and molecules to sample, without positions.

    Stereochemistry that a SMILES leaves open has no value: the samples of such a molecule are those of its
    stereoisomers in turn, of those that RDKit can embed.

    Parameters
    ----------
    what : str, sequence, Dataset or path
        A SMILES, a list of SMILES or RDKit molecules, a file with a SMILES in the first column of each line
        (.smi), or data as for `with_graphs`.
    each : int
        Number of samples of each.

    Raises
    ------
    DataError
        For what is none of these.
    """
    from rdkit import Chem, rdBase

    found = []
    with rdBase.BlockLogs():
        if isinstance(what, Dataset):
            items: Sequence[Any] = mols_of(what)
        elif isinstance(what, str) and not what.endswith((".smi", ".smiles", ".sdf", ".mol")):
            items = [what]
        elif isinstance(what, (list, tuple)):
            items = what
        else:
            items = _of_file(str(what))
        for k, item in enumerate(items):
            mol = item
            if isinstance(item, str):
                mol = Chem.MolFromSmiles(item)
                if mol is None:
                    raise DataError(f"structure {k}: RDKit cannot read the SMILES {item!r}")
            if not isinstance(mol, Chem.Mol):
                raise DataError(
                    f"structure {k} is {type(item).__name__}; wanted SMILES, RDKit molecules or data with "
                    "SMILES"
                )
            name = Chem.MolToSmiles(Chem.RemoveHs(mol))
            isomers = [(graph_of(m), name, m) for m in _isomers(Chem.AddHs(mol))]
            found += list(islice(cycle(isomers), each))
    return found


def _of_file(path: str) -> list[Any]:
    from rdkit import Chem

    if path.endswith((".sdf", ".mol")):
        try:
            return list(Chem.SDMolSupplier(path, removeHs=False))
        except OSError as error:
            raise DataError(f"{path}: cannot be read; wanted a file of molecules") from error
    return lines_of(path)


def lines_of(path: str) -> list[str]:
    """The first word of each line of a file of SMILES.

    Parameters
    ----------
    path : str
        The file.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return [line.split()[0] for line in file if line.strip()]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; wanted SMILES, one a line") from error


def _isomers(mol: Any) -> list[Any]:
    """The molecule itself, or its stereoisomers where the stereochemistry of a center is open."""
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom
    from rdkit.Chem.EnumerateStereoisomers import EnumerateStereoisomers, StereoEnumerationOptions

    Chem.AssignStereochemistry(mol, cleanIt=True, force=True, flagPossibleStereoCenters=True)
    open_ones = [s for s in Chem.FindPotentialStereo(mol) if s.specified == Chem.StereoSpecified.Unspecified]
    if not open_ones:
        return [mol]
    options = StereoEnumerationOptions(
        tryEmbedding=True, onlyUnassigned=True, maxIsomers=MOST_ISOMERS, rand=0
    )
    found = list(EnumerateStereoisomers(mol, options=options))
    if found:
        return found
    # Of some cages no combination can be embedded: the stereochemistry is that of any geometry.
    mol = Chem.Mol(mol)
    if not rdDistGeom.EmbedMolecule(mol, randomSeed=0):
        Chem.AssignStereochemistryFrom3D(mol, 0)
        _tag_the_rest(mol)
        mol.RemoveAllConformers()
    return [mol]
