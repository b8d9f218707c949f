import subprocess
import sys

import pytest

LARGE = """
import resource, torch
from molequi.ops.memory import keep_freed_memory
{before}
x = torch.zeros(1)
def step():
    return x.expand(24 << 20) + 1      # 96 MiB, more than glibc keeps by its own threshold
for _ in range(3):
    step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
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
@pytest.mark.parametrize("code", [CODE, LARGE], ids=["training step", "large array"])
def test_freed_memory_is_kept(code):
    """Pages that have to be fetched from the system anew, with the setting and without."""
    def faults(before: str) -> int:
        return int(subprocess.run([sys.executable, "-c", code.format(before=before)], capture_output=True, text=True, check=True).stdout)

    kept, given_back = faults("assert keep_freed_memory()"), faults("")
    assert kept < given_back / 3, (kept, given_back)
