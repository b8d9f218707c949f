"""What a training asks of its process: devices, random numbers, signals."""

import signal
import threading
from contextlib import contextmanager

import torch


def launch(device: torch.device, devices: int):
    """Lightning Fabric on these devices."""
    from lightning.fabric import Fabric

    chosen = [device.index] if device.index is not None and devices == 1 else devices
    fabric = Fabric(accelerator=device.type, devices=chosen, strategy="auto" if devices == 1 else "ddp")
    fabric.launch()
    return fabric


@contextmanager
def own_random_numbers(device: torch.device, seed: int):
    """Random numbers from `seed` inside, those of the caller afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def listening():
    """A list that receives the signals SIGINT and SIGTERM instead of this process; a second one acts as usual."""
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return

    def hear(number, frame):
        heard.append(number)
        signal.signal(number, before[number])

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, hear)
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
