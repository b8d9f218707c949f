"""A pickled model of torch as its modules: classes, attributes and tensors, each checked when it is read."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from molequi.errors import CheckpointError
from molequi.foreign.pickles import Record

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Modules:
    """Options, classes and tensors of a model, by the names of its modules.

    Attributes
    ----------
    where : str
        The file, for messages.
    attributes : dict
        Plain attributes of each module, by the name of the module.
    kinds : dict
        Class of each module.
    tensors : dict
        Parameters and buffers by name.
    unread : set
        Names of tensors that were not read yet.
    """

    where: str
    attributes: Mapping[str, Mapping[str, Any]]
    kinds: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    unread: set[str]

    @classmethod
    def read(cls, where: str, value: Record) -> Self:
        """The modules of a model.

        Parameters
        ----------
        where : str
            The file, for messages.
        value : Record
            The content of the archive.

        Raises
        ------
        CheckpointError
            If one of them is no module.
        """
        attributes: dict[str, Mapping[str, Any]] = {}
        kinds: dict[str, str] = {}
        tensors: dict[str, Tensor] = {}
        waiting: list[tuple[str, object]] = [("", value)]
        while waiting:
            name, module = waiting.pop()
            state = module.state if isinstance(module, Record) else None
            if isinstance(module, Record) and state is None and module.arguments:
                state = module.arguments[0]  # of a program that torch.fx has traced
            if not isinstance(module, Record) or not isinstance(state, Mapping):
                raise CheckpointError(f"{where}: {name or 'the model'} is no module; the file is damaged")
            kinds[name], attributes[name] = module.kind, state
            start = f"{name}." if name else ""
            for table in ("_parameters", "_buffers"):
                for key, tensor in state.get(table, {}).items():
                    if isinstance(tensor, Tensor):
                        tensors[start + key] = tensor
            waiting += [(start + key, part) for key, part in state.get("_modules", {}).items()]
        return cls(where, attributes, kinds, tensors, set(tensors))

    @property
    def options(self) -> Mapping[str, Any]:
        """What the model was made with."""
        return self.attributes[""]

    def refuse(self, what: str, found: object, wanted: str) -> CheckpointError:
        """The error of a value that this version does not know.

        Parameters
        ----------
        what : str
            Its name.
        found : object
            The value.
        wanted : str
            What is known.
        """
        return CheckpointError(f"{self.where}: {what} is {str(found)[:60]}; this version reads {wanted}")

    def attribute(self, module: str, name: str) -> Any:
        """An attribute of a module.

        Parameters
        ----------
        module, name : str
            Name of the module, "" for the model, and of the attribute.

        Raises
        ------
        CheckpointError
            If it is missing.
        """
        if name not in self.attributes.get(module, {}):
            where = f"{module}.{name}" if module else name
            raise CheckpointError(f"{self.where}: it has no {where!r}; it is no complete model")
        return self.attributes[module][name]

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor in float64.

        Parameters
        ----------
        name : str
            Its name.
        *shape : int
            The shape that it has to have; any if left out.

        Raises
        ------
        CheckpointError
            If it is missing, has another shape or values that are not finite.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.where}: the tensor {name!r} is missing")
        found = self.tensors[name].detach().to(torch.float64)
        if shape and tuple(found.shape) != shape:
            raise CheckpointError(
                f"{self.where}: {name!r} has the shape {tuple(found.shape)}; wanted {shape}"
            )
        if not bool(torch.isfinite(found).all()):
            raise CheckpointError(f"{self.where}: {name!r} has values that are not finite")
        self.unread.discard(name)
        return found

    def check_kinds(self, known: Mapping[str, str], what: str) -> None:
        """Raise CheckpointError for classes that are not known.

        Parameters
        ----------
        known : mapping of str to str
            The known classes; see `check_attributes`.
        what : str
            What has them, for the message.
        """
        for name, kind in self.kinds.items():
            if kind not in known:
                raise self.refuse(name or "the model", f"a {kind}", what)

    def check_attributes(
        self, known: Mapping[str, str], constants: Mapping[str, Mapping[str, object]]
    ) -> None:
        """Raise CheckpointError for attributes that are not known, other constants, and hooks.

        Parameters
        ----------
        known : mapping of str to str
            By class, the names of the attributes that a caller reads, or that do not change what it computes.
        constants : mapping of str to mapping
            By the last name of a class, values that its attributes have to have.
        """
        for name, kind in self.kinds.items():
            wanted = constants.get(kind.rpartition(".")[2], {})
            for key, value in wanted.items():
                if not _same(found := self.attribute(name, key), value):
                    raise self.refuse(f"{name}.{key}".lstrip("."), found, str(value))
            names = {"training", *known[kind].split(), *wanted}
            for key, value in self.attributes[name].items():
                if (key in _HOOKS and value) or not (key.startswith("_") or key in names):
                    raise self.refuse(f"{name}.{key}".lstrip("."), value, "models without it")

    def check_all_read(self, what: str, unused: Iterable[str] = ()) -> None:
        """Raise CheckpointError for tensors without a place.

        Parameters
        ----------
        what : str
            The architecture, for the message.
        unused : iterable of str
            Beginnings of names of tensors that the model does not use.
        """
        left = [name for name in sorted(self.unread) if not name.startswith(tuple(unused))]
        if left:
            raise CheckpointError(
                f"{self.where}: {len(left)} tensors have no place in {what} as this version knows it: "
                f"{', '.join(left[:4])}"
            )


def _same(found: object, wanted: object) -> bool:
    """Whether two values are equal; numbers up to rounding in float64."""
    if isinstance(found, float) and isinstance(wanted, float):
        return math.isclose(found, wanted, rel_tol=1e-12)
    return found == wanted
