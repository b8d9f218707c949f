"""EGNN and NequIP with learned gates between invariant, equivariant and free layers."""

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, Gt, Le, Len

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.models.base import Backbone, Inputs
from molequi.models.egnn import EGNN
from molequi.models.nequip import Interaction, NequIP
from molequi.models.sizes import Layers
from molequi.nn.relaxed import GATES, RelaxedConvolution, RelaxedEGNNLayer, is_strict

Gates = Annotated[Sequence[float], Len(3, 3)]


class _Relaxed(Backbone):
    """A backbone with relaxed layers, which declares a symmetry only if θ of all layers is 0.

    Gates are learned, so the declared symmetry does not depend on them.
    """

    strict = "O(n)"

    @property
    def group(self) -> str:
        """The group of the strict backbone if θ of all layers is 0, otherwise "C1"."""
        return self.strict if is_strict(self) else "C1"

    @group.setter
    def group(self, of_the_strict_one: str) -> None:
        self.strict = of_the_strict_one


class RelaxedEGNN(_Relaxed, EGNN):
    """EGNN with a free part: each update is α · E(n) + (1 - α) · free, with a learned α for each node.

    `nn.RelaxedEGNNLayer` has the equations (after van der Ouderaa et al. 2022, arXiv 2204.07178). For c = 0,
    α is 1 and the model is exactly `EGNN`, whose weights have the same names.

    ``nn.set_theta(model, 0)`` removes the free part, and the model declares O(n) again; otherwise it declares
    "C1". The free part reads directions in the frame of the laboratory and no positions, so that translations
    remain a symmetry. A training loss alone never prefers symmetry: gates that follow it end free, also on
    symmetric data.

    Parameters
    ----------
    elements : sequence of str or int
        Symbols or atomic numbers that it knows; 0 or "X" is a plain point.
    cutoff : float or None
        Distance in Å up to which a node sees others, above 0. None: it sees all other nodes.
    inputs : Inputs, optional
        What it reads of a graph besides elements and positions, such as ``Inputs(charge=True)``. It accepts
        charge, spin, velocity, node features, edge features, node vectors and an electric field.
    k : int, optional
        A node sees only its k nearest neighbors (point clouds). None: all within the cutoff.
    channels : int
        Number of invariants of a node, above 0.
    layers : int
        Number of layers, above 0.
    radial : int
        Number of Bessel functions, above 0; without a cutoff it has no meaning.
    attention : bool
        Whether each message has a learned weight between 0 and 1.
    normalize : bool
        Whether the invariants of a node are kept from growing from layer to layer, see `EGNN`.
    gates : sequence of three float
        Initial values of the gates a, b and c of all layers. c = 0 is strictly equivariant, (1, 0, 0)
        invariant.
    dim : int
        Dimensions of space, above 0.

    Raises
    ------
    ConfigError
        For an option that is unknown, of the wrong type or out of range.
    ModelError
        If `elements` is no list.

    Notes
    -----
    Features have ``"0e"`` of shape (N, channels, 1) and ``"1o"`` of shape (N, layers, D), the
    displacement in each layer in Å.

    Examples
    --------
    >>> import molequi as mq
    >>> backbone = RelaxedEGNN(elements=["H", "O"], cutoff=3.0, channels=16, layers=2)
    >>> water = mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
    >>> features = backbone(mq.connect(water, backbone.cutoff))
    >>> {irrep: tuple(block.shape) for irrep, block in features.blocks.items()}
    {'0e': (3, 16, 1), '1o': (3, 2, 3)}
    """

    layer = RelaxedEGNNLayer
    family = "EGNN with a free part"
    good_for = "data whose symmetry is broken or not known"

    def __init__(
        self,
        *,
        elements: Sequence[str | int],
        cutoff: Annotated[float, Gt(0)] | None = 5.0,
        inputs: Inputs = Inputs(),
        k: Annotated[int, Gt(0)] | None = None,
        channels: Annotated[int, Gt(0)] = 128,
        layers: Layers = 4,
        radial: Annotated[int, Gt(0)] = 16,
        attention: bool = False,
        normalize: bool = False,
        gates: Gates = GATES,
        dim: Annotated[int, Gt(0)] = 3,
    ) -> None:
        EGNN.__init__(
            self,
            elements=elements,
            cutoff=cutoff,
            inputs=inputs,
            k=k,
            channels=channels,
            layers=layers,
            radial=radial,
            attention=attention,
            normalize=normalize,
        )
        self.dim = dim
        for layer in self.layers:
            assert isinstance(layer, RelaxedEGNNLayer)
            layer.open(gates, dim=dim)

    def forward(self, graph: Graph) -> Features:
        if graph.dim != self.dim:
            raise ModelError(
                f"this RelaxedEGNN has free weights for {self.dim} dimensions and these structures have "
                f"{graph.dim}; build it with dim={graph.dim}"
            )
        return super().forward(graph)


