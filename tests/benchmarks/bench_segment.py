"""Times of molequi.ops.segment and of torch-scatter for the same result, on shapes that the models make.

    make test-scatter                                                            # builds torch-scatter, once
    PYTHONPATH=build/scatter .venv/bin/python tests/benchmarks/bench_segment.py [--threads 1 2] [--seconds 0.3] [--operations sum max]

For each operation, shape, precision and number of threads: the median time of molequi's own function in milliseconds, and the median of each
other way over it (above 1: molequi is faster). All ways take turns in random order within one loop, so that a busy machine slows them alike and
none profits from what the one before it left in the cache. `control` is molequi's function once more: where it is not within a tenth of 1, the
row is marked NOISY and says nothing. Results are compared before they are timed. Three passes: `value`; `gradient`, the value and its first
derivative; `training`, the value, its derivative, and the derivative of that one's square, as forces are trained. A way without a second
derivative is marked `none`, one whose result is wrong `wrong`.

Indices are sorted, as molequi's are. The ways by `csr` are handed their row pointers, which molequi's functions are not; what these cost is the
last table. Threads that wait for a core on a busy machine are slower by orders of magnitude: measure two only where nothing else runs.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
import torch_scatter
from torch import Tensor

from molequi.ops import segment

LARGEST = 500e6  # bytes of one tensor; beyond it the machine swaps rather than adds
DEGREE = 18  # edges a node; also atoms of a molecule, of QM9's size


def sorted_index(length: int, size: int) -> Tensor:
    """Random and sorted, with empty segments among them."""
    return torch.randint(size, (length,), generator=torch.Generator().manual_seed(length)).sort().values


def pointers(index: Tensor, size: int) -> Tensor:
    return torch.cat([index.new_zeros(1), torch.bincount(index, minlength=size).cumsum(0)])


class CsrSum(torch.autograd.Function):
    """`segment_csr` and `gather_csr` are each other's derivative. torch-scatter's own have only the first; these ("csr twice") have all."""

    @staticmethod
    def forward(ctx, values, pointer):
        ctx.save_for_backward(pointer)
        return torch_scatter.segment_sum_csr(values.contiguous(), pointer)

    @staticmethod
    def backward(ctx, slope):
        return CsrGather.apply(slope, *ctx.saved_tensors), None


class CsrGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, pointer):
        ctx.save_for_backward(pointer)
        return torch_scatter.gather_csr(values.contiguous(), pointer)

    @staticmethod
    def backward(ctx, slope):
        return CsrSum.apply(slope, *ctx.saved_tensors), None


def csr_softmax(values: Tensor, pointer: Tensor) -> Tensor:
    largest = torch_scatter.segment_max_csr(values.detach(), pointer)[0]
    weights = torch.exp(values - torch_scatter.gather_csr(largest, pointer))
    return weights / CsrGather.apply(CsrSum.apply(weights, pointer), pointer)


def ways(operation: str, index: Tensor, size: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """The first is molequi's."""
    pointer = pointers(index, size)
    t = torch_scatter
    return {
        "sum": {
            "molequi": lambda v: segment.segment_sum(v, index, size),
            "scatter": lambda v: t.scatter(v, index, 0, dim_size=size, reduce="sum"),
            "segment_csr": lambda v: t.segment_csr(v, pointer, reduce="sum"),
            "csr twice": lambda v: CsrSum.apply(v, pointer),
            "segment_coo": lambda v: t.segment_coo(v, index, dim_size=size, reduce="sum"),
        },
        "mean": {
            "molequi": lambda v: segment.segment_mean(v, index, size),
            "scatter": lambda v: t.scatter(v, index, 0, dim_size=size, reduce="mean"),
            "segment_csr": lambda v: t.segment_csr(v, pointer, reduce="mean"),
        },
        "max": {
            "molequi": lambda v: segment.segment_max(v, index, size),
            "scatter": lambda v: t.scatter_max(v, index, 0, dim_size=size)[0],
            "segment_csr": lambda v: t.segment_max_csr(v, pointer)[0],
            "segment_coo": lambda v: t.segment_max_coo(v, index, dim_size=size)[0],
        },
        "softmax": {
            "molequi": lambda v: segment.segment_softmax(v, index, size),
            "scatter": lambda v: t.scatter_softmax(v, index, 0, dim_size=size),
            "csr twice": lambda v: csr_softmax(v, pointer),
        },
        "gather": {  # nodes to their edges, as `values[index]`
            "indexing": lambda v: v[index],
            "index_select": lambda v: v.index_select(0, index),
            "gather_csr": lambda v: t.gather_csr(v, pointer),
            "csr twice": lambda v: CsrGather.apply(v, pointer),
            "gather_coo": lambda v: t.gather_coo(v, index),
        },
        "pointers": {
            "bincount": lambda v: pointers(index, size),
        },
    }[operation]


