"""The networks of a comparison, and the settings that each gets."""

import copy
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from molequi.config.names import Names
from molequi.data.dataset import Dataset
from molequi.errors import ConfigError, did_you_mean
from molequi.inference.ranking import Kind
from molequi.model import Model
from molequi.nn.relaxed import relaxed_layers

ROTATIONS = "+rotations"  # at the end of the name of a network that is trained on rotated copies
_FREE = {"EquivarianceRegularizer": {"weights": {"rotation": 0.01}, "form": "weights"}}
# Sizes for small data and minutes on one core: those of the recipes, where they have this network, else such
# that a step takes about as long. A network without a line has the defaults of its class.
SIZES: dict[str, dict[str, Any]] = {
    "EGNN": {"channels": 64, "layers": 4},
    "GauntACE": {"channels": 32, "layers": 2, "l_max": 2, "l_hidden": 1},
    "MACE": {"channels": 32, "layers": 2, "l_max": 2, "l_hidden": 1},
    "NequIP": {"channels": 32, "layers": 3, "l_max": 2},
    "PaiNN": {"channels": 64, "layers": 3},
    "RelaxedEGNN": {"channels": 64, "layers": 4},
    "RelaxedNequIP": {"channels": 32, "layers": 3, "l_max": 2},
    "So3krates": {"channels": 64, "layers": 3},
    "Transformer": {"channels": 64, "layers": 3},
}
NETWORKS = (
    *("EGNN", "PaiNN", "So3krates", "GauntACE", "MACE", "NequIP"),
    *("RelaxedEGNN", "RelaxedNequIP", f"Transformer{ROTATIONS}"),
)


