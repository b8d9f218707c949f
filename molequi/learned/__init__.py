"""What symmetry a net has that nobody built in: spectra over orbits, hidden actions, generators, and weights without the rest."""

from molequi.learned.commutant import commutant, project, prune
from molequi.learned.curves import follow
from molequi.learned.generators import generators
from molequi.learned.orbits import hidden_action, spectrum

__all__ = ["commutant", "follow", "generators", "hidden_action", "project", "prune", "spectrum"]
