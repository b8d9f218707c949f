"""Geometries of molecules by RDKit, in separate processes.

This file is also the program of these processes. They exchange JSON, one line per molecule, and import RDKit
but neither torch nor molequi, so that they start quickly and need little memory. Separate processes have
these advantages: a crash inside RDKit costs one molecule only, the log of RDKit is caught, scripts need no
``if __name__ == "__main__"``, and the settings of RDKit in the user's process do not change.
"""

import base64
import contextlib
import hashlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from rdkit.Chem import Conformer, Mol

PROGRAM = __file__  # of the processes
NODE_FEATURES = ("aromatic", "formal_charge", "sp", "sp2", "sp3", "chirality")
BOND_FEATURES = ("single", "double", "triple", "aromatic", "conjugated", "ring")
# Elements for which the distance geometry and the torsions of ETKDG were made.
_EMBEDDABLE = (1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 32, 33, 34, 35, 52, 53)
_NONMETALS = (*_EMBEDDABLE, 2, 10, 18, 36, 54, 85, 86)
_STEPS = 2000  # of the force field
# Limits for what cannot be embedded, such as some cages: seconds of one conformer, which are also those of
# all that fail, and conformers that may fail before the first is found.
_SECONDS = 30
_FAILURES = 3
_SHORTEST = 0.6  # Å; H2 has 0.74
_PLANE = 0.01  # Å; atoms nearer to a plane lie in it
_TETRAHEDRAL = (5, 6, 7, 14, 15, 16, 32, 33, 34)  # elements that never have four neighbors in one plane
# Lengths of bonds relative to the sum of covalent radii, by the order of the bond. In molecules they are 0.75
# (nitrogen) to 1.25 (fluorine); atoms that move change them by a few percent.
_SHORTER = {"DOUBLE": 0.87, "TRIPLE": 0.78, "AROMATIC": 0.92}
_USUAL = (0.7, 1.3)
_MEDIAN = (0.8, 1.2)
# The same where all bonds are of one kind, so that they cannot be compared: in such molecules as CO2 or N2
# they are 0.93 to 1.06, and 0.98 to 1.14 by MMFF94, but for the weak ones of H2 and F2.
_ALONE, _WEAK = (0.88, 1.16), ("H H", "F F")
_ANGLE = 0.02  # degrees by which angles of drawings differ from 120 or 180
_DRAWN = (1.5, 1.54)  # Å; lengths of all bonds in drawings of RDKit and Marvin
_PYRAMIDS = (7, 8, 15, 16, 33, 34)  # elements with three single bonds that are never in a plane


class Refused(Exception):
    """A molecule that cannot be used; the message says why."""


