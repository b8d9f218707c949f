"""Heads compute quantities from features. They read blocks by irrep and do not depend on the backbone."""

from collections.abc import Mapping
from typing import Any

from molequi.heads.base import Head, Pool, check_output
from molequi.heads.layers import LayerReadouts
from molequi.heads.levels import ByLevel, tie_charges
from molequi.heads.physical import AtomicCharges, ChargeDipole, PhysicalEnergy, ZBLEnergy, share_charges
from molequi.heads.scalars import Classes, LinearScalar, Scalar, SpatialExtent
from molequi.heads.tensors import Tensor2, TensorN
from molequi.heads.vectors import Dipole, DipoleMagnitude, Position, Vector
from molequi.heads.velocity import Velocity
from molequi.quantities import KNOWN, Quantity
from molequi.util.extensions import find, with_own
from molequi.util.signature import check_call

__all__ = [
    "HEADS",
    "AtomicCharges",
    "ByLevel",
    "ChargeDipole",
    "Classes",
    "Dipole",
    "DipoleMagnitude",
    "Head",
    "LayerReadouts",
    "LinearScalar",
    "PhysicalEnergy",
    "Pool",
    "Position",
    "Scalar",
    "SpatialExtent",
    "Tensor2",
    "TensorN",
    "Vector",
    "Velocity",
    "ZBLEnergy",
    "check_output",
    "default_head",
    "head_from",
    "share_charges",
    "tie_charges",
]

HEADS: dict[str, type[Head]] = {
    kind.__name__: kind
    for kind in (
        Scalar,
        LinearScalar,
        LayerReadouts,
        PhysicalEnergy,
        ZBLEnergy,
        AtomicCharges,
        ChargeDipole,
        Vector,
        Dipole,
        DipoleMagnitude,
        SpatialExtent,
        Tensor2,
        TensorN,
        Classes,
        Position,
        Velocity,
    )
}


def default_head(item: Quantity) -> Head:
    """The head that fits the declaration of a quantity.

    Parameters
    ----------
    item : Quantity
        Classes get `Classes`, points `Position`, extensive vectors of a graph in e Å `Dipole`; the known "mu"
        and "r2" get the heads of their equations; others by rank `Scalar`, `Vector`, `Tensor2` or `TensorN`.

    Returns
    -------
    Head
        A new head.

    Raises
    ------
    ModelError
        If no head predicts tensors of this rank.

    Examples
    --------
    >>> type(default_head(KNOWN["dipole"])).__name__
    'Dipole'
    """
    if item.classes:
        return Classes(item)
    if item.point:
        return Position(item)
    if item.rank == 1 and item.per == "graph" and item.extensive and item.unit == "e Å" and not item.pseudo:
        return Dipole(item)
    if item == KNOWN["mu"]:
        return DipoleMagnitude(item)
    if item == KNOWN["r2"]:
        return SpatialExtent(item)
    kinds = (Scalar, Vector, Tensor2)
    return kinds[item.rank](item) if item.rank < 3 else TensorN(item)


def head_from(hparams: Mapping[str, Any], heads: Mapping[str, type[Head]] | None = None) -> Head | ByLevel:
    """A head from its `hparams`.

    Parameters
    ----------
    hparams : mapping
        As `Head.hparams` or `ByLevel.hparams` gives it.
    heads : mapping of str to type, optional
        Classes that are not the package's, by name.

    Returns
    -------
    Head or ByLevel
        A new head, or one for each level.

    Raises
    ------
    ModelError
        If the class is neither in `HEADS` nor in `heads`, or `heads` replaces a class of the package.
    ConfigError
        For options that the class does not have.
    """
    # An abstract base is meant here: with_own checks that classes derive from it, and makes no object of it.
    table = with_own(
        HEADS,
        heads,
        base=Head,  # type: ignore[type-abstract]
        argument="heads",
    )
    kind = find(hparams.get("head", "none"), table, what="head", argument="heads")
    options = hparams.get("options", {})
    check_call(kind, options, where=kind.__name__, leave_out=("item",))
    head = kind(Quantity(**hparams["quantity"]), **options)
    return ByLevel(head, hparams["levels"]) if "levels" in hparams else head
