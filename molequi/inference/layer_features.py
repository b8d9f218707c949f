"""The features that a layer of a backbone computes, by irrep."""

from functools import partial

import torch
from torch import Tensor, nn

from molequi.errors import ConfigError, ModelError, did_you_mean
from molequi.graph import Graph
from molequi.model import Model
from molequi.models.base import Layouts
from molequi.models.layouts import LayerLayout

OUTPUT = "output"  # the features that heads read


class LayerFeatures:
    """Computes the features of each node in one layer, by irrep.

    Parameters
    ----------
    model : Model
        The model; heads and compiled programs are not used.
    layer : str, optional
        A layer of `Backbone.states`, such as ``"layers.0"``. A layer that is called several times gives its
        last output. None: what the backbone returns and heads read.

    Raises
    ------
    ConfigError
        If the backbone describes no such layer.

    Examples
    --------
    >>> import torch
    >>> import molequi as mq
    >>> model = mq.Model(mq.PaiNN(elements=["H", "O"], cutoff=3.0, channels=8, layers=2), ["energy"])
    >>> water = mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
    >>> with torch.no_grad():
    ...     blocks = LayerFeatures(model.eval(), "updates.0")(mq.connect(water, 3.0))
    >>> {irrep: tuple(block.shape) for irrep, block in blocks.items()}
    {'0e': (3, 8, 1), '1o': (3, 8, 3)}
    """

    def __init__(self, model: Model, layer: str | None = None) -> None:
        self.model, self.layer = model.plain(), layer or OUTPUT
        states = model.backbone.states()
        if self.layer != OUTPUT and self.layer not in states:
            kind = type(model.backbone).__name__
            there = [OUTPUT, *states]
            none = "" if states else f" ({kind}.states() describes no layers)"
            raise ConfigError(
                f"layer={layer!r}: {kind} has no such layer{did_you_mean(self.layer, there)}; wanted one of "
                f"{', '.join(there)}{none}"
            )
        self.layout: Layouts = states.get(self.layer)

    def __call__(self, graph: Graph) -> dict[str, Tensor]:
        """Blocks of shape (N, C, m) by irrep.

        Parameters
        ----------
        graph : Graph
            A batch of connected structures on the device of the model.

        Raises
        ------
        ModelError
            If the layer has no features of nodes, or does not return what its layout says.
        """
        self.model.check(graph)
        backbone = self.model.backbone
        if self.layer == OUTPUT:
            return dict(backbone(graph).blocks)
        found: list[object] = []
        module = dict(backbone.named_modules()).get(self.layer)
        if module is None:
            raise ModelError(
                f"{type(backbone).__name__}.states names the layer {self.layer!r}, which is no submodule; "
                "wanted a name of named_modules()"
            )
        handle = module.register_forward_hook(partial(_keep, found))
        try:
            backbone(graph)
        finally:
            handle.remove()
        if not found:
            raise ModelError(f"the layer {self.layer!r} was not called; choose another layer")
        return self._by_irrep(found[-1], graph)

    def _by_irrep(self, value: object, graph: Graph) -> dict[str, Tensor]:
        """The parts of an output; those of the same irrep side by side."""
        several = value if isinstance(value, (tuple, list)) else (value,)
        layouts = self.layout if isinstance(self.layout, tuple) else (self.layout,)
        where = f"layer {self.layer!r}"
        if len(several) != len(layouts):
            raise ModelError(
                f"{where}: {len(layouts)} layouts, and the layer returns {len(several)} tensors; states() "
                "has a tuple with one for each, None for what is not described"
            )
        parts: dict[str, list[Tensor]] = {}
        for layout, one in zip(layouts, several):
            if layout is None or layout == "point":  # positions are no features
                continue
            state = LayerLayout(layout, graph.pos.shape[1], where)
            state.check(one)
            assert isinstance(one, Tensor)
            if one.shape[0] != graph.num_nodes:
                raise ModelError(
                    f"{where}: {one.shape[0]} rows for {graph.num_nodes} atoms; wanted a layer with one row "
                    "for each atom; choose another layer"
                )
            for irrep, part in state.split(one):
                parts.setdefault(irrep, []).append(part)
        if not parts:
            raise ModelError(f"{where}: states() describes no features of atoms there; choose another layer")
        return {irrep: torch.cat(blocks, dim=1) for irrep, blocks in parts.items()}


def _keep(found: list[object], module: nn.Module, inputs: tuple, output: object) -> None:
    found.append(output)
