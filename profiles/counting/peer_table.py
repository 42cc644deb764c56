"""What other tools count of the same layer, normalised to FLOPs where their unit allows, and why it is not ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from profiles.counting.flops import PRODUCTS
from profiles.counting.peer_reasons import products, why
from profiles.counting.peer_tools import TOOLS, Answer, Said, asked, version_of
from profiles.subject import Subject

Record = dict[str, Any]


def rows(subject: Subject, build: Callable[[], nn.Module], record: Record) -> list[Record]:
    """Return one record per tool, each asked about a layer of its own that ``build`` makes, beside the measured record.

    The random number generators are left as they were.
    """
    found = []
    for name in TOOLS:
        x = subject.input()
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            torch.manual_seed(subject.setup.seed)
            answer = asked(name, build(), x)
        found.append(_row(name, answer, record))
    return found


def _row(name: str, answer: Answer | None, record: Record) -> Record:
    given = answer or Answer()
    row: Record = {
        "name": name,
        "version": None if answer is None else version_of(name),
        "installed": answer is not None,
        "forward": _pass(given, given.forward, record["flops"]["forward"]),
        "backward": _pass(given, given.backward, record["flops"]["backward"]),
        "params": given.params,
        "uncounted": dict(sorted(given.uncounted.items())),
        "error": given.error,
    }
    return {**row, "why": "not installed" if answer is None else why(given, row, record)}


def _pass(answer: Answer, said: Said | None, ours: Record) -> Record | None:
    """Return a number with its unit: by operation it is known what is a product, of one number only from the layer."""
    if said is None:
        return None
    if answer.mac == 2:
        return {"value": said.value, "unit": "FLOP", "as_flops": said.value}
    if said.by_op is not None:
        macs = products(said.by_op)
        unit = "MAC" if macs == said.value else "MAC + element" if macs else "element"
        return {"value": said.value, "unit": unit, "as_flops": said.value + macs}
    only_products = all(name in PRODUCTS for name, flops in ours["by_op"].items() if flops)
    known = said.value == 0 or answer.covers is not None or (only_products and 2 * said.value == ours["executed"])
    return {"value": said.value, "unit": "MAC", "as_flops": 2 * said.value if known else None}
