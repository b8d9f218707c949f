"""Networks with labels: the data of a training from a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from molequi.errors import DataError, did_you_mean
from molequi.util.html import html_facts
from molequi.util.optional import require
from molequi.util.signature import check_keywords
from molequi.weights.many import fit_fields, grid
from molequi.weights.networks import Networks, check_finite


@dataclass(frozen=True)
class LabelledNetworks:
    """Networks and what is known of each; `molequi.weights.save` writes them to one file.

    Parameters
    ----------
    networks : Networks
        The networks.
    labels : mapping of str to Tensor, shape (B,)
        By name: class numbers (integers) or real values, and columns by which data are split, such as the
        number of the picture that a network was fitted to.

    Raises
    ------
    DataError
        If labels are not one finite number for each network.

    Examples
    --------
    >>> from molequi.weights import Architecture
    >>> nets = Networks.random(Architecture((2, 8, 1)), 3)
    >>> LabelledNetworks(nets, {"kind": torch.tensor([0, 1, 1])})[1:]
    2 networks 2-8-1, sine, with kind
    """

    networks: Networks
    labels: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", dict(self.labels))
        for name, values in self.labels.items():
            if not isinstance(values, Tensor) or tuple(values.shape) != (len(self.networks),):
                found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise DataError(
                    f"labels {name!r}: found {found}; wanted a tensor with one number for each of the "
                    f"{len(self.networks)} networks"
                )
            if values.is_complex():
                raise DataError(f"labels {name!r}: found {values.dtype}; wanted real numbers")
            check_finite(f"label {name!r} of network", values)

    def label(self, name: str) -> Tensor:
        """The labels of one name.

        Parameters
        ----------
        name : str
            The name.

        Raises
        ------
        DataError
            If there are none.
        """
        if name not in self.labels:
            raise DataError(f"the networks have no label {name!r}{did_you_mean(name, self.labels)}")
        return self.labels[name]

    def __len__(self) -> int:
        return len(self.networks)

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> "LabelledNetworks":
        chosen = index if isinstance(index, slice) else torch.as_tensor(index, dtype=torch.int64)
        return LabelledNetworks(self.networks[chosen], {n: v[chosen] for n, v in self.labels.items()})

    def __repr__(self) -> str:
        return f"{self.networks}, with {', '.join(self.labels) or 'no labels'}"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        facts = {"networks": str(len(self))} | self.networks.architecture.facts()
        return html_facts(facts | {"labels": ", ".join(self.labels)})


@check_keywords()
def fitted_digits(
    *,
    pictures: Annotated[int, Gt(0)] | None = None,
    views: Annotated[int, Gt(0)] = 1,
    hidden: Sequence[Annotated[int, Gt(0)]] = (16, 16),
    steps: Annotated[int, Gt(0)] = 300,
    lr: Annotated[float, Gt(0)] = 1e-2,
    seed: Annotated[int, Ge(0)] = 0,
) -> LabelledNetworks:
    """SIRENs of scikit-learn's digits, fitted here; in run files ``digits``.

    Each of the 1,797 pictures of 8 × 8 pixels becomes `views` networks of independent starts.

    Parameters
    ----------
    pictures : int, optional
        The first so many pictures; None: all.
    views : int
        Networks of each picture.
    hidden : sequence of int
        Neurons of each hidden layer.
    steps, lr
        As in `fit_fields`.
    seed : int
        Seed of the starts.

    Returns
    -------
    LabelledNetworks
        With the labels ``digit``, from 0 to 9, and ``picture``, the number of the picture, by which data are
        split so that no picture is in two parts.

    Raises
    ------
    MissingPackageError
        Without scikit-learn.
    """
    require("sklearn", "benchmark", "the data of fitted_digits")
    from sklearn.datasets import load_digits

    data = load_digits()
    y = torch.tensor(data.images[:pictures] / 8 - 1, dtype=torch.float32).flatten(1)[..., None]
    found = [
        fit_fields(grid(8), y, hidden=hidden, steps=steps, lr=lr, seed=seed * 1009 + view)
        for view in range(views)
    ]
    labels = {"digit": torch.tensor(data.target[:pictures]).long(), "picture": torch.arange(len(y))}
    return LabelledNetworks(Networks.cat(found), {name: v.repeat(views) for name, v in labels.items()})
