"""Models of SO3LR and So3krates (the package so3krates-torch, version 0.2)."""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from molequi.errors import CheckpointError
from molequi.foreign.modules import Modules
from molequi.foreign.origin import Converted, Origin
from molequi.foreign.pickles import Record
from molequi.heads import AtomicCharges, ChargeDipole, Head, PhysicalEnergy
from molequi.model import Model
from molequi.models.base import Inputs
from molequi.models.so3krates import Exchange, Filter, Layer, So3krates, TotalEmbedding
from molequi.nn.mlp import SILU_GAIN
from molequi.nn.pair_energies import COULOMB
from molequi.quantities import KNOWN, Quantity

_PACKAGE = "so3krates_torch."
_MODELS = _PACKAGE + "modules.models."
_LONG_CUTOFF, _SWITCH = 12.0, 2.0  # Å; of SO3LRCalculator, for a file that leaves them open
_LAST_ELEMENT = 99  # the tables of charges and volumes have 100 rows, by atomic number
_ROWS = 118  # those of the embeddings start with hydrogen
_TRANSFORMER = _PACKAGE + "blocks.euclidean_transformer."
_OUTPUT = _PACKAGE + "blocks.output_block."
_POTENTIALS = _PACKAGE + "blocks.physical_potentials."
_OPTIONS = (
    # read or checked
    "r_max num_radial_basis_fn degrees num_features num_heads num_layers num_elements avg_num_neighbors "
    "final_mlp_layers energy_regression_dim message_normalization initialize_ev_to_zeros embedding_scale "
    "layer_normalization_1 layer_normalization_2 residual_mlp_1 residual_mlp_2 use_charge_embed "
    "use_spin_embed interaction_bias "
    # names of classes, which are checked where they are used
    "radial_basis_fn qk_non_linearity cutoff_fn_name cutoff_p activation_fn activation_fn_name "
    "energy_activation_fn energy_activation_fn_name "
    # of training and of the start of training
    "avg_num_neighbors_param trainable_rbf atomic_type_shifts energy_learn_atomic_type_shifts "
    "energy_learn_atomic_type_scales seed device dtype layers_behave_like_identity_fn_at_init "
    "output_is_zero_at_init input_convention num_features_head num_embeddings "
    # of the structures that it computed last
    "ctx is_lammps num_atoms_arange num_graphs displacement positions vectors lengths cell node_heads "
    "interaction_kwargs lammps_natoms lammps_class receivers senders head_idxs vectors_unit cutoffs "
    "batch_segments data_ptr receivers_lr senders_lr lengths_lr "
    # of the terms of long range; a model without them can have them, too
    "zbl_repulsion_bool electrostatic_energy_bool electrostatic_energy_scale dispersion_energy_bool "
    "dispersion_energy_scale dispersion_energy_cutoff_lr_damping r_max_lr neighborlist_format_lr use_pme "
    "use_lr"
)
# Classes whose objects a file may have, and those of their attributes that this module reads, or that do not
# change what they compute: sizes that their tensors have, too, and what matters only in training. Attributes
# that they compute with are in `_File.constants`.
_KINDS: Mapping[str, str] = {
    _MODELS + "So3krates": _OPTIONS,
    _MODELS + "SO3LR": _OPTIONS,
    _PACKAGE + "modules.cutoff.PhysNetCutoff": "",
    _PACKAGE + "modules.spherical_harmonics.RealSphericalHarmonics": "",
    _PACKAGE + "blocks.radial_basis.ComputeRBF": "",
    _PACKAGE + "blocks.radial_basis.BernsteinBasis": "n_rbf r_cut",
    _PACKAGE + "blocks.so3_conv_invariants.L0Contraction": "degrees num_segments",
    _PACKAGE + "blocks.embedding.InvariantEmbedding": "",
    _PACKAGE + "blocks.embedding.EuclideanEmbedding": "",
    _PACKAGE + "blocks.embedding.ChargeSpinEmbedding": "activation_fn",
    _TRANSFORMER + "EuclideanTransformer": "",
    _TRANSFORMER + "EuclideanAttentionBlock": "degrees num_heads num_features message_normalization "
    "avg_num_neighbors ev_features_dim inv_features_dim inv_heads inv_head_dim ev_heads ev_head_dim",
    _TRANSFORMER + "FilterNet": "",
    _TRANSFORMER + "InteractionBlock": "",
    _OUTPUT + "AtomicEnergyOutputHead": "device energy_learn_atomic_type_shifts "
    "energy_learn_atomic_type_scales use_defined_shifts",
    _OUTPUT + "PartialChargesOutputHead": "regression_dim activation_fn",
    _OUTPUT + "DipoleVecOutputHead": "",
    _OUTPUT + "HirshfeldOutputHead": "regression_dim activation_fn num_features",
    _POTENTIALS + "ZBLRepulsion": "module_name a0",  # a0 is in the parameters
    _POTENTIALS + "ElectrostaticInteraction": "",
    _POTENTIALS + "DispersionInteraction": "",
    "torch.nn.modules.linear.Linear": "in_features out_features",
    "torch.nn.modules.linear.Identity": "",
    "torch.nn.modules.container.Sequential": "",
    "torch.nn.modules.container.ModuleList": "",
    "torch.nn.modules.activation.SiLU": "",
    "torch.nn.modules.normalization.LayerNorm": "normalized_shape elementwise_affine",
    "torch.nn.modules.sparse.Embedding": "num_embeddings embedding_dim padding_idx norm_type "
    "scale_grad_by_freq sparse",
}
# Where there is the identity in the place of SiLU.
_LINEAR = ("qk_non_linearity", "mlp_rbf_layer_1.1", "mlp_ev_layer_1.1")
# What options must be, so that the model is the one of this module.
_WANTED: Mapping[str, object] = {
    "num_elements": _ROWS,
    "final_mlp_layers": 2,
    "message_normalization": "avg_num_neighbors",
    "initialize_ev_to_zeros": True,
    "interaction_bias": True,
    "residual_mlp_2": False,
    "neighborlist_format_lr": "sparse",
    "use_pme": False,
}
_OPTIONAL = ("neighborlist_format_lr", "use_pme")  # not in every file
_TERMS = {  # parts of a file that it does not use if the option is off
    "zbl_repulsion_bool": ("zbl_repulsion.",),
    "electrostatic_energy_bool": ("partial_charges_output_block.",),
    "dispersion_energy_bool": ("hirshfeld_output_block.",),
}


