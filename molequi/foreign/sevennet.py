"""Checkpoints of SevenNet (the package sevenn, versions 0.8 to 0.13)."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from molequi.errors import CheckpointError
from molequi.foreign.origin import Converted, Origin
from molequi.foreign.tables import Tables
from molequi.heads import LinearScalar
from molequi.model import Model
from molequi.models.sevennet import TANH_GAIN, ElementMatrices, Interaction, Mix, SevenNet, gated
from molequi.nn.mlp import SILU_GAIN
from molequi.ops import irreps as ir
from molequi.quantities import KNOWN, SYMBOLS

_OLD_NAMES = {
    "EdgeEmbedding": "edge_embedding",
    "reducing nn input to hidden": "reduce_input_to_hidden",
    "reducing nn hidden to energy": "reduce_hidden_to_energy",
    "rescale atomic energy": "rescale_atomic_energy",
}
_COUNTS = {"num_convolution_layer": (1, 100), "lmax": (0, 12), "lmax_edge": (-1, 12), "lmax_node": (-1, 12)}
_COUNTS |= {"channel": (1, 100_000)}
_SWITCHES = ("is_parity", "_normalize_sph", "use_modality", "readout_as_fcn", "use_bias_in_linear")


def is_sevennet(value: object) -> bool:
    """Whether an archive holds a checkpoint of SevenNet.

    Parameters
    ----------
    value : object
        The content of the archive.
    """
    return (
        isinstance(value, Mapping)
        and {"model_state_dict", "config"} <= value.keys()
        and (isinstance(value["config"], Mapping) and "_type_map" in value["config"])
    )


def from_sevennet(where: str, value: Mapping[str, Any], level: str | None) -> Converted:
    """The model of a checkpoint.

    Parameters
    ----------
    where : str
        The file, for messages.
    value : mapping
        The content of the archive.
    level : str or None
        The level of theory ("modal") of a model with several.

    Raises
    ------
    CheckpointError
        If something in the file is not known, so that the model would be another one.
    """
    config = _Config(where, value["config"])
    numbers = sorted(config.elements)
    state = {_present_name(name): tensor for name, tensor in value["model_state_dict"].items()}
    tables = Tables(where, "SevenNet", state)
    modal, levels = config.modal(level)
    layouts = [_natural(layout, config.parity) for layout in config.layouts()]
    backbone = SevenNet(
        elements=numbers,
        cutoff=config.number("cutoff"),
        channels=layouts,
        l_max=config.l_max,
        group="O(3)" if config.parity else "SO(3)",
        radial=len(tables.peek("edge_embedding.basis_function.coeffs")),
        radial_hidden=list(config["weight_nn_hidden_neurons"]),
        switch=config.switch(),
        self_connection=config.self_connections(),
        unit_harmonics=bool(config.values.get("_normalize_sph", False)),
        biases=modal is not None,
    )
    fan_in = layouts[-1]["0e"] + config.reads_modal("reduce_input_to_hidden")
    hidden = tables.peek("reduce_input_to_hidden.linear.weight").numel() // fan_in
    head = LinearScalar(KNOWN["energy"], hidden=(hidden,))
    model = Model(backbone, [head, KNOWN["forces"], KNOWN["stress"]]).double()
    with torch.no_grad():
        _Transfer(config, tables, modal).fill(backbone, head)
    tables.check_all_read()
    return Converted(
        model=model,
        origin=Origin(
            family="SevenNet",
            package=f"sevenn {config['version']}",
            citation="Park, Kim, Hwang, Han, J. Chem. Theory Comput. 20, 4857 (2024), arXiv 2402.03789",
            level=level,
            other_levels=tuple(name for name in levels if name != level),
        ),
    )


@dataclass(frozen=True)
class _Config:
    """The options of a checkpoint, with a check of each."""

    where: str
    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        if name not in self.values:
            raise CheckpointError(f"{self.where}: its config has no {name!r}; it is no complete checkpoint")
        return self.values[name]

    def number(self, name: str) -> float:
        return float(self[name])

    def refuse(self, name: str, wanted: str) -> CheckpointError:
        found = reprlib.repr(self.values.get(name)) if name in self.values else "missing"
        return CheckpointError(f"{self.where}: {name} is {found}; this version reads {wanted}")

    @property
    def elements(self) -> dict[int, int]:
        """Row in the tables of the file by atomic number."""
        return {int(z): int(k) for z, k in self["_type_map"].items()}

    @property
    def parity(self) -> bool:
        return bool(self["is_parity"])

    @property
    def l_max(self) -> int:
        edge = int(self.values.get("lmax_edge", -1))
        return edge if edge > 0 else int(self["lmax"])

    @property
    def version(self) -> tuple[int, int]:
        major, minor = str(self["version"]).split(".")[:2]
        return int(major), int(minor)

    def __post_init__(self) -> None:
        for name, (low, high) in _COUNTS.items():
            found = self.values.get(name, low)
            if type(found) is not int or not low <= found <= high:
                raise self.refuse(name, f"whole numbers from {low} to {high}")
        for name in _SWITCHES:
            if type(self.values.get(name, False)) is not bool:
                raise self.refuse(name, "True and False")
        rows = self["_type_map"]
        if sorted(rows.values()) != list(range(len(rows))) or not all(type(z) is int for z in rows):
            raise self.refuse("_type_map", "rows from 0 on, one for each atomic number")
        if self["_model_type"] != "E3_equivariant_model":
            raise self.refuse("_model_type", "E3_equivariant_model")
        if self.values.get("interaction_type", "nequip") != "nequip":
            raise self.refuse("interaction_type", "nequip")
        if self.values.get("readout_as_fcn") or self.values.get("use_bias_in_linear"):
            raise self.refuse(
                "readout_as_fcn" if self.values.get("readout_as_fcn") else "use_bias_in_linear", "False"
            )
        if self.values.get("optimize_by_reduce") is False:
            raise self.refuse("optimize_by_reduce", "True")
        for name in ("act_scalar", "act_gate"):
            found = self[name]
            if found["e"] != "silu" or (self.parity and found["o"] != "tanh"):
                raise self.refuse(name, "silu for even and tanh for odd ones")
        if self.values.get("act_radial", "silu") != "silu":
            raise self.refuse("act_radial", "silu")
        if self["radial_basis"]["radial_basis_name"] != "bessel":
            raise self.refuse("radial_basis", "bessel")

    def switch(self) -> float | None:
        found = self["cutoff_function"]
        match found["cutoff_function_name"]:
            case "XPLOR":
                return float(found["cutoff_on"])
            case "poly_cut" if int(found.get("poly_cut_p_value", 6)) == 6:
                return None
        raise self.refuse("cutoff_function", "XPLOR, and poly_cut with the exponent 6")

    def self_connections(self) -> list[Literal["linear", "elements"]]:
        found = self.values.get("self_connection_type", "nequip")
        count = int(self["num_convolution_layer"])
        names: dict[str, Literal["linear", "elements"]] = {"nequip": "elements", "linear": "linear"}
        kinds = [found] * count if isinstance(found, str) else list(found)
        if any(kind not in names for kind in kinds):
            raise self.refuse("self_connection_type", "nequip and linear")
        return [names[kind] for kind in kinds]

    def layouts(self) -> list[dict[str, int]]:
        """Channels of each irrep as the file names them."""
        manual = self.values.get("irreps_manual")
        if manual:
            return [_read_layout(self.where, str(text)) for text in manual]
        width, count = int(self["channel"]), int(self["num_convolution_layer"])
        node = int(self.values.get("lmax_node", -1))
        highest = node if node > 0 else int(self["lmax"])
        out = [{"0e": width}]
        for layer in range(count):
            last = layer == count - 1
            reached = _reached(out[-1], self.l_max, 0 if last else highest, self.parity)
            out.append({i: width for i in reached if not last or ir.parse(i)[1] == 1})
        return out

    def modal(self, level: str | None) -> tuple[int | None, list[str]]:
        """Number of the level of theory, and the names of all."""
        if not self.values.get("use_modality"):
            if level is not None:
                raise CheckpointError(f"{self.where}: level={level!r}; this model has one level of theory")
            return None, []
        known = {str(name): int(k) for name, k in self["_modal_map"].items()}
        if level not in known:
            raise CheckpointError(
                f"{self.where}: trained on several levels of theory; choose one of {', '.join(known)} with "
                f"level={next(iter(known))!r} (--level {next(iter(known))})"
            )
        return known[level], list(known)

    def reads_modal(self, module: str) -> int:
        """Number of levels that a linear map of the file reads beside the features."""
        if not self.values.get("use_modality"):
            return 0
        ends = {
            "onehot_to_feature_x": "use_modal_node_embedding",
            "self_interaction_1": "use_modal_self_inter_intro",
            "self_interaction_2": "use_modal_self_inter_outro",
            "reduce_input_to_hidden": "use_modal_output_block",
        }
        used = next((option for end, option in ends.items() if module.endswith(end)), None)
        return len(self["_modal_map"]) if used and self.values.get(used) else 0


class _Transfer:
    """Weights from the file into the model: other shapes and normalizations, the same functions."""

    def __init__(self, config: _Config, tables: Tables, modal: int | None) -> None:
        from e3nn.math import normalize2mom

        self.config, self.tables, self.modal = config, tables, modal
        # e3nn has sampled its constants; ours are by quadrature. The quotient goes into the next weights.
        self.silu = normalize2mom(torch.nn.functional.silu).cst / SILU_GAIN
        self.tanh = normalize2mom(torch.tanh).cst / TANH_GAIN

    def fill(self, backbone: SevenNet, head: LinearScalar) -> None:
        tables, config = self.tables, self.config
        rows = [config.elements[z] for z in backbone.elements]
        backbone.basis.frequencies.copy_(tables.take("edge_embedding.basis_function.coeffs"))
        count, modals = len(config.elements), config.reads_modal("onehot_to_feature_x")
        width = backbone.layouts[0]["0e"]
        start = tables.take("onehot_to_feature_x.linear.weight", (count + modals) * width).view(-1, width)
        start = start / (count + modals) ** 0.5
        own = start[count + self.modal] if modals and self.modal is not None else 0.0
        backbone.embedding.element.weight.copy_(start[rows] + own)
        denominators = [
            float(tables.take(f"{k}_convolution.denominator", 1)) for k in range(len(backbone.interactions))
        ]
        backbone.mean_neighbors.fill_(denominators[0])
        for k, layer in enumerate(cast(list[Interaction], list(backbone.interactions))):
            gains = {} if k == 0 else self._gains(layer.inputs)
            if layer.own.linear:
                self._linear(f"{k}_self_connection_intro", layer.own, layer.inputs, layer.gated, gains)
            else:
                self._by_element(f"{k}_self_connection_intro", layer.own, layer.inputs, rows, gains)
            self._linear(f"{k}_self_interaction_1", layer.before, layer.inputs, layer.inputs, gains)
            self._radial(k, layer)
            mid = {t: sum(layer.inputs[i] for i, _, u in layer.paths if u == t) for t in layer.gated}
            factor = float(backbone.mean_neighbors) / denominators[k]
            self._linear(f"{k}_self_interaction_2", layer.after, mid, layer.gated, dict.fromkeys(mid, factor))
        hidden = {"0e": head.hidden[0]}
        last = {"0e": backbone.out["0e"]}
        first = Mix(last, hidden, biases=self.modal is not None).double()
        self._linear("reduce_input_to_hidden", first, last, hidden, self._gains(last))
        _map(head.net[0]).weight.copy_(_map(first.mix["0e"]).weight)
        weight = tables.take("reduce_hidden_to_energy.linear.weight", head.hidden[0]) / head.hidden[0] ** 0.5
        _map(head.net[1]).weight.copy_(weight[None])
        constant = float(weight @ _map(first.mix["0e"]).bias.double()) if self.modal is not None else 0.0
        self._scale(head, rows, backbone.elements, constant)

    def _gains(self, layout: Mapping[str, int]) -> dict[str, float]:
        """What features of a layer have to be multiplied with, by irrep."""
        return {irrep: self.tanh if irrep == "0o" else self.silu for irrep in layout}

    def _linear(
        self,
        name: str,
        layer: Mix,
        inputs: Mapping[str, int],
        outputs: Mapping[str, int],
        gains: Mapping[str, float],
    ) -> None:
        """A linear map of e3nn: one block of weights for each irrep, one after another."""
        modals = self.config.reads_modal(name)
        shared = [irrep for irrep in inputs if irrep in outputs]
        sizes = [inputs[i] * outputs[i] for i in shared]
        extra = modals * outputs.get("0e", 0)
        parts = self.tables.take(f"{name}.linear.weight", sum(sizes) + extra).split([*sizes, extra])
        for irrep, part in zip(shared, parts):
            fan_in = inputs[irrep] + (modals if irrep == "0e" else 0)
            target = _map(layer.mix[irrep])
            weight = part.view(inputs[irrep], outputs[irrep]).T * (gains.get(irrep, 1.0) / fan_in**0.5)
            target.weight.copy_(weight)
            if irrep == "0e" and target.bias is not None:
                target.bias.zero_()
                if modals and self.modal is not None:
                    target.bias.copy_(parts[-1].view(modals, -1)[self.modal] / fan_in**0.5)

    def _by_element(
        self, name: str, layer: Mix, inputs: Mapping[str, int], rows: list[int], gains: Mapping[str, float]
    ) -> None:
        """A product of features with elements: one matrix for each."""
        count = len(self.config.elements)
        sizes = [inputs[i] * count * n for i, n in layer.outputs.items()]
        parts = self.tables.take(f"{name}.fc_tensor_product.weight", sum(sizes)).split(sizes)
        for (irrep, n), part in zip(layer.outputs.items(), parts):
            factor = gains.get(irrep, 1.0) / (inputs[irrep] * count) ** 0.5
            cast(ElementMatrices, layer.mix[irrep]).weight.copy_(
                part.view(inputs[irrep], count, n).transpose(0, 1)[rows] * factor
            )

    def _radial(self, k: int, layer: Interaction) -> None:
        maps = [m for m in layer.radial if isinstance(m, torch.nn.Linear)]
        names = [f"{k}_convolution.weight_nn.layer{n}.weight" for n in range(len(maps))]
        for n, (target, name) in enumerate(zip(maps, names)):
            found = self.tables.take(name)
            weight = found * ((self.silu if n else 1.0) / found.shape[0] ** 0.5)
            target.weight.copy_(self._sorted(k, layer, weight).T if n == len(maps) - 1 else weight.T)

    def _sorted(self, k: int, layer: Interaction, weight: Tensor) -> Tensor:
        """Columns of the last radial map in the order of our paths, with the signs of our couplings."""
        parity = self.config.parity
        highest = max(ir.parse(i)[0] for i in layer.outputs)
        reached = set(_reached(layer.inputs, self.config.l_max, highest, parity))
        if parity and k == int(self.config["num_convolution_layer"]) - 1:
            reached = {irrep for irrep in reached if ir.parse(irrep)[1] == 1}
        paths = []  # (source, degree of the harmonic, product) in the order of the file
        for source in layer.inputs:
            l1, p1 = ir.parse(source)
            for l2 in range(self.config.l_max + 1):
                for l3 in range(abs(l1 - l2), l1 + l2 + 1):
                    product = ir.name(l3, p1 * (-1) ** l2) if parity else ir.natural(l3)
                    if product in reached:
                        paths.append((source, l2, product))
        if self.config.version >= (0, 11):
            order = list(layer.gated) if not parity else _order(reached)
            paths.sort(key=lambda p: order.index(p[2]))
        widths = [layer.inputs[p[0]] for p in paths]
        if sum(widths) != weight.shape[1]:
            raise CheckpointError(f"{self.tables.where}: radial weights of layer {k} for other paths")
        columns = dict(zip(paths, weight.split(widths, dim=1)))
        return torch.cat([columns[p] * self._sign(k, p) for p in layer.paths], dim=1)

    def _sign(self, k: int, path: tuple[str, int, str]) -> float:
        """1, or -1 if the coupling of the file has the other sign."""
        l1, l2, l3 = ir.parse(path[0])[0], path[1], ir.parse(path[2])[0]
        name = f"{k}_convolution.convolution._compiled_main_left_right._w3j_{l1}_{l2}_{l3}"
        if name not in self.tables.state:
            return 1.0
        stored, ours = self.tables.peek(name), ir.clebsch_gordan(l1, l2, l3)
        sign = 1.0 if float((stored * ours).sum()) > 0 else -1.0
        if not torch.allclose(stored, sign * ours, atol=1e-5):
            raise CheckpointError(f"{self.tables.where}: {name} is no Clebsch-Gordan tensor")
        return sign

    def _scale(self, head: LinearScalar, rows: list[int], elements: tuple[int, ...], constant: float) -> None:
        """Scale and shift of the energy of an atom, by element and level."""
        scale, shift = (self._table(f"rescale_atomic_energy.{name}")[rows] for name in ("scale", "shift"))
        alike = bool((scale == scale[0]).all())
        head.scale.fill_(float(scale[0]) if alike else 1.0)
        for k, z in enumerate(elements):
            assert z < len(SYMBOLS)
            head.element_scale[z] = 1.0 if alike else float(scale[k])
            head.shift[z] = float(shift[k] + scale[k] * constant)

    def _table(self, name: str) -> Tensor:
        found = self.tables.take(name)
        count = len(self.config.elements)
        if found.ndim == 2 and self.modal is not None:
            found = found[self.modal]
        return found.expand(count) if found.numel() == 1 else found


def _present_name(name: str) -> str:
    """The name of a tensor in later versions."""
    module, dot, rest = name.partition(".")
    module = _OLD_NAMES.get(module, module.replace(" ", "_"))
    return f"{module}{dot}{rest.replace('denumerator', 'denominator')}"


def _read_layout(where: str, text: str) -> dict[str, int]:
    """Channels by irrep from ``128x0e+64x1e``."""
    out: dict[str, int] = {}
    for part in text.replace(" ", "").split("+"):
        count, _, irrep = part.partition("x")
        if irrep in out or not count.isdigit():
            raise CheckpointError(f"{where}: irreps {text!r}; wanted each irrep once, as 128x0e+64x1e")
        out[irrep] = int(count)
    return out


def _natural(layout: Mapping[str, int], parity: bool) -> dict[str, int]:
    """With SO(3), the file calls all irreps even; here they have natural parity."""
    return dict(layout) if parity else {ir.natural(ir.parse(i)[0]): n for i, n in layout.items()}


def _reached(inputs: Mapping[str, int], l_max: int, highest: int, parity: bool) -> list[str]:
    """Irreps of the products of features with harmonics, up to a degree, in e3nn's order."""
    found = set()
    for source in inputs:
        l1, p1 = ir.parse(source)
        for l2 in range(l_max + 1):
            for l3 in range(abs(l1 - l2), min(l1 + l2, highest) + 1):
                found.add(ir.name(l3, p1 * (-1) ** l2) if parity else ir.natural(l3))
    return _order(found)


def _order(irreps: set[str]) -> list[str]:
    return list(gated(dict.fromkeys(irreps, 1))) if irreps else []


def _map(layer: object) -> torch.nn.Linear:
    return cast(torch.nn.Linear, layer)
