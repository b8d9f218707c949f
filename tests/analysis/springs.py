"""A diatomic of point charges on a spring, in an electric field: all its responses are known."""

import math

import torch
from ase import Atoms, units
from torch import Tensor

import molequi as mq

K, R0, CHARGE, A0, A1 = 30.0, 1.2, 0.4, 0.10, 0.05  # eV/Å^2, Å, e, e^2 Å^2/eV, e^2 Å/eV
REDUCED = 12.011 * 15.999 / (12.011 + 15.999)  # u, ASE's masses of C and O
# ν = √(k/m) / (2π c), in 1/cm
WAVENUMBER = math.sqrt(K / REDUCED) / units.fs**-1 / (2 * math.pi) * 1e15 / (units._c * 100)


class Ones(mq.Backbone):
    """A backbone whose only feature is 1."""

    group = "O(n)"

    def __init__(self, *, elements, cutoff: float | None = None):
        super().__init__(elements=elements, cutoff=cutoff)
        self.out = {"0e": 1}
        self.dummy = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, graph: mq.Graph) -> mq.Features:
        ones = graph.pos.new_ones(graph.num_nodes, 1, 1)
        return mq.Features(blocks={"0e": ones}, coordination=ones[:, 0, 0])


class Spring(mq.Head):
    """k/2 (r - r0)² - F · μ - F α F / 2 with μ = q (r_O - r_C), and α = a0 + a1 (r - r0) along the bond."""

    rank, kind = 0, "value"

    def make(self, channels) -> None:
        pass

    def forward(self, graph: mq.Graph, features: mq.Features) -> Tensor:
        first, second = graph.pos.reshape(-1, 2, 3).unbind(1)
        bond = second - first
        length = bond.norm(dim=1)
        along = (graph.electric_field * bond).sum(1) / length
        energy = K / 2 * (length - R0) ** 2 - CHARGE * (graph.electric_field * bond).sum(1)
        return energy - (A0 + A1 * (length - R0)) * along**2 / 2


def model() -> mq.Model:
    return mq.Model(Ones(elements=["C", "O"]), [Spring("energy"), "forces", *mq.response()]).double().eval()


def diatomic(length: float = R0) -> Atoms:
    return Atoms("CO", positions=[[0, 0, 0], [length, 0, 0]])


def trajectory(thermal: float, *, steps: int = 512, spacing: float = 1.0) -> list[Atoms]:
    """The vibration with ⟨m v²⟩ = k T, written down."""
    omega = math.sqrt(K / REDUCED)  # in ASE's units
    size = math.sqrt(2 * thermal / K)
    frames = []
    for n in range(steps):
        phase = omega * n * spacing * units.fs
        frame = diatomic(R0 + size * math.cos(phase))
        rate = -size * omega * math.sin(phase)
        frame.positions -= frame.get_center_of_mass()
        frame.set_velocities([[-rate * REDUCED / 12.011, 0, 0], [rate * REDUCED / 15.999, 0, 0]])
        frames.append(frame)
    return frames
