"""Starting a command as two ranks, by the variables that torchrun sets."""

from __future__ import annotations

import socket
import subprocess

from command_line import COMMAND, ROOT, environment, interruptible

VARIABLES = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
NOWHERE = {**dict.fromkeys((*VARIABLES, "LOCAL_WORLD_SIZE")), "OMP_NUM_THREADS": "1"}


def two(*line, cwd=ROOT, command=COMMAND):
    """Start ``line`` as two ranks, as torchrun does, and return both processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [*command, *line],
            cwd=cwd,
            env=environment(
                **{**NOWHERE, **VARIABLES, "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=interruptible,
        )
        for rank in range(2)
    ]


def ends(processes):
    """What became of both: output, errors, status."""
    return [(*each.communicate(timeout=60), each.returncode) for each in processes]
