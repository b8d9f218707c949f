"""Machine code by the compiler of torch, and how it gets from one process to another."""

import copy
import functools
import gc
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import sympy
import torch
from torch import Tensor

from molequi.compiled.functions import Call
from molequi.util.cache_folder import not_private

_ONE_AT_A_TIME = threading.RLock()  # the compiler finds its folder in the environment of the process
# Objects that are allocated between two collections of garbage, and collections between two of older objects.
_RARELY = (100_000, 50, 1000)
# What torch compiles to see whether the compiler takes the flags of some vector instructions; its own
# includes all headers of vectors, for 7 processor seconds in each process.
_WITH_FLAGS = "alignas(64) float aligned[16] = {0.0f};\n"


def inductor(traced: torch.fx.GraphModule, inputs: list[Tensor]) -> Call:
    """Machine code for a traced function.

    Parameters
    ----------
    traced : torch.fx.GraphModule
        The function.
    inputs : list of Tensor
        Its arguments, as fake tensors.
    """
    from torch._functorch import config
    from torch._guards import TracingContext, tracing
    from torch._inductor import compile  # takes a second to import

    arguments: list[Tensor | int | torch.SymInt | None] = [*inputs]
    if inputs[0].device.type != "cpu":
        return cast(Call, compile(traced, arguments))
    for node, value in zip((node for node in traced.graph.nodes if node.op == "placeholder"), inputs):
        # Taken for the inputs there. The tracer has not kept that they require gradients.
        node.meta["val"] = value
    # The kernels and the code that calls them in one C++ file instead of a file for each kernel: GauntACE for
    # training takes 92 instead of 161 processor seconds.
    options = {"cpp_wrapper": True}
    mode = cast(Any, inputs[0]).fake_mode
    traced = copy.deepcopy(traced)  # the copy has no references to the tracer, which torch cannot serialize
    wanted = {"bundled_autograd_cache": True, "force_non_lazy_backward_lowering": True}
    with (
        compiler_folder() as folder,
        # Without a context torch makes nothing that could be kept.
        tracing(TracingContext(mode)),
        config.patch({name: value for name, value in wanted.items() if hasattr(config, name)}),
        _in_less_time(),
    ):
        call = compile(traced, arguments, options=options)
        call.libraries = _libraries(folder)
    return cast(Call, call)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Collect garbage rarely inside, since compilers make millions of objects that stay.

    Garbage without cycles is freed at once, as always. A process that collects none keeps that choice.
    """
    with _ONE_AT_A_TIME:
        before = gc.get_threshold()
        try:
            if before[0]:
                gc.set_threshold(*map(max, before, _RARELY))
            yield
        finally:
            gc.set_threshold(*before)


@contextmanager
def _in_less_time() -> Iterator[None]:
    """Let torch compile the same in less time, as far as it has what is changed here.

    Indices of loads are expanded in place of `sympy.simplify`, which tries dozens of rules. The vector
    instructions are written out in the C++ code already, so that -O2 makes code as fast as -O3 does. The
    rules for types are made once and not for each operation, and the flags of vector instructions are tried
    without the headers of torch. All of torch is as before afterwards. Meanwhile the changes hold for other
    threads, too, if they call `torch.compile`.
    """
    from torch._inductor import config, cpp_builder, sizevars
    from torch._inductor.codegen import common

    with _ONE_AT_A_TIME, ExitStack() as stack:
        stack.enter_context(config.patch({"aot_inductor.enable_line_tables": False}))
        rules = getattr(common, "DtypePropagationOpsHandler", None)  # a singleton that is filled each time
        if rules is not None:
            stack.enter_context(patch.object(common, "DtypePropagationOpsHandler", functools.cache(rules)))
        kind: Any = None
        with suppress(ImportError):
            from torch._inductor.cpu_vec_isa import VecISA

            kind = VecISA
        builds, tried = getattr(kind, "check_build", None), getattr(kind, "_avx_code", None)
        if builds is not None and tried is not None:

            def with_flags(isa: Any, code: str, *args: Any, **kwargs: Any) -> bool:
                return cast(bool, builds(isa, _WITH_FLAGS if code == tried else code, *args, **kwargs))

            stack.enter_context(patch.object(kind, "check_build", with_flags))
        if hasattr(sizevars, "sympy"):
            names = {**vars(sympy), "simplify": sympy.expand}
            stack.enter_context(patch.object(sizevars, "sympy", SimpleNamespace(**names)))
        flags: Callable[..., Any] | None = getattr(cpp_builder, "_get_optimization_cflags", None)
        if flags is not None:

            def with_o2(*args: Any, **kwargs: Any) -> Any:
                found = flags(*args, **kwargs)
                first, rest = (found[0], found[1:]) if isinstance(found, tuple) else (found, None)
                first = ["O2" if flag == "O3" else flag for flag in first]
                return first if rest is None else (first, *rest)

            stack.enter_context(patch.object(cpp_builder, "_get_optimization_cflags", with_o2))
        yield


@contextmanager
def compiler_folder(files: Mapping[str, bytes] | None = None) -> Iterator[Path]:
    """A folder of this process alone, in which the compiler of torch works meanwhile.

    The usual folder of torch is shared between processes. If one of them is killed while it compiles, an
    empty library can stay there, which others then try to load.

    Parameters
    ----------
    files : mapping of str to bytes, optional
        Files that are put there first, by path.

    Yields
    ------
    Path
        The folder. It is removed afterwards; libraries that are loaded stay in memory.
    """
    from torch._inductor.runtime.cache_dir_utils import temporary_cache_dir

    parent = os.environ.get("TORCHINDUCTOR_CACHE_DIR")  # perhaps the only place from which code can be run
    if parent is not None:
        os.makedirs(parent, mode=0o700, exist_ok=True)
        parent = None if not_private(Path(parent)) else parent
    with _ONE_AT_A_TIME, ExitStack() as stack:
        folder = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="molequi-", dir=parent, ignore_cleanup_errors=True)
            )
        )
        for name, content in (files or {}).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o700)
        stack.enter_context(temporary_cache_dir(str(folder)))
        yield folder


def _libraries(folder: Path) -> dict[str, bytes]:
    """The shared libraries that the compiler made, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.so"))}


def libraries(call: Call) -> dict[str, bytes] | None:
    """The shared libraries of a function, by path in the folder of the compiler.

    Parameters
    ----------
    call : callable
        What `inductor` returned.

    Returns
    -------
    dict of str to bytes, or None
        None if the function cannot be kept, as on GPUs.
    """
    return getattr(call, "libraries", None)


def to_bytes(call: Call) -> bytes:
    """What another process needs to call a function, beside the `libraries`.

    Parameters
    ----------
    call : callable
        What `inductor` returned.

    Raises
    ------
    ValueError
        If torch has made nothing that can be kept.
    """
    from torch._dynamo.aot_compile_types import BundledAOTAutogradSerializableCallable as Serializable

    if getattr(call, "serialize", None) is None:
        raise ValueError("torch cannot serialize it")
    return cast(bytes, Serializable.serialize_compile_artifacts(Serializable(call)))


def from_bytes(content: bytes) -> Call:
    """The function of which `to_bytes` made this. Its `libraries` have to be in the `compiler_folder`.

    Parameters
    ----------
    content : bytes
        From this user only, since torch reads it with pickle.
    """
    from torch._dynamo.aot_compile_types import BundledAOTAutogradSerializableCallable as Serializable

    # With other settings torch would not find the libraries, and would compile them again.
    with _in_less_time():
        return cast(Call, Serializable.deserialize_compile_artifacts(content))
