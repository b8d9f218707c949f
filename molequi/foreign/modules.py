"""A pickled model of torch as its modules: classes, attributes and tensors, each checked when it is read."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from molequi.errors import CheckpointError
from molequi.foreign.pickles import Record

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_TABLES = ("_parameters", "_buffers", "_modules")
_ORDERED = ("torch.nn.modules.container.ModuleList", "torch.nn.modules.container.Sequential")
# A module may be a part of several others, so that a small file could have names without an end.
_MODULES, _TENSORS, _DEPTH, _LENGTH = 20_000, 200_000, 20, 500


def walk(where: str, value: object) -> Iterator[tuple[str, Record, Mapping[str, Any]]]:
    """The name, record and attributes of each module of a model.

    Parameters
    ----------
    where : str
        The file, for messages.
    value : object
        The model.

    Raises
    ------
    CheckpointError
        If one of them is no module, has hooks, has two things of one name, or contains itself.
    """
    count = tensors = 0
    waiting: list[tuple[str, object, int]] = [("", value, 0)]
    while waiting:
        name, module, depth = waiting.pop()
        state = module.state if isinstance(module, Record) else None
        if isinstance(module, Record) and state is None and module.arguments:
            state = module.arguments[0]  # of a program that torch.fx has traced
        if not isinstance(module, Record) or not isinstance(state, Mapping):
            raise CheckpointError(f"{where}: {name or 'the model'} is no module; the file is damaged")
        tables = [state.get(table, {}) for table in _TABLES]
        if not all(isinstance(table, Mapping) for table in tables):
            raise CheckpointError(f"{where}: {name or 'the model'} is no module; the file is damaged")
        count, tensors = count + 1, tensors + len(tables[0]) + len(tables[1])
        if max(count / _MODULES, tensors / _TENSORS, depth / _DEPTH, len(name) / _LENGTH) > 1:
            raise CheckpointError(
                f"{where}: more than {_MODULES} modules, or {_DEPTH} within one another; one of them "
                "contains itself, or the file is damaged"
            )
        _check_names(where, name, module.kind, state, tables)
        yield name, module, state
        start = f"{name}." if name else ""
        waiting += [(start + key, part, depth + 1) for key, part in tables[2].items() if part is not None]


def _check_names(
    where: str, name: str, kind: str, state: Mapping[str, Any], tables: list[Mapping[str, Any]]
) -> None:
    """Raise CheckpointError for hooks, for two things of one name, and for lists in another order."""
    for key in _HOOKS:
        if state.get(key):
            raise CheckpointError(
                f"{where}: {name}.{key} is {str(state[key])[:60]}; this version reads models without it"
            )
    names = [key for table in (state, *tables) for key in table]
    if len(set(names)) < len(names):
        twice = next(key for key in names if names.count(key) > 1)
        raise CheckpointError(
            f"{where}: {name or 'the model'} has two things of the name {twice!r}; wanted one"
        )
    if any("." in key for table in tables for key in table):
        raise CheckpointError(f"{where}: {name or 'the model'} has parts with a dot in their names")
    order = list(tables[2])
    if kind in _ORDERED and all(map(str.isdigit, order)) and order != [str(k) for k in range(len(order))]:
        raise CheckpointError(f"{where}: {name} has its parts in the order {order[:9]}; wanted 0, 1, 2, …")


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
            See `walk`.
        """
        attributes: dict[str, Mapping[str, Any]] = {}
        kinds: dict[str, str] = {}
        tensors: dict[str, Tensor] = {}
        for name, module, state in walk(where, value):
            kinds[name], attributes[name] = module.kind, state
            start = f"{name}." if name else ""
            for table in ("_parameters", "_buffers"):
                for key, tensor in state.get(table, {}).items():
                    if isinstance(tensor, Tensor):
                        tensors[start + key] = tensor
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

    def check_shape(self, name: str, *shape: int) -> None:
        """Raise CheckpointError if a tensor is missing or has another shape.

        Parameters
        ----------
        name : str
            Its name.
        *shape : int
            The shape that it has to have.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.where}: the tensor {name!r} is missing")
        if (found := tuple(self.tensors[name].shape)) != shape:
            raise CheckpointError(f"{self.where}: {name!r} has the shape {found}; wanted {shape}")

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
            If it is missing, has another shape or values that are no finite real numbers.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.where}: the tensor {name!r} is missing")
        if self.tensors[name].is_complex():
            raise self.refuse(name, self.tensors[name].dtype, "real numbers")
        found = self.tensors[name].detach().to(torch.float64)
        if shape:
            self.check_shape(name, *shape)
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
        """Raise CheckpointError for attributes that are not known, and for other constants.

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
                if not (key.startswith("_") or key in names):
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