def geometry(text: str, options: Mapping) -> dict:
    """Everything that is read from one molecule: elements, positions of each conformer, charge, multiplicity,
    names.

    Parameters
    ----------
    text : str
        A SMILES, a record of an SDF file, or the binary form of an RDKit molecule in base64.
    options : mapping
        ``kind`` ("smiles", "sdf" or "mol"), ``conformers``, ``seed``, ``optimize``, ``fragments``, ``embed``,
        ``features``, and ``spin`` (whether the multiplicity is wanted from the formula). With ``check`` the
        result is empty: what can be refused without a geometry is refused, and none is made.

    Raises
    ------
    Refused
        With the reason.
    """
    from rdkit import Chem

    mol = _READ[options["kind"]](text)
    dummies = [a.GetIdx() for a in mol.GetAtoms() if a.GetAtomicNum() == 0]
    if dummies:
        raise Refused(f"atom {dummies[0]} is a dummy ('*', 'R'), not an element")
    flat = options["kind"] == "sdf" and no_geometry(mol, mol.GetConformer())
    if flat and not options["embed"]:
        raise Refused(f"{flat}; embed=True makes a geometry of its own")
    given = bool(mol.GetNumConformers()) and not flat
    if not given:
        mol = _one_fragment(mol, options["fragments"])
        odd = sorted({a.GetSymbol() for a in mol.GetAtoms() if a.GetAtomicNum() not in _EMBEDDABLE})
        if odd:
            raise Refused(
                f"{', '.join(odd)}: no embedding for metals and rare elements is to be trusted; give "
                "coordinates (SDF)"
            )
    if options["spin"] and any(a.GetAtomicNum() not in _NONMETALS for a in mol.GetAtoms()):
        raise Refused(
            "the multiplicity of a molecule with a metal does not follow from its formula; name a property "
            "that says it, "
            "keys={'spin': ...}, or none, keys={'spin': None}"
        )
    heavy = Chem.RemoveHs(mol)
    whole = Chem.AddHs(mol, addCoords=given)
    added = whole.GetNumAtoms() - mol.GetNumAtoms()
    relaxed = True
    if not given:
        _check_field(whole, options["optimize"])
    if options.get("check"):
        return {}
    if not given:
        _embed(whole, options["conformers"], options["seed"])
        relaxed = _relax(whole, options["optimize"])
    for atom in heavy.GetAtoms():
        atom.SetAtomMapNum(0)
    ids = [c.GetId() for c in whole.GetConformers()]
    positions = [whole.GetConformer(k).GetPositions().tolist() for k in ids]
    out = {
        "z": [a.GetAtomicNum() for a in whole.GetAtoms()],
        "pos": positions,
        "charge": Chem.GetFormalCharge(whole),
        "spin": 1 + sum(a.GetNumRadicalElectrons() for a in whole.GetAtoms()),
        "canonical": Chem.MolToSmiles(heavy),
        "scaffold": _scaffold(heavy),
        "added": added if given else 0,
        "relaxed": relaxed,
        "stereo": bool(heavy.GetStereoGroups()) and options["kind"] == "smiles",
    }
    for pos in positions:
        _check_distances(pos)
    if options["features"]:
        out |= _features(whole, ids)
    return out


def _from_smiles(text: str) -> "Mol":
    from rdkit import Chem

    if not text.strip():
        raise Refused("empty")
    parser: Any = Chem.SmilesParserParams()  # its stubs give attributes the type of the class
    words = text.strip().split(None, 1)
    extended = len(words) > 1 and words[1].startswith("|")  # CXSMILES, as ChemAxon and Enamine write it
    parser.parseName, parser.allowCXSMILES, parser.strictCXSMILES = False, extended, True
    mol = Chem.MolFromSmiles(text.strip(), parser)
    if mol is None:
        raise Refused("")  # the log says why
    mol.RemoveAllConformers()  # coordinates of an extension are a drawing
    if extended and Chem.GetMolSubstanceGroups(mol):
        raise Refused(f"{words[1]} describes a polymer or a mixture; wanted one molecule")
    if mol.GetNumAtoms() == 0:
        raise Refused("no atoms")
    return mol


def _from_sdf(text: str) -> "Mol":
    from rdkit import Chem

    mol = Chem.MolFromMolBlock(text, removeHs=False)
    if mol is None:
        raise Refused("")
    if mol.GetNumAtoms() == 0:
        raise Refused("no atoms")
    return mol


def _from_binary(text: str) -> "Mol":
    """The molecule with those of its conformers that are in space."""
    from rdkit import Chem

    binary: Any = base64.b64decode(text)  # its stubs say text
    mol = Chem.Mol(binary)
    if mol.GetNumAtoms() == 0:
        raise Refused("no atoms")
    Chem.SanitizeMol(mol)
    for c in list(mol.GetConformers()):
        if no_geometry(mol, c):
            mol.RemoveConformer(c.GetId())
    return mol


_READ = {"smiles": _from_smiles, "sdf": _from_sdf, "mol": _from_binary}


