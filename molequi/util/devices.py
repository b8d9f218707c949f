"""Where a computation runs and in which precision, from the names that users write."""

import torch

from molequi.errors import ModelError

DEVICES = "'auto', 'cpu', 'cuda' or 'cuda:1'"
_APPLE = ("mps", "metal", "apple")


def as_device(device: str | int | torch.device) -> torch.device:
    """The device, if this machine has it.

    Parameters
    ----------
    device : str, int or torch.device
        "auto" is CUDA if this machine has it, otherwise the CPU. "cpu", "cuda" and "cuda:1" are themselves;
        "gpu" is CUDA, and a number is the number of a CUDA device.

    Returns
    -------
    torch.device
        The device.

    Raises
    ------
    ModelError
        If there is no such device, and for Apple's GPU. Another device is never taken in its place.

    Examples
    --------
    >>> as_device("cpu")
    device(type='cpu')
    """
    if isinstance(device, bool) or not isinstance(device, (str, int, torch.device)):
        raise ModelError(f"device={device!r}: found {type(device).__name__}; wanted {DEVICES}")
    text = f"cuda:{device}" if isinstance(device, int) else str(device)
    kind, colon, index = text.strip().lower().partition(":")
    if kind in _APPLE:
        raise ModelError(
            f"device={device!r}: Apple's GPU computes in float32 alone, and molequi needs float64 for "
            "energies and audits; write device='cpu'"
        )
    if kind == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = f"{'cuda' if kind == 'gpu' else kind}{colon}{index}"
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"device={device!r}: PyTorch knows no such device; wanted {DEVICES}") from error
    if found.type == "cuda":
        _check_cuda(device, found.index or 0)
    elif found.type != "cpu":
        _check_other(device, found)
    return found


def _check_other(device: str | int | torch.device, found: torch.device) -> None:
    """Raise ModelError for a device that cannot keep a number in float64 and give it back."""
    try:
        torch.ones(1, dtype=torch.float64, device=found).cpu()
    except Exception as error:  # what is not built into PyTorch raises anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"device={device!r}: cannot be used here ({reason[:100]}); wanted {DEVICES}"
        ) from error


def _check_cuda(device: str | int | torch.device, index: int) -> None:
    """Raise ModelError if this machine has no CUDA device of this number."""
    if not torch.cuda.is_available():
        built = "" if torch.backends.cuda.is_built() else " (the installed one is for CPUs)"
        raise ModelError(
            f"device={device!r}: PyTorch finds no CUDA device{built}, and another one is never taken in its "
            "place; write device='cpu', or device='auto', which takes CUDA where it is"
        )
    count = torch.cuda.device_count()
    if index >= count:
        there = ", ".join(f"'cuda:{k}'" for k in range(count))
        raise ModelError(f"device={device!r}: this machine has {count} CUDA devices; wanted one of {there}")


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """The precision from the type or its name.

    Parameters
    ----------
    dtype : torch.dtype or str
        ``torch.float32``, ``torch.float64``, "float32" or "float64".

    Returns
    -------
    torch.dtype
        The type.

    Raises
    ------
    ModelError
        For another type.

    Examples
    --------
    >>> as_dtype("float64")
    torch.float64
    """
    known = {"float32": torch.float32, "float64": torch.float64}
    if isinstance(dtype, torch.dtype) and dtype in known.values():
        return dtype
    if isinstance(dtype, str) and dtype in known:
        return known[dtype]
    raise ModelError(f"dtype={dtype!r}: wanted 'float32' or 'float64'")
