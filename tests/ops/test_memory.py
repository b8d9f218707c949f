import gc
import subprocess
import sys

import pytest

from molequi.ops import memory

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


SIZES = """
import gc, resource, torch
from molequi.ops.memory import LARGE, LargeStructures, keep_freed_memory
keep_freed_memory()
sizes, other = LargeStructures(), LargeStructures()
def resident():
    return resource.getpagesize() * int(open("/proc/self/statm").read().split()[1])
def step():
    [torch.ones(2**23) for _ in range(80)]  # 2.5 GiB, more than is kept between small steps
before = resident()
step()
sizes.next({edges})
step()
other.next(1)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
held = resident() - before
{end}
gc.collect()
print(faults, held / 2**30, (resident() - before) / 2**30)
"""


ALL, UP_TO_2_GIB = [(-4, 0), (-1, -1)], [(-4, 0), (-1, 2**31 - 1)]  # M_MMAP_MAX and M_TRIM_THRESHOLD


def glibc(monkeypatch):
    """The pairs of settings that a library gets in place of glibc."""
    asked = []

    class Library:
        def mallopt(self, name, value):
            asked.append([(name, value)]) if name == -4 else asked[-1].append((name, value))
            return 1

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: Library())
    return asked


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc on Linux has this setting")
@pytest.mark.parametrize("end", ["sizes.next(1)", "del sizes"])
def test_memory_of_large_structures_is_kept_until_they_are_over(end):
    """All of it between large structures; afterwards what exceeds 2 GiB goes back to the system."""
    code = SIZES.format(edges="LARGE", end=end)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    faults, held, after = map(float, out.split())
    assert faults < 2.5 * 2**30 / 4096 / 10, faults
    assert held > 2.4 and after < 2.1, (held, after)


def test_all_is_kept_as_long_as_one_model_has_large_structures(monkeypatch):
    gc.collect()  # models of other tests
    asked = glibc(monkeypatch)
    one, other = memory.LargeStructures(), memory.LargeStructures()
    for edges in (1, memory.LARGE - 1, memory.LARGE, memory.LARGE + 5):
        one.next(edges)
    assert asked == [ALL]
    assert memory.keep_freed_memory()  # of another model that is accelerated or trained meanwhile
    other.next(memory.LARGE)
    one.next(1)
    assert asked == [ALL] * 4
    del other
    gc.collect()
    assert asked == [ALL] * 4 + [UP_TO_2_GIB]


def test_without_the_functions_of_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    assert memory.keep_freed_memory() is False
    asked = glibc(monkeypatch)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False and asked == []
