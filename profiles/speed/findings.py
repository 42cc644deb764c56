"""What `doctor` says of each thing it looks at: what was found, whether one can measure with it, what to do.

Judgements only: pure functions of what was read or measured, each with its bounds in sight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from layers.catalog import Broken, Stone
from profiles.machine import Machine, Ticks

MIB = 2**20


class Grade(StrEnum):
    """How fit for measuring; ``unknown`` where the system does not tell."""

    OK = "ok"
    CAUTION = "caution"
    BAD = "bad"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """One row: a name, what was looked at, what was found, the verdict, and in one sentence what to do about it."""

    name: str
    what: str
    found: str
    verdict: Grade
    advice: str = ""

    def record(self) -> dict[str, Any]:
        """Return the JSON-able form."""
        return asdict(self) | {"verdict": str(self.verdict)}


def untold(name: str, what: str, advice: str) -> Finding:
    """Return the row of something that this system does not tell."""
    return Finding(name, what, "not told by this system", Grade.UNKNOWN, advice)


def graded(value: float, caution: float, bad: float) -> Grade:
    """Return ok up to ``caution``, bad above ``bad``."""
    return Grade.BAD if value > bad else Grade.CAUTION if value > caution else Grade.OK


def percent(share: float) -> str:
    """Return a share with one decimal, a large one without."""
    return f"{share:.1%}" if share < 1 else f"{share:.0%}"


def about_cores(usable: int, all_: int, machine: Machine) -> Finding:
    """Look at the processors that this process may use: its affinity, the quota of its control group, siblings."""
    quota, siblings = machine.quota, machine.siblings
    words = [f"{usable} of {all_} usable"]
    words += [f"a quota of {quota:.3g}"] if quota is not None else []
    words += ["two share a core"] if siblings else []
    verdict, advice = Grade.OK, ""
    if quota is not None and quota < usable:
        verdict = Grade.BAD if quota < 1 else Grade.CAUTION
        advice = "a quota stops the process in the middle of a block: measure without one, or pin to fewer processors"
    elif usable < 2:
        verdict, advice = Grade.CAUTION, "everything else on the machine runs on the same one: give it a second"
    elif siblings:
        advice = "for several threads, give each a core of its own (taskset)"
    return Finding("cores", "processors", ", ".join(words), verdict, advice)


def about_threads(threads: int, usable: int) -> Finding:
    """Look at the number of threads that torch takes by itself; `bench` takes one unless told otherwise."""
    found = f"torch takes {threads}, {usable} processor(s) are usable"
    if threads > usable:
        advice = f"more threads than processors wait for each other: set OMP_NUM_THREADS={usable}"
        return Finding("threads", "threads of torch", found, Grade.BAD, advice)
    return Finding("threads", "threads of torch", found, Grade.OK, "bench takes 1 unless --threads says otherwise")


def about_frequency(machine: Machine) -> Finding:
    """Look at who chooses the frequency of the processor."""
    governor, hertz, turbo = machine.governor, machine.megahertz, machine.turbo
    if governor is None and turbo is None:
        return untold("frequency", "governor and frequency", "usual in virtual machines: trust ratios, not times")
    words = [f"governor {governor}"] if governor else []
    words += [f"{hertz[0]:,} of {hertz[1]:,} MHz"] if hertz else []
    words += [f"turbo {'on' if turbo else 'off'}"] if turbo is not None else []
    verdict, advice = Grade.OK, "turbo depends on heat: for absolute times turn it off" if turbo else ""
    if governor not in (None, "performance"):
        verdict, advice = Grade.CAUTION, "set the governor performance (cpupower frequency-set -g performance)"
    return Finding("frequency", "governor and frequency", ", ".join(words), verdict, advice)


def about_load(load: float | None, running: int | None, usable: int) -> Finding:
    """Look at what else ran before: ``load`` processes on the average of a minute, ``running`` at that moment."""
    if load is None:
        return untold("load", "load average", "look at what else runs")
    now = "" if running is None else f", {max(0, running - 1)} others at the start"
    verdict = graded(load + 1, usable + 0.5, 2 * usable + 0.5)  # this process comes on top
    advice = "" if verdict is Grade.OK else "stop or wait for what else runs, or take the cpu clock in a profile"
    return Finding("load", "load average", f"{load:g} on {usable} processor(s){now}", verdict, advice)


def about_steal(before: Ticks | None, after: Ticks | None) -> Finding:
    """Look at the share of processor time that the host gave to others while the doctor ran."""
    if before is None or after is None or after.total <= before.total:
        return untold("steal", "time stolen by the host", "ask the host, or trust ratios only")
    share = (after.stolen - before.stolen) / (after.total - before.total)
    verdict = graded(share, 0.01, 0.05)
    advice = "" if verdict is Grade.OK else "other guests of the host run on these processors: take dedicated ones"
    return Finding("steal", "time stolen by the host", f"{share:.1%} of the processors' time", verdict, advice)


def about_waiting(before: float | None, after: float | None, seconds: float) -> Finding:
    """Look at the share of the ``seconds`` in which some thread of the machine waited for a processor."""
    if before is None or after is None or seconds <= 0:
        return untold("waiting", "threads that waited", "see the load average")
    share = min(1.0, max(0.0, after - before) / seconds)
    verdict = graded(share, 0.05, 0.5)
    advice = "" if verdict is Grade.OK else "more wanted to run than there are processors: stop or wait for the others"
    return Finding("waiting", "threads that waited", f"some thread waited in {share:.0%} of the run", verdict, advice)


def about_plugins(stones: Iterable[Stone], broken: Sequence[Broken]) -> Finding | None:
    """Look at the plug-ins among ``stones`` and at those that do not stand; None without any. They spoil no times."""
    count = Counter(str(stone.origin) for stone in stones if stone.origin)
    words = [f"{number} technique{'s' if number > 1 else ''} of {origin}" for origin, number in sorted(count.items())]
    if broken:
        words.append(f"{len(broken)} broken or clashing")
    advice = "; ".join(map(str, broken))
    return Finding("plug-ins", "techniques of others", "; ".join(words), Grade.OK, advice) if words else None


def about_throttling(before: int | None, after: int | None) -> Finding | None:
    """Look at how often the control group's time was used up; None without such a group."""
    if before is None or after is None:
        return None
    times = after - before
    verdict = graded(times, 0, 3)
    advice = "" if verdict is Grade.OK else "the quota stopped the process: raise it"
    return Finding("throttling", "stopped by the quota", f"stopped {times} times in the run", verdict, advice)


