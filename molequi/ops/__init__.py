"""Operations that layers are made of, each with one implementation in plain torch.

Norms and directions with finite derivatives are in `molequi.ops.safe`.
"""

from molequi.ops.blocks import Blocks, blocks_of
from molequi.ops.constants import Float64Constants
from molequi.ops.contraction import SymmetricContraction
from molequi.ops.indices import index_permutations, symmetrize
from molequi.ops.irreps import clebsch_gordan, spherical_harmonics, wigner
from molequi.ops.products import TensorProduct
from molequi.ops.segment import segment_max, segment_mean, segment_softmax, segment_sum

__all__ = [
    "Blocks",
    "Float64Constants",
    "SymmetricContraction",
    "TensorProduct",
    "blocks_of",
    "clebsch_gordan",
    "index_permutations",
    "segment_max",
    "segment_mean",
    "segment_softmax",
    "segment_sum",
    "spherical_harmonics",
    "symmetrize",
    "wigner",
]
