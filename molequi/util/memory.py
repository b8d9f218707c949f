"""Errors of memory that is not enough, which Python and PyTorch raise in different classes."""

import sys

_CPU = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is not enough.

    Parameters
    ----------
    error : BaseException
        The error. On the CPU PyTorch raises a RuntimeError, on CUDA a class of its own, NumPy a MemoryError.

    Returns
    -------
    bool

    Examples
    --------
    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
    (True, False)
    """
    torch = sys.modules.get("torch")  # not imported here, since the list of commands needs none
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU)
