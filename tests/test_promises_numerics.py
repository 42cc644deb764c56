"""Every memory layout gives the same numbers, and every dtype the digits that it has."""

import copy

import pytest
import torch
from harness import (
    BATCH,
    CHANNELS,
    Case,
    assert_near,
    assert_passes,
    cases,
    normal,
    outputs,
    run,
    scale,
)
from layouts import LAST, LAYOUTS, channels_last, contiguous, strides, transposed

from layers.observe import observing

C = CHANNELS
HALVES = (torch.bfloat16, torch.float16)
PAST = {mean: lambda shape, seed, mean=mean: normal(shape, seed) + mean for mean in (0.0, 32.0, 1e3, 1e4)}


@pytest.mark.parametrize("case", cases())
def test_every_layout_of_input_and_gradient_gives_the_same(case: Case):
    for shape in case.shapes():
        x, upstream = normal(shape, seed=1), normal(case.output(shape), seed=7)
        wanted = run(case.layer(), x, upstream)
        for name, lay in LAYOUTS.items():
            for other, lay_upstream in LAYOUTS.items():
                if name == other or ("contiguous" in (name, other) and shape == case.shape()):
                    found = run(case.layer(), lay(x), lay_upstream(upstream))
                    for what, tensor in found.tensors().items():
                        assert_near(tensor, wanted.tensors()[what], 1e-10, what=f"{what}, {shape}, {name}, {other}")


@pytest.mark.parametrize("case", cases())
def test_expanded_inputs_and_gradients_of_stride_zero_are_right(case: Case):
    x, upstream = normal(case.shape(), seed=1), normal(case.output(case.shape()), seed=7)
    for axis in range(x.dim()):
        flat_input, flat_gradient = (
            each.narrow(min(axis, each.dim() - 1), 0, 1).expand(each.shape) for each in (x, upstream)
        )
        constant = upstream[:1, :1].sum().expand(upstream.shape)
        for ours, theirs in ((x, flat_gradient), (flat_input, upstream), (x, constant)):
            wanted = run(case.layer(), ours.contiguous(), theirs.contiguous())
            layer = case.layer()
            leaf = ours.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(outputs(layer(leaf))[0], leaf, theirs)
            deviation = scale(gradient - wanted.x)
            assert deviation <= 1e-10 * max(scale(wanted.x), scale(theirs)), (
                f"gradient of x along axis {axis} deviates by {deviation}"
            )


@pytest.mark.parametrize("case", cases())
def test_the_output_keeps_the_memory_format(case: Case):
    for dtype in (torch.float32, torch.bfloat16):
        layer = case.layer(dtype if case.convolves else torch.float32)
        for shape in case.shapes((BATCH, C, 3, 4), (BATCH, C, 5), (BATCH, C, 2, 3, 2)):
            for lay in (contiguous, channels_last) if len(shape) in LAST else (contiguous,):
                x = lay(normal(shape, dtype=dtype))
                y = outputs(copy.deepcopy(layer)(x))[0]
                assert strides(y) == strides(lay(y)), f"{shape} {x.stride()} became {y.stride()} of {tuple(y.shape)}"


@pytest.mark.parametrize("case", cases())
def test_a_layer_moved_to_channels_last_is_the_same_layer(case: Case):
    layer = case.layer()
    x = channels_last(normal(case.shape(), seed=1))
    wanted = run(copy.deepcopy(layer), x)
    if x.dim() == 4:
        found = run(layer.to(memory_format=torch.channels_last), x)
        # Sums over a kernel that is laid out in another way have another order.
        kernels = any(parameter.dim() == 4 for parameter in layer.parameters())
        assert_passes(found, wanted, *((assert_near, 1e-12) if kernels else ()))


def widened(layer):
    """The same layer in float64: the truth about a narrower one on the same rounded data."""
    return copy.deepcopy(layer).double()


def assert_accurate(layer, x, within, gradients):
    """Compare output, gradients and buffers with float64 on the same rounded numbers, relative to their scale."""
    wide, found = widened(layer), run(layer, x)
    wanted = run(wide, x.double(), normal(found.y.shape, seed=7).to(x.dtype).double())
    assert found.y.dtype == x.dtype
    assert found.x.dtype == x.dtype
    assert_near(found.y, wanted.y, within, what=f"y in {x.dtype}")
    for name in gradients:
        assert_near(found.tensors()[name], wanted.tensors()[name], within, what=f"{name} in {x.dtype}")
    for name, buffer in found.buffers.items():
        kept = torch.finfo(buffer.dtype).eps if buffer.is_floating_point() else 0
        assert_near(buffer, wanted.buffers[name], max(within, 8 * kept), what=f"buffer {name} in {x.dtype}")


def prepared(case, dtype, shape, mean=0.0):
    """An input in ``dtype``, and a layer whose past was of its kind."""
    return (normal(shape, seed=1) + mean).to(dtype), case.layer(dtype, inputs=PAST[mean])


