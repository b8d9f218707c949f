"""A model is a backbone with heads. Derivatives such as forces, stress and response properties are taken
here.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from molequi.errors import ModelError, did_you_mean
from molequi.gradients import differentiate, in_order, with_variables
from molequi.graph import Graph
from molequi.heads import HEADS, ByLevel, Head, Scalar, check_output, head_from, tie_charges
from molequi.heads.levels import check_levels, checked_names, first_of, heads_at, levels_of, several
from molequi.heads.standardization import TrainingStatistics, standardize
from molequi.model_facts import ModelFacts
from molequi.model_summary import summarize
from molequi.models import BACKBONES, Backbone, build, checks, inputs
from molequi.quantities import Quantity, quantity, stored_quantity
from molequi.regular_graphs import regular_if_full
from molequi.symmetry_report import SymmetryReport
from molequi.terms import (
    Dispersion,
    LatentCharges,
    LongRange,
    Repulsion,
    add_dispersion,
    as_terms,
    charges_of,
    make_terms,
    plain_terms,
    term_head,
)
from molequi.util.attributes import OF_MODEL, attribute_again
from molequi.util.extensions import check_plain, own_name
from molequi.util.forking import prepare_forked_process
from molequi.util.level_records import metadata_at
from molequi.util.signature import check_keywords

Program = Callable[["Model", Graph, bool], dict[str, Tensor]]


@check_keywords()
class Model(ModelFacts):
    """A backbone with heads: predicts quantities of structures.

    Parameters
    ----------
    backbone : Backbone
        Computes features of the atoms.
    predict : sequence of str, Quantity or Head
        Names of known quantities, `Quantity` objects, or heads. A quantity with `gradient_of` is the
        derivative of another one, so that forces are conservative; ``heads.Vector("forces")`` predicts it
        directly instead. Other quantities get the head that fits their declaration, see `heads.default_head`.
    levels : sequence of str, optional
        Names of levels of theory, such as ``["pbe", "r2scan"]``. Each has its own heads, with reference
        energies and scales of its own, over the shared backbone; `at` gives the model of one level.
    long_range : LongRange, str or mapping, optional
        Electrostatics without a cutoff as a term of the energy, such as ``"latent"``, see `terms.LongRange`.
    repulsion : terms.Repulsion, str or mapping, optional
        Repulsion of nuclei as a term of the energy: ``"zbl"``, see `terms.Repulsion`.
    dispersion : terms.Dispersion or mapping, optional
        A dispersion correction that is not learned, such as ``{"d3": "pbe"}``, see `terms.Dispersion`.

    Raises
    ------
    ModelError
        If a derivative is declared of a quantity that is not predicted, or wrongly, or the backbone lacks
        features that a head reads; if a term of the energy does not fit.

    Examples
    --------
    >>> from molequi.models import EGNN
    >>> from molequi.quantities import Quantity
    >>> born = Quantity("born", per="node", rank=2, unit="e", gradient_of="dipole", wrt="positions")
    >>> list(Model(EGNN(elements=["H", "O"]), ["energy", "forces", "dipole", born]).quantities)
    ['energy', 'forces', 'dipole', 'born']
    """

    metadata: dict[str, Any]  # of a model that was loaded or trained; see `molequi.checkpoint`

    def __init__(
        self,
        backbone: Backbone,
        predict: Sequence[str | Quantity | Head | ByLevel] = ("energy", "forces"),
        levels: Sequence[str] | None = None,
        *,
        long_range: LongRange | str | Mapping[str, Any] | None = None,
        repulsion: Repulsion | str | Mapping[str, Any] | None = None,
        dispersion: Dispersion | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, Backbone):
            raise ModelError(
                f"backbone: found {type(backbone).__name__} {str(backbone)[:40]!r}; wanted a Backbone such "
                "as NequIP(elements=['C', 'H'])"
            )
        self._own = type(backbone) not in BACKBONES.values()
        if self._own:
            checks.check_declarations(backbone)
        self.backbone = backbone
        self.heads = nn.ModuleDict()
        self._program: Program | None = None
        self._quantities: dict[str, Quantity] = {}
        self._terms = as_terms(long_range=long_range, repulsion=repulsion, dispersion=dispersion)
        self._adds_dispersion = True  # see add_dispersion
        levels = checked_names(levels)
        if isinstance(predict, (str, Quantity, Head)):
            predict = [predict]
        if not predict:
            raise ModelError("predict is empty: name at least one quantity, such as 'energy'")
        for item in predict:
            head = item if isinstance(item, (Head, ByLevel)) else None
            what = item.quantity if isinstance(item, (Head, ByLevel)) else quantity(item)
            if what.name in self._quantities:
                raise ModelError(f"predict names {what.name!r} twice")
            checks.check_extensive(backbone, what)
            self._quantities[what.name] = what
            if head is None and what.gradient_of is None:
                head = term_head(what, self._terms)
            if head is not None:
                head = ByLevel(head, levels) if levels and isinstance(head, Head) else head
                head.build(backbone.out)
                self.heads[what.name] = head.to(backbone.dtype)
        self.terms = make_terms(self._terms, backbone, self.heads)
        tie_charges(self.heads, charges_of(self.terms))
        self._set_gradients()

    def __repr__(self) -> str:
        return str(summarize(self))

    def _repr_html_(self) -> str:
        return summarize(self)._repr_html_()

    def _set_gradients(self) -> None:
        """Check the derivatives, and keep them in the order in which they are computed."""
        declared = [q for q in self._quantities.values() if q.name not in self.heads]
        if declared and self.k is not None:
            raise ModelError(
                f"{declared[0].name!r} is a gradient, and the backbone sees only the k={self.k} nearest, so "
                "that it jumps where neighbours change places; take a cutoff instead of k"
            )
        self._gradients = in_order(declared, self._quantities)

    @property
    def quantities(self) -> dict[str, Quantity]:
        """Quantities that the model predicts, by name. `predicting` gives a model of other quantities."""
        return dict(self._quantities)

    @property
    def program(self) -> Program | None:
        """A compiled function that replaces `predict`, or None; `molequi.accelerate` sets it."""
        return self._program

    def use_program(self, program: Program | None) -> None:
        """Compute with a compiled program.

        Parameters
        ----------
        program : callable or None
            It is called with the model and the arguments of `predict`. None: `predict` itself is used again.
        """
        self._program = program

    def plain(self) -> "Model":
        """A model that shares the weights and computes without a compiled program."""
        view = copy.copy(self)
        view._program = None
        return view

    def predicting(self, items: Iterable[str | Quantity]) -> "Model":
        """A model that shares the weights and predicts fewer quantities, or further derivatives of them.

        Parameters
        ----------
        items : iterable of str or Quantity
            Names of quantities of the model, or declarations of derivatives such as ``KNOWN["stress"]``.
            Quantities of which these are derivatives are predicted as well.

        Returns
        -------
        Model
            A new model with the same backbone and with those heads that are needed.

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
    def levels(self) -> tuple[str, ...]:
        """Names of the levels of theory; empty for a model of a single level."""
        return levels_of(self.heads)

    def at(self, level: str) -> "Model":
        """The model of one level of theory, which shares the weights.

        Parameters
        ----------
        level : str
            One of `levels`.

        Returns
        -------
        Model
            An ordinary model: backbone and the heads of this level.

        Raises
        ------
        ModelError
            If the model has no such level.

        Examples
        --------
        >>> import molequi as mq
        >>> model = mq.Model(mq.PaiNN(elements=["H"]), ["energy"], levels=["pbe", "r2scan"])
        >>> model.levels, model.at("pbe").levels
        (('pbe', 'r2scan'), ())
        """
        view = copy.copy(self)
        view._modules = dict(self._modules)
        view._program = None
        view.heads = heads_at(self.heads, level)
        view.metadata = metadata_at(getattr(self, "metadata", {}), level)
        return view

    @property
    def gradients(self) -> list[Quantity]:
        """Quantities that are derivatives of others, in the order of computation."""
        return list(self._gradients)

    @property
    def names(self) -> list[str]:
        """Keys of the output of `forward`: the quantities, and for an energy "energies", its atomic
        contributions.
        """
        return [*self._quantities, *(["energies"] if self._has_contributions else [])]

    @property
    def _has_contributions(self) -> bool:
        return "energy" in self.heads and isinstance(first_of(self.heads["energy"]), Scalar)

    @property
    def stds(self) -> dict[str, Quantity]:
        """Standard deviations of the quantities: none for a single model, see `Ensemble.stds`."""
        return {}

    @property
    def outputs(self) -> dict[str, Quantity]:
        """Outputs of `forward` without atomic energies: the quantities; an `Ensemble` adds standard
        deviations.
        """
        return self.quantities

    @property
    def symmetry_report(self) -> SymmetryReport | None:
        """The symmetry report of the file that the model was loaded from, or None.

        ``report.verify(model)`` says whether it was made for these weights.
        """
        record = getattr(self, "metadata", {}).get("symmetry_report")
        return None if record is None else SymmetryReport.from_dict(record)

    @property
    def hparams(self) -> dict[str, Any]:
        """Names and options of the classes of backbone and heads, from which `from_hparams` builds the model
        again.

        Raises
        ------
        ModelError
            If one of your classes has the name of a class of the package, or an option that JSON cannot hold.
        """
        name = own_name(type(self.backbone), BACKBONES)
        check_plain(self.backbone.hparams, name)
        if self._own:
            checks.check_rebuilding(self.backbone, name)
        heads = self._heads()
        for head in heads.values():
            check_plain(head.options, own_name(type(first_of(head)), HEADS))
        hparams = {
            "backbone": name,
            "options": self.backbone.hparams,
            "predict": [
                heads[name].hparams if name in heads else asdict(q) for name, q in self._quantities.items()
            ],
        }
        return hparams | ({"terms": plain_terms(self._terms)} if self._terms else {})

    def _heads(self) -> dict[str, Head]:
        return {name: cast(Head, head) for name, head in self.heads.items()}

    @property
    def own_classes(self) -> dict[str, dict[str, type]]:
        """Your own classes of backbone and heads, as arguments of `from_hparams` and `mq.load`."""
        kinds = [type(first_of(head)) for head in self.heads.values()]
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
        """Build the untrained model that `hparams` describes.

        Parameters
        ----------
        hparams : mapping
            As `Model.hparams` gives it.
        backbones, heads : mapping of str to type, optional
            Your own classes by the names that `hparams` has for them.

        Returns
        -------
        Model
            A new model.

        Raises
        ------
        ModelError
            For unknown names, and for arguments that replace a class of the package.
        ConfigError
            For options that the classes do not have.
        """
        predict = [head_from(p, heads) if "head" in p else stored_quantity(p) for p in hparams["predict"]]
        # Initial weights are replaced afterwards, so the caller's random numbers must not change.
        with torch.random.fork_rng(devices=[]):
            backbone = build(hparams["backbone"], hparams["options"], backbones)
            return cls(backbone, predict, **hparams.get("terms", {}))

    def standardize(self, statistics: TrainingStatistics) -> None:
        """Set atomic reference energies, shifts, scales and the mean number of neighbors, once before
        training.

        Parameters
        ----------
        statistics : Statistics
            As `Dataset.statistics` gives them.

        Raises
        ------
        ModelError
            If the model has several levels; `at` gives the model of one, which has statistics of its own.
        """
        if self.levels:
            raise ModelError(several(self.levels))
        self.backbone.mean_neighbors.fill_(max(statistics.mean_neighbors, 1.0))
        standardize(self._heads(), statistics)

    def check(self, graph: Graph) -> None:
        """Check that a graph is connected far enough for this model.

        Parameters
        ----------
        graph : Graph
            A batch of structures.

        Raises
        ------
        ModelError
            If it is no graph, or has no edges, or was connected with a shorter cutoff or another k; if the
            model has several levels, and the graph does not say which one.
        """
        if not isinstance(graph, Graph):
            raise ModelError(
                f"a model takes a Graph, found {type(graph).__name__}; mq.predict takes ase.Atoms, data "
                "sets and files"
            )
        if self.levels:
            check_levels(graph, self.levels)
        checks.check_edges(graph, self.cutoff, self.k)
        inputs.check_field(self.backbone, graph)

    def forward(self, graph: Graph, *, create_graph: bool | None = None) -> dict[str, Tensor]:
        """Predict quantities. This also works under `torch.no_grad` and `torch.inference_mode`.

        Parameters
        ----------
        graph : Graph
            A batch of connected structures, see `connect`.
        create_graph : bool, optional
            Keep what is needed to differentiate the outputs, as a loss of forces needs. Otherwise they are
            detached. The default is ``self.training``, also under `torch.no_grad`: in training mode pass
            False for predictions that are not part of a loss.

        Returns
        -------
        dict of str to Tensor
            Shape (G, …) per graph, (N, …) per node. With an energy also ``"energies"`` (N,), its atomic
            contributions. Stress is in eV/Å^3 and positive under tension, as in ASE. It is NaN for a
            structure whose cell has no volume, and the dipole is NaN for a periodic one.

        Raises
        ------
        ModelError
            As `check` does; also for unknown elements and missing inputs.

        Examples
        --------
        >>> import molequi as mq
        >>> model = mq.Model(mq.PaiNN(elements=["H", "O"], cutoff=3.0), ["energy", "forces"]).eval()
        >>> water = mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
        >>> {name: tuple(value.shape) for name, value in model(mq.connect(water, 3.0)).items()}
        {'energy': (1,), 'forces': (3, 3), 'energies': (3,)}
        """
        self.check(graph)
        compiled = prepare_forked_process(graph.pos.device)
        create_graph = self.training if create_graph is None else create_graph
        with torch.inference_mode(False), torch.set_grad_enabled(bool(self._gradients) or create_graph):
            predict = partial(self._program, self) if compiled and self._program else self.predict
            out = predict(graph := usable(graph), create_graph)
            if self.dispersion is not None and self._adds_dispersion:
                charges = self.backbone.reads("charge")
                given = graph, self.dispersion, self._quantities
                out = add_dispersion(out, *given, charges=charges, create_graph=create_graph)
        return out if create_graph else {name: value.detach() for name, value in out.items()}

    def predict(self, graph: Graph, create_graph: bool) -> dict[str, Tensor]:
        """As `forward`, in plain torch: without checks and without a compiled program.

        Parameters
        ----------
        graph : Graph
            A batch of connected structures.
        create_graph : bool
            Keep what is needed to differentiate the outputs.
        """
        names = dict.fromkeys(q.wrt for q in self._gradients)
        graph = regular_if_full(graph, self.backbone.full_edges)
        graph, strained, variables = with_variables(graph, list(names))
        features = self.backbone(strained)
        if self._own:
            checks.check_features(self.backbone, features, strained)
        out = {}
        for name, head in self.heads.items():
            if name == "energy" and self._has_contributions:
                scalar = cast(Scalar | ByLevel, head)
                own = scalar.contributions(strained, features)
                for term in self.terms.values():
                    own = own + cast(LatentCharges, term).energies(strained, features)
                out["energies"] = own
                out[name] = scalar.pool(out["energies"], strained, features)
            else:
                out[name] = head(strained, features)
                kind = first_of(head)
                if isinstance(kind, Head) and type(kind) not in HEADS.values():
                    check_output(kind, out[name], strained)
        out |= inputs.net_charge_in_field(out, strained, self.backbone.inputs)
        out |= differentiate(
            out,
            self._gradients,
            variables,
            graph,
            always_finite=[name for name, head in self.heads.items() if isinstance(first_of(head), Scalar)],
            create_graph=create_graph,
        )
        return {name: out[name] for name in self.names}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return attribute_again(self, name, OF_MODEL)


def usable(graph: Graph) -> Graph:
    """The graph with tensors that autograd accepts: those made under inference_mode are cloned."""
    return graph.map(lambda value: value.clone() if value.is_inference() else value)
