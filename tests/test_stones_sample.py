"""What is special to ln and in: affine per element, detached statistics, running statistics, torch's layers."""

import itertools

import pytest
import references
import torch
from compared import LAYOUTS, assert_same, by_name, error, gradients, randn, randomized
from torch import nn

from layers.card import OptionError
from layers.norm.in_ import InstanceNorm
from layers.norm.ln import LayerNorm
from layers.norm.ln import card as ln_card

SHAPE = (4, 6, 5, 3)


@pytest.mark.parametrize("detach", ["none", "mean", "std", "both"])
@pytest.mark.parametrize("eps_mode", ["var", "std"])
@pytest.mark.parametrize(("axes", "affine"), [("chw", "channel"), ("chw", "elementwise"), ("channel", "none")])
def test_ln_treats_as_constant_what_detach_names(axes, affine, eps_mode, detach):
    sizes = {"height": SHAPE[2], "width": SHAPE[3]} if affine == "elementwise" else {}
    layer = LayerNorm(
        SHAPE[1], axes, affine, unbiased=True, eps_mode=eps_mode, detach=detach, **sizes, dtype=torch.float64
    )
    randomized(layer)
    upstream = randn(*SHAPE, seed=1)
    for layout in LAYOUTS.values():
        x = layout(randn(*SHAPE)).requires_grad_()
        inputs = (x, layer.weight, layer.bias)
        y, expected = layer(x), references.ln(x, by_name(layer))

        torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
        pairs = zip(gradients(y, inputs, upstream), gradients(expected, inputs, upstream), strict=True)
        for left, right in pairs:
            torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


def test_each_detach_mode_has_its_own_gradient_and_the_same_output():
    x = randn(*SHAPE).requires_grad_()
    for axes in ("chw", "channel"):
        layers = [LayerNorm(SHAPE[1], axes, detach=detach) for detach in ("none", "mean", "std", "both")]
        outputs = [layer.double()(x) for layer in layers]
        found = [gradients(y, [x], randn(*SHAPE, seed=1) + 1)[0] for y in outputs]
        for (y, left), (z, right) in itertools.combinations(zip(outputs, found, strict=True), 2):
            torch.testing.assert_close(y, z, rtol=1e-12, atol=1e-12)
            assert error(left, right) > 1e-2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("affine", ["channel", "elementwise"])
def test_ln_over_a_sample_is_torchs_layer_with_the_same_affine(affine, layout):
    channels, height, width = SHAPE[1:]
    if affine == "channel":
        layer, peer = LayerNorm(channels), nn.GroupNorm(1, channels)
    else:
        layer = LayerNorm(channels, affine="elementwise", height=height, width=width)
        peer = nn.LayerNorm(SHAPE[1:])
    randomized(layer.double())
    peer.double().load_state_dict(layer.state_dict())
    assert_same(layer, peer, LAYOUTS[layout](randn(*SHAPE)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ln_over_channels_is_torchs_on_the_last_axis(layout):
    layer, peer = randomized(LayerNorm(SHAPE[1], "channel").double()), nn.LayerNorm(SHAPE[1]).double()
    peer.load_state_dict(layer.state_dict())
    x = LAYOUTS[layout](randn(*SHAPE))
    assert_same(layer, peer, x, lambda t: peer(t.movedim(1, -1)).movedim(-1, 1))


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 7), (4, 6, 1, 1), (2, 6, 2, 3, 2)], ids=str)
def test_ln_over_channels_takes_every_rank_and_keeps_the_layout(shape):
    layer = randomized(LayerNorm(6, "channel").double())
    for x in (randn(*shape), randn(*shape).movedim(1, -1).contiguous().movedim(-1, 1)):
        y = layer(x)
        assert y.stride() == x.stride()
        torch.testing.assert_close(y, references.ln(x, by_name(layer)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "sizes"), [((4, 6, 7), {"height": 7}), ((2, 6, 2, 3, 4), {"height": 6, "width": 4})], ids=str
)
def test_elementwise_affine_takes_sequences_and_volumes(shape, sizes):
    layer = randomized(LayerNorm(6, affine="elementwise", **sizes, dtype=torch.float64))
    x = randn(*shape)
    plain = LayerNorm(6, affine="none")(x)

    torch.testing.assert_close(layer(x), plain * layer.weight.view(shape[1:]) + layer.bias.view(shape[1:]))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"affine": "elementwise"}, "height"),
        ({"affine": "elementwise", "width": 3}, "height"),
        ({"height": 5}, "height"),
        ({"affine": "none", "width": 5}, "height"),
        ({"affine": "elementwise", "axes": "channel", "height": 5}, "affine"),
        ({"axes": "hw"}, "axes"),
        ({"detach": "all"}, "detach"),
        ({"eps_mode": "root"}, "eps_mode"),
        ({"eps": 0.0}, "eps"),
    ],
    ids=str,
)
def test_ln_refuses_options_that_contradict_each_other(options, named):
    with pytest.raises(OptionError, match=named) as refused:
        LayerNorm(6, **options)
    assert refused.value.option == named


