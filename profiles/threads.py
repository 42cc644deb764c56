"""Running with a given number of threads, the number restored afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

MOST_THREADS = 1024


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads inside the block.

    One is right for many small operations: on a busy machine a second thread makes each wait for the other core.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
