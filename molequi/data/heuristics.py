"""Names of the heuristics that look for faults in data, by which each can be overruled.

A heuristic knows what data usually look like. Where data are unusual on purpose, such as dimers at 0.35 Å
for a repulsive wall, its name in `allow` says so: in a reader (``mq.read_extxyz(path,
allow=["close-atoms"])``), in a run file (``data: {extxyz: {path: …, allow: [close-atoms]}}``) or in a lint
(``molequi lint FILE --allow close-atoms``).
"""

from collections.abc import Iterable

from molequi.errors import ConfigError, did_you_mean

# Each name, and what is looked for.
HEURISTICS = {
    "unreadable": "a file whose content cannot be read",
    "reader-warnings": "what the reader of a file warns of",
    "missing-labels": "structures without a label that others have",
    "zero-labels": "energies or forces of exactly zero among others",
    "repeated-labels": "structures in a row with the same labels to the last digit",
    "energy-outliers": "energies far from those of the other structures of the same atoms",
    "force-outliers": "forces larger than any bond bears, on atoms that are not close to each other",
    "length-unit": "nearest neighbors 1.9 times farther (Bohr) or 10 times closer (nm) than in bonds",
    "force-unit": "the stiffness of bonds to hydrogen is that of another unit, or has the wrong sign",
    "force-scale": "root mean square of the forces above 15 eV/Å",
    "energy-unit": "total energies of all electrons that have another unit",
    "energy-scale": "energies that no sum over elements describes to 5 eV per atom",
    "energy-force-scale": "energy differences are not the work of the forces, but a multiple of it",
    "shifted-forces": "forces that belong to the structure before or after",
    "inconsistent-frames": "single structures whose energy does not follow from the forces",
    "net-force": "forces on an isolated or periodic structure that do not add up to zero",
    "net-torque": "forces on an isolated structure that would turn it",
    "stress-sign": "a stress of the opposite sign",
    "stress-unit": "a stress in another unit, or a virial",
    "stress-order": "components of the stress in another order",
    "per-atom-energies": "energies per atom in place of, or among, total energies",
    "energy-groups": "groups of structures whose energies have another zero",
    "energy-offsets": "groups whose energies are one constant from those of similar structures",
    "reference-energies": "elements that the compositions cannot tell apart",
    "duplicates": "equal structures, within a part or in two",
    "near-duplicates": "almost equal structures, within a part or in two",
    "shared-molecules": "molecules in two parts",
    "contradictions": "equal structures with different labels",
    "coincident-atoms": "atoms closer than 0.1 Å",
    "close-atoms": "atoms closer than 0.6 Å, which no bond is",
    "far-atoms": "atoms farther than 8 Å from every other one",
    "no-neighbors": "atoms without a neighbor within the cutoff",
}


def checked_allow(names: str | Iterable[str], where: str = "allow") -> tuple[str, ...]:
    """Names of heuristics that are overruled.

    Parameters
    ----------
    names : str or iterable of str
        One name, or several.
    where : str
        What error messages begin with.

    Returns
    -------
    tuple of str
        Each name once.

    Raises
    ------
    ConfigError
        For a name that is no heuristic.

    Examples
    --------
    >>> checked_allow("close-atoms")
    ('close-atoms',)
    """
    found = [names] if isinstance(names, str) else list(names)
    for name in found:
        if name not in HEURISTICS:
            raise ConfigError(f"{where}: no heuristic {name!r}{did_you_mean(str(name), HEURISTICS)}")
    return tuple(dict.fromkeys(found))
