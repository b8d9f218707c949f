import subprocess
import sys

import pytest

LARGE = """
import resource, torch, molequi as mq
from molequi.ops.memory import keep_freed_memory
{before}
torch.manual_seed(0)
graph = mq.connect(mq.Graph.single(torch.rand(4000, 3) * 35, [6] * 4000), 5.0)      # messages of 40 MiB, more than glibc ever keeps by its own threshold
model = mq.Model(mq.EGNN(elements=["C"], channels=64, layers=2), ["energy", "forces"]).eval()
for _ in range(3):
    model(graph)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):
    model(graph)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""
CODE = """
import resource, torch, molequi as mq
from molequi.ops.memory import keep_freed_memory
{before}
torch.manual_seed(0)
graph = mq.connect(mq.Graph.single(torch.rand(30, 3) * 3, [6] * 30), 5.0)
model = mq.Model(mq.NequIP(elements=["C"], channels=64))
def step():
    model(graph)["forces"].square().sum().backward()
for _ in range(6):
    step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc on Linux has this setting")
@pytest.mark.parametrize("code", [CODE, LARGE], ids=["training step", "large structure"])
def test_freed_memory_is_kept(code):
    """Pages that have to be fetched from the system anew, with the setting and without."""

    def faults(before: str) -> int:
        return int(
            subprocess.run(
                [sys.executable, "-c", code.format(before=before)], capture_output=True, text=True, check=True
            ).stdout
        )

    kept, given_back = faults("assert keep_freed_memory()"), faults("")
    assert kept < given_back / 3, (kept, given_back)
