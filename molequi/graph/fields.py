"""The fields of a Graph: what each is, said once. Batching, padding, files and group actions follow from this
table.
"""

from dataclasses import dataclass, fields
from typing import Literal

import torch

from molequi.errors import ConfigError
from molequi.util.signature import check_keywords

Per = Literal["node", "graph", "pair", "edge"]


@check_keywords()
@dataclass(frozen=True, kw_only=True)
class Field:
    """What one field of a Graph is: where it belongs, how it transforms, its dtype and unit.

    A value has the shape (rows, channels, D, …, D): one row per node, graph, pair or edge, then an axis of
    channels if there is one, then ``rank`` axes of space.

    Parameters
    ----------
    per : {"node", "graph", "pair", "edge"}
        What has one value each. Fields per edge are made by `molequi.neighbors.connect`; a new search
        replaces them.
    rank : int
        Number of spatial axes: 0 for numbers, 1 for vectors, 2 for tensors. A rotation acts on each of them.
    pseudo : bool
        Whether the value changes its sign under a reflection, beyond what its rank says (a magnetic field
        does).
    point : bool
        Whether the value is a position, which moves with a translation. Needs ``per="node"`` and ``rank=1``.
    channels : bool
        Whether there is an axis of channels, of any length, before the spatial axes.
    dtype : torch.dtype or str
        Values are converted to it.
    unit : str
        Unit inside molequi. Readers convert to it; empty for no unit.
    padding : float or None
        Value of the rows that pad a compiled program. None repeats the first row.
    default : float or None
        Value for graphs that lack the field in a batch where others have it. None: all graphs of a batch have
        the field, or none.
    digested : bool
        Whether a data digest has an entry for the field even where a graph lacks it.

    Raises
    ------
    ConfigError
        If an attribute has a value that is not listed here.
    """

    per: Per
    rank: int = 0
    pseudo: bool = False
    point: bool = False
    channels: bool = False
    dtype: torch.dtype = torch.float64
    unit: str = ""
    padding: float | None = 0.0
    default: float | None = None
    digested: bool = False

    def __post_init__(self) -> None:
        if self.per not in ("node", "graph", "pair", "edge"):
            raise ConfigError(f"Field(per={self.per!r}): wanted 'node', 'graph', 'pair' or 'edge'")
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 0:
            raise ConfigError(f"Field(rank={self.rank!r}): wanted a number of spatial axes, 0, 1, 2, …")
        for name in ("pseudo", "point", "channels", "digested"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"Field({name}={getattr(self, name)!r}): wanted True or False")
        for name in ("padding", "default"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, (int, float)):
                raise ConfigError(f"Field({name}={value!r}): wanted a number or None")
        if not isinstance(self.unit, str):
            raise ConfigError(f"Field(unit={self.unit!r}): wanted text, such as 'V/Å'")
        if isinstance(self.dtype, str) and isinstance(getattr(torch, self.dtype, None), torch.dtype):
            object.__setattr__(self, "dtype", getattr(torch, self.dtype))
        if not isinstance(self.dtype, torch.dtype):
            raise ConfigError(f"Field(dtype={self.dtype!r}): wanted a dtype of torch, such as torch.float64")
        if self.per in ("pair", "edge") and (self.rank or self.pseudo):
            raise ConfigError(
                f"Field(per={self.per!r}, rank={self.rank}): pairs and edges have no spatial axes; wanted "
                "rank=0"
            )
        if self.point and (self.per != "node" or self.rank != 1 or self.pseudo):
            raise ConfigError(
                "Field(point=True): a position has per='node' and rank=1 and is no pseudovector; "
                f"found per={self.per!r}, rank={self.rank}, pseudo={self.pseudo}"
            )

    def declaration(self) -> dict[str, object]:
        """The arguments that differ from their defaults, as plain values: what `add_field` takes."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        if "dtype" in given:
            given["dtype"] = str(self.dtype).removeprefix("torch.")
        return given

    def shape(self, dim: int) -> tuple[int | None, ...]:
        """Shape of one row of values.

        Parameters
        ----------
        dim : int
            Number of spatial dimensions D.

        Returns
        -------
        tuple
            Sizes of the axes; None stands for any number of channels.
        """
        return (None,) * self.channels + (dim,) * self.rank


# The order is that of data digests (`molequi.data.dataset`): never change it, add at the end.
FIELDS: dict[str, Field] = {
    "z": Field(per="node", dtype=torch.int64, padding=None, digested=True),
    "pos": Field(per="node", rank=1, point=True, unit="Å", digested=True),
    "cell": Field(per="graph", rank=1, channels=True, unit="Å", default=0.0, digested=True),
    "pbc": Field(per="graph", channels=True, dtype=torch.bool, default=0.0, digested=True),
    "charge": Field(per="graph", unit="e", digested=True),
    "spin": Field(per="graph", digested=True),
    "vel": Field(per="node", rank=1, digested=True),
    "x": Field(per="node", channels=True, digested=True),
    "vec": Field(per="node", rank=1, channels=True),
    "pair_attr": Field(per="pair", channels=True),
    "shift": Field(per="edge", channels=True, default=0.0),
    "edge_attr": Field(per="edge", channels=True),
    "level": Field(per="graph", dtype=torch.int64, padding=None),
    "electric_field": Field(per="graph", rank=1, unit="V/Å", default=0.0),  # uniform, none: zero
    # Directions of Hessian-vector products, see `molequi.analysis.add_hessian_products`.
    "hessian_vectors": Field(per="node", rank=1, default=0.0),
}


def fields_per(*per: Per) -> dict[str, Field]:
    """The fields with one value per node, graph, pair or edge, by name."""
    return {name: field for name, field in FIELDS.items() if field.per in per}
