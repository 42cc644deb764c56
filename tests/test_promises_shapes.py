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
from layouts import channels_last, strides

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


def any_shape(case):
    """Shapes of an input, mostly of ranks and channels that the card admits, axes of size 0 among them."""
    ranks = st.sampled_from([*case.stone.card.ranks] * 4 + [2, 3, 4, 5, 6])
    size = st.sampled_from([3, 4, 5, 6, 2, 1, 0] if case.convolves else [0, 1, 2, 3])
    positions = ranks.flatmap(lambda rank: st.lists(size, min_size=rank - 2, max_size=rank - 2))
    head = st.tuples(st.integers(0, 2 * BATCH), st.sampled_from([C, C, C, C, 1, C + 1]))
    return st.tuples(head, positions).map(lambda parts: (*parts[0], *parts[1]))


def attempt(layer, x):
    """Shape, dtype and strides (where they mean something) of the outputs of a copy of ``layer``, or the refusal."""
    try:
        return [(tuple(y.shape), y.dtype, strides(y)) for y in outputs(copy.deepcopy(layer)(x))]
    except REFUSALS as refusal:
        return type(refusal), str(refusal)


@pytest.mark.parametrize("case", cases())
def test_a_layer_takes_exactly_what_its_card_admits(case: Case):
    layer = case.layer(torch.float32)

    @fuzzed
    @given(any_shape(case))
    def fuzz(shape):
        found = attempt(layer, normal(shape, dtype=torch.float32))
        admitted = shape[1] == C and not case.refusal(shape)
        assert isinstance(found, list) == admitted, f"{shape}: {found}, the card says {case.refusal(shape) or 'yes'!r}"
        if admitted:
            assert found[0][:2] == (case.output(shape), torch.float32)

    fuzz()


@pytest.mark.parametrize("case", cases())
def test_the_ranks_of_inputs_are_those_of_the_card(case: Case):
    layer = case.layer(torch.float32)
    for shape in [(BATCH, C, 6, 6, 6, 6)[:rank] for rank in range(1, 7)]:
        found = attempt(layer, normal(shape, dtype=torch.float32))
        assert isinstance(found, list) == (not case.refusal(shape)), f"{shape}: {found}, {case.refusal(shape)}"
        assert isinstance(found, tuple) or found[0][0] == case.output(shape)


@pytest.mark.parametrize("case", cases())
def test_meta_and_cpu_agree_on_shapes_strides_and_refusals(case: Case):
    real = case.fresh(torch.float32) if case.train else case.layer(torch.float32)
    meta = copy.deepcopy(real).to("meta")

    @fuzzed
    @given(any_shape(case))
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
        assert found[0][2] == strides(channels_last(x.new_empty(case.output(shape))))


@pytest.mark.parametrize("case", cases())
def test_an_empty_batch_gives_an_empty_output_and_no_gradient(case: Case):
    for shape in [(0, C, 3, 4), (0, C, 5), (0, C), (0, C, 2, 3, 2)]:
        if case.refusal(shape):
            continue
        layer = case.layer()
        before = state(layer)
        with observing() as seen:
            found = run(layer, normal(shape))
        assert found.y.shape == case.output(shape)
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
            with pytest.raises(ValueError, match=r"(\S+ ){4}"):
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


@pytest.mark.parametrize("case", [case for case in cases() if len(case.values[0].stone.card.ranks) > 1])
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
