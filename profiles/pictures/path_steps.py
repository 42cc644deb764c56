"""From the tensors on a data path to its steps: what is computed alike stands together, in the order of the run."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

INPUT, PARAMETER, STATE, STATISTIC, UPDATE, OUTPUT = "input", "parameter", "state", "statistic", "update", "output"
KINDS = (INPUT, PARAMETER, STATE, STATISTIC, UPDATE, OUTPUT)
SOURCES = (INPUT, PARAMETER, STATE)


@dataclass(frozen=True)
class Node:
    """One tensor on the path. ``group`` is the same for statistics that were named in one go."""

    kind: str
    name: str
    shape: tuple[int, ...]
    group: int = 0


def ordered(nodes: Sequence[Node], reads: Sequence[set[int]]) -> list[dict[str, Any]]:
    """Return the steps: ``kind``, ``tensors`` (name, shape), and ``reads``, the steps before that it reads, from 0.

    ``nodes`` stand in the order in which they were computed, ``reads`` has for each the numbers of those that it reads.
    What was there before the run stands in front of the step that reads it first; what no step reads is left out.
    """
    used = {source for each in reads for source in each}
    kept = [i for i, node in enumerate(nodes) if i in used or node.kind not in (PARAMETER, STATE)]
    place = {i: number for number, i in enumerate(kept)}
    return _steps([nodes[i] for i in kept], [{place[j] for j in reads[i]} for i in kept])


def _steps(nodes: Sequence[Node], reads: Sequence[set[int]]) -> list[dict[str, Any]]:
    classes = _classes(nodes, reads)
    members: dict[int, list[int]] = {}
    for number, each in enumerate(classes):
        members.setdefault(each, []).append(number)
    sources = {each: {classes[j] for i in found for j in reads[i]} for each, found in members.items()}

    def time(each: int) -> tuple[int, int, int]:
        if nodes[members[each][0]].kind not in (PARAMETER, STATE):
            return max(members[each]), 1, 0
        readers = [max(members[other]) for other in members if each in sources[other]]
        return min(readers, default=0), 0, members[each][0]

    order = sorted(members, key=time)
    place = {each: number for number, each in enumerate(order)}
    return [
        {
            "kind": nodes[members[each][0]].kind,
            "tensors": [{"name": nodes[i].name, "shape": list(nodes[i].shape)} for i in members[each]],
            "reads": sorted(place[source] for source in sources[each] - {each}),
        }
        for each in order
    ]


def _classes(nodes: Sequence[Node], reads: Sequence[set[int]]) -> list[int]:
    """Return for each node the number of its class: those of one kind and go that read alike and are read alike.

    The coarsest division of that sort, found by splitting. What is named in one go may read among itself, as a variance
    reads its mean.
    """

    def among(number: int, others: Iterable[int]) -> set[int]:
        own = nodes[number]
        return {j for j in others if own.kind != STATISTIC or (nodes[j].kind, nodes[j].group) != (own.kind, own.group)}

    readers = [{i for i, each in enumerate(reads) if number in each} for number in range(len(nodes))]
    links = [[among(number, each[number]) for number in range(len(nodes))] for each in (reads, readers)]
    classes = _numbered((node.kind, node.group) for node in nodes)
    while True:
        finer = _numbered(
            (classes[i], *(frozenset(classes[j] for j in others[i]) for others in links)) for i in range(len(nodes))
        )
        if len({*finer}) == len({*classes}):
            return finer
        classes = finer


def _numbered(keys: Iterable[Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]