class RelaxedNequIP(_Relaxed, NequIP):
    """NequIP with a free part in its convolutions: kernels a W_inv(r) + b Σ_l R_l(r) Y_l(r̂) ⊗ + θ c Ψ(x_ij).

    `nn.RelaxedConvolution` has the equations (after van der Ouderaa et al. 2022, arXiv 2204.07178). For a = b
    = 1 and c = 0 the model is exactly `NequIP`, whose weights have the same names. For c = 0 it is
    equivariant.

    ``nn.set_theta(model, 0)`` removes the free part, and the model declares O(3) again; otherwise it declares
    "C1". The free part reads directions in the frame of the laboratory and no positions, so that translations
    remain a symmetry. A training loss alone never prefers symmetry: gates that follow it end free, also on
    symmetric data.

    Parameters
    ----------
    elements : sequence of str or int
        Symbols or atomic numbers that it knows; 0 or "X" is a plain point.
    cutoff : float
        Distance in Å up to which a node sees others, above 0.
    inputs : Inputs, optional
        What it reads of a graph besides elements and positions, such as ``Inputs(charge=True)``. It accepts
        charge, spin, node features, edge features, node vectors and an electric field.
    k : int, optional
        A node sees only its k nearest neighbors (point clouds). None: all within the cutoff.
    channels : int
        Number of channels of each irrep, above 0.
    layers : int
        Number of layers, above 0.
    l_max : int
        Highest degree of features and spherical harmonics, 0 to 6.
    parity : bool
        Whether there are also irreps 0o, 1e, 2o, …, whose sign under reflections is the opposite of the
        natural one.
    l_out : int, optional
        Highest degree that is returned, 0 to `l_max`. None: `l_max`.
    radial : int
        Number of radial functions, above 0.
    radial_hidden : sequence of int
        Channels of the hidden layers of the radial perceptrons; ``()`` for linear ones.
    gates : sequence of three float
        Initial values of the gates a, b and c of all layers. c = 0 is strictly equivariant, (1, 0, 0)
        invariant.

    Raises
    ------
    ConfigError
        For an option that is unknown, of the wrong type or out of range.
    ModelError
        If `l_out` exceeds `l_max`.

    Notes
    -----
    Features have ``"0e"`` of shape (N, channels, 1), ``"1o"`` of shape (N, channels, 3), and so on up to
    `l_out`.

    Examples
    --------
    >>> import molequi as mq
    >>> backbone = RelaxedNequIP(elements=["H", "O"], cutoff=3.0, channels=8, layers=2, l_max=1)
    >>> water = mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
    >>> features = backbone(mq.connect(water, backbone.cutoff))
    >>> {irrep: tuple(block.shape) for irrep, block in features.blocks.items()}
    {'0e': (3, 8, 1), '1o': (3, 8, 3)}
    """

    family = "NequIP with a free part"
    good_for = "data whose symmetry is broken or not known"

    def __init__(
        self,
        *,
        elements: Sequence[str | int],
        cutoff: Annotated[float, Gt(0)] = 5.0,
        inputs: Inputs = Inputs(),
        k: Annotated[int, Gt(0)] | None = None,
        channels: Annotated[int, Gt(0)] = 64,
        layers: Layers = 3,
        l_max: Annotated[int, Ge(0), Le(6)] = 2,
        parity: bool = False,
        l_out: Annotated[int, Ge(0), Le(6)] | None = None,
        radial: Annotated[int, Gt(0)] = 8,
        radial_hidden: Sequence[Annotated[int, Gt(0)]] = (64, 64),
        gates: Gates = GATES,
    ) -> None:
        NequIP.__init__(
            self,
            elements=elements,
            cutoff=cutoff,
            inputs=inputs,
            k=k,
            channels=channels,
            layers=layers,
            l_max=l_max,
            parity=parity,
            l_out=l_out,
            radial=radial,
            radial_hidden=radial_hidden,
        )
        for interaction in self.interactions:
            assert isinstance(interaction, Interaction)
            interaction.convolution = RelaxedConvolution(interaction.convolution, gates)
