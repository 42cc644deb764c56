"""The exit statuses of every command."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """What the process tells its caller; `meaning` is the sentence that help prints."""

    DONE = 0
    FAILED = 1
    MISUSE = 2
    ENVIRONMENT = 3
    INCONCLUSIVE = 4
    INTERNAL = 70
    INTERRUPTED = 130
    TERMINATED = 143

    @property
    def meaning(self) -> str:
        """Return the status in words."""
        return _MEANINGS[self]


_MEANINGS = {
    Status.DONE: "done, and everything asked for holds",
    Status.FAILED: "a check, an expectation or a gate failed",
    Status.MISUSE: "wrong use or input",
    Status.ENVIRONMENT: "the machine lacks what was asked for: device, memory, module, disk; or, under "
    "--fail-uncounted, stones a formula",
    Status.INCONCLUSIVE: "a timing is inconclusive, under --fail-inconclusive",
    Status.INTERNAL: "a bug in stones",
    Status.INTERRUPTED: "interrupted (Ctrl-C)",
    Status.TERMINATED: "terminated (SIGTERM)",
}
