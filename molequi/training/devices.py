"""Devices and processes of a training."""

import torch


def launch(device: torch.device, devices: int):
    """Lightning Fabric on these devices."""
    from lightning.fabric import Fabric

    chosen = [device.index] if device.index is not None and devices == 1 else devices
    fabric = Fabric(accelerator=device.type, devices=chosen, strategy="auto" if devices == 1 else "ddp")
    fabric.launch()
    return fabric