def is_so3lr(value: object) -> bool:
    """Whether an archive holds a model of so3krates-torch.

    Parameters
    ----------
    value : object
        The content of the archive.
    """
    return isinstance(value, Record) and value.kind.startswith(_MODELS)


def from_so3lr(where: str, value: Record, level: str | None) -> Converted:
    """The model of a file.

    Elements whose scale of the energy was never trained (it is exactly 1) are left out, if others were.

    Parameters
    ----------
    where : str
        The file, for messages.
    value : Record
        The content of the archive.
    level : str or None
        Has to be None, since the files have one level of theory.

    Raises
    ------
    CheckpointError
        If something in the file is not known, so that the model would be another one.
    """
    if level is not None:
        raise CheckpointError(f"{where}: level={level!r}; this model has one level of theory")
    file = _File.read(where, value)
    file.check()
    options, need = file.options, file.option
    short, hidden = float(need("r_max")), int(need("energy_regression_dim"))
    terms = {name: bool(options.get(name, False)) for name in _TERMS}
    charged = terms["electrostatic_energy_bool"]
    long = charged or terms["dispersion_energy_bool"]
    cutoff = float(options.get("r_max_lr") or _LONG_CUTOFF) if long else short
    switch = float(options.get("dispersion_energy_cutoff_lr_damping") or _SWITCH)
    if terms["dispersion_energy_bool"] and switch > cutoff:
        raise file.refuse("dispersion_energy_cutoff_lr_damping", switch, f"at most the cutoff, {cutoff}")
    backbone = So3krates(
        elements=file.elements(),
        cutoff=cutoff,
        inputs=Inputs(charge=bool(need("use_charge_embed")), spin=bool(need("use_spin_embed"))),
        message_cutoff=short if long else None,
        channels=int(need("num_features")),
        layers=int(need("num_layers")),
        heads=int(need("num_heads")),
        l_max=len(need("degrees")),
        radial=int(need("num_radial_basis_fn")),
        decay=float(file.take("radial_embedding.radial_basis_fn.gamma")),
        normalize=bool(need("layer_normalization_1")),
        residual=bool(need("residual_mlp_1")),
    )
    energy = PhysicalEnergy(
        hidden=hidden,
        cutoff=cutoff,
        repulsion=short if terms["zbl_repulsion_bool"] else None,
        width=float(need("electrostatic_energy_scale")) if charged else None,
        damping=float(need("dispersion_energy_scale")) if terms["dispersion_energy_bool"] else None,
        switch=min(switch, cutoff),
    )
    predict: list[Head | Quantity] = [energy, KNOWN["forces"], KNOWN["stress"]]
    predict += [AtomicCharges(), ChargeDipole()] if charged else []
    model = Model(backbone, predict).double()
    with torch.no_grad():
        _fill_backbone(file, backbone)
        _fill_energy(file, energy, backbone.elements)
    file.check_all_read(
        "So3krates", [part for name, parts in _TERMS.items() if not terms[name] for part in parts]
    )
    return Converted(
        model=model,
        origin=Origin(
            family="SO3LR" if long else "So3krates",
            package="so3krates-torch",
            citation="Kabylda et al., J. Am. Chem. Soc. 147, 33723 (2025), 10.1021/jacs.5c09558; Frank et "
            "al., Nat. Commun. 15, 6539 (2024), arXiv 2309.15126",
        ),
    )


