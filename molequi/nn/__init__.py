"""Layers of which backbones and heads are made.

Plain layers act on invariant features of shape (N, C). Layers on irreps act on features of shape (N, M, C):
the components of all irreps one after another, channels last.
"""

from molequi.nn.attention import AttentionLayer, EdgeAttention, NodePerceptron
from molequi.nn.cartesian import EGNNLayer
from molequi.nn.coulomb import coulomb_matrix, coulomb_potential, work_of_field
from molequi.nn.covalent import AgnesiDistance, BondRepulsion, SoftDistance
from molequi.nn.edge_frames import EdgeFrames, SO2Linear
from molequi.nn.embedding import NodeEmbedding
from molequi.nn.group_convolution import GroupKernel, GroupLinear, GroupPointConvolution, GroupPool
from molequi.nn.hierarchy import ClusterPool, Coarse, FarthestPool, FeatureNorm, Unpool, relative_lengths
from molequi.nn.irreps import (
    AtomicBasis,
    Convolution,
    ElementLinear,
    Gate,
    IrrepsLinear,
    PathLinear,
    ProductBasis,
    sizes,
)
from molequi.nn.mlp import ScaledSiLU, linear, mlp
from molequi.nn.norms import IrrepsNorm, LayerNorm
from molequi.nn.pair_energies import ZBL, Dispersion, Electrostatics, Repulsion
from molequi.nn.radial import (
    BernsteinBasis,
    BesselBasis,
    Edges,
    LogDistance,
    RadialBasis,
    StretchedBasis,
    edge_inputs,
    edges_of,
    envelope,
    num_edge_inputs,
    pair_stretch,
)
from molequi.nn.relaxed import (
    Relaxed,
    RelaxedConvolution,
    RelaxedEGNNLayer,
    RelaxedGroupConvolution,
    free_groups,
    relaxed_layers,
    set_theta,
)
from molequi.nn.sphere import SphereActivation, SphereProduct

__all__ = [
    "ZBL",
    "AgnesiDistance",
    "AtomicBasis",
    "AttentionLayer",
    "BernsteinBasis",
    "BesselBasis",
    "BondRepulsion",
    "ClusterPool",
    "Coarse",
    "Convolution",
    "Dispersion",
    "EGNNLayer",
    "EdgeAttention",
    "EdgeFrames",
    "Edges",
    "Electrostatics",
    "ElementLinear",
    "FarthestPool",
    "FeatureNorm",
    "Gate",
    "GroupKernel",
    "GroupLinear",
    "GroupPointConvolution",
    "GroupPool",
    "IrrepsLinear",
    "IrrepsNorm",
    "LayerNorm",
    "LogDistance",
    "NodeEmbedding",
    "NodePerceptron",
    "PathLinear",
    "ProductBasis",
    "RadialBasis",
    "Relaxed",
    "RelaxedConvolution",
    "RelaxedEGNNLayer",
    "RelaxedGroupConvolution",
    "Repulsion",
    "SO2Linear",
    "ScaledSiLU",
    "SoftDistance",
    "SphereActivation",
    "SphereProduct",
    "StretchedBasis",
    "Unpool",
    "coulomb_matrix",
    "coulomb_potential",
    "edge_inputs",
    "edges_of",
    "envelope",
    "free_groups",
    "linear",
    "mlp",
    "num_edge_inputs",
    "pair_stretch",
    "relative_lengths",
    "relaxed_layers",
    "set_theta",
    "sizes",
    "work_of_field",
]
