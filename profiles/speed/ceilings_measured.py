"""Measuring the ceilings of a machine: copies and reads of rising working sets, products of matrices, an empty call.

A ceiling is the best that the machine does, so each number is the least time of several short blocks, not their median:
whatever disturbs a block makes it longer. The clocks are those of `bench`, on a CUDA device events and cold caches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from profiles.environment import environment
from profiles.errors import is_out_of_memory
from profiles.machine import Machine
from profiles.speed.ceilings import FLOAT32, Ceilings, Rung
from profiles.speed.clocks import Clock, Job, clock_for
from profiles.threads import using_threads

if TYPE_CHECKING:
    from torch import Tensor

# Working sets from 32 KiB to 256 MiB; close together where the last cache ends, as a coarse ladder is far off there.
LADDER = tuple(int(2 ** (step / 2)) // 256 * 256 for step in (30, 34, 38, 42, *range(46, 55), 56))
SIDES = (128, 256, 512, 1024, 2048, 4096, 8192)  # of square matrices
SECONDS = 1.5  # for a number of threads
BLOCK = 1e-3
LEAST_BLOCKS, MOST_BLOCKS = 4, 50
_SHARE_OF_MEMORY = 8  # the largest rung has at most this fraction of what is available
_LADDER, _PRODUCTS = 0.6, 0.3  # of the seconds; the rest is for the call
_PATIENCE = 4  # times the seconds that a number may take
_MOST_SWITCHES = 20  # a second: on a quiet machine there are a few
_INSTANT = 1e-9
Tell = Callable[[float, str], None]


def where(device: str, threads: int, clock: str, allocator: str) -> dict[str, Any]:
    """Return what ceilings measured now would hold for; see `profiles.speed.ceilings.WHERE`."""
    import torch

    found = environment(device, allocator)
    return {
        **{name: found[name] for name in ("cpu", "gpu", "cores", "torch", "python")},
        "capability": str(torch.backends.cpu.get_cpu_capability()),
        "device": device,
        "threads": threads,
        "clock": clock,
        "allocator": allocator,
    }


def measure(
    place: dict[str, Any],
    dtypes: Iterable[str] = (FLOAT32,),
    *,
    known: Ceilings | None = None,
    seconds: float = SECONDS,
    clock: Clock | None = None,
    tell: Tell | None = None,
) -> Ceilings:
    """Measure the ceilings of ``place`` (see `where`) with products in ``dtypes``, in about ``seconds``.

    Of what is ``known`` only the products that it lacks are measured. ``tell`` gets the fraction done and what is in
    hand. A few large blocks are run however short the time is. Everything is float32 but the products: a byte is a
    byte. Exceptions pass through, KeyboardInterrupt too.
    """
    import torch

    device, threads = place["device"], place["threads"]
    tell = tell or (lambda fraction, what: None)
    clock = clock or clock_for(device, place["clock"], threads)
    switches, start = _switches(), clock.now()
    with using_threads(threads), torch.no_grad(), as_convolutions(device):
        if known is None:
            ladder = _ladder(device, clock, seconds * _LADDER, tell)
            tell(_LADDER, "the smallest call")
            call = _call(device, clock, seconds * (1 - _LADDER - _PRODUCTS))
            known = Ceilings(place, ladder, {}, call, datetime.now(UTC).isoformat(timespec="seconds"))
        products, missing = dict(known.products), [name for name in dtypes if name not in known.products]
        for number, dtype in enumerate(missing):
            tell(1 - _PRODUCTS * (1 - number / len(missing)), f"products in {dtype}")
            products[dtype] = _products(dtype, device, clock, seconds * _PRODUCTS / len(missing))
    tell(1.0, "ceilings")
    disturbed = _switches() - switches > _MOST_SWITCHES * (1 + clock.now() - start)
    return replace(known, products=products, disturbed=known.disturbed or disturbed)


@contextmanager
def as_convolutions(device: str) -> Iterator[None]:
    """Let products in float32 round inside of the block as convolutions on a CUDA device may (TF32), which is faster.

    Without that a convolution would be faster than the ceiling. Elsewhere both do what they are told.
    """
    import torch

    before = torch.get_float32_matmul_precision()
    rounds = device.startswith("cuda") and torch.backends.cudnn.allow_tf32 and before == "highest"
    if rounds:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        if rounds:
            torch.set_float32_matmul_precision(before)


def _switches() -> int:
    """Return how often the system took the processor away from any thread of this process; 0 where it does not say."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def least(clock: Clock, run: Callable[[], object], seconds: float, blocks: int = LEAST_BLOCKS) -> float:
    """Return the seconds per call of the best block: of so many, or as many as ``seconds`` admit if these are more.

    A block takes about a millisecond, or one call; none is run again, as the best was not disturbed. Where others keep
    the machine busy, fewer will do after a while.
    """
    job, start = Job("ceiling", run), clock.now()
    clock.once(job, 1)  # the first finds cold caches, and pages that it has to be given
    best, calls, tried, whole = math.inf, 1, 0, 0
    while whole < blocks or clock.now() - start < seconds:
        best, tried = min(best, max(clock.once(job, calls)[0] / calls, _INSTANT)), tried + 1
        whole += calls * best >= BLOCK / 2  # else the calls were too few
        calls = math.ceil(BLOCK / best)
        if tried >= MOST_BLOCKS or (whole and clock.now() - start > _PATIENCE * seconds):
            break
    return best


