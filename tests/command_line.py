"""Running the command line in a test: in this process for its logic, as a process of its own for everything else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from typer.testing import CliRunner

from stones_cli.app import app

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "stones_cli"]


def invoke(*arguments):
    """Run in this process; a bug shows as its own exception."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output, result.output
    return result


def environment(**variables):
    """The environment of a process that finds this checkout, with ``variables`` set, or removed where None."""
    changed = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return {name: value for name, value in changed.items() if value is not None}


def process(*arguments, cwd=ROOT, stdout=subprocess.PIPE, **variables):
    """Run a process to its end."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment(**variables), stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60
    )


def interruptible():
    """Before a process starts: let Ctrl-C end it, also where these tests run in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def signalled(number, *arguments, seconds=4.0):
    """Start a process, send it the signal ``number`` after ``seconds``; return its status and what it wrote to both."""
    running = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    )
    time.sleep(seconds)
    running.send_signal(number)
    stdout, stderr = running.communicate(timeout=10)
    return running.returncode, stdout, stderr


def at_once(*lines, **variables):
    """Start one process per command line, all together, and return what became of each."""
    started = [
        subprocess.Popen(
            [*COMMAND, *line],
            cwd=ROOT,
            env=environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in lines
    ]
    return [(*running.communicate(timeout=60), running.returncode) for running in started]
