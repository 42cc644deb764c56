"""What the convolutions that go tap by tap do beyond being convolutions: partial results, rows, indirections."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from layers import formula
from layers.catalog import stone
from layers.conv.indirect_conv import IndirectConv2d, indirection
from layers.conv.kn2col import Kn2colConv2d
from layers.conv.kn2row import Kn2rowConv2d
from layers.conv.kn2row_aa import Kn2rowAaConv2d
from layers.gemm_convolution import Geometry
from layers.observe import observing
from layers.tapwise import add_rows
from profiles.counting.workspace import workspace

FAMILY = [Kn2rowConv2d, Kn2colConv2d, Kn2rowAaConv2d, IndirectConv2d]


def channels_last(*shape):
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def observed(layer, x):
    with observing() as seen:
        layer(x)
    return seen


@pytest.mark.parametrize("geometry", [
    Geometry(kernel, stride, padding, dilation, 1)
    for kernel, stride, padding, dilation in itertools.product(
        [(3, 3), (1, 4)], [(1, 1), (2, 3)], [(0, 0), (1, 2), (4, 5)], [(1, 1), (2, 1)]
    )
])  # fmt: skip
def test_indirections_are_those_of_a_loop_over_taps_and_outputs(geometry):
    (kh, kw), (sh, sw), (ph, pw), (dh, dw), _ = geometry
    height, width = 6, 7
    high, wide = geometry.output(height, width)
    expected = []
    for i, j, u, v in itertools.product(range(kh), range(kw), range(high), range(wide)):
        y, x = u * sh - ph + i * dh, v * sw - pw + j * dw
        expected.append(y * width + x if 0 <= y < height and 0 <= x < width else height * width)
    found = indirection(geometry, torch.Size((height, width)), torch.device("cpu"))
    assert found.dtype == torch.int32
    assert found.tolist() == torch.tensor(expected).view(kh * kw, high * wide).tolist()


def test_a_pixel_of_zeros_is_pointed_to_from_padding_and_from_nowhere_else():
    x = torch.randn(2, 4, 5, 6)
    assert observed(IndirectConv2d(4), x)["indirection"].max() < 30
    padded = observed(IndirectConv2d(4, padding=1), x)["indirection"]
    assert (padded == 30).sum() == 9 * 30 - stone("indirect-conv").card.symbols(
        x.shape, IndirectConv2d(4, padding=1).options
    )["met"]


@pytest.mark.parametrize("tile", [1, 2, 7, 29, 30, 31, 10**6])
def test_the_tile_changes_the_workspace_alone(tile):
    x = channels_last(2, 4, 5, 6)
    whole, tiled = IndirectConv2d(4, 8, padding=1), IndirectConv2d(4, 8, padding=1, tile=tile)
    tiled.load_state_dict(whole.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(tiled(x), whole(x))
        less = workspace(lambda: whole(x)) - workspace(lambda: tiled(x))
    assert less == (30 - min(tile, 30)) * 4 * 4


def test_a_pointwise_convolution_needs_neither_indirections_nor_partial_results():
    x = torch.randn(2, 4, 5, 6)
    for layer in (Kn2rowConv2d(4, kernel_size=1), Kn2colConv2d(4, kernel_size=1), IndirectConv2d(4, kernel_size=1)):
        assert observed(layer, x) == {}
        assert observed(type(layer)(4, kernel_size=1, stride=2), x)


@pytest.mark.parametrize(("name", "nhwc", "options", "expected"), [
    ("kn2row", False, {}, 2506752),
    ("kn2row", False, {"taps": "one"}, 409600),
    ("kn2col", True, {}, 2506752),
    ("kn2col", True, {"taps": "one"}, 409600),
    ("kn2row-aa", True, {}, 147456),
    ("indirect-conv", True, {}, 512256),
])  # fmt: skip
def test_the_workspace_of_64_channels_of_32_by_32(name, nhwc, options, expected):
    found = stone(name)
    layer, x = found.load()(64, padding=1, **options), torch.randn(8, 64, 32, 32)
    if nhwc:
        x = x.contiguous(memory_format=torch.channels_last)
    assert formula.evaluate(found.card.workspace, found.card.symbols(x.shape, layer.options, nhwc=nhwc)) == expected
    with torch.no_grad():
        assert workspace(lambda: layer(x)) == expected


def test_the_papers_buffer_of_pointers_is_rounded_up_to_rows_of_the_micro_kernel():
    card = stone("indirect-conv").card
    symbols = card.symbols((1, 64, 32, 32), IndirectConv2d(64, padding=1).options)
    assert symbols["pointers"] == 8 * 9 * 1026
    assert symbols["indices"] == 4 * 9 * 1024
    assert "not the algorithm's" in card.summary


@pytest.mark.parametrize("layer", [Kn2rowConv2d, Kn2colConv2d])
def test_partial_results_are_made_at_every_pixel_whatever_the_stride(layer):
    x = torch.randn(2, 4, 5, 6)
    for taps, made in (("all", 9), ("one", 1)):
        strided = layer(4, 6, stride=2, groups=2, taps=taps)
        partial = observed(strided, x)["partial"]
        assert partial.numel() == made * 6 * 30
        last = F.conv2d(x[-1:], strided.weight[:, :, 2:, 2:], groups=2)[0].view(2, 3, 5, 6)  # the tap of all others
        found = partial[:, -1] if layer is Kn2rowConv2d else partial[..., -1, :].movedim(-1, 1)
        torch.testing.assert_close(found, last.detach())


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("across", [slice(0, 6), slice(1, 6)], ids=["whole rows", "parts of rows"])
def test_rows_are_multiplied_where_they_lie(groups, across):
    y, x, filters = torch.zeros(5, 6, 8), torch.randn(5, 6, 4), torch.randn(groups, 8 // groups, 4 // groups)
    expected = torch.einsum("rvgc,goc->rvgo", x.unflatten(2, (groups, -1)), filters).flatten(2)
    assert workspace(lambda: add_rows(y[:, across], x[:, across], filters)) == 0
    torch.testing.assert_close(y[:, across], expected[:, across])
    assert y[:, : across.start].eq(0).all()


@pytest.mark.parametrize("layer", FAMILY)
def test_what_a_tap_meets_in_padding_is_no_zero_times_infinity(layer):
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    module = layer(4, padding=2, dilation=2, dtype=torch.float64)
    with torch.no_grad():
        module.weight[:, :, 0] = 0
        expected = module(x)[:, :, :2]  # the first row of taps meets padding alone
        module.weight[:, :, 0] = float("inf")
        found = module(x)[:, :, :2]
    if layer is IndirectConv2d:  # it multiplies pixels of zeros
        assert found.isnan().all()
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layer", FAMILY)
def test_half_precision_rounds_the_sum_once(layer, dtype):
    module, x = layer(12, padding=1).to(dtype), torch.randn(2, 12, 6, 5).to(dtype)
    found = module(x)
    assert found.dtype == dtype
    assert torch.equal(found, module.float()(x.float()).to(dtype))


@pytest.mark.parametrize("layer", FAMILY)
def test_an_input_of_another_dtype_is_refused_by_name(layer):
    with pytest.raises(RuntimeError, match=rf"{layer.__name__}: the input's type is torch.float64, .* torch.float32"):
        layer(4)(torch.randn(2, 4, 5, 6).double())
