"""NequIP as the package nequip computes it (Batzner et al. 2022, arXiv 2101.03164)."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float, Int
from torch import Tensor

from molequi.errors import ModelError
from molequi.models.base import Inputs
from molequi.models.sevennet import SelfConnection, SevenNet
from molequi.models.sizes import Layers
from molequi.nn.radial import Edges, envelope, pair_stretch
from molequi.ops.constants import Float64Constants
from molequi.quantities import SYMBOLS, atomic_number


class NequIPGNN(Float64Constants, SevenNet):
    """NequIP (Batzner et al. 2022, arXiv 2101.03164) as the package nequip computes it from version 0.7 on,
    whose trained models it takes.

    Each layer computes

        h' = gate(S_z h + W [concat over paths of Σ_j R_path(r_ij) ((V h_j / √n) ⊗ Y(r̂_ij))_path]),

    as in `SevenNet`, but messages are divided by the root of the mean number of neighbors n, the first layer
    has no self-connection S, so that an atom without neighbors has features of zero, and the exponent of the
    cutoff function can be chosen. n and the cutoff may depend on the elements.

    `NequIP` is the smaller network of the same kind, whose paths into one irrep are summed before channels
    are mixed.

    Parameters
    ----------
    elements : sequence of str or int
        Symbols or atomic numbers that it knows.
    cutoff : float
        Distance in Å up to which a node sees others, above 0.
    inputs : Inputs, optional
        What it reads of a graph besides elements and positions, such as ``Inputs(charge=True)``. It accepts
        charge, spin, node features, edge features, node vectors and an electric field.
    k : int, optional
        A node sees only its k nearest neighbors (point clouds). None: all within the cutoff.
    channels : int, or sequence of mapping of str to int
        Number of invariant channels; a degree has half as many as the one below it, and natural parity (0e,
        1o, 2e, …). Or the channels of each irrep after the embedding and after each layer.
    layers : int, optional
        Number of layers, 3 by default, or as `channels` lists them.
    l_max : int
        Highest degree of the spherical harmonics, and of the features if `channels` is a number; 0 to 6.
    l_out : int, optional
        Highest degree that is returned if `channels` is a number. None: `l_max`.
    group : {"O(3)", "SO(3)"}
        "SO(3)" disregards reflections and allows all couplings; it has one irrep of each degree.
    radial : int
        Number of Bessel functions, whose frequencies are trained.
    radial_hidden : sequence of int
        Channels of the hidden layers of the radial perceptrons.
    exponent : int
        Exponent of the polynomial cutoff function, see `nn.envelope`.
    pair_cutoffs : mapping of str to mapping of str to float, optional
        Shorter cutoffs in Å by the symbols of the node that sees and of the one that is seen,
        ``{"H": {"O": 3.0}}``. Radial functions are those of r times the quotient of both cutoffs.
    neighbors : mapping of str to float, optional
        n by the symbol of the node that sends. Elements that are left out have the mean of all.
    self_connection : sequence of {"linear", "elements", "none"}, or one of them, optional
        For each layer, whether S is one matrix, one for each element, or zero. None: zero in the first layer,
        and one for each element in the others.

    Raises
    ------
    ConfigError
        For an option that is unknown, of the wrong type or out of range.
    ModelError
        For channels that no path leads to, for numbers that contradict each other, and for a pair cutoff
        beyond the cutoff.

    Examples
    --------
    >>> import molequi as mq
    >>> backbone = NequIPGNN(elements=["H", "O"], cutoff=3.0, channels=8, layers=2, l_max=1, exponent=5)
    >>> water = mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
    >>> backbone(mq.connect(water, 3.0)).layout
    '8x0e+4x1o'
    """

    good_for = "published NequIP models"
    stretch: Tensor
    own_neighbors: Tensor

    def __init__(
        self,
        *,
        elements: Sequence[str | int],
        cutoff: Annotated[float, Gt(0)] = 5.0,
        inputs: Inputs = Inputs(),
        k: Annotated[int, Gt(0)] | None = None,
        channels: Annotated[int, Gt(0)] | Sequence[Mapping[str, Annotated[int, Gt(0)]]] = 64,
        layers: Layers | None = None,
        l_max: Annotated[int, Ge(0), Le(6)] = 2,
        l_out: Annotated[int, Ge(0), Le(6)] | None = None,
        group: Literal["O(3)", "SO(3)"] = "O(3)",
        radial: Annotated[int, Gt(0)] = 8,
        radial_hidden: Sequence[Annotated[int, Gt(0)]] = (64, 64),
        exponent: Annotated[int, Ge(2)] = 6,
        pair_cutoffs: Mapping[str, Mapping[str, Annotated[float, Gt(0)]]] | None = None,
        neighbors: Mapping[str, Annotated[float, Gt(0)]] | None = None,
        self_connection: SelfConnection | Sequence[SelfConnection] | None = None,
    ) -> None:
        count = (layers or 3) if isinstance(channels, int) else len(channels) - 1
        kinds: Sequence[SelfConnection] = ["none", *["elements"] * (count - 1)]  # type: ignore[list-item]
        super().__init__(
            elements=elements,
            cutoff=cutoff,
            inputs=inputs,
            k=k,
            channels=channels,
            layers=layers,
            l_max=l_max,
            l_out=l_out,
            group=group,
            radial=radial,
            radial_hidden=radial_hidden,
            self_connection=kinds if self_connection is None else self_connection,
        )
        self.exponent = exponent
        stretch = pair_stretch(self.elements, cutoff, pair_cutoffs or {}, "NequIPGNN.pair_cutoffs")
        own = torch.full((len(self.elements),), math.nan, dtype=torch.float64)
        for symbol, found in (neighbors or {}).items():
            if atomic_number(symbol) not in self.elements:
                known = ", ".join(SYMBOLS[z] for z in self.elements)
                raise ModelError(f"NequIPGNN.neighbors: found {symbol}; wanted elements of it: {known}")
            own[self.elements.index(atomic_number(symbol))] = found
        self.by_pair, self.by_element = bool(pair_cutoffs), bool(neighbors)
        self.register_constant("stretch", stretch)
        self.register_constant("own_neighbors", own)

    def radial_functions(self, edges: Edges, element: Int[Tensor, "N"]) -> Float[Tensor, "E R"]:
        assert self.cutoff is not None
        length = edges.length
        if self.by_pair:
            pairs = element.index_select(0, edges.receiver), element.index_select(0, edges.sender)
            length = length * self.stretch.to(length.dtype)[pairs]
        smooth = envelope(length, self.cutoff, self.exponent) * (edges.envelope > 0)
        return self.basis(length, smooth)

    def message_scale(self, element: Int[Tensor, "N"], dtype: torch.dtype) -> Float[Tensor, "..."]:
        mean = self.mean_neighbors.to(dtype)
        if not self.by_element:
            return mean.rsqrt()
        own = self.own_neighbors.to(dtype)
        return torch.where(own.isnan(), mean, own).rsqrt()[element][:, None, None]
