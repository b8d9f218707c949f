"""Screening: predictions for very many structures or molecules, on one machine or a cluster."""

from molequi.screening.screen import Screening, screen

__all__ = ["Screening", "screen"]
