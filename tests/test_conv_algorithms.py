"""Every convolution algorithm of the catalogue over a grid of options: equal to torch's, in the workspace it states."""

from __future__ import annotations

import itertools
from operator import itemgetter

import pytest
import torch
from harness import assert_near
from torch.nn import functional as F

from layers.card import OptionError
from layers.catalog import stone, stones
from layers.gemm_convolution import GemmConvolution
from layers.shared import CONVOLUTION
from profiles.counting.stated import stated
from profiles.counting.workspace import workspace
from profiles.subject import Setup, subject

SHARED = [option.name for option in CONVOLUTION]
ALGORITHMS = sorted(
    name
    for name, found in stones().items()
    if found.kind == "conv" and found.card.peer and found.card.peer.same and issubclass(found.load(), GemmConvolution)
)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def variants(card):
    """The options of an algorithm's own: their defaults, every choice of the discrete ones, those of the examples."""
    own = {option.name: option for option in card.options if option.name not in SHARED}
    discrete = [
        {o.name: value} for o in own.values() for value in ((True, False) if o.type is bool else o.choices or ())
    ]
    shown = [{name: value for name, value in example.items() if name in own} for example in card.examples]
    changed = [{n: value for n, value in found.items() if value != own[n].default} for found in (*discrete, *shown)]
    return [dict(items) for items in dict.fromkeys(tuple(found.items()) for found in ({}, *changed))]


VARIANTS = [(name, own) for name in ALGORITHMS for own in variants(stone(name).card)]


def setup(shape, kernel, outputs, stride=1, padding=0, dilation=1, groups=1, bias=True, mode="zeros"):
    values = (outputs, kernel, stride, padding, dilation, groups, bias, mode)
    return shape, dict(zip(SHARED, values, strict=True))


GRID = [
    setup((2, 6, 7, 8), 3, 4),
    setup((1, 6, 7, 8), 3, 4, padding=1, bias=False),
    setup((2, 6, 7, 8), 3, 6, padding=1, groups=3),
    setup((2, 6, 7, 8), 3, 6, padding=1, groups=6),
    setup((2, 4, 7, 8), 2, 8, padding=1, groups=4),
    setup((2, 6, 7, 8), 1, 4),
    setup((2, 6, 7, 8), 1, 4, groups=2, bias=False),
    setup((2, 6, 7, 8), 1, 4, stride=2),
    setup((2, 6, 7, 8), 1, 4, padding=1),
    setup((2, 3, 9, 8), (5, 2), 4, stride=(2, 3), padding=(4, 1)),
    setup((2, 4, 5, 9), (1, 5), 4, stride=(3, 1), padding=(3, 2), groups=2),
    setup((2, 4, 9, 5), (4, 1), 6, dilation=(2, 3), padding=(0, 2), groups=2),
    setup((2, 4, 7, 7), 3, 4, dilation=2, padding=2),
    setup((2, 4, 7, 7), 3, 4, dilation=(3, 2), padding=(3, 2), stride=2),
    setup((2, 4, 3, 4), 2, 4, padding=5, bias=False),
    setup((2, 4, 3, 4), 3, 4, padding=6, stride=5, dilation=2),
    setup((3, 4, 3, 5), (3, 5), 4),
    setup((3, 4, 3, 5), (3, 5), 1, groups=1),
    setup((1, 4, 3, 5), (3, 1), 4),
    setup((2, 1, 6, 5), 3, 4, padding=1),
    setup((2, 4, 6, 5), 3, 1, padding=1),
    setup((2, 4, 1, 1), 3, 4, padding=1),
    setup((2, 4, 1, 1), 1, 4),
    setup((2, 4, 1, 6), (1, 3), 4, padding=(0, 1)),
    setup((0, 4, 6, 5), 3, 4, padding=1),
    setup((2, 4, 6, 5), 3, 4, padding=2, mode="reflect"),
    setup((2, 4, 6, 5), 2, 4, padding=(2, 1), mode="circular", groups=2),
]


def refused(card, shape, options):
    """What the card says against the options, as its rules put it; an empty string for nothing."""
    try:
        values = card.symbols(shape, card.check({"C": shape[1]}, options))
    except OptionError as error:
        return str(error)
    return next(filter(None, (rule.refusal(values) for rule in card.rules)), "")


ALL = [(name, shape, {**options, **own}) for name, own in VARIANTS for shape, options in GRID]
ADMITTED = [case for case in ALL if not refused(stone(case[0]).card, *case[1:])]
each_case = pytest.mark.parametrize(
    ("name", "shape", "options"), ADMITTED, ids=[f"{name} {shape} {list(o.values())}" for name, shape, o in ADMITTED]
)
each_variant = pytest.mark.parametrize(("name", "own"), VARIANTS, ids=[f"{name} {own or ''}" for name, own in VARIANTS])


def layer(name, channels, dtype, **options):
    torch.manual_seed(0)
    return stone(name).load()(channels, **options, dtype=dtype)


def data(shape, layout="contiguous", dtype=torch.float64):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return x.contiguous(memory_format=LAYOUTS[layout])


def by_torch(module, x):
    padding = module.padding
    if module.padding_mode != "zeros":
        (high, wide), padding = padding, 0
        x = F.pad(x, (wide, wide, high, high), module.padding_mode)
    return F.conv2d(x, module.weight, module.bias, module.stride, padding, module.dilation, module.groups)


@each_case
def test_outputs_and_gradients_are_those_of_torch(name, shape, options):
    module = layer(name, shape[1], torch.float64, **options)
    for layout in LAYOUTS:
        x = data(shape, layout).requires_grad_()
        y, wanted = module(x), by_torch(module, x)
        assert_near(y, wanted, 1e-12)
        with torch.no_grad():
            assert_near(module(x), wanted, 1e-12)
        leaves, upstream = [x, *module.parameters()], torch.randn_like(wanted)
        found, expected = (torch.autograd.grad(z, leaves, upstream) for z in (y, wanted))
        for one, other in zip(found, expected, strict=True):
            assert_near(one, other, 1e-12)


@each_case
def test_the_workspace_is_the_stated_one_to_the_byte(name, shape, options):
    for layout, dtype in itertools.product(LAYOUTS, ("float32", "float64")):
        made = subject(stone(name), options, Setup(shape, dtype, memory_format=layout))
        module, x = made.build(), made.input()
        with torch.no_grad():
            measured = workspace(lambda: module(x))  # noqa: B023
        is_stated = shape[0] and options["padding_mode"] == "zeros"
        assert stated(made)["memory"]["workspace"]["card"] == (measured if is_stated else None), (layout, dtype)


@each_variant
def test_float32_is_torch_s_to_its_accuracy(name, own):
    for (images, kernel), layout in itertools.product(((1, 3), (2, 2), (3, 1)), LAYOUTS):
        module = layer(name, 32, torch.float32, kernel_size=kernel, padding=kernel // 2, **own)
        x = data((images, 32, 14, 13), layout, torch.float32)
        found = module(x)
        assert_near(found, by_torch(module.double(), x.double()), 3e-6)


@each_variant
def test_what_the_rules_refuse_is_refused_and_the_plain_convolution_is_not(name, own):
    card = stone(name).card
    said = [(shape, {**options, **own}, refused(card, shape, {**options, **own})) for shape, options in GRID]
    assert not said[1][2]
    for shape, options, why in filter(itemgetter(2), said):
        with pytest.raises(ValueError, match=why.partition("=")[0]):
            layer(name, shape[1], torch.float64, **options)(data(shape))
