"""The pickle in a file of torch as plain values, without running what it names.

A pickle is a program: it may name any function and have it called. The interpreter here knows only the
instructions that plain values and tensors need, and answers every name with an inert record, so that nothing
is imported and nothing is called.
"""

import pickletools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_TYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES.values()}


class Record:
    """An object of a class that is not there: its name, and what the file says about it.

    Attributes
    ----------
    kind : str
        Module and name of the class, such as ``"mace.modules.models.ScaleShiftMACE"``.
    arguments : tuple
        What it was made with.
    state : object
        What it was given afterwards, usually a mapping of its attributes.
    items : list
        Items, or keys and values in turn, if it is a kind of list or mapping.
    """

    kind: ClassVar[str] = ""
    arguments: tuple[Any, ...]
    state: Any
    items: list[Any]

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.state, self.items = arguments, None, []

    def set_state(self, state: Any) -> None:
        """Take what the file says about this object.

        Parameters
        ----------
        state : object
            Usually a mapping of attributes.
        """
        self.state = state

    def __repr__(self) -> str:
        return f"<{self.kind}>"


@dataclass(frozen=True)
class Storage:
    """The bytes of a tensor, which are read when it is made.

    Parameters
    ----------
    dtype : torch.dtype
        Type of its numbers.
    key : str
        Its name in the archive.
    size : int
        Number of numbers.
    """

    dtype: torch.dtype
    key: str
    size: int


class Reader:
    """The program of a pickle, of which only the instructions are known that plain values and tensors need.

    The interpreter of Python would call what a file names, and change objects of this process.

    Parameters
    ----------
    data : bytes
        The pickle.
    size : int
        Size of the file in bytes; values that need many times as much are refused.
    tensor_of : callable
        Makes a tensor from its storage, offset, shape and stride.
    """

    def __init__(self, data: bytes, size: int, tensor_of: Callable[..., Tensor]) -> None:
        self.data, self.tensor_of = data, tensor_of
        self.kinds: dict[str, type[Record]] = {}
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.left = 4 * size + (1 << 20)  # bytes of copies that may still be made

    def load(self) -> Any:
        """The value."""
        for code, argument, _ in pickletools.genops(self.data):
            name = code.name
            if name == "STOP":
                return self.stack.pop()
            if name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _PUSHED:
                self.stack.append(argument)
            elif name in _STORED:
                self.memo[len(self.memo) if name == "MEMOIZE" else int(str(argument))] = self.stack[-1]
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                self.stack.append(self.memo[int(str(argument))])
            elif name == "GLOBAL":
                self.stack.append(self._named(*str(argument).split(" ", 1)))
            elif name not in ("PROTO", "FRAME"):
                step = getattr(self, f"_{name.lower()}", None)
                if step is None:
                    raise ValueError(f"the instruction {name}, which torch.save does not write")
                step()
        raise ValueError("it does not end")

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _mark(self) -> None:
        self.marks.append(len(self.stack))

    def _pop(self) -> None:
        self.stack.pop()

    def _empty_dict(self) -> None:
        self.stack.append({})

    def _empty_list(self) -> None:
        self.stack.append([])

    def _empty_set(self) -> None:
        self.stack.append(set())

    def _tuple(self) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _some(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(items)

    def _tuple1(self) -> None:
        self._some(1)

    def _tuple2(self) -> None:
        self._some(2)

    def _tuple3(self) -> None:
        self._some(3)

    def _append(self) -> None:
        item = self.stack.pop()
        self._extended([item])

    def _appends(self) -> None:
        self._extended(self._since_mark())

    def _additems(self) -> None:
        items = self._since_mark()
        self._is(self.stack[-1], set).update(_key(one) for one in items)

    def _extended(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], Record):
            self.stack[-1].items += items
        else:
            self._is(self.stack[-1], list).extend(items)

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key, value])

    def _setitems(self) -> None:
        self._put(self._since_mark())

    def _put(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], Record):
            self.stack[-1].items += items
        else:
            self._is(self.stack[-1], dict).update(zip(map(_key, items[::2]), items[1::2]))

    @staticmethod
    def _is(value: Any, *kinds: type) -> Any:
        if not isinstance(value, kinds):
            raise ValueError(f"{type(value).__name__} in the place of a {kinds[0].__name__}")
        return value

    def _stack_global(self) -> None:
        name, module = self._is(self.stack.pop(), str), self._is(self.stack.pop(), str)
        self.stack.append(self._named(module, name))

    def _named(self, module: str, name: str) -> Any:
        """What a name means: a function of this file, a type of numbers, or the class of inert records."""
        full = f"{module}.{name}"
        if full in _FUNCTIONS:
            return _Function(_FUNCTIONS[full])
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        if full not in self.kinds:
            base = {"numpy.dtype": _Dtype}.get(full, Record)
            self.kinds[full] = type(name.rpartition(".")[2] or "Record", (base,), {"kind": full})
        return self.kinds[full]

    def _reduce(self) -> None:
        arguments, function = self._is(self.stack.pop(), tuple), self.stack.pop()
        if isinstance(function, _Function):
            made = function.call(self, *arguments)
        elif isinstance(function, type) and issubclass(function, Record):
            made = function(*arguments)
        else:
            raise ValueError(f"{type(function).__name__} is called")
        self.stack.append(made)

    _newobj = _reduce

    def _newobj_ex(self) -> None:
        self.stack.pop()
        self._reduce()

    def _build(self) -> None:
        state = self.stack.pop()
        # Attributes of mappings, such as versions of layers, mean nothing here.
        if isinstance(self.stack[-1], Record):
            self.stack[-1].set_state(state)
        elif not isinstance(self.stack[-1], dict):
            raise ValueError(f"attributes of a {type(self.stack[-1]).__name__}")

    def _binpersid(self) -> None:
        match self.stack.pop():
            case ("storage", torch.dtype() as dtype, str() | int() as key, str(), int() as size) if size >= 0:
                self.stack.append(Storage(dtype, str(key), size))
            case _:
                raise ValueError("numbers of a tensor that are described in another way")

    def spend(self, count: int) -> None:
        """Count bytes that are made. Raises ValueError if they are too many for this file."""
        self.left -= count
        if self.left < 0:
            raise ValueError("its values need many times the size of the file")

    def tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Tensor:
        """A tensor as torch describes it."""
        shape, stride = self.sizes(shape), self.sizes(stride)
        made = self.tensor_of(self._is(storage, Storage), offset, shape, stride)
        self.spend(made.numel() * made.dtype.itemsize)
        return made

    def sizes(self, value: Any = ()) -> tuple[int, ...]:
        """A few whole numbers."""
        found = self._is(value, tuple)
        if len(found) > _AXES or any(type(one) is not int for one in found):
            raise ValueError("sizes that are no whole numbers")
        return tuple(found)

    def ordered(self, pairs: Any = ()) -> dict[Any, Any]:
        """A mapping from pairs."""
        self.spend(64 * len(self._is(pairs, list, tuple)))
        return {_key(key): value for key, value in pairs}

    def members(self, items: Any = ()) -> set[Any]:
        """A set."""
        self.spend(64 * len(self._is(items, list, tuple)))
        return {_key(one) for one in items}

    def device(self, *names: Any) -> str:
        """The name of a device."""
        if not all(type(n) is int or (isinstance(n, str) and len(n) < 40) for n in names) or len(names) > 2:
            raise ValueError("a strange device")
        return ":".join(map(str, names))

    def encoded(self, text: Any, encoding: str = "latin1") -> bytes:
        """Bytes that a pickle holds as text."""
        self.spend(len(self._is(text, str)))
        if encoding != "latin1":
            raise ValueError(f"bytes in {encoding[:20]!r}")
        return _encode(text)


