"""From what a file of nequip says about its model to the same model here."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from molequi.errors import CheckpointError
from molequi.foreign.tables import Tables
from molequi.heads import LinearScalar, ZBLEnergy
from molequi.model import Model
from molequi.models.nequip_gnn import NequIPGNN
from molequi.models.sevennet import TANH_GAIN, ElementMatrices, Interaction, Mix
from molequi.nn.mlp import SILU_GAIN
from molequi.nn.pair_energies import ZBL
from molequi.ops import irreps as ir
from molequi.quantities import KNOWN, SYMBOLS

Blocks = tuple[tuple[str, int], ...]  # irreps and their channels in the order of the file
PairCutoffs = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The model of a file.

    Parameters
    ----------
    where : str
        The file, for messages.
    elements : tuple of int
        Atomic numbers in the order of the types of the file.
    cutoff : float
        Distance in Å.
    exponent : float
        Exponent of the cutoff function.
    pair_cutoffs : mapping of str to mapping of str to float or None
        Cutoffs in Å by the symbols of an atom and its neighbor.
    harmonics : tuple of str
        Irreps of the spherical harmonics.
    embedding : int
        Channels of the embedding of the types.
    layers : tuple of Blocks
        Irreps that each layer may have.
    connected : tuple of bool
        Whether each layer has a self-connection.
    bessels : int
        Number of Bessel functions.
    radial, readout : tuple of int
        Channels of the hidden layers of radial functions, and of the readout.
    activation : "silu" or None
        What stands between the linear maps of the readout.
    neighbors : tuple of float or None
        Mean number of neighbors: of all, or by type. None: sums are not divided.
    repulsion : float or None
        Exponent of the cutoff function of the repulsion of nuclei. None: there is no repulsion.
    """

    where: str
    elements: tuple[int, ...]
    cutoff: float
    exponent: float
    pair_cutoffs: PairCutoffs | None
    harmonics: tuple[str, ...]
    embedding: int
    layers: tuple[Blocks, ...]
    connected: tuple[bool, ...]
    bessels: int
    radial: tuple[int, ...]
    readout: tuple[int, ...]
    activation: Literal["silu"] | None
    neighbors: tuple[float, ...] | None
    repulsion: float | None

    @property
    def group(self) -> Literal["O(3)", "SO(3)"]:
        """SO(3) if the file calls all irreps even."""
        natural = [ir.natural(l) for l in range(len(self.harmonics))]
        return "O(3)" if list(self.harmonics) == natural else "SO(3)"

    def name(self, irrep: str) -> str:
        """The name of an irrep here, which has natural parity with SO(3).

        Parameters
        ----------
        irrep : str
            Its name in the file.
        """
        return irrep if self.group == "O(3)" else ir.natural(ir.parse(irrep)[0])

    def refuse(self, what: str, found: object, wanted: str) -> CheckpointError:
        """An error that says what is not known.

        Parameters
        ----------
        what : str
            Name of the option.
        found : object
            Its value.
        wanted : str
            What this version reads.
        """
        return CheckpointError(f"{self.where}: {what} is {str(found)[:80]}; this version reads {wanted}")

    def check(self) -> None:
        """Raise CheckpointError for irreps and numbers that this version does not know."""
        even = [f"{l}e" for l in range(len(self.harmonics))]
        natural = [ir.natural(l) for l in range(len(self.harmonics))]
        if list(self.harmonics) not in (natural, even) or not self.harmonics:
            raise self.refuse(
                "irreps_edge_sh", "+".join(self.harmonics), "0e+1o+2e+…, or 0e+1e+2e+…, without gaps"
            )
        irreps = [irrep for blocks in self.layers for irrep, _ in blocks]
        highest = max(len(self.harmonics) - 1, *(ir.parse(irrep)[0] for irrep in irreps), 0)
        if not 0 < len(self.layers) <= 100 or highest > 6:
            found = f"{len(self.layers)} layers of degrees up to {highest}"
            raise self.refuse("the model", found, "1 to 100 layers of degrees up to 6")
        if not 0.0 < self.cutoff < math.inf:
            raise self.refuse("r_max", self.cutoff, "a distance above zero")
        for blocks in self.layers:
            names = [irrep for irrep, _ in blocks]
            if len(set(names)) < len(names) or not all(count > 0 for _, count in blocks):
                raise self.refuse("feature_irreps_hidden", _text(blocks), "each irrep once")
        for what, value in (("polynomial_cutoff_p", self.exponent), ("of the repulsion", self.repulsion)):
            if value is not None and not (2 <= value <= 1000 and value == int(value)):
                raise self.refuse(f"the exponent {what}", value, "whole numbers from 2 to 1000")
        if len(set(self.elements)) < len(self.elements):
            raise self.refuse("type_names", [SYMBOLS[z] for z in self.elements], "each element once")
        last = list(self.steps())[-1].outputs
        if [irrep for irrep, _ in last] != ["0e"]:
            raise self.refuse("the last of feature_irreps_hidden", _text(last), "invariants, such as 32x0e")

    def steps(self) -> Iterator["Step"]:
        """The layers, with the irreps that they have."""
        now: Blocks = (("0e", self.embedding),)
        for blocks in self.layers:
            step = Step(self.harmonics, now, blocks)
            yield step
            now = step.outputs


