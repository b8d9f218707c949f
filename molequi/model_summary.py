"""What a model is, in a few lines: backbone, options, parameters, predictions, symmetry."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from molequi.heads.levels import first_of, levels_of
from molequi.quantities import SYMBOLS, Quantity
from molequi.symmetry_report import SymmetryReport
from molequi.util.html import html_details, html_facts, html_heading, html_table, shorten, some
from molequi.util.tables import text_table

_HEAD = ("predicts", "unit", "what", "by")
_WORDS = range(5)
_UNSET = ("None", "False", "{}")  # options that need no mention


class Summarized(Protocol):
    """What a summary needs of a model or an ensemble."""

    @property
    def backbone(self) -> Any:
        """The backbone, with its ``hparams``."""

    @property
    def heads(self) -> Any:
        """The heads by the name of their quantity."""

    @property
    def quantities(self) -> dict[str, Quantity]:
        """What is predicted, by name."""

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that are known."""

    @property
    def cutoff(self) -> float | None:
        """Distance in Å up to which there are edges."""

    @property
    def k(self) -> int | None:
        """Number of nearest neighbors."""

    @property
    def group(self) -> str:
        """Name of the declared group."""

    @property
    def translations(self) -> bool:
        """Whether translations are a declared symmetry."""

    @property
    def axis(self) -> Tensor | None:
        """The direction that every node sees."""

    @property
    def symmetry_report(self) -> SymmetryReport | None:
        """The report in the file of the model."""

    @property
    def dtype(self) -> Any:
        """Precision of the weights."""

    @property
    def device(self) -> Any:
        """Device of the weights."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights."""


@dataclass(frozen=True)
class ModelSummary:
    """A summary of a model; printed, some lines of text.

    Parameters
    ----------
    title : str
        Classes, number of parameters, precision and device.
    facts : mapping of str to str
        Options and symmetry in words, by name.
    head : sequence of str
        Names of the columns of `rows`.
    rows : sequence of sequence of str
        A row for each predicted quantity.
    options : mapping of str to str
        All options of the backbone.
    """

    title: str
    facts: Mapping[str, str]
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    options: Mapping[str, str]

    def __str__(self) -> str:
        width = max(map(len, self.facts))
        facts = [f"{name.ljust(width)}  {text}" for name, text in self.facts.items() if text]
        return "\n  ".join([self.title, *facts, *text_table(self.head, self.rows, left=_WORDS)])

    def _repr_html_(self) -> str:
        return (
            html_heading(self.title)
            + html_facts(self.facts)
            + html_table(self.head, self.rows, left=_WORDS)
            + html_details("all options of the backbone", html_facts(self.options))
        )


def summarize(model: Summarized) -> ModelSummary:
    """Summarize a model or an ensemble.

    Parameters
    ----------
    model : Model or Ensemble
        It is not changed.

    Returns
    -------
    ModelSummary
    """
    backbone, members = model.backbone, len(getattr(model, "members", ()))
    kind = type(backbone).__name__
    count = sum(p.numel() for p in model.parameters())
    what = f"Ensemble of {members} {kind}" if members > 1 else f"Model with {kind}"
    what += ", Laplace approximation of its last layers" * (members == 1)
    options = {name: value for name, value in backbone.hparams.items() if name != "elements"}
    shown = {n: _short(v) for n, v in options.items() if n not in ("cutoff", "k")}
    facts = {
        "levels": _levels(model),
        "elements": some([SYMBOLS[z] for z in model.elements], 20),
        "neighbors": _neighbors(model),
        **{name.replace("_", " "): term.words for name, term in getattr(model, "energy_terms", {}).items()},
        "options": ", ".join(f"{n}={v}" for n, v in shown.items() if v not in _UNSET),
        "symmetry": _symmetry(model),
        "training": _training(model),
    }
    scales: Mapping[str, float] = getattr(model, "scales", {})
    return ModelSummary(
        f"{what}, {count:,} parameters, {str(model.dtype).removeprefix('torch.')} on {model.device}",
        facts,
        (*_HEAD, *(["standard deviations"] if members else [])),
        [
            (
                name,
                q.unit,
                q.words,
                type(first_of(model.heads[name])).__name__ if name in model.heads else q.formula,
                *([f"{name}_std, × {scales.get(name, 1.0):.3g}"] if members else []),
            )
            for name, q in model.quantities.items()
        ],
        {name: repr(value) for name, value in options.items()},
    )


def _levels(model: Summarized) -> str:
    """Names of the levels of theory; of a model of one level its name, if it has one."""
    several = levels_of(model.heads) if isinstance(model.heads, nn.ModuleDict) else ()
    if not several:
        return str(getattr(model, "metadata", {}).get("level", ""))
    return f"{', '.join(several)}, each with heads of its own"


def _neighbors(model: Summarized) -> str:
    near = "all pairs" if model.cutoff is None else f"up to {model.cutoff:g} Å"
    return near if model.k is None else f"the {model.k} nearest" + (", " + near) * (model.cutoff is not None)


def _short(value: Any) -> str:
    """An option in few characters; of a mapping only what is set."""
    if isinstance(value, Mapping):
        value = {k: v for k, v in value.items() if v}
    return shorten(repr(value), 60)


def _symmetry(model: Summarized) -> str:
    axis = model.axis
    text = f"{model.group} declared, {'with' if model.translations else 'without'} translations"
    if axis is not None:
        text += f", axis ({', '.join(f'{x:.3g}' for x in axis.tolist())})"
    report = model.symmetry_report
    if levels_of(model.heads):
        return f"{text}; each level has a report of its own"
    return text + ("; not measured" if report is None else f"; measured {report.date}: {report.verdict}")


def _training(model: Summarized) -> str:
    trained = getattr(model, "metadata", {}).get("training") or {}
    epoch = trained.get("best_epoch")
    if epoch is None:
        return ""
    several = isinstance(epoch, (list, tuple))
    return f"best epochs {', '.join(map(str, epoch))}" if several else f"best epoch {epoch}"
