"""Every optimizer of the catalogue with every option set of its card, and steps of it by made-up gradients."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch

from layers import catalog
from layers.card import OptionValue
from layers.catalog import Stone

STONES = [stone for stone in catalog.stones().values() if stone.card.role == "optimizer"]
SHAPES = ((6, 4, 3, 2), (4, 5), (6, 8, 3), (6, 4, 3, 2))


@dataclass(frozen=True)
class Case:
    """One optimizer with one option set of its card."""

    stone: Stone
    options: Mapping[str, OptionValue]

    def __str__(self) -> str:
        return "-".join([self.stone.name, *(f"{name}={value}" for name, value in self.options.items())])

    @property
    def full(self):
        """All options, defaults filled in."""
        return self.stone.card.check({}, self.options)

    def has(self, option):
        return any(each.name == option for each in self.stone.card.options)

    def make(self, params, **changes):
        """The optimizer of ``params``; changes to options that it does not have are left out."""
        known = {name: value for name, value in changes.items() if self.has(name)}
        return self.stone.load()(params, **{**self.options, **known})


def cases(examples=None):
    """Cases as pytest parameters: the first ``examples`` (default: all) of each optimizer."""
    made = [Case(stone, options) for stone in STONES for options in stone.card.examples[:examples]]
    return [pytest.param(case, id=str(case)) for case in made]


def normal(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(dtype=torch.float64, *, unit=False, shapes=SHAPES):
    """Parameters of several shapes; with ``unit`` their rows have norm 1."""
    made = [normal(shape, 10 + i) for i, shape in enumerate(shapes)]
    if unit:
        made = [w / w.flatten(1).norm(dim=1).view(-1, *[1] * (w.dim() - 1)) for w in made]
    return [w.to(dtype).requires_grad_() for w in made]


def gradient(parameter, i, step):
    """The made-up gradient of parameter number ``i`` at ``step``."""
    return normal(parameter.shape, 1000 + 50 * step + i).to(parameter.dtype)


def run(optimizer, params, steps=3, first=0, sign=1):
    """Take ``steps`` steps by made-up gradients and return copies of the parameters."""
    for step in range(first, first + steps):
        for i, parameter in enumerate(params):
            parameter.grad = sign * gradient(parameter, i, step)
        optimizer.step()
    return [parameter.detach().clone() for parameter in params]


def attempt(call, by=ValueError):
    """What ``call`` returned and no words, or nothing and the words in which it refused."""
    try:
        return call(), ""
    except by as error:
        return None, str(error)


def named(params):
    """The parameters as torch takes them with names: p0, p1, …"""
    return [(f"p{i}", parameter) for i, parameter in enumerate(params)]


def twins(case, **changes):
    """Parameters and their optimizer after 3 steps, and bit-identical copies of both."""
    params = weights()
    optimizer = case.make(params, **changes)
    run(optimizer, params)
    return (params, optimizer), copy.deepcopy((params, optimizer))


def assert_equal(found, wanted, within=0.0):
    """Fail unless every tensor deviates by at most ``within`` of the largest wanted value; nan equals nan."""
    for i, (left, right) in enumerate(zip(found, wanted, strict=True)):
        assert left.dtype == right.dtype
        scale = right.detach().double().abs().nan_to_num(0).max().item() if right.numel() else 0
        message = f"parameter {i}"
        torch.testing.assert_close(
            left, right, rtol=0, atol=within * scale, equal_nan=True, msg=lambda text, m=message: f"{m}: {text}"
        )