class Step:
    """A layer as e3nn has it.

    Parameters
    ----------
    harmonics : tuple of str
        Irreps of the spherical harmonics.
    inputs : Blocks
        Irreps of the features before.
    hidden : Blocks
        Irreps that the layer may have; those that no product reaches are left out.

    Attributes
    ----------
    outputs : Blocks
        Irreps of the features after the gate: invariants, and others in the order of the file.
    before_gate : dict of str to int
        Channels before the gate in e3nn's order; "0e" has the gates after its own channels.
    gates : list of tuple
        Irreps that have gates, and their channels.
    paths : list of tuple
        Irrep of the features, its channels, degree of the harmonic, and irrep of the product, in the order of
        the radial weights.
    """

    def __init__(self, harmonics: tuple[str, ...], inputs: Blocks, hidden: Blocks) -> None:
        products = [
            (source, count, l, target)
            for source, count in inputs
            for l, harmonic in enumerate(harmonics)
            for target in _product(source, harmonic)
        ]
        reached = {target for *_, target in products}
        scalars = tuple(block for block in hidden if ir.parse(block[0])[0] == 0 and block[0] in reached)
        self.gates = tuple(block for block in hidden if ir.parse(block[0])[0] > 0 and block[0] in reached)
        self.inputs, self.outputs = inputs, scalars + self.gates
        channels = dict(self.outputs)
        number = sum(count for _, count in self.gates)
        if number or "0e" in channels:
            channels["0e"] = channels.get("0e", 0) + number
        self.before_gate = dict(sorted(channels.items(), key=lambda item: ir.parse(item[0])))
        self.paths = [path for path in products if path[3] in self.before_gate]

    @property
    def widths(self) -> dict[str, int]:
        """Channels of the sums of messages by irrep."""
        return {
            target: sum(count for _, count, _, t in self.paths if t == target) for target in self.before_gate
        }


def model_of(found: Architecture, tables: Tables) -> Model:
    """The model of a file.

    Parameters
    ----------
    found : Architecture
        What the file says about it.
    tables : Tables
        Its tensors, by their names in the energy model.

    Raises
    ------
    CheckpointError
        If the tensors are not those of this architecture.
    """
    found.check()
    for name, shape in _shapes(found):  # before larger ones are made here
        tables.take(name, *shape)
    symbols = [SYMBOLS[z] for z in found.elements]
    steps = list(found.steps())
    layouts = [
        {found.name(i): n for i, n in blocks}
        for blocks in ((("0e", found.embedding),), *(step.outputs for step in steps))
    ]
    by_type = found.neighbors is not None and len(found.neighbors) > 1
    backbone = NequIPGNN(
        elements=symbols,
        cutoff=found.cutoff,
        channels=layouts,
        l_max=len(found.harmonics) - 1,
        group=found.group,
        radial=found.bessels,
        radial_hidden=list(found.radial),
        exponent=int(found.exponent),
        pair_cutoffs=found.pair_cutoffs,
        neighbors=dict(zip(symbols, found.neighbors)) if by_type and found.neighbors else None,
        self_connection=["elements" if one else "none" for one in found.connected],
    )
    head: LinearScalar = LinearScalar(KNOWN["energy"], hidden=found.readout, activation=found.activation)
    if found.repulsion is not None:
        head = ZBLEnergy(
            KNOWN["energy"],
            hidden=found.readout,
            activation=found.activation,
            cutoff=found.cutoff,
            exponent=int(found.repulsion),
            pair_cutoffs=found.pair_cutoffs,
        )
    model = Model(backbone, [head, KNOWN["forces"], KNOWN["stress"]]).double()
    with torch.no_grad():
        _Transfer(found, tables, backbone).fill(head)
    return model


