"""What decides whether a compiled program of another process may be used: its key.

The key covers everything that goes into the machine code: the modules of the model with their settings, the
shapes of the weights and of the structures, the versions of molequi, torch, Python and the C++ compiler, and
the processor. A program that is found by its key is still compared with the plain model before it is used.
"""

import dataclasses
import functools
import json
import platform
import subprocess
import sys
import types
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import molequi
from molequi.compiled.inputs import state_of, tensors_of
from molequi.errors import AccelerateError
from molequi.graph import Graph
from molequi.model import Model
from molequi.util.files import sha256

# Parts of molequi that neither compute what a model predicts nor compile it.
_ELSEWHERE = {"approximate", "audit", "cli", "config", "data", "data_symmetry", "discovery", "inference"}
_ELSEWHERE |= {"interfaces", "plotting", "readers", "simulation", "training", "cli.py"}
_OWN = ("molequi", "torch", "e3nn", "builtins")  # packages that are described by their versions
NO_COMPILER = (
    "compiling needs a C++ compiler and none was found: install one (Debian: apt-get install g++), or leave "
    "accelerate away; the plain model needs none"
)
_DEEPEST = 12  # of nested settings
# What torch keeps in a module is described apart; the last two say where a Model comes from.
_LEFT_OUT = {*vars(nn.Module()), "_program", "metadata"}


class _Unknown(Exception):
    """A setting that has no description that is the same in another process."""


def program_key(model: Model, padded: Graph, create_graph: bool) -> str | None:
    """The key of a compiled function.

    Parameters
    ----------
    model : Model
        The model.
    padded : Graph
        A regular graph with the fields of the structures, see `regular_graphs.regular`.
    create_graph : bool
        Whether the outputs can be differentiated.

    Returns
    -------
    str or None
        64 hexadecimal digits. None if the model has settings that cannot be described, such as an open file.
    """
    state = state_of(model)
    fields = tensors_of(padded)
    try:
        modules = [*_described(model)]
    except _Unknown:
        return None
    parts = [
        *_environment(str(model.device)),
        *_settings(),
        *modules,
        *(
            f"{v.dtype} {tuple(v.shape)} {v.stride()} {create_graph and v.requires_grad}"
            for v in state.tensors
        ),
        *(f"{name} {v.dtype} {tuple(v.shape[1:])}" for name, v in fields.items()),
        f"{state.training} {padded.dim} {padded.k} {model.k} {create_graph}",
    ]
    return sha256(f"{part}\n" for part in parts)


@functools.lru_cache
def _environment(device: str) -> tuple[str, ...]:
    """Versions and hardware."""
    return (
        f"molequi {molequi.__version__} {_sources()}",
        f"torch {torch.__version__} {torch.version.git_version}",
        f"python {sys.version}",
        f"{platform.system()} {platform.machine()} {_processor()} {device}",
        f"compiler {_compiler()}",
    )


def _settings() -> tuple[str, ...]:
    """Settings of torch that change machine code."""
    from torch._inductor import config

    portable = {name: repr(value) for name, value in config.save_config_portable().items()}
    return (
        json.dumps(portable, sort_keys=True),
        f"threads {torch.get_num_threads()} {torch.are_deterministic_algorithms_enabled()} "
        f"{torch.get_float32_matmul_precision()}",
    )


def _sources() -> str:
    folder = Path(molequi.__file__).parent
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*.py"))]
    return sha256((folder / path).read_bytes() for path in files if path.parts[0] not in _ELSEWHERE)


def _processor() -> str:
    """The instructions of the processor; the compiler uses all of them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    known = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    return "; ".join(dict.fromkeys(known)) or platform.processor()


def _compiler() -> str:
    """The C++ compiler and its version. Raises AccelerateError if there is none."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        command = get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise AccelerateError(NO_COMPILER) from error
    found = subprocess.run([command, "--version"], capture_output=True, text=True, check=False, timeout=60)
    return f"{command} {found.stdout}"


def _described(model: nn.Module) -> Iterator[str]:
    """All modules with their settings, one text each."""
    seen: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) in seen:
            yield f"{name}: {seen[id(module)]}"
            continue
        seen[id(module)] = name
        own = {k: v for k, v in vars(module).items() if k not in _LEFT_OUT}
        yield f"{name}: {_class(type(module))} {_text(own, 0)} {[*module._parameters]} {[*module._buffers]}"


def _text(value: Any, depth: int) -> str:
    """A setting as a text that is the same in every process."""
    if depth > _DEEPEST:
        raise _Unknown
    if value is None or isinstance(
        value, (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
    ):
        return repr(value)
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        return f"{value.dtype} {tuple(value.shape)} {sha256([value.numpy().tobytes()])}"
    if isinstance(value, nn.Module):
        return f"module {_class(type(value))}"
    if isinstance(value, Mapping):
        pairs = [f"{_text(k, depth + 1)}: {_text(v, depth + 1)}" for k, v in value.items()]
        return f"{_class(type(value))} {pairs}"
    if isinstance(value, Set):
        return f"{_class(type(value))} {sorted(_text(v, depth + 1) for v in value)}"
    if isinstance(value, Sequence):
        return f"{_class(type(value))} {[_text(v, depth + 1) for v in value]}"
    if isinstance(value, type):
        return _class(value)
    if isinstance(value, functools.partial):
        return f"partial {_text([value.func, value.args, value.keywords], depth + 1)}"
    if isinstance(value, types.FunctionType):
        return _function(value, depth)
    if isinstance(value, types.MethodType):
        return _text(value.__func__, depth + 1)
    if isinstance(value, types.BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return f"{_class(type(value))} {_text(fields, depth + 1)}"
    kind = type(value)
    plain = kind.__reduce_ex__ is object.__reduce_ex__ and hasattr(value, "__dict__")
    if plain and kind.__module__.split(".")[0] not in sys.stdlib_module_names:  # no open file, no lock
        return f"{_class(type(value))} {_text(vars(value), depth + 1)}"
    raise _Unknown


def _class(kind: type) -> str:
    """The name of a class and, if it is somebody's own, its code and that of its bases."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind.__module__.split(".")[0] in _OWN:
        return name
    own = [
        f"{key} {_text(value, 1)}"
        for base in kind.__mro__
        if base.__module__.split(".")[0] not in _OWN
        for key, value in sorted(vars(base).items())
        if isinstance(value, (types.FunctionType, int, float, str, bool, tuple)) and key != "__module__"
    ]
    return f"{name} {sha256(own)}"


def _function(value: types.FunctionType, depth: int) -> str:
    name = f"{value.__module__}.{value.__qualname__}"
    if value.__module__ and value.__module__.split(".")[0] in _OWN and not value.__closure__:
        return name
    wrapped = getattr(value, "__wrapped__", None)
    if wrapped is not None:  # a decorator, such as those that check arguments
        return f"{name} {_code(value.__code__)} {_text(wrapped, depth + 1)}"
    contents = [cell.cell_contents for cell in value.__closure__ or ()]
    cells = [one for one in contents if not isinstance(one, type)]  # super() has one with its own class
    described = _text([value.__defaults__, value.__kwdefaults__, *cells], depth + 1)
    return f"{name} {_code(value.__code__)} {described}"


def _code(code: types.CodeType) -> str:
    constants = [
        _code(part)
        if isinstance(part, types.CodeType)
        else str(sorted(map(repr, part)))
        if isinstance(part, frozenset)
        else repr(part)
        for part in code.co_consts
    ]
    return sha256([code.co_code, repr(code.co_names), *constants])