def _ladder(device: str, clock: Clock, seconds: float, tell: Tell) -> tuple[Rung, ...]:
    """Measure every rung that the memory admits, the largest first: the others then find its memory."""
    available = _available(device)
    sizes = [size for size in LADDER if available is None or size <= available // _SHARE_OF_MEMORY] or [LADDER[0]]
    rungs: list[Rung] = []
    for number, size in enumerate(reversed(sizes)):
        tell(_LADDER * number / len(sizes), f"copy and read of {size / 2**20:.3g} MiB")
        try:
            rungs.append(_rung(size, device, clock, seconds / len(sizes)))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or size == sizes[0]:
                raise  # a limit that the system does not tell stops the large ones only
    return tuple(reversed(rungs))


def _rung(size: int, device: str, clock: Clock, seconds: float) -> Rung:
    """Measure a working set of ``size`` bytes.

    Reading is whatever reduction of torch is fastest there: the sum and the maximum in caches, the norm, which reads
    far ahead, in memory.
    """
    import torch

    source = torch.ones(size // 8, device=device)
    target = torch.ones_like(source)
    copy = least(clock, partial(target.copy_, source), seconds / 4)
    del source, target  # their memory is given to the next
    x = torch.ones(size // 4, device=device)
    reductions: Sequence[Callable[[], object]] = (x.sum, x.amax, partial(torch.linalg.vector_norm, x))
    tried = [least(clock, reduction, seconds / 16, 1) for reduction in reductions]
    read = least(clock, reductions[tried.index(min(tried))], seconds / 4)
    return Rung(size, size / copy, size / min(read, *tried))


def _products(dtype: str, device: str, clock: Clock, seconds: float) -> float:
    """Return the operations per second of the fastest product of square matrices, a multiply-add as 2.

    Larger ones are tried while the time admits it: with numbers that the processor only imitates that is over soon.
    """
    import torch

    best, start = 0.0, clock.now()
    for side in SIDES:
        a = torch.ones(side, side, device=device, dtype=getattr(torch, dtype))
        out = torch.empty_like(a)
        took = least(clock, partial(torch.mm, a, a, out=out), seconds / 8)
        best = max(best, 2 * side**3 / took)
        if clock.now() - start + 8 * took * (LEAST_BLOCKS + 1) > seconds:
            break
    return best


def _call(device: str, clock: Clock, seconds: float) -> float:
    """Return the seconds of one operation of torch on one element, in place, through a module."""
    import torch

    class Smallest(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.neg_()

    module, x = Smallest(), torch.ones(1, device=device)
    return least(clock, partial(module, x), seconds)


def _available(device: str) -> int | None:
    """Return the bytes of memory that ``device`` has left, None where it does not say."""
    if not device.startswith("cuda"):
        return Machine().available
    import torch

    return int(torch.cuda.mem_get_info(device)[0])
