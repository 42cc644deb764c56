"""What a rule for the backward saves: operations, the bound that Amdahl's law sets with them, what this machine gains.

All beside the backward of the card's peer, the plain layer of the same outputs. Where a share f of the training time is
spent in such backwards and these take the ratio r of their time, the training gets 1/((1 − f) + f·r) times as fast.
"""

from __future__ import annotations

from typing import Any

from profiles.shares import SHARE, bound, check_share
from profiles.speed.cases import case, peer_name, peer_of, reference
from profiles.speed.clocks import CPU, WALL, clock_for
from profiles.speed.jobs import jobs
from profiles.speed.timing import Comparison, Plan, Timing
from profiles.subject import Subject
from profiles.threads import using_threads

PLAN = Plan(seconds=0.8, rounds=100, block=0.001)
NOTHING = (
    "Nothing is saved: what the rule leaves out lies where dense kernels do not skip it, so that all of the dense "
    "backward is executed, and finding it comes on top."
)
SMALL = (
    "Fewer operations, but not less time at this size: selecting, gathering and many small kernels weigh more than "
    "what they save; larger inputs gain."
)
Record = dict[str, Any]


def saves(subject: Subject) -> bool:
    """Tell whether ``subject`` is a rule for the backward with a peer of the same outputs to be compared with."""
    peer = peer_of(subject)
    return getattr(subject.target, "kind", "") == "backward" and peer is not None and peer.same


def savings(subject: Subject, definition: int, executed: int, share: float = SHARE) -> Record:
    """Return what ``subject`` saves, whose backward executes so many operations, of ``definition`` by its card.

    The dense backward is run and counted; both are timed on one thread, in turns, for less than a second. Raises
    `Refusal` for a ``share`` outside (0, 1].
    """
    check_share(share)
    dense = _dense(subject)
    measured = _measured(subject)
    ratios = {"definition": definition / dense, "executed": executed / dense, "measured": measured["ratio"]}
    return {
        "peer": peer_name(subject),
        "share": share,
        "flops": {"dense": dense, "definition": definition, "executed": executed},
        "ratio": {name: round(ratio, 6) for name, ratio in ratios.items()},
        "bound": {name: round(bound(share, ratio), 4) for name, ratio in ratios.items()},
        "measured": measured,
        "says": _words(definition, executed, dense, measured["low"]),
    }


def _words(definition: int, executed: int, dense: int, least: float) -> str:
    """Return what must be said where operations, or time, are not saved."""
    if executed >= dense:
        return NOTHING if definition < executed else ""
    return SMALL if least > 1 else ""


def _dense(subject: Subject) -> int:
    """Count the operations that the backward of the peer executes."""
    from profiles.counting.backward import counted

    peer = reference(subject, peer_name(subject))
    return counted(peer.run(peer.build(), subject.input())).flops


def _measured(subject: Subject) -> Record:
    """Time both backwards in turns: the median of the paired ratios, its interval, and the noise of the reference."""
    one, other = subject.name, peer_name(subject)
    comparison, device = Comparison(one, other), subject.setup.device
    clock = clock_for(device, CPU if device == "cpu" else WALL)  # of its own time, whoever else is busy
    with using_threads(1):
        made = [job for job in jobs(case(subject, "backward")) if job.name in (one, other)]
        timing = Timing(made, [comparison], PLAN, clock)
        timing.run()
    found = timing.ratio(comparison)
    return {
        "ratio": round(found.interval.median, 4),
        "low": round(found.interval.low, 4),
        "high": round(found.interval.high, 4),
        "noise": round(found.noise, 4),
        "rounds": len(timing.rounds),
        "clock": clock.name,
    }
