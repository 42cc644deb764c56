"""Every stone of the catalogue made ready for a promise: stone × example of its card × training or evaluation.

A layer is built in float64, warmed by three training steps (running statistics, counters and rings hold what they hold
in the middle of a training), and its parameters are moved off their initial values: a fresh γ = 1, β = 0 hides half of
all gradient bugs. Inputs have a mean and a spread of their own in every channel. Nothing here knows a stone by name.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from layers import catalog, formula
from layers.card import OptionError, OptionValue, sizes
from layers.catalog import Stone

CHANNELS, BATCH = 12, 4
# Positions of the inputs by rank. An example whose options fix the height and width fixes 3 × 4.
POSITIONS = {4: (3, 4), 3: (5,), 2: (), 5: (2, 3, 2)}
SHAPES = tuple((BATCH, CHANNELS, *positions) for positions in POSITIONS.values())

_built: dict[tuple, torch.nn.Module] = {}

STONES = [stone for stone in catalog.stones().values() if stone.card.role == "layer"]


@dataclass(frozen=True)
class Case:
    """One stone with one option set of its card in one mode."""

    stone: Stone
    options: Mapping[str, OptionValue]
    train: bool = True

    def __str__(self) -> str:
        words = ",".join(f"{name}={value}" for name, value in self.options.items())
        return "-".join([self.stone.name, *([words] if words else []), "train" if self.train else "eval"])

    @property
    def full(self) -> dict[str, OptionValue]:
        """All options, defaults filled in."""
        return self.stone.card.check({"C": CHANNELS}, self.options)

    @property
    def couples(self) -> bool:
        """Whether the card lets one sample's output depend on another in this mode."""
        return self.stone.card.couples == "always" or (self.stone.card.couples == "train" and self.train)

    @property
    def exact(self) -> bool:
        """Whether the backward is the derivative of the forward."""
        return bool(formula.evaluate(self.stone.card.exact_gradient, self.full))

    @property
    def derivable(self) -> bool:
        """Whether the card says that the gradient may be derived again."""
        return bool(formula.evaluate(self.stone.card.derivable, self.full))

    @property
    def remembers(self) -> bool:
        """Whether the card says that the training output depends on stored statistics."""
        return bool(formula.evaluate(self.stone.card.remembers, self.full))

    @property
    def eval_differs(self) -> bool:
        """Whether evaluation gives another output than training, as the card says."""
        return bool(formula.evaluate(self.stone.card.eval_differs, self.full))

    def symbols(self, shape):
        """The symbols of the card's formulas for an input of ``shape``."""
        return self.stone.card.symbols(shape, self.full, train=self.train)

    def refusal(self, shape) -> str:
        """What the card says against an input of ``shape``; empty when it admits it."""
        if len(shape) not in self.stone.card.ranks:
            return f"inputs have {' or '.join(map(str, self.stone.card.ranks))} axes, this one {len(shape)}"
        try:
            self.stone.card.check(sizes(shape, train=self.train), self.options)
        except OptionError as error:
            return str(error)
        return ""

    def output(self, shape):
        """The shape of the output for an input of ``shape``, as the card says."""
        return self.stone.card.output_shape(shape, self.full)

    @property
    def convolves(self) -> bool:
        """Whether each output sums products: over a window, as the card's O×HO×WO outputs say, or as a linear layer."""
        card = self.stone.card
        return {"O", "HO", "WO"} <= card.derived.keys() or (card.ranks == (2,) and "O" in card.derived)

    @property
    def follows_itself(self) -> bool:
        """Whether the output is admitted as an input."""
        shape = self.output(self.shape())
        return shape[1] == CHANNELS and not self.refusal(shape)

    def shapes(self, *wanted):
        """Those of ``wanted`` (default: one shape of every rank) that the card admits, the standard one at least."""
        admitted = [shape for shape in wanted or SHAPES if not self.refusal(shape)]
        return admitted or [shape for shape in SHAPES if not self.refusal(shape)][:1]

    def shape(self, *wanted):
        """The first admitted shape."""
        return self.shapes(*wanted)[0]

    def fresh(self, dtype=torch.float64, seed=0):
        """A layer as the constructor makes it, in this case's mode; ``seed`` decides what it draws."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.stone.load()(CHANNELS, **self.options, dtype=dtype).train(self.train)

    def layer(self, dtype=torch.float64, *, seed=0, warm=3, inputs=None):
        """A layer with a past of ``warm`` training steps and random parameters."""
        key = (self.stone.name, str(self.options), seed, warm, inputs)
        if key not in _built:
            _built[key] = self._build(seed, warm, inputs or normal)
        return copy.deepcopy(_built[key]).to(dtype).train(self.train)

    def _build(self, seed, warm, inputs):
        made = self.fresh(seed=seed).train()
        shape = Case(self.stone, self.options).shape()
        for step in range(warm):
            y = outputs(made(inputs(shape, seed=100 + seed + step).requires_grad_()))[0]
            y.backward(normal(y.shape, seed=200 + seed + step))
        randomise(made, seed)
        return made


def cases(*modes, examples=None):
    """Cases as pytest parameters: the first ``examples`` (default: all) of each stone, in ``modes``.

    The default is training, and evaluation where the card says that it differs: that the two are the same elsewhere,
    bit for bit, is a promise with a test of its own.
    """
    return [
        pytest.param(case, id=str(case))
        for stone in STONES
        for options in stone.card.examples[:examples]
        for train in modes or ((True, False) if Case(stone, options).eval_differs else (True,))
        for case in [Case(stone, options, train)]
    ]


def randomise(layer, seed=0):
    """Add 0.3 N(0, 1) to every parameter and forget the gradients of the past."""
    generator = torch.Generator().manual_seed(300 + seed)
    for parameter in layer.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = None


def normal(shape, seed=0, dtype=torch.float64):
    """Random numbers; the channels of an input have different means and spreads."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if len(shape) > 1:
        spread = torch.linspace(0.5, 2.0, shape[1], dtype=torch.float64)
        x = per_channel(spread, x) * x + per_channel((3 * spread).sin(), x)
    return x.to(dtype)


