"""What is special to adanorm, pono and pixel-norm, and what they share with ln over channels."""

import itertools

import pytest
import torch
from compared import LAYOUTS, assert_same, error, randn
from torch.nn import functional as F

from layers import catalog, positions
from layers.card import OptionError
from layers.norm.adanorm import AdaNorm
from layers.norm.ln import LayerNorm
from layers.norm.pixel_norm import PixelNorm
from layers.norm.pono import PositionalNorm, moment_shortcut
from layers.observe import observing

SHAPE = (4, 6, 5, 3)


@pytest.mark.parametrize("eps_mode", ["var", "std"])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
def test_constant_positions_have_finite_gradients(value, eps_mode):
    x = torch.full(SHAPE, value, requires_grad=True)
    layers = [
        LayerNorm(SHAPE[1], axes, unbiased=unbiased, eps_mode=eps_mode)
        for axes, unbiased in itertools.product(("chw", "channel"), (False, True))
    ]
    for layer in [*layers, AdaNorm(SHAPE[1], eps_mode=eps_mode)]:
        y = layer(x)
        (found,) = torch.autograd.grad(y, x, randn(*SHAPE).float())
        assert y.isfinite().all()
        assert found.isfinite().all()


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 7), SHAPE, (2, 6, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("layer", [LayerNorm(6, "channel"), AdaNorm(6), PositionalNorm(6), PixelNorm(6)], ids=str)
def test_statistics_of_positions_have_the_stated_shape_at_every_rank(layer, shape):
    module = type(layer).__module__
    card = next(stone.card for stone in catalog.stones().values() if stone.module == module)
    for x in (randn(*shape), randn(*shape).movedim(1, -1).contiguous().movedim(-1, 1)):
        with observing() as seen:
            layer(x.float())
        stated = {stat.name: stat.at(card.symbols(shape, layer.options)) for stat in card.statistics}
        assert {name: tuple(tensor.shape) for name, tensor in seen.items()} == {
            name: size for name, size in stated.items() if size is not None
        }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layer", [LayerNorm(6, "channel"), AdaNorm(6), PositionalNorm(6)], ids=str)
def test_differences_that_fp16_cannot_hold_are_computed_in_float32(layer, layout):
    x = LAYOUTS[layout]((randn(*SHAPE).sign() * 6e4).half())
    assert (x - x[:, :1]).isinf().any()

    assert error(layer.half()(x), layer.double()(x.double())) < 2 * torch.finfo(torch.float16).eps


# AdaNorm.


def test_adanorm_is_the_authors_formula_by_default():
    x = randn(*SHAPE)
    z = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)  # torch's std is unbiased, as theirs is

    torch.testing.assert_close(AdaNorm(SHAPE[1])(x), 2 * (1 - z / 10) * z, rtol=1e-12, atol=1e-12)


def test_the_gain_is_a_constant_in_backward():
    x, layer, upstream = randn(*SHAPE).requires_grad_(), AdaNorm(SHAPE[1]), randn(*SHAPE, seed=1)
    z = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + layer.eps)
    gain = layer.scale * (1 - layer.k * z.detach())

    (found,) = torch.autograd.grad(layer(x), x, upstream)
    (expected,) = torch.autograd.grad(gain * z, x, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("channels", "positive"), [(101, True), (102, False)])
def test_the_gain_is_positive_up_to_the_channels_that_the_card_names(channels, positive):
    one_hot = torch.zeros(1, channels, dtype=torch.float64)
    one_hot[0, 0] = 1  # attains the largest z
    layer = AdaNorm(channels, k=0.1, eps=1e-30)
    z = positions.standardize(one_hot, None, None, layer.recipe._replace(gain=positions.PLAIN))[0]

    assert (layer.gain(z).min() > 0).item() is positive


@pytest.mark.parametrize("options", [{"k": -0.1}, {"scale": 0.0}, {"eps_mode": "root"}, {"eps": -1e-5}], ids=str)
def test_adanorm_refuses_bad_options(options):
    with pytest.raises(OptionError) as refused:
        AdaNorm(6, **options)
    assert refused.value.option == next(iter(options))


