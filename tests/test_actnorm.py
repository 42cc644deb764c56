"""ActNorm: its first batch, its inverse and log-determinant, and what it remembers."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import references
import torch
from alike import SHAPES, C, assert_like_reference, data, derivatives
from torch.utils._python_dispatch import TorchDispatchMode

from layers.card import OptionError
from layers.norm.actnorm import ActNorm


class Reads(TorchDispatchMode):
    """Counts how often a value leaves the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


ACTNORMS = [
    {},
    {"variance": "biased", "parametrization": "log-scale"},
    {"batch_variance": True, "eps": 0.1},
    {"parametrization": "log-scale", "logscale_factor": 0.5, "batch_variance": True},
]


def actnorm(**options):
    return ActNorm(C, **options, dtype=torch.float64)


@pytest.fixture
def started():
    layer = actnorm()
    layer(data())
    return layer


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", ACTNORMS)
def test_actnorm_equals_its_reference_on_the_first_batch_and_after(shape, options):
    layer = actnorm(**options)
    for seed in range(2):
        assert_like_reference(layer, references.actnorm, data(*shape, seed=seed))
    assert_like_reference(layer.eval(), references.actnorm, data(*shape, seed=2))


@pytest.mark.parametrize("correction", [0, 1])
def test_actnorm_standardises_only_its_first_batch(correction):
    layer = actnorm(variance="unbiased" if correction else "biased", eps=0.5)
    first, second = data(seed=0), data(seed=1) * 5
    std = first.transpose(0, 1).flatten(1).std(1, correction=correction)
    y = layer(first).transpose(0, 1).flatten(1)
    torch.testing.assert_close(y.mean(1), torch.zeros(C, dtype=y.dtype), rtol=0, atol=1e-14)
    torch.testing.assert_close(y.std(1, correction=correction), std / (std + layer.eps))
    before = copy.deepcopy(layer.state_dict())
    assert layer(second).std() > 2
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())


def test_actnorm_has_right_second_derivatives(started):
    names, parameters = zip(*started.named_parameters(), strict=True)
    assert torch.autograd.gradgradcheck(
        lambda x, *p: torch.func.functional_call(started, dict(zip(names, p, strict=True)), x).sin(),
        (data(seed=1).requires_grad_(), *parameters),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", ACTNORMS)
def test_actnorm_logdet_is_that_of_the_jacobian_and_the_inverse_undoes_it(shape, options):
    layer = actnorm(**options, logdet=True)
    x = data(*shape)
    y, logdet = layer(x)
    back, negative = layer.inverse(y)
    jacobian = torch.autograd.functional.jacobian(lambda one: layer(one[None])[0], x[0]).reshape(x[0].numel(), -1)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(logdet, torch.linalg.slogdet(jacobian)[1])
    torch.testing.assert_close(negative, -logdet)
    assert logdet.shape == ()


def test_actnorm_logdet_has_the_derivative_of_its_formula():
    x = data()
    for layer in (actnorm(logdet=True), actnorm(logdet=True, parametrization="log-scale", logscale_factor=2.0)):
        _, logdet = layer(x)
        learned = layer._learned
        loc, gradient = torch.autograd.grad(logdet, (layer.loc, learned), allow_unused=True)
        positions = math.prod(x.shape[2:])
        expected = positions / learned if learned is getattr(layer, "scale", None) else positions * 2.0
        torch.testing.assert_close(gradient, torch.as_tensor(expected).expand(C).to(gradient))
        assert loc is None


def test_actnorm_takes_a_negative_scale_and_refuses_to_invert_a_zero_one(started):
    x = data()
    with torch.no_grad():
        started.scale.neg_()
    torch.testing.assert_close(started.inverse(started(x)), x)
    with torch.no_grad():
        started.scale[1] = 0
    with pytest.raises(ValueError, match="the scale of channel 1 is 0"):
        started.inverse(x)


def test_actnorm_refuses_evaluation_and_inverse_before_the_first_batch():
    with pytest.raises(ValueError, match="run one batch in training mode"):
        actnorm().eval()(data())
    with pytest.raises(ValueError, match="run one training batch"):
        actnorm().inverse(data())


@pytest.mark.parametrize(
    ("options", "x", "message"),
    [
        ({}, torch.zeros(0, C, 2, 2), "0 values per channel"),
        ({}, torch.zeros(1, C), "1 values per channel"),
        ({}, torch.tensor([[1.0, math.inf, 1], [0, 0, 2]]), "channel 1 holds inf or nan"),
        ({}, torch.tensor([[1.0, 1, math.nan], [0, 0, 2]]), "channel 2 holds inf or nan"),
        ({"eps": 0.0}, torch.tensor([[1.0, 1, 2], [0, 0, 2]]), "channel 2 is constant; give eps > 0"),
    ],
)
def test_actnorm_refuses_a_first_batch_it_cannot_use(options, x, message):
    layer = ActNorm(C, **options)
    with pytest.raises(ValueError, match=message):
        layer(x)
    assert not layer.initialized
    assert torch.equal(layer.scale, torch.ones(C))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_actnorm_stays_finite_on_a_constant_channel(dtype):
    for parametrization in ("scale", "log-scale"):
        layer = ActNorm(C, parametrization=parametrization, logdet=True, dtype=dtype)
        y, logdet = layer(torch.full((4, C, 2, 2), 7, dtype=dtype))
        assert y.isfinite().all()
        assert logdet.isfinite()


def test_actnorm_keeps_what_a_state_dict_says(started):
    fresh, x = actnorm(), data(seed=1)
    fresh.load_state_dict(started.state_dict())
    assert torch.equal(fresh.eval()(x), started(x))
    fresh.train().load_state_dict(actnorm().state_dict())
    fresh(x)
    assert not torch.equal(fresh.loc, started.loc)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), torch.clone])
