"""`stones list` and `stones show`: what the cards say, from the cards alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from layers.card import SAME, Card, Claim, Flops, Identity, Option, Paper, Peer, Stat
from layers.catalog import Stone
from layers.formula import pretty
from stones_cli.report.inspection import CALLS
from stones_cli.report.tables import Drawing, Part, Prose, Report, Table, table, value_text

WEIGHT_SYMBOLS = (
    "O is the first size of the weight, its outputs, I the product of the others, E = O·I its elements, B the bytes of "
    "an element; the other symbols are options."
)
SYMBOLS = (
    "N C H W are the sizes of the input (1 where it lacks the axis), S = H·W, E = N·C·S, B the bytes of an element; "
    "train is true in training; the other symbols are options."
)


def listing(stones: Iterable[Stone]) -> Report:
    """Return one row per stone; where there are plug-ins among them, also where each comes from."""
    chosen = list(stones)
    columns = ("name", "kind", "title", "paper", "year", *(("origin",) if any(s.origin for s in chosen) else ()))
    cells = ((s.name, s.kind, s.card.title, s.card.paper.authors, str(s.card.paper.year), s.origin) for s in chosen)
    rows = [(*row, *([str(origin or "")] if "origin" in columns else [])) for *row, origin in cells]
    record = {"schema": "stones.list/1", "techniques": [_entry(stone) for stone in chosen]}
    return Report(record, (table("", columns, rows),), items="techniques")


def _entry(stone: Stone) -> dict[str, Any]:
    card = stone.card
    return {
        "name": stone.name,
        "kind": stone.kind,
        "title": card.title,
        "summary": card.summary,
        **_paper(card.paper),
        "origin": stone.origin._asdict() if stone.origin else None,
    }


def _paper(paper: Paper) -> dict[str, Any]:
    return {
        "year": paper.year,
        "paper": {"authors": paper.authors, "title": paper.title, "venue": paper.venue, "arxiv": paper.arxiv},
    }


def page(stone: Stone) -> Report:
    """Return everything that the card of ``stone`` says."""
    return Report(_page_record(stone), tuple(_page_parts(stone)))


def _page_record(stone: Stone) -> dict[str, Any]:
    card = stone.card
    return {
        "schema": "stones.show/1",
        **_entry(stone),
        "formula": card.formula,
        "options": [_option(option) for option in card.options],
        "rules": [rule.test for rule in card.rules],
        "derived": dict(card.derived),
        "statistics": [_stat(stat) for stat in card.statistics],
        "buffers": [_stat(stat) for stat in card.buffers],
        "state": [_stat(stat) for stat in card.state],
        "role": card.role,
        "ranks": list(card.ranks),
        "params": card.params,
        "flops": dataclasses.asdict(card.flops),
        "executed": dataclasses.asdict(_executed(card)),
        "explained": card.explained,
        "saved": card.saved,
        "workspace": card.workspace or None,
        "stated": card.stated,
        "traffic": dataclasses.asdict(card.traffic),
        "couples": card.couples,
        "eval_differs": card.eval_differs,
        "exact_gradient": card.exact_gradient,
        "derivable": card.derivable,
        "remembers": card.remembers,
        "claims": [dataclasses.asdict(claim) for claim in card.claims],
        "identities": [dataclasses.asdict(identity) for identity in card.identities],
        "races": [dataclasses.asdict(race) for race in card.races],
        "peer": card.peer.target if card.peer else None,
        "notes": list(card.notes),
        "picture": list(card.picture),
        "caution": card.caution or None,
    }


def _option(option: Option) -> dict[str, Any]:
    named = ("name", "default", "help", "ge", "gt", "le", "lt", "choices", "optional", "axes", "source")
    return {"type": option.type.__name__, **{name: getattr(option, name) for name in named}}


def _stat(stat: Stat) -> dict[str, Any]:
    return {
        "name": stat.name,
        "symbolic": stat.symbolic(),
        "shape": list(stat.shape),
        "given": stat.given,
        "help": stat.help,
    }


def _executed(card: Card) -> Flops:
    return Flops(card.executed.forward or card.flops.forward, card.executed.backward or card.flops.backward)


def _page_parts(stone: Stone) -> Iterator[Part]:
    card = stone.card
    yield Prose(f"{stone.name}: {card.title}", (card.formula, card.summary, _behaviour(card)))
    if card.picture:
        yield Drawing("Picture", card.picture)
    if card.options:
        options = ((o.name, value_text(o.default), o.expected(), o.help, o.source) for o in card.options)
        yield table("Options", ("name", "default", "admits", "what it does", "source"), options)
    tensors = [(stat, "computed") for stat in card.statistics] + [(stat, "kept") for stat in card.buffers]
    tensors += [(stat, "kept per parameter") for stat in card.state]
    if tensors:
        rows = [(s.name, s.symbolic(), _shape(s), state, _condition(s), s.help) for s, state in tensors]
        columns = ("name", "as the notes write it", "shape", "state", "given", "what it is")
        yield table("State" if card.state else "Statistics and buffers", columns, rows)
    if card.role not in ("transform", "augmentation"):
        yield table("Formulas", ("what", "formula"), _formulas(card))
        symbols = WEIGHT_SYMBOLS if card.works_on_weights else SYMBOLS
        yield Prose("", (symbols, *((card.explained,) if card.explained else ())))
    elif card.explained:
        yield Prose("", (card.explained,))
    yield from _claims(card.claims)
    if card.identities:
        yield table("Identities", ("equation", "under"), [(i.says, _under(i)) for i in card.identities])
    if card.races:
        columns = ("problem", "under", "steps", "measure", "expected", "which shows that")
        races = ((r.problem, _options(r.options), r.steps, r.measure, r.expected, r.says) for r in card.races)
        yield table("Races", columns, races)
    if card.notes:
        yield Prose("What the notes, papers or public code got wrong", card.notes)
    if card.caution:
        yield Prose("Doubts about its times", (card.caution,))
    yield Prose("Paper", (str(card.paper),))
    if stone.origin:
        yield Prose("Plug-in", (f"of {stone.origin}, in {stone.path}",))


_ROLES = {
    "penalty": "It is a penalty on one weight: a number that is minimized with the loss.",
    "projection": "It is a projection of one weight: a new weight that takes its place, between the steps.",
    "initializer": "It is an initializer: it fills a weight in place, before training.",
    "optimizer": "It is an optimizer: it makes the step itself, for each parameter.",
}


def _behaviour(card: Card) -> str:
    if card.role == "transform":
        return "It transforms a model and adds no parameters to it; `stones inspect` shows what becomes of one."
    if card.role == "augmentation":
        images = "It augments images (N, 3, H, W) uint8, each by itself; `stones inspect` shows with what."
        return f"{images} {_beside(card.peer)}."
    if card.works_on_weights:
        return f"{_ROLES[card.role]} `stones inspect --model` says which parameters of a model it is for."
    couples = {
        "never": "No sample's output depends on another",
        "train": "In training a sample's output depends on the others of its batch",
        "always": "A sample's output depends on the others of its batch, in evaluation too",
    }
    modes = _by_formula("training and evaluation differ", "training and evaluation are the same", card.eval_differs)
    derivative = "The backward is the derivative of the forward"
    gradient = _by_formula(
        derivative, "The published backward is not the derivative of the forward", card.exact_gradient
    )
    memory = _by_formula(
        "In training the output depends on stored statistics, so that recomputing a forward (activation "
        "checkpointing) changes gradients",
        "",
        card.remembers,
    )
    ranks = "" if len(card.ranks) > 1 else f"An input has {card.ranks[0]} axes"
    second = "" if card.derivable == "True" else f"Second derivatives are refused but where {pretty(card.derivable)}"
    sentences = (ranks, f"{couples[card.couples]}; {modes}", gradient, second, memory, _beside(card.peer))
    return " ".join(f"{sentence}." for sentence in sentences if sentence)


def _beside(peer: Peer | None) -> str:
    if peer is None:
        return ""
    name = peer.target.format(d="N")
    what = "computes the same" if peer.same else "is a yardstick and computes other outputs"
    there = f" where {peer.needs} is installed" if peer.needs else ""
    return f"`stones bench` puts {name} beside it{there}, which {_by_formula(what, what, peer.given)}"


def _by_formula(when: str, otherwise: str, condition: str) -> str:
    """Say ``when`` or ``otherwise``; both with the condition where it depends on an option."""
    if condition in ("True", "False"):
        return when if condition == "True" else otherwise
    return f"{when} if {pretty(condition)}"


def _shape(stat: Stat) -> str:
    if stat.shape == SAME:
        return ""
    return "×".join(pretty(size) for size in stat.shape) or "scalar"


def _condition(stat: Stat) -> str:
    return "" if stat.given == "True" else pretty(stat.given)


def _formulas(card: Card) -> list[tuple[str, str]]:
    executed, call = _executed(card), CALLS.get(card.role)
    passes = [("forward", "forward" if call is None else call), *([("backward", "backward")] if call is None else ())]
    rows = [("parameters", "" if card.works_on_weights else card.params)]
    rows += [(f"FLOPs {words}", getattr(card.flops, name)) for name, words in passes]
    for name, words in passes:
        if getattr(executed, name) != getattr(card.flops, name):
            rows.append((f"executed here, {words}", getattr(executed, name)))
    rows += [
        ("bytes saved for backward", card.saved if call is None else ""),
        ("workspace, forward without a graph", card.workspace),
        *((f"least bytes moved, {words}", getattr(card.traffic, name)) for name, words in passes),
        ("executed, saved stated where", card.stated if card.stated != "True" else ""),
        *((f"where {name} is", text) for name, text in card.derived.items()),
        *(("requires", rule.test) for rule in card.rules),
    ]
    return [(what, pretty(text)) for what, text in rows if text]


def _claims(claims: Iterable[Claim]) -> Iterator[Table | Prose]:
    """Yield the invariances as a table, a row per set of conditions, and the reasons as prose."""
    made = list(claims)
    if not made:
        return
    rows = [(_row(claim), ", ".join(claim.holds) or "none", ", ".join(claim.carriers)) for claim in made]
    yield table("Invariant to (and to nothing else of the table)", ("under", "properties", "measured on"), rows)
    reasons = dict.fromkeys(claim.why for claim in made if claim.why)
    if reasons:
        yield Prose("Why", tuple(reasons))


def _row(claim: Claim) -> str:
    parts = (
        f"weights of {claim.weight}" if claim.weight else "",
        claim.row,
        _options(claim.options),
        "" if claim.mode in claim.row else claim.mode,
    )
    return "; ".join(part for part in parts if part)


def _under(identity: Identity) -> str:
    dims = ", ".join(f"{name}={size}" for name, size in identity.dims.items())
    return "; ".join(part for part in (_options(identity.options), dims, identity.mode) if part)


def _options(options: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value_text(value)}" for name, value in options.items())