class _File(Modules):
    """A file of so3krates-torch."""

    def check(self) -> None:
        """Raise CheckpointError for options and classes that are not known."""
        self.check_kinds(_KINDS, "So3krates and SO3LR as published")
        for name, wanted in _WANTED.items():
            if name not in self.options and name in _OPTIONAL:
                continue
            if self.option(name) != wanted:
                raise self.refuse(name, self.option(name), str(wanted))
        degrees = list(self.option("degrees"))
        if degrees != [*range(1, len(degrees) + 1)]:
            raise self.refuse("degrees", degrees, "[1, 2, …] without gaps")
        norms = [self.option(f"layer_normalization_{k}") for k in (1, 2)]
        if norms[0] != norms[1]:
            raise self.refuse("layer_normalization_2", norms[1], "the value of layer_normalization_1")
        if not isinstance(self.option("energy_regression_dim"), int):
            raise self.refuse("energy_regression_dim", self.option("energy_regression_dim"), "a number")
        if self.options.get("electrostatic_energy_bool") and not self.option("use_charge_embed"):
            raise self.refuse("use_charge_embed", False, "True for a model with electrostatics")
        self._check_modules()

    def _check_modules(self) -> None:
        """Raise CheckpointError for modules that compute something else than the options say."""
        self.check_attributes(_KINDS, self.constants())
        for name, kind in self.kinds.items():
            if kind.endswith((".SiLU", ".Identity")) and kind.endswith(".SiLU") == name.endswith(_LINEAR):
                raise self.refuse(name, kind, "the identity" if name.endswith(_LINEAR) else "SiLU")

    def constants(self) -> Mapping[str, Mapping[str, object]]:
        """Attributes that modules compute with, and the values that `So3krates` and its heads have for them,
        by class.
        """
        totals = sum(bool(self.option(f"use_{name}_embed")) for name in ("charge", "spin"))
        scale = {"embedding_scale": math.sqrt(1 + totals)}
        layer = ("layer_normalization_1", "layer_normalization_2", "residual_mlp_1", "residual_mlp_2")
        mean = self.option("avg_num_neighbors")
        return {
            "So3krates": scale,
            "SO3LR": scale,
            "PhysNetCutoff": {"r_max": self.option("r_max")},
            "RealSphericalHarmonics": {"degrees": self.option("degrees")},
            "BernsteinBasis": {"eps": 1e-6},
            "EuclideanEmbedding": {"initialization_to_zeros": True},
            "ChargeSpinEmbedding": {"sqrt_dim": math.sqrt(self.option("num_features"))},
            "EuclideanTransformer": {name: self.option(name) for name in layer},
            "EuclideanAttentionBlock": {"att_norm_inv": mean, "att_norm_ev": mean},
            "SiLU": {"inplace": False},
            "LayerNorm": {"eps": 1e-6},
            "Embedding": {"max_norm": None},
            "AtomicEnergyOutputHead": {"use_non_linearity": True, "final_non_linearity": False},
            "ZBLRepulsion": {"ke": COULOMB},
            "ElectrostaticInteraction": {"ke": COULOMB, "neighborlist_format_lr": "sparse"},
            "DispersionInteraction": {"c": 0.5},
        }

    def option(self, name: str) -> Any:
        return self.attribute("", name)

    def elements(self) -> list[int]:
        """Atomic numbers of the elements whose energies were trained; all if that cannot be seen."""
        scales = self.take("atomic_energy_output_block.energy_scales.weight", 1, _ROWS)[0]
        trained = [z for z in range(1, _LAST_ELEMENT + 1) if float(scales[z - 1]) != 1.0]
        return trained or [*range(1, _LAST_ELEMENT + 1)]

    def linear(
        self, name: str, target: nn.Module, columns: Tensor | float = 1.0, *, bias: bool = True
    ) -> None:
        """Fill a linear map; its columns are multiplied."""
        assert isinstance(target, nn.Linear)
        target.weight.copy_(self.take(f"{name}.weight", *target.weight.shape) * columns)
        if bias:
            target.bias.copy_(self.take(f"{name}.bias", *target.bias.shape))

    def pair(
        self, names: tuple[str, str], net: nn.Module, columns: Tensor | float = 1.0, *, bias: bool = True
    ) -> None:
        """Fill the two linear maps of a perceptron, between which there is SiLU, here with a factor."""
        first, second = [layer for layer in cast(nn.Sequential, net) if isinstance(layer, nn.Linear)]
        self.linear(names[0], first, columns, bias=bias)
        self.linear(names[1], second, 1 / SILU_GAIN, bias=bias)

    def invariants(self, block: str, l_max: int) -> Tensor:
        """Factors between the invariants of the file and those of `So3krates`, one for each degree.

        The harmonics of the file have the squared norm (2l + 1)/4π, and its invariants are sums of squares
        with a factor.
        """
        factors = self.take(f"{block}.so3_conv_invariants.cg_rep", l_max * (l_max + 2))
        sizes = [2 * l + 1 for l in range(1, l_max + 1)]
        owners = torch.arange(l_max).repeat_interleave(torch.tensor(sizes))
        matrix = f"{block}.so3_conv_invariants.segment_sum_matrix"
        if matrix in self.tensors and not torch.equal(
            self.take(matrix), nn.functional.one_hot(owners).double()
        ):
            raise self.refuse(matrix, "another one", "sums over each degree")
        segments = self.take(f"{block}.so3_conv_invariants.segment_ids")
        repeats = self.take(f"{block}.degree_repeats")
        parts = factors.split(sizes)
        if (
            any(bool((p != p[0]).any()) for p in parts)
            or segments.tolist() != owners.tolist()
            or repeats.tolist() != sizes
        ):
            raise self.refuse(f"{block}.so3_conv_invariants", "another one", "sums over each degree")
        return torch.stack([p[0] * size / (4 * math.pi) for p, size in zip(parts, sizes)])


