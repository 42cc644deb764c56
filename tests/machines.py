"""Ceilings of a machine that is made up, and a clock that goes by plan."""

from __future__ import annotations

from profiles.speed.ceilings import Ceilings, Rung
from profiles.speed.clocks import HostClock

PLACE = {
    "cpu": "a", "gpu": None, "cores": 2, "torch": "2", "python": "3", "capability": "x", "device": "cpu", "threads": 1,
    "clock": "wall", "allocator": "kept",
}  # fmt: skip
# Copy 4, 8, 2 and read 3, 10, 5 bytes a second, at 10, 100, 1000 bytes; 100 float32 operations a second.
KNOWN = Ceilings(
    PLACE,
    (Rung(10, 4.0, 3.0), Rung(100, 8.0, 10.0), Rung(1000, 2.0, 5.0)),
    {"float32": 100.0, "bfloat16": 20.0, "float64": 50.0},
    3.0,
    "2020-01-01T00:00:00+00:00",
)


def planted(times):
    """A clock on which each block takes the next of ``times`` per call."""
    passed = [0.0]

    class Planted(HostClock):
        def once(self, job, calls):
            took = next(times) * calls
            passed[0] += took
            return took, False

    return Planted(now=lambda: passed[0])
