"""Checkpoints and packages of NequIP (the package nequip, versions 0.7 to 0.19)."""

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from molequi.errors import CheckpointError
from molequi.foreign.nequip_package import read_package
from molequi.foreign.nequip_weights import Architecture, Blocks, elements_of, model_of, read_blocks
from molequi.foreign.origin import Converted, Origin
from molequi.foreign.tables import Tables
from molequi.ops import irreps as ir

WANTED = "a checkpoint (.ckpt) of nequip 0.7 or later, or what nequip-package build made of it (.nequip.zip)"
_CITATION = (
    "Batzner et al., Nat. Commun. 13, 2453 (2022), arXiv 2101.03164; Tan et al., Digital Discovery (2026), "
    "10.1039/D5DD00423C"
)
_PRESETS = {  # num_layers, l_max and num_features
    "S": (2, 1, [128, 64]),
    "M": (4, 2, [128, 64, 32]),
    "L": (6, 3, [128, 64, 32, 32]),
    "XL": (6, 4, [320, 96, 64, 32, 32]),
}
_MODULES = ("nequip.train.", "nequip.train.lightning.", "nequip.train.ema.")
_START = "per_type_energy_scales per_type_energy_shifts seed compile_mode model_dtype do_derivatives"
_SHORT = "num_layers l_max parity num_features"
_READ = (
    "_target_ type_names r_max radial_mlp_depth radial_mlp_width type_embed_num_features num_bessels "
    "bessel_trainable polynomial_cutoff_p avg_num_neighbors per_edge_type_cutoff pair_potential "
    "per_type_energy_scales_trainable per_type_energy_shifts_trainable convnet_sc learnable_shift "
    "readout_mlp_hidden_layers_depth readout_mlp_hidden_layers_width readout_mlp_nonlinearity"
)
# What options must be, so that the model is one that is known.
_FIXED: Mapping[str, object] = {
    "categorical_graph_field_embed": None,
    "convnet_resnet": False,
    "convnet_nonlinearity_type": "gate",
    "convnet_nonlinearity_scalars": {"e": "silu", "o": "tanh"},
}
# Further parts of the state of a training, which do not belong to the model.
_TRAINING = ("run_stage", "loss.", "train_metrics.", "val_metrics.", "test_metrics.", "ema.")


def is_nequip(value: object) -> bool:
    """Whether an archive holds a checkpoint, a package or a state dictionary of nequip.

    Parameters
    ----------
    value : object
        The content of the archive.
    """
    if not isinstance(value, Mapping):
        return False
    if "eager_model.pkl" in value:
        return True
    info = value.get("hyper_parameters")
    info = info.get("info_dict") if isinstance(info, Mapping) else None
    versions = info.get("versions") if isinstance(info, Mapping) else None
    return (isinstance(versions, Mapping) and "nequip" in versions) or _is_state(value)


def _is_state(value: Mapping[Any, Any]) -> bool:
    """Whether it is the state dictionary of a model, which nequip 0.5 and 0.6 wrote without its options."""
    return any(isinstance(name, str) and ".layer0_convnet." in f".{name}" for name in value)


