"""What symmetry a net has that nobody built in: spectra over orbits, hidden actions, generators, and weights without the rest."""

from molequi.discovery.commutant import commutant, project, prune
from molequi.discovery.curves import follow
from molequi.discovery.generators import generators
from molequi.discovery.orbits import hidden_action, spectrum

__all__ = ["commutant", "follow", "generators", "hidden_action", "project", "prune", "spectrum"]
