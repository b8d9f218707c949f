"""Models of MACE (the package mace-torch, versions 0.3)."""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from molequi.errors import CheckpointError
from molequi.foreign.e3nn_modules import E3nnModules
from molequi.foreign.mace_sizes import check_sizes
from molequi.foreign.origin import Converted, Origin
from molequi.foreign.pickles import Record
from molequi.heads import LayerReadouts
from molequi.heads.layers import Readouts
from molequi.model import Model
from molequi.models.mace import MACE, Layer, Variant
from molequi.nn.covalent import AgnesiDistance, CovalentRadii, SoftDistance
from molequi.nn.irreps import ElementLinear, PathLinear
from molequi.nn.pair_energies import COULOMB
from molequi.ops import irreps as ir
from molequi.ops.contraction import expand
from molequi.quantities import KNOWN, SYMBOLS

_PACKAGE = "mace.modules."
_BLOCKS, _RADIAL = _PACKAGE + "blocks.", _PACKAGE + "radial."
_OPTIONS = "heads edge_irreps lammps_mliap use_reduced_cg use_edge_irreps_first pair_repulsion"
_INTERACTION = (
    "node_attrs_irreps node_feats_irreps edge_attrs_irreps edge_feats_irreps target_irreps hidden_irreps "
    "avg_num_neighbors radial_MLP edge_irreps irreps_out"
)
_PRODUCT = "irreps_in1 irreps_in2 irreps_out instructions internal_weights shared_weights weight_numel"
# Classes whose objects a file may have, and those of their attributes that this module reads, or that do not
# change what they compute.
_KINDS: Mapping[str, str] = {
    _PACKAGE + "models.MACE": _OPTIONS,
    _PACKAGE + "models.ScaleShiftMACE": _OPTIONS,
    _BLOCKS + "LinearNodeEmbeddingBlock": "",
    _BLOCKS + "RadialEmbeddingBlock": "out_dim",
    _BLOCKS + "AtomicEnergiesBlock": "",
    _BLOCKS + "ScaleShiftBlock": "",
    _BLOCKS + "RealAgnosticInteractionBlock": _INTERACTION,
    _BLOCKS + "RealAgnosticResidualInteractionBlock": _INTERACTION,
    _BLOCKS + "RealAgnosticDensityInteractionBlock": _INTERACTION,
    _BLOCKS + "RealAgnosticDensityResidualInteractionBlock": _INTERACTION,
    _BLOCKS + "EquivariantProductBasisBlock": "use_sc",
    _BLOCKS + "LinearReadoutBlock": "",
    _BLOCKS + "NonLinearReadoutBlock": "hidden_irreps num_heads",
    _RADIAL + "BesselBasis": "",
    _RADIAL + "PolynomialCutoff": "",
    _RADIAL + "ZBLBasis": "",
    _RADIAL + "AgnesiTransform": "",
    _RADIAL + "SoftTransform": "",
    _PACKAGE + "irreps_tools.reshape_irreps": "irreps dims muls",
    _PACKAGE + "symmetric_contraction.SymmetricContraction": "irreps_in irreps_out internal_weights "
    "shared_weights",
    _PACKAGE + "symmetric_contraction.Contraction": "num_features coupling_irreps correlation",
    "e3nn.o3._spherical_harmonics.SphericalHarmonics": "irreps_in irreps_out",
    "e3nn.o3._linear.Linear": "irreps_in irreps_out instructions internal_weights shared_weights "
    "weight_numel",
    "e3nn.o3._tensor_product._tensor_product.TensorProduct": _PRODUCT,
    "e3nn.o3._tensor_product._sub.FullyConnectedTensorProduct": _PRODUCT,
    "e3nn.nn._fc.FullyConnectedNet": "hs",
    "e3nn.nn._fc._Layer": "act h_in h_out",
    "e3nn.nn._activation.Activation": "irreps_in irreps_out",
    "e3nn.math._normalize_activation.normalize2mom": "f cst",
    "torch.nn.modules.container.ModuleList": "",
    "torch.nn.modules.container.ParameterList": "",
    "torch.fx.graph_module.reduce_graph_module": "meta shape_env",  # sums of products, made by Contraction
}
_CONSTANTS: Mapping[str, Mapping[str, object]] = {
    "SphericalHarmonics": {"normalize": True, "normalization": "component"},
    "Linear": {"bias_numel": 0},
    "_Layer": {"var_in": 1, "var_out": 1},
    "normalize2mom": {"_is_id": False},
}
# Options of later versions, of any module, and what they mean in files without them.
_OPTIONAL: Mapping[str, object] = {
    "apply_cutoff": True,
    "cueq_config": None,
    "oeq_config": None,
    "use_agnostic_product": False,
    "use_last_readout_only": False,
    "use_so3": False,
}
# Versions before 0.3.10 have a cutoff in the repulsion, which they do not read.
_UNUSED = ("pair_repulsion_fn.cutoff.", "pair_repulsion_fn.r_max")
_WEIGHT = "node_embedding.linear.weight"


