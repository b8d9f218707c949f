"""Processes that were forked from one that has computed."""

import os

import torch

from molequi.errors import ModelError

_process = os.getpid()  # the one that imported this module; a forked one has another number
_threads = True  # whether this process may use threads, also in compiled programs


def prepare_forked_process(device: torch.device) -> bool:
    """Make computing possible in a process that was forked from one that has computed.

    The threads of OpenMP do not survive a fork, and PyTorch would wait for them forever. So a forked process
    computes with one thread. In every other process this does nothing. Compiled programs have their number of
    threads in their code, so that they cannot be used there.

    Parameters
    ----------
    device : torch.device
        Where the model is.

    Returns
    -------
    bool
        Whether compiled programs can be used.

    Raises
    ------
    ModelError
        If the model is on a GPU, which a forked process cannot use.

    Examples
    --------
    >>> prepare_forked_process(torch.device("cpu"))
    True
    """
    global _process, _threads
    now = os.getpid()
    if now == _process:
        return _threads
    if device.type == "cuda":
        raise ModelError(
            f"this process was forked from one that uses {device}, which CUDA does not allow; start "
            "processes with multiprocessing.get_context('spawn'), or use device='cpu'"
        )
    _threads = torch.get_num_threads() == 1
    torch.set_num_threads(1)
    _process = now
    return _threads
