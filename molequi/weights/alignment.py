"""Align networks: equal neurons get equal places, signs and scales.

The matching is that of `molequi.merging.align`, which `molequi.merge` uses ("weight matching", Ainsworth et
al. 2023, arXiv 2209.04836): each permutation is a linear assignment, given those of the layers beside it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from molequi.errors import DataError, ModelError
from molequi.merging.alignment import align as matched
from molequi.merging.alignment import closeness
from molequi.merging.channels import Channels
from molequi.util.html import html_facts
from molequi.weights.networks import Networks
from molequi.weights.symmetry import Kind, NeuronGroup, NeuronMap, balanced, kind_of, rescaled


@dataclass(frozen=True)
class Aligned:
    """The result of `align`.

    Parameters
    ----------
    networks : Networks
        The second networks with their neurons in the order of those of the first ones; same outputs.
    element : NeuronMap
        What was done to them, an element of ``group`` for each; with scales after they were balanced.
    group : NeuronGroup
        The symmetry that was used.
    before, after : tuple of float
        How close the weights of each pair are, see `molequi.merging.closeness`.
    """

    networks: Networks
    element: NeuronMap
    group: NeuronGroup
    before: tuple[float, ...]
    after: tuple[float, ...]

    def _facts(self) -> dict[str, str]:
        mean = [sum(values) / len(values) for values in (self.before, self.after)]
        return {
            "networks": str(self.networks),
            "symmetry": str(self.group),
            "closeness of weights": f"{mean[0]:.3f} → {mean[1]:.3f}",
        }

    def __str__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self._facts().items())

    def _repr_html_(self) -> str:
        return html_facts(self._facts())

    __repr__ = __str__


def align(reference: Networks, other: Networks, *, symmetry: "Kind | Literal['auto']" = "auto") -> Aligned:
    """Bring networks as close to others as the symmetry of their hidden neurons allows.

    A network whose neurons were permuted (and whose signs or scales were changed) becomes the reference
    again. Networks of independent starts come closer; what is left is that they are different networks.

    Parameters
    ----------
    reference : Networks
        One network, or one for each of the others.
    other : Networks
        The networks that are aligned.
    symmetry : {"auto", "permutations", "signs", "scales"}
        What may be changed beside the order; "auto" is `Architecture.symmetry`.

    Returns
    -------
    Aligned
        Its ``networks`` compute the same as ``other``.

    Raises
    ------
    DataError
        For networks of another architecture or number.
    ModelError
        For a symmetry that the activation does not have, and for "none".

    Examples
    --------
    >>> from molequi.weights import Architecture
    >>> nets = Networks.random(Architecture((2, 16, 16, 1), "tanh"), 1)
    >>> group = NeuronGroup.of(nets.architecture)
    >>> bool((align(nets, group.act(group.sample(), nets)).networks.flat() == nets.flat()).all())
    True
    """
    if reference.architecture != other.architecture or len(reference) not in (1, len(other)):
        raise DataError(
            f"{reference} and {other}: wanted one architecture, and one reference or one for each"
        )
    architecture = other.architecture
    kind = kind_of(architecture, symmetry)
    if kind == "none":
        raise ModelError("symmetry 'none' leaves nothing to align; take 'auto'")
    group = NeuronGroup(architecture.sizes, kind)
    scales: dict[int, Tensor] = {}
    a, b = reference, other
    if kind == "scales":
        (a, scales), (b, _) = balanced(reference), balanced(other)
    module = nn.ModuleDict({"net": architecture.module().to("meta")})
    channels = Channels(module)
    channels.mlp("net", module["net"], None, None, hidden="signed" if kind == "signs" else "permutations")
    found = [matched(_named(a, k if len(a) > 1 else 0), _named(b, k), channels) for k in range(len(b))]
    names = dict(zip(group.layers, channels.spaces))
    maps = {m: torch.stack([one[name] for one in found]) for m, name in names.items()}
    element = NeuronMap(
        {m: matrix.abs().argmax(dim=2) for m, matrix in maps.items()},
        {m: matrix.sum(dim=2) for m, matrix in maps.items()},
    )
    signed = NeuronGroup(architecture.sizes, "signs")
    aligned = signed.act(element, b)
    if scales:
        aligned = rescaled(aligned, {m: q.expand(len(b), -1) for m, q in scales.items()})
    pairs = [(reference, reference[[0] * len(other)])[len(reference) != len(other)], other, aligned]
    before, after = (
        tuple(closeness(_named(pairs[0], k), _named(one, k)) for k in range(len(other))) for one in pairs[1:]
    )
    return Aligned(aligned, element, group, before, after)


def _named(networks: Networks, index: int) -> dict[str, Tensor]:
    """The weights of one network by the names in its module; an activation stands between two maps."""
    out: dict[str, Tensor] = {}
    for k, (w, b) in enumerate(zip(networks.weights, networks.biases)):
        out |= {f"net.{2 * k}.weight": w[index, ..., 0], f"net.{2 * k}.bias": b[index, :, 0]}
    return out