def per_channel(numbers, x):
    """View (C,) so that it broadcasts over x."""
    return numbers.view(-1, *[1] * (x.dim() - 2))


def outputs(y):
    """The tensors that a layer returned."""
    return y if isinstance(y, tuple) else (y,)


def state(layer):
    """Copies of the buffers."""
    return {name: buffer.clone() for name, buffer in layer.named_buffers()}


@dataclass
class Pass:
    """What one forward and backward showed: output, gradients of the input and parameters, buffers afterwards."""

    y: torch.Tensor
    x: torch.Tensor | None
    parameters: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]

    def tensors(self):
        """Everything under one name each."""
        grads = {f"gradient of {name}": grad for name, grad in {"x": self.x, **self.parameters}.items()}
        return {"y": self.y, **grads, **{f"buffer {name}": buffer for name, buffer in self.buffers.items()}}


def run(layer, x, upstream=None, call=None):
    """One forward and backward of ``layer`` (or of ``call``, which wraps it) on a leaf that shares ``x``'s strides."""
    layer.zero_grad()
    leaf = x.detach().requires_grad_()
    y = outputs((layer if call is None else call)(leaf))[0]
    y.backward(normal(y.shape, seed=7).to(y.dtype) if upstream is None else upstream)
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return Pass(y.detach(), leaf.grad, gradients, state(layer))


def expected(case, layer, x, upstream=None):
    """The same from the naive reference, on the parameters and buffers that ``layer`` has now."""
    leaf = x.detach().clone().requires_grad_()
    learnt = {name: parameter.detach().clone().requires_grad_() for name, parameter in layer.named_parameters()}
    y, after = reference(case, layer, leaf, learnt)
    upstream = normal(y.shape, seed=7) if upstream is None else upstream
    found = torch.autograd.grad(y, (leaf, *learnt.values()), upstream, materialize_grads=True)
    return Pass(y.detach(), found[0], dict(zip(learnt, found[1:], strict=True)), {**state(layer), **after})


def reference(case, layer, x, learnt):
    """The naive output for parameters ``learnt`` and the buffers of ``layer``, and the buffers expected after it."""
    absent = dict.fromkeys(("weight", "bias", *layer._parameters, *layer._buffers))  # a bias, and not the option
    p = SimpleNamespace(**{**case.full, **absent, **state(layer), **learnt}, training=layer.training)
    found = function(case.stone)(x, p)
    y, after = found if isinstance(found, tuple) else (found, {})
    return y, {name: torch.as_tensor(buffer) for name, buffer in after.items()}


def function(stone):
    """The reference of ``stone`` in references.py or one of its parts, such as references_weights.py."""
    name = stone.name.replace("-", "_")
    parts = [importlib.import_module(path.stem) for path in sorted(Path(__file__).parent.glob("references*.py"))]
    places = [(module, spelt) for module in parts for spelt in (name, f"{name}_")]
    return next((getattr(module, spelt) for module, spelt in places if hasattr(module, spelt)), None)


def scale(tensor):
    """The largest finite magnitude of ``tensor``: what deviations are relative to."""
    return tensor.abs().nan_to_num(0, 0, 0).max().item() if tensor.numel() else 0.0


def assert_near(found, wanted, within, what=""):
    """Fail unless shapes agree and the largest deviation is at most ``within`` of the largest wanted value."""
    assert found.shape == wanted.shape, f"{what}: shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
    assert found.isfinite().all(), f"{what} is not finite"
    deviation = scale(found.double() - wanted.double())
    admitted = within * max(scale(wanted.double()), torch.finfo(torch.float32).tiny)
    assert deviation <= admitted, f"{what} deviates by {deviation:.3g}, admitted are {admitted:.3g}"


def assert_same(found, wanted, what=""):
    """Fail unless bit-identical."""
    assert found.dtype == wanted.dtype, f"{what}: {found.dtype}, not {wanted.dtype}"
    deviation = f"{what} deviates by {scale(found.double() - wanted.double()):.3g}"
    assert torch.equal(found, wanted), deviation


def assert_passes(found, wanted, compare=assert_same, *arguments):
    """Compare two `Pass`es tensor by tensor."""
    theirs, ours = wanted.tensors(), found.tensors()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor is None) == (theirs[name] is None), f"{name} is {tensor}, not {theirs[name]}"
        if tensor is not None:
            compare(tensor, theirs[name], *arguments, what=name)


def pure(layer):
    """``f(x, *parameters) -> y`` on copies of the buffers, so that it may be called again and again."""
    names = [name for name, _ in layer.named_parameters()]

    def f(x, *parameters):
        values = {**dict(zip(names, parameters, strict=True)), **state(layer)}
        return outputs(torch.func.functional_call(layer, values, (x,)))[0]

    return f
