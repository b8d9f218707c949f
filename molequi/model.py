"""Model = backbone + heads. The only place that differentiates: forces and stress come from the energy here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from molequi.errors import ModelError
from molequi.graph import Graph
from molequi.heads import HEADS, Head, Scalar, default_head, head_from
from molequi.models import BACKBONES, Backbone
from molequi.models.base import build
from molequi.quantities import Quantity, quantity
from molequi.symmetry_report import SymmetryReport


class Model(nn.Module):
    """Predicts quantities of structures: `Model(NequIP(elements=["C", "H"]), predict=["energy", "forces"])`.

    predict: names of known quantities, `Quantity` objects, or heads. A quantity that is the gradient of another (forces and stress of
    the energy) is taken by differentiation, so that it is conservative; `heads.Vector("forces")` predicts it directly instead.
    Raises ModelError for a gradient whose parent is not predicted, and for heads that the backbone cannot serve.
    """

    def __init__(self, backbone: Backbone, predict: Sequence[str | Quantity | Head] = ("energy", "forces")):
        super().__init__()
        if not isinstance(backbone, Backbone):
            raise ModelError(
                f"backbone: found {type(backbone).__name__} {str(backbone)[:40]!r}; wanted a Backbone such as NequIP(elements=['C', 'H'])"
            )
        self.backbone = backbone
        self.program: Callable[[Model, Graph, bool], dict[str, Tensor]] | None = (
            None  # a faster `_predict`, see `mq.accelerate`
        )
        self.heads = nn.ModuleDict()
        self.quantities: dict[str, Quantity] = {}
        if isinstance(predict, (str, Quantity, Head)):
            predict = [predict]
        if not predict:
            raise ModelError("predict is empty: name at least one quantity, such as 'energy'")
        for item in predict:
            head = item if isinstance(item, Head) else None
            what = head.quantity if head else quantity(item)
            if what.name in self.quantities:
                raise ModelError(f"predict names {what.name!r} twice")
            self.quantities[what.name] = what
            if head is None and what.gradient_of is None:
                head = default_head(what)
            if head is not None:
                head.build(backbone.out)
                self.heads[what.name] = head.to(backbone.dtype)
        if self.gradients and backbone.k is not None:
            raise ModelError(
                f"{self.gradients[0].name!r} is a gradient, and the backbone sees only the k={backbone.k} nearest, so that it jumps "
                "where neighbours change places; take a cutoff instead of k"
            )
        for what in self.gradients:
            parent = self.heads[what.gradient_of] if what.gradient_of in self.heads else None
            if not isinstance(parent, Scalar) or parent.quantity.per != "graph":
                raise ModelError(
                    f"{what.name!r} is the gradient of {what.gradient_of!r}, which is not predicted as a scalar of the "
                    f"graph; predict both: [{what.gradient_of!r}, {what.name!r}]"
                )

    @property
    def gradients(self) -> list[Quantity]:
        """Quantities that are taken by differentiation."""
        return [q for q in self.quantities.values() if q.name not in self.heads]

    @property
    def spreads(self) -> dict[str, Quantity]:
        """What an `Ensemble` says of the uncertainty of each quantity: one model says nothing."""
        return {}

    @property
    def outputs(self) -> dict[str, Quantity]:
        """All that `forward` gives, parts of the energy aside; an `Ensemble` gives spreads beside the quantities."""
        return self.quantities

    @property
    def elements(self) -> tuple[int, ...]:
        return self.backbone.elements

    @property
    def cutoff(self) -> float | None:
        return self.backbone.cutoff

    @property
    def k(self) -> int | None:
        return self.backbone.k

    @property
    def group(self) -> str:
        return self.backbone.group

    @property
    def translations(self) -> bool:
        return self.backbone.translations

    @property
    def symmetry_report(self) -> SymmetryReport | None:
        """The symmetry report of the file that it was loaded from; `report.verify(model)` says whether it was made for these weights."""
        record = getattr(self, "metadata", {}).get("symmetry_report")
        return None if record is None else SymmetryReport.from_dict(record)

    @property
    def axis(self) -> Tensor | None:
        return self.backbone.axis

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def hparams(self) -> dict[str, Any]:
        """All that builds this model again, JSON-able."""
        named = [name for name, kind in BACKBONES.items() if type(self.backbone) is kind]
        foreign = [
            type(head).__name__
            for head in self.heads.values()
            if HEADS.get(type(head).__name__) is not type(head)
        ]
        if not named or foreign:
            parts = ", ".join(foreign if named else [type(self.backbone).__name__, *foreign])
            raise ModelError(
                f"{parts}: not in the tables BACKBONES and HEADS, from which alone a file builds a model again; it can be used "
                "and trained (fit with out=None), and its state_dict saved, but not written as a model file"
            )
        return {
            "backbone": named[0],
            "options": self.backbone.hparams,
            "predict": [
                self.heads[n].hparams if n in self.heads else asdict(q) for n, q in self.quantities.items()
            ],
        }

    @classmethod
    def from_hparams(cls, hparams: Mapping[str, Any]) -> "Model":
        """The model, untrained, that `hparams` describes; names resolve in the closed tables BACKBONES and HEADS only."""
        predict = [head_from(p) if "head" in p else Quantity(**p) for p in hparams["predict"]]
        with torch.random.fork_rng(
            devices=[]
        ):  # weights drawn here are replaced; the caller's random numbers stay as they are
            return cls(build(hparams["backbone"], hparams["options"], BACKBONES), predict)

    def standardize(self, statistics) -> None:
        """Take isolated-atom energies, shifts, scales and mean neighbours from `Dataset.statistics`, once before training."""
        self.backbone.mean_neighbors.fill_(max(statistics.mean_neighbors, 1.0))
        for name, head in self.heads.items():
            head.standardize(
                scale=statistics.scale.get(name, 1.0),
                shift=statistics.shift.get(name, 0.0),
                reference_energies=statistics.reference_energies if name == "energy" else None,
            )

    def check(self, graph: Graph) -> None:
        """Raises ModelError if this is not a graph that is connected far enough for this model."""
        if not isinstance(graph, Graph):
            raise ModelError(
                f"a model takes a Graph, found {type(graph).__name__}; mq.predict takes ase.Atoms, data sets and files"
            )
        if graph.edge_index is None:
            raise ModelError(f"the graph has no edges yet; call connect(graph, {self._how}) first")
        if graph.cutoff is not None and graph.k != self.k:
            raise ModelError(
                f"the graph was connected with k={graph.k} and this model has k={self.k}; call connect(graph, {self._how})"
            )
        reach = float("inf") if self.cutoff is None else self.cutoff
        if graph.cutoff is not None and graph.cutoff < reach - 1e-9:
            raise ModelError(
                f"the graph was connected up to {graph.cutoff} Å and this model looks up to {reach} Å; "
                f"call connect(graph, {self._how})"
            )

    @property
    def _how(self) -> str:
        return f"{self.cutoff}" if self.k is None else f"{self.cutoff}, k={self.k}"

    def forward(self, graph: Graph, *, create_graph: bool | None = None) -> dict[str, Tensor]:
        """Quantities by name: (G, …) per graph, (N, …) per node; with an energy also its parts, "energies" (N,).

        Stress (G, 3, 3) in eV/Å^3, positive under tension as in ASE; NaN for a structure whose cell has no volume, as the dipole is for
        a periodic one.
        create_graph: keep what is needed to differentiate the outputs again, as a loss on forces needs; the default is
        `self.training`. Otherwise outputs are detached. Works under `no_grad` and `inference_mode`.
        """
        self.check(graph)
        create_graph = self.training if create_graph is None else create_graph
        with torch.inference_mode(False), torch.set_grad_enabled(bool(self.gradients) or create_graph):
            predict = self.predict if self.program is None else partial(self.program, self)
            out = predict(_usable(graph), create_graph)
        return out if create_graph else {name: value.detach() for name, value in out.items()}

    def predict(self, graph: Graph, create_graph: bool) -> dict[str, Tensor]:
        """`forward` as it is written here, without checks."""
        variables: dict[str, Tensor] = {}
        wanted = {q.wrt for q in self.gradients}
        if "positions" in wanted:
            pos = graph.pos if graph.pos.requires_grad else graph.pos.detach().requires_grad_()
            variables["positions"] = pos
            graph = graph.replace(pos=pos)
        strained = graph
        if "strain" in wanted:
            half = torch.zeros(
                graph.num_graphs, graph.dim, graph.dim, dtype=graph.pos.dtype, device=graph.pos.device
            )
            variables["strain"] = half.requires_grad_()
            strained = graph.strained((half + half.transpose(1, 2)) / 2)
        features = self.backbone(strained)
        out = {}
        for name, head in self.heads.items():
            if name == "energy" and isinstance(head, Scalar):
                out["energies"] = head.contributions(strained, features)
                out[name] = head.pool(out["energies"], strained, features)
            else:
                out[name] = head(strained, features)
        for parent in {q.gradient_of for q in self.gradients}:
            children = [q for q in self.gradients if q.gradient_of == parent]
            slopes = torch.autograd.grad(
                out[parent].sum(),
                [variables[q.wrt] for q in children],
                create_graph=create_graph,
                retain_graph=create_graph or None,
                materialize_grads=True,
            )
            for child, slope in zip(children, slopes):
                out[child.name] = -slope if child.wrt == "positions" else _per_volume(slope, graph)
        return {name: out[name] for name in (*self.quantities, *(["energies"] if "energies" in out else []))}


def _per_volume(virial: Tensor, graph: Graph) -> Tensor:
    """dE/dε over the volume; NaN where there is no volume."""
    if graph.cell is None:
        return torch.full_like(virial, float("nan"))
    volume = torch.linalg.det(graph.cell).abs()[:, None, None]
    return torch.where(volume > 0, virial / torch.where(volume > 0, volume, 1.0), float("nan"))


def _usable(graph: Graph) -> Graph:
    """Tensors made under inference_mode cannot enter autograd; a clone can."""
    given = {f.name: getattr(graph, f.name) for f in fields(graph)}
    locked = {n: v.clone() for n, v in given.items() if isinstance(v, Tensor) and v.is_inference()}
    return graph.replace(**locked) if locked else graph