def no_geometry(mol: "Mol", conformer: "Conformer") -> str:
    """The reason why the coordinates of a molecule are no geometry but a drawing; empty if they are one.

    Programs mark drawings as three-dimensional, too, so the coordinates decide. A flat molecule is a drawing
    if its hydrogens are not listed, if an atom with four bonds lies in the plane of its neighbors, or if the
    lengths of bonds are not those of the elements.

    Parameters
    ----------
    mol : rdkit.Chem.Mol
        The molecule.
    conformer : rdkit.Chem.Conformer
        Its coordinates in Å.

    Returns
    -------
    str
        The reason, for messages.
    """
    import numpy as np

    pos = conformer.GetPositions()
    if len(pos) == 1 or not np.isfinite(pos).all():
        return ""  # what is not finite is refused later
    if abs(pos - pos[0]).max() < 1e-6:
        return "all atoms are at the same place (a formula without coordinates)"
    if not conformer.Is3D():
        return "coordinates in two dimensions (a drawing)"
    largest = abs(pos - pos.mean(0)).max()
    normal = np.linalg.svd((pos - pos.mean(0)) / largest)[2][2]
    if largest * abs((pos - pos.mean(0)) / largest @ normal).max() > _PLANE:
        return ""
    why = _drawn(mol, pos)
    return why and (
        f"a flat drawing, although it is marked as three-dimensional: {why}. If it is a geometry, save it as "
        f".xyz and read it with read_ase"
    )


def _drawn(mol: "Mol", pos: "np.ndarray") -> str:
    """Why coordinates in a plane are no geometry; empty if they can be one."""
    import numpy as np
    from rdkit import Chem

    if np.ptp(pos, axis=0).min() < _PLANE and any(a.GetTotalNumHs() for a in mol.GetAtoms()):
        return "one coordinate is the same for all atoms, and hydrogens are not listed"
    for atom in mol.GetAtoms():
        if atom.GetDegree() == 4 and atom.GetAtomicNum() in _TETRAHEDRAL:
            return f"atom {atom.GetIdx()} ({atom.GetSymbol()}) lies in the plane of its four neighbors"
    radius, ratios = Chem.GetPeriodicTable().GetRcovalent, []
    drawn: dict[tuple[str, ...], tuple[float, float]] = {}  # length and usual length by elements
    for bond in mol.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        first, second = bond.GetBeginAtom(), bond.GetEndAtom()
        order = _SHORTER.get(bond.GetBondType().name, 1.0)
        usual = order * (radius(first.GetAtomicNum()) + radius(second.GetAtomicNum()))
        length = float(np.linalg.norm(pos[i] - pos[j]))
        drawn[tuple(sorted((first.GetSymbol(), second.GetSymbol())))] = length, usual
        if not _USUAL[0] < length / usual < _USUAL[1]:
            return (
                f"atoms {i} ({first.GetSymbol()}) and {j} ({second.GetSymbol()}) are bonded at "
                f"{length:.3g} Å, where {usual:.2f} Å is usual"
            )
        ratios.append(length / usual)
    if len(ratios) > 1 and not _MEDIAN[0] < np.median(ratios) < _MEDIAN[1]:
        return f"its bonds are {np.median(ratios):.2f} times as long as usual"
    lengths, usual_ones = zip(*drawn.values()) if drawn else ((0.0,), (1.0,))
    if np.ptp(lengths) < 5e-4 * max(lengths) and max(usual_ones) > 1.04 * min(usual_ones):
        return f"bonds between different elements have one length, {max(lengths):.3g} Å"
    return _alike(mol, pos, drawn, ratios)


def _alike(
    mol: "Mol",
    pos: "np.ndarray",
    drawn: Mapping[tuple[str, ...], tuple[float, float]],
    ratios: Sequence[float],
) -> str:
    """Why coordinates are drawn, if all bonds are of one kind or angles are those of a drawing."""
    import numpy as np

    kinds = {
        (tuple(sorted((b.GetBeginAtom().GetSymbol(), b.GetEndAtom().GetSymbol()))), b.GetBondType())
        for b in mol.GetBonds()
    }
    if len(kinds) == 1:
        ((pair, (length, _)),) = drawn.items()
        least, most = _USUAL if " ".join(pair) in _WEAK else _ALONE
        middle = float(np.median(ratios))
        if not least < middle < most or any(abs(length - one) < 5e-4 for one in _DRAWN):
            return f"its bonds are all of one kind and {length:.3g} Å long, {middle:.2f} times as usual"
    for atom in mol.GetAtoms():
        if atom.GetHybridization().name != "SP3" or atom.GetNumRadicalElectrons():
            continue
        center, near = atom.GetIdx(), [other.GetIdx() for other in atom.GetNeighbors()]
        if len(near) == 3 and atom.GetAtomicNum() in _PYRAMIDS:
            return f"atom {center} ({atom.GetSymbol()}) lies in the plane of its three neighbors"
        if len(near) == 2 and atom.GetAtomicNum() in _PYRAMIDS:
            a, b = (pos[k] - pos[center] for k in near)
            angle = np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
            if abs(angle - 120) < _ANGLE or angle > 180 - _ANGLE:
                where = f"atom {center} ({atom.GetSymbol()})"
                return f"the bonds of {where} make an angle of {angle:.1f}°, as in drawings"
    return ""


