"""Finished batches of samples, kept beside the file that is to be written."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from molequi.errors import ConfigError
from molequi.graph import Graph
from molequi.model import Model


@dataclass
class Kept:
    """Samples that an interrupted call has finished, one line of JSON for each.

    Parameters
    ----------
    path : Path, optional
        The file; None keeps nothing.
    graphs : list of Graph
        What it had.
    """

    path: Path | None
    graphs: list[Graph] = field(default_factory=list)

    @classmethod
    def of(
        cls, out: str | os.PathLike[str] | None, model: Model, wanted: str, settings: Mapping[str, Any]
    ) -> "Kept":
        """What an interrupted call with the same model and settings has left.

        Parameters
        ----------
        out : path, optional
            The file that is to be written.
        model : Model
            The model.
        wanted : str
            A digest of what is sampled.
        settings : mapping
            Plain values that decide the samples.

        Raises
        ------
        ConfigError
            If the samples that are there were made with others.
        """
        if out is None:
            return cls(None)
        path = Path(f"{os.fspath(out)}.part")
        head = {"settings": dict(settings), "wanted": wanted, "model": weights_digest(model)}
        first = json.dumps(head) + "\n"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        if not lines or (len(lines) == 1 and first.startswith(lines[0])):  # nothing, or a head that was cut
            path.write_text(first, encoding="utf-8")
            return cls(path)
        if lines[0] != first:
            raise ConfigError(
                f"{path}: samples of an interrupted call with another model, other structures or other "
                "options; give these again to continue, delete the file to begin anew, or choose another out"
            )
        whole = [line for line in lines[1:] if line.endswith("\n")]  # the last line may be cut
        batch = int(settings["batch_size"])
        rows = [json.loads(line) for line in whole]
        rows = rows[: len(rows) // batch * batch]
        path.write_text("".join([lines[0], *whole[: len(rows)]]), encoding="utf-8")
        return cls(path, [_graph(row) for row in rows])

    def add(self, graphs: Sequence[Graph]) -> None:
        """Keep the samples of a batch.

        Parameters
        ----------
        graphs : sequence of Graph
            The samples.
        """
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            for g in graphs:
                row: dict[str, Any] = {"z": g.z.tolist(), "pos": g.pos.tolist()}
                if g.cell is not None and g.pbc is not None:
                    row |= {"cell": g.cell[0].tolist(), "pbc": g.pbc[0].tolist()}
                file.write(json.dumps(row) + "\n")

    def advice(self, done: int) -> str:
        """What is kept and how to go on.

        Parameters
        ----------
        done : int
            Number of samples that are kept.
        """
        if self.path is None:
            return "nothing is kept; with out=… finished samples are, and the same call continues"
        return f"{done} samples are kept in {self.path}; the same call continues"

    def remove(self) -> None:
        """Delete the file, after the samples have been written."""
        if self.path is not None:
            self.path.unlink()


def weights_digest(model: Model) -> str:
    """SHA-256 of the weights of a model.

    Parameters
    ----------
    model : Model
        The model.
    """
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _graph(row: Mapping[str, Any]) -> Graph:
    lattice = {name: row[name] for name in ("cell", "pbc") if name in row}
    return Graph.single(torch.tensor(row["pos"], dtype=torch.float64), row["z"], **lattice)
