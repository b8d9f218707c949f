"""Packages of NequIP (``nequip-package build``): a tree of modules as inert records, which are checked.

Beside its attributes and tensors, an operation of e3nn has the program that computes it (``__codegen__``),
which follows from its instructions. The instructions are compared, and the program is not looked at.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from molequi.errors import CheckpointError
from molequi.foreign.modules import walk
from molequi.foreign.nequip_weights import Architecture, Blocks, PairCutoffs, Step, elements_of
from molequi.foreign.pickles import Record
from molequi.ops import irreps as ir

_PRODUCT = "irreps_in1 irreps_in2 irreps_out instructions internal_weights shared_weights weight_numel"
# Classes whose objects a file may have, and their attributes: those that this module reads, those that
# follow from tensors and instructions, names of fields, and what matters only in training.
_KINDS: Mapping[str, str] = {
    "torch.nn.modules.container.ModuleDict": "",
    "torch.nn.modules.container.ModuleList": "",
    "torch.nn.modules.container.Sequential": "",
    "torch.nn.modules.container.ParameterList": "",
    "torch.nn.modules.sparse.Embedding": "num_embeddings embedding_dim padding_idx norm_type "
    "scale_grad_by_freq sparse",
    "torch.nn.modules.activation.SiLU": "",
    "e3nn.o3._spherical_harmonics.SphericalHarmonics": "sph_func",
    "e3nn.nn._gate.Gate": "irreps_scalars irreps_gates irreps_gated",
    "e3nn.nn._gate._Sortcut": "irreps_outs",
    "e3nn.nn._extract.Extract": "irreps_outs instructions __codegen__",
    "e3nn.nn._activation.Activation": "paths",
    "e3nn.math._normalize_activation.normalize2mom": "f cst",
    "e3nn.o3._tensor_product._tensor_product.TensorProduct": f"{_PRODUCT} __codegen__",
    "e3nn.o3._tensor_product._sub.FullyConnectedTensorProduct": f"{_PRODUCT} __codegen__",
    "e3nn.o3._tensor_product._sub.ElementwiseTensorProduct": f"{_PRODUCT} __codegen__",
    "e3nn.o3._linear.Linear": "instructions weight_numel weight_index_slices __codegen__",
    "nequip.nn.graph_model.GraphModel": "model_input_fields model_dtype metadata type_names",
    "nequip.nn.grad_output.ForceStressOutput": "do_derivatives",
    "nequip.nn._graph_mixin.SequentialGraphNetwork": "",
    "nequip.nn.embedding.node.NodeTypeEmbed": "num_types num_features type_embed_init",
    "nequip.nn.embedding._edge.SphericalHarmonicEdgeAttrs": "irreps_edge_sh",
    "nequip.nn.embedding._edge.EdgeLengthNormalizer": "r_max num_types edge_type_field _per_edge_type",
    "nequip.nn.embedding._edge.BesselEdgeLengthEncoding": "num_bessels trainable edge_type_field",
    "nequip.nn.embedding.cutoffs.PolynomialCutoff": "p",
    "nequip.nn.misc.ApplyFactor": "factor",
    "nequip.nn.convnetlayer.ConvNetLayer": "feature_irreps_hidden",
    "nequip.nn.interaction_block.InteractionBlock": "avg_num_neighbors scatter_norm_factor use_sc sc "
    "is_first_layer",
    "nequip.nn.norm.AvgNumNeighborsNorm": "norm_key norm_shortcut",
    "nequip.nn._ghost_exchange_base.NoOpGhostExchangeModule": "field",
    "nequip.nn._tp_scatter_base.TensorProductScatter": "feature_irreps_in irreps_edge_attr irreps_mid "
    "instructions model_dtype",
    "nequip.nn.mlp.ScalarMLP": "",
    "nequip.nn.mlp.ScalarMLPFunction": "dims num_layers is_nonlinear",
    "nequip.nn.mlp.ScalarLinearLayer": "in_features out_features alpha",
    "nequip.nn.mlp.DeepLinearMLP": "alpha",
    "nequip.nn.atomwise.PerTypeScaleShift": "type_names num_types out_dtype scales_trainable scales_shortcut "
    "shifts_trainable shifts_shortcut has_scales has_shifts",
    "nequip.nn.pair_potential.ZBL": "model_dtype",
    "nequip.nn.pair_potential._ZBL": "",
    "nequip.nn.atomwise.AtomwiseReduce": "",
}
_EDGES = {"norm_length_field": "normed_edge_lengths"}
_NODES = {"in_field": "node_features", "out_field": "node_features"}
# Attributes that modules compute with, and the values that they must have, by class.
_FIXED: Mapping[str, Mapping[str, object]] = {
    "Embedding": {"max_norm": None},
    "SiLU": {"inplace": False},
    "SphericalHarmonics": {"normalize": True, "normalization": "component"},
    "NodeTypeEmbed": {
        "set_features": True,
        "do_categorical_graph_field_embed": False,
        "categorical_graph_field_embed_shifts": {},
    },
    "SphericalHarmonicEdgeAttrs": {"out_field": "edge_attrs"},
    "EdgeLengthNormalizer": _EDGES,
    "BesselEdgeLengthEncoding": {"edge_invariant_field": "edge_embedding", **_EDGES},
    "ApplyFactor": {"in_field": "edge_embedding", "out_field": "edge_embedding"},
    "ConvNetLayer": {"resnet": False},
    "AvgNumNeighborsNorm": _NODES,
    "Linear": {"internal_weights": True, "shared_weights": True, "bias_numel": 0},
    "ScalarMLP": {"field": "node_features", "out_field": "atomic_energy"},
    "ScalarMLPFunction": {"bias": False},
    "PerTypeScaleShift": {"field": "atomic_energy", "out_field": "atomic_energy"},
    "ZBL": {"per_atom_energy_field": "atomic_energy"},
    "AtomwiseReduce": {
        "constant": 1.0,
        "reduce": "sum",
        "field": "atomic_energy",
        "out_field": "total_energy",
    },
    "normalize2mom": {"_is_id": False},
}
_EARLY = ("type_embed", "spharm", "edge_norm", "bessel_encode", "factor")
_LATE = ("per_atom_energy_readout", "per_type_energy_scale_shift", "pair_potential", "total_energy_sum")


def read_package(where: str, value: Mapping[str, Any]) -> tuple[Architecture, dict[str, Tensor], str]:
    """What a package says about its model, its tensors, and the version of nequip.

    Parameters
    ----------
    where : str
        The file, for messages.
    value : mapping
        The texts and the model of the package.

    Raises
    ------
    CheckpointError
        If it has something that is not known.
    """
    tree = _Tree.read(where, value["eager_model.pkl"])
    tree.check_modules()
    found = tree.architecture()
    tree.check_operations(found)
    text = str(value.get("package_metadata.txt") or value.get("versions.txt") or "")
    return found, tree.tensors, _version(text)


def _version(text: str) -> str:
    """The version of nequip in the metadata of a package; empty if it is not there."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return ""
    versions = found.get("versions", found) if isinstance(found, Mapping) else {}
    return str(versions.get("nequip", "")) if isinstance(versions, Mapping) else ""


