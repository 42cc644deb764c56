"""What the cards of the convolutions say where little is left of an input: the card beside the measurement."""

import itertools

import pytest
import torch
from torch import nn

from layers import gemm_convolution
from layers.catalog import stone, stones
from layers.dimensions import inside, meeting
from profiles.counting.facts import inspect
from profiles.subject import Setup, subject

CONVOLUTIONS = sorted(name for name, found in stones().items() if found.kind == "conv")
ALGORITHMS = [name for name in CONVOLUTIONS if stone(name).card.peer.same]
PADDED = [name for name in CONVOLUTIONS if any(o.name == "padding_mode" for o in stone(name).card.options)]
ALONE = {"kernel_size": (3, 1), "stride": (1, 2), "padding": (2, 0), "dilation": (3, 1)}  # two taps on padding alone


def contradicted(name, shape, options=None, **circumstances):
    made = subject(stone(name), options or {}, Setup(shape, **circumstances))
    return [check for check in inspect(made, fvcore=False)["checks"] if not check["ok"]]


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_an_empty_batch_contradicts_no_card(name):
    assert contradicted(name, (0, 4, 5, 6), {"padding": 1}) == []


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_taps_on_padding_alone_contradict_no_card(name):
    own = {option.name for option in stone(name).card.options} & {"taps"}
    assert contradicted(name, (3, 2, 4, 2), {**ALONE, "out_channels": 4, **dict.fromkeys(own, "one")}) == []


@pytest.mark.parametrize(("name", "mode"), [*itertools.product(PADDED, ("circular", "reflect"))])
def test_channels_last_with_padding_other_than_zeros_contradicts_no_card(name, mode):
    options = {"padding": (1, 0), "padding_mode": mode}
    assert contradicted(name, (2, 4, 5, 6), options, memory_format="channels_last") == []


def test_one_image_contradicts_no_card_of_region_aware_convolution():
    for options in ({"regions": 2}, {"regions": 2, "kernel_size": 1}, {"regions": 1}):
        assert contradicted("drconv", (1, 4, 8, 7), options) == []


def test_what_windows_see_is_counted_for_kernels_larger_than_the_input_too():
    sizes, kernels, strides, paddings, dilations = range(1, 5), range(1, 8), range(1, 8), (0, 1, 4, 9), (1, 2, 4)
    for size, kernel, stride, padding, dilation in itertools.product(sizes, kernels, strides, paddings, dilations):
        outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        seen = [[u * stride + t * dilation - padding for u in range(outputs)] for t in range(kernel)]
        counts = [sum(0 <= place < size for place in places) for places in seen]
        if outputs > 0:
            asked = size, kernel, stride, padding, dilation
            assert (inside(*asked), meeting(*asked)) == (sum(counts), sum(map(bool, counts))), asked


def test_huge_kernels_on_huge_paddings_are_counted_at_once():
    assert inside(8, 10**9, 1, 10**9, 1) == 8 * 10**9
    assert meeting(8, 10**9, 3, 10**9, 1) == 10**9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_gradients_of_large_batches_in_half_precision_are_rounded_once(name, dtype):
    torch.manual_seed(0)
    layer, x = stone(name).load()(4, 3, 3, padding=1, dtype=dtype), torch.rand(512, 4, 3, 3).to(dtype).requires_grad_()
    wanted = nn.Conv2d(4, 3, 3, padding=1, dtype=torch.float64)
    wanted.load_state_dict(layer.state_dict())
    upstream, wide = torch.rand(512, 3, 3, 3).to(dtype), x.detach().double().requires_grad_()
    layer(x).backward(upstream / 8)
    wanted(wide).backward(upstream.double() / 8)
    for found, exact in ((layer.weight.grad, wanted.weight.grad), (x.grad, wide.grad)):
        assert (found - exact).abs().max() <= 1.5 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("together", [1, gemm_convolution.TOGETHER])
@pytest.mark.parametrize("size", [(5, 4), (12, 11)])  # positions few enough for one product of the batch, and more
@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_is_torchs_convolution_on_small_and_on_larger_maps(name, size, together, monkeypatch):
    monkeypatch.setattr(gemm_convolution, "TOGETHER", together)
    for groups, layout in itertools.product((1, 2), (torch.contiguous_format, torch.channels_last)):
        layer = stone(name).load()(4, 6, 3, padding=1, groups=groups, dtype=torch.float64)
        plain = nn.Conv2d(4, 6, 3, padding=1, groups=groups, dtype=torch.float64)
        plain.load_state_dict(layer.state_dict())
        x = torch.randn(3, 4, *size, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
        found, wanted = (
            (y, *torch.autograd.grad(y.sin().sum(), (x, *module.parameters())))
            for module, y in ((layer, layer(x)), (plain, plain(x)))
        )
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
