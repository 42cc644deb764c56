"""Many ranks: who stands in the environment, the process group of a bench, and how its ranks stay in step.

torchrun starts the same command once per rank and tells each by variables. Whatever decides what is run next (times,
the clock, failures) must be the same on all ranks, or the collectives inside of what is timed would not pair up: so
the ranks exchange it, always by the same small message, of which a failure is a part.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from layers.card import OptionError
from profiles.errors import Refusal, Unavailable, first_line, is_out_of_memory

if TYPE_CHECKING:
    from profiles.speed.bench import Bench
    from profiles.speed.cases import Case
    from profiles.subject import Subject

MOST_RANKS = 65536
TIMEOUT = 120.0  # seconds: for all ranks to appear, and for a collective of what is timed
PATIENCE = 300.0  # seconds for a message between ranks: longer, so that one whose collective failed can still tell
_REMEDY = "start it by torchrun, or unset WORLD_SIZE"


@dataclass(frozen=True)
class Launch:
    """What torchrun says: this rank of ``world_size``, and of those on this machine, ``local_world_size``."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def launch(variables: Mapping[str, str] = os.environ) -> Launch | None:
    """Return the ranks that the environment names, None where it names none or one.

    Raises `Refusal` for a variable that is missing or wrong, `Unavailable` for an unknown host.
    """
    if not variables.get("WORLD_SIZE"):
        return None
    size = _read(variables, "WORLD_SIZE", 1, MOST_RANKS)
    if size == 1:
        return None
    rank, local = (_read(variables, name, 0, size - 1) for name in ("RANK", "LOCAL_RANK"))
    here = _read(variables, "LOCAL_WORLD_SIZE", 1, size) if variables.get("LOCAL_WORLD_SIZE") else size
    port = _read(variables, "MASTER_PORT", 1, 65535)
    host = variables.get("MASTER_ADDR", "")
    if not host:
        raise Refusal(f"WORLD_SIZE={size} without MASTER_ADDR: {_REMEDY}")
    import socket

    try:
        socket.getaddrinfo(host, port)
    except (OSError, ValueError) as error:
        raise Unavailable(f"MASTER_ADDR={_short(host)} is no host that is known here: {error}; {_REMEDY}") from error
    return Launch(rank, size, local, here)


def world_size(variables: Mapping[str, str] = os.environ) -> int:
    """Return how many ranks the environment names, 1 where it says nothing that can be read."""
    return max(1, _whole(variables.get("WORLD_SIZE", "")) or 1)


def is_silent(variables: Mapping[str, str] = os.environ) -> bool:
    """Whether this is one of several ranks and not the first, which alone speaks for all; of a wrong rank none does."""
    return 0 < (_whole(variables.get("RANK", "")) or 0) < world_size(variables)


def _read(variables: Mapping[str, str], name: str, low: int, high: int) -> int:
    text = variables.get(name, "")
    value = _whole(text)
    if not text:
        raise Refusal(f"WORLD_SIZE={variables['WORLD_SIZE']} without {name}: {_REMEDY}")
    if value is None or not low <= value <= high:
        raise Refusal(f"{name}={_short(text)} is no whole number from {low} to {high}: {_REMEDY}")
    return value


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def placed(what: Bench, found: Launch | None) -> Bench:
    """Return ``what`` on the device of this rank: cuda is cuda:LOCAL_RANK.

    Raises `Refusal` for a device by number, which all ranks would share.
    """
    if found is None:
        return what
    given = what.cases[0].subject.setup.device
    if ":" in given:
        raise Refusal(
            f"--device {given}: each of {found.world_size} ranks takes a device of its own; give --device cuda"
        )
    device = f"cuda:{found.local_rank}" if given == "cuda" else given
    return replace(what, cases=tuple(_on(device, case) for case in what.cases))


def _on(device: str, case: Case) -> Case:
    def there(what: Subject) -> Subject:
        return replace(what, setup=replace(what.setup, device=device))

    references = {name: what and there(what) for name, what in case.references.items()}
    return replace(case, subject=there(case.subject), references=references)