def _fill_backbone(file: _File, backbone: So3krates) -> None:
    rows = [z - 1 for z in backbone.elements]
    width = backbone.out["0e"]
    backbone.mean_neighbors.fill_(float(file.option("avg_num_neighbors")))
    start = file.take("inv_feature_embedding.embedding.weight", width, _ROWS)
    backbone.embedding.element.weight.copy_(start.T[rows])
    for name, module in backbone.totals.items():
        total, prefix = cast(TotalEmbedding, module), f"{name}_embedding"
        total.query.weight.copy_(file.take(f"{prefix}.Wq.weight", width, _ROWS).T[rows])
        total.key.copy_(file.take(f"{prefix}.Wk", 2, width))
        total.value.copy_(file.take(f"{prefix}.Wv", 2, width))
        for old, new in (("1", 1), ("3", 3)):
            file.linear(f"{prefix}.mlp.{old}", total.net[new], 1 / SILU_GAIN, bias=False)
    radial, neighbors = _radial(file, backbone), float(backbone.mean_neighbors)
    for n, module in enumerate(backbone.layers):
        _fill_layer(file, f"euclidean_transformers.{n}", cast(Layer, module), radial, neighbors)


def _radial(file: _File, backbone: So3krates) -> Tensor:
    """Factors between the radial functions: binomials of a file in float32 are rounded."""
    prefix, size = "radial_embedding.radial_basis_fn", backbone.basis.size
    for name, wanted in (("k", range(size)), ("k_rev", range(size - 1, -1, -1))):
        if file.take(f"{prefix}.{name}").tolist() != [*wanted]:
            raise file.refuse(f"{prefix}.{name}", "another one", "exponents of Bernstein polynomials")
    found = file.take(f"{prefix}.b", size)
    if not torch.allclose(found, backbone.basis.binomials, rtol=1e-5, atol=1e-5):
        raise file.refuse(f"{prefix}.b", found.tolist(), "logarithms of binomials")
    return torch.exp(found - backbone.basis.binomials)