def test_ln_refuses_other_positions_than_it_was_built_for():
    options = {"affine": "elementwise", "height": SHAPE[2], "width": SHAPE[3]}
    layer = LayerNorm(SHAPE[1], **options)
    with pytest.raises(ValueError, match=f"height={SHAPE[3]} and width={SHAPE[2]}"):
        layer(torch.zeros(*SHAPE[:2], SHAPE[3], SHAPE[2]))
    with pytest.raises(OptionError, match=f"needs height={SHAPE[3]} and width={SHAPE[2]}"):
        ln_card.check({"N": 4, "C": 6, "H": SHAPE[3], "W": SHAPE[2]}, options)


def test_ln_refuses_a_statistic_of_one_value():
    with pytest.raises(ValueError, match="more than 1 value per sample"):
        LayerNorm(1)(torch.zeros(4, 1))
    with pytest.raises(OptionError, match="more than 1 channel"):
        LayerNorm(1, "channel")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("ratio", "promised"), [(1e3, 3e-3), (1e4, 3e-2)])
def test_norms_of_samples_and_planes_keep_their_digits_at_a_large_mean(ratio, promised, layout):
    x = LAYOUTS[layout]((randn(4, 12, 16, 16) + ratio).float())
    affine = {"affine": "elementwise", "height": 16, "width": 16}
    for layer in (LayerNorm(12), LayerNorm(12, **affine), LayerNorm(12, detach="mean"), InstanceNorm(12)):
        expected = type(layer)(12, **layer.options, dtype=torch.float64)(x.double())
        assert error(layer(x), expected) < promised


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{"axes": "channel"}, {"affine": "elementwise", "height": 9, "width": 8}], ids=str)
def test_narrow_dtypes_keep_wide_statistics_for_backward(options, layout, dtype):
    layer = LayerNorm(12, **options, dtype=dtype)
    x = LAYOUTS[layout]((randn(4, 12, 9, 8) + 32).to(dtype)).requires_grad_()
    exact, upstream = x.detach().double().requires_grad_(), randn(*x.shape, seed=1).to(dtype)
    (found,) = torch.autograd.grad(layer(x), x, upstream)
    (expected,) = torch.autograd.grad(LayerNorm(12, **options, dtype=torch.float64)(exact), exact, upstream.double())

    assert error(found, expected) < 2 * torch.finfo(dtype).eps


# Instance Normalization.


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("track", [False, True])
def test_in_is_torchs_layer_and_follows_its_statistics(track, affine, layout):
    layer = InstanceNorm(SHAPE[1], affine=affine, track_running_stats=track, dtype=torch.float64)
    peer = nn.InstanceNorm2d(SHAPE[1], affine=affine, track_running_stats=track, dtype=torch.float64)
    peer.load_state_dict(randomized(layer).state_dict())
    for step in range(3):
        assert_same(layer, peer, LAYOUTS[layout](randn(*SHAPE, seed=step) * 2 + 1))
    if track:
        torch.testing.assert_close(layer.running_mean, peer.running_mean)
        torch.testing.assert_close(layer.running_var, peer.running_var)
    assert_same(layer.eval(), peer.eval(), LAYOUTS[layout](randn(*SHAPE, seed=5)))


def test_in_without_momentum_averages_all_batches():
    layer = InstanceNorm(SHAPE[1], momentum=None, track_running_stats=True, dtype=torch.float64)
    batches = [randn(*SHAPE, seed=seed) for seed in range(3)]
    for x in batches:
        layer(x)

    planes = torch.cat(batches).flatten(2)
    torch.testing.assert_close(layer.running_mean, planes.mean(2).mean(0))
    torch.testing.assert_close(layer.running_var, planes.var(2).mean(0))


def test_an_empty_batch_leaves_the_statistics_of_in():
    layer = InstanceNorm(SHAPE[1], affine=True, track_running_stats=True)
    layer(randn(*SHAPE).float())
    before = layer.running_mean.clone(), layer.running_var.clone()

    layer(torch.zeros(0, *SHAPE[1:])).sum().backward()

    assert all(map(torch.equal, before, (layer.running_mean, layer.running_var)))
    assert not layer.weight.grad.any()


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1, 1)])
def test_in_refuses_planes_of_one_position_unless_it_has_statistics(shape):
    for layer in (InstanceNorm(6), InstanceNorm(6).eval(), InstanceNorm(6, track_running_stats=True)):
        with pytest.raises(ValueError, match="more than 1 value"):
            layer(torch.zeros(shape))
    assert InstanceNorm(6, track_running_stats=True).eval()(torch.zeros(shape)).shape == shape
