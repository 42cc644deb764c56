"""What whole commands cost beside ``python -c "import torch"``: processor time, paired round by round, and the bars.

``make startup``; exits with 1 when the median ratio of a command exceeds its bar.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

ROUNDS = 11
LIGHT, WHOLE = 0.15, 1.00
TORCH = [sys.executable, "-c", "import torch"]
BARS = {
    "--help": LIGHT,
    "list": LIGHT,
    "show gn": LIGHT,
    "inspect gn --help": LIGHT,
    "inspect gn --groups 48": LIGHT,
    "inspect gn": WHOLE,
    "inspect gn --json": WHOLE,
}


def cpu_seconds(command):
    """Run one process to its end and return its processor time."""
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(running.pid, 0)
    running.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def main():
    """Measure, print one line per command, and return the exit status."""
    commands = {line: [sys.executable, "-m", "stones_cli", *line.split()] for line in BARS}
    for command in (TORCH, *commands.values()):  # bytecode and file cache
        cpu_seconds(command)
    ratios = {line: [] for line in BARS}
    for done in range(ROUNDS):
        torch = cpu_seconds(TORCH)
        for line, command in commands.items():
            ratios[line].append(cpu_seconds(command) / torch)
        print(f"\rround {done + 1} of {ROUNDS}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(f"{'command':24}  ratio  range          bar")
    failed = False
    for line, found in ratios.items():
        middle = statistics.median(found)
        failed |= middle > BARS[line]
        verdict = "ok" if middle <= BARS[line] else "FAILED"
        print(f"{line:24}  {middle:.3f}  {min(found):.3f}–{max(found):.3f}  ≤ {BARS[line]:.2f}  {verdict}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