def gradients(layer, shape):
    """The gradients to compare. Over two values (N, C) with N = 2 a gradient is all cancellation."""
    return [f"gradient of {name}" for name in ("x", *dict(layer.named_parameters()))] if len(shape) > 2 else []


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("case", cases())
def test_half_precision_loses_only_the_last_digits(case: Case, dtype):
    for shape in case.shapes():
        x, layer = prepared(case, dtype, shape)
        assert_accurate(layer, x, 8 * torch.finfo(dtype).eps, gradients(layer, shape))
        if case.convolves:  # it wants a weight of the input's dtype, as torch's convolutions do
            with pytest.raises(RuntimeError, match="type"):
                layer.float()(x)
        else:
            assert_accurate(layer.float(), x, 8 * torch.finfo(dtype).eps, gradients(layer, shape))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("case", cases())
def test_large_reductions_in_half_precision_neither_overflow_nor_stall(case: Case, dtype):
    x, layer = prepared(case, dtype, case.shape((BATCH, C, 72, 72)), mean=32.0)
    for lay in (contiguous, channels_last):
        assert_steadily_accurate(layer, lay(x), 16 * torch.finfo(dtype).eps, gradients(layer, x.shape)[:1])


@pytest.mark.parametrize(("mean", "within"), [(1e3, 3e-3), (1e4, 3e-2)], ids=["1e3", "1e4"])
@pytest.mark.parametrize("case", cases())
def test_a_mean_far_above_the_spread_costs_no_accuracy(case: Case, mean, within):
    for shape in case.shapes((BATCH, C, 9, 8), (BATCH, C, 70), (BATCH, C), (BATCH, C, 3, 4, 5)):
        x, layer = prepared(case, torch.float32, shape, mean)
        for lay in (contiguous, channels_last, transposed):
            assert_steadily_accurate(layer, lay(x), within, gradients(layer, shape)[:1])


def assert_steadily_accurate(layer, x, within, gradients):
    """`assert_accurate`, but for gradients that no float32 computation can have right since they jump at ``x``."""
    assert_accurate(copy.deepcopy(layer), x, within, [])
    try:
        assert_accurate(copy.deepcopy(layer), x, within, gradients)
    except AssertionError:
        if not jumps(layer, x, within):
            raise


def jumps(layer, x, within):
    """Whether the exact gradient of x moves by ``within`` when planes move by float32 rounding errors of their means.

    A ReLU in the layer that switches there does this, a smooth function does not.
    """
    base = run(widened(layer), x.double()).x
    for seed in range(8):
        error = torch.finfo(torch.float32).eps * x.double().abs().mean(tuple(range(2, x.dim())), keepdim=True)
        moved = run(widened(layer), x.double() + error * normal(error.shape, seed=seed)).x
        if scale(moved - base) > within * scale(base):
            return True
    return False


@pytest.mark.parametrize("case", [case for case in cases() if case.values[0].convolves])
def test_filters_with_a_mean_far_above_their_spread_cost_no_accuracy(case: Case):
    for dtype, mean, within in ((torch.float32, 1e2, 1e-3), (torch.float16, 10.0, 8 * torch.finfo(torch.float16).eps)):
        layer, x = case.layer(), normal(case.shape(), seed=1, dtype=dtype)
        for parameter in layer.parameters():
            parameter.data += mean * (parameter.dim() == 4)
        wide = run(copy.deepcopy(layer), x.double())
        if max(scale(wide.y), scale(wide.x)) < torch.finfo(dtype).max:  # several in a row leave the range of float16
            assert_accurate(layer.to(dtype), x, within, gradients(layer, x.shape)[:1])


@pytest.mark.parametrize("case", cases())
def test_autocast_works_and_keeps_the_dtype(case: Case):
    layer = case.layer(torch.float32)
    shape = case.shape()
    before = torch.nn.Linear(shape[-1], shape[-1], bias=False)
    x = normal(shape, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        into = before(x.requires_grad_())
        y = outputs(copy.deepcopy(layer)(into))[0]
        wide = outputs(copy.deepcopy(layer)(into.float()))[0]
    with torch.no_grad():
        wanted = outputs(widened(layer)(into.double()))[0]
    assert (y.dtype, wide.dtype) == (torch.bfloat16, torch.bfloat16 if case.convolves else torch.float32)
    assert_near(y, wanted, 16 * torch.finfo(torch.bfloat16).eps, what="y")
    (y.float() * normal(y.shape, seed=7)).sum().backward()
    assert x.grad.isfinite().all()
    assert before.weight.grad.any()


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("case", cases())
def test_constant_inputs_stay_finite(case: Case, value):
    shape = case.shape((BATCH, C, 5, 4))
    whole, channel, sample = (normal(shape, dtype=torch.float32) for _ in range(3))
    whole.fill_(value)
    channel[:, 3] = value
    sample[1] = value
    for x in (whole, channel, sample):
        for lay in (contiguous, channels_last):
            layer = case.layer(torch.float32)
            with observing() as seen:
                found = run(layer, lay(x))
            for name, tensor in {**seen, **found.tensors()}.items():
                assert tensor.isfinite().all(), name
