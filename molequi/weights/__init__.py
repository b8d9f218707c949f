"""Weight spaces: networks as data, and models of them that know the symmetry of hidden neurons.

Classify implicit neural representations, predict the error of a network from its weights, edit and align
networks.
"""

from molequi.weights.alignment import Aligned, align
from molequi.weights.architecture import ACTIVATIONS, Architecture, Sine
from molequi.weights.audit import audit
from molequi.weights.files import load, read_networks, save
from molequi.weights.labelled import LabelledNetworks, fitted_digits
from molequi.weights.layers import (
    EquivariantLinear,
    PermutationLayer,
    PointwiseLinear,
    SignLayer,
    pack,
    spaces_of,
    unpack,
)
from molequi.weights.many import fit_fields, grid, train_many
from molequi.weights.model import WeightModel
from molequi.weights.networks import Networks, NeuralGraph, mlps_of
from molequi.weights.symmetry import NeuronGroup, NeuronMap, balanced, rescaled
from molequi.weights.training import Fitted, Interrupted, fit

__all__ = [
    "ACTIVATIONS",
    "Aligned",
    "Architecture",
    "EquivariantLinear",
    "Fitted",
    "Interrupted",
    "LabelledNetworks",
    "Networks",
    "NeuralGraph",
    "NeuronGroup",
    "NeuronMap",
    "PermutationLayer",
    "PointwiseLinear",
    "SignLayer",
    "Sine",
    "WeightModel",
    "align",
    "audit",
    "balanced",
    "fit",
    "fit_fields",
    "fitted_digits",
    "grid",
    "load",
    "mlps_of",
    "pack",
    "read_networks",
    "rescaled",
    "save",
    "spaces_of",
    "train_many",
    "unpack",
]
