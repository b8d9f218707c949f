"""What the layer-wise equivariance selection finds: a row for each free path, and a verdict."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from torch import nn

from molequi.util.html import FAILS, HOLDS, UNKNOWN, html_heading, html_table, html_text
from molequi.util.tables import json_ready, text_table

Method = Literal["evidence", "hypergradient"]
# Shares of the outputs up to which a free path counts as closed, and as only slightly open.
SYMMETRIC, WEAK = 1e-5, 5e-3
_HEAD = ("layer", "irrep", "weights", "precision", "gain", "share", "verdict")
_WORDS = (0, 1, 6)
_COLOURS = {"symmetric": HOLDS, "weakly broken": UNKNOWN, "broken": FAILS, "not known": UNKNOWN}


@dataclass(frozen=True)
class FreePath:
    """One group of free weights: those of one layer that add to one irrep.

    Parameters
    ----------
    layer : str
        Name of the layer.
    irrep : str
        The irrep, such as "1o".
    weights : int
        Number of weights.
    precision : float
        Precision of the prior of the weights; with hypergradients the strength λ of the penalty. Infinite if
        the group was pruned, NaN if the precision was never estimated.
    share : float
        Share in the outputs: the mean square by which the outputs change without this path, divided by the
        squared scale of the outputs on the training data. The scale is the standard deviation of scalars (of
        extensive ones per atom, after a fit to the composition) and of the log-probabilities of classes, the
        root mean square of vectors, and of the displacement of points. NaN if the outputs do not vary.
    gain : float
        Nats of evidence that the group gains; NaN if there is no evidence.
    """

    layer: str
    irrep: str
    weights: int
    precision: float
    share: float
    gain: float

    @property
    def name(self) -> str:
        """Layer and irrep, such as "backbone.layers.0/1o"."""
        return f"{self.layer}/{self.irrep}"

    @property
    def verdict(self) -> str:
        """`verdict` of the share."""
        return verdict(self.share)


@dataclass(frozen=True)
class LayerwiseEquivariance:
    """How far a relaxed model is from equivariance, by layer and irrep; ``print`` shows a table.

    Parameters
    ----------
    method : {"evidence", "hypergradient"}
        How the precisions were found.
    paths : tuple of FreePath
        One row for each layer and irrep.
    share : float
        Share of all free paths together in the outputs, as in `FreePath`.
    noise : dict of str to float
        Estimated standard deviation of the noise of each quantity, in eV and Å, of extensive scalars per
        atom. Empty if it was not estimated.
    updates : int, optional
        Number of updates of the precisions during the training; None if they were estimated afterwards.
    epoch : int, optional
        Number of epochs before the last update; None without a training.
    caveat : str
        Why the updates may not have been enough.
    """

    method: Method
    paths: tuple[FreePath, ...]
    share: float
    noise: dict[str, float]
    updates: int | None = None
    epoch: int | None = None
    caveat: str = ""

    @property
    def verdict(self) -> str:
        """`verdict` of the model with its present weights."""
        return verdict(self.share)

    @property
    def pruned(self) -> tuple[str, ...]:
        """Paths that were pruned, or that the evidence would prune."""
        return tuple(p.name for p in self.paths if math.isinf(p.precision))

    @property
    def would_close(self) -> tuple[str, ...]:
        """Paths that the evidence would prune and that contribute to the outputs of the present model."""
        return tuple(p.name for p in self.paths if math.isinf(p.precision) and p.share != 0)

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                p.layer,
                p.irrep,
                str(p.weights),
                f"{p.precision:.3g}",
                f"{p.gain:.1f}",
                f"{p.share:.1e}",
                p.verdict,
            )
            for p in self.paths
        ]

    def __str__(self) -> str:
        lines = [*text_table(_HEAD, self._rows(), left=_WORDS), self._summary()]
        return "\n".join([*lines, *([f"caution: {self.caveat}"] if self.caveat else [])])

    def _repr_html_(self) -> str:
        colours = [_COLOURS[p.verdict] for p in self.paths]
        caution = html_text(f"caution: {self.caveat}") if self.caveat else ""
        table = html_table(_HEAD, self._rows(), colours, left=_WORDS)
        return html_heading("equivariance by layer", self._summary()) + table + caution

    __repr__ = __str__

    def _summary(self) -> str:
        how: str = self.method
        if self.updates is not None:
            how += f", {_count(self.updates, 'update')}"
            if self.updates and self.epoch is not None:
                how += f", the last after {_count(self.epoch, 'epoch')}"
        if math.isnan(self.share):
            text = (
                f"{self.verdict}: the outputs are the same for all training data, so that the free paths "
                f"cannot be compared with their variance ({how})"
            )
        else:
            text = (
                f"{self.verdict}: the free paths contribute {self.share:.1e} of the outputs' variance ({how})"
            )
        closing = self.would_close
        if closing:
            what = "all free paths" if len(closing) == len(self.paths) else ", ".join(closing)
            text += f"; the evidence would prune {what}"
        return text + "".join(f"; noise of {name} {value:.3g}" for name, value in self.noise.items())

    def to_json(self) -> str:
        """The report as JSON; numbers that are infinite or not known are null."""
        whole = {
            "method": self.method,
            "verdict": self.verdict,
            "share": self.share,
            "noise": self.noise,
            "updates": self.updates,
            "epoch": self.epoch,
            "caveat": self.caveat,
            "would_close": self.would_close,
            "paths": [asdict(p) | {"verdict": p.verdict} for p in self.paths],
        }
        return json.dumps(json_ready(whole), indent=1, allow_nan=False)


def verdict(share: float) -> str:
    """A share of the outputs in words: "symmetric", "weakly broken", "broken", or "not known" for NaN.

    Examples
    --------
    >>> [verdict(share) for share in (1e-6, 1e-3, 0.1)]
    ['symmetric', 'weakly broken', 'broken']
    """
    if math.isnan(share):
        return "not known"
    if share <= SYMMETRIC:
        return "symmetric"
    return "weakly broken" if share <= WEAK else "broken"


def path_rows(
    groups: Mapping[str, Sequence[nn.Parameter]],
    precision: Mapping[str, float],
    shares: Mapping[str, float],
    gain: Mapping[str, float],
) -> tuple[FreePath, ...]:
    """The rows of a report from numbers by layer and irrep; missing precisions and gains are NaN."""
    rows = []
    for name, group in groups.items():
        layer, _, irrep = name.rpartition("/")
        weights = sum(p.numel() for p in group)
        found = precision.get(name, math.nan), shares[name], gain.get(name, math.nan)
        rows.append(FreePath(layer, irrep, weights, *found))
    return tuple(rows)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
