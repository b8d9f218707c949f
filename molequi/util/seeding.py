"""Random numbers of a block of code, apart from those of the caller."""

from contextlib import contextmanager

import torch


@contextmanager
def own_random_numbers(device: torch.device, seed: int):
    """Random numbers from `seed` inside, those of the caller afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
