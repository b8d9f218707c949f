"""The tensors of a foreign file, of which each has to be read."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from molequi.errors import CheckpointError


class Tables:
    """The tensors of a file by name.

    Parameters
    ----------
    where : str
        The file, for messages.
    family : str
        What kind of file it is, for messages.
    state : mapping of str to Tensor
        The tensors.
    """

    def __init__(self, where: str, family: str, state: Mapping[str, Tensor]) -> None:
        self.where, self.family, self.state = where, family, state
        self.read: set[str] = set()

    def peek(self, name: str) -> Tensor:
        """A tensor in float64, which has to be read as well.

        Raises CheckpointError if it is missing or complex.

        Parameters
        ----------
        name : str
            Its name.
        """
        if name not in self.state or not isinstance(self.state[name], Tensor):
            raise CheckpointError(f"{self.where}: the tensor {name!r} is missing")
        if self.state[name].is_complex():
            raise CheckpointError(f"{self.where}: {name!r} has complex numbers; wanted real ones")
        return self.state[name].detach().to(torch.float64)

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor in float64, which counts as read.

        Parameters
        ----------
        name : str
            Its name.
        *shape : int
            Its shape; any if none is given.

        Raises
        ------
        CheckpointError
            If it is missing, has values that are not finite, or another shape.
        """
        found = self.peek(name)
        self.read.add(name)
        if not bool(torch.isfinite(found).all()):
            raise CheckpointError(f"{self.where}: {name!r} has values that are not finite")
        if shape and tuple(found.shape) != shape:
            raise CheckpointError(
                f"{self.where}: {name!r} has the shape {tuple(found.shape)}; wanted {shape}"
            )
        return found

    def check_all_read(self, without: Iterable[str] = ("output_mask", "._w3j")) -> None:
        """Raise CheckpointError if a tensor was not read.

        Parameters
        ----------
        without : iterable of str
            Parts of names of tensors that say nothing new.
        """
        left = [
            name
            for name, value in self.state.items()
            if name not in self.read and value.numel() and not any(part in name for part in without)
        ]
        if left:
            raise CheckpointError(
                f"{self.where}: {len(left)} tensors have no place in {self.family} as this version knows it: "
                f"{', '.join(left[:4])}"
            )
