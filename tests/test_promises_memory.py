"""A layer leaves alone what is not its own: its inputs, memory it no longer needs, the state of torch, the screen."""

import gc
import weakref

import pytest
import torch
from harness import Case, assert_near, assert_same, cases, normal, outputs, run
from layouts import LAYOUTS

trained = [case for case in cases(True) if any(True for _ in case.values[0].fresh().parameters())]


def batch(case, seed=0):
    return normal(case.shape(), seed=seed)


@pytest.mark.parametrize("case", cases())
def test_inputs_are_never_written_and_outputs_are_new(case: Case):
    for shape in case.shapes():
        layer = case.layer()
        x = normal(shape, seed=1).requires_grad_()
        upstream = normal(case.output(shape), seed=7)
        copies = x.detach().clone(), upstream.clone()
        versions = x._version, upstream._version
        y = outputs(layer(x))[0]
        kept = y.detach().clone()
        y.backward(upstream)
        assert (x._version, upstream._version) == versions
        for ours, theirs in zip((x.detach(), upstream, y.detach()), (*copies, kept), strict=True):
            assert_same(ours, theirs, what="a tensor")
        memory = {tensor.untyped_storage().data_ptr() for tensor in (x, upstream, *layer.state_dict().values())}
        assert y.untyped_storage().data_ptr() not in memory
        assert x.grad.untyped_storage().data_ptr() not in memory
        with torch.no_grad():
            y.zero_()  # what follows may work in place
        assert_same(x.detach(), copies[0], what="x")


@pytest.mark.parametrize("case", cases())
def test_an_operation_in_place_may_follow(case: Case):
    for shape in case.shapes():
        x = normal(shape, seed=1)
        wanted = run(case.layer(), x, 2.0 * (run(case.layer(), x).y > 0))
        for lay in LAYOUTS.values():
            leaf = lay(x).requires_grad_()
            y = outputs(case.layer()(leaf))[0].mul_(2).relu_()
            y.backward(torch.ones_like(y))
            assert_near(leaf.grad, wanted.x, 1e-12, what="gradient of x")


@pytest.mark.parametrize("case", cases())
def test_nothing_is_kept_alive_after_backward(case: Case):
    layer = case.layer()
    gc.disable()  # a cycle would wait for it with all its memory
    try:
        x = batch(case).requires_grad_()
        y = outputs(layer(x))[0]
        tensors = [weakref.ref(x), weakref.ref(y)]
        y.backward(torch.ones_like(y))
        del x, y
        assert [reference() for reference in tensors] == [None, None]
        x = batch(case).requires_grad_()
        tensors = [weakref.ref(x)]
        layer(x)
        del x
        assert tensors[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("case", trained)
def test_every_parameter_gets_a_finite_gradient_that_is_not_zero(case: Case):
    found = run(case.layer(), batch(case))
    assert found.parameters
    for name, gradient in found.parameters.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        # A rule for the backward may leave out some of them by design.
        some = gradient.ne(0).all() if case.exact else gradient.any()
        assert some, f"{name}: {int(gradient.eq(0).sum())} elements without a gradient"


def global_state():
    return {
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "random": torch.get_rng_state().tolist(),
        "printing": repr(torch.tensor([1 / 3])),
        "mkldnn": torch.backends.mkldnn.enabled,
        "denormals": torch.tensor([1e-40]).add(0).item(),
        "precision": torch.get_float32_matmul_precision(),
    }


@pytest.mark.parametrize("case", cases(True, False))
def test_global_state_is_left_alone_and_nothing_is_printed(case: Case, capfd):
    before = global_state()
    layer = case.layer(torch.float32)
    run(layer, normal(case.shape(), dtype=torch.float32))
    repr(layer)
    assert global_state() == before
    assert capfd.readouterr() == ("", "")
