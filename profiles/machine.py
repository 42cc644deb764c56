"""What the system tells of itself under /proc and /sys, read without trust: whatever is not told is None.

Every path is read below a root, so that a test can plant a machine. Other systems, and containers without these files,
tell nothing, which is no error.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

MOST_BYTES = 2**16
_CPU = "sys/devices/system/cpu"
_CHOSEN = re.compile(r"\[([^\]]+)\]")


@dataclass(frozen=True)
class Ticks:
    """Processor time of all processors since the start, in ticks: what was stolen by the host, and all of it."""

    stolen: int
    total: int


@dataclass(frozen=True)
class Machine:
    """A machine, as the files below ``root`` describe it."""

    root: Path = Path("/")

    def text(self, path: str) -> str | None:
        """Return the stripped content of a file below the root, None where it cannot be read or is empty."""
        try:
            with (self.root / path).open("rb") as file:
                return file.read(MOST_BYTES).decode("utf-8", "replace").strip() or None
        except (OSError, ValueError):
            return None

    def number(self, path: str) -> int | None:
        """Return the integer that a file holds, None where it holds none."""
        return _whole(self.text(path))

    @property
    def governor(self) -> str | None:
        """The policy by which the first processor's frequency is chosen."""
        return self.text(f"{_CPU}/cpu0/cpufreq/scaling_governor")

    @property
    def megahertz(self) -> tuple[int, int] | None:
        """Present and highest frequency of the first processor, MHz."""
        found = [self.number(f"{_CPU}/cpu0/cpufreq/{name}") for name in ("scaling_cur_freq", "cpuinfo_max_freq")]
        now, most = found
        return None if now is None or most is None else (now // 1000, most // 1000)

    @property
    def turbo(self) -> bool | None:
        """Whether the frequency may rise above the nominal one."""
        if (off := self.number(f"{_CPU}/intel_pstate/no_turbo")) is not None:
            return not off
        boost = self.number(f"{_CPU}/cpufreq/boost")
        return None if boost is None else bool(boost)

    @property
    def siblings(self) -> bool | None:
        """Whether two processors may share a core (SMT)."""
        active = self.number(f"{_CPU}/smt/active")
        return None if active is None else bool(active)

    @property
    def clock_source(self) -> str | None:
        """What the kernel reads the time from."""
        return self.text("sys/devices/system/clocksource/clocksource0/current_clocksource")

    @property
    def huge_pages(self) -> str | None:
        """When the kernel gives huge pages unasked: always, madvise or never."""
        chosen = _CHOSEN.search(self.text("sys/kernel/mm/transparent_hugepage/enabled") or "")
        return chosen[1] if chosen else None

    @property
    def running(self) -> int | None:
        """How many threads of the whole machine run or wait for a processor now, this one among them."""
        matched = re.search(r" ([0-9]{1,9})/[0-9]+ ", self.text("proc/loadavg") or "", re.ASCII)
        return int(matched[1]) if matched else None

    @property
    def ticks(self) -> Ticks | None:
        """Processor time so far."""
        first = (self.text("proc/stat") or "").partition("\n")[0].split()
        counts = [_whole(word) for word in first[1:9]]
        known = [count for count in counts if count is not None]
        return Ticks(known[7], sum(known)) if first[:1] == ["cpu"] and len(known) == 8 else None

    @property
    def waited(self) -> float | None:
        """Seconds since the start in which some thread of the machine waited for a processor (PSI)."""
        matched = re.search(r"some .*total=([0-9]{1,18})", self.text("proc/pressure/cpu") or "", re.ASCII)
        return int(matched[1]) / 1e6 if matched else None

    @property
    def available(self) -> int | None:
        """Bytes of memory that are free for the asking; those of the control group where it is the narrower limit."""
        matched = re.search(r"MemAvailable:\s+([0-9]{1,15}) kB", self.text("proc/meminfo") or "", re.ASCII)
        found = [int(matched[1]) * 1024] if matched else []
        limit, used = self._group("memory.max"), self._group("memory.current")
        if limit is not None and used is not None:
            found.append(max(0, limit - used))
        return min(found, default=None)

    def _group(self, name: str) -> int | None:
        return self.number(f"{self._folder}/{name}")

    @property
    def _folder(self) -> str:
        """The folder of this process's control group (version 2), that of all where it has none of its own."""
        for line in (self.text("proc/self/cgroup") or "").splitlines():
            if line.startswith("0::/") and ".." not in line:
                return f"sys/fs/cgroup{line.removeprefix('0::').rstrip('/')}"
        return "sys/fs/cgroup"

    @property
    def quota(self) -> float | None:
        """How many processors' time the control group may take, None where it is not limited or does not say."""
        words = (self.text(f"{self._folder}/cpu.max") or "").split()
        limit, period = (_whole(words[0]), _whole(words[1])) if len(words) == 2 else (None, None)
        if limit is None or not period:  # version 1
            limit, period = (self.number(f"sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
        return limit / period if limit is not None and period and limit > 0 else None

    @property
    def throttled(self) -> int | None:
        """How often the control group had used up its time."""
        for path in (f"{self._folder}/cpu.stat", "sys/fs/cgroup/cpu/cpu.stat"):
            if matched := re.search(r"nr_throttled ([0-9]{1,18})", self.text(path) or "", re.ASCII):
                return int(matched[1])
        return None


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII) else None


def page_faults() -> int | None:
    """Return how often this process touched a page that it had to be given first; None where that is not counted."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def processors() -> int:
    """Return how many processors the machine has, usable or not."""
    return os.cpu_count() or 1
