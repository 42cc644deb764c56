"""Which offsets of the input a stack of dilated convolutions sees: all of its receptive field, or a grid with holes.

A layer with K taps and rate r sees the offsets 0, r, …, (K − 1)·r; a stack sees every sum of one offset per layer, so
the order of the layers does not matter. Standard library only: cards are read without torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from layers.option import OptionError

LIST = r"[1-9]\d{0,8}(,[1-9]\d{0,8})*"
MOST = 10_000_000  # offsets, of which one by one is asked whether it is seen


def rates_of(rates: str | Sequence[int]) -> tuple[int, ...]:
    """Return a list of rates as a tuple; raises OptionError for what is none.

    ``rates`` are integers ≥ 1, or text such as ``1,2,5``, of at most 9 digits each.
    """
    if isinstance(rates, str) and re.fullmatch(LIST, rates, re.ASCII):
        return tuple(map(int, rates.split(",")))
    whole = not isinstance(rates, str) and all(isinstance(r, int) and not isinstance(r, bool) and r >= 1 for r in rates)
    if not whole or not rates:
        raise OptionError(f"rates={rates!r} is not a list of integers ≥ 1, such as 1,2,5", "rates")
    return tuple(rates)  # type: ignore[arg-type]


def is_covered(rates: str | Sequence[int], kernel_size: int) -> bool:
    """Tell whether the stack sees its whole receptive field: r_(j) ≤ 1 + (K − 1) Σ_{i<j} r_(i) for the sorted rates.

    Sorted, because the smaller rates together see 1 + (K − 1) Σ neighbouring offsets, and a layer with a larger rate
    leaves a hole between two copies of them; exact for every K ≥ 2.
    """
    reach = 1
    for rate in sorted(rates_of(rates)):
        if rate > reach:
            return False
        reach += (kernel_size - 1) * rate
    return True


@dataclass(frozen=True)
class Coverage:
    """What a stack of dilated convolutions sees along one axis.

    ``distances`` are the paper's M_1 … M_n, ``common`` the greatest common divisor of the rates, ``receptive_field``
    1 + (K − 1) Σ r, ``seen`` how many of these offsets are seen, ``gap`` the largest step between two seen neighbours
    (1 where nothing is left out), ``covered`` whether all are.
    """

    rates: tuple[int, ...]
    kernel_size: int
    distances: tuple[int, ...]
    common: int
    receptive_field: int
    seen: int
    gap: int
    covered: bool

    @property
    def m2(self) -> int:
        """The paper's M_2, the largest distance between taps of the second layer on; M_1 = r_1 of a single layer."""
        return self.distances[1] if len(self.distances) > 1 else self.distances[0]

    @property
    def satisfies_the_paper(self) -> bool:
        """Whether M_2 ≤ K and the rates have no common factor, the paper's advice.

        It takes r_1 = 1 for granted: without that 2,3,5 passes, which has holes. It refuses 1,3,1, which has none.
        """
        return self.m2 <= self.kernel_size and (self.common == 1 or len(self.rates) == 1)


def coverage(rates: str | Sequence[int], kernel_size: int = 3) -> Coverage:
    """Return what a stack with these ``rates``, first layer first, and ``kernel_size`` ≥ 2 taps per axis sees.

    Raises OptionError for rates that are no list of integers ≥ 1, a kernel of less than 2, and a receptive field of
    more than 10 million offsets.
    """
    if not isinstance(kernel_size, int) or isinstance(kernel_size, bool) or kernel_size < 2:
        raise OptionError(f"kernel_size={kernel_size!r} is not an integer ≥ 2", "kernel_size")
    checked = rates_of(rates)
    field = 1 + (kernel_size - 1) * sum(checked)
    if field > MOST:
        raise OptionError(f"rates={rates!r} see a receptive field of {field:.2g} offsets; {MOST} are counted", "rates")
    seen = 1  # bit q: is the offset q seen?
    for rate in checked:
        seen = _union(seen, rate, kernel_size)
    holes = re.findall("0+", f"{seen:b}")
    gap = 1 + max(map(len, holes), default=0)
    return Coverage(
        checked,
        kernel_size,
        _distances(checked),
        math.gcd(*checked),
        field,
        seen.bit_count(),
        gap,
        is_covered(checked, kernel_size),
    )


def _union(seen: int, rate: int, kernel_size: int) -> int:
    """The offsets ``seen``, moved by every tap of one layer; the taps are doubled until there are K."""
    found, taps = seen, 1
    while taps < kernel_size:
        more = min(taps, kernel_size - taps)
        found |= found << more * rate
        taps += more
    return found


def _distances(rates: Sequence[int]) -> tuple[int, ...]:
    """M_n = r_n, M_i = max(M_{i+1} − 2 r_i, M_{i+1} − 2 (M_{i+1} − r_i), r_i)."""
    found = [rates[-1]]
    for rate in reversed(rates[:-1]):
        found.append(max(found[-1] - 2 * rate, 2 * rate - found[-1], rate))
    return tuple(reversed(found))


def entries(rates: str) -> int:
    """Return how many rates a text such as ``1,2,5`` has."""
    return len(rates_of(rates))