@dataclass(frozen=True)
class _Function:
    """A function of this file that a pickle may name."""

    call: Callable[..., Any]


def _key(value: Any) -> Any:
    """A key of a mapping. Other objects have no hash that is sure to end."""
    if value is None or isinstance(value, (str, int, float, Record)):
        return value
    raise ValueError(f"a key of type {type(value).__name__}")


def _encode(text: str) -> bytes:
    return text.encode("latin1")


class _Dtype(Record):
    """A type of numpy by its name; only numbers are known."""

    def numpy(self) -> np.dtype:
        """The type."""
        found = np.dtype(str(self.arguments[0]))
        order = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else "="
        if found.kind not in "biufc":
            raise ValueError(f"numbers of type {found}")
        return found.newbyteorder(">") if order == ">" else found


class _Array(Record):
    """An array of numpy, whose content arrives as its state."""

    def set_state(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        values = np.frombuffer(raw if isinstance(raw, bytes) else _encode(raw), dtype.numpy())
        self.state = values.reshape(shape, order="F" if fortran else "C").copy()


def _scalar(reader: Reader, dtype: _Dtype, raw: Any) -> Any:
    """A number of numpy as one of Python."""
    return np.frombuffer(raw if isinstance(raw, bytes) else _encode(raw), dtype.numpy())[0].item()


_AXES = 64
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_PUSHED = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_STORED = {"BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": Reader.ordered,
    "torch._utils._rebuild_tensor_v2": Reader.tensor,
    "torch._utils._rebuild_parameter": lambda reader, data, *_: reader._is(data, Tensor),
    "torch.Size": Reader.sizes,
    "torch.device": Reader.device,
    "_codecs.encode": Reader.encoded,
    "builtins.set": Reader.members,
    "__builtin__.set": Reader.members,
    **{f"{m}.multiarray._reconstruct": lambda *_: _Array() for m in ("numpy.core", "numpy._core")},
    **{f"{m}.multiarray.scalar": _scalar for m in ("numpy.core", "numpy._core")},
}


def plain(value: Any) -> Any:
    """A value with numpy arrays in the place of their records, in lists and mappings, too.

    Parameters
    ----------
    value : object
        A value of `Archive.value`.

    Raises
    ------
    ValueError
        If it is nested too deeply, or contains itself.
    """
    return _plain(value, {}, 0)


def _plain(value: Any, made: dict[int, Any], depth: int) -> Any:
    if depth > _DEPTH:
        raise ValueError("values within values without an end")
    if isinstance(value, _Array):
        return value.state
    if not isinstance(value, (dict, list, tuple)):
        return value
    if id(value) not in made:  # a part that occurs in many places is made once
        if isinstance(value, dict):
            made[id(value)] = {key: _plain(v, made, depth + 1) for key, v in value.items()}
        else:
            made[id(value)] = type(value)(_plain(v, made, depth + 1) for v in value)
    return made[id(value)]


_DEPTH = 100


def records(value: Any) -> Iterator[Record]:
    """All records within a value, each once.

    Parameters
    ----------
    value : object
        A value of `Archive.value`.
    """
    waiting, seen = [value], set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Record):
            yield one
            waiting += [one.arguments, one.state, one.items]
        elif isinstance(one, Mapping):
            waiting += list(one.values())
        elif isinstance(one, (list, tuple, set)):
            waiting += list(one)