@contextmanager
def joined(found: Launch | None, device: str) -> Iterator[None]:
    """Initialise torch.distributed for the block, by NCCL on CUDA and gloo elsewhere, and destroy it afterwards.

    Nothing happens without ranks, or when a process group is there already. Raises `Unavailable` when devices are
    missing or the ranks do not find each other.
    """
    if found is None:
        yield
        return
    import torch
    from torch import distributed as dist

    cuda = device.startswith("cuda")
    if cuda and (there := torch.cuda.device_count()) < found.local_world_size:
        raise Unavailable(
            f"--device cuda: {found.local_world_size} ranks need as many CUDA devices, this machine has {there}"
        )
    if not dist.is_available() or not (dist.is_nccl_available() if cuda else dist.is_gloo_available()):
        raise Unavailable(
            f"this torch has no {'NCCL' if cuda else 'gloo'} to run on many ranks: start without torchrun"
        )
    if dist.is_initialized():
        yield
        return
    with _finding_each_other(found):
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=TIMEOUT))
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _finding_each_other(found: Launch) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise Unavailable(f"{found.world_size} ranks did not find each other: {_said(error)}; {_REMEDY}") from error


class Ranks:
    """The ranks of the process group that is initialised, or one alone. Made by `spanning`.

    All of them make the same exchanges in the same order. What is raised by one is raised by all.
    """

    def __init__(self, rank: int = 0, size: int = 1, backend: str = "", group: Any = None) -> None:
        self.rank, self.size, self.backend, self._group = rank, size, backend, group
        self._raised: Exception | None = None

    @property
    def here(self) -> int:
        """How many of the ranks are on this machine, by the environment; all where it does not say."""
        return min(self.size, _whole(os.environ.get("LOCAL_WORLD_SIZE", "")) or self.size)

    def record(self) -> dict[str, Any] | None:
        """Return the JSON-able form, None for one rank."""
        return None if self.size == 1 else {"world_size": self.size, "backend": self.backend}

    def exchange(self, one: float = 0.0, other: float = 0.0, *, failed: Exception | None = None) -> list[list[float]]:
        """Return both numbers of every rank, in order; nobody has them before all have joined.

        Raises where a rank joins with what has ``failed`` there, and `Unavailable` where one is gone.
        """
        if self.size == 1:
            if failed is not None:
                raise failed
            return [[one, other]]
        import torch
        from torch import distributed as dist

        message = torch.tensor([failed is not None, one, other], dtype=torch.float64)
        gathered = [torch.empty_like(message) for _ in range(self.size)]
        with self._missing():
            dist.all_gather(gathered, message, group=self._group)
        rows = [row.tolist() for row in gathered]
        if any(row[0] for row in rows):
            self._fail(failed)
        return [row[1:] for row in rows]

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Wait for all ranks at the end of the block; what it raises on one of them is raised on all."""
        try:
            yield
        except Exception as error:
            if error is not self._raised:
                self.exchange(failed=error)
            raise
        self.exchange()

    def _fail(self, failed: Exception | None) -> NoReturn:
        """Raise what has failed: this rank's own if all say the same, else what the first one says."""
        from torch import distributed as dist

        told: list[Any] = [None] * self.size
        with self._missing():
            dist.all_gather_object(told, None if failed is None else _told(failed), group=self._group)
        rank, (kind, words) = next((rank, said) for rank, said in enumerate(told) if said is not None)
        alike = all(said == told[0] for said in told)
        self._raised = failed if failed is not None and alike else _KINDS[kind](f"rank {rank}: {words}")
        raise self._raised

    @contextmanager
    def _missing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self._raised = Unavailable(f"another of {self.size} ranks is gone: {_said(error)}")
            raise self._raised from error


def _said(error: Exception) -> str:
    """Return what a backend says, without its place in the sources and its advice."""
    return re.sub(r"^\[\S*\] |\. This is typically.*", "", first_line(error))


_KINDS: dict[str, type[Exception]] = {"refusal": Refusal, "unavailable": Unavailable, "bug": RuntimeError}


def _told(error: Exception) -> tuple[str, str]:
    """Return of which kind ``error`` is, and its message; of a bug the traceback."""
    if isinstance(error, (Refusal, OptionError)):
        return "refusal", str(error)
    if is_out_of_memory(error):
        return "unavailable", f"out of memory: {first_line(error)}"
    if isinstance(error, (Unavailable, OSError, ImportError)):
        return "unavailable", str(error)
    import traceback

    return "bug", "".join(traceback.format_exception(error))


@contextmanager
def spanning() -> Iterator[Ranks]:
    """Yield the ranks of the process group that is initialised; all of them must come here. Without one: one rank."""
    dist: Any = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        yield Ranks()
        return
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=PATIENCE))  # ours: what is timed has its own
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), dist.get_backend(), group)
    finally:
        dist.destroy_process_group(group)
