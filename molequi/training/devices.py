"""Devices and processes of a training."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def launch(device: torch.device, devices: int) -> "Fabric":
    """Start Lightning Fabric.

    Parameters
    ----------
    device : torch.device
        The device, or the kind of the devices.
    devices : int
        Number of devices; more than one start one process each.
    """
    from lightning.fabric import Fabric

    chosen = [device.index] if device.index is not None and devices == 1 else devices
    fabric = Fabric(accelerator=device.type, devices=chosen, strategy="auto" if devices == 1 else "ddp")
    fabric.launch()
    return fabric