def is_mace(value: object) -> bool:
    """Whether an archive holds a model of mace-torch, or the weights of one.

    Parameters
    ----------
    value : object
        The content of the archive.
    """
    return (isinstance(value, Record) and value.kind.startswith("mace.")) or _are_weights(value)


def _are_weights(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    inner = value.get("model")
    return _WEIGHT in value or (isinstance(inner, Mapping) and _WEIGHT in inner)


def from_mace(where: str, value: Any, level: str | None) -> Converted:
    """The model of a file.

    Parameters
    ----------
    where : str
        The file, for messages.
    value : Record
        The content of the archive.
    level : str or None
        The head of a model with several.

    Raises
    ------
    CheckpointError
        If something in the file is not known, so that the model would be another one.
    """
    if _are_weights(value):
        raise CheckpointError(
            f"{where}: weights of MACE without the model that they belong to; wanted the file that the "
            "training wrote beside it with torch.save(model), NAME.model"
        )
    file = _File.read(where, value)
    file.check()
    heads = file.heads()
    head = _chosen(where, heads, level)
    layers = file.layers()
    kinds = [file.kinds.get(f"interactions.{t}", "") for t in range(layers)]
    blocks = [f"products.{t}.symmetric_contractions" for t in range(layers)]
    channels, l_max = file.uniform("interactions.0", "target_irreps")
    degrees = [file.uniform(block, "irreps_out", channels)[1] for block in blocks]
    factors = [file.correlation(block) for block in blocks]
    check_sizes(file, channels, l_max, degrees)  # before anything is made from them
    basis, cutoff = "radial_embedding.bessel_fn", file.cutoff()
    backbone = MACE(
        elements=file.elements(),
        cutoff=cutoff,
        channels=channels,
        layers=layers,
        l_max=l_max,
        l_hidden=degrees[0] if layers > 1 else 0,
        correlation=factors,
        l_out=degrees[-1],
        radial=len(file.take(f"{basis}.bessel_weights")),
        radial_hidden=file.channels("interactions.0.conv_tp_weights")[1:-1],
        variant=Variant(
            mix_paths=True,
            self_connection=["Residual" in kind for kind in kinds],
            normalize="density" if "Density" in kinds[0] else "mean",
            distance=file.transform(),
            exponent=file.whole("radial_embedding.cutoff_fn.p", 2, 1000),
            train_frequencies=True,
        ),
    )
    repulsion = "pair_repulsion_fn" in file.kinds
    energy = LayerReadouts(
        layers=layers,
        hidden=file.readout_width(layers, len(heads)),
        repulsion=cutoff if repulsion else None,
        repulsion_exponent=file.whole("pair_repulsion_fn.p", 2, 1000) if repulsion else 6,
    )
    model = Model(backbone, [energy, KNOWN["forces"], KNOWN["stress"]]).double()
    with torch.no_grad():
        _Transfer(file, backbone).fill()
        _fill_energy(file, energy, backbone.elements, len(heads), head)
    file.check_all_read("MACE", _UNUSED)
    return Converted(
        model=model,
        origin=Origin(
            family="MACE",
            package="mace-torch",
            citation="Batatia et al., Adv. Neural Inf. Process. Syst. 35, 11423 (2022), arXiv 2206.07697",
            level=level,
            other_levels=tuple(name for name in heads if name != level) if level else (),
        ),
    )


def _chosen(where: str, heads: list[str], level: str | None) -> int:
    """Number of the head. Raises CheckpointError if it is not clear."""
    if len(heads) == 1:
        if level is not None:
            raise CheckpointError(f"{where}: level={level!r}; this model has one level of theory")
        return 0
    if level not in heads:
        raise CheckpointError(
            f"{where}: it has several heads; choose one of {', '.join(heads)} with level={heads[-1]!r} "
            f"(--level {heads[-1]})"
        )
    return heads.index(level)


class _File(E3nnModules):
    """A file of mace-torch."""

    def check(self) -> None:
        """Raise CheckpointError for options and classes that are not known."""
        self.check_kinds(_KINDS, "MACE and ScaleShiftMACE as published")
        for name, attributes in self.attributes.items():
            for option, wanted in _OPTIONAL.items():
                if attributes.get(option, wanted) != wanted:
                    raise self.refuse(f"{name}.{option}".lstrip("."), attributes[option], str(wanted))
        known = {kind: f"{names} {' '.join(_OPTIONAL)}" for kind, names in _KINDS.items()}
        self.check_attributes(known, _CONSTANTS)
        if bool(self.options.get("pair_repulsion")) != ("pair_repulsion_fn" in self.kinds):
            raise self.refuse("pair_repulsion", self.options.get("pair_repulsion"), "it with its function")
        # Masks of what is not zero, and empty tensors in the place of biases, are not computed with.
        for name in [*self.unread]:
            if name.endswith((".output_mask", "_zeroed")) or not self.tensors[name].numel():
                self.unread.discard(name)

    def whole(self, name: str, low: int, high: int) -> int:
        """A whole number that the file has as a tensor."""
        found = float(self.take(name))
        if not (low <= found <= high and found == int(found)):
            raise self.refuse(name, found, f"whole numbers from {low} to {high}")
        return int(found)

    def heads(self) -> list[str]:
        """Names of the heads."""
        found = self.options.get("heads") or ["Default"]
        if not isinstance(found, (list, tuple)) or len(set(map(str, found))) < len(found):
            raise self.refuse("heads", found, "a list of names, each once")
        return [str(name) for name in found]

    def neighbors(self, layer: int) -> float:
        """The number by which sums over neighbors are divided."""
        found = float(self.attribute(f"interactions.{layer}", "avg_num_neighbors"))
        if not 1e-6 < found < 1e9:
            raise self.refuse(f"interactions.{layer}.avg_num_neighbors", found, "numbers above zero")
        return found

    def layers(self) -> int:
        """Number of layers."""
        found = self.whole("num_interactions", 1, 100)
        count = sum(name.startswith("interactions.") and name.count(".") == 1 for name in self.kinds)
        if found != count:
            raise self.refuse("num_interactions", found, f"{count}, the number of its interactions")
        return count

    def correlation(self, block: str) -> int:
        """Highest number of factors of a product."""
        found = self.attribute(f"{block}.contractions.0", "correlation")
        if found not in (1, 2, 3):
            raise self.refuse(f"{block}.contractions.0.correlation", found, "1, 2 and 3")
        return int(found)

    def elements(self) -> list[int]:
        """Atomic numbers in the order of the file."""
        found = self.take("atomic_numbers")
        numbers = [int(z) for z in found]
        if (
            found.tolist() != numbers
            or len(set(numbers)) != len(numbers)
            or not all(0 < z < len(SYMBOLS) for z in numbers)
        ):
            raise self.refuse("atomic_numbers", numbers, "each element once")
        return numbers

    def cutoff(self) -> float:
        """The cutoff in Å."""
        found = self.take("r_max")
        for module in ("radial_embedding.bessel_fn", "radial_embedding.cutoff_fn"):
            if not torch.equal(own := self.take(f"{module}.r_max"), found):
                raise self.refuse(f"{module}.r_max", float(own), f"that of the model, {float(found)}")
        return float(found)

    def transform(self) -> Any:
        """Name of the transform of distances."""
        kind = self.kinds.get("radial_embedding.distance_transform")
        return None if kind is None else "agnesi" if kind.endswith("AgnesiTransform") else "soft"

    def check_radii(self, module: str, table: CovalentRadii, elements: tuple[int, ...]) -> None:
        """Raise CheckpointError for other covalent radii of the elements of the model."""
        found = self.take(f"{module}.covalent_radii")
        for z in elements:
            if not math.isclose(float(found[z]), float(table.radii[z]), rel_tol=1e-6):
                raise self.refuse(
                    f"{module}.covalent_radii", f"{float(found[z]):g} for {SYMBOLS[z]}", f"{table.radii[z]:g}"
                )

    def readout_width(self, layers: int, heads: int) -> int | None:
        """Channels of the hidden layer of the last readout; None if it is linear."""
        names = [name for name in self.kinds if name.count(".") == 1 and name.startswith("readouts.")]
        last = f"readouts.{layers - 1}"
        others = [name for name in names if name != last and "NonLinear" in self.kinds[name]]
        if len(names) != layers or last not in names or others:
            raise self.refuse("readouts", f"{len(names)} with {layers} layers", "one of each layer")
        if "NonLinear" not in self.kinds[last]:
            return None
        width, degree = self.uniform(last, "hidden_irreps")
        inputs = self.layout(f"{last}.linear_1", "irreps_in")[0][0]
        self.check_shape(f"{last}.linear_1.weight", inputs * width)
        if degree or width % heads or (heads > 1 and self.attribute(last, "num_heads") != heads):
            raise self.refuse(f"{last}.hidden_irreps", width, f"invariants for each of {heads} heads")
        return width // heads


class _Transfer:
    """Weights from the file into the backbone: other shapes, signs and bases, the same functions."""

    def __init__(self, file: _File, backbone: MACE) -> None:
        self.file, self.backbone = file, backbone
        numbers = file.elements()
        self.rows = [numbers.index(z) for z in backbone.elements]
        self.irreps = [ir.natural(l) for l in range(backbone.l_max + 1)]

    def fill(self) -> None:
        file, backbone = self.file, self.backbone
        cutoff, channels = float(backbone.cutoff or 0), backbone.embedding.element.embedding_dim
        width = (len(self.rows), channels)
        backbone.embedding.element.weight.copy_(self.matrix("node_embedding.linear", "0e", *width)[self.rows])
        basis = "radial_embedding.bessel_fn"
        cast(Tensor, backbone.basis.frequencies).copy_(file.take(f"{basis}.bessel_weights"))
        # A factor of the radial functions, which a file in float32 has rounded
        self.radial = file.take(f"{basis}.prefactor") / math.sqrt(2 / cutoff)
        distance = cast(AgnesiDistance | SoftDistance | None, backbone.distance)
        if distance is not None:
            module = "radial_embedding.distance_transform"
            names = ("a", "q", "p") if file.transform() == "agnesi" else ("alpha",)
            constants = [file.take(f"{module}.{name}").reshape(()) for name in names]
            distance.constants.copy_(torch.stack(constants))
            file.check_radii(module, distance, backbone.elements)
        layers = cast(list[Layer], list(backbone.layers))
        means = [file.neighbors(t) for t in range(len(layers))]
        backbone.mean_neighbors.fill_(means[0])
        for t, layer in enumerate(layers):
            self._interaction(f"interactions.{t}", layer, self.backbone.layouts[t], means[0] / means[t])
            self._product(f"products.{t}", layer)

    def matrix(self, name: str, irrep: str, fan_in: int, fan_out: int) -> Tensor:
        """A linear map of one irrep."""
        found = self.file.linear(name).get(irrep)
        if found is None or found.shape != (fan_in, fan_out):
            shape = None if found is None else tuple(found.shape)
            raise self.file.refuse(f"{name}.weight of {irrep}", shape, str((fan_in, fan_out)))
        return found

    def _interaction(self, name: str, layer: Layer, inputs: list[str], factor: float) -> None:
        file, size = self.file, layer.atomic.channels
        features = [(size, irrep) for irrep in inputs]
        for option in ("node_feats_irreps", "edge_irreps"):
            found = file.attributes[name].get(option)
            if found is not None and file.layout(name, option) != features:
                raise file.refuse(f"{name}.{option}", file.layout(name, option), str(features))
        if ("Density" in file.kinds[name]) != (layer.density is not None):
            raise file.refuse(name, file.kinds[name], "models whose layers all have a density, or none")
        for irrep, mix in zip(inputs, layer.atomic.before.mix):
            cast(nn.Linear, mix).weight.copy_(self.matrix(f"{name}.linear_up", irrep, size, size).T)
        self._radial(name, layer)
        for irrep, mix in zip(self.irreps, cast(PathLinear, layer.atomic.after).mix):
            target = cast(nn.Linear, mix).weight
            weight = self.matrix(f"{name}.linear", irrep, target.shape[1], size)
            target.copy_(weight.T * (1.0 if layer.density is not None else factor))
        if layer.density is not None:
            (weight,) = file.perceptron(f"{name}.density_fn")
            layer.density.weight.copy_(weight.T * self.radial)
        if layer.turn is not None:
            self._elements(f"{name}.skip_tp", layer.turn, self.irreps)
        if layer.keep is not None:
            self._elements(f"{name}.skip_tp", layer.keep, inputs[: layer.keep.weight.shape[1]])

    def _elements(self, name: str, target: ElementLinear, irreps: list[str]) -> None:
        found = self.file.by_element(name)
        if list(found) != irreps:
            raise self.file.refuse(f"{name}.instructions", list(found), str(irreps))
        for k, irrep in enumerate(irreps):
            weight = found[irrep][self.rows]
            if weight.shape != target.weight[:, k].shape:
                raise self.file.refuse(f"{name} of {irrep}", tuple(weight.shape), "equally many channels")
            target.weight[:, k] = weight

    def _radial(self, name: str, layer: Layer) -> None:
        file, size, conv = self.file, layer.atomic.channels, f"{name}.conv_tp"
        left, edge, out = (file.layout(conv, f"irreps_{end}") for end in ("in1", "in2", "out"))
        paths = [one.arguments for one in file.attribute(conv, "instructions")]
        found = [(left[i][1], ir.parse(edge[j][1])[0], out[k][1]) for i, j, k, *_ in paths]
        # Paths into one irrep are side by side for `linear`, which mixes their channels.
        if found != layer.atomic.paths or [p[2:5] for p in paths] != [
            (k, "uvu", True) for k in range(len(out))
        ]:
            raise file.refuse(f"{conv}.instructions", found, str(layer.atomic.paths))
        signs, factors = self._signs(conv), []
        for (source, degree, irrep), path in zip(found, paths):
            degrees = (ir.parse(source)[0], degree, ir.parse(irrep)[0])
            # Edges of the package point from the sender to the receiver.
            own = path[5] * (-1) ** degree * signs.get(degrees, 1.0) / math.sqrt(2 * degrees[2] + 1)
            factors += [own] * size
        weights = file.perceptron(f"{name}.conv_tp_weights")
        targets = [m for m in layer.atomic.radial if isinstance(m, nn.Linear)]
        shapes = [tuple(weight.shape) for weight in weights]
        if shapes != [(m.in_features, m.out_features) for m in targets]:
            raise file.refuse(f"{name}.conv_tp_weights.hs", shapes, "the channels of the first layer in all")
        weights[-1] = weights[-1] * torch.tensor(factors, dtype=torch.float64)
        weights[0] = weights[0] * self.radial
        for weight, target in zip(weights, targets):
            target.weight.copy_(weight.T)

    def _signs(self, conv: str) -> dict[tuple[int, ...], float]:
        """Signs of the couplings of the file relative to ours."""
        found = {}
        for name, tensor in self.file.couplings(conv).items():
            degrees = tuple(int(l) for l in name.removeprefix("_w3j_").split("_"))
            ours = ir.clebsch_gordan(*degrees)
            sign = 1.0 if float((tensor.double() * ours).sum()) > 0 else -1.0
            if not torch.allclose(tensor.double(), sign * ours, atol=1e-5):
                raise CheckpointError(f"{self.file.where}: {conv}.{name} is no Clebsch-Gordan tensor")
            found[degrees] = sign
        return found

    def _product(self, name: str, layer: Layer) -> None:
        file, contraction = self.file, layer.product.contraction
        if layer.keep is not None and not file.attribute(name, "use_sc"):
            raise file.refuse(f"{name}.use_sc", False, "True for a block with a self-connection")
        weights = []
        size = layer.atomic.channels
        for k, irrep in enumerate(contraction.outputs):
            module = f"{name}.symmetric_contractions.contractions.{k}"
            count = len(contraction.paths[irrep])
            if file.attribute(module, "correlation") != count:
                raise file.refuse(f"{module}.correlation", file.attribute(module, "correlation"), str(count))
            for degree in range(1, count + 1):
                place = "weights_max" if degree == count else f"weights.{count - 1 - degree}"
                tensors = file.take(f"{module}.U_matrix_{degree}")
                shape = (2 * ir.parse(irrep)[0] + 1, *[contraction.width] * degree, tensors.shape[-1])
                if tensors.numel() != math.prod(shape):
                    raise file.refuse(f"{module}.U_matrix_{degree}", tuple(tensors.shape), str(shape))
                found, error = expand(self.backbone.l_max, irrep, tensors.reshape(shape))
                if float(error) > 1e-5:
                    raise CheckpointError(
                        f"{file.where}: {module}.U_matrix_{degree} is no coupling of {irrep}"
                    )
                own = file.take(f"{module}.{place}", len(self.rows), tensors.shape[-1], size)[self.rows]
                weights.append(torch.einsum("pn,znc->zpc", found, own))
        joined = torch.cat(weights, dim=1) / contraction.scales[:, None]
        layer.product.weight.copy_(joined)
        for irrep, mix in zip(contraction.outputs, layer.product.after.mix):
            cast(nn.Linear, mix).weight.copy_(self.matrix(f"{name}.linear", irrep, size, size).T)


def _fill_energy(
    file: _File, energy: LayerReadouts, elements: tuple[int, ...], heads: int, head: int
) -> None:
    net = cast(Readouts, energy.net)
    last = f"readouts.{energy.layers - 1}"
    if net.linear is not None:
        parts = [file.linear(f"readouts.{t}.linear")["0e"][:, head] for t in range(energy.layers - 1)]
        net.linear.weight.copy_(torch.cat(parts)[None])
    maps = [m for m in net.last if isinstance(m, nn.Linear)]
    if energy.width_of_net is None:
        maps[0].weight.copy_(file.linear(f"{last}.linear")["0e"][:, head][None])
    else:
        own = slice(head * energy.width_of_net, (head + 1) * energy.width_of_net)
        maps[0].weight.copy_(file.linear(f"{last}.linear_1")["0e"][:, own].T)
        gain = file.silu(f"{last}.non_linearity.acts.0")
        maps[1].weight.copy_(file.linear(f"{last}.linear_2")["0e"][own, head][None] * gain)
    numbers = file.elements()
    references = torch.atleast_2d(file.take("atomic_energies_fn.atomic_energies"))
    scale, shift = torch.ones(heads), torch.zeros(heads)
    if file.kinds[""].endswith(".ScaleShiftMACE"):
        scale, shift = (torch.atleast_1d(file.take(f"scale_shift.{name}")) for name in ("scale", "shift"))
    for name, table, wanted in (
        ("atomic_energies_fn.atomic_energies", references, (heads, len(numbers))),
        ("scale_shift.scale", scale, (heads,)),
        ("scale_shift.shift", shift, (heads,)),
    ):
        if table.shape != wanted:
            raise file.refuse(name, f"of shape {tuple(table.shape)}", str(wanted))
    energy.scale.fill_(float(scale[head]))
    for k, z in enumerate(numbers):
        energy.reference_energies[z] = references[head, k]
        energy.shift[z] = float(shift[head])
    if energy.repulsion is not None:
        module = "pair_repulsion_fn"
        file.check_radii(module, energy.repulsion, elements)
        # The package has 14.3996 for the constant of Coulomb and 0.529 for that of Bohr.
        coefficients = file.take(f"{module}.c", 4) * scale[head] * (14.3996 / COULOMB)
        power, length = file.take(f"{module}.a_exp"), file.take(f"{module}.a_prefactor") * 0.529
        energy.repulsion.constants.copy_(torch.cat([coefficients, power.view(1), length.view(1)]))