def _one_fragment(mol: "Mol", policy: str) -> "Mol":
    from rdkit import Chem

    parts = Chem.GetMolFrags(mol, asMols=True)
    if len(parts) == 1:
        return mol
    if policy == "refuse":
        raise Refused(
            f"{len(parts)} fragments (a salt, a mixture), whose arrangement is unknown; fragments='largest' "
            "takes the largest"
        )
    return max(
        parts, key=lambda part: (part.GetNumHeavyAtoms(), part.GetNumAtoms())
    )  # the first of equal ones


def _embed(mol: "Mol", conformers: int, seed: int) -> None:
    from rdkit.Chem import rdDistGeom

    params: Any = rdDistGeom.ETKDGv3()  # its stubs give attributes the type of the class
    # RDKit multiplies or adds the number of a conformer to its seed: 0 or neighboring seeds would repeat
    # geometries.
    params.randomSeed = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:3], "big")
    params.enableSequentialRandomSeeds = params.trackFailures = True
    params.timeout = _SECONDS
    usual, counts = _embedded(mol, conformers, params)
    if len(usual) < conformers:
        params.useRandomCoords, params.maxIterations = True, max(100, 10 * mol.GetNumAtoms())
        random, _ = _embedded(mol, conformers, params)
        usual = random if len(random) >= len(usual) else usual
    if not usual:
        cause = rdDistGeom.EmbedFailureCauses.values[counts.index(max(counts))].name
        raise Refused(
            f"no geometry, neither by ETKDGv3 nor from random coordinates with {params.maxIterations} "
            f"attempts a conformer (mostly {cause.lower().replace('_', ' ')})"
        )
    mol.RemoveAllConformers()
    for conformer in usual:
        mol.AddConformer(conformer, assignId=True)


def _embedded(mol: "Mol", conformers: int, params: Any) -> tuple[list["Conformer"], list[int]]:
    """The conformers that are found, and how often each cause of a failure occurred.

    Each is embedded by itself, with the seed that RDKit would give it among several. A molecule that cannot
    be embedded is given up after the first few, so that its cost does not grow with the number asked for.
    """
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom

    seed, lost, failed = params.randomSeed, 0.0, 0
    found: list[Conformer] = []
    counts: list[int] = []
    for k in range(conformers):
        params.randomSeed, start, copy = seed + k, time.monotonic(), Chem.Mol(mol)
        if len(rdDistGeom.EmbedMultipleConfs(copy, 1, params)):
            found.append(Chem.Conformer(copy.GetConformer()))
            continue
        failed, lost = failed + 1, lost + time.monotonic() - start
        causes = list(params.GetFailureCounts())
        counts = [x + y for x, y in zip(counts or [0] * len(causes), causes)]
        if lost > _SECONDS or (not found and failed == _FAILURES):
            break
    params.randomSeed = seed
    return found, counts


def _check_field(mol: "Mol", method: str | None) -> None:
    """Raise Refused if the force field does not know the molecule."""
    from rdkit.Chem import rdForceFieldHelpers as fields

    if method is None or mol.GetNumAtoms() == 1:
        return
    known = fields.MMFFHasAllMoleculeParams(mol) if method == "mmff" else fields.UFFHasAllMoleculeParams(mol)
    if not known:
        other = "optimize='uff'" if method == "mmff" else "optimize='mmff'"
        raise Refused(f"{method.upper()} has no parameters for it; {other} or optimize=None")


