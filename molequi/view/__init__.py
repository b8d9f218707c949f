"""Interactive views of structures in notebooks, and as pages that need no network."""

from molequi.view.view import View, view

__all__ = ["View", "view"]
