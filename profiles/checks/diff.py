"""Two techniques beside each other on one input: what they are, cost and keep, and what they are invariant to.

What they cost is what `facts.inspect` finds of each, what they are invariant to is what their cards claim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from layers.claims import CARRIERS, Claim
from profiles.checks.transformations import PROPERTIES
from profiles.counting import facts
from profiles.errors import Refusal, with_article
from profiles.results import DIFF
from profiles.subject import Subject
from profiles.target import Foreign, Target, card_of, is_optimizer

Record = dict[str, Any]
_PASSES = ("forward", "backward")
# Of tensors: the key of the record, what a row is called.
_TENSORS = (("stats", "statistic"), ("buffers", "buffer"), ("state", "state"))


def techniques(left: Subject, right: Subject, *, measure: bool = True, names: tuple[str, str] | None = None) -> Record:
    """Return one record, schema stones.diff/1: a row for each thing that both or one of them have.

    ``names`` are what the two are called, without them by their own names.
    ``left`` and ``right`` in it are the records of `facts.inspect`, without fvcore. With ``measure`` false everything
    comes from the cards, without torch. Raises what `facts.inspect` raises, and `Refusal` for two that do not work on
    the same kind of thing.
    """
    check_comparable(left.target, right.target)
    both = [facts.inspect(side, measure=measure, fvcore=False) for side in (left, right)]
    rows = [
        _row(section, name, *(side.get(name) for side in sides))
        for section, sides in _sections((left, right), both)
        for name in dict.fromkeys(name for side in sides for name in side)
    ]
    return {
        "schema": DIFF,
        "of": "techniques",
        "names": list(names or (left.name, right.name)),
        "input": both[0]["input"],
        "left": both[0],
        "right": both[1],
        "claims": [_claimed_for(side) for side in (left, right)],
        "rows": rows,
        "differing": sum(not row["same"] for row in rows),
    }


def check_comparable(left: Target, right: Target) -> None:
    """Raise `Refusal` for what no inspection counts, and for two that take different inputs."""
    cards = [card_of(target) for target in (left, right)]
    for target, card in zip((left, right), cards, strict=True):
        if isinstance(target, Foreign) and is_optimizer(target):
            raise Refusal(f"{target.name} is an optimizer of torch: only those of `stones list` are compared")
        if card is not None and card.role in ("transform", "augmentation"):
            raise Refusal(
                f"{target.name} is {with_article(card.role)}, whose costs are no layer's: compare results of it, "
                f"saved by `stones inspect {target.name} -o`"
            )
    one, other = ("a weight" if card is not None and card.works_on_weights else "a layer's input" for card in cards)
    if one != other:
        raise Refusal(f"{left.name} works on {one}, {right.name} on {other}: there is no input for both")


def _sections(subjects: tuple[Subject, ...], records: list[Record]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Yield each section with its values on both sides, by name."""
    yield "technique", [_description(*each) for each in zip(subjects, records, strict=True)]
    yield "option", [_options(record) for record in records]
    yield "cost", [_costs(record) for record in records]
    for key, section in _TENSORS:
        yield section, [_shapes(record[key]) for record in records]
    yield "invariance", [_invariances(subject) for subject in subjects]


def _description(what: Subject, record: Record) -> Mapping[str, Any]:
    technique, card = record["technique"], what.card
    found: Record = {"title": technique["title"], "kind": technique["kind"], "role": technique["role"]}
    if card is None:
        return found
    symbols = what.symbols
    return {
        **found,
        "year": str(card.paper.year),
        "formula": card.formula,
        "couples-samples": card.couples,
        "differs-in-eval": _holds(card.eval_differs, symbols),
        "needs-stored-statistics": _holds(card.remembers, symbols),
    }


def _options(record: Record) -> Mapping[str, Any]:
    """Return the options by name; None as the command line spells it, for an option that one lacks is None too."""
    given: Mapping[str, Any] = record["technique"]["options"]
    return {name: "none" if value is None else value for name, value in given.items()}


def _holds(text: str, symbols: Mapping[str, Any]) -> bool:
    from layers import formula

    return bool(formula.evaluate(text, symbols))


