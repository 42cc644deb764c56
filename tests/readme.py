"""The console blocks of README.md: read, run, compared by the tests, and rewritten by ``python tests/readme.py``.

In those marked ``console timed`` the numbers are those of one machine at one time: all else is compared.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCK = re.compile(r"```console( timed)?\n(.*?)```", re.DOTALL)


def commands(block):
    """Split a block into its commands, each with the output printed below it."""
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [tuple(part.split("\n", 1)) for part in parts]


def output(command):
    """Run ``command`` in a shell with the `stones` beside this Python, not in a terminal; return all it prints."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=README.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.stdout


def rewrite(text):
    """Return ``text`` with the output of every command in it made anew."""

    def renewed(match):
        runs = "".join(f"$ {command}\n{output(command)}" for command, _ in commands(match[2]))
        return f"```console{match[1] or ''}\n{runs}```"

    return BLOCK.sub(renewed, text)


if __name__ == "__main__":
    README.write_text(rewrite(README.read_text(encoding="utf-8")), encoding="utf-8")
