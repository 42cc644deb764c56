"""Why another tool's count is not ours, found by setting its operations beside those that were executed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from profiles.counting.flops import PRODUCTS
from profiles.counting.peer_tools import FVCORE_PRODUCTS, TRACED, Answer, Said

Record = Mapping[str, Any]
NAMED = 3  # of the operations that are left out, with numbers


def products(by_op: Mapping[str, int]) -> int:
    """Return what a table by operation gives to products."""
    return sum(count for name, count in by_op.items() if name.rstrip("_") in PRODUCTS | FVCORE_PRODUCTS)


def why(answer: Answer, row: Record, record: Record) -> str:
    """Return one sentence: ``equal``, or what sets the tool's numbers (``row``) apart from those of ``record``."""
    if answer.error:
        return f"no number: {answer.error}"
    flops, found = record["flops"], []
    for name, said in (("forward", answer.forward), ("backward", answer.backward)):
        ours = flops[name]
        if said is None or (row[name]["as_flops"] == (ours["executed"] or 0) and not ours["uncounted"]):
            continue
        reasons = list(_reasons(answer, said, ours, record))
        reasons = reasons or ["its table does not tell"]
        found.append((f"{name}: " if answer.backward else "") + "; ".join(reasons))
    if answer.params is not None and answer.params != record["params"]["total"]:
        found.append(f"{answer.params:,} parameters, ours {record['params']['total']:,}")
    return "; ".join(found) or "equal"


def _reasons(answer: Answer, said: Said, ours: Record, record: Record) -> Iterator[str]:
    if said.value == 0 and (ours["executed"] or ours["uncounted"]):
        yield "its 0 is no count" + (", as it warns" if answer.uncounted else ", and silent")
    if said.by_op is None:
        yield from _of_one_number(answer, said.value, ours, record)
    else:
        yield from _by_operation(answer, said.by_op, ours, record["input"]["elements"])
    if ours["uncounted"]:
        yield f"ours is a lower bound, without {', '.join(ours['uncounted'])}"


def _by_operation(answer: Answer, by_op: Counter[str], ours: Record, elements: int) -> Iterator[str]:
    executed = {name: flops for name, flops in ours["by_op"].items() if flops}
    becomes = {name: _becomes(answer, name, executed) for name, count in by_op.items() if count}
    covered = {each for names in becomes.values() for each in names}
    macs = products(by_op) // answer.mac
    if macs and answer.mac == 1:
        yield "a multiply-add is 1, ours 2"
    left_out = {name: flops for name, flops in executed.items() if name not in covered}
    if not any(_is_product(name) for name in left_out):
        yield from _of_products(answer, by_op, macs, ours)
    for name, names in becomes.items():
        mine = sum(executed[each] for each in names)
        if not _is_product(name) and by_op[name] != mine:
            each = elements if "norm" in name and elements else 1
            yield f"{name} {_each(by_op[name], each)}, " + (
                f"ours {_each(mine, each)}" if mine else "which is not executed by that name"
            )
    yield from _left_out(left_out)
    hidden = [name.rpartition(".")[2] for name in answer.uncounted if "PythonOp" in name]
    if hidden:
        yield f"it does not see inside the custom Function {' and '.join(hidden)}"


def _becomes(answer: Answer, name: str, executed: Collection[str]) -> list[str]:
    """Return the operations executed that ``name`` stands for in the tool's table."""
    if not answer.traces:
        return [each for each in executed if each == name]
    names = {each.strip("_") for each in TRACED.get(name, (name,))}
    return [each for each in executed if each.strip("_") in names]


def _of_products(answer: Answer, by_op: Mapping[str, int], macs: int, ours: Record) -> Iterator[str]:
    """Say whether the multiply-adds are those executed, and whether the additions of biases are among them."""
    if macs != ours["macs"]:
        cause = _cause(answer, by_op, macs, ours)
        yield f"its products are {macs:,} multiply-adds, {ours['macs']:,} are executed{cause}"
    added = products(ours["by_op"]) - 2 * ours["macs"]
    if macs and added:
        yield f"without the {added:,} additions to products (biases)"


def _cause(answer: Answer, by_op: Mapping[str, int], macs: int, ours: Record) -> str:
    """Return a known fault of the tool that fits, in words; empty where none does."""
    if "convolution_backward" in by_op and macs > ours["macs"]:
        return " (it multiplies the gradient of a grouped convolution's weight by the groups)"
    if answer.traces and "einsum" in by_op:
        return " (it reads four digits of numpy's einsum_path)"
    if answer.traces and "matmul" in by_op and macs < ours["macs"]:
        return " (its matmul forgets the batch of the second factor)"
    if answer.traces and macs < ours["macs"]:  # its other products are right
        return " (it does not see those whose result is not used)"
    return ""


def _left_out(left_out: Mapping[str, int]) -> Iterator[str]:
    """Name the largest of the operations that the tool gives nothing to, with what they are here."""
    if left_out:
        first = sorted(left_out, key=lambda name: -left_out[name])
        words = [f"{name} ({_in_place(name)}{left_out[name]:,})" for name in first[:NAMED]]
        rest = sum(left_out[name] for name in first[NAMED:])
        more = f" and {len(first) - NAMED} more ({rest:,})" if rest else ""
        yield f"it gives nothing to {', '.join(words)}{more}"


def _of_one_number(answer: Answer, value: int, ours: Record, record: Record) -> Iterator[str]:
    """Find what a single number is, by trying what it may be."""
    elements, batch, params = record["input"]["elements"], record["input"]["shape"][0], record["params"]["total"]
    executed = {name: flops for name, flops in ours["by_op"].items() if flops}
    added = products(executed) - 2 * ours["macs"]
    per_sample = value not in (ours["macs"], ours["macs"] + added)
    whole = value * batch if per_sample else value
    if value and whole in (ours["macs"], ours["macs"] + added):
        yield "a multiply-add is 1, ours 2"
        if per_sample:
            yield f"it is of one of the {batch} samples"
        if added and whole > ours["macs"]:
            yield f"the {added:,} additions to products (biases) are multiply-adds in it"
        elif added:
            yield f"without the {added:,} additions to products (biases)"
        yield from _left_out({name: flops for name, flops in executed.items() if not _is_product(name)})
        return
    if value and elements and value % elements == 0:
        yield f"{value // elements} per element, called MAC"
    elif value and params and value % params == 0:
        yield f"{value // params:,} × the {params:,} parameters, called MAC"
    if answer.covers is not None:
        yield from _left_out({name: flops for name, flops in executed.items() if name not in answer.covers})
    yield answer.rule


def _in_place(name: str) -> str:
    return "in place, " if name.endswith("_") and _is_product(name) else ""


def _is_product(name: str) -> bool:
    return name.rstrip("_") in PRODUCTS | FVCORE_PRODUCTS


def _each(count: int, elements: int) -> str:
    """Return a count, per element of the input if that has more than one."""
    return f"{count / elements:.4g} per element" if elements > 1 else f"{count:,}"
