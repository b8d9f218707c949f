"""Errors of models of networks, as those of models of structures, and the result of a run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.graph import Graph, collate
from molequi.inference.metrics import Errors, Metrics, table, table_html
from molequi.quantities import Quantity
from molequi.util.html import html_facts, html_heading
from molequi.weights.model import WeightModel
from molequi.weights.networks import Networks


@dataclass(frozen=True)
class NetworkResult:
    """The result of a run on networks, see `molequi.run`.

    Parameters
    ----------
    model : WeightModel
        The trained model, in evaluation mode.
    history : list of dict
        A row for each epoch, as in ``metrics.csv``.
    errors : dict of Errors
        Errors by part of the data.
    quantities : mapping of str to Quantity
        What is predicted; classes have their names here.
    out : Path
        The folder of the run.
    main : bool
        True: such runs have one process.
    """

    model: WeightModel
    history: list[dict[str, float]]
    errors: dict[str, Errors]
    quantities: Mapping[str, Quantity]
    out: Path
    main: bool = True

    def __str__(self) -> str:
        return f"{len(self.history)} epochs\n{table(self.errors)}"

    def _repr_html_(self) -> str:
        facts = html_facts({"folder": str(self.out)})
        return html_heading(f"{len(self.history)} epochs") + table_html(self.errors) + facts

    __repr__ = __str__


def errors_of(model: WeightModel, networks: Networks, targets: Tensor, wanted: Sequence[Quantity]) -> Errors:
    """The errors of a model of networks, as `molequi.evaluate` measures those of a model of structures.

    Parameters
    ----------
    model : WeightModel
        The model.
    networks : Networks
        The networks.
    targets : Tensor, shape (B,) of class numbers or (B, K)
        Their labels.
    wanted : sequence of Quantity
        What is predicted: one with classes, or one for each of the K outputs.

    Returns
    -------
    Errors
        Accuracies, or mean absolute and root mean square errors.
    """
    found = model.predict(networks)
    assert isinstance(found, Tensor)
    found = found.cpu()
    if wanted[0].classes:
        out, labels = {wanted[0].name: found}, {wanted[0].name: targets.double()}
    else:
        out = {q.name: found[:, k] for k, q in enumerate(wanted)}
        labels = {q.name: targets[:, k].double() for k, q in enumerate(wanted)}
    # `Metrics` takes labels of structures; here each network is one point.
    point = torch.zeros(1, 3)
    graphs = [
        Graph.single(point, [0], targets={name: value[k : k + 1] for name, value in labels.items()})
        for k in range(len(networks))
    ]
    quantities = {q.name: q for q in wanted}
    metrics = Metrics(quantities, Dataset(graphs, quantities=quantities), areas=True)
    metrics.update(out, collate(graphs))
    return metrics.errors()


def read_errors(folder: Path) -> dict[str, Errors]:
    """The errors that a run has written.

    Parameters
    ----------
    folder : Path
        Its folder.
    """
    records = json.loads((folder / "errors.json").read_text(encoding="utf-8"))
    return {part: Errors.from_records(rows) for part, rows in records.items()}
