"""Records of what models were trained on, ``metadata["trained_on"]``, of several models together.

A record has lists of values, such as those of elements and charges. For a model that reads electric fields it
has the largest one in V/Å, which is 0 if no structure is in one; without this entry it is not known.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

FIELD = "electric_field"


def union(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What any of several records has, as far as all of them state it.

    Parameters
    ----------
    records : sequence of mapping
        At least one.

    Examples
    --------
    >>> union([{"elements": ["H"], "charge": [0.0]}, {"elements": ["H", "O"], "electric_field": 0.1}])
    {'elements': ['H', 'O']}
    """
    out: dict[str, Any] = {
        kind: [*dict.fromkeys(value for one in records for value in one[kind])] for kind in _stated(records)
    }
    return out | _of_fields(records, max)


def common(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all of several records have.

    Parameters
    ----------
    records : sequence of mapping
        At least one.

    Examples
    --------
    >>> common([{"elements": ["H"], "electric_field": 0.3}, {"elements": ["H", "O"], "electric_field": 0.1}])
    {'elements': ['H'], 'electric_field': 0.1}
    """
    first, *others = records
    out: dict[str, Any] = {
        kind: [value for value in first[kind] if all(value in other[kind] for other in others)]
        for kind in _stated(records)
    }
    return out | _of_fields(records, min)


def _of_fields(records: Sequence[Mapping[str, Any]], of: Callable[[list[float]], float]) -> dict[str, float]:
    """The entry of the electric field, if all records state it."""
    return {FIELD: of([float(one[FIELD]) for one in records])} if all(FIELD in one for one in records) else {}


def _stated(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Kinds of values that all records state."""
    return [kind for kind in records[0] if kind != FIELD and all(kind in one for one in records)]
