"""The promises can fail: each mutant has one planted bug, and the test that must catch it does."""

import harness
import pytest
import test_promises_compile as compiled
import test_promises_gradients as gradients
import test_promises_memory as memory
import test_promises_numerics as numerics
import test_promises_samples as samples
import test_promises_shapes as shapes
import test_promises_state as states
import test_promises_use as use
import torch
from harness import Case
from planted import caught, first, planted

from layers import batch_kernels, catalog, dimensions, moments
from layers.norm import batch_renorm, ghost_bn

pytestmark = pytest.mark.usefixtures("nothing_built")

# Bugs of the engine.


@pytest.fixture
def by_planes(monkeypatch):
    monkeypatch.setattr(ghost_bn, "PARTS", 0)  # torch's kernels do few ghosts


def without_variance(true):
    return lambda ctx, grad_y, grad_mean, grad_var: true(ctx, grad_y, grad_mean, None)


@pytest.mark.usefixtures("by_planes")
@pytest.mark.parametrize(
    "test",
    [
        gradients.test_the_jacobian_is_right,
        gradients.test_gradients_are_right_along_gaussian_directions,
        gradients.test_forward_gradients_and_buffers_equal_the_reference,
    ],
)
def test_a_backward_without_its_variance_term(monkeypatch, test):
    monkeypatch.setattr(moments._Moments, "backward", staticmethod(without_variance(moments._Moments.backward)))
    caught(test, first("ghost-bn"))


@pytest.mark.usefixtures("by_planes")
def test_a_double_backward_without_its_variance_term(monkeypatch):
    true = moments._Moments.backward

    def backward(ctx, grad_y, grad_mean, grad_var):
        return true(ctx, grad_y, grad_mean, None if torch.is_grad_enabled() else grad_var)

    monkeypatch.setattr(moments._Moments, "backward", staticmethod(backward))
    gradients.test_the_jacobian_is_right(first("ghost-bn"))
    caught(gradients.test_second_derivatives_are_right_or_refused, first("ghost-bn"))
    caught(gradients.test_second_derivatives_are_those_of_the_reference_or_refused, first("ghost-bn"))


@pytest.mark.usefixtures("by_planes")
def test_a_variance_in_one_pass(monkeypatch):
    def one_pass(x):
        planes = x.flatten(2).to(moments.wide_dtype(x.dtype))
        mean = planes.mean(2)
        return mean, (planes.square().mean(2) - mean.square()).clamp(min=0)

    monkeypatch.setattr(moments, "plane_moments", one_pass)
    numerics.test_every_layout_of_input_and_gradient_gives_the_same(first("ghost-bn"))
    caught(numerics.test_a_mean_far_above_the_spread_costs_no_accuracy, first("ghost-bn"), 1e3, 3e-3)


@pytest.mark.usefixtures("by_planes")
def test_sums_in_half_precision(monkeypatch):
    def narrow(x):
        planes, wide = x.flatten(2), moments.wide_dtype(x.dtype)
        mean = planes.sum(2) / planes.shape[2]
        return mean.to(wide), planes.to(wide).var(2, correction=0)

    monkeypatch.setattr(moments, "plane_moments", narrow)
    numerics.test_half_precision_loses_only_the_last_digits(first("ghost-bn"), torch.bfloat16)
    caught(
        numerics.test_large_reductions_in_half_precision_neither_overflow_nor_stall, first("ghost-bn"), torch.float16
    )


@pytest.mark.usefixtures("by_planes")
def test_an_output_that_is_a_view_of_a_custom_function(monkeypatch):
    true = moments.per_plane
    monkeypatch.setattr(moments, "per_plane", lambda x, *numbers: true(x, *numbers).flatten().view(x.shape))
    caught(memory.test_an_operation_in_place_may_follow, first("ghost-bn"))


@pytest.mark.usefixtures("by_planes")
def test_a_layout_that_is_lost(monkeypatch):
    monkeypatch.setattr(moments, "is_channels_last", lambda x: False)
    caught(numerics.test_the_output_keeps_the_memory_format, first("ghost-bn"))