# Positional Normalization and its shortcut.


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("unbiased", [False, True])
def test_gradients_flow_through_the_moments_of_pono(unbiased, layout):
    layer = PositionalNorm(3, unbiased=unbiased, return_stats=True)
    x = LAYOUTS[layout](randn(2, 3, 2, 2)).requires_grad_()

    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)


def test_the_moments_are_those_of_the_channels():
    x = randn(*SHAPE)
    for unbiased in (False, True):
        _, mean, std = PositionalNorm(SHAPE[1], unbiased=unbiased, return_stats=True)(x)
        var = x.var(1, correction=int(unbiased), keepdim=True)
        torch.testing.assert_close(mean, x.mean(1, keepdim=True))
        torch.testing.assert_close(std, (var + 1e-5).sqrt())


def test_the_shortcut_injects_moments_and_sends_their_gradients_back():
    x, encoder = randn(*SHAPE).requires_grad_(), randn(SHAPE[0], 9, *SHAPE[2:], seed=1).requires_grad_()
    _, mean, std = PositionalNorm(9, return_stats=True)(encoder)
    y = moment_shortcut(x, mean, std)

    torch.testing.assert_close(y, std * x + mean)
    found = torch.autograd.grad(y.square().sum(), (x, encoder, mean, std))
    expected = (2 * y * std, (2 * y).sum(1, keepdim=True), (2 * y * x).sum(1, keepdim=True))
    for left, right in zip((found[0], *found[2:]), expected, strict=True):
        torch.testing.assert_close(left, right)
    assert found[1].abs().max() > 0


def test_the_shortcut_keeps_a_narrow_dtype():
    x = randn(*SHAPE).half()
    y, mean, std = PositionalNorm(SHAPE[1], return_stats=True)(x)

    assert (y.dtype, mean.dtype, std.dtype) == (torch.float16, torch.float32, torch.float32)
    restored = moment_shortcut(y, mean, std)
    assert restored.dtype == torch.float16
    assert error(restored, x) < 2 * torch.finfo(torch.float16).eps


@pytest.mark.parametrize("shape", [SHAPE, (4, 1, 5), (4, 1, 3, 5), (1, 1, 5, 3), (1, 5, 3)], ids=str)
def test_the_shortcut_refuses_moments_of_another_shape(shape):
    x, right, wrong = torch.zeros(SHAPE), torch.zeros(4, 1, 5, 3), torch.zeros(shape)
    with pytest.raises(ValueError, match="mean has shape"):
        moment_shortcut(x, wrong, right)
    with pytest.raises(ValueError, match="std has shape"):
        moment_shortcut(x, right, wrong)


@pytest.mark.parametrize("unbiased", [False, True])
def test_norms_of_a_position_refuse_a_single_channel(unbiased):
    for layer in (PositionalNorm, AdaNorm):
        with pytest.raises(OptionError, match="more than 1 channel"):
            layer(1, unbiased=unbiased)


# Pixel Norm.


def test_pixel_norm_survives_squares_that_fp16_cannot_hold():
    x = torch.full(SHAPE, 300.0, dtype=torch.float16)
    assert x.square().isinf().all()

    torch.testing.assert_close(PixelNorm(SHAPE[1])(x), torch.ones_like(x), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_pixel_norm_of_zero_is_zero(dtype):
    x = torch.zeros(SHAPE, dtype=dtype, requires_grad=True)
    y = PixelNorm(SHAPE[1])(x)
    (found,) = torch.autograd.grad(y.sum(), x)

    assert not y.any()
    assert found.isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pixel_norm_is_torchs_rms_norm_of_the_channels(layout):
    layer = PixelNorm(SHAPE[1])

    def peer(x):
        return F.rms_norm(x.movedim(1, -1), (SHAPE[1],), eps=layer.eps).movedim(-1, 1)

    assert_same(layer, layer, LAYOUTS[layout](randn(*SHAPE)), peer)
