"""Draw random numbers in a block of code without changing those of the caller."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_random_numbers(device: torch.device, seed: int) -> Iterator[None]:
    """Use random numbers of a seed inside the block; restore the state of the caller afterwards.

    Parameters
    ----------
    device : torch.device
        The device whose random numbers are used, beside those of the CPU.
    seed : int
        The seed.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