def test_a_backward_of_batch_norm_without_its_variance_term(monkeypatch):
    true = batch_kernels.combine_planes
    monkeypatch.setattr(dimensions, "SMALL", 0)  # torch's kernel does small maps
    gradients.test_the_jacobian_is_right(first("bn"))
    monkeypatch.setattr(batch_kernels, "combine_planes", lambda g, a, x, slope, b: true(g, a, x, 0 * slope, b))
    caught(gradients.test_the_jacobian_is_right, first("bn"))
    caught(gradients.test_gradients_are_right_along_gaussian_directions, first("bn"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_buffer_read_again_after_its_update_in_compiled_code(monkeypatch):
    case = first("batch-renorm")
    monkeypatch.setattr(batch_renorm, "snapshot", torch.clone)
    torch._dynamo.reset()
    caught(compiled.test_compiled_training_equals_eager_and_a_third_batch_size_is_free, case, by=AssertionError)
    torch._dynamo.reset()


# Bugs of a layer: what surrounds the true forward.


def writes_input(layer, x, true):
    y = true(x)
    x.detach().add_(1)
    return y


def returns_input(layer, x, true):
    return x.view_as(x)


def keeps_input(layer, x, true):
    layer.last = x
    return true(x)


def swallows_nan(layer, x, true):
    return true(x.nan_to_num())


def draws(layer, x, true):
    return true(x) + 1e-9 * torch.rand_like(x)


def reads_value(layer, x, true):
    return true(x) * (1 + 0 * x.sum().item())


def widens(layer, x, true):
    return true(x).double()


def counts_forwards(layer, x, true):
    layer.seen = getattr(layer, "seen", 0) + 1
    return true(x + layer.seen * x * x)


def forgets_a_gradient(layer, x, true):
    y = true(x)
    return torch.cat([y[:, :1].detach(), y[:, 1:]], 1)


def supposes_strides(layer, x, true):
    return true(torch.as_strided(x, x.shape, torch.empty(x.shape).stride()))


def fails_on_empty(layer, x, true):
    return true(x) * (x.numel() / x.numel())


def divides_by_spread(layer, x, true):
    return true(x) * (x.std() / x.std())


def takes_anything(layer, x, true):
    return true(x if x.is_floating_point() else x.real.double())


BUGS = [
    (writes_input, memory.test_inputs_are_never_written_and_outputs_are_new),
    (returns_input, memory.test_inputs_are_never_written_and_outputs_are_new),
    (keeps_input, memory.test_nothing_is_kept_alive_after_backward),
    (keeps_input, states.test_no_tensor_hides_outside_parameters_and_buffers),
    (swallows_nan, lambda case: samples.test_nan_and_inf_stay_in_their_sample_and_do_not_vanish(case, float("nan"))),
    (draws, states.test_the_same_twice_is_the_same_bit_for_bit_and_draws_no_random_number),
    (reads_value, shapes.test_meta_and_cpu_agree_on_shapes_strides_and_refusals),
    (widens, states.test_a_move_of_dtype_takes_everything_along),
    (counts_forwards, states.test_a_saved_layer_continues_bit_for_bit),
    (counts_forwards, use.test_checkpointing_changes_nothing),
    (forgets_a_gradient, memory.test_every_parameter_gets_a_finite_gradient_that_is_not_zero),
    (forgets_a_gradient, gradients.test_the_jacobian_is_right),
    (supposes_strides, numerics.test_every_layout_of_input_and_gradient_gives_the_same),
    (fails_on_empty, shapes.test_a_layer_takes_exactly_what_its_card_admits),
    (divides_by_spread, lambda case: numerics.test_constant_inputs_stay_finite(case, 1.0)),
    (takes_anything, shapes.test_a_bad_input_is_refused_with_its_value_and_changes_nothing),
]


@pytest.mark.parametrize(("bug", "test"), BUGS, ids=lambda thing: thing.__name__)
def test_a_bug_of_a_layer_is_caught(bug, test):
    base = catalog.stone("gn").load()
    stone = planted("gn", forward=lambda layer, x: bug(layer, x, lambda z: base.forward(layer, z)))
    test(first("gn"))
    harness._built.clear()
    caught(test, Case(stone, {"groups": 3}))
