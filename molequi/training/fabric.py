"""Lightning Fabric: the device of a process, and what other libraries learn of the processes through it."""

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment
from lightning.fabric.strategies import DDPStrategy

from molequi.util.launchers import Launched


class _Environment(ClusterEnvironment):
    """What Fabric asks about the processes, which are there already."""

    def __init__(self, found: Launched) -> None:
        super().__init__()
        self.found = found

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self.found.address

    @property
    def main_port(self) -> int:
        return self.found.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.found.size

    def set_world_size(self, size: int) -> None:
        """The launcher has set it."""

    def global_rank(self) -> int:
        return self.found.rank

    def set_global_rank(self, rank: int) -> None:
        """The launcher has set it."""

    def local_rank(self) -> int:
        return self.found.local_rank

    def node_rank(self) -> int:
        return self.found.rank // self.found.local_size


def device_of(device: torch.device, found: Launched | None) -> torch.device:
    """The device of this process.

    Parameters
    ----------
    device : torch.device
        The device, or the kind of the devices.
    found : Launched or None
        What this process is; None for one that is alone.
    """
    if found is None:
        chosen = 1 if device.index is None else [device.index]
        return Fabric(
            accelerator=device.type,
            devices=chosen,
            strategy="auto",
            plugins=[LightningEnvironment()],  # that of SLURM would refuse some jobs
        ).device
    return _fabric(device, found).device


def launch(device: torch.device, found: Launched) -> None:
    """Let Fabric know that the processes are connected: loggers write in rank 0 alone, threads are shared.

    Parameters
    ----------
    device : torch.device
        The device, or the kind of the devices.
    found : Launched
        What this process is.
    """
    _fabric(device, found).launch()


def _fabric(device: torch.device, found: Launched) -> Fabric:
    return Fabric(
        accelerator=device.type,
        devices=found.local_size,
        num_nodes=found.nodes,
        strategy=DDPStrategy(),
        plugins=[_Environment(found)],
    )
