"""One file written whole or not at all; of several ranks the first alone writes."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from profiles.errors import Unavailable
from profiles.speed.ranks import is_silent


def write(path: Path, content: str | bytes, option: str = "--output") -> None:
    """Replace ``path`` by ``content`` (text as UTF-8): readers see the old content or the new, also after a crash.

    What is no regular file (a device, a pipe) is written directly; a symbolic link keeps pointing where it points.
    Raises `Unavailable` naming ``option``, which gave the path, and the path.
    """
    if is_silent():
        return
    with _explained(path, option):
        target, data = _target(path), content.encode() if isinstance(content, str) else content
        if _is_special(target):
            with target.open("wb") as file:
                file.write(data)
            return
        _replace(target, data)


def check_writable(path: Path, option: str = "--output") -> None:
    """Raise `Unavailable` when `write` could not write ``path``; leaves nothing behind. Call before long work."""
    if is_silent():
        return
    with _explained(path, option):
        target = _target(path)
        if target.is_dir():
            raise IsADirectoryError(None, "it is a directory", str(path))
        if _is_special(target):
            if not os.access(target, os.W_OK):
                raise PermissionError(None, "it cannot be written", str(path))
            return
        beside = _beside(target)
        os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        beside.unlink()


def _replace(target: Path, data: bytes) -> None:
    beside = _beside(target)
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        if target.exists():
            beside.chmod(stat.S_IMODE(target.stat().st_mode))
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        beside.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    _sync_directory(target.parent)


def _target(path: Path) -> Path:
    return path.resolve() if path.is_symlink() else path


def _is_special(target: Path) -> bool:
    return target.exists() and not target.is_file() and not target.is_dir()


def _beside(target: Path) -> Path:
    """A name next to ``target`` that no other process takes; short, as the target's own name may be of full length."""
    return target.parent / f".stones-{os.getpid()}.tmp"


def _sync_directory(directory: Path) -> None:
    """Make the new name durable, where the system lets a directory be synchronized."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _explained(path: Path, option: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
        raise Unavailable(f"{option} {path}: {getattr(error, 'strerror', None) or error}") from error
