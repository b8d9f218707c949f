"""Structures with labels: the Dataset, how it is assembled, its parts, statistics and batches."""

from molequi.data.assemble import assemble
from molequi.data.dataset import Dataset
from molequi.data.fingerprints import duplicates
from molequi.data.record import Record
from molequi.data.request import Key, Request
from molequi.data.sources import Source
from molequi.data.statistics import Statistics
from molequi.errors import DataWarning

__all__ = [
    "DataWarning",
    "Dataset",
    "Key",
    "Record",
    "Request",
    "Source",
    "Statistics",
    "assemble",
    "duplicates",
]