class _Transfer:
    """Weights from the file into the model: other shapes and normalizations, the same functions."""

    def __init__(self, found: Architecture, tables: Tables, backbone: NequIPGNN) -> None:
        from e3nn.math import normalize2mom

        self.found, self.tables, self.backbone = found, tables, backbone
        # e3nn has sampled its constants; ours are by quadrature. The quotient goes into the next weights.
        self.silu = normalize2mom(torch.nn.functional.silu).cst / SILU_GAIN
        self.tanh = normalize2mom(torch.tanh).cst / TANH_GAIN
        self.rows = [found.elements.index(z) for z in backbone.elements]  # of our elements in the file

    def fill(self, head: LinearScalar) -> None:
        found, take, backbone = self.found, self.tables.take, self.backbone
        types = len(found.elements)
        embedding = take("type_embed.embed_module.weight", types, found.embedding)
        backbone.embedding.element.weight.copy_(embedding[self.rows])
        self._cutoffs()
        roots = take("bessel_encode.bessel_weights", 1, found.bessels)[0]
        backbone.basis.frequencies.copy_(roots * (math.pi / found.cutoff))
        neighbors = found.neighbors or (1.0,)
        backbone.mean_neighbors.fill_(sum(neighbors) / len(neighbors))
        layers = cast(list[Interaction], list(backbone.interactions))
        for k, (step, layer) in enumerate(zip(found.steps(), layers)):
            gains = {} if k == 0 else self._gains(step.inputs)
            self._check_couplings(f"layer{k}_convnet.")
            self._before(f"layer{k}_convnet.conv.linear_1.weight", step, layer.before, gains)
            if found.connected[k]:
                self._own(f"layer{k}_convnet.conv.sc.weight", step, layer.own, embedding, gains)
            self._radial(f"layer{k}_convnet.conv.edge_mlp", step, layer)
            self._after(f"layer{k}_convnet.conv.linear_2.weight", step, layer)
        maps = [m for m in head.net if isinstance(m, nn.Linear)]
        weights = self._perceptron("per_atom_energy_readout.mlp_module", maps, found.activation is not None)
        for target, weight in zip(maps, weights):
            target.weight.copy_(weight.T)
        maps[0].weight.mul_(self.silu)
        self._scale(head)
        if found.repulsion is not None:
            self._check_repulsion()

    def _cutoffs(self) -> None:
        """Raise CheckpointError if the cutoffs of the tensors are not those of the options."""
        found = self.found
        wanted = torch.tensor(found.cutoff, dtype=torch.float64)
        if found.pair_cutoffs is not None:
            symbols = [SYMBOLS[z] for z in found.elements]
            wanted = torch.tensor(
                [found.pair_cutoffs[i].get(j, found.cutoff) for i in symbols for j in symbols],
                dtype=torch.float64,
            )
        name = "edge_norm._rmax_recip"
        if not torch.allclose(self.tables.take(name, *wanted.shape) * wanted, torch.ones_like(wanted)):
            raise found.refuse(name, self.tables.peek(name).tolist(), f"the inverse of {wanted.tolist()}")

    def _gains(self, blocks: Blocks) -> dict[str, float]:
        """What features of a layer have to be multiplied with, by irrep of the file."""
        return {irrep: self.tanh if irrep == "0o" else self.silu for irrep, _ in blocks}

    def _before(self, name: str, step: Step, layer: Mix, gains: Mapping[str, float]) -> None:
        """A linear map of e3nn: one matrix for each irrep, one after another."""
        sizes = [n * n for _, n in step.inputs]
        for (irrep, n), part in zip(step.inputs, self.tables.take(name, sum(sizes)).split(sizes)):
            weight = part.view(n, n).T * (gains.get(irrep, 1.0) / n**0.5)
            cast(nn.Linear, layer.mix[self.found.name(irrep)]).weight.copy_(weight)

    def _own(self, name: str, step: Step, layer: Mix, embedding: Tensor, gains: Mapping[str, float]) -> None:
        """A product of features with the embedding of the type: one matrix for each type."""
        blocks = [
            (irrep, n, step.before_gate[irrep]) for irrep, n in step.inputs if irrep in step.before_gate
        ]
        types = embedding.shape[1]
        sizes = [n * types * m for _, n, m in blocks]
        for (irrep, n, m), part in zip(blocks, self.tables.take(name, sum(sizes)).split(sizes)):
            weight = torch.einsum("uvw,zv->zuw", part.view(n, types, m), embedding[self.rows])
            weight = weight * (gains.get(irrep, 1.0) / (n * types) ** 0.5)
            target = cast(ElementMatrices, layer.mix[self.found.name(irrep)])
            target.weight.copy_(weight[:, :, self._columns(step, irrep)])

    def _columns(self, step: Step, irrep: str) -> list[int]:
        """Channels before the gate in our order, in which gates stand by irrep."""
        count = step.before_gate[irrep]
        if irrep != "0e":
            return list(range(count))
        start = dict(step.outputs).get("0e", 0)
        places, columns = {}, list(range(start))
        for gated, n in step.gates:
            places[gated] = range(start, start + n)
            start += n
        for gated in sorted(places, key=ir.parse):
            columns += places[gated]
        return columns

    def _radial(self, name: str, step: Step, layer: Interaction) -> None:
        maps = [m for m in layer.radial if isinstance(m, nn.Linear)]
        *first, last = self._perceptron(name, maps, True)
        for target, weight in zip(maps, first):
            target.weight.copy_(weight.T)
        keys = [(self.found.name(source), l, self.found.name(target)) for source, _, l, target in step.paths]
        columns = dict(zip(keys, last.split([n for _, n, _, _ in step.paths], dim=1)))
        maps[-1].weight.copy_(torch.cat([columns[path] for path in layer.paths], dim=1).T)

    def _perceptron(self, name: str, maps: list[nn.Linear], active: bool) -> list[Tensor]:
        """Matrices of a perceptron without biases, with the factors that make them ours."""
        deep = not active and len(maps) > 1  # the file multiplies the matrices before it uses them
        out = []
        for k, target in enumerate(maps):
            key = f"{name}.mlp.weights.{k}" if deep else f"{name}.mlp.{2 * k}.weight"
            n, m = target.in_features, target.out_features
            factor = math.sqrt(2.0) / SILU_GAIN if active and k else 1.0
            out.append(self.tables.take(key, n, m) * (factor / n**0.5))
        return out

    def _after(self, name: str, step: Step, layer: Interaction) -> None:
        widths, found = step.widths, self.found
        sizes = [widths[irrep] * m for irrep, m in step.before_gate.items()]
        parts = self.tables.take(name, sum(sizes)).split(sizes)
        for (irrep, m), part in zip(step.before_gate.items(), parts):
            paths = [path for path in step.paths if path[3] == irrep]
            weight = part.view(widths[irrep], m)[:, self._columns(step, irrep)] / widths[irrep] ** 0.5
            blocks = dict(
                zip(
                    [(found.name(source), l) for source, _, l, _ in paths],
                    weight.split([n for _, n, _, _ in paths]),
                )
            )
            ours = [blocks[source, l] for source, l, target in layer.paths if target == found.name(irrep)]
            cast(nn.Linear, layer.after.mix[found.name(irrep)]).weight.copy_(torch.cat(ours).T)

    def _scale(self, head: LinearScalar) -> None:
        """Scale and shift of the energy of an atom, by type; empty tensors say that there is none."""
        prefix = "per_type_energy_scale_shift."
        scale, shift = (
            self._by_type(prefix + what, value) for what, value in (("scales", 1.0), ("shifts", 0.0))
        )
        alike = bool((scale == scale[0]).all())
        head.scale.fill_(float(scale[0]) if alike else 1.0)
        for z, row in zip(self.backbone.elements, self.rows):
            head.element_scale[z] = 1.0 if alike else float(scale[row])
            head.shift[z] = float(shift[row])

    def _by_type(self, name: str, default: float) -> Tensor:
        values, types = self.tables.take(name).flatten(), len(self.found.elements)
        if values.numel() not in (0, 1, types):
            raise self.found.refuse(name, tuple(values.shape), f"none, one, or {types} numbers")
        return values.expand(types) if values.numel() else torch.full((types,), default, dtype=torch.float64)

    def _check_repulsion(self) -> None:
        """Raise CheckpointError for a repulsion of other elements or in other units."""
        found, prefix = self.found, "pair_potential."
        numbers = self.tables.take(prefix + "atomic_numbers", len(found.elements)).tolist()
        if numbers != list(found.elements):
            raise found.refuse(prefix + "atomic_numbers", numbers, f"those of the types, {found.elements}")
        half = float(self.tables.take(prefix + "_qqr2exesquare"))
        if not math.isclose(2 * half, ZBL.COULOMB, rel_tol=1e-12):
            raise found.refuse(
                prefix + "_qqr2exesquare", half, f"{ZBL.COULOMB / 2} eV Å (units: metal); energies are in eV"
            )

    def _check_couplings(self, prefix: str) -> None:
        """Raise CheckpointError for constants of e3nn that are no Clebsch-Gordan tensors as ours."""
        for name, value in self.tables.state.items():
            if name.startswith(prefix) and ("._w3j_" in name or "._tensor_constant" in name):
                degrees = [(size - 1) // 2 for size in value.shape]
                known = len(degrees) == 3 and max(degrees) <= 12
                ours = ir.clebsch_gordan(*degrees) if known else None
                if ours is None or ours.shape != value.shape:
                    raise self.found.refuse(name, tuple(value.shape), "Clebsch-Gordan tensors")
                if not torch.allclose(self.tables.take(name), ours, atol=1e-5):
                    raise self.found.refuse(name, "another tensor", "the Clebsch-Gordan tensors of e3nn 0.5")


def elements_of(where: str, types: Sequence[str]) -> tuple[int, ...]:
    """Atomic numbers of the types of a file.

    Parameters
    ----------
    where : str
        The file, for messages.
    types : sequence of str
        Names of the types.

    Raises
    ------
    CheckpointError
        If a name is no symbol of an element.
    """
    wrong = [name for name in types if name not in SYMBOLS[1:]]
    if wrong or not types:
        raise CheckpointError(
            f"{where}: the type names {', '.join(map(str, types))} are no symbols of elements "
            f"({', '.join(map(str, wrong[:3])) or 'none'}); this version reads models of elements"
        )
    return tuple(SYMBOLS.index(name) for name in types)


def read_blocks(where: str, text: object) -> Blocks:
    """Irreps with their channels from ``32x0e+16x1o``.

    Parameters
    ----------
    where : str
        The file, for messages.
    text : object
        The text.

    Raises
    ------
    CheckpointError
        If it is no list of irreps.
    """
    found = re.findall(r"(?:(\d{1,6})x)?(\d{1,2}[eo])", str(text))
    if "+".join((f"{n}x" if n else "") + i for n, i in found) != str(text).replace(" ", ""):
        raise CheckpointError(f"{where}: irreps {str(text)[:60]!r}; wanted such as 32x0e+16x1o")
    return tuple((irrep, int(count or 1)) for count, irrep in found)


def _shapes(found: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors on which the size of the model depends."""
    yield "type_embed.embed_module.weight", (len(found.elements), found.embedding)
    yield "bessel_encode.bessel_weights", (1, found.bessels)
    last: Step | None = None
    for k, last in enumerate(found.steps()):
        conv, sums = f"layer{k}_convnet.conv.", last.widths
        yield conv + "linear_1.weight", (sum(n * n for _, n in last.inputs),)
        yield conv + "linear_2.weight", (sum(sums[i] * n for i, n in last.before_gate.items()),)
        sizes = (found.bessels, *found.radial, sum(n for _, n, _, _ in last.paths))
        for m, shape in enumerate(itertools.pairwise(sizes)):
            yield f"{conv}edge_mlp.mlp.{2 * m}.weight", shape
    assert last is not None
    deep = found.activation is None and bool(found.readout)
    sizes = (last.outputs[0][1], *found.readout, 1)
    for m, shape in enumerate(itertools.pairwise(sizes)):
        yield (
            f"per_atom_energy_readout.mlp_module.mlp.{f'weights.{m}' if deep else f'{2 * m}.weight'}",
            shape,
        )


def _product(source: str, harmonic: str) -> list[str]:
    """Irreps of the product of two, in e3nn's order."""
    (l1, p1), (l2, p2) = ir.parse(source), ir.parse(harmonic)
    return [ir.name(l, p1 * p2) for l in range(abs(l1 - l2), l1 + l2 + 1)]


def _text(blocks: Blocks) -> str:
    return "+".join(f"{count}x{irrep}" for irrep, count in blocks)
