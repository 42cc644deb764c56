"""What is no layer, made ready for a promise: each role called on random float64 weights, or on a small model.

A role says how a stone is called (`layers.card.Card`); nothing here knows a stone by name.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from harness import function, normal

from layers import catalog
from layers.card import OptionError, OptionValue
from layers.catalog import Stone
from layers.resnet import cifar_resnet

FIRST = {
    "transform": "model",
    "penalty": "weight",
    "projection": "weight",
    "initializer": "tensor",
    "optimizer": "params",
}
STONES = [stone for stone in catalog.stones().values() if stone.card.role in FIRST]
ON_WEIGHTS = [stone for stone in STONES if stone.card.works_on_weights]
# More weights than filters, fewer, and as a one-dimensional convolution and a linear layer have them.
SHAPES = ((12, 4, 3, 2), (12, 5), (6, 2, 3), (12, 40))
STEPS = 5


@dataclass(frozen=True)
class Use:
    """One stone that is no layer with one option set of its card."""

    stone: Stone
    options: Mapping[str, OptionValue]

    def __str__(self) -> str:
        words = ",".join(f"{name}={value}" for name, value in self.options.items())
        return "-".join([self.stone.name, *([words] if words else [])])

    @property
    def role(self) -> str:
        return self.stone.card.role

    @property
    def full(self) -> dict[str, OptionValue]:
        return self.stone.card.check({}, self.options)

    @property
    def module(self):
        return importlib.import_module(self.stone.module)

    def symbols(self, shape):
        return self.stone.card.symbols(shape, self.full)

    def shapes(self):
        """The shapes of weights that the card admits with these options: one at least."""
        found = [shape for shape in SHAPES if self.admits(shape)]
        assert found
        return found

    def admits(self, shape) -> bool:
        try:
            self.stone.card.check(self.stone.card.sizes(shape), self.options)
        except OptionError:
            return False
        return True

    def call(self, tensor):
        """Call what is called on a tensor: a penalty, projection or initializer."""
        return self.stone.load()(tensor, **self.options)

    def make(self, params):
        """Make the optimizer of ``params``."""
        return self.stone.load()(params, **self.options)

    def reference(self, *arguments):
        """The naive function on the same arguments."""
        return function(self.stone)(*arguments, SimpleNamespace(**self.full))


def uses(*roles, examples=None, stones=None):
    """Uses as pytest parameters: the first ``examples`` (default: all) of each stone of ``roles``."""
    return [
        pytest.param(use, id=str(use))
        for stone in stones or STONES
        if stone.card.role in roles
        for options in stone.card.examples[:examples]
        for use in [Use(stone, options)]
    ]


def weight(shape, seed=1, dtype=torch.float64):
    """A random kernel: rows of about unit length with means of their own, singular values below and above 1."""
    inputs = torch.Size(shape[1:]).numel()
    return (normal(shape, seed=seed) / inputs**0.5).to(dtype)


def gradients(shapes, seed=40, dtype=torch.float64):
    """Gradients of so many steps, a list of tensors of ``shapes`` each."""
    return [
        [normal(shape, seed=seed + 10 * step + index).to(dtype) for index, shape in enumerate(shapes)]
        for step in range(STEPS)
    ]


def train(optimizer, parameters, steps):
    """Give ``parameters`` the gradients of ``steps``, one step after the other."""
    for given in steps:
        for parameter, gradient in zip(parameters, given, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()


def trained(use, shapes, steps=None, dtype=torch.float64):
    """Parameters of ``shapes`` after `STEPS` steps, and their optimizer."""
    parameters = [torch.nn.Parameter(weight(shape, seed, dtype)) for seed, shape in enumerate(shapes)]
    optimizer = use.make(parameters)
    train(optimizer, parameters, gradients(shapes, dtype=dtype) if steps is None else steps)
    return parameters, optimizer


def model(seed=0):
    """A small residual network with a past: statistics that moved, γ and β that are not 1 and 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = cifar_resnet(8, width=4).double()
        made(images(seed=3))
        for number, parameter in enumerate(made.parameters()):
            if parameter.dim() == 1:
                parameter.data += 0.3 * normal(parameter.shape, seed=number)
    return made


def images(seed=2):
    return normal((6, 3, 16, 16), seed=seed)


def takes_a_batch(stone) -> bool:
    return "batch" in inspect.signature(stone.load()).parameters


def transform(use, seed=0):
    """A model after the transform, and what the transform returned."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = model()
        batch = (images(),) if takes_a_batch(use.stone) else ()
        return made, use.stone.load()(made, *batch, **use.options)


def shown(use, seed=0):
    """Everything that a use shows, as shapes and bytes."""
    if use.role == "transform":
        try:
            return seen_of_model(*transform(use, seed))
        except OptionError as refusal:  # an option may be for other models than this one
            return str(refusal)
    tensors = []
    for shape in use.shapes()[:2]:
        if use.role == "optimizer":
            parameters, optimizer = trained(use, [shape])
            tensors += [*parameters, *(optimizer.state[parameters[0]].get(s.name) for s in use.stone.card.state)]
        elif use.role == "penalty":
            leaf = weight(shape).requires_grad_()
            value = use.call(leaf)
            tensors += [value, *torch.autograd.grad(value, leaf)]
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                tensors.append(use.call(weight(shape)))
    return [None if t is None else (tuple(t.shape), t.detach().contiguous().numpy().tobytes()) for t in tensors]


def seen_of_model(made, result):
    """State, what is trained, what was returned, and a training step of a model, as bytes."""
    named = [(name, parameter.requires_grad, parameter.detach()) for name, parameter in made.named_parameters()]
    if isinstance(result, torch.Tensor):
        named.append(("result", result.requires_grad, result.detach()))
    y = made.train()(images(seed=4))
    named += [("y", y.requires_grad, y.detach()), *((name, False, b.clone()) for name, b in made.named_buffers())]
    return [(name, trains, tensor.numpy().tobytes()) for name, trains, tensor in named]
