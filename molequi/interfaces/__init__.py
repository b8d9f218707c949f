"""Interfaces to simulation programs: the ASE calculator, and a neighbor list for other engines."""

from molequi.interfaces.ase import Calculator
from molequi.interfaces.neighbor_list import NeighborList

__all__ = ["Calculator", "NeighborList"]
