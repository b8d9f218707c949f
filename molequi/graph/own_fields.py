"""Fields that users declare."""

import keyword

from molequi.errors import ConfigError
from molequi.graph.fields import FIELDS, Field
from molequi.graph.graph import ATTRIBUTES, Graph
from molequi.quantities import KNOWN


def own_fields() -> dict[str, Field]:
    """The fields that users have declared, by name."""
    return {name: spec for name, spec in FIELDS.items() if name not in ATTRIBUTES}


def add_field(name: str, **declaration: object) -> Field:
    """Declares a field of your own, per node or per graph.

    Structures then have it as an attribute: readers find it under its name, it is batched, saved and padded,
    and the audit transforms it. The declaration holds for the process; repeat it in every script that uses
    the field.

    Parameters
    ----------
    name : str
        Name of the attribute, a Python identifier.
    **declaration
        Arguments of `Field`: ``per``, ``rank``, ``pseudo``, ``channels``, ``unit``, ``padding``, ….

    Returns
    -------
    Field
        The declaration.

    Raises
    ------
    ConfigError
        If the name is taken or no identifier, or if the field is already declared in another way.

    Examples
    --------
    >>> field = add_field("efield", per="graph", rank=1, unit="V/Å")
    >>> graph = Graph.single([[0, 0, 0]], ["H"], efield=[0, 0, 0.1])
    >>> graph.efield.tolist()
    [[0.0, 0.0, 0.1]]
    """
    usable = isinstance(name, str) and name.isidentifier() and not name.startswith("_")
    if not usable or keyword.iskeyword(name):
        raise ConfigError(
            f"field {name!r}: wanted a Python identifier (letters, digits, '_') such as 'efield'"
        )
    try:
        declared = Field(**declaration)  # type: ignore[arg-type]  # Field checks them
    except (TypeError, ConfigError) as error:
        raise ConfigError(f"field {name!r}: {error}") from error
    known = FIELDS.get(name)
    if known == declared and name not in ATTRIBUTES:
        return declared
    if name in ATTRIBUTES or hasattr(Graph, name):
        raise ConfigError(
            f"field {name!r}: a Graph already has an attribute of this name; choose another name"
        )
    if name in KNOWN:
        raise ConfigError(
            f"field {name!r}: this is the name of a quantity, which models predict; choose another name, "
            f"such as '{name}_in'"
        )
    if known is not None:
        raise ConfigError(
            f"field {name!r} is already declared as {known}; found {declared}; choose another name"
        )
    if declared.per not in ("node", "graph"):
        raise ConfigError(
            f"field {name!r}: per={declared.per!r}; wanted 'node' or 'graph'. Features of pairs are columns "
            "of pair_attr"
        )
    FIELDS[name] = declared
    return declared
