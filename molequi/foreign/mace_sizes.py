"""Sizes of a MACE model are compared with the tensors of its file before a model of these sizes is made.

Otherwise a small file could ask for any amount of memory and time.
"""

import math
from collections.abc import Sequence

from molequi.foreign.e3nn_modules import E3nnModules


def check_sizes(file: E3nnModules, channels: int, l_max: int, degrees: Sequence[int]) -> None:
    """Raise CheckpointError if the tensors of a file have other sizes than its options say.

    Parameters
    ----------
    file : E3nnModules
        The file.
    channels : int
        Number of channels.
    l_max : int
        Highest degree of the spherical harmonics.
    degrees : sequence of int
        Highest degree after each layer.
    """
    if not (0 <= l_max <= 6 and all(degree <= l_max for degree in degrees) and channels > 0):
        raise file.refuse("interactions.0.target_irreps", f"up to {l_max}", "channels of degrees 0 to 6")
    harmonics = file.uniform("spherical_harmonics", "irreps_out", 1)[1]
    if harmonics != l_max:
        raise file.refuse("spherical_harmonics.irreps_out", f"up to {harmonics}", f"up to {l_max}")
    file.check_shape("node_embedding.linear.weight", len(file.take("atomic_numbers")) * channels)
    bessels = len(file.take("radial_embedding.bessel_fn.bessel_weights"))
    for t, degree in enumerate(degrees):
        inputs = degrees[t - 1] + 1 if t else 1
        interaction = f"interactions.{t}"
        file.check_shape(f"{interaction}.linear_up.weight", inputs * channels**2)
        if (sizes := file.channels(f"{interaction}.conv_tp_weights"))[0] != bessels:
            raise file.refuse(f"{interaction}.conv_tp_weights.hs", sizes, f"{bessels} radial functions")
        for k in range(degree + 1):
            _check_couplings(file, f"products.{t}.symmetric_contractions.contractions.{k}", k, l_max)


def _check_couplings(file: E3nnModules, module: str, degree: int, l_max: int) -> None:
    """Raise CheckpointError if the couplings of products with one irrep are not those of degrees to l_max."""
    for factors in range(1, int(file.attribute(module, "correlation")) + 1):
        name = f"{module}.U_matrix_{factors}"
        size = (2 * degree + 1) * math.prod([(l_max + 1) ** 2] * factors)
        shape = tuple(file.take(name).shape)
        # A part of the shape may be left out or be one; the last is the number of couplings.
        if not shape or not shape[-1] or math.prod(shape) != size * shape[-1]:
            raise file.refuse(name, shape, f"{size} numbers for each coupling")
