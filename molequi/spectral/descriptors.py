"""Power spectrum and bispectrum: invariants of structures that need no training."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float
from torch import Tensor

from molequi.data import Dataset
from molequi.errors import DataError
from molequi.graph import Graph, collate
from molequi.inference.descriptors import Descriptors
from molequi.neighbors import connect
from molequi.nn.radial import BesselBasis, envelope
from molequi.ops import irreps as ir
from molequi.ops import safe
from molequi.ops.segment import segment_mean
from molequi.quantities import SYMBOLS, atomic_number
from molequi.readers import load_dataset
from molequi.util.signature import check_call, check_keywords

Center = Literal["atoms", "centroid"]
Degree = Annotated[int, Ge(0), Le(11)]
BATCH = 2000  # nodes at a time
CORE = 0.1  # r0 in cutoffs: the distance from the center within which directions fade


@check_keywords()
def power_spectrum(
    structures: Any,
    *,
    cutoff: Annotated[float, Gt(0)],
    l_max: Degree = 4,
    radial: Annotated[int, Gt(0)] = 4,
    center: Center = "atoms",
    elements: Sequence[str | int] | None = None,
    **options: Any,
) -> Descriptors:
    """Power spectrum of the density of neighbors (Bartók, Kondor and Csányi 2013, arXiv 1209.3140, eq. 25):

        p_abl = Σ_m c_alm c_blm / √(2 l + 1),   c_alm = Σ_j R_a(r_ij) s(r_ij)^l Y_lm(r̂_ij).

    a and b are an element and a radial function, Bessel functions times a smooth cutoff. s(r) is
    r / √(r² + r0²) with a tenth of the cutoff as r0, since the direction r̂ of a point at the center is
    undefined: what degree l has of it vanishes as r^l, and nothing jumps when an atom crosses the centroid.
    It depends on all pairs of neighbors (three bodies), and does not change under rotations, reflections,
    translations and permutations. There are different environments with the same power spectrum (Pozdnyakov
    et al. 2020, arXiv 2001.11696).

    Parameters
    ----------
    structures : object
        What `molequi.load_dataset` takes: a Dataset, ase.Atoms or Graphs or lists of them, or files.
    cutoff : float
        Distance in Å, or in the unit of the points, up to which others are seen.
    l_max : int
        Highest degree, at most 11.
    radial : int
        Number of radial functions.
    center : {"atoms", "centroid"}
        "atoms": the environment of each atom, a row for each. "centroid": the whole structure as it is seen
        from its centroid, as a mean over its atoms, a row for each structure.
    elements : sequence of str or int, optional
        The elements that are told apart. None: those of the structures.
    **options
        Options of the reader.

    Returns
    -------
    Descriptors
        The invariants "0e".

    Raises
    ------
    ConfigError
        If an option is out of range.
    DataError
        If a structure has another element, or not three dimensions, or if one is periodic and is seen from
        its centroid.

    Examples
    --------
    >>> import molequi as mq
    >>> power_spectrum(mq.shipped("ethanol_300K.xyz"), index=":2", cutoff=4.0, l_max=2, radial=3)
    Descriptors(18 atoms of 2 structures, layer 'power spectrum', 135x0e)
    """

    def invariants(density: list[Tensor]) -> dict[str, Tensor]:
        rows, columns = torch.triu_indices(density[0].shape[1], density[0].shape[1])
        products = [
            (c @ c.transpose(1, 2))[:, rows, columns] / (2 * l + 1) ** 0.5 for l, c in enumerate(density)
        ]
        return {"0e": torch.cat(products, dim=1)}

    given: dict[str, Any] = {
        "cutoff": cutoff,
        "l_max": l_max,
        "radial": radial,
        "center": center,
        "elements": elements,
    }
    check_call(power_spectrum, given, where="power_spectrum", leave_out=("structures",))
    data = load_dataset(structures, **options)
    return Expansion(data, **given).described("power spectrum", invariants)


@check_keywords()
def bispectrum(
    structures: Any,
    *,
    cutoff: Annotated[float, Gt(0)],
    l_max: Degree = 3,
    radial: Annotated[int, Gt(0)] = 2,
    center: Center = "atoms",
    elements: Sequence[str | int] | None = None,
    **options: Any,
) -> Descriptors:
    """Bispectrum of the density of neighbors (Bartók, Kondor and Csányi 2013, arXiv 1209.3140, eq. 29):

        b_abc,l1l2l3 = Σ_m1m2m3 C_l1m1,l2m2,l3m3 c_a,l1m1 c_b,l2m2 c_c,l3m3

    with the densities c of `power_spectrum`. It depends on all triples of neighbors (four bodies). Where
    l1 + l2 + l3 is even, it does not change under reflections ("0e"); where it is odd, it changes its sign
    ("0o"), so that an environment and its mirror image differ. Each invariant is there once: those that a
    permutation of the three factors makes from others are left out, and those that are always zero.

    Parameters
    ----------
    structures, cutoff, l_max, radial, center, elements, **options
        As in `power_spectrum`. The number of invariants grows with the cube of the number of elements times
        radial functions.

    Returns
    -------
    Descriptors
        The invariants "0e" and, if there are any, the pseudoscalars "0o".

    Raises
    ------
    ConfigError, DataError
        As `power_spectrum`.

    Examples
    --------
    >>> import molequi as mq
    >>> bispectrum(mq.shipped("ethanol_300K.xyz"), index=":2", cutoff=4.0, l_max=1, radial=1)
    Descriptors(18 atoms of 2 structures, layer 'bispectrum', 28x0e+1x0o)
    """
    given: dict[str, Any] = {
        "cutoff": cutoff,
        "l_max": l_max,
        "radial": radial,
        "center": center,
        "elements": elements,
    }
    check_call(bispectrum, given, where="bispectrum", leave_out=("structures",))
    data = load_dataset(structures, **options)
    return Expansion(data, **given).described("bispectrum", triple_products)


def triple_products(density: Sequence[Float[Tensor, "N K m"]]) -> dict[str, Float[Tensor, "N B"]]:
    """All invariants of third order of K functions on the sphere: "0e", and "0o" if there are any.

    Parameters
    ----------
    density : sequence of Tensor, shapes (N, K, 1), (N, K, 3), …
        Components of degree 0, 1, …
    """
    k = density[0].shape[1]
    found: dict[str, list[Tensor]] = {"0e": [], "0o": []}
    index = torch.cartesian_prod(*[torch.arange(k)] * 3).reshape(-1, 3)
    for l1, l2, l3 in _triangles(len(density) - 1):
        odd = (l1 + l2 + l3) % 2
        # A swap of two factors of equal degree multiplies the tensor by (-1)^(l1 + l2 + l3).
        a, b, c = index.T
        kept = torch.ones(len(index), dtype=torch.bool)
        if l1 == l2:
            kept &= (a < b) if odd else (a <= b)
        if l2 == l3:
            kept &= (b < c) if odd else (b <= c)
        if not bool(kept.any()):
            continue
        coupling = ir.clebsch_gordan(l1, l2, l3).to(density[0])
        pairs = torch.einsum("xyz,nax,nby->nabz", coupling, density[l1], density[l2])
        products = torch.einsum("nabz,ncz->nabc", pairs, density[l3]).flatten(1)
        found["0o" if odd else "0e"].append(products[:, kept.nonzero()[:, 0].to(products.device)])
    return {irrep: torch.cat(parts, dim=1) for irrep, parts in found.items() if parts}


def _triangles(l_max: int) -> Iterator[tuple[int, int, int]]:
    """Degrees l1 <= l2 <= l3 <= l1 + l2."""
    for l1 in range(l_max + 1):
        for l2 in range(l1, l_max + 1):
            for l3 in range(l2, min(l1 + l2, l_max) + 1):
                yield l1, l2, l3


class Expansion:
    """Expansion of the densities of neighbors in radial functions and spherical harmonics.

    Parameters
    ----------
    data : Dataset
        The structures.
    cutoff, l_max, radial, center, elements
        As in `power_spectrum`.
    """

    def __init__(
        self,
        data: Dataset,
        cutoff: float,
        l_max: int,
        radial: int,
        center: Center,
        elements: Sequence[str | int] | None,
    ) -> None:
        self.data, self.cutoff, self.l_max, self.center = data, cutoff, l_max, center
        self.basis = BesselBasis(radial, cutoff).double()
        known = data.elements if elements is None else elements
        self.elements = sorted({atomic_number(e) for e in known})

    def density(self, graph: Graph) -> list[Float[Tensor, "rows K m"]]:
        """Components c of each degree for K elements and radial functions.

        Parameters
        ----------
        graph : Graph
            A batch of structures.
        """
        if graph.dim != 3:
            raise DataError(f"spectra are of structures in 3 dimensions; these have {graph.dim}")
        kind = torch.full((len(SYMBOLS),), -1)
        kind[self.elements] = torch.arange(len(self.elements))
        if bool((kind[graph.z] < 0).any()):
            z = int(graph.z[kind[graph.z] < 0][0])
            names = ", ".join(SYMBOLS[e] for e in self.elements)
            raise DataError(f"a structure has {SYMBOLS[z]}, which is not in elements: {names}")
        if self.center == "atoms":
            graph = connect(graph, self.cutoff)
            assert graph.edge_index is not None
            (sender, row), vector, rows = graph.edge_index, graph.edge_vectors(), graph.num_nodes
        else:
            if graph.pbc is not None:
                raise DataError("center='centroid': a periodic structure has none; take center='atoms'")
            sender, row, rows = torch.arange(graph.num_nodes), graph.batch, graph.num_graphs
            vector = graph.pos - segment_mean(graph.pos, row, rows)[row]
        length = safe.unit(vector)[1]
        # s(r)^l Y_lm(r̂), since Y_lm is a homogeneous polynomial of degree l: smooth where r = 0
        inner = vector / (vector.square().sum(1, keepdim=True) + (CORE * self.cutoff) ** 2).sqrt()
        radial = self.basis(length) * envelope(length, self.cutoff)[:, None]
        if self.center == "centroid":
            radial = radial / graph.counts[row][:, None]
        found = []
        for harmonic in ir.spherical_harmonics(self.l_max, inner):
            terms = (radial[:, :, None] * harmonic[:, None, :]).flatten(1)
            slot = row * len(self.elements) + kind[graph.z[sender]]
            total = slot.new_zeros(rows * len(self.elements), terms.shape[1], dtype=terms.dtype)
            total = total.index_add(0, slot, terms)
            found.append(total.reshape(rows, -1, harmonic.shape[1]))
        return found

    def described(self, layer: str, invariants: Callable[[list[Tensor]], dict[str, Tensor]]) -> Descriptors:
        """Invariants of all structures.

        Parameters
        ----------
        layer : str
            What they are called.
        invariants : callable
            Takes the components of `density` and returns invariants (rows, C) by irrep.
        """
        parts: list[dict[str, Tensor]] = []
        waiting: list[Graph] = []
        for k, graph in enumerate(self.data.graphs):
            waiting.append(graph.replace(targets={}))
            if k + 1 == len(self.data) or sum(g.num_nodes for g in waiting) >= BATCH:
                parts.append(invariants(self.density(collate(waiting))))
                waiting = []
        return Descriptors(
            blocks={
                irrep: torch.cat([part[irrep] for part in parts]).detach().numpy()[:, :, None]
                for irrep in parts[0]
            },
            elements=self.data.graphs.z.numpy(),
            offsets=np.concatenate([[0], np.cumsum(self.data.counts)]),
            origins=list(self.data.origins),
            layer=layer,
            pool="mean" if self.center == "centroid" else None,
            group="O(n)",
            info={name: list(column) for name, column in self.data.info.items()},
        )