@dataclass(frozen=True)
class _Tree:
    """The modules of an energy model by name, without those around it.

    Attributes
    ----------
    where : str
        The file, for messages.
    modules : dict of str to Record
        The modules.
    tensors : dict of str to Tensor
        Parameters and buffers, those that a state dictionary leaves out, too.
    types : list of str
        Names of the types.
    """

    where: str
    modules: Mapping[str, Record]
    tensors: dict[str, Tensor]
    types: Sequence[str]

    @classmethod
    def read(cls, where: str, value: object) -> "_Tree":
        modules: dict[str, Record] = {}
        tensors: dict[str, Tensor] = {}
        types: list[Sequence[str]] = []
        for name, module, _ in walk(where, value):
            if not isinstance(module.state, Mapping):
                raise CheckpointError(f"{where}: {name or 'the model'} is no module; the file is damaged")
            if module.kind.endswith((".GraphModel", ".CompileGraphModel")):
                types.append(module.state.get("type_names", ()))
            modules[name] = module
            start = f"{name}." if name else ""
            for table in ("_parameters", "_buffers"):
                for key, tensor in module.state.get(table, {}).items():
                    if isinstance(tensor, Tensor):
                        tensors[start + key] = tensor
        if len(types) != 1:
            raise CheckpointError(f"{where}: {len(types)} models; this version reads packages with one")
        tree = cls(where, modules, tensors, types[0])
        inner = [name for name, one in modules.items() if one.kind.endswith(".SequentialGraphNetwork")]
        if len(inner) != 1:
            raise tree.refuse("the model", next(iter(tree.kinds())), "a sequence of modules")
        start = inner[0] + "."
        tree._check_kinds()
        tree._check_attributes()  # of those around it, too
        for name in modules:
            if not f"{name}.".startswith(start) and not (start.startswith(f"{name}.") or not name):
                raise tree.refuse(name, modules[name].kind, "packages with one model and nothing beside it")
        return cls(
            where,
            {n.removeprefix(start): one for n, one in modules.items() if n.startswith(start)}
            | {"": modules[inner[0]]},
            {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)},
            types[0],
        )

    def refuse(self, what: str, found: object, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {what} is {str(found)[:80]}; this version reads {wanted}")

    def kinds(self) -> Iterator[str]:
        return (one.kind for one in self.modules.values())

    def _check_kinds(self) -> None:
        for name, module in self.modules.items():
            if module.kind not in _KINDS:
                raise self.refuse(
                    name or "the model", f"a {module.kind}", "NequIP as nequip has it, and not its extensions"
                )

    def attribute(self, module: str, name: str) -> Any:
        if module not in self.modules or name not in self.modules[module].state:
            raise CheckpointError(f"{self.where}: {module}.{name} is missing")
        return self.modules[module].state[name]

    def _check_attributes(self) -> None:
        """Raise CheckpointError for attributes that are not known."""
        for name, module in self.modules.items():
            kind = module.kind.rpartition(".")[2]
            fixed = _FIXED.get(kind, {})
            known = {"training", "irreps_in", "irreps_out", *_KINDS[module.kind].split(), *fixed}
            for key, value in module.state.items():
                if not (key.startswith("_") or key in known):
                    raise self.refuse(f"{name}.{key}".lstrip("."), value, "models without it")
                if key in fixed and value != fixed[key]:
                    raise self.refuse(f"{name}.{key}".lstrip("."), value, str(fixed[key]))

    def check_modules(self) -> None:
        """Raise CheckpointError for orders of modules that are not known."""
        order = [name for name in self.modules[""].state["_modules"] if name != "type_embed"]
        count = sum(name.endswith("_convnet") for name in order)
        layers = [f"layer{k}_convnet" for k in range(count)]
        wanted = [
            name for name in (*_EARLY[1:], *layers, *_LATE) if name in order or name != "pair_potential"
        ]
        if order != wanted or "type_embed" not in self.modules:
            raise self.refuse("the sequence of modules", ", ".join(order), ", ".join(wanted))

    def architecture(self) -> Architecture:
        count = sum(re.fullmatch(r"layer\d+_convnet", name) is not None for name in self.modules)
        layers = [f"layer{k}_convnet" for k in range(count)]
        radial = [tuple(self.attribute(f"{layer}.conv.edge_mlp", "dims")) for layer in layers]
        if len({dims[:-1] for dims in radial}) != 1:
            raise self.refuse("edge_mlp.dims", radial, "the same hidden channels for all layers")
        readout = "per_atom_energy_readout.mlp_module"
        hidden = tuple(self.attribute(readout, "dims"))[1:-1]
        cutoff = float(self.attribute("edge_norm", "r_max"))
        factor = self.attribute("factor", "factor")
        if not math.isclose(factor, 2 * math.pi / cutoff**2, rel_tol=1e-12):
            raise self.refuse("factor.factor", factor, "2 π / r_max²")
        elements = elements_of(self.where, self.types)
        repulsion = None
        if (
            "pair_potential" in self.modules
        ):  # before version 0.16 its cutoff was that of the Bessel functions
            own = (
                "pair_potential.cutoff" if "pair_potential.cutoff" in self.modules else "bessel_encode.cutoff"
            )
            repulsion = float(self.attribute(own, "p"))
        return Architecture(
            where=self.where,
            elements=elements,
            cutoff=cutoff,
            exponent=float(self.attribute("bessel_encode.cutoff", "p")),
            pair_cutoffs=self._pair_cutoffs(cutoff),
            harmonics=tuple(i for i, _ in self._blocks(self.attribute("spharm", "irreps_edge_sh"))),
            embedding=self.tensors["type_embed.embed_module.weight"].shape[1],
            layers=tuple(self._blocks(self.attribute(one, "feature_irreps_hidden")) for one in layers),
            connected=tuple(f"{one}.conv.sc" in self.modules for one in layers),
            bessels=int(self.attribute("bessel_encode", "num_bessels")),
            radial=radial[0][1:-1],
            readout=hidden,
            activation=self._activation(f"{readout}.mlp", len(hidden)),
            neighbors=self._neighbors(layers),
            repulsion=repulsion,
        )

    def _activation(self, name: str, depth: int) -> Literal["silu"] | None:
        """What stands between the linear maps of a perceptron, which `_check_kinds` lets be SiLU alone."""
        if not depth or self.modules[name].kind.endswith(".DeepLinearMLP"):
            return None
        return "silu"

    def _pair_cutoffs(self, cutoff: float) -> PairCutoffs | None:
        if not self.attribute("edge_norm", "_per_edge_type"):
            return None
        inverse = self.tensors["edge_norm._rmax_recip"].flatten().double().tolist()
        count = len(self.types)
        if len(inverse) != count**2 or not all(0.0 < one < math.inf for one in inverse):
            raise self.refuse("edge_norm._rmax_recip", inverse, "inverse cutoffs of all pairs of types")
        return {
            center: {other: min(1 / inverse[i * count + j], cutoff) for j, other in enumerate(self.types)}
            for i, center in enumerate(self.types)
        }

    def _neighbors(self, layers: Sequence[str]) -> tuple[float, ...] | None:
        """Mean numbers of neighbors, which the file has as the inverse of their roots."""
        found: list[tuple[float, ...] | None] = []
        for layer in layers:
            state = self.modules[f"{layer}.conv"].state
            norm = f"{layer}.conv.avg_num_neighbors_norm"
            factors: list[float] | None = None
            if f"{norm}.norm_const" in self.tensors:
                factors = self.tensors.pop(f"{norm}.norm_const").flatten().double().tolist()
                one = len(factors) == 1
                if (
                    len(factors) not in (1, len(self.types))
                    or self.attribute(norm, "norm_shortcut") is not one
                ):
                    raise self.refuse(f"{norm}.norm_const", factors, "one number, or one for each type")
            elif state.get("avg_num_neighbors") is not None:  # version 0.7
                factors = [float(state["avg_num_neighbors"]) ** -0.5]
            elif state.get("scatter_norm_factor") is not None:  # until version 0.15
                factors = [float(state["scatter_norm_factor"])]
            if factors is not None and not all(1e-6 < factor < 1e6 for factor in factors):
                raise self.refuse(f"{norm}.norm_const", factors, "inverse roots of numbers above zero")
            found.append(None if factors is None else tuple(factor**-2 for factor in factors))
        if len(set(found)) != 1:
            raise self.refuse("the mean number of neighbors", found, "the same for all layers")
        return found[0]

    def _blocks(self, value: object) -> Blocks:
        """Irreps of e3nn with their channels."""
        if not isinstance(value, Record):
            raise self.refuse("a list of irreps", value, "those of e3nn")
        found = []
        for block in value.arguments[0] if value.arguments else ():
            count, irrep = block.arguments[0] if len(block.arguments) == 1 else block.arguments
            degree, parity = irrep.arguments[0] if len(irrep.arguments) == 1 else irrep.arguments
            found.append((ir.name(int(degree), int(parity)), int(count)))
        return tuple(found)

    def check_operations(self, found: Architecture) -> None:
        """Raise CheckpointError for operations of e3nn with other instructions, or other activations."""
        found.check()
        for k, step in enumerate(found.steps()):
            layer = f"layer{k}_convnet"
            targets = list(step.before_gate)
            sums = list(step.widths.items())
            linear = [(i, i, (n, n), n**-0.5) for i, (_, n) in enumerate(step.inputs)]
            self._compare(f"{layer}.conv.linear_1", linear)
            last = [(i, i, (n, step.before_gate[t]), n**-0.5) for i, (t, n) in enumerate(sums)]
            self._compare(f"{layer}.conv.linear_2", last)
            product = f"{layer}.conv." + ("tp" if f"{layer}.conv.tp" in self.modules else "tp_scatter.tp")
            self._compare(product, list(_products(step)))
            if found.connected[k]:
                own = [
                    (i, 0, targets.index(t), "uvw", True, (_size(t) / (n * found.embedding)) ** 0.5)
                    + ((n, found.embedding, step.before_gate[t]),)
                    for i, (t, n) in enumerate(step.inputs)
                    if t in targets
                ]
                self._compare(f"{layer}.conv.sc", own)
            self._check_gate(f"{layer}.equivariant_nonlin", step)
            self._check_perceptron(f"{layer}.conv.edge_mlp.mlp", len(found.radial), found.radial != ())
        readout = "per_atom_energy_readout.mlp_module.mlp"
        self._check_perceptron(readout, len(found.readout), found.activation is not None)
        self._check_scales()
        for name, module in self.modules.items():
            if module.kind.endswith((".ScalarLinearLayer", ".DeepLinearMLP")):
                self._check_factor(name, module)

    def _check_perceptron(self, name: str, depth: int, active: bool) -> None:
        """Raise CheckpointError for a perceptron other than linear maps with SiLU between them."""
        kinds = [one.kind.rpartition(".")[2] for one in self.modules[name].state["_modules"].values()]
        kind = self.modules[name].kind.rpartition(".")[2]
        deep = depth > 0 and not active
        wanted = ["ParameterList"] if deep else ["ScalarLinearLayer", *["SiLU", "ScalarLinearLayer"] * depth]
        if len(kinds) != len(wanted):
            raise self.refuse(name, f"{len(kinds)} modules", ", ".join(wanted))
        if (kind, kinds) != ("DeepLinearMLP" if deep else "Sequential", wanted):
            raise self.refuse(name, f"{kind} of {', '.join(kinds)}", ", ".join(wanted))

    def _check_scales(self) -> None:
        """Raise CheckpointError for scales or shifts that nequip does not use, or uses in another way."""
        name = "per_type_energy_scale_shift"
        for what in ("scales", "shifts"):
            count = self.tensors[f"{name}.{what}"].numel()
            for key, wanted in ((f"has_{what}", count > 0), (f"{what}_shortcut", count == 1)):
                if self.modules[name].state.get(key, wanted) is not wanted:
                    raise self.refuse(f"{name}.{key}", not wanted, f"{wanted} with {count} {what}")

    def _compare(self, name: str, wanted: Sequence[tuple[Any, ...]]) -> None:
        found = [one.arguments for one in self.attribute(name, "instructions")]
        if not _same(found, wanted):
            raise self.refuse(f"{name}.instructions", found, str(list(wanted))[:300])

    def _check_gate(self, name: str, step: Step) -> None:
        scalars = tuple(block for block in step.outputs if block not in step.gates)
        for key, wanted in (("irreps_scalars", scalars), ("irreps_gated", step.gates)):
            if (found := self._blocks(self.attribute(name, key))) != wanted:
                raise self.refuse(f"{name}.{key}", found, str(wanted))
        gates = self._blocks(self.attribute(name, "irreps_gates"))
        if {irrep for irrep, _ in gates} - {"0e"}:
            raise self.refuse(f"{name}.irreps_gates", gates, "even gates")
        gate = [(i, i, i, "uuu", False, _size(t) ** 0.5, (n,)) for i, (t, n) in enumerate(step.gates)]
        self._compare(f"{name}.mul", gate)
        for part, irreps in (("scalars", [i for i, _ in scalars]), ("gates", ["0e"] * len(step.gates))):
            self._check_activation(f"{name}.act_{part}", irreps)

    def _check_activation(self, name: str, irreps: Sequence[str]) -> None:
        from e3nn.math import normalize2mom

        acts = [path[2] for path in self.attribute(name, "paths")]
        registered = list(self.modules[f"{name}.acts"].state["_modules"].values())
        if len(acts) != len(irreps) or any(a is not b for a, b in zip(acts, registered, strict=True)):
            raise self.refuse(f"{name}.paths", acts, f"activations of {', '.join(irreps)}")
        for k, (irrep, act) in enumerate(zip(irreps, acts)):
            function = torch.tanh if irrep == "0o" else torch.nn.functional.silu
            wanted = "torch.tanh" if irrep == "0o" else "torch.nn.functional.silu"
            if (found := _function(act.state["f"])) != wanted:
                raise self.refuse(f"{name}.acts.{k}.f", found, wanted)
            if not _same(act.state["cst"], float(normalize2mom(function).cst)):
                raise self.refuse(f"{name}.acts.{k}.cst", act.state["cst"], "the constant of e3nn")

    def _check_factor(self, name: str, module: Record) -> None:
        """Raise CheckpointError for a factor of a linear map that does not follow from its sizes."""
        alpha = self.tensors.pop(f"{name}.alpha", module.state.get("alpha"))
        if module.kind.endswith(".DeepLinearMLP"):
            sizes = self.attribute(name.rpartition(".")[0], "dims")[:-1]
            wanted = math.prod(n**-0.5 for n in sizes)
        else:
            last = name.rpartition(".")[2]
            wanted = (1.0 if last == "0" else 2.0**0.5) * module.state["in_features"] ** -0.5
        if not isinstance(alpha, (float, Tensor)) or not math.isclose(float(alpha), wanted, rel_tol=1e-6):
            raise self.refuse(f"{name}.alpha", alpha, f"{wanted}")


def _products(step: Step) -> Iterator[tuple[Any, ...]]:
    """Instructions of the product of features and harmonics."""
    places = sorted(range(len(step.paths)), key=lambda k: ir.parse(step.paths[k][3]))
    names = [irrep for irrep, _ in step.inputs]
    for k, (source, count, l, target) in enumerate(step.paths):
        weight = _size(target) ** 0.5
        yield names.index(source), l, places.index(k), "uvu", True, weight, (count, 1)


def _function(value: object) -> str:
    """Name of a function of torch; one of its C++ functions is an attribute of a class."""
    kind = str(getattr(value, "kind", value))
    if kind == "builtins.getattr" and isinstance(value, Record) and len(value.arguments) == 2:
        owner, name = value.arguments
        if str(getattr(owner, "kind", "")).endswith("torch._C._VariableFunctionsClass"):
            return f"torch.{name}"
    return kind


def _size(irrep: str) -> int:
    return 2 * ir.parse(irrep)[0] + 1


def _same(found: object, wanted: object) -> bool:
    """Whether two are equal, floats up to round-off."""
    if isinstance(wanted, (list, tuple)):
        return (
            isinstance(found, (list, tuple))
            and len(found) == len(wanted)
            and all(_same(a, b) for a, b in zip(found, wanted))
        )
    if isinstance(wanted, float):
        return isinstance(found, (int, float)) and math.isclose(found, wanted, rel_tol=1e-9)
    return found == wanted