def _relax(mol: "Mol", method: str | None) -> bool:
    """Relax all conformers. Returns whether they converged; True without a method."""
    from rdkit.Chem import rdForceFieldHelpers as fields

    if method is None or mol.GetNumAtoms() == 1:
        return True
    run = fields.MMFFOptimizeMoleculeConfs if method == "mmff" else fields.UFFOptimizeMoleculeConfs
    return all(status == 0 for status, _ in run(mol, maxIters=_STEPS))


def _scaffold(mol: "Mol") -> str:
    from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles

    return MurckoScaffoldSmiles(mol=mol)


def _check_distances(positions: list) -> None:
    import numpy as np

    pos = np.array(positions)
    if not np.isfinite(pos).all():
        raise Refused("positions that are not finite")
    far = np.linalg.norm(pos[:, None] - pos, axis=-1) + np.diag(np.full(len(pos), np.inf))
    i, j = np.unravel_index(far.argmin(), far.shape)
    if far[i, j] < _SHORTEST:
        raise Refused(f"atoms {i} and {j} are {far[i, j]:.3f} Å apart")


def _features(mol: "Mol", ids: list[int]) -> dict:
    """Features of the atoms of each conformer, and of the bonds in both directions.

    Centres that the formula leaves open differ among conformers, so chirality is taken from the geometry.
    """
    from rdkit import Chem
    from rdkit.Chem import rdCIPLabeler

    x = []
    for k in ids:
        Chem.AssignStereochemistryFrom3D(mol, k)
        for atom in mol.GetAtoms():
            atom.ClearProp("_CIPCode")
        rdCIPLabeler.AssignCIPLabels(mol)
        # The pseudoasymmetric centres r and s are the same in the mirror image and have no sign.
        x.append(
            [
                [
                    a.GetIsAromatic(),
                    a.GetFormalCharge(),
                    *(a.GetHybridization().name == h for h in ("SP", "SP2", "SP3")),
                    {"R": 1, "S": -1}.get(a.GetProp("_CIPCode") if a.HasProp("_CIPCode") else "", 0),
                ]
                for a in mol.GetAtoms()
            ]
        )
    index, attr = [], []
    for bond in mol.GetBonds():
        i, j, kind = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), bond.GetBondType().name
        index += [[i, j], [j, i]]
        attr += 2 * [
            [
                *(kind == k for k in ("SINGLE", "DOUBLE", "TRIPLE", "AROMATIC")),
                bond.GetIsConjugated(),
                bond.IsInRing(),
            ]
        ]
    return {
        "x": [[[float(v) for v in row] for row in rows] for rows in x],
        "pair_index": index,
        "pair_attr": [[float(v) for v in row] for row in attr],
    }


def _readable_log(log: str, text: str) -> str:
    """The log of RDKit without times, pictures and repetitions."""
    lines = [re.sub(r"^\[[\d:]+\]\s*", "", line).strip() for line in log.splitlines()]
    lines = [
        re.sub(r"^SMILES Parse Error: ", "", line).rstrip(":")
        for line in lines
        if line
        and not set(line) <= set("~^ ")
        and "Failed parsing" not in line
        and "WARNING" not in line
        and line != text.strip()
    ]
    return "; ".join(dict.fromkeys(lines))[:300]


def _serve() -> None:
    """The program of a process: reads the options, then one molecule per line."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    from rdkit import rdBase

    rdBase.LogToPythonStderr()
    options = json.loads(sys.stdin.buffer.readline())
    print("{}", file=answers, flush=True)
    for line in sys.stdin.buffer:
        text, log = json.loads(line), io.StringIO()
        check = isinstance(text, dict)
        text = text["check"] if check else text
        with contextlib.redirect_stderr(log):
            try:
                answer = geometry(text, {**options, "check": check})
            except Refused as refused:
                reason = str(refused) or _readable_log(log.getvalue(), text)
                answer = {"reason": reason or "RDKit does not say why"}
            except Exception as error:  # a failure inside RDKit ends only this molecule
                reason = str(error).strip() or _readable_log(log.getvalue(), text)
                answer = {"reason": f"{type(error).__name__}: {reason}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