def _costs(record: Record) -> Mapping[str, Any]:
    """Return the counters of one inspection that are known; traffic is the least there can be, intensity FLOP/byte."""
    flops, memory, output = record["flops"], record["memory"], record["output"]
    found: Record = {
        "output": output and output["shape"],
        "parameters": record["params"]["total"],
        "buffer-elements": record["buffers"]["total"],
    }
    for name in _PASSES:
        found[f"flops-{name}-definition"] = flops[name]["card"]
        found[f"flops-{name}-executed"] = _executed(flops[name])
        found[f"macs-{name}"] = flops[name]["macs"]
    space = memory["workspace"]
    found["saved-bytes"] = _known(memory["saved"]["measured"], memory["saved"]["card"])
    found["workspace-forward-bytes"] = _known(space["measured"], space["card"])
    found["workspace-backward-bytes"] = space["backward"]
    for name in _PASSES:
        found[f"traffic-{name}-bytes"] = memory["floor"][name]
        found[f"intensity-{name}"] = memory["intensity"][name]
    return {name: value for name, value in found.items() if value is not None}


def _executed(row: Mapping[str, Any]) -> int | str | None:
    """Return the operations executed, as the card says where nothing ran; of a partial count that it is one."""
    found: int | None = _known(row["executed"], row["executed_card"])
    return f"≥ {found:,}" if row["status"] == "partial" and found is not None else found


def _known(first: Any, second: Any) -> Any:
    return second if first is None else first


def _shapes(tensors: Any) -> Mapping[str, str]:
    """Return the symbolic and concrete shape of each tensor by name."""
    rows = tensors["tensors"] if isinstance(tensors, Mapping) else tensors
    return {row["name"]: _shape(row) for row in rows}


def _shape(row: Mapping[str, Any]) -> str:
    sizes = "x".join(map(str, row["shape"])) or "scalar"
    return f"{row['symbolic']} ({sizes})" if row["symbolic"] not in (None, sizes) else sizes


def _invariances(what: Subject) -> Mapping[str, str]:
    """Return for each property whether the card claims it under the options, and where it does not do so everywhere."""
    claim = claim_for(what)
    return {} if claim is None else {name: _where(claim, name) for name in PROPERTIES}


def claim_for(what: Subject) -> Claim | None:
    """Return the claim of the card whose conditions are nearest to those of ``what``: its mode, and most options alike.

    Claims are measured on layers of 12 channels, so numbers such as groups need not be equal. None without a claim for
    the mode, with stored statistics as they were.
    """
    mode = "train" if what.setup.train else "eval"
    claims = what.card.claims if what.card is not None else ()
    fitting = [c for c in claims if c.mode == mode and c.history == "frozen" and not c.weight]

    def alike(claim: Claim) -> int:
        return sum(1 if what.options.get(name) == value else -1 for name, value in claim.options.items())

    return max(fitting, key=alike, default=None)


def _where(claim: Claim, name: str) -> str:
    carriers = [carrier for carrier in CARRIERS if carrier in claim.carriers]
    held = [carrier for carrier in carriers if claim.expects(name, carrier)]
    if held and held != carriers:
        return "on " + ", ".join(held)
    return "yes" if held else "no"


def _claimed_for(what: Subject) -> str | None:
    """Say for what the claim that was taken is made; None without one."""
    claim = claim_for(what)
    if claim is None:
        return None
    given = ", ".join(f"{name}={value}" for name, value in claim.options.items())
    return "; ".join(part for part in (claim.row, given) if part) or "usual options"


def _row(section: str, name: str, left: Any, right: Any) -> Record:
    return {
        "section": section,
        "name": name,
        "left": left,
        "right": right,
        "ratio": _ratio(left, right) if section == "cost" else None,
        "same": type(left) is type(right) and left == right,
    }


def _ratio(left: Any, right: Any) -> float | None:
    """Return right / left of two numbers that count something."""
    if type(left) is not int or type(right) is not int or left == 0:
        return None
    return float(f"{right / left:.5g}") if abs(right) < 2**1000 * abs(left) else None
