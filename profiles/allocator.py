"""Keeping freed memory in the process, so that page faults of fresh buffers are not timed as the layer's work.

glibc hands every freed buffer of 128 KiB and more back to the system and gets a fresh one, page by page, at the next
call: that doubles the time of a normalization and says nothing about it. Training loops that keep their memory (CUDA's
caching allocator, jemalloc) do not pay it.
"""

from __future__ import annotations

import ctypes

KEPT, SYSTEM = "kept", "system"
ALLOCATORS = (KEPT, SYSTEM)
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # numbers of glibc's malloc.h
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory, for the rest of the process; returns whether it will.

    False, and nothing changed, where the C library has no ``mallopt`` (macOS, Windows) or refuses.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    # Older glibc limits the threshold to 32 MiB; there, no buffer at all may be mapped on its own.
    unmapped = mallopt(_MMAP_THRESHOLD, _MOST) or mallopt(_MMAP_MAX, 0)
    return bool(unmapped and mallopt(_TRIM_THRESHOLD, _MOST))