def about_timer(step: float, overhead: float, source: str | None) -> Finding:
    """Look at the clock: its smallest step seen and what reading it costs, in seconds; blocks last 2 ms."""
    verdict = graded(max(step, overhead), 2e-6, 2e-5)
    found = f"steps of {step * 1e9:,.0f} ns, {overhead * 1e9:,.0f} ns to read" + (f", {source}" if source else "")
    advice = "" if verdict is Grade.OK else "the kernel's clock is slow: let it take tsc (clocksource=tsc)"
    return Finding("timer", "clock", found, verdict, advice)


def about_denormals(flushed: bool, slower: float) -> Finding:
    """Look at numbers below the normal range: whether they become 0, and how much slower they are."""
    found = "become 0" if flushed else f"kept, at {slower:.2g} × the time of others"
    advice = "results near 0 differ from those of other machines: torch.set_flush_denormal(False)"
    if not flushed:
        advice = "inputs of bench have none; a model whose numbers vanish would slow down" if slower > 2 else ""
    return Finding("denormals", "denormal numbers", found, Grade.CAUTION if flushed else Grade.OK, advice)


def about_allocator(kept: bool, slower: float, faults: int | None) -> Finding:
    """Look at what fresh memory costs: ``slower`` is the time of an operation on it over that on kept memory."""
    pages = "" if faults is None else f", {faults:,} page faults a call"
    found = f"fresh memory takes {slower:.2f} × the time of kept{pages}"
    if kept:
        return Finding("allocator", "freed memory", found, Grade.OK, "bench keeps it; training loops may pay for it")
    advice = "the C library cannot be asked to keep it: times include page faults (preload jemalloc)"
    return Finding("allocator", "freed memory", found, Grade.CAUTION, advice)


def about_pages(huge: str | None) -> Finding:
    """Look at huge pages, which make large tensors cheaper to walk through."""
    if huge is None:
        return untold("huge-pages", "huge pages", "nothing to do")
    advice = {"madvise": "THP_MEM_ALLOC_ENABLE=1 lets torch ask for them", "never": "large tensors miss the TLB more"}
    return Finding("huge-pages", "huge pages", huge, Grade.OK, advice.get(huge, ""))


def about_memory(available: int | None) -> Finding:
    """Look at the memory that is left."""
    if available is None:
        return untold("memory", "memory available", "keep inputs small")
    verdict = graded(-available, -1024 * MIB, -256 * MIB)
    advice = "a bench of the usual size needs about 0.3 GiB: free some, or give smaller sizes"
    found = f"{available / 2**30:,.1f} GiB"
    return Finding("memory", "memory available", found, verdict, "" if verdict is Grade.OK else advice)


def about_torch(version: str, libraries: Sequence[str], capability: str) -> Finding:
    """Look at how torch was built: the libraries of its kernels, the vector instructions they use."""
    words = [version, f"vectors {capability}", *libraries]
    plain = capability in ("DEFAULT", "NO AVX") or not libraries
    advice = "kernels are built for any processor: take the wheel of pytorch.org, unset ATEN_CPU_CAPABILITY"
    verdict = Grade.CAUTION if plain else Grade.OK
    return Finding("torch", "build of torch", ", ".join(words), verdict, advice if plain else "")


def about_cuda(built: str | None, devices: Sequence[str]) -> Finding:
    """Look for CUDA: what torch is built for and which devices it sees."""
    if devices:
        found = f"{built or 'another than CUDA'}: {', '.join(devices)}"
        return Finding("cuda", "CUDA", found, Grade.OK, "--device cuda measures there")
    if built is None:
        return Finding("cuda", "CUDA", "torch is built without it", Grade.OK)
    return Finding("cuda", "CUDA", f"torch is built for {built} but sees no device", Grade.OK, "see nvidia-smi")


def about_noise(name: str, what: str, floors: tuple[float, float], alarms: int, trials: int) -> Finding:
    """Look at how far a job may be from itself, in the median and the worst of ``trials``, and at false alarms."""
    usual, most = floors
    verdict = Grade.BAD if 2 * alarms > trials else graded(most, 0.05, 0.20)
    if verdict is Grade.OK and alarms:
        verdict = Grade.CAUTION
    found = f"a job differs from itself by up to {percent(most)}, usually {percent(usual)}"
    found += f"; {alarms} false alarm(s) at 5 %" if alarms else ""
    advice = "" if verdict is Grade.OK else "give more --budget, a quieter machine, or bars no tighter than this"
    return Finding(name, what, found, verdict, advice)


def about_drift(spread: float) -> Finding:
    """Look at how far the time of one job moved between trials: what comparing two runs would be off by."""
    verdict = graded(spread, 0.10, 1.0)
    advice = "" if verdict is Grade.OK else "never compare times of two runs here: compare ratios within one"
    return Finding("drift", "times between trials", f"the time of one job moved by {percent(spread)}", verdict, advice)