def from_nequip(where: str, value: Mapping[str, Any], level: str | None) -> Converted:
    """The model of a checkpoint or package.

    Parameters
    ----------
    where : str
        The file, for messages.
    value : mapping
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
    if _is_state(value):
        raise CheckpointError(
            f"{where}: a state dictionary alone, such as best_model.pth of nequip 0.5 and 0.6, does not say "
            f"which model it belongs to; wanted {WANTED}"
        )
    if "eager_model.pkl" in value:
        architecture, state, version = read_package(where, value)
    else:
        checkpoint = _Checkpoint.read(where, value)
        architecture, state, version = checkpoint.architecture(), checkpoint.state(), checkpoint.text
    tables = Tables(where, "NequIP", state)
    model = model_of(architecture, tables)
    tables.check_all_read(("output_mask",))
    return Converted(
        model=model, origin=Origin(family="NequIP", package=f"nequip {version}", citation=_CITATION)
    )


def _prefix(where: str, names: Mapping[str, Any]) -> str:
    """What stands before the names of the tensors of the energy model."""
    end = "type_embed.embed_module.weight"
    found = [name.removesuffix(end) for name in names if name.startswith("model.") and name.endswith(end)]
    if len(found) != 1:
        raise CheckpointError(f"{where}: {len(found)} models; this version reads checkpoints with one NequIP")
    return found[0]


@dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint of Lightning: options of the model, and the state of the training.

    Attributes
    ----------
    where : str
        The file, for messages.
    options : mapping
        Options of the model.
    module : mapping
        Options of the Lightning module.
    tensors : mapping
        Its state.
    text : str
        Version of nequip.
    """

    where: str
    options: Mapping[str, Any]
    module: Mapping[str, Any]
    tensors: Mapping[str, Any]
    text: str

    @classmethod
    def read(cls, where: str, value: Mapping[str, Any]) -> "_Checkpoint":
        given = value["hyper_parameters"]
        info = given["info_dict"]
        module, options = info.get("training_module"), given.get("model")
        if not isinstance(options, Mapping) or not isinstance(module, Mapping):
            raise CheckpointError(f"{where}: its options are no plain values; wanted {WANTED}")
        if not isinstance(value.get("state_dict"), Mapping):
            raise CheckpointError(f"{where}: it has no weights (state_dict); wanted {WANTED}")
        text = str(info["versions"]["nequip"])
        found = re.fullmatch(r"0\.(\d{1,3})(\.\w+)*(\+.*)?", text)
        if found is None or not 7 <= int(found[1]) <= 19:
            raise CheckpointError(
                f"{where}: a checkpoint of nequip {text[:40]}; "
                "this version reads those of nequip 0.7 to 0.19, whose options mean what it knows"
            )
        return cls(where, options, module, value["state_dict"], text)

    @property
    def version(self) -> tuple[int, int]:
        major, minor = self.text.split(".")[:2]
        return int(major), int(minor)

    def refuse(self, name: str, wanted: str) -> CheckpointError:
        found = reprlib.repr(self.options[name]) if name in self.options else "missing"
        return CheckpointError(f"{self.where}: {name} is {found}; this version reads {wanted}")

    def option(self, name: str, default: Any = None) -> Any:
        return self.options.get(name, default)

    def whole(self, name: str, default: int | None, low: int, high: int, given: object = None) -> int:
        found = self.option(name, default) if given is None else given
        if type(found) is not int or not low <= found <= high:
            raise self.refuse(name, f"whole numbers from {low} to {high}")
        return found

    def switch(self, name: str, default: bool) -> bool:
        found = self.option(name, default)
        if type(found) is not bool:
            raise self.refuse(name, "True and False")
        return found

    def check(self) -> str:
        """The name of the builder of the model. Raises CheckpointError for options that are not known."""
        target = str(self.option("_target_", ""))
        kind = target.rpartition(".")[2]
        if kind in ("ModelFromCheckpoint", "ModelFromPackage", "modify"):
            raise CheckpointError(
                f"{self.where}: its model was built from another file ({kind}), whose options it does not "
                "have; run  nequip-package build FILE.ckpt OUT.nequip.zip  and convert OUT.nequip.zip"
            )
        full, preset = kind.startswith("Full"), kind == "PresetNequIPGNNModel"
        if not target.startswith("nequip.model.") or kind.removeprefix("Full") not in (
            "NequIPGNNModel",
            "NequIPGNNEnergyModel",
            "PresetNequIPGNNModel",
        ):
            raise CheckpointError(
                f"{self.where}: a model of {target or 'nothing'}; this version reads NequIP (NequIPGNNModel, "
                "FullNequIPGNNModel, PresetNequIPGNNModel), and not Allegro or other extensions of nequip"
            )
        known = f"{_START} {_READ} " + ("feature_irreps_hidden irreps_edge_sh" if full else _SHORT)
        for name in self.options:
            if name not in (*known.split(), *_FIXED, "convnet_nonlinearity_gates", *["preset"] * preset):
                raise self.refuse(name, "models without this option")
        for name, wanted in _FIXED.items():
            if self.option(name, wanted) != wanted:
                raise self.refuse(name, str(wanted))
        gates = self.option("convnet_nonlinearity_gates", {"e": "silu"})
        if not isinstance(gates, Mapping) or gates.get("e") != "silu":
            raise self.refuse("convnet_nonlinearity_gates", "silu for even ones")
        return kind

    def architecture(self) -> Architecture:
        kind = self.check()
        preset = kind.startswith("Preset")
        symbols = list(self.options["type_names"])
        harmonics, layers, radial = self.features(kind)
        cutoff = float(self.options["r_max"])
        width = sum(count for _, count in layers[-1])
        depth = self.whole("readout_mlp_hidden_layers_depth", 0, 0, 100)
        most, start = 100_000, layers[0][0][1] if layers and layers[0] else 1
        hidden = self.whole("readout_mlp_hidden_layers_width", width, 1, most) if depth else width
        activation = self.option("readout_mlp_nonlinearity", "silu")
        if depth and activation not in ("silu", None):
            raise self.refuse("readout_mlp_nonlinearity", "silu and null")
        connected = self.switch("convnet_sc", True)
        embedding = self.whole("type_embed_num_features", 32 if preset else start, 1, most)
        return Architecture(
            where=self.where,
            elements=elements_of(self.where, symbols),
            cutoff=cutoff,
            exponent=float(self.option("polynomial_cutoff_p", 6)),
            pair_cutoffs=self.pair_cutoffs(symbols, cutoff),
            harmonics=harmonics,
            embedding=embedding,
            layers=layers,
            connected=tuple(
                connected and (k > 0 or self.switch("learnable_shift", False)) for k in range(len(layers))
            ),
            bessels=self.whole("num_bessels", 8, 1, 100_000),
            radial=radial,
            readout=(hidden,) * depth,
            activation=activation if depth else None,
            neighbors=self.neighbors(symbols),
            repulsion=self.repulsion(symbols),
        )

    def features(self, kind: str) -> tuple[tuple[str, ...], tuple[Blocks, ...], tuple[int, ...]]:
        """Irreps of the harmonics and of each layer, and hidden channels of the radial functions."""
        if kind.startswith("Full"):
            layers = tuple(read_blocks(self.where, text) for text in self.options["feature_irreps_hidden"])
            sh = self.options["irreps_edge_sh"]
            given = list(self.options["radial_mlp_depth"]), list(self.options["radial_mlp_width"])
            widths = [
                (self.whole("radial_mlp_width", None, 1, 100_000, w),)
                * self.whole("radial_mlp_depth", None, 0, 100, d)
                for d, w in zip(*given)
            ]
            if len(set(widths)) != 1 or not len(given[0]) == len(given[1]) == len(layers):
                raise self.refuse("radial_mlp_width", "the same for all layers")
            harmonics = (
                tuple(ir.natural(l) for l in range(self.whole("irreps_edge_sh", None, 0, 6) + 1))
                if isinstance(sh, int)
                else tuple(irrep for irrep, _ in read_blocks(self.where, sh))
            )
            return harmonics, layers, widths[0]
        preset = str(self.option("preset", "")).upper()
        if kind.startswith("Preset") and preset not in _PRESETS:
            raise self.refuse("preset", f"{', '.join(_PRESETS)}")
        count, highest, channels = _PRESETS.get(preset, (4, 1, 32))
        new = self.version >= (0, 16)
        count = self.whole("num_layers", count, 1, 100)
        highest = self.whole("l_max", highest, 0, 6)
        channels = self.option("num_features", channels)
        widths_of = [channels] * (highest + 1) if isinstance(channels, int) else list(channels)
        if len(widths_of) != highest + 1 or not all(type(n) is int and 0 < n < 100_001 for n in widths_of):
            raise self.refuse("num_features", "a number of channels, or one for each degree up to l_max")
        parity = self.switch("parity", not kind.startswith("Preset"))
        degrees = range(highest + 1)
        if new:  # natural parity alone, or both
            names = [(l, ir.name(l, p)) for l in degrees for p in ((1, -1) if parity else ((-1) ** l,))]
            harmonics = tuple(map(ir.natural, degrees))
        else:  # all even, which is SO(3), or both
            names = [(l, ir.name(l, p)) for p in ((1, -1) if parity else (1,)) for l in degrees]
            harmonics = tuple(map(ir.natural, degrees)) if parity else tuple(f"{l}e" for l in degrees)
        hidden = tuple((irrep, widths_of[l]) for l, irrep in names)
        depth, width = (1, 128) if self.version >= (0, 17) else (2, 64)
        depth = self.whole("radial_mlp_depth", depth, 0, 100)
        width = self.whole("radial_mlp_width", width, 1, 100_000)
        return harmonics, (hidden,) * (count - 1) + ((("0e", widths_of[0]),),), (width,) * depth

    def pair_cutoffs(self, symbols: Sequence[str], cutoff: float) -> Mapping[str, Mapping[str, float]] | None:
        given = self.option("per_edge_type_cutoff")
        if given is None:
            return None
        if not isinstance(given, Mapping) or not set(given) <= set(symbols):
            raise self.refuse("per_edge_type_cutoff", "cutoffs by the names of both types")
        found = {}
        for center in symbols:
            one = given.get(center, cutoff)
            found[center] = (
                {other: float(one.get(other, cutoff)) for other in symbols}
                if isinstance(one, Mapping)
                else dict.fromkeys(symbols, float(one))
            )
        return found

    def neighbors(self, symbols: Sequence[str]) -> tuple[float, ...] | None:
        given = self.option("avg_num_neighbors")
        if given is None:
            return None
        found = [given[name] for name in symbols] if isinstance(given, Mapping) else [given]
        if not all(isinstance(n, (int, float)) and 0 < n < 1e9 for n in found):
            raise self.refuse("avg_num_neighbors", "numbers above zero, of all or by type")
        return tuple(float(n) for n in found)

    def repulsion(self, symbols: Sequence[str]) -> float | None:
        given = self.option("pair_potential")
        if given is None:
            return None
        known = ("_target_", "units", "chemical_species", "polynomial_cutoff_p")
        if (
            not isinstance(given, Mapping)
            or given.get("_target_") != "nequip.nn.pair_potential.ZBL"
            or not set(given) <= set(known)
        ):
            raise self.refuse("pair_potential", "nequip.nn.pair_potential.ZBL")
        if given.get("units") != "metal":
            raise self.refuse("pair_potential", "ZBL in the units 'metal', eV and Å")
        if list(given["chemical_species"]) != list(symbols):
            raise self.refuse("pair_potential", "ZBL of the elements that are the types")
        # Before version 0.17 it used the cutoff function of the Bessel functions.
        exponent = self.option("polynomial_cutoff_p", 6) if self.version < (0, 17) else 6
        return float(given.get("polynomial_cutoff_p", exponent))

    def state(self) -> dict[str, Tensor]:
        """The tensors of the energy model, with averaged weights where the training had them."""
        start = _prefix(self.where, self.tensors)
        for name in self.tensors:
            if not name.startswith((start, *_TRAINING)) and not name.endswith("._empty"):
                raise CheckpointError(f"{self.where}: {name!r} is no part of a model that is known")
        state = {n.removeprefix(start): t for n, t in self.tensors.items() if n.startswith(start)}
        kind = str(self.module.get("_target_", ""))
        if kind.rpartition(".")[2] not in ("NequIPLightningModule", "EMALightningModule") or (
            not kind.startswith(_MODULES)
        ):
            raise CheckpointError(
                f"{self.where}: trained with {kind or 'nothing'}, whose final weights are not known; run  "
                "nequip-package build FILE.ckpt OUT.nequip.zip  and convert OUT.nequip.zip"
            )
        return self._averaged(state) if kind.endswith("EMALightningModule") else state

    def _averaged(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The moving averages of the parameters, which the file has in the order of the latter."""
        extra = self.tensors.get("ema._extra_state")
        fixed = [
            "_rmax_recip",
            "output_mask",
            "atomic_numbers",
            "_qqr2exesquare",
            "._w3j",
            "._tensor_constant",
        ]
        trained = {
            "bessel_weights": "bessel_trainable",
            ".scales": "per_type_energy_scales_trainable",
            ".shifts": "per_type_energy_shifts_trainable",
        }
        fixed += [part for part, option in trained.items() if not self.switch(option, False)]
        names = [n for n, t in state.items() if t.numel() and not any(part in n for part in fixed)]
        count = sum(name.startswith("ema.ema_weight_") for name in self.tensors)
        holding = isinstance(extra, Mapping) and extra.get("is_holding_ema_weights") is True
        if count != len(names) or not holding:
            raise CheckpointError(
                f"{self.where}: {count} averaged tensors (ema_weight) for {len(names)} parameters; the file "
                "is damaged, or was written during a validation"
            )
        averages = {name: self.tensors.get(f"ema.ema_weight_{k}") for k, name in enumerate(names)}
        for name, tensor in averages.items():
            if not isinstance(tensor, Tensor) or tensor.shape != state[name].shape:
                raise CheckpointError(f"{self.where}: the averaged tensor of {name!r} has another shape")
            state = {**state, name: tensor}
        return state
