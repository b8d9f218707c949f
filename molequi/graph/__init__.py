"""The Graph, its fields, and batches of graphs."""

from molequi.graph.batching import collate, mismatch, separate
from molequi.graph.fields import FIELDS, Field, Per, fields_per
from molequi.graph.graph import Graph
from molequi.graph.own_fields import add_field, own_fields

__all__ = [
    "FIELDS",
    "Field",
    "Graph",
    "Per",
    "add_field",
    "collate",
    "fields_per",
    "mismatch",
    "own_fields",
    "separate",
]
