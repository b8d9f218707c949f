"""A quantity of your own: the response of the energy to an electric field, which is a field of your own."""

import torch
from torch import nn

import molequi as mq
from molequi import Features, Graph, Quantity

from .own_backbone import SchNet

# The dipole in the field, d = -∂E/∂F, in e Å: the field is in V/Å and the energy in eV.
RESPONSE = Quantity("response", rank=1, unit="e Å", gradient_of="energy", wrt="efield", factor=-1.0)


def declare() -> None:
    """Declare the field. Every script that uses it has to do so."""
    mq.add_field("efield", per="graph", rank=1, unit="V/Å")


class SchNetInField(SchNet):
    """SchNet whose invariants depend on the field F by h_i += U (v_i · F) and on its strength."""

    def __init__(self, *, elements: list, cutoff: float = 5.0, channels: int = 64, layers: int = 3) -> None:
        super().__init__(elements=elements, cutoff=cutoff, channels=channels, layers=layers)
        self.mix = nn.Linear(channels, channels)

    def forward(self, graph: Graph) -> Features:
        features = super().forward(graph)
        vectors = features.blocks["1o"]  # (N, C, D)
        field = graph.efield[graph.batch].to(vectors.dtype)  # (N, D)
        along = torch.einsum("ncd,nd->nc", vectors, field) + field.square().sum(1, keepdim=True)
        scalars = features.blocks["0e"] + self.mix(along)[:, :, None]
        return Features(blocks={"0e": scalars, "1o": vectors}, coordination=features.coordination)
