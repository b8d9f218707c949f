"""Modules of e3nn (version 0.4) in a pickled model: irreps, linear maps, tensor products and perceptrons."""

import itertools
import math

import torch
from torch import Tensor

from molequi.foreign.archive import Archive
from molequi.foreign.modules import Modules
from molequi.nn.mlp import SILU_GAIN
from molequi.ops import irreps as ir


class E3nnModules(Modules):
    """A model whose layers are those of e3nn. Its weights are returned with all factors of e3nn."""

    def layout(self, module: str, name: str) -> list[tuple[int, str]]:
        """Irreps with their numbers of channels, of e3nn or as text."""
        found = self.attribute(module, name)
        if isinstance(found, str):
            parts = [part.partition("x") for part in found.replace(" ", "").split("+")]
            return [(int(count), irrep) for count, _, irrep in parts]
        pairs = [part.arguments[0] for part in found.arguments[0]]
        return [(count, ir.name(*irrep.arguments[0])) for count, irrep in pairs]

    def uniform(self, module: str, name: str, channels: int | None = None) -> tuple[int, int]:
        """Number of channels and highest degree of irreps 0e, 1o, 2e, … with equally many channels."""
        found = self.layout(module, name)
        count = found[0][0] if channels is None else channels
        if found != [(count, ir.natural(l)) for l in range(len(found))]:
            text = " + ".join(f"{n}x{irrep}" for n, irrep in found)
            raise self.refuse(f"{module}.{name}", text, f"{count}x0e + {count}x1o + … without gaps")
        return count, len(found) - 1

    def silu(self, module: str) -> float:
        """Factor of SiLU in the file over that of this package."""
        function = self.attribute(module, "f")
        if getattr(function, "kind", "") != "torch.nn.functional.silu":
            raise self.refuse(f"{module}.f", getattr(function, "kind", function), "torch.nn.functional.silu")
        return float(self.attribute(module, "cst")) / SILU_GAIN

    def linear(self, name: str) -> dict[str, Tensor]:
        """A linear map of e3nn: one matrix for each irrep, shape (inputs, outputs).

        Inputs of one irrep may come in several parts.
        """
        inputs, outputs = self.layout(name, "irreps_in"), self.layout(name, "irreps_out")
        paths = [one.arguments for one in self.attribute(name, "instructions")]
        wanted = [(i, o) for i, (_, a) in enumerate(inputs) for o, (_, b) in enumerate(outputs) if a == b]
        if [path[:2] for path in paths] != wanted or len({irrep for _, irrep in outputs}) != len(outputs):
            raise self.refuse(f"{name}.instructions", [path[:2] for path in paths], "all maps of one irrep")
        sizes = [inputs[i][0] * outputs[o][0] for i, o in wanted]
        parts = self.take(f"{name}.weight", sum(sizes)).split(sizes)
        found: dict[str, list[Tensor]] = {}
        for (i, o, _, factor), part in zip(paths, parts):
            found.setdefault(outputs[o][1], []).append(part.view(inputs[i][0], outputs[o][0]) * factor)
        return {irrep: torch.cat(blocks) for irrep, blocks in found.items()}

    def by_element(self, name: str) -> dict[str, Tensor]:
        """A product of features with elements: for each irrep a tensor of shape (elements, C, C)."""
        inputs, elements, outputs = (self.layout(name, f"irreps_{end}") for end in ("in1", "in2", "out"))
        paths = [one.arguments for one in self.attribute(name, "instructions")]
        wanted = [
            (i, 0, o, "uvw", True)
            for i, (_, a) in enumerate(inputs)
            for o, (_, b) in enumerate(outputs)
            if a == b
        ]
        if [path[:5] for path in paths] != wanted or len(elements) != 1:
            raise self.refuse(f"{name}.instructions", [path[:5] for path in paths], "all maps of one irrep")
        shapes = [(inputs[i][0], elements[0][0], outputs[o][0]) for i, _, o, *_ in wanted]
        sizes = [math.prod(shape) for shape in shapes]
        parts = self.take(f"{name}.weight", sum(sizes)).split(sizes)
        found = {}
        for path, shape, part in zip(paths, shapes, parts):
            irrep = outputs[path[2]][1]
            factor = float(path[5]) / math.sqrt(2 * ir.parse(irrep)[0] + 1)  # that of the coupling with 0e
            found[irrep] = part.view(shape).transpose(0, 1) * factor
        return found

    def channels(self, name: str) -> list[int]:
        """Channels of a perceptron, from its inputs to its outputs, which are those of its tensors."""
        sizes, layers = list(self.attribute(name, "hs")), list(self.attribute(name, "_modules"))
        active = [layer for layer in layers if f"{name}.{layer}.act" in self.kinds]
        wanted = [f"layer{k}" for k in range(len(sizes) - 1)]
        if layers != wanted or active != wanted[:-1]:
            text = f"{sizes} with SiLU in {', '.join(active) or 'none'}"
            raise self.refuse(f"{name}.hs", text, f"SiLU in all but the last of {len(layers)} layers")
        for layer, shape in zip(layers, itertools.pairwise(sizes)):
            self.check_shape(f"{name}.{layer}.weight", *shape)
        return sizes

    def perceptron(self, name: str) -> list[Tensor]:
        """Matrices of a perceptron, shapes (inputs, outputs), between which there is our SiLU."""
        gain, found = 1.0, []
        for k, (a, b) in enumerate(itertools.pairwise(self.channels(name))):
            found.append(self.take(f"{name}.layer{k}.weight", a, b) * (gain / math.sqrt(a)))
            act = f"{name}.layer{k}.act"
            gain = self.silu(act) if act in self.kinds else 1.0
        return found

    def couplings(self, module: str) -> dict[str, Tensor]:
        """Coupling tensors of a tensor product, by name; they are in the program that belongs to it."""
        start = f"{module}._compiled_main_left_right."
        found = {
            name.removeprefix(start): self.take(name) for name in [*self.unread] if name.startswith(start)
        }
        for data in self.attributes[module].get("__codegen__", {}).values():
            with Archive(self.where, data) as archive:
                found |= getattr(archive.value(), "state", None) or {}
        return {name: value for name, value in found.items() if name.startswith("_w3j_")}