def run(way: Callable[[Tensor], Tensor], values: Tensor, weights: Tensor, order: str) -> Tensor:
    if order == "value":
        with torch.no_grad():
            return way(values)
    leaf = values.detach().requires_grad_()
    result = way(leaf)
    if order == "gradient":
        return torch.autograd.grad(result, leaf, weights)[0]
    (slope,) = torch.autograd.grad((result.square() * weights).sum(), leaf, create_graph=True)
    return torch.autograd.grad(slope.square().sum(), leaf)[0]


def fault(way: Callable[[Tensor], Tensor], reference: Tensor, *arguments) -> str | None:
    try:
        found = run(way, *arguments)
    except RuntimeError as error:
        if "derivative" in str(error) or "does not require grad" in str(error):
            return "none"
        raise
    finite = torch.isfinite(reference)  # torch-scatter says 0 and molequi -inf of the maximum of nothing
    tolerance = 1e-4 if reference.dtype == torch.float32 else 1e-10
    scale = reference[finite].abs().max() if finite.any() else 1.0
    return None if (found - reference)[finite].abs().max() <= tolerance * scale else "wrong"


def compare(
    operation: str, length: int, shape: tuple[int, ...], dtype: torch.dtype, order: str, seconds: float
) -> dict[str, str]:
    size = max(length // DEGREE, 1)
    index = sorted_index(length, size)
    generator = torch.Generator().manual_seed(0)
    rows, out = (size, length) if operation == "gather" else (length, size)
    values = torch.randn(rows, *shape, dtype=dtype, generator=generator)
    weights = torch.rand(length if operation == "softmax" else out, *shape, dtype=dtype, generator=generator)
    candidates = ways(operation, index, size)
    own, *others = candidates
    if operation == "max" and order != "value":
        # -inf of empty segments has no square: derivatives are taken without them
        keep = (torch.bincount(index, minlength=size) > 0).reshape(-1, *[1] * len(shape))
        candidates = {
            name: lambda v, way=way: torch.where(keep, way(v), 0) for name, way in candidates.items()
        }
    reference = run(candidates[own], values, weights, order)
    faults = {name: fault(candidates[name], reference, values, weights, order) for name in others}
    timed = {name: way for name, way in candidates.items() if not faults.get(name)} | {
        "control": candidates[own]
    }
    times: dict[str, list[float]] = {name: [] for name in timed}
    start = time.perf_counter()
    while time.perf_counter() - start < seconds * len(timed) or len(times[own]) < 7:
        for name in random.sample(list(timed), len(timed)):
            begin = time.perf_counter()
            run(timed[name], values, weights, order)
            times[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(each) for name, each in times.items()}
    control = medians.pop("control") / medians[own]
    row = {own: f"{1e3 * medians[own]:.3f} ms"}
    row |= {name: faults[name] or f"{medians[name] / medians[own]:.2f}" for name in others}
    return row | {"control": f"{control:.2f}" + ("" if 0.9 <= control <= 1.1 else " NOISY")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=0.3, help="of each way and row")
    parser.add_argument(
        "--operations", nargs="+", default=["sum", "mean", "max", "softmax", "gather", "pointers"]
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[500, 5_000, 50_000, 200_000])
    parser.add_argument("--quick", action="store_true", help="one thread, float32, two lengths")
    options = parser.parse_args()
    threads, lengths, dtypes = options.threads, options.lengths, [torch.float32, torch.float64]
    if options.quick:
        threads, lengths, dtypes = [1], [500, 50_000], [torch.float32]
    print(f"torch {torch.__version__}, torch-scatter {torch_scatter.__version__}, {DEGREE} rows a segment\n")
    for operation in options.operations:
        print(f"## {operation}: the first in ms, others over it\n")
        for count in threads:
            torch.set_num_threads(count)
            for order in ("value", "gradient", "training") if operation != "pointers" else ("value",):
                for shape in (
                    [(), (64,), (3, 64), (9, 64)] if operation not in ("softmax", "pointers") else [(), (8,)]
                ):
                    for dtype in dtypes:
                        for length in lengths:
                            if length * torch.Size(shape).numel() * dtype.itemsize > LARGEST:
                                continue
                            row = compare(operation, length, shape, dtype, order, options.seconds)
                            cells = ", ".join(f"{name} {value}" for name, value in row.items())
                            name = f"E={length} {'x'.join(map(str, shape)) or '1'}"
                            print(
                                f"{count} threads  {order:8}  {str(dtype)[6:]}  {name:18}  {cells}",
                                flush=True,
                            )
        print()


if __name__ == "__main__":
    main()
