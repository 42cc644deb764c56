"""What of a model a technique on weights is for: which parameters, what it keeps for them and what a step costs.

A stone says by the function ``excludes`` of its file why it leaves a parameter alone; a convolution stone, which has
none, replaces torch.nn.Conv2d.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from layers import formula
from layers.card import OptionError
from layers.catalog import Stone
from layers.shared import CONVOLUTION
from profiles.errors import Refusal, first_line
from profiles.subject import Subject
from profiles.target import Target

if TYPE_CHECKING:
    from layers.weights import Weight

SCHEMA = "stones.touched/1"
OF_THE_MODEL = frozenset(option.name for option in CONVOLUTION)  # its layers have them
SCALAR = 4  # bytes of state without axes, the count of steps: float32 whatever the parameter is, as in torch.optim
Record = dict[str, Any]


def is_for_weights(what: Subject) -> bool:
    """Whether `inspect` has something to say: for what works on weights, and reparametrized or new convolutions."""
    return what.on_weight or getattr(what.target, "kind", "") in ("weight", "conv")


def inspect(what: Subject, model: Target) -> Record:
    """Return a record with one row per parameter of ``model`` (a factory), touched by the stone or with the reason.

    A parameter that the options do not fit is not touched either. The sizes and groups of a convolution stand in place
    of options of these names. Raises `Refusal` for a model that cannot be built or whose parameters cannot be read, and
    for a class or a stone that is not for weights. Leaves torch's generator as it was.
    """
    import torch

    from layers.weights import weights
    from profiles.transforms import built

    if not isinstance(what.target, Stone) or not is_for_weights(what):
        raise Refusal(f"{what.name} is not for the weights of a model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(what.setup.seed)
        made = built(model)
    excludes = _excludes(what.target)
    with _reading(model):
        rows = [_row(what, what.target, weight, excludes(weight)) for weight in weights(made)]
    card = what.target.card
    return {
        "schema": SCHEMA,
        "technique": {
            "name": what.name,
            "title": card.title,
            "kind": what.target.kind,
            "role": card.role,
            "options": {name: value for name, value in what.options.items() if name not in OF_THE_MODEL},
        },
        "model": {"name": model.name, "modules": sum(1 for _ in made.modules())},
        "params": {
            "total": sum(row["elements"] for row in rows),
            "tensors": rows,
        },
        "touched": _totals(rows),
        "ok": True,
    }


@contextmanager
def _reading(model: Target) -> Iterator[None]:
    """Turn what parameters do that are none of the usual ones (sparse, scripted, lazy) into a `Refusal`."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, IndexError, AttributeError) as error:
        raise Refusal(f"--model {model.name}: its parameters cannot be read: {first_line(error)}") from error


def _totals(rows: Sequence[Record]) -> Record:
    touched = [row for row in rows if row["touched"]]
    elements, total = sum(row["elements"] for row in touched), sum(row["elements"] for row in rows)
    flops = [row["flops"] for row in touched if row["flops"] is not None]
    return {
        "parameters": len(touched),
        "elements": elements,
        "share": round(elements / total, 6) if total else None,
        "state_bytes": sum(row["state_bytes"] for row in touched),
        "flops": sum(flops) if flops else None,
    }


def _excludes(stone: Stone) -> Callable[[Weight], str]:
    """Return the function that says why a parameter is left alone, "" for one that is not."""
    module = stone.imported()
    said: Callable[[Weight], str] = getattr(module, "excludes", _not_a_plain_convolution)
    return said


def _not_a_plain_convolution(weight: Weight) -> str:
    from torch import nn

    if type(weight.module) is not nn.Conv2d:
        return f"of a {type(weight.module).__name__}, not torch.nn.Conv2d"
    return "" if weight.is_kernel else f"a {weight.kind}"


def _row(what: Subject, stone: Stone, weight: Weight, reason: str) -> Record:
    parameter = weight.parameter
    matrices = list(weight.matrices().shape) if weight.is_kernel else None
    state: list[Record] = []
    flops = None
    if not reason and what.on_weight:
        try:
            state, flops = _costs(what, stone, weight, matrices)
        except OptionError as error:
            reason = str(error)
    return {
        "name": weight.name,
        "module": type(weight.module).__name__,
        "shape": list(parameter.shape),
        "elements": parameter.numel(),
        "kind": weight.kind,
        "matrix": matrices,
        "touched": not reason,
        "reason": reason,
        "state": state,
        "state_bytes": sum(tensor["bytes"] for tensor in state),
        "flops": flops,
    }


def _costs(what: Subject, stone: Stone, weight: Weight, matrices: Sequence[int] | None) -> tuple[list[Record], int]:
    """Return the state tensors and the operations of a step for one parameter; raises OptionError as the card does."""
    card, shape, itemsize = stone.card, tuple(weight.parameter.shape), weight.parameter.element_size()
    options = dict(what.options)
    if "groups" in options and weight.is_kernel:
        options["groups"] = weight.groups
    seen = (matrices[0] * matrices[1], matrices[2]) if matrices and weight.kind == "transposed" else shape or (1,)
    card.check(card.sizes(seen, itemsize=itemsize), options)
    symbols = card.symbols(seen, options, itemsize=itemsize) | {"*": shape}
    state = []
    for stat in card.state:
        size = stat.at(symbols)
        if size is not None:
            kept = math.prod(size) * itemsize if stat.shape else SCALAR
            state.append({"name": stat.name, "shape": list(size), "bytes": kept})
    return state, int(formula.evaluate(card.flops.forward, symbols))


__all__ = ["SCHEMA", "Record", "inspect", "is_for_weights"]