def test_actnorm_copies_remember(started, copied):
    if copied is torch.clone:
        buffer = io.BytesIO()
        torch.save(started.state_dict(), buffer)
        buffer.seek(0)
        made = actnorm()
        made.load_state_dict(torch.load(buffer, weights_only=True), assign=True)
    else:
        made = copied(started)
    x = data(seed=1)
    assert torch.equal(made(x), started(x))
    made.reset_parameters()
    made(x)
    assert not torch.equal(made(x), started(x))


def test_actnorm_notices_who_writes_into_its_buffer(started):
    """As data-parallel wrappers do when they spread the state of rank 0."""
    other, x = actnorm(), data(seed=1)
    for name, tensor in other.state_dict().items():
        tensor.copy_(started.state_dict()[name])
    assert torch.equal(other(x), started(x))
    started.initialized.fill_(False)
    started(x)
    assert not torch.equal(other(x), started(x))


def test_actnorm_in_functional_calls_does_not_take_their_state_for_its_own(started):
    fresh, x = actnorm(), data(seed=1)
    called = torch.func.functional_call(fresh, started.state_dict(), x)
    assert torch.equal(called, started(x))
    fresh(x)
    assert not torch.equal(fresh(x), called)


def test_actnorm_asks_the_device_once():
    layer, x = actnorm(), data()
    layer(x)
    layer(x)
    with Reads() as reads:
        layer(x)
        layer.eval()(x)
    assert reads.count == 0
    layer.load_state_dict(layer.state_dict())
    with Reads() as reads:
        layer(x)
        layer(x)
    assert reads.count == 1


def test_actnorm_can_be_built_and_run_without_memory():
    layer = ActNorm(C, logdet=True, device="meta")
    y, logdet = layer(torch.empty(4, C, 3, 2, device="meta"))
    assert (y.shape, logdet.shape) == ((4, C, 3, 2), ())
    real, x = layer.to_empty(device="cpu"), data().float()
    real.reset_parameters()
    assert real(x)[0].mean().abs() < 1e-6


def test_actnorm_remembers_on_the_way_to_a_device_without_memory(started):
    assert copy.deepcopy(started).to("meta")(torch.empty(0, C, device="meta", dtype=torch.float64)).shape == (0, C)
    with pytest.raises(ValueError, match="0 values per channel"):
        actnorm().to("meta")(torch.empty(0, C, device="meta", dtype=torch.float64))


def test_actnorm_compiled_from_the_first_batch_equals_eager():
    eager = actnorm(parametrization="log-scale")
    module = copy.deepcopy(eager)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for seed in range(3):
        x = data(seed=seed).requires_grad_()
        y, expected = compiled(x), eager(x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(derivatives(y, x, module), derivatives(expected, x, eager))
        torch.testing.assert_close(module.state_dict(), eager.state_dict())
    module.load_state_dict(actnorm(parametrization="log-scale").state_dict())
    torch.testing.assert_close(compiled(x).mean(), torch.zeros((), dtype=x.dtype))
    assert module.initialized


def test_actnorm_compiled_keeps_a_loaded_state(started):
    loaded, x = actnorm(), data(seed=1)
    loaded.load_state_dict(started.state_dict())
    assert torch.equal(torch.compile(loaded, backend="aot_eager", fullgraph=True)(x), started(x))
    torch._dynamo.reset()
    assert torch.equal(torch.compile(copy.deepcopy(loaded).eval(), backend="aot_eager", fullgraph=True)(x), started(x))


def test_actnorm_compiled_refuses_a_batch_that_is_not_finite():
    x = data()
    x[0, 0] = math.inf
    with pytest.raises(RuntimeError, match="not finite"):
        torch.compile(actnorm(), backend="aot_eager", fullgraph=True)(x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("offset", "within"), [(1e3, 3e-3), (1e4, 3e-2)])
def test_actnorm_keeps_its_digits_far_from_zero(layout, offset, within):
    x = (data(8, C, 32, 32).float() + offset).contiguous(memory_format=layout).requires_grad_()
    layer, exact = ActNorm(C), actnorm()
    y, expected = layer(x), exact(x.double())
    assert y.is_contiguous(memory_format=layout)
    assert (y - expected).abs().max() < within * expected.abs().max()
    for found, wanted in zip(derivatives(y, x, layer), derivatives(expected, x, exact), strict=True):
        assert (found - wanted).abs().max() < within * wanted.abs().max()


@pytest.mark.parametrize(
    "options", [{"eps": -1e-6}, {"variance": "both"}, {"parametrization": "exp"}, {"logscale_factor": 0.0}]
)
def test_actnorm_refuses_bad_options_by_name(options):
    (name,) = options
    with pytest.raises(OptionError, match=name):
        ActNorm(C, **options)
