"""Merging: one model from several of the same architecture, of one start or after aligning their channels."""

from molequi.merging.alignment import align, closeness
from molequi.merging.channels import Channels, Space, transformed
from molequi.merging.merge import Merged, merge
from molequi.merging.tables import channels_of

__all__ = ["Channels", "Merged", "Space", "align", "channels_of", "closeness", "merge", "transformed"]
