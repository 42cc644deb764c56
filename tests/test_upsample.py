"""Channels to positions and back, sub-pixel convolutions as transposed ones, equal starts, labels of dense scores."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from harness import assert_near, assert_same, normal
from layouts import LAYOUTS
from references_upsample import to_positions
from torch import nn
from torch.nn import functional as F

from layers.init.icnr import excludes, icnr_
from layers.option import OptionError
from layers.space_depth import by_offset, depth_to_space, repeat_filters, space_to_depth
from layers.transposed import from_transposed, to_transposed
from layers.upsample.duc import DUC, duc_labels
from layers.upsample.irevnet_squeeze import Squeeze, pixel_unshuffle_order
from layers.upsample.subpixel import SubPixelConv2d
from layers.weights import weights

ORDERS = ("crd", "dcr")
BLOCKS = (1, 2, 3, (1, 2), (3, 1), (2, 3))


def seeded(call, *arguments, seed=3, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return call(*arguments, **options)


# The rearrangement.


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_there_and_back_is_the_same_bit_for_bit(block, order):
    high, wide = (block, block) if isinstance(block, int) else block
    for lay in LAYOUTS.values():
        z, y = lay(normal((2, 3 * high * wide, 4, 5))), lay(normal((2, 3, 4 * high, 5 * wide)))
        assert_same(space_to_depth(depth_to_space(z, block, order), block, order), z, what="z")
        assert_same(depth_to_space(space_to_depth(y, block, order), block, order), y, what="y")


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.complex64]
)
def test_numbers_of_every_dtype_are_moved(dtype):
    z = (3 * normal((2, 8, 3, 4))).to(dtype)
    assert_same(depth_to_space(z, 2).real, F.pixel_shuffle(z, 2).real, what="y")
    assert_same(space_to_depth(depth_to_space(z, 2, "dcr"), 2, "dcr").real, z.real, what="z")


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_the_orders_are_those_of_torch_and_of_the_definition(scale):
    z = normal((2, 2 * scale**2, 3, 4))
    assert_same(depth_to_space(z, scale), F.pixel_shuffle(z, scale), what="crd")
    for order in ORDERS:
        assert_same(depth_to_space(z, scale, order), to_positions(z, scale, order), what=order)
    assert torch.equal(depth_to_space(z, scale), depth_to_space(z, scale, "dcr")) == (scale == 1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: depth_to_space(torch.zeros(1, 6, 2, 2), 2), "blocks of 2×2 need a multiple of 4 channels, not 6"),
        (lambda: space_to_depth(torch.zeros(1, 6, 4, 5), (2, 3)), "blocks of 2×3 do not divide 4×5 positions"),
        (lambda: depth_to_space(torch.zeros(1, 4, 2, 2), 0), "block=0 is not an integer ≥ 1"),
        (lambda: depth_to_space(torch.zeros(1, 4, 2, 2), True), "block=True is not"),
        (lambda: depth_to_space(torch.zeros(1, 4, 2, 2), (2, 1, 1)), "block=.2, 1, 1. is not"),
        (lambda: space_to_depth(torch.zeros(1, 4, 2, 2), 2.0), "block=2.0 is not"),
        (lambda: space_to_depth(torch.zeros(1, 4, 2, 2), (1, True)), "block=.1, True. is not"),
        (lambda: space_to_depth(torch.zeros(1, 4, 2, 2), 2, "tf"), "order='tf' is not one of crd, dcr"),
        (lambda: space_to_depth(torch.zeros(4, 2, 2), 2), "not 3-d"),
        (lambda: by_offset(torch.zeros(6, 2), 2), "scale=2 needs a multiple of 4 filters, not 6"),
        (lambda: repeat_filters(torch.zeros(6, 2), -1), "scale=-1 is not an integer ≥ 1"),
        (lambda: by_offset(torch.zeros(8, 2), (2, 2)), "scale=.2, 2. is not an integer ≥ 1"),
        (lambda: from_transposed(torch.zeros(4, 2, 3, 3), 0), "scale=0 is not an integer ≥ 1"),
        (lambda: from_transposed(torch.zeros(4, 2, 3, 3), 2, "tf"), "order='tf' is not one of crd, dcr"),
        (lambda: from_transposed(torch.zeros(4, 2, 3), 2), "4 axes, not 3"),
        (lambda: to_transposed(torch.zeros(4, 2), 2), "4 axes, not 2"),
        (lambda: duc_labels(torch.zeros(1, 4, 4), 0), "scale=0 is not an integer ≥ 1"),
        (lambda: duc_labels(torch.zeros(1, 4, 4), (2, 2)), "scale=.2, 2. is not an integer ≥ 1"),
        (lambda: Squeeze(3).inverse(torch.zeros(1, 8, 2, 2)), "Squeeze.inverse takes"),
        (lambda: Squeeze(3)(torch.zeros(1, 3, 5, 4)), r"block_size=\(2, 2\) does not divide the input of 5×4"),
        (lambda: duc_labels(torch.zeros(1, 4, 5), 2), "scale=2 does not divide labels of 4×5"),
        (lambda: duc_labels(torch.zeros(1, 1, 4, 4), 2), "not 4-d"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_sizes(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# ψ of i-RevNet.


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("block", [1, 2, 3])
def test_sorted_channels_of_psi_are_those_of_pixel_unshuffle(channels, block):
    x, order = normal((2, channels, 6, 12)), pixel_unshuffle_order(channels, block)
    z = Squeeze(channels, block)(x)
    assert_same(z[:, order], F.pixel_unshuffle(x, block), what="z")
    assert torch.equal(order, torch.arange(len(order))) == (channels == 1 or block == 1)
    assert_same(Squeeze(channels, block, "crd")(x), F.pixel_unshuffle(x, block), what="z in the order crd")


# Sub-pixel convolutions are transposed ones.


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("kernel", "padding", "scale"), [(1, 0, 2), (2, 1, 3), (3, 0, 2), (3, 1, 2), (3, 2, 3), (5, 2, 1)]
)
def test_the_transposed_convolution_has_the_same_outputs_and_back(kernel, padding, scale, order):
    layer = SubPixelConv2d(3, 2, scale, kernel, padding, bias=False, order=order, dtype=torch.float64)
    other, x = layer.to_transposed(), normal((2, 3, 4, 5))
    assert_near(other(x), layer(x), 1e-13, what="y")
    assert_same(SubPixelConv2d.from_transposed(other, order).conv.weight, layer.conv.weight, what="the weight")
    assert sum(p.numel() for p in other.parameters()) == sum(p.numel() for p in layer.parameters())


@pytest.mark.parametrize("order", ORDERS)
def test_the_weight_is_mapped_element_by_element_as_the_definition_says(order):
    r, k, o, c = 2, 3, 3, 2
    w = normal((o * r * r, c, k, k))
    made = to_transposed(w, r, order)
    for ch, i, j, a, e in itertools.product(range(o), range(r), range(r), range(k), range(k)):
        filters = w[ch * r * r + i * r + j] if order == "crd" else w[(i * r + j) * o + ch]
        assert torch.equal(made[:, ch, (k - 1 - a) * r + i, (k - 1 - e) * r + j], filters[:, a, e])
    assert_same(from_transposed(made, r, order), w, what="the weight")


TRANSPOSED = [
    (kernel, stride, padding, more)
    for kernel, stride in itertools.product((1, 2, 3, 4, 5), (1, 2, 3))
    for padding, more in itertools.product(range(3), range(stride))
    if 3 * stride - 2 * padding + kernel + more > stride
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "more"), TRANSPOSED)
def test_every_transposed_convolution_of_whole_steps_is_a_sub_pixel_one(kernel, stride, padding, more):
    layer = nn.ConvTranspose2d(3, 2, kernel, stride, padding, more, dtype=torch.float64)
    x = normal((2, 3, 4, 5))
    y = layer(x)
    crops = kernel + more - padding + -padding % stride < stride
    if y.shape[2] % stride or crops:
        with pytest.raises(
            OptionError, match=f"no multiple of stride={stride}" if y.shape[2] % stride else "crops more"
        ):
            SubPixelConv2d.from_transposed(layer)
        return
    made = SubPixelConv2d.from_transposed(layer, "dcr")
    assert_near(made(x), y, 1e-13, what="y")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernel_size": 4, "groups": 2}, "groups=1"),
        ({"kernel_size": 4, "dilation": 2}, "dilation=1"),
        ({"kernel_size": (4, 2)}, "differs between the axes"),
        ({"kernel_size": 4, "padding": (1, 0)}, "differs between the axes"),
        ({"kernel_size": 3}, "no multiple of stride=2"),
        ({"kernel_size": 2, "padding": 2}, "crops more"),
    ],
)
def test_other_transposed_convolutions_are_refused_with_the_reason(options, words):
    with pytest.raises(OptionError, match=words):
        SubPixelConv2d.from_transposed(nn.ConvTranspose2d(4, 2, stride=2, **options))


@pytest.mark.parametrize("order", ORDERS)
def test_a_bias_goes_there_and_back_where_the_sub_positions_share_it(order):
    x = normal((2, 3, 4, 5))
    shared = SubPixelConv2d(3, 2, order=order, icnr=True, dtype=torch.float64)
    other = shared.to_transposed()
    assert other.bias.shape == (2,)
    assert_near(other(x), shared(x), 1e-13, what="y")
    assert_same(SubPixelConv2d.from_transposed(other, order).conv.bias, shared.conv.bias, what="the bias")
    with pytest.raises(OptionError, match="differs between the 4 sub-positions"):
        SubPixelConv2d(3, 2, order=order).to_transposed()


def test_a_convolution_that_is_not_transposed_is_not_taken_for_one():
    with pytest.raises(TypeError, match=r"torch\.nn\.ConvTranspose2d is made a sub-pixel convolution, not Conv2d"):
        SubPixelConv2d.from_transposed(nn.Conv2d(2, 2, 2))


def test_padding_that_a_transposed_convolution_cannot_have_is_refused():
    with pytest.raises(OptionError, match=r"padding=3 is more than kernel_size - 1 = 2"):
        SubPixelConv2d(3, 2, padding=3, bias=False).to_transposed()


def test_converted_layers_own_their_weights_and_train():
    layer = SubPixelConv2d(3, 2, 1, bias=False)
    other = layer.to_transposed()
    again = SubPixelConv2d.from_transposed(other)
    memory = {p.data_ptr() for made in (layer, other, again) for p in made.parameters()}
    assert len(memory) == 3
    again(torch.ones(1, 3, 4, 4)).sum().backward()
    assert again.conv.weight.grad.any()
    assert layer.conv.weight.grad is None


# ICNR.


@pytest.mark.parametrize(("order", "start"), list(itertools.product(ORDERS, ORDERS)))
def test_only_filters_repeated_in_their_own_order_start_without_a_checkerboard(order, start):
    w, x = icnr_(torch.empty(12, 3, 3, 3, dtype=torch.float64), 2, start), normal((2, 3, 5, 6))
    y = depth_to_space(F.conv2d(x, w), 2, order)
    nearest = F.interpolate(y[..., ::2, ::2], scale_factor=2, mode="nearest")
    assert torch.allclose(y, nearest, atol=1e-12) == (order == start)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_a_layer_that_starts_equal_has_no_checkerboard_from_weight_or_bias(order, scale):
    layer = SubPixelConv2d(3, 4, scale, order=order, icnr=True, dtype=torch.float64)
    for start in (lambda: None, layer.reset_parameters):
        start()
        y = layer(normal((2, 3, 5, 6))).detach()
        assert_near(y, F.interpolate(y[..., ::scale, ::scale], scale_factor=scale), 1e-12, what="y")
        assert len(layer.conv.bias.unique()) == 4
        assert len(layer.conv.weight.unique()) == layer.conv.weight.numel() // scale**2


@pytest.mark.parametrize(("draw", "wanted"), [("torch", 1 / 3), ("he", 2.0)])
def test_filters_have_the_variance_of_their_distribution(draw, wanted):
    w = icnr_(torch.empty(4096, 20, 3, 3), 2, "dcr", draw, generator=torch.Generator().manual_seed(0))
    assert abs(w.var().item() * 180 / wanted - 1) < 0.02


def test_a_generator_of_its_own_decides_and_leaves_that_of_torch_alone():
    before = torch.get_rng_state()
    made = [icnr_(torch.empty(8, 2, 3, 3), generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_filters_that_a_scale_does_not_divide_are_refused_and_left_alone():
    w = torch.ones(6, 2, 3, 3)
    with pytest.raises(OptionError, match="scale=2 needs a multiple of scale² filters: 6 divide into 1, 2, 3, 6"):
        icnr_(w)
    assert w.eq(1).all()


def test_kernels_of_convolutions_alone_are_to_start_so():
    model = nn.Sequential(SubPixelConv2d(3, 2), nn.BatchNorm2d(2), nn.ConvTranspose2d(2, 2, 2), nn.Linear(4, 4))
    reasons = {weight.name: excludes(weight) for weight in weights(model)}
    assert [name for name, reason in reasons.items() if not reason] == ["0.conv.weight"]
    assert reasons["2.weight"] == "transposed: no convolution"


# Dense upsampling convolution.


@pytest.mark.parametrize("options", [{"scale": 4}, {"scale": 2, "branches": 3, "branch_step": 2}, {"scale": 1}])
def test_rearranged_labels_give_the_loss_and_the_gradients_of_rearranged_scores(options):
    layer = seeded(DUC, 3, 5, dtype=torch.float64, **options)
    x, scale = normal((2, 3, 4, 5)), layer.scale
    labels = torch.randint(0, 5, (2, 4 * scale, 5 * scale), generator=torch.Generator().manual_seed(0))
    labels[0, :2] = 255  # that is, ignored
    found, wanted = copy.deepcopy(layer), layer
    losses = [
        F.cross_entropy(found.scores(x), duc_labels(labels, scale), ignore_index=255),
        F.cross_entropy(wanted(x), labels, ignore_index=255),
    ]
    assert_near(*losses, 1e-14, what="the loss")
    for loss in losses:
        loss.backward()
    for ours, theirs in zip(found.parameters(), wanted.parameters(), strict=True):
        assert_near(ours.grad, theirs.grad, 1e-13, what="a gradient")


def test_the_layer_of_the_authors_network_has_four_dilated_branches():
    layer = DUC(64, 19, 8, branches=4)
    assert [conv.dilation for conv in layer.branch] == [(6, 6), (12, 12), (18, 18), (24, 24)]
    assert sum(p.numel() for p in layer.parameters()) == 4 * 701_632
    assert layer(torch.zeros(1, 64, 3, 2)).shape == (1, 19, 24, 16)
    assert layer.scores(torch.zeros(1, 64, 3, 2)).shape == (1, 19, 64, 3, 2)


def test_labels_are_rearranged_in_their_dtype():
    labels = torch.arange(2 * 4 * 6).view(2, 4, 6)
    found = duc_labels(labels, 2)
    assert found.shape == (2, 4, 2, 3)
    for i, j in itertools.product(range(2), range(2)):
        assert torch.equal(found[:, 2 * i + j], labels[:, i::2, j::2])
