"""What a model takes from its backbone and from the terms of its energy, as properties."""

import copy
from collections.abc import Mapping
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from molequi.models import Backbone
from molequi.terms import Dispersion, Terms, as_terms, make_terms


class ModelFacts(nn.Module):
    """Properties of a model: those of its backbone, and the terms of its energy."""

    _terms: Terms
    _adds_dispersion: bool

    @property
    def _backbone(self) -> Backbone:
        return cast(Backbone, self.backbone)

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that the model knows."""
        return self._backbone.elements

    @property
    def cutoff(self) -> float | None:
        """Distance in Å up to which edges are needed; None for all pairs."""
        return self._backbone.cutoff

    @property
    def k(self) -> int | None:
        """Number of nearest neighbors that a node sees; None for all within the cutoff."""
        return self._backbone.k

    @property
    def group(self) -> str:
        """Name of the declared symmetry group, see `Backbone.group`."""
        return self._backbone.group

    @property
    def translations(self) -> bool:
        """Whether translations are a declared symmetry."""
        return self._backbone.translations

    @property
    def axis(self) -> Tensor | None:
        """The direction that every node sees, or None, see `Backbone.axis`."""
        return self._backbone.axis

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self._backbone.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def energy_terms(self) -> Terms:
        """Terms of the energy beside the network, by name: long_range, repulsion, dispersion."""
        return dict(self._terms)

    @property
    def dispersion(self) -> Dispersion | None:
        """The dispersion correction that this model adds, or None."""
        return cast(Dispersion | None, self._terms.get("dispersion"))

    def with_dispersion(self, dispersion: Dispersion | Mapping[str, Any] | None) -> Self:
        """A model that shares the weights and adds another dispersion correction.

        Parameters
        ----------
        dispersion : terms.Dispersion, mapping or None
            Such as ``{"d3": "pbe"}``; None: none, as for labels of the bare functional.

        Returns
        -------
        Model
            A new model with the same weights.

        Raises
        ------
        ModelError
            For what is no dispersion, and if the model has no energy.

        Examples
        --------
        >>> import molequi as mq
        >>> model = mq.Model(mq.PaiNN(elements=["H"]), ["energy"])
        >>> model.with_dispersion({"d3": "pbe"}).dispersion.functional
        'pbe'
        """
        kept = {name: term for name, term in self._terms.items() if name != "dispersion"}
        view = copy.copy(self)
        added = as_terms(dispersion=dispersion)
        make_terms(added, self._backbone, cast(nn.ModuleDict, self.heads))  # checks them
        view._terms = kept | added
        return view

    def add_dispersion(self, on: bool) -> None:
        """Say whether predictions have the dispersion correction: not while a training learns the rest.

        Parameters
        ----------
        on : bool
            Whether it is added. The file of the model does not depend on it.
        """
        self._adds_dispersion = on

    @property
    def labels_lack_dispersion(self) -> bool:
        """Whether the labels at hand have no dispersion that the model adds elsewhere."""
        return self.dispersion is not None and not (self._adds_dispersion and self.dispersion.in_labels)
