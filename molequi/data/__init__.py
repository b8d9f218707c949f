"""Structures with labels: the Dataset, its parts, statistics, batches and neighbor lists."""

from molequi.data.assemble import Key
from molequi.data.dataset import Dataset, duplicates
from molequi.data.sources import Source
from molequi.data.statistics import Statistics
from molequi.errors import DataWarning

__all__ = ["DataWarning", "Dataset", "Key", "Source", "Statistics", "duplicates"]