def _fill_layer(file: _File, prefix: str, layer: Layer, radial: Tensor, neighbors: float) -> None:
    attention, block = layer.attention, f"{prefix}.euclidean_attention_block"
    degrees = attention.spread.shape[0]
    factors = file.invariants(block, degrees)
    for name, target in (
        ("q_inv", attention.query),
        ("k_inv", attention.key),
        ("v_inv", attention.value),
        ("q_ev", attention.euclidean_query),
        ("k_ev", attention.euclidean_key),
    ):
        # The file divides products by n, we by √(n d).
        factor = math.sqrt(target.weight.shape[1] / neighbors) if name.startswith("q") else 1.0
        target.weight.copy_(file.take(f"{block}.W_{name}", *target.weight.shape) * factor)
    for name, module in zip(("filter_net_inv", "filter_net_ev"), attention.filters):
        net = cast(Filter, module)
        # Each is there twice: in the layer, and as a part of its attention.
        for place in (f"{block}.{name}", f"{prefix}.{name}"):
            rbf, ev = f"{place}.mlp_rbf", f"{place}.mlp_ev"
            file.pair((f"{rbf}.0", f"{rbf}.mlp_rbf_layer_1.0"), net.radial, radial)
            file.pair((f"{ev}.0", f"{ev}.mlp_ev_layer_1.0"), net.geometry, factors)
    _fill_exchange(file, f"{prefix}.interaction_block", layer.exchange, degrees)
    for name, norm in (("layer_norm_inv_1", layer.between), ("layer_norm_inv_2", layer.after)):
        if isinstance(norm, nn.LayerNorm):
            norm.weight.copy_(file.take(f"{prefix}.{name}.weight", *norm.weight.shape))
            norm.bias.copy_(file.take(f"{prefix}.{name}.bias", *norm.bias.shape))
    if layer.own is not None:
        for old, new in (("1", 1), ("3", 3)):
            file.linear(f"{prefix}.mlp_1.{old}", layer.own[new], 1 / SILU_GAIN)


def _fill_exchange(file: _File, prefix: str, exchange: Exchange, degrees: int) -> None:
    factors = file.invariants(prefix, degrees)
    columns = torch.cat([torch.ones(exchange.channels, dtype=torch.float64), factors])
    file.linear(f"{prefix}.linear_layer", exchange.mix, columns)


def _fill_energy(file: _File, head: PhysicalEnergy, elements: tuple[int, ...]) -> None:
    prefix = "atomic_energy_output_block"
    file.pair((f"{prefix}.layers.0", f"{prefix}.final_layer"), head.net)
    scales = file.take(f"{prefix}.energy_scales.weight", 1, _ROWS)[0]
    shifts = file.take(f"{prefix}.energy_shifts", _ROWS)
    for z in elements:
        head.element_scale[z], head.shift[z] = scales[z - 1], shifts[z - 1]
    if head.repulsion is not None:
        for name, target in (
            ("a", head.repulsion.exponents),
            ("c", head.repulsion.coefficients),
            ("p", head.repulsion.power),
            ("d", head.repulsion.inverse_length),
        ):
            ends = range(1, 5) if len(target) > 1 else [""]
            target.copy_(torch.cat([file.take(f"zbl_repulsion.{name}{end}_raw", 1) for end in ends]))
    rows = _LAST_ELEMENT + 1
    if head.charges is not None:
        prefix = "partial_charges_output_block"
        head.charges.shift[:rows] = file.take(f"{prefix}.atomic_embedding.weight", rows, 1)[:, 0].to(
            head.charges.shift
        )
        names = (f"{prefix}.transform_inv_features.0", f"{prefix}.transform_inv_features.2")
        file.pair(names, head.charges.net)
    if head.ratios is not None:
        prefix = "hirshfeld_output_block"
        ratios = head.ratios
        ratios.shift[:rows] = file.take(f"{prefix}.v_shift_embedding.weight", rows, 1)[:, 0].to(ratios.shift)
        ratios.weight[:rows] = file.take(f"{prefix}.q_embedding.weight", rows, ratios.weight.shape[1]).to(
            ratios.weight
        )
        file.pair((f"{prefix}.transform_features.0", f"{prefix}.transform_features.2"), ratios.net)
