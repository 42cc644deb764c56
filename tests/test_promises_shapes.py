"""Which inputs a layer takes: what its card admits, on any device alike; everything else is refused with a reason."""

import copy

import pytest
import torch
from harness import (
    BATCH,
    CHANNELS,
    Case,
    assert_near,
    assert_same,
    cases,
    normal,
    outputs,
    run,
    state,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import channels_last

from layers.observe import observing

C = CHANNELS
REFUSALS = (ValueError, TypeError)
fuzzed = settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
any_shape = st.lists(st.integers(0, 3), max_size=4).flatmap(
    lambda positions: st.tuples(st.integers(0, 2 * BATCH), st.sampled_from([C, C, C, C, 1, C + 1])).map(
        lambda head: (*head, *positions)
    )
)


def attempt(layer, x):
    """Shape, dtype and strides (where they mean something) of the outputs of a copy of ``layer``, or the refusal."""
    try:
        return [(tuple(y.shape), y.dtype, strides(y)) for y in outputs(copy.deepcopy(layer)(x))]
    except REFUSALS as refusal:
        return type(refusal), str(refusal)


def strides(tensor):
    """The strides of the axes along which there is a step to make."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1 and tensor.numel()]


@pytest.mark.parametrize("case", cases())
def test_a_layer_takes_exactly_what_its_card_admits(case: Case):
    layer = case.layer(torch.float32)

    @fuzzed
    @given(any_shape)
    def fuzz(shape):
        found = attempt(layer, normal(shape, dtype=torch.float32))
        admitted = 2 <= len(shape) <= 5 and shape[1] == C and not case.refusal(shape)
        assert isinstance(found, list) == admitted, f"{shape}: {found}, the card says {case.refusal(shape) or 'yes'!r}"
        if admitted:
            assert found[0][:2] == (shape, torch.float32)

    fuzz()


@pytest.mark.parametrize("case", cases())
def test_meta_and_cpu_agree_on_shapes_strides_and_refusals(case: Case):
    real = case.fresh(torch.float32) if case.train else case.layer(torch.float32)
    meta = copy.deepcopy(real).to("meta")

    @fuzzed
    @given(any_shape)
    def fuzz(shape):
        x = normal(shape, dtype=torch.float32)
        assert attempt(meta, x.to("meta")) == attempt(real, x)

    fuzz()


@pytest.mark.parametrize("case", cases())
def test_channels_last_keeps_its_strides_on_meta_too(case: Case):
    layer = case.layer(torch.float32)
    meta = copy.deepcopy(layer).to("meta")
    for shape in case.shapes((BATCH, C, 3, 4), (BATCH, C, 2, 3, 2)):
        x = channels_last(normal(shape, dtype=torch.float32))
        found = attempt(layer, x)
        assert found == attempt(meta, x.to("meta"))
        assert found[0][2] == strides(x)


@pytest.mark.parametrize("case", cases())
def test_an_empty_batch_gives_an_empty_output_and_no_gradient(case: Case):
    for shape in [(0, C, 3, 4), (0, C, 5), (0, C), (0, C, 2, 3, 2)]:
        if case.refusal(shape):
            continue
        layer = case.layer()
        before = state(layer)
        with observing() as seen:
            found = run(layer, normal(shape))
        assert found.y.shape == shape
        assert found.x.shape == shape
        for name, gradient in found.parameters.items():
            assert gradient is not None, name
            assert not gradient.any(), name
        for name, tensor in {**seen, **found.buffers}.items():
            assert tensor.isfinite().all(), name
        run(layer, normal(case.shape()))  # and the layer lives on
        for name, buffer in found.buffers.items():
            if buffer.is_floating_point():
                assert_same(buffer, before[name], what=name)


@pytest.mark.parametrize("case", cases())
def test_an_empty_batch_is_refused_only_by_the_card(case: Case):
    shape = (0, C, 3, 4)
    assert isinstance(attempt(case.layer(), normal(shape)), list) == (not case.refusal(shape))


@pytest.mark.parametrize("case", cases())
def test_a_batch_of_one_works_or_is_refused_with_a_reason(case: Case):
    for positions in [(3, 4), (5,), (), (1, 1)]:
        shape = (1, C, *positions)
        if case.refusal(shape):
            with pytest.raises(ValueError, match=r"(\w+ ){4}"):
                case.layer()(normal(shape))
        else:
            found = run(case.layer(), normal(shape))
            assert all(tensor.isfinite().all() for tensor in found.tensors().values())


@pytest.mark.parametrize("case", cases())
def test_a_bad_input_is_refused_with_its_value_and_changes_nothing(case: Case):
    layer = case.layer(torch.float32)
    before = copy.deepcopy(layer.state_dict())
    name = type(layer).__name__
    good = case.shape()
    bad = [
        (torch.zeros(BATCH, C + 1, *good[2:]), ValueError, str(C + 1)),
        (torch.zeros(BATCH, 1, *good[2:]), ValueError, "has 1"),
        (torch.zeros(BATCH, 0, *good[2:]), ValueError, "has 0"),
        (torch.zeros(C), ValueError, "1-d"),
        (torch.zeros(()), ValueError, "0-d"),
        (torch.zeros(BATCH, C, 1, 2, 1, 2), ValueError, "6-d"),
        (torch.zeros(good, dtype=torch.int64), TypeError, "int64"),
        (torch.zeros(good, dtype=torch.bool), TypeError, "bool"),
        (torch.zeros(good, dtype=torch.complex64), TypeError, "complex64"),
    ]
    for x, kind, words in bad:
        with pytest.raises(kind, match=words) as refusal:
            layer(x)
        assert name in str(refusal.value)
    for key, tensor in layer.state_dict().items():
        assert_same(tensor, before[key], what=key)


@pytest.mark.parametrize("case", cases())
def test_every_rank_is_the_same_function_of_its_positions(case: Case):
    """(N, C, L), (N, C, L, 1) and (N, C, 1, 1, L) hold the same numbers and give the same."""
    shape = (BATCH, C, 6)
    views = [(BATCH, C, 6, 1), (BATCH, C, 1, 6), (BATCH, C, 2, 3), (BATCH, C, 1, 2, 3)]
    if case.refusal(shape):
        return
    x = normal(shape)
    wanted = run(case.layer(), x)
    for view in views:
        found = run(case.layer(), x.view(view))
        for name, tensor in wanted.tensors().items():
            assert_near(found.tensors()[name].reshape(tensor.shape), tensor, 1e-12, what=f"{name} {view}")
