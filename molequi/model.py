"""Model = backbone + heads. The only place that differentiates: forces, stress and response properties."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from molequi.errors import ModelError, did_you_mean
from molequi.gradients import differentiate, in_order, with_variables
from molequi.graph import Graph
from molequi.heads import HEADS, Head, Scalar, default_head, head_from
from molequi.models import BACKBONES, Backbone, build
from molequi.quantities import Quantity, quantity
from molequi.symmetry_report import SymmetryReport
from molequi.util.extensions import check_plain, own_name

Program = Callable[["Model", Graph, bool], dict[str, Tensor]]


class Model(nn.Module):
    """A backbone with heads: predicts quantities of structures.

    Parameters
    ----------
    backbone : Backbone
        Computes features of the atoms.
    predict : sequence of str, Quantity or Head
        Names of known quantities, `Quantity` objects, or heads. A quantity with `gradient_of` is taken by
        differentiation of another one, so that forces are conservative; ``heads.Vector("forces")`` predicts
        it directly instead. Other quantities get the head that fits their declaration, see
        `heads.default_head`.

    Raises
    ------
    ModelError
        If a derivative is declared of a quantity that is not predicted, or wrongly, or the backbone lacks
        features that a head reads.

    Examples
    --------
    >>> from molequi.models import EGNN
    >>> from molequi.quantities import Quantity
    >>> born = Quantity("born", per="node", rank=2, unit="e", gradient_of="dipole", wrt="positions")
    >>> list(Model(EGNN(elements=["H", "O"]), ["energy", "forces", "dipole", born]).quantities)
    ['energy', 'forces', 'dipole', 'born']
    """

    metadata: dict[str, Any]  # of a model that was loaded or trained; see `molequi.checkpoint`

    def __init__(self, backbone: Backbone, predict: Sequence[str | Quantity | Head] = ("energy", "forces")):
        super().__init__()
        if not isinstance(backbone, Backbone):
            raise ModelError(
                f"backbone: found {type(backbone).__name__} {str(backbone)[:40]!r}; wanted a Backbone such "
                "as "
                "NequIP(elements=['C', 'H'])"
            )
        self.backbone = backbone
        self.heads = nn.ModuleDict()
        self._program: Program | None = None
        self._quantities: dict[str, Quantity] = {}
        if isinstance(predict, (str, Quantity, Head)):
            predict = [predict]
        if not predict:
            raise ModelError("predict is empty: name at least one quantity, such as 'energy'")
        for item in predict:
            head = item if isinstance(item, Head) else None
            what = head.quantity if head else quantity(item)
            if what.name in self._quantities:
                raise ModelError(f"predict names {what.name!r} twice")
            self._quantities[what.name] = what
            if head is None and what.gradient_of is None:
                head = default_head(what)
            if head is not None:
                head.build(backbone.out)
                self.heads[what.name] = head.to(backbone.dtype)
        self._set_gradients()

    def _set_gradients(self) -> None:
        """Check the derivatives, and keep them in the order in which they are computed."""
        declared = [q for q in self._quantities.values() if q.name not in self.heads]
        if declared and self.k is not None:
            raise ModelError(
                f"{declared[0].name!r} is a gradient, and the backbone sees only the k={self.k} nearest, so "
                "that it jumps "
                "where neighbours change places; take a cutoff instead of k"
            )
        self._gradients = in_order(declared, self._quantities)

    @property
    def quantities(self) -> dict[str, Quantity]:
        """What the model predicts, by name; `predicting` gives a model of other quantities."""
        return dict(self._quantities)

    @property
    def program(self) -> Program | None:
        """A compiled `predict`, or None; set by `molequi.accelerate`."""
        return self._program

    def use_program(self, program: Program | None) -> None:
        """Compute with a compiled program in place of `predict`, or with None by `predict` again."""
        self._program = program

    def plain(self) -> "Model":
        """A view of the model that shares its weights and computes without a compiled program."""
        view = copy.copy(self)
        view._program = None
        return view

    def predicting(self, items: Iterable[str | Quantity]) -> "Model":
        """A view of the model that shares its weights and predicts fewer quantities, or further derivatives
        of them.

        Parameters
        ----------
        items : iterable of str or Quantity
            Names of quantities of the model, or declarations of derivatives such as ``KNOWN["stress"]``.
            Quantities of which these are derivatives are predicted as well.

        Returns
        -------
        Model
            A model of its own whose backbone and heads are those of this one. Heads that are not needed are
            left out.

        Raises
        ------
        ModelError
            If a quantity is neither predicted nor a valid derivative of a predicted one.
        """
        named = {item.name if isinstance(item, Quantity) else item: item for item in items}
        known = self._quantities | {name: item for name, item in named.items() if isinstance(item, Quantity)}
        wanted, waiting = set(), list(named)
        while waiting:
            name = waiting.pop()
            if name not in known:
                raise ModelError(f"{name!r} is not predicted{did_you_mean(name, known)}")
            wanted.add(name)
            parent = known[name].gradient_of
            if name not in self.heads and parent is not None:
                waiting.append(parent)
        view = copy.copy(self)
        view._modules = dict(self._modules)
        view.heads = nn.ModuleDict({name: head for name, head in self.heads.items() if name in wanted})
        view._quantities = {name: q for name, q in known.items() if name in wanted}
        view._set_gradients()
        return view

    @property
    def gradients(self) -> list[Quantity]:
        """Quantities that are taken by differentiation, in the order of computation."""
        return list(self._gradients)

    @property
    def names(self) -> list[str]:
        """Keys of what `forward` returns: the quantities, and with an energy "energies", its atomic
        contributions.
        """
        return [*self._quantities, *(["energies"] if self._has_contributions else [])]

    @property
    def _has_contributions(self) -> bool:
        return "energy" in self.heads and isinstance(self.heads["energy"], Scalar)

    @property
    def stds(self) -> dict[str, Quantity]:
        """What an `Ensemble` says of the uncertainty of each quantity: one model says nothing."""
        return {}

    @property
    def outputs(self) -> dict[str, Quantity]:
        """All that `forward` gives, parts of the energy aside; an `Ensemble` adds standard deviations to the
        quantities.
        """
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
        """The symmetry report of the file that the model was loaded from, or None.

        ``report.verify(model)`` says whether it was made for these weights.
        """
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
        """All that builds this model again, JSON-able: names and options of classes, those of the user
        included.

        Raises ModelError for an own class with a name of the package's, and for options that JSON cannot
        hold.
        """
        name = own_name(type(self.backbone), BACKBONES)
        check_plain(self.backbone.hparams, name)
        for head in self.heads.values():
            check_plain(head.options, own_name(type(head), HEADS))
        return {
            "backbone": name,
            "options": self.backbone.hparams,
            "predict": [
                self.heads[n].hparams if n in self.heads else asdict(q) for n, q in self._quantities.items()
            ],
        }

    @property
    def own_classes(self) -> dict[str, dict[str, type]]:
        """Classes of backbone and heads that are not the package's: what `from_hparams` and `mq.load` need
        besides a file.
        """
        kinds = [type(head) for head in self.heads.values()]
        return {
            "backbones": {k.__name__: k for k in [type(self.backbone)] if k not in BACKBONES.values()},
            "heads": {k.__name__: k for k in kinds if k not in HEADS.values()},
        }

    @classmethod
    def from_hparams(
        cls,
        hparams: Mapping[str, Any],
        *,
        backbones: Mapping[str, type[Backbone]] | None = None,
        heads: Mapping[str, type[Head]] | None = None,
    ) -> "Model":
        """The model, untrained, that `hparams` describes.

        Parameters
        ----------
        hparams : mapping
            As `Model.hparams` gives it.
        backbones, heads : mapping of str to type, optional
            Classes that are not the package's, by the names that `hparams` has for them.

        Raises
        ------
        ModelError
            For names that neither the package nor the arguments have, and for arguments that replace a class
            of the package.
        ConfigError
            For options that the classes do not have.
        """
        predict = [head_from(p, heads) if "head" in p else Quantity(**p) for p in hparams["predict"]]
        with torch.random.fork_rng(
            devices=[]
        ):  # weights drawn here are replaced; the caller's random numbers stay as they are
            return cls(build(hparams["backbone"], hparams["options"], backbones), predict)

    def standardize(self, statistics) -> None:
        """Take isolated-atom energies, shifts, scales and mean neighbours from `Dataset.statistics`, once
        before training.
        """
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
                f"a model takes a Graph, found {type(graph).__name__}; mq.predict takes ase.Atoms, data "
                "sets and files"
            )
        if graph.edge_index is None:
            raise ModelError(f"the graph has no edges yet; call connect(graph, {self._how}) first")
        if graph.cutoff is not None and graph.k != self.k:
            raise ModelError(
                f"the graph was connected with k={graph.k} and this model has k={self.k}; call "
                f"connect(graph, {self._how})"
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
        """Quantities by name: (G, …) per graph, (N, …) per node; with an energy also its parts, "energies"
        (N,).

        Stress (G, 3, 3) in eV/Å^3, positive under tension as in ASE; NaN for a structure whose cell has no
        volume, as the dipole is for a periodic one.
        create_graph: keep what is needed to differentiate the outputs again, as a loss on forces needs; the
        default is `self.training`. Otherwise outputs are detached. Works under `no_grad` and
        `inference_mode`.
        """
        self.check(graph)
        create_graph = self.training if create_graph is None else create_graph
        with torch.inference_mode(False), torch.set_grad_enabled(bool(self._gradients) or create_graph):
            predict = self.predict if self._program is None else partial(self._program, self)
            out = predict(_usable(graph), create_graph)
        return out if create_graph else {name: value.detach() for name, value in out.items()}

    def predict(self, graph: Graph, create_graph: bool) -> dict[str, Tensor]:
        """`forward` in plain torch, without checks and without a compiled program."""
        names = dict.fromkeys(q.wrt for q in self._gradients)
        graph, strained, variables = with_variables(graph, list(names))
        features = self.backbone(strained)
        out = {}
        for name, head in self.heads.items():
            if name == "energy" and isinstance(head, Scalar):
                out["energies"] = head.contributions(strained, features)
                out[name] = head.pool(out["energies"], strained, features)
            else:
                out[name] = head(strained, features)
        out |= differentiate(
            out,
            self._gradients,
            variables,
            graph,
            always_finite=[name for name, head in self.heads.items() if isinstance(head, Scalar)],
            create_graph=create_graph,
        )
        return {name: out[name] for name in self.names}


def _usable(graph: Graph) -> Graph:
    """Tensors made under inference_mode cannot enter autograd; a clone can."""
    return graph.map(lambda value: value.clone() if value.is_inference() else value)
