"""Approximate equivariance: regularizers, constraint annealing, layer-wise selection of equivariance."""

from molequi.approximate.selection import Degree, FreePath, degree
from molequi.approximate.transforms import PoseErrors, pose_errors

__all__ = ["Degree", "FreePath", "PoseErrors", "degree", "pose_errors"]
