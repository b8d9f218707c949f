"""How this process keeps its memory."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of glibc's mallopt(3)


def keep_freed_memory() -> bool:
    """Ask glibc to keep up to 2 GiB of freed memory for the next step instead of returning it to the system.

    The arrays of a step are freed, and allocated again in the next step. Pages that were returned must then
    be mapped again one by one. For a batch of molecules (900 edges, 64 channels) a training step became
    faster: 93 instead of 104 ms on one thread, 58 instead of 72 ms on two. Energy and forces of 2,100 atoms
    with 70,000 edges, compiled, took 0.23 instead of 0.44 ms per atom.

    Returns
    -------
    bool
        Whether it was done. Except on Linux with glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Take large blocks from the heap, too. Mapped blocks are never kept, and glibc maps all blocks above 32
    # MiB.
    return mallopt is not None and mallopt(_MMAP_MAX, 0) == 1 and mallopt(_TRIM_THRESHOLD, 2**31 - 1) == 1
