"""What a transformation of a model touches: which parameters it freezes, sets anew or penalizes, in a given model."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from layers.catalog import Stone
from profiles.errors import Refusal, first_line, is_out_of_memory
from profiles.subject import Subject, check_environment
from profiles.target import Foreign, Target

if TYPE_CHECKING:
    from torch import nn

BATCH = (16, 3, 32, 32)
SCHEMA = "stones.transform/1"
DEFAULT_MODEL = "ResNet-14 of width 16, for CIFAR-10"
Record = dict[str, Any]


def inspect(subject: Subject, model: Target | None = None) -> Record:
    """Apply the transform to a copy of ``model`` (None: the paper's ResNet-14) and return a record.

    A transform that needs a batch gets a standard normal one of the setup's shape and dtype.
    Raises `Refusal` for a model that cannot be built or that the transform refuses, `Unavailable` for a batch that does
    not fit the memory. Leaves torch's generator as it was.
    """
    import torch

    if not isinstance(subject.target, Stone):
        raise Refusal(f"{subject.name} is a class, not a transformation of a model")
    if takes_batch(subject):
        check_environment(subject)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subject.setup.seed)
        before = built(model)
        after = _copied(before, model)
        result = _applied(subject.target.load(), after, subject)
    rows = _rows(before, after, result)
    card = subject.target.card
    return {
        "schema": SCHEMA,
        "technique": {
            "name": subject.name,
            "title": card.title,
            "kind": subject.target.kind,
            "options": dict(subject.options),
        },
        "batch": list(subject.setup.shape) if takes_batch(subject) else None,
        "model": {"name": model.name if model else DEFAULT_MODEL, "modules": sum(1 for _ in before.modules())},
        "params": {
            "total": sum(row["elements"] for row in rows),
            "trainable": sum(row["elements"] for row in rows if row["trainable"]),
            "trainable_before": sum(row["elements"] for row in rows if row["trainable_before"]),
            "set": sum(row["elements"] for row in rows if row["set"]),
            "penalized": sum(row["elements"] for row in rows if row["penalized"]),
            "tensors": rows,
        },
        "penalty": float(result.detach()) if isinstance(result, torch.Tensor) else None,
        "buffers_changed": _buffers_changed(before, after),
        "ok": True,
    }


def takes_batch(what: Subject) -> bool:
    """Whether the transform needs a batch of data beside the model; read from its file, without torch."""
    if not isinstance(what.target, Stone) or what.target.card.role != "transform":
        return False
    for node in ast.parse(what.target.path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == what.target.card.impl:
            return "batch" in (argument.arg for argument in node.args.args)
    return False


def built(model: Target | None) -> nn.Module:
    """Call the factory ``model`` (None: build the paper's ResNet-14); raises `Refusal` for what is no module."""
    from torch import nn

    if model is None:
        from layers.resnet import cifar_resnet

        return cifar_resnet(14)
    if not isinstance(model, Foreign):
        raise Refusal(f"--model {model.name} is a technique; give pkg.mod:factory or file.py:factory")
    try:
        made = model.factory()
        tensors = (*made.parameters(), *made.buffers()) if isinstance(made, nn.Module) else ()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise Refusal(f"--model {model.name} cannot be built without arguments: {first_line(error)}") from error
    if not isinstance(made, nn.Module):
        raise Refusal(f"--model {model.name} made a {type(made).__name__}, not a torch.nn.Module")
    if any(tensor.is_meta for tensor in tensors):
        raise Refusal(f"--model {model.name} made parameters without values, on the meta device")
    return made


def _copied(module: nn.Module, model: Target | None) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:
        if model is None:
            raise
        raise Refusal(f"--model {model.name} cannot be copied: {first_line(error)}") from error


def _applied(transform: Callable[..., Any], model: nn.Module, subject: Subject) -> Any:
    if not takes_batch(subject):
        with _refusing(subject, "this model", ValueError):
            return transform(model, **subject.options)
    shape = "x".join(map(str, subject.setup.shape))
    with _refusing(subject, f"this model with --input {shape}", ValueError, RuntimeError, TypeError, IndexError):
        return transform(model, subject.input(requires_grad=False), **subject.options)


@contextmanager
def _refusing(subject: Subject, what: str, *usual: type[Exception]) -> Iterator[None]:
    try:
        yield
    except usual as error:
        raise Refusal(f"{subject.name} refuses {what}: {first_line(error)}") from error


def _rows(before: nn.Module, after: nn.Module, result: Any) -> list[Record]:
    """One row per parameter: what it was, what it is, and what happened to it."""
    import torch

    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    reached: list[Any] = [None] * len(new)
    if isinstance(result, torch.Tensor) and result.requires_grad:
        trained = [parameter.requires_grad_(True) for parameter in new.values()]
        reached = list(torch.autograd.grad(result, trained, allow_unused=True))
    owners = dict(after.named_modules())
    return [
        {
            "name": name,
            "module": type(owners[name.rpartition(".")[0]]).__name__,
            "shape": list(parameter.shape),
            "elements": parameter.numel(),
            "trainable": parameter.requires_grad,
            "trainable_before": old[name].requires_grad,
            "set": not torch.equal(parameter, old[name]),
            "penalized": grad is not None,
        }
        for (name, parameter), grad in zip(new.items(), reached, strict=True)
    ]


def _buffers_changed(before: nn.Module, after: nn.Module) -> int:
    """Count the elements of buffers that the transform changed by itself."""
    import torch

    old = dict(before.named_buffers())
    return sum(b.numel() for name, b in after.named_buffers() if not torch.equal(b, old[name]))