@dataclass(frozen=True)
class Candidate:
    """A network that is to be trained.

    Parameters
    ----------
    name : str
        Its name in the comparison.
    backbone : mapping
        The section ``backbone`` of its run: one name with its options.
    train : mapping
        Options of the section ``train`` that replace those of the run.
    """

    name: str
    backbone: Mapping[str, Any]
    train: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Its name as that of a folder."""
        return "".join(c if c.isalnum() or c in "+-_" else "_" for c in self.name)

    @property
    def setting(self) -> str:
        """Its sizes and terms in words."""
        ((kind, options),) = self.backbone.items()
        sizes = [f"{k} {v}" for k, v in options.items() if k not in ("inputs", "elements") and v is not None]
        terms = [name for term in self.train.get("terms", []) for name in _named(term)]
        return ", ".join([kind, *sizes, *terms])


def candidates(
    chosen: Sequence[str],
    own: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
    names: Names,
) -> list[Candidate]:
    """The candidates of a comparison.

    The network of the run itself has the sizes of the run; the others have those of `SIZES`. All have the
    cutoff and the neighbors of the run.

    Parameters
    ----------
    chosen : sequence of str
        Names of backbones, ``Transformer+rotations`` with augmentation.
    own : mapping of str to mapping
        Other networks by a name of the caller: the sections ``backbone`` and perhaps ``train``.
    settings : mapping
        The sections of the run.
    names : Names
        What the names stand for.

    Raises
    ------
    ConfigError
        For a name that does not exist, occurs twice or is empty, and for sections that are none.
    """
    found = [_of_package(name, settings, names) for name in chosen]
    found += [_of_caller(name, sections) for name, sections in own.items()]
    seen: dict[str, str] = {}
    for one in found:
        folder = one.folder.casefold()
        if seen.get(folder) == one.name:
            raise ConfigError(f"networks: {one.name!r} occurs twice; name each once")
        if folder in seen:
            raise ConfigError(
                f"networks: {seen[folder]!r} and {one.name!r} would have the same folder, {one.folder}; "
                "wanted names that differ in letters, digits, +, - or _, not in upper and lower case alone"
            )
        if not folder.strip("_"):
            raise ConfigError(f"own: {one.name!r} is no name of a network; wanted one such as 'wide'")
        seen[folder] = one.name
    if len(found) < 2:
        raise ConfigError(f"networks={[one.name for one in found]}: wanted two or more to compare")
    return found


def _of_package(name: str, settings: Mapping[str, Any], names: Names) -> Candidate:
    kind = name.removesuffix(ROTATIONS)
    if kind not in names.backbones:
        raise ConfigError(
            f"networks: no backbone {kind!r}{did_you_mean(kind, names.backbones)}; `molequi backbones` lists "
            f"them, and {ROTATIONS} at the end trains on rotated copies"
        )
    backbone = settings["backbone"]
    ((base, given),) = ({backbone: {}} if isinstance(backbone, str) else dict(backbone)).items()
    given = dict(given or {})
    takes = inspect.signature(names.backbones[kind]).parameters
    of_base = inspect.signature(names.backbones[base]).parameters
    known = {k: of_base[k].default for k in ("k",) if k in of_base and "cutoff" not in of_base}
    if "cutoff" not in of_base:
        known["cutoff"] = None  # all neighbors, or the k nearest
    common = {k: v for k, v in (known | given).items() if k in ("cutoff", "k") and k in takes}
    options = given if kind == base else SIZES.get(kind, {}) | common
    terms = [*(settings["train"].get("terms") or [])]
    there = [name for term in terms for name in _named(term)]
    if name.endswith(ROTATIONS) and "Augmentation" not in there:
        terms.append("Augmentation")
    elif kind.startswith("Relaxed") and "EquivarianceRegularizer" not in there:
        terms.append(_FREE)
    return Candidate(name, {kind: options}, {"terms": terms} if terms else {})


def _of_caller(name: str, sections: Mapping[str, Any]) -> Candidate:
    wrong = [key for key in sections if key not in ("backbone", "train")]
    if wrong or "backbone" not in sections:
        raise ConfigError(
            f"own[{name!r}]: found {', '.join(sections) or 'nothing'}; wanted the sections backbone and "
            'perhaps train, such as {"backbone": {"EGNN": {"channels": 256}}, "train": {"lr": 1e-3}}'
        )
    backbone = sections["backbone"]
    section = {backbone: {}} if isinstance(backbone, str) else dict(backbone)
    return Candidate(name, section, dict(sections.get("train") or {}))


def _named(term: Any) -> list[str]:
    return [term] if isinstance(term, str) else list(term)


def kind_of(model: Model, train: Mapping[str, Any]) -> Kind:
    """Whether a model is equivariant by construction, approximately, or not.

    Equivariant are those of all rotations, with or without reflections; those of some rotations (a finite
    group, or an axis) are called approximate.

    Parameters
    ----------
    model : Model
        The model.
    train : mapping
        The section ``train`` of its run.
    """
    terms = [name for term in train.get("terms") or [] for name in _named(term)]
    if any(True for _ in relaxed_layers(model)) or "EquivarianceRegularizer" in terms:
        return "approximate"
    if model.group == "C1":
        return "unconstrained"
    return "strict" if re.fullmatch(r"S?O\((n|\d+)\)", model.group) else "approximate"


def merged(section: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A section ``train`` with the options of a network in their places, groups of options one by one.

    What is no group of options with names of its own is replaced: the loss, the batch size, the terms.

    Parameters
    ----------
    section : mapping
        The section of the run.
    own : mapping
        That of the network.
    """
    found = copy.deepcopy(dict(section))
    for name, value in own.items():
        there = found.get(name)
        if name not in ("loss", "batch_size") and isinstance(there, dict) and isinstance(value, Mapping):
            same = value.get("name", there.get("name")) == there.get("name")  # of an optimizer
            found[name] = (there if same else {}) | dict(value)
        else:
            found[name] = copy.deepcopy(value)
    return found


def with_cutoff(backbone: Mapping[str, Any], train: Dataset, names: Names) -> dict[str, Any]:
    """The section with a cutoff, if this backbone needs one and the run has none.

    It is the largest distance to a neighbor in the training data, so that no neighbor is lost.

    Parameters
    ----------
    backbone : mapping
        The section.
    train : Dataset
        The training data.
    names : Names
        What the names stand for.
    """
    ((kind, options),) = backbone.items()
    options = dict(options or {})
    taken = inspect.signature(names.backbones[kind]).parameters.get("cutoff")
    needed = taken is not None and type(None) not in get_args(taken.annotation)
    if needed and "cutoff" in options and options["cutoff"] is None:
        graphs = train.connected(None, k=options.get("k"), progress=False).graphs
        longest = 0.0
        for block in graphs.blocks():
            graph = graphs.batch(block)
            assert graph.edge_index is not None
            sender, receiver = graph.edge_index
            longest = max(longest, float((graph.pos[sender] - graph.pos[receiver]).norm(dim=1).max()))
        options["cutoff"] = float(f"{1.01 * longest:.3g}")
    return {kind: options}
