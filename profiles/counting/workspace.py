"""The most bytes that are allocated at once while something runs, beside what it leaves behind.

On the CPU every allocation of the thread is seen, those inside of torch's kernels too (packed filters, columns), but
not those of libraries that bring an allocator of their own, as MKL does for its packing. On CUDA it is what torch's
caching allocator gave out, in blocks of 512 bytes. Compiled kernels allocate through torch as well.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch._C import _profiler


class Allocated(NamedTuple):
    """Bytes beyond those from before: the ``peak`` of what was alive at once, and what is ``left`` when all is done."""

    peak: int
    left: int

    @property
    def workspace(self) -> int:
        """The peak less what is left, which is the result, and what is kept for the backward."""
        return max(0, self.peak - max(0, self.left))


def workspace(work: Callable[[], Any], device: str = "cpu") -> int:
    """Run ``work`` once and return its peak of allocated bytes less those that are still alive when it returns."""
    return allocated(work, device).workspace


def allocated(work: Callable[[], Any], device: str = "cpu") -> Allocated:
    """Run ``work`` once and return the bytes that it allocated. Memory from before does not count, freed or not."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        left = work()
        torch.cuda.synchronize(device)
        after, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        del left
        return Allocated(peak - before, after - before)
    deltas = _allocations(work)
    return Allocated(max(accumulate(deltas, initial=0)), sum(deltas))


def _allocations(work: Callable[[], Any]) -> list[int]:
    """Return the bytes allocated (freed: negative) one after the other by ``work``.

    torch's older profiler sees them: the newer one writes to standard error each time.
    """
    memory, cpu, nothing = True, _profiler.ProfilerState.CPU, _profiler._ExperimentalConfig()
    profiler: Any = torch.autograd  # its functions are not in torch's stubs
    profiler._enable_profiler_legacy(_profiler.ProfilerConfig(cpu, False, memory, False, False, False, nothing))
    try:
        left = work()
    finally:
        events = profiler._disable_profiler_legacy()
    sizes = (event.cpu_memory_usage() for thread in events for event in thread if event.kind() == "memory_alloc")
    found = list(sizes)
    del left  # not before: what is returned is no workspace
    return found
