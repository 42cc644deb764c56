"""The most bytes that are allocated at once while something runs, beside what it leaves behind.

On the CPU every allocation of the thread is seen, those inside of torch's kernels too (packed filters, columns), but
not those of libraries that bring an allocator of their own, as MKL does for its packing. On CUDA it is what torch's
caching allocator gave out, in blocks of 512 bytes. Compiled kernels allocate through torch as well.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch._C import _profiler


def workspace(work: Callable[[], Any], device: str = "cpu") -> int:
    """Run ``work`` once and return its peak of allocated bytes less those that are still alive when it returns.

    What is alive then is its result, and what it keeps. Memory from before does not count, freed or not.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        left = work()
        torch.cuda.synchronize(device)
        after, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        del left
        return max(0, peak - max(before, after))
    deltas = _allocations(work)
    return max(accumulate(deltas, initial=0)) - sum(deltas)


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
