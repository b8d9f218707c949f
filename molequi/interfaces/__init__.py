"""Programs that run simulations with a model of molequi."""

from molequi.interfaces.ase import Calculator

__all__ = ["Calculator"]
