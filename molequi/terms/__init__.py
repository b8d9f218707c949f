"""Terms that a model adds to its energy, for any backbone: long range, repulsion of nuclei, dispersion.

::

    mq.Model(backbone, ["energy", "forces"], long_range="latent", repulsion="zbl", dispersion={"d3": "pbe"})
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from molequi.errors import ConfigError, ModelError
from molequi.heads import AtomicCharges, ChargeDipole, Dipole, Head, Scalar, default_head
from molequi.heads.levels import first_of
from molequi.models import Backbone
from molequi.quantities import KNOWN, Quantity
from molequi.terms.dispersion import (
    Dispersion,
    add_dispersion,
    as_dispersion,
    as_labelled,
    derivatives_of_energy,
)
from molequi.terms.long_range import EquilibratedCharges, LatentCharges, LongRange, check_long_range
from molequi.terms.repulsion import NuclearRepulsion, Repulsion
from molequi.util.options import as_options

__all__ = [
    "NAMES",
    "Dispersion",
    "EquilibratedCharges",
    "LatentCharges",
    "LongRange",
    "NuclearRepulsion",
    "Repulsion",
    "add_dispersion",
    "as_dispersion",
    "as_labelled",
    "as_terms",
    "charges_of",
    "derivatives_of_energy",
    "make_terms",
    "plain_terms",
    "term_head",
]

NAMES = ("long_range", "repulsion", "dispersion")
Terms = dict[str, LongRange | Repulsion | Dispersion]


def as_terms(**given: object) -> Terms:
    """The terms of a model as objects, by name; those that are None are left out.

    Parameters
    ----------
    **given
        ``long_range``, ``repulsion`` and ``dispersion`` as `Model` takes them.

    Raises
    ------
    ModelError
        For what is no description of a term.
    """
    found: Terms = {}
    try:
        for name, value in given.items():
            if value is None:
                continue
            if name == "dispersion":
                found[name] = as_dispersion(value)
            elif name == "repulsion":
                found[name] = as_options(Repulsion, value, name)
            else:
                found[name] = as_options(LongRange, value, name)
    except ConfigError as error:
        raise ModelError(str(error)) from error
    return found


def make_terms(terms: Terms, backbone: Backbone, heads: nn.ModuleDict) -> nn.ModuleDict:
    """The modules of the terms that are computed with the network, by name.

    Parameters
    ----------
    terms : mapping
        As `as_terms` gives them.
    backbone : Backbone
        The backbone.
    heads : ModuleDict
        The heads of the model by quantity.

    Raises
    ------
    ModelError
        If the energy is not predicted or is no sum over atoms, and as `terms.long_range.check_long_range`.
    """
    made = nn.ModuleDict()
    if not terms:
        return made
    energy = first_of(heads["energy"]) if "energy" in heads else None
    if not isinstance(energy, Scalar) or not energy.quantity.extensive:
        raise ModelError(
            f"{', '.join(terms)}: a term of the energy, and the model has no energy that is a sum over "
            f"atoms; found {', '.join(heads) or 'no heads'}; predict 'energy'"
        )
    long_range, repulsion = terms.get("long_range"), terms.get("repulsion")
    if isinstance(long_range, LongRange):
        check_long_range(long_range, backbone, energy)
        made["long_range"] = long_range.make(backbone.out["0e"]).to(backbone.dtype)
    if isinstance(repulsion, Repulsion):
        if getattr(energy, "repulsion", None) is not None:
            raise ModelError(
                f"repulsion: {type(energy).__name__} has a repulsion of its own; leave one of them out"
            )
        made["repulsion"] = repulsion.make(backbone.elements, backbone.cutoff)
    return made


def charges_of(made: nn.ModuleDict) -> nn.Module | None:
    """The charges that heads share with the long range, if they are physical.

    Parameters
    ----------
    made : ModuleDict
        As `make_terms` gives it.
    """
    return next((term for term in made.values() if isinstance(term, EquilibratedCharges)), None)


def term_head(item: Quantity, terms: Terms) -> Head:
    """The default head of a quantity: with equilibrated charges those of "charges" and of dipoles.

    Parameters
    ----------
    item : Quantity
        The quantity.
    terms : mapping
        As `as_terms` gives them.
    """
    head, long_range = default_head(item), terms.get("long_range")
    if isinstance(long_range, LongRange) and long_range.charges == "equilibrated":
        if item == KNOWN["charges"]:
            return AtomicCharges(item)
        if type(head) is Dipole:
            return ChargeDipole(item)
    return head


def plain_terms(terms: Terms) -> Mapping[str, Any]:
    """The terms as JSON and YAML have them.

    Parameters
    ----------
    terms : mapping
        As `as_terms` gives them.
    """
    return {n: t.changed() if isinstance(t, Dispersion) else asdict(t) for n, t in terms.items()}
